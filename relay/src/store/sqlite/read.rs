//! The questions of the feed and of the lanes: new messages, parked keys, waiting rows that are due.
//!
//! A question of several statements runs in one read transaction, so that its answers belong to one moment.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
use diesel::{Connection, QueryResult, SqliteConnection};
use uuid::Uuid;

use super::statement::{load, load_one, load_optional, statement};
use super::worker::Open;
use super::{date, mask};
use crate::message::{Key, Message, PartitionSet, Seq, WaitingDelivery};
use crate::store::{Due, EARLIER_MAX, Followers, KeyAfter, LaneDemand, LaneWaiting, Now, Page, Row, Wanted, decode};

/// What a message's own columns are read as, in the order of `message_columns!`.
type MessageSql = (
    (BigInt, Binary, Integer, Text, Nullable<Binary>, Nullable<Binary>),
    (Text, Text, Nullable<BigInt>, Nullable<BigInt>, Bool, BigInt, BigInt),
);
type MessageColumns = (
    (i64, Vec<u8>, i32, String, Option<Vec<u8>>, Option<Vec<u8>>),
    (String, String, Option<i64>, Option<i64>, bool, i64, i64),
);

/// `$id` is the column of the message's id; the payload is not fetched where `$wanted` is false.
macro_rules! message_columns {
    ($id:literal, $wanted:literal) => {
        concat!(
            "seq, ",
            $id,
            ", partition_no, topic, ordering_key, CASE WHEN ",
            $wanted,
            " THEN payload END, \
             content_type, headers, deliver_at, expires_at, operation_id IS NOT NULL, version, created_at"
        )
    };
}

statement!(
    MessageTail,
    concat!(
        "-- message_read\nSELECT ",
        message_columns!("id", "? >> partition_no & 1"),
        ", destination FROM outbox_messages WHERE seq > ? ORDER BY seq LIMIT ?"
    ),
    (MessageSql, Nullable<Text>)
);
statement!(
    MessageHole,
    concat!(
        "-- message_read_hole\nSELECT ",
        message_columns!("id", "? >> partition_no & 1"),
        ", destination FROM outbox_messages WHERE seq BETWEEN ? AND ? AND ? >> partition_no & 1 ORDER BY seq LIMIT ?"
    ),
    (MessageSql, Nullable<Text>)
);
// The table is named as well: without it there is no number either, and a relay would wait in silence.
statement!(
    HighestNumber,
    "-- message_highest\nSELECT seq FROM sqlite_sequence WHERE name = 'outbox_messages' \
     OR seq IS NULL AND EXISTS (SELECT 1 FROM outbox_messages)",
    BigInt
);
statement!(
    MessageSweep,
    "-- message_sweep\nSELECT seq FROM outbox_messages WHERE seq > ? AND seq <= ? AND ? >> partition_no & 1 \
     ORDER BY seq LIMIT ?",
    BigInt
);
statement!(MessageLast, "-- message_last\nSELECT coalesce(max(seq), 0) FROM outbox_messages", BigInt);
statement!(
    KeyParked,
    "-- key_parked\nSELECT EXISTS (SELECT 1 FROM outbox_deliveries \
         WHERE destination = ? AND ordering_key = CAST(? AS TEXT) AND in_order = 1) \
     OR EXISTS (SELECT 1 FROM outbox_dead_letters \
         WHERE destination = ? AND blocks_key = 1 AND ordering_key = CAST(? AS TEXT))",
    Bool
);
/// Rows that are not left out: a row that keeps no order is, when its key stands between two colons.
macro_rules! wanted {
    () => {
        "(in_order = 1 OR ordering_key IS NULL OR instr(?, ':' || hex(ordering_key) || ':') = 0)"
    };
}

