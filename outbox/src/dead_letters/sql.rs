//! What the three databases write differently.
//!
//! Rows come back as one JSON text each, so that a single column type is enough for every connection. Free text goes as
//! hexadecimal digits: other producers may have stored bytes that no text type lets through.

use chrono::{DateTime, Utc};

use crate::connection::Database;
use crate::sql::{locked_rows, text};

/// The row of a list.
pub(super) fn letter(database: Database) -> String {
    object(database, &[])
}

/// The row with everything.
pub(super) fn detail(database: Database) -> String {
    let payload = match database {
        Database::Postgres => "encode(coalesce(payload_bytes, convert_to(payload, 'UTF8')), 'hex')",
        Database::Mysql | Database::Sqlite => "hex(payload)",
    };
    let more =
        [("payload", payload.to_owned()), ("headers", hex(database, "headers")), ("history", hex(database, "history"))];
    object(database, &more)
}

/// What a change has to know of a letter.
pub(super) fn locked(database: Database) -> String {
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

fn object(database: Database, more: &[(&str, String)]) -> String {
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
    fields.extend_from_slice(more);
    build(database, &fields)
}

fn build(database: Database, fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("'{name}', {value}")).collect();
    let fields = fields.join(", ");
    match database {
        Database::Postgres => format!("json_build_object({fields})::text"),
        Database::Mysql | Database::Sqlite => format!("json_object({fields})"),
    }
}

fn flag(condition: &str) -> String {
    format!("CASE WHEN {condition} THEN 1 ELSE 0 END")
}

fn hex(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("encode(convert_to({column}, 'UTF8'), 'hex')"),
        Database::Mysql => format!("hex({column})"),
        // hex(NULL) is an empty text there.
        Database::Sqlite => format!("CASE WHEN {column} IS NOT NULL THEN hex({column}) END"),
    }
}

fn uuid(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("{column}::text"),
        Database::Mysql | Database::Sqlite => format!("lower(hex({column}))"),
    }
}

fn micros(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
        Database::Mysql => format!("timestampdiff(MICROSECOND, '1970-01-01', {column})"),
        Database::Sqlite => format!("{column} * 1000"),
    }
}

/// An instant as a literal.
pub(super) fn instant(database: Database, at: DateTime<Utc>) -> String {
    match database {
        Database::Postgres => format!("(timestamptz 'epoch' + {} * interval '1 microsecond')", at.timestamp_micros()),
        Database::Mysql => format!("('1970-01-01' + INTERVAL {} MICROSECOND)", at.timestamp_micros()),
        Database::Sqlite => at.timestamp_millis().to_string(),
    }
}

/// What stands before and after the text a column must contain. A NULL contains nothing.
pub(super) fn contains(database: Database, column: &str) -> [String; 2] {
    match database {
        Database::Postgres => [format!("strpos(coalesce({column}, ''), "), ") > 0".to_owned()],
        Database::Mysql => ["locate(".to_owned(), format!(", coalesce({column}, '')) > 0")],
        Database::Sqlite => [format!("instr(coalesce({column}, ''), "), ") > 0".to_owned()],
    }
}

/// The same for the payload, byte by byte.
pub(super) fn payload_contains(database: Database) -> [String; 2] {
    match database {
        Database::Postgres => [
            "position(convert_to(".to_owned(),
            ", 'UTF8') IN coalesce(payload_bytes, convert_to(payload, 'UTF8'))) > 0".to_owned(),
        ],
        Database::Mysql => ["locate(CAST(".to_owned(), " AS BINARY), payload) > 0".to_owned()],
        Database::Sqlite => ["instr(CAST(payload AS BLOB), CAST(".to_owned(), " AS BLOB)) > 0".to_owned()],
    }
}

/// Turns letters into waiting deliveries, without removing them.
pub(super) fn redrive(database: Database, ids: &str) -> String {
    let (payload, now) = match database {
        Database::Postgres => ("payload, payload_bytes", "clock_timestamp()"),
        Database::Mysql => ("payload", "utc_timestamp(6)"),
        Database::Sqlite => ("payload", "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"),
    };
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
         'retry', {in_order}, {in_order}, life + 1, 0, {now}, id, last_verdict, last_error, history \
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
