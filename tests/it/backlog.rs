//! Very many waiting rows at one destination, first paused, then hanging, then refusing connections, and how long messages
//! for another take meanwhile.
//!
//! `OUTBOX_TEST_ROWS` sets how many; the default is what a test run has time for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::Process;
use outbox_tests::receiver::{Answer, Receiver};

use crate::isolation::{assert_once_quick, memory_peak, more_than_twice, percentile};

/// Rows of each key.
const OF_A_KEY: usize = 10;
/// Between two messages for the other destination.
const PAUSE: Duration = Duration::from_millis(10);
/// How long each state is looked at.
const LOOK: Duration = Duration::from_secs(3);
/// How long anything may take. Far more than it takes: a machine may be busy.
const LIMIT: Duration = Duration::from_secs(600);

/// The payloads of all rows together: a relay that kept them would have several times the memory it is allowed.
const TOGETHER: usize = 224 << 20;
/// What a relay may keep of messages, and what it may grow by in all, in MiB: a page, what is in hands, the rows of a lane
/// and their attempts.
const IN_HANDS: u64 = 8;
const MEMORY_MAX: u64 = 64;

fn bulk(kind: Kind, count: usize) -> String {
    let keys = count / OF_A_KEY;
    let bytes = TOGETHER / count;
    let payload = match kind {
        Kind::Sqlite => format!("printf('\"%.*c\"', {bytes}, 'x')"),
        _ => format!("concat('\"', repeat('x', {bytes}), '\"')"),
    };
    let (key, numbers) = match kind {
        Kind::Postgres => (format!("'key-' || n % {keys}"), format!("generate_series(1, {count}) AS n")),
        Kind::Mariadb => (format!("concat('key-', seq % {keys})"), format!("seq_1_to_{count}")),
        Kind::Sqlite => (
            format!("'key-' || n % {keys}"),
            format!(
                "(WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < {count}) SELECT n FROM t)"
            ),
        ),
    };
    format!("INSERT INTO outbox_messages (topic, ordering_key, payload) SELECT 'bulk', {key}, {payload} FROM {numbers}")
}

