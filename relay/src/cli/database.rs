//! The database, for commands that ask or change something by hand.

use std::sync::Arc;

use super::args::Global;
use super::{Failure, block_on, settings};
use crate::admin::{self, Connection, Missing};
use crate::config::{Config, Scope};
use crate::store::open::open;
use crate::store::{Store, StoreError, StoreOptions};

/// Connects to the database the configuration names.
pub(super) fn connect(global: &Global) -> Result<Connection, Failure> {
    let config = settings::load(global, Scope::Database)?;
    // The relay's own look at the schema: what it would not work on is not changed by hand either.
    block_on(async { open_store(&config).await?.verify().await })??;
    Ok(admin::connect(config.database.url.expose(), Missing::Refuse)?)
}

/// Opens the database as the relay does.
pub(super) async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    let options = StoreOptions {
        lease: config.relay.lease,
        transaction_age_max: config.database.transaction_age_max,
        application_name: "outbox-relay command".to_owned(),
    };
    open(config.database.url.expose(), &options).await
}
