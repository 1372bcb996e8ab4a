//! The store on MariaDB (tested with 10.11) and MySQL 8 (written for it, not tried).
//!
//! Per-key order holds for transactions shorter than `transaction_age_max`; delivery always holds. No statement here
//! can tell exactly whether a number that is missing may still appear, so the feed goes by age and a locking probe.
//!
//! Each kind of work has a connection of its own, so that a slow settle delays neither polls nor beats.
//!
//! Known limits
//! - A message larger than the server's or the driver's `max_allowed_packet` looks like an outage: the connection
//!   breaks while it is read.
//! - Galera with several writers gives no order.
//! - MySQL does not end a transaction that idles; MariaDB does, after a quarter of the lease.

pub(crate) mod address;
mod circuits;
mod connection;
mod destination;
mod feed;
mod forward;
mod keys;
mod literal;
mod membership;
mod moves;
mod row;
mod settle;
mod status;
mod unrouted;
mod waiting;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use self::connection::{Connector, Session, Slot, Work};
use super::StoreOptions;
use super::{
    Circuit, Delivered, DestinationSpec, Due, Followers, KeyAfter, LaneDemand, Membership, Now, Page, Probe, RelayRow,
    Routing, RowAhead, Settled, Settlement, StartBatch, Status, Store, StoreError, Taken, UnroutedAfter, UnroutedRow,
    Wanted, Written,
};
use crate::message::{Key, MessageId, PartitionSet, RelayId, Seq};
use crate::poll::Evidence;

/// An outbox in a MariaDB or MySQL database.
pub struct Mysql {
    connector: Connector,
    transaction_age_max: Duration,
    feed: Slot,
    due: Slot,
    delivered: Slot,
    settle: Slot,
    beat: Slot,
    other: Slot,
    people: Slot,
}

impl fmt::Debug for Mysql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mysql").field("target", &self.connector.target()).finish_non_exhaustive()
    }
}

impl Mysql {
    /// The store behind `url`. Connections are made when they are needed.
    ///
    /// # Errors
    /// `Unsuitable` when the address cannot be understood.
    pub fn new(url: &str, options: &StoreOptions) -> Result<Mysql, StoreError> {
        Ok(Mysql {
            connector: Connector::new(url, options.lease)?,
            transaction_age_max: options.transaction_age_max,
            feed: Slot::new(Work::OfTheRelay),
            due: Slot::new(Work::OfTheRelay),
            delivered: Slot::new(Work::OfTheRelay),
            settle: Slot::new(Work::OfTheRelay),
            beat: Slot::new(Work::OfTheRelay),
            other: Slot::new(Work::OfTheRelay),
            people: Slot::new(Work::ForPeople),
        })
    }

    async fn lend<'a>(&'a self, slot: &Slot, operation: &'static str) -> Result<Session<'a>, StoreError> {
        slot.lend(&self.connector, operation).await
    }
}

#[async_trait]
impl Store for Mysql {
    fn evidence(&self) -> Evidence {
        Evidence::Ages(self.transaction_age_max)
    }

    async fn verify(&self) -> Result<(), StoreError> {
        let mut session = self.lend(&self.other, "verify").await?;
        status::verify(&mut session).await?;
        session.give_back();
        Ok(())
    }

