//! Writing outcomes.
//!
//! `message_delivered` is one plain statement. `settle` is one transaction in two round trips: the first opens it and
//! locks the partition rows; what the locked rows say decides which outcomes are written; the second carries every write
//! and the commit. Where a row is added that a key goes by, the partition's row gets a new version. What leaves a table is
//! inserted into the next from what the DELETE returned, so payloads stay on the server and nothing can be written twice.

mod statements;

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio_postgres::Row as SqlRow;
use uuid::Uuid;

pub(super) use self::statements::{
    DELIVERY_START, MESSAGE_DELIVERED, SETTLE_DELIVERED, SETTLE_HEADS, SETTLE_LEAVE, SETTLE_MOVE, SETTLE_VERSION,
    SETTLE_WAIT,
};
use self::statements::{SETTLE_LOCK, SETTLE_ROUTES};
use super::connection::Connection;
use super::value::{RawText, micros, storable, xid};
use crate::message::{Key, MessageId, RelayId, Seq};
use crate::store::{
    Delivered, Dies, DueIn, MessageMove, Now, Remains, Settled, Settlement, Start, StartBatch, State, StoreError,
    WaitingChange, WaitingOutcome, Waits, decode,
};

pub(super) async fn message_delivered(
    connection: &mut Connection,
    messages: &[(Seq, MessageId)],
    routes_version: i64,
) -> Result<Delivered, StoreError> {
    let mut messages = messages.to_vec();
    messages.sort_unstable();
    let seqs: Vec<Seq> = messages.iter().map(|(seq, _)| *seq).collect();
    let ids: Vec<Uuid> = messages.iter().map(|(_, id)| *id).collect();
    let rows = connection.run(&MESSAGE_DELIVERED, &[&seqs, &ids, &routes_version]).await?;
    let mark = xid(rows[0].get(1))?;
    Ok(Delivered { deleted: rows[0].get::<_, Option<Vec<Seq>>>(0).unwrap_or_default(), mark: Some(mark) })
}

pub(super) async fn settle(
    connection: &mut Connection,
    relay: RelayId,
    batch: &Settlement,
    now: Now,
) -> Result<Settled, StoreError> {
    let lock = connection.prepare(&SETTLE_LOCK).await?;
    let routes = connection.prepare(&SETTLE_ROUTES).await?;
    let [step_version, step_move, step_delivered, step_wait, step_leave, step_heads] = [
        connection.prepare(&SETTLE_VERSION).await?,
        connection.prepare(&SETTLE_MOVE).await?,
        connection.prepare(&SETTLE_DELIVERED).await?,
        connection.prepare(&SETTLE_WAIT).await?,
        connection.prepare(&SETTLE_LEAVE).await?,
        connection.prepare(&SETTLE_HEADS).await?,
    ];
    let connection = &*connection;

    let mut partitions: Vec<i16> = batch.moves.iter().map(|step| i16::from(step.partition_no)).collect();
    partitions.extend(batch.waiting.iter().map(|step| i16::from(step.partition_no)));
    partitions.sort_unstable();
    partitions.dedup();
    let ((), locked, routes) = tokio::try_join!(
        biased;
        connection.begin(),
        async { connection.query(&lock, &[&partitions]).await },
        async {
            match batch.routes_version {
                Some(_) => connection.query(&routes, &[]).await,
                None => Ok(Vec::new()),
            }
        },
    )?;
    let mark = match locked.first() {
        Some(row) => Some(xid(row.get(3))?),
        None => None,
    };
    if batch.routes_version != routes.first().map(|row| row.get(0)) {
        connection.commit().await?;
        return Ok(Settled { routes_changed: true, mark, ..Settled::default() });
    }
    let owned = owned(relay, &locked, &batch.epochs);
    let mut moves: Vec<&MessageMove> = batch.moves.iter().filter(|step| owned.contains(&step.partition_no)).collect();
    moves.sort_by_key(|step| step.seq);
    let mut waiting: Vec<&WaitingOutcome> =
        batch.waiting.iter().filter(|step| owned.contains(&step.partition_no)).collect();
    waiting.sort_by_key(|step| step.id);
    let versions = partitions_with_new_rows(&moves, &waiting);
    let (moves, waiting) = (Moves::new(&moves), Outcomes::new(&waiting));
    let touched = Touched::new(&moves, &waiting);

    let (_, moved, delivered, waits, left, _, ()) = tokio::try_join!(
        biased;
        async {
            match versions.is_empty() {
                true => Ok(Vec::new()),
                false => connection.query(&step_version, &[&versions]).await,
            }
        },
        async {
            match moves.seq.is_empty() {
                true => Ok(Vec::new()),
                false => connection.query(&step_move, &moves.params(&now)).await,
            }
        },
        async {
            let rows = &waiting.delivered;
            match rows.id.is_empty() {
                true => Ok(Vec::new()),
                false => connection.query(&step_delivered, &[&rows.id, &rows.attempts, &rows.partition_no, &rows.message_id]).await,
            }
        },
        async {
            match waiting.again.id.is_empty() {
                true => Ok(Vec::new()),
                false => connection.query(&step_wait, &waiting.again_params(&now)).await,
            }
        },
        async {
            match waiting.left.id.is_empty() {
                true => Ok(Vec::new()),
                false => connection.query(&step_leave, &waiting.left_params(&now)).await,
            }
        },
        async {
            match touched.destination.is_empty() {
                true => Ok(Vec::new()),
                false => {
                    let window = HEADS_WINDOW + touched.destination.len() as i64;
                    connection.query(&step_heads, &[&touched.destination, &touched.ordering_key, &window]).await
                }
            }
        },
        connection.commit(),
    )?;

    let written = |rows: &[SqlRow]| rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>();
    let moved: HashSet<Seq> = written(&moved).into_iter().collect();
    let settled: HashSet<i64> = [written(&delivered), written(&waits), written(&left)].into_iter().flatten().collect();
    Ok(Settled {
        refused_messages: batch.moves.iter().map(|step| step.seq).filter(|seq| !moved.contains(seq)).collect(),
        refused_waiting: batch.waiting.iter().map(|step| step.id).filter(|id| !settled.contains(id)).collect(),
        routes_changed: false,
        stale: count_stale(batch, &owned),
        mark,
    })
}

