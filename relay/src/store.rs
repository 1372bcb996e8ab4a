//! The seam to the database: every question the relay asks and every change it makes.
//!
//! Three implementations, one for each database, behind one conformance suite. Nothing here knows about HTTP, back-off
//! or handlers; nothing outside knows SQL.
//!
//! Rules every implementation keeps
//! - One call is one transaction (or one statement in autocommit). A call that fails has changed nothing, or, when the
//!   commit itself was cut off, everything; repeating a call is always safe.
//! - The future of a call may be dropped at any moment: a connection in an unknown state is closed, never reused.
//! - Every question about the present takes `now`. `None` means the database's clock; tests pass the hour they need.
//! - Text that is not valid UTF-8 is carried lossily, never an error: one bad row must not fail its neighbours.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::message::{HistoryEntry, Key, MessageId, PartitionSet, RelayId, Seq, WaitingDelivery};

pub(crate) mod claim;
pub(crate) mod decode;
mod error;
mod labels;
pub mod mysql;
pub mod open;
pub mod postgres;
mod seen;
pub mod sqlite;
mod unrouted;

pub use self::error::StoreError;

/// The owner of partitions that a relay left in order although what a dead one had left there was not read to its end.
pub const NOBODY: RelayId = RelayId::nil();
pub use self::labels::{Reason, State};
pub use self::seen::{Circuit, DestinationSeen, DestinationSpec, Membership, RelayRow, RelaySeen, Routing, Status};
pub use self::unrouted::{UnroutedAfter, UnroutedRow};
pub use crate::poll::{Evidence, Page, Probe, Row, Wanted};

/// The hour a question is asked at; `None` is the database's own clock.
pub type Now = Option<DateTime<Utc>>;

