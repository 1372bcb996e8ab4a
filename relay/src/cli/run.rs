//! `relay run`: the daemon.

use std::sync::Arc;

use super::args::{Global, Run};
use super::{Exit, Failure, settings};
use crate::config::{Config, Scope};
use crate::store::open::{StoreOptions, open};
use crate::store::{Store, StoreError};

/// Runs until told to stop, or until nothing is left to do.
pub(super) fn run(global: &Global, run: &Run) -> Result<Exit, Failure> {
    let config = settings::load(global, Scope::Everything)?;
    let _ = (config, run.drain);
    Err(Failure::new(Exit::Failed, "relay: `run` is not part of this build"))
}

/// Opens the database as the relay does.
pub(super) async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    let options = StoreOptions {
        lease: config.relay.lease,
        transaction_age_max: config.database.transaction_age_max,
        application_name: format!("relay {}", config.relay.name),
    };
    open(config.database.url.expose(), &options).await
}
