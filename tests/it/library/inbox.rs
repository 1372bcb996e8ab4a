//! An effect happens once, however often and from wherever its message arrives.

use std::sync::Barrier;
use std::time::Duration;

use diesel::SqliteConnection;
use diesel::connection::{Connection, SimpleConnection};
use diesel::result::Error as DieselError;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::inbox::{once, purge};
use outbox::{Error, OutboxBackend, aio};
use outbox_tests::database::{Kind, TestDatabase};

const BOOKINGS: &str = "CREATE TABLE bookings (n INTEGER)";
const BOOK: &str = "INSERT INTO bookings VALUES (1)";

fn count(database: &TestDatabase, table: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM {table}"))
}

/// Fails after its effect.
fn fail<C: SimpleConnection>(conn: &mut C) -> Result<(), Error> {
    conn.batch_execute(BOOK)?;
    Err(DieselError::NotFound.into())
}

fn book<C: SimpleConnection>(conn: &mut C) -> Result<(), Error> {
    Ok(conn.batch_execute(BOOK)?)
}

fn happens_once<C>(database: &TestDatabase, connect: impl Fn() -> C + Sync)
where
    C: Connection<Backend: OutboxBackend>,
{
    database.exec(BOOKINGS);
    let conn = &mut connect();

    // The first copy has its effect, the second has none; a failure in between counts as not seen.
    assert!(once(conn, "ledger", "m1", fail).is_err());
    assert_eq!((count(database, "bookings"), count(database, "outbox_inbox")), (0, 0));
    assert_eq!(once(conn, "ledger", "m1", book).unwrap(), Some(()));
    assert_eq!(once(conn, "ledger", "m1", book).unwrap(), None);
    assert_eq!(count(database, "bookings"), 1);

    // Every consumer has its own; names are told apart byte by byte.
    for (consumer, id) in [("mail", "m1"), ("Ledger", "m1"), ("ledger", "M1"), ("ledger", "m1 "), ("ledger", "ḿ1")] {
        assert_eq!(once(conn, consumer, id, book).unwrap(), Some(()), "{consumer} {id:?}");
        assert_eq!(once(conn, consumer, id, book).unwrap(), None, "{consumer} {id:?}");
    }
    assert_eq!((count(database, "bookings"), count(database, "outbox_inbox")), (6, 6));

    // Part of the caller's transaction: swallowing the effect's failure frees the message, a rollback does, too.
    let rolled_back = conn.transaction(|conn| {
        assert!(once(conn, "ledger", "m2", fail).is_err());
        assert_eq!(once(conn, "ledger", "m2", book)?, Some(()));
        assert_eq!(once(conn, "ledger", "m2", book)?, None);
        fail(conn)
    });
    assert!(rolled_back.is_err());
    assert_eq!(once(conn, "ledger", "m2", book).unwrap(), Some(()));

    // Nothing is cut to fit, nothing is written without a name.
    for (consumer, id) in [("", "m"), ("ledger", ""), ("l\0", "m"), ("ledger", &*"m".repeat(256))] {
        assert!(once(conn, consumer, id, book).unwrap_err().is_refused());
    }
    assert_eq!(once(conn, &"ü".repeat(127), &"m".repeat(255), book).unwrap(), Some(()));

    // Copies that arrive together.
    database.exec("DELETE FROM bookings");
    let copies = 6;
    for round in 0..10 {
        let id = format!("race {round}");
        let together = Barrier::new(copies);
        let ran: usize = std::thread::scope(|scope| {
            let copy = || {
                let mut conn = connect();
                together.wait();
                usize::from(once(&mut conn, "ledger", &id, book).unwrap().is_some())
            };
            let threads: Vec<_> = (0..copies).map(|_| scope.spawn(copy)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((ran, count(database, "bookings")), (1, round + 1), "{id}");
    }

    // A copy that waits while the first one fails does the work.
    database.exec("DELETE FROM bookings");
    let is_in_effect = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let failed = once(&mut connect(), "ledger", "m3", |conn| {
                conn.batch_execute(BOOK)?;
                is_in_effect.wait();
                fail(conn)
            });
            assert!(failed.is_err());
        });
        is_in_effect.wait();
        assert_eq!(once(&mut connect(), "ledger", "m3", book).unwrap(), Some(()));
    });
    assert_eq!(count(database, "bookings"), 1);

    // What is old is forgotten, what is young is not.
    let rows = count(database, "outbox_inbox");
    assert_eq!(purge(conn, Duration::from_secs(60)).unwrap(), 0);
    assert_eq!(purge(conn, Duration::MAX).unwrap(), 0);
    let hour_ago = match database.kind() {
        Kind::Postgres => "received_at - interval '1 hour'",
        Kind::Mariadb => "received_at - INTERVAL 1 HOUR",
        Kind::Sqlite => "received_at - 3600000",
    };
    database.exec(&format!("UPDATE outbox_inbox SET received_at = {hour_ago} WHERE message_id <> 'm3'"));
    assert_eq!(purge(conn, Duration::from_secs(60)).unwrap() as i64, rows - 1);
    assert_eq!(once(conn, "ledger", "m3", book).unwrap(), None);
}

