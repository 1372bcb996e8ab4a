//! The statements that carry rows from one table to another.
//!
//! What is to become of each row is sent as a JSON list; the rows themselves never leave the server. Text for people is
//! sent in hexadecimal digits: the two servers do not agree on every escape of JSON.

use serde_json::{Value, json};

use super::literal::{self, hex, micros};
use crate::store::{Dies, DueIn, Waits, decode};

/// Where rows come from, and how what they say of themselves is named there.
pub(super) struct Source {
    table: &'static str,
    join: &'static str,
    message_id: &'static str,
    in_order: &'static str,
    attempts: &'static str,
    life: &'static str,
    redriven_from: &'static str,
    first_attempt_at: &'static str,
    due_at: &'static str,
}

/// Messages, found by their number.
pub(super) const FROM_MESSAGE: Source = Source {
    table: "outbox_messages",
    join: "s.seq = t.n",
    message_id: "s.id",
    in_order: "true",
    attempts: "t.attempts",
    life: "0",
    redriven_from: "NULL",
    first_attempt_at: "NULL",
    due_at: "'9999-12-31'",
};

/// Waiting rows, found by their id. One that was not routed yet was never attempted, and what becomes of it is due
/// no later than it was.
pub(super) const FROM_DELIVERY: Source = Source {
    table: "outbox_deliveries",
    join: "s.id = t.n",
    message_id: "s.message_id",
    in_order: "s.in_order",
    attempts: "0",
    life: "s.life",
    redriven_from: "s.redriven_from",
    first_attempt_at: "s.first_attempt_at",
    due_at: "s.due_at",
};

/// What a row says of its message and what stays the same wherever it goes.
const SAME: &str = "seq, partition_no, topic, ordering_key, payload, content_type, headers, deliver_at, expires_at, \
     operation_id, dedup_key, version, created_at";

/// The list as a table; both kinds of rows have these members.
const LIST: &str = "'$[*]' COLUMNS (n BIGINT PATH '$.n', destination VARCHAR(2048) PATH '$.destination', \
     attempts INT PATH '$.attempts', age BIGINT PATH '$.age', verdict VARCHAR(64) PATH '$.verdict', \
     error LONGTEXT PATH '$.error', history LONGTEXT PATH '$.history', state VARCHAR(64) PATH '$.state', \
     pause BIGINT PATH '$.pause', in_order INT PATH '$.in_order', reason VARCHAR(64) PATH '$.reason', \
     fingerprint LONGTEXT PATH '$.fingerprint', blocks_key INT PATH '$.blocks_key')) AS t";

/// Inserts waiting rows. A row with a key that is in order is inserted blocked: the statement that ends the transaction
/// knows whether it is the head. A unit that waits already is left as it is.
pub(super) fn insert_waiting(list: &str, source: &Source, now: &str) -> String {
    let Source { table, join, message_id, attempts, life, redriven_from, due_at, .. } = source;
    let same = qualified();
    let first_attempt_at = first_attempt_at(source, now);
    let (destination, error, history) = (unhex("destination"), unhex("error"), unhex("history"));
    format!(
        "-- delivery_insert\n\
         INSERT INTO outbox_deliveries (message_id, {SAME}, destination, state, blocked, suspect, in_order, life, \
             attempts, due_at, first_attempt_at, redriven_from, last_verdict, last_error, history) \
         SELECT {message_id}, {same}, {destination}, t.state, t.in_order AND s.ordering_key IS NOT NULL, \
             t.state = 'suspect', t.in_order, {life}, {attempts}, \
             least({due_at}, coalesce({now} + INTERVAL t.pause MICROSECOND, s.deliver_at, {now})), \
             {first_attempt_at}, {redriven_from}, t.verdict, {error}, {history} \
         FROM JSON_TABLE({list}, {LIST} STRAIGHT_JOIN {table} AS s FORCE INDEX (PRIMARY) ON {join} \
         ON DUPLICATE KEY UPDATE life = outbox_deliveries.life"
    )
}

/// Inserts dead letters.
pub(super) fn insert_dead(list: &str, source: &Source, now: &str) -> String {
    let Source { table, join, message_id, in_order, life, redriven_from, .. } = source;
    let same = qualified();
    let first_attempt_at = first_attempt_at(source, now);
    let (destination, error, history) = (unhex("destination"), unhex("error"), unhex("history"));
    // Cut to what the column holds: a strict server would refuse the whole batch for one long text.
    let fingerprint = format!("left({}, 255)", unhex("fingerprint"));
    format!(
        "-- dead_letter_insert\n\
         INSERT INTO outbox_dead_letters (message_id, {SAME}, destination, in_order, life, attempts, \
             first_attempt_at, redriven_from, last_verdict, last_error, history, reason, fingerprint, blocks_key, \
             died_at) \
         SELECT {message_id}, {same}, {destination}, {in_order}, {life}, t.attempts, {first_attempt_at}, \
             {redriven_from}, t.verdict, {error}, {history}, t.reason, {fingerprint}, t.blocks_key, {now} \
         FROM JSON_TABLE({list}, {LIST} STRAIGHT_JOIN {table} AS s FORCE INDEX (PRIMARY) ON {join} \
         ON DUPLICATE KEY UPDATE life = outbox_dead_letters.life"
    )
}

