//! More relays do more: a handler that sleeps is bounded by how many of it run, and every relay brings its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::{Context, Handler, HandlerResult, message::Message};

use super::shares::{member, until_shared};
use super::stage::{Running, enqueue, millis, plain, until};

/// As long as a call of the handler takes.
const NAP: Duration = Duration::from_millis(10);
/// At the same time in each relay.
const CONCURRENCY: usize = 2;
/// Messages in one measurement.
const COUNT: usize = 600;
/// The machine may be busy with something else in the middle of one.
const TRIES: usize = 6;

/// Messages a second, from the commit of all of them to the last one handled.
async fn rate(database: &TestDatabase, done: &AtomicUsize) -> f64 {
    let wanted = done.load(Ordering::SeqCst) + COUNT;
    enqueue(database, (0..COUNT).map(|n| plain(&n.to_string())));
    let began = Instant::now();
    until(database, "all are handled", || done.load(Ordering::SeqCst) >= wanted).await;
    COUNT as f64 / began.elapsed().as_secs_f64()
}

async fn more_relays_carry_more_of_a_sleeping_handler(database: TestDatabase) {
    let done = Arc::new(AtomicUsize::new(0));
    let start = || {
        let done = done.clone();
        let handler = Handler::raw("nap", move |_: Message, _: Context| {
            let done = done.clone();
            async move {
                tokio::time::sleep(NAP).await;
                done.fetch_add(1, Ordering::SeqCst);
                HandlerResult::Ok(())
            }
        });
        Running::start(member(&database).poll(millis(1), millis(5)).destination(handler.concurrency(CONCURRENCY)))
    };
    let shares: &[i64] = if database.kind() == Kind::Sqlite { &[16, 16] } else { &[11, 11, 10] };
    let relays = shares.len() as f64;
    let mut best = (0.0, 0.0, 0.0);
    for _ in 0..TRIES {
        let first = start().await;
        until_shared(&database, &[32]).await;
        let alone = rate(&database, &done).await;
        let mut others = Vec::new();
        for _ in 1..shares.len() {
            others.push(start().await);
        }
        until_shared(&database, shares).await;
        let together = rate(&database, &done).await;
        for relay in others {
            relay.stop().await;
        }
        first.stop().await;
        if together / alone > best.0 {
            best = (together / alone, alone, together);
        }
        if best.0 > 0.85 * relays {
            break;
        }
    }
    let (ratio, alone, together) = best;
    println!("{}: {ratio:.2} times as much with {relays} relays ({alone:.0}/s, {together:.0}/s)", database.kind());
    assert!(ratio > 0.85 * relays, "{relays} relays: {ratio:.2} times as much ({alone:.0}/s, {together:.0}/s)");
}
for_each_database!(more_relays_carry_more_of_a_sleeping_handler);
