//! For tests of programs that use the outbox: from a single function to the whole way of a message.
//!
//! Nothing here sleeps and nothing needs a server: the outbox is a file that goes away, the receiver a port of this
//! machine, and time jumps when the test says so.
//!
//! # Was it enqueued?
//!
//! [`outbox::testing`](::outbox::testing) answers that alone: a transaction on a database in memory, and a look at what it
//! left. No relay is needed, and no message leaves.
//!
//! ```
//! use diesel::prelude::*;
//! use outbox::assert_enqueued;
//! # #[derive(serde::Serialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//!
//! let conn = &mut outbox::testing::memory();
//! conn.transaction(|conn| outbox::enqueue(conn, &OrderPlaced { order_id: 7 }))?;
//! assert_enqueued!(conn, OrderPlaced, payload: serde_json::json!({ "order_id": 7 }), count: 1);
//! # Ok::<(), outbox::Error>(())
//! ```
//!
//! # Does the handler do its work?
//!
//! A handler is a function. [`Outbox`] brings it its message, as a relay would, and [`Outbox::drain`] says what came of
//! it.
//!
//! ```
//! # use std::sync::atomic::{AtomicI64, Ordering};
//! # use std::sync::Arc;
//! use diesel::prelude::*;
//! use relay::testing::Outbox;
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let outbox = Outbox::new();
//! let conn = &mut outbox.connection();
//! conn.transaction(|conn| outbox::enqueue(conn, &OrderPlaced { order_id: 7 }))?;
//!
//! let seen = Arc::new(AtomicI64::new(0));
//! let send_invoice = {
//!     let seen = seen.clone();
//!     move |order: OrderPlaced, _| {
//!         seen.store(order.order_id, Ordering::SeqCst);
//!         async { Ok::<(), std::io::Error>(()) }
//!     }
//! };
//! let drained = outbox.drain(outbox.relay().handler("invoices", send_invoice)).await;
//! assert_eq!((drained.attempts, drained.delivered), (1, 1));
//! assert!(drained.is_clean());
//! assert_eq!(seen.load(Ordering::SeqCst), 7);
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What if the receiver fails?
//!
//! [`Receiver`] answers as its script says and keeps what it was sent. [`Outbox::advance`] jumps over the pause before
//! the next attempt, a hold, a `deliver_at` or an `expires_at`. Here a delivery fails twice, dies, is looked at, sent
//! again and accepted:
//!
//! ```
//! use std::time::Duration;
//!
//! use diesel::prelude::*;
//! use outbox::dead_letters::{self, By, Filter};
//! use relay::retry::RetryPolicy;
//! use relay::testing::{Answer, Outbox, Receiver};
//! use relay::Http;
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let outbox = Outbox::new();
//! let receiver = Receiver::answering([Answer::drop_connection(), Answer::status(503).body("on fire")]).await;
//! // One pause, so two attempts.
//! let retry = RetryPolicy::pauses(vec![Duration::from_secs(300)]);
//! let drain = || {
//!     let billing = Http::new("billing", receiver.url("/hooks")).retry(retry.clone());
//!     outbox.drain(outbox.relay().destination(billing))
//! };
//!
//! let conn = &mut outbox.connection();
//! conn.transaction(|conn| outbox::enqueue(conn, &OrderPlaced { order_id: 7 }))?;
//!
//! assert_eq!(drain().await.retried, 1);
//! assert_eq!(drain().await.attempts, 0, "its pause is not over");
//! outbox.advance(Duration::from_secs(300));
//! let drained = drain().await;
//! assert_eq!((drained.attempts, drained.dead_lettered), (1, 1));
//!
//! // The receiver is repaired, and a person sends the dead letter again.
//! let letter = &dead_letters::list(conn, &Filter::default(), 10)?[0];
//! assert!(letter.last_error.as_deref().is_some_and(|error| error.contains("on fire")));
//! let by = By { actor: "ada@desk".into(), reason: Some("it is back".into()) };
//! dead_letters::redrive(conn, &[letter.id], &by)?;
//! assert_eq!(drain().await.delivered, 1);
//!
//! let [first, _, last] = receiver.received::<3>();
//! assert_eq!(first.id(), last.id(), "a receiver can tell that it is the same message");
//! assert_eq!(last.parse::<OrderPlaced>().order_id, 7);
//! # Ok::<(), outbox::Error>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # On PostgreSQL, MariaDB or MySQL
//!
//! [`RelayBuilder::clock`](crate::RelayBuilder::clock) takes a [`Clock`] on any database: build a relay for each
//! [`drain`](crate::Relay::drain), jump in between. Give each test a database of its own: a drain delivers whatever it
//! finds.

mod clock;
mod outbox;
mod receiver;

pub use clock::Clock;
pub use outbox::Outbox;
pub use receiver::{Answer, Received, Receiver};
