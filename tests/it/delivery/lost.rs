//! What was on its way to the tables when a partition was lost holds nobody up afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use super::shares::until_shared;
use super::stage::{Log, Running, enqueue, millis, plain, until};
use crate::faults::{self, pass};

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
