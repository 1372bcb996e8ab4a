//! Rows without a destination: what it costs to look for their routes, and who waits for that.
//!
//! Statements are counted rather than time taken. The rows are put into their table by hand, as a relay leaves them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::Message;
use relay::sink::{Attempt, Judgement, Settings, Sink};
use relay::store::{DestinationSpec, Store, StoreError};
use relay::{Destination, RelayBuilder};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::faults::{self, fail, pass};

/// After this long something that should have happened has not.
const LIMIT: Duration = Duration::from_secs(30);

/// Keeps what it was given, by key.
#[derive(Default)]
struct Taken(Mutex<BTreeMap<String, Vec<String>>>);

#[async_trait]
impl Sink for Taken {
    async fn attempt(&self, message: &Message, _: &Attempt) -> Judgement {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let key = message.ordering_key.as_ref().map(|key| text(key)).unwrap_or_default();
        self.0.lock().unwrap().entry(key).or_default().push(text(&message.payload));
        Judgement::delivered("ok")
    }
}

impl Taken {
    fn of(&self, key: &str) -> Vec<String> {
        self.0.lock().unwrap().get(key).cloned().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().values().map(Vec::len).sum()
    }
}

/// How often each call of the store was made.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<BTreeMap<&'static str, usize>>>);

impl Calls {
    fn count(&self, call: &'static str) {
        *self.0.lock().unwrap().entry(call).or_default() += 1;
    }

    fn of(&self, call: &str) -> usize {
        self.0.lock().unwrap().get(call).copied().unwrap_or_default()
    }

    /// How often topics were asked for.
    fn topics(&self) -> usize {
        self.of("unrouted_topics") + self.of("unrouted_topics_many")
    }
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), relay::RelayError>>,
}

impl Running {
    async fn start(builder: RelayBuilder) -> Running {
        let relay = builder.build().await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(relay.run_until(async {
            let _ = stopped.await;
        }));
        Running { stop, task }
    }

    async fn stop(self) -> Duration {
        let asked = Instant::now();
        self.stop.send(()).unwrap();
        tokio::time::timeout(LIMIT, self.task).await.expect("the relay stops").unwrap().unwrap();
        asked.elapsed()
    }
}

