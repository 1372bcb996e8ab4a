//! What was on its way to the tables when a partition was lost concludes nothing afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::Destination;
use relay::message::Message;
use relay::sink::{Attempt, Judgement, Settings, Sink};
use relay::store::{DestinationSpec, StoreOptions, open::open};
use relay::verdict::Verdict;
use tokio::sync::watch;

use super::shares::until_shared;
use super::stage::{Log, Running, enqueue, millis, plain, until, until_nothing_is_left};
use crate::faults::{self, Before, pass};

/// A place in the store where calls wait until the test lets them go on.
#[derive(Clone)]
struct Gate {
    /// Calls numbered up to this one may go on.
    open: watch::Sender<usize>,
    calls: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    fn new() -> Gate {
        let counter = || Arc::new(AtomicUsize::new(0));
        Gate { open: watch::channel(usize::MAX).0, calls: counter(), waiting: counter() }
    }

    fn pass(&self) -> Before {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let mut open = self.open.subscribe();
        self.waiting.fetch_add(usize::from(*open.borrow() < number), Ordering::SeqCst);
        Box::pin(async move {
            let _ = open.wait_for(|until| *until >= number).await;
            Ok(())
        })
    }

    fn set(&self, until: usize) {
        self.open.send_replace(until);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn until_waiting(&self, database: &TestDatabase, count: usize) {
        until(database, "a call waits", || self.waiting.load(Ordering::SeqCst) >= count).await;
    }
}

/// One that only waits to be tried again would keep a stop until its grace is over.
async fn a_message_of_a_lost_partition_that_cannot_be_deleted_keeps_no_stop_waiting(database: TestDatabase) {
    let (log, deletes, beats) = (Log::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tried, beat) = (deletes.clone(), beats.clone());
    let store = faults::store(&database, move |call| match call {
        "message_delivered" => {
            tried.fetch_add(1, Ordering::SeqCst);
            faults::refuse("message_delivered")
        }
        "relay_beat" => {
            beat.fetch_add(1, Ordering::SeqCst);
            pass()
        }
        _ => pass(),
    })
    .await;
    let relay = faults::relay(store).lease(millis(900)).shutdown_grace(Duration::from_secs(12));
    let relay = Running::start(relay.destination(log.accepting("all"))).await;
    until_shared(&database, &[32]).await;
    enqueue(&database, [plain("one")]);
    until(&database, "it is set aside", || deletes.load(Ordering::SeqCst) >= 2).await;

    // Somebody else has everything, and keeps it.
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-0000000000dd'",
        Kind::Mariadb | Kind::Sqlite => "x'000000000000400080000000000000dd'",
    };
    let columns = "(id, name, version, lease_ms, serves)";
    database.exec(&format!("INSERT INTO outbox_relays {columns} VALUES ({id}, 'other', '1', 600000, '[\"all\"]')"));
    database.exec(&format!("UPDATE outbox_partitions SET owner = {id}, epoch = epoch + 1"));
    let before = beats.load(Ordering::SeqCst);
    until(&database, "the relay knows", || beats.load(Ordering::SeqCst) >= before + 3).await;
    let took = relay.stop().await;
    assert!(took < Duration::from_secs(8), "the stop took {took:?}");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 1, "it is the other's");
}
for_each_database!(a_message_of_a_lost_partition_that_cannot_be_deleted_keeps_no_stop_waiting);

struct Accepting;

#[async_trait]
impl Sink for Accepting {
    async fn attempt(&self, _: &Message, _: &Attempt) -> Judgement {
        Judgement::delivered("ok")
    }
}

/// Refuses the first copy, as late as the test wants.
struct Late(Gate);

#[async_trait]
impl Sink for Late {
    async fn attempt(&self, _: &Message, _: &Attempt) -> Judgement {
        let is_first = self.0.calls() == 0;
        let _ = self.0.pass().await;
        match is_first {
            true => Judgement::failed(Verdict::Retry { after: None }, "no", "the test says so"),
            false => Judgement::delivered("ok"),
        }
    }
}

/// The message was delivered to all there were, and not deleted, because another destination had come. Then its partition
/// was lost and taken again, and it was read anew. That it has been delivered is true of the first reading only.
async fn what_came_of_a_message_does_not_end_it_once_it_was_read_anew(database: TestDatabase) {
    let (deletes, routings, second) = (Gate::new(), Gate::new(), Gate::new());
    let (delete, routing) = (deletes.clone(), routings.clone());
    let store = faults::store(&database, move |call| match call {
        "message_delivered" => delete.pass(),
        "destination_read" => routing.pass(),
        _ => pass(),
    })
    .await;
    // Not handlers: what those may have had in hands waits as suspect.
    let there = Destination::new(Settings::new("there", ["t"]), Arc::new(Accepting));
    let late = Destination::new(Settings::new("late", ["nothing"]), Arc::new(Late(second.clone())));
    let relay = faults::relay(store).lease(millis(900)).destination(there).destination(late);
    let relay = Running::start(relay).await;
    until_shared(&database, &[32]).await;
    second.set(0);
    deletes.set(0);
    enqueue(&database, [plain("one")]);
    deletes.until_waiting(&database, 1).await;
    routings.set(0);
    routings.until_waiting(&database, 1).await;

    let spec = DestinationSpec { name: "late".into(), patterns: vec!["t".into()], ordering: "key".into() };
    open(database.url(), &StoreOptions::default()).await.unwrap().destination_register(&[spec]).await.unwrap();
    // Nothing is deleted, and what is known of the routes after the read that waits will not be enough to say why.
    deletes.set(usize::MAX);
    tokio::time::sleep(millis(300)).await;
    routings.set(routings.calls());
    routings.until_waiting(&database, 2).await;
    database.exec("UPDATE outbox_partitions SET epoch = epoch + 1");
    second.until_waiting(&database, 1).await;
    routings.set(usize::MAX);
    let before = routings.calls();
    until(&database, "the routes are known", || routings.calls() >= before + 3).await;
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 1, "one destination has no outcome yet");
    second.set(usize::MAX);
    until(&database, "it is attempted again", || second.calls() >= 2).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
}
for_each_database!(what_came_of_a_message_does_not_end_it_once_it_was_read_anew);
