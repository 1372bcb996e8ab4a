//! [`crate::testing`] over diesel-async's connections. The assertions take `async conn` there.

use diesel_async::{AsyncConnection, RunQueryDsl};

use crate::connection::{OutboxBackend, TextColumn};
use crate::error::Error;
use crate::testing::{Enqueued, Strict, read, select};

/// What is enqueued, the oldest first. See [`crate::testing::enqueued`].
///
/// # Errors
///
/// As [`crate::testing::enqueued`].
pub async fn enqueued<C>(conn: &mut C) -> Result<Vec<Enqueued>, Error>
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let rows: Vec<TextColumn> = RunQueryDsl::load(select::<C::Backend>(), conn).await?;
    read(rows.into_iter().map(|row| row.0).collect())
}

/// Makes an enqueue directly in a test transaction an error on this connection. See [`crate::testing::strict`].
pub fn strict<C>(conn: &mut C)
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    conn.set_instrumentation(Strict::new());
}
