//! Writing outcomes.
//!
//! `message_delivered` is one plain statement. `settle` is one transaction in two round trips: the first opens it and
//! locks the partition rows; what the locked rows say decides which outcomes are written; the second carries every write
//! and the commit. What leaves a table is inserted into the next from what the DELETE returned, so payloads stay on the
//! server and nothing can be written twice.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row as SqlRow;
use uuid::Uuid;

use super::connection::{Connection, Sql};
use super::value::{RawText, micros, storable, xid};
use crate::message::{Key, MessageId, RelayId, Seq};
use crate::store::{
    Delivered, Dies, DueIn, MessageMove, Now, Remains, Settled, Settlement, State, StoreError, WaitingChange,
    WaitingOutcome, Waits, decode,
};

/// What a row keeps of its message through every table.
macro_rules! message_columns {
    ($row:literal) => {
        concat!(
            $row,
            ".seq, ",
            $row,
            ".partition_no, ",
            $row,
            ".topic, ",
            $row,
            ".ordering_key, ",
            $row,
            ".payload, ",
            $row,
            ".payload_bytes, ",
            $row,
            ".content_type, ",
            $row,
            ".headers, ",
            $row,
            ".deliver_at, ",
            $row,
            ".expires_at, ",
            $row,
            ".operation_id, ",
            $row,
            ".dedup_key, ",
            $row,
            ".version, ",
            $row,
            ".created_at"
        )
    };
}

macro_rules! insert_delivery {
    () => {
        "INSERT INTO outbox_deliveries (message_id, seq, partition_no, topic, ordering_key, payload, payload_bytes, \
         content_type, headers, deliver_at, expires_at, operation_id, dedup_key, version, created_at, \
         destination, state, blocked, suspect, in_order, life, attempts, due_at, first_attempt_at, redriven_from, \
         last_verdict, last_error, history) "
    };
}

macro_rules! insert_dead_letter {
    () => {
        "INSERT INTO outbox_dead_letters (message_id, seq, partition_no, topic, ordering_key, payload, payload_bytes, \
         content_type, headers, deliver_at, expires_at, operation_id, dedup_key, version, created_at, \
         destination, in_order, life, attempts, first_attempt_at, redriven_from, \
         last_verdict, last_error, history, reason, fingerprint, blocks_key, died_at) "
    };
}

/// Units that wait, as rows. Eleven parameters from the number given on.
macro_rules! waits_unit {
    ($($n:literal),*) => {
        concat!("unnest(", waits_unit!(@types $($n),*), ") AS u(row, destination, state, attempts, pause, in_order, \
                 age, last_verdict, last_error, history)")
    };
    (@types $a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal, $i:literal,
     $j:literal) => {
        concat!($a, "::bigint[], ", $b, "::text[], ", $c, "::text[], ", $d, "::integer[], ", $e, "::bigint[], ", $f,
                "::boolean[], ", $g, "::bigint[], ", $h, "::text[], ", $i, "::text[], ", $j, "::text[]")
    };
}

/// Units that die, as rows.
macro_rules! dies_unit {
    ($a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal, $i:literal,
     $j:literal) => {
        concat!(
            "unnest(",
            $a,
            "::bigint[], ",
            $b,
            "::text[], ",
            $c,
            "::text[], ",
            $d,
            "::integer[], ",
            $e,
            "::boolean[], ",
            $f,
            "::text[], ",
            $g,
            "::bigint[], ",
            $h,
            "::text[], ",
            $i,
            "::text[], ",
            $j,
            "::text[]) AS u(row, destination, reason, attempts, blocks_key, fingerprint, age, last_verdict, \
                 last_error, history)"
        )
    };
}

