//! Several relays on one outbox: they share it, and come and go without anybody noticing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::RelayBuilder;

use super::stage::{
    Log, Running, enqueue, keyed, lines, millis, not_now, plain, relay_on, until, until_nothing_is_left,
};
use super::stops::{assert_exactly_once_in_order, work};

/// A lease long enough that no relay here is ever thought dead, however busy the machine is.
const LEASE: Duration = Duration::from_secs(6);

pub(super) fn member(database: &TestDatabase) -> RelayBuilder {
    relay_on(database).lease(LEASE)
}

/// How many partitions each relay owns, the largest share first; without those nobody owns.
fn shares(database: &TestDatabase) -> Vec<i64> {
    let counts = database
        .query_text("SELECT CAST(count(*) AS CHAR(9)) FROM outbox_partitions WHERE owner IS NOT NULL GROUP BY owner");
    let mut shares: Vec<i64> = counts.into_iter().map(|count| count.unwrap().trim().parse().unwrap()).collect();
    shares.sort_unstable_by(|a, b| b.cmp(a));
    shares
}

pub(super) async fn until_shared(database: &TestDatabase, wanted: &[i64]) {
    until(database, &format!("shares {wanted:?}"), || shares(database) == wanted).await;
}

async fn relays_share_the_partitions_and_hand_them_over(database: TestDatabase) {
    let log = Log::default();
    let start = || Running::start(member(&database).destination(log.accepting("all")));
    let first = start().await;
    until_shared(&database, &[32]).await;
    let second = start().await;
    until_shared(&database, &[16, 16]).await;
    let third = start().await;
    until_shared(&database, &[11, 11, 10]).await;
    first.stop().await;
    until_shared(&database, &[16, 16]).await;
    second.stop().await;
    until_shared(&database, &[32]).await;
    third.stop().await;
    until_shared(&database, &[]).await;
}
for_each_database!(relays_share_the_partitions_and_hand_them_over);

/// What a relay registers counts, not what the one who looks has itself.
async fn a_relay_with_a_longer_lease_is_declared_dead_no_sooner_than_that(database: TestDatabase) {
    let (log, short, long) = (Log::default(), Duration::from_secs(1), Duration::from_secs(5));
    let relay = Running::start(relay_on(&database).lease(long).destination(log.accepting("all"))).await;
    until_shared(&database, &[32]).await;
    let leases = || lines(&database, "SELECT CAST(lease_ms AS CHAR(9)) FROM outbox_relays");
    assert_eq!(leases().iter().map(|ms| ms.trim()).collect::<Vec<_>>(), ["5000"]);
    relay.stop().await;

    // Nobody raises this one's beat.
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-0000000000dd'",
        Kind::Mariadb | Kind::Sqlite => "x'000000000000400080000000000000dd'",
    };
    let columns = "(id, name, version, lease_ms, serves)";
    database.exec(&format!("INSERT INTO outbox_relays {columns} VALUES ({id}, 'dead', '1', 5000, '[\"all\"]')"));
    database.exec(&format!("UPDATE outbox_partitions SET owner = {id}, epoch = epoch + 1"));
    let began = Instant::now();
    let observer = Running::start(relay_on(&database).lease(short).destination(log.accepting("all"))).await;
    until_shared(&database, &[32]).await;
    let is_there = || database.query_i64("SELECT count(*) FROM outbox_relays WHERE name = 'dead'") > 0;
    until(&database, "it is declared dead", || !is_there()).await;
    assert!(began.elapsed() >= long, "declared dead after {:?}", began.elapsed());
    observer.stop().await;
}
for_each_database!(a_relay_with_a_longer_lease_is_declared_dead_no_sooner_than_that);

