//! A key that stands still behind a dead letter goes on when a person releases it, in order, beside a relay at work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outbox::keys::{self, By, Filter, Release};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::{AfterDeadLetter, HandlerError, RelayBuilder};

use super::stage::{
    Left, Log, Running, dead_letters, discard_all, enqueue, keyed, lines, millis, redrive_all, relay_on, until,
    until_dead, until_nothing_is_left, until_waiting,
};

fn release(database: &TestDatabase, key: &str) -> Release {
    let by = By { actor: "ada@desk".into(), reason: Some("looked at it".into()) };
    with_connection!(database, |conn| keys::release(conn, "d", key.as_bytes(), &by)).unwrap()
}

fn blocked(database: &TestDatabase) -> Vec<String> {
    let filter = Filter { only_blocked: true, ..Filter::default() };
    let blocked = with_connection!(database, |conn| keys::list(conn, &filter, 100)).unwrap();
    blocked.into_iter().map(|parked| String::from_utf8(parked.key).unwrap()).collect()
}

/// A relay that blocks keys, and rejects what is `bad` until it is opened.
fn strict(database: &TestDatabase, log: &Log, open: &Arc<AtomicBool>) -> RelayBuilder {
    let open = open.clone();
    let handler = log.handler("d", move |arrival| {
        let is_refused = arrival.body.starts_with("bad") && !open.load(Ordering::SeqCst);
        if is_refused { Err(HandlerError::reject("not like this")) } else { Ok(()) }
    });
    relay_on(database).lease(millis(1000)).destination(handler.after_dead_letter(AfterDeadLetter::Block))
}

/// What was accepted of the key `k`.
fn of_key(log: &Log) -> Vec<String> {
    let arrivals = log.arrivals().into_iter();
    let accepted = arrivals.filter(|arrival| arrival.accepted && arrival.key.as_deref() == Some("k"));
    accepted.map(|arrival| arrival.body).collect()
}

/// Makes it look as if the last relay had died: it owns everything, and its beat stands still.
pub(super) fn leave_behind_a_dead_relay(database: &TestDatabase) {
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-0000000000dd'",
        Kind::Mariadb | Kind::Sqlite => "x'000000000000400080000000000000dd'",
    };
    database.exec(&format!("INSERT INTO outbox_relays (id, name, version, lease_ms) VALUES ({id}, 'dead', '1', 1000)"));
    database.exec(&format!("UPDATE outbox_partitions SET owner = {id}, epoch = epoch + 1"));
}

/// `head` is dead and blocks its key over a restart and a takeover, while others go on; three wait behind it.
async fn stood_still(database: &TestDatabase, log: &Log, open: &Arc<AtomicBool>) -> Running {
    let relay = Running::start(strict(database, log, open)).await;
    enqueue(database, [keyed("k", "bad head"), keyed("k", "f1"), keyed("free 1", "o1")]);
    until_dead(database, &["d rejected"]).await;
    enqueue(database, [keyed("k", "f2"), keyed("free 2", "o2")]);
    log.until_accepted("d", &["o1", "o2"]).await;
    until_waiting(database, &["d blocked"; 2]).await;
    relay.stop().await;
    leave_behind_a_dead_relay(database);

    let relay = Running::start(strict(database, log, open)).await;
    enqueue(database, [keyed("k", "f3"), keyed("free 3", "o3")]);
    log.until_accepted("d", &["o3"]).await;
    // What the dead relay may have had in hands waits as a suspect.
    let is_there = || Left::of(database).waiting().is_some_and(|waiting| waiting.len() == 3);
    until(database, "three wait", is_there).await;
    assert_eq!((of_key(log), log.attempts("d", "bad head")), (vec![], 1));
    assert_eq!(blocked(database), ["k"]);
    relay
}