/// A database that holds an outbox.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What this database can prove about transactions still running.
    fn evidence(&self) -> Evidence;

    /// Refuses a database the relay cannot keep its promises on: unreachable, a standby, a schema missing or too old
    /// or too new, a server version without what is needed.
    async fn verify(&self) -> Result<(), StoreError>;

    // ---- feed: one connection of its own, never inside a transaction ----

    /// Reads what has become visible since the last poll, in sequence order: one statement, therefore one snapshot.
    ///
    /// Rows of partitions outside `owned` come back as bare numbers. At most `limit` rows come from the holes and at
    /// most `limit` from above the cursor.
    async fn message_read(
        &self,
        wanted: &Wanted,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Page, StoreError>;

    /// Says which of these numbers a running transaction still holds (MySQL/MariaDB: a locking read that does not
    /// wait). The others were free at the moment of asking. Empty on databases that have better evidence.
    async fn message_probe(&self, ranges: &[(Seq, Seq)]) -> Result<Probe, StoreError>;

    /// Numbers of committed messages in `(after, until]` in owned partitions, ascending, at most `limit`.
    async fn message_sweep(
        &self,
        after: Seq,
        until: Seq,
        owned: PartitionSet,
        limit: u32,
    ) -> Result<Vec<Seq>, StoreError>;

    /// The highest number of a committed message, in any partition; 0 when there is none.
    async fn message_last(&self) -> Result<Seq, StoreError>;

    /// Draws a transaction id as evidence (PostgreSQL); `None` elsewhere.
    async fn mark_draw(&self) -> Result<Option<u64>, StoreError>;

    /// For each (destination, key): true when an in-order row or a blocking dead letter of it exists.
    async fn key_parked(&self, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError>;

    // ---- waiting rows ----

    /// Unblocked rows that are due, oldest `due_at` first, for each lane at most its limit.
    ///
    /// A lane named `""` asks for rows that are not routed yet.
    async fn delivery_due(&self, lanes: &[LaneDemand], owned: PartitionSet, now: Now) -> Result<Due, StoreError>;

    /// The topics of rows in state `unrouted` without a destination, whatever their `due_at` and blocked or not: for each
    /// partition those after the topic given, in the order of the database, at most `limit` of each.
    ///
    /// Asked for when the routes changed, and in partitions that were gained. It is a walk over an index, whose price are
    /// the topics and not the rows.
    async fn unrouted_topics(&self, after: &[(u8, String)], limit: u32) -> Result<Vec<(u8, String)>, StoreError>;

    /// Those rows: at each place those with higher ids, ascending, at most `limit`; place by place.
    async fn unrouted_rows(&self, wanted: &[UnroutedAfter], limit: u32) -> Result<Vec<UnroutedRow>, StoreError>;

    /// For each key: its in-order rows above the number given, in order, at most `limit`, up to the first that is not due.
    ///
    /// They are blocked by the rows that precede them. Whoever asks has those, if nobody inserted one since: which there
    /// are is told too, as they are now or were later than the followers.
    async fn delivery_followers(&self, keys: &[KeyAfter], limit: u32, now: Now) -> Result<Followers, StoreError>;

    /// Writes down that `relay` is about to attempt these rows, in one transaction under the locks of their partitions,
    /// where it owns the partition under the epoch given and `attempts` are those that were read. Returns the rows that
    /// were marked; a row that is locked by somebody else is not waited for.
    ///
    /// A settle takes the mark off. A row that bears the name of a dead relay, in a partition that was still that
    /// relay's, was being attempted when it died; whoever acquires the partition adds one to its deaths.
    async fn delivery_start(&self, relay: RelayId, batch: &StartBatch) -> Result<Vec<i64>, StoreError>;

    // ---- the clock was put back ----

    /// The highest id of a waiting row; 0 when there is none.
    async fn delivery_last(&self) -> Result<i64, StoreError>;

    /// Rows of these partitions with an id in `(after, until]` that are not due yet, by id, at most `limit`.
    async fn delivery_ahead(
        &self,
        after: i64,
        until: i64,
        owned: PartitionSet,
        limit: u32,
        now: Now,
    ) -> Result<Vec<RowAhead>, StoreError>;

    /// Brings rows forward, in one transaction under the locks of their partitions: those of partitions that are the
    /// relay's and are still due when they were read to be, so a call that is repeated does nothing. None comes before its
    /// `deliver_at`.
    async fn delivery_bring_forward(&self, relay: RelayId, rows: &[RowAhead], by: Duration) -> Result<(), StoreError>;

    /// Lets destinations be held for less, those that are still held until the hour given.
    ///
    /// So of several relays that ask for the same one does it.
    async fn destination_bring_forward(&self, holds: &[(String, Written)], by: Duration) -> Result<(), StoreError>;

    // ---- settle ----

    /// Deletes messages that every destination has received, if the routes are still those they were routed by.
    ///
    /// One plain statement without the partition lock. Returns the numbers that were deleted; a number is not among
    /// them when its row is gone, or when the routes changed (then all are missing).
    async fn message_delivered(
        &self,
        messages: &[(Seq, MessageId)],
        routes_version: i64,
    ) -> Result<Delivered, StoreError>;

    /// Writes all other outcomes in one transaction under the locks of their partitions.
    ///
    /// Order of work: lock the partition rows in ascending order; compare the version of the routes, where the batch
    /// names one, by a read that begins after the locks were granted (whoever removes a destination holds all of them
    /// until its rows are gone and the version is higher); drop, row by row, what `relay` does not own under the
    /// epoch given; delete the messages and insert their waiting rows and dead letters from what was deleted; update
    /// or delete the waiting rows whose `attempts` are those given, inserting their dead letters; then leave exactly
    /// the lowest in-order row of each touched (destination, key) unblocked, none while a blocking dead letter of it
    /// exists, all `due_at` unchanged. A key is touched also by an outcome that was refused because its row is gone:
    /// a transactional handler may have deleted it.
    async fn settle(&self, relay: RelayId, batch: &Settlement, now: Now) -> Result<Settled, StoreError>;

    // ---- ownership ----

    /// Registers a relay under a new identity.
    async fn relay_register(&self, relay: &RelayRow) -> Result<(), StoreError>;

    /// Raises the beat and reads back who is there and which partitions belong to whom.
    ///
    /// `None` when the relay's own row is gone: it was declared dead and must start anew under another identity.
    async fn relay_beat(&self, relay: RelayId, draining: bool) -> Result<Option<Membership>, StoreError>;

    /// Reads who is there and which partitions belong to whom, and changes nothing.
    async fn membership_read(&self) -> Result<Membership, StoreError>;

    /// Declares relays dead, each only where its beat is still the one seen: deletes the row and raises the epochs of
    /// its partitions, in one transaction. They keep their owner, which has no row any more: whoever takes them shall
    /// know that it did not leave in order. Returns those that were removed.
    async fn relay_bury(&self, dead: &[(RelayId, i64)]) -> Result<Vec<RelayId>, StoreError>;

    /// Takes those of the wanted partitions that nobody owns, or whose owner has no row any more, raising their
    /// epochs. Ends by repairing the keys of what was taken (exactly the lowest in-order row unblocked). In partitions
    /// whose owner had no row, waiting rows that bear its name become suspect, with one more death.
    async fn partition_acquire(&self, relay: RelayId, wanted: PartitionSet) -> Result<Vec<Taken>, StoreError>;

    /// Gives partitions up, those that are still the relay's.
    async fn partition_release(&self, relay: RelayId, given_up: PartitionSet) -> Result<(), StoreError>;

    /// Removes the relay's row and frees whatever it owned, but for `unread`: these are left as a dead relay's, [`NOBODY`]'s,
    /// because what the dead left there was not read to its end.
    async fn relay_leave(&self, relay: RelayId, unread: PartitionSet) -> Result<(), StoreError>;

    // ---- destinations ----

    /// Registers what this relay serves; raises the routes version only when a name, a pattern or an ordering changed.
    async fn destination_register(&self, served: &[DestinationSpec]) -> Result<(), StoreError>;

    /// Every registered destination and the routes version, in one snapshot.
    async fn destination_read(&self, now: Now) -> Result<Routing, StoreError>;

    /// Holds a destination for `pause` from now on, never shortening a hold that lasts longer.
    async fn destination_hold(&self, name: &str, pause: Duration, now: Now) -> Result<(), StoreError>;

    /// Pauses a destination until an operator resumes it.
    async fn destination_pause(&self, name: &str, by: &str, reason: &str, now: Now) -> Result<(), StoreError>;

    // ---- faces ----

    /// Tells what stands open with the destinations a relay serves, for people to see. Nothing else is changed.
    async fn relay_circuits(&self, relay: RelayId, circuits: &[Circuit]) -> Result<(), StoreError>;

    /// The figures `relay status` shows.
    async fn status(&self, now: Now) -> Result<Status, StoreError>;
}

/// A lane that may take waiting rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneDemand {
    /// The destination; `""` for rows not routed yet.
    pub destination: String,
    /// The most rows to return.
    pub limit: u32,
    /// Keys whose rows that keep no order are left out, as if they were not there.
    pub without: Vec<Key>,
}

