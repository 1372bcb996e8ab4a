//! Who is there, and who owns what.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::connection::Session;
use super::keys;
use super::literal::{self, bytes, hex, text};
use super::row::{Columns, micros_of};
use crate::message::{PARTITIONS, PartitionSet, RelayId};
use crate::store::{Membership, NOBODY, RelayRow, RelaySeen, StoreError, Taken, decode};

pub(super) async fn relay_register(session: &mut Session<'_>, relay: &RelayRow) -> Result<(), StoreError> {
    // Repeated after a lost answer, it finds its own row.
    let sql = format!(
        "-- relay_register\n\
         INSERT INTO outbox_relays (id, name, version, serves, lease_ms) \
         VALUES ({}, left({}, 255), left({}, 255), {}, {}) \
         ON DUPLICATE KEY UPDATE name = VALUES(name)",
        bytes(relay.id),
        text(&relay.name),
        text(&relay.version),
        text(&decode::names_text(&relay.serves)),
        decode::lease_ms(relay.lease)
    );
    session.execute(&sql).await.map(drop)
}

pub(super) async fn relay_beat(
    session: &mut Session<'_>,
    relay: RelayId,
    draining: bool,
) -> Result<Option<Membership>, StoreError> {
    let sql = format!(
        "-- relay_beat\nUPDATE outbox_relays SET beat = beat + 1, draining = {draining} WHERE id = {}",
        bytes(relay)
    );
    if session.execute(&sql).await? == 0 {
        return Ok(None);
    }
    let membership = membership(session).await?;
    // It may have been buried between the two statements.
    Ok(membership.relays.iter().any(|seen| seen.id == relay).then_some(membership))
}

/// Relays and partitions in one statement, so that no owner is missing among the relays.
pub(super) async fn membership(session: &mut Session<'_>) -> Result<Membership, StoreError> {
    let sql = format!(
        "-- membership\n\
         (SELECT 0 AS branch, beat AS a, draining AS b, {} AS c, lease_ms AS d, id, name, version, serves \
          FROM outbox_relays) \
         UNION ALL \
         (SELECT 1, partition_no, epoch, 0, 0, owner, NULL, NULL, NULL FROM outbox_partitions)",
        micros_of("started_at")
    );
    let mut membership = Membership::default();
    for row in session.rows(&sql).await? {
        let mut columns = Columns::new(row);
        if columns.number() == 0 {
            let (beat, draining, started_at) = (columns.number(), columns.flag(), columns.instant());
            let lease = decode::lease(columns.number());
            membership.relays.push(RelaySeen {
                beat,
                draining,
                started_at,
                lease,
                id: columns.uuid(),
                name: columns.text(),
                version: columns.text(),
                serves: decode::names(&columns.text()),
            });
        } else {
            let (partition_no, epoch) = (columns.partition(), columns.number());
            columns.number();
            columns.number();
            membership.partitions.push((partition_no, columns.maybe_uuid(), epoch));
        }
    }
    membership.relays.sort_by_key(|relay| (relay.started_at, relay.id));
    membership.partitions.sort_by_key(|(partition_no, _, _)| *partition_no);
    Ok(membership)
}

pub(super) async fn relay_bury(mut session: Session<'_>, dead: &[(RelayId, i64)]) -> Result<Vec<RelayId>, StoreError> {
    session.begin().await?;
    let owners = partition_lock(&mut session, PartitionSet::ALL).await?;
    let mut buried = Vec::new();
    for (relay, beat) in dead {
        let sql = format!("-- relay_bury\nDELETE FROM outbox_relays WHERE id = {} AND beat = {beat}", bytes(relay));
        if session.execute(&sql).await? > 0 {
            buried.push(*relay);
        }
    }
    let freed = owners.iter().filter(|(_, owner)| owner.is_some_and(|owner| buried.contains(&owner)));
    let freed = freed.map(|(partition_no, _)| *partition_no).collect();
    // They keep the name of the dead, for whoever takes them.
    partition_set(&mut session, freed, "p.epoch = p.epoch + 1").await?;
    session.commit().await?;
    Ok(buried)
}

pub(super) async fn partition_acquire(
    mut session: Session<'_>,
    relay: RelayId,
    wanted: PartitionSet,
) -> Result<Vec<Taken>, StoreError> {
    session.begin().await?;
    let owners = partition_lock(&mut session, wanted).await?;
    let rows = session.rows("-- relay_ids\nSELECT id FROM outbox_relays").await?;
    let alive: BTreeSet<RelayId> = rows.into_iter().map(|row| Columns::new(row).uuid()).collect();
    // A relay that was buried may not take anything; it will hear of it at its next beat.
    let free: PartitionSet = owners
        .iter()
        .filter(|(_, owner)| alive.contains(&relay) && owner.is_none_or(|owner| !alive.contains(&owner)))
        .map(|(partition_no, _)| *partition_no)
        .collect();
    if free.is_empty() {
        session.commit().await?;
        return Ok(Vec::new());
    }
    let taking = format!("p.owner = {}, p.epoch = p.epoch + 1", bytes(relay));
    partition_set(&mut session, free, &taking).await?;
    keys::repair(&mut session, free).await?;
    // What is free and has an owner has a dead one.
    let dead: BTreeMap<u8, RelayId> =
        free.iter().filter_map(|partition_no| Some((partition_no, (*owners.get(&partition_no)?)?))).collect();
    mark_suspects(&mut session, &dead).await?;
    let sql = format!(
        "-- partition_epochs\nSELECT partition_no, epoch FROM outbox_partitions WHERE partition_no IN ({}) \
         ORDER BY partition_no",
        literal::partitions(free)
    );
    let taken = session.rows(&sql).await?.into_iter().map(Columns::new);
    let taken = taken
        .map(|mut columns| {
            let (partition_no, epoch) = (columns.partition(), columns.number());
            Taken { partition_no, epoch, inherited: dead.contains_key(&partition_no) }
        })
        .collect();
    session.commit().await?;
    Ok(taken)
}

