//! Who owns which partition.
//!
//! A loop of its own, on a connection of its own, never behind a handler: it raises this relay's beat, watches the
//! beats of the others, declares dead whoever stood still for a lease, and takes what nobody owns. What it finds it
//! publishes as [`Ownership`]; the engine follows.
//!
//! Invariants
//! - The table is right: what is owned is what the last renewal read back.
//! - A relay is declared dead only by one whose own renewals succeeded all the while: an outage of the database
//!   accuses nobody.
//! - No renewal for an engine that does not tick.
//!
//! A relay that stops says so with its beat, takes nothing more, and gives back partition by partition what it has
//! finished. Whoever sees it beats faster, to take them over without a gap.
//!
//! Sharing partitions out between several living relays is not done yet: a second relay stands by and takes over.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::engine::Ask;
use crate::message::{PartitionSet, RelayId};
use crate::outage::Outages;
use crate::store::{Membership, Store, StoreError};

/// What this relay owns, as far as it knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ownership {
    /// The partitions.
    pub partitions: PartitionSet,
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
    /// What the engine is asked for: one that is to stop takes nothing more.
    pub asked: watch::Receiver<Ask>,
}

/// What was seen of the other relays.
#[derive(Debug, Default)]
struct Watch {
    beats: HashMap<RelayId, Seen>,
    /// Which of the free partitions are tried first.
    turn: usize,
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
        let mut watch = Watch::default();
        let mut outages = Outages::default();
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
                watch.start_over();
            } else {
                match self.renew(&mut watch, &mut outages, began).await {
                    Ok(Renewal::Done { handed_over }) => {
                        outages.recovered("relay_beat");
                        if handed_over {
                            pause = pause.min(HANDOVER_PAUSE);
                        }
                    }
                    Ok(Renewal::Expelled) => {
                        self.publish.send_modify(|ownership| ownership.expelled = true);
                        return;
                    }
                    Err(error) => {
                        watch.start_over();
                        pause = pause.min(outages.failed("relay_beat", &error));
                    }
                }
            }
            tokio::select! {
                changed = stop.changed() => if changed.is_err() || *stop.borrow() { return },
                // Closed, it would be ready for ever.
                Ok(()) = self.asked.changed() => {}
                () = tokio::time::sleep_until((began + pause).into()) => {}
            }
        }
    }

    /// One renewal.
    async fn renew(&self, watch: &mut Watch, outages: &mut Outages, began: Instant) -> Result<Renewal, StoreError> {
        let stops = matches!(*self.asked.borrow(), Ask::Stop | Ask::Abandon);
        let Some(seen) = self.store.relay_beat(self.relay, stops).await? else { return Ok(Renewal::Expelled) };
        let dead = watch.observe(self.relay, &seen, self.lease, began);
        let mut buried = Vec::new();
        if !dead.is_empty() {
            buried = self.store.relay_bury(&dead).await?;
            for id in &buried {
                let name = seen.relays.iter().find(|relay| relay.id == *id).map_or("", |relay| relay.name.as_str());
                info!(relay = name, relay.id = %id, "a relay stood still for a lease and was declared dead");
            }
        }
        let alive = |id: RelayId| !buried.contains(&id) && seen.relays.iter().any(|relay| relay.id == id);
        let mut epochs: HashMap<u8, i64> = HashMap::new();
        let mut free = PartitionSet::EMPTY;
        let mut settled = true;
        for &(partition_no, owner, epoch) in &seen.partitions {
            match owner {
                Some(owner) if owner == self.relay => {
                    epochs.insert(partition_no, epoch);
                }
                Some(owner) if alive(owner) => settled &= watch.is_known_to_live(owner),
                _ => free = free.with(partition_no),
            }
        }
        // A few at a time: each repairs the keys of what it takes, however many rows wait there, and neither the beat nor
        // the patience of a store may depend on that. What is left is taken with the next renewals.
        let mut wanted: Vec<u8> = if stops { Vec::new() } else { free.iter().collect() };
        let turn = watch.turn.checked_rem(wanted.len()).unwrap_or(0);
        wanted.rotate_left(turn);
        for some in wanted.chunks(ACQUIRED_AT_ONCE) {
            if began.elapsed() >= self.lease / 3 {
                break;
            }
            match self.store.partition_acquire(self.relay, some.iter().copied().collect()).await {
                Ok(taken) => {
                    outages.recovered("partition_acquire");
                    epochs.extend(taken);
                }
                Err(error) => {
                    // What is owned is owned all the same. The others go first the next time.
                    outages.failed("partition_acquire", &error);
                    watch.turn = watch.turn.wrapping_add(ACQUIRED_AT_ONCE);
                    break;
                }
            }
        }
        settled &= free.iter().all(|partition_no| epochs.contains_key(&partition_no));
        self.publish.send_if_modified(|ownership| {
            let partitions: PartitionSet = epochs.keys().copied().collect();
            let changed =
                ownership.epochs != epochs || ownership.settled != settled || !ownership.usable_at(Instant::now());
            ownership.partitions = partitions;
            ownership.epochs = epochs;
            ownership.valid_until = Some(began + self.lease);
            ownership.settled = settled;
            changed
        });
        let handed_over = !stops && seen.relays.iter().any(|relay| relay.draining && relay.id != self.relay);
        Ok(Renewal::Done { handed_over })
    }
}

/// What came of a renewal.
enum Renewal {
    /// `handed_over`: another relay is giving its partitions up.
    Done { handed_over: bool },
    /// Our row is gone.
    Expelled,
}

/// Between two renewals while another relay gives its partitions up.
const HANDOVER_PAUSE: Duration = Duration::from_millis(50);

/// Partitions taken in one transaction.
const ACQUIRED_AT_ONCE: usize = 4;

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
    fn an_outage_of_our_own_accuses_nobody() {
        let (mut watch, me, start) = (Watch::default(), RelayId::from_u128(1), Instant::now());
        watch.observe(me, &seen(&[(2, 7)]), LEASE, start);
        watch.start_over();
        assert!(watch.observe(me, &seen(&[(2, 7)]), LEASE, start + LEASE * 5).is_empty());
    }
}
