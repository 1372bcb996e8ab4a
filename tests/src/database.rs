//! A private database for each test.
//!
//! Every [`TestDatabase`] is its own database (a file on SQLite) on the server `tests/run` started, and is gone when
//! it is dropped, also when the test panics or left connections open. A missing server fails the test: a skipped test
//! proves nothing.
//!
//! Everything here is synchronous and goes through the C clients, so that it works the same inside and outside a
//! runtime and shares no driver with the relay. Calls block for milliseconds; under tokio use the multi-threaded
//! flavour, as [`for_each_database!`](crate::for_each_database) does.
//!
//! [`TestDatabase::apply_schema`] runs the files of `migrations/` as they are. The library's own way of migrating is
//! deliberately absent: it is a subject of the tests, not a tool of theirs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::server::Server;
use diesel::connection::SimpleConnection;
use diesel::deserialize::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{Connection, MysqlConnection, PgConnection, QueryResult, RunQueryDsl, SqliteConnection, sql_query};

/// Where the PostgreSQL server for tests is.
pub const POSTGRES_VARIABLE: &str = "OUTBOX_TEST_POSTGRES_URL";
/// Where the MariaDB server for tests is.
pub const MARIADB_VARIABLE: &str = "OUTBOX_TEST_MARIADB_URL";

/// The databases everything is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// MariaDB, reached as the relay reaches MySQL.
    Mariadb,
    /// SQLite.
    Sqlite,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Postgres, Kind::Mariadb, Kind::Sqlite];

    /// The folder below `migrations/`.
    pub fn migrations(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::Mariadb => "mysql",
            Kind::Sqlite => "sqlite",
        }
    }

    /// The URL of the server, with its maintenance database; empty for SQLite, which has none.
    ///
    /// # Panics
    ///
    /// When the variable is not set: the tests were not started through `tests/run`.
    pub fn server_url(self) -> String {
        let variable = match self {
            Kind::Postgres => POSTGRES_VARIABLE,
            Kind::Mariadb => MARIADB_VARIABLE,
            Kind::Sqlite => return String::new(),
        };
        std::env::var(variable).unwrap_or_else(|_| {
            panic!(
                "no {self} server: `{variable}` is not set.\n  help: run the tests with `tests/run`, which starts \
                 private servers; or keep servers running with `tests/run --servers` and export what it prints"
            )
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Postgres => "PostgreSQL",
            Kind::Mariadb => "MariaDB",
            Kind::Sqlite => "SQLite",
        })
    }
}

/// A database nobody else uses; dropped with the value.
#[derive(Debug)]
pub struct TestDatabase {
    kind: Kind,
    place: Place,
    url: String,
    looks: Looks,
}

/// Connections kept for looking: many tests look again and again, and to log in takes longer than the look.
#[derive(Default)]
struct Looks {
    postgres: Mutex<Option<PgConnection>>,
    mariadb: Mutex<Option<MysqlConnection>>,
}

impl fmt::Debug for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Looks")
    }
}

#[derive(Debug)]
enum Place {
    Server { server: String, name: String },
    File { path: PathBuf, _folder: tempfile::TempDir },
}

impl TestDatabase {
    /// Makes a fresh database without any table.
    pub fn create(kind: Kind) -> TestDatabase {
        TestDatabase::create_on(kind, kind.server_url())
    }

    /// Makes a fresh database that holds the outbox' schema on a server of the test's own. It goes with the server.
    pub fn on(server: &Server) -> TestDatabase {
        let database = TestDatabase::create_on(server.kind(), server.url());
        database.apply_schema();
        database
    }

    /// The same database, reached by another address.
    pub fn at(&self, url: &str) -> TestDatabase {
        let place = Place::Server { server: String::new(), name: self.name().to_owned() };
        TestDatabase { kind: self.kind, place, url: url.to_owned(), looks: Looks::default() }
    }

