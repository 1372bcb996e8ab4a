//! Brings waiting rows forward when the database's clock was put back.
//!
//! Each relay does so for the partitions it owns when it notices, and for those it takes over soon afterwards, whose owner
//! may have had no time to. Done twice, a retry comes early; not done, it comes as late as the clock was put back. A
//! message's own `deliver_at` is an hour somebody named, and stays.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::warn;

use super::{Answer, Engine};
use crate::clock_watch::{ClockWatch, Look};
use crate::message::PartitionSet;
use crate::store::StoreError;

/// What is known of the database's clock.
pub(super) struct DatabaseClock {
    watch: ClockWatch,
    /// By how much it was put back, and when that was noticed.
    put_back: Option<(Duration, Instant)>,
    /// Partitions whose rows are still to come forward.
    to_do: PartitionSet,
    busy: bool,
    retry_at: Instant,
    /// Reads of the destinations numbered below this one may tell of holds that last too long.
    holds_known_from: u64,
}

impl DatabaseClock {
    pub(super) fn new(now: Instant) -> DatabaseClock {
        DatabaseClock {
            watch: ClockWatch::default(),
            put_back: None,
            to_do: PartitionSet::EMPTY,
            busy: false,
            retry_at: now,
            holds_known_from: 0,
        }
    }

    /// Whether holds told by this read of the destinations are by the clock as it is.
    pub(super) fn trusts_holds(&self, routing_read: u64) -> bool {
        routing_read >= self.holds_known_from
    }
}

impl Engine {
    /// The database told its hour.
    pub(super) fn hour_told(&mut self, hour: DateTime<Utc>, asked: Instant, answered: Instant) {
        let Some(by) = self.clock.watch.see(Look { hour, asked, answered }) else { return };
        warn!(?by, "the database's clock was put back; what waits comes forward by as much");
        let before = self.clock.put_back.filter(|_| !self.clock.to_do.is_empty()).map_or(Duration::ZERO, |(by, _)| by);
        self.clock.put_back = Some((before.saturating_add(by), answered));
        self.clock.to_do = self.owned;
        self.clock.holds_known_from = u64::MAX;
    }

    /// Partitions were taken over: their last owner may not have come to it.
    pub(super) fn clock_gained(&mut self, gained: PartitionSet, now: Instant) {
        match self.clock.put_back {
            Some((_, noticed)) if now.saturating_duration_since(noticed) < REMEMBERED => {
                self.clock.to_do = self.clock.to_do.or(gained);
            }
            // It has not come to an end here either.
            Some(_) if !self.clock.to_do.is_empty() || self.clock.holds_known_from == u64::MAX => {
                self.clock.to_do = self.clock.to_do.or(gained);
            }
            _ => self.clock.put_back = None,
        }
    }

    /// Brings the rows of some partitions forward.
    pub(super) fn start_bring_forward(&mut self, now: Instant) {
        let Some((by, _)) = self.clock.put_back else { return };
        self.clock.to_do = self.clock.to_do.and(self.owned);
        let holds_too = self.clock.holds_known_from == u64::MAX;
        if self.clock.busy || now < self.clock.retry_at || (self.clock.to_do.is_empty() && !holds_too) {
            return;
        }
        self.clock.busy = true;
        // The holds once and by themselves; then a few partitions at a time, however many rows wait there.
        let at_once = if holds_too { 0 } else { AT_ONCE };
        let some: PartitionSet = self.clock.to_do.iter().take(at_once).collect();
        let (store, answers, relay) = (self.store.clone(), self.answers.clone(), self.relay);
        tokio::spawn(async move {
            let result = store.delivery_bring_forward(relay, some, by, None).await;
            let _ = answers.send(Answer::BroughtForward { partitions: some, result });
        });
    }

    pub(super) fn brought_forward(&mut self, partitions: PartitionSet, result: Result<(), StoreError>) {
        let now = Instant::now();
        self.clock.busy = false;
        match result {
            Ok(()) => {
                self.outages.recovered("delivery_bring_forward");
                self.clock.to_do = self.clock.to_do.without(partitions);
                if self.clock.holds_known_from == u64::MAX {
                    self.clock.holds_known_from = self.settling.routing_read() + 1;
                    self.routing_next = now;
                    for state in &mut self.lanes {
                        state.held_until = None;
                    }
                }
                for state in &mut self.lanes {
                    state.next_due = Some(now);
                }
                self.due.look_soon(now);
            }
            Err(error) => self.clock.retry_at = now + self.outages.failed("delivery_bring_forward", &error),
        }
    }
}

/// Partitions brought forward in one transaction.
const AT_ONCE: usize = 4;
/// For so long partitions that are taken over are brought forward too.
const REMEMBERED: Duration = Duration::from_secs(60);
