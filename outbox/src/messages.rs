//! Where messages are: pending, waiting for a destination, or dead; and taking one back by hand.
//!
//! A message is *pending* while it stands in `outbox_messages`: no relay has settled it yet, and where it goes is not
//! decided unless its sender named a destination. What a destination could not take at once *waits* in
//! `outbox_deliveries`. What is in none of the tables was delivered, was discarded, or never was.
//!
//! Invariants
//! - A question looks at a bounded number of rows, the oldest first, and says when there are more: neither table has an
//!   index on everything one may ask for, and a backlog has millions of rows. By its number, a pending message is found
//!   at once; waiting deliveries and dead letters of a message are found by its id.
//! - [`find`] asks all tables with one statement, so that a message is not missed on its way from one to the next.
//!
//! ```
//! # use diesel::prelude::*;
//! # #[derive(serde::Serialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//! use outbox::messages::{self, Bounds, Filter, Look};
//!
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # outbox::migrations::run(&mut conn)?;
//! let receipt = conn.transaction(|conn| outbox::enqueue(conn, &OrderPlaced { order_id: 1 }))?;
//!
//! let orders = Filter { topic: Some("order.placed".to_owned()), ..Filter::default() };
//! let page = messages::pending(&mut conn, &orders, Bounds::default())?;
//! assert_eq!(page.rows[0].message_id, receipt.message_id);
//!
//! let found = messages::find(&mut conn, receipt.message_id, &Look::default())?;
//! assert!(found.pending.is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use serde::Deserialize;
use uuid::Uuid;

use crate::by_hand::ask::{self, Blocking};
use crate::by_hand::sql::{contains, instant as literal};
use crate::by_hand::{Hex, Statement, instant, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::dead_letters::sql::payload_contains;
use crate::dead_letters::{self, DeadLetter};
use crate::enqueue::Receipt;
use crate::error::Error;

mod ahead;
mod cancel;
pub(crate) mod search;
pub(crate) mod sql;
mod writers;

pub use ahead::{Ahead, ahead};
pub use cancel::{Cancelled, cancel};
pub use writers::{Writer, writers};

/// Which messages; what is `None` does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// For this destination. A pending message has one only if its sender named it.
    pub destination: Option<String>,
    /// Of this topic.
    pub topic: Option<String>,
    /// With this ordering key.
    pub key: Option<String>,
    /// In this state, such as `retry` or `blocked`. A pending message has none.
    pub state: Option<String>,
    /// Whose last error contains this. A pending message has none.
    pub error: Option<String>,
    /// Enqueued at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Enqueued before this time.
    pub until: Option<DateTime<Utc>>,
    /// Whose payload contains these bytes. Reads every payload the rest of the filter leaves.
    pub contains: Option<String>,
}

/// How much is shown and looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The most rows that come back.
    pub shown: u32,
    /// The most rows that are looked at, oldest first.
    pub looked_at: u32,
}

/// Rows looked at unless somebody says otherwise: well under a second on any of the databases.
pub(crate) const LOOKED_AT: u32 = 100_000;

impl Default for Bounds {
    /// 50 rows of 100 000.
    fn default() -> Bounds {
        Bounds { shown: 50, looked_at: LOOKED_AT }
    }
}

/// A message somebody asks about: its id, and its number where that is known.
///
/// Made from an id, a [`Receipt`], or an id with the number, which is on `outbox-sequence` of the requests
/// and in what this module returns. With its number a pending message is found at once; without, by its place in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRef {
    pub(crate) id: Uuid,
    pub(crate) seq: Option<i64>,
}

impl From<Uuid> for MessageRef {
    fn from(id: Uuid) -> MessageRef {
        MessageRef { id, seq: None }
    }
}

impl From<&Receipt> for MessageRef {
    fn from(receipt: &Receipt) -> MessageRef {
        receipt.message_id.into()
    }
}

impl From<(Uuid, i64)> for MessageRef {
    fn from((id, seq): (Uuid, i64)) -> MessageRef {
        MessageRef { id, seq: Some(seq) }
    }
}

