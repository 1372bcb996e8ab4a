//! Taking a message back.
//!
//! Invariants
//! - What is removed is removed as part of the caller's transaction: a rollback brings everything back.
//! - The partition row is locked first, as for every change beside the relay, so that a settle never happens half way
//!   between. A settle moves rows by reading the ones it deletes, so nothing that is removed here comes back.
//! - Afterwards the first in-order delivery of each key that was touched is unblocked, unless a dead letter blocks it.

use diesel::connection::LoadConnection;
use uuid::Uuid;

use crate::by_hand::sql::{current_read, locked_rows, text, uuid_literal};
use crate::by_hand::{Statement, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::enqueue::require_transaction;
use crate::error::Error;
use crate::transaction::require_server_transaction;

/// Takes back a message that was not delivered yet; returns whether there was something to take back.
///
/// Part of the transaction that is open on `conn`. `false` means that it was delivered, given up, cancelled before, or
/// never committed. `true` means that it is not attempted again once the transaction has committed. **It may have been
/// delivered all the same**: a relay that has it in hands finishes its attempt, and with several destinations some may
/// have it already. Dead letters stay; see [`dead_letters::discard`](crate::dead_letters::discard). A dedup key stays
/// taken until the end of its window.
///
/// Holds the lock of the message's partition until the transaction ends, and relays wait for it: cancel last, and commit
/// soon. A message that does not wait for a retry is looked for among all pending ones, which are few while a relay keeps
/// up. Needs SELECT and DELETE on `outbox_messages`, besides these UPDATE on `outbox_deliveries` and `outbox_partitions`,
/// and SELECT on `outbox_dead_letters` (UPDATE, too, on PostgreSQL, MariaDB and MySQL, for its locks).
///
/// ```
/// # use diesel::prelude::*;
/// # let mut conn = SqliteConnection::establish(":memory:")?;
/// # outbox::migrations::run(&mut conn)?;
/// let reminder = outbox::Envelope::raw("cart.forgotten", "1").delay(std::time::Duration::from_secs(3600));
/// let receipt = outbox::transaction(&mut conn, |conn| outbox::enqueue(conn, reminder))?;
/// // The customer came back.
/// assert!(outbox::transaction(&mut conn, |conn| outbox::cancel(conn, receipt.message_id))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::NotInTransaction`] outside a transaction. [`Error::Database`] when the database fails; a deadlock between
/// several cancels and a relay is one of these failures.
pub fn cancel<C>(conn: &mut C, message_id: Uuid) -> Result<bool, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let removed = remove(conn, message_id, None)?;
    Ok(removed.pending + removed.waiting > 0)
}

/// How many rows went.
#[derive(Default)]
pub(crate) struct Removed {
    pub(crate) pending: usize,
    pub(crate) waiting: usize,
}

/// Removes the message. With its number a pending one is found at once.
pub(crate) fn remove<C>(conn: &mut C, message_id: Uuid, seq: Option<i64>) -> Result<Removed, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    require_transaction(conn)?;
    // Otherwise the message would be gone although the caller's reason for it is rolled back.
    require_server_transaction(conn)?;
    let database = <C::Backend as Dialect>::DATABASE;
    let id = uuid_literal(database, message_id);
    if database == Database::Sqlite {
        // The first statement writes, so it waits for the write lock before anything is read.
        Statement::new("-- write_lock\nDELETE FROM outbox_deliveries WHERE id IS NULL").execute(conn)?;
    }
    let Some(place) = find(conn, database, &id, seq)? else { return Ok(Removed::default()) };
    let (lock, partition) = (current_read(database), place.partition);
    let column = text(database, "partition_no");
    Statement::new(format!(
        "-- partition_lock\nSELECT {column} FROM outbox_partitions WHERE partition_no = {partition}{lock}"
    ))
    .load(conn)?;
    // Between the search and the lock it may have moved from the one table to the other.
    let mut removed = Removed::default();
    if let Some(seq) = place.seq {
        let delete = format!("-- message_cancel\nDELETE FROM outbox_messages WHERE seq = {seq} AND id = {id}");
        removed.pending = Statement::new(delete).execute(conn)?;
    }
    removed.waiting = remove_waiting(conn, database, &id)?;
    Ok(removed)
}

