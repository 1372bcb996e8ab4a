//! An hour that only the test moves.
//!
//! Everything the relay asks a database about the present takes an hour. A relay built with a [`Clock`] asks with the
//! clock's, so back-off, holds, `deliver_at` and `expires_at` are jumped over instead of slept through.
//!
//! Invariants
//! - For one relay time stands still between two jumps: what is not due when a drain starts does not become due while
//!   it runs, however slow the machine is.
//! - Leases, beats, timeouts and the grace of a stop do not follow the clock: they measure real time, and a jump must
//!   not make a relay look dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use crate::message::{Key, MessageId, PartitionSet, RelayId, Seq};
use crate::poll::{Evidence, Page, Probe, Wanted};
use crate::store::{
    Circuit, Delivered, DestinationSpec, Due, Followers, KeyAfter, LaneDemand, Membership, Now, RelayRow, Routing,
    RowAhead, Settled, Settlement, StartBatch, Status, Store, StoreError, Taken, UnroutedAfter, UnroutedRow, Written,
};

/// A clock for tests that jumps. Clones are the same clock.
///
/// Give it to [`RelayBuilder::clock`](crate::RelayBuilder::clock). It starts at the present; [`advance`](Clock::advance)
/// jumps. What a database does by itself (`created_at`, a redrive) goes by the real time, and so does a program that
/// computes `deliver_at`: it lies in the clock's past or present, never in its future.
///
/// ```
/// use std::time::Duration;
///
/// let clock = relay::testing::Clock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(3600));
/// assert!(clock.now() - before >= chrono::TimeDelta::hours(1));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead: Arc<Mutex<TimeDelta>>,
}

impl Clock {
    /// A clock that shows the present.
    pub fn new() -> Clock {
        Clock::default()
    }

    /// Jumps forward.
    ///
    /// A pause between attempts is drawn at random up to what the retry policy says, so a jump by that much always
    /// makes the next attempt due. A relay that is running (rather than drained) notices within a second.
    ///
    /// Not so a hold: the relay that was asked for it measures it in real time. Let that one end; the next one, as the
    /// next drain starts it, goes by the clock.
    pub fn advance(&self, by: Duration) {
        let mut ahead = lock(&self.ahead);
        let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
        *ahead = ahead.checked_add(&by).unwrap_or(*ahead);
    }

    /// Jumps to an hour, which may be earlier.
    pub fn set(&self, to: DateTime<Utc>) {
        *lock(&self.ahead) = to - Utc::now();
    }

    /// What the clock shows to a relay that is built now.
    pub fn now(&self) -> DateTime<Utc> {
        at(Utc::now(), self.ahead())
    }

    /// Asks `store` with the hour of this clock. What [`RelayBuilder::clock`](crate::RelayBuilder::clock) does; for
    /// those who hold a store themselves.
    pub fn over(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        // A little ahead: databases round to their own precision, and what was written before this must not be later.
        let stands_at = Utc::now() + TimeDelta::milliseconds(2);
        Arc::new(Clocked { store, clock: self.clone(), stands_at })
    }

    fn ahead(&self) -> TimeDelta {
        *lock(&self.ahead)
    }
}

fn at(real: DateTime<Utc>, ahead: TimeDelta) -> DateTime<Utc> {
    real.checked_add_signed(ahead).unwrap_or(real)
}

fn lock(ahead: &Mutex<TimeDelta>) -> MutexGuard<'_, TimeDelta> {
    ahead.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store that is asked with the hour of a clock. Each method is passed on, those with a default as well.
struct Clocked {
    store: Arc<dyn Store>,
    clock: Clock,
    /// The real hour at which this relay's time stands.
    stands_at: DateTime<Utc>,
}

impl Clocked {
    /// The hour to ask with, unless whoever asks has one.
    fn hour(&self, now: Now) -> Now {
        now.or_else(|| Some(at(self.stands_at, self.clock.ahead())))
    }
}

#[async_trait]
impl Store for Clocked {
    fn evidence(&self) -> Evidence {
        self.store.evidence()
    }

    async fn verify(&self) -> Result<(), StoreError> {
        self.store.verify().await
    }