    fn create_on(kind: Kind, server: String) -> TestDatabase {
        match kind {
            Kind::Sqlite => {
                let folder = tempfile::Builder::new().prefix("outbox-test-").tempdir().unwrap();
                let path = folder.path().join("outbox.db");
                let url = format!("sqlite:{}", path.display());
                TestDatabase { kind, place: Place::File { path, _folder: folder }, url, looks: Looks::default() }
            }
            Kind::Postgres | Kind::Mariadb => {
                let name = format!("outbox_test_{:016x}", rand::random::<u64>());
                let created = match kind {
                    Kind::Postgres => on_postgres(&server, &format!("CREATE DATABASE {name}")),
                    _ => {
                        CLIENT_READS_TEXT.call_once(|| check_mariadb_client(&server));
                        on_mariadb(&server, &format!("CREATE DATABASE {name}"))
                    }
                };
                created.unwrap_or_else(|error| panic!("cannot create a database on {kind} at `{server}`: {error}"));
                let url = with_database(&server, &name);
                TestDatabase { kind, url, place: Place::Server { server, name }, looks: Looks::default() }
            }
        }
    }

    /// Makes a fresh database that holds the outbox' schema.
    pub fn with_schema(kind: Kind) -> TestDatabase {
        let database = TestDatabase::create(kind);
        database.apply_schema();
        database
    }

    /// Runs every `migrations/<kind>/*/up.sql`, oldest first.
    pub fn apply_schema(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(self.kind.migrations());
        let mut files: Vec<PathBuf> = std::fs::read_dir(&root)
            .unwrap_or_else(|error| panic!("no migrations for {} in `{}`: {error}", self.kind, root.display()))
            .map(|entry| entry.unwrap().path().join("up.sql"))
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "`{}` holds no migration", root.display());
        for file in files {
            let sql = std::fs::read_to_string(&file).unwrap();
            self.try_exec(&sql).unwrap_or_else(|error| panic!("`{}` failed: {error}", file.display()));
        }
    }

    /// Which database this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The URL as the relay takes it: `postgres://…`, `mysql://…` or `sqlite:/path`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file of a SQLite database.
    ///
    /// # Panics
    ///
    /// On another kind.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::File { path, .. } => path,
            Place::Server { .. } => panic!("{} is not a file", self.kind),
        }
    }

    /// The database's name on its server.
    ///
    /// # Panics
    ///
    /// On SQLite.
    pub fn name(&self) -> &str {
        match &self.place {
            Place::Server { name, .. } => name,
            Place::File { .. } => panic!("{} has no server", self.kind),
        }
    }

    /// A new connection through libpq.
    pub fn postgres(&self) -> PgConnection {
        assert_eq!(self.kind, Kind::Postgres);
        PgConnection::establish(&self.url).unwrap()
    }

    /// A new connection through libmariadb.
    pub fn mariadb(&self) -> MysqlConnection {
        assert_eq!(self.kind, Kind::Mariadb);
        MysqlConnection::establish(&self.url).unwrap()
    }

    /// A new connection that waits for the writer rather than fail.
    pub fn sqlite(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(self.path().to_str().unwrap()).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        conn
    }

    /// Runs one or several statements on a connection of their own, in autocommit.
    ///
    /// # Panics
    ///
    /// When the database refuses; [`try_exec`](TestDatabase::try_exec) returns the error instead.
    pub fn exec(&self, sql: &str) {
        self.try_exec(sql).unwrap_or_else(|error| panic!("{} refused `{sql}`: {error}", self.kind));
    }

    /// Runs one or several statements on a connection of their own and returns what the database said.
    pub fn try_exec(&self, sql: &str) -> QueryResult<()> {
        match self.kind {
            Kind::Postgres => self.postgres().batch_execute(sql),
            Kind::Mariadb => self.mariadb().batch_execute(sql),
            Kind::Sqlite => self.sqlite().batch_execute(sql),
        }
    }

    /// Waits until somebody in this database waits for a lock.
    ///
    /// # Panics
    ///
    /// When nobody does within ten seconds, with what was expected; and on SQLite, which does not tell.
    pub fn until_a_lock_is_waited_for(&self, expected: &str) {
        let waiting = match self.kind {
            Kind::Postgres => "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            Kind::Mariadb => {
                "information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id \
                 WHERE db = database() AND trx_state = 'LOCK WAIT'"
            }
            Kind::Sqlite => panic!("SQLite does not tell who waits"),
        };
        let started = Instant::now();
        while self.query_i64(&format!("SELECT count(*) FROM {waiting}")) == 0 {
            assert!(started.elapsed() < Duration::from_secs(10), "not within 10 s: {expected}");
            // InnoDB shows the same answer again to who asks ten times a second.
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// The one number a SELECT of one row and one column returns.
    ///
    /// # Panics
    ///
    /// When there is no row, or its value is NULL.
    pub fn query_i64(&self, select: &str) -> i64 {
        // Databases disagree about the type of `count(*)` and friends.
        let integer = if self.kind == Kind::Mariadb { "SIGNED" } else { "bigint" };
        let rows: Vec<Number> = self.load(&format!("SELECT CAST(({select}) AS {integer}) AS value"));
        rows[0].value.unwrap_or_else(|| panic!("`{select}` returned nothing on {}", self.kind))
    }

    /// The texts a SELECT of one column returns, in its order. The column must be of a text type.
    pub fn query_text(&self, select: &str) -> Vec<Option<String>> {
        // Named here, because a column is found by its name and every database names expressions differently.
        let rows: Vec<Line> = self.load(&format!("WITH answer (value) AS ({select}) SELECT value FROM answer"));
        rows.into_iter().map(|row| row.value).collect()
    }

    fn load<R>(&self, sql: &str) -> Vec<R>
    where
        R: QueryableByName<diesel::pg::Pg>
            + QueryableByName<diesel::mysql::Mysql>
            + QueryableByName<diesel::sqlite::Sqlite>
            + 'static,
    {
        match self.kind {
            Kind::Postgres => look(&self.looks.postgres, || self.postgres(), |conn| sql_query(sql).load(conn)),
            Kind::Mariadb => look(&self.looks.mariadb, || self.mariadb(), |conn| sql_query(sql).load(conn)),
            Kind::Sqlite => sql_query(sql).load(&mut self.sqlite()),
        }
        .unwrap_or_else(|error| panic!("{} refused `{sql}`: {error}", self.kind))
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Place::Server { server, name } = &self.place else { return };
        // A server of the test's own is about to go, or has gone; another's database is not ours to drop.
        if *server != self.kind.server_url() {
            return;
        }
        let dropped = match self.kind {
            Kind::Postgres => on_postgres(server, &format!("DROP DATABASE {name} WITH (FORCE)")),
            _ => drop_on_mariadb(server, name),
        };
        // A second panic would hide why the test failed.
        if let Err(error) = dropped {
            eprintln!("cannot drop {name} on {}: {error}", self.kind);
        }
    }
}

