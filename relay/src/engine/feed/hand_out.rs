//! Hands out what was read: to its lanes, or into a waiting row.
//!
//! Nothing here asks the database: what the look-up of the keys said is given.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::engine::Engine;
use crate::lane::{Care, Origin, Work};
use crate::message::{Headers, Key, Message};
use crate::outcome::{EXPIRED, overflows, waits};
use crate::store::{DueIn, Reason, Remains, State};

impl Engine {
    pub(super) fn hand_out(&mut self, messages: Vec<Arc<Message>>, parked: &HashSet<(Option<usize>, Key)>) {
        for message in messages {
            // Ownership may have changed while the keys were looked up.
            if !self.kept_since_read().contains(message.partition_no) || self.hands.contains(message.seq) {
                continue;
            }
            if self.would_pass_unrouted(&message, parked) {
                // Read again, until what has come before it has found its routes.
                self.frontier.reopen(message.seq);
                continue;
            }
            self.hand_out_one(message, parked);
        }
        self.acted_upon_read();
        self.resume_due();
    }

    /// True when an earlier message of the same key stands, or is about to stand, in a row without destination although
    /// there may be a route for it now.
    fn would_pass_unrouted(&self, message: &Message, parked: &HashSet<(Option<usize>, Key)>) -> bool {
        let Some(key) = message.ordering_key.as_ref().filter(|_| !message.scheduled) else { return false };
        if self.is_stuck_behind_unrouted(key) {
            // That may last: it joins the rows of its key, which wait for it too.
            return false;
        }
        parked.contains(&(None, key.clone())) || self.feed.unrouted.may_have_route(key, self.routes.version())
    }

    /// True while something of this key that had no route cannot be written.
    pub(in crate::engine) fn is_stuck_behind_unrouted(&self, key: &Key) -> bool {
        self.due.search.is_stuck(key) || self.feed.unrouted.is_stuck(key)
    }

    fn hand_out_one(&mut self, message: Arc<Message>, parked: &HashSet<(Option<usize>, Key)>) {
        let (version, routes_read) = (self.routes.version(), self.settling.routing_read());
        if message.scheduled {
            let destination = message.only_destination.clone().unwrap_or_default();
            self.hands.take(&message, 1, version, routes_read);
            self.conclude_fresh(&message, &destination, Some(waits(State::Scheduled, false, DueIn::DeliverAt)));
            return;
        }
        let destinations = self.destinations_of(&message);
        if destinations.is_empty() {
            let destination = message.only_destination.clone().unwrap_or_default();
            if self.feed.unrouted_told.len() < UNROUTED_TOLD_MAX
                && self.feed.unrouted_told.insert((message.topic.clone(), destination.clone()))
            {
                if destination.is_empty() {
                    warn!(topic = %message.topic, "no destination takes this topic; its messages wait");
                } else {
                    warn!(topic = %message.topic, destination, "nobody has registered this destination; what is for it waits");
                }
            }
            self.hands.take(&message, 1, version, routes_read);
            if destination.is_empty() {
                self.feed.unrouted.writing(&message, version);
            }
            // A named destination that nobody has registered is asked for by nobody; whoever comes to serve it finds the
            // row due.
            let pause = if destination.is_empty() && !message.is_expired(Instant::now()) {
                UNROUTED_PAUSE
            } else {
                Duration::ZERO
            };
            self.conclude_fresh(&message, &destination, Some(waits(State::Unrouted, true, DueIn::Pause(pause))));
            return;
        }
        self.hands.take(&message, destinations.len(), version, routes_read);
        if self.hand_inherited(&message, &destinations) {
            return;
        }
        // A sink that deletes its delivery's row needs one of its own. All of them get one at once: were the others
        // attempted first, the slowest would decide when it may begin.
        let apart = destinations.len() > 1 && destinations.iter().any(|&destination| self.deletes_rows(destination));
        for &destination in destinations.iter() {
            if apart {
                self.hand_apart(&message, destination);
            } else {
                self.hand_to(&message, destination, parked);
            }
        }
    }