/// A place among the rows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAfter {
    /// The destination.
    pub destination: String,
    /// The key.
    pub key: Key,
    /// What comes after this number is wanted.
    pub after: Seq,
}

/// The answer to `delivery_followers`.
#[derive(Clone, Debug, Default)]
pub struct Followers {
    /// The rows, key by key.
    pub rows: Vec<WaitingDelivery>,
    /// For each key asked for: its in-order rows up to the number given, at most [`EARLIER_MAX`].
    pub earlier: Vec<Vec<i64>>,
}

/// The most rows that are named before a follower.
pub const EARLIER_MAX: usize = 64;

/// The answer to `delivery_due`.
#[derive(Clone, Debug, Default)]
pub struct Due {
    /// Rows to attempt (or, for the lane `""`, to route).
    pub rows: Vec<WaitingDelivery>,
    /// For each lane asked for, in that order: what is waiting there.
    pub lanes: Vec<LaneWaiting>,
    /// The hour by which they are due, where it is the database's own.
    pub hour: Option<DateTime<Utc>>,
}

/// A waiting row that is not due yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowAhead {
    /// The row.
    pub id: i64,
    /// Its partition.
    pub partition_no: u8,
    /// When it is due.
    pub due_at: Written,
}

/// An hour as it stands in a row, in the units of that database. It is only given back, to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written(pub i64);

/// What waits for one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneWaiting {
    /// True when any waiting row or any blocking dead letter of the destination exists (in any partition). While it is
    /// false no key can be parked.
    pub occupied: bool,
    /// How long until the next unblocked row in the owned partitions is due; zero when one is due already.
    pub next_due_in: Option<Duration>,
}

/// Rows that are about to be attempted.
#[derive(Clone, Debug, Default)]
pub struct StartBatch {
    /// The epoch the relay believes it holds each partition under.
    pub epochs: Vec<(u8, i64)>,
    /// The rows.
    pub rows: Vec<Start>,
}

/// A waiting row that is about to be attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The row.
    pub id: i64,
    /// Its partition.
    pub partition_no: u8,
    /// The message it is of: after a restore the numbers of rows are handed out again.
    pub message_id: MessageId,
    /// `attempts` as it was read.
    pub attempts_read: u32,
}

/// A partition that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Taken {
    /// Its number.
    pub partition_no: u8,
    /// Its epoch from now on.
    pub epoch: i64,
    /// True when its owner had no row any more: it is dead, and did not give the partition up.
    pub inherited: bool,
}

/// The outcomes of many deliveries.
#[derive(Clone, Debug, Default)]
pub struct Settlement {
    /// The epoch the relay believes it holds each partition under.
    pub epochs: Vec<(u8, i64)>,
    /// The version of the routes by which the units were decided, where that matters: a destination that was removed
    /// meanwhile must not get another waiting row.
    pub routes_version: Option<i64>,
    /// Messages that leave `outbox_messages`, with everything that remains of each. A message whose units were all
    /// delivered may be here too (tracked ones); it leaves nothing.
    pub moves: Vec<MessageMove>,
    /// Waiting rows that were attempted.
    pub waiting: Vec<WaitingOutcome>,
}

/// A message that leaves `outbox_messages`.
#[derive(Clone, Debug)]
pub struct MessageMove {
    /// Its number.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
    /// Its partition.
    pub partition_no: u8,
    /// Its key, for the statement that leaves one row unblocked.
    pub ordering_key: Option<Key>,
    /// One entry for each destination that did not simply receive it.
    pub units: Vec<UnitMove>,
}

