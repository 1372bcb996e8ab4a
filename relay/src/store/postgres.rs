//! The store on PostgreSQL 13 and later.
//!
//! Every role has a connection of its own, opened when it is first needed: a slow settle must not delay a poll, and
//! neither may delay the beat that keeps the partitions. What one statement can do is one statement; transactions send
//! their statements without waiting for each other's answers wherever no answer decides the next.
//!
//! Invariants
//! - A connection is back in its slot only after a call that succeeded; any error, and a future that was dropped, closes
//!   it, and the server rolls back what was open.
//! - Text columns are read as bytes and taken lossily, times are clamped: no value another program stored can fail a
//!   batch.
//! - Keys travel as the bytes that were read.
//!
//! Not here yet: poolers in transaction mode. Settings are made once per session and statements are prepared
//! in it, so a pooler that hands sessions around would lose the first and, before pgbouncer 1.21, refuse the second. It
//! is recognised and refused.

pub(crate) mod address;
mod circuits;
mod connection;
mod destination;
mod feed;
mod forward;
mod membership;
mod settle;
mod status;
mod unrouted;
mod value;
mod waiting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use self::connection::{Connector, Role, Slot};
use super::StoreOptions;
use super::{
    Circuit, Delivered, DestinationSpec, Due, Followers, KeyAfter, LaneDemand, Membership, Now, Page, Probe, RelayRow,
    Routing, RowAhead, Settled, Settlement, StartBatch, Status, Store, StoreError, Taken, UnroutedAfter, UnroutedRow,
    Wanted, Written,
};
use crate::message::{Key, MessageId, PartitionSet, RelayId, Seq};
use crate::poll::Evidence;

/// An outbox in a PostgreSQL database.
#[derive(Debug)]
pub struct Postgres {
    connector: Connector,
    proven: AtomicBool,
    feed: Slot,
    due: Slot,
    delivered: Slot,
    settle: Slot,
    beat: Slot,
    other: Slot,
}

impl Postgres {
    /// The store behind `url`. Connections are made when they are needed.
    ///
    /// # Errors
    /// `Unsuitable` when the address cannot be understood.
    pub fn new(url: &str, options: &StoreOptions) -> Result<Postgres, StoreError> {
        Ok(Postgres {
            connector: Connector::new(url, options)?,
            proven: AtomicBool::new(false),
            feed: Slot::new(Role::Feed),
            due: Slot::new(Role::Due),
            delivered: Slot::new(Role::Delivered),
            settle: Slot::new(Role::Settle),
            beat: Slot::new(Role::Beat),
            other: Slot::new(Role::Other),
        })
    }
}

/// A statement whose plan is guarded, for the test that looks at it.
#[doc(hidden)]
#[derive(Debug)]
pub struct HotStatement {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Typical arguments, as literals.
    pub arguments: &'static [&'static str],
    /// The settings of its session.
    pub settings: &'static str,
    /// True when one plan serves for good, so that it has to be right while the tables are empty.
    pub is_planned_once: bool,
}