/// Parameters: seq[] (ascending), id[], routes version.
///
/// Rows are named by `= ANY`, and the rest of what is known of each is found by the place of its number in the same
/// ascending array. A join would leave the choice to the planner, and one that last saw the table empty reads all of it
/// for every batch.
pub(super) const MESSAGE_DELIVERED: Sql = Sql {
    name: "message_delivered",
    text: "-- message_delivered\n\
           WITH gone AS (DELETE FROM outbox_messages m \
               WHERE m.seq = ANY($1::bigint[]) AND m.id = ($2::uuid[])[width_bucket(m.seq, $1::bigint[])] \
               AND EXISTS (SELECT FROM outbox_meta WHERE routes_version = $3::bigint) RETURNING m.seq) \
           SELECT array_agg(gone.seq), pg_current_xact_id()::text FROM gone",
};

/// The ordering makes the server take the locks in that order.
const SETTLE_LOCK: Sql = Sql {
    name: "settle_lock",
    text: "-- settle_lock\n\
           SELECT partition_no, owner, epoch, pg_current_xact_id()::text FROM outbox_partitions \
           WHERE partition_no = ANY($1::smallint[]) ORDER BY partition_no FOR UPDATE",
};

/// Messages become waiting rows and dead letters, or nothing. Parameters: seq[] (ascending), id[], partition_no[]; ten arrays of
/// units that wait; ten of units that die; now.
///
/// In-order rows with a key are inserted blocked; `SETTLE_HEADS` lets the lowest go.
pub(super) const SETTLE_MOVE: Sql = Sql {
    name: "settle_move",
    text: concat!(
        "-- settle_move\n",
        "WITH gone AS (DELETE FROM outbox_messages m WHERE m.seq = ANY($1::bigint[]) ",
        "AND m.id = ($2::uuid[])[width_bucket(m.seq, $1::bigint[])] ",
        "AND m.partition_no = ($3::smallint[])[width_bucket(m.seq, $1::bigint[])] ",
        "RETURNING m.id, ",
        message_columns!("m"),
        "), ",
        "waits AS (",
        insert_delivery!(),
        "SELECT g.id, ",
        message_columns!("g"),
        ", u.destination, u.state, ",
        "u.in_order AND g.ordering_key IS NOT NULL, u.state = 'suspect', u.in_order, 0, u.attempts, ",
        "CASE WHEN u.pause IS NULL THEN coalesce(g.deliver_at, clock.now) ",
        "ELSE clock.now + u.pause * interval '1 microsecond' END, ",
        "clock.now - u.age * interval '1 microsecond', NULL, u.last_verdict, u.last_error, u.history ",
        "FROM ",
        waits_unit!("$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13"),
        " JOIN gone g ON g.seq = u.row CROSS JOIN (SELECT coalesce($24::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_delivery_per_destination DO NOTHING), ",
        "dies AS (",
        insert_dead_letter!(),
        "SELECT g.id, ",
        message_columns!("g"),
        ", u.destination, true, 0, ",
        "u.attempts, clock.now - u.age * interval '1 microsecond', NULL, u.last_verdict, u.last_error, u.history, ",
        "u.reason, u.fingerprint, u.blocks_key, clock.now ",
        "FROM ",
        dies_unit!("$14", "$15", "$16", "$17", "$18", "$19", "$20", "$21", "$22", "$23"),
        " JOIN gone g ON g.seq = u.row CROSS JOIN (SELECT coalesce($24::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_dead_letter_per_life DO NOTHING) ",
        "SELECT seq FROM gone"
    ),
};

/// Waiting rows that were delivered. Parameters: id[] (ascending), attempts[],
/// partition_no[].
pub(super) const SETTLE_DELIVERED: Sql = Sql {
    name: "settle_delivered",
    text: "-- settle_delivered\n\
           DELETE FROM outbox_deliveries d WHERE d.id = ANY($1::bigint[]) \
           AND d.attempts = ($2::integer[])[width_bucket(d.id, $1::bigint[])] \
           AND d.partition_no = ($3::smallint[])[width_bucket(d.id, $1::bigint[])] RETURNING d.id",
};

