//! A dead letter as it comes from the database.

use serde::Deserialize;
use uuid::Uuid;

use super::{DeadLetter, Detail, Group};
use crate::by_hand::{Hex, instant, unreadable};
use crate::error::Error;

/// A row as the database writes it: one JSON object, free text and bytes in hexadecimal, times in microseconds.
#[derive(Deserialize)]
pub(crate) struct Row {
    id: i64,
    message_id: String,
    seq: i64,
    destination: String,
    topic: String,
    ordering_key: Option<Hex>,
    content_type: Hex,
    reason: String,
    fingerprint: Hex,
    blocks_key: u8,
    attempts: u32,
    life: u32,
    redriven_from: Option<i64>,
    last_verdict: Option<String>,
    last_error: Option<Hex>,
    created_at: i64,
    first_attempt_at: Option<i64>,
    died_at: i64,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Default, Deserialize)]
struct Rest {
    #[serde(default)]
    payload: Hex,
    #[serde(default)]
    headers: Hex,
    #[serde(default)]
    history: Hex,
}

/// A row of a list.
pub(super) fn letter(json: &str) -> Result<DeadLetter, Error> {
    serde_json::from_str::<Row>(json).map_err(unreadable)?.letter()
}

/// A row with everything.
pub(super) fn detail(json: &str) -> Result<Detail, Error> {
    let mut row: Row = serde_json::from_str(json).map_err(unreadable)?;
    let rest = std::mem::take(&mut row.rest);
    let (headers, history) = (rest.headers.text(), rest.history.text());
    Ok(Detail { letter: row.letter()?, payload: rest.payload.0, headers, history })
}

impl Row {
    /// What a list shows.
    pub(crate) fn letter(self) -> Result<DeadLetter, Error> {
        Ok(DeadLetter {
            id: self.id,
            message_id: Uuid::parse_str(&self.message_id).map_err(unreadable)?,
            seq: self.seq,
            destination: self.destination,
            topic: self.topic,
            ordering_key: self.ordering_key.map(|key| key.0),
            content_type: self.content_type.text(),
            reason: self.reason,
            fingerprint: self.fingerprint.text(),
            blocks_key: self.blocks_key == 1,
            attempts: self.attempts,
            life: self.life,
            redriven_from: self.redriven_from,
            last_verdict: self.last_verdict,
            last_error: self.last_error.map(|error| error.text()),
            created_at: instant(self.created_at),
            first_attempt_at: self.first_attempt_at.map(instant),
            died_at: instant(self.died_at),
        })
    }
}

/// A group whose example is known by its id alone.
#[derive(Deserialize)]
pub(super) struct GroupRow {
    fingerprint: Hex,
    count: u64,
    first_died_at: i64,
    last_died_at: i64,
    pub(super) example: i64,
}

/// A row of the groups.
pub(super) fn group(json: &str) -> Result<GroupRow, Error> {
    serde_json::from_str(json).map_err(unreadable)
}

impl GroupRow {
    /// The group with its example.
    pub(super) fn group(self, example: DeadLetter) -> Group {
        Group {
            fingerprint: self.fingerprint.text(),
            count: self.count,
            first_died_at: instant(self.first_died_at),
            last_died_at: instant(self.last_died_at),
            example,
        }
    }
}
