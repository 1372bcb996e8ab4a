//! `relay secret`: keys for signing.

use outbox::signature::Secret;
use serde_json::json;

use super::args::Global;
use super::{Exit, Failure};

/// Prints a fresh secret, as Standard Webhooks writes them.
pub(super) fn new(global: &Global) -> Result<Exit, Failure> {
    let secret = Secret::generate();
    global.output().one(&secret.expose(), &json!({ "secret": secret.expose() }))?;
    Ok(Exit::Ok)
}
