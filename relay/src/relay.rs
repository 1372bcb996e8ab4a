//! The relay as a part of a program: set it up, then run it until told to stop, or drain what is there.
//!
//! ```no_run
//! use relay::{Context, Relay};
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPlaced { order_id: i64 }
//! # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
//!
//! async fn send_invoice(order: OrderPlaced, _context: Context) -> Result<(), std::io::Error> {
//!     println!("invoice for order {}", order.order_id);
//!     Ok(())
//! }
//!
//! # async fn example() -> Result<(), relay::RelayError> {
//! Relay::builder("sqlite:shop.db")
//!     .handler("invoices", send_invoice)
//!     .build()
//!     .await?
//!     .run_until(relay::shutdown_signal())
//!     .await?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use diesel_async::AsyncConnection;
use outbox::{Database, OutboxBackend};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::database_url;
use crate::engine::{Ask, End, Engine, Pace, Served};
use crate::event::{Event, Listener, Tally};
use crate::lane::LaneLimits;
use crate::membership::{MembershipLoop, Ownership};
use crate::message::{PartitionSet, RelayId};
use crate::outage::Outages;
use crate::outcome::Policy;
use crate::poll::Evidence;
use crate::retry::RetryPolicy;
use crate::route::Pattern;
use crate::sink::handler::{Context, Handler, HandlerError, Place, Reply, TransactionalFn};
use crate::sink::http::{Http, HttpError};
use crate::sink::{Ordering, Settings, Sink};
use crate::store::{DestinationSpec, RelayRow, Status, Store, StoreError};
use crate::store::{StoreOptions, open::open};
use crate::testing::Clock;

/// A relay that is set up and has not started.
pub struct Relay {
    store: Arc<dyn Store>,
    name: String,
    lease: Duration,
    pace: Pace,
    destinations: Vec<(DestinationSpec, Served)>,
    listener: Option<Listener>,
    ticks: Arc<AtomicU64>,
}

/// Collects what a [`Relay`] is made of.
#[must_use]
pub struct RelayBuilder {
    source: Source,
    name: String,
    lease: Duration,
    transaction_age_max: Duration,
    pace: Pace,
    timeout: Duration,
    retry: RetryPolicy,
    source_name: String,
    destinations: Vec<Destination>,
    listener: Option<Listener>,
    clock: Option<Clock>,
}

enum Source {
    Url(String),
    Store(Arc<dyn Store>),
}

impl Source {
    /// The address, and which database it is, as far as they are known.
    fn place(&self) -> (Option<String>, Option<Database>) {
        match self {
            Source::Url(url) => (Some(url.clone()), database_url::database(url)),
            Source::Store(store) => {
                let database = match store.evidence() {
                    Evidence::Snapshots => Database::Postgres,
                    Evidence::Ages(_) => Database::Mysql,
                    Evidence::Serial => Database::Sqlite,
                };
                (None, Some(database))
            }
        }
    }
}

/// A place messages go to, whatever kind it is.
pub struct Destination {
    settings: Settings,
    kind: Kind,
}

enum Kind {
    Handler(Handler),
    Http(Http),
    Sink(Arc<dyn Sink>),
}

impl Destination {
    /// A place reached by a sink of one's own.
    pub fn new(settings: Settings, sink: Arc<dyn Sink>) -> Destination {
        Destination { settings, kind: Kind::Sink(sink) }
    }

    fn into_sink(self, source: &str, place: &Place) -> Result<Arc<dyn Sink>, String> {
        Ok(match self.kind {
            Kind::Handler(handler) => Arc::new(handler.sink_at(place)?),
            Kind::Http(http) => {
                let sink = http.sink_within(source, place.timeout);
                Arc::new(sink.map_err(|error: HttpError| crate::cause::chain(&error))?)
            }
            Kind::Sink(sink) => sink,
        })
    }
}

impl From<Handler> for Destination {
    fn from(handler: Handler) -> Destination {
        Destination { settings: handler.settings().clone(), kind: Kind::Handler(handler) }
    }
}

impl From<Http> for Destination {
    fn from(http: Http) -> Destination {
        Destination { settings: http.settings().clone(), kind: Kind::Http(http) }
    }
}

/// Why a relay could not be set up, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The database, or what is in it, is not fit.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Two destinations have the same name.
    #[error("two destinations are called `{name}`\n  help: a name stands for one destination; rename one of them")]
    DuplicateDestination {
        /// The name.
        name: String,
    },
    /// A destination is not set up right.
    #[error("destination `{name}`: {problem}")]
    Destination {
        /// The destination.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// What a drain did, and what it leaves behind.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Attempts that were made.
    pub attempts: u64,
    /// Attempts that delivered. A message for two destinations is delivered twice.
    pub delivered: u64,
    /// Attempts that failed and left a delivery that waits for another one.
    pub retried: u64,
    /// Deliveries that were given up.
    pub dead_lettered: u64,
    /// Outcomes the database refused because another relay owned their partition by then.
    pub refused: u64,
    /// Outcomes that could not be written, although they were tried again: what they were about is still there, and will
    /// be attempted once more.
    pub unwritten: u64,
    /// The tables after the last pass.
    pub status: Status,
}

