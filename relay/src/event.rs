//! What happened to a delivery, as a fact.
//!
//! Facts carry no decisions: whoever listens can tell, count or show them, and nothing waits for a listener. Payloads
//! never travel here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::message::MessageId;
use crate::store::Reason;
use crate::verdict::Verdict;

/// A fact about a delivery.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// An attempt was judged.
    Attempted {
        /// Which delivery.
        delivery: DeliveryRef,
        /// Which attempt, from 1.
        attempt: u32,
        /// How it was judged.
        verdict: Verdict,
        /// The HTTP status or a short word.
        code: String,
        /// How long it took.
        took: Duration,
    },
    /// A delivery waits for another attempt.
    Waiting {
        /// Which delivery.
        delivery: DeliveryRef,
        /// For how long at least.
        pause: Duration,
    },
    /// A delivery was given up; the dead letter is about to be written.
    DeadLettered {
        /// Which delivery.
        delivery: DeliveryRef,
        /// Why.
        reason: Reason,
    },
    /// A destination failed so often in a row that nothing is attempted there for a while; then one attempt decides.
    CircuitOpened {
        /// Which destination.
        destination: String,
        /// For how long.
        pause: Duration,
    },
    /// That destination answers again.
    CircuitClosed {
        /// Which destination.
        destination: String,
    },
    /// The database refused outcomes that came too late: their partitions belong to another relay by now, or were taken
    /// anew. Nothing was changed. The new owner has the messages; what was delivered here may be delivered again there.
    Refused {
        /// How many deliveries they were about.
        outcomes: usize,
    },
    /// Outcomes could not be written, and the relay ends, or gives their partitions up, without them. What they were about
    /// stands as it stood before the attempt, and is attempted again.
    Unwritten {
        /// How many.
        outcomes: usize,
    },
}

/// Names a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRef {
    /// The message.
    pub message_id: MessageId,
    /// Its topic.
    pub topic: String,
    /// The destination.
    pub destination: String,
}

/// Somebody who wants to be told. Called on the relay's own task: it must return at once.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// Counts what happens to deliveries.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    attempts: AtomicU64,
    delivered: AtomicU64,
    retried: AtomicU64,
    dead_lettered: AtomicU64,
    refused: AtomicU64,
    unwritten: AtomicU64,
}

impl Tally {
    /// A listener that counts and then tells `next`.
    pub(crate) fn listener(self: &Arc<Tally>, next: Option<Listener>) -> Listener {
        let tally = self.clone();
        Arc::new(move |event| {
            tally.count(event);
            if let Some(next) = &next {
                next(event);
            }
        })
    }

    /// Attempts, delivered, retried, dead-lettered.
    pub(crate) fn counts(&self) -> [u64; 4] {
        [&self.attempts, &self.delivered, &self.retried, &self.dead_lettered].map(|count| count.load(Ordering::Relaxed))
    }

    /// Outcomes that came too late.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Outcomes that could not be written.
    pub(crate) fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    fn count(&self, event: &Event) {
        let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        match event {
            Event::Attempted { verdict, .. } => {
                add(&self.attempts);
                if *verdict == Verdict::Delivered {
                    add(&self.delivered);
                }
            }
            Event::Waiting { .. } => drop(add(&self.retried)),
            Event::DeadLettered { .. } => drop(add(&self.dead_lettered)),
            Event::CircuitOpened { .. } | Event::CircuitClosed { .. } => {}
            Event::Refused { outcomes } => drop(self.refused.fetch_add(*outcomes as u64, Ordering::Relaxed)),
            Event::Unwritten { outcomes } => drop(self.unwritten.fetch_add(*outcomes as u64, Ordering::Relaxed)),
        }
    }
}
