//! The registered destinations, and the figures people look at.

use std::time::Duration;

use chrono::DateTime;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::{Connection, QueryResult, SqliteConnection};

use super::circuits::circuits;
use super::membership::membership;
use super::read::{clock, duration};
use super::statement::{execute, load, load_one, load_optional, statement};
use super::worker::Open;
use crate::store::{DestinationSeen, DestinationSpec, Now, Routing, Status, Written, decode};

statement!(
    DestinationFind,
    "-- destination_find\nSELECT patterns, ordering FROM outbox_destinations WHERE name = ?",
    (Text, Text)
);
statement!(
    DestinationWrite,
    "-- destination_register\nINSERT INTO outbox_destinations (name, patterns, ordering, served_at) \
     VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET patterns = excluded.patterns, \
     ordering = excluded.ordering, served_at = excluded.served_at"
);
statement!(RoutesChanged, "-- routes_changed\nUPDATE outbox_meta SET routes_version = routes_version + 1");
statement!(MetaRead, "-- meta_read\nSELECT routes_version, schema_version FROM outbox_meta", (BigInt, BigInt));
statement!(
    DestinationRead,
    "-- destination_read\nSELECT name, patterns, ordering, paused_at IS NOT NULL, held_until \
     FROM outbox_destinations ORDER BY name",
    (Text, Text, Text, Bool, Nullable<BigInt>)
);
statement!(
    DestinationHold,
    "-- destination_hold\nUPDATE outbox_destinations SET held_until = max(coalesce(held_until, 0), ?) WHERE name = ?"
);
statement!(
    DestinationPause,
    "-- destination_pause\nUPDATE outbox_destinations SET paused_at = ?, paused_by = ?, pause_reason = ? \
     WHERE name = ? AND paused_at IS NULL"
);
statement!(
    Pending,
    "-- status_pending\nSELECT count(*), min(created_at) FROM outbox_messages",
    (BigInt, Nullable<BigInt>)
);
statement!(
    WaitingCount,
    "-- status_waiting\nSELECT destination, state, count(*) FROM outbox_deliveries GROUP BY 1, 2 ORDER BY 1, 2",
    (Text, Text, BigInt)
);
statement!(
    OldestDue,
    "-- status_due\nSELECT destination, min(due_at) FROM outbox_deliveries WHERE blocked = 0 \
     GROUP BY destination HAVING min(due_at) <= ? ORDER BY destination",
    (Text, BigInt)
);
statement!(
    DeadCount,
    "-- status_dead\nSELECT destination, reason, count(*) FROM outbox_dead_letters GROUP BY 1, 2 ORDER BY 1, 2",
    (Text, Text, BigInt)
);

/// Registers destinations; the routes version rises only when something is different.
pub(super) fn destination_register(open: &mut Open, served: &[DestinationSpec]) -> QueryResult<()> {
    open.conn.immediate_transaction(|conn| {
        let now = clock(conn, None)?;
        let mut changed = false;
        for spec in served {
            let name = spec.name.as_str();
            let patterns = decode::names_text(&spec.patterns);
            let found: Option<(String, String)> = load_optional::<DestinationFind, _>(conn, &[name.into()])?;
            changed |= found.is_none_or(|found| found != (patterns.clone(), spec.ordering.clone()));
            let binds = [name.into(), patterns.as_str().into(), spec.ordering.as_str().into(), now.into()];
            execute::<DestinationWrite>(conn, &binds)?;
        }
        if changed {
            execute::<RoutesChanged>(conn, &[])?;
        }
        Ok(())
    })
}

/// All destinations and the routes version.
pub(super) fn destination_read(open: &mut Open, now: Now) -> QueryResult<Routing> {
    open.conn.transaction(|conn| {
        let now = clock(conn, now)?;
        routing(conn, now)
    })
}

fn routing(conn: &mut SqliteConnection, now: i64) -> QueryResult<Routing> {
    let (version, _): (i64, i64) = load_one::<MetaRead, _>(conn, &[])?;
    let found: Vec<(String, String, String, bool, Option<i64>)> = load::<DestinationRead, _>(conn, &[])?;
    let destinations = found
        .into_iter()
        .map(|(name, patterns, ordering, paused, held_until)| DestinationSeen {
            spec: DestinationSpec { name, patterns: decode::names(&patterns), ordering },
            paused,
            held_for: held_until.filter(|until| *until > now).map(|until| duration(until.saturating_sub(now))),
            held_until: held_until.map(Written),
        })
        .collect();
    Ok(Routing { version, destinations, hour: DateTime::from_timestamp_millis(now) })
}

/// Holds a destination for a while, never shorter than it is held already.
pub(super) fn destination_hold(open: &mut Open, name: &str, pause: Duration, now: Now) -> QueryResult<()> {
    open.conn.immediate_transaction(|conn| {
        let now = clock(conn, now)?;
        let until = now.saturating_add(i64::try_from(pause.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX));
        execute::<DestinationHold>(conn, &[until.into(), name.into()]).map(drop)
    })
}

/// Pauses a destination. One that is paused already keeps its reason: the first explains what followed.
pub(super) fn destination_pause(open: &mut Open, name: &str, by: &str, reason: &str, now: Now) -> QueryResult<()> {
    open.conn.immediate_transaction(|conn| {
        let now = clock(conn, now)?;
        execute::<DestinationPause>(conn, &[now.into(), by.into(), reason.into(), name.into()]).map(drop)
    })
}

/// The figures of `relay status`. Counts walk whole tables; they hold up no writer.
pub(super) fn status(open: &mut Open, now: Now) -> QueryResult<Status> {
    open.conn.transaction(|conn| {
        let now = clock(conn, now)?;
        let age = |at: i64| duration(now.saturating_sub(at));
        let (_, schema_version): (i64, i64) = load_one::<MetaRead, _>(conn, &[])?;
        let (pending, oldest): (i64, Option<i64>) = load_one::<Pending, _>(conn, &[])?;
        let oldest_due: Vec<(String, i64)> = load::<OldestDue, _>(conn, &[now.into()])?;
        Ok(Status {
            pending,
            oldest_pending: oldest.map(age),
            waiting: load::<WaitingCount, _>(conn, &[])?,
            oldest_due: oldest_due.into_iter().map(|(destination, at)| (destination, age(at))).collect(),
            dead: load::<DeadCount, _>(conn, &[])?,
            membership: membership(conn)?,
            routing: routing(conn, now)?,
            circuits: circuits(conn)?,
            schema_version: i32::try_from(schema_version).unwrap_or(i32::MAX),
        })
    })
}
