//! What a blocked delivery waits for.

use diesel::connection::LoadConnection;

use super::{Place, Row, Waiting, sql};
use crate::by_hand::{Statement, unreadable};
use crate::connection::OutboxBackend;
use crate::connection::sealed::Dialect;
use crate::dead_letters::DeadLetter;
use crate::error::Error;

/// What goes before a delivery of the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ahead {
    /// An earlier message that waits itself.
    Delivery(Box<Waiting>),
    /// An earlier message that was given up and keeps its key blocked until somebody decides.
    Dead(Box<DeadLetter>),
}

/// Says what the waiting delivery with this id is blocked by: dead letters first, then the delivery its key begins with.
///
/// Empty for a delivery without a key, and for the first of its key.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn ahead<C>(conn: &mut C, waiting: i64) -> Result<Vec<Ahead>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let select = sql::ahead(<C::Backend as Dialect>::DATABASE, waiting);
    let mut found = Vec::new();
    for json in Statement::new(select).load(conn)? {
        let row: Row = serde_json::from_str(&json).map_err(unreadable)?;
        match row.place {
            Place::Dead(row) => found.push(Ahead::Dead(Box::new(row.letter()?))),
            Place::Waiting(row) => found.push(Ahead::Delivery(Box::new(row.read()?))),
            Place::Pending(_) => {}
        }
    }
    found.sort_by_key(|ahead| match ahead {
        Ahead::Dead(letter) => (0, letter.seq, letter.id),
        Ahead::Delivery(waiting) => (1, waiting.seq, waiting.id),
    });
    Ok(found)
}
