//! [`crate::transaction`] over diesel-async's connections.

use std::future::Future;

use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, TransactionManager};

use crate::connection::OutboxBackend;
use crate::connection::sealed::Dialect;
use crate::enqueue::Next;
use crate::error::Error;
use crate::transaction::raise;

/// An async closure whose future can be sent to another thread. Rust cannot say that of an `AsyncFnOnce` yet.
pub trait SendFn<A, R>: AsyncFnOnce(A) -> R + FnOnce(A) -> <Self as SendFn<A, R>>::Fut {
    /// What it returns.
    type Fut: Future<Output = R>;
}

impl<F, A, Fut, R> SendFn<A, R> for F
where
    F: AsyncFnOnce(A) -> R + FnOnce(A) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}

/// Runs `work` in a transaction and proves that it committed. See [`crate::transaction`].
///
/// # Errors
///
/// As [`crate::transaction`].
#[expect(clippy::manual_async_fn, reason = "the signature promises that the future is `Send`")]
pub fn transaction<'a, 'conn, C, T, E, F>(
    conn: &'conn mut C,
    work: F,
) -> impl Future<Output = Result<T, E>> + Send + 'conn
where
    C: AsyncConnection<Backend: OutboxBackend>,
    for<'r> F: AsyncFnOnce(&'r mut C) -> Result<T, E> + SendFn<&'r mut C, Result<T, E>, Fut: Send> + Send + 'a,
    T: Send + 'a,
    E: From<DieselError> + Send + 'a,
    'a: 'conn,
{
    async move {
        let is_outermost = depth(conn).map_err(raise)? == 0;
        C::TransactionManager::begin_transaction(conn).await?;
        let mut lost = None;
        let outcome = async {
            if is_outermost && let Some(mark) = <C::Backend as Dialect>::MARK {
                conn.batch_execute(mark).await?;
            }
            let value = work(&mut *conn).await?;
            if is_outermost && let Err(error) = conn.batch_execute(<C::Backend as Dialect>::PROOF).await {
                lost = Some(error);
                return Err(DieselError::RollbackTransaction.into());
            }
            Ok(value)
        };
        let outcome: Result<T, E> = outcome.await;
        match outcome {
            Ok(value) => {
                C::TransactionManager::commit_transaction(conn).await?;
                Ok(value)
            }
            Err(error) => {
                let rolled_back = C::TransactionManager::rollback_transaction(conn).await;
                match (lost, rolled_back) {
                    (Some(answer), _) => Err(raise(Error::NotCommitted(answer))),
                    (None, Ok(()) | Err(DieselError::BrokenTransactionManager)) => Err(error),
                    (None, Err(rollback)) => Err(rollback.into()),
                }
            }
        }
    }
}

/// How many transactions and savepoints diesel has open.
pub(super) fn depth<C: AsyncConnection>(conn: &mut C) -> Result<u32, Error> {
    let depth = C::TransactionManager::transaction_manager_status_mut(conn).transaction_depth()?;
    Ok(depth.map_or(0, |depth| depth.get()))
}

/// Fails where the server is not in the transaction that diesel counts.
pub(super) async fn require_server_transaction<C>(conn: &mut C, call: &'static str) -> Result<(), Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    match <C::Backend as Dialect>::probe() {
        Some(probe) => Next::finish::<C::Backend>(conn.batch_execute(probe.sql).await, call),
        None => Ok(()),
    }
}
