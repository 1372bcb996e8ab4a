//! A blocking diesel connection for work by hand: migrations, dead letters.
//!
//! The relay itself never uses one; it has the store. Here a command or a start does a few things one after another,
//! so one connection, one thread and the library's own functions are enough. PostgreSQL and MariaDB go over the same
//! pure-Rust drivers as the store.
//!
//! Must not be called on a thread that runs a tokio runtime; use `spawn_blocking` there.

use std::path::Path;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection as _, SqliteConnection};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use outbox::Database;
use tokio::runtime::Runtime;

use crate::config::database_url;
use crate::store::mysql::address as mysql;
use crate::store::postgres::address as postgres;

/// How long a server may take to let us in.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to any of the three databases. Use it with `with_connection!`.
pub enum Connection {
    /// PostgreSQL.
    Postgres(Box<Driven<AsyncConnectionWrapper<AsyncPgConnection>>>),
    /// MySQL and MariaDB.
    Mysql(Box<Driven<AsyncConnectionWrapper<AsyncMysqlConnection>>>),
    /// SQLite.
    Sqlite(Box<SqliteConnection>),
}

/// An async connection and the runtime that drives it; the connection goes first.
pub struct Driven<C> {
    /// The connection.
    pub conn: C,
    _runtime: Runtime,
}

/// What to do when the SQLite file is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make it.
    Create,
    /// Say so: an empty file would answer every question with nothing.
    Refuse,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The server cannot be reached, or lets nobody in.
    #[error("the database at `{target}` cannot be reached")]
    Unreachable {
        /// Without credentials.
        target: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// The server is there and does not let us in, or has no such database.
    #[error("{problem}\n  help: {help}")]
    Refused {
        /// What it said, without credentials.
        problem: String,
        /// What to do.
        help: String,
    },
    /// The url names no database we know.
    #[error(
        "the database url names no database this relay knows\n  help: it begins with `postgres://`, `mysql://` or `sqlite:`"
    )]
    Unknown,
    /// The SQLite file does not exist.
    #[error(
        "there is no file `{path}`\n  help: `relay migrate up` creates it; a relative path starts at the current folder"
    )]
    NoFile {
        /// The file.
        path: String,
    },
}

/// Runs the same code with whichever connection is inside.
///
/// The code is compiled for each of them, so it may call anything that is generic over `outbox::OutboxBackend`.
macro_rules! with_connection {
    ($any:expr, $conn:ident => $work:expr) => {
        match $any {
            $crate::admin::Connection::Postgres(driven) => {
                let $conn = &mut driven.conn;
                $work
            }
            $crate::admin::Connection::Mysql(driven) => {
                let $conn = &mut driven.conn;
                $work
            }
            $crate::admin::Connection::Sqlite(conn) => {
                let $conn = &mut **conn;
                $work
            }
        }
    };
}
pub(crate) use with_connection;

/// Opens a connection.
///
/// # Errors
/// When there is none to be had; never with a password in the text.
pub fn connect(url: &str, missing: Missing) -> Result<Connection, AdminError> {
    let unreachable = |source: Cause| {
        let (target, cause) = (database_url::target(url), source.as_ref());
        let refused = match database_url::database(url) {
            Some(Database::Postgres) => postgres::turned_away(&target, cause),
            Some(Database::Mysql) => mysql::turned_away(&target, cause),
            _ => None,
        };
        match refused {
            Some((problem, help)) => AdminError::Refused { problem, help },
            None => AdminError::Unreachable { target, source },
        }
    };
    let unsuitable = |(problem, help): (String, String)| AdminError::Refused { problem, help };
    match database_url::database(url).ok_or(AdminError::Unknown)? {
        Database::Postgres => {
            let address = postgres::Address::parse(url).map_err(unsuitable)?;
            drive(open_postgres(&address)).map(|driven| Connection::Postgres(Box::new(driven))).map_err(unreachable)
        }
        Database::Mysql => {
            let address = mysql::Address::parse(url).map_err(unsuitable)?;
            drive(open_mysql(&address)).map(|driven| Connection::Mysql(Box::new(driven))).map_err(unreachable)
        }
        Database::Sqlite => {
            let path = database_url::sqlite_path(url).ok_or(AdminError::Unknown)?;
            if missing == Missing::Refuse && !Path::new(path).exists() {
                return Err(AdminError::NoFile { path: path.to_owned() });
            }
            sqlite(path).map(|conn| Connection::Sqlite(Box::new(conn))).map_err(unreachable)
        }
    }
}

/// Connects on a runtime of its own, in which the connection then lives.
///
/// The wrapper picks up the runtime it is made in; its own would have no timers, which drivers need for time limits.
fn drive<C, F>(connect: F) -> Result<Driven<AsyncConnectionWrapper<C>>, Cause>
where
    C: diesel_async::AsyncConnection,
    F: Future<Output = Result<C, Cause>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let conn = runtime.block_on(async { tokio::time::timeout(PATIENCE, connect).await })??;
    let entered = runtime.enter();
    let conn = AsyncConnectionWrapper::from(conn);
    drop(entered);
    Ok(Driven { conn, _runtime: runtime })
}

/// diesel's own way of connecting keeps only the first words of an error, so that "connection refused" is lost.
async fn open_postgres(address: &postgres::Address) -> Result<AsyncPgConnection, Cause> {
    let (client, connection) = address.connect().await?;
    Ok(AsyncPgConnection::try_from_client_and_connection(client, connection).await?)
}

/// diesel's own way of connecting keeps the error's text only.
async fn open_mysql(address: &mysql::Address) -> Result<AsyncMysqlConnection, Cause> {
    Ok(AsyncMysqlConnection::try_from(address.connect().await?).await?)
}

fn sqlite(path: &str) -> Result<SqliteConnection, Cause> {
    let mut conn = SqliteConnection::establish(path)?;
    // Another process may be writing: wait for it. What we write must survive a power cut.
    conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA synchronous = FULL")?;
    Ok(conn)
}

type Cause = Box<dyn std::error::Error + Send + Sync>;