async fn relays_that_come_and_go_lose_nothing_and_repeat_nothing(database: TestDatabase) {
    const KEYS: usize = 40;
    const STOPS: usize = 20;
    const EACH: usize = 60;
    let log = Log::default();
    let start = || {
        let relay = member(&database)
            .destination(log.slow_handler("slow", millis(5), |_| Ok(())).concurrency(4))
            .destination(log.accepting("fast"));
        Running::start(relay)
    };
    let mut relays: VecDeque<Running> = VecDeque::new();
    relays.push_back(start().await);
    relays.push_back(start().await);
    let mut count = 0;
    for stop in 0..STOPS {
        enqueue(&database, work(KEYS, count..count + EACH));
        count += EACH;
        relays.push_back(start().await);
        let wanted = count - EACH / 2;
        log.until("most of it is done", |log| log.accepted("slow").len() >= wanted).await;
        if stop % 2 == 0 {
            enqueue(&database, work(KEYS, count..count + EACH));
            count += EACH;
        }
        relays.pop_front().unwrap().stop().await;
    }
    until_nothing_is_left(&database).await;
    for relay in relays {
        relay.stop().await;
    }
    for destination in ["slow", "fast"] {
        assert_exactly_once_in_order(&log, destination, KEYS, count);
    }
    println!("{}: {STOPS} stops, {count} messages to two destinations, each once", database.kind());
}
for_each_database!(relays_that_come_and_go_lose_nothing_and_repeat_nothing);

