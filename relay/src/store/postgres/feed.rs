//! Reading new messages: the poll, the sweep and the mark.
//!
//! The poll is one statement of three branches, so that the snapshot, the rows of the holes and the rows above the
//! cursor belong to the same moment. The LATERAL with its own LIMIT is what keeps it an index look-up per hole, over
//! dead rows too; a join or an OR in its place reads the table. A test looks at the plan.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio_postgres::Row as SqlRow;

use super::connection::{Connection, Sql};
use super::value::{Micros, Octets, mask, xid};
use crate::message::{Message, PartitionSet, Seq};
use crate::poll::Snapshot;
use crate::store::{Now, Page, Row, StoreError, Wanted, decode};

/// What comes back of a message: of one in another's partition only the first two columns are filled.
macro_rules! feed_columns {
    () => {
        concat!(
            "m.seq, m.partition_no, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.id END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.topic END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.ordering_key END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.payload END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.payload_bytes END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.content_type END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.headers END, ",
            "CASE WHEN ",
            mine!(),
            " THEN m.destination END, ",
            "m.deliver_at > coalesce($7::timestamptz, now()), ",
            "m.expires_at, m.operation_id IS NOT NULL, m.version, m.created_at, coalesce($7::timestamptz, now())"
        )
    };
}

macro_rules! mine {
    () => {
        "($4::bigint >> m.partition_no) & 1 = 1"
    };
}

/// The poll. Parameters: lo[], hi[], gained masks[] (null: any partition), owned mask, limit of the holes, limit of the
/// tail, now, cursor.
///
/// The holes are ordered before they are limited, so that everything below the last row returned has been looked at
/// even where a gained range overlaps the others.
pub(super) const FEED_READ: Sql = Sql {
    name: "feed_read",
    text: concat!(
        "-- feed_read\n",
        "SELECT 0::smallint AS branch, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, ",
        "0::smallint, NULL::uuid, pg_current_snapshot()::text, pg_backend_pid()::text, NULL::text, NULL::bytea, ",
        "NULL::text, NULL::text, NULL::text, false, now(), pg_is_in_recovery(), 0::smallint, now(), now() ",
        "UNION ALL (SELECT 1::smallint, found.* ",
        "FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS hole(lo, hi, gained) ",
        "CROSS JOIN LATERAL (SELECT ",
        feed_columns!(),
        " FROM outbox_messages m ",
        "WHERE m.seq BETWEEN hole.lo AND hole.hi ",
        "AND (hole.gained IS NULL OR (hole.gained >> m.partition_no) & 1 = 1) ",
        "ORDER BY m.seq LIMIT $5::bigint) AS found ORDER BY found.seq LIMIT $5::bigint) ",
        "UNION ALL (SELECT 2::smallint, ",
        feed_columns!(),
        " FROM outbox_messages m ",
        "WHERE m.seq > $8::bigint ORDER BY m.seq LIMIT $6::bigint)"
    ),
};

pub(super) const FEED_SWEEP: Sql = Sql {
    name: "feed_sweep",
    text: "-- feed_sweep\n\
           SELECT m.seq FROM outbox_messages m \
           WHERE m.seq > $1::bigint AND m.seq <= $2::bigint AND ($3::bigint >> m.partition_no) & 1 = 1 \
           ORDER BY m.seq LIMIT $4::bigint",
};

const MESSAGE_LAST: Sql =
    Sql { name: "message_last", text: "-- message_last\nSELECT coalesce(max(seq), 0) FROM outbox_messages" };

const MARK_DRAW: Sql = Sql { name: "mark_draw", text: "-- mark_draw\nSELECT pg_current_xact_id()::text" };

