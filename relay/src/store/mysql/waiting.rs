//! What waits: parked keys, and rows that are due.

use serde_json::json;

use super::connection::Session;
use super::literal::{self, hex};
use super::row::{Columns, delivery, delivery_columns, micros_of};
use crate::message::{Key, PartitionSet};
use crate::store::{Due, EARLIER_MAX, Followers, KeyAfter, LaneDemand, LaneWaiting, Now, StoreError, decode};

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
    now: Now,
) -> Result<Due, StoreError> {
    let now = literal::now(now);
    let owned = literal::partitions(owned);
    let mut due = Due::default();
    for row in session.rows(&rows_due(lanes, &owned, &now)).await? {
        due.rows.push(delivery(&mut Columns::new(row)));
    }

    // Read after the rows: a row that appears in between must not be hidden by `occupied` being false.
    due.lanes = vec![LaneWaiting::default(); lanes.len()];
    for row in session.rows(&lanes_waiting(lanes, &owned, &now)).await? {
        let mut columns = Columns::new(row);
        let n = usize::try_from(columns.number()).unwrap_or(usize::MAX);
        if let Some(lane) = due.lanes.get_mut(n) {
            *lane = LaneWaiting { occupied: columns.flag(), next_due_in: columns.maybe_span() };
            due.hour = Some(columns.instant());
        }
    }
    Ok(due)
}

pub(super) async fn delivery_followers(
    session: &mut Session<'_>,
    keys: &[KeyAfter],
    limit: u32,
    now: Now,
) -> Result<Followers, StoreError> {
    let now = literal::now(now);
    let columns = delivery_columns(&now);
    let branch = |key: &KeyAfter| {
        format!(
            "(SELECT {columns}, due_at <= {now} FROM outbox_deliveries FORCE INDEX (delivery_by_key) \
             WHERE destination = {} AND ordering_key = {} AND seq > {} AND in_order = true \
             ORDER BY seq, id LIMIT {limit})",
            literal::text(&key.destination),
            literal::bytes(&key.key),
            key.after
        )
    };
    let branches: Vec<String> = keys.iter().map(branch).collect();
    let rows = session.rows(&format!("-- delivery_followers\n{}", branches.join("\nUNION ALL\n"))).await?;
    let rows = rows.into_iter().map(|row| {
        let mut columns = Columns::new(row);
        (delivery(&mut columns), columns.flag())
    });
    let rows = decode::until_not_due(rows);
    // Read after the followers: one that a follower must not pass was there when the follower was read, or is now.
    let branch = |(n, key): (usize, &KeyAfter)| {
        format!(
            "(SELECT {n}, id FROM outbox_deliveries FORCE INDEX (delivery_by_key) \
             WHERE destination = {} AND ordering_key = {} AND seq <= {} AND in_order = true \
             ORDER BY seq, id LIMIT {EARLIER_MAX})",
            literal::text(&key.destination),
            literal::bytes(&key.key),
            key.after
        )
    };
    let branches: Vec<String> = keys.iter().enumerate().map(branch).collect();
    let mut earlier = vec![Vec::new(); keys.len()];
    for row in session.rows(&format!("-- delivery_earlier\n{}", branches.join("\nUNION ALL\n"))).await? {
        let mut columns = Columns::new(row);
        let n = usize::try_from(columns.number()).unwrap_or(usize::MAX);
        if let Some(earlier) = earlier.get_mut(n) {
            earlier.push(columns.number());
        }
    }
    Ok(Followers { rows, earlier })
}

/// Rows to attempt. Within one `due_at` the lower id goes first, which the index yields without sorting payloads.
fn rows_due(lanes: &[LaneDemand], owned: &str, now: &str) -> String {
    let columns = delivery_columns(now);
    let branch = |lane: &LaneDemand| {
        format!(
            "(SELECT {columns} FROM outbox_deliveries FORCE INDEX (delivery_by_due) \
             WHERE destination = {} AND blocked = false AND due_at <= {now} AND partition_no IN ({owned}){} \
             ORDER BY due_at, id LIMIT {})",
            literal::text(&lane.destination),
            wanted(lane),
            lane.limit
        )
    };
    let branches: Vec<String> = lanes.iter().map(branch).collect();
    format!("-- delivery_due\n{}", branches.join("\nUNION ALL\n"))
}

/// What is left out is not there.
fn wanted(lane: &LaneDemand) -> String {
    if lane.without.is_empty() {
        return String::new();
    }
    let keys: Vec<String> = lane.without.iter().map(literal::bytes).collect();
    format!(" AND (in_order = true OR ordering_key IS NULL OR ordering_key NOT IN ({}))", keys.join(", "))
}

fn lanes_waiting(lanes: &[LaneDemand], owned: &str, now: &str) -> String {
    let branch = |(n, lane): (usize, &LaneDemand)| {
        let destination = literal::text(&lane.destination);
        format!(
            "(SELECT {n}, \
             EXISTS (SELECT 1 FROM outbox_deliveries WHERE destination = {destination}) \
             OR EXISTS (SELECT 1 FROM outbox_dead_letters WHERE destination = {destination} AND blocks_key = true), \
             (SELECT timestampdiff(MICROSECOND, {now}, due_at) FROM outbox_deliveries FORCE INDEX (delivery_by_due) \
              WHERE destination = {destination} AND blocked = false AND partition_no IN ({owned}){} \
              ORDER BY due_at LIMIT 1), {})",
            wanted(lane),
            micros_of(now)
        )
    };
    let branches: Vec<String> = lanes.iter().enumerate().map(branch).collect();
    format!("-- lane_waiting\n{}", branches.join("\nUNION ALL\n"))
}
