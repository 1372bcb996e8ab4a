//! Takes over from a relay that died.
//!
//! It may have died of a message it was attempting, and nothing is written before a first attempt. So the first messages
//! of its partitions, as many as a relay may have in hands, are not attempted but moved by the ordinary settle to waiting
//! rows: suspect where their destination is a handler in this process, due at once. A waiting row of a handler is marked
//! before it is attempted, so the next death tells more.
//!
//! It ends when so many were moved, or when the end of the table was read once. Until then these partitions are not
//! given up: whoever took them next would not know that they were a dead relay's. Nor when the relay ends before that.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Engine;
use super::feed::fresh;
use crate::message::{Message, PartitionSet};
use crate::outcome::waits;
use crate::store::{DueIn, State};

/// What is left to be done about messages of the dead.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    partitions: PartitionSet,
    /// So many more messages are moved.
    left: usize,
    moved: usize,
    /// Reads numbered below this one began before the partitions were ours.
    from: u64,
}

impl Inheritance {
    /// The partitions it is not done with.
    pub(super) fn partitions(&self) -> PartitionSet {
        self.partitions
    }

    pub(super) fn lose(&mut self, lost: PartitionSet) {
        self.partitions = self.partitions.without(lost);
    }
}

impl Engine {
    /// These partitions were gained from the dead.
    pub(super) fn inherit(&mut self, inherited: PartitionSet) {
        if inherited.is_empty() || !self.lanes.iter().any(|state| state.in_process) {
            return;
        }
        self.inheritance.partitions = self.inheritance.partitions.or(inherited);
        self.inheritance.left = self.pace.in_hands;
        self.inheritance.from = self.feed.next_read();
    }

    /// Moves a message that the dead relay may have been attempting; false when it takes the ordinary way.
    pub(super) fn hand_inherited(&mut self, message: &Arc<Message>, destinations: &[usize]) -> bool {
        if self.inheritance.left == 0 || !self.inheritance.partitions.contains(message.partition_no) {
            return false;
        }
        let in_process =
            |&destination: &usize| self.lane_of(destination).is_some_and(|lane| self.lanes[lane].in_process);
        if !destinations.iter().any(in_process) {
            return false;
        }
        self.inheritance.left -= 1;
        self.inheritance.moved += 1;
        for &destination in destinations {
            let Some(lane) = self.lane_of(destination) else {
                self.unserved(message, destination);
                continue;
            };
            let state = if self.lanes[lane].in_process { State::Suspect } else { State::Overflow };
            let in_order = self.lanes[lane].served.limits.keyed;
            let remains = waits(state, in_order, DueIn::Pause(Duration::ZERO));
            self.must_wait(lane, &fresh(message, in_order), remains);
        }
        true
    }

    /// A read was acted upon; `ended` when it came to the end of the table.
    pub(super) fn inherited_read(&mut self, ended: bool) {
        let Inheritance { partitions, left, moved, from } = self.inheritance;
        if partitions.is_empty() || left > 0 && !(ended && self.feed.last_read() >= from) {
            return;
        }
        self.inheritance = Inheritance::default();
        if moved > 0 {
            warn!(
                partitions = partitions.len(),
                messages = moved,
                "a relay died; it may have been one of these messages, so they are marked while they are attempted"
            );
        } else {
            info!(partitions = partitions.len(), "partitions of a dead relay taken over; nothing of it was under way");
        }
        self.give_up_late();
    }
}
