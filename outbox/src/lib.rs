//! Transactional outbox for diesel.

pub mod dead_letters;
pub mod migrations;

mod connection;
mod error;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use connection::{Database, OutboxBackend};
pub use error::{Error, Refusal};
