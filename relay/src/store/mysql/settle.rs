//! Writes the outcomes of many deliveries.
//!
//! Rows are found by joining a list that was sent to the primary key, list first. A plain `IN (…)` may be answered by
//! a scan when the table is small, and a locking scan waits for every producer that has not committed yet.
//!
//! What leaves a table is locked before anything is written, so that the statements after it all speak of the same
//! rows. Payloads move inside the server.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::connection::Session;
use super::keys::{self, Touched};
use super::literal::{self, bytes, hex};
use super::moves::{
    FROM_DELIVERY, FROM_MESSAGE, dies_json, documents, insert_dead, insert_waiting, update_waiting, waits_json,
};
use super::row::Columns;
use crate::message::{MessageId, RelayId, Seq};
use crate::store::{
    Delivered, MessageMove, Now, Remains, Settled, Settlement, Start, StartBatch, StoreError, WaitingChange,
    WaitingOutcome,
};

/// The list of messages as a table.
const MESSAGES: &str = "'$[*]' COLUMNS (seq BIGINT PATH '$[0]', id VARCHAR(32) PATH '$[1]')) AS t \
     STRAIGHT_JOIN outbox_messages AS m FORCE INDEX (PRIMARY) ON m.seq = t.seq AND m.id = unhex(t.id)";

pub(super) async fn message_delivered(
    mut session: Session<'_>,
    messages: &[(Seq, MessageId)],
    routes_version: i64,
) -> Result<Delivered, StoreError> {
    let mut messages = messages.to_vec();
    messages.sort_unstable();
    messages.dedup();
    let delete = message_delete(&messages, Some(routes_version));
    session.begin().await?;
    let deleted = session.execute(&delete).await?;
    if deleted == 0 || deleted == messages.len() as u64 {
        session.commit().await?;
        let deleted = if deleted == 0 { Vec::new() } else { messages.iter().map(|(seq, _)| *seq).collect() };
        return Ok(Delivered { deleted, mark: None });
    }
    // Some are gone, and a count does not say which: undo it, look, and do it again.
    session.execute("ROLLBACK").await?;
    session.begin().await?;
    let present = message_lock(&mut session, &messages).await?;
    let deleted = session.execute(&delete).await?;
    session.commit().await?;
    let deleted = if deleted == 0 { Vec::new() } else { present.into_iter().collect() };
    Ok(Delivered { deleted, mark: None })
}

fn message_list(messages: &[(Seq, MessageId)]) -> String {
    let list: Vec<Value> = messages.iter().map(|(seq, id)| json!([seq, hex(id)])).collect();
    literal::document(&json!(list))
}

fn message_delete(messages: &[(Seq, MessageId)], routes_version: Option<i64>) -> String {
    let condition = routes_version
        .map(|version| format!(" WHERE (SELECT max(routes_version) FROM outbox_meta) = {version}"))
        .unwrap_or_default();
    format!("-- message_delete\nDELETE m FROM JSON_TABLE({}, {MESSAGES}{condition}", message_list(messages))
}

/// Locks those messages that exist, and says which.
async fn message_lock(session: &mut Session<'_>, messages: &[(Seq, MessageId)]) -> Result<BTreeSet<Seq>, StoreError> {
    let sql =
        format!("-- message_lock\nSELECT m.seq FROM JSON_TABLE({}, {MESSAGES} FOR UPDATE", message_list(messages));
    Ok(session.rows(&sql).await?.into_iter().map(|row| Columns::new(row).number()).collect())
}

