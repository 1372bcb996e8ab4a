//! What work by hand has in common, whatever it looks at: statements that are never cached, and rows that come as text.
//!
//! Absent: the three databases' ways to insert a message. That is the path every caller takes, and it is prepared.

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use diesel::result::Error as DieselError;
use serde::Deserialize;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend, transaction_depth};
use crate::dead_letters::By;
use crate::error::Error;

pub(crate) mod ask;
pub(crate) mod lock_wait;
pub(crate) mod sql;
mod statement;

pub(crate) use statement::Statement;

/// Bytes that travel as hexadecimal digits, because no text type carries whatever another producer stored.
#[derive(Default)]
pub(crate) struct Hex(pub(crate) Vec<u8>);

impl Hex {
    /// The text they are, with marks for what is none.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let pairs = digits.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> =
            pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
        bytes.map(Hex).ok_or_else(|| serde::de::Error::custom("hexadecimal digits expected"))
    }
}

/// Writes one audit row for each target, by the database's clock.
pub(crate) fn audit<C>(conn: &mut C, by: &By, action: &str, targets: &[String]) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    for some in targets.chunks(100) {
        let mut insert =
            Statement::new("-- audit_insert\nINSERT INTO outbox_audit (actor, action, target, reason) VALUES ");
        for (n, target) in some.iter().enumerate() {
            insert = insert.sql(if n == 0 { "(" } else { ", (" }).text(&by.actor).sql(", ").text(action);
            insert = insert.sql(", ").text(target).sql(", ").optional_text(by.reason.as_deref()).sql(")");
        }
        insert.execute(conn)?;
    }
    Ok(())
}

/// An instant from microseconds; what lies beyond the calendar is its end.
pub(crate) fn instant(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Only a change of the schema behind our back gets here.
pub(crate) fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Database(diesel::result::Error::DeserializationError(Box::new(error)))
}

/// A transaction whose statements each see what is committed when they begin; inside one of the caller's it is part of
/// that, whatever that sees.
///
/// Work by hand decides by what it reads under the partitions' locks. Where REPEATABLE READ or more is the default, a
/// transaction of its own would read the state from before it waited for them.
pub(crate) fn transaction<C, T>(conn: &mut C, work: impl FnOnce(&mut C) -> Result<T, Error>) -> Result<T, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    begins_read_committed(conn)?;
    // Kept aside: where a server has ended the transaction, the rollback fails, too, and diesel would report that instead.
    let mut failed = None;
    let outcome = conn.transaction(|conn| {
        is_read_committed(conn).and_then(|()| work(conn)).map_err(|error| {
            failed = Some(error);
            Error::Database(DieselError::RollbackTransaction)
        })
    });
    outcome.map_err(|error| failed.unwrap_or(error))
}

/// Before a transaction begins. MariaDB and MySQL take the level for the next one only while none is open.
pub(crate) fn begins_read_committed<C>(conn: &mut C) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    if <C::Backend as Dialect>::DATABASE == Database::Mysql && transaction_depth(conn)? == 0 {
        conn.batch_execute(READ_COMMITTED)?;
    }
    Ok(())
}

/// As the first statement of a transaction: PostgreSQL takes the level for the one that is open.
pub(crate) fn is_read_committed<C>(conn: &mut C) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    if <C::Backend as Dialect>::DATABASE == Database::Postgres && transaction_depth(conn)? == 1 {
        conn.batch_execute(READ_COMMITTED)?;
    }
    Ok(())
}

/// Of one transaction, not of the session: behind a pooler that is somebody else's the next moment.
const READ_COMMITTED: &str = "-- transaction_level\nSET TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// `1, 2, 3`
pub(crate) fn list_of(ids: impl Iterator<Item = impl fmt::Display>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}