    async fn message_read(
        &self,
        wanted: &Wanted,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Page, StoreError> {
        self.store.message_read(wanted, owned, limit, self.hour(now)).await
    }

    async fn message_probe(&self, ranges: &[(Seq, Seq)]) -> Result<Probe, StoreError> {
        self.store.message_probe(ranges).await
    }

    async fn message_sweep(
        &self,
        after: Seq,
        until: Seq,
        owned: PartitionSet,
        limit: u32,
    ) -> Result<Vec<Seq>, StoreError> {
        self.store.message_sweep(after, until, owned, limit).await
    }

    async fn message_last(&self) -> Result<Seq, StoreError> {
        self.store.message_last().await
    }

    async fn mark_draw(&self) -> Result<Option<u64>, StoreError> {
        self.store.mark_draw().await
    }

    async fn key_parked(&self, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError> {
        self.store.key_parked(keys).await
    }

    async fn delivery_due(&self, lanes: &[LaneDemand], owned: PartitionSet, now: Now) -> Result<Due, StoreError> {
        let due = self.store.delivery_due(lanes, owned, self.hour(now)).await?;
        // The hour is the test's, which jumps as it likes.
        Ok(Due { hour: None, ..due })
    }

    async fn delivery_followers(&self, keys: &[KeyAfter], limit: u32, now: Now) -> Result<Followers, StoreError> {
        self.store.delivery_followers(keys, limit, self.hour(now)).await
    }

    async fn unrouted_topics(&self, after: &[(u8, String)], limit: u32) -> Result<Vec<(u8, String)>, StoreError> {
        self.store.unrouted_topics(after, limit).await
    }

    async fn unrouted_rows(&self, wanted: &[UnroutedAfter], limit: u32) -> Result<Vec<UnroutedRow>, StoreError> {
        self.store.unrouted_rows(wanted, limit).await
    }

    async fn delivery_start(&self, relay: RelayId, batch: &StartBatch) -> Result<Vec<i64>, StoreError> {
        self.store.delivery_start(relay, batch).await
    }

    async fn delivery_last(&self) -> Result<i64, StoreError> {
        self.store.delivery_last().await
    }

    async fn delivery_ahead(
        &self,
        after: i64,
        until: i64,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Vec<RowAhead>, StoreError> {
        self.store.delivery_ahead(after, until, owned, limit, self.hour(now)).await
    }

    async fn delivery_bring_forward(&self, relay: RelayId, rows: &[RowAhead], by: Duration) -> Result<(), StoreError> {
        self.store.delivery_bring_forward(relay, rows, by).await
    }

    async fn destination_bring_forward(&self, holds: &[(String, Written)], by: Duration) -> Result<(), StoreError> {
        self.store.destination_bring_forward(holds, by).await
    }

    async fn message_delivered(
        &self,
        messages: &[(Seq, MessageId)],
        routes_version: i64,
    ) -> Result<Delivered, StoreError> {
        self.store.message_delivered(messages, routes_version).await
    }

    async fn settle(&self, relay: RelayId, batch: &Settlement, now: Now) -> Result<Settled, StoreError> {
        self.store.settle(relay, batch, self.hour(now)).await
    }

    async fn relay_register(&self, relay: &RelayRow) -> Result<(), StoreError> {
        self.store.relay_register(relay).await
    }

    async fn relay_beat(&self, relay: RelayId, draining: bool) -> Result<Option<Membership>, StoreError> {
        self.store.relay_beat(relay, draining).await
    }

    async fn membership_read(&self) -> Result<Membership, StoreError> {
        self.store.membership_read().await
    }

    async fn relay_bury(&self, dead: &[(RelayId, i64)]) -> Result<Vec<RelayId>, StoreError> {
        self.store.relay_bury(dead).await
    }

    async fn partition_acquire(&self, relay: RelayId, wanted: PartitionSet) -> Result<Vec<Taken>, StoreError> {
        self.store.partition_acquire(relay, wanted).await
    }

    async fn partition_release(&self, relay: RelayId, given_up: PartitionSet) -> Result<(), StoreError> {
        self.store.partition_release(relay, given_up).await
    }

    async fn relay_leave(&self, relay: RelayId, unread: PartitionSet) -> Result<(), StoreError> {
        self.store.relay_leave(relay, unread).await
    }

    async fn relay_circuits(&self, relay: RelayId, circuits: &[Circuit]) -> Result<(), StoreError> {
        self.store.relay_circuits(relay, circuits).await
    }

    async fn destination_register(&self, served: &[DestinationSpec]) -> Result<(), StoreError> {
        self.store.destination_register(served).await
    }

    async fn destination_read(&self, now: Now) -> Result<Routing, StoreError> {
        let routing = self.store.destination_read(self.hour(now)).await?;
        // The hour is the test's, which jumps as it likes.
        Ok(Routing { hour: None, ..routing })
    }

    async fn destination_hold(&self, name: &str, pause: Duration, now: Now) -> Result<(), StoreError> {
        self.store.destination_hold(name, pause, self.hour(now)).await
    }

    async fn destination_pause(&self, name: &str, by: &str, reason: &str, now: Now) -> Result<(), StoreError> {
        self.store.destination_pause(name, by, reason, self.hour(now)).await
    }

    async fn status(&self, now: Now) -> Result<Status, StoreError> {
        self.store.status(self.hour(now)).await
    }
}
