//! The same over diesel-async's connections. Feature `async`.
//!
//! Messages are put into envelopes before the future is made, so the future is `Send` whatever the message is. With feature
//! `opentelemetry` a message belongs to the span in which its future is first polled, as in `enqueue(…).instrument(span)`,
//! or else to the one in which the function was called.
//!
//! As with every future that speaks in a transaction: do not drop it half-way, or diesel no longer knows where the
//! server stands.

mod ask;
mod cancel;
pub mod dedup;
pub mod inbox;
pub mod testing;
mod transaction;

use std::future::Future;

use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, RunQueryDsl, TransactionManager};

use crate::connection::OutboxBackend;
use crate::connection::sealed::Dialect;
use crate::dedup::By;
use crate::enqueue::{Next, Receipt, collect, only};
use crate::envelope::{Envelope, IntoEnvelope};
use crate::error::Error;
use crate::insert::{ByCaller, ByProbe, ByStatement, Form, MessageInsert, MessageInsertMany, Work, works};
use crate::testing::Strict;

pub use cancel::cancel;
pub use transaction::transaction;

/// Puts a message into the outbox, as part of the transaction that is open on `conn`. See [`crate::enqueue`].
///
/// # Errors
///
/// As [`crate::enqueue`].
pub fn enqueue<C>(conn: &mut C, message: impl IntoEnvelope) -> impl Future<Output = Result<Receipt, Error>> + Send
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let envelope = message.into_envelope().in_current_trace();
    async move {
        require_transaction(conn, "enqueue")?;
        let row = envelope.into_row()?;
        if row.dedup_key.is_some() {
            return dedup::write_claimed(conn, vec![row], By::Library, "enqueue").await.map(only);
        }
        let receipt = Receipt::of(&row);
        write(conn, &Work::One(row), "enqueue").await?;
        Ok(receipt)
    }
}

/// Puts many messages into the outbox with one statement, in their order. See [`crate::enqueue_all`].
///
/// # Errors
///
/// As [`crate::enqueue_all`].
pub fn enqueue_all<C, I>(conn: &mut C, messages: I) -> impl Future<Output = Result<Vec<Receipt>, Error>> + Send
where
    C: AsyncConnection<Backend: OutboxBackend>,
    I: IntoIterator<Item: IntoEnvelope>,
{
    let envelopes = messages.into_iter().map(|message| message.into_envelope().in_current_trace());
    let envelopes: Vec<Envelope> = envelopes.collect();
    async move {
        require_transaction(conn, "enqueue_all")?;
        let rows = collect(envelopes)?;
        if rows.iter().any(|row| row.dedup_key.is_some()) {
            return dedup::write_claimed(conn, rows, By::Library, "enqueue_all").await;
        }
        let receipts = rows.iter().map(Receipt::of).collect();
        for work in works::<C::Backend>(rows) {
            write(conn, &work, "enqueue_all").await?;
        }
        Ok(receipts)
    }
}

/// Puts a message into the outbox without asking whether a transaction is open. See [`crate::enqueue_unchecked`].
///
/// # Errors
///
/// As [`crate::enqueue_unchecked`].
pub fn enqueue_unchecked<C>(
    conn: &mut C,
    message: impl IntoEnvelope,
) -> impl Future<Output = Result<Receipt, Error>> + Send
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let envelope = message.into_envelope().in_current_trace();
    async move {
        let row = envelope.into_row()?;
        if row.dedup_key.is_some() {
            return dedup::write_claimed(conn, vec![row], By::Caller, "enqueue_unchecked").await.map(only);
        }
        let receipt = Receipt::of(&row);
        execute::<C, ByCaller>(conn, &Work::One(row)).await?;
        Ok(receipt)
    }
}

fn require_transaction<C: AsyncConnection>(conn: &mut C, call: &'static str) -> Result<(), Error> {
    match transaction::depth(conn)? {
        0 => Err(Error::NotInTransaction { call }),
        // Only a test transaction is one in which a pool would take the connection back.
        1 if !C::TransactionManager::is_broken_transaction_manager(conn) && Strict::is_set(conn.instrumentation()) => {
            Err(Error::OnlyInTestTransaction { call })
        }
        _ => Ok(()),
    }
}

async fn write<C>(conn: &mut C, work: &Work<C::Backend>, call: &'static str) -> Result<(), Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let probe = <C::Backend as Dialect>::probe();
    if probe.is_none_or(|probe| !probe.is_needed()) {
        match Next::after::<C::Backend>(execute::<C, ByStatement>(conn, work).await, call) {
            Next::Done => return Ok(()),
            Next::Fail(error) => return Err(error),
            Next::Probe => {}
        }
    }
    if let Some(probe) = probe {
        Next::finish::<C::Backend>(conn.batch_execute(probe.sql).await, call)?;
    }
    Next::finish::<C::Backend>(execute::<C, ByProbe>(conn, work).await, call)
}

async fn execute<C, F: Form>(conn: &mut C, work: &Work<C::Backend>) -> Result<(), DieselError>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    match work {
        Work::One(row) => RunQueryDsl::execute(MessageInsert::<F>::new(row), conn).await?,
        Work::Many(batch) => RunQueryDsl::execute(MessageInsertMany::<C::Backend, F>::new(batch), conn).await?,
    };
    Ok(())
}
