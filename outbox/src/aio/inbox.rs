//! [`crate::inbox`] over diesel-async's connections.

use std::future::Future;
use std::time::Duration;

use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, RunQueryDsl};

use super::transaction::{SendFn, depth, require_server_transaction, transaction};
use crate::connection::OutboxBackend;
use crate::connection::sealed::Dialect;
use crate::error::Error;
use crate::inbox::{check, delete, insert, is_first};
use crate::transaction::raise;

/// Runs `effect` unless `consumer` has seen the message already. See [`crate::inbox::once`].
///
/// # Errors
///
/// As [`crate::inbox::once`].
pub fn once<'a, 'conn, C, T, E, F>(
    conn: &'conn mut C,
    consumer: &str,
    message_id: &str,
    effect: F,
) -> impl Future<Output = Result<Option<T>, E>> + Send + 'conn
where
    C: AsyncConnection<Backend: OutboxBackend>,
    for<'r> F: AsyncFnOnce(&'r mut C) -> Result<T, E> + SendFn<&'r mut C, Result<T, E>, Fut: Send> + Send + 'a,
    T: Send + 'a,
    E: From<DieselError> + Send + 'a,
    'a: 'conn,
{
    let checked = check(consumer, message_id);
    let insert = insert(<C::Backend as Dialect>::DATABASE, consumer, message_id);
    async move {
        checked.map_err(raise)?;
        if depth(conn).map_err(raise)? > 0 {
            require_server_transaction(conn, "inbox::once").await.map_err(raise)?;
        }
        transaction(conn, async move |conn: &mut C| {
            let inserted = RunQueryDsl::execute(insert, conn).await.map_err(Error::from);
            if is_first(inserted).map_err(raise::<E>)? { effect(conn).await.map(Some) } else { Ok(None) }
        })
        .await
    }
}

/// Forgets what was received longer ago than `age`. See [`crate::inbox::purge`].
///
/// # Errors
///
/// As [`crate::inbox::purge`].
pub async fn purge<C>(conn: &mut C, age: Duration) -> Result<usize, Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    Ok(RunQueryDsl::execute(delete(<C::Backend as Dialect>::DATABASE, age), conn).await?)
}