    fn deletes_rows(&self, destination: usize) -> bool {
        self.lane_of(destination).is_some_and(|lane| self.lanes[lane].served.sink.deletes_rows())
    }

    /// The delivery becomes a waiting row, due now.
    fn hand_apart(&mut self, message: &Arc<Message>, destination: usize) {
        match self.lane_of(destination) {
            Some(lane) => {
                let in_order = self.lanes[lane].served.limits.keyed;
                let work = fresh(message, in_order);
                self.must_wait(lane, &work, waits(State::Overflow, in_order, DueIn::Pause(Duration::ZERO)));
            }
            None => self.unserved(message, destination),
        }
    }

    pub(in crate::engine) fn unserved(&mut self, message: &Arc<Message>, destination: usize) {
        let name = self.routing.destinations[destination].spec.name.clone();
        let remains = waits(State::Unserved, self.keeps_order(destination), DueIn::Pause(Duration::ZERO));
        self.conclude_fresh(message, &name, Some(remains));
    }

    fn hand_to(&mut self, message: &Arc<Message>, destination: usize, parked: &HashSet<(Option<usize>, Key)>) {
        let Some(lane) = self.lane_of(destination) else { return self.unserved(message, destination) };
        let in_order = self.lanes[lane].served.limits.keyed;
        let work = fresh(message, in_order);
        let is_parked = message.ordering_key.as_ref().is_some_and(|key| {
            parked.contains(&(Some(lane), key.clone())) || in_order && self.is_stuck_behind_unrouted(key)
        });
        let state = &mut self.lanes[lane];
        let refused = if state.lane.is_closed() || state.lane.is_full() {
            Some((work, State::Overflow))
        } else if is_parked {
            Some((work, State::Blocked))
        } else {
            state.lane.offer(work).map(|work| (work, State::Blocked))
        };
        if let Some((work, label)) = refused {
            self.must_wait(lane, &work, waits(label, in_order, DueIn::Pause(Duration::ZERO)));
        }
    }

    /// A fresh delivery becomes a waiting row without having been attempted.
    pub(in crate::engine) fn must_wait(&mut self, lane: usize, work: &Work, remains: Remains) {
        let name = self.lanes[lane].served.name.clone();
        self.lanes[lane].lane.writing(work);
        self.conclude_fresh(&work.message, &name, Some(remains));
    }

    /// Gives back what a lane no longer takes: fresh messages become rows, rows are simply read again later.
    pub(in crate::engine) fn put_aside(&mut self, lane: usize, left: Vec<Work>) {
        for work in left {
            match work.origin {
                Origin::Fresh => self.must_wait(lane, &work, overflows(&work, Instant::now())),
                Origin::Waiting(id) => self.due.forget(id),
            }
        }
    }
}

/// A message on its way to a destination for the first time.
pub(in crate::engine) fn fresh(message: &Arc<Message>, in_order: bool) -> Work {
    Work {
        message: message.clone(),
        origin: Origin::Fresh,
        attempts: 0,
        in_order,
        first_attempt_at: None,
        history: Vec::new(),
        doomed: None,
        care: Care::Plain,
        suspect: false,
        deaths: 0,
    }
}

/// What can never be delivered takes its turn and is then given up: it is asked for when its turn has come.
pub(in crate::engine) fn doom(message: &Message, now: Instant) -> Option<(Reason, String)> {
    if let Headers::Undecodable(problem) = &message.headers {
        return Some((Reason::Undecodable, problem.clone()));
    }
    message.is_expired(now).then(|| (Reason::Expired, EXPIRED.to_owned()))
}

/// Rows that match no route are searched when the routes change, and now and then. To be due as well is a safety net:
/// each of them is written anew then, and there may be many.
pub(in crate::engine) const UNROUTED_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// Unknown topics told by name; a producer with a loop must not fill the log.
const UNROUTED_TOLD_MAX: usize = 1_000;
