//! Taking a message back.
//!
//! Invariants
//! - What is removed is removed as part of the caller's transaction: a rollback brings everything back.
//! - The partition row is locked first, as for every change beside the relay, so that a settle never happens half way
//!   between. A settle moves rows by reading the ones it deletes, so nothing that is removed here comes back.
//! - Afterwards the first in-order delivery of each key that was touched is unblocked, unless a dead letter blocks it.
//! - That is decided by what is committed. PostgreSQL answers a transaction that began before some of it with a
//!   serialization failure: whoever adds a row that a key goes by makes a new version of the partition's row. MariaDB
//!   and MySQL read locked rows as they are now, and SQLite writes in no older state.

use diesel::connection::LoadConnection;

use crate::by_hand::ask::{self, Ask, Blocking};
use crate::by_hand::sql::{current_read, locked_rows, text, uuid_literal};
use crate::by_hand::{Statement, unreadable};
use crate::connection::{Database, OutboxBackend};
use crate::enqueue::require_transaction;
use crate::error::Error;
use crate::messages::search::{self, Range};
use crate::messages::{LOOKED_AT, MessageRef};
use crate::transaction::require_server_transaction;

/// Takes back a message that was not delivered yet; returns whether there was something to take back.
///
/// Part of the transaction that is open on `conn`. `false` means that it was delivered, given up, cancelled before, or
/// never committed. `true` means that it is not attempted again once the transaction has committed. **It may have been
/// delivered all the same**: a relay that has it in hands finishes its attempt, and with several destinations some may
/// have it already, or be tried again until the first attempts at the others have ended. Dead letters stay; see [`dead_letters::discard`](crate::dead_letters::discard). A dedup key stays
/// taken until the end of its window.
///
/// Holds the lock of the message's partition until the transaction ends, and relays wait for it: cancel last, and commit
/// soon. `message` is an id, a [`Receipt`](crate::Receipt), or an id with its number, by which a pending message is found
/// at once. By the id it is found by its place in time, among 200 000 numbers around it and the 100 000 oldest messages.
///
/// Needs SELECT and DELETE on `outbox_messages`, besides these UPDATE on `outbox_deliveries` and `outbox_partitions`, and
/// SELECT on `outbox_dead_letters` (UPDATE, too, on PostgreSQL, MariaDB and MySQL, for its locks).
///
/// ```
/// # use diesel::prelude::*;
/// # let mut conn = SqliteConnection::establish(":memory:")?;
/// # outbox::migrations::run(&mut conn)?;
/// let reminder = outbox::Envelope::raw("cart.forgotten", "1").delay(std::time::Duration::from_secs(3600));
/// let receipt = outbox::transaction(&mut conn, |conn| outbox::enqueue(conn, reminder))?;
/// // The customer came back.
/// assert!(outbox::transaction(&mut conn, |conn| outbox::cancel(conn, &receipt))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::NotInTransaction`] outside a transaction. [`Error::NotLookedAtAll`] when there are so many pending messages
/// that it may be one of those that were not looked at. [`Error::Database`] when the database fails; a deadlock between
/// several cancels and a relay is one of these failures. So is what PostgreSQL says at REPEATABLE READ and SERIALIZABLE
/// when a relay has written about the message or its key since the transaction began: a serialization failure (SQLSTATE
/// 40001, [`SerializationFailure`](diesel::result::DatabaseErrorKind::SerializationFailure)), after which the transaction
/// is to be repeated, as any other at these levels. MariaDB says the same with its error 1020 where
/// `innodb_snapshot_isolation` is on, as it is from 11.6.
pub fn cancel<C>(conn: &mut C, message: impl Into<MessageRef>) -> Result<bool, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let removed = remove(conn, message)?;
    Ok(removed.pending + removed.waiting > 0)
}

/// How many rows went.
#[derive(Default)]
pub(crate) struct Removed {
    pub(crate) pending: usize,
    pub(crate) waiting: usize,
}

/// Removes the message. With its number a pending one is found at once.
pub(crate) fn remove<C>(conn: &mut C, message: impl Into<MessageRef>) -> Result<Removed, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    require_transaction(conn, CALL)?;
    // Otherwise the message would be gone although the caller's reason for it is rolled back.
    require_server_transaction(conn, CALL)?;
    ask::now(take_back(&mut Blocking(conn), message.into()))
}

/// How the function is called in errors.
pub(crate) const CALL: &str = "cancel";

