//! Who is there and who owns what.
//!
//! Whatever changes an owner locks the partition rows first, in ascending order, and reads the relays in a statement
//! begun after the locks were granted: what was seen before may have changed while waiting for them.

use std::collections::BTreeMap;

use tokio_postgres::Row as SqlRow;
use uuid::Uuid;

use super::connection::{Connection, Sql};
use super::value::{Micros, Octets, numbers};
use crate::message::{PARTITIONS, PartitionSet, RelayId};
use crate::store::{Membership, NOBODY, RelayRow, RelaySeen, StoreError, Taken, decode};

const RELAY_REGISTER: Sql = Sql {
    name: "relay_register",
    text: "-- relay_register\n\
           INSERT INTO outbox_relays (id, name, version, serves, lease_ms) \
           VALUES ($1::uuid, $2::text, $3::text, $4::text, $5::bigint) \
           ON CONFLICT (id) DO NOTHING",
};

/// Raises the beat and reads everything in one snapshot. That snapshot is older than the raised beat, so our own is
/// taken from the write; when the write found no row, nothing of the rest counts.
const RELAY_BEAT: Sql = Sql {
    name: "relay_beat",
    text: "-- relay_beat\n\
           WITH me AS (UPDATE outbox_relays SET beat = beat + 1, draining = $2::boolean WHERE id = $1::uuid \
               RETURNING id, beat, draining) \
           SELECT NULL::smallint, NULL::bigint, r.id, r.name, r.version, coalesce(me.beat, r.beat), \
               coalesce(me.draining, r.draining), r.serves, r.started_at, r.lease_ms, me.id IS NOT NULL \
           FROM outbox_relays r LEFT JOIN me ON me.id = r.id \
           UNION ALL SELECT p.partition_no, p.epoch, p.owner, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL \
           FROM outbox_partitions p",
};

const MEMBERSHIP_READ: Sql = Sql {
    name: "membership_read",
    text: "-- membership_read\n\
           SELECT NULL::smallint, NULL::bigint, r.id, r.name, r.version, r.beat, r.draining, r.serves, r.started_at, \
               r.lease_ms \
           FROM outbox_relays r \
           UNION ALL SELECT p.partition_no, p.epoch, p.owner, NULL, NULL, NULL, NULL, NULL, NULL, NULL \
           FROM outbox_partitions p",
};

const PARTITION_LOCK: Sql = Sql {
    name: "partition_lock",
    text: "-- partition_lock\n\
           SELECT partition_no, owner FROM outbox_partitions WHERE partition_no = ANY($1::smallint[]) \
           ORDER BY partition_no FOR UPDATE",
};

const RELAY_BURY: Sql = Sql {
    name: "relay_bury",
    text: "-- relay_bury\n\
           WITH gone AS (DELETE FROM outbox_relays r USING unnest($1::uuid[], $2::bigint[]) AS dead(id, beat) \
               WHERE r.id = dead.id AND r.beat = dead.beat RETURNING r.id), \
           revoked AS (UPDATE outbox_partitions p SET epoch = p.epoch + 1 FROM gone WHERE p.owner = gone.id) \
           SELECT id FROM gone",
};

const PARTITION_ACQUIRE: Sql = Sql {
    name: "partition_acquire",
    text: "-- partition_acquire\n\
           UPDATE outbox_partitions p SET owner = $1::uuid, epoch = p.epoch + 1 \
           WHERE p.partition_no = ANY($2::smallint[]) \
           AND (p.owner IS NULL OR NOT EXISTS (SELECT FROM outbox_relays r WHERE r.id = p.owner)) \
           AND EXISTS (SELECT FROM outbox_relays r WHERE r.id = $1::uuid) \
           RETURNING p.partition_no, p.epoch",
};

