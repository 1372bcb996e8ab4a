//! Who owns which partition.
//!
//! A loop of its own, on a connection of its own, never behind a handler. Every decision is made by [`Member`], which is
//! pure; the loop puts its questions to the store, brings it the answers, and publishes what it believes to own as
//! [`Ownership`]; the engine follows.
//!
//! Invariants
//! - The loop decides nothing: what it does is what the member says, and the member hears of every answer.
//! - Whatever the store does, the engine hears of it in the order in which the member did.
//! - A beat of our own that falls back shows that the database was put back to an earlier state. Whatever is remembered of
//!   it proves nothing there; to the member that row is none of ours.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch::{Receiver, Sender};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::engine::Ask;
use crate::message::{PartitionSet, RelayId};
use crate::moment::Moment;
use crate::outage::Outages;
use crate::store::{Membership, Store, StoreError};
use member::{Answer, Facts, Member, Task};

mod member;
#[cfg(test)]
mod model;
mod watch;

/// What this relay owns, as far as it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ownership {
    /// The partitions.
    pub partitions: PartitionSet,
    /// Those of them that are another's share: to be finished, not to be fed.
    pub giving_up: PartitionSet,
    /// Those of them that were not given up in order: their former owner is dead.
    pub inherited: PartitionSet,
    /// The epoch of each.
    pub epochs: BTreeMap<u8, i64>,
    /// A lease after the last successful renewal was sent.
    pub valid_until: Option<Moment>,
    /// The relay's row is gone.
    pub expelled: bool,
    /// Every partition has an owner that is known to live.
    pub settled: bool,
}

impl Ownership {
    /// True while the lease is known to be held.
    pub(crate) fn usable_at(&self, now: Moment) -> bool {
        !self.expelled && self.valid_until.is_some_and(|until| now < until)
    }

    /// True when whoever knew only this has to hear of `next` at once; a lease that merely goes on is no news.
    fn is_news(&self, next: &Ownership, now: Moment) -> bool {
        let renewed = Ownership { valid_until: next.valid_until, ..self.clone() };
        renewed != *next || !self.usable_at(now)
    }
}

/// The loop.
pub(crate) struct MembershipLoop {
    pub store: Arc<dyn Store>,
    pub relay: RelayId,
    pub lease: Duration,
    pub publish: Sender<Ownership>,
    /// Rises with every round of the engine.
    pub ticks: Arc<AtomicU64>,
    /// What the engine is asked for: a relay that stops gives everything up.
    pub ask: Receiver<Ask>,
    /// Partitions of which the engine has nothing in hands any more and takes nothing new.
    pub quiet: Receiver<PartitionSet>,
}

/// What the loop says to people.
#[derive(Default)]
struct Told {
    outages: Outages,
    not_serving: Vec<String>,
}

/// Our own beat as it was read last. It only ever rises, unless the database itself goes back.
#[derive(Debug)]
struct OwnBeat(i64);

impl OwnBeat {
    /// What was seen, unless it shows an older copy of the database: one that was restored, or a standby that was promoted
    /// before it had everything.
    fn check(&mut self, me: RelayId, seen: Membership) -> Option<Membership> {
        let beat = seen.relays.iter().find(|relay| relay.id == me).map_or(self.0, |relay| relay.beat);
        if beat < self.0 {
            warn!(was = self.0, is = beat, "the database is an older copy of itself; everything is read anew");
            return None;
        }
        self.0 = beat;
        Some(seen)
    }
}

impl MembershipLoop {
    /// Renews until `stop` is dropped or says so, or the relay is expelled.
    pub(crate) async fn run(mut self, mut stop: Receiver<bool>) {
        let mut member = Member::new(self.relay, self.lease, Moment::now());
        let mut told = Told::default();
        let mut beat = OwnBeat(i64::MIN);
        loop {
            let began = Instant::now();
            let Some(pause) = self.round(&mut member, &mut told, &mut beat).await else { return };
            tokio::select! {
                changed = stop.changed() => if changed.is_err() || *stop.borrow() { return },
                // Only woken: the next round sees what changed.
                Ok(()) = self.ask.changed() => {}
                Ok(()) = self.quiet.changed() => {}
                () = tokio::time::sleep_until(began + pause) => {}
            }
        }
    }

