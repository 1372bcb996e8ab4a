//! What is particular to MariaDB.

use diesel::deserialize::{self, FromSql};
use diesel::mysql::Mysql;
use diesel::sql_types::Text;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};

impl OutboxBackend for Mysql {}

impl Dialect for Mysql {
    const DATABASE: Database = Database::Mysql;

    fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String> {
        FromSql::<Text, Self>::from_sql(raw)
    }
}
