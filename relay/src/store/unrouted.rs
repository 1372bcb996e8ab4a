//! Rows without a destination, as the search for routes sees them: without their payloads.

use crate::message::{Key, MessageId, WaitingDelivery};

/// A row without a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnroutedRow {
    /// The row.
    pub id: i64,
    /// The message it is about.
    pub message_id: MessageId,
    /// Its partition.
    pub partition_no: u8,
    /// Its topic, by which it is routed.
    pub topic: String,
    /// Its key.
    pub ordering_key: Option<Key>,
    /// False for what neither blocks its key nor waits for it.
    pub in_order: bool,
    /// Attempts judged so far.
    pub attempts: u32,
}

/// A place among the rows of a topic in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnroutedAfter {
    /// The partition.
    pub partition_no: u8,
    /// The topic.
    pub topic: String,
    /// Rows above this number are wanted.
    pub after: i64,
}

impl From<WaitingDelivery> for UnroutedRow {
    fn from(row: WaitingDelivery) -> UnroutedRow {
        UnroutedRow {
            id: row.id,
            message_id: row.message.id,
            partition_no: row.message.partition_no,
            topic: row.message.topic,
            ordering_key: row.message.ordering_key,
            in_order: row.in_order,
            attempts: row.attempts,
        }
    }
}
