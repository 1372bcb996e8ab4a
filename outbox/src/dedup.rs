//! One message for one dedup key.
//!
//! A message with a [`dedup_key`](crate::Envelope::dedup_key) first claims (topic, key) in `outbox_dedup_keys`, in the
//! same transaction. Whoever finds the key taken waits until its owner has committed or rolled back, and enqueues nothing
//! when it committed.
//!
//! Invariants
//! - A claim commits if and only if its message does; a claim without a message would swallow every later one.
//! - Keys are compared byte by byte, and never shortened: no `INSERT IGNORE`.
//! - Claims of one call are made in the order of their keys, so that two such calls do not deadlock.

use std::time::Duration;

use diesel::connection::Connection;
use uuid::Uuid;

use crate::by_hand::sql::{current_read, now_plus, uuid, uuid_literal};
use crate::by_hand::{Statement, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::enqueue::Receipt;
use crate::error::{Error, Refusal};
use crate::insert::Row;
use crate::limits::KEY_BYTES_MAX;

/// How long a key is taken, unless [`dedup_window`](crate::Envelope::dedup_window) says otherwise: a day.
pub const WINDOW_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// Forgets the keys whose window has passed; returns how many that were.
///
/// They are free anyway; this only keeps the table small. Run it now and then.
///
/// # Errors
///
/// [`Error::Database`] when the database fails.
pub fn purge<C>(conn: &mut C) -> Result<usize, Error>
where
    C: Connection<Backend: OutboxBackend>,
{
    delete(<C::Backend as Dialect>::DATABASE).execute(conn)
}

pub(crate) fn delete(database: Database) -> Statement {
    let now = now_plus(database, 0);
    Statement::new(format!("-- dedup_purge\nDELETE FROM outbox_dedup_keys WHERE expires_at <= {now}"))
}

pub(crate) fn check_key(key: &str) -> Result<(), Refusal> {
    let problem = if key.is_empty() {
        "the dedup key is empty".to_owned()
    } else if key.len() > KEY_BYTES_MAX {
        format!("the dedup key has {} bytes, at most {KEY_BYTES_MAX} are allowed", key.len())
    } else if key.contains('\0') {
        "the dedup key contains a NUL character".to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::new(problem, "use what makes the message unique, such as an order's number, or a hash of it"))
}

/// The rows that claim a key, in the order in which they do.
pub(crate) fn order(rows: &[Row]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|n| rows[*n].dedup_key.is_some()).collect();
    let name = |n: &usize| (&*rows[*n].topic, &rows[*n].dedup_key);
    // Stable: of the same key the first message is the one that is sent.
    order.sort_by(|a, b| name(a).cmp(&name(b)));
    order
}

/// Claims the key, or leaves it to whom it belongs, and holds it in either case until the transaction ends.
pub(crate) fn claim(database: Database, row: &Row) -> Statement {
    let (id, now, end) =
        (uuid_literal(database, row.id), now_plus(database, 0), now_plus(database, row.dedup_window_ms));
    let insert = "-- dedup_claim\nINSERT INTO outbox_dedup_keys (topic, dedup_key, message_id, expires_at) VALUES (";
    let insert = Statement::new(insert)
        .text(&row.topic)
        .sql(", ")
        .text(row.dedup_key.as_deref().unwrap_or_default())
        .sql(format!(", {id}, {end})"));
    insert.sql(match database {
        Database::Postgres | Database::Sqlite => format!(
            " ON CONFLICT (topic, dedup_key) DO UPDATE SET message_id = excluded.message_id, \
             expires_at = excluded.expires_at WHERE outbox_dedup_keys.expires_at <= {now}"
        ),
        // Assigned from left to right, each seeing what those before it assigned: the expiry must be the last.
        Database::Mysql => format!(
            " ON DUPLICATE KEY UPDATE message_id = IF(expires_at <= {now}, VALUES(message_id), message_id), \
             expires_at = IF(expires_at <= {now}, VALUES(expires_at), expires_at)"
        ),
    })
}

/// Reads to which message the key belongs.
pub(crate) fn owner(database: Database, row: &Row) -> Statement {
    let id = uuid(database, "message_id");
    Statement::new(format!("-- dedup_owner\nSELECT {id} FROM outbox_dedup_keys WHERE topic = "))
        .text(&row.topic)
        .sql(" AND dedup_key = ")
        .text(row.dedup_key.as_deref().unwrap_or_default())
        .sql(current_read(database))
}

/// The message the key belongs to, when that is another one than the row's.
pub(crate) fn first(row: &Row, owner: &[String]) -> Result<Option<Uuid>, Error> {
    let Some(owner) = owner.first() else {
        return Err(Error::Database(diesel::result::Error::NotFound));
    };
    let owner = Uuid::parse_str(owner).map_err(unreadable)?;
    Ok(Some(owner).filter(|owner| *owner != row.id))
}

/// The rows that are written: those that are no duplicates.
pub(crate) fn winners(rows: Vec<Row>, receipts: &[Receipt]) -> Vec<Row> {
    rows.into_iter().zip(receipts).filter(|(_, receipt)| !receipt.is_duplicate()).map(|(row, _)| row).collect()
}

/// Who answers for the transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Library,
    Caller,
}

/// Set before the claims, so that a caller who goes on after an error does not commit a claim without its message.
///
/// On PostgreSQL a failed statement takes the transaction with it; there it is only the proof that one is open.
pub(crate) fn savepoint(database: Database, by: By) -> Option<&'static str> {
    (database != Database::Postgres || by == By::Caller).then_some("SAVEPOINT outbox_dedup")
}

/// Ends the savepoint.
pub(crate) fn savepoint_end(is_ok: bool) -> &'static str {
    if is_ok {
        "RELEASE SAVEPOINT outbox_dedup"
    } else {
        "ROLLBACK TO SAVEPOINT outbox_dedup; RELEASE SAVEPOINT outbox_dedup"
    }
}
