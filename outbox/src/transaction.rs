//! Transactions whose end is proven.
//!
//! diesel returns `Ok` when COMMIT succeeds. That is not enough:
//! - PostgreSQL answers the COMMIT of a transaction in which a statement failed with success, and rolls back.
//! - MariaDB and MySQL end a transaction by themselves: a deadlock rolls it back, a DDL statement commits it. What follows
//!   commits on its own, and the COMMIT at the end finds nothing to do and succeeds.
//!
//! So a savepoint is asked for. Where a server may have ended the transaction and begun another, the savepoint is set at the
//! beginning, and releasing it proves that the very same transaction is still open. PostgreSQL does not do that; setting one
//! at the end proves there that the transaction is open and healthy. Right after that proof comes the COMMIT, and what
//! fails then (a deferred constraint, a lost connection) is an error of its own.

use diesel::connection::Connection;
use diesel::result::Error as DieselError;

use crate::connection::sealed::Dialect;
use crate::connection::{OutboxBackend, transaction_depth};
use crate::enqueue::Next;
use crate::error::Error;

/// Runs `work` in a transaction, like [`diesel::Connection::transaction`], and proves that it committed.
///
/// `Ok` means committed, with everything `work` did. The price is one round trip more on PostgreSQL, two on MariaDB and
/// MySQL. Inside an open transaction this is a savepoint, as with diesel: then the outermost call decides, so let that
/// one be `outbox::transaction`.
///
/// ```
/// # use diesel::prelude::*;
/// # let mut conn = SqliteConnection::establish(":memory:")?;
/// # outbox::migrations::run(&mut conn)?;
/// let receipt = outbox::transaction(&mut conn, |conn| {
///     // … the business data …
///     outbox::enqueue(conn, outbox::Envelope::raw("order.placed", "1"))
/// })?;
/// # let _ = receipt;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// What `work` returns, after a rollback. [`Error::NotCommitted`] when the database had ended the transaction before; it
/// travels through diesel's error, like every error of ours. What the database says to the COMMIT itself; when the
/// connection broke just then, nobody knows whether it committed.
pub fn transaction<C, T, E>(conn: &mut C, work: impl FnOnce(&mut C) -> Result<T, E>) -> Result<T, E>
where
    C: Connection<Backend: OutboxBackend>,
    E: From<DieselError>,
{
    if transaction_depth(conn).map_err(raise)? > 0 {
        // Releasing diesel's savepoint is a proof already.
        return conn.transaction(work);
    }
    let mut lost = None;
    let outcome = conn.transaction(|conn| {
        if let Some(mark) = <C::Backend as Dialect>::MARK {
            conn.batch_execute(mark)?;
        }
        let value = work(conn)?;
        conn.batch_execute(<C::Backend as Dialect>::PROOF).map_err(|error| {
            lost = Some(error);
            DieselError::RollbackTransaction
        })?;
        Ok(value)
    });
    // Kept aside, because the rollback of what is not there may fail, and diesel would report that instead.
    lost.map_or(outcome, |error| Err(raise(Error::NotCommitted(error))))
}

/// Our error in the caller's type.
pub(crate) fn raise<E: From<DieselError>>(error: Error) -> E {
    E::from(DieselError::from(error))
}

/// Fails where the server is not in the transaction that diesel counts.
pub(crate) fn require_server_transaction<C>(conn: &mut C, call: &'static str) -> Result<(), Error>
where
    C: Connection<Backend: OutboxBackend>,
{
    match <C::Backend as Dialect>::probe() {
        Some(probe) => Next::finish::<C::Backend>(conn.batch_execute(probe.sql), call),
        None => Ok(()),
    }
}