/// Asks over the connection that is kept, or over a new one when that has ended: tests end connections, and servers.
fn look<C, R>(
    kept: &Mutex<Option<C>>,
    connect: impl Fn() -> C,
    ask: impl Fn(&mut C) -> QueryResult<R>,
) -> QueryResult<R> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mut conn) = kept.take()
        && let Ok(answer) = ask(&mut conn)
    {
        *kept = Some(conn);
        return Ok(answer);
    }
    let mut conn = connect();
    let answer = ask(&mut conn)?;
    *kept = Some(conn);
    Ok(answer)
}

fn on_postgres(server: &str, sql: &str) -> Result<(), Box<dyn std::error::Error>> {
    Ok(PgConnection::establish(server)?.batch_execute(sql)?)
}

fn on_mariadb(server: &str, sql: &str) -> Result<(), Box<dyn std::error::Error>> {
    Ok(MysqlConnection::establish(server)?.batch_execute(sql)?)
}

static CLIENT_READS_TEXT: Once = Once::new();

/// Some releases of MariaDB's C client (Debian's 10.11.18 among them) return the first longer text of a result as
/// empty; see CONC-821 there and #5091 of diesel. Said once and plainly here, rather than by odd failures elsewhere.
fn check_mariadb_client(server: &str) {
    let Ok(mut conn) = MysqlConnection::establish(server) else { return };
    let rows: QueryResult<Vec<Line>> = sql_query("SELECT repeat('x', 100) AS value").load(&mut conn);
    let value = rows.ok().and_then(|mut rows| rows.pop()).and_then(|row| row.value);
    assert!(
        value.is_some_and(|value| value.len() == 100),
        "this machine's libmariadb loses text (its bug CONC-821), so nothing read through it can be trusted.\n  help: \
         upgrade it; on Debian 12: `apt-get update && apt-get install libmariadb3` gives 10.11.19 or later"
    );
}

