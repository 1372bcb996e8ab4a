//! The kit for users' tests, on every database, over both kinds of connection.

use diesel::SqliteConnection;
use diesel::connection::{Connection, Instrumentation, LoadConnection, SimpleConnection};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::{Envelope, Error, OutboxBackend, assert_enqueued, refute_enqueued, testing};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use serde::Serialize;
use serde_json::json;

#[derive(Serialize)]
struct OrderPlaced {
    order_id: i64,
    total_cents: i64,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";
    const VERSION: u16 = 3;
}

fn message() -> Envelope {
    let message = OrderPlaced { order_id: 1, total_cents: 4200 };
    let envelope = outbox::envelope(&message).key("Ünï 1").header("X-Tenant", "7").correlation_id("c-1");
    envelope.to("billing").dedup_key("d-1")
}

fn nothing_but_this(found: &[testing::Enqueued]) {
    let [found] = found else { panic!("{found:?}") };
    assert_eq!((found.topic.as_str(), found.key.as_deref(), found.version), ("order.placed", Some("Ünï 1"), 3));
    assert_eq!((found.destination.as_deref(), found.dedup_key.as_deref()), (Some("billing"), Some("d-1")));
    assert_eq!(found.json(), Some(json!({ "order_id": 1, "total_cents": 4200 })));
    assert_eq!(found.headers["x-tenant"], "7");
}

fn finds_it<C>(conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    refute_enqueued!(conn, OrderPlaced);
    conn.begin_test_transaction().unwrap();
    outbox::enqueue(conn, message()).unwrap();
    nothing_but_this(&testing::enqueued(conn).unwrap());
    assert_enqueued!(conn, OrderPlaced);
    assert_enqueued!(conn, "order.placed", key: "Ünï 1", to: "billing", dedup_key: "d-1", version: 3, count: 1,);
    let topic = format!("order.{}", "placed");
    assert_enqueued!(conn, topic: topic, header: ("X-Tenant", "7"), payload: json!({ "total_cents": 4200 }));
    assert_enqueued!(conn, OrderPlaced, correlation_id: "c-1", payload: OrderPlaced { order_id: 1, total_cents: 4200 });
    refute_enqueued!(conn, OrderPlaced, payload: json!({ "order_id": 2 }));
    refute_enqueued!(conn, "order");
    for n in 0..1000 {
        outbox::enqueue(conn, Envelope::raw("newer", n.to_string())).unwrap();
    }
    assert_enqueued!(conn, "newer", count: 1000, content_type: "application/octet-stream", bytes: "0", count: 1);
    assert_eq!(testing::enqueued(conn).unwrap()[999].payload, b"999", "they come in their order");
    refute_enqueued!(conn, OrderPlaced);
}

async fn finds_it_async<C>(conn: &mut C)
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    conn.begin_test_transaction().await.unwrap();
    refute_enqueued!(async conn, OrderPlaced);
    outbox::aio::enqueue(conn, message()).await.unwrap();
    nothing_but_this(&outbox::aio::testing::enqueued(conn).await.unwrap());
    assert_enqueued!(async conn, OrderPlaced, key: "Ünï 1", payload: json!({ "order_id": 1 }));
    assert_enqueued!(async conn, "order.placed");
    refute_enqueued!(async conn, OrderPlaced, key: "2");
}

async fn assertions(database: TestDatabase) {
    match database.kind() {
        Kind::Postgres => {
            finds_it(&mut database.postgres());
            finds_it_async(&mut AsyncPgConnection::establish(database.url()).await.unwrap()).await;
        }
        Kind::Mariadb => {
            finds_it(&mut database.mariadb());
            finds_it_async(&mut AsyncMysqlConnection::establish(database.url()).await.unwrap()).await;
        }
        Kind::Sqlite => {
            finds_it(&mut database.sqlite());
            finds_it(&mut testing::memory());
            finds_it_async(&mut <SyncConnectionWrapper<SqliteConnection>>::new(testing::memory())).await;
        }
    }
}
for_each_database!(assertions_find_what_is_enqueued, assertions);

#[test]
fn a_failed_assertion_names_the_line_of_the_test_and_what_differs() {
    let failed = std::panic::catch_unwind(|| {
        let mut conn = testing::memory();
        conn.transaction(|conn| outbox::enqueue(conn, message())).unwrap();
        assert_enqueued!(&mut conn, OrderPlaced, key: "2");
    });
    let text = *failed.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("differs in key: `2` expected, it is `Ünï 1`"), "{text}");
    let failed = std::panic::catch_unwind(|| {
        let mut conn = testing::memory();
        conn.batch_execute("DROP TABLE outbox_messages").unwrap();
        refute_enqueued!(&mut conn, OrderPlaced);
    });
    let text = *failed.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("cannot be read"), "what cannot be read is not taken for nothing: {text}");
}

