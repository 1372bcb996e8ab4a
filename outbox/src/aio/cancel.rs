//! [`crate::cancel`] over diesel-async's connections.

use std::future::Future;

use diesel_async::AsyncConnection;

use super::ask::Awaiting;
use super::require_transaction;
use super::transaction::require_server_transaction;
use crate::cancel::{CALL, take_back};
use crate::connection::OutboxBackend;
use crate::error::Error;
use crate::messages::MessageRef;

/// Takes back a message that was not delivered yet. See [`crate::cancel`].
///
/// # Errors
///
/// As [`crate::cancel`].
pub fn cancel<C>(conn: &mut C, message: impl Into<MessageRef>) -> impl Future<Output = Result<bool, Error>> + Send
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let message = message.into();
    async move {
        require_transaction(conn, CALL)?;
        // Otherwise the message would be gone although the caller's reason for it is rolled back.
        require_server_transaction(conn, CALL).await?;
        let removed = take_back(&mut Awaiting(conn), message).await?;
        Ok(removed.pending + removed.waiting > 0)
    }
}
