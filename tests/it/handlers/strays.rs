//! A transactional handler is not called for a delivery whose row is no longer as it was read.

use std::sync::Arc;

use diesel_async::AsyncConnection;
use outbox::OutboxBackend;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::store::{DestinationSpec, StoreOptions};
use relay::{Context, Handler};
use tokio::sync::Semaphore;

use super::stage::{Posted, Script, create_effects, posted, shared, sorted_effects, with_driver};
use crate::delivery::stage::{LIMIT, Left, Log, Running, enqueue, relay_on, until, until_waiting};

/// The ledger, one at a time, each of its attempts behind a gate.
fn gated<C>(script: &Script, gate: &Arc<Semaphore>) -> Handler
where
    C: AsyncConnection<Backend: OutboxBackend> + 'static,
{
    let (script, gate) = (script.clone(), gate.clone());
    let handler = Handler::transactional("ledger", async move |posted: Posted, conn: &mut C, context: Context| {
        let acted = script.act(&posted.body, conn, &context).await;
        gate.acquire().await.unwrap().forget();
        acted
    });
    // It waits for the test, however busy the machine is.
    handler.concurrency(1).timeout(3 * LIMIT)
}

async fn a_message_routed_by_older_routes_is_looked_at_again(database: TestDatabase) {
    with_driver!(database.kind(), Conn => routed_by_older_routes::<Conn>(&database).await);
}
// SQLite's one writer is the handler itself: nothing can change while it is under way.
for_each_database!(
    a_message_routed_by_older_routes_is_looked_at_again,
    a_message_routed_by_older_routes_is_looked_at_again,
    [postgres, mariadb]
);

async fn routed_by_older_routes<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let (script, gate) = (Script::well(database), Arc::new(Semaphore::new(0)));
    enqueue(database, [posted("first"), posted("second")]);
    let relay = Running::start(relay_on(database).destination(gated::<C>(&script, &gate))).await;
    until(database, "the first is under way", || !script.attempts("first").is_empty()).await;
    // The second is in hands, routed to the ledger alone. Now somebody else wants it too.
    let store = relay::store::open::open(database.url(), &StoreOptions::default()).await.unwrap();
    let spec = DestinationSpec { name: "new".into(), patterns: vec!["posted".into()], ordering: "key".into() };
    store.destination_register(&[spec]).await.unwrap();
    gate.add_permits(2);
    let attempts = || (script.attempts("first"), script.attempts("second"));
    until(database, "one waits for the new one", || {
        let attempts = attempts();
        assert_eq!(attempts.0, [1], "{attempts:?}");
        Left::of(database).waiting().is_some_and(|waiting| waiting == ["new unserved"])
    })
    .await;
    relay.stop().await;
    assert_eq!(sorted_effects(database), ["first", "second"]);
    assert_eq!(script.attempts("second"), [1], "it was called once, when both had their part");
}

async fn a_waiting_row_that_is_gone_is_not_attempted(database: TestDatabase) {
    with_driver!(database.kind(), Conn => gone_before_its_turn::<Conn>(&database).await);
}
for_each_database!(
    a_waiting_row_that_is_gone_is_not_attempted,
    a_waiting_row_that_is_gone_is_not_attempted,
    [postgres, mariadb]
);

async fn gone_before_its_turn<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let (script, gate, log) = (Script::well(database), Arc::new(Semaphore::new(0)), Log::default());
    enqueue(database, [shared("first"), shared("second")]);
    let builder = relay_on(database)
        .destination(gated::<C>(&script, &gate).topics(["shared"]))
        .destination(log.accepting("audit").topics(["shared"]));
    let relay = Running::start(builder).await;
    let attempted = || ["first", "second"].into_iter().find(|body| !script.attempts(body).is_empty());
    until(database, "one is under way", || attempted().is_some()).await;
    // The other one is in the lane, behind it. Its row leaves without the relay.
    let (done, gone) = if attempted() == Some("first") { ("first", "second") } else { ("second", "first") };
    until_waiting(database, &["ledger overflow", "ledger overflow"]).await;
    // Found first: a DELETE that searches waits for the row that is claimed.
    let row = format!("SELECT id FROM outbox_deliveries WHERE payload LIKE '%{gone}%'");
    let row = database.query_i64(&row);
    database.exec(&format!("DELETE FROM outbox_deliveries WHERE id = {row}"));
    gate.add_permits(3);
    until_waiting(database, &[]).await;
    // What comes later is delivered, so the one that is gone has had its turn.
    enqueue(database, [shared("third")]);
    until(database, "the third", || sorted_effects(database) == [done, "third"]).await;
    relay.stop().await;
    assert!(script.attempts(gone).is_empty());
}
