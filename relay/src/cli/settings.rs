//! From the global options to a configuration.
//!
//! The only place of the command line that reads the environment and looks for `relay.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::args::Global;
use super::{Exit, Failure};
use crate::config::{Config, Scope, Sources};
use crate::store::open::understand;

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "relay.toml";

/// Puts the configuration together from flags, environment and file.
pub(super) fn load(global: &Global, scope: Scope) -> Result<Config, Failure> {
    let config = Config::load(&sources(global)?, scope)?;
    understood(config.database.url.expose())?;
    Ok(config)
}

/// Refuses a database url that its driver cannot read: that is a mistake in the configuration, whatever the network does.
pub(super) fn understood(url: &str) -> Result<(), Failure> {
    understand(url).map_err(|error| Failure::from_error(Exit::Config, &error))
}

/// Where the configuration comes from.
pub(super) fn sources(global: &Global) -> Result<Sources, Failure> {
    let file = match &global.config {
        Some(path) => Some(read(path).map_err(|error| {
            let message = format!("{}: cannot be read: {error}", path.display());
            Failure::new(Exit::Config, format!("{message}\n  help: `-c` or RELAY_CONFIG names this file"))
        })?),
        None => match read(Path::new(DEFAULT_FILE)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::new(Exit::Config, format!("{DEFAULT_FILE}: cannot be read: {error}"))),
        },
    };
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Sources { file, database_url: global.database_url.clone(), host: host(), environment })
}

/// Who acts, for the audit.
pub(super) fn actor(global: &Global) -> String {
    global.actor.clone().unwrap_or_else(|| {
        let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).filter(|user| !user.is_empty());
        format!("{}@{}", user.as_deref().unwrap_or("unknown"), host().as_deref().unwrap_or("unknown"))
    })
}

/// The name of this machine, when it has one that can be shown.
fn host() -> Option<String> {
    let from_system = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = std::env::var("HOSTNAME").ok().or_else(from_system)?;
    let name = name.trim();
    let fits = !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_graphic());
    fits.then(|| name.to_owned())
}

fn read(path: &Path) -> std::io::Result<(PathBuf, String)> {
    Ok((path.to_owned(), std::fs::read_to_string(path)?))
}