async fn until(wanted: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn to(name: &str, topics: &[&str], taken: &Arc<Taken>) -> Destination {
    Destination::new(Settings::new(name, topics.iter().copied()), taken.clone())
}

/// Commits `count` messages of a topic. `key` and `body` are expressions over `n`, which counts from 1.
fn enqueue(database: &TestDatabase, topic: &str, count: usize, key: &str, body: &str) {
    let numbers = match database.kind() {
        Kind::Postgres => format!("SELECT n FROM generate_series(1, {count}) AS g(n)"),
        Kind::Mariadb => format!("SELECT seq AS n FROM seq_1_to_{count}"),
        Kind::Sqlite => {
            format!("WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {count}) SELECT n FROM g")
        }
    };
    database.exec(&format!(
        "INSERT INTO outbox_messages (topic, ordering_key, payload) \
         SELECT '{topic}', {key}, {body} FROM ({numbers}) AS numbers ORDER BY n"
    ));
}

/// Makes rows of what is pending.
fn put_aside(database: &TestDatabase, destination: &str, state: &str, due: bool) {
    let bytes = if database.kind() == Kind::Postgres { ", payload_bytes" } else { "" };
    let due_at = match (database.kind(), due) {
        (Kind::Sqlite, true) => "1",
        (Kind::Sqlite, false) => "4102444800000",
        (_, true) => "'2020-01-01'",
        (_, false) => "'2100-01-01'",
    };
    let columns =
        format!("seq, partition_no, topic, ordering_key, payload{bytes}, content_type, headers, version, created_at");
    database.exec(&format!(
        "INSERT INTO outbox_deliveries (message_id, {columns}, destination, state, due_at) \
         SELECT id, {columns}, '{destination}', '{state}', {due_at} FROM outbox_messages ORDER BY seq"
    ));
    database.exec("DELETE FROM outbox_messages");
}

const NONE: &str = "NULL";

/// How many rows there are of this kind.
fn rows(database: &TestDatabase, condition: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM outbox_deliveries WHERE {condition}"))
}

async fn thousands_of_rows_of_a_mistyped_topic_are_not_read_and_nobody_waits_for_them(database: TestDatabase) {
    const TYPOS: usize = 6_000;
    enqueue(&database, "oder.placed", TYPOS / 2, NONE, "'typo'");
    enqueue(&database, "order.plcaed", TYPOS / 2, "concat('typo ', n)", "'typo'");
    put_aside(&database, "", "unrouted", false);
    enqueue(&database, "order.placed", 40, "concat('key ', n)", "'waiting'");
    put_aside(&database, "orders", "retry", true);

    let (store, calls) = counting(&database).await;
    let taken = Arc::new(Taken::default());
    let builder = faults::relay(store.clone()).lease(Duration::from_secs(3));
    let first = Running::start(builder.destination(to("orders", &["order.placed"], &taken))).await;
    until("what waited is taken", || taken.count() == 40).await;

    // The routes change, and they are still nobody's.
    let asked = calls.topics();
    let spec = DestinationSpec { name: "others".into(), patterns: vec!["other.*".into()], ordering: "key".into() };
    store.destination_register(&[spec]).await.unwrap();
    until("the search begins again", || calls.topics() > asked).await;
    enqueue(&database, "order.placed", 40, "concat('key ', n)", "'fresh'");
    until("what is new is taken", || taken.count() == 80).await;

    // Another relay comes, and goes: half of the partitions are gained anew, and only those are searched.
    let (asked, of_many) = (calls.topics(), calls.of("unrouted_topics_many"));
    let second_calls = Calls::default();
    let counter = second_calls.clone();
    let second = faults::store(&database, move |call| {
        counter.count(call);
        pass()
    })
    .await;
    let builder = faults::relay(second).lease(Duration::from_secs(3));
    let second = Running::start(builder.destination(to("orders", &["order.placed"], &taken))).await;
    until("the second gains some", || second_calls.topics() > 0).await;
    second.stop().await;
    until("the first gains them again", || calls.topics() > asked).await;
    enqueue(&database, "order.placed", 40, "concat('key ', n)", "'last'");
    put_aside(&database, "orders", "retry", true);
    until("what waits is taken", || taken.count() == 120).await;
    first.stop().await;
    assert_eq!(calls.of("unrouted_topics_many"), of_many, "a gain restarts the search in what was not gained");

    for n in 1..=40 {
        assert_eq!(taken.of(&format!("key {n}")), ["waiting", "fresh", "last"]);
    }
    assert_eq!(rows(&database, "destination = ''"), TYPOS as i64);
    let (topics, read) = (calls.topics(), calls.of("unrouted_rows") + second_calls.of("unrouted_rows"));
    println!("{}: {TYPOS} rows; topics asked for {topics} times, rows read {read} times", database.kind());
    assert_eq!(read, 0, "no topic has a route, so no row is worth reading");
    assert!(topics <= 16, "topics were asked for {topics} times: once at each gain, and at each change of the routes");
}
for_each_database!(thousands_of_rows_of_a_mistyped_topic_are_not_read_and_nobody_waits_for_them);

async fn thousands_of_rows_that_find_their_route_go_before_what_came_later(database: TestDatabase) {
    const FOUND: usize = 3_000;
    enqueue(&database, "late.x", FOUND, "concat('key ', n % 50)", "concat('found ', n)");
    put_aside(&database, "", "unrouted", false);
    // Some of the same keys wait at a destination, others are new.
    enqueue(&database, "x", 25, "concat('key ', n)", "'waiting'");
    put_aside(&database, "a", "overflow", true);
    enqueue(&database, "x", 50, "concat('key ', n - 1)", "'fresh'");

    let (store, calls) = counting(&database).await;
    let taken = Arc::new(Taken::default());
    let running = Running::start(faults::relay(store).destination(to("a", &["x", "late.*"], &taken))).await;
    until("everything is taken", || taken.count() == FOUND + 75).await;
    running.stop().await;
    for n in 0..50 {
        let bodies = taken.of(&format!("key {n}"));
        let found: Vec<usize> =
            bodies.iter().filter_map(|body| body.strip_prefix("found ")).map(|n| n.parse().unwrap()).collect();
        assert_eq!((found.len(), found.is_sorted()), (FOUND / 50, true), "key {n}: {bodies:?}");
        let later: &[&str] = if (1..=25).contains(&n) { &["waiting", "fresh"] } else { &["fresh"] };
        assert_eq!(bodies[found.len()..], *later, "key {n}");
    }
    let read = calls.of("unrouted_rows");
    println!("{}: {FOUND} rows found in {read} reads", database.kind());
    assert!(read <= 20, "{FOUND} rows were found in {read} reads");
}
for_each_database!(thousands_of_rows_that_find_their_route_go_before_what_came_later);

async fn while_the_search_cannot_go_on_only_keys_with_such_rows_wait(database: TestDatabase) {
    enqueue(&database, "late.x", 1, "'k'", "'found'");
    put_aside(&database, "", "unrouted", false);
    enqueue(&database, "x", 1, "'k'", "'after it'");
    enqueue(&database, "x", 20, "concat('other ', n)", "'waiting'");
    put_aside(&database, "a", "retry", true);
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let calls = Calls::default();
    let counter = calls.clone();
    let store = faults::store(&database, move |call| {
        counter.count(call);
        if call.starts_with("unrouted_topics") && is_broken.load(Ordering::SeqCst) { fail() } else { pass() }
    })
    .await;
    let taken = Arc::new(Taken::default());
    let running = Running::start(faults::relay(store).destination(to("a", &["x", "late.*"], &taken))).await;
    until("the others are taken", || taken.count() == 20).await;
    enqueue(&database, "x", 20, "concat('other ', n)", "'fresh'");
    until("what is new as well", || taken.count() == 40).await;
    assert!(calls.topics() > 0);
    assert_eq!(taken.of("k"), [""; 0], "a row of this key may have a route");
    broken.store(false, Ordering::SeqCst);
    until("the rest is taken", || taken.count() == 42).await;
    running.stop().await;
    assert_eq!(taken.of("k"), ["found", "after it"]);
}
for_each_database!(while_the_search_cannot_go_on_only_keys_with_such_rows_wait);

async fn what_was_scheduled_does_not_wait_long_for_thousands_nobody_wants(database: TestDatabase) {
    // Looked at one page a second, they would take longer than the limit.
    const UNWANTED: usize = 10_000;
    enqueue(&database, "nobody", UNWANTED, NONE, "'unwanted'");
    put_aside(&database, "", "unrouted", true);
    enqueue(&database, "x", 1, NONE, "'scheduled'");
    put_aside(&database, "", "scheduled", true);
    let soon = if database.kind() == Kind::Sqlite { "2" } else { "'2020-01-02'" };
    database.exec(&format!("UPDATE outbox_deliveries SET due_at = {soon} WHERE state = 'scheduled'"));
    let store = faults::store(&database, |_| pass()).await;
    let taken = Arc::new(Taken::default());
    let running = Running::start(faults::relay(store).destination(to("a", &["x"], &taken))).await;
    until("what was scheduled is taken", || taken.count() == 1).await;
    running.stop().await;
    assert_eq!(rows(&database, "state = 'unrouted'"), UNWANTED as i64);
}
for_each_database!(what_was_scheduled_does_not_wait_long_for_thousands_nobody_wants);

/// A store that does what it is asked, and how often it was.
async fn counting(database: &TestDatabase) -> (Arc<dyn Store>, Calls) {
    let calls = Calls::default();
    let counter = calls.clone();
    let store = faults::store(database, move |call| {
        counter.count(call);
        pass()
    });
    (store.await, calls)
}

fn refuse() -> faults::Before {
    Box::pin(async { Err(StoreError::Refused { operation: "settle", source: "the test says so".into() }) })
}

async fn a_row_that_cannot_be_written_stops_its_own_key_only(database: TestDatabase) {
    enqueue(&database, "late.x", 1, "'k'", "'found'");
    put_aside(&database, "", "unrouted", false);
    enqueue(&database, "x", 1, "'k'", "'after it'");
    enqueue(&database, "x", 20, "concat('other ', n)", "'waiting'");
    put_aside(&database, "a", "retry", true);
    let calls = Calls::default();
    let counter = calls.clone();
    let broken = faults::store(&database, move |call| {
        counter.count(call);
        if call == "settle_routed" { refuse() } else { pass() }
    })
    .await;
    let taken = Arc::new(Taken::default());
    let relay = |store: Arc<dyn Store>| faults::relay(store).destination(to("a", &["x", "late.*"], &taken));
    let running = Running::start(relay(broken)).await;
    until("the others are taken", || taken.count() == 20).await;
    enqueue(&database, "x", 20, "concat('other ', n)", "'fresh'");
    until("what is new as well", || taken.count() == 40).await;

    // What comes later of the key joins its rows; it is not read again and again.
    enqueue(&database, "x", 2, "'k'", "concat('later ', n)");
    until("it waits", || rows(&database, "destination = 'a'") == 3).await;
    until("the others are settled", || database.query_i64("SELECT count(*) FROM outbox_messages") == 0).await;
    let looks = calls.of("delivery_due") + calls.of("message_read") + calls.topics();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let looks = calls.of("delivery_due") + calls.of("message_read") + calls.topics() - looks;
    assert!(looks < 60, "{looks} looks in half a second although nothing can be done");
    assert_eq!((taken.of("k"), rows(&database, "destination = ''")), (vec![], 1));

    // It stands in its table, so nothing keeps the relay from giving it up; the next one finds it.
    let took = running.stop().await;
    assert!(took < Duration::from_secs(5), "the stop took {took:?}");
    let running = Running::start(relay(faults::store(&database, |_| pass()).await)).await;
    until("the rest is taken", || taken.count() == 44).await;
    running.stop().await;
    assert_eq!(taken.of("k"), ["found", "after it", "later 1", "later 2"]);
    println!("{}: settles refused {}", database.kind(), calls.of("settle_routed"));
}
for_each_database!(a_row_that_cannot_be_written_stops_its_own_key_only);
