//! Statements written by hand, each prepared once per connection.
//!
//! diesel's `sql_query` prepares its text anew at every call. A type of its own for every statement gives diesel's
//! cache something to recognise it by. Binds are values of the four kinds SQLite knows; a `?` in the text stands for
//! the next of them.

use std::marker::PhantomData;

use diesel::deserialize::FromSqlRow;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::sqlite::Sqlite;
use diesel::{OptionalExtension, QueryResult, RunQueryDsl, SqliteConnection};
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
    T: FromSqlRow<S::Row, Sqlite> + 'static,
    Sqlite: diesel::sql_types::TypeMetadata + diesel::expression::QueryMetadata<S::Row>,
    S::Row: diesel::query_dsl::CompatibleType<T, Sqlite, SqlType = S::Row>,
{
    Statement::<S> { binds, sql: PhantomData }.load(conn)
}

/// Runs a statement that returns exactly one row.
pub(super) fn load_one<S: Sql, T>(conn: &mut SqliteConnection, binds: &[Bind<'_>]) -> QueryResult<T>
where
    T: FromSqlRow<S::Row, Sqlite> + 'static,
    Sqlite: diesel::expression::QueryMetadata<S::Row>,
    S::Row: diesel::query_dsl::CompatibleType<T, Sqlite, SqlType = S::Row>,
{
    Statement::<S> { binds, sql: PhantomData }.get_result(conn)
}

/// Runs a statement that returns one row or none.
pub(super) fn load_optional<S: Sql, T>(conn: &mut SqliteConnection, binds: &[Bind<'_>]) -> QueryResult<Option<T>>
where
    T: FromSqlRow<S::Row, Sqlite> + 'static,
    Sqlite: diesel::expression::QueryMetadata<S::Row>,
    S::Row: diesel::query_dsl::CompatibleType<T, Sqlite, SqlType = S::Row>,
{
    load_one::<S, T>(conn, binds).optional()
}
