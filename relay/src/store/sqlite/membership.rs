//! Who is there, and who owns what.

use std::collections::BTreeMap;

use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
use diesel::{Connection, QueryResult, SqliteConnection};
use uuid::Uuid;

use super::statement::{execute, load, statement};
use super::worker::Open;
use super::{date, mask, settle};
use crate::message::{PartitionSet, RelayId};
use crate::store::{Membership, NOBODY, RelayRow, RelaySeen, Taken, decode};

statement!(
    RelayRegister,
    "-- relay_register\nINSERT INTO outbox_relays (id, name, version, serves, lease_ms) VALUES (?, ?, ?, ?, ?) \
     ON CONFLICT (id) DO NOTHING"
);
statement!(RelayBeat, "-- relay_beat\nUPDATE outbox_relays SET beat = beat + 1, draining = ? WHERE id = ?");
statement!(RelayBury, "-- relay_bury\nDELETE FROM outbox_relays WHERE id = ? AND beat = ?");
statement!(RelayDelete, "-- relay_leave\nDELETE FROM outbox_relays WHERE id = ?");
statement!(
    RelayRead,
    "-- relay_read\nSELECT id, name, version, beat, draining, serves, started_at, lease_ms FROM outbox_relays \
     ORDER BY started_at, id",
    (Binary, Text, Text, BigInt, Bool, Text, BigInt, BigInt)
);
statement!(
    PartitionRead,
    "-- partition_read\nSELECT partition_no, owner, epoch FROM outbox_partitions ORDER BY partition_no",
    (Integer, Nullable<Binary>, BigInt)
);
statement!(PartitionRevoke, "-- partition_revoke\nUPDATE outbox_partitions SET epoch = epoch + 1 WHERE owner = ?");
statement!(
    PartitionAbandoned,
    "-- partition_abandoned\nSELECT partition_no, owner FROM outbox_partitions \
     WHERE owner IS NOT NULL AND owner NOT IN (SELECT id FROM outbox_relays)",
    (Integer, Binary)
);
statement!(
    DeliverySuspect,
    "-- delivery_suspect\nUPDATE outbox_deliveries SET suspect = 1, state = 'suspect', attempted_by = NULL, \
     deaths = deaths + 1 WHERE partition_no = ? AND attempted_by = ?"
);
statement!(
    PartitionAcquire,
    "-- partition_acquire\nUPDATE outbox_partitions SET owner = ?, epoch = epoch + 1 \
     WHERE ? >> partition_no & 1 AND (owner IS NULL OR owner NOT IN (SELECT id FROM outbox_relays)) \
     AND EXISTS (SELECT 1 FROM outbox_relays WHERE id = ?) \
     RETURNING partition_no, epoch",
    (Integer, BigInt)
);
statement!(
    PartitionLeave,
    "-- partition_leave\nUPDATE outbox_partitions SET owner = ? WHERE owner = ? AND ? >> partition_no & 1"
);
statement!(
    PartitionRelease,
    "-- partition_release\nUPDATE outbox_partitions SET owner = NULL WHERE owner = ? AND ? >> partition_no & 1"
);

/// Registers a relay.
pub(super) fn relay_register(open: &mut Open, relay: &RelayRow) -> QueryResult<()> {
    let serves = decode::names_text(&relay.serves);
    open.conn.immediate_transaction(|conn| {
        let binds = [
            (&relay.id).into(),
            relay.name.as_str().into(),
            relay.version.as_str().into(),
            serves.as_str().into(),
            decode::lease_ms(relay.lease).into(),
        ];
        execute::<RelayRegister>(conn, &binds).map(drop)
    })
}

/// Raises the beat and reads everything back; `None` when the row is gone.
pub(super) fn relay_beat(open: &mut Open, relay: RelayId, draining: bool) -> QueryResult<Option<Membership>> {
    open.conn.immediate_transaction(|conn| {
        if execute::<RelayBeat>(conn, &[draining.into(), (&relay).into()])? == 0 {
            return Ok(None);
        }
        membership(conn).map(Some)
    })
}

/// Reads everybody and everything in one snapshot.
pub(super) fn membership_read(open: &mut Open) -> QueryResult<Membership> {
    open.conn.transaction(membership)
}

