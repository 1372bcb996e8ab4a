//! What the tests of delivery share: producers, a relay that can be stopped, handlers that do as they are told, and
//! looks at the tables.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use diesel::Connection;
use outbox::Envelope;
use outbox::dead_letters::{self, By};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::tables;
use relay::message::Message;
use relay::retry::RetryPolicy;
use relay::{Context, Handler, HandlerError, HandlerResult, Relay, RelayBuilder, RelayError};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// After this long something that should have happened has not.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Runs a body with a connection of diesel's, whichever database it is.
macro_rules! with_connection {
    ($database:expr, |$conn:ident| $body:expr) => {
        match $database.kind() {
            Kind::Postgres => {
                let $conn = &mut $database.postgres();
                $body
            }
            Kind::Mariadb => {
                let $conn = &mut $database.mariadb();
                $body
            }
            Kind::Sqlite => {
                let $conn = &mut $database.sqlite();
                $body
            }
        }
    };
}
pub(crate) use with_connection;

/// A message of topic `t` with this key and body.
pub(crate) fn keyed(key: &str, body: &str) -> Envelope {
    Envelope::raw("t", body).key(key)
}

/// The same without a key.
pub(crate) fn plain(body: &str) -> Envelope {
    Envelope::raw("t", body)
}

/// Commits these messages in one transaction and returns their ids.
pub(crate) fn enqueue(database: &TestDatabase, messages: impl IntoIterator<Item = Envelope>) -> Vec<Uuid> {
    try_enqueue(database, messages).unwrap()
}

/// The same, or what the library says.
pub(crate) fn try_enqueue(
    database: &TestDatabase,
    messages: impl IntoIterator<Item = Envelope>,
) -> Result<Vec<Uuid>, outbox::Error> {
    let receipts = with_connection!(database, |conn| conn.transaction(|conn| outbox::enqueue_all(conn, messages)))?;
    Ok(receipts.into_iter().map(|receipt| receipt.message_id).collect())
}

/// The same in a transaction that is rolled back.
pub(crate) fn enqueue_and_roll_back(database: &TestDatabase, messages: impl IntoIterator<Item = Envelope>) {
    let result = with_connection!(database, |conn| conn.transaction(|conn| {
        outbox::enqueue_all(conn, messages)?;
        Err::<(), _>(outbox::Error::from(diesel::result::Error::RollbackTransaction))
    }));
    assert!(result.is_err());
}

fn operator() -> By {
    By { actor: "ada@desk".into(), reason: Some("looked at it".into()) }
}

/// The dead letters' ids, oldest first.
fn dead_ids(database: &TestDatabase) -> Vec<i64> {
    let filter = dead_letters::Filter::default();
    let mut ids = with_connection!(database, |conn| dead_letters::ids(conn, &filter, 1000)).unwrap();
    ids.sort_unstable();
    ids
}

/// The dead letters, oldest first.
pub(crate) fn dead_letters(database: &TestDatabase) -> Vec<dead_letters::Detail> {
    let ids = dead_ids(database);
    let get = |id| with_connection!(database, |conn| dead_letters::get(conn, id)).unwrap().unwrap();
    ids.into_iter().map(get).collect()
}

/// Sends every dead letter again.
pub(crate) fn redrive_all(database: &TestDatabase) {
    let ids = dead_ids(database);
    let outcome = with_connection!(database, |conn| dead_letters::redrive(conn, &ids, &operator())).unwrap();
    assert_eq!(outcome.done, ids);
}

/// Drops every dead letter.
pub(crate) fn discard_all(database: &TestDatabase) {
    let ids = dead_ids(database);
    let outcome = with_connection!(database, |conn| dead_letters::discard(conn, &ids, &operator())).unwrap();
    assert_eq!(outcome.done, ids);
}