    async fn message_read(
        &self,
        wanted: &Wanted,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Page, StoreError> {
        let mut session = self.lend(&self.feed, "message_read").await?;
        let page = feed::message_read(&mut session, wanted, owned, limit, now).await?;
        session.give_back();
        Ok(page)
    }

    async fn message_probe(&self, ranges: &[(Seq, Seq)]) -> Result<Probe, StoreError> {
        if ranges.is_empty() {
            return Ok(Probe::default());
        }
        let mut session = self.lend(&self.feed, "message_probe").await?;
        let probe = feed::message_probe(&mut session, ranges).await?;
        session.give_back();
        Ok(probe)
    }

    async fn message_sweep(
        &self,
        after: Seq,
        until: Seq,
        owned: PartitionSet,
        limit: u32,
    ) -> Result<Vec<Seq>, StoreError> {
        let mut session = self.lend(&self.feed, "message_sweep").await?;
        let found = feed::message_sweep(&mut session, after, until, owned, limit).await?;
        session.give_back();
        Ok(found)
    }

    async fn message_last(&self) -> Result<Seq, StoreError> {
        let mut session = self.lend(&self.feed, "message_last").await?;
        let last = feed::message_last(&mut session).await?;
        session.give_back();
        Ok(last)
    }

    async fn mark_draw(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    async fn key_parked(&self, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.lend(&self.feed, "key_parked").await?;
        let parked = waiting::key_parked(&mut session, keys).await?;
        session.give_back();
        Ok(parked)
    }

    async fn delivery_due(&self, lanes: &[LaneDemand], owned: PartitionSet, now: Now) -> Result<Due, StoreError> {
        if lanes.is_empty() {
            return Ok(Due::default());
        }
        let mut session = self.lend(&self.due, "delivery_due").await?;
        let due = waiting::delivery_due(&mut session, lanes, owned, now).await?;
        session.give_back();
        Ok(due)
    }

    async fn delivery_followers(&self, keys: &[KeyAfter], limit: u32, now: Now) -> Result<Followers, StoreError> {
        if keys.is_empty() {
            return Ok(Followers::default());
        }
        let mut session = self.lend(&self.due, "delivery_followers").await?;
        let rows = waiting::delivery_followers(&mut session, keys, limit, now).await?;
        session.give_back();
        Ok(rows)
    }

    async fn unrouted_topics(&self, after: &[(u8, String)], limit: u32) -> Result<Vec<(u8, String)>, StoreError> {
        if after.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.lend(&self.due, "unrouted_topics").await?;
        let topics = unrouted::topics(&mut session, after, limit).await?;
        session.give_back();
        Ok(topics)
    }

    async fn unrouted_rows(&self, wanted: &[UnroutedAfter], limit: u32) -> Result<Vec<UnroutedRow>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.lend(&self.due, "unrouted_rows").await?;
        let rows = unrouted::rows(&mut session, wanted, limit).await?;
        session.give_back();
        Ok(rows)
    }

    async fn delivery_start(&self, relay: RelayId, batch: &StartBatch) -> Result<Vec<i64>, StoreError> {
        if batch.rows.is_empty() {
            return Ok(Vec::new());
        }
        settle::delivery_start(self.lend(&self.due, "delivery_start").await?, relay, batch).await
    }

    async fn delivery_last(&self) -> Result<i64, StoreError> {
        let mut session = self.lend(&self.other, "delivery_last").await?;
        let last = forward::delivery_last(&mut session).await?;
        session.give_back();
        Ok(last)
    }

    async fn delivery_ahead(
        &self,
        after: i64,
        until: i64,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Vec<RowAhead>, StoreError> {
        let mut session = self.lend(&self.other, "delivery_ahead").await?;
        let ahead = forward::delivery_ahead(&mut session, (after, until), owned, limit, now).await?;
        session.give_back();
        Ok(ahead)
    }

    async fn delivery_bring_forward(&self, relay: RelayId, rows: &[RowAhead], by: Duration) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let session = self.lend(&self.other, "delivery_bring_forward").await?;
        forward::delivery_bring_forward(session, relay, rows, by).await
    }

    async fn destination_bring_forward(&self, holds: &[(String, Written)], by: Duration) -> Result<(), StoreError> {
        if holds.is_empty() {
            return Ok(());
        }
        let session = self.lend(&self.other, "destination_bring_forward").await?;
        forward::destination_bring_forward(session, holds, by).await
    }

    async fn message_delivered(
        &self,
        messages: &[(Seq, MessageId)],
        routes_version: i64,
    ) -> Result<Delivered, StoreError> {
        if messages.is_empty() {
            return Ok(Delivered::default());
        }
        let session = self.lend(&self.delivered, "message_delivered").await?;
        settle::message_delivered(session, messages, routes_version).await
    }

    async fn settle(&self, relay: RelayId, batch: &Settlement, now: Now) -> Result<Settled, StoreError> {
        if batch.moves.is_empty() && batch.waiting.is_empty() {
            return Ok(Settled::default());
        }
        settle::settle(self.lend(&self.settle, "settle").await?, relay, batch, now).await
    }

    async fn relay_register(&self, relay: &RelayRow) -> Result<(), StoreError> {
        let mut session = self.lend(&self.beat, "relay_register").await?;
        membership::relay_register(&mut session, relay).await?;
        session.give_back();
        Ok(())
    }

    async fn relay_beat(&self, relay: RelayId, draining: bool) -> Result<Option<Membership>, StoreError> {
        let mut session = self.lend(&self.beat, "relay_beat").await?;
        let seen = membership::relay_beat(&mut session, relay, draining).await?;
        session.give_back();
        Ok(seen)
    }

    async fn membership_read(&self) -> Result<Membership, StoreError> {
        let mut session = self.lend(&self.beat, "membership_read").await?;
        let seen = membership::membership(&mut session).await?;
        session.give_back();
        Ok(seen)
    }

    async fn relay_bury(&self, dead: &[(RelayId, i64)]) -> Result<Vec<RelayId>, StoreError> {
        if dead.is_empty() {
            return Ok(Vec::new());
        }
        membership::relay_bury(self.lend(&self.beat, "relay_bury").await?, dead).await
    }

    async fn partition_acquire(&self, relay: RelayId, wanted: PartitionSet) -> Result<Vec<Taken>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        // Repairing the keys may take a while; the beat must not wait for it.
        membership::partition_acquire(self.lend(&self.other, "partition_acquire").await?, relay, wanted).await
    }

