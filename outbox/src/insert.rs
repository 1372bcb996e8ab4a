//! The one statement that writes messages.
//!
//! A query of our own instead of diesel's builder, for two reasons: a static id, so that each connection prepares it
//! once, and the freedom to let each database check for itself what diesel cannot know (see `mysql.rs`).
//!
//! It needs no right but INSERT on the columns named here, and no answer but success.
#![cfg_attr(
    not(any(feature = "postgres", feature = "mysql", feature = "sqlite")),
    allow(dead_code, reason = "rows are read by the databases")
)]

use std::borrow::Cow;
use std::marker::PhantomData;

use diesel::RunQueryDsl;
use diesel::connection::Connection;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::result::QueryResult;
use uuid::Uuid;

use crate::connection::OutboxBackend;

/// A message as it is written. Every rule of `limits` holds for it.
pub struct Row {
    pub(crate) id: Uuid,
    pub(crate) topic: Cow<'static, str>,
    pub(crate) key: Option<String>,
    pub(crate) payload: Payload,
    pub(crate) content_type: Cow<'static, str>,
    pub(crate) headers: Cow<'static, str>,
    pub(crate) destination: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) deliver_at_ms: Option<i64>,
    /// Added to the database's clock; never together with `deliver_at_ms`.
    pub(crate) delay_ms: Option<i64>,
    /// Milliseconds since 1970.
    pub(crate) expires_at_ms: Option<i64>,
    pub(crate) version: i16,
    pub(crate) dedup_key: Option<String>,
    /// How long the dedup key is taken.
    pub(crate) dedup_window_ms: i64,
}

impl Row {
    /// About how many bytes it adds to a statement.
    pub(crate) fn bytes(&self) -> usize {
        const FIXED: usize = 256;
        FIXED + self.payload.as_bytes().len() + self.headers.len() + self.key.as_ref().map_or(0, String::len)
    }
}

/// A payload: text where every database can hold it as text and people can read it at night, bytes otherwise.
///
/// Exactly one of the two is set.
pub(crate) struct Payload {
    pub(crate) text: Option<String>,
    pub(crate) bytes: Option<Vec<u8>>,
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        // PostgreSQL's text holds no NUL, and SQLite's shell stops at one.
        let text = if bytes.contains(&0) { Err(bytes) } else { String::from_utf8(bytes).map_err(|e| e.into_bytes()) };
        match text {
            Ok(text) => Payload { text: Some(text), bytes: None },
            Err(bytes) => Payload { text: None, bytes: Some(bytes) },
        }
    }
}

impl Payload {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.as_deref().map(str::as_bytes).or(self.bytes.as_deref()).unwrap_or_default()
    }
}

/// Messages that one statement writes.
#[expect(clippy::large_enum_variant, reason = "one lives at a time in the common case; a box would cost every enqueue")]
pub(crate) enum Work<DB: OutboxBackend> {
    One(Row),
    Many(DB::Batch),
}

/// Distributes rows over as few statements as the database allows, in their order.
pub(crate) fn works<DB: OutboxBackend>(rows: Vec<Row>) -> Vec<Work<DB>> {
    let mut chunks: Vec<Vec<Row>> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        bytes += row.bytes();
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < DB::ROWS_MAX && bytes <= DB::BYTES_MAX => chunk.push(row),
            _ => {
                bytes = row.bytes();
                chunks.push(vec![row]);
            }
        }
    }
    let work = |mut chunk: Vec<Row>| match chunk.pop() {
        Some(only) if chunk.is_empty() => Work::One(only),
        last => {
            chunk.extend(last);
            Work::Many(DB::batch(chunk))
        }
    };
    chunks.into_iter().map(work).collect()
}

/// What the statement itself must find out about the transaction. Only MariaDB and MySQL make a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The server must be in a transaction. A server that cannot tell refuses the statement.
    Statement,
    /// The same, on a connection where a statement before this one has found it out for servers that cannot tell.
    Probe,
    /// Nothing: the caller answers for it.
    Caller,
}

/// A [`Proof`] as a type, so that every form of the statement has a static id.
pub(crate) trait Form: Send + Sync + 'static {
    const PROOF: Proof;
}

