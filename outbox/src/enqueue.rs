//! Putting messages into the outbox, over diesel's own connections.
//!
//! Knows the caller's connection and one insert. Everything about a message is checked before anything is written.

use diesel::RunQueryDsl;
use diesel::connection::{Connection, LoadConnection, TransactionManager};
use diesel::result::Error as DieselError;
use uuid::Uuid;

use crate::connection::sealed::{Dialect, Judgement};
use crate::connection::{OutboxBackend, transaction_depth};
use crate::dedup::{self, By};
use crate::envelope::IntoEnvelope;
use crate::error::Error;
use crate::insert::{ByCaller, ByProbe, ByStatement, Form, MessageInsert, MessageInsertMany, Row, Work, works};
use crate::testing::Strict;
use crate::transaction::require_server_transaction;

/// What is known of a message once it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The message id; receivers see it as `webhook-id`.
    ///
    /// Of a [duplicate](Receipt::is_duplicate), the id of the message that was enqueued first.
    pub message_id: Uuid,
    is_duplicate: bool,
}

impl Receipt {
    pub(crate) fn of(row: &Row) -> Receipt {
        Receipt { message_id: row.id, is_duplicate: false }
    }

    pub(crate) fn of_duplicate(first: Uuid) -> Receipt {
        Receipt { message_id: first, is_duplicate: true }
    }

    /// True when nothing was enqueued, because a message with the same dedup key had been.
    pub fn is_duplicate(&self) -> bool {
        self.is_duplicate
    }
}

/// Puts a message into the outbox, as part of the transaction that is open on `conn`.
///
/// The message is delivered if and only if that transaction commits. Takes `&message` or an
/// [`Envelope`](crate::Envelope).
///
/// # Errors
///
/// [`Error::NotInTransaction`] outside a transaction, [`Error::Refused`] or [`Error::Serialize`] for a message that can
/// never be sent, [`Error::Database`] when the database fails. In each case nothing was written.
pub fn enqueue<C>(conn: &mut C, message: impl IntoEnvelope) -> Result<Receipt, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    require_transaction(conn, "enqueue")?;
    let row = message.into_envelope().into_row()?;
    if row.dedup_key.is_some() {
        return write_claimed(conn, vec![row], By::Library, "enqueue").map(only);
    }
    let receipt = Receipt::of(&row);
    write(conn, &Work::One(row), "enqueue")?;
    Ok(receipt)
}

/// Puts many messages into the outbox with one statement, in their order.
///
/// Only where a database limits the size of a statement (the number of binds on MariaDB, MySQL and SQLite, bytes on
/// the servers), more of them are sent. A message that is refused refuses all.
/// Of messages with the same dedup key the first is sent.
///
/// # Errors
///
/// As [`enqueue`]. When a later one of several statements fails, the earlier ones are part of the transaction:
/// return the error, so that it rolls back.
pub fn enqueue_all<C, I>(conn: &mut C, messages: I) -> Result<Vec<Receipt>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
    I: IntoIterator<Item: IntoEnvelope>,
{
    require_transaction(conn, "enqueue_all")?;
    let rows = collect(messages)?;
    if rows.iter().any(|row| row.dedup_key.is_some()) {
        return write_claimed(conn, rows, By::Library, "enqueue_all");
    }
    let receipts = rows.iter().map(Receipt::of).collect();
    for work in works::<C::Backend>(rows) {
        write(conn, &work, "enqueue_all")?;
    }
    Ok(receipts)
}

/// Puts a message into the outbox without asking whether a transaction is open.
///
/// For those who open transactions without diesel's knowledge, as with a plain `BEGIN`. Without any transaction the
/// message is committed on its own, whatever becomes of the business data.
///
/// # Errors
///
/// As [`enqueue`]; not [`Error::NotInTransaction`]. Only a message with a dedup key is refused by the servers outside a transaction,
/// because it takes several statements.
pub fn enqueue_unchecked<C>(conn: &mut C, message: impl IntoEnvelope) -> Result<Receipt, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let row = message.into_envelope().into_row()?;
    if row.dedup_key.is_some() {
        return write_claimed(conn, vec![row], By::Caller, "enqueue_unchecked").map(only);
    }
    let receipt = Receipt::of(&row);
    execute::<C, ByCaller>(conn, &Work::One(row))?;
    Ok(receipt)
}

