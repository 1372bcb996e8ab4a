//! Waiting rows that may be attempted, and the keys they park.

use tokio_postgres::Row as SqlRow;

use super::connection::{Connection, Sql};
use super::feed::payload;
use super::value::{Micros, Octets, RawText, mask};
use crate::message::{Key, Message, PartitionSet, Seq, WaitingDelivery};
use crate::store::{Due, EARLIER_MAX, Followers, KeyAfter, LaneDemand, LaneWaiting, Now, StoreError, decode};

macro_rules! due_columns {
    () => {
        "d.id, d.message_id, d.seq, d.partition_no, d.topic, d.ordering_key, d.payload, d.payload_bytes, \
         d.content_type, d.headers, d.deliver_at, d.expires_at, d.operation_id IS NOT NULL, d.version, d.created_at, \
         d.destination, d.in_order, d.life, d.attempts, d.first_attempt_at, d.history, d.due_at, d.suspect, d.deaths"
    };
}

/// Rows that are left out, by the names of their lane and key.
macro_rules! wanted {
    ($without:literal) => {
        concat!(
            "(d.in_order OR d.ordering_key IS NULL ",
            "OR (d.destination || E'\\x1f' || d.ordering_key) COLLATE \"C\" <> ALL (",
            $without,
            "::text[]))"
        )
    };
}

/// What waits for each lane. Parameters: destinations[], owned mask, now, left out[].
///
/// `OFFSET 0` keeps each question a look-up: without it the planner may read every row once and hash it.
pub(super) const LANE_WAITING: Sql = Sql {
    name: "lane_waiting",
    text: concat!(
        "-- lane_waiting\n",
        "SELECT EXISTS (SELECT FROM outbox_deliveries d WHERE d.destination = lane.destination OFFSET 0) ",
        "OR EXISTS (SELECT FROM outbox_dead_letters l WHERE l.destination = lane.destination AND l.blocks_key OFFSET 0), ",
        "next.due_at, coalesce($3::timestamptz, now()) ",
        "FROM unnest($1::text[]) WITH ORDINALITY AS lane(destination, n) ",
        "LEFT JOIN LATERAL (SELECT d.due_at FROM outbox_deliveries d ",
        "WHERE d.destination = lane.destination AND NOT d.blocked AND ($2::bigint >> d.partition_no) & 1 = 1 AND ",
        wanted!("$4"),
        " ORDER BY d.due_at LIMIT 1) AS next ON true ",
        "ORDER BY lane.n"
    ),
};

/// The rows themselves. Parameters: destinations[], limits[], owned mask, now, left out[].
///
/// Within a lane nothing but `due_at` orders, which the index does; one word more and all due rows would be sorted.
pub(super) const DELIVERY_DUE: Sql = Sql {
    name: "delivery_due",
    text: concat!(
        "-- delivery_due\n",
        "SELECT due.*, coalesce($4::timestamptz, now()) ",
        "FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS lane(destination, wanted, n) ",
        "CROSS JOIN LATERAL (SELECT ",
        due_columns!(),
        " FROM outbox_deliveries d ",
        "WHERE d.destination = lane.destination AND NOT d.blocked AND d.due_at <= coalesce($4::timestamptz, now()) ",
        "AND ($3::bigint >> d.partition_no) & 1 = 1 AND ",
        wanted!("$5"),
        " ORDER BY d.due_at LIMIT lane.wanted) AS due ",
        "ORDER BY lane.n, due.due_at, due.seq, due.id"
    ),
};

/// The next rows of keys. Parameters: destinations[], keys[], numbers[], limit, now.
pub(super) const DELIVERY_FOLLOWERS: Sql = Sql {
    name: "delivery_followers",
    text: concat!(
        "-- delivery_followers\n",
        "SELECT follower.*, coalesce($5::timestamptz, now()) ",
        "FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS k(destination, ordering_key, after, n) ",
        "CROSS JOIN LATERAL (SELECT ",
        due_columns!(),
        " FROM outbox_deliveries d ",
        "WHERE d.destination = k.destination AND d.ordering_key = k.ordering_key AND d.seq > k.after AND d.in_order ",
        "ORDER BY d.seq LIMIT $4::bigint) AS follower ",
        "ORDER BY k.n, follower.seq, follower.id"
    ),
};

/// Which rows of the keys come before those. Parameters: destinations[], keys[], numbers[], limit.
pub(super) const DELIVERY_EARLIER: Sql = Sql {
    name: "delivery_earlier",
    text: "-- delivery_earlier\n\
           SELECT k.n, earlier.id \
           FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS k(destination, ordering_key, after, n) \
           CROSS JOIN LATERAL (SELECT d.id FROM outbox_deliveries d \
               WHERE d.destination = k.destination AND d.ordering_key = k.ordering_key AND d.seq <= k.after AND d.in_order \
               ORDER BY d.seq LIMIT $4::bigint) AS earlier",
};

/// `OFFSET 0` keeps each question a look-up: without it the planner may read every row once and hash it.
pub(super) const KEY_PARKED: Sql = Sql {
    name: "key_parked",
    text: "-- key_parked\n\
           SELECT EXISTS (SELECT FROM outbox_deliveries d WHERE d.destination = k.destination \
                          AND d.ordering_key = k.ordering_key AND d.in_order OFFSET 0) \
               OR EXISTS (SELECT FROM outbox_dead_letters l WHERE l.destination = k.destination \
                          AND l.blocks_key AND l.ordering_key = k.ordering_key OFFSET 0) \
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(destination, ordering_key, n) ORDER BY k.n",
};

