//! What is wrong with a key or a signature. No text holds a piece of either.

use std::fmt;
use std::time::Duration;

use super::TOLERANCE;
use super::key::{PRIVATE, PUBLIC, SHARED, SHARED_BYTES_MAX, SHARED_BYTES_MIN};

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// What should sign begins neither with `whsec_` nor with `whsk_`; perhaps it is another secret.
    Secret,
    /// What should verify begins neither with `whsec_` nor with `whpk_`; perhaps it is another secret.
    Verifying,
    /// What should sign is a public key; the sender needs the private one.
    Public,
    /// What should verify is a private key; the receiver needs the public one.
    Private,
    /// It is a key for Ed25519 (`v1a`), and this program was built without the feature `ed25519` of `outbox`.
    Ed25519,
    /// What follows the prefix is not base64.
    Base64 {
        /// What it begins with.
        prefix: &'static str,
    },
    /// It has too few or too many bytes.
    Length {
        /// What it begins with.
        prefix: &'static str,
        /// How many it has.
        bytes: usize,
    },
    /// The private and the public half of a pair do not belong together: it was damaged.
    Pair,
    /// The bytes of a public key are none, or one for which everybody can make signatures.
    NoKey,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Secret => write!(f, "a signing secret begins with `{SHARED}` or `{PRIVATE}`"),
            KeyError::Verifying => write!(f, "a key to verify with begins with `{SHARED}` or `{PUBLIC}`"),
            KeyError::Public => {
                write!(f, "this is a public key, which signs nothing; the private one begins with `{PRIVATE}`")
            }
            KeyError::Private => {
                write!(f, "this is a private key, which only the sender has; the public one begins with `{PUBLIC}`")
            }
            KeyError::Ed25519 => f.write_str(
                "this is a key for Ed25519 signatures, and `outbox` was built without its feature `ed25519`",
            ),
            KeyError::Base64 { prefix } => write!(f, "what follows `{prefix}` must be base64"),
            KeyError::Length { prefix, bytes } => {
                write!(f, "what follows `{prefix}` stands for ")?;
                match *prefix {
                    SHARED => write!(f, "{SHARED_BYTES_MIN} to {SHARED_BYTES_MAX}")?,
                    PUBLIC => f.write_str("32")?,
                    _ => f.write_str("64")?,
                }
                write!(f, " bytes, here for {bytes}")
            }
            KeyError::Pair => f.write_str("the two halves of this key do not belong together: it was damaged"),
            KeyError::NoKey => f.write_str("this is no public key for Ed25519, or a weak one"),
        }
    }
}

impl std::error::Error for KeyError {}

/// Why a request is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyError {
    /// A header is missing, or its value is not text: the request was not signed.
    MissingHeader {
        /// Its name.
        name: &'static str,
    },
    /// The id is empty or contains a dot.
    InvalidId,
    /// The timestamp is not a number of seconds.
    InvalidTimestamp,
    /// The request was signed too long ago: it was recorded and sent again, or the clocks differ.
    TooOld {
        /// How long ago.
        by: Duration,
    },
    /// The request was signed in the future: the clocks differ.
    TooNew {
        /// How far ahead.
        by: Duration,
    },
    /// There is no signature of a version that one of the keys is for: `v1` for `whsec_`, `v1a` for `whpk_`.
    NoSignature,
    /// There was no key to check with: the receiver is not set up.
    NoKey,
    /// No signature was made with one of the keys: another key, another body, or another sender.
    Mismatch,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tolerance = TOLERANCE.as_secs();
        match self {
            VerifyError::MissingHeader { name } => write!(f, "the header `{name}` is missing"),
            VerifyError::InvalidId => f.write_str("the header `webhook-id` is empty or contains a dot"),
            VerifyError::InvalidTimestamp => f.write_str("the header `webhook-timestamp` is not a number of seconds"),
            VerifyError::TooOld { by } => {
                write!(f, "the request was signed {} s ago, and {tolerance} s are allowed", by.as_secs())
            }
            VerifyError::TooNew { by } => {
                write!(f, "the request was signed {} s in the future, and {tolerance} s are allowed", by.as_secs())
            }
            VerifyError::NoSignature => {
                f.write_str("the header `webhook-signature` has no signature of a version there is a key for")
            }
            VerifyError::NoKey => f.write_str("there is no key to check the signature with"),
            VerifyError::Mismatch => {
                f.write_str("no signature was made with one of the keys over this id, timestamp and body")
            }
        }
    }
}

impl std::error::Error for VerifyError {}
