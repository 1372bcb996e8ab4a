//! A key whose head fails, or is held, lets nobody pass, holds nobody else up, and comes free again.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::{Handler, HandlerError, Http};

use super::stage::{Left, Log, Running, enqueue, keyed, millis, not_now, relay_on, until, until_nothing_is_left};

/// A handler that refuses the head until it is opened.
fn gated(log: &Log, open: &Arc<AtomicBool>) -> Handler {
    let open = open.clone();
    log.handler(
        "d",
        move |arrival| {
            if arrival.body == "head" && !open.load(Ordering::SeqCst) { Err(not_now()) } else { Ok(()) }
        },
    )
}

async fn parked(database: &TestDatabase, restart: bool) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let other_destination = log.accepting("other");
    enqueue(database, [keyed("k", "head"), keyed("k", "f1"), keyed("free 0", "o0")]);
    let start = || {
        let builder = relay_on(database).destination(gated(&log, &open)).destination(other_destination.clone());
        Running::start(builder)
    };
    let mut relay = start().await;
    log.until("the head fails", |log| log.attempts("d", "head") >= 1).await;
    enqueue(database, [keyed("k", "f2"), keyed("free 1", "o1"), keyed("k", "f3")]);
    log.until_accepted("d", &["o0", "o1"]).await;
    if restart {
        relay.stop().await;
        enqueue(database, [keyed("k", "f3b")]);
        relay = start().await;
    }
    log.until("the head fails three times", |log| log.attempts("d", "head") >= 3).await;
    enqueue(database, [keyed("k", "f4"), keyed("free 2", "o2")]);
    log.until_accepted("d", &["o2"]).await;
    let seen = log.arrivals();
    assert!(!seen.iter().any(|arrival| arrival.destination == "d" && arrival.body.starts_with('f')), "{seen:?}");

    open.store(true, Ordering::SeqCst);
    enqueue(database, [keyed("k", "f5")]);
    until_nothing_is_left(database).await;
    enqueue(database, [keyed("k", "f6")]);
    until_nothing_is_left(database).await;
    relay.stop().await;

    let mut wanted = vec!["head", "f1", "f2", "f3", "f4", "f5", "f6"];
    if restart {
        wanted.insert(4, "f3b");
    }
    for destination in ["d", "other"] {
        let of_key: Vec<String> = log.accepted(destination).into_iter().filter(|body| !body.starts_with('o')).collect();
        assert_eq!(of_key, wanted, "{destination}");
    }
    let followers = log.arrivals().into_iter().filter(|a| a.destination == "d" && a.body.starts_with('f'));
    assert_eq!(followers.map(|follower| follower.attempt).collect::<Vec<_>>(), vec![1; wanted.len() - 1]);
}

async fn followers_of_a_failed_head_wait_and_the_key_comes_free(database: TestDatabase) {
    parked(&database, false).await;
}
for_each_database!(followers_of_a_failed_head_wait_and_the_key_comes_free);

async fn a_parked_key_stays_parked_over_a_restart_and_comes_free(database: TestDatabase) {
    parked(&database, true).await;
}
for_each_database!(a_parked_key_stays_parked_over_a_restart_and_comes_free);

