//! Taking one message back by hand, by a named person.

use diesel::connection::LoadConnection;
use uuid::Uuid;

use crate::by_hand::{audit, begins_read_committed, is_read_committed};
use crate::cancel::remove;
use crate::connection::OutboxBackend;
use crate::dead_letters::By;
use crate::error::Error;
use crate::messages::MessageRef;

/// What was taken back; nothing when the message was delivered, given up, cancelled before, or never was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cancelled {
    /// True when it was pending.
    pub pending: bool,
    /// How many of its deliveries waited.
    pub waiting: u64,
}

impl Cancelled {
    /// True when nothing was there to be taken back.
    pub fn is_nothing(&self) -> bool {
        *self == Cancelled::default()
    }
}

/// Takes a message back, as [`cancel`](crate::cancel) does, in a transaction of its own and with an audit row.
///
/// `seq` is the number it drew, as [`find`](super::find) tells; without it a pending message is found by its place in
/// time, within bounds. Leaves no audit row when there was nothing to take back.
///
/// # Errors
///
/// [`Error::NotLookedAtAll`] when it may be one of those that were not looked at. [`Error::Database`] when the database
/// refuses; then nothing has changed.
pub fn cancel<C>(conn: &mut C, message_id: Uuid, seq: Option<i64>, by: &By) -> Result<Cancelled, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    begins_read_committed(conn)?;
    crate::transaction(conn, |conn| {
        is_read_committed(conn)?;
        let removed = remove(conn, MessageRef { id: message_id, seq })?;
        let cancelled = Cancelled { pending: removed.pending > 0, waiting: removed.waiting as u64 };
        if !cancelled.is_nothing() {
            audit(conn, by, "message.cancel", &[format!("message {message_id}")])?;
        }
        Ok(cancelled)
    })
}
