//! Leaves what cannot be written, where its partition is given up, and where a drain has nothing else to do.
//!
//! It stands in its table as it was before the attempt, and the next owner will attempt it once more. Waiting for it would
//! keep the partition, and all else in it, from whoever is to have it; a stop would last until its grace is over, and a
//! drain for ever.
//!
//! Before that it is tried again for a moment: a full disk may have room by now, and then nothing is attempted twice.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{Engine, Gone, Rest, Settling};
use crate::event::Event;
use crate::message::{Key, MessageId, Seq};

impl Settling {
    /// Messages and rows that are set aside.
    fn aside(&self) -> (usize, usize) {
        let rows = self.rest.aside().filter(|item| matches!(item, Rest::Row(_))).count();
        (self.delivered.aside().count() + self.rest.aside().count() - rows, rows)
    }

    /// True when the outcome before this one in its key is set aside: what follows waits for that.
    pub(in crate::engine) fn keeps_waiting(&self, destination: &str, key: Option<&Key>) -> bool {
        key.is_some() && self.rest.aside().any(|item| item.ordering_key() == key && item.parks_key_at(destination))
    }
}

impl Rest {
    fn ordering_key(&self) -> Option<&Key> {
        match self {
            Rest::Move { moved, .. } => moved.ordering_key.as_ref(),
            Rest::Row(outcome) => outcome.ordering_key.as_ref(),
        }
    }

    fn parks_key_at(&self, destination: &str) -> bool {
        match self {
            Rest::Move { moved, .. } => {
                moved.units.iter().any(|unit| unit.destination == destination && unit.remains.parks_key())
            }
            Rest::Row(outcome) => outcome.destination == destination && outcome.change.parks_key(),
        }
    }
}

impl Engine {
    /// True when nothing is in hands, or to be written, but what is set aside.
    pub(in crate::engine) fn is_idle_but_for_aside(&self) -> bool {
        let (messages, rows) = self.settling.aside();
        let idle = self.settling.len() == messages + rows && !self.settling.is_writing();
        idle && self.running.is_empty() && self.hands.open() <= messages && self.due.rows() <= rows
    }

    /// True when no row is in hands but those whose outcome is set aside.
    pub(in crate::engine) fn holds_no_rows_but_aside(&self) -> bool {
        self.due.rows() <= self.settling.aside().1
    }

    /// A drain has nothing to do but what is set aside, if anything is: that is tried again for a moment. True when that
    /// moment is over.
    pub(in crate::engine) fn drains_without_aside(&mut self, now: Instant) -> bool {
        let (messages, rows) = self.settling.aside();
        if messages + rows == 0 {
            return true;
        }
        match self.settling.drain_until {
            None => {
                self.settling.drain_until = Some(now + PATIENCE);
                self.settling.delivered.try_aside();
                self.settling.rest.try_aside();
                false
            }
            Some(until) if now < until => false,
            Some(_) => {
                warn!(outcomes = messages + rows, "what cannot be written is left behind; it is delivered again");
                self.tell_unwritten(messages + rows);
                true
            }
        }
    }

    /// Outcomes were left, and what they were about will be attempted again.
    pub(in crate::engine) fn tell_unwritten(&self, outcomes: usize) {
        if outcomes > 0 {
            self.tell_event(&Event::Unwritten { outcomes });
        }
    }

    /// Partitions are to be given up: what is set aside is tried at once.
    pub(in crate::engine) fn try_aside(&mut self, now: Instant) {
        self.settling.leave_from = Some(now + PATIENCE);
        self.settling.delivered.try_aside();
        self.settling.rest.try_aside();
    }

    /// Something was set aside. In partitions that are being given up it is tried again soon, and dropped when it has been
    /// tried for long enough.
    pub(super) fn leave_aside(&mut self, now: Instant) {
        if self.settling.drain_until.is_some_and(|until| now < until) {
            self.settling.delivered.try_at(now + SOON, |_| true);
            self.settling.rest.try_at(now + SOON, |_| true);
            return;
        }
        if self.leaving.is_empty() {
            return;
        }
        let leaving = self.leaving;
        let is_gone = |gone: &Gone| leaving.contains(gone.partition_no);
        let is_left = |item: &Rest| leaving.contains(item.partition_no());
        if self.settling.leave_from.is_some_and(|from| now < from) {
            self.settling.delivered.try_at(now + SOON, is_gone);
            self.settling.rest.try_at(now + SOON, is_left);
            return;
        }
        let gone = self.settling.delivered.take_aside(is_gone);
        let rest = self.settling.rest.take_aside(is_left);
        self.tell_unwritten(gone.len() + rest.len());
        for gone in gone {
            tell_left(gone.id);
            self.hands.drop_held(gone.seq);
        }
        for item in rest {
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
