//! The schema of the outbox: applied, asked about, taken back, or printed.
//!
//! The SQL lives in the `migrations` folder in diesel's layout and is compiled in. diesel's own harness runs it, but
//! over a version table of ours, `outbox_schema_migrations`: the table diesel shares with the host application would
//! make the host's `diesel migration revert` trip over migrations it does not know.
//!
//! Invariants
//! - Several processes may start at once: one applies, the others wait and find nothing to do.
//! - Where nothing is to be done, nothing is locked or written, so that a role without DDL rights may call [`run`].
//! - PostgreSQL and SQLite apply everything in one transaction. MariaDB and MySQL commit every DDL statement by itself;
//!   there the files are written so that running an interrupted one again completes it, and a version is recorded only
//!   after its file ran to the end.
//!
//! Absent: an async version. Migrations run once, before anything else; over diesel-async use its
//! `AsyncConnectionWrapper` on a thread that may block.

use std::fmt;

use diesel::connection::{BoxableConnection, Connection, LoadConnection};
use diesel::migration::{self, Migration, MigrationMetadata, MigrationName, MigrationSource, MigrationVersion};
use diesel_migrations::MigrationHarness;

use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend, is_in_transaction, load_text, transaction_depth};
use crate::error::Error;

/// Applies every migration that is missing and returns their names.
///
/// Safe when several processes start at once. Everything or nothing is applied, except on MariaDB and MySQL, whose DDL
/// cannot be rolled back: there an interrupted run is completed by the next one.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses; [`Error::Migration`] when another process holds the migration lock for
/// too long, or when it is called inside a transaction on MariaDB or MySQL (the DDL would commit it).
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use diesel::prelude::*;
/// let mut conn = SqliteConnection::establish(":memory:")?;
/// assert_eq!(outbox::migrations::run(&mut conn)?, ["2026-11-22-000000_outbox"]);
/// assert!(outbox::migrations::status(&mut conn)?.iter().all(|migration| migration.is_applied()));
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
pub fn run<C>(conn: &mut C) -> Result<Vec<String>, Error>
where
    C: LoadConnection<Backend: OutboxBackend> + 'static,
{
    patiently(conn, |conn| {
        if status(conn)?.iter().all(|migration| migration.state != State::Pending) {
            return Ok(Vec::new());
        }
        exclusively(conn, |conn| {
            let mut harness = Harness(conn);
            let versions = harness.run_pending_migrations(Source).map_err(migration_error)?;
            Ok(versions.iter().map(|version| name_of(&version.to_string())).collect())
        })
    })
}

/// Takes the newest migration back and returns its name, or `None` when none is applied.
///
/// **Every message, dead letter and result in the tables it drops is lost.** Meant for tests and for leaving the outbox.
pub fn revert<C>(conn: &mut C) -> Result<Option<String>, Error>
where
    C: LoadConnection<Backend: OutboxBackend> + 'static,
{
    patiently(conn, |conn| {
        if status(conn)?.iter().all(|migration| migration.state == State::Pending) {
            return Ok(None);
        }
        exclusively(conn, |conn| {
            if applied_versions(conn)?.is_empty() {
                return Ok(None);
            }
            let version = Harness(conn).revert_last_migration(Source).map_err(migration_error)?;
            Ok(Some(name_of(&version.to_string())))
        })
    })
}

/// Says of every migration known to this build or found in the database whether it is applied, oldest first.
///
/// Reads only; an empty database is a valid answer.
pub fn status<C>(conn: &mut C) -> Result<Vec<MigrationStatus>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let applied = match load_text(conn, version_table_count(database))?.first().map(String::as_str) {
        Some("0") | None => Vec::new(),
        Some(_) => applied_versions(conn)?,
    };
    let mut all: Vec<MigrationStatus> = files(database)
        .iter()
        .map(|file| {
            let state = if applied.contains(&file.version()) { State::Applied } else { State::Pending };
            MigrationStatus { name: file.name.to_owned(), state }
        })
        .collect();
    let unknown = applied.iter().filter(|version| files(database).iter().all(|file| file.version() != **version));
    all.extend(unknown.map(|version| MigrationStatus { name: version.clone(), state: State::Unknown }));
    Ok(all)
}

/// The whole schema as SQL for other migration tools, with the rows that tell this library it is applied.
///
/// Run it in a transaction where the database has transactional DDL.
pub fn sql(database: Database) -> String {
    let mut all = format!("{};\n", version_table_create(database));
    for file in files(database) {
        all.push_str(&format!("\n-- {}\n{}\n{};\n", file.name, file.up.trim_end(), version_insert(&file.version())));
    }
    all
}

/// One migration and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Its name, such as `2026-11-22-000000_outbox`; for one this build does not know only its number.
    pub name: String,
    /// Whether it is applied.
    pub state: State,
}

impl MigrationStatus {
    /// True when the database has it.
    pub fn is_applied(&self) -> bool {
        self.state != State::Pending
    }
}