/// The statements whose plans are guarded.
#[doc(hidden)]
pub fn hot_statements() -> Vec<HotStatement> {
    const ID: &str = "'{00000000-0000-0000-0000-000000000000}'";
    const ONE: &str = "'{1}'";
    const A: &str = "'{a}'";
    let hot = |sql: &'static connection::Sql, is_planned_once, arguments| HotStatement {
        name: sql.name,
        text: sql.text,
        arguments,
        settings: if is_planned_once { connection::PLANNED_ONCE } else { connection::PLANNED_EACH_TIME },
        is_planned_once,
    };
    vec![
        hot(&feed::FEED_READ, true, &["'{1,50}'", "'{10,60}'", "'{null,7}'", "4294967295", "500", "500", "NULL", "70"]),
        hot(&feed::FEED_SWEEP, true, &["0", "1000", "4294967295", "500"]),
        hot(&settle::MESSAGE_DELIVERED, true, &[ONE, ID, "0"]),
        hot(&waiting::KEY_PARKED, false, &["'{d1}'", "'{7}'"]),
        hot(&waiting::DELIVERY_DUE, false, &["'{d1,d2}'", "'{10,20}'", "4294967295", "NULL", "'{}'"]),
        hot(&waiting::LANE_WAITING, false, &["'{d1,d2}'", "4294967295", "NULL", "'{}'"]),
        hot(&waiting::DELIVERY_FOLLOWERS, false, &["'{d1}'", "'{7}'", "'{100}'", "16", "NULL"]),
        hot(&waiting::DELIVERY_EARLIER, false, &["'{d1}'", "'{7}'", "'{100}'", "64"]),
        hot(&unrouted::UNROUTED_TOPICS, false, &["'{1,2}'", "'{a,\"\"}'", "100"]),
        hot(&unrouted::UNROUTED_ROWS, false, &["'{1,2}'", "'{a,b}'", "'{0,7}'", "100"]),
        hot(&settle::DELIVERY_START, false, &[ONE, ONE, ONE, ID, "'00000000-0000-0000-0000-000000000000'"]),
        hot(&settle::SETTLE_DELIVERED, false, &[ONE, ONE, ONE, ID]),
        hot(&settle::SETTLE_VERSION, false, &[ONE]),
        hot(&settle::SETTLE_HEADS, false, &["'{d1}'", "'{7}'", "100"]),
        hot(
            &settle::SETTLE_MOVE,
            false,
            &[
                ONE, ID, ONE, ONE, A, A, ONE, ONE, "'{t}'", ONE, A, A, A, ONE, A, A, ONE, "'{t}'", A, ONE, A, A, A,
                "NULL",
            ],
        ),
        hot(&settle::SETTLE_WAIT, false, &[ONE, ONE, ONE, A, A, ONE, ONE, "'{t}'", ONE, A, A, A, "NULL", ID]),
        hot(
            &settle::SETTLE_LEAVE,
            false,
            &[
                ONE, ONE, ONE, "'{t}'", ONE, A, A, ONE, ONE, "'{t}'", ONE, A, A, A, ONE, A, A, ONE, "'{t}'", A, ONE, A,
                A, A, "NULL", ID,
            ],
        ),
    ]
}

#[async_trait]
impl Store for Postgres {
    fn evidence(&self) -> Evidence {
        Evidence::Snapshots
    }

    async fn verify(&self) -> Result<(), StoreError> {
        // Whoever looks after our health asks often, and a feed notices a session that changes later on.
        if !self.proven.load(Ordering::Relaxed) {
            self.connector.prove_sessions().await?;
            self.proven.store(true, Ordering::Relaxed);
        }
        let mut held = self.other.take(&self.connector).await?;
        status::verify(&mut held.connection).await?;
        held.put_back();
        Ok(())
    }

