//! A throw-away outbox in a SQLite file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use uuid::Uuid;

use super::Clock;
use crate::relay::{Drained, Relay, RelayBuilder};

/// An outbox of one's own for a test: a SQLite file with the schema, removed when this is dropped.
///
/// Enqueue through [`connection`](Outbox::connection), deliver with [`drain`](Outbox::drain), jump with
/// [`clock`](Outbox::clock), drain again. Whatever cannot be done panics: in a test nothing better could be done with it.
///
/// ```
/// # use relay::testing::Outbox;
/// use diesel::prelude::*;
/// use outbox::Envelope;
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let outbox = Outbox::new();
/// outbox.connection().transaction(|conn| outbox::enqueue(conn, Envelope::raw("order.placed", "{}")))?;
///
/// let log = relay::Handler::raw("log", |_message, _context| async { relay::HandlerResult::Ok(()) });
/// let drained = outbox.drain(outbox.relay().destination(log)).await;
/// assert_eq!(drained.delivered, 1);
/// # Ok::<(), outbox::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Outbox {
    folder: PathBuf,
    path: PathBuf,
    url: String,
    clock: Clock,
}

impl Outbox {
    /// An empty outbox.
    ///
    /// # Panics
    /// When the temporary folder cannot be written.
    #[expect(clippy::new_without_default, reason = "a default is not expected to make files")]
    pub fn new() -> Outbox {
        let folder = std::env::temp_dir().join(format!("outbox-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&folder)
            .unwrap_or_else(|error| panic!("the folder {} cannot be made: {error}", folder.display()));
        let path = folder.join("outbox.db");
        let url = format!("sqlite:{}", path.display());
        let outbox = Outbox { folder, path, url, clock: Clock::new() };
        outbox::migrations::run(&mut outbox.connection())
            .unwrap_or_else(|error| panic!("the schema of the outbox cannot be made: {error}"));
        outbox
    }

    /// A new connection, which waits for other writers. Tables of the application may be made through it.
    ///
    /// # Panics
    /// When the file cannot be opened.
    pub fn connection(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(&self.path.display().to_string())
            .unwrap_or_else(|error| panic!("the outbox {} cannot be opened: {error}", self.path.display()));
        conn.batch_execute("PRAGMA busy_timeout = 10000")
            .unwrap_or_else(|error| panic!("the outbox {} cannot be used: {error}", self.path.display()));
        conn
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as a relay or a command takes it: `sqlite:…`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The clock of the relays of [`relay`](Outbox::relay).
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Jumps over a span of time.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// The start of a relay on this outbox: give it destinations, then [`drain`](Outbox::drain) it.
    pub fn relay(&self) -> RelayBuilder {
        Relay::builder(&self.url).name("test").clock(&self.clock)
    }

    /// Delivers what was there and is due by the clock, and tells what was done and what is left. What handlers enqueue
    /// meanwhile comes with the next drain.
    ///
    /// A relay lives for one drain. To drain several times, write a closure that sets it up:
    /// `let drain = || outbox.drain(outbox.relay().destination(…))`.
    ///
    /// # Panics
    /// When the relay is not set up right.
    pub async fn drain(&self, relay: RelayBuilder) -> Drained {
        let drained = async { relay.build().await?.drain().await };
        drained.await.unwrap_or_else(|error| panic!("the relay cannot drain: {}", crate::cause::chain(&error)))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // Left behind it is only a file in the temporary folder, and a second panic would hide the first.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
