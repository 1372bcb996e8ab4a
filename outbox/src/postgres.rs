//! What is particular to PostgreSQL.

use diesel::deserialize::{self, FromSql};
use diesel::pg::Pg;
use diesel::sql_types::Text;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};

impl OutboxBackend for Pg {}

impl Dialect for Pg {
    const DATABASE: Database = Database::Postgres;

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }
}
