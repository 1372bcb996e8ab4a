//! Brings forward what waits by a clock that was put back.

use std::time::Duration;

use diesel::sql_types::{BigInt, Integer};
use diesel::{Connection, QueryResult};

use super::mask;
use super::read::clock;
use super::statement::{execute, load, load_one, statement};
use super::worker::Open;
use crate::message::{PartitionSet, RelayId};
use crate::store::{Now, RowAhead, Written};

statement!(DeliveryLast, "-- delivery_last\nSELECT coalesce(max(id), 0) FROM outbox_deliveries", BigInt);
statement!(
    DeliveryAhead,
    "-- delivery_ahead\nSELECT id, partition_no, due_at FROM outbox_deliveries \
     WHERE id > ? AND id <= ? AND ? >> partition_no & 1 AND due_at > ? ORDER BY id LIMIT ?",
    (BigInt, Integer, BigInt)
);
statement!(
    DeliveryForward,
    "-- delivery_forward\nUPDATE outbox_deliveries \
     SET due_at = min(due_at, max(due_at - ?, coalesce(deliver_at, due_at - ?))) \
     WHERE id = ? AND due_at = ? AND partition_no IN (SELECT partition_no FROM outbox_partitions WHERE owner = ?)"
);
statement!(
    HoldForward,
    "-- hold_forward\nUPDATE outbox_destinations SET held_until = held_until - ? WHERE name = ? AND held_until = ?"
);

pub(super) fn delivery_last(open: &mut Open) -> QueryResult<i64> {
    load_one::<DeliveryLast, _>(&mut open.conn, &[])
}

pub(super) fn delivery_ahead(
    open: &mut Open,
    (after, until): (i64, i64),
    owned: PartitionSet,
    limit: u32,
    now: Now,
) -> QueryResult<Vec<RowAhead>> {
    open.conn.transaction(|conn| {
        let now = clock(conn, now)?;
        let binds = [after.into(), until.into(), mask(owned).into(), now.into(), limit.into()];
        let found: Vec<(i64, i32, i64)> = load::<DeliveryAhead, _>(conn, &binds)?;
        let ahead = found.into_iter().map(|(id, partition_no, due_at)| RowAhead {
            id,
            partition_no: u8::try_from(partition_no).unwrap_or(u8::MAX),
            due_at: Written(due_at),
        });
        Ok(ahead.collect())
    })
}

pub(super) fn delivery_bring_forward(
    open: &mut Open,
    relay: RelayId,
    rows: &[RowAhead],
    by: Duration,
) -> QueryResult<()> {
    let by = millis(by);
    open.conn.immediate_transaction(|conn| {
        for RowAhead { id, due_at, .. } in rows {
            let binds = [by.into(), by.into(), (*id).into(), due_at.0.into(), (&relay).into()];
            execute::<DeliveryForward>(conn, &binds)?;
        }
        Ok(())
    })
}

pub(super) fn destination_bring_forward(open: &mut Open, holds: &[(String, Written)], by: Duration) -> QueryResult<()> {
    open.conn.immediate_transaction(|conn| {
        for (name, until) in holds {
            execute::<HoldForward>(conn, &[millis(by).into(), name.as_str().into(), until.0.into()])?;
        }
        Ok(())
    })
}

fn millis(by: Duration) -> i64 {
    i64::try_from(by.as_millis()).unwrap_or(i64::MAX)
}
