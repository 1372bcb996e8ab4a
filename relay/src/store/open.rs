//! Chooses a store by the scheme of its address.

use std::sync::Arc;
use std::time::Duration;

use super::mysql::Mysql;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::{Store, StoreError};

/// What a store is told beside the address.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// How long ownership lasts without renewal; sessions that sit in an open transaction are ended well before.
    pub lease: Duration,
    /// MySQL/MariaDB: per-key order holds for transactions shorter than this.
    pub transaction_age_max: Duration,
    /// What the server's own lists of sessions show.
    pub application_name: String,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            lease: Duration::from_secs(5),
            transaction_age_max: Duration::from_secs(10),
            application_name: "outbox-relay".into(),
        }
    }
}

/// Opens the store behind `url`. No connection is made yet: [`Store::verify`] is the first to ask for one.
///
/// # Errors
/// `Unsuitable` when the address cannot be understood.
pub async fn open(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "mysql" | "mariadb" => Ok(Arc::new(Mysql::new(url, options)?)),
        "postgres" | "postgresql" => Ok(Arc::new(Postgres::new(url, options)?)),
        "sqlite" => Ok(Arc::new(Sqlite::new(url)?)),
        _ => Err(StoreError::Unsuitable {
            problem: format!("no database is known by the scheme `{scheme}:`"),
            help: "use an address that begins with `postgres://`, `mysql://`, `mariadb://` or `sqlite:`".into(),
        }),
    }
}
