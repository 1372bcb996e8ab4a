//! Send messages if, and only if, your transaction commits.
//!
//! An application changes its data and wants others to know: a mail to be sent, a service to be called. Done before the
//! commit, the others may hear of something that never happened; done after it, a crash in between keeps it from them
//! for ever. An outbox writes the message **into the same database, in the same transaction**. A relay delivers every
//! committed message, again and again until it succeeds; a message that was rolled back never existed.
//!
//! This crate is the side of the application, for [diesel](https://diesel.rs) on PostgreSQL, MariaDB, MySQL and SQLite.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::borrow::Cow;
//!
//! use diesel::prelude::*;
//!
//! #[derive(serde::Serialize)]
//! struct OrderPlaced {
//!     order_id: i64,
//!     total_cents: i64,
//! }
//!
//! impl outbox::Message for OrderPlaced {
//!     const TOPIC: &'static str = "order.placed";
//!
//!     // Messages of one order arrive in the order in which they were enqueued.
//!     fn key(&self) -> Option<Cow<'_, str>> {
//!         Some(self.order_id.to_string().into())
//!     }
//! }
//!
//! let mut conn = SqliteConnection::establish(":memory:")?;
//! outbox::migrations::run(&mut conn)?;
//! diesel::sql_query("CREATE TABLE orders (id INTEGER PRIMARY KEY, total_cents INTEGER)").execute(&mut conn)?;
//!
//! let receipt = conn.transaction(|conn| {
//!     diesel::sql_query("INSERT INTO orders VALUES (1, 4200)").execute(conn)?;
//!     outbox::enqueue(conn, &OrderPlaced { order_id: 1, total_cents: 4200 })
//! })?;
//! println!("committed as {}", receipt.message_id);
//!
//! // Outside a transaction the message would not belong to anything: that is an error, not a surprise.
//! let error = outbox::enqueue(&mut conn, &OrderPlaced { order_id: 2, total_cents: 1 }).unwrap_err();
//! assert!(error.is_not_in_transaction());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "sqlite"))]
//! # fn main() {}
//! ```
//!
//! # What to call
//!
//! - [`enqueue`] one message, [`enqueue_all`] many with one statement. `?` works whether the closure returns
//!   [`Error`] or [`diesel::result::Error`].
//! - [`envelope`] sets options: key, headers, a delay, an expiry, one destination, a dedup key. [`Envelope::raw`] sends bytes as
//!   they are.
//! - [`cancel`] takes a message back that was not delivered yet.
//! - [`transaction`] is diesel's, and proves that the transaction committed.
//! - [`inbox::once`] is for the receiving side: an effect that happens once, although a message may come again.
//! - `aio` has the same functions for diesel-async, with feature `async`.
//! - [`enqueue_unchecked`] is for those who open transactions without diesel's knowledge.
//! - [`migrations::run`] creates the tables; [`migrations::sql`] prints them for other tools.
//! - [`limits`] lists what is refused, before anything is written.
//!
//! # What to know
//!
//! - A message is delivered at least once. Receivers see the same [`Receipt::message_id`] each time.
//! - On MariaDB and MySQL a deadlock or a DDL statement ends the transaction while diesel believes it open. MariaDB
//!   refuses an enqueue after that by itself. For MySQL 8 a savepoint is tried before each insert; this was written
//!   with care and never run on MySQL 8.
//! - `diesel::MultiConnection` is an enum of connections: match on it, and enqueue on the one inside.
//! - Least privilege: INSERT on the columns `id, topic, ordering_key, payload, payload_bytes, content_type, headers,
//!   destination, deliver_at, expires_at, version, dedup_key` of `outbox_messages` (no `payload_bytes` on MariaDB and MySQL) is all
//!   a producer needs.
//! - Any program that can INSERT is a producer: `INSERT INTO outbox_messages (topic, payload) VALUES (…)`.
//!
//! # Features
//!
//! `postgres`, `mysql`, `sqlite` choose the databases, `async` adds diesel-async, `sqlite-bundled` compiles SQLite in.
//! None of them links libpq or libmysqlclient; that choice is the application's.

#[cfg(feature = "async")]
pub mod aio;
pub mod dead_letters;
pub mod dedup;
pub mod destinations;
pub mod inbox;
pub mod limits;
pub mod messages;
pub mod migrations;
pub mod relays;
pub mod rights;
pub mod schema;
pub mod signature;

mod by_hand;
mod cancel;
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
mod transaction;

pub use cancel::cancel;
pub use connection::{Database, OutboxBackend};
pub use enqueue::{Receipt, enqueue, enqueue_all, enqueue_unchecked};
pub use envelope::{Envelope, IntoEnvelope, envelope};
pub use error::{Error, Refusal};
pub use message::Message;
pub use transaction::transaction;
