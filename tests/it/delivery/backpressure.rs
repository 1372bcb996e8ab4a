//! A destination that cannot follow: alone it stops the reading, beside another it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;

use super::stage::{
    LIMIT, Log, Running, enqueue, keyed, millis, not_now, plain, relay_on, until, until_nothing_is_left,
};

const MESSAGES: usize = 400;
/// A hundredth of what is enqueued is read and kept.
const IN_HANDS: usize = 16;

/// The most waiting rows there were until all have arrived at `slow`.
async fn most_rows(database: &TestDatabase, log: &Log) -> i64 {
    let end = std::time::Instant::now() + LIMIT;
    let mut most = 0;
    while log.accepted("slow").len() < MESSAGES {
        most = most.max(database.query_i64("SELECT count(*) FROM outbox_deliveries"));
        assert!(std::time::Instant::now() < end, "{} of {MESSAGES} arrived", log.accepted("slow").len());
        tokio::time::sleep(millis(1)).await;
    }
    most
}

fn messages() -> Vec<outbox::Envelope> {
    (0..MESSAGES).map(|n| plain(&n.to_string())).collect()
}

async fn a_slow_destination_alone_stops_the_reading_and_nothing_is_written_twice(database: TestDatabase) {
    let log = Log::default();
    enqueue(&database, messages());
    let slow = log.slow_handler("slow", millis(5), |_| Ok(())).concurrency(4);
    let relay = Running::start(relay_on(&database).in_hands(IN_HANDS, 1 << 20).destination(slow)).await;
    assert_eq!(most_rows(&database, &log).await, 0);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.arrivals().len(), MESSAGES);
}
for_each_database!(a_slow_destination_alone_stops_the_reading_and_nothing_is_written_twice);

async fn beside_an_idle_one_it_gets_rows_and_the_other_is_done_long_before(database: TestDatabase) {
    let log = Log::default();
    enqueue(&database, messages());
    let slow = log.slow_handler("slow", millis(40), |_| Ok(())).concurrency(4);
    let relay = relay_on(&database).in_hands(IN_HANDS, 1 << 20).destination(slow).destination(log.accepting("fast"));
    let relay = Running::start(relay).await;
    log.until("the fast one has everything", |log| log.accepted("fast").len() == MESSAGES).await;
    let slow_has = log.accepted("slow").len();
    assert!(slow_has < MESSAGES / 2, "the fast one waited: the slow one has {slow_has} of {MESSAGES}");
    assert!(most_rows(&database, &log).await > 0);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.arrivals().len(), 2 * MESSAGES);
}
for_each_database!(beside_an_idle_one_it_gets_rows_and_the_other_is_done_long_before);

/// What is closed takes nothing in, and what waits for it is let go of.
async fn a_paused_destination_keeps_nothing_in_memory(database: TestDatabase) {
    let log = Log::default();
    let slow = log.slow_handler("slow", Duration::from_millis(5), |_| Ok(())).concurrency(1);
    let relay = relay_on(&database).in_hands(IN_HANDS, 1 << 20).destination(slow).destination(log.accepting("fast"));
    let relay = Running::start(relay).await;
    database
        .exec("UPDATE outbox_destinations SET paused_at = CURRENT_TIMESTAMP, paused_by = 'ada' WHERE name = 'slow'");
    enqueue(&database, messages());
    log.until("the fast one has everything", |log| log.accepted("fast").len() == MESSAGES).await;
    // What the pause found in memory has become rows like everything that came later.
    let waiting = || database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE destination = 'slow'");
    until(&database, "all of it waits", || {
        waiting() + i64::try_from(log.accepted("slow").len()).unwrap() == i64::try_from(MESSAGES).unwrap()
    })
    .await;
    database.exec("UPDATE outbox_destinations SET paused_at = NULL, paused_by = NULL");
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!((log.accepted("slow").len(), log.arrivals().len()), (MESSAGES, 2 * MESSAGES));
}
for_each_database!(a_paused_destination_keeps_nothing_in_memory);

/// A message leaves its table when all have an outcome. That must not make one wait for the queue of another.
async fn retries_and_followers_do_not_wait_for_the_queue_of_a_destination_that_hangs(database: TestDatabase) {
    const KEYS: usize = 5;
    const EACH: usize = 12;
    let log = Log::default();
    let (gate, opened) = tokio::sync::watch::channel(false);
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let hangs = relay::Handler::raw("hangs", move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    let hangs = hangs.topics(["**"]).concurrency(1).timeout(LIMIT * 9);
    let flaky = log.handler("flaky", |arrival| if arrival.copy == 1 { Err(not_now()) } else { Ok(()) }).topics(["t"]);
    let relay = Running::start(relay_on(&database).destination(hangs).destination(flaky)).await;
    enqueue(&database, [outbox::Envelope::raw("plug", "x")]);
    until(&database, "it hangs", || begun.load(Ordering::SeqCst) == 1).await;
    for n in 0..EACH {
        enqueue(&database, (0..KEYS).map(|key| keyed(&key.to_string(), &format!("{n:02}"))).chain([plain("free")]));
    }
    log.until("all but the plug are through", |log| log.accepted("flaky").len() == EACH * (KEYS + 1)).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1, "nothing else was attempted there");
    gate.send(true).unwrap();
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(begun.load(Ordering::SeqCst), 1 + EACH * (KEYS + 1), "each once");
    for key in 0..KEYS {
        let accepted = log.arrivals().into_iter().filter(|a| a.accepted && a.key == Some(key.to_string()));
        let bodies: Vec<String> = accepted.map(|arrival| arrival.body).collect();
        assert_eq!(bodies, (0..EACH).map(|n| format!("{n:02}")).collect::<Vec<_>>());
    }
}
for_each_database!(retries_and_followers_do_not_wait_for_the_queue_of_a_destination_that_hangs);
