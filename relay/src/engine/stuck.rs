//! Keeps the queue of one destination from holding up what another decided.
//!
//! A message leaves its table when each destination has an outcome, in one write. So a retry, and every follower of a
//! parked key, would stand in no row, and not be attempted, until the slowest destination has come to the message. Where
//! that takes too long the others give it back: what they have not started becomes rows.
//!
//! Absent: an attempt that has started is waited for, as long as its timeout says.

use std::time::{Duration, Instant};

use super::Engine;
use crate::lane::Origin;
use crate::outcome::waits;
use crate::store::{DueIn, State};

impl Engine {
    /// Lets go of messages that wait in one lane while another has a row of them to write.
    pub(super) fn free_stuck(&mut self, now: Instant) {
        if self.lanes.len() < 2 || now < self.stuck_next {
            return;
        }
        self.stuck_next = now + PERIOD;
        let stuck = self.hands.stuck(|unit, since| {
            // A destination that takes nothing, or that is served elsewhere, does not wait for it.
            let lane = self.lane_by_name.get(&unit.destination).map(|&lane| &self.lanes[lane].lane);
            let Some(lane) = lane.filter(|lane| !lane.is_closed()) else { return false };
            now.saturating_duration_since(since) >= if lane.is_idle() { IDLE_MAX } else { BUSY_MAX }
        });
        if stuck.is_empty() {
            return;
        }
        for lane in 0..self.lanes.len() {
            for work in self.lanes[lane].lane.take_back(&stuck) {
                match work.origin {
                    Origin::Fresh => {
                        let remains = waits(State::Overflow, work.in_order, DueIn::Pause(Duration::ZERO));
                        self.must_wait(lane, &work, remains);
                    }
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