/// An answer within bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The rows, oldest first.
    pub rows: Vec<T>,
    /// True when more of what was looked at fits than is shown.
    pub has_more: bool,
    /// False when there are more rows than were looked at.
    pub looked_at_all: bool,
}

/// A message that is committed and not settled.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// Its id.
    pub message_id: Uuid,
    /// The number it drew when it was inserted.
    pub seq: i64,
    /// Its partition.
    pub partition_no: u8,
    /// The topic.
    pub topic: String,
    /// The ordering key's bytes.
    pub ordering_key: Option<Vec<u8>>,
    /// The type of the payload.
    pub content_type: String,
    /// The destination its sender named.
    pub destination: Option<String>,
    /// Not before.
    pub deliver_at: Option<DateTime<Utc>>,
    /// Not after.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
}

/// A delivery that waits.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The delivery's id.
    pub id: i64,
    /// The message.
    pub message_id: Uuid,
    /// The number the message drew when it was inserted.
    pub seq: i64,
    /// Its partition.
    pub partition_no: u8,
    /// Where it goes; empty while it is not routed.
    pub destination: String,
    /// The topic.
    pub topic: String,
    /// The ordering key's bytes.
    pub ordering_key: Option<Vec<u8>>,
    /// The type of the payload.
    pub content_type: String,
    /// What it waits for: `retry`, `blocked`, `scheduled`, `unrouted`, `unserved`, `overflow`, `suspect`.
    pub state: String,
    /// True while an earlier message of its key has to go first; then `due_at` says nothing.
    pub blocked: bool,
    /// Attempts that were judged.
    pub attempts: u32,
    /// How often a relay died while its handler had it, since the last verdict.
    pub deaths: u32,
    /// How often it was redriven.
    pub life: u32,
    /// From when it may be attempted.
    pub due_at: DateTime<Utc>,
    /// Not after.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the message was enqueued.
    pub created_at: DateTime<Utc>,
    /// When the first attempt began.
    pub first_attempt_at: Option<DateTime<Utc>>,
    /// The last verdict's name.
    pub last_verdict: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// The attempts, as JSON, newest last.
    pub history: String,
}

/// How to look for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The number it drew when it was inserted. With it a pending message is found at once, however many there are.
    pub seq: Option<i64>,
    /// Without the number: how many of the oldest pending messages are looked at. Where the id begins with its time, as
    /// those of this library do, as many to either side of its place in time are, too.
    pub looked_at: u32,
    /// Whether to fetch the payload and the headers too.
    pub content: bool,
}

impl Default for Look {
    /// Without number and content, among 100 000.
    fn default() -> Look {
        Look { seq: None, looked_at: LOOKED_AT, content: false }
    }
}

/// Where a message is. A message for several destinations can be in several places.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The message, while no relay has settled it.
    pub pending: Option<Pending>,
    /// Its waiting deliveries, by id.
    pub waiting: Vec<Waiting>,
    /// Its dead letters, by id.
    pub dead: Vec<DeadLetter>,
    /// What it carries, when that was asked for and it is anywhere.
    pub content: Option<Content>,
    /// False when there are more pending messages than were looked at: then it may be one of the others.
    pub looked_at_all: bool,
}

impl Found {
    /// True when it is in none of the tables, as far as was looked.
    pub fn is_nowhere(&self) -> bool {
        self.pending.is_none() && self.waiting.is_empty() && self.dead.is_empty()
    }
}

/// What a message carries.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// The payload, exactly as it was enqueued.
    pub payload: Vec<u8>,
    /// The headers, as JSON; other producers may have stored something else.
    pub headers: String,
}

/// Lists pending messages, the oldest first. A filter by state or error finds none: only deliveries have one.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn pending<C>(conn: &mut C, filter: &Filter, bounds: Bounds) -> Result<Page<Pending>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    if filter.state.is_some() || filter.error.is_some() {
        return Ok(Page { rows: Vec::new(), has_more: false, looked_at_all: true });
    }
    let beyond = beyond(conn, database, sql::PENDING, bounds.looked_at)?;
    page(conn, database, sql::PENDING, filter, bounds, beyond, |place| match place {
        Place::Pending(row) => row.read().map(Some),
        _ => Ok(None),
    })
}

