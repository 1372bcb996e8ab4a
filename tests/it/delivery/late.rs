//! A transaction that drew its number first commits while a later message of its key waits.
//!
//! Neither was committed before the other was enqueued, so either may go first; from then on the lower number is the head.
//! SQLite has one writer, and no such transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use diesel::Connection;
use outbox_tests::database::{Kind, TestDatabase};
use relay::{AfterDeadLetter, HandlerError};

use super::keys::leave_behind_a_dead_relay;
use super::stage::{
    Log, Running, enqueue, keyed, millis, not_now, redrive_all, relay_on, until_dead, until_nothing_is_left,
    until_waiting,
};

/// A message that is enqueued, and committed when it is told to.
struct Open {
    commit: Sender<()>,
    done: std::thread::JoinHandle<()>,
}

impl Open {
    fn enqueue(database: &Arc<TestDatabase>, key: &'static str, body: &'static str) -> Open {
        let (commit, told): (_, Receiver<()>) = channel();
        let (enqueued, is_enqueued) = channel();
        let database = database.clone();
        let done = std::thread::spawn(move || {
            with_connection!(database, |conn| conn.transaction(|conn| {
                outbox::enqueue(conn, keyed(key, body))?;
                enqueued.send(()).unwrap();
                told.recv().unwrap();
                Ok::<_, outbox::Error>(())
            }))
            .unwrap();
        });
        is_enqueued.recv().unwrap();
        Open { commit, done }
    }

    fn commit(self) {
        self.commit.send(()).unwrap();
        self.done.join().unwrap();
    }
}

/// What happens to the relay between the two commits.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    Restart,
    Takeover,
}

async fn head_of_a_waiting_key(kind: Kind, meanwhile: Meanwhile) {
    let database = Arc::new(TestDatabase::with_schema(kind));
    let (log, is_through) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let start = || {
        let is_through = is_through.clone();
        let handler = log.handler("d", move |arrival| match arrival.body.as_str() {
            "high" if !is_through.load(Ordering::SeqCst) => Err(not_now()),
            "low" if arrival.copy < 3 => Err(not_now()),
            "low" => {
                is_through.store(true, Ordering::SeqCst);
                Ok(())
            }
            _ => Ok(()),
        });
        Running::start(relay_on(&database).lease(millis(1000)).destination(handler))
    };
    let mut relay = start().await;
    let low = Open::enqueue(&database, "k", "low");
    enqueue(&database, [keyed("k", "high"), keyed("k", "next")]);
    log.until("the higher one fails", |log| log.attempts("d", "high") >= 2).await;
    if meanwhile != Meanwhile::Nothing {
        relay.stop().await;
        if meanwhile == Meanwhile::Takeover {
            leave_behind_a_dead_relay(&database);
        }
        relay = start().await;
        let failed = log.attempts("d", "high");
        log.until("it fails again", |log| log.attempts("d", "high") > failed).await;
    }
    low.commit();
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("d"), ["low", "high", "next"]);
    // From its first attempt on the lower one is the head, also while it waits.
    let bodies: Vec<String> = log.arrivals().into_iter().map(|arrival| arrival.body).collect();
    let first = bodies.iter().position(|body| body == "low").unwrap();
    assert_eq!(bodies[first..], ["low", "low", "low", "high", "next"], "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_number_that_commits_late_becomes_the_head_of_its_waiting_key() {
    for kind in [Kind::Postgres, Kind::Mariadb] {
        for meanwhile in [Meanwhile::Nothing, Meanwhile::Restart, Meanwhile::Takeover] {
            head_of_a_waiting_key(kind, meanwhile).await;
        }
    }
}

/// A key that a dead letter blocks stands still for whatever comes, whichever number it has.
async fn behind_a_dead_letter(kind: Kind) {
    let database = Arc::new(TestDatabase::with_schema(kind));
    let (log, is_repaired) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let repaired = is_repaired.clone();
    let handler = log.handler("d", move |arrival| match arrival.body.as_str() {
        "high" if !repaired.load(Ordering::SeqCst) => Err(HandlerError::reject("no")),
        _ => Ok(()),
    });
    let handler = handler.after_dead_letter(AfterDeadLetter::Block);
    let relay = Running::start(relay_on(&database).destination(handler)).await;
    let low = Open::enqueue(&database, "k", "low");
    enqueue(&database, [keyed("k", "high"), keyed("k", "next")]);
    until_dead(&database, &["d rejected"]).await;
    low.commit();
    until_waiting(&database, &["d blocked"; 2]).await;
    // Whatever has been read by now did not let it go.
    enqueue(&database, [keyed("other", "free")]);
    log.until_accepted("d", &["free"]).await;
    assert_eq!(log.attempts("d", "low"), 0);
    is_repaired.store(true, Ordering::SeqCst);
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("d"), ["free", "low", "high", "next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_number_that_commits_late_waits_behind_the_dead_letter_of_its_key() {
    for kind in [Kind::Postgres, Kind::Mariadb] {
        behind_a_dead_letter(kind).await;
    }
}
