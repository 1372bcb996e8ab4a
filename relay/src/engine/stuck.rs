//! Keeps one destination from holding up what another decided.
//!
//! A message leaves its table when each destination has an outcome, in one write. So a retry, and every follower of a
//! parked key, would stand in no row, and not be attempted, until the slowest destination has come to the message. Where
//! that takes too long,
//! - what the others have not started is given back: it becomes rows, and the message leaves;
//! - what they have started, and for the first time, is left alone. A retry that is due meanwhile goes out from memory,
//!   or is given back, too, when it is not its turn for long.
//!
//! Invariants
//! - Nothing is given back for a row that nobody waits for: one that is not due, whose key stands still, or whose lane has
//!   enough to do. Otherwise a lane with a queue would lose its fast path to each neighbour that is down.
//! - A retry from memory is at the head of its key, as it was when it failed: nothing behind it is written or attempted
//!   before it.
//! - A message stays in memory for no longer than the first attempts at its destinations take, and one more attempt.
//!
//! Absent: what waits for its turn at one destination waits for the attempts under way of its own message. Whether rows of
//! its key go first only the table knows.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::attempt::Running;
use super::{Engine, TICK};
use crate::lane::{Care, Origin, Work};
use crate::message::{Message, Seq};
use crate::outcome::overflows;
use crate::store::{DueIn, Remains, State, UnitMove};

impl Engine {
    /// Lets go of messages that wait in one lane while another has a row of them to write.
    pub(super) fn free_stuck(&mut self, now: Instant) {
        if self.stuck_wake().is_none_or(|at| now < at) {
            return;
        }
        let begun: HashSet<Seq> = self.running.values().filter_map(Running::fresh_first).collect();
        let (mut stuck, mut again, mut next) = (HashSet::new(), Vec::new(), now + TICK);
        for (message, unit, since) in self.hands.kept_back() {
            let Some(&lane) = self.lane_by_name.get(&unit.destination) else { continue };
            let Some(wanted_at) = self.wanted_at(lane, message, unit, since, now) else { continue };
            let patience = if self.lanes[lane].lane.is_idle() { IDLE_MAX } else { BUSY_MAX };
            if now >= wanted_at + patience {
                stuck.insert(message.seq);
            }
            if begun.contains(&message.seq) && self.may_go_again(message, unit) {
                next = next.min(wanted_at);
                if now >= wanted_at {
                    again.push((message.seq, lane));
                }
            }
            next = next.min(wanted_at + patience);
        }
        self.stuck_next = next.max(now + PERIOD);
        again.sort_unstable();
        for (seq, lane) in again {
            self.try_again(seq, lane);
        }
        if !stuck.is_empty() {
            self.give_back_stuck(&stuck, now);
        }
    }

    /// When something can be stuck next.
    pub(super) fn stuck_wake(&self) -> Option<Instant> {
        (self.lanes.len() > 1 && self.hands.keeps_back()).then_some(self.stuck_next)
    }

    /// From when on somebody waits for this to be written; nobody does where the destination takes nothing, or has enough.
    fn wanted_at(
        &self,
        lane: usize,
        message: &Message,
        unit: &UnitMove,
        since: Instant,
        now: Instant,
    ) -> Option<Instant> {
        let state = &self.lanes[lane];
        let lane = &state.lane;
        if lane.is_closed() {
            return None;
        }
        let starves = || lane.is_idle() && state.next_due.is_none_or(|at| at > now);
        let moves = || message.ordering_key.as_ref().is_some_and(|key| lane.key_moves(key));
        match &unit.remains {
            Remains::Waits(waits) => match (waits.state, waits.due) {
                (State::Retry, DueIn::Pause(pause)) => Some(since + pause),
                (State::Overflow, _) if waits.attempts > 0 => Some(since),
                (State::Blocked, _) if moves() => Some(since),
                (State::Blocked, _) => Some(since + UNWANTED_MAX),
                (State::Overflow, _) if starves() => Some(since),
                _ => None,
            },
            // For people, who want to see it.
            Remains::Dies(_) => Some(since + UNWANTED_MAX),
        }
    }

    /// True for a retry that nothing can have come before since it failed.
    fn may_go_again(&self, message: &Message, unit: &UnitMove) -> bool {
        let is_retry = match &unit.remains {
            // What its lane let go of before it could be tried again.
            Remains::Waits(waits) => {
                waits.state == State::Retry || waits.state == State::Overflow && waits.attempts > 0
            }
            Remains::Dies(_) => false,
        };
        // By other routes, older ones of its key may have come to the destination.
        let same_routes = self.hands.routes_version(message.seq) == Some(self.routes.version());
        is_retry && same_routes && self.kept().contains(message.partition_no)
    }

    fn try_again(&mut self, seq: Seq, lane: usize) {
        let Some(message) = self.hands.message(seq).cloned() else { return };
        let state = &mut self.lanes[lane];
        if !state.lane.may_go_again(&message) {
            return;
        }
        let (waits, since) =
            self.hands.reopen(seq, &state.served.name).expect("it was just found among what is kept back");
        state.lane.push_again(Work {
            origin: Origin::Fresh,
            attempts: waits.attempts,
            in_order: waits.in_order,
            first_attempt_at: Some(waits.first_attempt_age.and_then(|age| since.checked_sub(age)).unwrap_or(since)),
            history: waits.history,
            doomed: None,
            care: Care::Plain,
            suspect: false,
            deaths: 0,
            message,
        });
    }

    fn give_back_stuck(&mut self, stuck: &HashSet<Seq>, now: Instant) {
        for lane in 0..self.lanes.len() {
            for work in self.lanes[lane].lane.take_back(stuck) {
                match work.origin {
                    Origin::Fresh => self.must_wait(lane, &work, overflows(&work, now)),
                    Origin::Waiting(id) => {
                        self.due.forget(id);
                        if let Some(key) = &work.message.ordering_key {
                            self.row_stays(lane, key);
                        }
                    }
                }
            }
        }
    }
}

/// How often it is looked for them.
const PERIOD: Duration = Duration::from_millis(25);
/// A destination with nothing else to do waits so long for its rows.
const IDLE_MAX: Duration = Duration::from_millis(50);
/// One that is at work waits so long.
const BUSY_MAX: Duration = Duration::from_secs(1);
/// What no destination waits for is written after so long.
const UNWANTED_MAX: Duration = Duration::from_secs(10);