/// Where a message is.
struct Place {
    partition: i64,
    /// Its number, while it is pending.
    seq: Option<i64>,
}

fn find<C>(conn: &mut C, database: Database, id: &str, number: Option<i64>) -> Result<Option<Place>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    if let Some(partition) = find_waiting(conn, database, id)? {
        return Ok(Some(Place { partition, seq: None }));
    }
    let (partition, seq) = (text(database, "partition_no"), text(database, "seq"));
    let both = match database {
        Database::Mysql => format!("concat({partition}, ' ', {seq})"),
        Database::Postgres | Database::Sqlite => format!("{partition} || ' ' || {seq}"),
    };
    let by_number = number.map_or_else(String::new, |number| format!(" AND seq = {number}"));
    let select = format!("-- message_find\nSELECT {both} FROM outbox_messages WHERE id = {id}{by_number}");
    if let Some(both) = Statement::new(select).load(conn)?.first() {
        let mut numbers = both.split(' ').map(|number| number.parse().map_err(unreadable));
        if let (Some(partition), Some(seq)) = (numbers.next().transpose()?, numbers.next().transpose()?) {
            return Ok(Some(Place { partition, seq: Some(seq) }));
        }
    }
    // It may have moved after the first look.
    Ok(find_waiting(conn, database, id)?.map(|partition| Place { partition, seq: None }))
}

fn find_waiting<C>(conn: &mut C, database: Database, id: &str) -> Result<Option<i64>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let partition = text(database, "partition_no");
    let select = format!("-- delivery_find\nSELECT {partition} FROM outbox_deliveries WHERE message_id = {id} LIMIT 1");
    Ok(Statement::new(select).load_numbers(conn)?.first().copied())
}

/// Removes the deliveries that wait, and lets the next of each key go on.
fn remove_waiting<C>(conn: &mut C, database: Database, id: &str) -> Result<usize, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let column = text(database, "id");
    let lock = current_read(database);
    let select = format!("-- delivery_lock\nSELECT {column} FROM outbox_deliveries WHERE message_id = {id}{lock}");
    let waiting = Statement::new(select).load_numbers(conn)?;
    let mut next = Vec::new();
    for waiting in &waiting {
        // While the rows still name their keys.
        if !Statement::new(key_blockers(database, *waiting)).load(conn)?.is_empty() {
            continue;
        }
        next.extend(Statement::new(key_next(database, *waiting, id)).load_numbers(conn)?);
    }
    if !waiting.is_empty() {
        let delete = format!("-- delivery_cancel\nDELETE FROM outbox_deliveries WHERE message_id = {id}");
        Statement::new(delete).execute(conn)?;
    }
    for next in next {
        Statement::new(format!(
            "-- key_unblock\nUPDATE outbox_deliveries SET state = CASE WHEN state = 'blocked' THEN 'retry' ELSE state END, \
             blocked = false WHERE id = {next} AND blocked"
        ))
        .execute(conn)?;
    }
    Ok(waiting.len())
}

/// The first in-order delivery of the same key that is not of the same message.
fn key_next(database: Database, waiting: i64, message: &str) -> String {
    format!(
        "-- key_first\nSELECT {} FROM outbox_deliveries d JOIN outbox_deliveries w \
         ON d.destination = w.destination AND d.ordering_key = w.ordering_key \
         WHERE w.id = {waiting} AND w.in_order AND d.in_order AND d.message_id <> {message} \
         ORDER BY d.seq, d.id LIMIT 1{}",
        text(database, "d.id"),
        locked_rows(database, "d"),
    )
}

/// A dead letter that blocks the key.
fn key_blockers(database: Database, waiting: i64) -> String {
    format!(
        "-- key_blockers\nSELECT {} FROM outbox_dead_letters l JOIN outbox_deliveries w \
         ON l.destination = w.destination AND l.ordering_key = w.ordering_key \
         WHERE w.id = {waiting} AND l.blocks_key LIMIT 1{}",
        text(database, "l.id"),
        locked_rows(database, "l"),
    )
}
