//! The secret both sides know.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

use super::SecretError;

/// What the text of an HMAC secret begins with.
const PREFIX: &str = "whsec_";

/// How many bytes a secret has. Fewer could be guessed, more are not kept by other implementations.
const BYTES_MIN: usize = 24;
const BYTES_MAX: usize = 64;

/// How many bytes a new one has: as many as the hash it is used with.
const BYTES_NEW: usize = 32;

/// Padding is lost where people copy.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A secret that signs requests and verifies them, `whsec_` and base64 in text.
///
/// `Debug` does not show it and there is no `Display`; [`expose`](Secret::expose) is the one way to its text.
///
/// ```
/// use outbox::signature::Secret;
///
/// let secret = Secret::generate();
/// assert_eq!(Secret::parse(&secret.expose()), Ok(secret.clone()));
/// assert_eq!(format!("{secret:?}"), "Secret(…)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Key);

/// What a signature is made with. One kind so far; Ed25519 (`v1a`) has its place here.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Key {
    Hmac(Box<[u8]>),
}

impl Secret {
    /// Reads a secret. Blanks around it are passed over, so that a file's last line break does no harm.
    ///
    /// # Errors
    /// What is wrong with it, without a piece of it.
    pub fn parse(text: &str) -> Result<Secret, SecretError> {
        let text = text.trim();
        if text.starts_with("whsk_") || text.starts_with("whpk_") {
            return Err(SecretError::Ed25519);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?;
        let bytes = LENIENT.decode(encoded).map_err(|_| SecretError::Base64)?;
        if !(BYTES_MIN..=BYTES_MAX).contains(&bytes.len()) {
            return Err(SecretError::Length { bytes: bytes.len() });
        }
        Ok(Secret(Key::Hmac(bytes.into())))
    }

    /// A new secret of 32 random bytes.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, which on a machine that runs does not happen.
    pub fn generate() -> Secret {
        let mut bytes = [0; BYTES_NEW];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Secret(Key::Hmac(bytes.into()))
    }

    /// The secret as text, for the file or the vault it is kept in.
    pub fn expose(&self) -> String {
        let Key::Hmac(bytes) = &self.0;
        format!("{PREFIX}{}", STANDARD.encode(bytes))
    }

    pub(super) fn key(&self) -> &Key {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Secret, SecretError> {
        Secret::parse(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
