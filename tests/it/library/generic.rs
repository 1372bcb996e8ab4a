//! Code of users that does not know its database, and errors that pass through it.

use diesel::connection::{Connection, LoadConnection, SimpleConnection};
use diesel::result::Error as DieselError;
use diesel::{MultiConnection, MysqlConnection, PgConnection, SqliteConnection};
use outbox::{Envelope, Error, OutboxBackend, Receipt};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use crate::producers::stored::payloads;

/// Business code that is generic over the backend, and returns diesel's error.
fn place_order<C>(conn: &mut C, order: &'static str) -> Result<Receipt, DieselError>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    conn.transaction(|conn| {
        conn.batch_execute("INSERT INTO orders VALUES (1)")?;
        let receipt = outbox::enqueue(conn, Envelope::raw("order.placed", order))?;
        if order == "impossible" {
            return Err(DieselError::RollbackTransaction);
        }
        Ok(receipt)
    })
}

/// The same that returns the library's.
fn place_orders<C>(conn: &mut C, orders: &[&'static str]) -> Result<Vec<Receipt>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    outbox::transaction(conn, |conn| {
        conn.batch_execute("SELECT 1")?;
        outbox::enqueue_all(conn, orders.iter().map(|order| Envelope::raw("order.placed", *order)))
    })
}

fn places<C>(conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    conn.batch_execute("CREATE TABLE orders (id int)").unwrap();
    place_order(conn, "one").unwrap();
    assert!(matches!(place_order(conn, "impossible"), Err(DieselError::RollbackTransaction)));
    place_orders(conn, &["two", "three"]).unwrap();
    // An error of ours that has passed through diesel's is still ours, whole.
    let refused = conn.transaction(|conn| {
        outbox::enqueue(conn, Envelope::raw("no topic", "x"))?;
        Ok::<(), DieselError>(())
    });
    assert!(Error::from(refused.unwrap_err()).is_refused());
}

/// Whichever database it is at run time: match on it and use the connection inside.
#[derive(MultiConnection)]
enum AnyConnection {
    Postgres(PgConnection),
    Mysql(MysqlConnection),
    Sqlite(SqliteConnection),
}

fn enqueue_on_any(conn: &mut AnyConnection, message: Envelope) -> Result<Receipt, Error> {
    match conn {
        AnyConnection::Postgres(conn) => outbox::enqueue(conn, message),
        AnyConnection::Mysql(conn) => outbox::enqueue(conn, message),
        AnyConnection::Sqlite(conn) => outbox::enqueue(conn, message),
    }
}

fn any(database: &TestDatabase) -> AnyConnection {
    match database.kind() {
        Kind::Postgres => AnyConnection::Postgres(database.postgres()),
        Kind::Mariadb => AnyConnection::Mysql(database.mariadb()),
        Kind::Sqlite => AnyConnection::Sqlite(database.sqlite()),
    }
}

async fn generic_code(database: TestDatabase) {
    match database.kind() {
        Kind::Postgres => places(&mut database.postgres()),
        Kind::Mariadb => places(&mut database.mariadb()),
        Kind::Sqlite => places(&mut database.sqlite()),
    }
    // A transaction of the outer connection is seen by the inner one, and so is its absence.
    let mut conn = any(&database);
    assert!(enqueue_on_any(&mut conn, Envelope::raw("order.placed", "x")).unwrap_err().is_not_in_transaction());
    conn.transaction(|conn| enqueue_on_any(conn, Envelope::raw("order.placed", "four"))).unwrap();
    let rolled_back = conn.transaction(|conn| {
        enqueue_on_any(conn, Envelope::raw("order.placed", "five"))?;
        Err::<(), _>(Error::from(DieselError::RollbackTransaction))
    });
    assert!(rolled_back.is_err());
    let expected: [&[u8]; 4] = [b"one", b"two", b"three", b"four"];
    assert_eq!(payloads(&database), expected);
}
for_each_database!(code_that_does_not_know_its_database_enqueues, generic_code);
