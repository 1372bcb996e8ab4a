//! Proves to a receiver that a request came from somebody who knows the secret, and when.
//!
//! [Standard Webhooks](https://www.standardwebhooks.com): `v1` is HMAC-SHA256 over `id.timestamp.body`, with a secret that
//! both sides know; `v1a` is Ed25519 over the same, with a private key that only the sender has. The relay signs every
//! attempt of a destination that has secrets; whoever receives the requests calls [`verify`] before it believes a byte of
//! them.
//!
//! ```
//! use outbox::signature::{self, Headers, VerifyingKey};
//!
//! # fn receive(headers: std::collections::HashMap<String, String>, body: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! // Two while a key is being replaced, else one: `whsec_…`, or `whpk_…` where the sender has a private key.
//! let keys = [VerifyingKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?];
//!
//! // With axum or http: `|name| headers.get(name)?.to_str().ok()`.
//! let signed = Headers::find(|name| headers.get(name).map(String::as_str))?;
//! signature::verify(&keys, &signed, body)?;
//! // From here on `signed.id` and the body are the sender's: parse the body, act once (`outbox::inbox::once`), answer 204.
//! # Ok(())
//! # }
//! # use outbox::signature::Secret;
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
//! - Signatures of versions not known here are passed over, and so is one whose version no key is for.
//!
//! `v1a` needs the feature `ed25519`: most programs only enqueue, and should not compile elliptic curves for that.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

#[cfg(feature = "ed25519")]
mod ed25519;
#[cfg(not(feature = "ed25519"))]
#[path = "signature/no_ed25519.rs"]
mod ed25519;
mod error;
mod key;

pub use error::{KeyError, VerifyError};
pub use key::{Secret, VerifyingKey};

use key::{Signing, Verifying};

/// The header with the message's id, the same for every attempt.
pub const ID: &str = "webhook-id";

/// The header with the second in which the attempt was made, counted from 1970.
pub const TIMESTAMP: &str = "webhook-timestamp";

/// The header with the signatures, separated by blanks.
pub const SIGNATURE: &str = "webhook-signature";

/// How far the sender's clock and the receiver's may be apart, and how long a recorded request can be sent again.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// How many signatures of a request are looked at. Each may cost hashing the whole body, and anybody can send them.
const SIGNATURES_MAX: usize = 32;

/// What a signature of HMAC and one of Ed25519 begin with.
const HMAC: &str = "v1";
const ED25519: &str = "v1a";

/// Signs a request; returns the value of the header `webhook-signature`.
///
/// One signature for each secret, in their order: with the newest first, receivers that know either secret accept it
/// while a secret is being replaced, also one of a kind by one of the other. `timestamp` is what is sent as
/// `webhook-timestamp`, `body` every byte of the body. The id must not contain a dot, which separates it from the
/// timestamp in what is signed; message ids do not.
///
/// ```
/// use outbox::signature::{Secret, sign};
///
/// let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
/// let signature = sign([&secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
/// assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// # Ok::<(), outbox::signature::KeyError>(())
/// ```
pub fn sign<'s>(secrets: impl IntoIterator<Item = &'s Secret>, id: &str, timestamp: u64, body: &[u8]) -> String {
    let signed = Signed { id, timestamp: &timestamp.to_string(), body };
    let mut header = String::new();
    for secret in secrets {
        if !header.is_empty() {
            header.push(' ');
        }
        match secret.signing() {
            Signing::Hmac(key) => {
                header.push_str(HMAC);
                header.push(',');
                STANDARD.encode_string(signed.mac(key).finalize().into_bytes(), &mut header);
            }
            Signing::Ed25519(pair) => {
                header.push_str(ED25519);
                header.push(',');
                STANDARD.encode_string(pair.sign(&signed), &mut header);
            }
        }
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

/// What a request can be verified with: a [`VerifyingKey`], or for the sender's own tests its [`Secret`].
///
/// Sealed: there is no other.
pub trait Verifies: sealed::Sealed {}

impl Verifies for Secret {}
impl Verifies for VerifyingKey {}

mod sealed {
    use std::borrow::Cow;

    use super::{Secret, VerifyingKey};

    pub trait Sealed {
        fn verifying_key(&self) -> Cow<'_, VerifyingKey>;
    }

    impl Sealed for Secret {
        fn verifying_key(&self) -> Cow<'_, VerifyingKey> {
            Cow::Owned(Secret::verifying_key(self))
        }
    }

    impl Sealed for VerifyingKey {
        fn verifying_key(&self) -> Cow<'_, VerifyingKey> {
            Cow::Borrowed(self)
        }
    }
}

