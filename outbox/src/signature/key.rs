//! What signs, and what verifies.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

use super::KeyError;
use super::ed25519::{Pair, Public};

/// What the text of a key begins with: one for HMAC, and the two halves of a pair for Ed25519.
pub(super) const SHARED: &str = "whsec_";
pub(super) const PRIVATE: &str = "whsk_";
pub(super) const PUBLIC: &str = "whpk_";

/// How many bytes a shared secret has. Fewer could be guessed, more are not kept by other implementations.
pub(super) const SHARED_BYTES_MIN: usize = 24;
pub(super) const SHARED_BYTES_MAX: usize = 64;

/// How many bytes a new one has: as many as the hash it is used with.
const SHARED_BYTES_NEW: usize = 32;

/// Padding is lost where people copy.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a sender signs with: `whsec_` and base64 for HMAC (`v1`), `whsk_` and base64 for Ed25519 (`v1a`).
///
/// With `whsec_` the receiver has the same text; with `whsk_` it has the public key, [`Secret::verifying_key`]. Keys for
/// Ed25519 need the feature `ed25519`.
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
pub struct Secret(Signing);

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Signing {
    Hmac(Box<[u8]>),
    Ed25519(Pair),
}

/// What a receiver checks signatures with: the shared secret, `whsec_…`, or the sender's public key, `whpk_…`.
///
/// `Debug` does not show it: it may be a secret.
///
/// ```
/// # #[cfg(feature = "ed25519")] {
/// use outbox::signature::{Secret, VerifyingKey};
///
/// let secret = Secret::generate_asymmetric();
/// let public = secret.verifying_key();
/// assert!(secret.expose().starts_with("whsk_") && public.expose().starts_with("whpk_"));
/// assert_eq!(VerifyingKey::parse(&public.expose()), Ok(public));
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey(Verifying);

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Verifying {
    Hmac(Box<[u8]>),
    Ed25519(Public),
}

impl Secret {
    /// Reads a secret. Blanks around it are passed over, so that a file's last line break does no harm.
    ///
    /// # Errors
    /// What is wrong with it, without a piece of it.
    pub fn parse(text: &str) -> Result<Secret, KeyError> {
        let text = text.trim();
        if let Some(encoded) = text.strip_prefix(PRIVATE) {
            return Ok(Secret(Signing::Ed25519(Pair::from_bytes(&decoded(PRIVATE, encoded)?)?)));
        }
        if text.starts_with(PUBLIC) {
            return Err(KeyError::Public);
        }
        let encoded = text.strip_prefix(SHARED).ok_or(KeyError::Secret)?;
        Ok(Secret(Signing::Hmac(shared(encoded)?)))
    }

    /// A new secret of 32 random bytes, for sender and receiver.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, which on a machine that runs does not happen.
    pub fn generate() -> Secret {
        let mut bytes = [0; SHARED_BYTES_NEW];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Secret(Signing::Hmac(bytes.into()))
    }

    /// A new private key, for the sender alone.
    ///
    /// # Panics
    /// As [`Secret::generate`].
    #[cfg(feature = "ed25519")]
    pub fn generate_asymmetric() -> Secret {
        Secret(Signing::Ed25519(Pair::generate()))
    }

    /// The secret as text, for the file or the vault it is kept in.
    pub fn expose(&self) -> String {
        match &self.0 {
            Signing::Hmac(bytes) => format!("{SHARED}{}", STANDARD.encode(bytes)),
            Signing::Ed25519(pair) => pair.expose(),
        }
    }

    /// What the receiver needs: the public key, or the secret itself where it is shared.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(match &self.0 {
            Signing::Hmac(bytes) => Verifying::Hmac(bytes.clone()),
            Signing::Ed25519(pair) => Verifying::Ed25519(pair.public()),
        })
    }

    pub(super) fn signing(&self) -> &Signing {
        &self.0
    }
}

impl VerifyingKey {
    /// Reads a key. Blanks around it are passed over, so that a file's last line break does no harm.
    ///
    /// # Errors
    /// What is wrong with it, without a piece of it. A private key is refused: a receiver has no business with it.
    pub fn parse(text: &str) -> Result<VerifyingKey, KeyError> {
        let text = text.trim();
        if let Some(encoded) = text.strip_prefix(PUBLIC) {
            return Ok(VerifyingKey(Verifying::Ed25519(Public::from_bytes(&decoded(PUBLIC, encoded)?)?)));
        }
        if text.starts_with(PRIVATE) {
            return Err(KeyError::Private);
        }
        let encoded = text.strip_prefix(SHARED).ok_or(KeyError::Verifying)?;
        Ok(VerifyingKey(Verifying::Hmac(shared(encoded)?)))
    }

    /// The key as text. A public key may be shown to everybody, a shared secret to nobody; [`is_public`] tells which it is.
    ///
    /// [`is_public`]: VerifyingKey::is_public
    pub fn expose(&self) -> String {
        match &self.0 {
            Verifying::Hmac(bytes) => format!("{SHARED}{}", STANDARD.encode(bytes)),
            Verifying::Ed25519(public) => public.expose(),
        }
    }

    /// True for a public key, `whpk_…`.
    pub fn is_public(&self) -> bool {
        matches!(self.0, Verifying::Ed25519(_))
    }

    pub(super) fn verifying(&self) -> &Verifying {
        &self.0
    }
}

fn decoded(prefix: &'static str, encoded: &str) -> Result<Vec<u8>, KeyError> {
    LENIENT.decode(encoded).map_err(|_| KeyError::Base64 { prefix })
}

fn shared(encoded: &str) -> Result<Box<[u8]>, KeyError> {
    let bytes = decoded(SHARED, encoded)?;
    if !(SHARED_BYTES_MIN..=SHARED_BYTES_MAX).contains(&bytes.len()) {
        return Err(KeyError::Length { prefix: SHARED, bytes: bytes.len() });
    }
    Ok(bytes.into())
}

impl FromStr for Secret {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Secret, KeyError> {
        Secret::parse(text)
    }
}

impl FromStr for VerifyingKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<VerifyingKey, KeyError> {
        VerifyingKey::parse(text)
    }
}

impl From<Secret> for VerifyingKey {
    fn from(secret: Secret) -> VerifyingKey {
        secret.verifying_key()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyingKey(…)")
    }
}