pub(super) async fn delivery_due(
    connection: &mut Connection,
    lanes: &[LaneDemand],
    owned: PartitionSet,
    now: Now,
) -> Result<Due, StoreError> {
    let waiting = connection.prepare(&LANE_WAITING).await?;
    let due = connection.prepare(&DELIVERY_DUE).await?;
    let destinations: Vec<&str> = lanes.iter().map(|lane| lane.destination.as_str()).collect();
    let limits: Vec<i64> = lanes.iter().map(|lane| i64::from(lane.limit)).collect();
    let owned = mask(owned);
    let without: Vec<Vec<u8>> = lanes.iter().flat_map(left_out).collect();
    let without: Vec<RawText<'_>> = without.iter().map(|name| RawText(name)).collect();

    let connection = &*connection;
    // The figures are read last: a row that appears in between must not be hidden by `occupied` being false.
    let (due, waiting) = tokio::try_join!(
        biased;
        async { connection.query(&due, &[&destinations, &limits, &owned, &now, &without]).await },
        async { connection.query(&waiting, &[&destinations, &owned, &now, &without]).await },
    )?;

    let lanes = waiting.iter().map(|row| {
        let now: Micros = row.get(2);
        LaneWaiting {
            occupied: row.get(0),
            next_due_in: row.get::<_, Option<Micros>>(1).map(|due_at| due_at.after(now)),
        }
    });
    Ok(Due {
        rows: due.iter().map(waiting_delivery).collect(),
        lanes: lanes.collect(),
        hour: waiting.first().map(|row| row.get::<_, Micros>(2).instant()),
    })
}

/// The names by which the statements leave rows out. No destination's name holds that byte.
fn left_out(lane: &LaneDemand) -> impl Iterator<Item = Vec<u8>> {
    lane.without.iter().map(|key| [lane.destination.as_bytes(), b"\x1f", key].concat())
}

pub(super) async fn delivery_followers(
    connection: &mut Connection,
    keys: &[KeyAfter],
    limit: u32,
    now: Now,
) -> Result<Followers, StoreError> {
    let followers = connection.prepare(&DELIVERY_FOLLOWERS).await?;
    let earlier = connection.prepare(&DELIVERY_EARLIER).await?;
    let destinations: Vec<&str> = keys.iter().map(|key| key.destination.as_str()).collect();
    let names: Vec<RawText<'_>> = keys.iter().map(|key| RawText(&key.key)).collect();
    let after: Vec<Seq> = keys.iter().map(|key| key.after).collect();
    let (limit, earlier_limit) = (i64::from(limit), i64::try_from(EARLIER_MAX).unwrap_or(i64::MAX));

    let connection = &*connection;
    // Those before are read last: one that a follower must not pass was there when the follower was read, or is now.
    let (rows, before) = tokio::try_join!(
        biased;
        async { connection.query(&followers, &[&destinations, &names, &after, &limit, &now]).await },
        async { connection.query(&earlier, &[&destinations, &names, &after, &earlier_limit]).await },
    )?;
    let mut earlier = vec![Vec::new(); keys.len()];
    for row in &before {
        let n = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        if let Some(earlier) = earlier.get_mut(n) {
            earlier.push(row.get(1));
        }
    }
    let rows = rows.iter().map(|row| (waiting_delivery(row), row.get::<_, Micros>(21) <= row.get::<_, Micros>(24)));
    Ok(Followers { rows: decode::until_not_due(rows), earlier })
}

pub(super) async fn key_parked(connection: &mut Connection, keys: &[(String, Key)]) -> Result<Vec<bool>, StoreError> {
    let destinations: Vec<&str> = keys.iter().map(|(destination, _)| destination.as_str()).collect();
    let keys: Vec<RawText<'_>> = keys.iter().map(|(_, key)| RawText(key)).collect();
    let rows = connection.run(&KEY_PARKED, &[&destinations, &keys]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn waiting_delivery(row: &SqlRow) -> WaitingDelivery {
    let now: Micros = row.get(24);
    let number = |index| u32::try_from(row.get::<_, i32>(index)).unwrap_or(0);
    WaitingDelivery {
        id: row.get(0),
        message: Message {
            seq: row.get(2),
            id: row.get(1),
            partition_no: u8::try_from(row.get::<_, i16>(3)).unwrap_or(u8::MAX),
            topic: row.get::<_, Octets<'_>>(4).text(),
            ordering_key: row.get::<_, Option<Octets<'_>>>(5).map(|key| key.key()),
            payload: payload(row, 6, 7),
            content_type: row.get::<_, Octets<'_>>(8).text(),
            headers: decode::headers(&row.get::<_, Octets<'_>>(9).text()),
            only_destination: None,
            scheduled: row.get::<_, Option<Micros>>(10).is_some_and(|deliver_at| deliver_at > now),
            expires: decode::expiry(row.get::<_, Option<Micros>>(11).map(|expires_at| expires_at.after(now))),
            tracked: row.get(12),
            version: u16::try_from(row.get::<_, i16>(13)).unwrap_or(0),
            created_at: row.get::<_, Micros>(14).instant(),
        },
        destination: row.get::<_, Octets<'_>>(15).text(),
        in_order: row.get(16),
        life: number(17),
        attempts: number(18),
        suspect: row.get(22),
        deaths: number(23),
        first_attempt_age: row.get::<_, Option<Micros>>(19).map(|first| now.after(first)),
        history: decode::history(&row.get::<_, Octets<'_>>(20).text()),
    }
}
