//! Rows without a destination, for the search for routes.
//!
//! The index holds nothing but such rows. It is stepped through topic by topic and partition by partition, so that what
//! is asked for decides what is read, however many rows there are.

use super::connection::{Connection, Sql};
use super::value::Octets;
use crate::store::{StoreError, UnroutedAfter, UnroutedRow};

/// Their topics. Parameters: partition_no[], topics[], limit.
pub(super) const UNROUTED_TOPICS: Sql = Sql {
    name: "unrouted_topics",
    text: "-- unrouted_topics\n\
           SELECT p.partition_no, t.topic \
           FROM unnest($1::smallint[], $2::text[]) WITH ORDINALITY AS p(partition_no, after, n) \
           CROSS JOIN LATERAL ( \
               WITH RECURSIVE next(topic) AS ( \
                   (SELECT d.topic FROM outbox_deliveries d WHERE d.destination = '' AND d.state = 'unrouted' \
                        AND d.partition_no = p.partition_no AND d.topic > p.after ORDER BY d.topic LIMIT 1) \
                   UNION ALL \
                   SELECT (SELECT d.topic FROM outbox_deliveries d WHERE d.destination = '' AND d.state = 'unrouted' \
                        AND d.partition_no = p.partition_no AND d.topic > next.topic ORDER BY d.topic LIMIT 1) \
                   FROM next WHERE next.topic IS NOT NULL) \
               SELECT next.topic FROM next WHERE next.topic IS NOT NULL LIMIT $3::bigint) AS t",
};

/// The rows. Parameters: partition_no[], topics[], ids[], limit.
pub(super) const UNROUTED_ROWS: Sql = Sql {
    name: "unrouted_rows",
    text: "-- unrouted_rows\n\
           SELECT r.id, r.message_id, r.partition_no, r.topic, r.ordering_key, r.in_order, r.attempts \
           FROM unnest($1::smallint[], $2::text[], $3::bigint[]) WITH ORDINALITY AS t(partition_no, topic, after, n) \
           CROSS JOIN LATERAL (SELECT d.* FROM outbox_deliveries d \
               WHERE d.destination = '' AND d.state = 'unrouted' AND d.partition_no = t.partition_no \
               AND d.topic = t.topic AND d.id > t.after ORDER BY d.id LIMIT $4::bigint) AS r \
           ORDER BY t.n, r.id",
};

pub(super) async fn topics(
    connection: &mut Connection,
    after: &[(u8, String)],
    limit: u32,
) -> Result<Vec<(u8, String)>, StoreError> {
    let partitions: Vec<i16> = after.iter().map(|(partition_no, _)| i16::from(*partition_no)).collect();
    let topics: Vec<&str> = after.iter().map(|(_, topic)| topic.as_str()).collect();
    let rows = connection.run(&UNROUTED_TOPICS, &[&partitions, &topics, &i64::from(limit)]).await?;
    Ok(rows.iter().map(|row| (partition(row.get(0)), row.get::<_, Octets<'_>>(1).text())).collect())
}

pub(super) async fn rows(
    connection: &mut Connection,
    wanted: &[UnroutedAfter],
    limit: u32,
) -> Result<Vec<UnroutedRow>, StoreError> {
    let partitions: Vec<i16> = wanted.iter().map(|place| i16::from(place.partition_no)).collect();
    let topics: Vec<&str> = wanted.iter().map(|place| place.topic.as_str()).collect();
    let after: Vec<i64> = wanted.iter().map(|place| place.after).collect();
    let rows = connection.run(&UNROUTED_ROWS, &[&partitions, &topics, &after, &i64::from(limit)]).await?;
    let row = |row: &tokio_postgres::Row| UnroutedRow {
        id: row.get(0),
        message_id: row.get(1),
        partition_no: partition(row.get(2)),
        topic: row.get::<_, Octets<'_>>(3).text(),
        ordering_key: row.get::<_, Option<Octets<'_>>>(4).map(|key| key.key()),
        in_order: row.get(5),
        attempts: u32::try_from(row.get::<_, i32>(6)).unwrap_or(0),
    };
    Ok(rows.iter().map(row).collect())
}

fn partition(number: i16) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
