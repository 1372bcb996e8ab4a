//! Messages that keep no order, for later or redriven: they wait for no other of their key but the one at work, and hide
//! nothing that is due behind them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::{Context, Handler};
use tokio::sync::watch;

use super::stage::{
    LIMIT, Log, Running, enqueue, keyed, millis, plain, redrive_all, relay_on, until_dead, until_nothing_is_left,
};

/// More than a look brings.
const MANY: usize = 400;

/// Many of one key are due at once, and the first one hangs. Those of other keys come later, and go first.
async fn many_due_rows_of_one_key_hide_no_others(database: TestDatabase) {
    let (gate, opened) = watch::channel(false);
    let others = Log::default();
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let (log, high, seen) = (others.clone(), most.clone(), arrived.clone());
    let hot = Handler::raw("d", move |message: relay::message::Message, context: Context| {
        let (mut opened, busy, high, log, seen) =
            (opened.clone(), busy.clone(), high.clone(), log.clone(), seen.clone());
        async move {
            if context.ordering_key().as_deref() != Some("hot") {
                log.arrived(&message, &context);
                return Ok(());
            }
            high.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            seen.lock().unwrap().push(message.id);
            let _ = opened.wait_for(|open| *open).await;
            busy.fetch_sub(1, Ordering::SeqCst);
            Ok::<(), std::io::Error>(())
        }
    });
    let hot = hot.concurrency(4).timeout(LIMIT * 9);
    let relay = Running::start(relay_on(&database).destination(hot)).await;
    let now = chrono::Utc::now();
    enqueue(&database, (0..MANY).map(|n| keyed("hot", &format!("{n}")).deliver_at(now + millis(500))));
    enqueue(&database, (0..9).map(|n| keyed(&format!("key {n}"), "later").deliver_at(now + millis(700))));
    others.until("the others are through", |log| log.arrivals().len() == 9).await;
    assert_eq!(arrived.lock().unwrap().len(), 1, "one of a key at a time");

    gate.send(true).unwrap();
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let arrived = arrived.lock().unwrap();
    assert_eq!((arrived.len(), arrived.iter().collect::<HashSet<_>>().len()), (MANY, MANY), "each once");
    assert_eq!(most.load(Ordering::SeqCst), 1, "one of a key at a time");
}
for_each_database!(many_due_rows_of_one_key_hide_no_others);

/// Its key has always more to do, in memory and in rows. What keeps no order gets its turn all the same.
async fn what_keeps_no_order_gets_its_turn_at_a_busy_key(database: TestDatabase) {
    const LINE: usize = 150;
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.slow_handler("d", millis(20), |arrival| {
        if arrival.body == "dead" && arrival.copy == 1 { Err(relay::HandlerError::reject("no")) } else { Ok(()) }
    })));
    let relay = relay.await;
    enqueue(&database, [keyed("k", "dead")]);
    until_dead(&database, &["d rejected"]).await;
    enqueue(&database, [keyed("k", "scheduled").delay(millis(100))]);
    enqueue(&database, (0..LINE).map(|n| keyed("k", &format!("{n:03}"))));
    log.until_accepted("d", &["000"]).await;
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let accepted = log.accepted("d");
    for body in ["scheduled", "dead"] {
        let place = accepted.iter().position(|accepted| accepted == body).unwrap();
        assert!(place < LINE * 3 / 4, "{body} was number {place} of {accepted:?}");
    }
    let line: Vec<&String> = accepted.iter().filter(|body| body.len() == 3).collect();
    assert!(line.is_sorted() && line.len() == LINE, "{line:?}");
    assert_eq!(accepted.len(), LINE + 2);
}
for_each_database!(what_keeps_no_order_gets_its_turn_at_a_busy_key);

/// What is redriven, or for later, does not keep those waiting that keep the order of their key.
async fn a_busy_stream_without_order_does_not_stop_the_rows_of_its_key(database: TestDatabase) {
    let log = Log::default();
    let handler = log.slow_handler("d", millis(5), |arrival| {
        if arrival.body == "head" && arrival.copy < 3 { Err(super::stage::not_now()) } else { Ok(()) }
    });
    let relay = Running::start(relay_on(&database).destination(handler)).await;
    let now = chrono::Utc::now();
    enqueue(&database, (0..MANY).map(|n| keyed("k", &format!("{n:03}")).deliver_at(now + millis(300))));
    enqueue(&database, [keyed("k", "head"), keyed("k", "behind"), plain("free")]);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let accepted = log.accepted("d");
    let place = |body: &str| accepted.iter().position(|accepted| accepted == body).unwrap();
    assert!(place("head") < place("behind") && place("behind") < MANY / 2, "{accepted:?}");
    assert_eq!(accepted.len(), MANY + 3);
}
for_each_database!(a_busy_stream_without_order_does_not_stop_the_rows_of_its_key);

/// More of a key than the relay keeps in memory: a drain ends when all of them are through, and not before.
async fn a_drain_leaves_none_of_them(database: TestDatabase) {
    let (log, clock, hour) = (Log::default(), relay::testing::Clock::new(), std::time::Duration::from_secs(3600));
    let drain = async || {
        let relay = relay_on(&database).clock(&clock).destination(log.accepting("d").concurrency(2));
        drop(relay.build().await.unwrap().drain().await.unwrap());
    };
    enqueue(&database, (0..MANY / 4).map(|n| keyed("hot", &format!("{n}")).delay(hour)));
    drain().await;
    assert_eq!(log.accepted("d").len(), 0);
    clock.advance(hour * 2);
    drain().await;
    assert_eq!(log.accepted("d").len(), MANY / 4);
    until_nothing_is_left(&database).await;
}
for_each_database!(a_drain_leaves_none_of_them);

/// It is not looked for now and then: the relay knows when the next one is due.
async fn what_is_for_later_goes_when_its_time_has_come(database: TestDatabase) {
    const MESSAGES: usize = 9;
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("d"))).await;
    let began = std::time::Instant::now();
    let pause = |n: usize| millis(1000 + 130 * u64::try_from(n).unwrap());
    for n in 0..MESSAGES {
        enqueue(&database, [plain(&n.to_string()).delay(pause(n))]);
    }
    let enqueued = began.elapsed();
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let due = |body: &str| began + pause(body.parse().unwrap());
    let mut late: Vec<_> = log.arrivals().iter().map(|a| a.at.saturating_duration_since(due(&a.body))).collect();
    late.sort_unstable();
    assert_eq!(late.len(), MESSAGES);
    // Half of them, for any machine stops now and then.
    assert!(late[MESSAGES / 2] < millis(300) + enqueued, "{late:?}, enqueued within {enqueued:?}");
}
for_each_database!(what_is_for_later_goes_when_its_time_has_come);