impl Drained {
    /// True when no message is pending, waiting or dead.
    pub fn is_clean(&self) -> bool {
        self.status.pending == 0 && self.status.waiting.is_empty() && self.status.dead.is_empty()
    }
}

impl Relay {
    /// A relay over the outbox at this URL (`postgres://…`, `mysql://…`, `sqlite:path`).
    pub fn builder(database_url: impl Into<String>) -> RelayBuilder {
        RelayBuilder::new(Source::Url(database_url.into()))
    }

    /// A relay over a store that is open already.
    pub fn builder_from_store(store: Arc<dyn Store>) -> RelayBuilder {
        RelayBuilder::new(Source::Store(store))
    }

    /// Delivers until `shutdown` completes; then finishes what is under way, settles, and gives its partitions up.
    ///
    /// Drop the future to end at once; what was not settled is then delivered again by the next relay.
    ///
    /// # Errors
    /// When the database is not fit at the start. Later outages are survived.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RelayError> {
        let (ask, asked) = watch::channel(Ask::Run);
        let work = self.work(asked);
        tokio::pin!(work);
        tokio::pin!(shutdown);
        tokio::select! {
            ended = &mut work => return ended,
            () = &mut shutdown => {}
        }
        info!("shutting down");
        let _ = ask.send(Ask::Stop);
        work.await
    }

    /// Delivers what is there and due, then ends and says what it did and what is left behind.
    ///
    /// Messages that are committed after the start, and have a higher number than any that was there, are left where
    /// they are: beside busy producers, too, a drain ends.
    ///
    /// # Errors
    /// When the database is not fit at the start, or cannot be asked at the end.
    pub async fn drain(mut self) -> Result<Drained, RelayError> {
        let store = self.store.clone();
        let tally = Arc::new(Tally::default());
        self.listener = Some(tally.listener(self.listener.take()));
        let until = store.message_last().await?;
        let (_ask, asked) = watch::channel(Ask::Drain { until });
        self.work(asked).await?;
        let status = store.status(None).await?;
        let [attempts, delivered, retried, dead_lettered] = tally.counts();
        let (refused, unwritten) = (tally.refused(), tally.unwritten());
        Ok(Drained { attempts, delivered, retried, dead_lettered, refused, unwritten, status })
    }

    /// Rises while the delivery loop turns; stands still when it is wedged.
    pub fn ticks(&self) -> Arc<AtomicU64> {
        self.ticks.clone()
    }

    /// The database this relay works on.
    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn work(self, asked: watch::Receiver<Ask>) -> Result<(), RelayError> {
        let mut outages = Outages::default();
        let mut has_lived = false;
        loop {
            match self.live(asked.clone()).await {
                Ok(End::Expelled) => has_lived = true,
                Ok(End::Stopped | End::Drained) => return Ok(()),
                // The database was fit when the relay was built: an outage since then is survived like any other. What
                // it refuses from the first is for a person to mend.
                Err(RelayError::Store(error)) if error.is_passing() || has_lived && !error.is_unsuitable() => {
                    tokio::time::sleep(outages.failed("relay_register", &error)).await;
                }
                Err(error) => return Err(error),
            }
            if matches!(*asked.borrow(), Ask::Stop | Ask::Abandon) {
                return Ok(());
            }
        }
    }

    /// One life under one identity.
    async fn live(&self, asked: watch::Receiver<Ask>) -> Result<End, RelayError> {
        let id = RelayId::new_v4();
        self.store.verify().await?;
        let specs: Vec<DestinationSpec> = self.destinations.iter().map(|(spec, _)| spec.clone()).collect();
        self.store.destination_register(&specs).await?;
        let row = RelayRow {
            id,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lease: self.lease,
            serves: specs.iter().map(|spec| spec.name.clone()).collect(),
        };
        self.store.relay_register(&row).await?;
        let mut routing = self.store.destination_read(None).await?;
        // A person may have removed one before this relay was known to serve it. From now on that is refused.
        if specs.iter().any(|spec| routing.destinations.iter().all(|seen| seen.spec.name != spec.name)) {
            self.store.destination_register(&specs).await?;
            routing = self.store.destination_read(None).await?;
        }
        info!(relay = %self.name, relay.id = %id, destinations = specs.len(), "relay started");
        for seen in routing.destinations.iter().filter(|seen| !row.serves.contains(&seen.spec.name)) {
            let destination = &seen.spec.name;
            warn!(destination, "a registered destination is not served here; what is for it waits");
        }

        let (publish, ownership) = watch::channel(Ownership::default());
        let owned = ownership.clone();
        let (stop, stopped) = watch::channel(false);
        let (tell_quiet, quiet) = watch::channel(PartitionSet::EMPTY);
        let membership = MembershipLoop {
            store: self.store.clone(),
            relay: id,
            lease: self.lease,
            publish,
            ticks: self.ticks.clone(),
            ask: asked.clone(),
            quiet,
        };
        let mut membership = tokio::spawn(membership.run(stopped));
        let engine = Engine::new(
            self.store.clone(),
            id,
            self.pace.clone(),
            self.destinations.iter().map(|(_, served)| served.clone()).collect(),
            routing,
            ownership,
            tell_quiet,
            asked,
            self.listener.clone(),
            self.ticks.clone(),
        );
        // On a worker of its own, not on the thread that waits for it; it ends with this future.
        let mut engine_task = JoinSet::new();
        engine_task.spawn(engine.run());
        let (end, read) = match engine_task.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) | None => (End::Stopped, PartitionSet::EMPTY),
        };
        let _ = stop.send(true);
        // A renewal under way must not bring back what is given up next. A database that does not answer must not keep
        // the process from ending: after a lease the partitions are free in any case.
        if tokio::time::timeout(self.lease, &mut membership).await.is_err() {
            membership.abort();
        }
        // Whoever comes next must hear that these were a dead relay's, and are still.
        let unread = owned.borrow().inherited.without(read);
        let problem = match tokio::time::timeout(self.lease, self.store.relay_leave(id, unread)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(crate::cause::chain(&error)),
            Err(_) => Some("the database does not answer".to_owned()),
        };
        if let Some(error) = problem {
            warn!(error, "the partitions could not be given up; another relay takes them over after a lease");
        }
        info!(relay = %self.name, "relay ended");
        Ok(end)
    }
}

