//! Who owns which partition.
//!
//! A loop of its own, on a connection of its own, never behind a handler: it raises this relay's beat, watches the
//! beats of the others, declares dead whoever stood still for a lease, takes what is this relay's share of what nobody
//! owns, and gives up what is another's. What it finds it publishes as [`Ownership`]; the engine follows.
//!
//! Invariants
//! - The table is right: what is owned is what the last look read back.
//! - A relay is declared dead only by one whose own renewals succeeded all the while: an outage of the database
//!   accuses nobody.
//! - A beat of our own that falls back shows that the database was put back to an earlier state: as if declared dead, the
//!   relay starts anew.
//! - No renewal for an engine that does not tick.
//! - A partition is released only when the engine has nothing of it in hands; once it is being given up, it goes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::engine::Ask;
use crate::lease::{self, Plan, Seat};
use crate::message::{PartitionSet, RelayId};
use crate::outage::Outages;
use crate::store::{Membership, Store, StoreError};

/// What this relay owns, as far as it knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ownership {
    /// The partitions.
    pub partitions: PartitionSet,
    /// Those of them that are another's share: to be finished, not to be fed.
    pub giving_up: PartitionSet,
    /// The epoch of each.
    pub epochs: HashMap<u8, i64>,
    /// A lease after the last successful renewal was sent.
    pub valid_until: Option<Instant>,
    /// The relay's row is gone.
    pub expelled: bool,
    /// Every partition has an owner that is known to live.
    pub settled: bool,
}

impl Ownership {
    /// True while the lease is known to be held.
    pub(crate) fn usable_at(&self, now: Instant) -> bool {
        !self.expelled && self.valid_until.is_some_and(|until| now < until)
    }
}

/// The loop.
pub(crate) struct MembershipLoop {
    pub store: Arc<dyn Store>,
    pub relay: RelayId,
    pub lease: Duration,
    pub publish: watch::Sender<Ownership>,
    /// Rises with every round of the engine.
    pub ticks: Arc<AtomicU64>,
    /// What the engine is asked for: a relay that stops gives everything up.
    pub ask: watch::Receiver<Ask>,
    /// Partitions of which the engine has nothing in hands any more and takes nothing new.
    pub quiet: watch::Receiver<PartitionSet>,
}

/// What the loop remembers between two looks.
struct State {
    watch: Watch,
    outages: Outages,
    epochs: HashMap<u8, i64>,
    giving_up: PartitionSet,
    valid_until: Option<Instant>,
    settled: bool,
    next_beat: Instant,
    /// Our own beat as it was read last. It only ever rises.
    beat: i64,
    /// Which of the free partitions are tried first.
    turn: usize,
    not_serving: Vec<String>,
}

impl State {
    fn new(now: Instant) -> State {
        State {
            watch: Watch::default(),
            outages: Outages::default(),
            epochs: HashMap::new(),
            giving_up: PartitionSet::EMPTY,
            valid_until: None,
            settled: false,
            next_beat: now,
            beat: i64::MIN,
            turn: 0,
            not_serving: Vec::new(),
        }
    }

    /// False where our own beat has fallen back: this is an older copy of the database, restored, or a standby that was
    /// promoted before it had everything. What we remember of rows, routes and owners proves nothing there.
    fn goes_on(&mut self, me: RelayId, seen: &Membership) -> bool {
        let beat = seen.relays.iter().find(|relay| relay.id == me).map_or(self.beat, |relay| relay.beat);
        let goes_on = beat >= self.beat;
        if !goes_on {
            warn!(was = self.beat, is = beat, "the database is an older copy of itself; everything is read anew");
        }
        self.beat = beat;
        goes_on
    }

    fn owned(&self) -> PartitionSet {
        self.epochs.keys().copied().collect()
    }
}

/// What was seen of the other relays.
#[derive(Debug, Default)]
struct Watch {
    beats: HashMap<RelayId, Seen>,
}

#[derive(Debug)]
struct Seen {
    beat: i64,
    since: Instant,
    changed: bool,
}

impl Watch {
    /// Takes note of the beats; returns whoever has stood still for a lease.
    fn observe(&mut self, me: RelayId, seen: &Membership, lease: Duration, now: Instant) -> Vec<(RelayId, i64)> {
        self.beats.retain(|id, _| seen.relays.iter().any(|relay| relay.id == *id));
        let mut dead = Vec::new();
        for relay in seen.relays.iter().filter(|relay| relay.id != me) {
            let entry = self.beats.entry(relay.id).or_insert(Seen { beat: relay.beat, since: now, changed: false });
            if entry.beat != relay.beat {
                *entry = Seen { beat: relay.beat, since: now, changed: true };
            } else if now.saturating_duration_since(entry.since) >= lease {
                dead.push((relay.id, relay.beat));
            }
        }
        dead
    }

    /// Our own renewals failed: whatever was not seen meanwhile proves nothing.
    fn start_over(&mut self) {
        self.beats.clear();
    }