pub(super) async fn settle(
    mut session: Session<'_>,
    relay: RelayId,
    batch: &Settlement,
    now: Now,
) -> Result<Settled, StoreError> {
    let now = literal::now(now);
    let mut moves: Vec<&MessageMove> = batch.moves.iter().collect();
    moves.sort_by_key(|message| message.seq);
    let mut waiting: Vec<&WaitingOutcome> = batch.waiting.iter().filter(|w| !loses_its_row(w)).collect();
    waiting.sort_by_key(|outcome| outcome.id);

    session.begin().await?;
    let touched = batch.moves.iter().map(|m| m.partition_no).chain(batch.waiting.iter().map(|w| w.partition_no));
    let owned = partition_lock(&mut session, relay, &batch.epochs, touched.collect()).await?;
    let partitions = batch.moves.iter().map(|m| m.partition_no).chain(batch.waiting.iter().map(|w| w.partition_no));
    let stale = partitions.filter(|partition_no| !owned.contains(partition_no)).count();
    let mut settled = Settled { stale, ..Settled::default() };
    if let Some(version) = batch.routes_version {
        // A read of its own after the locks: it sees what was committed while waiting for them.
        let rows = session.rows("-- settle_routes\nSELECT routes_version FROM outbox_meta").await?;
        if rows.into_iter().next().map(|row| Columns::new(row).number()) != Some(version) {
            session.commit().await?;
            return Ok(Settled { routes_changed: true, ..Settled::default() });
        }
    }

    let ours: Vec<(Seq, MessageId)> =
        moves.iter().filter(|m| owned.contains(&m.partition_no)).map(|m| (m.seq, m.id)).collect();
    let present = if ours.is_empty() { BTreeSet::new() } else { message_lock(&mut session, &ours).await? };
    moves.retain(|m| owned.contains(&m.partition_no) && present.contains(&m.seq));
    let written: BTreeSet<Seq> = moves.iter().map(|m| m.seq).collect();
    settled.refused_messages = batch.moves.iter().map(|m| m.seq).filter(|seq| !written.contains(seq)).collect();

    let ours: Vec<_> = waiting.iter().filter(|w| owned.contains(&w.partition_no)).copied().collect();
    let present = if ours.is_empty() { BTreeMap::new() } else { waiting_lock(&mut session, &ours).await? };
    let mut touched = Touched::default();
    for outcome in &ours {
        // Also where the row is gone: somebody else may have deleted it, whose transaction leaves the next of the key to us.
        touched.changed(&outcome.destination, outcome.ordering_key.as_ref());
    }
    waiting.retain(|w| owned.contains(&w.partition_no) && present.contains_key(&w.id));
    let written: BTreeSet<i64> = waiting.iter().map(|w| w.id).collect();
    settled.refused_waiting = batch.waiting.iter().map(|w| w.id).filter(|id| !written.contains(id)).collect();

    move_messages(&mut session, &moves, &mut touched, &now).await?;
    change_waiting(&mut session, &waiting, &present, &mut touched, &now).await?;
    keys::promote(&mut session, &touched).await?;
    session.commit().await?;
    Ok(settled)
}