impl RelayBuilder {
    fn new(source: Source) -> RelayBuilder {
        RelayBuilder {
            source,
            name: default_name(),
            lease: Duration::from_secs(5),
            transaction_age_max: Duration::from_secs(10),
            pace: Pace {
                poll_busy: Duration::from_millis(1),
                poll_idle: Duration::from_millis(60),
                in_hands: 4096,
                in_hands_bytes: 64 << 20,
                shutdown_grace: Duration::from_secs(25),
            },
            timeout: Duration::from_secs(15),
            retry: RetryPolicy::internal(),
            source_name: "/outbox".to_owned(),
            destinations: Vec::new(),
            listener: None,
            clock: None,
        }
    }

    /// Adds a handler of one type of message: an `async fn(M, Context)`.
    pub fn handler<M, F, Fut, R, E>(self, name: impl Into<String>, function: F) -> Self
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        F: Fn(M, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Reply>,
        E: Into<HandlerError>,
    {
        self.destination(Handler::new(name, function))
    }

    /// Adds a handler whose effects happen exactly once: an `async fn(M, &mut C, Context)` that writes in the transaction
    /// in which its message ends. See [`Handler::transactional`].
    pub fn transactional_handler<M, C, F, R, E>(self, name: impl Into<String>, function: F) -> Self
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        C: AsyncConnection<Backend: OutboxBackend> + 'static,
        for<'r> F: AsyncFnOnce(M, &'r mut C, Context) -> Result<R, E>
            + TransactionalFn<M, &'r mut C, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        R: Into<Reply> + Send + 'static,
        E: Into<HandlerError> + Send + 'static,
    {
        self.destination(Handler::transactional(name, function))
    }

    /// Adds a destination: an [`Http`](crate::Http), or a [`Handler`] with options.
    pub fn destination(mut self, destination: impl Into<Destination>) -> Self {
        self.destinations.push(destination.into());
        self
    }