    /// Does what the member says until it rests. Returns for how long, or `None` when our row is gone.
    async fn round(&mut self, member: &mut Member, told: &mut Told, beat: &mut OwnBeat) -> Option<Duration> {
        let facts = Facts {
            ticks: self.ticks.load(Ordering::Relaxed),
            draining: *self.ask.borrow_and_update() == Ask::Stop,
            quiet: *self.quiet.borrow_and_update(),
        };
        let mut task = member.wake(facts, Moment::now());
        let mut failed = None;
        loop {
            self.publish(member);
            told.not_serving(member);
            let answer = match task {
                Task::End => return None,
                Task::Stall(pause) => {
                    warn!("the delivery loop has not moved for a lease; the lease is not renewed");
                    return Some(pause);
                }
                Task::Rest(pause) => {
                    if failed.is_none() {
                        told.outages.recovered("relay_beat");
                    }
                    return Some(failed.map_or(pause, |again: Duration| pause.min(again)));
                }
                Task::Release(quiet) => match self.store.partition_release(self.relay, quiet).await {
                    Ok(()) => {
                        told.outages.recovered("partition_release");
                        info!(partitions = quiet.len(), "partitions given up");
                        Answer::Released
                    }
                    Err(error) => told.failed("partition_release", &error).0,
                },
                Task::Acquire(some) => match self.store.partition_acquire(self.relay, some).await {
                    Ok(taken) => {
                        told.outages.recovered("partition_acquire");
                        Answer::Acquired(taken)
                    }
                    Err(error) => told.failed("partition_acquire", &error).0,
                },
                Task::Beat { .. } | Task::Look | Task::Bury(_) => match self.renew(&task, member, beat).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        let (answer, again) = told.failed("relay_beat", &error);
                        failed = Some(again);
                        answer
                    }
                },
            };
            task = member.answered(answer, Moment::now());
        }
    }

    /// The part of a round without which the lease is in doubt.
    async fn renew(&self, task: &Task, member: &Member, beat: &mut OwnBeat) -> Result<Answer, StoreError> {
        let me = self.relay;
        Ok(match task {
            Task::Beat { draining } => {
                let seen = self.store.relay_beat(me, *draining).await?;
                Answer::Seen(seen.and_then(|seen| beat.check(me, seen)))
            }
            Task::Bury(dead) => {
                let buried = self.store.relay_bury(dead).await?;
                for id in &buried {
                    let name = member.name_of(*id);
                    info!(relay = name, relay.id = %id, "a relay stood still for a lease and was declared dead");
                }
                Answer::Buried(buried)
            }
            _ => Answer::Seen(beat.check(me, self.store.membership_read().await?)),
        })
    }

    fn publish(&self, member: &Member) {
        self.publish.send_if_modified(|published| {
            let next = member.ownership();
            let news = published.is_news(next, Moment::now());
            published.clone_from(next);
            news
        });
    }
}

impl Told {
    fn failed(&mut self, operation: &'static str, error: &StoreError) -> (Answer, Duration) {
        (Answer::Failed, self.outages.failed(operation, error))
    }

    fn not_serving(&mut self, member: &Member) {
        if member.not_serving() == self.not_serving {
            return;
        }
        if member.not_serving().is_empty() {
            info!("this relay serves what the others serve; it takes its share of the partitions");
        } else {
            let destinations = member.not_serving().join(", ");
            warn!(destinations, "another relay serves destinations that this one does not; it owns no partition");
        }
        self.not_serving = member.not_serving().to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RelaySeen;

    #[test]
    fn a_beat_of_our_own_that_falls_back_is_not_ours() {
        let (mut own, me) = (OwnBeat(i64::MIN), RelayId::from_u128(1));
        let relay = |id: u128, beat| RelaySeen {
            id: RelayId::from_u128(id),
            name: String::new(),
            version: String::new(),
            lease: Duration::from_secs(3),
            beat,
            draining: false,
            serves: Vec::new(),
            started_at: chrono::DateTime::UNIX_EPOCH,
        };
        for (beat, is_ours) in [(5, true), (6, true), (6, true), (8, true), (7, false)] {
            let seen = Membership { relays: vec![relay(1, beat), relay(2, 9 - beat)], partitions: Vec::new() };
            assert_eq!(own.check(me, seen).is_some(), is_ours, "{beat}");
        }
        // Where our row is missing the member draws its own conclusions.
        let without = Membership { relays: vec![relay(2, 0)], partitions: Vec::new() };
        assert!(own.check(me, without).is_some());
    }
}