/// Leaves exactly the lowest in-order row of every key unblocked, none while a blocking dead letter of it exists, and
/// every row unblocked that has no key or no order.
const PARTITION_REPAIR: Sql = Sql {
    name: "partition_repair",
    text: "-- partition_repair\n\
           UPDATE outbox_deliveries d SET blocked = NOT d.blocked, \
               state = CASE WHEN d.blocked AND d.state = 'blocked' THEN 'retry' ELSE d.state END \
           FROM (SELECT r.id, r.blocked, r.ordering_key IS NULL OR NOT r.in_order OR ( \
                     row_number() OVER (PARTITION BY r.destination, r.ordering_key, r.in_order \
                                        ORDER BY r.seq, r.id) = 1 \
                     AND NOT EXISTS (SELECT FROM outbox_dead_letters l WHERE l.destination = r.destination \
                                     AND l.blocks_key AND l.ordering_key = r.ordering_key)) AS is_free \
                 FROM outbox_deliveries r WHERE r.partition_no = ANY($1::smallint[])) AS ranked \
           WHERE d.id = ranked.id AND ranked.blocked = ranked.is_free",
};

/// What the dead owners of partitions were attempting. A zombie may still hold the row in its handler's transaction: then
/// it is not waited for, and ends there or is marked anew. Parameters: partition_no[], owner[].
const DELIVERY_SUSPECT: Sql = Sql {
    name: "delivery_suspect",
    text: "-- delivery_suspect\n\
           UPDATE outbox_deliveries u SET suspect = true, state = 'suspect', attempted_by = NULL, deaths = u.deaths + 1 \
           WHERE u.id = ANY(ARRAY(SELECT d.id FROM outbox_deliveries d \
               JOIN unnest($1::smallint[], $2::uuid[]) AS dead (partition_no, owner) \
                   ON d.partition_no = dead.partition_no AND d.attempted_by = dead.owner FOR UPDATE OF d SKIP LOCKED))",
};

const PARTITION_RELEASE: Sql = Sql {
    name: "partition_release",
    text: "-- partition_release\n\
           UPDATE outbox_partitions SET owner = NULL WHERE owner = $1::uuid AND partition_no = ANY($2::smallint[])",
};

const RELAY_LEAVE: Sql = Sql {
    name: "relay_leave",
    text: "-- relay_leave\n\
           WITH freed AS (UPDATE outbox_partitions \
                          SET owner = CASE WHEN partition_no = ANY($2::smallint[]) THEN $3::uuid END \
                          WHERE owner = $1::uuid) \
           DELETE FROM outbox_relays WHERE id = $1::uuid",
};

pub(super) async fn relay_register(connection: &mut Connection, relay: &RelayRow) -> Result<(), StoreError> {
    let serves = decode::names_text(&relay.serves);
    let lease = decode::lease_ms(relay.lease);
    connection.run(&RELAY_REGISTER, &[&relay.id, &relay.name, &relay.version, &serves, &lease]).await?;
    Ok(())
}

pub(super) async fn relay_beat(
    connection: &mut Connection,
    relay: RelayId,
    draining: bool,
) -> Result<Option<Membership>, StoreError> {
    let rows = connection.run(&RELAY_BEAT, &[&relay, &draining]).await?;
    let raised = rows.iter().any(|row| row.get::<_, Option<bool>>(10) == Some(true));
    Ok(raised.then(|| membership(&rows)))
}

/// Locks partition rows, in order.
pub(super) const LOCK: &Sql = &PARTITION_LOCK;

/// Everybody and everything, for those who only look.
pub(super) const READ: &Sql = &MEMBERSHIP_READ;

pub(super) async fn membership_read(connection: &mut Connection) -> Result<Membership, StoreError> {
    Ok(membership(&connection.run(READ, &[]).await?))
}