pub(crate) struct ByStatement;
pub(crate) struct ByProbe;
pub(crate) struct ByCaller;

impl Form for ByStatement {
    const PROOF: Proof = Proof::Statement;
}

impl Form for ByProbe {
    const PROOF: Proof = Proof::Probe;
}

impl Form for ByCaller {
    const PROOF: Proof = Proof::Caller;
}

/// Writes one message; prepared once per connection.
pub(crate) struct MessageInsert<'a, F> {
    row: &'a Row,
    form: PhantomData<F>,
}

impl<'a, F> MessageInsert<'a, F> {
    pub(crate) fn new(row: &'a Row) -> Self {
        MessageInsert { row, form: PhantomData }
    }
}

impl<F: Form> QueryId for MessageInsert<'_, F> {
    type QueryId = MessageInsert<'static, F>;
}

impl<DB: OutboxBackend, F: Form> QueryFragment<DB> for MessageInsert<'_, F> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        DB::message_insert(self.row, F::PROOF, out)
    }
}

impl<C: Connection, F> RunQueryDsl<C> for MessageInsert<'_, F> {}

/// Writes many messages at once.
pub(crate) struct MessageInsertMany<'a, DB: OutboxBackend, F> {
    batch: &'a DB::Batch,
    form: PhantomData<F>,
}

impl<'a, DB: OutboxBackend, F> MessageInsertMany<'a, DB, F> {
    pub(crate) fn new(batch: &'a DB::Batch) -> Self {
        MessageInsertMany { batch, form: PhantomData }
    }
}

impl<DB: OutboxBackend, F> QueryId for MessageInsertMany<'_, DB, F> {
    type QueryId = ();
    // Where the text depends on the number of rows, one static id would stand for many statements.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: OutboxBackend, F: Form> QueryFragment<DB> for MessageInsertMany<'_, DB, F> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        DB::message_insert_many(self.batch, F::PROOF, out)
    }
}

impl<C: Connection, DB: OutboxBackend, F> RunQueryDsl<C> for MessageInsertMany<'_, DB, F> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_text_only_where_every_database_can_hold_it() {
        for text in ["{\"a\":\"\\\\ '\\n\"}", "grüße 🦀\n", ""] {
            let payload = Payload::from(text.as_bytes().to_vec());
            assert_eq!(
                (payload.text.as_deref(), &payload.bytes, payload.as_bytes()),
                (Some(text), &None, text.as_bytes())
            );
        }
        for bytes in [&b"a\0b"[..], b"\xff\xfe", b"\xed\xa0\x80"] {
            let payload = Payload::from(bytes.to_vec());
            assert_eq!((&payload.text, payload.bytes.as_deref(), payload.as_bytes()), (&None, Some(bytes), bytes));
        }
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn many_rows_are_cut_by_number_and_by_bytes_and_keep_their_order() {
        use diesel::mysql::Mysql;

        use crate::connection::sealed::Dialect;
        use crate::envelope::Envelope;

        let row = |size: usize| Envelope::raw("a", vec![b'x'; size]).payload_max(usize::MAX).into_row().unwrap();
        let sizes = |rows: Vec<Row>| -> Vec<usize> {
            let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
            let mut seen = Vec::new();
            let works = works::<Mysql>(rows);
            let count = |work: &Work<Mysql>| match work {
                Work::One(row) => (vec![row.id], 1),
                Work::Many(batch) => (batch.iter().map(|row| row.id).collect(), batch.len()),
            };
            let counts = works.iter().map(count).map(|(ids, count)| (seen.extend(ids), count).1).collect();
            assert_eq!(seen, ids);
            counts
        };
        assert!(sizes(vec![]).is_empty());
        assert_eq!(sizes(vec![row(1)]), [1]);
        assert_eq!(sizes((0..=Mysql::ROWS_MAX).map(|_| row(1)).collect()), [Mysql::ROWS_MAX, 1]);
        let third = Mysql::BYTES_MAX / 3;
        assert_eq!(sizes(vec![row(third), row(third), row(third), row(1)]), [2, 2]);
    }
}