/// All of it but the question whether there is a transaction.
pub(crate) async fn take_back<A: Ask>(ask: &mut A, message: MessageRef) -> Result<Removed, Error> {
    let id = uuid_literal(A::DATABASE, message.id);
    if A::DATABASE == Database::Sqlite {
        // The first statement writes, so it waits for the write lock before anything is read.
        ask.execute(Statement::new("-- write_lock\nDELETE FROM outbox_deliveries WHERE id IS NULL")).await?;
    }
    let Some(place) = find(ask, message, &id).await? else { return Ok(Removed::default()) };
    let (lock, partition) = (current_read(A::DATABASE), place.partition);
    let column = text(A::DATABASE, "partition_no");
    ask.load(Statement::new(format!(
        "-- partition_lock\nSELECT {column} FROM outbox_partitions WHERE partition_no = {partition}{lock}"
    )))
    .await?;
    // Between the search and the lock it may have moved from the one table to the other.
    let mut removed = Removed::default();
    if let Some(seq) = place.seq {
        let delete = format!("-- message_cancel\nDELETE FROM outbox_messages WHERE seq = {seq} AND id = {id}");
        removed.pending = ask.execute(Statement::new(delete)).await?;
    }
    removed.waiting = remove_waiting(ask, &id).await?;
    Ok(removed)
}

/// Where a message is.
struct Place {
    partition: i64,
    /// Its number, while it is pending.
    seq: Option<i64>,
}

async fn find<A: Ask>(ask: &mut A, message: MessageRef, id: &str) -> Result<Option<Place>, Error> {
    if let Some(partition) = find_waiting(ask, id).await? {
        return Ok(Some(Place { partition, seq: None }));
    }
    let range = match message.seq {
        Some(seq) => Range { which: format!("seq = {seq}"), is_all: true },
        None => search::range(ask, message.id, LOOKED_AT).await?,
    };
    let (partition, seq) = (text(A::DATABASE, "partition_no"), text(A::DATABASE, "seq"));
    let both = match A::DATABASE {
        Database::Mysql => format!("concat({partition}, ' ', {seq})"),
        Database::Postgres | Database::Sqlite => format!("{partition} || ' ' || {seq}"),
    };
    let select = format!("-- message_find\nSELECT {both} FROM outbox_messages WHERE {} AND id = {id}", range.which);
    if let Some(both) = ask.load(Statement::new(select)).await?.first() {
        let mut numbers = both.split(' ').map(|number| number.parse().map_err(unreadable));
        if let (Some(partition), Some(seq)) = (numbers.next().transpose()?, numbers.next().transpose()?) {
            return Ok(Some(Place { partition, seq: Some(seq) }));
        }
    }
    // It may have moved after the first look.
    match find_waiting(ask, id).await? {
        Some(partition) => Ok(Some(Place { partition, seq: None })),
        None if range.is_all => Ok(None),
        None => Err(Error::NotLookedAtAll { looked_at: LOOKED_AT }),
    }
}

async fn find_waiting<A: Ask>(ask: &mut A, id: &str) -> Result<Option<i64>, Error> {
    let partition = text(A::DATABASE, "partition_no");
    let select = format!("-- delivery_find\nSELECT {partition} FROM outbox_deliveries WHERE message_id = {id} LIMIT 1");
    Ok(numbers(&ask.load(Statement::new(select)).await?)?.first().copied())
}

/// Removes the deliveries that wait, and lets the next of each key go on.
async fn remove_waiting<A: Ask>(ask: &mut A, id: &str) -> Result<usize, Error> {
    let column = text(A::DATABASE, "id");
    let lock = current_read(A::DATABASE);
    let select = format!("-- delivery_lock\nSELECT {column} FROM outbox_deliveries WHERE message_id = {id}{lock}");
    let waiting = numbers(&ask.load(Statement::new(select)).await?)?;
    let mut next = Vec::new();
    for waiting in &waiting {
        // While the rows still name their keys.
        if !ask.load(Statement::new(key_blockers(A::DATABASE, *waiting))).await?.is_empty() {
            continue;
        }
        next.extend(numbers(&ask.load(Statement::new(key_next(A::DATABASE, *waiting, id))).await?)?);
    }
    if !waiting.is_empty() {
        let delete = format!("-- delivery_cancel\nDELETE FROM outbox_deliveries WHERE message_id = {id}");
        ask.execute(Statement::new(delete)).await?;
    }
    for next in next {
        ask.execute(Statement::new(format!(
            "-- key_unblock\nUPDATE outbox_deliveries SET state = CASE WHEN state = 'blocked' THEN 'retry' ELSE state END, \
             blocked = false WHERE id = {next} AND blocked"
        )))
        .await?;
    }
    Ok(waiting.len())
}

fn numbers(texts: &[String]) -> Result<Vec<i64>, Error> {
    texts.iter().map(|text| text.parse().map_err(unreadable)).collect()
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