/// What the rows of `RELAY_BEAT` and `MEMBERSHIP_READ` say.
pub(super) fn membership(rows: &[SqlRow]) -> Membership {
    let mut seen = Membership::default();
    for row in rows {
        match row.get::<_, Option<i16>>(0) {
            Some(partition_no) => {
                if let Ok(partition_no) = u8::try_from(partition_no) {
                    seen.partitions.push((partition_no, row.get(2), row.get(1)));
                }
            }
            None => seen.relays.push(RelaySeen {
                id: row.get(2),
                name: row.get::<_, Octets<'_>>(3).text(),
                version: row.get::<_, Octets<'_>>(4).text(),
                beat: row.get(5),
                draining: row.get(6),
                serves: decode::names(&row.get::<_, Octets<'_>>(7).text()),
                started_at: row.get::<_, Micros>(8).instant(),
                lease: decode::lease(row.get(9)),
            }),
        }
    }
    seen.partitions.sort_unstable_by_key(|(partition_no, ..)| *partition_no);
    seen.relays.sort_unstable_by_key(|relay| (relay.started_at, relay.id));
    seen
}

pub(super) async fn relay_bury(
    connection: &mut Connection,
    dead: &[(RelayId, i64)],
) -> Result<Vec<RelayId>, StoreError> {
    let lock = connection.prepare(&PARTITION_LOCK).await?;
    let bury = connection.prepare(&RELAY_BURY).await?;
    let connection = &*connection;
    let ids: Vec<Uuid> = dead.iter().map(|(id, _)| *id).collect();
    let beats: Vec<i64> = dead.iter().map(|(_, beat)| *beat).collect();
    // All of them: what the dead own may still change until the locks are held.
    let every = numbers(PartitionSet::ALL);
    let ((), _, buried, ()) = tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[&every]).await },
        async { connection.query(&bury, &[&ids, &beats]).await },
        connection.commit(),
    )?;
    Ok(buried.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn partition_acquire(
    connection: &mut Connection,
    relay: RelayId,
    wanted: PartitionSet,
) -> Result<Vec<Taken>, StoreError> {
    let lock = connection.prepare(&PARTITION_LOCK).await?;
    let acquire = connection.prepare(&PARTITION_ACQUIRE).await?;
    let repair = connection.prepare(&PARTITION_REPAIR).await?;
    let suspect = connection.prepare(&DELIVERY_SUSPECT).await?;
    let connection = &*connection;
    let wanted = numbers(wanted);
    let ((), locked, rows) = tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[&wanted]).await },
        async { connection.query(&acquire, &[&relay, &wanted]).await },
    )?;
    // Of those that were taken, whoever has an owner there has a dead one.
    let owner = |row: &SqlRow| Some((row.get::<_, i16>(0), row.get::<_, Option<Uuid>>(1)?));
    let abandoned: BTreeMap<i16, Uuid> = locked.iter().filter_map(owner).collect();
    let mut taken: Vec<(i16, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    taken.sort_unstable();
    let repaired: Vec<i16> = taken.iter().map(|(partition_no, _)| *partition_no).collect();
    let (inherited, dead): (Vec<i16>, Vec<Uuid>) =
        repaired.iter().filter_map(|number| abandoned.get_key_value(number)).unzip();
    tokio::try_join!(
        biased;
        async { connection.query(&repair, &[&repaired]).await },
        async {
            match inherited.is_empty() {
                true => Ok(Vec::new()),
                false => connection.query(&suspect, &[&inherited, &dead]).await,
            }
        },
        connection.commit(),
    )?;
    Ok(taken
        .into_iter()
        .filter_map(|(number, epoch)| {
            let partition_no = u8::try_from(number).ok().filter(|partition_no| *partition_no < PARTITIONS)?;
            Some(Taken { partition_no, epoch, inherited: inherited.contains(&number) })
        })
        .collect())
}

pub(super) async fn partition_release(
    connection: &mut Connection,
    relay: RelayId,
    given_up: PartitionSet,
) -> Result<(), StoreError> {
    let lock = connection.prepare(&PARTITION_LOCK).await?;
    let release = connection.prepare(&PARTITION_RELEASE).await?;
    let connection = &*connection;
    let given_up = numbers(given_up);
    tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[&given_up]).await },
        async { connection.query(&release, &[&relay, &given_up]).await },
        connection.commit(),
    )?;
    Ok(())
}

pub(super) async fn relay_leave(
    connection: &mut Connection,
    relay: RelayId,
    unread: PartitionSet,
) -> Result<(), StoreError> {
    let lock = connection.prepare(&PARTITION_LOCK).await?;
    let leave = connection.prepare(&RELAY_LEAVE).await?;
    let connection = &*connection;
    let (every, unread) = (numbers(PartitionSet::ALL), numbers(unread));
    tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[&every]).await },
        async { connection.query(&leave, &[&relay, &unread, &NOBODY]).await },
        connection.commit(),
    )?;
    Ok(())
}
