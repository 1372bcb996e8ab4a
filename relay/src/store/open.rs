//! Chooses a store by the scheme of its address.

use std::sync::Arc;

use super::mysql::Mysql;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::{Store, StoreError, StoreOptions};
use crate::config::database_url;

/// Opens the store behind `url`. No connection is made yet: [`Store::verify`] is the first to ask for one.
///
/// # Errors
/// `Unsuitable` when the address cannot be understood.
pub async fn open(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    prepare(url, options)
}

/// Refuses an address that cannot be understood; connects to nothing.
///
/// # Errors
/// `Unsuitable`, with what to write instead.
pub fn understand(url: &str) -> Result<(), StoreError> {
    prepare(url, &StoreOptions::default()).map(drop)
}

fn prepare(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    // A driver would take a piece of a password for a host and name it, or blame the server for what we cannot do.
    if let Some((problem, help)) = database_url::unsuitable(url) {
        return Err(StoreError::Unsuitable { problem: problem.into(), help: help.into() });
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_driver_can_do_is_refused_before_one_is_asked() {
        for (url, problem) in [
            ("postgres://u:SEKRET@PW@h/x", "the database url can be read in more than one way"),
            ("mariadb://u:12/PW@h/x", "the database url can be read in more than one way"),
            ("postgres://u:PW@h/x?sslmode=on", "the database url has an `sslmode` that is not known"),
            ("mysql://u:PW@h/x?ssl-mode=on", "the database url has an `ssl-mode` that is not known"),
        ] {
            let refused = understand(url).expect_err(url).to_string();
            assert!(refused.contains(problem) && !refused.contains("PW"), "{refused}");
        }
        for url in ["postgres://u:a%40b@h/x?sslmode=prefer", "mysql://u:a%40b@h/x", "sqlite:me@here.db"] {
            assert!(understand(url).is_ok(), "{url}");
        }
    }
}