statement!(
    DeliveryDue,
    concat!(
        "-- delivery_due\nSELECT ",
        message_columns!("message_id", "1"),
        ", id, destination, in_order, life, attempts, suspect, deaths, first_attempt_at, history FROM outbox_deliveries \
         WHERE destination = ? AND blocked = 0 AND due_at <= ? AND ? >> partition_no & 1 AND ",
        wanted!(),
        " ORDER BY due_at, seq, id LIMIT ?"
    ),
    (MessageSql, WaitingSql)
);
statement!(
    DeliveryFollowers,
    concat!(
        "-- delivery_followers\nSELECT ",
        message_columns!("message_id", "1"),
        ", id, destination, in_order, life, attempts, suspect, deaths, first_attempt_at, history, due_at <= ? FROM outbox_deliveries \
         WHERE destination = ? AND ordering_key = CAST(? AS TEXT) AND seq > ? AND in_order = 1 ORDER BY seq, id LIMIT ?"
    ),
    (MessageSql, WaitingSql, Bool)
);
statement!(
    DeliveryEarlier,
    "-- delivery_earlier\nSELECT id FROM outbox_deliveries \
     WHERE destination = ? AND ordering_key = CAST(? AS TEXT) AND seq <= ? AND in_order = 1 ORDER BY seq, id LIMIT ?",
    BigInt
);
statement!(
    LaneOccupied,
    "-- delivery_lane\nSELECT EXISTS (SELECT 1 FROM outbox_deliveries WHERE destination = ?) \
     OR EXISTS (SELECT 1 FROM outbox_dead_letters WHERE destination = ? AND blocks_key = 1)",
    Bool
);
statement!(
    NextDue,
    concat!(
        "-- delivery_next\nSELECT due_at FROM outbox_deliveries \
         WHERE destination = ? AND blocked = 0 AND ? >> partition_no & 1 AND ",
        wanted!(),
        " ORDER BY due_at LIMIT 1"
    ),
    BigInt
);

/// What a waiting row has beside its message.
type WaitingSql = (BigInt, Text, Bool, Integer, Integer, Bool, Integer, Nullable<BigInt>, Text);
type WaitingColumns = (i64, String, bool, i32, i32, bool, i32, Option<i64>, String);

statement!(Clock, "-- clock\nSELECT CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)", BigInt);

/// The hour of a question, in milliseconds.
pub(super) fn clock(conn: &mut SqliteConnection, now: Now) -> QueryResult<i64> {
    match now {
        Some(now) => Ok(now.timestamp_millis()),
        None => load_one::<Clock, _>(conn, &[]),
    }
}

/// Reads a page. The numbers handed out so far are asked for in the same snapshot: they only ever grow, unless another
/// database was copied into this file.
pub(super) fn message_read(
    open: &mut Open,
    wanted: &Wanted,
    owned: PartitionSet,
    limit: u32,
    now: Now,
) -> QueryResult<Page> {
    let Open { conn, highest, incarnation, .. } = open;
    conn.transaction(|conn| {
        let now = clock(conn, now)?;
        let handed_out = load_optional::<HighestNumber, Seq>(conn, &[])?.unwrap_or(0);
        if handed_out < *highest {
            *incarnation += 1;
        }
        *highest = handed_out;
        let (from_holes, holes_full) = read_holes(conn, wanted, owned, limit, now)?;
        let mut from_tail = Vec::new();
        if wanted.tail && handed_out > wanted.cursor {
            let binds = [mask(owned).into(), wanted.cursor.into(), limit.into()];
            from_tail = rows(load::<MessageTail, _>(conn, &binds)?, owned, now).map(|row| row.1).collect();
        }
        Ok(Page { incarnation: *incarnation, snapshot: None, from_holes, holes_full, from_tail })
    })
}