/// Lets waiting rows wait again. Without a verdict the last one stays.
pub(super) fn update_waiting(list: &str, now: &str) -> String {
    let first_attempt_at = first_attempt_at(&FROM_DELIVERY, now);
    let (error, history) = (unhex("error"), unhex("history"));
    format!(
        "-- delivery_update\n\
         UPDATE JSON_TABLE({list}, {LIST} STRAIGHT_JOIN outbox_deliveries AS s FORCE INDEX (PRIMARY) ON s.id = t.n \
         SET s.state = t.state, s.suspect = t.state = 'suspect', s.attempted_by = NULL, s.deaths = 0, s.attempts = t.attempts, \
             s.due_at = coalesce({now} + INTERVAL t.pause MICROSECOND, s.deliver_at, {now}), \
             s.first_attempt_at = {first_attempt_at}, s.last_verdict = coalesce(t.verdict, s.last_verdict), \
             s.last_error = IF(t.verdict IS NULL, coalesce({error}, s.last_error), {error}), \
             s.history = {history}"
    )
}

fn qualified() -> String {
    SAME.split(", ").map(|column| format!("s.{}", column.trim())).collect::<Vec<_>>().join(", ")
}

fn unhex(member: &str) -> String {
    format!("convert(unhex(t.{member}) USING utf8mb4)")
}

fn first_attempt_at(source: &Source, now: &str) -> String {
    format!("coalesce({}, {now} - INTERVAL t.age MICROSECOND)", source.first_attempt_at)
}

/// A row that waits, as a member of the list. `n` finds where it comes from.
pub(super) fn waits_json(n: i64, destination: &str, waits: &Waits) -> Value {
    json!({
        "n": n,
        "destination": hex(destination),
        "state": waits.state.as_str(),
        "attempts": waits.attempts,
        "pause": match waits.due { DueIn::Pause(pause) => Some(micros(pause)), DueIn::DeliverAt => None },
        "in_order": u8::from(waits.in_order),
        "age": waits.first_attempt_age.map(micros),
        "verdict": waits.last_verdict,
        "error": waits.last_error.as_deref().map(hex),
        "history": hex(decode::history_text(&waits.history)),
    })
}

/// A dead letter, as a member of the list.
pub(super) fn dies_json(n: i64, destination: &str, dies: &Dies) -> Value {
    json!({
        "n": n,
        "destination": hex(destination),
        "reason": dies.reason.as_str(),
        "attempts": dies.attempts,
        "blocks_key": u8::from(dies.blocks_key),
        "fingerprint": hex(&dies.fingerprint),
        "age": dies.first_attempt_age.map(micros),
        "verdict": dies.last_verdict,
        "error": dies.last_error.as_deref().map(hex),
        "history": hex(decode::history_text(&dies.history)),
    })
}

/// Cuts a list into documents that are well below the smallest `max_allowed_packet` in use.
pub(super) fn documents(rows: Vec<Value>) -> Vec<String> {
    const BYTES_MAX: usize = 1 << 20;
    let mut lists: Vec<Vec<Value>> = Vec::new();
    let mut room = 0;
    for row in rows {
        let bytes = row.to_string().len();
        match lists.last_mut() {
            Some(list) if bytes <= room => list.push(row),
            _ => {
                lists.push(vec![row]);
                room = BYTES_MAX;
            }
        }
        room = room.saturating_sub(bytes);
    }
    lists.into_iter().map(|list| literal::document(&Value::Array(list))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_nothing_is_left_out() {
        let row = json!("x".repeat(400_000));
        assert!(documents(Vec::new()).is_empty());
        assert_eq!(documents(vec![row.clone(); 2]).len(), 1);
        assert_eq!(documents(vec![row.clone(); 5]).len(), 3);
        let wide = json!("x".repeat(3 << 20));
        let cut = documents(vec![wide.clone(), row, wide]);
        assert_eq!(cut.len(), 3);
        assert!(cut.iter().map(String::len).sum::<usize>() > (6 << 20) + 400_000);
    }
}
