//! [`crate::by_hand::ask`] over diesel-async's connections.

use diesel_async::{AsyncConnection, RunQueryDsl};

use crate::by_hand::Statement;
use crate::by_hand::ask::Ask;
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend, TextColumn};
use crate::error::Error;

/// A connection of diesel-async's.
pub(super) struct Awaiting<'c, C>(pub(super) &'c mut C);

impl<C> Ask for Awaiting<'_, C>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    const DATABASE: Database = <C::Backend as Dialect>::DATABASE;

    async fn load(&mut self, statement: Statement) -> Result<Vec<String>, Error> {
        let rows: Vec<TextColumn> = RunQueryDsl::load(statement, self.0).await?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    async fn execute(&mut self, statement: Statement) -> Result<usize, Error> {
        Ok(RunQueryDsl::execute(statement, self.0).await?)
    }
}
