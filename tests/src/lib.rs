//! Shared by the integration tests: private databases, scripted receivers, real processes, recorded histories and
//! their checker.
//!
//! Nothing here is part of the product, and what judges the product shares no code with it.

pub mod database;
pub mod receiver;
