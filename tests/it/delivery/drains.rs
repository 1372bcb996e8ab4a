//! A drain ends, whoever goes on producing, and says what it did.

use std::sync::Arc;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::HandlerError;
use relay::retry::RetryPolicy;

use super::stage::{LIMIT, Log, enqueue, keyed, millis, not_now, plain, relay_on};

async fn a_drain_counts_what_it_did(database: TestDatabase) {
    let log = Log::default();
    enqueue(&database, ["good", "late", "bad", "good"].map(plain));
    let relay = relay_on(&database)
        .retry(RetryPolicy::pauses(vec![millis(3_600_000); 3]))
        .destination(log.accepting("audit"))
        .destination(log.handler("picky", |arrival| match arrival.body.as_str() {
            "good" => Ok(()),
            "late" => Err(HandlerError::retry_after(millis(60_000), "not now")),
            _ => Err(HandlerError::reject("never")),
        }));
    let drained = relay.build().await.unwrap().drain().await.unwrap();
    let counts = (drained.attempts, drained.delivered, drained.retried, drained.dead_lettered);
    assert_eq!(counts, (8, 6, 1, 1));
    assert!(!drained.is_clean());
    assert_eq!(drained.status.waiting, [("picky".to_owned(), "retry".to_owned(), 1)]);
    assert_eq!(drained.status.dead, [("picky".to_owned(), "rejected".to_owned(), 1)]);
}
for_each_database!(a_drain_counts_what_it_did);

/// Without a fixed end this goes on for ever: each delivery commits another message.
async fn a_drain_leaves_what_came_after_its_start(database: TestDatabase) {
    const COUNT: usize = 40;
    let (database, log) = (Arc::new(database), Log::default());
    enqueue(&database, (0..COUNT).map(|n| keyed(&format!("k{}", n % 7), &format!("{n}"))));
    let producer = database.clone();
    let handler = log.handler("busy", move |arrival| {
        let fails = arrival.copy == 1 && arrival.body.ends_with('3');
        if fails {
            return Err(not_now());
        }
        enqueue(&producer, [keyed(arrival.key.as_deref().unwrap_or("k"), "another")]);
        Ok(())
    });
    let relay = relay_on(&database).retry(RetryPolicy::pauses(vec![millis(0); 3])).destination(handler);
    let drain = relay.build().await.unwrap().drain();
    let drained = tokio::time::timeout(LIMIT, drain).await.expect("a drain ends").unwrap();
    assert_eq!((drained.attempts, drained.delivered, drained.retried), (COUNT as u64 + 4, COUNT as u64, 4));
    assert_eq!(drained.status.pending, COUNT as i64);
    assert_eq!(log.attempts("busy", "another"), 0, "it was not there when the drain began");
}
for_each_database!(a_drain_leaves_what_came_after_its_start);

/// Nothing is pending, and what waits has a higher number than nothing.
async fn a_drain_without_pending_messages_delivers_what_waits(database: TestDatabase) {
    let log = Log::default();
    enqueue(&database, ["a", "b"].map(|body| keyed("k", body)));
    let drain = async |succeeds: bool| {
        let handler = log.handler("later", move |_| if succeeds { Ok(()) } else { Err(not_now()) });
        let relay = relay_on(&database).retry(RetryPolicy::pauses(vec![millis(300); 30])).destination(handler);
        let drain = relay.build().await.unwrap().drain();
        tokio::time::timeout(LIMIT, drain).await.expect("a drain ends").unwrap()
    };
    let drained = drain(false).await;
    assert_eq!((drained.delivered, drained.status.pending), (0, 0));
    let end = std::time::Instant::now() + LIMIT;
    while !drain(true).await.is_clean() {
        assert!(std::time::Instant::now() < end, "the pause of 300 ms is over");
    }
    assert_eq!(log.accepted("later"), ["a", "b"]);
}
for_each_database!(a_drain_without_pending_messages_delivers_what_waits);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_tells_its_listener_too() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    enqueue(&database, ["one"].map(plain));
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = told.clone();
    let relay = relay_on(&database).destination(Log::default().accepting("a")).on_event(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    });
    let drained = relay.build().await.unwrap().drain().await.unwrap();
    assert_eq!((drained.delivered, told.load(std::sync::atomic::Ordering::SeqCst)), (1, 1));
}
