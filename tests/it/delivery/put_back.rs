//! The database's clock is put back: what waits comes forward by as much, each row and each hold once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::retry::RetryPolicy;

use super::shares::{member, until_shared};
use super::stage::{Left, Log, Running, enqueue, not_now, plain, until};
use crate::faults::{self, pass, store_at};
use crate::store::fixture::time;

/// More than fit into two transactions of each of two relays.
const ROWS: usize = 2_500;
const BACK_SECS: i64 = 3_600;

/// What a relay asked its store for.
#[derive(Default)]
struct Calls {
    looks: AtomicUsize,
    pages: AtomicUsize,
    holds: AtomicUsize,
}

/// A relay whose store goes by a clock that the test puts back.
async fn watched(database: &TestDatabase, log: &Log, back_secs: &Arc<AtomicI64>) -> (Running, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let (counted, back_secs) = (calls.clone(), back_secs.clone());
    let before = move |call: &'static str| {
        match call {
            "delivery_due" => counted.looks.fetch_add(1, Ordering::SeqCst),
            "delivery_bring_forward" => counted.pages.fetch_add(1, Ordering::SeqCst),
            "destination_bring_forward" => counted.holds.fetch_add(1, Ordering::SeqCst),
            _ => 0,
        };
        pass()
    };
    let hour = move |_| Some(Utc::now() - TimeDelta::seconds(back_secs.load(Ordering::SeqCst)));
    let store = store_at(database, before, hour).await;
    let relay = faults::relay(store).lease(Duration::from_secs(6)).destination(log.accepting("d"));
    (Running::start(relay).await, calls)
}

/// By how much the hours in a column lie before this one, in whole seconds, the least and the most. Rounded: what a relay
/// measures is right to the difference between two clocks of the machine.
fn before(database: &TestDatabase, hour: chrono::DateTime<Utc>, column: &str, table: &str) -> (i64, i64) {
    let millis = match database.kind() {
        Kind::Postgres => format!("CAST(extract(epoch FROM {column}) * 1000 AS bigint)"),
        Kind::Mariadb => format!("timestampdiff(MICROSECOND, '1970-01-01', {column}) DIV 1000"),
        Kind::Sqlite => column.to_owned(),
    };
    let ask = |which| database.query_i64(&format!("SELECT {which}({millis}) FROM {table}"));
    let hour = hour.timestamp_millis();
    ((hour - ask("max") + 500) / 1000, (hour - ask("min") + 500) / 1000)
}

async fn each_row_and_hold_comes_forward_once_whoever_notices(database: TestDatabase) {
    let log = Log::default();
    let kind = database.kind();
    // Everything waits, and the destination is held.
    let once = RetryPolicy::pauses(vec![Duration::from_secs(3600); 9]);
    let relay = member(&database).retry(once).destination(log.handler("d", |_| Err(not_now())));
    let relay = Running::start(relay).await;
    enqueue(&database, (0..ROWS).map(|n| plain(&n.to_string())));
    let waiting = || Left::of(&database).waiting().is_some_and(|waiting| waiting.len() == ROWS);
    until(&database, "all wait", waiting).await;
    relay.stop().await;
    // Pauses are drawn, so a few may have been attempted twice.
    let attempts = log.arrivals().len();
    let due = Utc::now() + TimeDelta::hours(30);
    let due_at = time(kind, due);
    database.exec(&format!("UPDATE outbox_deliveries SET due_at = {due_at}"));
    database.exec(&format!("UPDATE outbox_destinations SET held_until = {due_at}"));

    let back_secs = Arc::new(AtomicI64::new(0));
    let relays = [watched(&database, &log, &back_secs).await, watched(&database, &log, &back_secs).await];
    until_shared(&database, &[16, 16]).await;
    let looks = |more: usize| {
        let wanted = relays.each_ref().map(|(_, calls)| calls.looks.load(Ordering::SeqCst) + more);
        let relays = &relays;
        move || relays.iter().zip(wanted).all(|((_, calls), wanted)| calls.looks.load(Ordering::SeqCst) >= wanted)
    };
    until(&database, "both have looked at the clock", looks(2)).await;
    back_secs.store(BACK_SECS, Ordering::SeqCst);
    let rows_came = || before(&database, due, "due_at", "outbox_deliveries").0 >= BACK_SECS;
    until(&database, "all came forward", rows_came).await;
    until(&database, "both have asked for the holds", || {
        relays.iter().all(|(_, calls)| calls.holds.load(Ordering::SeqCst) > 0)
    })
    .await;
    // Whoever would bring something forward again has the time to.
    until(&database, "both have looked again", looks(3)).await;
    for (table, column) in [("outbox_deliveries", "due_at"), ("outbox_destinations", "held_until")] {
        let (least, most) = before(&database, due, column, table);
        println!("{kind}: {column} came forward by {least} to {most} s of {BACK_SECS}");
        assert!(least >= BACK_SECS && most < 2 * BACK_SECS, "{column}: {least} to {most} s");
    }
    for (relay, calls) in relays {
        assert!(calls.pages.load(Ordering::SeqCst) >= 3, "a page at a time");
        assert_eq!(calls.holds.load(Ordering::SeqCst), 1);
        relay.stop().await;
    }
    assert_eq!(log.arrivals().len(), attempts, "nothing was due since, and the destination was held");
}
for_each_database!(each_row_and_hold_comes_forward_once_whoever_notices);
