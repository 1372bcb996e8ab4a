//! The statements about dead letters, where the three databases differ.

use crate::by_hand::sql::{build, flag, hex, locked_rows, micros, now, payload, text, uuid};
use crate::connection::Database;

/// The row of a list.
pub(super) fn letter(database: Database) -> String {
    build(database, &letter_fields(database))
}

/// The row with everything.
pub(super) fn detail(database: Database) -> String {
    let mut fields = letter_fields(database);
    fields.push(("payload", payload(database).to_owned()));
    fields.extend(["headers", "history"].map(|column| (column, hex(database, column))));
    build(database, &fields)
}

/// The row of a group.
pub(super) fn group(database: Database) -> String {
    build(
        database,
        &[
            ("fingerprint", hex(database, "fingerprint")),
            ("count", "count(*)".to_owned()),
            ("first_died_at", micros(database, "min(died_at)")),
            ("last_died_at", micros(database, "max(died_at)")),
            ("example", "max(id)".to_owned()),
        ],
    )
}

/// What a change has to know of a letter.
pub(crate) fn locked(database: Database) -> String {
    build(
        database,
        &[
            ("id", "id".to_owned()),
            ("message_id", uuid(database, "message_id")),
            ("destination", "destination".to_owned()),
            ("blocks_key", flag("blocks_key")),
            ("has_key", flag("ordering_key IS NOT NULL")),
        ],
    )
}

/// The members of a list's row.
pub(crate) fn letter_fields(database: Database) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("message_id", uuid(database, "message_id")),
        ("ordering_key", hex(database, "ordering_key")),
        ("content_type", hex(database, "content_type")),
        ("fingerprint", hex(database, "fingerprint")),
        ("last_error", hex(database, "last_error")),
        ("blocks_key", flag("blocks_key")),
    ];
    for column in ["created_at", "first_attempt_at", "died_at"] {
        fields.push((column, micros(database, column)));
    }
    for column in ["id", "seq", "destination", "topic", "reason", "attempts", "life", "redriven_from", "last_verdict"] {
        fields.push((column, column.to_owned()));
    }
    fields
}

/// What stands before and after the bytes a payload must contain.
pub(crate) fn payload_contains(database: Database) -> [String; 2] {
    match database {
        Database::Postgres => [
            "position(convert_to(".to_owned(),
            ", 'UTF8') IN coalesce(payload_bytes, convert_to(payload, 'UTF8'))) > 0".to_owned(),
        ],
        Database::Mysql => ["locate(CAST(".to_owned(), " AS BINARY), payload) > 0".to_owned()],
        Database::Sqlite => ["instr(CAST(payload AS BLOB), CAST(".to_owned(), " AS BLOB)) > 0".to_owned()],
    }
}

/// Makes new versions of the letters' partition rows, which are locked, on PostgreSQL: whoever cancels in an older snapshot
/// does not see what a redrive adds, and must not be given the lock. A settle does the same.
pub(super) fn partition_version(ids: &str) -> String {
    format!(
        "-- partition_version\nUPDATE outbox_partitions SET partition_no = partition_no \
         WHERE partition_no IN (SELECT partition_no FROM outbox_dead_letters WHERE id IN ({ids}))"
    )
}

/// Turns letters into waiting deliveries, without removing them.
pub(super) fn redrive(database: Database, ids: &str) -> String {
    let payload = match database {
        Database::Postgres => "payload, payload_bytes",
        Database::Mysql | Database::Sqlite => "payload",
    };
    let now = now(database);
    // What was scheduled is not early because it was given up before its time.
    let due_at = format!("CASE WHEN deliver_at > {now} THEN deliver_at ELSE {now} END");
    // Only a letter that kept its key blocked still has its place in the order. It starts blocked; which delivery of the
    // key goes first is decided once, for all of them.
    let in_order = "(blocks_key AND ordering_key IS NOT NULL)";
    format!(
        "-- dead_letter_redrive\n\
         INSERT INTO outbox_deliveries (message_id, seq, partition_no, topic, ordering_key, {payload}, content_type, \
         headers, deliver_at, expires_at, operation_id, dedup_key, version, created_at, destination, state, blocked, \
         in_order, life, attempts, due_at, redriven_from, last_verdict, last_error, history) \
         SELECT message_id, seq, partition_no, topic, ordering_key, {payload}, content_type, headers, deliver_at, \
         CASE WHEN expires_at > {now} THEN expires_at END, operation_id, dedup_key, version, created_at, destination, \
         'retry', {in_order}, {in_order}, life + 1, 0, {due_at}, id, last_verdict, last_error, history \
         FROM outbox_dead_letters WHERE id IN ({ids}) ORDER BY seq, id"
    )
}

/// The first in-order delivery of the key a letter blocks.
pub(super) fn key_first(database: Database, letter: i64) -> String {
    let same_key = same_key(database, letter, "d.in_order");
    format!("-- key_first\n{same_key} ORDER BY d.seq, d.id LIMIT 1{}", locked_rows(database, "d"))
}

/// The in-order deliveries of the key a letter blocks that are not blocked; one at most, unless something went wrong.
pub(super) fn key_unblocked(database: Database, letter: i64) -> String {
    let same_key = same_key(database, letter, "d.in_order AND NOT d.blocked");
    format!("-- key_unblocked\n{same_key}{}", locked_rows(database, "d"))
}

/// A letter that blocks the same key as `letter` and is not among those that are `going`.
pub(super) fn key_blockers(database: Database, letter: i64, going: &str) -> String {
    format!(
        "-- key_blockers\nSELECT {} FROM outbox_dead_letters d JOIN outbox_dead_letters l \
         ON d.destination = l.destination AND d.ordering_key = l.ordering_key \
         WHERE l.id = {letter} AND d.blocks_key AND d.id NOT IN ({going}) LIMIT 1{}",
        text(database, "d.id"),
        locked_rows(database, "d"),
    )
}

fn same_key(database: Database, letter: i64, which: &str) -> String {
    format!(
        "SELECT {} FROM outbox_deliveries d JOIN outbox_dead_letters l \
         ON d.destination = l.destination AND d.ordering_key = l.ordering_key WHERE l.id = {letter} AND {which}",
        text(database, "d.id"),
    )
}
