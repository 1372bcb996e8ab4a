//! What messages can be routed to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::connection::Session;
use super::literal::{self, micros, text};
use super::row::{Columns, micros_of};
use crate::store::{DestinationSeen, DestinationSpec, Now, Routing, StoreError, Written, decode};

pub(super) async fn destination_register(
    mut session: Session<'_>,
    served: &[DestinationSpec],
) -> Result<(), StoreError> {
    session.begin().await?;
    // This row is the lock: two relays that start together compare one after the other.
    session.rows("-- routes_lock\nSELECT routes_version FROM outbox_meta FOR UPDATE").await?;
    let rows = session.rows("-- destination_list\nSELECT name, patterns, ordering FROM outbox_destinations").await?;
    let known: BTreeMap<String, (Vec<String>, String)> = rows
        .into_iter()
        .map(Columns::new)
        .map(|mut columns| (columns.text(), (decode::names(&columns.text()), columns.text())))
        .collect();
    let mut changed = false;
    for spec in served {
        let same = known
            .get(&spec.name)
            .is_some_and(|(patterns, ordering)| *patterns == spec.patterns && *ordering == spec.ordering);
        changed |= !same;
        let sql = format!(
            "-- destination_register\n\
             INSERT INTO outbox_destinations (name, patterns, ordering, served_at) \
             VALUES ({}, {}, {}, utc_timestamp(6)) ON DUPLICATE KEY UPDATE \
             patterns = VALUES(patterns), ordering = VALUES(ordering), served_at = VALUES(served_at)",
            text(&spec.name),
            text(&decode::names_text(&spec.patterns)),
            text(&spec.ordering)
        );
        session.execute(&sql).await?;
    }
    if changed {
        session.execute("-- routes_raise\nUPDATE outbox_meta SET routes_version = routes_version + 1").await?;
    }
    session.commit().await
}

pub(super) async fn destination_read(session: &mut Session<'_>, now: Now) -> Result<Routing, StoreError> {
    let now = literal::now(now);
    let sql = format!(
        "-- destination_read\n\
         SELECT m.routes_version, d.name, d.patterns, d.ordering, d.paused_at IS NOT NULL, \
                timestampdiff(MICROSECOND, {now}, d.held_until), {}, {} \
         FROM outbox_meta AS m LEFT JOIN outbox_destinations AS d ON true ORDER BY d.name",
        micros_of("d.held_until"),
        micros_of(&now)
    );
    let mut routing = Routing::default();
    for row in session.rows(&sql).await? {
        let mut columns = Columns::new(row);
        routing.version = columns.number();
        // The version comes alone when nothing is registered.
        let Some(name) = columns.maybe_text() else { continue };
        let spec = DestinationSpec { name, patterns: decode::names(&columns.text()), ordering: columns.text() };
        let paused = columns.flag();
        let held_for = columns.maybe_span().filter(|span| !span.is_zero());
        let held_until = columns.maybe_number().map(Written);
        routing.destinations.push(DestinationSeen { spec, paused, held_for, held_until });
        routing.hour = Some(columns.instant());
    }
    Ok(routing)
}

pub(super) async fn destination_hold(
    session: &mut Session<'_>,
    name: &str,
    pause: Duration,
    now: Now,
) -> Result<(), StoreError> {
    let until = format!("{} + INTERVAL {} MICROSECOND", literal::now(now), micros(pause));
    let sql = format!(
        "-- destination_hold\n\
         UPDATE outbox_destinations SET held_until = greatest(coalesce(held_until, {until}), {until}) WHERE name = {}",
        text(name)
    );
    session.execute(&sql).await.map(drop)
}

/// A pause that stands already keeps its author and reason.
pub(super) async fn destination_pause(
    session: &mut Session<'_>,
    name: &str,
    by: &str,
    reason: &str,
    now: Now,
) -> Result<(), StoreError> {
    let sql = format!(
        "-- destination_pause\n\
         UPDATE outbox_destinations SET paused_at = {}, paused_by = left({}, 255), pause_reason = {} \
         WHERE name = {} AND paused_at IS NULL",
        literal::now(now),
        text(by),
        text(reason),
        text(name)
    );
    session.execute(&sql).await.map(drop)
}
