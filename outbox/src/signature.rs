//! Proves to a receiver that a request came from somebody who knows the secret, and when.
//!
//! [Standard Webhooks](https://www.standardwebhooks.com), version `v1`: HMAC-SHA256 over `id.timestamp.body`. The relay
//! signs every attempt of a destination that has secrets; whoever receives the requests calls [`verify`] before it
//! believes a byte of them.
//!
//! ```
//! use outbox::signature::{self, Headers, Secret};
//!
//! # fn receive(headers: std::collections::HashMap<String, String>, body: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! // Two while a secret is being replaced, else one.
//! let secrets = [Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?];
//!
//! // With axum or http: `|name| headers.get(name)?.to_str().ok()`.
//! let signed = Headers::find(|name| headers.get(name).map(String::as_str))?;
//! signature::verify(&secrets, &signed, body)?;
//! // From here on `signed.id` and the body are the sender's: parse the body, act once (`outbox::inbox::once`), answer 204.
//! # Ok(())
//! # }
//! # let secret = Secret::generate();
//! # let old = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
//! # let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
//! # let names = [signature::ID, signature::TIMESTAMP, signature::SIGNATURE].map(str::to_owned);
//! # let values = ["a".to_owned(), now.to_string(), signature::sign([&secret, &old], "a", now, b"{}")];
//! # receive(names.into_iter().zip(values).collect(), b"{}")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Verify the bytes as they arrived: JSON that was parsed and written again is another text with another signature.
//!
//! Invariants
//! - The time a comparison takes does not depend on how much of a signature is right.
//! - No error and no `Debug` shows a secret, a signature or a body.
//!
//! Absent: `v1a` (Ed25519). Its signatures are passed over, as those of every version not known here.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

mod error;
mod secret;

pub use error::{SecretError, VerifyError};
pub use secret::Secret;

use secret::Key;

/// The header with the message's id, the same for every attempt.
pub const ID: &str = "webhook-id";

/// The header with the second in which the attempt was made, counted from 1970.
pub const TIMESTAMP: &str = "webhook-timestamp";

/// The header with the signatures, separated by blanks.
pub const SIGNATURE: &str = "webhook-signature";

/// How far the sender's clock and the receiver's may be apart, and how long a recorded request can be sent again.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Signs a request; returns the value of the header `webhook-signature`.
///
/// One signature for each secret, in their order: with the newest first, receivers that know either secret accept it
/// while a secret is being replaced. `timestamp` is what is sent as `webhook-timestamp`, `body` every byte of the body.
/// The id must not contain a dot, which separates it from the timestamp in what is signed; message ids do not.
///
/// ```
/// use outbox::signature::{Secret, sign};
///
/// let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
/// let signature = sign([&secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
/// assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// # Ok::<(), outbox::signature::SecretError>(())
/// ```
pub fn sign<'s>(secrets: impl IntoIterator<Item = &'s Secret>, id: &str, timestamp: u64, body: &[u8]) -> String {
    let timestamp = timestamp.to_string();
    let mut header = String::new();
    for secret in secrets {
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        STANDARD.encode_string(mac(secret, id, &timestamp, body).finalize().into_bytes(), &mut header);
    }
    header
}

/// The three headers a signed request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'h> {
    /// `webhook-id`. After [`verify`] it is the sender's word; use it to recognise a message that comes again.
    pub id: &'h str,
    /// `webhook-timestamp`.
    pub timestamp: &'h str,
    /// `webhook-signature`.
    pub signature: &'h str,
}

impl<'h> Headers<'h> {
    /// Asks `header` for each of the three by its name, in lower case.
    ///
    /// # Errors
    /// [`VerifyError::MissingHeader`] when it answers `None`.
    pub fn find(header: impl Fn(&'static str) -> Option<&'h str>) -> Result<Headers<'h>, VerifyError> {
        let find = |name| header(name).ok_or(VerifyError::MissingHeader { name });
        Ok(Headers { id: find(ID)?, timestamp: find(TIMESTAMP)?, signature: find(SIGNATURE)? })
    }
}

/// Checks that one of the secrets signed this request, within [`TOLERANCE`] of now.
///
/// # Errors
/// Which part of it failed. Answer the sender with 401 and no details; the error is for your log.
pub fn verify<'s>(
    secrets: impl IntoIterator<Item = &'s Secret>,
    headers: &Headers<'_>,
    body: &[u8],
) -> Result<(), VerifyError> {
    verify_at(secrets, headers, body, SystemTime::now())
}

/// Like [`verify`], for a receiver or a test that brings its own hour.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
///
/// use outbox::signature::{Headers, Secret, VerifyError, verify_at};
///
/// let secrets = [Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?];
/// let headers = Headers {
///     id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
///     timestamp: "1614265330",
///     signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
/// };
/// let now = UNIX_EPOCH + Duration::from_secs(1614265330 + 60);
/// assert_eq!(verify_at(&secrets, &headers, br#"{"test": 2432232314}"#, now), Ok(()));
/// assert_eq!(verify_at(&secrets, &headers, br#"{"test": 1}"#, now), Err(VerifyError::Mismatch));
/// # Ok::<(), outbox::signature::SecretError>(())
/// ```
///
/// # Errors
/// As [`verify`].
pub fn verify_at<'s>(
    secrets: impl IntoIterator<Item = &'s Secret>,
    headers: &Headers<'_>,
    body: &[u8],
    now: SystemTime,
) -> Result<(), VerifyError> {
    let &Headers { id, timestamp, signature } = headers;
    // A dot would let the end of an id be taken for the timestamp, and a timestamp for the beginning of the body.
    if id.is_empty() || id.contains('.') {
        return Err(VerifyError::InvalidId);
    }
    check_time(timestamp, now)?;
    let mut signatures = Vec::new();
    for each in signature.split_ascii_whitespace() {
        if let Some(text) = each.strip_prefix("v1,") {
            signatures.push(STANDARD.decode(text).unwrap_or_default());
        }
    }
    if signatures.is_empty() {
        return Err(VerifyError::NoSignature);
    }
    let mut is_known = None;
    for secret in secrets {
        // The body is hashed once for each secret, however many signatures somebody may send.
        let mac = mac(secret, id, timestamp, body);
        let is_one = signatures.iter().any(|signature| mac.clone().verify_slice(signature).is_ok());
        is_known = Some(is_known.unwrap_or(false) || is_one);
    }
    match is_known {
        Some(true) => Ok(()),
        Some(false) => Err(VerifyError::Mismatch),
        None => Err(VerifyError::NoSecret),
    }
}

fn check_time(timestamp: &str, now: SystemTime) -> Result<(), VerifyError> {
    let digits = Some(timestamp).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let secs: u64 = digits.and_then(|text| text.parse().ok()).ok_or(VerifyError::InvalidTimestamp)?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if now.abs_diff(secs) <= TOLERANCE.as_secs() {
        return Ok(());
    }
    let by = Duration::from_secs(now.abs_diff(secs));
    Err(if secs < now { VerifyError::TooOld { by } } else { VerifyError::TooNew { by } })
}

fn mac(secret: &Secret, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let Key::Hmac(key) = secret.key();
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length makes an HMAC");
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests;
