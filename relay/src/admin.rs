//! A blocking diesel connection for work by hand: migrations, dead letters.
//!
//! The relay itself never uses one; it has the store. Here a command or a start does a few things one after another,
//! so one connection, one thread and the library's own functions are enough. PostgreSQL and MariaDB go over the same
//! pure-Rust drivers as the store.
//!
//! Must not be called on a thread that runs a tokio runtime; use `spawn_blocking` there.

use std::path::Path;

use diesel::connection::SimpleConnection;
use diesel::{Connection as _, ConnectionError, SqliteConnection};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use outbox::Database;
use tokio::runtime::Runtime;

use crate::config::database_url;

/// A connection to any of the three databases. Use it with [`with_connection!`].
pub enum Connection {
    /// PostgreSQL.
    Postgres(Driven<AsyncConnectionWrapper<AsyncPgConnection>>),
    /// MySQL and MariaDB.
    Mysql(Driven<AsyncConnectionWrapper<AsyncMysqlConnection>>),
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
        source: ConnectionError,
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
    /// The runtime for the connection could not be started.
    #[error("the runtime for a connection cannot start")]
    Runtime(#[source] std::io::Error),
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
    let unreachable = |source| AdminError::Unreachable { target: database_url::target(url), source };
    match database_url::database(url).ok_or(AdminError::Unknown)? {
        Database::Postgres => Ok(Connection::Postgres(drive(url)?.map_err(unreachable)?)),
        Database::Mysql => Ok(Connection::Mysql(drive(url)?.map_err(unreachable)?)),
        Database::Sqlite => {
            let path = database_url::sqlite_path(url).ok_or(AdminError::Unknown)?;
            if missing == Missing::Refuse && !Path::new(path).exists() {
                return Err(AdminError::NoFile { path: path.to_owned() });
            }
            let mut conn = SqliteConnection::establish(path).map_err(unreachable)?;
            // Another process may be writing: wait for it. What we write must survive a power cut.
            conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA synchronous = FULL")
                .map_err(|error| unreachable(ConnectionError::CouldntSetupConfiguration(error)))?;
            Ok(Connection::Sqlite(Box::new(conn)))
        }
    }
}

/// Connects on a runtime of its own. The inner error is the connection's.
fn drive<C: diesel::Connection>(url: &str) -> Result<Result<Driven<C>, ConnectionError>, AdminError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(AdminError::Runtime)?;
    // The wrapper picks up the runtime it is made in; its own would have no timers, which drivers need for time limits.
    let entered = runtime.enter();
    let conn = C::establish(url);
    drop(entered);
    Ok(conn.map(|conn| Driven { conn, _runtime: runtime }))
}