/// DROP DATABASE waits for every transaction that touched one of its tables, so those who are left must go first.
fn drop_on_mariadb(server: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut conn = MysqlConnection::establish(server)?;
    conn.batch_execute("SET SESSION lock_wait_timeout = 10")?;
    let left: Vec<Number> = sql_query(format!(
        "SELECT CAST(id AS SIGNED) AS value FROM information_schema.processlist WHERE db = '{name}'"
    ))
    .load(&mut conn)?;
    for id in left.into_iter().filter_map(|row| row.value) {
        // It may have ended by itself meanwhile.
        let _ = conn.batch_execute(&format!("KILL CONNECTION {id}"));
    }
    Ok(conn.batch_execute(&format!("DROP DATABASE {name}"))?)
}

/// `server` with another database name; its parameters stay.
fn with_database(server: &str, name: &str) -> String {
    let (address, parameters) = match server.split_once('?') {
        Some((address, parameters)) => (address, format!("?{parameters}")),
        None => (server, String::new()),
    };
    let authority = address.find("://").map_or(0, |at| at + 3);
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    format!("{}/{name}{parameters}", &address[..end])
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Nullable<BigInt>)]
    value: Option<i64>,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

/// Runs one async test body on every database, as the tests `name::postgres`, `name::mariadb` and `name::sqlite`.
///
/// The body is an `async fn(TestDatabase)`; the database holds the schema and nothing else. Without a second argument
/// the body is the function called `name`. Kinds in brackets restrict it, where a database cannot show the behaviour.
///
/// ```
/// use outbox_tests::{database::TestDatabase, for_each_database};
///
/// async fn a_new_outbox_holds_no_message(database: TestDatabase) {
///     assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 0);
/// }
/// for_each_database!(a_new_outbox_holds_no_message);
///
/// async fn number_order(database: TestDatabase) { /* … */ }
/// for_each_database!(a_late_commit_keeps_its_number, number_order, [postgres, mariadb]);
/// ```
#[macro_export]
macro_rules! for_each_database {
    ($name:ident $(,)?) => {
        $crate::for_each_database!($name, $name, [postgres, mariadb, sqlite]);
    };
    ($name:ident, $body:path $(,)?) => {
        $crate::for_each_database!($name, $body, [postgres, mariadb, sqlite]);
    };
    ($name:ident, $body:path, [$($kind:ident),+ $(,)?] $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $($crate::for_each_database!(@test $kind, $body);)+
        }
    };
    (@test postgres, $body:path) => { $crate::for_each_database!(@test postgres, Postgres, $body); };
    (@test mariadb, $body:path) => { $crate::for_each_database!(@test mariadb, Mariadb, $body); };
    (@test sqlite, $body:path) => { $crate::for_each_database!(@test sqlite, Sqlite, $body); };
    (@test $test:ident, $kind:ident, $body:path) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let kind = $crate::database::Kind::$kind;
            $body($crate::database::TestDatabase::with_schema(kind)).await;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_name_replaces_the_one_in_the_server_url() {
        assert_eq!(with_database("postgres://me@host:1/postgres", "x"), "postgres://me@host:1/x");
        assert_eq!(with_database("mysql://a:b@host:2", "x"), "mysql://a:b@host:2/x");
        assert_eq!(with_database("mysql://host/mysql?ssl=1", "x"), "mysql://host/x?ssl=1");
    }
}
