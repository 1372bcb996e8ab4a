//! The database: one table, one pool, and a way for async code to use both.

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, CustomizeConnection};

use crate::Failure;

/// The line to change for PostgreSQL: `diesel::PgConnection`. With it go the features in Cargo.toml (`postgres` for both
/// diesel and outbox) and [`Settings`], which only SQLite needs.
pub(crate) type Connection = diesel::SqliteConnection;

pub(crate) type Pool = diesel::r2d2::Pool<ConnectionManager<Connection>>;

diesel::table! {
    signups (email) {
        email -> Text,
        welcomed -> Bool,
    }
}

/// Opens the pool and creates what is missing. `examples/orders` does the latter with diesel's migrations.
pub(crate) fn open(url: &str) -> Result<Pool, Failure> {
    let pool =
        Pool::builder().max_size(8).connection_customizer(Box::new(Settings)).build(ConnectionManager::new(url))?;
    let mut conn = pool.get()?;
    outbox::migrations::run(&mut conn)?;
    conn.batch_execute(
        "CREATE TABLE IF NOT EXISTS signups (email varchar(255) PRIMARY KEY, welcomed boolean NOT NULL)",
    )?;
    Ok(pool)
}

/// Runs blocking work on a thread for blocking work, with a connection of the pool. Anywhere else it would hold up every
/// request that shares the thread.
pub(crate) async fn with_connection<T, E>(
    pool: Pool,
    work: impl FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<diesel::r2d2::PoolError> + Send + 'static,
{
    tokio::task::spawn_blocking(move || work(&mut *pool.get()?)).await.expect("the work does not panic")
}

/// What a SQLite connection beside a relay needs.
#[derive(Debug)]
struct Settings;

impl CustomizeConnection<Connection, diesel::r2d2::Error> for Settings {
    fn on_acquire(&self, conn: &mut Connection) -> Result<(), diesel::r2d2::Error> {
        // Readers and the writer do not wait for each other; a commit survives a power cut; a second writer waits.
        conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            .map_err(diesel::r2d2::Error::QueryError)
    }
}