    async fn message_read(
        &self,
        wanted: &Wanted,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Page, StoreError> {
        let mut held = self.feed.take(&self.connector).await?;
        let page = feed::message_read(&mut held.connection, wanted, owned, limit, now).await?;
        held.put_back();
        Ok(page)
    }

    async fn message_probe(&self, _ranges: &[(Seq, Seq)]) -> Result<Probe, StoreError> {
        Ok(Probe::default())
    }

    async fn message_sweep(
        &self,
        after: Seq,
        until: Seq,
        owned: PartitionSet,
        limit: u32,
    ) -> Result<Vec<Seq>, StoreError> {
        let mut held = self.feed.take(&self.connector).await?;
        let found = feed::message_sweep(&mut held.connection, after, until, owned, limit).await?;
        held.put_back();
        Ok(found)
    }

    async fn message_last(&self) -> Result<Seq, StoreError> {
        let mut held = self.feed.take(&self.connector).await?;
        let last = feed::message_last(&mut held.connection).await?;
        held.put_back();
        Ok(last)
    }

    async fn mark_draw(&self) -> Result<Option<u64>, StoreError> {
        let mut held = self.feed.take(&self.connector).await?;
        let mark = feed::mark_draw(&mut held.connection).await?;
        held.put_back();
        Ok(Some(mark))
    }

    async fn key_parked(&self, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.due.take(&self.connector).await?;
        let parked = waiting::key_parked(&mut held.connection, keys).await?;
        held.put_back();
        Ok(parked)
    }

    async fn delivery_due(&self, lanes: &[LaneDemand], owned: PartitionSet, now: Now) -> Result<Due, StoreError> {
        if lanes.is_empty() {
            return Ok(Due::default());
        }
        let mut held = self.due.take(&self.connector).await?;
        let due = waiting::delivery_due(&mut held.connection, lanes, owned, now).await?;
        held.put_back();
        Ok(due)
    }

    async fn delivery_followers(&self, keys: &[KeyAfter], limit: u32, now: Now) -> Result<Followers, StoreError> {
        if keys.is_empty() {
            return Ok(Followers::default());
        }
        let mut held = self.due.take(&self.connector).await?;
        let rows = waiting::delivery_followers(&mut held.connection, keys, limit, now).await?;
        held.put_back();
        Ok(rows)
    }

    async fn unrouted_topics(&self, after: &[(u8, String)], limit: u32) -> Result<Vec<(u8, String)>, StoreError> {
        if after.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.due.take(&self.connector).await?;
        let topics = unrouted::topics(&mut held.connection, after, limit).await?;
        held.put_back();
        Ok(topics)
    }

    async fn unrouted_rows(&self, wanted: &[UnroutedAfter], limit: u32) -> Result<Vec<UnroutedRow>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.due.take(&self.connector).await?;
        let rows = unrouted::rows(&mut held.connection, wanted, limit).await?;
        held.put_back();
        Ok(rows)
    }

    async fn delivery_start(&self, relay: RelayId, batch: &StartBatch) -> Result<Vec<i64>, StoreError> {
        if batch.rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.due.take(&self.connector).await?;
        let counted = settle::delivery_start(&mut held.connection, relay, batch).await?;
        held.put_back();
        Ok(counted)
    }

    async fn delivery_last(&self) -> Result<i64, StoreError> {
        let mut held = self.other.take(&self.connector).await?;
        let last = forward::delivery_last(&mut held.connection).await?;
        held.put_back();
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
        let mut held = self.other.take(&self.connector).await?;
        let ahead = forward::delivery_ahead(&mut held.connection, (after, until), owned, limit, now).await?;
        held.put_back();
        Ok(ahead)
    }

