//! Rows without a destination, for the search for routes.
//!
//! The index of the partitions names destination, state and topic as well, so both questions are answered by ranges of
//! it, however many rows there are.

use super::connection::Session;
use super::literal;
use super::row::Columns;
use crate::store::{StoreError, UnroutedAfter, UnroutedRow};

pub(super) async fn topics(
    session: &mut Session<'_>,
    after: &[(u8, String)],
    limit: u32,
) -> Result<Vec<(u8, String)>, StoreError> {
    let branch = |(partition_no, topic): &(u8, String)| {
        format!(
            "(SELECT partition_no, topic FROM outbox_deliveries FORCE INDEX (delivery_by_partition) \
             WHERE partition_no = {partition_no} AND destination = '' AND state = 'unrouted' AND topic > {} \
             GROUP BY partition_no, destination, state, topic ORDER BY topic LIMIT {limit})",
            literal::text(topic)
        )
    };
    let branches: Vec<String> = after.iter().map(branch).collect();
    let rows = session.rows(&format!("-- unrouted_topics\n{}", branches.join("\nUNION ALL\n"))).await?;
    let pair = |row| {
        let mut columns = Columns::new(row);
        (columns.partition(), columns.text())
    };
    Ok(rows.into_iter().map(pair).collect())
}

pub(super) async fn rows(
    session: &mut Session<'_>,
    wanted: &[UnroutedAfter],
    limit: u32,
) -> Result<Vec<UnroutedRow>, StoreError> {
    let branch = |place: &UnroutedAfter| {
        format!(
            "(SELECT id, message_id, partition_no, topic, ordering_key, in_order, attempts \
             FROM outbox_deliveries FORCE INDEX (delivery_by_partition) \
             WHERE partition_no = {} AND destination = '' AND state = 'unrouted' AND topic = {} AND id > {} \
             ORDER BY id LIMIT {limit})",
            place.partition_no,
            literal::text(&place.topic),
            place.after
        )
    };
    let branches: Vec<String> = wanted.iter().map(branch).collect();
    let rows = session.rows(&format!("-- unrouted_rows\n{}", branches.join("\nUNION ALL\n"))).await?;
    let row = |row| {
        let mut columns = Columns::new(row);
        UnroutedRow {
            id: columns.number(),
            message_id: columns.uuid(),
            partition_no: columns.partition(),
            topic: columns.text(),
            ordering_key: columns.key(),
            in_order: columns.flag(),
            attempts: columns.count(),
        }
    };
    Ok(rows.into_iter().map(row).collect())
}