    /// The name people see; the identity is random.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Names this outbox to HTTP receivers (CloudEvents `source`). Default `/outbox`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source_name = source.into();
        self
    }

    /// How long partitions stay with a relay that says nothing. Default 5 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// MySQL/MariaDB: per-key order holds for transactions shorter than this. Default 10 s.
    pub fn transaction_age_max(mut self, age: Duration) -> Self {
        self.transaction_age_max = age;
        self
    }

    /// Pauses between polls: while there is work, and at most when there is none. Default 1 ms and 60 ms.
    pub fn poll(mut self, busy: Duration, idle: Duration) -> Self {
        (self.pace.poll_busy, self.pace.poll_idle) = (busy, idle.max(busy));
        self
    }

    /// Messages read and not settled, and their bytes. Default 4096 and 64 MiB.
    pub fn in_hands(mut self, messages: usize, bytes: usize) -> Self {
        (self.pace.in_hands, self.pace.in_hands_bytes) = (messages.max(1), bytes.max(1));
        self
    }

    /// How long attempts may go on after a shutdown was asked for. Default 25 s.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.pace.shutdown_grace = grace;
        self
    }

    /// How long an attempt may take where a destination says nothing. Default 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// When failed attempts are repeated where a destination says nothing. Default [`RetryPolicy::internal`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Is told what happens to deliveries. Called on the relay's own task: it must return at once.
    pub fn on_event(mut self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Asks the database with the hour of a test's clock instead of its own.
    pub fn clock(mut self, clock: &Clock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// Opens the database and checks everything that can be checked before the start.
    ///
    /// # Errors
    /// When a destination is not set up right, or the database is not fit for a relay.
    pub async fn build(self) -> Result<Relay, RelayError> {
        let mut names = HashSet::new();
        let mut destinations = Vec::new();
        for destination in self.destinations {
            let settings = destination.settings.clone();
            if !names.insert(settings.name.clone()) {
                return Err(RelayError::DuplicateDestination { name: settings.name });
            }
            check(&settings)?;
            let timeout = settings.timeout.unwrap_or(self.timeout);
            let (url, database) = self.source.place();
            let place = Place { url, database, timeout };
            let sink = destination
                .into_sink(&self.source_name, &place)
                .map_err(|problem| RelayError::Destination { name: settings.name.clone(), problem })?;
            let concurrency = match settings.concurrency.unwrap_or(CONCURRENCY).max(1) {
                // SQLite has one writer; the others would wait for it on their own time.
                _ if sink.deletes_rows() && database == Some(Database::Sqlite) => 1,
                concurrency => concurrency,
            };
            let keyed = settings.ordering == Ordering::Key;
            let spec = DestinationSpec {
                name: settings.name.clone(),
                patterns: settings.topics.clone(),
                ordering: settings.ordering.as_str().to_owned(),
            };
            let served = Served {
                name: settings.name.as_str().into(),
                sink,
                limits: LaneLimits {
                    concurrency,
                    queue_max: self.pace.in_hands,
                    bytes_max: self.pace.in_hands_bytes,
                    keyed,
                },
                policy: Policy {
                    retry: settings.retry.unwrap_or_else(|| self.retry.clone()),
                    after_dead_letter: settings.after_dead_letter,
                    destination: settings.name,
                    relay: self.name.clone(),
                },
                timeout,
                rate_limit: settings.rate_limit,
            };
            destinations.push((spec, served));
        }
        // One slow lane may fill the hands only when it is alone: if all others are full, there is room for the last.
        let others = destinations.len().saturating_sub(1);
        let share = |of: usize| (of / 2).checked_div(others).map_or(of, |share| share.max(1));
        for (_, served) in &mut destinations {
            served.limits.queue_max = share(self.pace.in_hands);
            served.limits.bytes_max = share(self.pace.in_hands_bytes);
        }
        let store = match self.source {
            Source::Store(store) => store,
            Source::Url(url) => {
                let options = StoreOptions {
                    lease: self.lease,
                    transaction_age_max: self.transaction_age_max,
                    application_name: format!("outbox-relay {}", self.name),
                };
                open(&url, &options).await?
            }
        };
        let store = match &self.clock {
            Some(clock) => clock.over(store),
            None => store,
        };
        store.verify().await?;
        Ok(Relay {
            store,
            name: self.name,
            lease: self.lease,
            pace: self.pace,
            destinations,
            listener: self.listener,
            ticks: Arc::default(),
        })
    }
}

fn check(settings: &Settings) -> Result<(), RelayError> {
    let problem = |problem: String| RelayError::Destination { name: settings.name.clone(), problem };
    let mut characters = settings.name.chars();
    let starts_well = characters.next().is_some_and(|first| first.is_ascii_lowercase());
    let goes_on_well = characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !starts_well || !goes_on_well || settings.name.len() > 63 {
        let text = "the name must match ^[a-z][a-z0-9_]{0,62}$: lower-case letters, digits and underscores";
        return Err(problem(text.to_owned()));
    }
    if settings.topics.is_empty() {
        return Err(problem("it takes no topics; give it at least one pattern".to_owned()));
    }
    for pattern in &settings.topics {
        Pattern::parse(pattern).map_err(|error| problem(error.to_string()))?;
    }
    Ok(())
}

fn default_name() -> String {
    std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "relay".to_owned())
}

/// Attempts at a time where a destination says nothing.
const CONCURRENCY: usize = 16;