async fn a_released_key_goes_on_in_order_after_restart_and_takeover_and_keeps_its_letter(database: TestDatabase) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let relay = stood_still(&database, &log, &open).await;
    let letter = dead_letters(&database)[0].letter.id;
    assert_eq!(release(&database, "k"), Release::Done(vec![letter]));
    until_waiting(&database, &[]).await;
    enqueue(&database, [keyed("k", "f4")]);
    log.until_accepted("d", &["f4"]).await;
    assert_eq!(of_key(&log), ["f1", "f2", "f3", "f4"]);
    assert_eq!(Left::of(&database).dead(), ["d rejected"]);
    assert_eq!(release(&database, "k"), Release::Unknown);
    let audit = lines(&database, "SELECT concat_ws('|', actor, action, target, reason) FROM outbox_audit");
    assert_eq!(audit, [format!("ada@desk|key.release|key k, destination d, dead letters {letter}|looked at it")]);

    // Afterwards the letter has no place in the order any more.
    open.store(true, Ordering::SeqCst);
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(of_key(&log), ["f1", "f2", "f3", "f4", "bad head"]);
}
for_each_database!(a_released_key_goes_on_in_order_after_restart_and_takeover_and_keeps_its_letter);

async fn a_redrive_after_a_takeover_sends_the_letter_first(database: TestDatabase) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let relay = stood_still(&database, &log, &open).await;
    open.store(true, Ordering::SeqCst);
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(of_key(&log), ["bad head", "f1", "f2", "f3"]);
}
for_each_database!(a_redrive_after_a_takeover_sends_the_letter_first);

async fn a_discard_after_a_takeover_lets_the_others_go(database: TestDatabase) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let relay = stood_still(&database, &log, &open).await;
    discard_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(of_key(&log), ["f1", "f2", "f3"]);
}
for_each_database!(a_discard_after_a_takeover_lets_the_others_go);

async fn the_next_dead_letter_of_a_released_key_blocks_it_again(database: TestDatabase) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let relay = Running::start(strict(&database, &log, &open)).await;
    enqueue(&database, ["bad 1", "f1", "bad 2", "f2"].map(|body| keyed("k", body)));
    until_dead(&database, &["d rejected"]).await;
    until_waiting(&database, &["d blocked"; 3]).await;
    assert!(matches!(release(&database, "k"), Release::Done(_)));
    until_dead(&database, &["d rejected"; 2]).await;
    until_waiting(&database, &["d blocked"]).await;
    assert_eq!(of_key(&log), ["f1"]);
    // The first letter, released before, goes on its own; the second before what waits for it.
    let second = dead_letters(&database).into_iter().find(|detail| detail.letter.blocks_key).unwrap();
    assert_eq!(second.payload, b"bad 2");
    open.store(true, Ordering::SeqCst);
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let in_order: Vec<String> = of_key(&log).into_iter().filter(|body| body != "bad 1").collect();
    assert_eq!((in_order, log.attempts("d", "bad 1")), (["f1", "bad 2", "f2"].map(str::to_owned).to_vec(), 2));
}
for_each_database!(the_next_dead_letter_of_a_released_key_blocks_it_again);

/// Releases come while the relay reads, attempts and settles messages of the same keys.
async fn releases_beside_a_busy_relay_lose_nothing_and_keep_the_order(database: TestDatabase) {
    const KEYS: usize = 4;
    const EACH: usize = 12;
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let relay = Running::start(strict(&database, &log, &open)).await;
    let body = |n: usize| format!("{}{n:02}", if n % 4 == 1 { "bad " } else { "" });
    for n in 0..EACH {
        enqueue(&database, (0..KEYS).map(|key| keyed(&format!("k{key}"), &body(n))));
    }
    let bad = (0..EACH).filter(|n| body(*n).starts_with("bad")).count();
    let done = std::cell::Cell::new(0);
    until(&database, "every letter was released, nothing waits", || {
        for key in blocked(&database) {
            if let Release::Done(letters) = release(&database, &key) {
                done.set(done.get() + letters.len());
            }
        }
        done.get() == KEYS * bad && Left::of(&database).waiting().is_some_and(|waiting| waiting.is_empty())
    })
    .await;
    relay.stop().await;
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for arrival in log.arrivals() {
        by_key.entry(arrival.key.unwrap()).or_default().push(arrival.body);
    }
    let all: Vec<String> = (0..EACH).map(body).collect();
    assert_eq!(by_key.len(), KEYS);
    for (key, bodies) in by_key {
        assert_eq!(bodies, all, "{key}: each once, in order");
    }
    assert_eq!(Left::of(&database).dead().len(), KEYS * bad);
}
for_each_database!(releases_beside_a_busy_relay_lose_nothing_and_keep_the_order);