/// The lowest rows of all holes together. Holes may overlap, so each is read by itself and doubles fall away.
fn read_holes(
    conn: &mut SqliteConnection,
    wanted: &Wanted,
    owned: PartitionSet,
    limit: u32,
    now: i64,
) -> QueryResult<(Vec<Row>, bool)> {
    let limit_rows = limit as usize;
    let mut found: BTreeMap<Seq, Row> = BTreeMap::new();
    for hole in &wanted.holes {
        // The holes ascend: nothing in this one or a later one can be among the lowest any more.
        if found.len() >= limit_rows && found.keys().next_back().is_some_and(|highest| hole.lo > *highest) {
            break;
        }
        let sought = hole.gained.unwrap_or(PartitionSet::ALL);
        let binds = [mask(owned).into(), hole.lo.into(), hole.hi.into(), mask(sought).into(), limit.into()];
        found.extend(rows(load::<MessageHole, _>(conn, &binds)?, owned, now));
        while found.len() > limit_rows {
            found.pop_last();
        }
    }
    let full = found.len() >= limit_rows;
    Ok((found.into_values().collect(), full))
}

fn rows(
    read: Vec<(MessageColumns, Option<String>)>,
    owned: PartitionSet,
    now: i64,
) -> impl Iterator<Item = (Seq, Row)> {
    read.into_iter().map(move |(columns, destination)| {
        let (seq, partition_no) = (columns.0.0, columns.0.2 as u8);
        if owned.contains(partition_no) {
            (seq, Row::Mine(Box::new(Message { only_destination: destination, ..message(columns, now) })))
        } else {
            (seq, Row::Foreign { seq, partition_no })
        }
    })
}

fn message(columns: MessageColumns, now: i64) -> Message {
    let (
        (seq, id, partition_no, topic, ordering_key, payload),
        (content_type, headers, deliver_at, expires_at, tracked, version, created_at),
    ) = columns;
    Message {
        seq,
        id: Uuid::from_slice(&id).unwrap_or_default(),
        partition_no: partition_no as u8,
        topic,
        ordering_key: ordering_key.map(Key::from),
        payload: Bytes::from(payload.unwrap_or_default()),
        content_type,
        headers: decode::headers(&headers),
        only_destination: None,
        scheduled: deliver_at.is_some_and(|at| at > now),
        expires: decode::expiry(expires_at.map(|at| duration(at.saturating_sub(now)))),
        tracked,
        version: version.clamp(0, u16::MAX.into()) as u16,
        created_at: date(created_at),
    }
}

/// Numbers in a range, for the sweep.
pub(super) fn message_sweep(
    open: &mut Open,
    after: Seq,
    until: Seq,
    owned: PartitionSet,
    limit: u32,
) -> QueryResult<Vec<Seq>> {
    load::<MessageSweep, _>(&mut open.conn, &[after.into(), until.into(), mask(owned).into(), limit.into()])
}

/// The highest number there is.
pub(super) fn message_last(open: &mut Open) -> QueryResult<Seq> {
    load_one::<MessageLast, _>(&mut open.conn, &[])
}

/// Which keys have an in-order row or a blocking dead letter.
pub(super) fn key_parked(open: &mut Open, keys: &[(String, Key)]) -> QueryResult<Vec<bool>> {
    open.conn.transaction(|conn| {
        keys.iter()
            .map(|(destination, key)| {
                let binds = [destination.as_str().into(), key[..].into(), destination.as_str().into(), key[..].into()];
                load_one::<KeyParked, _>(conn, &binds)
            })
            .collect()
    })
}

/// Waiting rows that may be attempted, lane by lane, and what waits there besides.
pub(super) fn delivery_due(open: &mut Open, lanes: &[LaneDemand], owned: PartitionSet, now: Now) -> QueryResult<Due> {
    open.conn.transaction(|conn| {
        let now = clock(conn, now)?;
        let mask = mask(owned);
        let mut due = Due { hour: DateTime::from_timestamp_millis(now), ..Due::default() };
        for lane in lanes {
            let name = lane.destination.as_str();
            let without = left_out(&lane.without);
            if lane.limit > 0 {
                let binds = [name.into(), now.into(), mask.into(), without.as_str().into(), lane.limit.into()];
                let read: Vec<(MessageColumns, WaitingColumns)> = load::<DeliveryDue, _>(conn, &binds)?;
                due.rows.extend(read.into_iter().map(|(message, waiting)| waiting_delivery(message, waiting, now)));
            }
            let occupied = load_one::<LaneOccupied, _>(conn, &[name.into(), name.into()])?;
            let binds = [name.into(), mask.into(), without.as_str().into()];
            let next: Option<i64> = if occupied { load_optional::<NextDue, _>(conn, &binds)? } else { None };
            let next_due_in = next.map(|at| duration(at.saturating_sub(now)));
            due.lanes.push(LaneWaiting { occupied, next_due_in });
        }
        Ok(due)
    })
}