    fn is_known_to_live(&self, id: RelayId) -> bool {
        self.beats.get(&id).is_some_and(|seen| seen.changed)
    }
}

impl MembershipLoop {
    /// Renews until `stop` is dropped or says so, or the relay is expelled.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut state = State::new(Instant::now());
        let mut last_tick = (self.ticks.load(Ordering::Relaxed), Instant::now());
        loop {
            let began = Instant::now();
            let ticks = self.ticks.load(Ordering::Relaxed);
            if ticks != last_tick.0 {
                last_tick = (ticks, began);
            }
            let mut pause = self.lease / 3;
            if began.saturating_duration_since(last_tick.1) > self.lease {
                warn!("the delivery loop has not moved for a lease; the lease is not renewed");
                state.watch.start_over();
            } else {
                match self.round(&mut state, began).await {
                    Ok(Some(next)) => {
                        state.outages.recovered("relay_beat");
                        pause = next;
                    }
                    Ok(None) => {
                        self.publish.send_modify(|ownership| ownership.expelled = true);
                        return;
                    }
                    Err(error) => {
                        state.watch.start_over();
                        pause = pause.min(state.outages.failed("relay_beat", &error));
                    }
                }
            }
            tokio::select! {
                changed = stop.changed() => if changed.is_err() || *stop.borrow() { return },
                Ok(()) = self.ask.changed() => state.next_beat = Instant::now(),
                Ok(()) = self.quiet.changed() => {}
                () = tokio::time::sleep_until((began + pause).into()) => {}
            }
        }
    }

    /// Renews when it is time, looks otherwise, and acts upon what is seen. Returns the pause until the next look, or
    /// `None` when our row is gone.
    async fn round(&mut self, state: &mut State, began: Instant) -> Result<Option<Duration>, StoreError> {
        self.release(state).await;
        let draining = *self.ask.borrow_and_update() == Ask::Stop;
        let seen = if began >= state.next_beat {
            let seen = self.store.relay_beat(self.relay, draining).await?;
            if seen.is_some() {
                state.valid_until = Some(began + self.lease);
                state.next_beat = began + self.lease / 3;
            }
            seen
        } else {
            let seen = self.store.membership_read().await?;
            seen.relays.iter().any(|relay| relay.id == self.relay).then_some(seen)
        };
        let Some(mut seen) = seen else { return Ok(None) };
        if !state.goes_on(self.relay, &seen) {
            return Ok(None);
        }
        self.bury_dead(state, &mut seen, began).await?;

        state.epochs = seen
            .partitions
            .iter()
            .filter(|(_, owner, _)| *owner == Some(self.relay))
            .map(|&(partition_no, _, epoch)| (partition_no, epoch))
            .collect();
        let plan = self.plan(state, &seen);
        self.tell_not_serving(state, &plan);
        state.giving_up = state.owned().and(state.giving_up.or(plan.give_up));
        self.acquire(state, plan.take, began).await;

        let lives = |id: RelayId| id == self.relay || state.watch.is_known_to_live(id);
        state.settled = seen
            .partitions
            .iter()
            .all(|(partition_no, owner, _)| state.epochs.contains_key(partition_no) || owner.is_some_and(lives));
        self.publish(state);
        let moving = plan.uneven || !state.giving_up.is_empty() || seen.relays.iter().any(|relay| relay.draining);
        let pause = if moving { self.lease / 30 } else { self.lease / 12 };
        Ok(Some(pause.min(state.next_beat.saturating_duration_since(began)).max(PAUSE_MIN)))
    }

    /// Declares dead whoever stood still for a lease, and takes them out of what was seen.
    async fn bury_dead(&self, state: &mut State, seen: &mut Membership, began: Instant) -> Result<(), StoreError> {
        let dead = state.watch.observe(self.relay, seen, self.lease, began);
        if dead.is_empty() {
            return Ok(());
        }
        let buried = self.store.relay_bury(&dead).await?;
        for id in &buried {
            let name = seen.relays.iter().find(|relay| relay.id == *id).map_or("", |relay| relay.name.as_str());
            info!(relay = name, relay.id = %id, "a relay stood still for a lease and was declared dead");
        }
        seen.relays.retain(|relay| !buried.contains(&relay.id));
        Ok(())
    }

    fn plan(&self, state: &State, seen: &Membership) -> Plan {
        let seats: Vec<Seat<'_>> = seen
            .relays
            .iter()
            .map(|relay| Seat {
                id: relay.id,
                started_at: relay.started_at,
                draining: relay.draining,
                serves: &relay.serves,
                lives: relay.id == self.relay || state.watch.is_known_to_live(relay.id),
            })
            .collect();
        let owners: Vec<(u8, Option<RelayId>)> =
            seen.partitions.iter().map(|&(partition_no, owner, _)| (partition_no, owner)).collect();
        lease::plan(self.relay, &seats, &owners)
    }

    fn tell_not_serving(&self, state: &mut State, plan: &Plan) {
        if plan.not_serving == state.not_serving {
            return;
        }
        if plan.not_serving.is_empty() {
            info!("this relay serves what the others serve; it takes its share of the partitions");
        } else {
            let destinations = plan.not_serving.join(", ");
            warn!(destinations, "another relay serves destinations that this one does not; it owns no partition");
        }
        state.not_serving.clone_from(&plan.not_serving);
    }

    /// Takes free partitions.
    ///
    /// A few at a time: each repairs the keys of what it takes, however many rows wait there, and neither the beat nor
    /// the patience of a store may depend on that. What is left is taken with the next looks.
    async fn acquire(&self, state: &mut State, wanted: PartitionSet, began: Instant) {
        let mut wanted: Vec<u8> = wanted.iter().collect();
        let turn = state.turn.checked_rem(wanted.len()).unwrap_or(0);
        wanted.rotate_left(turn);
        for some in wanted.chunks(ACQUIRED_AT_ONCE) {
            if began.elapsed() >= self.lease / 3 {
                break;
            }
            match self.store.partition_acquire(self.relay, some.iter().copied().collect()).await {
                Ok(taken) => {
                    state.outages.recovered("partition_acquire");
                    state.epochs.extend(taken);
                }
                Err(error) => {
                    // What is owned is owned all the same. The others go first the next time.
                    state.outages.failed("partition_acquire", &error);
                    state.turn = state.turn.wrapping_add(ACQUIRED_AT_ONCE);
                    break;
                }
            }
        }
    }

    /// Releases what is being given up and has come to rest in the engine.
    async fn release(&mut self, state: &mut State) {
        let quiet = self.quiet.borrow_and_update().and(state.giving_up);
        if quiet.is_empty() {
            return;
        }
        match self.store.partition_release(self.relay, quiet).await {
            Ok(()) => {
                state.outages.recovered("partition_release");
                state.epochs.retain(|partition_no, _| !quiet.contains(*partition_no));
                state.giving_up = state.giving_up.without(quiet);
                info!(partitions = quiet.len(), "partitions given up");
                self.publish(state);
            }
            // They are still ours, and tried again before the next look.
            Err(error) => {
                state.outages.failed("partition_release", &error);
            }
        }
    }

    fn publish(&self, state: &State) {
        let partitions = state.owned();
        self.publish.send_if_modified(|ownership| {
            let changed = ownership.epochs != state.epochs
                || ownership.giving_up != state.giving_up
                || ownership.settled != state.settled
                || !ownership.usable_at(Instant::now());
            ownership.partitions = partitions;
            ownership.giving_up = state.giving_up;
            ownership.epochs.clone_from(&state.epochs);
            ownership.valid_until = state.valid_until;
            ownership.settled = state.settled;
            changed
        });
    }
}