/// The database's clock, in its own words.
pub(crate) fn now(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => "clock_timestamp()",
        Kind::Mariadb => "utc_timestamp(6)",
        Kind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

/// The lines a SELECT of one text column returns, sorted.
pub(crate) fn lines(database: &TestDatabase, select: &str) -> Vec<String> {
    let mut lines: Vec<String> = database.query_text(select).into_iter().map(Option::unwrap).collect();
    lines.sort();
    lines
}

// ---- what is left ----

/// What stands in the tables.
pub(crate) struct Left(outbox_tests::history::Snapshot);

impl Left {
    pub(crate) fn of(database: &TestDatabase) -> Left {
        Left(tables::snapshot(database))
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.0.pending.is_empty() && self.0.waiting.is_empty() && self.0.dead.is_empty()
    }

    /// `destination state` of every waiting row when nothing is pending, sorted; `None` while something is.
    pub(crate) fn waiting(&self) -> Option<Vec<String>> {
        let mut words: Vec<String> =
            self.0.waiting.iter().map(|row| format!("{} {}", row.destination, row.state)).collect();
        words.sort();
        self.0.pending.is_empty().then_some(words)
    }

    /// `destination reason` of every dead letter, sorted.
    pub(crate) fn dead(&self) -> Vec<String> {
        let mut words: Vec<String> =
            self.0.dead.iter().map(|letter| format!("{} {}", letter.destination, letter.reason)).collect();
        words.sort();
        words
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pending {:?}\nwaiting {:#?}\ndead {:#?}", self.0.pending, self.0.waiting, self.0.dead)
    }
}

/// Waits until the tables are as wanted; panics with what stands in them when the limit has passed.
pub(crate) async fn until(database: &TestDatabase, wanted: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {wanted}\n{}", Left::of(database));
        tokio::time::sleep(millis(10)).await;
    }
}

pub(crate) async fn until_nothing_is_left(database: &TestDatabase) {
    until(database, "nothing is left", || Left::of(database).is_nothing()).await;
}

/// Waits until nothing is pending and these `destination state` wait.
pub(crate) async fn until_waiting(database: &TestDatabase, wanted: &[&str]) {
    let condition = || Left::of(database).waiting().is_some_and(|waiting| waiting == wanted);
    until(database, &format!("waiting: {wanted:?}"), condition).await;
}

/// Waits until these `destination reason` are dead.
pub(crate) async fn until_dead(database: &TestDatabase, wanted: &[&str]) {
    until(database, &format!("dead: {wanted:?}"), || Left::of(database).dead() == wanted).await;
}

// ---- a relay ----

/// Set up as the tests like it: quick, and with a grace that no test should need.
pub(crate) fn relay_on(database: &TestDatabase) -> RelayBuilder {
    Relay::builder(database.url()).name("e2e").poll(millis(1), millis(20)).retry(quick(1000))
}

/// Up to so many pauses of up to 40 ms.
pub(crate) fn quick(pauses: usize) -> RetryPolicy {
    RetryPolicy::pauses(vec![millis(40); pauses])
}

/// A relay at work.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RelayError>>,
}

impl Running {
    pub(crate) async fn start(builder: RelayBuilder) -> Running {
        let relay = builder.build().await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(relay.run_until(async {
            let _ = stopped.await;
        }));
        Running { stop: Some(stop), task }
    }

    /// Asks it to stop and waits until it has; returns how long that took.
    pub(crate) async fn stop(mut self) -> Duration {
        let asked = Instant::now();
        let _ = self.stop.take().unwrap().send(());
        let ended = tokio::time::timeout(LIMIT, &mut self.task).await;
        ended.expect("the relay stops").unwrap().unwrap();
        asked.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// ---- handlers ----

/// What a handler was given.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) destination: String,
    pub(crate) id: Uuid,
    pub(crate) key: Option<String>,
    pub(crate) body: String,
    pub(crate) payload: Bytes,
    pub(crate) headers: BTreeMap<String, String>,
    /// As the relay counts.
    pub(crate) attempt: u32,
    /// Which copy of this message this destination got, from 1.
    pub(crate) copy: usize,
    pub(crate) at: Instant,
    /// Set when the handler had said that it was.
    pub(crate) accepted: bool,
}

/// Everything the handlers of a test were given, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Shared>);

#[derive(Default)]
struct Shared {
    arrivals: Mutex<Vec<Arrival>>,
    copies: Mutex<HashMap<(String, Uuid), usize>>,
    changed: Notify,
}

impl Log {
    /// A handler of everything that answers as the script says.
    pub(crate) fn handler(
        &self,
        name: &str,
        script: impl Fn(&Arrival) -> HandlerResult + Send + Sync + 'static,
    ) -> Handler {
        self.slow_handler(name, Duration::ZERO, script)
    }

