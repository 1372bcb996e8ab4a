//! What is particular to SQLite.

use diesel::deserialize::{self, FromSql};
use diesel::query_builder::AstPass;
use diesel::result::QueryResult;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};

impl OutboxBackend for Sqlite {}

impl Dialect for Sqlite {
    const DATABASE: Database = Database::Sqlite;

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }

    fn bind_text<'b>(text: &'b str, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_bind_param::<Text, _>(text)
    }
}