#[test]
fn effect_happens_once_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    happens_once(&database, || database.postgres());
}

#[test]
fn effect_happens_once_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    happens_once(&database, || database.mariadb());
}

#[test]
fn effect_happens_once_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    happens_once(&database, || database.sqlite());
}

#[test]
fn message_is_not_marked_as_seen_in_a_transaction_the_server_has_ended() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    database.exec(BOOKINGS);
    let lost = database.mariadb().transaction(|conn| {
        conn.batch_execute("CREATE TABLE surprise (id INT)")?;
        assert!(once(conn, "ledger", "m1", book).unwrap_err().is_not_in_transaction());
        Err::<(), _>(Error::from(DieselError::RollbackTransaction))
    });
    assert!(lost.is_err());
    assert_eq!((count(&database, "bookings"), count(&database, "outbox_inbox")), (0, 0));
}

async fn happens_once_async<C>(database: &TestDatabase, mut first: C, mut second: C)
where
    C: AsyncConnection<Backend: OutboxBackend> + 'static,
{
    database.exec(BOOKINGS);
    let failed = aio::inbox::once(&mut first, "ledger", "m1", async |conn| {
        conn.batch_execute(BOOK).await?;
        Err::<(), _>(DieselError::NotFound)
    });
    assert!(matches!(failed.await, Err(DieselError::NotFound)));
    async fn copy<C: AsyncConnection<Backend: OutboxBackend>>(conn: &mut C) -> Option<()> {
        let booked = aio::inbox::once(conn, "ledger", "m1", async |conn| conn.batch_execute(BOOK).await);
        booked.await.unwrap()
    }
    let (one, other) = tokio::join!(copy(&mut first), copy(&mut second));
    assert!(one.is_some() != other.is_some(), "{one:?} {other:?}");
    assert_eq!((count(database, "bookings"), count(database, "outbox_inbox")), (1, 1));
    let nested = first.transaction(async |conn| {
        aio::inbox::once(conn, "ledger", "m1", async |conn| conn.batch_execute(BOOK).await).await
    });
    assert_eq!(nested.await.unwrap(), None);
    assert_eq!(aio::inbox::purge(&mut first, Duration::from_secs(60)).await.unwrap(), 0);
    assert_eq!(aio::inbox::purge(&mut first, Duration::ZERO).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effect_happens_once_over_diesel_async_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let connect = async || AsyncPgConnection::establish(database.url()).await.unwrap();
    happens_once_async(&database, connect().await, connect().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effect_happens_once_over_diesel_async_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let connect = async || AsyncMysqlConnection::establish(database.url()).await.unwrap();
    happens_once_async(&database, connect().await, connect().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effect_happens_once_over_diesel_async_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let connect = async || {
        let path = database.path().to_str().unwrap();
        let mut conn = SyncConnectionWrapper::<SqliteConnection>::establish(path).await.unwrap();
        diesel_async::SimpleAsyncConnection::batch_execute(&mut conn, "PRAGMA busy_timeout = 10000").await.unwrap();
        conn
    };
    happens_once_async(&database, connect().await, connect().await).await;
}
