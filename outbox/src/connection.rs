//! What the library asks of a connection and of the database behind it.
//!
//! One sealed trait keeps the bounds of every public function down to `C: Connection<Backend: OutboxBackend>`. Where the
//! three databases differ, they differ in `postgres.rs`, `mysql.rs` and `sqlite.rs`; this file knows only the questions.
//!
//! Deliberately absent: the connection types. Naming one would pull its C client library into every build, so
//! everything here goes through diesel's traits, which pools and wrappers implement too.

use diesel::RunQueryDsl;
use diesel::connection::TransactionManager;
use diesel::connection::{Connection, LoadConnection};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::QueryResult;
use diesel::sql_types::Text;

use crate::error::Error;

/// Names one of the databases an outbox can live in.
///
/// MariaDB and MySQL share one name: they share the schema and the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Database {
    /// PostgreSQL.
    Postgres,
    /// MariaDB and MySQL.
    Mysql,
    /// SQLite.
    Sqlite,
}

/// Marks diesel's backends that can hold an outbox: `Pg`, `Mysql` and `Sqlite`, each behind the feature of its name.
///
/// Write code that is generic over the database as `C: diesel::connection::LoadConnection<Backend: OutboxBackend>`. A
/// `diesel::MultiConnection` is not such a connection; match on it and call with the connection inside.
#[diagnostic::on_unimplemented(
    message = "an outbox cannot be used through a connection with the backend `{Self}`",
    label = "this backend has no outbox",
    note = "with a `diesel::MultiConnection`, match on it and use the connection inside",
    note = "otherwise switch on the feature `postgres`, `mysql` or `sqlite` of `outbox`"
)]
pub trait OutboxBackend: sealed::Dialect {}

pub(crate) mod sealed {
    use std::sync::atomic::{AtomicBool, Ordering};

    use diesel::backend::Backend;
    use diesel::deserialize;
    use diesel::expression::QueryMetadata;
    use diesel::query_builder::AstPass;
    use diesel::result::{Error as DieselError, QueryResult};
    use diesel::sql_types::Text;

    use super::Database;
    use crate::insert::{Proof, Row};

    /// What each database does in its own way.
    pub trait Dialect: Backend + QueryMetadata<Text> + 'static {
        /// Which database this is.
        const DATABASE: Database;

        /// Messages as the statement for many takes them.
        type Batch: Send + Sync;

        /// The most messages of one statement.
        const ROWS_MAX: usize;

        /// The most bytes of one statement.
        const BYTES_MAX: usize;

        /// Runs first in a transaction whose commit is to be proven.
        const MARK: Option<&'static str> = Some("SAVEPOINT outbox_transaction");

        /// Runs last in it, and fails unless it is still the same transaction and can commit.
        const PROOF: &'static str = "RELEASE SAVEPOINT outbox_transaction";

        /// Reads a text column.
        fn text_from_sql(raw: Self::RawValue<'_>) -> deserialize::Result<String>;

        /// Appends a bound text to a statement.
        fn bind_text<'b>(text: &'b str, out: &mut AstPass<'_, 'b, Self>) -> QueryResult<()>;

        /// Collects messages for `message_insert_many`.
        fn batch(rows: Vec<Row>) -> Self::Batch;

        /// Writes the statement that inserts one message; the same text for every message.
        fn message_insert<'b>(row: &'b Row, proof: Proof, out: AstPass<'_, 'b, Self>) -> QueryResult<()>;

        /// Writes the statement that inserts many messages in their order.
        fn message_insert_many<'b>(batch: &'b Self::Batch, proof: Proof, out: AstPass<'_, 'b, Self>)
        -> QueryResult<()>;

        /// Tells what the failure of an insert says about the transaction.
        fn judge(_error: &DieselError) -> Judgement {
            Judgement::Unrelated
        }

        /// Statements that fail outside a transaction, for servers that cannot tell within the insert.
        fn probe() -> Option<&'static Probe> {
            None
        }
    }

    /// What the failure of an insert says about the transaction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Judgement {
        /// Nothing.
        Unrelated,
        /// The server is not in one.
        NotInTransaction,
        /// This server cannot tell; it must be probed.
        CannotTell,
    }

    /// How to find out whether a server is in a transaction.
    #[derive(Debug)]
    pub struct Probe {
        /// Changes nothing; fails outside a transaction.
        pub(crate) sql: &'static str,
        /// Set once a server of this process turned out to need it. On others it costs a round trip and does no harm.
        pub(crate) needed: AtomicBool,
    }

    impl Probe {
        pub(crate) fn is_needed(&self) -> bool {
            self.needed.load(Ordering::Relaxed)
        }

        pub(crate) fn is_needed_from_now_on(&self) {
            self.needed.store(true, Ordering::Relaxed);
        }
    }
}

/// True while diesel believes that a transaction is open.
///
/// This is what diesel counts, not what the server knows: a plain `BEGIN` is not seen, and a transaction that the
/// server has ended by itself still counts.
pub(crate) fn is_in_transaction<C: Connection>(conn: &mut C) -> Result<bool, Error> {
    Ok(transaction_depth(conn)? > 0)
}

/// How many transactions and savepoints diesel has open.
pub(crate) fn transaction_depth<C: Connection>(conn: &mut C) -> Result<u32, Error> {
    let depth = C::TransactionManager::transaction_manager_status_mut(conn).transaction_depth()?;
    Ok(depth.map_or(0, |depth| depth.get()))
}

/// Runs a query that returns one column of text.
pub(crate) fn load_text<C>(conn: &mut C, sql: impl Into<String>) -> Result<Vec<String>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let rows: Vec<TextColumn> = TextQuery(sql.into()).load(conn)?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}

/// A text column of any of our databases.
#[derive(Debug, FromSqlRow)]
#[diesel(sql_type = Text)]
pub(crate) struct TextColumn(pub(crate) String);

impl<DB: OutboxBackend> FromSql<Text, DB> for TextColumn {
    fn from_sql(raw: DB::RawValue<'_>) -> deserialize::Result<Self> {
        DB::text_from_sql(raw).map(TextColumn)
    }
}

/// A query without binds, never cached.
struct TextQuery(String);

impl Query for TextQuery {
    type SqlType = Text;
}

impl QueryId for TextQuery {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: OutboxBackend> QueryFragment<DB> for TextQuery {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.unsafe_to_cache_prepared();
        out.push_sql(&self.0);
        Ok(())
    }
}

impl<C: Connection> RunQueryDsl<C> for TextQuery {}