    /// The same after a pause.
    pub(crate) fn slow_handler(
        &self,
        name: &str,
        pause: Duration,
        script: impl Fn(&Arrival) -> HandlerResult + Send + Sync + 'static,
    ) -> Handler {
        let (log, script) = (self.clone(), Arc::new(script));
        Handler::raw(name, move |message: Message, context: Context| {
            let (log, script) = (log.clone(), script.clone());
            async move {
                let (at, arrival) = log.arrived(&message, &context);
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                let said = script(&arrival);
                if said.is_ok() {
                    log.0.arrivals.lock().unwrap()[at].accepted = true;
                }
                log.0.changed.notify_waiters();
                said
            }
        })
    }

    /// A handler that accepts everything.
    pub(crate) fn accepting(&self, name: &str) -> Handler {
        self.handler(name, |_| Ok(()))
    }

    /// Something arrived that a handler of the test's own takes.
    pub(crate) fn arrived(&self, message: &Message, context: &Context) -> (usize, Arrival) {
        let destination = context.destination().to_owned();
        let mut arrivals = self.0.arrivals.lock().unwrap();
        let mut copies = self.0.copies.lock().unwrap();
        let copy = copies.entry((destination.clone(), message.id)).or_default();
        *copy += 1;
        let arrival = Arrival {
            destination,
            id: message.id,
            key: context.ordering_key().map(|key| key.into_owned()),
            body: String::from_utf8_lossy(&message.payload).into_owned(),
            payload: message.payload.clone(),
            headers: context.headers().clone(),
            attempt: context.attempt(),
            copy: *copy,
            at: Instant::now(),
            accepted: false,
        };
        arrivals.push(arrival.clone());
        self.0.changed.notify_waiters();
        (arrivals.len() - 1, arrival)
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.0.arrivals.lock().unwrap().clone()
    }

    /// The bodies this destination accepted, in order, copies included.
    pub(crate) fn accepted(&self, destination: &str) -> Vec<String> {
        let arrivals = self.0.arrivals.lock().unwrap();
        let accepted = arrivals.iter().filter(|arrival| arrival.accepted && arrival.destination == destination);
        accepted.map(|arrival| arrival.body.clone()).collect()
    }

    pub(crate) fn has_accepted(&self, destination: &str, body: &str) -> bool {
        self.accepted(destination).iter().any(|accepted| accepted == body)
    }

    /// How often this destination was given this body.
    pub(crate) fn attempts(&self, destination: &str, body: &str) -> usize {
        let arrivals = self.0.arrivals.lock().unwrap();
        arrivals.iter().filter(|arrival| arrival.destination == destination && arrival.body == body).count()
    }

    /// Waits until what arrived is as wanted; panics with it when the limit has passed.
    pub(crate) async fn until(&self, wanted: &str, condition: impl Fn(&Log) -> bool) {
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            // Asked for before looking: what changes in between is not missed.
            let changed = self.0.changed.notified();
            if condition(self) {
                return;
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                let mut seen = String::new();
                for arrival in self.arrivals() {
                    let Arrival { destination, key, body, attempt, copy, accepted, .. } = arrival;
                    let _ = writeln!(seen, "{destination} {key:?} {body} attempt {attempt} copy {copy} {accepted}");
                }
                panic!("not within {LIMIT:?}: {wanted}\n{seen}");
            }
        }
    }

    pub(crate) async fn until_accepted(&self, destination: &str, bodies: &[&str]) {
        let wanted = format!("{destination} accepts {bodies:?}");
        self.until(&wanted, |log| bodies.iter().all(|body| log.has_accepted(destination, body))).await;
    }
}

/// An error that means "try again".
pub(crate) fn not_now() -> HandlerError {
    HandlerError::retry("not now")
}