/// Whether a migration is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    Applied,
    /// It is not; [`run`] would apply it.
    Pending,
    /// It is, but this build does not know it: a newer release was here.
    Unknown,
}

/// Runs `work` while no other process can migrate this outbox, with the version table in place.
fn exclusively<C, R>(conn: &mut C, work: impl FnOnce(&mut C) -> Result<R, Error>) -> Result<R, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let create = version_table_create(<C::Backend as Dialect>::DATABASE);
    match <C::Backend as Dialect>::DATABASE {
        Database::Postgres => conn.transaction(|conn| {
            if transaction_depth(conn)? == 1 {
                // Under a stricter level everything would be read as of before we waited for the lock.
                conn.batch_execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")?;
            }
            load_text(
                conn,
                "SELECT pg_advisory_xact_lock(hashtextextended('outbox_schema_migrations ' || current_schema(), 0))::text",
            )?;
            conn.batch_execute(create)?;
            work(conn)
        }),
        Database::Sqlite => {
            conn.batch_execute(create)?;
            conn.transaction(|conn| {
                // The first statement writes, so it waits for the write lock before it reads anything.
                conn.batch_execute("DELETE FROM outbox_schema_migrations WHERE version = ''")?;
                work(conn)
            })
        }
        Database::Mysql => {
            if is_in_transaction(conn)? {
                return Err(Error::Migration(
                    "migrations were called inside a transaction.\n  The server would commit it at the first DDL \
                     statement.\n  help: call `migrations::run` before `conn.transaction(|conn| …)`."
                        .to_owned(),
                ));
            }
            let locked = load_text(
                conn,
                "SELECT CAST(coalesce(get_lock(concat('outbox_migrations:', md5(database())), 60), 0) AS CHAR)",
            )?;
            if locked != ["1"] {
                return Err(Error::Migration(
                    "the migration lock of this database was not free within a minute.\n  help: another process is \
                     migrating; wait for it and try again."
                        .to_owned(),
                ));
            }
            let result = conn.batch_execute(create).map_err(Error::from).and_then(|()| work(conn));
            // The lock also ends with the session, so a failure to release it must not hide the result.
            let _ = load_text(
                conn,
                "SELECT CAST(coalesce(release_lock(concat('outbox_migrations:', md5(database()))), 0) AS CHAR)",
            );
            result
        }
    }
}

/// Lets SQLite wait for another process while `work` runs: diesel's connections give up at once unless told otherwise.
/// The servers wait by themselves.
fn patiently<C, R>(conn: &mut C, work: impl FnOnce(&mut C) -> Result<R, Error>) -> Result<R, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    const PATIENCE_MS: u32 = 60_000;
    if <C::Backend as Dialect>::DATABASE != Database::Sqlite {
        return work(conn);
    }
    // The plain pragma, because any other statement reads the schema first, and may find it locked.
    let before = load_text(conn, "PRAGMA busy_timeout")?;
    let before: u32 = before.first().and_then(|ms| ms.parse().ok()).unwrap_or(0);
    conn.batch_execute(&format!("PRAGMA busy_timeout = {}", before.max(PATIENCE_MS)))?;
    let result = work(conn);
    conn.batch_execute(&format!("PRAGMA busy_timeout = {before}"))?;
    result
}

/// diesel's harness over our own version table.
struct Harness<'a, C>(&'a mut C);

impl<C, DB> MigrationHarness<DB> for Harness<'_, C>
where
    DB: OutboxBackend,
    C: LoadConnection<Backend = DB> + 'static,
{
    fn run_migration(&mut self, migration: &dyn Migration<DB>) -> migration::Result<MigrationVersion<'static>> {
        let version = migration.name().version().as_owned();
        self.step(migration, |conn| {
            migration.run(conn)?;
            Ok(conn.batch_execute(&version_insert(&version.to_string()))?)
        })?;
        Ok(version)
    }

    fn revert_migration(&mut self, migration: &dyn Migration<DB>) -> migration::Result<MigrationVersion<'static>> {
        let version = migration.name().version().as_owned();
        self.step(migration, |conn| {
            migration.revert(conn)?;
            Ok(conn.batch_execute(&format!("DELETE FROM outbox_schema_migrations WHERE version = '{version}'"))?)
        })?;
        Ok(version)
    }

    fn applied_migrations(&mut self) -> migration::Result<Vec<MigrationVersion<'static>>> {
        let versions = applied_versions(self.0)?;
        Ok(versions.into_iter().rev().map(MigrationVersion::from).collect())
    }
}

impl<C: Connection> Harness<'_, C> {
    fn step<DB: OutboxBackend>(
        &mut self,
        migration: &dyn Migration<DB>,
        work: impl FnOnce(&mut C) -> migration::Result<()>,
    ) -> migration::Result<()> {
        if migration.metadata().run_in_transaction() { self.0.transaction(work) } else { work(self.0) }
    }
}

