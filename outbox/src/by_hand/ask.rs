//! Statements by hand over either kind of connection, so that what takes several of them is written once.
//!
//! Invariant: over diesel's own connections no future here ever waits; [`now`] relies on it.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use diesel::connection::LoadConnection;

use super::Statement;
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::error::Error;

/// Somebody who runs statements.
pub(crate) trait Ask: Send {
    const DATABASE: Database;

    /// Runs one and returns its one column.
    fn load(&mut self, statement: Statement) -> impl Future<Output = Result<Vec<String>, Error>> + Send;

    /// Runs one and returns how many rows it changed.
    fn execute(&mut self, statement: Statement) -> impl Future<Output = Result<usize, Error>> + Send;
}

/// A connection of diesel's.
pub(crate) struct Blocking<'c, C>(pub(crate) &'c mut C);

impl<C> Ask for Blocking<'_, C>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    const DATABASE: Database = <C::Backend as Dialect>::DATABASE;

    async fn load(&mut self, statement: Statement) -> Result<Vec<String>, Error> {
        statement.load(self.0)
    }

    async fn execute(&mut self, statement: Statement) -> Result<usize, Error> {
        statement.execute(self.0)
    }
}

/// The value of a future that never waits.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a blocking connection has answered before its future is polled again"),
    }
}
