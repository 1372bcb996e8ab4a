//! Who owns which partition.
//!
//! A loop of its own, on a connection of its own, never behind a handler. Every decision is made by [`Member`], which is
//! pure; the loop puts its questions to the store, brings it the answers, and publishes what it believes to own as
//! [`Ownership`]; the engine follows.
//!
//! Invariants
//! - The loop decides nothing: what it does is what the member says, and the member hears of every answer.
//! - Whatever the store does, the engine hears of it in the order in which the member did.

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
use crate::store::{Store, StoreError};
use member::{Answer, Facts, Member, Task};

mod member;
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

impl MembershipLoop {
    /// Renews until `stop` is dropped or says so, or the relay is expelled.
    pub(crate) async fn run(mut self, mut stop: Receiver<bool>) {
        let mut member = Member::new(self.relay, self.lease, Moment::now());
        let mut told = Told::default();
        loop {
            let began = Instant::now();
            let Some(pause) = self.round(&mut member, &mut told).await else { return };
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
    async fn round(&mut self, member: &mut Member, told: &mut Told) -> Option<Duration> {
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
                Task::Beat { .. } | Task::Look | Task::Bury(_) => match self.renew(&task, member).await {
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
    async fn renew(&self, task: &Task, member: &Member) -> Result<Answer, StoreError> {
        Ok(match task {
            Task::Beat { draining } => Answer::Seen(self.store.relay_beat(self.relay, *draining).await?),
            Task::Bury(dead) => {
                let buried = self.store.relay_bury(dead).await?;
                for id in &buried {
                    let name = member.name_of(*id);
                    info!(relay = name, relay.id = %id, "a relay stood still for a lease and was declared dead");
                }
                Answer::Buried(buried)
            }
            _ => Answer::Seen(Some(self.store.membership_read().await?)),
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
