//! `Ok` from `outbox::transaction` means that it committed.

use std::sync::Barrier;

use diesel::SqliteConnection;
use diesel::connection::{Connection, LoadConnection, SimpleConnection};
use diesel::result::Error as DieselError;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::{Envelope, Error, OutboxBackend, aio};
use outbox_tests::database::{Kind, TestDatabase};

const ORDERS: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY)";

fn message() -> Envelope {
    Envelope::raw("some.topic", "x")
}

fn order(id: i64) -> String {
    format!("INSERT INTO orders (id) VALUES ({id})")
}

/// Orders and messages that committed.
fn committed(database: &TestDatabase) -> (i64, i64) {
    let count = |table: &str| database.query_i64(&format!("SELECT count(*) FROM {table}"));
    (count("orders"), count("outbox_messages"))
}

fn proves_its_end<C: LoadConnection<Backend: OutboxBackend>>(database: &TestDatabase, conn: &mut C) {
    database.exec(ORDERS);
    // Committed, with the value that was returned; a savepoint inside takes only its own part back.
    let value = outbox::transaction(conn, |conn| {
        conn.batch_execute(&order(1))?;
        outbox::enqueue(conn, message())?;
        let inner = outbox::transaction(conn, |conn| {
            conn.batch_execute(&order(2))?;
            Err::<(), _>(Error::from(DieselError::RollbackTransaction))
        });
        assert!(inner.is_err());
        outbox::transaction(conn, |conn| conn.batch_execute(&order(3)))?;
        Ok::<_, Error>("value")
    });
    assert_eq!(value.unwrap(), "value");
    assert_eq!(committed(database), (2, 1));

    // Rolled back, with the error that was returned.
    let error = outbox::transaction(conn, |conn| {
        conn.batch_execute(&order(4))?;
        Err::<(), DieselError>(DieselError::NotFound)
    });
    assert!(matches!(error, Err(DieselError::NotFound)), "{error:?}");
    assert_eq!(committed(database), (2, 1));

    // The connection goes on.
    outbox::transaction(conn, |conn| conn.batch_execute(&order(5))).unwrap();
    assert_eq!(committed(database), (3, 1));
}

#[test]
fn ok_means_committed_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    proves_its_end(&database, &mut database.postgres());
}

#[test]
fn ok_means_committed_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    proves_its_end(&database, &mut database.mariadb());
}

#[test]
fn ok_means_committed_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    proves_its_end(&database, &mut database.sqlite());
}

#[test]
fn swallowed_error_on_postgres_is_not_taken_for_a_commit() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    database.exec(ORDERS);
    let mut conn = database.postgres();
    let swallow = |conn: &mut diesel::PgConnection| {
        conn.batch_execute(&order(1))?;
        outbox::enqueue(conn, message())?;
        assert!(conn.batch_execute("SELECT 1 / 0").is_err());
        Ok::<(), Error>(())
    };
    // This is why it exists.
    assert!(conn.transaction(swallow).is_ok());
    assert_eq!(committed(&database), (0, 0));

    let error = outbox::transaction(&mut conn, swallow).unwrap_err();
    assert!(error.is_not_committed(), "{error}");
    let text = error.to_string();
    assert!(text.contains("did not commit: current transaction is aborted") && text.contains("\n  help: "), "{text}");

    // In a closure that returns diesel's error ours travels inside.
    let error = outbox::transaction(&mut conn, |conn| Ok::<_, DieselError>(swallow(conn)?)).unwrap_err();
    assert!(Error::from(error).is_not_committed());

    // A failure inside a savepoint that was rolled back leaves the rest healthy.
    outbox::transaction(&mut conn, |conn| {
        assert!(conn.transaction(|conn| conn.batch_execute("SELECT 1 / 0")).is_err());
        conn.batch_execute(&order(1))
    })
    .unwrap();
    assert_eq!(committed(&database), (1, 0));

    // Somebody ends it by hand.
    let ended = outbox::transaction(&mut conn, |conn| {
        conn.batch_execute("ROLLBACK")?;
        conn.batch_execute(&order(2))
    });
    assert!(Error::from(ended.unwrap_err()).is_not_committed());
}

#[test]
fn ddl_that_ended_the_transaction_on_mariadb_is_reported() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    database.exec(ORDERS);
    let mut conn = database.mariadb();
    for (n, ddl) in ["CREATE TABLE surprise (id INT)", "CREATE TABLE again (id INT); BEGIN"].into_iter().enumerate() {
        let error = outbox::transaction(&mut conn, |conn| conn.batch_execute(ddl)).unwrap_err();
        assert!(Error::from(error).is_not_committed(), "{ddl}");
        outbox::transaction(&mut conn, |conn| conn.batch_execute(&order(n as i64))).unwrap();
    }
    assert_eq!(committed(&database), (2, 0));
}

