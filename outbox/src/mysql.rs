//! What is particular to MariaDB.

use diesel::deserialize::{self, FromSql};
use diesel::mysql::Mysql;
use diesel::query_builder::AstPass;
use diesel::result::QueryResult;
use diesel::sql_types::Text;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};

impl OutboxBackend for Mysql {}

impl Dialect for Mysql {
    const DATABASE: Database = Database::Mysql;

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }

    fn bind_text<'b>(text: &'b str, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()> {
        out.push_bind_param::<Text, _>(text)
    }
}
