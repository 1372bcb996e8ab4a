//! What deliveries cost the database, told by the calls of its store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::RelayBuilder;

use super::stage::{Log, Running, enqueue, keyed, not_now, plain, quick, until, until_nothing_is_left};
use crate::faults::{pass, relay, store};

/// How often each call of the store was made.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<BTreeMap<&'static str, usize>>>);

impl Calls {
    pub(super) async fn relay(&self, database: &TestDatabase) -> RelayBuilder {
        let calls = self.0.clone();
        let store = store(database, move |call| {
            *calls.lock().unwrap().entry(call).or_default() += 1;
            pass()
        });
        relay(store.await).retry(quick(1000))
    }

    pub(super) fn of(&self, call: &str) -> usize {
        self.0.lock().unwrap().get(call).copied().unwrap_or_default()
    }

    /// What was called since, for those named.
    fn since(&self, before: &[usize], calls: &[&str]) -> Vec<usize> {
        calls.iter().zip(before).map(|(call, before)| self.of(call) - before).collect()
    }
}

/// Fan-out writes no row by itself: what every destination has costs its part of one DELETE.
async fn what_every_destination_takes_costs_one_plain_delete(database: TestDatabase) {
    const MESSAGES: usize = 300;
    let (log, calls) = (Log::default(), Calls::default());
    let names = ["a", "b", "c", "d"];
    let relay = names.iter().fold(calls.relay(&database).await, |relay, name| relay.destination(log.accepting(name)));
    let relay = Running::start(relay).await;
    // Nothing waits anywhere, and the relay knows.
    enqueue(&database, [keyed("k", "first")]);
    until_nothing_is_left(&database).await;
    let looks = calls.of("delivery_due");
    until(&database, "it has looked", || calls.of("delivery_due") >= looks + 2).await;
    let counted = ["settle", "key_parked", "delivery_start", "message_delivered"];
    let before = counted.map(|call| calls.of(call));
    for n in 0..MESSAGES {
        enqueue(&database, [keyed(&format!("k{}", n % 20), &n.to_string())]);
    }
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.arrivals().len(), names.len() * (MESSAGES + 1));
    let since = calls.since(&before, &counted);
    println!("{}: {MESSAGES} messages to {} destinations, {counted:?}: {since:?}", database.kind(), names.len());
    assert_eq!(since[..3], [0, 0, 0], "{counted:?}");
    assert!((1..=MESSAGES).contains(&since[3]), "{counted:?}: {since:?}");
}
for_each_database!(what_every_destination_takes_costs_one_plain_delete);

/// Rows are looked for where they may be taken only, however many are due elsewhere.
async fn due_rows_of_a_closed_destination_are_not_looked_for(database: TestDatabase) {
    const ROWS: usize = 200;
    let (log, calls) = (Log::default(), Calls::default());
    let closed = || log.accepting("closed").topics(["t"]);
    let open = log.handler("open", |_| Err(not_now())).topics(["never"]);
    let relay = Running::start(calls.relay(&database).await.destination(closed()).destination(open)).await;
    enqueue(&database, [plain("seen")]);
    log.until_accepted("closed", &["seen"]).await;
    database
        .exec("UPDATE outbox_destinations SET paused_at = CURRENT_TIMESTAMP, paused_by = 'ada' WHERE name = 'closed'");
    let reads = calls.of("destination_read");
    until(&database, "the pause is read", || calls.of("destination_read") >= reads + 2).await;
    enqueue(&database, (0..ROWS).map(|n| plain(&n.to_string())));
    let rows = || database.query_i64("SELECT count(*) FROM outbox_deliveries") == i64::try_from(ROWS).unwrap();
    until(&database, "all wait, and are due", rows).await;
    let (looks, reads) = (calls.of("delivery_due"), calls.of("destination_read"));
    // As long as the relay's own clock says, however slow the machine is: it reads the destinations now and then.
    until(&database, "some time has passed", || calls.of("destination_read") >= reads + 6).await;
    let looks = calls.of("delivery_due") - looks;
    println!("{}: {looks} looks beside {ROWS} rows that nobody may take", database.kind());
    assert!(looks <= 8, "{looks} looks while six times the destinations were read");
    relay.stop().await;
    assert_eq!(log.accepted("closed"), ["seen"]);
}
for_each_database!(due_rows_of_a_closed_destination_are_not_looked_for);
