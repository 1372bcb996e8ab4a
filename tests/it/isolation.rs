//! One relay, four destinations: one is fast, one slow, one fails half of the time, one is dead for a while.
//!
//! Producers write at a steady rate, half of it under one key, and never stop while the dead one comes back: its backlog
//! has to drain all the same. The others must hardly notice any of it. What producers
//! and receivers saw is judged by the checker; latency is told from the commit to the first request that was accepted.
//!
//! One that hangs and one that fails are here; one that is paused, one that refuses connections and one with a large
//! backlog are in `backlog`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::connection::LoadConnection;
use outbox::{Envelope, Error, OutboxBackend};
use outbox_tests::checker::check;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::history::{Fact, Id, Recorder, Run};
use outbox_tests::process::Process;
use outbox_tests::receiver::{Answer, Receiver, Request};
use outbox_tests::tables::snapshot;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const DESTINATIONS: [&str; 4] = ["fast", "slow", "flaky", "dead"];
/// Messages a second. While the backlog drains, no more than four fifths of what `dead` takes on this machine; how much it
/// was is printed.
const RATE: u64 = 40;
/// Two at a time, each so long, and what a request costs.
const DEAD_ANSWERS_AFTER: Duration = Duration::from_millis(28);
/// The key with half of the traffic goes one at a time, and has to follow here, too.
const SLOW_ANSWERS_AFTER: Duration = Duration::from_millis(30);
/// So few on their way to `dead` are no backlog.
const CAUGHT_UP: u64 = 16;
/// An attempt at a dead destination takes so long.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long the load goes on with the fast destination alone, and then without the dead one.
const ALONE: Duration = Duration::from_secs(8);
/// How long with all of them while one is dead.
const OUTAGE: Duration = Duration::from_secs(5);
/// What a slowest hundredth may be longer than twice another by.
const NOISE: Duration = Duration::from_millis(15);
/// A busy machine makes something slow now and then: what is too slow is measured again, so often in all.
const MEASURED_MAX: usize = 3;
/// Three more destinations and the backlog of one cost no more than this, in MiB.
const MEMORY_MAX: u64 = 24;
/// How long anything may take. Far more than it takes: a machine may be busy.
const LIMIT: Duration = Duration::from_secs(90);

fn configuration(destinations: &[(&str, String)]) -> String {
    let mut text = format!(
        "[relay]\nlease = \"2s\"\n[health]\nlisten = \"off\"\n\
         [defaults]\ntimeout = \"{}ms\"\nretry = [{}]\n",
        TIMEOUT.as_millis(),
        ["\"20ms\""; 100].join(", ")
    );
    for (name, url) in destinations {
        let concurrency = if *name == "dead" { 2 } else { 8 };
        text.push_str(&format!(
            "[destinations.{name}]\nurl = \"{url}\"\ntopics = [\"load.*\"]\nconcurrency = {concurrency}\n"
        ));
    }
    text
}

/// What the whole run shares.
struct Load {
    database: TestDatabase,
    recorder: Recorder,
    dice: Mutex<SmallRng>,
    over: AtomicBool,
    is_dead: AtomicBool,
    /// Where the next messages go.
    to: Mutex<Vec<&'static str>>,
    committed_at: Mutex<HashMap<Id, Instant>>,
    /// When each message was accepted first, by each destination.
    arrived_at: Mutex<HashMap<(&'static str, Id), Instant>>,
    accepted: Mutex<HashMap<&'static str, u64>>,
    requests_of_dead: AtomicU64,
    /// Messages in a thousand seconds.
    rate: AtomicU64,
    /// While only the fast one was there.
    committed_alone: AtomicU64,
}

impl Load {
    fn new(database: TestDatabase, name: &str, run: Run) -> Arc<Load> {
        let name = format!("{name}-{}", database.kind().migrations());
        Arc::new(Load {
            dice: Mutex::new(SmallRng::seed_from_u64(run.seed)),
            recorder: Recorder::create(&name, run),
            database,
            over: AtomicBool::new(false),
            is_dead: AtomicBool::new(true),
            to: Mutex::new(vec!["fast"]),
            committed_at: Mutex::default(),
            arrived_at: Mutex::default(),
            accepted: Mutex::default(),
            requests_of_dead: AtomicU64::new(0),
            rate: AtomicU64::new(RATE * 1000),
            committed_alone: AtomicU64::new(0),
        })
    }

