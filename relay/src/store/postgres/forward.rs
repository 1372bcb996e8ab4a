//! Brings forward what waits by a clock that was put back.

use std::time::Duration;

use super::connection::{Connection, Sql};
use super::membership;
use super::value::{Micros, mask, micros, numbers};
use crate::message::{PartitionSet, RelayId};
use crate::store::{Now, RowAhead, StoreError, Written};

const DELIVERY_LAST: Sql = Sql {
    name: "delivery_last",
    text: "-- delivery_last\nSELECT coalesce((SELECT max(id) FROM outbox_deliveries), 0)",
};

/// Parameters: after, until, mask, limit, now.
const DELIVERY_AHEAD: Sql = Sql {
    name: "delivery_ahead",
    text: "-- delivery_ahead\n\
           SELECT id, partition_no, due_at FROM outbox_deliveries \
           WHERE id > $1::bigint AND id <= $2::bigint AND ($3::bigint >> partition_no) & 1 = 1 \
           AND due_at > coalesce($5::timestamptz, now()) ORDER BY id LIMIT $4::bigint",
};

/// Parameters: relay, id[], due_at[], microseconds.
const DELIVERY_FORWARD: Sql = Sql {
    name: "delivery_forward",
    text: "-- delivery_forward\n\
           UPDATE outbox_deliveries d \
           SET due_at = least(d.due_at, greatest(d.due_at - $4::bigint * interval '1 microsecond', d.deliver_at)) \
           FROM unnest($2::bigint[], $3::timestamptz[]) AS r(id, due_at), outbox_partitions p \
           WHERE d.id = r.id AND d.due_at = r.due_at AND p.partition_no = d.partition_no AND p.owner = $1::uuid",
};

/// Parameters: name[], held_until[], microseconds.
const HOLD_FORWARD: Sql = Sql {
    name: "hold_forward",
    text: "-- hold_forward\n\
           UPDATE outbox_destinations d SET held_until = d.held_until - $3::bigint * interval '1 microsecond' \
           FROM unnest($1::text[], $2::timestamptz[]) AS r(name, held_until) \
           WHERE d.name = r.name AND d.held_until = r.held_until",
};

pub(super) async fn delivery_last(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(connection.run(&DELIVERY_LAST, &[]).await?.first().map_or(0, |row| row.get(0)))
}

pub(super) async fn delivery_ahead(
    connection: &mut Connection,
    (after, until): (i64, i64),
    owned: PartitionSet,
    limit: u32,
    now: Now,
) -> Result<Vec<RowAhead>, StoreError> {
    let rows = connection.run(&DELIVERY_AHEAD, &[&after, &until, &mask(owned), &i64::from(limit), &now]).await?;
    let ahead = rows.iter().map(|row| RowAhead {
        id: row.get(0),
        partition_no: u8::try_from(row.get::<_, i16>(1)).unwrap_or(u8::MAX),
        due_at: row.get::<_, Micros>(2).written(),
    });
    Ok(ahead.collect())
}

pub(super) async fn delivery_bring_forward(
    connection: &mut Connection,
    relay: RelayId,
    rows: &[RowAhead],
    by: Duration,
) -> Result<(), StoreError> {
    let lock = connection.prepare(membership::LOCK).await?;
    let forward = connection.prepare(&DELIVERY_FORWARD).await?;
    let connection = &*connection;
    let partitions = numbers(rows.iter().map(|row| row.partition_no).collect());
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let due_at: Vec<Micros> = rows.iter().map(|row| row.due_at.into()).collect();
    let by = micros(by);
    tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[&partitions]).await },
        async { connection.query(&forward, &[&relay, &ids, &due_at, &by]).await },
        connection.commit(),
    )?;
    Ok(())
}

pub(super) async fn destination_bring_forward(
    connection: &mut Connection,
    holds: &[(String, Written)],
    by: Duration,
) -> Result<(), StoreError> {
    let names: Vec<&str> = holds.iter().map(|(name, _)| name.as_str()).collect();
    let held_until: Vec<Micros> = holds.iter().map(|(_, until)| (*until).into()).collect();
    connection.run(&HOLD_FORWARD, &[&names, &held_until, &micros(by)]).await?;
    Ok(())
}
