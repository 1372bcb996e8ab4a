//! A message as a test sees it, read from the table of pending messages.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use crate::by_hand::sql::{build, hex, micros, payload, uuid};
use crate::by_hand::{Hex, Statement, instant, unreadable};
use crate::connection::OutboxBackend;
use crate::error::Error;

/// The most messages a test looks at.
const MESSAGES_MAX: usize = 1000;

/// A message that is enqueued.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enqueued {
    /// Its id.
    pub message_id: Uuid,
    /// The number it drew when it was inserted.
    pub seq: i64,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// The payload, exactly as it was enqueued.
    pub payload: Vec<u8>,
    /// The type of the payload.
    pub content_type: String,
    /// The headers, under names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The destination its sender named.
    pub destination: Option<String>,
    /// Not before.
    pub deliver_at: Option<DateTime<Utc>>,
    /// Not after.
    pub expires_at: Option<DateTime<Utc>>,
    /// The version of the message's type.
    pub version: u16,
    /// The dedup key.
    pub dedup_key: Option<String>,
}

impl Enqueued {
    /// The payload as JSON, when it is JSON.
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.payload).ok()
    }
}

/// Reads the newest messages.
pub(crate) fn select<DB: OutboxBackend>() -> Statement {
    let database = DB::DATABASE;
    let mut fields = vec![
        ("message_id", uuid(database, "id")),
        ("payload", payload(database).to_owned()),
        ("deliver_at", micros(database, "deliver_at")),
        ("expires_at", micros(database, "expires_at")),
    ];
    for column in ["ordering_key", "content_type", "headers", "destination", "dedup_key"] {
        fields.push((column, hex(database, column)));
    }
    fields.extend(["seq", "topic", "version"].map(|column| (column, column.to_owned())));
    let row = build(database, &fields);
    Statement::new(format!(
        "-- message_newest\nSELECT {row} FROM outbox_messages ORDER BY seq DESC LIMIT {MESSAGES_MAX}"
    ))
}

/// The rows of [`select`], in the order in which they were enqueued.
pub(crate) fn read(rows: Vec<String>) -> Result<Vec<Enqueued>, Error> {
    rows.iter().rev().map(|json| serde_json::from_str::<Row>(json).map_err(unreadable)?.read()).collect()
}

#[derive(Deserialize)]
struct Row {
    message_id: String,
    seq: i64,
    topic: String,
    ordering_key: Option<Hex>,
    payload: Hex,
    content_type: Hex,
    headers: Hex,
    destination: Option<Hex>,
    deliver_at: Option<i64>,
    expires_at: Option<i64>,
    version: u16,
    dedup_key: Option<Hex>,
}

impl Row {
    fn read(self) -> Result<Enqueued, Error> {
        let text = |hex: Option<Hex>| hex.map(|hex| hex.text());
        Ok(Enqueued {
            message_id: Uuid::parse_str(&self.message_id).map_err(unreadable)?,
            seq: self.seq,
            topic: self.topic,
            key: text(self.ordering_key),
            payload: self.payload.0,
            content_type: self.content_type.text(),
            // Another producer may have stored what is no object of texts; a relay sends no such message.
            headers: serde_json::from_slice(&self.headers.0).unwrap_or_default(),
            destination: text(self.destination),
            deliver_at: self.deliver_at.map(instant),
            expires_at: self.expires_at.map(instant),
            version: self.version,
            dedup_key: text(self.dedup_key),
        })
    }
}
