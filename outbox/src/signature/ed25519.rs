//! The key pairs behind `v1a`, and what is done with them.
//!
//! With the feature `ed25519` only; `no_ed25519` stands in where it is off, and is kept alike.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::ed25519::signature::{MultipartSigner, MultipartVerifier};
use ed25519_dalek::{KEYPAIR_LENGTH, PUBLIC_KEY_LENGTH, SECRET_KEY_LENGTH, Signature, SigningKey};

use super::key::{PRIVATE, PUBLIC};
use super::{KeyError, Signed};

/// A private key with its public one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pair(Box<SigningKey>);

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Public(Box<ed25519_dalek::VerifyingKey>);

impl Pair {
    /// A new pair.
    pub(super) fn generate() -> Pair {
        let mut seed = [0; SECRET_KEY_LENGTH];
        getrandom::fill(&mut seed).expect("the operating system gives random bytes");
        Pair(Box::new(SigningKey::from_bytes(&seed)))
    }

    /// Reads the private key with the public one behind it, or the private key alone, as some libraries write it.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Pair, KeyError> {
        let pair = if let Ok(both) = <&[u8; KEYPAIR_LENGTH]>::try_from(bytes) {
            SigningKey::from_keypair_bytes(both).map_err(|_| KeyError::Pair)?
        } else if let Ok(seed) = <&[u8; SECRET_KEY_LENGTH]>::try_from(bytes) {
            SigningKey::from_bytes(seed)
        } else {
            return Err(KeyError::Length { prefix: PRIVATE, bytes: bytes.len() });
        };
        Ok(Pair(Box::new(pair)))
    }

    pub(super) fn expose(&self) -> String {
        format!("{PRIVATE}{}", STANDARD.encode(self.0.to_keypair_bytes()))
    }

    pub(super) fn public(&self) -> Public {
        Public(Box::new(self.0.verifying_key()))
    }

    pub(super) fn sign(&self, signed: &Signed<'_>) -> [u8; Signature::BYTE_SIZE] {
        self.0.multipart_sign(&signed.parts()).to_bytes()
    }
}

impl Public {
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Public, KeyError> {
        let length = KeyError::Length { prefix: PUBLIC, bytes: bytes.len() };
        let bytes = <&[u8; PUBLIC_KEY_LENGTH]>::try_from(bytes).map_err(|_| length)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NoKey)?;
        // Of a weak key everybody can make signatures.
        if key.is_weak() { Err(KeyError::NoKey) } else { Ok(Public(Box::new(key))) }
    }

    pub(super) fn expose(&self) -> String {
        format!("{PUBLIC}{}", STANDARD.encode(self.0.as_bytes()))
    }

    /// True for a signature its private key made. Nothing in here is secret, so the time it takes may depend on anything.
    pub(super) fn is_signed(&self, signed: &Signed<'_>, signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.multipart_verify(&signed.parts(), &signature).is_ok())
    }
}
