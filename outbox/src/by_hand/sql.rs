//! What the three databases write differently, whatever is asked.
//!
//! Rows come back as one JSON text each, so that a single column type is enough for every connection. Free text goes as
//! hexadecimal digits: other producers may have stored bytes that no text type lets through.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::connection::Database;

/// A column's text, for numbers.
pub(crate) fn text(database: Database, column: &str) -> String {
    match database {
        Database::Mysql => format!("CAST({column} AS CHAR)"),
        Database::Postgres | Database::Sqlite => format!("CAST({column} AS text)"),
    }
}

/// One JSON object as text, with these members.
pub(crate) fn build(database: Database, fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("'{name}', {value}")).collect();
    let fields = fields.join(", ");
    match database {
        Database::Postgres => format!("json_build_object({fields})::text"),
        Database::Mysql | Database::Sqlite => format!("json_object({fields})"),
    }
}

/// 1 or 0.
pub(crate) fn flag(condition: &str) -> String {
    format!("CASE WHEN {condition} THEN 1 ELSE 0 END")
}

/// A text's bytes; NULL stays NULL.
pub(crate) fn hex(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("encode(convert_to({column}, 'UTF8'), 'hex')"),
        Database::Mysql => format!("hex({column})"),
        // hex(NULL) is an empty text there.
        Database::Sqlite => format!("CASE WHEN {column} IS NOT NULL THEN hex({column}) END"),
    }
}

/// An id, with or without hyphens.
pub(crate) fn uuid(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("{column}::text"),
        Database::Mysql | Database::Sqlite => format!("lower(hex({column}))"),
    }
}

/// A time in microseconds since 1970.
pub(crate) fn micros(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
        Database::Mysql => format!("timestampdiff(MICROSECOND, '1970-01-01', {column})"),
        Database::Sqlite => format!("{column} * 1000"),
    }
}

/// An instant as a literal.
pub(crate) fn instant(database: Database, at: DateTime<Utc>) -> String {
    match database {
        Database::Postgres => format!("(timestamptz 'epoch' + {} * interval '1 microsecond')", at.timestamp_micros()),
        Database::Mysql => format!("('1970-01-01' + INTERVAL {} MICROSECOND)", at.timestamp_micros()),
        Database::Sqlite => at.timestamp_millis().to_string(),
    }
}

/// What stands before and after the text a column must contain. A NULL contains nothing.
pub(crate) fn contains(database: Database, column: &str) -> [String; 2] {
    match database {
        Database::Postgres => [format!("strpos(coalesce({column}, ''), "), ") > 0".to_owned()],
        Database::Mysql => ["locate(".to_owned(), format!(", coalesce({column}, '')) > 0")],
        Database::Sqlite => [format!("instr(coalesce({column}, ''), "), ") > 0".to_owned()],
    }
}

/// An id as a literal.
pub(crate) fn uuid_literal(database: Database, id: Uuid) -> String {
    match database {
        Database::Postgres => format!("'{id}'::uuid"),
        Database::Mysql | Database::Sqlite => format!("x'{}'", id.simple()),
    }
}

/// The payload's bytes.
pub(crate) fn payload(database: Database) -> &'static str {
    match database {
        Database::Postgres => "encode(coalesce(payload_bytes, convert_to(payload, 'UTF8')), 'hex')",
        Database::Mysql | Database::Sqlite => "hex(payload)",
    }
}

/// The database's clock, in the unit of its columns.
pub(crate) fn now(database: Database) -> &'static str {
    match database {
        Database::Postgres => "clock_timestamp()",
        Database::Mysql => "utc_timestamp(6)",
        Database::Sqlite => "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
    }
}

/// Ends a SELECT that must see what is committed now, not what the transaction's snapshot holds.
pub(crate) fn current_read(database: Database) -> &'static str {
    match database {
        Database::Postgres | Database::Mysql => " FOR UPDATE",
        // There the write lock was taken before the first read.
        Database::Sqlite => "",
    }
}

/// The same for a SELECT of several tables, of which only `alias` is to be locked where that can be said.
pub(crate) fn locked_rows(database: Database, alias: &str) -> String {
    match database {
        Database::Postgres => format!(" FOR UPDATE OF {alias}"),
        other => current_read(other).to_owned(),
    }
}

/// The database's clock, shifted by so many milliseconds, as the columns hold times.
pub(crate) fn now_plus(database: Database, ms: i64) -> String {
    match database {
        Database::Postgres => format!("clock_timestamp() + ({ms}) * interval '1 millisecond'"),
        Database::Mysql => format!("utc_timestamp(6) + INTERVAL {ms} * 1000 MICROSECOND"),
        Database::Sqlite => format!("CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) + ({ms})"),
    }
}

/// How far back the database's clock is to be set; an age beyond the calendar is one that nothing has.
pub(crate) fn back(age: Duration) -> i64 {
    const YEARS_1000_MS: i64 = 1000 * 365 * 24 * 60 * 60 * 1000;
    -i64::try_from(age.as_millis()).unwrap_or(YEARS_1000_MS).min(YEARS_1000_MS)
}
