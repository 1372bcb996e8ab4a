//! Delivers the messages of a transactional outbox.
//!
//! Applications write messages with the crate [`outbox`], in the transaction of their business data. A relay reads what
//! was committed and delivers it to handlers in this process or to HTTP endpoints, at least once, in order per key,
//! with retries; what cannot be delivered becomes a dead letter for a person to look at.
//!
//! ```
//! use std::borrow::Cow;
//!
//! use diesel::prelude::*;
//! use relay::{Context, Relay};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct OrderPlaced {
//!     order_id: i64,
//! }
//!
//! impl outbox::Message for OrderPlaced {
//!     const TOPIC: &'static str = "order.placed";
//!
//!     fn key(&self) -> Option<Cow<'_, str>> {
//!         Some(self.order_id.to_string().into())
//!     }
//! }
//!
//! async fn send_invoice(order: OrderPlaced, context: Context) -> Result<(), std::io::Error> {
//!     println!("order {}, attempt {}", order.order_id, context.attempt());
//!     Ok(())
//! }
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("shop.db").display().to_string();
//! let mut conn = SqliteConnection::establish(&path)?;
//! outbox::migrations::run(&mut conn)?;
//! conn.transaction(|conn| outbox::enqueue(conn, &OrderPlaced { order_id: 1 }))?;
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let relay = Relay::builder(format!("sqlite:{path}")).handler("invoices", send_invoice).build().await?;
//! // `run_until(relay::shutdown_signal())` goes on for ever; a drain ends when nothing is left to do.
//! let drained = relay.drain().await?;
//! assert!(drained.is_clean());
//! # Ok::<(), relay::RelayError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to look
//!
//! - [`Relay::builder`] sets a relay up; [`Handler`] and [`Http`] are destinations with options.
//! - [`Handler::transactional`] is for effects that must happen exactly once; [`Handler::on`] takes several types.
//! - [`HandlerError`] lets a handler say more than "try again": reject, hold, retry not before.
//! - [`retry::RetryPolicy`] says when failed attempts are repeated and when to give up.
//! - [`Event`] tells a listener what happens to deliveries.
//! - [`testing`] helps to test programs that use all this: a throw-away outbox, a scripted receiver, a clock that jumps.
//! - [`cli`] is the `relay` command, [`config`] its configuration file.
//! - [`store::Store`] is the seam to the database.

pub mod admin;
pub mod bench;
mod cause;
pub mod cli;
pub mod config;
pub mod duration;
mod engine;
pub mod event;
pub mod frontier;
mod hands;
mod key_gate;
mod lane;
mod lease;
mod membership;
pub mod message;
mod outage;
mod outcome;
pub mod poll;
mod relay;
pub mod retry;
pub mod route;
pub mod server;
pub mod sink;
pub mod store;
pub mod telemetry;
pub mod testing;
pub mod verdict;

pub use crate::event::Event;
pub use crate::relay::{Destination, Drained, Relay, RelayBuilder, RelayError, shutdown_signal};
pub use crate::sink::AfterDeadLetter;
pub use crate::sink::Ordering;
pub use crate::sink::handler::{Context, Handler, HandlerError, HandlerResult, Reply};
pub use crate::sink::http::Http;
/// What connections of transactional handlers come from, in the version this crate was built with.
pub use diesel_async;