/// Counts rows that are about to be attempted.
pub(super) async fn delivery_start(
    connection: &mut Connection,
    relay: RelayId,
    batch: &StartBatch,
) -> Result<Vec<i64>, StoreError> {
    let lock = connection.prepare(&SETTLE_LOCK).await?;
    let start = connection.prepare(&DELIVERY_START).await?;
    let connection = &*connection;
    let mut partitions: Vec<i16> = batch.rows.iter().map(|row| i16::from(row.partition_no)).collect();
    partitions.sort_unstable();
    partitions.dedup();
    let ((), locked) =
        tokio::try_join!(biased; connection.begin_light(), async { connection.query(&lock, &[&partitions]).await })?;
    let owned = owned(relay, &locked, &batch.epochs);
    let mut rows: Vec<Start> = batch.rows.iter().filter(|row| owned.contains(&row.partition_no)).copied().collect();
    rows.sort_unstable_by_key(|row| row.id);
    let mut names = RowColumns::default();
    for row in rows {
        names.id.push(row.id);
        names.attempts.push(count(row.attempts_read));
        names.partition_no.push(i16::from(row.partition_no));
        names.message_id.push(row.message_id);
    }
    let (counted, ()) = tokio::try_join!(
        biased;
        async {
            match names.id.is_empty() {
                true => Ok(Vec::new()),
                false => {
                    connection
                        .query(&start, &[&names.id, &names.attempts, &names.partition_no, &names.message_id, &relay])
                        .await
                },
            }
        },
        connection.commit(),
    )?;
    Ok(counted.iter().map(|row| row.get(0)).collect())
}

/// Outcomes of partitions that are not ours.
fn count_stale(batch: &Settlement, owned: &HashSet<u8>) -> usize {
    let moves = batch.moves.iter().map(|step| step.partition_no);
    let partitions = moves.chain(batch.waiting.iter().map(|step| step.partition_no));
    partitions.filter(|partition_no| !owned.contains(partition_no)).count()
}

/// The partitions in which a key gets a row that stands in its order, or a dead letter that blocks it.
fn partitions_with_new_rows(moves: &[&MessageMove], waiting: &[&WaitingOutcome]) -> Vec<i16> {
    let orders = |remains: &Remains| match remains {
        Remains::Waits(waits) => waits.in_order,
        Remains::Dies(dies) => dies.blocks_key,
    };
    let moved =
        moves.iter().filter(|step| step.ordering_key.is_some() && step.units.iter().any(|unit| orders(&unit.remains)));
    let waited = waiting.iter().filter(|step| {
        step.ordering_key.is_some()
            && match &step.change {
                WaitingChange::Delivered | WaitingChange::Waits(_) => false,
                WaitingChange::Dies(dies) => dies.blocks_key,
                WaitingChange::Routed(units) => units.iter().any(|unit| orders(&unit.remains)),
            }
    });
    let partitions = moved.map(|step| step.partition_no).chain(waited.map(|step| step.partition_no));
    partitions.map(i16::from).collect::<BTreeSet<_>>().into_iter().collect()
}