/// Claims the dedup keys and writes the messages whose key was free, both or neither.
fn write_claimed<C>(conn: &mut C, rows: Vec<Row>, by: By, call: &'static str) -> Result<Vec<Receipt>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    // A claim that commits on its own would swallow messages.
    require_server_transaction(conn, call)?;
    let savepoint = dedup::savepoint(<C::Backend as Dialect>::DATABASE, by);
    if let Some(savepoint) = savepoint {
        conn.batch_execute(savepoint)?;
    }
    let outcome = claim_and_write(conn, rows, by, call);
    if savepoint.is_some() {
        let ended = conn.batch_execute(dedup::savepoint_end(outcome.is_ok()));
        // After a failure that took the savepoint with it, the failure is what matters.
        if outcome.is_ok() {
            ended?;
        }
    }
    outcome
}

fn claim_and_write<C>(conn: &mut C, rows: Vec<Row>, by: By, call: &'static str) -> Result<Vec<Receipt>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let mut receipts: Vec<Receipt> = rows.iter().map(Receipt::of).collect();
    for n in dedup::order(&rows) {
        let row = &rows[n];
        dedup::claim(database, row).execute(conn)?;
        let owner = dedup::owner(database, row).load(conn)?;
        if let Some(first) = dedup::first(row, &owner)? {
            receipts[n] = Receipt::of_duplicate(first);
        }
    }
    for work in works::<C::Backend>(dedup::winners(rows, &receipts)) {
        match by {
            By::Library => write(conn, &work, call)?,
            By::Caller => execute::<C, ByCaller>(conn, &work)?,
        }
    }
    Ok(receipts)
}

pub(crate) fn only(mut receipts: Vec<Receipt>) -> Receipt {
    receipts.pop().expect("one message was given, and each has a receipt")
}

/// Checks all before the first is written.
pub(crate) fn collect<I>(messages: I) -> Result<Vec<Row>, Error>
where
    I: IntoIterator<Item: IntoEnvelope>,
{
    messages.into_iter().map(|message| message.into_envelope().into_row()).collect()
}

/// What to do after an insert that proves the transaction by itself.
pub(crate) enum Next {
    Done,
    Fail(Error),
    /// The server cannot tell: probe, then insert.
    Probe,
}

impl Next {
    pub(crate) fn after<DB: OutboxBackend>(result: Result<(), DieselError>, call: &'static str) -> Next {
        let Err(error) = result else { return Next::Done };
        match (DB::judge(&error), DB::probe()) {
            (Judgement::NotInTransaction, _) => Next::Fail(Error::NotInTransaction { call }),
            (Judgement::CannotTell, Some(probe)) => {
                probe.is_needed_from_now_on();
                Next::Probe
            }
            _ => Next::Fail(error.into()),
        }
    }

    /// The same where there is nothing left to try.
    pub(crate) fn finish<DB: OutboxBackend>(result: Result<(), DieselError>, call: &'static str) -> Result<(), Error> {
        result.map_err(|error| match DB::judge(&error) {
            Judgement::NotInTransaction => Error::NotInTransaction { call },
            Judgement::CannotTell | Judgement::Unrelated => error.into(),
        })
    }
}

pub(crate) fn require_transaction<C: Connection>(conn: &mut C, call: &'static str) -> Result<(), Error> {
    match transaction_depth(conn)? {
        0 => Err(Error::NotInTransaction { call }),
        // Only a test transaction is one in which a pool would take the connection back.
        1 if !C::TransactionManager::is_broken_transaction_manager(conn) && Strict::is_set(conn.instrumentation()) => {
            Err(Error::OnlyInTestTransaction { call })
        }
        _ => Ok(()),
    }
}

fn write<C>(conn: &mut C, work: &Work<C::Backend>, call: &'static str) -> Result<(), Error>
where
    C: Connection<Backend: OutboxBackend>,
{
    let probe = <C::Backend as Dialect>::probe();
    if probe.is_none_or(|probe| !probe.is_needed()) {
        match Next::after::<C::Backend>(execute::<C, ByStatement>(conn, work), call) {
            Next::Done => return Ok(()),
            Next::Fail(error) => return Err(error),
            Next::Probe => {}
        }
    }
    if let Some(probe) = probe {
        Next::finish::<C::Backend>(conn.batch_execute(probe.sql), call)?;
    }
    Next::finish::<C::Backend>(execute::<C, ByProbe>(conn, work), call)
}

fn execute<C, F: Form>(conn: &mut C, work: &Work<C::Backend>) -> Result<(), DieselError>
where
    C: Connection<Backend: OutboxBackend>,
{
    match work {
        Work::One(row) => MessageInsert::<F>::new(row).execute(conn)?,
        Work::Many(batch) => MessageInsertMany::<C::Backend, F>::new(batch).execute(conn)?,
    };
    Ok(())
}
