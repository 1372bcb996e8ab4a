//! A relay that freezes between starting an attempt and claiming its row, for longer than its lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel_async::AsyncConnection;
use outbox::OutboxBackend;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::event::Event;
use relay::{Context, Handler};
use tokio::sync::Semaphore;

use super::exactly_once::driver_url;
use super::stage::{Posted, Script, create_effects, effects, posted, with_driver};
use crate::delivery::stage::{Running, enqueue, quick, relay_on, until};
use crate::store::fixture::{register, store_on};

async fn an_attempt_that_comes_after_a_takeover_claims_nothing(database: TestDatabase) {
    with_driver!(database.kind(), Conn => late::<Conn>(&database).await);
}
for_each_database!(an_attempt_that_comes_after_a_takeover_claims_nothing);

async fn late<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let (script, url) = (Script::well(database), driver_url(database));
    // The attempt stands still where it opens its connection, until it is let go.
    let (frozen, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (freezing, waiting) = (frozen.clone(), gate.clone());
    let connect = move || {
        let (url, freezing, waiting) = (url.clone(), freezing.clone(), waiting.clone());
        async move {
            freezing.fetch_add(1, Ordering::SeqCst);
            waiting.acquire().await.expect("the gate is not closed").forget();
            C::establish(&url).await
        }
    };
    let acting = script.clone();
    let ledger =
        Handler::transactional_with("ledger", connect, async move |posted: Posted, conn: &mut C, context: Context| {
            acting.act(&posted.body, conn, &context).await
        });
    let refused = Arc::new(AtomicUsize::new(0));
    let counting = refused.clone();
    // Looks are as rare as the lease is long: it hears of the takeover from nobody.
    let relay = relay_on(database).lease(Duration::from_secs(600)).on_event(move |event| {
        if let Event::Refused { outcomes } = event {
            counting.fetch_add(*outcomes, Ordering::SeqCst);
        }
    });
    enqueue(database, [posted("one")]);
    let relay = Running::start(relay.destination(ledger.retry(quick(0)))).await;
    until(database, "the attempt began", || frozen.load(Ordering::SeqCst) == 1).await;

    let owned = "SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL";
    until(database, "everything is owned", || database.query_i64(owned) == 32).await;
    register(&*store_on(database.url()).await, "successor").await;
    let successor = "(SELECT id FROM outbox_relays WHERE name = 'successor')";
    database.exec(&format!("UPDATE outbox_partitions SET owner = {successor}, epoch = epoch + 1"));
    gate.add_permits(100);
    until(database, "what it wrote was refused", || refused.load(Ordering::SeqCst) >= 1).await;
    assert_eq!((script.attempts("one"), effects(database)), (vec![], vec![]), "the handler was not called");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 1, "it is the successor's");
    drop(relay);
}
