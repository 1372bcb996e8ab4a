//! The outbox in a SQLite file, shared with the application's processes.
//!
//! Two threads own a connection each, one that writes and one that reads; in WAL mode neither waits for the other. The
//! application writes to the same file, so a write takes the file's only write lock at its start (`BEGIN IMMEDIATE`),
//! is short, and is given up as `TryAgain` when the application's own transaction lasts too long.
//!
//! Invariants
//! - One writer at a time, whoever it is: commit order is number order, and no gap ever fills.
//! - A call that was begun runs to its end, whether somebody waits for its answer or not.
//! - The "database's clock" is the machine's, always asked through SQL.
//!
//! A known limit: how safe an acknowledged commit is depends on the connection that made it. Application connections
//! that use `synchronous = NORMAL` with WAL, a pair of settings found in diesel's own documentation, lose their last
//! commits in a power cut, messages included. The relay's own connections use FULL.

mod circuits;
mod destinations;
mod file;
mod forward;
mod membership;
mod read;
mod settle;
mod statement;
mod unrouted;
mod worker;

pub(crate) use self::file::existing_file_uri;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use diesel::result::Error;

use self::file::DatabaseFile;
use self::worker::Worker;
use super::{
    Circuit, Delivered, DestinationSpec, Due, Followers, KeyAfter, LaneDemand, Membership, Now, Page, Probe, RelayRow,
    Routing, RowAhead, Settled, Settlement, StartBatch, Status, Store, StoreError, Taken, UnroutedAfter, UnroutedRow,
    Wanted, Written,
};
use crate::message::{Key, MessageId, PartitionSet, RelayId, Seq};
use crate::poll::Evidence;

/// An outbox in a SQLite file.
pub struct Sqlite {
    file: DatabaseFile,
    reader: Worker,
    writer: Worker,
}

impl Sqlite {
    /// Takes the file named by `sqlite:path` or `sqlite:/absolute/path`. Nothing is opened until the first question,
    /// and a file that does not exist is never created: [`Store::verify`] says so.
    ///
    /// # Errors
    ///
    /// `Unsuitable` when the URL names no file, or a database in memory, which two processes cannot share.
    pub fn new(url: &str) -> Result<Sqlite, StoreError> {
        let file = DatabaseFile::from_url(url)?;
        Ok(Sqlite {
            reader: Worker::start("outbox-sqlite-read", file.clone())?,
            writer: Worker::start("outbox-sqlite-write", file.clone())?,
            file,
        })
    }
}

#[async_trait]
impl Store for Sqlite {
    fn evidence(&self) -> Evidence {
        Evidence::Serial
    }

    async fn verify(&self) -> Result<(), StoreError> {
        let file = self.file.clone();
        let found = self.writer.run("verify", move |open| file.examine(&mut open.conn)).await;
        found.and_then(|found| found).map_err(|error| self.file.explain(error))
    }

