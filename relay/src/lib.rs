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
//! # Handlers
//!
//! A handler is an asynchronous function under the name of a destination. What waits for it is stored under that name,
//! so keep the name when the function moves. It is called on the relay's runtime: what computes for long or blocks
//! belongs into `tokio::task::spawn_blocking`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use relay::message::Message;
//! use relay::testing::Outbox;
//! use relay::{Context, Handler, HandlerResult};
//! # use diesel::prelude::*;
//!
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderCancelled { order_id: i64 }
//! # impl outbox::Message for OrderCancelled { const TOPIC: &'static str = "order.cancelled"; }
//! # struct Mailer;
//! # impl Mailer { async fn send(&self, _: i64) -> std::io::Result<()> { Ok(()) } }
//! // One type of message. `?` on any error means: try again later.
//! async fn print(order: OrderPlaced, context: Context) -> HandlerResult {
//!     std::fs::write(std::env::temp_dir().join(context.message_id().to_string()), order.order_id.to_string())?;
//!     Ok(())
//! }
//!
//! // With something it needs each time; a pool or an `Arc` is cheap to clone.
//! async fn send_mail(mailer: Arc<Mailer>, order: OrderPlaced, _: Context) -> std::io::Result<()> {
//!     mailer.send(order.order_id).await
//! }
//!
//! // Several types under one name: messages of one key stay in order across them.
//! async fn reserve(_: OrderPlaced, _: Context) -> HandlerResult {
//!     Ok(())
//! }
//! async fn release(_: OrderCancelled, _: Context) -> HandlerResult {
//!     Ok(())
//! }
//!
//! // Whatever its type: the bytes as they were stored, of the topics it asks for.
//! async fn copy(message: Message, _: Context) -> HandlerResult {
//!     println!("{} with {} bytes", message.topic, message.payload.len());
//!     Ok(())
//! }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let outbox = Outbox::new();
//! # outbox.connection().transaction(|conn| {
//! #     outbox::enqueue(conn, &OrderPlaced { order_id: 1 })?;
//! #     outbox::enqueue(conn, &OrderCancelled { order_id: 1 })
//! # })?;
//! let relay = outbox
//!     .relay()
//!     .handler("labels", print)
//!     .destination(Handler::with_state("mails", Arc::new(Mailer), send_mail))
//!     .destination(Handler::new("stock", reserve).on(release))
//!     .destination(Handler::raw("archive", copy).topics(["order.*"]));
//! let drained = outbox.drain(relay).await;
//! assert_eq!(drained.delivered, 6);
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A handler has options: [`timeout`](Handler::timeout), [`concurrency`](Handler::concurrency),
//! [`retry`](Handler::retry), [`ordering`](Handler::ordering), [`after_dead_letter`](Handler::after_dead_letter). The
//! [`Context`] tells the message's id, which attempt this is, the stored headers, the deadline, and when the attempt is
//! over.
//!
//! # What a handler returns
//!
//! | It returns | What follows |
//! |---|---|
//! | `Ok(())`, or a [`Reply`] | delivered |
//! | any error | tried again, on the schedule of the destination |
//! | [`HandlerError::retry_after`] | the same, not before that time |
//! | [`HandlerError::reject`] | a dead letter now |
//! | [`HandlerError::hold`] | the whole destination waits; no attempt is counted |
//! | [`HandlerError::misconfigured`] | tried again, slowly: a person has to mend something |
//! | nothing: it panicked, or its time was up | tried again |
//!
//! A handler that aborts the process is called again after the restart, as long as its message is there.
//!
//! # Effects that happen exactly once
//!
//! A message is delivered at least once: after a crash its handler may be called again. A *transactional* handler is
//! given the transaction in which its message ends. What it writes there becomes true exactly when the message is gone,
//! however often anything dies in between; see [`Handler::transactional`] for what that covers and costs.
//!
//! ```
//! use diesel::SqliteConnection;
//! use diesel::sql_types::BigInt;
//! use diesel_async::RunQueryDsl;
//! use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
//! use relay::Context;
//! use relay::testing::Outbox;
//! # use diesel::connection::SimpleConnection;
//! # use diesel::Connection;
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//!
//! type Conn = SyncConnectionWrapper<SqliteConnection>; // or AsyncPgConnection, AsyncMysqlConnection
//!
//! async fn post(order: OrderPlaced, conn: &mut Conn, _: Context) -> diesel::QueryResult<()> {
//!     let insert = diesel::sql_query("INSERT INTO ledger (order_id) VALUES (?)");
//!     insert.bind::<BigInt, _>(order.order_id).execute(conn).await?;
//!     Ok(())
//! }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let outbox = Outbox::new();
//! # outbox.connection().batch_execute("CREATE TABLE ledger (order_id INTEGER PRIMARY KEY)").unwrap();
//! # outbox.connection().transaction(|conn| outbox::enqueue(conn, &OrderPlaced { order_id: 1 }))?;
//! let drained = outbox.drain(outbox.relay().transactional_handler("ledger", post)).await;
//! assert_eq!(drained.delivered, 1);
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where the effect is elsewhere, let the receiver remember ids: [`outbox::inbox::once`].
//!
//! # HTTP destinations
//!
//! [`Http`] sends each message as one POST: the stored bytes as the body, everything else in headers. `webhook-id` is the
//! same on every attempt; `webhook-signature` is there when the destination has a key. What an answer means stands in
//! `docs/CONCEPTS.md`; redirects are not followed, and nothing is repeated behind the relay's back.
//!
//! ```
//! use std::time::Duration;
//!
//! use relay::testing::{Answer, Outbox, Receiver};
//! use relay::{AfterDeadLetter, Http};
//! # use diesel::prelude::*;
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let outbox = Outbox::new();
//! let billing = Receiver::answering([Answer::status(200)]).await;
//! let destination = Http::new("billing", billing.url("/hooks"))
//!     .topics(["order.*", "refund.issued"])
//!     .header("authorization", "Bearer …")
//!     .signing_key(outbox::signature::Secret::generate())
//!     .timeout(Duration::from_secs(5))
//!     .concurrency(8)
//!     .after_dead_letter(AfterDeadLetter::Block);
//!
//! let refund = outbox::Envelope::raw("refund.issued", r#"{"cents":100}"#).content_type("application/json");
//! outbox.connection().transaction(|conn| outbox::enqueue(conn, refund))?;
//! outbox.drain(outbox.relay().destination(destination)).await;
//!
//! let [request] = billing.received::<1>();
//! assert_eq!((request.topic(), request.json()["cents"].as_i64()), ("refund.issued", Some(100)));
//! assert!(request.header("webhook-signature").starts_with("v1,"));
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Inside a program
//!
//! [`Relay::run_until`] delivers until its future completes, and then finishes what is under way: give it the signal your
//! server ends on, and wait for it before the process ends. Several processes may each run a relay on one database: they
//! share its partitions, and take over what a dead one owned after a [`lease`](RelayBuilder::lease). All of them should
//! have the same handlers; one that lacks a destination another one serves gets nothing. An outage of the database after the
//! start is survived; whatever is wrong at the start is an error of [`RelayBuilder::build`].
//!
//! ```no_run
//! # use relay::{Context, HandlerResult, Relay};
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//! # async fn send_invoice(_: OrderPlaced, _: Context) -> HandlerResult { Ok(()) }
//! # async fn example(routes: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//! let relay = Relay::builder(std::env::var("DATABASE_URL")?)
//!     .name("shop-1")
//!     .handler("invoices", send_invoice)
//!     .on_event(|event| tracing::debug!(?event, "delivery"))
//!     .build()
//!     .await?;
//! let delivering = tokio::spawn(relay.run_until(relay::shutdown_signal()));
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! axum::serve(listener, routes).with_graceful_shutdown(relay::shutdown_signal()).await?;
//! delivering.await??;
//! # Ok(())
//! # }
//! ```
//!
//! # Events
//!
//! [`RelayBuilder::on_event`] is told what happens to deliveries: attempts with their verdict and duration, pauses, dead
//! letters. Payloads do not travel there. The listener is called on the relay's own task: let it count, or hand on.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use relay::{Event, Handler, HandlerResult};
//! # use diesel::prelude::*;
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let outbox = relay::testing::Outbox::new();
//! # let enqueue = |conn: &mut SqliteConnection| outbox::enqueue(conn, outbox::Envelope::raw("a", "1"));
//! # outbox.connection().transaction(enqueue)?;
//! # let handler = Handler::raw("a", |_, _| async { HandlerResult::Ok(()) });
//! # let builder = outbox.relay().destination(handler);
//! let failed = Arc::new(AtomicU64::new(0));
//! let counted = failed.clone();
//! let builder = builder.on_event(move |event| {
//!     if let Event::Waiting { .. } | Event::DeadLettered { .. } = event {
//!         counted.fetch_add(1, Ordering::Relaxed);
//!     }
//! });
//! # outbox.drain(builder).await;
//! # assert_eq!(failed.load(Ordering::Relaxed), 0);
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Draining and testing
//!
//! [`Relay::drain`] delivers what is there and due, ends, and says what it did and what is left: for batch jobs and for
//! tests. Whether a message was enqueued is asked with [`outbox::testing`]. What a relay makes of it is shown with
//! [`testing`]: a throw-away outbox, a receiver that follows a script, and a clock that jumps over pauses.
//!
//! ```
//! use std::time::Duration;
//!
//! use diesel::prelude::*;
//! use relay::testing::Outbox;
//! use relay::{Context, Handler, HandlerResult};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let outbox = Outbox::new();
//! outbox.connection().transaction(|conn| outbox::enqueue(conn, outbox::Envelope::raw("order.placed", "{}")))?;
//! let drain = || {
//!     let fails_once = Handler::raw("flaky", |_, context: Context| async move {
//!         let result: HandlerResult = if context.attempt() == 1 { Err("not yet".into()) } else { Ok(()) };
//!         result
//!     });
//!     outbox.drain(outbox.relay().destination(fails_once))
//! };
//! assert_eq!(drain().await.retried, 1);
//! outbox.advance(Duration::from_secs(60));
//! assert!(drain().await.is_clean());
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to look
//!
//! - [`Relay::builder`] sets a relay up; [`Handler`] and [`Http`] are destinations with options.
//! - [`HandlerError`] lets a handler say more than "try again": reject, hold, retry not before.
//! - [`retry::RetryPolicy`] says when failed attempts are repeated and when to give up.
//! - [`Event`] tells a listener what happens to deliveries.
//! - [`testing`] is for tests of programs that use all this.
//! - [`cli`] is the `relay` command, [`config`] its configuration file.
//! - [`store::Store`] is the seam to the database, [`sink::Sink`] the one to a place messages go to.

pub mod admin;
pub mod bench;
mod breaker;
mod cause;
pub mod cli;
mod clock_watch;
pub mod config;
pub mod duration;
mod engine;
pub mod event;
mod fingerprint;
pub mod frontier;
mod hands;
mod key_gate;
mod lane;
mod lease;
mod membership;
pub mod message;
mod moment;
mod outage;
mod outcome;
pub mod poll;
mod ramp;
mod rate;
mod relay;
pub mod retry;
pub mod route;
pub mod server;
mod shutdown;
pub mod sink;
mod solitude;
pub mod store;
pub mod telemetry;
pub mod testing;
mod tls;
pub mod verdict;

pub use crate::event::Event;
pub use crate::rate::RateLimit;
pub use crate::relay::{Destination, Drained, Relay, RelayBuilder, RelayError};
pub use crate::shutdown::shutdown_signal;
pub use crate::sink::AfterDeadLetter;
pub use crate::sink::Ordering;
pub use crate::sink::handler::{Context, Handler, HandlerError, HandlerResult, Reply};
pub use crate::sink::http::{Http, Mode, Network};
/// What connections of transactional handlers come from, in the version this crate was built with.
pub use diesel_async;
