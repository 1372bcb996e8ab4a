//! A statement put together from SQL and bound texts, for work by hand: never cached, one text column at most.
//!
//! Texts are always bound. Numbers stand in the SQL: an integer cannot be anything else there.

use diesel::RunQueryDsl;
use diesel::connection::{Connection, LoadConnection};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::Text;

use crate::connection::{Database, OutboxBackend, TextColumn};
use crate::error::Error;

/// SQL and texts in their order.
pub(crate) struct Statement {
    parts: Vec<Part>,
}

enum Part {
    Sql(String),
    Text(String),
}

impl Statement {
    /// Begins with this SQL.
    pub(crate) fn new(sql: impl Into<String>) -> Statement {
        Statement { parts: vec![Part::Sql(sql.into())] }
    }

    /// Appends SQL.
    pub(crate) fn sql(mut self, sql: impl Into<String>) -> Statement {
        self.parts.push(Part::Sql(sql.into()));
        self
    }

    /// Appends a bound text.
    pub(crate) fn text(mut self, text: &str) -> Statement {
        self.parts.push(Part::Text(text.to_owned()));
        self
    }

    /// Appends a bound text, or NULL.
    pub(crate) fn optional_text(self, text: Option<&str>) -> Statement {
        match text {
            Some(text) => self.text(text),
            None => self.sql("NULL"),
        }
    }

    /// Appends the condition that a column holds exactly this text.
    ///
    /// MariaDB and MySQL compare texts as if the shorter one ended in spaces; the length tells such texts apart. The
    /// comparison itself stays, for the sake of the indexes.
    pub(crate) fn is(self, database: Database, column: &str, text: &str) -> Statement {
        let compared = self.sql(format!("{column} = ")).text(text);
        match database {
            Database::Mysql => compared.sql(format!(" AND octet_length({column}) = {}", text.len())),
            Database::Postgres | Database::Sqlite => compared,
        }
    }

    /// Runs it and returns its one column.
    pub(crate) fn load<C>(self, conn: &mut C) -> Result<Vec<String>, Error>
    where
        C: LoadConnection<Backend: OutboxBackend>,
    {
        let rows: Vec<TextColumn> = RunQueryDsl::load(self, conn)?;
        Ok(rows.into_iter().map(|row| row.0).collect())
    }

    /// Runs it and returns its one column, which holds whole numbers written as text.
    pub(crate) fn load_numbers<C>(self, conn: &mut C) -> Result<Vec<i64>, Error>
    where
        C: LoadConnection<Backend: OutboxBackend>,
    {
        self.load(conn)?.iter().map(|text| text.parse().map_err(unreadable)).collect()
    }

    /// Runs it.
    pub(crate) fn execute<C>(self, conn: &mut C) -> Result<usize, Error>
    where
        C: Connection<Backend: OutboxBackend>,
    {
        Ok(RunQueryDsl::execute(self, conn)?)
    }
}

/// What does not read as it was written; only a change of the schema behind our back gets here.
pub(crate) fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Database(diesel::result::Error::DeserializationError(Box::new(error)))
}

impl Query for Statement {
    type SqlType = Text;
}

impl QueryId for Statement {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: OutboxBackend> QueryFragment<DB> for Statement {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        for part in &self.parts {
            match part {
                Part::Sql(sql) => out.push_sql(sql),
                Part::Text(text) => DB::bind_text(text, &mut out)?,
            }
        }
        Ok(())
    }
}

impl<C: Connection> RunQueryDsl<C> for Statement {}
