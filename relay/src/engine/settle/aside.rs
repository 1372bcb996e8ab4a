//! Leaves what cannot be written, where its partition is given up.
//!
//! It stands in its table as it was before the attempt, and the next owner will attempt it once more. Waiting for it would
//! keep the partition, and all else in it, from whoever is to have it; a stop would last until its grace is over.
//!
//! Before that it is tried again for a moment: a full disk may have room by now, and then nothing is attempted twice.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tracing::warn;

use super::{Engine, Gone, Rest};
use crate::message::{Key, MessageId, Seq};

impl Engine {
    /// Partitions are to be given up: what is set aside is tried at once.
    pub(in crate::engine) fn try_aside(&mut self, now: Instant) {
        self.settling.leave_from = Some(now + PATIENCE);
        self.settling.delivered.try_aside();
        self.settling.rest.try_aside();
    }

    /// Something was set aside. In partitions that are being given up it is tried again soon, and dropped when it has been
    /// tried for long enough.
    pub(super) fn leave_aside(&mut self, now: Instant) {
        if self.leaving.is_empty() {
            return;
        }
        let leaving = self.leaving;
        let held: HashSet<Seq> = self.hands.in_partitions(leaving).into_iter().collect();
        let is_gone = |gone: &Gone| held.contains(&gone.seq);
        let is_left = |item: &Rest| leaving.contains(item.partition_no());
        if self.settling.leave_from.is_some_and(|from| now < from) {
            self.settling.delivered.try_at(now + SOON, is_gone);
            self.settling.rest.try_at(now + SOON, is_left);
            return;
        }
        for gone in self.settling.delivered.take_aside(is_gone) {
            tell_left(gone.id);
            self.hands.drop_held(gone.seq);
        }
        for item in self.settling.rest.take_aside(is_left) {
            tell_left(item.message_id());
            match item {
                Rest::Move { moved, .. } => {
                    if let Some(key) = &moved.ordering_key {
                        self.feed.unrouted.written(key, moved.seq);
                        for unit in moved.units.iter().filter(|unit| unit.remains.parks_key()) {
                            if let Some(&lane) = self.lane_by_name.get(&unit.destination) {
                                self.never_written(lane, key, Some(moved.seq));
                            }
                        }
                    }
                    self.hands.drop_held(moved.seq);
                }
                Rest::Row(outcome) => {
                    self.due.forget(outcome.id);
                    self.starts.settled(outcome.id);
                    let lane = self.lane_by_name.get(&outcome.destination).copied();
                    let parks = outcome.change.parks_key();
                    if let (true, Some(lane), Some(key)) = (parks, lane, &outcome.ordering_key) {
                        self.never_written(lane, key, None);
                        self.row_stays(lane, key);
                    }
                }
            }
        }
    }

    fn never_written(&mut self, lane: usize, key: &Key, new: Option<Seq>) {
        let (next_read, next_look) = (self.feed.next_read(), self.due.next_number());
        self.lanes[lane].lane.written(key, new, next_read, next_look);
    }
}

/// So long it is tried again and again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries then.
const SOON: Duration = Duration::from_millis(200);

fn tell_left(message_id: MessageId) {
    warn!(message.id = %message_id, "what came of a message cannot be written; its partition is given up all the same");
}
