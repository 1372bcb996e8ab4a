//! `relay secret`: keys for signing, and what is done with them.
//!
//! Secrets come by reference, from a file or a variable: what stands on a command line is read by everybody on the machine
//! and remembered by the shell. Only public keys may stand there.

use std::time::{Duration, SystemTime};

use outbox::signature::{self, Headers, KeyError, Secret, VerifyError, VerifyingKey};
use serde_json::json;

use super::args::{self, Global, Sign, Verify};
use super::output::say;
use super::{Exit, Failure, given};

/// Runs one of the commands.
pub(super) fn run(global: &Global, command: &args::Secret) -> Result<Exit, Failure> {
    match command {
        args::Secret::New { asymmetric: false } => new(global),
        args::Secret::New { asymmetric: true } => new_pair(global),
        args::Secret::Public { secret } => public(global, secret),
        args::Secret::Sign(sign) => self::sign(global, sign),
        args::Secret::Verify(verify) => self::verify(global, verify),
    }
}

/// Prints a fresh secret, as Standard Webhooks writes them.
fn new(global: &Global) -> Result<Exit, Failure> {
    let secret = Secret::generate();
    global.output().one(&secret.expose(), &json!({ "secret": secret.expose() }))?;
    Ok(Exit::Ok)
}

/// Prints a fresh private key. The public one goes where it does not end up in the same file.
fn new_pair(global: &Global) -> Result<Exit, Failure> {
    let secret = Secret::generate_asymmetric();
    let public = secret.verifying_key().expose();
    global.output().one(&secret.expose(), &json!({ "secret": secret.expose(), "public_key": public }))?;
    say(&format!("the receiver verifies with {public}; `relay secret public` prints it again"));
    Ok(Exit::Ok)
}

fn public(global: &Global, written: &str) -> Result<Exit, Failure> {
    let key = understood(written, Secret::parse(&referenced(written)?))?.verifying_key();
    if !key.is_public() {
        let help = "the receiver has the same; `relay secret new --asymmetric` makes a pair";
        let told = format!("relay: `{}` is a shared secret: it has no public key\n  help: {help}", shown(written));
        return Err(Failure::new(Exit::Usage, told));
    }
    global.output().one(&key.expose(), &json!({ "public_key": key.expose() }))?;
    Ok(Exit::Ok)
}

fn sign(global: &Global, sign: &Sign) -> Result<Exit, Failure> {
    let Sign { secrets, id, timestamp, body } = sign;
    if id.is_empty() || id.contains('.') || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        let help = "it is visible ASCII without a dot, which ends it in what is signed";
        return Err(Failure::new(Exit::Usage, format!("relay: `{id}` cannot be signed as an id\n  help: {help}")));
    }
    let parse = |written: &String| understood(written, Secret::parse(&referenced(written)?));
    let secrets: Vec<Secret> = secrets.iter().map(parse).collect::<Result<_, _>>()?;
    let timestamp = timestamp.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs())
    });
    let signature = signature::sign(&secrets, id, timestamp, &given::bytes("body", body)?);
    let text = format!(
        "{}: {id}\n{}: {timestamp}\n{}: {signature}\n",
        signature::ID,
        signature::TIMESTAMP,
        signature::SIGNATURE
    );
    global.output().one(&text, &json!({ "id": id, "timestamp": timestamp, "signature": signature }))?;
    Ok(Exit::Ok)
}

fn verify(global: &Global, verify: &Verify) -> Result<Exit, Failure> {
    let Verify { secrets, id, timestamp, signature, any_age, body } = verify;
    let keys: Vec<VerifyingKey> = secrets.iter().map(|written| verifying_key(written)).collect::<Result<_, _>>()?;
    let headers = Headers { id, timestamp, signature };
    let signed_at = timestamp.parse().ok().map(Duration::from_secs);
    let now = match signed_at.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)).filter(|_| *any_age) {
        Some(then) => then,
        None => SystemTime::now(),
    };
    let verified = signature::verify_at(&keys, &headers, &given::bytes("body", body)?, now);
    let reason = verified.err().as_ref().map(VerifyError::to_string);
    let text = reason.as_ref().map_or_else(|| "right".to_owned(), |reason| format!("wrong: {reason}"));
    global.output().one(&text, &json!({ "valid": reason.is_none(), "reason": reason }))?;
    Ok(if reason.is_none() { Exit::Ok } else { Exit::Failed })
}

/// What to verify with. The sender's own private key will do: its public one is in it.
pub(super) fn verifying_key(written: &str) -> Result<VerifyingKey, Failure> {
    if written.starts_with("whpk_") {
        return understood(written, VerifyingKey::parse(written));
    }
    let text = referenced(written)?;
    let parsed = match VerifyingKey::parse(&text) {
        Err(KeyError::Private) => Secret::parse(&text).map(VerifyingKey::from),
        parsed => parsed,
    };
    understood(written, parsed)
}

/// The text a reference stands for.
fn referenced(written: &str) -> Result<String, Failure> {
    if let Some(file) = written.strip_prefix('@') {
        return std::fs::read_to_string(file)
            .map_err(|error| Failure::new(Exit::Usage, format!("relay: `{file}` cannot be read: {error}")));
    }
    if let Some(name) = written.strip_prefix("env:") {
        return std::env::var(name)
            .map_err(|_| Failure::new(Exit::Usage, format!("relay: the environment variable {name} is not set")));
    }
    // Not repeated: it may be the secret itself.
    let problem = "a secret must not stand on the command line, where others on this machine see it";
    let help = "write `@FILE` or `env:NAME`; only a public key, `whpk_…`, may stand there";
    Err(Failure::new(Exit::Usage, format!("relay: {problem}\n  help: {help}")))
}

fn understood<T>(written: &str, parsed: Result<T, KeyError>) -> Result<T, Failure> {
    parsed.map_err(|error| Failure::new(Exit::Usage, format!("relay: `{}`: {error}", shown(written))))
}

/// What was written, when that is a reference.
fn shown(written: &str) -> &str {
    if written.starts_with("whpk_") { "whpk_…" } else { written }
}
