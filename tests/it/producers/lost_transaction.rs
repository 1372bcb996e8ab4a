//! MariaDB ends transactions behind diesel's back. A message enqueued after that must not commit on its own.

use std::sync::Barrier;

use diesel::connection::{Connection, SimpleConnection};
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, SimpleAsyncConnection};
use outbox::{Envelope, Error, aio};
use outbox_tests::database::{Kind, TestDatabase};

use super::stored::payloads;

fn message(payload: &str) -> Envelope {
    Envelope::raw("some.topic", payload)
}

/// Rolls back without hiding what happened before.
fn roll_back<T>() -> Result<T, Error> {
    Err(DieselError::RollbackTransaction.into())
}

#[test]
fn enqueue_after_ddl_has_committed_the_transaction_is_refused() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = database.mariadb();
    let lost = conn.transaction(|conn| {
        outbox::enqueue(conn, message("committed by the DDL"))?;
        conn.batch_execute("CREATE TABLE surprise (id INT)")?;
        assert!(outbox::enqueue(conn, message("lost")).unwrap_err().is_not_in_transaction());
        assert!(outbox::enqueue_all(conn, [message("lost"), message("lost")]).unwrap_err().is_not_in_transaction());
        roll_back::<()>()
    });
    assert!(lost.is_err());
    assert_eq!(payloads(&database), [b"committed by the DDL"]);

    // The prepared statement asks anew each time.
    conn.transaction(|conn| outbox::enqueue(conn, message("next"))).unwrap();
    assert_eq!(payloads(&database).len(), 2);
}

#[test]
fn loose_sql_mode_does_not_let_a_lost_transaction_pass() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = database.mariadb();
    conn.batch_execute("SET SESSION sql_mode = ''").unwrap();
    let lost = conn.transaction(|conn| {
        conn.batch_execute("CREATE TABLE surprise (id INT)")?;
        assert!(outbox::enqueue(conn, message("lost")).unwrap_err().is_not_in_transaction());
        assert!(outbox::enqueue_all(conn, [message("lost"), message("lost")]).unwrap_err().is_not_in_transaction());
        roll_back::<()>()
    });
    assert!(lost.is_err());
    assert!(payloads(&database).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enqueue_after_ddl_is_refused_over_diesel_async_too() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = AsyncMysqlConnection::establish(database.url()).await.unwrap();
    let lost = conn
        .transaction(async |conn| {
            aio::enqueue(conn, message("committed by the DDL")).await?;
            conn.batch_execute("CREATE TABLE surprise (id INT)").await?;
            assert!(aio::enqueue(conn, message("lost")).await.unwrap_err().is_not_in_transaction());
            let many = aio::enqueue_all(conn, [message("lost"), message("lost")]).await;
            assert!(many.unwrap_err().is_not_in_transaction());
            roll_back::<()>()
        })
        .await;
    assert!(lost.is_err());
    assert_eq!(payloads(&database), [b"committed by the DDL"]);
}

#[test]
fn enqueue_of_a_deadlocks_victim_that_goes_on_is_refused() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    database.exec("CREATE TABLE stock (id INT PRIMARY KEY, n INT)");
    database.exec("INSERT INTO stock VALUES (1, 0), (2, 0)");
    let both_hold_one = Barrier::new(2);
    // Each takes one row, then wants the other's.
    let buy = |first: u8, second: u8| -> bool {
        let mut conn = database.mariadb();
        let update = |id: u8| format!("UPDATE stock SET n = n + 1 WHERE id = {id}");
        let mut is_victim = false;
        let result = conn.transaction(|conn| {
            conn.batch_execute(&update(first))?;
            outbox::enqueue(conn, message("before"))?;
            both_hold_one.wait();
            match conn.batch_execute(&update(second)) {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.to_string().contains("Deadlock"), "{error}");
                    is_victim = true;
                }
            }
            // The victim swallows the error, which is what the check is for.
            outbox::enqueue(conn, message("after"))
        });
        match result {
            Ok(_) => assert!(!is_victim, "the victim's message was accepted"),
            Err(error) => assert!(is_victim && error.is_not_in_transaction(), "{error}"),
        }
        is_victim
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| buy(2, 1));
        (buy(1, 2), other.join().unwrap())
    });
    assert!(one != other, "exactly one is the victim");
    assert_eq!(payloads(&database), [&b"before"[..], b"after"], "the survivor's only");
}

#[test]
fn postgres_refuses_by_itself_what_follows_an_error() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = database.postgres();
    let failed = conn.transaction(|conn| {
        outbox::enqueue(conn, message("before"))?;
        assert!(conn.batch_execute("SELECT 1 / 0").is_err());
        assert!(outbox::enqueue(conn, message("after")).is_err());
        roll_back::<()>()
    });
    assert!(failed.is_err());
    assert!(payloads(&database).is_empty());
}

/// What the library does for MySQL 8, which has no `@@in_transaction`. The servers agree about savepoints; that MySQL 8
/// does, too, is not tried here.
#[test]
fn released_savepoint_tells_whether_a_transaction_is_open() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = database.mariadb();
    let probe = "SAVEPOINT outbox_probe; RELEASE SAVEPOINT outbox_probe";
    let error = conn.batch_execute(probe).unwrap_err().to_string();
    assert!(error.contains("SAVEPOINT outbox_probe"), "{error}");
    conn.transaction(|conn| conn.batch_execute(probe)).unwrap();
}