/// The keys as the statements look for them.
fn left_out(keys: &[Key]) -> String {
    let mut all = String::new();
    for key in keys {
        all.push(':');
        for byte in key.iter() {
            write!(all, "{byte:02X}").expect("a string takes everything");
        }
        all.push(':');
    }
    all
}

/// The next rows of keys.
pub(super) fn delivery_followers(open: &mut Open, keys: &[KeyAfter], limit: u32, now: Now) -> QueryResult<Followers> {
    open.conn.transaction(|conn| {
        let now = clock(conn, now)?;
        let (mut rows, mut earlier) = (Vec::new(), Vec::new());
        for KeyAfter { destination, key, after } in keys {
            let binds = [now.into(), destination.as_str().into(), key[..].into(), (*after).into(), limit.into()];
            let read: Vec<(MessageColumns, WaitingColumns, bool)> = load::<DeliveryFollowers, _>(conn, &binds)?;
            rows.extend(read.into_iter().map(|(message, waiting, due)| (waiting_delivery(message, waiting, now), due)));
            let binds = [destination.as_str().into(), key[..].into(), (*after).into(), (EARLIER_MAX as i64).into()];
            earlier.push(load::<DeliveryEarlier, _>(conn, &binds)?);
        }
        Ok(Followers { rows: decode::until_not_due(rows), earlier })
    })
}

fn waiting_delivery(columns: MessageColumns, waiting: WaitingColumns, now: i64) -> WaitingDelivery {
    let (id, destination, in_order, life, attempts, suspect, deaths, first_attempt_at, history) = waiting;
    WaitingDelivery {
        id,
        message: message(columns, now),
        destination,
        in_order,
        life: life.max(0) as u32,
        attempts: attempts.max(0) as u32,
        suspect,
        deaths: deaths.max(0) as u32,
        first_attempt_age: first_attempt_at.map(|at| duration(now.saturating_sub(at))),
        history: decode::history(&history),
    }
}

/// A number of milliseconds as a span; what lies in the other direction is no span at all.
pub(super) fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::super::statement::{Sql, plan};
    use super::*;

    #[test]
    fn polls_search_by_number_and_lanes_by_index() {
        for (text, search) in [
            (MessageTail::TEXT, "SEARCH outbox_messages USING INTEGER PRIMARY KEY (rowid>?)"),
            (MessageHole::TEXT, "SEARCH outbox_messages USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (MessageSweep::TEXT, "SEARCH outbox_messages USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            (DeliveryDue::TEXT, "delivery_by_due (destination=? AND blocked=? AND due_at<?)"),
            (NextDue::TEXT, "delivery_by_due (destination=? AND blocked=?)"),
            (DeliveryFollowers::TEXT, "delivery_by_key (destination=? AND ordering_key=? AND seq>?)"),
            (DeliveryEarlier::TEXT, "delivery_by_key (destination=? AND ordering_key=? AND seq<?)"),
            (KeyParked::TEXT, "delivery_by_key (destination=? AND ordering_key=?)"),
            (KeyParked::TEXT, "dead_letter_by_key (destination=? AND blocks_key=? AND ordering_key=?)"),
        ] {
            let plan = plan(text);
            assert!(plan.contains(search), "{text}\n{plan}");
            assert!(!plan.contains("SCAN outbox_messages") && !plan.contains("SCAN outbox_deliveries"), "{plan}");
        }
    }
}
