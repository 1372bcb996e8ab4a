//! What work by hand has in common, whatever it looks at: statements that are never cached, and rows that come as text.
//!
//! Absent: the three databases' ways to insert a message. That is the path every caller takes, and it is prepared.

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use serde::Deserialize;

use crate::connection::OutboxBackend;
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

/// `1, 2, 3`
pub(crate) fn list_of(ids: impl Iterator<Item = impl fmt::Display>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}
