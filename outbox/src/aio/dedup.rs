//! [`crate::dedup`] over diesel-async's connections.

use diesel_async::{AsyncConnection, RunQueryDsl};

use super::transaction::require_server_transaction;
use super::{execute, write};
use crate::connection::sealed::Dialect;
use crate::connection::{OutboxBackend, TextColumn};
use crate::dedup::{By, claim, delete, first, order, owner, savepoint, savepoint_end, winners};
use crate::enqueue::Receipt;
use crate::error::Error;
use crate::insert::{ByCaller, Row, works};

/// Forgets the keys whose window has passed. See [`crate::dedup::purge`].
///
/// # Errors
///
/// As [`crate::dedup::purge`].
pub async fn purge<C>(conn: &mut C) -> Result<usize, Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    Ok(RunQueryDsl::execute(delete(<C::Backend as Dialect>::DATABASE), conn).await?)
}

/// Claims the dedup keys and writes the messages whose key was free, both or neither.
pub(super) async fn write_claimed<C>(
    conn: &mut C,
    rows: Vec<Row>,
    by: By,
    call: &'static str,
) -> Result<Vec<Receipt>, Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    // A claim that commits on its own would swallow messages.
    require_server_transaction(conn, call).await?;
    let savepoint = savepoint(<C::Backend as Dialect>::DATABASE, by);
    if let Some(savepoint) = savepoint {
        conn.batch_execute(savepoint).await?;
    }
    let outcome = claim_and_write(conn, rows, by, call).await;
    if savepoint.is_some() {
        let ended = conn.batch_execute(savepoint_end(outcome.is_ok())).await;
        // After a failure that took the savepoint with it, the failure is what matters.
        if outcome.is_ok() {
            ended?;
        }
    }
    outcome
}

async fn claim_and_write<C>(conn: &mut C, rows: Vec<Row>, by: By, call: &'static str) -> Result<Vec<Receipt>, Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let mut receipts: Vec<Receipt> = rows.iter().map(Receipt::of).collect();
    for n in order(&rows) {
        let row = &rows[n];
        RunQueryDsl::execute(claim(database, row), conn).await?;
        let owner: Vec<TextColumn> = RunQueryDsl::load(owner(database, row), conn).await?;
        let owner: Vec<String> = owner.into_iter().map(|column| column.0).collect();
        if let Some(first) = first(row, &owner)? {
            receipts[n] = Receipt::of_duplicate(first);
        }
    }
    for work in works::<C::Backend>(winners(rows, &receipts)) {
        match by {
            By::Library => write(conn, &work, call).await?,
            By::Caller => execute::<C, ByCaller>(conn, &work).await?,
        }
    }
    Ok(receipts)
}