    async fn message_read(
        &self,
        wanted: &Wanted,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Page, StoreError> {
        let wanted = wanted.clone();
        self.reader.run("message_read", move |open| read::message_read(open, &wanted, owned, limit, now)).await
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
        self.reader.run("message_sweep", move |open| read::message_sweep(open, after, until, owned, limit)).await
    }

    async fn message_last(&self) -> Result<Seq, StoreError> {
        self.reader.run("message_last", read::message_last).await
    }

    async fn mark_draw(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    async fn key_parked(&self, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError> {
        let keys = keys.to_vec();
        self.reader.run("key_parked", move |open| read::key_parked(open, &keys)).await
    }

    async fn delivery_due(&self, lanes: &[LaneDemand], owned: PartitionSet, now: Now) -> Result<Due, StoreError> {
        let lanes = lanes.to_vec();
        self.reader.run("delivery_due", move |open| read::delivery_due(open, &lanes, owned, now)).await
    }

    async fn delivery_followers(&self, keys: &[KeyAfter], limit: u32, now: Now) -> Result<Followers, StoreError> {
        let keys = keys.to_vec();
        self.reader.run("delivery_followers", move |open| read::delivery_followers(open, &keys, limit, now)).await
    }

    async fn unrouted_topics(&self, after: &[(u8, String)], limit: u32) -> Result<Vec<(u8, String)>, StoreError> {
        let after = after.to_vec();
        self.reader.run("unrouted_topics", move |open| unrouted::topics(open, &after, limit)).await
    }

    async fn unrouted_rows(&self, wanted: &[UnroutedAfter], limit: u32) -> Result<Vec<UnroutedRow>, StoreError> {
        let wanted = wanted.to_vec();
        self.reader.run("unrouted_rows", move |open| unrouted::rows(open, &wanted, limit)).await
    }

    async fn delivery_start(&self, relay: RelayId, batch: &StartBatch) -> Result<Vec<i64>, StoreError> {
        if batch.rows.is_empty() {
            return Ok(Vec::new());
        }
        let batch = batch.clone();
        self.writer.run("delivery_start", move |open| settle::delivery_start(open, relay, &batch)).await
    }

    async fn delivery_last(&self) -> Result<i64, StoreError> {
        self.reader.run("delivery_last", forward::delivery_last).await
    }

    async fn delivery_ahead(
        &self,
        after: i64,
        until: i64,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Vec<RowAhead>, StoreError> {
        let within = (after, until);
        self.reader.run("delivery_ahead", move |open| forward::delivery_ahead(open, within, owned, limit, now)).await
    }

    async fn delivery_bring_forward(&self, relay: RelayId, rows: &[RowAhead], by: Duration) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = rows.to_vec();
        let run = move |open: &mut _| forward::delivery_bring_forward(open, relay, &rows, by);
        self.writer.run("delivery_bring_forward", run).await
    }

    async fn destination_bring_forward(&self, holds: &[(String, Written)], by: Duration) -> Result<(), StoreError> {
        if holds.is_empty() {
            return Ok(());
        }
        let holds = holds.to_vec();
        let run = move |open: &mut _| forward::destination_bring_forward(open, &holds, by);
        self.writer.run("destination_bring_forward", run).await
    }

    async fn message_delivered(
        &self,
        messages: &[(Seq, MessageId)],
        routes_version: i64,
    ) -> Result<Delivered, StoreError> {
        if messages.is_empty() {
            return Ok(Delivered::default());
        }
        let messages = messages.to_vec();
        self.writer
            .run("message_delivered", move |open| settle::message_delivered(open, &messages, routes_version))
            .await
    }

    async fn settle(&self, relay: RelayId, batch: &Settlement, now: Now) -> Result<Settled, StoreError> {
        if batch.moves.is_empty() && batch.waiting.is_empty() {
            return Ok(Settled::default());
        }
        let batch = batch.clone();
        self.writer.run("settle", move |open| settle::settle(open, relay, &batch, now)).await
    }

    async fn relay_register(&self, relay: &RelayRow) -> Result<(), StoreError> {
        let relay = relay.clone();
        self.writer.run("relay_register", move |open| membership::relay_register(open, &relay)).await
    }

    async fn relay_beat(&self, relay: RelayId, draining: bool) -> Result<Option<Membership>, StoreError> {
        self.writer.run("relay_beat", move |open| membership::relay_beat(open, relay, draining)).await
    }

    async fn membership_read(&self) -> Result<Membership, StoreError> {
        self.reader.run("membership_read", membership::membership_read).await
    }

    async fn relay_bury(&self, dead: &[(RelayId, i64)]) -> Result<Vec<RelayId>, StoreError> {
        let dead = dead.to_vec();
        self.writer.run("relay_bury", move |open| membership::relay_bury(open, &dead)).await
    }

    async fn partition_acquire(&self, relay: RelayId, wanted: PartitionSet) -> Result<Vec<Taken>, StoreError> {
        self.writer.run("partition_acquire", move |open| membership::partition_acquire(open, relay, wanted)).await
    }

    async fn partition_release(&self, relay: RelayId, given_up: PartitionSet) -> Result<(), StoreError> {
        self.writer.run("partition_release", move |open| membership::partition_release(open, relay, given_up)).await
    }

    async fn relay_leave(&self, relay: RelayId, unread: PartitionSet) -> Result<(), StoreError> {
        self.writer.run("relay_leave", move |open| membership::relay_leave(open, relay, unread)).await
    }

    async fn relay_circuits(&self, relay: RelayId, circuits: &[Circuit]) -> Result<(), StoreError> {
        let circuits = circuits.to_vec();
        self.writer.run("relay_circuits", move |open| circuits::relay_circuits(open, relay, &circuits)).await
    }

    async fn destination_register(&self, served: &[DestinationSpec]) -> Result<(), StoreError> {
        let served = served.to_vec();
        self.writer.run("destination_register", move |open| destinations::destination_register(open, &served)).await
    }

    async fn destination_read(&self, now: Now) -> Result<Routing, StoreError> {
        self.reader.run("destination_read", move |open| destinations::destination_read(open, now)).await
    }

    async fn destination_hold(&self, name: &str, pause: Duration, now: Now) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.writer.run("destination_hold", move |open| destinations::destination_hold(open, &name, pause, now)).await
    }

    async fn destination_pause(&self, name: &str, by: &str, reason: &str, now: Now) -> Result<(), StoreError> {
        let (name, by, reason) = (name.to_owned(), by.to_owned(), reason.to_owned());
        self.writer
            .run("destination_pause", move |open| destinations::destination_pause(open, &name, &by, &reason, now))
            .await
    }

    async fn status(&self, now: Now) -> Result<Status, StoreError> {
        self.reader.run("status", move |open| destinations::status(open, now)).await
    }
}

/// What a failure of diesel's means to the one who asked.
///
/// diesel does not pass SQLite's error code on, only its text, which is a constant of the library built in.
fn classify(operation: &'static str, error: Error) -> StoreError {
    let locked = is_locked(&error);
    let source = Box::new(error);
    if locked { StoreError::TryAgain { operation, source } } else { StoreError::Refused { operation, source } }
}

/// True when another connection's lock was in the way.
fn is_locked(error: &Error) -> bool {
    matches!(error, Error::DatabaseError(_, information) if information.message().contains("is locked"))
}

/// The set as a number whose bit n stands for partition n.
fn mask(set: PartitionSet) -> i64 {
    set.iter().fold(0, |mask, partition_no| mask | 1 << partition_no)
}

/// A stored time. What no calendar holds becomes the nearest that one does: a bad row must not fail its neighbours.
fn date(ms: i64) -> DateTime<Utc> {
    let nearest = if ms < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    DateTime::from_timestamp_millis(ms).unwrap_or(nearest)
}
