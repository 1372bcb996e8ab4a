//! Pieces of SQL that each database spells differently, for the statements that are put together by hand.

use std::time::Duration;

use uuid::Uuid;

use crate::connection::Database;

/// A column's text, for numbers.
pub(crate) fn text(database: Database, column: &str) -> String {
    match database {
        Database::Mysql => format!("CAST({column} AS CHAR)"),
        Database::Postgres | Database::Sqlite => format!("CAST({column} AS text)"),
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

/// An id as a literal.
pub(crate) fn uuid(database: Database, id: Uuid) -> String {
    match database {
        Database::Postgres => format!("'{id}'::uuid"),
        Database::Mysql | Database::Sqlite => format!("x'{}'", id.simple()),
    }
}

/// A column that holds an id, as text that [`Uuid::parse_str`] reads.
pub(crate) fn uuid_text(database: Database, column: &str) -> String {
    match database {
        Database::Postgres => format!("{column}::text"),
        Database::Mysql | Database::Sqlite => format!("lower(hex({column}))"),
    }
}