/// Partitions taken in one transaction.
const ACQUIRED_AT_ONCE: usize = 4;
/// The shortest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RelaySeen;

    fn seen(beats: &[(u128, i64)]) -> Membership {
        let relays = beats
            .iter()
            .map(|&(id, beat)| RelaySeen {
                id: RelayId::from_u128(id),
                name: format!("r{id}"),
                version: "0".into(),
                beat,
                draining: false,
                serves: Vec::new(),
                started_at: chrono::DateTime::UNIX_EPOCH,
            })
            .collect();
        Membership { relays, partitions: Vec::new() }
    }

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn a_beat_that_stands_still_for_a_lease_is_a_death() {
        let (mut watch, me, start) = (Watch::default(), RelayId::from_u128(1), Instant::now());
        assert!(watch.observe(me, &seen(&[(1, 5), (2, 7)]), LEASE, start).is_empty());
        assert!(watch.observe(me, &seen(&[(1, 5), (2, 8)]), LEASE, start + LEASE).is_empty(), "it moved");
        let later = start + LEASE * 2;
        assert_eq!(watch.observe(me, &seen(&[(1, 5), (2, 8)]), LEASE, later), [(RelayId::from_u128(2), 8)]);
    }

    #[test]
    fn a_beat_of_our_own_that_falls_back_ends_this_life() {
        let (mut state, me) = (State::new(Instant::now()), RelayId::from_u128(1));
        for (beat, goes_on) in [(5, true), (6, true), (6, true), (8, true), (7, false)] {
            assert_eq!(state.goes_on(me, &seen(&[(1, beat), (2, 99)])), goes_on, "{beat}");
        }
    }

    #[test]
    fn an_outage_of_our_own_accuses_nobody() {
        let (mut watch, me, start) = (Watch::default(), RelayId::from_u128(1), Instant::now());
        watch.observe(me, &seen(&[(2, 7)]), LEASE, start);
        watch.start_over();
        assert!(watch.observe(me, &seen(&[(2, 7)]), LEASE, start + LEASE * 5).is_empty());
    }
}