/// Counts rows that are about to be attempted.
pub(super) async fn delivery_start(
    mut session: Session<'_>,
    relay: RelayId,
    batch: &StartBatch,
) -> Result<Vec<i64>, StoreError> {
    session.begin().await?;
    let partitions = batch.rows.iter().map(|row| row.partition_no).collect();
    let owned = partition_lock(&mut session, relay, &batch.epochs, partitions).await?;
    let mut rows: Vec<Start> = batch.rows.iter().filter(|row| owned.contains(&row.partition_no)).copied().collect();
    rows.sort_unstable_by_key(|row| row.id);
    let named: Vec<Value> =
        rows.iter().map(|row| json!([row.id, row.attempts_read, row.partition_no, hex(row.message_id)])).collect();
    // A zombie may hold a row in its handler's transaction; the others must not wait for it. What an UPDATE left as it
    // was it does not count, so that the rows are locked and named first.
    let counted: BTreeMap<i64, Seq> = match named.is_empty() {
        true => BTreeMap::new(),
        false => delivery_lock(&mut session, named, " SKIP LOCKED").await?,
    };
    rows.retain(|row| counted.contains_key(&row.id));
    if !rows.is_empty() {
        let list: Vec<Value> = rows.iter().map(|row| json!(row.id)).collect();
        let sql = format!(
            "-- delivery_start\n\
             UPDATE JSON_TABLE({}, '$[*]' COLUMNS (id BIGINT PATH '$')) AS t \
             STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) ON d.id = t.id SET d.attempted_by = {}",
            literal::document(&json!(list)),
            bytes(relay)
        );
        session.execute(&sql).await?;
    }
    session.commit().await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// True for a row that would be routed to nowhere, or to the empty name it has: it would vanish without a trace.
fn loses_its_row(outcome: &WaitingOutcome) -> bool {
    match &outcome.change {
        WaitingChange::Routed(units) => {
            !outcome.destination.is_empty() || units.is_empty() || units.iter().any(|unit| unit.destination.is_empty())
        }
        _ => false,
    }
}

/// Locks the partition rows in ascending order and says which of them the relay owns under the epoch it believes in.
async fn partition_lock(
    session: &mut Session<'_>,
    relay: RelayId,
    epochs: &[(u8, i64)],
    partitions: BTreeSet<u8>,
) -> Result<BTreeSet<u8>, StoreError> {
    let believed: BTreeMap<u8, i64> = epochs.iter().copied().collect();
    // The list comes first and is in order, so the rows are locked in that order and no other row is.
    let sql = format!(
        "-- partition_lock\n\
         SELECT p.partition_no, p.epoch, p.owner = {} FROM JSON_TABLE({}, '$[*]' COLUMNS (n INT PATH '$')) AS t \
         STRAIGHT_JOIN outbox_partitions AS p FORCE INDEX (PRIMARY) ON p.partition_no = t.n FOR UPDATE",
        bytes(relay),
        literal::document(&json!(partitions))
    );
    let mut owned = BTreeSet::new();
    for row in session.rows(&sql).await? {
        let mut columns = Columns::new(row);
        let (partition_no, epoch, mine) = (columns.partition(), columns.number(), columns.flag());
        if mine && believed.get(&partition_no) == Some(&epoch) {
            owned.insert(partition_no);
        }
    }
    Ok(owned)
}

/// Locks those waiting rows that are about that message and whose `attempts` are those that were read. Returns for each
/// its number.
async fn waiting_lock(
    session: &mut Session<'_>,
    outcomes: &[&WaitingOutcome],
) -> Result<BTreeMap<i64, Seq>, StoreError> {
    let named = outcomes.iter().map(|o| json!([o.id, o.attempts_read, o.partition_no, hex(o.message_id)])).collect();
    delivery_lock(session, named, "").await
}

/// The same for rows given as lists of id, attempts and partition.
async fn delivery_lock(
    session: &mut Session<'_>,
    named: Vec<Value>,
    others: &str,
) -> Result<BTreeMap<i64, Seq>, StoreError> {
    let sql = format!(
        "-- delivery_lock\n\
         SELECT d.id, d.seq FROM JSON_TABLE({}, '$[*]' COLUMNS (id BIGINT PATH '$[0]', attempts INT PATH '$[1]', \
              partition_no INT PATH '$[2]', message_id VARCHAR(32) PATH '$[3]')) AS t \
         STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) \
           ON d.id = t.id AND d.attempts = t.attempts AND d.partition_no = t.partition_no \
           AND d.message_id = unhex(t.message_id) FOR UPDATE{others}",
        literal::document(&json!(named))
    );
    let rows = session.rows(&sql).await?.into_iter().map(Columns::new);
    Ok(rows.map(|mut columns| (columns.number(), columns.number())).collect())
}

/// Inserts what remains of messages, and deletes them.
async fn move_messages(
    session: &mut Session<'_>,
    moves: &[&MessageMove],
    touched: &mut Touched,
    now: &str,
) -> Result<(), StoreError> {
    if moves.is_empty() {
        return Ok(());
    }
    let (mut waits, mut dies) = (Vec::new(), Vec::new());
    for message in moves {
        for unit in &message.units {
            match &unit.remains {
                Remains::Waits(unit_waits) => {
                    waits.push(waits_json(message.seq, &unit.destination, unit_waits));
                    touched.inserted(&unit.destination, message.ordering_key.as_ref(), message.seq);
                }
                Remains::Dies(unit_dies) => {
                    dies.push(dies_json(message.seq, &unit.destination, unit_dies));
                    touched.changed(&unit.destination, message.ordering_key.as_ref());
                }
            }
        }
    }
    for list in documents(waits) {
        session.execute(&insert_waiting(&list, &FROM_MESSAGE, now)).await?;
    }
    for list in documents(dies) {
        session.execute(&insert_dead(&list, &FROM_MESSAGE, now)).await?;
    }
    let ids: Vec<(Seq, MessageId)> = moves.iter().map(|m| (m.seq, m.id)).collect();
    session.execute(&message_delete(&ids, None)).await?;
    Ok(())
}

/// Writes the outcomes of waiting rows.
async fn change_waiting(
    session: &mut Session<'_>,
    outcomes: &[&WaitingOutcome],
    seqs: &BTreeMap<i64, Seq>,
    touched: &mut Touched,
    now: &str,
) -> Result<(), StoreError> {
    let (mut again, mut waits, mut dies, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for outcome in outcomes {
        let key = outcome.ordering_key.as_ref();
        match &outcome.change {
            WaitingChange::Delivered => gone.push(outcome.id),
            WaitingChange::Waits(row) => again.push(waits_json(outcome.id, &outcome.destination, row)),
            WaitingChange::Dies(row) => {
                dies.push(dies_json(outcome.id, &outcome.destination, row));
                gone.push(outcome.id);
            }
            WaitingChange::Routed(units) => {
                gone.push(outcome.id);
                for unit in units {
                    match &unit.remains {
                        Remains::Waits(row) => {
                            waits.push(waits_json(outcome.id, &unit.destination, row));
                            touched.inserted(&unit.destination, key, seqs[&outcome.id]);
                        }
                        Remains::Dies(row) => {
                            dies.push(dies_json(outcome.id, &unit.destination, row));
                            touched.changed(&unit.destination, key);
                        }
                    }
                }
            }
        }
    }
    for list in documents(again) {
        session.execute(&update_waiting(&list, now)).await?;
    }
    for list in documents(waits) {
        session.execute(&insert_waiting(&list, &FROM_DELIVERY, now)).await?;
    }
    for list in documents(dies) {
        session.execute(&insert_dead(&list, &FROM_DELIVERY, now)).await?;
    }
    if !gone.is_empty() {
        let sql = format!(
            "-- delivery_delete\n\
             DELETE d FROM JSON_TABLE({}, '$[*]' COLUMNS (id BIGINT PATH '$')) AS t \
             STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) ON d.id = t.id",
            literal::document(&json!(gone))
        );
        session.execute(&sql).await?;
    }
    Ok(())
}