/// Every migration of a database, as diesel's harness wants them.
struct Source;

impl<DB: OutboxBackend> MigrationSource<DB> for Source {
    fn migrations(&self) -> migration::Result<Vec<Box<dyn Migration<DB>>>> {
        Ok(files(DB::DATABASE).iter().map(|file| Box::new(*file) as Box<dyn Migration<DB>>).collect())
    }
}

/// A migration as it lies in the folder.
#[derive(Clone, Copy)]
struct File {
    name: &'static str,
    up: &'static str,
    down: &'static str,
}

impl File {
    /// What is recorded: the digits before the name, as diesel does it.
    fn version(&self) -> String {
        self.name.split('_').next().unwrap_or_default().replace('-', "")
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl MigrationName for File {
    fn version(&self) -> MigrationVersion<'_> {
        MigrationVersion::from(File::version(self))
    }
}

/// Savepoints around DDL mean nothing on MariaDB and MySQL.
struct Untransacted;

impl MigrationMetadata for Untransacted {
    fn run_in_transaction(&self) -> bool {
        false
    }
}

/// The default: in a transaction.
struct Transacted;

impl MigrationMetadata for Transacted {}

impl<DB: OutboxBackend> Migration<DB> for File {
    fn run(&self, conn: &mut dyn BoxableConnection<DB>) -> migration::Result<()> {
        Ok(conn.batch_execute(self.up)?)
    }

    fn revert(&self, conn: &mut dyn BoxableConnection<DB>) -> migration::Result<()> {
        Ok(conn.batch_execute(self.down)?)
    }

    fn metadata(&self) -> &dyn MigrationMetadata {
        match DB::DATABASE {
            Database::Mysql => &Untransacted,
            Database::Postgres | Database::Sqlite => &Transacted,
        }
    }

    fn name(&self) -> &dyn MigrationName {
        self
    }
}

fn applied_versions<C>(conn: &mut C) -> Result<Vec<String>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    load_text(conn, "SELECT version FROM outbox_schema_migrations ORDER BY version")
}

/// The name of a recorded version. The numbers are the same in all three trees.
fn name_of(version: &str) -> String {
    let known = files(Database::Postgres).iter().find(|file| file.version() == version);
    known.map_or_else(|| version.to_owned(), |file| file.name.to_owned())
}

fn migration_error(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    let error = match error.downcast::<diesel::result::Error>() {
        Ok(error) => return Error::from(*error),
        Err(error) => error,
    };
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::Migration(error.to_string()),
    }
}

fn version_table_create(database: Database) -> &'static str {
    match database {
        Database::Postgres => {
            "CREATE TABLE IF NOT EXISTS outbox_schema_migrations (\n    \
             version text PRIMARY KEY,\n    \
             run_on timestamptz NOT NULL DEFAULT clock_timestamp()\n)"
        }
        Database::Mysql => {
            "CREATE TABLE IF NOT EXISTS outbox_schema_migrations (\n    \
             version VARCHAR(64) NOT NULL PRIMARY KEY,\n    \
             run_on DATETIME(6) NOT NULL DEFAULT (utc_timestamp(6))\n\
             ) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        }
        Database::Sqlite => {
            "CREATE TABLE IF NOT EXISTS outbox_schema_migrations (\n    \
             version TEXT NOT NULL PRIMARY KEY,\n    \
             run_on INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))\n)"
        }
    }
}

fn version_table_count(database: Database) -> &'static str {
    match database {
        Database::Postgres => "SELECT (to_regclass('outbox_schema_migrations') IS NOT NULL)::integer::text",
        Database::Mysql => {
            "SELECT CAST(count(*) AS CHAR) FROM information_schema.tables \
             WHERE table_schema = database() AND table_name = 'outbox_schema_migrations'"
        }
        Database::Sqlite => {
            "SELECT CAST(count(*) AS TEXT) FROM sqlite_master \
             WHERE type = 'table' AND name = 'outbox_schema_migrations'"
        }
    }
}

fn version_insert(version: &str) -> String {
    // Ours and made of digits, so it needs no bind.
    format!("INSERT INTO outbox_schema_migrations (version) VALUES ('{version}')")
}

macro_rules! files {
    ($database:literal: $($name:literal),+) => {
        &[$(File {
            name: $name,
            up: include_str!(concat!("../migrations/", $database, "/", $name, "/up.sql")),
            down: include_str!(concat!("../migrations/", $database, "/", $name, "/down.sql")),
        }),+]
    };
}

/// The migrations of a database, oldest first; the same names on all three.
fn files(database: Database) -> &'static [File] {
    match database {
        Database::Postgres => files!("postgres": "2026-11-22-000000_outbox"),
        Database::Mysql => files!("mysql": "2026-11-22-000000_outbox"),
        Database::Sqlite => files!("sqlite": "2026-11-22-000000_outbox"),
    }
}