/// Two transactions deadlock; the victim swallows the error and goes on. Returns what the two calls returned.
fn deadlock(database: &TestDatabase, session: &str) -> [Result<(), Error>; 2] {
    let both_hold_one = Barrier::new(2);
    let buy = |first: u8, second: u8| {
        let mut conn = database.mariadb();
        conn.batch_execute(session).unwrap();
        let update = |id: u8| format!("UPDATE stock SET n = n + 1 WHERE id = {id}");
        outbox::transaction(&mut conn, |conn| {
            conn.batch_execute(&update(first))?;
            both_hold_one.wait();
            let _ = conn.batch_execute(&update(second));
            // Not through `enqueue`, which would notice by itself.
            conn.batch_execute("INSERT INTO stock VALUES (10, 0) ON DUPLICATE KEY UPDATE n = n + 1")?;
            Ok::<(), Error>(())
        })
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| buy(2, 1));
        [buy(1, 2), other.join().unwrap()]
    })
}

#[test]
fn deadlocks_victim_on_mariadb_is_not_taken_for_a_commit() {
    // Without autocommit the server is in a new transaction at once.
    for session in ["SET autocommit = 1", "SET autocommit = 0"] {
        let database = TestDatabase::with_schema(Kind::Mariadb);
        database.exec("CREATE TABLE stock (id INT PRIMARY KEY, n INT)");
        database.exec("INSERT INTO stock VALUES (1, 0), (2, 0)");
        let results = deadlock(&database, session);
        let lost = results.iter().filter(|result| result.as_ref().is_err_and(Error::is_not_committed)).count();
        let kept = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!((lost, kept), (1, 1), "{session}: {results:?}");
        assert_eq!(database.query_i64("SELECT sum(n) FROM stock WHERE id < 10"), 2, "{session}: the survivor's");
    }
}

#[test]
fn transaction_that_sqlite_rolled_back_by_itself_is_reported() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    database.exec(ORDERS);
    let error = outbox::transaction(&mut database.sqlite(), |conn| {
        conn.batch_execute(&order(1))?;
        assert!(conn.batch_execute("INSERT OR ROLLBACK INTO orders (id) VALUES (1)").is_err());
        conn.batch_execute(&order(2))
    });
    assert!(Error::from(error.unwrap_err()).is_not_committed());
}

async fn proves_its_end_async<C>(database: &TestDatabase, conn: &mut C, ending: &str)
where
    C: AsyncConnection<Backend: OutboxBackend> + 'static,
{
    database.exec(ORDERS);
    aio::transaction(conn, async |conn| {
        conn.batch_execute(&order(1)).await?;
        let inner = aio::transaction(conn, async |conn| {
            conn.batch_execute(&order(2)).await?;
            Err::<(), _>(DieselError::RollbackTransaction)
        });
        assert!(inner.await.is_err());
        aio::enqueue(conn, message()).await
    })
    .await
    .unwrap();
    assert_eq!(committed(database), (1, 1));

    let error = aio::transaction(conn, async |conn| {
        conn.batch_execute(&order(3)).await?;
        Err::<(), _>(DieselError::NotFound)
    });
    assert!(matches!(error.await, Err(DieselError::NotFound)));
    assert_eq!(committed(database), (1, 1));

    let error = aio::transaction(conn, async |conn| {
        let _ = conn.batch_execute(ending).await;
        Ok::<(), Error>(())
    });
    let error = error.await.unwrap_err();
    assert!(error.is_not_committed(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ok_means_committed_over_diesel_async_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = AsyncPgConnection::establish(database.url()).await.unwrap();
    proves_its_end_async(&database, &mut conn, "SELECT 1 / 0").await;
    // A task of a web server can do it, too: compiles only while the future is `Send`.
    let task = tokio::spawn(async move {
        aio::transaction(&mut conn, async |conn| aio::enqueue(conn, message()).await).await.unwrap();
    });
    task.await.unwrap();
    assert_eq!(committed(&database), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ok_means_committed_over_diesel_async_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = AsyncMysqlConnection::establish(database.url()).await.unwrap();
    proves_its_end_async(&database, &mut conn, "CREATE TABLE surprise (id INT)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ok_means_committed_over_diesel_async_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let path = database.path().to_str().unwrap();
    let mut conn = SyncConnectionWrapper::<SqliteConnection>::establish(path).await.unwrap();
    proves_its_end_async(&database, &mut conn, "INSERT OR ROLLBACK INTO orders (id) VALUES (1)").await;
}