/// Lists waiting deliveries, those of the oldest messages first.
///
/// With a destination and a key all rows are looked at: there is an index for that.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn waiting<C>(conn: &mut C, filter: &Filter, bounds: Bounds) -> Result<Page<Waiting>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let beyond = match (&filter.destination, &filter.key) {
        (Some(_), Some(_)) => None,
        _ => beyond(conn, database, sql::WAITING, bounds.looked_at)?,
    };
    page(conn, database, sql::WAITING, filter, bounds, beyond, |place| match place {
        Place::Waiting(row) => row.read().map(Some),
        _ => Ok(None),
    })
}

/// Says where a message is.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn find<C>(conn: &mut C, message_id: Uuid, look: &Look) -> Result<Found, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let (which, looked_at_all) = match look.seq {
        Some(seq) => (format!("seq = {seq}"), true),
        None => {
            let range = ask::now(search::range(&mut Blocking(conn), message_id, look.looked_at))?;
            (range.which, range.is_all)
        }
    };
    let select = sql::find(database, message_id, &which, look.content);
    let mut found = Found { pending: None, waiting: Vec::new(), dead: Vec::new(), content: None, looked_at_all };
    for json in Statement::new(select).load(conn)? {
        let Row { place, payload, headers } = serde_json::from_str(&json).map_err(unreadable)?;
        if let (Some(payload), Some(headers)) = (payload, headers) {
            found.content = Some(Content { payload: payload.0, headers: headers.text() });
        }
        match place {
            Place::Pending(row) => found.pending = Some(row.read()?),
            Place::Waiting(row) => found.waiting.push(row.read()?),
            Place::Dead(row) => found.dead.push(row.letter()?),
        }
    }
    found.waiting.sort_by_key(|waiting| waiting.id);
    found.dead.sort_by_key(|letter| letter.id);
    // Whoever found it need not look further.
    found.looked_at_all |= found.pending.is_some();
    Ok(found)
}

/// The number the newest message of this connection drew; ask in the transaction that enqueued it, right after.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses, or this connection has enqueued nothing.
pub fn drawn<C>(conn: &mut C) -> Result<Option<i64>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let select = sql::drawn(<C::Backend as Dialect>::DATABASE);
    Ok(Statement::new(select).load_numbers(conn)?.first().copied())
}

/// The first number that is not looked at, or `None` when all are.
fn beyond<C>(conn: &mut C, database: Database, table: sql::Table, looked_at: u32) -> Result<Option<i64>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    Ok(Statement::new(sql::beyond(database, table, looked_at)).load_numbers(conn)?.first().copied())
}

fn page<C, T>(
    conn: &mut C,
    database: Database,
    table: sql::Table,
    filter: &Filter,
    bounds: Bounds,
    beyond: Option<i64>,
    read: impl Fn(Place) -> Result<Option<T>, Error>,
) -> Result<Page<T>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let mut select = Statement::new(sql::list(database, table));
    let mut word = " WHERE ";
    let mut next = |select: Statement| select.sql(std::mem::replace(&mut word, " AND "));
    if let Some(beyond) = beyond {
        select = next(select).sql(format!("{} < {beyond}", table.number));
    }
    for (column, text) in [
        ("destination", &filter.destination),
        ("topic", &filter.topic),
        ("ordering_key", &filter.key),
        ("state", &filter.state),
    ] {
        if let Some(text) = text {
            select = next(select).is(database, column, text);
        }
    }
    if let Some(text) = &filter.error {
        let [before, after] = contains(database, "last_error");
        select = next(select).sql(before).text(text).sql(after);
    }
    if let Some(since) = filter.since {
        select = next(select).sql(format!("created_at >= {}", literal(database, since)));
    }
    if let Some(until) = filter.until {
        select = next(select).sql(format!("created_at < {}", literal(database, until)));
    }
    if let Some(text) = &filter.contains {
        let [before, after] = payload_contains(database);
        select = next(select).sql(before).text(text).sql(after);
    }
    // One more than is shown tells whether there is more.
    let most = u64::from(bounds.shown) + 1;
    let rows = select.sql(format!(" ORDER BY {} LIMIT {most}", table.age)).load(conn)?;
    let mut page = Page { rows: Vec::new(), has_more: rows.len() as u64 == most, looked_at_all: beyond.is_none() };
    for json in rows.iter().take(bounds.shown as usize) {
        let row: Row = serde_json::from_str(json).map_err(unreadable)?;
        page.rows.extend(read(row.place)?);
    }
    Ok(page)
}