    async fn receivers(self: &Arc<Load>, destinations: &[&'static str]) -> Vec<Receiver> {
        let mut receivers = Vec::new();
        for &destination in destinations {
            let (script, listener) = (self.clone(), self.clone());
            let script = move |_: &Request| script.answer(destination);
            let heard = move |request: &Request, status| listener.answered(destination, request, status);
            receivers.push(Receiver::start_heard(script, heard).await);
        }
        receivers
    }

    fn start(&self, destinations: &[(&'static str, String)]) -> Process {
        let arguments = ["--database-url", self.database.url(), "run"];
        let relay = Process::start_relay(&configuration(destinations), &arguments);
        relay.wait_for_line("relay started", LIMIT);
        self.wait_until(&relay, "the relay owns all", || {
            self.database.query_i64("SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL") == 32
        });
        relay
    }

    fn answer(&self, destination: &str) -> Answer {
        match destination {
            "slow" => Answer::status(200).after(SLOW_ANSWERS_AFTER),
            "flaky" if self.dice.lock().unwrap().random_bool(0.5) => Answer::status(500),
            "dead" if self.is_dead.load(Ordering::SeqCst) => Answer::Never,
            "dead" => Answer::status(200).after(DEAD_ANSWERS_AFTER),
            _ => Answer::status(200),
        }
    }

    fn answered(&self, destination: &'static str, request: &Request, status: u16) {
        self.recorder.received(destination, request, status);
        if destination == "dead" {
            self.requests_of_dead.fetch_add(1, Ordering::SeqCst);
        }
        if status == 200 {
            *self.accepted.lock().unwrap().entry(destination).or_default() += 1;
            let arrived = (destination, request.id().to_owned());
            self.arrived_at.lock().unwrap().entry(arrived).or_insert(request.at);
        }
    }

    fn produce<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C) {
        let mut next = Instant::now();
        for n in 0_u32.. {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            next += Duration::from_secs(1000) / u32::try_from(self.rate.load(Ordering::SeqCst)).unwrap();
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            self.enqueue(conn, n);
        }
    }

    fn enqueue<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C, n: u32) {
        let key = {
            let mut dice = self.dice.lock().unwrap();
            // One key has half of the traffic, the others share the rest very unevenly, and a few have none.
            let rank = (200.0_f64.powf(dice.random::<f64>())) as u32;
            match dice.random_range(0..20) {
                0..10 => Some("hot".to_owned()),
                10..18 => Some(format!("key-{rank}")),
                _ => None,
            }
        };
        let (body, to) = (format!("{{\"n\": {n}}}"), self.to.lock().unwrap().clone());
        let tx = self.recorder.transaction();
        let id = conn
            .transaction::<Id, Error, _>(|conn| {
                let began = self.recorder.now();
                let mut envelope = Envelope::raw("load.order", body.as_bytes()).content_type("application/json");
                if let Some(key) = &key {
                    envelope = envelope.key(key);
                }
                let id = outbox::enqueue(conn, envelope)?.message_id.to_string();
                tx.enqueued(began, &id, "load.order", key.as_deref(), &to, body.as_bytes());
                tx.commit_asked();
                Ok(id)
            })
            .unwrap();
        self.committed_at.lock().unwrap().insert(id, Instant::now());
        tx.committed();
    }

    fn produce_here(&self) {
        match self.database.kind() {
            Kind::Postgres => self.produce(&mut self.database.postgres()),
            Kind::Mariadb => self.produce(&mut self.database.mariadb()),
            Kind::Sqlite => self.produce(&mut self.database.sqlite()),
        }
    }

    /// From the commit to the request that was accepted, of what was committed in this span, shortest first.
    fn latencies(&self, destination: &'static str, from: Instant, until: Instant) -> Vec<Duration> {
        let arrived = self.arrived_at.lock().unwrap();
        let committed = self.committed_at.lock().unwrap();
        let committed = committed.iter().filter(|(_, at)| (from..until).contains(*at));
        let arrived = |id: &Id| arrived.get(&(destination, id.clone()));
        let mut latencies: Vec<Duration> = committed
            .map(|(id, at)| arrived(id).map_or(LIMIT, |arrived| arrived.saturating_duration_since(*at)))
            .collect();
        latencies.sort_unstable();
        latencies
    }

    fn count(&self, table: &str) -> i64 {
        self.database.query_i64(&format!("SELECT count(*) FROM {table}"))
    }

    fn accepted_by(&self, destination: &str) -> u64 {
        self.accepted.lock().unwrap().get(destination).copied().unwrap_or_default()
    }

    fn committed(&self) -> u64 {
        self.committed_at.lock().unwrap().len() as u64
    }

    fn wait_until(&self, relay: &Process, what: &str, mut met: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !met() {
            assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}; the relay said\n{}", relay.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// The slowest hundredth takes at most twice as long beside the others as alone; says so where it does not. On a busy machine
/// both take longer, so somebody who is alone is looked at meanwhile, too.
pub(crate) fn more_than_twice(state: &str, alone: [&[Duration]; 2], beside: &[Duration]) -> Option<String> {
    let alone = alone.map(|latencies| percentile(latencies, 0.99));
    let beside = percentile(beside, 0.99);
    let [before, meanwhile] = alone;
    (beside > before.max(meanwhile) * 2 + NOISE).then(|| {
        format!("{state}: p99 {beside:.1?}, alone {before:.1?}, another that is alone meanwhile {meanwhile:.1?}")
    })
}

/// Measures, and measures anew what was too slow.
///
/// # Panics
///
/// When it was too slow each time.
pub(crate) async fn assert_once_quick(kind: Kind, mut measure: impl AsyncFnMut() -> Vec<String>) {
    let mut slow = Vec::new();
    for n in 1..=MEASURED_MAX {
        let found = measure().await;
        if found.is_empty() {
            return;
        }
        println!("{kind}, measured for the {n}. time, too slow:\n  {}", found.join("\n  "));
        slow.extend(found);
    }
    panic!("{kind}: too slow each of {MEASURED_MAX} times:\n  {}", slow.join("\n  "));
}

#[tokio::test]
async fn what_was_too_slow_is_measured_anew_and_fails_when_it_always_is() {
    let mut left = vec![vec![], vec!["second".to_owned()], vec!["first".to_owned()]];
    assert_once_quick(Kind::Sqlite, async || left.pop().unwrap()).await;
    assert!(left.is_empty(), "the third was quick enough");
    let always = tokio::spawn(assert_once_quick(Kind::Sqlite, async || vec!["slow".to_owned()]));
    assert!(always.await.unwrap_err().is_panic());
}

/// The most memory the process has had, in MiB.
pub(crate) fn memory_peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

async fn a_dead_a_failing_and_a_slow_destination_leave_the_fast_one_alone(database: TestDatabase) {
    // Latency is what is looked at: one at a time.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = database.kind();
    let mut database = Some(database);
    let one_more = || measured(database.take().unwrap_or_else(|| TestDatabase::with_schema(kind)));
    assert_once_quick(kind, one_more).await;
}
for_each_database!(a_dead_a_failing_and_a_slow_destination_leave_the_fast_one_alone);

/// The whole run; says what was too slow.
async fn measured(database: TestDatabase) -> Vec<String> {
    let seed = std::env::var("OUTBOX_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let kind = database.kind();
    let about = format!("{kind}  four destinations");
    let load = Load::new(database, "isolation", Run { seed, about, ..Run::default() });
    let receivers = load.receivers(&DESTINATIONS).await;
    // Another outbox with another relay, of the same kind and on the same machine, to tell what that does.
    let beside = Load::new(TestDatabase::with_schema(kind), "isolation-beside", Run::default());
    let receiver = beside.receivers(&DESTINATIONS[..1]).await;
    let urls = |receivers: &[Receiver]| -> Vec<(&'static str, String)> {
        DESTINATIONS.into_iter().zip(receivers).map(|(name, receiver)| (name, receiver.url("/hook"))).collect()
    };
    let (of_four, of_one) = (urls(&receivers), urls(&receiver));
    tokio::task::spawn_blocking(move || run((&load, &of_four), (&beside, &of_one))).await.unwrap()
}

/// What happened while the backlog drained.
struct Drain {
    rows: i64,
    /// Rows, and what the relay keeps in memory for it.
    backlog: u64,
    drained_in: Duration,
    /// By the one that was dead.
    taken: u64,
    committed: u64,
}

/// Destinations and where they are.
type Urls<'a> = &'a [(&'static str, String)];

fn run((load, urls): (&Load, Urls<'_>), (beside, url): (&Load, Urls<'_>)) -> Vec<String> {
    let start = |destinations| load.start(destinations);
    let producer = |others: &[&Load], meanwhile: &dyn Fn()| {
        std::thread::scope(|scope| {
            let loads: Vec<&Load> = std::iter::once(load).chain(others.iter().copied()).collect();
            loads.iter().for_each(|load| load.over.store(false, Ordering::SeqCst));
            let producers: Vec<_> =
                loads.iter().copied().map(|load| scope.spawn(move || load.produce_here())).collect();
            // A failure must not leave the producer at work: whoever fails waits for it.
            let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            loads.iter().for_each(|load| load.over.store(true, Ordering::SeqCst));
            producers.into_iter().for_each(|producer| producer.join().unwrap());
            if let Err(failed) = met {
                std::panic::resume_unwind(failed);
            }
        });
    };

    let alone = start(&urls[..1]);
    let began = Instant::now();
    producer(&[], &|| std::thread::sleep(ALONE));
    load.wait_until(&alone, "all has arrived", || load.count("outbox_messages") == 0);
    let without = load.latencies("fast", began, Instant::now());
    let peak_alone = memory_peak(&alone);
    alone.terminate(LIMIT);

    *load.to.lock().unwrap() = DESTINATIONS[..3].to_vec();
    let healthy = start(&urls[..3]);
    let began = Instant::now();
    producer(&[], &|| std::thread::sleep(ALONE));
    load.wait_until(&healthy, "all has arrived", || {
        load.count("outbox_messages") + load.count("outbox_deliveries") == 0
    });
    let without_dead = ["slow", "flaky"].map(|name| load.latencies(name, began, Instant::now()));
    healthy.terminate(LIMIT);

    load.committed_alone.store(load.committed(), Ordering::SeqCst);
    *load.to.lock().unwrap() = DESTINATIONS.to_vec();
    let mut relay = start(urls);
    let meanwhile = beside.start(url);
    let (began, rows) = (Instant::now(), Mutex::new(Vec::new()));
    let waiting = || load.database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE destination = 'dead'");
    let note = || {
        let tables = ["outbox_messages", "outbox_deliveries", "outbox_dead_letters"].map(|table| load.count(table));
        rows.lock().unwrap().push((began.elapsed().as_secs_f32(), tables));
    };
    let (drained, ended, first_second) = (Mutex::new(None), Mutex::new(began), AtomicU64::new(0));
    producer(&[beside], &|| {
        while began.elapsed() < OUTAGE {
            note();
            std::thread::sleep(Duration::from_secs(1));
        }
        note();
        *ended.lock().unwrap() = Instant::now();
        let before_outage = load.committed_alone.load(Ordering::SeqCst);
        let missing = || load.committed() - before_outage - load.accepted_by("dead");
        let (rows, backlog) = (waiting(), missing());
        load.is_dead.store(false, Ordering::SeqCst);
        let (back, before) = (Instant::now(), load.requests_of_dead.load(Ordering::SeqCst));
        let (taken, committed) = (load.accepted_by("dead"), load.committed());
        let (mut noted, mut had) = (Instant::now(), taken);
        load.wait_until(&relay, "the backlog of the one that was dead drains under load", || {
            if noted.elapsed() > Duration::from_secs(1) {
                note();
                let has = load.accepted_by("dead");
                let takes = 1000.0 * (has - had) as f64 / noted.elapsed().as_secs_f64();
                load.rate.store(((takes * 0.8) as u64).clamp(5_000, RATE * 1000), Ordering::SeqCst);
                (noted, had) = (Instant::now(), has);
            }
            if back.elapsed() < Duration::from_secs(1) {
                first_second.store(load.requests_of_dead.load(Ordering::SeqCst) - before, Ordering::SeqCst);
            }
            waiting() == 0 && missing() <= CAUGHT_UP
        });
        let drained_in = back.elapsed();
        let (taken, committed) = (load.accepted_by("dead") - taken, load.committed() - committed);
        *drained.lock().unwrap() = Some(Drain { rows, backlog, drained_in, taken, committed });
    });
    load.wait_until(&relay, "everything arrives", || {
        load.count("outbox_messages") + load.count("outbox_deliveries") == 0
    });
    let ended = *ended.lock().unwrap();
    let spans = [(began, ended), (ended, Instant::now())];
    let [with, draining] =
        spans.map(|(from, until)| ["fast", "slow", "flaky"].map(|name| load.latencies(name, from, until)));
    beside.wait_until(&meanwhile, "all has arrived", || beside.count("outbox_messages") == 0);
    let [beside_with, beside_draining] = spans.map(|(from, until)| beside.latencies("fast", from, until));
    meanwhile.terminate(LIMIT);
    let peak = memory_peak(&relay);
    assert!(relay.is_running());
    relay.terminate(LIMIT);

    load.recorder.write(Fact::Snapshot(snapshot(&load.database)));
    let verdict = check(&load.recorder.history());
    println!("{verdict}");
    let Drain { rows: waiting, backlog, drained_in, taken, committed } = drained.into_inner().unwrap().unwrap();
    let [slow_without, flaky_without] = without_dead;
    let without = [without, slow_without, flaky_without];
    for (n, name) in ["fast", "slow", "flaky"].into_iter().enumerate() {
        for (state, latencies) in [
            (if n == 0 { "alone" } else { "without the dead one" }, &without[n]),
            ("beside the dead one", &with[n]),
            ("while its backlog drains", &draining[n]),
        ] {
            let [p50, p99] = [0.5, 0.99].map(|share| percentile(latencies, share));
            println!("{name} {state}: p50 {p50:.1?} p99 {p99:.1?} ({} messages)", latencies.len());
        }
    }
    println!(
        "backlog of {backlog}, {waiting} of them rows, drained in {drained_in:.1?} beside {:.0} % load ({committed} new for {taken} taken), {} attempts \
         in the first second; peak memory {peak} MiB, with the fast one alone {peak_alone} MiB",
        committed as f64 / taken as f64 * 100.0,
        first_second.into_inner(),
    );
    for (seconds, [messages, deliveries, dead]) in rows.into_inner().unwrap() {
        println!("after {seconds:4.1} s: {messages} messages, {deliveries} waiting, {dead} dead");
    }
    verdict.assert_kept();
    assert!(verdict.ordered > 0, "no two messages of a key were compared");
    let mut slow = Vec::new();
    for (state, meanwhile, with) in [
        ("beside a slow, a failing and a dead one", &beside_with, &with[0]),
        ("while the backlog of the dead one drains", &beside_draining, &draining[0]),
    ] {
        println!("another that is alone meanwhile: p99 {:.1?}", percentile(meanwhile, 0.99));
        slow.extend(more_than_twice(state, [&without[0], meanwhile], with));
    }
    assert!(peak <= peak_alone + MEMORY_MAX, "{peak} MiB, with the fast one alone {peak_alone} MiB");
    slow
}

/// Sixty megabytes for a destination that never answers, and eight to keep them in.
async fn large_messages_for_a_dead_destination_neither_fill_the_memory_nor_stop_the_others(database: TestDatabase) {
    const MESSAGES: usize = 300;
    const BYTES: usize = 200 << 10;
    let dead = Receiver::start(|_| Answer::Never).await;
    let fast = Receiver::start(|_| Answer::status(200)).await;
    let configuration = format!(
        "[relay]\nin_hands_bytes = \"8MiB\"\n[health]\nlisten = \"off\"\n\
         [destinations.dead]\nurl = \"{}\"\ntopics = [\"load.*\"]\ntimeout = \"60s\"\nconcurrency = 128\n\
         [destinations.fast]\nurl = \"{}\"\ntopics = [\"load.*\"]\n",
        dead.url("/hook"),
        fast.url("/hook")
    );
    let relay = Process::start_relay(&configuration, &["--database-url", database.url(), "run"]);
    relay.wait_for_line("relay started", LIMIT);
    let before = memory_peak(&relay);
    for _ in 0..MESSAGES / 10 {
        let large = (0..10).map(|_| Envelope::raw("load.order", vec![b'x'; BYTES]).content_type("text/plain"));
        crate::delivery::stage::enqueue(&database, large);
    }
    let deadline = Instant::now() + LIMIT;
    while fast.requests().len() < MESSAGES {
        let (arrived, said) = (fast.requests().len(), relay.output());
        assert!(Instant::now() < deadline, "{arrived} of {MESSAGES} arrived; the relay said\n{said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = memory_peak(&relay);
    let kind = database.kind();
    println!("{kind}: {} MiB passed, peak memory {before} MiB before and {after} MiB after", (MESSAGES * BYTES) >> 20);
    // A page, the hands, and the attempts at both destinations with their buffers.
    assert!(after < before + 48, "{before} MiB before, {after} MiB after");
    relay.kill();
}
for_each_database!(large_messages_for_a_dead_destination_neither_fill_the_memory_nor_stop_the_others);