/// Checks that one of the keys signed this request, within [`TOLERANCE`] of now.
///
/// Of the signatures the first 32 are looked at; a relay sends as many as it has secrets for the destination.
///
/// # Errors
/// Which part of it failed. Answer the sender with 401 and no details; the error is for your log.
pub fn verify<'k, K: Verifies + 'k>(
    keys: impl IntoIterator<Item = &'k K>,
    headers: &Headers<'_>,
    body: &[u8],
) -> Result<(), VerifyError> {
    verify_at(keys, headers, body, SystemTime::now())
}

/// Like [`verify`], for a receiver or a test that brings its own hour.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
///
/// use outbox::signature::{Headers, VerifyError, VerifyingKey, verify_at};
///
/// let keys = [VerifyingKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?];
/// let headers = Headers {
///     id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
///     timestamp: "1614265330",
///     signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
/// };
/// let now = UNIX_EPOCH + Duration::from_secs(1614265330 + 60);
/// assert_eq!(verify_at(&keys, &headers, br#"{"test": 2432232314}"#, now), Ok(()));
/// assert_eq!(verify_at(&keys, &headers, br#"{"test": 1}"#, now), Err(VerifyError::Mismatch));
/// # Ok::<(), outbox::signature::KeyError>(())
/// ```
///
/// # Errors
/// As [`verify`].
pub fn verify_at<'k, K: Verifies + 'k>(
    keys: impl IntoIterator<Item = &'k K>,
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
    let signed = Signed { id, timestamp, body };
    let signatures: Vec<(&str, Vec<u8>)> = signature
        .split_ascii_whitespace()
        .filter_map(|each| each.split_once(','))
        .filter(|(version, _)| [HMAC, ED25519].contains(version))
        .take(SIGNATURES_MAX)
        .map(|(version, text)| (version, STANDARD.decode(text).unwrap_or_default()))
        .collect();
    let (mut has_key, mut has_signature, mut is_known) = (false, false, false);
    for key in keys {
        has_key = true;
        let key = sealed::Sealed::verifying_key(key);
        let of = |wanted: &'static str| {
            let wanted = signatures.iter().filter(move |(version, _)| *version == wanted);
            wanted.map(|(_, signature)| signature.as_slice())
        };
        match key.verifying() {
            Verifying::Hmac(key) => {
                // The body is hashed once for each secret, however many signatures somebody may send.
                let mac = signed.mac(key);
                has_signature |= of(HMAC).next().is_some();
                is_known |= of(HMAC).any(|signature| mac.clone().verify_slice(signature).is_ok());
            }
            Verifying::Ed25519(public) => {
                has_signature |= of(ED25519).next().is_some();
                is_known |= of(ED25519).any(|signature| public.is_signed(&signed, signature));
            }
        }
    }
    match (has_key, has_signature, is_known) {
        (_, _, true) => Ok(()),
        (false, ..) => Err(VerifyError::NoKey),
        (true, false, _) => Err(VerifyError::NoSignature),
        (true, true, false) => Err(VerifyError::Mismatch),
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

/// What is signed: `id.timestamp.body`.
struct Signed<'s> {
    id: &'s str,
    timestamp: &'s str,
    body: &'s [u8],
}

impl<'s> Signed<'s> {
    fn parts(&self) -> [&'s [u8]; 5] {
        [self.id.as_bytes(), b".", self.timestamp.as_bytes(), b".", self.body]
    }

    fn mac(&self, key: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length makes an HMAC");
        for part in self.parts() {
            mac.update(part);
        }
        mac
    }
}

#[cfg(test)]
mod tests;
