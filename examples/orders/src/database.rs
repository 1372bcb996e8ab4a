//! The database: its tables, the pool, and the migrations at the start.

use diesel::Connection;
use diesel_async::AsyncPgConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, deadpool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::Failure;

diesel::table! {
    orders (id) {
        id -> Uuid,
        message_id -> Uuid,
        customer -> Text,
        item -> Text,
        quantity -> Integer,
        status -> Text,
    }
}

diesel::table! {
    stock (item) {
        item -> Text,
        available -> Integer,
    }
}

pub(crate) type Pool = deadpool::Pool<AsyncPgConnection>;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Connects when a connection is first asked for.
pub(crate) fn pool(url: &str) -> Result<Pool, Failure> {
    Ok(Pool::builder(AsyncDieselConnectionManager::new(url)).max_size(8).build()?)
}

/// Brings the outbox' tables and our own up to date. Several processes may start at once.
///
/// diesel's migrations are blocking, so they get a thread of their own; the wrapper makes a blocking connection of the
/// asynchronous one, and no C library is needed for it.
pub(crate) async fn migrate(url: &str) -> Result<(), Failure> {
    let url = url.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut conn = AsyncConnectionWrapper::<AsyncPgConnection>::establish(&url)?;
        outbox::migrations::run(&mut conn)?;
        conn.run_pending_migrations(MIGRATIONS)?;
        Ok(())
    })
    .await?
}
