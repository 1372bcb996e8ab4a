//! `relay secret`: keys for signing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::json;

use super::args::Global;
use super::{Exit, Failure};

/// Prints a fresh secret, as Standard Webhooks writes them.
pub(super) fn new(global: &Global) -> Result<Exit, Failure> {
    let mut bytes = [0; 32];
    let drawn = OsRng.try_fill_bytes(&mut bytes);
    drawn.map_err(|error| Failure::new(Exit::Failed, format!("relay: the system gives no random bytes: {error}")))?;
    let secret = format!("whsec_{}", STANDARD.encode(bytes));
    global.output().one(&secret, &json!({ "secret": secret }))?;
    Ok(Exit::Ok)
}
