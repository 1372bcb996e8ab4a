//! Stands in for `ed25519` where that feature is off: there are no such keys, and whoever has one is told why.

use std::convert::Infallible;

use super::{KeyError, Signed};

/// There is none.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pair(Infallible);

/// There is none.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Public(Infallible);

impl Pair {
    pub(super) fn from_bytes(_: &[u8]) -> Result<Pair, KeyError> {
        Err(KeyError::Ed25519)
    }

    pub(super) fn expose(&self) -> String {
        match self.0 {}
    }

    pub(super) fn public(&self) -> Public {
        match self.0 {}
    }

    pub(super) fn sign(&self, _: &Signed<'_>) -> [u8; 64] {
        match self.0 {}
    }
}

impl Public {
    pub(super) fn from_bytes(_: &[u8]) -> Result<Public, KeyError> {
        Err(KeyError::Ed25519)
    }

    pub(super) fn expose(&self) -> String {
        match self.0 {}
    }

    pub(super) fn is_signed(&self, _: &Signed<'_>, _: &[u8]) -> bool {
        match self.0 {}
    }
}