/// Marks what the dead owners of partitions were attempting. A zombie may still hold the row in its handler's transaction:
/// then it is not waited for, and ends there or is marked anew.
async fn mark_suspects(session: &mut Session<'_>, dead: &BTreeMap<u8, RelayId>) -> Result<(), StoreError> {
    if dead.is_empty() {
        return Ok(());
    }
    let owners: Vec<Value> = dead.iter().map(|(partition_no, owner)| json!([partition_no, hex(owner)])).collect();
    // Looked for without locks: a locking search would wait for every row it passes.
    let sql = format!(
        "-- delivery_started\nSELECT d.id FROM JSON_TABLE({}, '$[*]' COLUMNS (partition_no INT PATH '$[0]', \
              owner VARCHAR(32) PATH '$[1]')) AS t \
         STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (delivery_by_partition) \
           ON d.partition_no = t.partition_no AND d.attempted_by = unhex(t.owner) ORDER BY d.id",
        literal::document(&json!(owners))
    );
    let rows = session.rows(&sql).await?;
    let started: Vec<i64> = rows.into_iter().map(|row| Columns::new(row).number()).collect();
    if started.is_empty() {
        return Ok(());
    }
    let join = |ids: &[i64]| {
        format!(
            "JSON_TABLE({}, '$[*]' COLUMNS (id BIGINT PATH '$')) AS t \
             STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) ON d.id = t.id",
            literal::document(&json!(ids))
        )
    };
    let sql = format!("-- delivery_suspects\nSELECT d.id FROM {} FOR UPDATE SKIP LOCKED", join(&started));
    let rows = session.rows(&sql).await?;
    let free: Vec<i64> = rows.into_iter().map(|row| Columns::new(row).number()).collect();
    if !free.is_empty() {
        let sql = format!(
            "-- delivery_suspect\nUPDATE {} SET d.suspect = true, d.state = 'suspect', \
             d.attempted_by = NULL, d.deaths = d.deaths + 1",
            join(&free)
        );
        session.execute(&sql).await?;
    }
    Ok(())
}

pub(super) async fn partition_release(
    mut session: Session<'_>,
    relay: RelayId,
    given_up: PartitionSet,
) -> Result<(), StoreError> {
    session.begin().await?;
    let owners = partition_lock(&mut session, given_up).await?;
    partition_set(&mut session, owned_by(&owners, relay), "p.owner = NULL").await?;
    session.commit().await
}

pub(super) async fn relay_leave(
    mut session: Session<'_>,
    relay: RelayId,
    unread: PartitionSet,
) -> Result<(), StoreError> {
    session.begin().await?;
    let owners = partition_lock(&mut session, PartitionSet::ALL).await?;
    session.execute(&format!("-- relay_leave\nDELETE FROM outbox_relays WHERE id = {}", bytes(relay))).await?;
    let owned = owned_by(&owners, relay);
    partition_set(&mut session, owned.without(unread), "p.owner = NULL").await?;
    partition_set(&mut session, owned.and(unread), &format!("p.owner = {}", bytes(NOBODY))).await?;
    session.commit().await
}

pub(super) fn owned_by(owners: &BTreeMap<u8, Option<RelayId>>, relay: RelayId) -> PartitionSet {
    owners.iter().filter(|(_, owner)| **owner == Some(relay)).map(|(partition_no, _)| *partition_no).collect()
}

/// Locks partition rows in ascending order and reads their owners.
pub(super) async fn partition_lock(
    session: &mut Session<'_>,
    wanted: PartitionSet,
) -> Result<BTreeMap<u8, Option<RelayId>>, StoreError> {
    let wanted: Vec<u8> = wanted.iter().collect();
    debug_assert!(wanted.len() <= usize::from(PARTITIONS) && wanted.is_sorted());
    let sql = format!(
        "-- partition_lock\n\
         SELECT p.partition_no, p.owner FROM JSON_TABLE({}, '$[*]' COLUMNS (n INT PATH '$')) AS t \
         STRAIGHT_JOIN outbox_partitions AS p FORCE INDEX (PRIMARY) ON p.partition_no = t.n FOR UPDATE",
        literal::document(&json!(wanted))
    );
    let rows = session.rows(&sql).await?.into_iter().map(Columns::new);
    Ok(rows.map(|mut columns| (columns.partition(), columns.maybe_uuid())).collect())
}

/// Changes partitions that are locked already.
async fn partition_set(session: &mut Session<'_>, partitions: PartitionSet, change: &str) -> Result<(), StoreError> {
    let partitions: Vec<u8> = partitions.iter().collect();
    if partitions.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "-- partition_set\n\
         UPDATE JSON_TABLE({}, '$[*]' COLUMNS (n INT PATH '$')) AS t \
         STRAIGHT_JOIN outbox_partitions AS p FORCE INDEX (PRIMARY) ON p.partition_no = t.n SET {change}",
        literal::document(&json!(partitions))
    );
    session.execute(&sql).await.map(drop)
}
