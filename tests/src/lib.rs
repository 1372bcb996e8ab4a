//! Shared by the integration tests: private databases, scripted receivers, real processes, recorded histories and
//! their checker.
//!
//! Nothing here is part of the product, and what judges the product shares no code with it.

// Whatever does not work out here fails the test, and a panic is how a test fails.
#![allow(clippy::unwrap_used)]

pub mod certificates;
pub mod checker;
pub mod database;
pub mod history;
pub mod network;
pub mod process;
pub mod receiver;
pub mod server;
pub mod tables;

/// The code of the pages, as documentation tests; `tests/it/docs` holds that none is forgotten.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    pub struct Readme;
    #[doc = include_str!("../../docs/GUARANTEES.md")]
    pub struct Guarantees;
    #[doc = include_str!("../../docs/OPERATING.md")]
    pub struct Operating;
    #[doc = include_str!("../../docs/SECURITY.md")]
    pub struct Security;
}
