//! For the tests of applications: what was enqueued, and whether it was enqueued where it must be.
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! use diesel::prelude::*;
//! use outbox::{assert_enqueued, refute_enqueued};
//!
//! #[derive(serde::Serialize)]
//! struct OrderPlaced {
//!     order_id: i64,
//!     total_cents: i64,
//! }
//!
//! impl outbox::Message for OrderPlaced {
//!     const TOPIC: &'static str = "order.placed";
//! }
//!
//! // The code under test.
//! fn place_order(conn: &mut SqliteConnection, total_cents: i64) -> Result<(), outbox::Error> {
//!     outbox::transaction(conn, |conn| {
//!         let message = OrderPlaced { order_id: 1, total_cents };
//!         outbox::enqueue(conn, outbox::envelope(&message).key("1").header("x-tenant", "7")).map(drop)
//!     })
//! }
//!
//! // SQLite in memory, with the tables. Another database: `conn.begin_test_transaction()`.
//! let mut conn = outbox::testing::memory();
//! place_order(&mut conn, 4200).unwrap();
//!
//! assert_enqueued!(&mut conn, OrderPlaced);
//! assert_enqueued!(&mut conn, OrderPlaced, key: "1", payload: serde_json::json!({ "total_cents": 4200 }));
//! assert_enqueued!(&mut conn, "order.placed", header: ("x-tenant", "7"), count: 1);
//! refute_enqueued!(&mut conn, "order.cancelled");
//! # }
//! ```
//!
//! What can be asked for is what [`Expected`] has a method for. A failure shows what *is* enqueued, and how each message
//! differs. The newest 1000 messages are looked at, those of the transaction that is open and those committed; what a
//! relay has taken is there no more.
//!
//! With diesel-async write `assert_enqueued!(async conn, OrderPlaced)`.
//!
//! # Test transactions
//!
//! Many tests run in diesel's `begin_test_transaction`. There every enqueue is inside a transaction, the test's own, so
//! code that forgot to open one passes its tests and fails in production. [`strict`] makes it fail in the test.

use diesel::connection::{
    Connection, Instrumentation, InstrumentationEvent, LoadConnection, get_default_instrumentation,
};

use crate::connection::OutboxBackend;
use crate::error::Error;

mod enqueued;
mod expected;
mod macros;

pub use enqueued::Enqueued;
pub use expected::{Expected, assert_enqueued, refute_enqueued};

pub(crate) use enqueued::{read, select};

/// An outbox in memory, for tests that need no other database. Feature `sqlite`.
///
/// With diesel-async: `let mut conn: SyncConnectionWrapper<SqliteConnection> = SyncConnectionWrapper::new(memory());`
///
/// # Panics
///
/// When SQLite cannot open a database in memory.
#[cfg(feature = "sqlite")]
pub fn memory() -> diesel::SqliteConnection {
    let mut conn = diesel::SqliteConnection::establish(":memory:").expect("SQLite opens a database in memory");
    crate::migrations::run(&mut conn).expect("the tables fit into an empty database");
    conn
}

/// What is enqueued, the oldest first: the newest 1000 messages at most.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn enqueued<C>(conn: &mut C) -> Result<Vec<Enqueued>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    read(select::<C::Backend>().load(conn)?)
}

/// Makes an enqueue directly in a test transaction an error on this connection, as it would be without the test.
///
/// The code under test has to open a transaction of its own, which inside `begin_test_transaction` is a savepoint. Call
/// this after the test has prepared its data. It concerns nothing but this connection, and nothing but the transaction
/// that `begin_test_transaction` opens; [`cancel`](crate::cancel) is checked, too.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use diesel::prelude::*;
/// use outbox::Envelope;
///
/// let mut conn = outbox::testing::memory();
/// conn.begin_test_transaction().unwrap();
/// outbox::testing::strict(&mut conn);
///
/// // As in code that forgot its transaction:
/// let error = outbox::enqueue(&mut conn, Envelope::raw("order.placed", "1")).unwrap_err();
/// assert!(error.is_not_in_transaction());
///
/// conn.transaction(|conn| outbox::enqueue(conn, Envelope::raw("order.placed", "1"))).unwrap();
/// # }
/// ```
///
/// The mark is kept as the connection's instrumentation: one that was set on this connection is replaced, the default
/// one goes on, and setting another one ends the strictness.
pub fn strict<C>(conn: &mut C)
where
    C: Connection<Backend: OutboxBackend>,
{
    conn.set_instrumentation(Strict::new());
}

/// The mark of a strict connection. Passes everything on to the default instrumentation.
pub(crate) struct Strict(Option<Box<dyn Instrumentation>>);

impl Strict {
    pub(crate) fn new() -> Strict {
        Strict(get_default_instrumentation())
    }

    /// True when the mark is set.
    pub(crate) fn is_set(instrumentation: &mut dyn Instrumentation) -> bool {
        instrumentation.is::<Strict>()
    }
}

impl Instrumentation for Strict {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let Some(default) = &mut self.0 {
            default.on_connection_event(event);
        }
    }
}
