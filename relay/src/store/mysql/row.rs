//! Rows as the relay's values.
//!
//! Every answer comes as text, so a column is bytes or NULL whatever its type. Times are selected as microseconds
//! since 1970, ages and flags as integers. Nothing here fails: a value that cannot be read becomes the nearest thing
//! that is safe, because one bad row must not fail its neighbours.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use mysql_async::{Row, Value};
use uuid::Uuid;

use crate::message::{Key, Message, WaitingDelivery};
use crate::store::decode;

/// The columns of a row, taken from left to right.
pub(super) struct Columns(std::vec::IntoIter<Value>);

impl Columns {
    pub(super) fn new(row: Row) -> Columns {
        Columns(row.unwrap().into_iter())
    }

    /// The bytes, if there are any.
    pub(super) fn bytes(&mut self) -> Option<Vec<u8>> {
        match self.0.next() {
            Some(Value::Bytes(bytes)) => Some(bytes),
            Some(Value::Int(n)) => Some(n.to_string().into_bytes()),
            Some(Value::UInt(n)) => Some(n.to_string().into_bytes()),
            _ => None,
        }
    }

    /// Text; what is not UTF-8 is replaced.
    pub(super) fn maybe_text(&mut self) -> Option<String> {
        let bytes = self.bytes()?;
        Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Text; NULL is empty.
    pub(super) fn text(&mut self) -> String {
        self.maybe_text().unwrap_or_default()
    }

    /// An integer; decimals are cut off.
    pub(super) fn maybe_number(&mut self) -> Option<i64> {
        let bytes = self.bytes()?;
        let digits = bytes.split(|byte| *byte == b'.').next()?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// An integer; NULL is 0.
    pub(super) fn number(&mut self) -> i64 {
        self.maybe_number().unwrap_or_default()
    }

    /// A small count.
    pub(super) fn count(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap_or_default()
    }

    /// A partition. The generated column yields nothing else than 0 to 31.
    pub(super) fn partition(&mut self) -> u8 {
        u8::try_from(self.number()).unwrap_or(u8::MAX)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.number() != 0
    }

    pub(super) fn maybe_uuid(&mut self) -> Option<Uuid> {
        Uuid::from_slice(&self.bytes()?).ok()
    }

    /// An id; the columns are 16 bytes wide.
    pub(super) fn uuid(&mut self) -> Uuid {
        self.maybe_uuid().unwrap_or_default()
    }

    /// A span in microseconds; one that ended in the future is zero.
    pub(super) fn maybe_span(&mut self) -> Option<Duration> {
        self.maybe_number().map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
    }

    pub(super) fn instant(&mut self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.number()).unwrap_or_default()
    }

    /// An ordering key.
    pub(super) fn key(&mut self) -> Option<Key> {
        self.bytes().map(Arc::from)
    }
}

/// An expression for [`Columns::instant`].
pub(super) fn micros_of(column: &str) -> String {
    format!("timestampdiff(MICROSECOND, '1970-01-01', {column})")
}

/// The columns [`message`] reads. `mine` is the condition under which all of them are wanted: the others come as NULL,
/// so that foreign payloads do not travel.
pub(super) fn message_columns(id: &str, destination: &str, now: &str, mine: Option<&str>) -> String {
    let wanted = |expression: String| match mine {
        Some(mine) => format!("IF({mine}, {expression}, NULL)"),
        None => expression,
    };
    let columns = [
        id.to_owned(),
        "topic".into(),
        "ordering_key".into(),
        "payload".into(),
        "content_type".into(),
        "headers".into(),
        destination.to_owned(),
        format!("deliver_at > {now}"),
        format!("timestampdiff(MICROSECOND, {now}, expires_at)"),
        "operation_id IS NOT NULL".into(),
        "version".into(),
        micros_of("created_at"),
    ];
    let columns = columns.map(wanted);
    format!("seq, partition_no, {}", columns.join(", "))
}

/// Reads what follows `seq` and `partition_no`.
pub(super) fn message(seq: i64, partition_no: u8, columns: &mut Columns) -> Message {
    Message {
        seq,
        partition_no,
        id: columns.uuid(),
        topic: columns.text(),
        ordering_key: columns.key(),
        payload: columns.bytes().map(Bytes::from).unwrap_or_default(),
        content_type: columns.text(),
        headers: decode::headers(&columns.text()),
        only_destination: columns.maybe_text(),
        scheduled: columns.flag(),
        expires: decode::expiry(columns.maybe_span()),
        tracked: columns.flag(),
        version: u16::try_from(columns.number()).unwrap_or_default(),
        created_at: columns.instant(),
    }
}

/// The columns [`delivery`] reads.
pub(super) fn delivery_columns(now: &str) -> String {
    format!(
        "{}, id, destination, in_order, life, attempts, suspect, deaths, timestampdiff(MICROSECOND, first_attempt_at, {now}), history",
        message_columns("message_id", "NULL", now, None)
    )
}

/// Reads a waiting row.
pub(super) fn delivery(columns: &mut Columns) -> WaitingDelivery {
    let (seq, partition_no) = (columns.number(), columns.partition());
    let message = message(seq, partition_no, columns);
    WaitingDelivery {
        message,
        id: columns.number(),
        destination: columns.text(),
        in_order: columns.flag(),
        life: columns.count(),
        attempts: columns.count(),
        suspect: columns.flag(),
        deaths: columns.count(),
        first_attempt_age: columns.maybe_span(),
        history: decode::history(&columns.text()),
    }
}
