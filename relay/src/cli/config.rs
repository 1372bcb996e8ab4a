//! `relay config`: what can be configured, and what is.

use super::args::{ConfigCommand, Global};
use super::{Exit, Failure, settings};
use crate::config::{EXAMPLE, Scope, schema};

/// Runs one of the `config` commands.
pub(super) fn run(global: &Global, command: &ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Example => global.output().lines(EXAMPLE)?,
        ConfigCommand::Schema => {
            let schema = schema();
            global.output().one(&format!("{schema:#}"), &schema)?;
        }
        ConfigCommand::Show => {
            let config = settings::load(global, Scope::Everything)?;
            global.output().one(&config.shown_as_toml(), &config.shown_as_json())?;
        }
    }
    Ok(Exit::Ok)
}
