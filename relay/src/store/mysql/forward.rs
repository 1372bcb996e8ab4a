//! Brings forward what waits by a clock that was put back.

use std::time::Duration;

use serde_json::json;

use super::connection::Session;
use super::literal;
use super::membership::{owned_by, partition_lock};
use super::row::{Columns, micros_of};
use crate::message::{PartitionSet, RelayId};
use crate::store::{Now, RowAhead, StoreError, Written};

pub(super) async fn delivery_last(session: &mut Session<'_>) -> Result<i64, StoreError> {
    let rows = session.rows("-- delivery_last\nSELECT max(id) FROM outbox_deliveries").await?;
    Ok(rows.into_iter().next().map_or(0, |row| Columns::new(row).number()))
}

pub(super) async fn delivery_ahead(
    session: &mut Session<'_>,
    (after, until): (i64, i64),
    owned: PartitionSet,
    limit: u32,
    now: Now,
) -> Result<Vec<RowAhead>, StoreError> {
    let sql = format!(
        "-- delivery_ahead\nSELECT id, partition_no, {} FROM outbox_deliveries FORCE INDEX (PRIMARY) \
         WHERE id > {after} AND id <= {until} AND partition_no IN ({}) AND due_at > {} ORDER BY id LIMIT {limit}",
        micros_of("due_at"),
        literal::partitions(owned),
        literal::now(now)
    );
    let ahead = session.rows(&sql).await?.into_iter().map(|row| {
        let mut columns = Columns::new(row);
        RowAhead { id: columns.number(), partition_no: columns.partition(), due_at: Written(columns.number()) }
    });
    Ok(ahead.collect())
}

pub(super) async fn delivery_bring_forward(
    mut session: Session<'_>,
    relay: RelayId,
    rows: &[RowAhead],
    by: Duration,
) -> Result<(), StoreError> {
    let by = literal::micros(by);
    session.begin().await?;
    let owners = partition_lock(&mut session, rows.iter().map(|row| row.partition_no).collect()).await?;
    let owned = owned_by(&owners, relay);
    let owned = rows.iter().filter(|row| owned.contains(row.partition_no));
    let rows: Vec<_> = owned.map(|row| json!([row.id, row.due_at.0])).collect();
    let sql = format!(
        "-- delivery_forward\n\
         UPDATE JSON_TABLE({}, '$[*]' COLUMNS (id BIGINT PATH '$[0]', due_at BIGINT PATH '$[1]')) AS t \
         STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) ON d.id = t.id \
         SET d.due_at = least(d.due_at, greatest(d.due_at - INTERVAL {by} MICROSECOND, \
                                                 coalesce(d.deliver_at, d.due_at - INTERVAL {by} MICROSECOND))) \
         WHERE {} = t.due_at",
        literal::document(&json!(rows)),
        micros_of("d.due_at")
    );
    session.execute(&sql).await?;
    session.commit().await
}

pub(super) async fn destination_bring_forward(
    mut session: Session<'_>,
    holds: &[(String, Written)],
    by: Duration,
) -> Result<(), StoreError> {
    session.begin().await?;
    for (name, until) in holds {
        let sql = format!(
            "-- hold_forward\n\
             UPDATE outbox_destinations SET held_until = held_until - INTERVAL {} MICROSECOND \
             WHERE name = {} AND {} = {}",
            literal::micros(by),
            literal::text(name),
            micros_of("held_until"),
            until.0
        );
        session.execute(&sql).await?;
    }
    session.commit().await
}
