//! A message lives and dies with the transaction it was enqueued in, whoever the producer is.
//!
//! One body for diesel's own connections and one for diesel-async's; each is run over every driver and over a pool.

use std::borrow::Cow;

use diesel::connection::LoadConnection;
use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
use diesel::{MysqlConnection, PgConnection, SqliteConnection};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::{Envelope, Error, OutboxBackend, aio};
use outbox_tests::database::{Kind, TestDatabase};

use super::stored::{nasty_payloads, payloads, stored};

#[derive(serde::Serialize)]
struct OrderPlaced {
    order_id: i64,
    note: &'static str,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(format!("order-{}", self.order_id).into())
    }
}

/// The business' own table.
const ORDERS: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY)";

fn place(order_id: i64) -> OrderPlaced {
    OrderPlaced { order_id, note: "it's \"new\" \\ grüße" }
}

fn json(order_id: i64) -> Vec<u8> {
    serde_json::to_vec(&place(order_id)).unwrap()
}

fn raw(payload: &[u8]) -> Envelope {
    Envelope::raw("raw.bytes", payload)
}

fn order(id: i64) -> String {
    format!("INSERT INTO orders (id) VALUES ({id})")
}

/// What was committed: how many orders, and the payloads of the messages in their order.
fn committed(database: &TestDatabase) -> (i64, Vec<Vec<u8>>) {
    (database.query_i64("SELECT count(*) FROM orders"), payloads(database))
}

fn empty(database: &TestDatabase) {
    database.exec("DELETE FROM orders");
    database.exec("DELETE FROM outbox_messages");
}

