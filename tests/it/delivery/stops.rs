//! The relay stops, or its database goes away, in the middle of the work.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use super::stage::{Log, Running, enqueue, keyed, lines, millis, relay_on, until, until_nothing_is_left};

/// A stop that takes longer waits for something that will not come.
const SOON: Duration = Duration::from_secs(5);

/// Bodies are `key number`; what a destination accepted must be whole, single and in order of each key.
pub(crate) fn assert_exactly_once_in_order(log: &Log, destination: &str, keys: usize, count: usize) {
    let accepted = log.accepted(destination);
    let mut distinct = accepted.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), count, "{destination} lost some");
    assert_eq!(accepted.len() - distinct.len(), 0, "{destination} got copies");
    for key in 0..keys {
        let prefix = format!("{key:02} ");
        let of_key: Vec<_> = accepted.iter().filter(|body| body.starts_with(&prefix)).collect();
        assert!(of_key.is_sorted(), "{destination}: {of_key:?}");
    }
}

/// Messages of so many keys in turn.
pub(crate) fn work(keys: usize, numbers: std::ops::Range<usize>) -> Vec<outbox::Envelope> {
    numbers.map(|n| keyed(&format!("{:02}", n % keys), &format!("{:02} {n:04}", n % keys))).collect()
}

async fn stops_under_load_lose_nothing_and_repeat_nothing(database: TestDatabase) {
    const KEYS: usize = 24;
    const COUNT: usize = 240;
    let log = Log::default();
    let start = || {
        // Many messages are delivered to the quick one and not to the slow one when the stop comes.
        let relay = relay_on(&database)
            .destination(log.slow_handler("slow", millis(15), |_| Ok(())).concurrency(4))
            .destination(log.accepting("fast"));
        Running::start(relay)
    };
    enqueue(&database, work(KEYS, 0..COUNT / 2));
    let mut stops = 0;
    while log.accepted("slow").len() < COUNT - 50 {
        let relay = start().await;
        if stops == 1 {
            enqueue(&database, work(KEYS, COUNT / 2..COUNT));
        }
        let had = log.accepted("slow").len();
        log.until("some work is done", |log| log.accepted("slow").len() >= had + 35).await;
        let took = relay.stop().await;
        stops += 1;
        assert!(took < SOON, "the stop took {took:?}");
        assert_eq!(log.arrivals().iter().filter(|arrival| !arrival.accepted).count(), 0, "an attempt was cut off");
        let owned = database.query_i64("SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL");
        let relays = database.query_i64("SELECT count(*) FROM outbox_relays");
        assert_eq!((owned, relays), (0, 0));
    }
    let relay = start().await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    println!("{}: {stops} stops", database.kind());
    assert!(stops >= 3);
    for destination in ["slow", "fast"] {
        assert_exactly_once_in_order(&log, destination, KEYS, COUNT);
    }
}
for_each_database!(stops_under_load_lose_nothing_and_repeat_nothing);

async fn a_grace_that_ends_early_repeats_only_what_was_not_finished(database: TestDatabase) {
    let log = Log::default();
    let relay = relay_on(&database)
        .shutdown_grace(millis(300))
        .destination(log.accepting("quick"))
        .destination(log.slow_handler("slow", millis(60_000), |_| Ok(())));
    let relay = Running::start(relay).await;
    enqueue(&database, work(5, 0..10));
    let bodies: Vec<String> = (0..10).map(|n| format!("{:02} {n:04}", n % 5)).collect();
    log.until_accepted("quick", &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    relay.stop().await;

    let relay = relay_on(&database).destination(log.accepting("quick")).destination(log.accepting("slow"));
    let relay = Running::start(relay).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("quick").len(), 10, "each once, although the other destination did not finish");
    assert_eq!(log.accepted("slow").len(), 10);
}
for_each_database!(a_grace_that_ends_early_repeats_only_what_was_not_finished);

async fn a_stop_while_the_routes_change_repeats_nothing(database: TestDatabase) {
    let log = Log::default();
    let first = relay_on(&database).destination(log.slow_handler("a", millis(2000), |_| Ok(())));
    let first = Running::start(first).await;
    enqueue(&database, [keyed("k", "m")]);
    log.until("it is under way", |log| log.attempts("a", "m") == 1).await;
    let second = relay_on(&database)
        .name("second")
        .destination(log.accepting("a"))
        .destination(log.accepting("b").topics(["none"]));
    let second = Running::start(second).await;
    let registered = "SELECT count(*) FROM outbox_destinations WHERE name = 'b'";
    until(&database, "the second has registered", || database.query_i64(registered) == 1).await;
    assert!(log.accepted("a").is_empty(), "too slow a machine: the attempt is over");
    let took = first.stop().await;
    assert!(took < SOON, "the stop took {took:?}");
    until_nothing_is_left(&database).await;
    enqueue(&database, [keyed("k", "next")]);
    until_nothing_is_left(&database).await;
    second.stop().await;
    assert_eq!(log.accepted("a"), ["m", "next"]);
}
for_each_database!(a_stop_while_the_routes_change_repeats_nothing);

/// Takes the database away from everybody who is connected; SQLite: from everybody who writes, for a while.
async fn strike(database: &TestDatabase) {
    match database.kind() {
        Kind::Postgres => database.exec(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        ),
        Kind::Mariadb => {
            let select = "SELECT CAST(id AS CHAR) FROM information_schema.processlist \
                          WHERE db = database() AND id <> connection_id()";
            for id in lines(database, select) {
                // It may have ended by itself meanwhile.
                let _ = database.try_exec(&format!("KILL CONNECTION {id}"));
            }
        }
        Kind::Sqlite => {
            let mut conn = database.sqlite();
            conn.batch_execute("BEGIN IMMEDIATE").unwrap();
            tokio::time::sleep(millis(150)).await;
            conn.batch_execute("ROLLBACK").unwrap();
        }
    }
}

async fn a_database_that_breaks_again_and_again_costs_neither_messages_nor_order(database: TestDatabase) {
    const KEYS: usize = 20;
    const COUNT: usize = 400;
    let log = Log::default();
    let relay = relay_on(&database)
        .destination(log.slow_handler("slow", millis(10), |_| Ok(())).concurrency(4))
        .destination(log.handler("flaky", |arrival| {
            let fails = arrival.copy == 1 && arrival.body.ends_with('7');
            if fails { Err(super::stage::not_now()) } else { Ok(()) }
        }));
    let relay = Running::start(relay).await;
    enqueue(&database, work(KEYS, 0..COUNT / 2));
    let began = Instant::now();
    let mut strikes = 0;
    while strikes < 12 {
        strike(&database).await;
        strikes += 1;
        if strikes == 4 {
            enqueue(&database, work(KEYS, COUNT / 2..COUNT));
        }
        tokio::time::sleep(millis(60)).await;
    }
    let left = database.query_i64("SELECT count(*) FROM outbox_messages");
    until_nothing_is_left(&database).await;
    println!("{}: {strikes} strikes, {left} pending after the last, done after {:?}", database.kind(), began.elapsed());
    relay.stop().await;
    for destination in ["slow", "flaky"] {
        assert_exactly_once_in_order(&log, destination, KEYS, COUNT);
    }
}
for_each_database!(a_database_that_breaks_again_and_again_costs_neither_messages_nor_order);
