//! What is particular to PostgreSQL.
//!
//! A transaction that failed inside accepts nothing more, so diesel's own count of transactions is enough here.

use std::borrow::Cow;

use diesel::deserialize::{self, FromSql};
use diesel::pg::Pg;
use diesel::query_builder::AstPass;
use diesel::result::QueryResult;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, SmallInt, Text, Uuid as SqlUuid};
use uuid::Uuid;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::insert::{Proof, Row};

const TARGET: &str = "INSERT INTO outbox_messages (id, topic, ordering_key, payload, payload_bytes, content_type, \
                      headers, destination, deliver_at, expires_at, version, dedup_key)\n";

impl OutboxBackend for Pg {}

impl Dialect for Pg {
    const DATABASE: Database = Database::Postgres;

    type Batch = Columns;

    // One array for each column, so the number of binds does not grow. What limits is the protocol's 1 GiB per message.
    const ROWS_MAX: usize = usize::MAX;
    const BYTES_MAX: usize = 256 * 1024 * 1024;

    // Fails in a failed transaction and outside one. The server never replaces a transaction by another, so no mark is needed.
    const MARK: Option<&'static str> = None;
    const PROOF: &'static str = "SAVEPOINT outbox_transaction";

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }

    fn bind_text<'b>(text: &'b str, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_bind_param::<Text, _>(text)
    }

    fn batch(rows: Vec<Row>) -> Columns {
        let mut columns = Columns::default();
        for row in rows {
            columns.ids.push(row.id);
            columns.topics.push(row.topic);
            columns.keys.push(row.key);
            columns.texts.push(row.payload.text);
            columns.bytes.push(row.payload.bytes);
            columns.content_types.push(row.content_type);
            columns.headers.push(row.headers);
            columns.destinations.push(row.destination);
            columns.deliver_at_ms.push(row.deliver_at_ms);
            columns.delay_ms.push(row.delay_ms);
            columns.expires_at_ms.push(row.expires_at_ms);
            columns.versions.push(row.version);
            columns.dedup_keys.push(row.dedup_key);
        }
        columns
    }

    fn message_insert<'b>(row: &'b Row, _: Proof, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("-- message_insert\n");
        out.push_sql(TARGET);
        out.push_sql("VALUES (");
        out.push_bind_param::<SqlUuid, _>(&row.id)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(&row.topic)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, _>(&row.key)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, _>(&row.payload.text)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Binary>, _>(&row.payload.bytes)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(&row.content_type)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, str>(&row.headers)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, _>(&row.destination)?;
        out.push_sql(", coalesce(timestamptz 'epoch' + ");
        out.push_bind_param::<Nullable<BigInt>, _>(&row.deliver_at_ms)?;
        out.push_sql(" * interval '1 millisecond', clock_timestamp() + ");
        out.push_bind_param::<Nullable<BigInt>, _>(&row.delay_ms)?;
        out.push_sql(" * interval '1 millisecond'), timestamptz 'epoch' + ");
        out.push_bind_param::<Nullable<BigInt>, _>(&row.expires_at_ms)?;
        out.push_sql(" * interval '1 millisecond', ");
        out.push_bind_param::<SmallInt, _>(&row.version)?;
        out.push_sql(", ");
        out.push_bind_param::<Nullable<Text>, _>(&row.dedup_key)?;
        out.push_sql(")");
        Ok(())
    }

    fn message_insert_many<'b>(batch: &'b Columns, _: Proof, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("-- message_insert_many\n");
        out.push_sql(TARGET);
        out.push_sql(
            "SELECT id, topic, ordering_key, payload, payload_bytes, content_type, headers, destination, \
             coalesce(timestamptz 'epoch' + deliver_at_ms * interval '1 millisecond', \
             clock_timestamp() + delay_ms * interval '1 millisecond'), \
             timestamptz 'epoch' + expires_at_ms * interval '1 millisecond', version, dedup_key\nFROM unnest(",
        );
        out.push_bind_param::<Array<SqlUuid>, _>(&batch.ids)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&batch.topics)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&batch.keys)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&batch.texts)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Binary>>, _>(&batch.bytes)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&batch.content_types)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&batch.headers)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&batch.destinations)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<BigInt>>, _>(&batch.deliver_at_ms)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<BigInt>>, _>(&batch.delay_ms)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<BigInt>>, _>(&batch.expires_at_ms)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<SmallInt>, _>(&batch.versions)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Nullable<Text>>, _>(&batch.dedup_keys)?;
        // The order is what numbers the messages of one key.
        out.push_sql(
            ") WITH ORDINALITY AS given (id, topic, ordering_key, payload, payload_bytes, content_type, headers, \
             destination, deliver_at_ms, delay_ms, expires_at_ms, version, dedup_key, place)\nORDER BY place",
        );
        Ok(())
    }
}

/// Messages turned on their side: one array for each column.
#[derive(Default)]
pub struct Columns {
    ids: Vec<Uuid>,
    topics: Vec<Cow<'static, str>>,
    keys: Vec<Option<String>>,
    texts: Vec<Option<String>>,
    bytes: Vec<Option<Vec<u8>>>,
    content_types: Vec<Cow<'static, str>>,
    headers: Vec<Cow<'static, str>>,
    destinations: Vec<Option<String>>,
    deliver_at_ms: Vec<Option<i64>>,
    delay_ms: Vec<Option<i64>>,
    expires_at_ms: Vec<Option<i64>>,
    versions: Vec<i16>,
    dedup_keys: Vec<Option<String>>,
}
