//! What is particular to SQLite.
//!
//! An error that ends a transaction by itself (a full disk, an interrupt) is rare and leaves diesel's count wrong until
//! its own commit fails; the message written afterwards stands then. Return errors instead of going on.

use diesel::deserialize::{self, FromSql};
use diesel::query_builder::AstPass;
use diesel::result::QueryResult;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text};
use diesel::sqlite::Sqlite;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::insert::{Proof, Row};

const TARGET: &str = "INSERT INTO outbox_messages (id, topic, ordering_key, payload, content_type, headers, \
                      destination, deliver_at, expires_at, version, dedup_key)\nVALUES ";

/// How many `?` a row has.
const BINDS: usize = 12;

impl OutboxBackend for Sqlite {}

impl Dialect for Sqlite {
    const DATABASE: Database = Database::Sqlite;

    type Batch = Vec<Row>;

    // SQLITE_MAX_VARIABLE_NUMBER since 3.32. Bytes are limited for each value, not together.
    const ROWS_MAX: usize = 32_766 / BINDS;
    const BYTES_MAX: usize = usize::MAX;

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }

    fn bind_text<'b>(text: &'b str, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_bind_param::<Text, _>(text)
    }

    fn batch(rows: Vec<Row>) -> Vec<Row> {
        rows
    }

    fn message_insert<'b>(row: &'b Row, _: Proof, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_sql("-- message_insert\n");
        out.push_sql(TARGET);
        push_row(row, &mut out)
    }

    fn message_insert_many<'b>(batch: &'b Vec<Row>, _: Proof, mut out: AstPass<'_, 'b, Self>) -> QueryResult<()> {
        // Another number of rows is another statement; prepared ones would pile up.
        out.unsafe_to_cache_prepared();
        out.push_sql("-- message_insert_many\n");
        out.push_sql(TARGET);
        for (index, row) in batch.iter().enumerate() {
            if index > 0 {
                out.push_sql(", ");
            }
            push_row(row, &mut out)?;
        }
        Ok(())
    }
}

fn push_row<'b>(row: &'b Row, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
    out.push_sql("(");
    out.push_bind_param::<Binary, [u8]>(row.id.as_bytes())?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(&row.topic)?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, _>(&row.key)?;
    out.push_sql(", ");
    match &row.payload.text {
        Some(text) => out.push_bind_param::<Text, str>(text)?,
        None => out.push_bind_param::<Binary, [u8]>(row.payload.as_bytes())?,
    }
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(&row.content_type)?;
    out.push_sql(", ");
    out.push_bind_param::<Text, str>(&row.headers)?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, _>(&row.destination)?;
    out.push_sql(", coalesce(");
    out.push_bind_param::<Nullable<BigInt>, _>(&row.deliver_at_ms)?;
    out.push_sql(", CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) + ");
    out.push_bind_param::<Nullable<BigInt>, _>(&row.delay_ms)?;
    out.push_sql("), ");
    out.push_bind_param::<Nullable<BigInt>, _>(&row.expires_at_ms)?;
    out.push_sql(", ");
    out.push_bind_param::<SmallInt, _>(&row.version)?;
    out.push_sql(", ");
    out.push_bind_param::<Nullable<Text>, _>(&row.dedup_key)?;
    out.push_sql(")");
    Ok(())
}
