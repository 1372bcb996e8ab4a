//! Destinations as they stand in the database: looked at, paused, resumed and removed by a named person.
//!
//! Relays register their destinations when they start, and look here again and again: a pause made here reaches all of
//! them, and lasts until somebody resumes it, over restarts.
//!
//! Invariants
//! - Whoever paused a destination first stays named. Pausing what is paused, or resuming what is not, changes nothing.
//! - Every change leaves one audit row, in the same transaction, by the database's clock.
//!
//! ```
//! # use diesel::prelude::*;
//! use outbox::destinations::{self, By, Change};
//!
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # outbox::migrations::run(&mut conn)?;
//! # diesel::sql_query("INSERT INTO outbox_destinations (name, patterns) VALUES ('billing', '[\"order.*\"]')")
//! #     .execute(&mut conn)?;
//! let by = By { actor: "ada".to_owned(), reason: Some("billing is down until noon".to_owned()) };
//! assert_eq!(destinations::pause(&mut conn, "billing", &by)?, Change::Done);
//! for destination in destinations::list(&mut conn)? {
//!     println!("{}: {} wait, paused: {}", destination.name, destination.waiting, destination.pause.is_some());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use serde::Deserialize;

use crate::by_hand::sql::{build, hex, micros, now, text};
use crate::by_hand::{Hex, Statement, audit, instant, transaction, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::error::Error;

pub use crate::dead_letters::By;
pub use remove::{Removal, Waiting, remove};

mod remove;

/// A destination some relay registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Destination {
    /// Its name.
    pub name: String,
    /// The topics it wants.
    pub patterns: Vec<String>,
    /// `key` or `none`.
    pub ordering: String,
    /// Who paused it, while it is paused.
    pub pause: Option<Pause>,
    /// Until when it asked to be left alone, while that lasts.
    pub held_until: Option<DateTime<Utc>>,
    /// When a relay registered it last.
    pub served_at: Option<DateTime<Utc>>,
    /// Deliveries that wait for it.
    pub waiting: u64,
    /// Its dead letters.
    pub dead: u64,
}

/// A destination, and what waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detail {
    /// What a list shows.
    pub destination: Destination,
    /// Deliveries that wait, by state, in the states' order.
    pub states: Vec<(String, u64)>,
    /// How long the oldest delivery that could be attempted has been due, by the database's clock.
    pub oldest_due: Option<Duration>,
}

/// Why a destination is sent nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pause {
    /// Since when.
    pub at: DateTime<Utc>,
    /// The person or program.
    pub by: String,
    /// What they said.
    pub reason: Option<String>,
}

/// What became of a pause or of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is as asked now.
    Done,
    /// It was so before.
    Already,
    /// There is no such destination.
    Unknown,
}

/// Lists the destinations by name. Counts what waits for each and its dead letters, through indexes.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn list<C>(conn: &mut C) -> Result<Vec<Destination>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let same = match database {
        // Texts that differ in spaces at the end are equal there.
        Database::Mysql => " AND octet_length(t.destination) = octet_length(outbox_destinations.name)",
        Database::Postgres | Database::Sqlite => "",
    };
    let count =
        |table: &str| format!("(SELECT count(*) FROM {table} t WHERE t.destination = outbox_destinations.name{same})");
    let mut fields = vec![
        ("held_until", micros(database, &format!("CASE WHEN held_until > {} THEN held_until END", now(database)))),
        ("waiting", count("outbox_deliveries")),
        ("dead", count("outbox_dead_letters")),
    ];
    for column in ["name", "patterns", "ordering", "paused_by", "pause_reason"] {
        fields.push((column, hex(database, column)));
    }
    for column in ["paused_at", "served_at"] {
        fields.push((column, micros(database, column)));
    }
    let select = format!(
        "-- destination_list\nSELECT {} FROM outbox_destinations ORDER BY outbox_destinations.name",
        build(database, &fields)
    );
    Statement::new(select).load(conn)?.iter().map(|json| read(json)).collect()
}