/// Code that forgot its transaction, and code that did not.
fn is_strict<C>(conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    conn.begin_test_transaction().unwrap();
    let fixture = outbox::enqueue(conn, Envelope::raw("a", "fixture")).unwrap();
    testing::strict(conn);
    for forgotten in [
        outbox::enqueue(conn, Envelope::raw("a", "x")).map(drop),
        outbox::enqueue(conn, Envelope::raw("a", "x").dedup_key("k")).map(drop),
        outbox::enqueue_all(conn, [Envelope::raw("a", "x")]).map(drop),
        outbox::cancel(conn, fixture.message_id).map(drop),
    ] {
        let error = forgotten.unwrap_err();
        assert!(error.is_not_in_transaction(), "{error}");
        assert!(error.to_string().contains("no transaction but that of the test"), "{error}");
    }
    outbox::enqueue_unchecked(conn, Envelope::raw("a", "by hand")).unwrap();
    conn.transaction(|conn| outbox::enqueue(conn, Envelope::raw("a", "right"))).unwrap();
    outbox::transaction(conn, |conn| outbox::enqueue(conn, Envelope::raw("a", "proven"))).unwrap();
    conn.transaction(|conn| conn.transaction(|conn| outbox::enqueue(conn, Envelope::raw("a", "deeper")))).unwrap();
    assert_enqueued!(conn, "a", count: 5);
    assert!(outbox::transaction(conn, |conn| outbox::cancel(conn, fixture.message_id)).unwrap());
}

/// Outside a test transaction nothing is stricter than before.
fn is_as_before<C>(conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    testing::strict(conn);
    conn.transaction(|conn| outbox::enqueue(conn, Envelope::raw("before", "x"))).unwrap();
    let error = outbox::enqueue(conn, Envelope::raw("before", "x")).unwrap_err();
    assert!(error.to_string().starts_with("outbox: enqueue was called outside a transaction."), "{error}");
}

async fn is_strict_async<C>(conn: &mut C)
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    conn.begin_test_transaction().await.unwrap();
    outbox::aio::enqueue(conn, Envelope::raw("a", "fixture")).await.unwrap();
    outbox::aio::testing::strict(conn);
    for forgotten in [
        outbox::aio::enqueue(conn, Envelope::raw("a", "x")).await.map(drop),
        outbox::aio::enqueue_all(conn, [Envelope::raw("a", "x")]).await.map(drop),
    ] {
        assert!(matches!(forgotten, Err(Error::OnlyInTestTransaction { .. })));
    }
    let right =
        outbox::aio::transaction(conn, async |conn| outbox::aio::enqueue(conn, Envelope::raw("a", "right")).await);
    right.await.unwrap();
    assert_enqueued!(async conn, "a", count: 2);
}

async fn strictness(database: TestDatabase) {
    match database.kind() {
        Kind::Postgres => {
            is_strict(&mut database.postgres());
            is_as_before(&mut database.postgres());
            is_strict_async(&mut AsyncPgConnection::establish(database.url()).await.unwrap()).await;
        }
        Kind::Mariadb => {
            is_strict(&mut database.mariadb());
            is_as_before(&mut database.mariadb());
            is_strict_async(&mut AsyncMysqlConnection::establish(database.url()).await.unwrap()).await;
        }
        Kind::Sqlite => {
            is_strict(&mut database.sqlite());
            is_as_before(&mut database.sqlite());
            is_strict_async(&mut <SyncConnectionWrapper<SqliteConnection>>::new(testing::memory())).await;
        }
    }
}
for_each_database!(strict_connections_do_not_take_the_tests_transaction_for_one, strictness);

#[test]
fn strictness_travels_with_the_connection_and_concerns_no_other() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut lenient = database.postgres();
    let mut strict = database.postgres();
    for conn in [&mut lenient, &mut strict] {
        conn.begin_test_transaction().unwrap();
    }
    testing::strict(&mut strict);
    let moved = std::thread::spawn(move || outbox::enqueue(&mut strict, Envelope::raw("a", "x")).unwrap_err());
    assert!(moved.join().unwrap().is_not_in_transaction());
    outbox::enqueue(&mut lenient, Envelope::raw("a", "x")).unwrap();

    // In a pool, too.
    let manager = diesel::r2d2::ConnectionManager::<diesel::PgConnection>::new(database.url());
    let pool = diesel::r2d2::Pool::builder().max_size(1).build(manager).unwrap();
    let mut conn = pool.get().unwrap();
    conn.begin_test_transaction().unwrap();
    testing::strict(&mut conn);
    drop(conn);
    assert!(outbox::enqueue(&mut pool.get().unwrap(), Envelope::raw("a", "x")).unwrap_err().is_not_in_transaction());
}

#[test]
fn a_strict_connection_still_tells_the_default_instrumentation() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static SEEN: AtomicBool = AtomicBool::new(false);
    // The default is of the whole process: what other tests' connections say is not looked at.
    fn watch() -> Option<Box<dyn Instrumentation>> {
        Some(Box::new(|event: diesel::connection::InstrumentationEvent<'_>| {
            if format!("{event:?}").contains("watched by its test") {
                SEEN.store(true, Ordering::Relaxed);
            }
        }))
    }
    let mut conn = testing::memory();
    diesel::connection::set_default_instrumentation(watch).unwrap();
    testing::strict(&mut conn);
    diesel::connection::set_default_instrumentation(|| None).unwrap();
    conn.batch_execute("SELECT 'watched by its test'").unwrap();
    assert!(SEEN.load(Ordering::Relaxed));
}
