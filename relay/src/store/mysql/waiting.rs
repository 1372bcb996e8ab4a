//! What waits: parked keys, and rows that are due.

use serde_json::json;

use super::connection::Session;
use super::literal::{self, hex};
use super::row::{Columns, delivery, delivery_columns};
use crate::message::{Key, PartitionSet};
use crate::store::{Due, LaneDemand, LaneWaiting, Now, StoreError};

pub(super) async fn key_parked(session: &mut Session<'_>, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError> {
    let wanted: Vec<_> =
        keys.iter().enumerate().map(|(n, (destination, key))| json!([n, hex(destination), hex(key)])).collect();
    let sql = format!(
        "-- key_parked\nSELECT t.n FROM JSON_TABLE({}, '$[*]' COLUMNS (n INT PATH '$[0]', \
         destination VARCHAR(2048) PATH '$[1]', ordering_key VARCHAR(2048) PATH '$[2]')) AS t \
         WHERE EXISTS (SELECT 1 FROM outbox_deliveries AS d FORCE INDEX (delivery_by_key) \
                       WHERE d.destination = convert(unhex(t.destination) USING utf8mb4) COLLATE utf8mb4_bin \
                         AND d.ordering_key = unhex(t.ordering_key) AND d.in_order = true) \
            OR EXISTS (SELECT 1 FROM outbox_dead_letters AS l FORCE INDEX (dead_letter_by_key) \
                       WHERE l.destination = convert(unhex(t.destination) USING utf8mb4) COLLATE utf8mb4_bin \
                         AND l.blocks_key = true AND l.ordering_key = unhex(t.ordering_key))",
        literal::document(&json!(wanted))
    );
    let mut parked = vec![false; keys.len()];
    for row in session.rows(&sql).await? {
        let n = usize::try_from(Columns::new(row).number()).unwrap_or(usize::MAX);
        if let Some(answer) = parked.get_mut(n) {
            *answer = true;
        }
    }
    Ok(parked)
}

pub(super) async fn delivery_due(
    session: &mut Session<'_>,
    lanes: &[LaneDemand],
    owned: PartitionSet,
    unrouted: bool,
    now: Now,
) -> Result<Due, StoreError> {
    let now = literal::now(now);
    let owned = literal::partitions(owned);
    let mut due = Due::default();
    for row in session.rows(&rows_due(lanes, &owned, unrouted, &now)).await? {
        due.rows.push(delivery(&mut Columns::new(row)));
    }
    // Two branches serve the lane of what is not routed, each up to the limit.
    let mut room = lanes.iter().find(|lane| lane.destination.is_empty()).map_or(0, |lane| lane.limit);
    due.rows.retain(|row| !row.destination.is_empty() || take_one(&mut room));

    // Read after the rows: a row that appears in between must not be hidden by `occupied` being false.
    due.lanes = vec![LaneWaiting::default(); lanes.len()];
    for row in session.rows(&lanes_waiting(lanes, &owned, &now)).await? {
        let mut columns = Columns::new(row);
        let n = usize::try_from(columns.number()).unwrap_or(usize::MAX);
        if let Some(lane) = due.lanes.get_mut(n) {
            *lane = LaneWaiting { occupied: columns.flag(), next_due_in: columns.maybe_span() };
        }
    }
    Ok(due)
}

fn take_one(room: &mut u32) -> bool {
    let any = *room > 0;
    *room = room.saturating_sub(1);
    any
}

/// Rows to attempt. Within one `due_at` the lower id goes first, which the index yields without sorting payloads.
fn rows_due(lanes: &[LaneDemand], owned: &str, unrouted: bool, now: &str) -> String {
    let columns = delivery_columns(now);
    let branch = |lane: &LaneDemand, condition: &str| {
        format!(
            "(SELECT {columns} FROM outbox_deliveries FORCE INDEX (delivery_by_due) \
             WHERE destination = {} AND blocked = false AND {condition} AND partition_no IN ({owned}) \
             ORDER BY due_at, id LIMIT {})",
            literal::text(&lane.destination),
            lane.limit
        )
    };
    let mut branches = Vec::new();
    for lane in lanes {
        branches.push(branch(lane, &format!("due_at <= {now}")));
        if unrouted && lane.destination.is_empty() {
            branches.push(branch(lane, &format!("due_at > {now} AND state = 'unrouted'")));
        }
    }
    format!("-- delivery_due\n{}", branches.join("\nUNION ALL\n"))
}

fn lanes_waiting(lanes: &[LaneDemand], owned: &str, now: &str) -> String {
    let branch = |(n, lane): (usize, &LaneDemand)| {
        let destination = literal::text(&lane.destination);
        format!(
            "(SELECT {n}, \
             EXISTS (SELECT 1 FROM outbox_deliveries WHERE destination = {destination}) \
             OR EXISTS (SELECT 1 FROM outbox_dead_letters WHERE destination = {destination} AND blocks_key = true), \
             (SELECT timestampdiff(MICROSECOND, {now}, due_at) FROM outbox_deliveries FORCE INDEX (delivery_by_due) \
              WHERE destination = {destination} AND blocked = false AND partition_no IN ({owned}) \
              ORDER BY due_at LIMIT 1))"
        )
    };
    let branches: Vec<String> = lanes.iter().enumerate().map(branch).collect();
    format!("-- lane_waiting\n{}", branches.join("\nUNION ALL\n"))
}