/// From the commit to the arrival, of messages sent one after another until `over` says so, shortest first.
fn latencies(database: &TestDatabase, receiver: &Receiver, over: impl Fn() -> bool) -> Vec<Duration> {
    let mut committed: HashMap<String, Instant> = HashMap::new();
    let mut probe = Probe::new(database);
    while !over() {
        let id = probe.send();
        committed.insert(id, Instant::now());
        std::thread::sleep(PAUSE);
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let arrived: HashMap<String, Instant> =
            receiver.requests().iter().map(|request| (request.id().to_owned(), request.at)).collect();
        if committed.keys().all(|id| arrived.contains_key(id)) {
            let took = committed.iter().map(|(id, at)| arrived[id].saturating_duration_since(*at));
            let mut took: Vec<Duration> = took.collect();
            took.sort_unstable();
            return took;
        }
        assert!(Instant::now() < deadline, "{} of {} arrived", arrived.len(), committed.len());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends messages for the other destination over one connection.
struct Probe(Box<dyn FnMut() -> String>);

impl Probe {
    fn new(database: &TestDatabase) -> Probe {
        fn send<C>(conn: &mut C) -> String
        where
            C: diesel::connection::LoadConnection<Backend: outbox::OutboxBackend>,
        {
            outbox::transaction(conn, |conn| outbox::enqueue(conn, Envelope::raw("probe", "{}")))
                .unwrap()
                .message_id
                .to_string()
        }
        Probe(match database.kind() {
            Kind::Postgres => {
                let mut conn = database.postgres();
                Box::new(move || send(&mut conn))
            }
            Kind::Mariadb => {
                let mut conn = database.mariadb();
                Box::new(move || send(&mut conn))
            }
            Kind::Sqlite => {
                let mut conn = database.sqlite();
                Box::new(move || send(&mut conn))
            }
        })
    }

    fn send(&mut self) -> String {
        (self.0)()
    }
}

async fn very_many_waiting_rows_of_one_destination_leave_the_other_alone(database: TestDatabase) {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = database.kind();
    let mut database = Some(database);
    let one_more = || measured(database.take().unwrap_or_else(|| TestDatabase::with_schema(kind)));
    assert_once_quick(kind, one_more).await;
}
for_each_database!(very_many_waiting_rows_of_one_destination_leave_the_other_alone);

/// The whole run; says what was too slow.
async fn measured(database: TestDatabase) -> Vec<String> {
    let rows = std::env::var("OUTBOX_TEST_ROWS").map_or(20_000, |rows| rows.parse().unwrap());
    let hangs = Receiver::start(|_| Answer::Never).await;
    let other = Arc::new(Receiver::start(|_| Answer::status(200)).await);
    let configuration = format!(
        "[relay]\nin_hands_bytes = \"{IN_HANDS}MiB\"\n[health]\nlisten = \"off\"\n\
         [defaults]\nretry = [\"1s\"]\ntimeout = \"2s\"\n\
         [destinations.bulk]\nurl = \"{}\"\ntopics = [\"bulk\"]\n[destinations.other]\nurl = \"{}\"\ntopics = [\"probe\"]\n",
        hangs.url("/hook"),
        other.url("/hook")
    );
    // Another outbox with another relay, of the same kind and on the same machine, to tell what that does.
    let alone = (TestDatabase::with_schema(database.kind()), Receiver::start(|_| Answer::status(200)).await);
    let looked = tokio::task::spawn_blocking(move || look(&database, &configuration, &other, hangs, &alone, rows));
    looked.await.unwrap()
}

fn look(
    database: &TestDatabase,
    configuration: &str,
    other: &Receiver,
    hangs: Receiver,
    (alone, receiver): &(TestDatabase, Receiver),
    rows: usize,
) -> Vec<String> {
    let of_one = format!(
        "[health]\nlisten = \"off\"\n[destinations.other]\nurl = \"{}\"\ntopics = [\"probe\"]\n",
        receiver.url("/hook")
    );
    let meanwhile = Process::start_relay(&of_one, &["--database-url", alone.url(), "run"]);
    meanwhile.wait_for_line("relay started", LIMIT);
    let relay = Process::start_relay(configuration, &["--database-url", database.url(), "run"]);
    relay.wait_for_line("relay started", LIMIT);
    let for_a_while = || {
        let began = Instant::now();
        let over = move || began.elapsed() >= LOOK;
        std::thread::scope(|scope| {
            let meanwhile = scope.spawn(move || latencies(alone, receiver, over));
            (latencies(database, other, over), meanwhile.join().unwrap())
        })
    };
    let mut figures = vec![("alone", for_a_while())];
    let before = memory_peak(&relay);

    database
        .exec("UPDATE outbox_destinations SET paused_at = CURRENT_TIMESTAMP, paused_by = 'ada' WHERE name = 'bulk'");
    std::thread::sleep(Duration::from_secs(1));
    database.exec(&bulk(database.kind(), rows));
    let (moved, began) = (AtomicBool::new(false), Instant::now());
    let took = Mutex::new(Duration::ZERO);
    let moving = std::thread::scope(|scope| {
        scope.spawn(|| {
            let wanted = i64::try_from(rows).unwrap();
            while database.query_i64("SELECT count(*) FROM outbox_deliveries") < wanted && began.elapsed() < LIMIT {
                std::thread::sleep(Duration::from_millis(100));
            }
            *took.lock().unwrap() = began.elapsed();
            moved.store(true, Ordering::SeqCst);
        });
        latencies(database, other, || moved.load(Ordering::SeqCst))
    });
    figures.push(("while they become rows", (moving, vec![Duration::ZERO])));
    figures.push(("paused", for_a_while()));
    database.exec("UPDATE outbox_destinations SET paused_at = NULL, paused_by = NULL");
    std::thread::sleep(Duration::from_secs(1));
    figures.push(("hanging", for_a_while()));
    // Nobody listens there any more.
    drop(hangs);
    figures.push(("refusing", for_a_while()));
    let after = memory_peak(&relay);
    println!(
        "{}: {rows} rows on {} keys, written in {:.1?}; peak memory {before} MiB before, {after} MiB after",
        database.kind(),
        rows / OF_A_KEY,
        took.into_inner().unwrap(),
    );
    for (state, (latencies, meanwhile)) in &figures {
        let [p50, p99] = [0.5, 0.99].map(|share| percentile(latencies, share));
        let alone = percentile(meanwhile, 0.99);
        println!(
            "  {state}: p50 {p50:.1?} p99 {p99:.1?} ({} messages), alone meanwhile p99 {alone:.1?}",
            latencies.len()
        );
    }
    assert!(database.query_i64("SELECT count(*) FROM outbox_deliveries") >= i64::try_from(rows).unwrap() * 9 / 10);
    assert!(after < before + MEMORY_MAX, "{before} MiB before, {after} MiB after");
    relay.kill();
    meanwhile.kill();
    // While they become rows what is sent later has to wait its turn behind them.
    let looked_at = figures[2..].iter();
    looked_at
        .filter_map(|(state, (latencies, meanwhile))| more_than_twice(state, [&figures[0].1.0, meanwhile], latencies))
        .collect()
}
