//! The database, for commands that ask or change something by hand.

use super::args::Global;
use super::{Failure, block_on, run, settings};
use crate::admin::{self, Connection, Missing};
use crate::config::Scope;

/// Connects to the database the configuration names.
pub(super) fn connect(global: &Global) -> Result<Connection, Failure> {
    let config = settings::load(global, Scope::Database)?;
    // The relay's own look at the schema: what it would not work on is not changed by hand either.
    block_on(async { run::open_store(&config).await?.verify().await })??;
    Ok(admin::connect(config.database.url.expose(), Missing::Refuse)?)
}
