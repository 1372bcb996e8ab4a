//! `expires_at` ends a delivery wherever it waits, and nothing else stands still for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::Utc;
use outbox::Envelope;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::retry::RetryPolicy;
use relay::testing::Clock;
use relay::{AfterDeadLetter, HandlerError, RelayBuilder};

use super::stage::{
    LIMIT, Left, Log, Running, dead_letters, enqueue, not_now, redrive_all, relay_on, until, until_dead,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A message for the destination of this name.
fn to(topic: &'static str, body: &'static str) -> Envelope {
    Envelope::raw(topic, body).key("k")
}

async fn what_waits_longer_than_it_is_wanted_dies_unattempted(database: TestDatabase) {
    let (log, clock, works) = (Log::default(), Clock::new(), Arc::new(AtomicBool::new(false)));
    let relay = || -> RelayBuilder {
        let answer = |failure: fn() -> HandlerError| {
            let works = works.clone();
            move |_: &_| if works.load(Ordering::SeqCst) { Ok(()) } else { Err(failure()) }
        };
        let fails = log.handler("fails", answer(not_now)).retry(RetryPolicy::pauses(vec![HOUR; 9]));
        let held = log.handler("held", answer(|| HandlerError::hold(HOUR, "later")));
        let fails = fails.after_dead_letter(AfterDeadLetter::Block);
        relay_on(&database)
            .clock(&clock)
            .destination(fails.topics(["fails"]))
            .destination(held.topics(["held"]))
            .destination(log.accepting("paused").topics(["paused"]))
            .destination(log.accepting("later").topics(["later"]))
    };
    let drain = async || drop(relay().build().await.unwrap().drain().await.unwrap());
    drain().await;
    let pause = |paused_at| {
        database.exec(&format!("UPDATE outbox_destinations SET paused_at = {paused_at} WHERE name = 'paused'"));
    };
    pause("CURRENT_TIMESTAMP");
    let soon = Utc::now() + HOUR / 2;
    enqueue(
        &database,
        [
            to("fails", "head").expires_at(soon),
            to("fails", "behind").expires_at(soon),
            to("fails", "wanted"),
            to("held", "head").expires_at(soon),
            to("held", "wanted"),
            to("paused", "alone").expires_at(soon),
            to("nobody", "head").expires_at(soon),
            to("nobody", "wanted"),
            to("later", "late").delay(HOUR / 4).expires_at(soon),
        ],
    );
    drain().await;
    assert_eq!(Left::of(&database).dead(), [""; 0]);
    assert_eq!(Left::of(&database).waiting().map(|rows| rows.len()), Some(9), "{}", Left::of(&database));

    works.store(true, Ordering::SeqCst);
    // What has no route is looked at every six hours.
    clock.advance(HOUR * 7);
    drain().await;
    let others = [" expired", "fails expired", "fails expired", "held expired", "later expired"];
    assert_eq!(Left::of(&database).dead(), others, "what is paused is looked at when it is resumed");
    pause("NULL");
    drain().await;
    let dead = [&others[..], &["paused expired"]].concat();
    assert_eq!(Left::of(&database).dead(), dead);
    assert_eq!(Left::of(&database).waiting(), Some(vec![" unrouted".to_owned()]));
    // Nothing stood still behind them, although one of the destinations blocks keys.
    for destination in ["fails", "held"] {
        assert_eq!(log.accepted(destination), ["wanted"]);
        assert_eq!((log.attempts(destination, "head"), log.attempts(destination, "behind")), (1, 0));
    }
    assert!(dead_letters(&database).iter().all(|dead| !dead.letter.blocks_key));
    assert_eq!(log.arrivals().len(), 4);

    // One that had no route is redriven into a row without one, and goes out as soon as somebody takes it.
    redrive_all(&database);
    let relay = Running::start(relay_on(&database).destination(log.accepting("new").topics(["nobody"]))).await;
    log.until_accepted("new", &["head", "wanted"]).await;
    relay.stop().await;
}
for_each_database!(what_waits_longer_than_it_is_wanted_dies_unattempted);

async fn a_message_that_had_expired_before_anybody_took_its_topic_dies_at_once(database: TestDatabase) {
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("a").topics(["a"]))).await;
    let past = Utc::now() - Duration::from_secs(60);
    enqueue(&database, [to("nobody", "late").expires_at(past)]);
    until_dead(&database, &[" expired"]).await;
    assert_eq!(Left::of(&database).waiting(), Some(vec![]));
    relay.stop().await;
    let letter = dead_letters(&database).remove(0);
    assert_eq!((letter.letter.attempts, letter.letter.destination.as_str()), (0, ""));
}
for_each_database!(a_message_that_had_expired_before_anybody_took_its_topic_dies_at_once);

/// It was read in time, and waited behind another one: in its lane, or for its key.
async fn what_expires_in_memory_is_not_sent(database: TestDatabase) {
    let (log, (gate, opened)) = (Log::default(), tokio::sync::watch::channel(false));
    let seen = log.clone();
    let handler = relay::Handler::raw("d", move |message: relay::message::Message, context: relay::Context| {
        let (log, mut opened) = (seen.clone(), opened.clone());
        async move {
            log.arrived(&message, &context);
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    let relay = Running::start(relay_on(&database).destination(handler.concurrency(2).timeout(LIMIT * 9))).await;
    enqueue(&database, [Envelope::raw("t", "plug"), Envelope::raw("t", "head").key("k")]);
    log.until("both are at work", |log| log.arrivals().len() == 2).await;
    let soon = Utc::now() + Duration::from_millis(700);
    let messages = || [Envelope::raw("t", "late"), Envelope::raw("t", "late").key("k")].map(|m| m.expires_at(soon));
    enqueue(&database, messages().into_iter().chain([Envelope::raw("t", "wanted").key("k")]));
    let expired =
        format!("SELECT count(*) FROM outbox_messages WHERE expires_at <= {}", super::stage::now(database.kind()));
    until(&database, "they have expired", || database.query_i64(&expired) == 2).await;
    assert_eq!(Left::of(&database).waiting(), None, "they are in memory");
    gate.send(true).unwrap();
    until_dead(&database, &["d expired", "d expired"]).await;
    log.until("the other one is through", |log| log.attempts("d", "wanted") == 1).await;
    relay.stop().await;
    assert_eq!(log.attempts("d", "late"), 0);
    assert!(dead_letters(&database).iter().all(|dead| dead.letter.attempts == 0));
}
for_each_database!(what_expires_in_memory_is_not_sent);