/// Deletes the rows of relays whose beat is still the one given, and ends what they may write. Their partitions keep the
/// name of the dead.
pub(super) fn relay_bury(open: &mut Open, dead: &[(RelayId, i64)]) -> QueryResult<Vec<RelayId>> {
    open.conn.immediate_transaction(|conn| {
        let mut buried = Vec::new();
        for (relay, beat) in dead {
            if execute::<RelayBury>(conn, &[relay.into(), (*beat).into()])? > 0 {
                execute::<PartitionRevoke>(conn, &[relay.into()])?;
                buried.push(*relay);
            }
        }
        Ok(buried)
    })
}

/// Takes what nobody alive owns, repairs its keys, and marks what the dead were attempting.
pub(super) fn partition_acquire(open: &mut Open, relay: RelayId, wanted: PartitionSet) -> QueryResult<Vec<Taken>> {
    open.conn.immediate_transaction(|conn| {
        let abandoned: Vec<(i32, Vec<u8>)> = load::<PartitionAbandoned, _>(conn, &[])?;
        let abandoned: BTreeMap<i32, Vec<u8>> = abandoned.into_iter().collect();
        let taken: Vec<(i32, i64)> =
            load::<PartitionAcquire, _>(conn, &[(&relay).into(), mask(wanted).into(), (&relay).into()])?;
        let mut taken: Vec<Taken> = taken
            .into_iter()
            .map(|(partition_no, epoch)| Taken {
                partition_no: partition_no as u8,
                epoch,
                inherited: abandoned.contains_key(&partition_no),
            })
            .collect();
        taken.sort_unstable_by_key(|taken| taken.partition_no);
        if !taken.is_empty() {
            settle::repair_partitions(conn, taken.iter().map(|taken| taken.partition_no).collect())?;
        }
        for taken in &taken {
            if let Some(dead) = abandoned.get(&i32::from(taken.partition_no)) {
                execute::<DeliverySuspect>(conn, &[taken.partition_no.into(), dead.as_slice().into()])?;
            }
        }
        Ok(taken)
    })
}

/// Gives partitions up.
pub(super) fn partition_release(open: &mut Open, relay: RelayId, given_up: PartitionSet) -> QueryResult<()> {
    open.conn.immediate_transaction(|conn| {
        execute::<PartitionRelease>(conn, &[(&relay).into(), mask(given_up).into()]).map(drop)
    })
}

/// Removes the relay and frees what it owned, but for what is to be a dead relay's.
pub(super) fn relay_leave(open: &mut Open, relay: RelayId, unread: PartitionSet) -> QueryResult<()> {
    open.conn.immediate_transaction(|conn| {
        execute::<RelayDelete>(conn, &[(&relay).into()])?;
        execute::<PartitionLeave>(conn, &[(&NOBODY).into(), (&relay).into(), mask(unread).into()])?;
        execute::<PartitionRelease>(conn, &[(&relay).into(), mask(PartitionSet::ALL).into()]).map(drop)
    })
}

/// All relays and partitions, inside the transaction of the one who asks.
pub(super) fn membership(conn: &mut SqliteConnection) -> QueryResult<Membership> {
    debug_assert!(in_transaction(conn));
    type RelayColumns = (Vec<u8>, String, String, i64, bool, String, i64, i64);
    let relays: Vec<RelayColumns> = load::<RelayRead, _>(conn, &[])?;
    let partitions: Vec<(i32, Option<Vec<u8>>, i64)> = load::<PartitionRead, _>(conn, &[])?;
    let relay_id = |bytes: Vec<u8>| Uuid::from_slice(&bytes).unwrap_or_default();
    Ok(Membership {
        relays: relays
            .into_iter()
            .map(|(id, name, version, beat, draining, serves, started_at, lease_ms)| RelaySeen {
                id: relay_id(id),
                name,
                version,
                beat,
                draining,
                serves: decode::names(&serves),
                started_at: date(started_at),
                lease: decode::lease(lease_ms),
            })
            .collect(),
        partitions: partitions
            .into_iter()
            .map(|(partition_no, owner, epoch)| (partition_no as u8, owner.map(relay_id), epoch))
            .collect(),
    })
}

fn in_transaction(conn: &mut SqliteConnection) -> bool {
    use diesel::connection::{AnsiTransactionManager, TransactionManager};
    AnsiTransactionManager::transaction_manager_status_mut(conn).transaction_depth().is_ok_and(|depth| depth.is_some())
}
