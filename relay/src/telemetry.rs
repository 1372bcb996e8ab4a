//! What the relay tells about itself while it runs.
//!
//! Logs go to stderr, as text on a terminal and as JSON otherwise. `RUST_LOG` chooses what is told, `info` unless it
//! says otherwise. Payloads, header values, secrets and query strings are never logged; that is up to whoever writes a
//! log line, nothing here filters them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging for this process; a second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An embedding program that has set up its own logging keeps it.
    let _ = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
}