/// How many rows of a key are looked at beyond those that may have been inserted.
const HEADS_WINDOW: i64 = 100;

/// The partitions that the locked rows give to `relay` under the epochs it believes in.
fn owned(relay: RelayId, locked: &[SqlRow], epochs: &[(u8, i64)]) -> HashSet<u8> {
    let believed: HashMap<u8, i64> = epochs.iter().copied().collect();
    let mut owned = HashSet::new();
    for row in locked {
        let Ok(partition_no) = u8::try_from(row.get::<_, i16>(0)) else { continue };
        let owner: Option<Uuid> = row.get(1);
        let epoch: i64 = row.get(2);
        if owner == Some(relay) && believed.get(&partition_no) == Some(&epoch) {
            owned.insert(partition_no);
        }
    }
    owned
}

/// Columns of units that wait.
#[derive(Default)]
struct WaitsColumns {
    row: Vec<i64>,
    destination: Vec<String>,
    state: Vec<&'static str>,
    attempts: Vec<i32>,
    pause: Vec<Option<i64>>,
    in_order: Vec<bool>,
    age: Vec<Option<i64>>,
    last_verdict: Vec<Option<&'static str>>,
    last_error: Vec<Option<String>>,
    history: Vec<String>,
}

impl WaitsColumns {
    fn push(&mut self, row: i64, destination: &str, waits: &Waits) {
        self.row.push(row);
        self.destination.push(storable(destination));
        self.state.push(State::as_str(waits.state));
        self.attempts.push(count(waits.attempts));
        self.pause.push(match waits.due {
            DueIn::Pause(pause) => Some(micros(pause)),
            DueIn::DeliverAt => None,
        });
        self.in_order.push(waits.in_order);
        self.age.push(waits.first_attempt_age.map(micros));
        self.last_verdict.push(waits.last_verdict);
        self.last_error.push(waits.last_error.as_deref().map(storable));
        self.history.push(decode::history_text(&waits.history));
    }
}

/// Columns of units that die.
#[derive(Default)]
struct DiesColumns {
    row: Vec<i64>,
    destination: Vec<Option<String>>,
    reason: Vec<&'static str>,
    attempts: Vec<i32>,
    blocks_key: Vec<bool>,
    fingerprint: Vec<String>,
    age: Vec<Option<i64>>,
    last_verdict: Vec<Option<&'static str>>,
    last_error: Vec<Option<String>>,
    history: Vec<String>,
}

impl DiesColumns {
    fn push(&mut self, row: i64, destination: Option<&str>, dies: &Dies) {
        self.row.push(row);
        self.destination.push(destination.map(storable));
        self.reason.push(dies.reason.as_str());
        self.attempts.push(count(dies.attempts));
        self.blocks_key.push(dies.blocks_key);
        self.fingerprint.push(storable(&dies.fingerprint));
        self.age.push(dies.first_attempt_age.map(micros));
        self.last_verdict.push(dies.last_verdict);
        self.last_error.push(dies.last_error.as_deref().map(storable));
        self.history.push(decode::history_text(&dies.history));
    }
}

/// Columns that name rows.
#[derive(Default)]
struct RowColumns {
    id: Vec<i64>,
    attempts: Vec<i32>,
    partition_no: Vec<i16>,
    message_id: Vec<Uuid>,
}

impl RowColumns {
    fn push(&mut self, outcome: &WaitingOutcome) {
        self.id.push(outcome.id);
        self.attempts.push(count(outcome.attempts_read));
        self.partition_no.push(i16::from(outcome.partition_no));
        self.message_id.push(outcome.message_id);
    }
}

type Params<'a, const N: usize> = [&'a (dyn tokio_postgres::types::ToSql + Sync); N];

/// The parameters of `SETTLE_MOVE`.
#[derive(Default)]
struct Moves {
    seq: Vec<Seq>,
    id: Vec<Uuid>,
    partition_no: Vec<i16>,
    waits: WaitsColumns,
    dies: DiesColumns,
    keys: Vec<(String, Key)>,
}

impl Moves {
    fn new(moves: &[&MessageMove]) -> Moves {
        let mut columns = Moves::default();
        for step in moves {
            columns.seq.push(step.seq);
            columns.id.push(step.id);
            columns.partition_no.push(i16::from(step.partition_no));
            for unit in &step.units {
                match &unit.remains {
                    Remains::Waits(waits) => columns.waits.push(step.seq, &unit.destination, waits),
                    Remains::Dies(dies) => columns.dies.push(step.seq, Some(&unit.destination), dies),
                }
                if let Some(key) = &step.ordering_key {
                    columns.keys.push((unit.destination.clone(), key.clone()));
                }
            }
        }
        columns
    }

