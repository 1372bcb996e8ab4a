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
//! # A guide
//!
//! ## Tables
//!
//! [`migrations::run`] creates them, [`migrations::sql`] prints them for other tools. They begin with `outbox_` and stand
//! beside yours. Features of this crate choose the databases, see [below](#features).
//!
//! ## Enqueueing
//!
//! [`enqueue`] one message, or [`enqueue_all`] many with one statement. `?` works whether the closure returns [`Error`] or
//! [`diesel::result::Error`]. [`transaction`] is diesel's, and proves that the transaction committed. [`envelope`] sets
//! options, [`Envelope::raw`] sends bytes as they are, and [`limits`] lists what is refused before anything is written.
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! # #[derive(serde::Serialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//! use std::time::Duration;
//!
//! # let mut conn = outbox::testing::memory();
//! let receipt = outbox::transaction(&mut conn, |conn| {
//!     let message = OrderPlaced { order_id: 1 };
//!     let envelope = outbox::envelope(&message)
//!         .key("order-1")                         // in order with what has the same key
//!         .header("x-tenant", "7")
//!         .correlation_id("checkout-42")
//!         .delay(Duration::from_secs(3600))       // or `deliver_at`
//!         .expires_at(chrono::Utc::now() + Duration::from_secs(86_400))
//!         .dedup_key("order-1-placed")            // once a day at most
//!         .to("billing");                         // this destination only
//!     outbox::enqueue(conn, envelope)
//! })?;
//! assert!(!receipt.is_duplicate());
//!
//! // It is not needed any more.
//! outbox::transaction(&mut conn, |conn| outbox::cancel(conn, &receipt))?;
//! # }
//! # Ok::<(), outbox::Error>(())
//! ```
//!
//! ## With diesel-async
//!
//! The module `aio` has the same functions, with feature `async`.
//!
//! ```
//! # #[cfg(all(feature = "async", feature = "postgres"))]
//! # async fn place_order<C>(conn: &mut C) -> Result<(), outbox::Error>
//! # where C: diesel_async::AsyncConnection<Backend: outbox::OutboxBackend> {
//! use outbox::{Envelope, aio};
//!
//! let receipt = aio::transaction(conn, async |conn| {
//!     // … the business data …
//!     aio::enqueue(conn, Envelope::raw("order.placed", "1")).await
//! })
//! .await?;
//! # let _: outbox::Receipt = receipt;
//! # Ok(())
//! # }
//! ```
//!
//! ## On whichever database
//!
//! Business code can be generic over the database. A `diesel::MultiConnection` is an enum of connections: match on it, and use
//! the one inside. Its transactions are those of the connection inside.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # mod shop {
//! use diesel::connection::LoadConnection;
//! use outbox::{Envelope, OutboxBackend, Receipt};
//!
//! fn place_order<C>(conn: &mut C) -> Result<Receipt, outbox::Error>
//! where
//!     C: LoadConnection<Backend: OutboxBackend>,
//! {
//!     outbox::transaction(conn, |conn| outbox::enqueue(conn, Envelope::raw("order.placed", "1")))
//! }
//!
//! #[derive(diesel::MultiConnection)]
//! pub enum AnyConnection {
//!     Sqlite(diesel::SqliteConnection),
//!     // Postgres(diesel::PgConnection), Mysql(diesel::MysqlConnection),
//! }
//!
//! fn place_order_on_any(conn: &mut AnyConnection) -> Result<Receipt, outbox::Error> {
//!     match conn {
//!         AnyConnection::Sqlite(conn) => place_order(conn),
//!         // AnyConnection::Postgres(conn) => place_order(conn), …
//!     }
//! }
//! # pub fn run() {
//! #     place_order_on_any(&mut AnyConnection::Sqlite(outbox::testing::memory())).unwrap();
//! # }
//! # }
//! # fn main() {
//! #     #[cfg(feature = "sqlite")]
//! #     shop::run();
//! # }
//! ```
//!
//! ## Receiving
//!
//! A message is delivered at least once, each time with the same [`Receipt::message_id`], as `webhook-id`. [`inbox::once`] is
//! for an effect that must happen once, and [`signature::verify`] for a receiver that must know who is speaking.
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! use outbox::signature::{self, Headers, VerifyingKey};
//!
//! # use diesel::SqliteConnection;
//! fn receive(
//!     conn: &mut SqliteConnection,
//!     keys: &[VerifyingKey],
//!     headers: &Headers<'_>, // `Headers::find(|name| …)` takes them from a request
//!     body: &[u8],
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     signature::verify(keys, headers, body)?;
//!     // A copy finds its id in the table and changes nothing.
//!     outbox::inbox::once(conn, "ledger", headers.id, |_conn| {
//!         // … book what `body` says, on this connection …
//!         Ok::<(), outbox::Error>(())
//!     })?;
//!     Ok(())
//! }
//! # let (secret, now) = (signature::Secret::generate(), std::time::SystemTime::now());
//! # let secs = now.duration_since(std::time::UNIX_EPOCH)?.as_secs();
//! # let signature = signature::sign([&secret], "a", secs, b"{}");
//! # let headers = Headers { id: "a", timestamp: &secs.to_string(), signature: &signature };
//! # let mut conn = outbox::testing::memory();
//! # receive(&mut conn, &[secret.into()], &headers, b"{}")?;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ## Looking and repairing
//!
//! [`messages`] says where a message is, [`dead_letters`] lists what was given up and sends it again, [`keys`] lists what
//! stands still and lets it go on, [`destinations`] holds a receiver back. The `relay` command does the same at a terminal.
//!
//! ## Testing
//!
//! [`testing`] has an outbox in memory, assertions that show what is enqueued and what differs, and a strict mode that
//! finds an enqueue which only the test's own transaction makes legal.
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! # use outbox::{Envelope, Error};
//! # fn place_order(conn: &mut diesel::SqliteConnection) -> Result<(), Error> {
//! #     outbox::transaction(conn, |conn| outbox::enqueue(conn, Envelope::raw("order.placed", "1")).map(drop))
//! # }
//! let mut conn = outbox::testing::memory();
//! place_order(&mut conn)?;
//! outbox::assert_enqueued!(&mut conn, "order.placed", bytes: "1");
//! outbox::refute_enqueued!(&mut conn, "order.cancelled");
//! # }
//! # Ok::<(), outbox::Error>(())
//! ```
//!
//! # What to know
//!
//! - [`enqueue_unchecked`] is for those who open transactions without diesel's knowledge.
//! - On MariaDB and MySQL a deadlock or a DDL statement ends the transaction while diesel believes it open. MariaDB
//!   refuses an enqueue after that by itself. For MySQL 8 a savepoint is tried before each insert; this was written
//!   with care and never run on MySQL 8.
//! - Least privilege: INSERT on the columns `id, topic, ordering_key, payload, payload_bytes, content_type, headers,
//!   destination, deliver_at, expires_at, version, dedup_key` of `outbox_messages` (no `payload_bytes` on MariaDB and MySQL) is all
//!   a producer needs.
//! - Any program that can INSERT is a producer: `INSERT INTO outbox_messages (topic, payload) VALUES (…)`.
//!
//! # Features
//!
//! - `postgres`, `mysql`, `sqlite` choose the databases. None of them links libpq or libmysqlclient; that choice is the
//!   application's. `sqlite-bundled` compiles SQLite in.
//! - `async` adds diesel-async.
//! - `ed25519` signs and verifies with key pairs (`v1a`), beside shared secrets. Receivers want it; who only enqueues does not.
//! - `opentelemetry` stores the current trace with each message (headers `traceparent` and `tracestate`), and the relay sends
//!   it along. It reads the OpenTelemetry context: with `tracing-opentelemetry` that is the span you are in, unless you
//!   switched `with_context_activation` off; then attach the span's context around the call.

#[cfg(feature = "async")]
pub mod aio;
pub mod dead_letters;
pub mod dedup;
pub mod destinations;
pub mod inbox;
pub mod keys;
pub mod limits;
pub mod messages;
pub mod migrations;
pub mod relays;
pub mod rights;
pub mod schema;
pub mod signature;
pub mod testing;

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
mod trace;
mod transaction;

pub use cancel::cancel;
pub use connection::{Database, OutboxBackend};
pub use enqueue::{Receipt, enqueue, enqueue_all, enqueue_unchecked};
pub use envelope::{Envelope, IntoEnvelope, envelope};
pub use error::{Error, Refusal};
pub use message::Message;
pub use transaction::transaction;