    async fn delivery_bring_forward(&self, relay: RelayId, rows: &[RowAhead], by: Duration) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut held = self.other.take(&self.connector).await?;
        forward::delivery_bring_forward(&mut held.connection, relay, rows, by).await?;
        held.put_back();
        Ok(())
    }

    async fn destination_bring_forward(&self, holds: &[(String, Written)], by: Duration) -> Result<(), StoreError> {
        if holds.is_empty() {
            return Ok(());
        }
        let mut held = self.other.take(&self.connector).await?;
        forward::destination_bring_forward(&mut held.connection, holds, by).await?;
        held.put_back();
        Ok(())
    }

    async fn message_delivered(
        &self,
        messages: &[(Seq, MessageId)],
        routes_version: i64,
    ) -> Result<Delivered, StoreError> {
        if messages.is_empty() {
            return Ok(Delivered::default());
        }
        let mut held = self.delivered.take(&self.connector).await?;
        let delivered = settle::message_delivered(&mut held.connection, messages, routes_version).await?;
        held.put_back();
        Ok(delivered)
    }

    async fn settle(&self, relay: RelayId, batch: &Settlement, now: Now) -> Result<Settled, StoreError> {
        if batch.moves.is_empty() && batch.waiting.is_empty() {
            return Ok(Settled::default());
        }
        let mut held = self.settle.take(&self.connector).await?;
        let settled = settle::settle(&mut held.connection, relay, batch, now).await?;
        held.put_back();
        Ok(settled)
    }

    async fn relay_register(&self, relay: &RelayRow) -> Result<(), StoreError> {
        let mut held = self.beat.take(&self.connector).await?;
        membership::relay_register(&mut held.connection, relay).await?;
        held.put_back();
        Ok(())
    }

    async fn relay_beat(&self, relay: RelayId, draining: bool) -> Result<Option<Membership>, StoreError> {
        let mut held = self.beat.take(&self.connector).await?;
        let seen = membership::relay_beat(&mut held.connection, relay, draining).await?;
        held.put_back();
        Ok(seen)
    }

    async fn membership_read(&self) -> Result<Membership, StoreError> {
        let mut held = self.beat.take(&self.connector).await?;
        let seen = membership::membership_read(&mut held.connection).await?;
        held.put_back();
        Ok(seen)
    }

    async fn relay_bury(&self, dead: &[(RelayId, i64)]) -> Result<Vec<RelayId>, StoreError> {
        if dead.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.beat.take(&self.connector).await?;
        let buried = membership::relay_bury(&mut held.connection, dead).await?;
        held.put_back();
        Ok(buried)
    }

    async fn partition_acquire(&self, relay: RelayId, wanted: PartitionSet) -> Result<Vec<Taken>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = self.other.take(&self.connector).await?;
        let taken = membership::partition_acquire(&mut held.connection, relay, wanted).await?;
        held.put_back();
        Ok(taken)
    }

    async fn partition_release(&self, relay: RelayId, given_up: PartitionSet) -> Result<(), StoreError> {
        if given_up.is_empty() {
            return Ok(());
        }
        let mut held = self.beat.take(&self.connector).await?;
        membership::partition_release(&mut held.connection, relay, given_up).await?;
        held.put_back();
        Ok(())
    }

    async fn relay_leave(&self, relay: RelayId, unread: PartitionSet) -> Result<(), StoreError> {
        let mut held = self.beat.take(&self.connector).await?;
        membership::relay_leave(&mut held.connection, relay, unread).await?;
        held.put_back();
        Ok(())
    }

    async fn relay_circuits(&self, relay: RelayId, circuits: &[Circuit]) -> Result<(), StoreError> {
        let mut held = self.other.take(&self.connector).await?;
        circuits::relay_circuits(&mut held.connection, relay, circuits).await?;
        held.put_back();
        Ok(())
    }

    async fn destination_register(&self, served: &[DestinationSpec]) -> Result<(), StoreError> {
        if served.is_empty() {
            return Ok(());
        }
        let mut held = self.other.take(&self.connector).await?;
        destination::register(&mut held.connection, served).await?;
        held.put_back();
        Ok(())
    }

    async fn destination_read(&self, now: Now) -> Result<Routing, StoreError> {
        let mut held = self.other.take(&self.connector).await?;
        let routing = destination::read(&mut held.connection, now).await?;
        held.put_back();
        Ok(routing)
    }

    async fn destination_hold(&self, name: &str, pause: Duration, now: Now) -> Result<(), StoreError> {
        let mut held = self.other.take(&self.connector).await?;
        destination::hold(&mut held.connection, name, pause, now).await?;
        held.put_back();
        Ok(())
    }

    async fn destination_pause(&self, name: &str, by: &str, reason: &str, now: Now) -> Result<(), StoreError> {
        let mut held = self.other.take(&self.connector).await?;
        destination::pause(&mut held.connection, name, by, reason, now).await?;
        held.put_back();
        Ok(())
    }

    async fn status(&self, now: Now) -> Result<Status, StoreError> {
        let mut held = self.other.take(&self.connector).await?;
        let status = status::status(&mut held.connection, now).await?;
        held.put_back();
        Ok(status)
    }
}