/// Waiting rows that wait again. Parameters: attempts_read[], partition_no[]; ten arrays of units; now.
///
/// A unit that says nothing about a verdict was not attempted: the last one stays.
pub(super) const SETTLE_WAIT: Sql = Sql {
    name: "settle_wait",
    text: concat!(
        "-- settle_wait\n",
        "UPDATE outbox_deliveries d SET state = u.state, suspect = (u.state = 'suspect'), starts = 0, ",
        "attempts = u.attempts, due_at = CASE WHEN u.pause IS NULL THEN coalesce(d.deliver_at, clock.now) ",
        "ELSE clock.now + u.pause * interval '1 microsecond' END, ",
        "first_attempt_at = coalesce(d.first_attempt_at, clock.now - u.age * interval '1 microsecond'), ",
        "last_verdict = coalesce(u.last_verdict, d.last_verdict), ",
        "last_error = CASE WHEN u.last_verdict IS NULL THEN coalesce(u.last_error, d.last_error) ELSE u.last_error END, ",
        "history = u.history ",
        "FROM unnest($1::integer[], $2::smallint[], $3::bigint[], $4::text[], $5::text[], $6::integer[], ",
        "$7::bigint[], $8::boolean[], $9::bigint[], $10::text[], $11::text[], $12::text[]) ",
        "AS u(attempts_read, partition_no, row, destination, state, attempts, pause, in_order, age, last_verdict, ",
        "last_error, history) ",
        "CROSS JOIN (SELECT coalesce($13::timestamptz, now()) AS now) AS clock ",
        "WHERE d.id = ANY($3::bigint[]) AND d.id = u.row AND d.attempts = u.attempts_read AND d.partition_no = u.partition_no RETURNING d.id"
    ),
};

/// Waiting rows that become dead letters (of their own destination), or, where they were not routed yet, one row for
/// each destination. Parameters: id[] (ascending), attempts_read[], partition_no[], routed[]; ten arrays of units that wait; ten of
/// units that die (destination null: the row's own); now.
pub(super) const SETTLE_LEAVE: Sql = Sql {
    name: "settle_leave",
    text: concat!(
        "-- settle_leave\n",
        "WITH gone AS (DELETE FROM outbox_deliveries d ",
        "WHERE d.id = ANY($1::bigint[]) ",
        "AND d.attempts = ($2::integer[])[width_bucket(d.id, $1::bigint[])] ",
        "AND d.partition_no = ($3::smallint[])[width_bucket(d.id, $1::bigint[])] ",
        "AND (d.destination = '' OR NOT ($4::boolean[])[width_bucket(d.id, $1::bigint[])]) ",
        "RETURNING d.id, d.message_id, ",
        message_columns!("d"),
        ", d.destination, d.in_order, d.life, d.due_at, ",
        "d.first_attempt_at, d.redriven_from), ",
        "waits AS (",
        insert_delivery!(),
        "SELECT g.message_id, ",
        message_columns!("g"),
        ", u.destination, u.state, ",
        "u.in_order AND g.ordering_key IS NOT NULL, u.state = 'suspect', u.in_order, g.life, 0, g.due_at, ",
        "g.first_attempt_at, g.redriven_from, u.last_verdict, u.last_error, u.history ",
        "FROM ",
        waits_unit!("$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13", "$14"),
        " JOIN gone g ON g.id = u.row ",
        "ON CONFLICT ON CONSTRAINT one_delivery_per_destination DO NOTHING), ",
        "dies AS (",
        insert_dead_letter!(),
        "SELECT g.message_id, ",
        message_columns!("g"),
        ", coalesce(u.destination, g.destination), g.in_order, g.life, u.attempts, ",
        "coalesce(g.first_attempt_at, clock.now - u.age * interval '1 microsecond'), g.redriven_from, ",
        "u.last_verdict, u.last_error, u.history, u.reason, u.fingerprint, u.blocks_key, clock.now ",
        "FROM ",
        dies_unit!("$15", "$16", "$17", "$18", "$19", "$20", "$21", "$22", "$23", "$24"),
        " JOIN gone g ON g.id = u.row CROSS JOIN (SELECT coalesce($25::timestamptz, now()) AS now) AS clock ",
        "ON CONFLICT ON CONSTRAINT one_dead_letter_per_life DO NOTHING) ",
        "SELECT id FROM gone"
    ),
};

