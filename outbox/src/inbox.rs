//! The consumer's side: an effect that happens once, although its message may arrive again.
//!
//! A relay delivers at least once. Whoever receives a message and changes a database because of it writes the message's
//! id into `outbox_inbox` in the same transaction: the first copy does the work, every later one finds the id.
//!
//! Invariants
//! - The row and the effect commit together or not at all.
//! - Of copies that arrive at the same time one does the work; the others wait for how it ends.
//!
//! Absent: a way to forget one message. To have an effect again, send another message.

use std::time::Duration;

use diesel::connection::Connection;
use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::by_hand::Statement;
use crate::by_hand::sql::{back, now_plus};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend, is_in_transaction};
use crate::error::{Error, Refusal};
use crate::transaction::{raise, require_server_transaction, transaction};

/// The most bytes of a consumer's name and of a message id.
const NAME_BYTES_MAX: usize = 255;

/// Runs `effect` unless `consumer` has seen the message already; returns what it returned, or `None` when it had.
///
/// `consumer` names the effect, so that two of them in one database do not take each other's messages. `message_id` is
/// what came as `webhook-id`; both are compared byte by byte.
///
/// Opens a transaction, with the proof of [`transaction`](crate::transaction); inside one of the caller's it is part of
/// that, by a savepoint. When `effect` fails, or the transaction rolls back, the message counts as not seen. A copy that
/// arrives meanwhile waits until then (on SQLite for `busy_timeout`), so keep the network out of `effect`.
///
/// ```
/// # use diesel::prelude::*;
/// # let mut conn = SqliteConnection::establish(":memory:")?;
/// # outbox::migrations::run(&mut conn)?;
/// # let webhook_id = "0192f3c1-0000-7000-8000-000000000000";
/// # let mut book = |_: &mut SqliteConnection| Ok::<_, outbox::Error>(42);
/// assert_eq!(outbox::inbox::once(&mut conn, "ledger", webhook_id, &mut book)?, Some(42));
/// assert_eq!(outbox::inbox::once(&mut conn, "ledger", webhook_id, &mut book)?, None, "the copy");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// What `effect` returns. [`Error::Refused`] for a name or an id that is empty, longer than 255 bytes or contains NUL.
/// [`Error::NotInTransaction`] when the server has ended the caller's transaction. [`Error::Database`] when the database
/// fails, also when it cannot tell whether a copy has committed (a serialization failure, a deadlock): try again.
pub fn once<C, T, E>(
    conn: &mut C,
    consumer: &str,
    message_id: &str,
    effect: impl FnOnce(&mut C) -> Result<T, E>,
) -> Result<Option<T>, E>
where
    C: Connection<Backend: OutboxBackend>,
    E: From<DieselError>,
{
    check(consumer, message_id).map_err(raise)?;
    if is_in_transaction(conn).map_err(raise)? {
        // Otherwise the row would stand although the effect does not.
        require_server_transaction(conn, "inbox::once").map_err(raise)?;
    }
    transaction(conn, |conn| {
        let inserted = insert(<C::Backend as Dialect>::DATABASE, consumer, message_id).execute(conn);
        if is_first(inserted).map_err(raise)? { effect(conn).map(Some) } else { Ok(None) }
    })
}

/// Forgets what was received longer ago than `age`; returns how many messages that were.
///
/// A copy that arrives after its row was purged has its effect again. So let `age` be longer than a relay may go on
/// trying and than people take to send dead letters again: some weeks rather than hours. Run it now and then; it is a
/// DELETE over an index, in a transaction of its own unless one is open.
///
/// # Errors
///
/// [`Error::Database`] when the database fails.
pub fn purge<C>(conn: &mut C, age: Duration) -> Result<usize, Error>
where
    C: Connection<Backend: OutboxBackend>,
{
    delete(<C::Backend as Dialect>::DATABASE, age).execute(conn)
}

pub(crate) fn check(consumer: &str, message_id: &str) -> Result<(), Error> {
    for (what, name) in [("the consumer's name", consumer), ("the message id", message_id)] {
        let problem = if name.is_empty() {
            format!("{what} is empty")
        } else if name.len() > NAME_BYTES_MAX {
            format!("{what} has {} bytes, at most {NAME_BYTES_MAX} are allowed", name.len())
        } else if name.contains('\0') {
            format!("{what} contains a NUL character")
        } else {
            continue;
        };
        return Err(
            Refusal::new(problem, "pass a short name for the effect, and the message id as it was received").into()
        );
    }
    Ok(())
}

pub(crate) fn insert(database: Database, consumer: &str, message_id: &str) -> Statement {
    let insert = Statement::new("-- inbox_insert\nINSERT INTO outbox_inbox (consumer, message_id) VALUES (");
    let insert = insert.text(consumer).sql(", ").text(message_id);
    match database {
        // A violation would end the transaction on PostgreSQL.
        Database::Postgres | Database::Sqlite => insert.sql(") ON CONFLICT (consumer, message_id) DO NOTHING"),
        // Here a violation ends only the statement; IGNORE would hide other errors as well, and the number of rows that
        // ON DUPLICATE KEY UPDATE reports depends on a flag of the connection.
        Database::Mysql => insert.sql(")"),
    }
}

/// True when the row was not there.
pub(crate) fn is_first(inserted: Result<usize, Error>) -> Result<bool, Error> {
    match inserted {
        Ok(rows) => Ok(rows > 0),
        Err(Error::Database(DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _))) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn delete(database: Database, age: Duration) -> Statement {
    let horizon = now_plus(database, back(age));
    Statement::new(format!("-- inbox_purge\nDELETE FROM outbox_inbox WHERE received_at < {horizon}"))
}