/// What remains of a message for one destination.
#[derive(Clone, Debug)]
pub struct UnitMove {
    /// The destination; `""` when not routed yet.
    pub destination: String,
    /// What becomes of it.
    pub remains: Remains,
}

/// What becomes of a delivery that is not delivered.
#[derive(Clone, Debug)]
pub enum Remains {
    /// It waits.
    Waits(Waits),
    /// It is given up.
    Dies(Dies),
}

/// A row of `outbox_deliveries` as it is to be.
#[derive(Clone, Debug)]
pub struct Waits {
    /// The label for people.
    pub state: State,
    /// Attempts judged so far.
    pub attempts: u32,
    /// When it may be attempted next.
    pub due: DueIn,
    /// False for what neither blocks its key nor waits for it.
    pub in_order: bool,
    /// How long ago the first attempt began, when there was one and none is recorded yet.
    pub first_attempt_age: Option<Duration>,
    /// The last verdict's name.
    pub last_verdict: Option<&'static str>,
    /// What went wrong last, for people.
    pub last_error: Option<String>,
    /// All attempts to keep, newest last.
    pub history: Vec<HistoryEntry>,
}

/// A row of `outbox_dead_letters` as it is to be.
#[derive(Clone, Debug)]
pub struct Dies {
    /// Why.
    pub reason: Reason,
    /// Attempts judged.
    pub attempts: u32,
    /// True when the key stays blocked until an operator decides.
    pub blocks_key: bool,
    /// Groups dead letters that died of the same thing.
    pub fingerprint: String,
    /// How long ago the first attempt began, when there was one and none is recorded yet.
    pub first_attempt_age: Option<Duration>,
    /// The last verdict's name.
    pub last_verdict: Option<&'static str>,
    /// What went wrong last, for people.
    pub last_error: Option<String>,
    /// All attempts to keep, newest last.
    pub history: Vec<HistoryEntry>,
}

/// When a waiting row is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueIn {
    /// So long from now, by the database's clock.
    Pause(Duration),
    /// At the message's own `deliver_at` (now, if it has none).
    DeliverAt,
}

/// The outcome of a waiting row.
#[derive(Clone, Debug)]
pub struct WaitingOutcome {
    /// The row.
    pub id: i64,
    /// The message it is about: after a restore the row's number may be handed out again.
    pub message_id: MessageId,
    /// Its partition.
    pub partition_no: u8,
    /// Its destination, for the statement that leaves one row unblocked.
    pub destination: String,
    /// Its key, likewise.
    pub ordering_key: Option<Key>,
    /// `attempts` as it was read; the write changes nothing when the row says otherwise.
    pub attempts_read: u32,
    /// What becomes of it.
    pub change: WaitingChange,
}

/// What becomes of a waiting row.
#[derive(Clone, Debug)]
pub enum WaitingChange {
    /// It was delivered: the row goes.
    Delivered,
    /// It waits again. `in_order` stays as it is in the row.
    Waits(Waits),
    /// It is given up: the row becomes a dead letter.
    Dies(Dies),
    /// A row that was not routed yet becomes one row for each of these. `attempts` stay 0; `due_at` stays
    /// unless a unit is due earlier: what waited for its route need not wait for anything else.
    Routed(Vec<RoutedUnit>),
}

/// What a row that was not routed yet becomes for one destination.
#[derive(Clone, Debug)]
pub struct RoutedUnit {
    /// The destination.
    pub destination: String,
    /// What becomes of it there.
    pub remains: Remains,
}

/// The answer to `message_delivered`.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    /// The numbers that were deleted by this call.
    pub deleted: Vec<Seq>,
    /// The transaction id drawn by it (PostgreSQL).
    pub mark: Option<u64>,
}

/// The answer to `settle`.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Messages refused because their partition is not ours (any more), or because their row was gone.
    pub refused_messages: Vec<Seq>,
    /// Waiting rows refused for the same reasons, or because `attempts` differed.
    pub refused_waiting: Vec<i64>,
    /// The routes are others than those the batch names: nothing was written and nothing else is told.
    pub routes_changed: bool,
    /// How many of all these were stale: their partition is another relay's, or was taken anew since.
    pub stale: usize,
    /// The transaction id drawn by it (PostgreSQL).
    pub mark: Option<u64>,
}

/// What a store is told beside the address.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// How long ownership lasts without renewal; sessions that sit in an open transaction are ended well before.
    pub lease: Duration,
    /// MySQL/MariaDB: per-key order holds for transactions shorter than this.
    pub transaction_age_max: Duration,
    /// What the server's own lists of sessions show.
    pub application_name: String,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            lease: Duration::from_secs(5),
            transaction_age_max: Duration::from_secs(10),
            application_name: "outbox-relay".into(),
        }
    }
}
