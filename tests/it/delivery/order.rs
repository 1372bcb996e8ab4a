//! A key whose head fails lets nobody pass, holds nobody else up, and comes free again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::Handler;

use super::stage::{Left, Log, Running, enqueue, keyed, not_now, relay_on, until, until_nothing_is_left};

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