/// Everything a producer on one of diesel's connections relies on.
fn proves_itself<C>(database: &TestDatabase, conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    database.exec(ORDERS);

    // Committed: row and message are there, byte for byte.
    let receipt = conn
        .transaction(|conn| {
            conn.batch_execute(&order(1))?;
            outbox::enqueue(conn, &place(1))
        })
        .unwrap();
    assert_eq!(committed(database), (1, vec![json(1)]));
    let row = stored(database).remove(0);
    assert_eq!((row.id, row.key.as_deref()), (receipt.message_id.simple().to_string(), Some("order-1")));
    assert_eq!((row.topic.as_str(), row.content_type.as_str()), ("order.placed", "application/json"));
    empty(database);

    // The same in closures that return diesel's error.
    conn.transaction(|conn| -> diesel::QueryResult<()> {
        for payload in nasty_payloads() {
            outbox::enqueue(conn, raw(&payload))?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(committed(database), (0, nasty_payloads()));
    empty(database);

    // Many at once.
    let receipts = conn
        .transaction(|conn| outbox::enqueue_all(conn, nasty_payloads().iter().map(|payload| raw(payload))))
        .unwrap();
    assert_eq!(committed(database), (0, nasty_payloads()));
    let ids: Vec<String> = stored(database).into_iter().map(|row| row.id).collect();
    assert_eq!(ids, receipts.iter().map(|receipt| receipt.message_id.simple().to_string()).collect::<Vec<_>>());
    empty(database);

    // Rolled back: neither is.
    let rolled_back = conn.transaction(|conn| {
        conn.batch_execute(&order(1))?;
        outbox::enqueue(conn, &place(1))?;
        outbox::enqueue_all(conn, [&place(2), &place(3)])?;
        Err::<(), _>(Error::from(diesel::result::Error::RollbackTransaction))
    });
    assert!(rolled_back.is_err());
    assert_eq!(committed(database), (0, vec![]));

    // A savepoint rolled back inside a committed transaction takes only what is in it.
    conn.transaction(|conn| {
        outbox::enqueue(conn, &place(1))?;
        let inner = conn.transaction(|conn| {
            conn.batch_execute(&order(2))?;
            outbox::enqueue(conn, &place(2))?;
            Err::<(), _>(Error::from(diesel::result::Error::RollbackTransaction))
        });
        assert!(inner.is_err());
        conn.transaction(|conn| outbox::enqueue(conn, &place(3)))?;
        outbox::enqueue(conn, &place(4))
    })
    .unwrap();
    assert_eq!(committed(database), (0, vec![json(1), json(3), json(4)]));
    empty(database);

    // Outside a transaction nothing is written.
    assert!(outbox::enqueue(conn, &place(1)).unwrap_err().is_not_in_transaction());
    assert!(outbox::enqueue_all(conn, [&place(1), &place(2)]).unwrap_err().is_not_in_transaction());
    assert!(outbox::enqueue_all(conn, <[Envelope; 0]>::default()).unwrap_err().is_not_in_transaction());
    assert_eq!(committed(database), (0, vec![]));

    // What is refused is refused before the others are written, and the transaction goes on.
    conn.transaction(|conn| {
        conn.batch_execute(&order(1))?;
        let refused = outbox::enqueue_all(conn, [raw(b"good"), Envelope::raw("not a topic", "bad")]);
        assert!(refused.unwrap_err().is_refused());
        Ok::<(), Error>(())
    })
    .unwrap();
    assert_eq!(committed(database), (1, vec![]));
    empty(database);

    // Those who open transactions by themselves say so.
    conn.batch_execute("BEGIN").unwrap();
    outbox::enqueue_unchecked(conn, &place(1)).unwrap();
    conn.batch_execute("ROLLBACK").unwrap();
    assert_eq!(committed(database), (0, vec![]));
    conn.batch_execute("BEGIN").unwrap();
    outbox::enqueue_unchecked(conn, &place(2)).unwrap();
    conn.batch_execute("COMMIT").unwrap();
    assert_eq!(committed(database), (0, vec![json(2)]));
}

/// The same for diesel-async.
async fn proves_itself_async<C>(database: &TestDatabase, conn: &mut C)
where
    C: AsyncConnection<Backend: OutboxBackend> + 'static,
{
    database.exec(ORDERS);
    let roll_back = || Error::from(diesel::result::Error::RollbackTransaction);

    let receipt = conn
        .transaction(async |conn| {
            conn.batch_execute(&order(1)).await?;
            aio::enqueue(conn, &place(1)).await
        })
        .await
        .unwrap();
    assert_eq!(committed(database), (1, vec![json(1)]));
    let row = stored(database).remove(0);
    assert_eq!((row.id, row.key.as_deref()), (receipt.message_id.simple().to_string(), Some("order-1")));
    empty(database);

    conn.transaction(async |conn| -> diesel::QueryResult<()> {
        for payload in nasty_payloads() {
            aio::enqueue(conn, raw(&payload)).await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(committed(database), (0, nasty_payloads()));
    empty(database);

    conn.transaction(async |conn| aio::enqueue_all(conn, nasty_payloads().iter().map(|payload| raw(payload))).await)
        .await
        .unwrap();
    assert_eq!(committed(database), (0, nasty_payloads()));
    empty(database);

    let rolled_back = conn
        .transaction(async |conn| {
            conn.batch_execute(&order(1)).await?;
            aio::enqueue(conn, &place(1)).await?;
            aio::enqueue_all(conn, [&place(2), &place(3)]).await?;
            Err::<(), _>(roll_back())
        })
        .await;
    assert!(rolled_back.is_err());
    assert_eq!(committed(database), (0, vec![]));

    conn.transaction(async |conn| {
        aio::enqueue(conn, &place(1)).await?;
        let inner = conn
            .transaction(async |conn| {
                conn.batch_execute(&order(2)).await?;
                aio::enqueue(conn, &place(2)).await?;
                Err::<(), _>(roll_back())
            })
            .await;
        assert!(inner.is_err());
        conn.transaction(async |conn| aio::enqueue(conn, &place(3)).await).await?;
        aio::enqueue(conn, &place(4)).await
    })
    .await
    .unwrap();
    assert_eq!(committed(database), (0, vec![json(1), json(3), json(4)]));
    empty(database);

    assert!(aio::enqueue(conn, &place(1)).await.unwrap_err().is_not_in_transaction());
    assert!(aio::enqueue_all(conn, [&place(1), &place(2)]).await.unwrap_err().is_not_in_transaction());
    assert_eq!(committed(database), (0, vec![]));

    conn.batch_execute("BEGIN").await.unwrap();
    aio::enqueue_unchecked(conn, &place(1)).await.unwrap();
    conn.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(committed(database), (0, vec![]));
    conn.batch_execute("BEGIN").await.unwrap();
    aio::enqueue_unchecked(conn, &place(2)).await.unwrap();
    conn.batch_execute("COMMIT").await.unwrap();
    assert_eq!(committed(database), (0, vec![json(2)]));
}

#[test]
fn diesel_on_postgres_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    proves_itself(&database, &mut database.postgres());
}

#[test]
fn diesel_on_mariadb_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    proves_itself(&database, &mut database.mariadb());
}

#[test]
fn diesel_on_sqlite_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    proves_itself(&database, &mut database.sqlite());
}

fn pooled<C: R2D2Connection + 'static>(url: &str) -> diesel::r2d2::PooledConnection<ConnectionManager<C>> {
    let pool = Pool::builder().max_size(1).build(ConnectionManager::<C>::new(url)).unwrap();
    pool.get().unwrap()
}

#[test]
fn pooled_connection_on_postgres_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    proves_itself(&database, &mut pooled::<PgConnection>(database.url()));
}

#[test]
fn pooled_connection_on_mariadb_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    proves_itself(&database, &mut pooled::<MysqlConnection>(database.url()));
}

#[test]
fn pooled_connection_on_sqlite_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    proves_itself(&database, &mut pooled::<SqliteConnection>(database.path().to_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diesel_async_on_postgres_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = AsyncPgConnection::establish(database.url()).await.unwrap();
    proves_itself_async(&database, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diesel_async_on_mariadb_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = AsyncMysqlConnection::establish(database.url()).await.unwrap();
    proves_itself_async(&database, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diesel_async_on_sqlite_shares_the_fate_of_its_transaction() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let path = database.path().to_str().unwrap();
    let mut conn = SyncConnectionWrapper::<SqliteConnection>::establish(path).await.unwrap();
    proves_itself_async(&database, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_of_a_web_server_can_enqueue() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let url = database.url().to_owned();
    // Compiles only while the future is `Send`.
    let task = tokio::spawn(async move {
        let mut conn = AsyncPgConnection::establish(&url).await.unwrap();
        conn.transaction(async |conn| aio::enqueue(conn, &place(1)).await).await
    });
    task.await.unwrap().unwrap();
    assert_eq!(payloads(&database), [json(1)]);
}
