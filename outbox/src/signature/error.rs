//! What is wrong with a secret or a signature. No text holds a piece of either.

use std::fmt;
use std::time::Duration;

use super::TOLERANCE;

/// Why a text is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretError {
    /// It does not begin with `whsec_`; perhaps it is another secret.
    Prefix,
    /// It is a key for Ed25519 (`v1a`), which is not supported.
    Ed25519,
    /// What follows `whsec_` is not base64.
    Base64,
    /// It has fewer than 24 or more than 64 bytes.
    Length {
        /// How many it has.
        bytes: usize,
    },
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretError::Prefix => f.write_str("a signing secret begins with `whsec_`"),
            SecretError::Ed25519 => {
                f.write_str("this is a key for Ed25519 signatures; only secrets that begin with `whsec_` are supported")
            }
            SecretError::Base64 => f.write_str("what follows `whsec_` in a signing secret must be base64"),
            SecretError::Length { bytes } => write!(f, "a signing secret has 24 to 64 bytes, this one has {bytes}"),
        }
    }
}

impl std::error::Error for SecretError {}

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
    /// There is no signature of a version that is known here.
    NoSignature,
    /// There was no secret to check with: the receiver is not set up.
    NoSecret,
    /// No signature was made with one of the secrets: another secret, another body, or another sender.
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
            VerifyError::NoSignature => f.write_str("the header `webhook-signature` has no `v1` signature"),
            VerifyError::NoSecret => f.write_str("there is no secret to check the signature with"),
            VerifyError::Mismatch => f.write_str("no signature was made with one of the secrets over this body"),
        }
    }
}

impl std::error::Error for VerifyError {}