/// One destination with what waits for it, or `None` when no relay has registered it.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn get<C>(conn: &mut C, name: &str) -> Result<Option<Detail>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let Some(destination) = list(conn)?.into_iter().find(|destination| destination.name == name) else {
        return Ok(None);
    };
    let database = <C::Backend as Dialect>::DATABASE;
    let due_for =
        format!("{} - {}", micros(database, &format!("({})", now(database))), micros(database, "min(due_at)"));
    let count = build(database, &[("state", hex(database, "state")), ("count", "count(*)".to_owned())]);
    let states = format!("-- destination_states\nSELECT {count} FROM outbox_deliveries WHERE ");
    let states =
        Statement::new(states).is(database, "destination", name).sql(" GROUP BY outbox_deliveries.state").load(conn)?;
    let mut states: Vec<(String, u64)> = states
        .iter()
        .map(|json| {
            let row: StateRow = serde_json::from_str(json).map_err(unreadable)?;
            Ok((row.state.text(), row.count))
        })
        .collect::<Result<_, Error>>()?;
    states.sort();
    let due = format!(
        "-- destination_due\nSELECT {} FROM outbox_deliveries WHERE ",
        build(database, &[("due_for", due_for)])
    );
    let due = Statement::new(due).is(database, "destination", name).sql(" AND NOT blocked").load(conn)?;
    let due: Option<DueRow> = due.first().map(|json| serde_json::from_str(json).map_err(unreadable)).transpose()?;
    let due = due.and_then(|row| u64::try_from(row.due_for?).ok());
    Ok(Some(Detail { destination, states, oldest_due: due.map(Duration::from_micros) }))
}

/// How many deliveries wait for a destination of this name, whether it is registered or not.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn waiting<C>(conn: &mut C, name: &str) -> Result<u64, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let count = text(database, "count(*)");
    let select = format!("-- destination_waiting\nSELECT {count} FROM outbox_deliveries WHERE ");
    let counted = Statement::new(select).is(database, "destination", name).load_numbers(conn)?;
    Ok(counted.first().and_then(|count| u64::try_from(*count).ok()).unwrap_or_default())
}

/// Pauses a destination: relays stop sending to it, and its messages wait.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses; then nothing has changed.
pub fn pause<C>(conn: &mut C, name: &str, by: &By) -> Result<Change, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let now = now(<C::Backend as Dialect>::DATABASE);
    let update = format!("-- destination_pause\nUPDATE outbox_destinations SET paused_at = {now}, paused_by = ");
    let update = Statement::new(update).text(&by.actor).sql(", pause_reason = ").optional_text(by.reason.as_deref());
    change(conn, name, by, update.sql(" WHERE paused_at IS NULL AND "), "destination.pause")
}

/// Ends a pause: what waits for the destination is sent.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses; then nothing has changed.
pub fn resume<C>(conn: &mut C, name: &str, by: &By) -> Result<Change, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let update = "-- destination_resume\nUPDATE outbox_destinations SET paused_at = NULL, paused_by = NULL, \
                  pause_reason = NULL WHERE paused_at IS NOT NULL AND ";
    change(conn, name, by, Statement::new(update), "destination.resume")
}

fn change<C>(conn: &mut C, name: &str, by: &By, update: Statement, action: &str) -> Result<Change, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    transaction(conn, |conn| {
        if update.is(database, "name", name).execute(conn)? > 0 {
            audit(conn, by, action, &[format!("destination {name}")])?;
            return Ok(Change::Done);
        }
        let find = Statement::new("-- destination_find\nSELECT name FROM outbox_destinations WHERE ");
        let find = find.is(database, "name", name);
        Ok(if find.load(conn)?.is_empty() { Change::Unknown } else { Change::Already })
    })
}

#[derive(Deserialize)]
struct StateRow {
    state: Hex,
    count: u64,
}

#[derive(Deserialize)]
struct DueRow {
    due_for: Option<i64>,
}

#[derive(Deserialize)]
struct Row {
    name: Hex,
    patterns: Hex,
    ordering: Hex,
    paused_at: Option<i64>,
    paused_by: Option<Hex>,
    pause_reason: Option<Hex>,
    held_until: Option<i64>,
    served_at: Option<i64>,
    waiting: u64,
    dead: u64,
}

fn read(json: &str) -> Result<Destination, Error> {
    let row: Row = serde_json::from_str(json).map_err(unreadable)?;
    let text = |text: Option<Hex>| text.map(|text| text.text());
    let (by, reason) = (text(row.paused_by).unwrap_or_default(), text(row.pause_reason));
    Ok(Destination {
        name: row.name.text(),
        patterns: serde_json::from_str(&row.patterns.text()).map_err(unreadable)?,
        ordering: row.ordering.text(),
        pause: row.paused_at.map(|at| Pause { at: instant(at), by, reason }),
        held_until: row.held_until.map(instant),
        served_at: row.served_at.map(instant),
        waiting: row.waiting,
        dead: row.dead,
    })
}