/// Reads rows of waiting deliveries.
pub(crate) fn read_waiting(rows: &[String]) -> Result<Vec<Waiting>, Error> {
    let read = |json: &String| serde_json::from_str::<WaitingRow>(json).map_err(unreadable)?.read();
    rows.iter().map(read).collect()
}

/// A row of any of the tables, which says itself where it is from.
#[derive(Deserialize)]
struct Row {
    #[serde(flatten)]
    place: Place,
    payload: Option<Hex>,
    headers: Option<Hex>,
}

#[derive(Deserialize)]
#[serde(tag = "place", rename_all = "lowercase")]
enum Place {
    Pending(PendingRow),
    Waiting(WaitingRow),
    Dead(dead_letters::row::Row),
}

#[derive(Deserialize)]
struct PendingRow {
    message_id: String,
    seq: i64,
    partition_no: u8,
    topic: String,
    ordering_key: Option<Hex>,
    content_type: Hex,
    destination: Option<Hex>,
    deliver_at: Option<i64>,
    expires_at: Option<i64>,
    created_at: i64,
}

impl PendingRow {
    fn read(self) -> Result<Pending, Error> {
        Ok(Pending {
            message_id: Uuid::parse_str(&self.message_id).map_err(unreadable)?,
            seq: self.seq,
            partition_no: self.partition_no,
            topic: self.topic,
            ordering_key: self.ordering_key.map(|key| key.0),
            content_type: self.content_type.text(),
            destination: self.destination.map(|name| name.text()),
            deliver_at: self.deliver_at.map(instant),
            expires_at: self.expires_at.map(instant),
            created_at: instant(self.created_at),
        })
    }
}

#[derive(Deserialize)]
struct WaitingRow {
    id: i64,
    message_id: String,
    seq: i64,
    partition_no: u8,
    destination: Hex,
    topic: String,
    ordering_key: Option<Hex>,
    content_type: Hex,
    state: String,
    blocked: u8,
    attempts: u32,
    deaths: u32,
    life: u32,
    due_at: i64,
    expires_at: Option<i64>,
    created_at: i64,
    first_attempt_at: Option<i64>,
    last_verdict: Option<String>,
    last_error: Option<Hex>,
    history: Hex,
}

impl WaitingRow {
    fn read(self) -> Result<Waiting, Error> {
        Ok(Waiting {
            id: self.id,
            message_id: Uuid::parse_str(&self.message_id).map_err(unreadable)?,
            seq: self.seq,
            partition_no: self.partition_no,
            destination: self.destination.text(),
            topic: self.topic,
            ordering_key: self.ordering_key.map(|key| key.0),
            content_type: self.content_type.text(),
            state: self.state,
            blocked: self.blocked == 1,
            attempts: self.attempts,
            deaths: self.deaths,
            life: self.life,
            due_at: instant(self.due_at),
            expires_at: self.expires_at.map(instant),
            created_at: instant(self.created_at),
            first_attempt_at: self.first_attempt_at.map(instant),
            last_verdict: self.last_verdict,
            last_error: self.last_error.map(|error| error.text()),
            history: self.history.text(),
        })
    }
}

impl fmt::Debug for Pending {
    /// Leaves out what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("message_id", &self.message_id)
            .field("seq", &self.seq)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Waiting {
    /// Leaves out what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("id", &self.id)
            .field("message_id", &self.message_id)
            .field("destination", &self.destination)
            .field("topic", &self.topic)
            .field("state", &self.state)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Content {
    /// Leaves out what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("payload_len", &self.payload.len()).finish_non_exhaustive()
    }
}