pub(super) async fn message_read(
    connection: &mut Connection,
    wanted: &Wanted,
    owned: PartitionSet,
    limit: u32,
    now: Now,
) -> Result<Page, StoreError> {
    let lo: Vec<Seq> = wanted.holes.iter().map(|hole| hole.lo).collect();
    let hi: Vec<Seq> = wanted.holes.iter().map(|hole| hole.hi).collect();
    let gained: Vec<Option<i64>> = wanted.holes.iter().map(|hole| hole.gained.map(mask)).collect();
    let limit = i64::from(limit);
    let tail_limit = if wanted.tail { limit } else { 0 };
    let rows = connection
        .run(&FEED_READ, &[&lo, &hi, &gained, &mask(owned), &limit, &tail_limit, &now, &wanted.cursor])
        .await?;

    let mut page = Page { from_tail: Vec::with_capacity(rows.len()), ..Page::default() };
    let mut hole_rows = 0;
    for row in &rows {
        match row.get::<_, i16>(0) {
            0 => {
                connection.proven(number(row, 5), row.get(13))?;
                page.incarnation = incarnation(connection.identity(), row.get(1));
                page.snapshot = Some(snapshot(&row.get::<_, Octets<'_>>(4).text())?);
            }
            1 => {
                hole_rows += 1;
                page.from_holes.push(feed_row(row, owned));
            }
            _ => page.from_tail.push(feed_row(row, owned)),
        }
    }
    page.holes_full = hole_rows > 0 && hole_rows >= limit;
    // The order is the statement's own; sorting what is sorted costs nothing and asks nothing of the planner.
    page.from_holes.sort_by_key(Row::seq);
    page.from_holes.dedup_by_key(|row| row.seq());
    page.from_tail.sort_by_key(Row::seq);
    Ok(page)
}

fn number(row: &SqlRow, column: usize) -> i32 {
    row.get::<_, Option<Octets<'_>>>(column).and_then(|text| text.text().parse().ok()).unwrap_or_default()
}

fn feed_row(row: &SqlRow, owned: PartitionSet) -> Row {
    let seq = row.get(1);
    // A number outside the range belongs to nobody.
    let partition_no = u8::try_from(row.get::<_, i16>(2)).unwrap_or(u8::MAX);
    if !owned.contains(partition_no) {
        return Row::Foreign { seq, partition_no };
    }
    Row::Mine(Box::new(Message {
        seq,
        id: row.get(3),
        partition_no,
        topic: row.get::<_, Octets<'_>>(4).text(),
        ordering_key: row.get::<_, Option<Octets<'_>>>(5).map(|key| key.key()),
        payload: payload(row, 6, 7),
        content_type: row.get::<_, Octets<'_>>(8).text(),
        headers: decode::headers(&row.get::<_, Octets<'_>>(9).text()),
        only_destination: row.get::<_, Option<Octets<'_>>>(10).map(|name| name.text()).filter(|name| !name.is_empty()),
        scheduled: row.get::<_, Option<bool>>(11).unwrap_or(false),
        expires: decode::expiry(row.get::<_, Option<Micros>>(12).map(|at| at.after(row.get(16)))),
        tracked: row.get(13),
        version: u16::try_from(row.get::<_, i16>(14)).unwrap_or(0),
        created_at: row.get::<_, Micros>(15).instant(),
    }))
}

/// The body: exactly one of the two columns is set.
pub(super) fn payload(row: &SqlRow, text: usize, bytes: usize) -> bytes::Bytes {
    let stored = row.get::<_, Option<Octets<'_>>>(text).or_else(|| row.get(bytes));
    stored.map(|stored| stored.bytes()).unwrap_or_default()
}

fn incarnation(connection: u64, server_started_at: i64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (connection, server_started_at).hash(&mut hasher);
    hasher.finish()
}

/// Reads `xmin:xmax:xip,xip,…`.
fn snapshot(text: &str) -> Result<Snapshot, StoreError> {
    let parse = || {
        let mut parts = text.split(':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let mut running = Vec::new();
        for xid in parts.next()?.split(',').filter(|xid| !xid.is_empty()) {
            running.push(xid.parse().ok()?);
        }
        running.sort_unstable();
        Some(Snapshot { xmin, xmax, running })
    };
    parse().ok_or_else(|| StoreError::Refused {
        operation: FEED_READ.name,
        source: format!("the server returned `{text}` as a snapshot").into(),
    })
}

pub(super) async fn message_sweep(
    connection: &mut Connection,
    after: Seq,
    until: Seq,
    owned: PartitionSet,
    limit: u32,
) -> Result<Vec<Seq>, StoreError> {
    let rows = connection.run(&FEED_SWEEP, &[&after, &until, &mask(owned), &i64::from(limit)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn message_last(connection: &mut Connection) -> Result<Seq, StoreError> {
    let rows = connection.run(&MESSAGE_LAST, &[]).await?;
    Ok(rows[0].get(0))
}

pub(super) async fn mark_draw(connection: &mut Connection) -> Result<u64, StoreError> {
    let rows = connection.run(&MARK_DRAW, &[]).await?;
    xid(rows[0].get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_as_the_server_writes_it() {
        let read = snapshot("10:20:10,14,15").unwrap();
        assert_eq!(read, Snapshot { xmin: 10, xmax: 20, running: vec![10, 14, 15] });
        assert_eq!(snapshot("10:10:").unwrap(), Snapshot { xmin: 10, xmax: 10, running: vec![] });
        assert!(snapshot("10:").is_err());
        assert!(snapshot("10:20:x").is_err());
    }

    #[test]
    fn another_connection_or_another_server_is_another_incarnation() {
        assert_eq!(incarnation(1, 2), incarnation(1, 2));
        assert_ne!(incarnation(1, 2), incarnation(2, 2));
        assert_ne!(incarnation(1, 2), incarnation(1, 3));
    }
}