    async fn partition_release(&self, relay: RelayId, given_up: PartitionSet) -> Result<(), StoreError> {
        if given_up.is_empty() {
            return Ok(());
        }
        membership::partition_release(self.lend(&self.beat, "partition_release").await?, relay, given_up).await
    }

    async fn relay_leave(&self, relay: RelayId, unread: PartitionSet) -> Result<(), StoreError> {
        membership::relay_leave(self.lend(&self.beat, "relay_leave").await?, relay, unread).await
    }

    async fn relay_circuits(&self, relay: RelayId, circuits: &[Circuit]) -> Result<(), StoreError> {
        let mut session = self.lend(&self.other, "relay_circuits").await?;
        circuits::relay_circuits(&mut session, relay, circuits).await?;
        session.give_back();
        Ok(())
    }

    async fn destination_register(&self, served: &[DestinationSpec]) -> Result<(), StoreError> {
        if served.is_empty() {
            return Ok(());
        }
        destination::destination_register(self.lend(&self.other, "destination_register").await?, served).await
    }

    async fn destination_read(&self, now: Now) -> Result<Routing, StoreError> {
        let mut session = self.lend(&self.other, "destination_read").await?;
        let routing = destination::destination_read(&mut session, now).await?;
        session.give_back();
        Ok(routing)
    }

    async fn destination_hold(&self, name: &str, pause: Duration, now: Now) -> Result<(), StoreError> {
        let mut session = self.lend(&self.other, "destination_hold").await?;
        destination::destination_hold(&mut session, name, pause, now).await?;
        session.give_back();
        Ok(())
    }

    async fn destination_pause(&self, name: &str, by: &str, reason: &str, now: Now) -> Result<(), StoreError> {
        let mut session = self.lend(&self.other, "destination_pause").await?;
        destination::destination_pause(&mut session, name, by, reason, now).await?;
        session.give_back();
        Ok(())
    }

    async fn status(&self, now: Now) -> Result<Status, StoreError> {
        status::status(self.lend(&self.people, "status").await?, now).await
    }
}
