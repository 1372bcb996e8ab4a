//! Which row of a key may be attempted.
//!
//! Of the in-order rows of a (destination, key) exactly the lowest is unblocked, and none while a blocking dead letter
//! of it exists. Rows without a key and rows that are not in order are never blocked. Every transaction that adds or
//! removes rows ends here, under the lock of the partition; `due_at` is left alone.
//!
//! A key may have very many rows, so a settle must not look at all of them. Rows are inserted blocked; the only ones
//! that can be wrong are then the head, which may have to be unblocked, and a former head that a row inserted by this
//! transaction went below.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::connection::Session;
use super::literal::{self, hex};
use super::row::Columns;
use crate::message::{Key, PartitionSet, Seq};
use crate::store::StoreError;

/// The keys a transaction touched, each with the numbers it inserted rows for.
#[derive(Default)]
pub(super) struct Touched(BTreeMap<(String, Key), BTreeSet<Seq>>);

impl Touched {
    /// A row of the key was changed or removed.
    pub(super) fn changed(&mut self, destination: &str, key: Option<&Key>) {
        if let Some(key) = key {
            self.0.entry((destination.to_owned(), key.clone())).or_default();
        }
    }

    /// A row of the key was inserted.
    pub(super) fn inserted(&mut self, destination: &str, key: Option<&Key>, seq: Seq) {
        if let Some(key) = key {
            self.0.entry((destination.to_owned(), key.clone())).or_default().insert(seq);
        }
    }
}

/// Leaves exactly the lowest in-order row of each touched key unblocked.
pub(super) async fn promote(session: &mut Session<'_>, touched: &Touched) -> Result<(), StoreError> {
    let touched: Vec<_> = touched.0.iter().collect();
    for touched in touched.chunks(KEYS_MAX) {
        let keys: Vec<Value> = touched
            .iter()
            .enumerate()
            .map(|(n, ((destination, key), _))| json!([n, hex(destination), hex(key)]))
            .collect();
        let (mut to_block, mut to_unblock, mut overtaken) = (Vec::new(), Vec::new(), Vec::new());
        for row in session.rows(&heads(&json!(keys))).await? {
            let mut columns = Columns::new(row);
            let n = usize::try_from(columns.number()).unwrap_or(usize::MAX);
            let (id, seq) = (columns.number(), columns.number());
            match (columns.flag(), columns.flag()) {
                (false, true) => to_block.push(id),
                (true, false) => to_unblock.push(id),
                _ => {}
            }
            if touched.get(n).is_some_and(|(_, inserted)| inserted.contains(&seq)) {
                overtaken.push(json!([hex(&touched[n].0.0), hex(&touched[n].0.1), seq, id]));
            }
        }
        if !overtaken.is_empty() {
            session.execute(&block_others(&json!(overtaken))).await?;
        }
        block(session, &to_block).await?;
        unblock(session, &to_unblock).await?;
    }
    Ok(())
}

/// Repairs every key of some partitions.
pub(super) async fn repair(session: &mut Session<'_>, partitions: PartitionSet) -> Result<(), StoreError> {
    let partitions = literal::partitions(partitions);
    let sql = format!(
        "-- key_repair\n\
         SELECT r.id, r.blocked FROM \
         (SELECT id, destination, ordering_key, blocked, in_order, \
                 row_number() OVER (PARTITION BY destination, ordering_key, in_order ORDER BY seq, id) AS place \
          FROM outbox_deliveries FORCE INDEX (delivery_by_partition) WHERE partition_no IN ({partitions})) AS r \
         WHERE r.blocked = (r.in_order = false OR r.ordering_key IS NULL OR (r.place = 1 AND NOT EXISTS \
             (SELECT 1 FROM outbox_dead_letters AS l FORCE INDEX (dead_letter_by_key) \
              WHERE l.destination = r.destination AND l.blocks_key = true AND l.ordering_key = r.ordering_key)))"
    );
    let (mut to_block, mut to_unblock) = (Vec::new(), Vec::new());
    for row in session.rows(&sql).await? {
        let mut columns = Columns::new(row);
        let id = columns.number();
        if columns.flag() { to_unblock.push(id) } else { to_block.push(id) }
    }
    block(session, &to_block).await?;
    unblock(session, &to_unblock).await
}

/// The most keys, and the most rows, in one statement.
const KEYS_MAX: usize = 1_000;
const ROWS_MAX: usize = 2_000;

/// The lowest in-order row of each key that has one: which key, id, number, whether it is blocked, and whether it must
/// be.
fn heads(keys: &Value) -> String {
    const DESTINATION: &str = "convert(unhex(t.destination) USING utf8mb4) COLLATE utf8mb4_bin";
    format!(
        "-- key_heads\n\
         SELECT key_head.n, d.id, d.seq, d.blocked, key_head.held FROM \
         (SELECT t.n, \
          (SELECT h.id FROM outbox_deliveries AS h FORCE INDEX (delivery_by_key) \
           WHERE h.destination = {DESTINATION} AND h.ordering_key = unhex(t.ordering_key) AND h.in_order = true \
           ORDER BY h.seq, h.id LIMIT 1) AS id, \
          EXISTS (SELECT 1 FROM outbox_dead_letters AS l FORCE INDEX (dead_letter_by_key) \
           WHERE l.destination = {DESTINATION} AND l.blocks_key = true AND l.ordering_key = unhex(t.ordering_key)) \
          AS held \
          FROM JSON_TABLE({}, '$[*]' COLUMNS (n INT PATH '$[0]', destination VARCHAR(2048) PATH '$[1]', \
               ordering_key VARCHAR(2048) PATH '$[2]')) AS t) AS key_head \
         STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) ON d.id = key_head.id",
        literal::document(keys)
    )
}

/// Blocks whatever is unblocked above a head that was inserted just now.
fn block_others(keys: &Value) -> String {
    format!(
        "-- key_overtaken\n\
         UPDATE JSON_TABLE({}, '$[*]' COLUMNS (destination VARCHAR(2048) PATH '$[0]', \
                ordering_key VARCHAR(2048) PATH '$[1]', seq BIGINT PATH '$[2]', id BIGINT PATH '$[3]')) AS t \
         STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (delivery_by_key) \
           ON d.destination = convert(unhex(t.destination) USING utf8mb4) COLLATE utf8mb4_bin \
          AND d.ordering_key = unhex(t.ordering_key) AND d.seq >= t.seq AND d.id <> t.id \
         SET d.blocked = true WHERE d.in_order = true AND d.blocked = false",
        literal::document(keys)
    )
}

async fn block(session: &mut Session<'_>, ids: &[i64]) -> Result<(), StoreError> {
    set(session, ids, "-- key_block", "d.blocked = true").await
}

async fn unblock(session: &mut Session<'_>, ids: &[i64]) -> Result<(), StoreError> {
    set(session, ids, "-- key_unblock", "d.state = IF(d.state = 'blocked', 'retry', d.state), d.blocked = false").await
}

async fn set(session: &mut Session<'_>, ids: &[i64], name: &str, change: &str) -> Result<(), StoreError> {
    for ids in ids.chunks(ROWS_MAX) {
        let sql = format!(
            "{name}\nUPDATE JSON_TABLE({}, '$[*]' COLUMNS (id BIGINT PATH '$')) AS t \
             STRAIGHT_JOIN outbox_deliveries AS d FORCE INDEX (PRIMARY) ON d.id = t.id SET {change}",
            literal::document(&json!(ids))
        );
        session.execute(&sql).await?;
    }
    Ok(())
}
