//! Follows what is registered: the routes, pauses and holds.
//!
//! Invariants
//! - Routes that have been replaced are kept while anything that is not settled was decided by them: which destinations it
//!   was for is known from nowhere else.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{Answer, Engine};
use crate::route::Routes;
use crate::store::{DestinationSeen, Routing, StoreError};

/// Routes that have been replaced.
pub(super) struct OldRoutes {
    pub(super) version: i64,
    names: Vec<String>,
    routes: Arc<Routes>,
}

/// The destinations were read.
pub(super) struct RoutingAnswer {
    number: u64,
    asked: Instant,
    answered: Instant,
    result: Result<Routing, StoreError>,
}

impl OldRoutes {
    /// The names of the destinations a topic had.
    pub(super) fn names_for(&self, topic: &str) -> Vec<String> {
        self.routes.route(topic).iter().map(|&destination| self.names[destination].clone()).collect()
    }
}

impl Engine {
    pub(super) fn start_routing(&mut self, now: Instant) {
        if self.routing_busy || now < self.routing_next {
            return;
        }
        self.routing_busy = true;
        let number = self.settling.routing_read_begins();
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::spawn(async move {
            let asked = Instant::now();
            let result = store.destination_read(None).await;
            let _ = answers.send(Answer::Routing(RoutingAnswer { number, asked, answered: Instant::now(), result }));
        });
    }

    pub(super) fn routing_answered(&mut self, answer: RoutingAnswer) {
        let RoutingAnswer { number, asked, answered, result } = answer;
        let now = Instant::now();
        self.routing_busy = false;
        self.routing_next = now + ROUTING_PERIOD;
        match result {
            Ok(routing) => {
                self.outages.recovered("destination_read");
                self.holds_told(number, &routing, asked, answered);
                self.adopt_routing(number, routing, now);
                self.routes_confirmed(number);
                if self.settling.needs_routes() {
                    self.routing_next = now;
                }
            }
            Err(error) => {
                self.outages.failed("destination_read", &error);
            }
        }
    }

    fn adopt_routing(&mut self, number: u64, routing: Routing, now: Instant) {
        let old = std::mem::replace(&mut self.routing, routing);
        // Somebody may have taken a row out by hand: routes name destinations by their place in the list.
        let same = |(old, new): (&DestinationSeen, &DestinationSeen)| old.spec == new.spec;
        let same_list = old.destinations.len() == self.routing.destinations.len()
            && old.destinations.iter().zip(&self.routing.destinations).all(same);
        if self.routing.version != self.routes.version() || !same_list {
            let routes = std::mem::replace(&mut self.routes, Arc::new(Routes::new(&self.routing)));
            let names = old.destinations.into_iter().map(|seen| seen.spec.name).collect();
            self.old_routes.push(OldRoutes { version: routes.version(), names, routes });
            let used: HashSet<i64> = self.hands.routes_versions().chain(self.settling.routes_versions()).collect();
            self.old_routes.retain(|old| used.contains(&old.version));
            self.tell_unusable();
            self.due.search.routes_changed(now);
            self.feed.routes_changed();
        }
        self.follow_pauses(number, now);
    }

    pub(super) fn tell_unusable(&self) {
        for (destination, error) in self.routes.unusable() {
            warn!(destination, %error, "a registered pattern cannot be read and matches nothing here");
        }
    }

    /// Opens and closes lanes as the table says.
    pub(super) fn follow_pauses(&mut self, number: u64, now: Instant) {
        let seen: Vec<(usize, bool, Option<Duration>)> = self
            .routing
            .destinations
            .iter()
            .filter_map(|seen| Some((*self.lane_by_name.get(&seen.spec.name)?, seen.paused, seen.held_for)))
            .collect();
        for (lane, paused, held_for) in seen {
            if let Some(held_for) = held_for.filter(|_| self.clock.trusts_holds(number)) {
                let until = now + held_for;
                let held = &mut self.lanes[lane].held_until;
                *held = Some(held.map_or(until, |held| held.max(until)));
            }
            let paused = paused || number < self.lanes[lane].paused_until_read;
            self.open_or_close(lane, paused, now);
        }
    }

    /// Opens or closes a lane as pauses and holds say; a lane that closes gives its messages back as waiting rows.
    pub(super) fn open_or_close(&mut self, lane: usize, paused: bool, now: Instant) {
        let state = &mut self.lanes[lane];
        if state.held_until.is_some_and(|until| until <= now) {
            state.held_until = None;
        }
        let closed = if paused {
            Some("paused")
        } else if state.held_until.is_some() {
            Some("held")
        } else if state.breaker.is_open(now) {
            Some("circuit open")
        } else {
            None
        };
        if closed == state.closed_reason {
            return;
        }
        state.closed_reason = closed;
        match closed {
            Some(reason) => {
                info!(destination = %state.served.name, reason, "destination takes nothing for now");
                let left = state.lane.close();
                self.due.followers.lane_cleared(lane);
                self.put_aside(lane, left);
            }
            None => {
                info!(destination = %state.served.name, "destination takes messages again");
                state.lane.open();
                if state.breaker.probe(now) {
                    state.lane.probe();
                }
                state.next_due = Some(now);
            }
        }
    }

    pub(super) fn is_paused(&self, lane: usize) -> bool {
        let name = &self.lanes[lane].served.name;
        self.lanes[lane].closed_reason == Some("paused")
            || self.routing.destinations.iter().any(|seen| *seen.spec.name == **name && seen.paused)
    }
}

/// How often destinations are read: a pause is obeyed within a second.
pub(super) const ROUTING_PERIOD: Duration = Duration::from_millis(400);