    fn params<'a>(&'a self, now: &'a Now) -> Params<'a, 24> {
        let (w, d) = (&self.waits, &self.dies);
        [
            &self.seq,
            &self.id,
            &self.partition_no,
            &w.row,
            &w.destination,
            &w.state,
            &w.attempts,
            &w.pause,
            &w.in_order,
            &w.age,
            &w.last_verdict,
            &w.last_error,
            &w.history,
            &d.row,
            &d.destination,
            &d.reason,
            &d.attempts,
            &d.blocks_key,
            &d.fingerprint,
            &d.age,
            &d.last_verdict,
            &d.last_error,
            &d.history,
            now,
        ]
    }
}

/// The parameters of the statements about waiting rows.
#[derive(Default)]
struct Outcomes {
    delivered: RowColumns,
    again: RowColumns,
    again_waits: WaitsColumns,
    left: RowColumns,
    left_routed: Vec<bool>,
    left_waits: WaitsColumns,
    left_dies: DiesColumns,
    keys: Vec<(String, Key)>,
}

impl Outcomes {
    fn new(outcomes: &[&WaitingOutcome]) -> Outcomes {
        let mut columns = Outcomes::default();
        for outcome in outcomes {
            match &outcome.change {
                WaitingChange::Delivered => columns.delivered.push(outcome),
                WaitingChange::Waits(waits) => {
                    columns.again.push(outcome);
                    columns.again_waits.push(outcome.id, "", waits);
                }
                WaitingChange::Dies(dies) => {
                    columns.left.push(outcome);
                    columns.left_routed.push(false);
                    columns.left_dies.push(outcome.id, None, dies);
                }
                // A row routed to nowhere would vanish without a trace: it is refused.
                WaitingChange::Routed(units) if units.is_empty() => continue,
                WaitingChange::Routed(units) => {
                    columns.left.push(outcome);
                    columns.left_routed.push(true);
                    for unit in units {
                        match &unit.remains {
                            Remains::Waits(waits) => columns.left_waits.push(outcome.id, &unit.destination, waits),
                            Remains::Dies(dies) => columns.left_dies.push(outcome.id, Some(&unit.destination), dies),
                        }
                        if let Some(key) = &outcome.ordering_key {
                            columns.keys.push((unit.destination.clone(), key.clone()));
                        }
                    }
                }
            }
            if let Some(key) = &outcome.ordering_key {
                columns.keys.push((outcome.destination.clone(), key.clone()));
            }
        }
        columns
    }

    fn again_params<'a>(&'a self, now: &'a Now) -> Params<'a, 14> {
        let (r, w) = (&self.again, &self.again_waits);
        [
            &r.attempts,
            &r.partition_no,
            &w.row,
            &w.destination,
            &w.state,
            &w.attempts,
            &w.pause,
            &w.in_order,
            &w.age,
            &w.last_verdict,
            &w.last_error,
            &w.history,
            now,
            &r.message_id,
        ]
    }

    fn left_params<'a>(&'a self, now: &'a Now) -> Params<'a, 26> {
        let (r, w, d) = (&self.left, &self.left_waits, &self.left_dies);
        [
            &r.id,
            &r.attempts,
            &r.partition_no,
            &self.left_routed,
            &w.row,
            &w.destination,
            &w.state,
            &w.attempts,
            &w.pause,
            &w.in_order,
            &w.age,
            &w.last_verdict,
            &w.last_error,
            &w.history,
            &d.row,
            &d.destination,
            &d.reason,
            &d.attempts,
            &d.blocks_key,
            &d.fingerprint,
            &d.age,
            &d.last_verdict,
            &d.last_error,
            &d.history,
            now,
            &r.message_id,
        ]
    }
}

/// The keys whose head may be another one now.
#[derive(Default)]
struct Touched<'a> {
    destination: Vec<&'a str>,
    ordering_key: Vec<RawText<'a>>,
}

impl<'a> Touched<'a> {
    fn new(moves: &'a Moves, waiting: &'a Outcomes) -> Touched<'a> {
        let mut touched = Touched::default();
        for (destination, key) in moves.keys.iter().chain(&waiting.keys) {
            touched.destination.push(destination);
            touched.ordering_key.push(RawText(key));
        }
        touched
    }
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
