//! What the relay knows of a message, a waiting delivery and the places they go to.
//!
//! Plain values shared by every room. A message never changes once it was read.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// How many partitions there are. The database computes a message's partition; the relay only compares it.
pub const PARTITIONS: u8 = 32;

/// The number a message drew when it was inserted. Unique among rows that exist together, not for ever: a restored
/// database may hand a number out again, which is why every write names the message id beside it.
pub type Seq = i64;

/// Identifies a message to the outside; receivers see it as `webhook-id`.
pub type MessageId = Uuid;

/// Identifies one start of one relay process; random, never reused.
pub type RelayId = Uuid;

/// A set of partition numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PartitionSet(u32);

impl PartitionSet {
    /// No partition.
    pub const EMPTY: PartitionSet = PartitionSet(0);
    /// All partitions.
    pub const ALL: PartitionSet = PartitionSet(u32::MAX);

    /// True when `partition_no` is in the set.
    pub fn contains(self, partition_no: u8) -> bool {
        partition_no < PARTITIONS && self.0 & (1 << partition_no) != 0
    }

    /// This set and `partition_no`.
    #[must_use]
    pub fn with(self, partition_no: u8) -> PartitionSet {
        debug_assert!(partition_no < PARTITIONS);
        PartitionSet(self.0 | 1 << partition_no)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(self, other: PartitionSet) -> PartitionSet {
        PartitionSet(self.0 & !other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub fn and(self, other: PartitionSet) -> PartitionSet {
        PartitionSet(self.0 & other.0)
    }

    /// What is in either set.
    #[must_use]
    pub fn or(self, other: PartitionSet) -> PartitionSet {
        PartitionSet(self.0 | other.0)
    }

    /// True when nothing is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many partitions are in the set.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The partition numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PARTITIONS).filter(move |n| self.contains(*n))
    }
}

impl FromIterator<u8> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        numbers.into_iter().fold(PartitionSet::EMPTY, PartitionSet::with)
    }
}

impl fmt::Debug for PartitionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a producer enqueued, as the relay read it.
///
/// The text columns are bytes of unknown origin: another program may have inserted anything that the database's own
/// constraints let through. `Headers::Undecodable` keeps such a row from failing its neighbours.
#[derive(Clone, Debug)]
pub struct Message {
    /// The number drawn at the insert.
    pub seq: Seq,
    /// The public id.
    pub id: MessageId,
    /// The partition the database computed.
    pub partition_no: u8,
    /// The topic.
    pub topic: String,
    /// The ordering key, byte-exact.
    pub ordering_key: Option<Key>,
    /// The body, exactly as given.
    pub payload: Bytes,
    /// The type of the body.
    pub content_type: String,
    /// The headers the producer stored.
    pub headers: Headers,
    /// The only destination, when the producer named one.
    pub only_destination: Option<String>,
    /// True when `deliver_at` lies in the future by the database's clock at the read.
    pub scheduled: bool,
    /// When `expires_at` has passed, by this machine's steady clock: as far ahead as it was by the database's clock at the
    /// read, so never too early.
    pub expires: Option<Instant>,
    /// True when somebody waits for a result.
    pub tracked: bool,
    /// The version of the message type.
    pub version: u16,
    /// When the message was inserted, by the database's clock.
    pub created_at: DateTime<Utc>,
}

impl Message {
    /// True when `expires_at` has passed.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// What it costs in memory: its body, and a flat guess for the rest.
    pub(crate) fn weight(&self) -> usize {
        self.payload.len() + 512
    }
}

/// A plain message, for unit tests to change.
#[cfg(test)]
pub(crate) fn example(seq: Seq) -> Message {
    Message {
        seq,
        id: MessageId::from_u128(seq.unsigned_abs().into()),
        partition_no: 3,
        topic: "t".to_owned(),
        ordering_key: None,
        payload: Bytes::from_static(b"{}"),
        content_type: "application/json".to_owned(),
        headers: Headers::Decoded(BTreeMap::new()),
        only_destination: None,
        scheduled: false,
        expires: None,
        tracked: false,
        version: 1,
        created_at: DateTime::UNIX_EPOCH,
    }
}

/// The bytes of an ordering key.
pub type Key = std::sync::Arc<[u8]>;

/// The headers stored with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Headers {
    /// A JSON object of strings whose names and values may travel.
    Decoded(BTreeMap<String, String>),
    /// Something else; the text says what is wrong with it. Such a message becomes a dead letter, `undecodable`.
    Undecodable(String),
}

/// A waiting row that may be attempted now.
#[derive(Clone, Debug)]
pub struct WaitingDelivery {
    /// The row's id, never reused.
    pub id: i64,
    /// The message. `only_destination` is `None`: routing is over.
    pub message: Message,
    /// Where it goes; empty when the message has not been routed yet.
    pub destination: String,
    /// False for what neither blocks its key nor waits for it.
    pub in_order: bool,
    /// How often it was redriven.
    pub life: u32,
    /// Attempts judged so far. A settle names this number, so that repeating it changes nothing.
    pub attempts: u32,
    /// True when a relay may have died of it.
    pub suspect: bool,
    /// How often its relay died while it was being attempted, since the last verdict.
    pub deaths: u32,
    /// How long ago the first attempt was, by the database's clock.
    pub first_attempt_age: Option<Duration>,
    /// The attempts, newest last.
    pub history: Vec<HistoryEntry>,
}

/// One attempt as people see it later.
///
/// Readers ignore members they do not know.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HistoryEntry {
    /// Which attempt, from 1.
    pub n: u32,
    /// When it ended, by the relay's clock.
    pub at: DateTime<Utc>,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// The verdict's name.
    pub verdict: String,
    /// The HTTP status, or a short word such as `timeout`, `connect`, `panic`.
    pub code: String,
    /// The relay's name.
    pub relay: String,
    /// True when the receiver may have acted although no answer arrived.
    #[serde(default)]
    pub maybe: bool,
    /// The address that answered, or would have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// What the receiver or the handler said, shortened.
    #[serde(default)]
    pub text: String,
}

/// How many attempts a history keeps; the oldest go first.
pub const HISTORY_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_sets_count_and_combine() {
        let some: PartitionSet = [0, 5, 31].into_iter().collect();
        assert_eq!(some.len(), 3);
        assert!(some.contains(31) && !some.contains(1));
        assert_eq!(PartitionSet::ALL.without(some).len(), 29);
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 5, 31]);
        assert!(PartitionSet::EMPTY.is_empty());
    }
}
