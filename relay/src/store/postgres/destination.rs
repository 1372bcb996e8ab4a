//! What messages can be routed to.

use std::time::Duration;

use tokio_postgres::Row as SqlRow;

use super::connection::{Connection, Sql};
use super::value::{Micros, Octets, micros, storable};
use crate::store::{DestinationSeen, DestinationSpec, Now, Routing, StoreError, decode};

/// The row of the routes version is the lock of all registrations.
const META_LOCK: Sql =
    Sql { name: "meta_lock", text: "-- meta_lock\nSELECT routes_version FROM outbox_meta FOR UPDATE" };

/// All parts of the statement see the table as it was before: what changed is known from the comparison with it.
const DESTINATION_REGISTER: Sql = Sql {
    name: "destination_register",
    text: "-- destination_register\n\
           WITH spec AS (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS s(name, patterns, ordering)), \
           changed AS (SELECT spec.name FROM spec LEFT JOIN outbox_destinations d ON d.name = spec.name \
               WHERE d.name IS NULL OR d.patterns <> spec.patterns OR d.ordering <> spec.ordering), \
           written AS (INSERT INTO outbox_destinations (name, patterns, ordering, served_at) \
               SELECT spec.name, spec.patterns, spec.ordering, now() FROM spec ORDER BY spec.name \
               ON CONFLICT (name) DO UPDATE SET patterns = excluded.patterns, ordering = excluded.ordering, \
                   served_at = excluded.served_at) \
           UPDATE outbox_meta SET routes_version = routes_version + 1 WHERE EXISTS (SELECT FROM changed)",
};

const DESTINATION_READ: Sql = Sql {
    name: "destination_read",
    text: "-- destination_read\n\
           SELECT m.routes_version, d.name, d.patterns, d.ordering, d.paused_at IS NOT NULL, d.held_until, \
               coalesce($1::timestamptz, now()) \
           FROM outbox_meta m LEFT JOIN outbox_destinations d ON true ORDER BY d.name COLLATE \"C\"",
};

/// `greatest` ignores a null, so the first hold needs no case of its own.
const DESTINATION_HOLD: Sql = Sql {
    name: "destination_hold",
    text: "-- destination_hold\n\
           UPDATE outbox_destinations SET held_until = greatest(held_until, \
               coalesce($3::timestamptz, now()) + $2::bigint * interval '1 microsecond') WHERE name = $1::text",
};

/// Whoever paused it first stays named.
const DESTINATION_PAUSE: Sql = Sql {
    name: "destination_pause",
    text: "-- destination_pause\n\
           UPDATE outbox_destinations SET paused_at = coalesce($4::timestamptz, now()), paused_by = $2::text, \
               pause_reason = $3::text WHERE name = $1::text AND paused_at IS NULL",
};

pub(super) async fn register(connection: &mut Connection, served: &[DestinationSpec]) -> Result<(), StoreError> {
    let lock = connection.prepare(&META_LOCK).await?;
    let register = connection.prepare(&DESTINATION_REGISTER).await?;
    let connection = &*connection;
    let names: Vec<&str> = served.iter().map(|spec| spec.name.as_str()).collect();
    let patterns: Vec<String> = served.iter().map(|spec| decode::names_text(&spec.patterns)).collect();
    let orderings: Vec<&str> = served.iter().map(|spec| spec.ordering.as_str()).collect();
    tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[]).await },
        async { connection.query(&register, &[&names, &patterns, &orderings]).await },
        connection.commit(),
    )?;
    Ok(())
}

/// The statement that reads every destination. Parameter: now.
pub(super) const READ: &Sql = &DESTINATION_READ;

pub(super) async fn read(connection: &mut Connection, now: Now) -> Result<Routing, StoreError> {
    Ok(routing(&connection.run(&DESTINATION_READ, &[&now]).await?))
}

/// What the rows of `READ` say.
pub(super) fn routing(rows: &[SqlRow]) -> Routing {
    let seen = |row: &SqlRow| {
        let name = row.get::<_, Option<Octets<'_>>>(1)?.text();
        let now: Micros = row.get(6);
        let left = row.get::<_, Option<Micros>>(5).map(|until| until.after(now));
        Some(DestinationSeen {
            spec: DestinationSpec {
                name,
                patterns: decode::names(&row.get::<_, Octets<'_>>(2).text()),
                ordering: row.get::<_, Octets<'_>>(3).text(),
            },
            paused: row.get(4),
            held_for: left.filter(|left| !left.is_zero()),
            held_until: row.get::<_, Option<Micros>>(5).map(Micros::written),
        })
    };
    Routing {
        version: rows.first().map_or(0, |row| row.get(0)),
        destinations: rows.iter().filter_map(seen).collect(),
        hour: rows.first().map(|row| row.get::<_, Micros>(6).instant()),
    }
}

pub(super) async fn hold(connection: &mut Connection, name: &str, pause: Duration, now: Now) -> Result<(), StoreError> {
    connection.run(&DESTINATION_HOLD, &[&name, &micros(pause), &now]).await?;
    Ok(())
}

pub(super) async fn pause(
    connection: &mut Connection,
    name: &str,
    by: &str,
    reason: &str,
    now: Now,
) -> Result<(), StoreError> {
    connection.run(&DESTINATION_PAUSE, &[&name, &storable(by), &storable(reason), &now]).await?;
    Ok(())
}