async fn a_partition_with_an_attempt_under_way_moves_when_it_ends_and_the_others_at_once(database: TestDatabase) {
    let log = Log::default();
    let slow = log.slow_handler("all", millis(0), |_| Ok(()));
    let (gate, opened) = tokio::sync::watch::channel(false);
    let held = relay::Handler::raw("held", move |_, _| {
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    // Every partition but a few stays idle.
    let start = || Running::start(member(&database).destination(slow.clone()).destination(held.clone()));
    let first = start().await;
    until_shared(&database, &[32]).await;
    enqueue(&database, work(60, 0..60));
    log.until("all are on their way", |log| log.accepted("all").len() >= 16).await;
    let busy = "SELECT count(*) FROM outbox_messages";
    assert!(database.query_i64(busy) > 0);
    let second = start().await;
    // What waits for the gate stays; the rest does not wait for it.
    until(&database, "some have moved", || shares(&database).len() == 2).await;
    gate.send(true).unwrap();
    until_shared(&database, &[16, 16]).await;
    until_nothing_is_left(&database).await;
    first.stop().await;
    second.stop().await;
    assert_exactly_once_in_order(&log, "all", 60, 60);
}
for_each_database!(a_partition_with_an_attempt_under_way_moves_when_it_ends_and_the_others_at_once);

/// The database refuses every retry of what is `bad`, every row for what is `worse`, and to delete what is `stuck`.
pub(super) fn refuse(database: &TestDatabase) {
    let is = |column: &str, what: &str| match database.kind() {
        Kind::Postgres => {
            format!("coalesce({column}.payload, convert_from({column}.payload_bytes, 'UTF8')) LIKE '{what}%'")
        }
        Kind::Mariadb => format!("{column}.payload LIKE '{what}%'"),
        Kind::Sqlite => format!("CAST({column}.payload AS TEXT) LIKE '{what}%'"),
    };
    let (bad, worse) = (format!("NEW.attempts > OLD.attempts AND {}", is("OLD", "bad")), is("NEW", "worse"));
    let stuck = is("OLD", "stuck");
    for ((name, event, table), condition) in REFUSALS.into_iter().zip([bad, worse, stuck]) {
        let trigger = format!("CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW");
        match database.kind() {
            Kind::Postgres => {
                database.exec(&format!(
                    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN \
                     RAISE EXCEPTION 'not this one'; END IF; RETURN coalesce(NEW, OLD); END $$"
                ));
                database.exec(&format!("{trigger} EXECUTE FUNCTION {name}()"));
            }
            Kind::Mariadb => database.exec(&format!(
                "{trigger} BEGIN IF {condition} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF; END"
            )),
            Kind::Sqlite => {
                database.exec(&format!("{trigger} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'not this one'); END"));
            }
        }
    }
}

const REFUSALS: [(&str, &str, &str); 3] = [
    ("refuse_bad", "UPDATE", "outbox_deliveries"),
    ("refuse_worse", "INSERT", "outbox_deliveries"),
    ("refuse_stuck", "DELETE", "outbox_messages"),
];

pub(super) fn allow(database: &TestDatabase) {
    for (name, _, table) in REFUSALS {
        let on = if database.kind() == Kind::Postgres { format!(" ON {table}") } else { String::new() };
        database.exec(&format!("DROP TRIGGER {name}{on}"));
    }
}

async fn what_cannot_be_written_keeps_no_partition_from_moving_and_no_relay_from_stopping(database: TestDatabase) {
    const KEYS: usize = 8;
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let start = || {
        let open = open.clone();
        let handler = log.handler("all", move |arrival| {
            let fails = arrival.body.starts_with("bad") || arrival.body.starts_with("worse");
            if fails && !open.load(Ordering::SeqCst) { Err(not_now()) } else { Ok(()) }
        });
        Running::start(member(&database).destination(handler))
    };
    refuse(&database);
    let first = start().await;
    until_shared(&database, &[32]).await;
    let key = |what: &str, n: usize| format!("{what} {n}");
    // The fine ones show the relay that its destination works: the others fail for themselves.
    let kinds = ["bad", "worse", "fine"];
    enqueue(&database, (0..KEYS).flat_map(|n| kinds.map(|what| keyed(&key(what, n), &key(what, n)))));
    log.until("all have failed where it cannot be written", |log| {
        (0..KEYS).all(|n| log.attempts("all", &key("bad", n)) >= 2 && log.attempts("all", &key("worse", n)) >= 1)
    })
    .await;
    enqueue(
        &database,
        (0..KEYS).flat_map(|n| ["bad", "worse"].map(|what| keyed(&key(what, n), &format!("after {what} {n}")))),
    );

    let second = start().await;
    until_shared(&database, &[16, 16]).await;
    enqueue(&database, (0..64).map(|n| keyed(&format!("other {n}"), &format!("other {n}"))));
    log.until("the others are delivered", |log| (0..64).all(|n| log.has_accepted("all", &format!("other {n}")))).await;
    let took = first.stop().await;
    assert!(took < Duration::from_secs(10), "the stop took {took:?}");
    until_shared(&database, &[32]).await;
    assert_eq!(log.accepted("all").len(), KEYS + 64, "what comes after them in their keys waits");

    allow(&database);
    open.store(true, Ordering::SeqCst);
    let third = start().await;
    until_shared(&database, &[16, 16]).await;
    second.stop().await;
    until_nothing_is_left(&database).await;
    third.stop().await;
    let accepted = log.accepted("all");
    let at = |body: &str| accepted.iter().position(|other| other == body).unwrap();
    for n in 0..KEYS {
        for what in ["bad", "worse"] {
            assert!(at(&key(what, n)) < at(&format!("after {what} {n}")), "out of order: {accepted:?}");
        }
    }
}
for_each_database!(what_cannot_be_written_keeps_no_partition_from_moving_and_no_relay_from_stopping);

/// A disk that was full for a moment, for example.
async fn what_could_not_be_written_for_a_moment_is_written_before_a_stop(database: TestDatabase) {
    const COUNT: usize = 20;
    let trigger = "CREATE TRIGGER refuse_delete BEFORE DELETE ON outbox_messages FOR EACH ROW";
    match database.kind() {
        Kind::Postgres => {
            database.exec(
                "CREATE FUNCTION refuse_delete() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'no room'; END $$",
            );
            database.exec(&format!("{trigger} EXECUTE FUNCTION refuse_delete()"));
        }
        Kind::Mariadb => database.exec(&format!("{trigger} SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no room'")),
        Kind::Sqlite => database.exec(&format!("{trigger} BEGIN SELECT RAISE(ABORT, 'no room'); END")),
    }
    let log = Log::default();
    let start = || Running::start(member(&database).destination(log.accepting("all")));
    let relay = start().await;
    enqueue(&database, (0..COUNT).map(|n| plain(&n.to_string())));
    log.until("all are delivered", |log| log.accepted("all").len() == COUNT).await;
    // Long enough for each to have been tried by itself; if it was not, the stop has less to do.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let on = if database.kind() == Kind::Postgres { " ON outbox_messages" } else { "" };
    database.exec(&format!("DROP TRIGGER refuse_delete{on}"));
    let took = relay.stop().await;
    assert!(took < Duration::from_secs(10), "the stop took {took:?}");
    let relay = start().await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("all").len(), COUNT, "delivered again although it could be written");
}
for_each_database!(what_could_not_be_written_for_a_moment_is_written_before_a_stop);