async fn a_key_that_gathered_a_thousand_rows_is_worked_off_in_order(database: TestDatabase) {
    const FOLLOWERS: usize = 1_000;
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    enqueue(&database, [keyed("k", "head")]);
    let handler = {
        let open = open.clone();
        log.handler("d", move |arrival| match arrival.body.as_str() {
            "head" if !open.load(Ordering::SeqCst) => Err(not_now()),
            // In the middle of a line that was read ahead, and twice in a row.
            "0500" | "0501" if arrival.copy == 1 => Err(not_now()),
            _ => Ok(()),
        })
    };
    let relay = Running::start(relay_on(&database).destination(handler)).await;
    log.until("the head fails", |log| log.attempts("d", "head") >= 1).await;
    let bodies: Vec<String> = (0..FOLLOWERS).map(|n| format!("{n:04}")).collect();
    enqueue(&database, bodies.iter().map(|body| keyed("k", body)));
    let all_wait = || Left::of(&database).waiting().is_some_and(|waiting| waiting.len() == FOLLOWERS + 1);
    until(&database, "all of them wait", all_wait).await;
    open.store(true, Ordering::SeqCst);
    let began = Instant::now();
    until_nothing_is_left(&database).await;
    println!("{}: {FOLLOWERS} rows of one key in {:.1?}", database.kind(), began.elapsed());
    relay.stop().await;
    let accepted = log.accepted("d");
    assert_eq!(accepted[0], "head");
    assert_eq!(accepted[1..], bodies);
}
for_each_database!(a_key_that_gathered_a_thousand_rows_is_worked_off_in_order);

/// Two destinations are held, each for a message of its own in each key, and the relay is another one when they come
/// free: what came of a hold is in the table.
async fn a_hold_lets_no_message_pass_the_one_that_was_held(database: TestDatabase) {
    const KEYS: usize = 5;
    const EACH: usize = 8;
    let log = Log::default();
    let seen: Mutex<HashSet<Vec<u8>>> = Mutex::default();
    let receiver = Receiver::start(move |request| {
        let is_first = request.body.ends_with(b" 3") && seen.lock().unwrap().insert(request.body.to_vec());
        if is_first { Answer::status(429).header("retry-after", "1") } else { Answer::status(200) }
    })
    .await;
    let start = || {
        let handler = log.handler("handler", |arrival| match arrival.body.ends_with(" 5") && arrival.copy == 1 {
            true => Err(HandlerError::hold(millis(400), "later")),
            false => Ok(()),
        });
        let relay = relay_on(&database).destination(Http::new("http", receiver.url("/")));
        Running::start(relay.destination(handler).destination(log.accepting("free")))
    };
    let send = |from: usize, until: usize| {
        let all = (from..until).flat_map(|n| (0..KEYS).map(move |key| (key, n)));
        enqueue(&database, all.map(|(key, n)| keyed(&format!("k{key}"), &format!("{key} {n}"))));
    };
    let relay = start().await;
    send(0, 6);
    log.until("one asked to be held", |log| log.arrivals().iter().any(|a| a.body.ends_with(" 5") && !a.accepted)).await;
    send(6, 7);
    relay.stop().await;
    let relay = start().await;
    send(7, EACH);
    until_nothing_is_left(&database).await;
    relay.stop().await;

    let mut by_unit: BTreeMap<(&str, usize), Vec<(String, String)>> = BTreeMap::new();
    let arrivals = log.arrivals();
    let handled = arrivals.iter().map(|a| (a.destination.as_str(), a.body.clone(), a.attempt.to_string()));
    let requests = receiver.requests();
    let asked = requests.iter().map(|request| {
        let body = String::from_utf8(request.body.to_vec()).unwrap();
        ("http", body, request.header("outbox-attempt").unwrap().to_owned())
    });
    for (destination, body, attempt) in handled.chain(asked) {
        let (key, n) = body.split_once(' ').unwrap();
        by_unit.entry((destination, key.parse().unwrap())).or_default().push((n.to_owned(), attempt));
    }
    assert_eq!(by_unit.len(), 3 * KEYS);
    for ((destination, key), copies) in by_unit {
        let twice = match destination {
            "http" => Some(3),
            "handler" => Some(5),
            _ => None,
        };
        let wanted = (0..EACH).flat_map(|n| std::iter::repeat_n(n.to_string(), if twice == Some(n) { 2 } else { 1 }));
        let wanted: Vec<_> = wanted.map(|n| (n, "1".to_owned())).collect();
        assert_eq!(copies, wanted, "{destination}, key {key}");
    }
}
for_each_database!(a_hold_lets_no_message_pass_the_one_that_was_held);
