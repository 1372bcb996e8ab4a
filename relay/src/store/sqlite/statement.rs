//! Statements written by hand, each prepared once per connection.
//!
//! diesel's `sql_query` prepares its text anew at every call. A type of its own for every statement gives diesel's
//! cache something to recognise it by. Binds are values of the four kinds SQLite knows; a `?` in the text stands for
//! the next of them.

use std::marker::PhantomData;

use diesel::connection::LoadConnection;
use diesel::deserialize::FromSqlRow;
use diesel::expression::QueryMetadata;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::sqlite::Sqlite;
use diesel::{QueryResult, RunQueryDsl, SqliteConnection};
use uuid::Uuid;

/// A statement's text and the types of its columns. The type is its name in diesel's cache.
pub(super) trait Sql: 'static {
    /// The text, without a `?` that is not a bind.
    const TEXT: &'static str;
    /// The types of the columns, `()` when it returns nothing.
    type Row;
}

/// Declares a statement: `statement!(Name, "text")` or, with the types of its columns, `statement!(Name, "text", T)`.
macro_rules! statement {
    ($name:ident, $text:expr) => {
        statement!($name, $text, ());
    };
    ($name:ident, $text:expr, $row:ty) => {
        struct $name;
        impl $crate::store::sqlite::statement::Sql for $name {
            const TEXT: &'static str = $text;
            type Row = $row;
        }
    };
}
pub(super) use statement;

/// A value for a `?`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bind<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl From<i64> for Bind<'_> {
    fn from(value: i64) -> Self {
        Bind::Integer(value)
    }
}

impl From<u8> for Bind<'_> {
    fn from(value: u8) -> Self {
        Bind::Integer(value.into())
    }
}

impl From<u32> for Bind<'_> {
    fn from(value: u32) -> Self {
        Bind::Integer(value.into())
    }
}

impl From<bool> for Bind<'_> {
    fn from(value: bool) -> Self {
        Bind::Integer(value.into())
    }
}

impl<'a> From<&'a str> for Bind<'a> {
    fn from(value: &'a str) -> Self {
        Bind::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Bind<'a> {
    fn from(value: &'a [u8]) -> Self {
        Bind::Bytes(value)
    }
}

impl<'a> From<&'a Uuid> for Bind<'a> {
    fn from(value: &'a Uuid) -> Self {
        Bind::Bytes(value.as_bytes())
    }
}

impl<'a, T: Into<Bind<'a>>> From<Option<T>> for Bind<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Bind::Null, Into::into)
    }
}

struct Statement<'a, S> {
    binds: &'a [Bind<'a>],
    sql: PhantomData<S>,
}

impl<S: Sql> Query for Statement<'_, S> {
    type SqlType = S::Row;
}

impl<S: Sql> QueryId for Statement<'_, S> {
    type QueryId = S;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<S> RunQueryDsl<SqliteConnection> for Statement<'_, S> {}

impl<S: Sql> QueryFragment<Sqlite> for Statement<'_, S> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let mut pieces = S::TEXT.split('?');
        out.push_sql(pieces.next().expect("a split text has a first piece"));
        for bind in self.binds {
            match bind {
                Bind::Null => out.push_bind_param::<Nullable<BigInt>, _>(&None::<i64>)?,
                Bind::Integer(value) => out.push_bind_param::<BigInt, _>(value)?,
                Bind::Text(value) => out.push_bind_param::<Text, str>(value)?,
                Bind::Bytes(value) => out.push_bind_param::<Binary, [u8]>(value)?,
            }
            out.push_sql(pieces.next().expect("a statement has as many `?` as it is given binds"));
        }
        debug_assert!(pieces.next().is_none(), "a bind is missing for `{}`", S::TEXT);
        Ok(())
    }
}

/// Runs a statement that returns nothing; how many rows it changed.
pub(super) fn execute<S: Sql>(conn: &mut SqliteConnection, binds: &[Bind<'_>]) -> QueryResult<usize> {
    RunQueryDsl::execute(Statement::<S> { binds, sql: PhantomData }, conn)
}

/// Runs a statement and reads all its rows.
pub(super) fn load<S: Sql, T>(conn: &mut SqliteConnection, binds: &[Bind<'_>]) -> QueryResult<Vec<T>>
where
    T: FromSqlRow<S::Row, Sqlite>,
    Sqlite: QueryMetadata<S::Row>,
{
    let rows = LoadConnection::load(conn, Statement::<S> { binds, sql: PhantomData })?;
    rows.map(|row| T::build_from_row(&row?).map_err(Error::DeserializationError)).collect()
}

/// Runs a statement that returns exactly one row.
pub(super) fn load_one<S: Sql, T>(conn: &mut SqliteConnection, binds: &[Bind<'_>]) -> QueryResult<T>
where
    T: FromSqlRow<S::Row, Sqlite>,
    Sqlite: QueryMetadata<S::Row>,
{
    load_optional::<S, T>(conn, binds)?.ok_or(Error::NotFound)
}

/// Runs a statement that returns one row or none.
pub(super) fn load_optional<S: Sql, T>(conn: &mut SqliteConnection, binds: &[Bind<'_>]) -> QueryResult<Option<T>>
where
    T: FromSqlRow<S::Row, Sqlite>,
    Sqlite: QueryMetadata<S::Row>,
{
    Ok(load::<S, T>(conn, binds)?.pop())
}

/// How SQLite would run a statement on empty tables, one step to a line.
#[cfg(test)]
pub(super) fn plan(text: &str) -> String {
    use diesel::Connection;
    use diesel::connection::SimpleConnection;

    #[derive(diesel::QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }
    let mut conn = SqliteConnection::establish(":memory:").unwrap();
    conn.batch_execute(include_str!("../../../../migrations/sqlite/2026-11-22-000000_outbox/up.sql")).unwrap();
    let steps: Vec<Step> = diesel::sql_query(format!("EXPLAIN QUERY PLAN {text}")).load(&mut conn).unwrap();
    steps.into_iter().map(|step| step.detail).collect::<Vec<_>>().join("\n")
}
