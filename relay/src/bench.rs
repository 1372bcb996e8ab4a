//! How fast an outbox drains here, beside the floor of the same machine in the same run.
//!
//! The floor is what no relay could beat with these tables: the two bare statements, read a batch and delete it, in a
//! loop over one connection. Everything a relay adds (holes, routing, handlers, settling) is the difference.
//!
//! Works on a throw-away outbox of its own, which it removes again.

use std::time::{Duration, Instant};

use crate::relay::{Relay, RelayError};
use crate::sink::handler::Handler;

mod mysql;
mod postgres;
mod sqlite;

/// What is measured.
#[derive(Clone, Debug)]
pub struct DrainBench {
    /// How many messages.
    pub messages: u64,
    /// The size of each payload, in bytes.
    pub payload: usize,
    /// How many messages share an ordering key on average; 0 means no keys.
    pub per_key: u64,
    /// Measure once more while a transaction is kept open, so that nothing can be vacuumed or purged.
    pub pinned: bool,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct DrainReport {
    /// How many messages were drained each time.
    pub messages: u64,
    /// The bare statements.
    pub floor: Duration,
    /// The relay with a handler that does nothing.
    pub drain: Duration,
    /// The same beside a transaction that stays open.
    pub pinned: Option<Duration>,
}

impl DrainReport {
    /// Messages per second.
    pub fn rate(&self, took: Duration) -> f64 {
        self.messages as f64 / took.as_secs_f64()
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A server could not do what the measurement needs.
    #[error("the throw-away outbox cannot be used: {0}")]
    Ground(Box<dyn std::error::Error + Send + Sync>),
    /// The relay could not drain it.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Messages were left: a figure for half the work would be a lie.
    #[error("{left} of {messages} messages were not drained")]
    Left {
        /// How many.
        left: i64,
        /// Of how many.
        messages: u64,
    },
}

impl BenchError {
    fn ground(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BenchError {
        BenchError::Ground(error.into())
    }
}

/// A throw-away outbox.
#[async_trait::async_trait]
trait Ground: Send {
    /// Where the relay finds it.
    fn url(&self) -> String;
    /// Puts messages into it.
    async fn fill(&mut self, bench: &DrainBench) -> Result<(), BenchError>;
    /// Empties it with the two bare statements, `batch` rows at a time.
    async fn floor(&mut self, batch: i64) -> Result<u64, BenchError>;
    /// Opens a transaction that sees the table as it is now, and keeps it.
    async fn pin(&mut self) -> Result<(), BenchError>;
    /// Removes everything.
    async fn remove(self: Box<Self>) -> Result<(), BenchError>;
}

/// Measures on the server at `database_url`, or on a SQLite file in the temporary folder. `progress` is told what is
/// being done.
///
/// # Errors
/// When the server refuses a database of our own, or messages were left.
pub async fn drain(
    database_url: Option<&str>,
    bench: &DrainBench,
    mut progress: impl FnMut(&str),
) -> Result<DrainReport, BenchError> {
    let scheme = database_url.and_then(|url| url.split_once(':')).map(|(scheme, _)| scheme);
    let mut ground: Box<dyn Ground> = match (scheme, database_url) {
        (Some("postgres" | "postgresql"), Some(url)) => Box::new(postgres::Postgres::create(url).await?),
        (Some("mysql" | "mariadb"), Some(url)) => Box::new(mysql::Mysql::create(url).await?),
        _ => Box::new(sqlite::Sqlite::create()?),
    };
    let report = measure(ground.as_mut(), bench, &mut progress).await;
    let removed = ground.remove().await;
    let report = report?;
    removed?;
    Ok(report)
}

async fn measure(
    ground: &mut dyn Ground,
    bench: &DrainBench,
    progress: &mut impl FnMut(&str),
) -> Result<DrainReport, BenchError> {
    progress("filling for the floor");
    ground.fill(bench).await?;
    progress("measuring the floor: read a batch and delete it, in a loop");
    let began = Instant::now();
    let deleted = ground.floor(FLOOR_BATCH).await?;
    let floor = began.elapsed();
    let missing = bench.messages.saturating_sub(deleted);
    if missing > 0 {
        return Err(BenchError::Left { left: i64::try_from(missing).unwrap_or(i64::MAX), messages: bench.messages });
    }
    progress("filling for the drain");
    ground.fill(bench).await?;
    progress("draining through a handler that does nothing");
    let drain = timed_drain(&ground.url(), bench).await?;
    let mut pinned = None;
    if bench.pinned {
        progress("filling for the pinned drain");
        ground.fill(bench).await?;
        ground.pin().await?;
        progress("draining beside a transaction that stays open");
        pinned = Some(timed_drain(&ground.url(), bench).await?);
    }
    Ok(DrainReport { messages: bench.messages, floor, drain, pinned })
}

async fn timed_drain(url: &str, bench: &DrainBench) -> Result<Duration, BenchError> {
    let nothing = Handler::raw("nothing", |_message, _context| async { Ok::<(), crate::HandlerError>(()) });
    let relay = Relay::builder(url).name("bench").destination(nothing).build().await?;
    let began = Instant::now();
    let drained = relay.drain().await?;
    let took = began.elapsed();
    if !drained.is_clean() {
        let waiting: i64 = drained.status.waiting.iter().map(|(_, _, count)| count).sum();
        return Err(BenchError::Left { left: drained.status.pending + waiting, messages: bench.messages });
    }
    Ok(took)
}

/// The URL of another database on the same server.
fn with_database(url: &str, name: &str) -> String {
    let (rest, options) = url.split_once('?').map_or((url, None), |(rest, options)| (rest, Some(options)));
    let authority = rest.find("://").map_or(0, |at| at + 3);
    let end = rest[authority..].find('/').map_or(rest.len(), |at| authority + at);
    let base = &rest[..end];
    match options {
        Some(options) => format!("{base}/{name}?{options}"),
        None => format!("{base}/{name}"),
    }
}

/// As many as the relay reads at most in one poll.
const FLOOR_BATCH: i64 = 1_000;

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn another_database_keeps_the_server_and_the_options() {
        assert_eq!(with_database("postgres://u:p@h:1/a?sslmode=off", "b"), "postgres://u:p@h:1/b?sslmode=off");
        assert_eq!(with_database("mysql://u@h", "b"), "mysql://u@h/b");
        assert_eq!(with_database("mysql://u@h:3306/", "b"), "mysql://u@h:3306/b");
    }
}
