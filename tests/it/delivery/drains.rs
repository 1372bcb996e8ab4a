//! A drain ends, whoever goes on producing, and says what it did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::HandlerError;
use relay::retry::RetryPolicy;

use super::shares::{allow, refuse};
use super::stage::{LIMIT, Log, enqueue, keyed, millis, not_now, plain, relay_on, until_nothing_is_left};
use crate::faults;

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

/// What waits behind such an outcome in its key is left too; everything else is delivered.
async fn a_drain_ends_and_counts_what_cannot_be_written(database: TestDatabase) {
    const KEYS: usize = 5;
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let drain = async || {
        let open = open.clone();
        let handler = log.handler("all", move |arrival| {
            let fails = arrival.body.starts_with("bad") || arrival.body.starts_with("worse");
            if fails && !open.load(Ordering::SeqCst) { Err(not_now()) } else { Ok(()) }
        });
        // What waits is due at once: the drain has to come to its second failure.
        let relay = relay_on(&database).retry(RetryPolicy::pauses(vec![millis(0); 1000])).destination(handler);
        let drain = relay.build().await.unwrap().drain();
        tokio::time::timeout(LIMIT, drain).await.expect("a drain ends").unwrap()
    };
    refuse(&database);
    let kinds = ["bad", "worse", "stuck", "good"];
    let body = |what: &str, n: usize| format!("{what} {n}");
    let after = |what: &str, n: usize| format!("after {what} {n}");
    enqueue(&database, (0..KEYS).flat_map(|n| kinds.map(|what| keyed(&body(what, n), &body(what, n)))));
    enqueue(&database, (0..KEYS).flat_map(|n| kinds.map(|what| keyed(&body(what, n), &after(what, n)))));

    let drained = drain().await;
    assert_eq!(drained.unwritten, 3 * KEYS as u64, "{drained:?}");
    assert!(!drained.is_clean());
    assert_eq!(drained.status.pending, 2 * KEYS as i64, "what has no row, and what cannot be deleted");
    for n in 0..KEYS {
        for what in ["stuck", "good"] {
            assert_eq!((log.attempts("all", &body(what, n)), log.attempts("all", &after(what, n))), (1, 1));
        }
        assert_eq!((log.attempts("all", &body("bad", n)), log.attempts("all", &body("worse", n))), (2, 1));
        assert_eq!((log.attempts("all", &after("bad", n)), log.attempts("all", &after("worse", n))), (0, 0));
    }

    allow(&database);
    open.store(true, Ordering::SeqCst);
    let drained = drain().await;
    assert!(drained.is_clean() && drained.unwritten == 0, "{drained:?}");
    until_nothing_is_left(&database).await;
    let accepted = log.accepted("all");
    let at = |body: &str| accepted.iter().rposition(|other| other == body).unwrap();
    for n in 0..KEYS {
        for what in ["bad", "worse"] {
            assert!(at(&body(what, n)) < at(&after(what, n)), "out of order: {accepted:?}");
        }
    }
}
for_each_database!(a_drain_ends_and_counts_what_cannot_be_written);

async fn a_drain_ends_although_its_hands_are_full_of_what_cannot_be_written(database: TestDatabase) {
    const COUNT: usize = 30;
    let log = Log::default();
    refuse(&database);
    enqueue(&database, (0..COUNT).map(|n| plain(&format!("stuck {n}"))));
    let relay = relay_on(&database).in_hands(8, 64 << 20).destination(log.accepting("all"));
    let drain = relay.build().await.unwrap().drain();
    let drained = tokio::time::timeout(LIMIT, drain).await.expect("a drain ends").unwrap();
    assert_eq!(drained.unwritten, drained.delivered, "{drained:?}");
    assert!(drained.delivered > 0 && drained.delivered <= 8, "{drained:?}");
    assert_eq!(drained.status.pending, COUNT as i64);
}
for_each_database!(a_drain_ends_although_its_hands_are_full_of_what_cannot_be_written);

/// A disk that was full for a moment, for example.
async fn a_drain_tries_once_more_what_could_not_be_written(database: TestDatabase) {
    let (log, writes) = (Log::default(), Arc::new(AtomicUsize::new(0)));
    let counter = writes.clone();
    let store = faults::store(&database, move |call| match call {
        "message_delivered" if counter.fetch_add(1, Ordering::SeqCst) < 6 => faults::refuse("message_delivered"),
        _ => faults::pass(),
    })
    .await;
    enqueue(&database, [plain("one")]);
    let drain = faults::relay(store).destination(log.accepting("all")).build().await.unwrap().drain();
    let drained = tokio::time::timeout(LIMIT, drain).await.expect("a drain ends").unwrap();
    assert!(drained.is_clean() && drained.unwritten == 0, "{drained:?}");
    assert_eq!((drained.attempts, writes.load(Ordering::SeqCst)), (1, 7));
}
for_each_database!(a_drain_tries_once_more_what_could_not_be_written);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_tells_its_listener_too() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    enqueue(&database, ["one"].map(plain));
    let told = Arc::new(AtomicUsize::new(0));
    let counted = told.clone();
    let relay = relay_on(&database).destination(Log::default().accepting("a")).on_event(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let drained = relay.build().await.unwrap().drain().await.unwrap();
    assert_eq!((drained.delivered, told.load(Ordering::SeqCst)), (1, 1));
}