/// Leaves exactly the lowest in-order row of each key unblocked, none while a blocking dead letter of it exists.
/// Parameters: destination[], ordering_key[], window.
///
/// Before the transaction the lowest row was the only unblocked one, so the row to block is among the lowest as many as
/// the transaction inserted. Looking no further keeps a key with many followers cheap; `partition_repair` looks at all.
pub(super) const SETTLE_HEADS: Sql = Sql {
    name: "settle_heads",
    text: "-- settle_heads\n\
           UPDATE outbox_deliveries d SET blocked = NOT d.blocked, \
               state = CASE WHEN d.blocked AND d.state = 'blocked' THEN 'retry' ELSE d.state END \
           WHERE d.id = ANY(ARRAY(SELECT ranked.id \
               FROM (SELECT DISTINCT t.destination, t.ordering_key FROM unnest($1::text[], $2::text[]) \
                     AS t(destination, ordering_key)) AS touched \
               CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM outbox_dead_letters l \
                   WHERE l.destination = touched.destination AND l.blocks_key \
                   AND l.ordering_key = touched.ordering_key OFFSET 0) AS stopped) AS letters \
               CROSS JOIN LATERAL (SELECT lowest.id, lowest.blocked, \
                       row_number() OVER (ORDER BY lowest.seq, lowest.id) = 1 AND NOT letters.stopped AS is_head \
                   FROM (SELECT r.id, r.seq, r.blocked FROM outbox_deliveries r \
                         WHERE r.destination = touched.destination AND r.ordering_key = touched.ordering_key \
                         AND r.in_order ORDER BY r.seq LIMIT $3::bigint) AS lowest) AS ranked \
               WHERE ranked.blocked = ranked.is_head))",
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
    let [step_move, step_delivered, step_wait, step_leave, step_heads] = [
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
    let ((), locked) =
        tokio::try_join!(biased; connection.begin(), async { connection.query(&lock, &[&partitions]).await })?;
    let mark = match locked.first() {
        Some(row) => Some(xid(row.get(3))?),
        None => None,
    };
    let owned = owned(relay, &locked, &batch.epochs);
    let mut moves: Vec<&MessageMove> = batch.moves.iter().filter(|step| owned.contains(&step.partition_no)).collect();
    moves.sort_by_key(|step| step.seq);
    let moves = Moves::new(&moves);
    let mut waiting: Vec<&WaitingOutcome> =
        batch.waiting.iter().filter(|step| owned.contains(&step.partition_no)).collect();
    waiting.sort_by_key(|step| step.id);
    let waiting = Outcomes::new(&waiting);
    let touched = Touched::new(&moves, &waiting);

    let (moved, delivered, waits, left, _, ()) = tokio::try_join!(
        biased;
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
                false => connection.query(&step_delivered, &[&rows.id, &rows.attempts, &rows.partition_no]).await,
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
        mark,
    })
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
}

impl RowColumns {
    fn push(&mut self, outcome: &WaitingOutcome) {
        self.id.push(outcome.id);
        self.attempts.push(count(outcome.attempts_read));
        self.partition_no.push(i16::from(outcome.partition_no));
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

    fn again_params<'a>(&'a self, now: &'a Now) -> Params<'a, 13> {
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
        ]
    }

    fn left_params<'a>(&'a self, now: &'a Now) -> Params<'a, 25> {
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
