//! Transactional outbox for diesel.

#[cfg(feature = "async")]
pub mod aio;
pub mod limits;
pub mod migrations;

mod connection;
mod enqueue;
mod envelope;
mod error;
mod insert;
mod message;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use connection::{Database, OutboxBackend};
pub use enqueue::{Receipt, enqueue, enqueue_all, enqueue_unchecked};
pub use envelope::{Envelope, IntoEnvelope, envelope};
pub use error::{Error, Refusal};
pub use message::Message;
