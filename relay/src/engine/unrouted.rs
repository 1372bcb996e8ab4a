//! Messages that found no route and are on their way into a row without destination.
//!
//! Pure. Between the decision and the row there may be other routes, by which they would go somewhere. What comes later of
//! their keys must not pass them then, and nothing but this knows of them.

use std::collections::HashMap;

use crate::message::{Key, Message, PartitionSet, Seq};

/// Those with a key; the others have no order to keep.
#[derive(Debug, Default)]
pub(super) struct Unrouted {
    keys: HashMap<Key, Vec<Writing>>,
}

#[derive(Debug)]
struct Writing {
    seq: Seq,
    partition_no: u8,
    /// The routes that had none for it.
    version: i64,
    /// The row cannot be written.
    stuck: bool,
}

impl Unrouted {
    /// The message is about to be written as a row without destination: routes of this version have none for it.
    pub(super) fn writing(&mut self, message: &Message, routes_version: i64) {
        if let Some(key) = &message.ordering_key {
            let Message { seq, partition_no, .. } = *message;
            self.keys.entry(key.clone()).or_default().push(Writing {
                seq,
                partition_no,
                version: routes_version,
                stuck: false,
            });
        }
    }

    /// True while an earlier message of this key is being written that other routes than these had none for: it may have
    /// one now.
    pub(super) fn may_have_route(&self, key: &Key, routes_version: i64) -> bool {
        self.keys.get(key).is_some_and(|writing| writing.iter().any(|message| message.version != routes_version))
    }

    /// The row cannot be written, and that may last.
    pub(super) fn stuck(&mut self, key: &Key, seq: Seq) {
        let writing = self.keys.get_mut(key).into_iter().flatten();
        writing.filter(|message| message.seq == seq).for_each(|message| message.stuck = true);
    }

    /// True while such a message of this key is not written.
    pub(super) fn is_stuck(&self, key: &Key) -> bool {
        self.keys.get(key).is_some_and(|writing| writing.iter().any(|message| message.stuck))
    }

    /// The row stands, or never will. Returns the version of the routes that had none for it.
    pub(super) fn written(&mut self, key: &Key, seq: Seq) -> Option<i64> {
        let writing = self.keys.get_mut(key)?;
        let at = writing.iter().position(|message| message.seq == seq)?;
        let message = writing.swap_remove(at);
        if writing.is_empty() {
            self.keys.remove(key);
        }
        Some(message.version)
    }

    /// What was to be written of these partitions is not.
    pub(super) fn evict(&mut self, lost: PartitionSet) {
        self.keys.retain(|_, writing| {
            writing.retain(|message| !lost.contains(message.partition_no));
            !writing.is_empty()
        });
    }
}
