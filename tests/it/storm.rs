//! Load for relays that are hurt: producers that commit, roll back and dawdle, receivers that answer, refuse, dawdle and
//! cut connections.
//!
//! What producers and receivers saw goes into a history, and the checker judges that and the tables left behind. All
//! chance comes from one seed, which is printed; `OUTBOX_TEST_SEED` sets it. What happens to the relays is up to the test.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use diesel::connection::LoadConnection;
use diesel::result::Error as DieselError;
use outbox::{Envelope, Error, OutboxBackend};
use outbox_tests::checker::{Verdict, check};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::history::{Fact, Id, Recorder, Run, Snapshot};
use outbox_tests::process::Process;
use outbox_tests::receiver::{Answer, Receiver, Request};
use outbox_tests::server::{Clock, Server};
use outbox_tests::tables::snapshot;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Producers write at the same time.
const PRODUCERS: u64 = 4;
/// Producers pause while so many units are not delivered: whoever falls behind for ever kills at an old backlog only,
/// and never where commits and reads race.
const BACKLOG_MAX: u64 = 400;
/// What the relay may have in hands.
const IN_HANDS: usize = 64;
/// Attempts at the same time for each destination.
pub(crate) const CONCURRENCY: usize = 8;
pub(crate) const DESTINATIONS: [&str; 2] = ["billing", "mail"];
/// What one kill may make come again: all in hands, at every destination; and for each lane the waiting rows it holds in
/// memory, twice as many as attempts, and as many whose outcome is being written.
pub(crate) const REPEATS_MAX: u64 = ((IN_HANDS + 4 * CONCURRENCY) * DESTINATIONS.len()) as u64;
/// What `mail` will never take; its messages end as dead letters.
const REFUSED: &[u8] = b"\"refused\":true";
/// How long anything may take. Far more than it takes: a machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs `hurt` under load on each of these databases, all at the same time: most of the time is spent waiting for leases.
pub(crate) async fn storms(
    name: &'static str,
    kinds: impl IntoIterator<Item = Kind>,
    hurt: impl Fn(&Storm, &str, Producers<'_>) + Copy + Send + Sync + 'static,
) {
    storms_on(name, kinds.into_iter().map(Place::from), hurt).await;
}

/// Where a storm rages.
pub(crate) struct Place {
    pub(crate) database: TestDatabase,
    /// A clock the test sets.
    pub(crate) clock: Option<Clock>,
    /// The database's server goes by it; otherwise the relays do.
    pub(crate) server: Option<Server>,
}

impl From<Kind> for Place {
    fn from(kind: Kind) -> Place {
        Place { database: TestDatabase::with_schema(kind), clock: None, server: None }
    }
}

/// The same on databases that are there already.
pub(crate) async fn storms_on(
    name: &'static str,
    places: impl IntoIterator<Item = Place>,
    hurt: impl Fn(&Storm, &str, Producers<'_>) + Copy + Send + Sync + 'static,
) {
    // One after another: each has a dozen processes, and a machine that is too busy makes living relays look dead.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let seed = std::env::var("OUTBOX_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("OUTBOX_TEST_SEED={seed}");
    let storms: Vec<_> = places.into_iter().map(|place| tokio::spawn(storm(name, place, seed, hurt))).collect();
    let mut failed = None;
    for storm in storms {
        // All have their say before one of them fails the test.
        failed = storm.await.err().or(failed);
    }
    if let Some(failed) = failed {
        std::panic::resume_unwind(failed.into_panic());
    }
}

async fn storm(
    name: &'static str,
    place: Place,
    seed: u64,
    hurt: impl Fn(&Storm, &str, Producers<'_>) + Copy + Send + Sync + 'static,
) {
    let mut receivers = Vec::new();
    let storm = Arc::new(Storm::new(name, place, seed));
    for destination in DESTINATIONS {
        let (script, listener) = (storm.clone(), storm.clone());
        let receiver = Receiver::start_heard(
            move |request| script.answer(request),
            move |request, status| listener.answered(destination, request, status),
        );
        receivers.push(receiver.await);
    }
    let urls: Vec<String> = receivers.iter().map(|receiver| receiver.url("/hook")).collect();
    let raged = tokio::task::spawn_blocking(move || storm.rage(&configuration(&urls), hurt)).await;
    if let Err(failed) = raged {
        std::panic::resume_unwind(failed.into_panic());
    }
}

/// The producers at work; joining them ends the load.
pub(crate) struct Producers<'scope>(Vec<ScopedJoinHandle<'scope, u64>>);

impl Producers<'_> {
    /// Lets them finish; returns how many transactions committed.
    pub(crate) fn finish(self, storm: &Storm) -> u64 {
        storm.calm.store(true, Ordering::SeqCst);
        self.0.into_iter().map(|producer| producer.join().unwrap()).sum()
    }
}

fn configuration(urls: &[String]) -> String {
    let mut text = format!(
        "[relay]\nlease = \"1s\"\nin_hands = {IN_HANDS}\n\
         [health]\nlisten = \"off\"\n\
         [defaults]\ntimeout = \"10s\"\nretry = [{}]\n",
        ["\"200ms\""; 30].join(", ")
    );
    for (destination, url) in DESTINATIONS.iter().zip(urls) {
        text.push_str(&format!(
            "[destinations.{destination}]\nurl = \"{url}\"\ntopics = [\"storm.*\"]\nconcurrency = {CONCURRENCY}\n"
        ));
    }
    text
}

/// A message and a destination.
type Unit = (Id, &'static str);

/// One run.
pub(crate) struct Storm {
    pub(crate) database: TestDatabase,
    /// A clock the test sets.
    pub(crate) clock: Option<Clock>,
    server: Option<Server>,
    recorder: Recorder,
    pub(crate) seed: u64,
    receiver_dice: Mutex<SmallRng>,
    /// Requests that have arrived.
    arrived: AtomicU64,
    /// Requests that were answered, or cut.
    answered: AtomicU64,
    /// Units of committed transactions.
    owed: AtomicU64,
    seen: Mutex<Seen>,
    calm: AtomicBool,
}

/// What the receivers did with the units.
#[derive(Default)]
struct Seen {
    /// How often each was accepted.
    accepted: HashMap<Unit, u64>,
    refused: HashSet<Unit>,
    /// For units that had to be expected again: how often they had been accepted then.
    expected_again: HashMap<Unit, u64>,
}

impl Storm {
    fn new(name: &str, place: Place, seed: u64) -> Storm {
        let Place { database, clock, server } = place;
        database.exec("CREATE TABLE orders (number BIGINT NOT NULL PRIMARY KEY)");
        let about = format!("{}  {name}", database.kind());
        let name = format!("{name}-{}", database.kind().migrations());
        let recorder = Recorder::create(&name, Run { seed, about, ..Run::default() });
        Storm {
            database,
            clock,
            server,
            recorder,
            seed,
            receiver_dice: Mutex::new(SmallRng::seed_from_u64(seed)),
            arrived: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            seen: Mutex::default(),
            calm: AtomicBool::new(false),
        }
    }

    /// The whole run.
    fn rage(&self, configuration: &str, hurt: impl Fn(&Storm, &str, Producers<'_>)) {
        std::thread::scope(|scope| {
            // A failure ends the producers too: they are waited for, and the database goes with them.
            let _calm = Calm(&self.calm);
            let producers = (0..PRODUCERS).map(|number| scope.spawn(move || self.produce(number))).collect();
            hurt(self, configuration, Producers(producers));
        });
    }

    /// The real program, with its output kept, once it has begun: before, a signal would simply end it.
    pub(crate) fn start(&self, configuration: &str) -> Process {
        let clock = self.clock.as_ref().filter(|_| self.server.is_none());
        let variables = clock.map(Clock::variables).unwrap_or_default();
        let arguments = ["--database-url", self.database.url(), "run"];
        let relay = Process::start_relay_with(configuration, &arguments, &variables);
        relay.wait_for_line("relay started", LIMIT);
        relay
    }

    /// Waits until this many more attempts have arrived; returns how long the first took.
    pub(crate) fn wait_for_attempts(&self, count: u64, relay: &mut Process) -> Duration {
        let (before, began) = (self.arrived.load(Ordering::SeqCst), Instant::now());
        let wanted = before + count;
        let first = || format!("an attempt after {before}");
        self.wait_until(relay, || self.arrived.load(Ordering::SeqCst) > before, first);
        let resumed = began.elapsed();
        self.wait_until(
            relay,
            || self.arrived.load(Ordering::SeqCst) >= wanted,
            || format!("{wanted} attempts, {} arrived", self.arrived.load(Ordering::SeqCst)),
        );
        resumed
    }

    /// Waits until nothing is pending and nothing waits, or for long enough: the checker has the words for what is stuck.
    pub(crate) fn wait_for_rest(&self, relay: &mut Process) {
        let deadline = Instant::now() + LIMIT;
        let at_rest = || {
            let Snapshot { pending, waiting, .. } = snapshot(&self.database);
            pending.is_empty() && waiting.is_empty()
        };
        while relay.is_running() && !at_rest() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_until(&self, relay: &mut Process, met: impl Fn() -> bool, describe: impl Fn() -> String) {
        let deadline = Instant::now() + LIMIT;
        while !met() {
            let running = relay.is_running();
            if !running || Instant::now() >= deadline {
                let history = self.recorder.path().display();
                let (what, said) = (describe(), relay.output());
                panic!("waited for {what}; relay running: {running}; history: {history}; the relay said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes down something that may not make anything come again.
    pub(crate) fn harmless(&self, kind: &str) {
        self.recorder.write(Fact::Fault { kind: kind.to_owned(), in_flight: 0 });
    }

    /// Writes a fault down, and how many units may come again for it: those a receiver has accepted and the tables still
    /// hold, and `under_way` more.
    pub(crate) fn fault(&self, kind: &str, under_way: u64) -> u64 {
        let tables = snapshot(&self.database);
        let pending: HashSet<Id> = tables.pending.into_iter().collect();
        let waiting: HashSet<(Id, String)> = tables.waiting.into_iter().map(|row| (row.id, row.destination)).collect();
        let mut seen = self.seen.lock().unwrap();
        let Seen { accepted, expected_again, .. } = &mut *seen;
        let mut repeats = under_way;
        for (unit, times) in accepted {
            let (id, destination) = unit;
            let comes_again = pending.contains(id) || waiting.contains(&(id.clone(), (*destination).to_owned()));
            // One that has not come again since the last fault is expected once, not twice.
            if comes_again && expected_again.insert(unit.clone(), *times) != Some(*times) {
                repeats += 1;
            }
        }
        self.recorder.write(Fact::Fault { kind: kind.to_owned(), in_flight: repeats });
        repeats
    }

    /// Waits until the dead relay's last requests have been answered: some are still on their way, and some dawdle.
    pub(crate) fn wait_for_answers(&self) {
        let counts = || (self.arrived.load(Ordering::SeqCst), self.answered.load(Ordering::SeqCst));
        let deadline = Instant::now() + LIMIT;
        let (mut last, mut since) = (counts(), Instant::now());
        while last.0 != last.1 || since.elapsed() < Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "requests without an answer: {last:?}");
            std::thread::sleep(Duration::from_millis(2));
            let now = counts();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    /// Lets the checker judge the whole run and prints what it says.
    pub(crate) fn judge(&self, orders: u64) -> Verdict {
        self.recorder.write(Fact::Snapshot(snapshot(&self.database)));
        let verdict = check(&self.recorder.history());
        println!("{verdict}");
        verdict.assert_kept();
        assert_eq!(self.database.query_i64("SELECT count(*) FROM orders"), i64::try_from(orders).unwrap());
        let owned = "SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL";
        assert_eq!(self.database.query_i64(owned), 0, "partitions left behind by a relay that ended in order");
        verdict
    }

    // ---- receivers ----

    fn answer(&self, request: &Request) -> Answer {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let mail = request.header("outbox-destination") == Some("mail");
        if mail && request.body.windows(REFUSED.len()).any(|part| part == REFUSED) {
            return Answer::status(422);
        }
        let mut dice = self.receiver_dice.lock().unwrap();
        let pause = Duration::from_millis(dice.random_range(10..150));
        match dice.random_range(0..100) {
            0..6 => Answer::status(500),
            6..9 => Answer::Reset,
            9..14 => Answer::status(200).after(pause),
            14..16 => Answer::status(503).after(pause),
            _ => Answer::status(200),
        }
    }

    fn answered(&self, destination: &'static str, request: &Request, status: u16) {
        self.recorder.received(destination, request, status);
        let unit = (request.id().to_owned(), destination);
        let mut seen = self.seen.lock().unwrap();
        match status {
            200 => *seen.accepted.entry(unit).or_default() += 1,
            422 => _ = seen.refused.insert(unit),
            _ => {}
        }
        drop(seen);
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    fn backlog(&self) -> u64 {
        let seen = self.seen.lock().unwrap();
        let done = seen.accepted.len() + seen.refused.len();
        self.owed.load(Ordering::SeqCst).saturating_sub(done as u64)
    }

    // ---- producers ----

    /// Writes until the storm is over; returns how many transactions committed.
    fn produce(&self, number: u64) -> u64 {
        match self.database.kind() {
            Kind::Postgres => self.produce_on(&mut self.database.postgres(), number),
            Kind::Mariadb => self.produce_on(&mut self.database.mariadb(), number),
            Kind::Sqlite => self.produce_on(&mut self.database.sqlite(), number),
        }
    }

    fn produce_on<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C, number: u64) -> u64 {
        let mut dice = SmallRng::seed_from_u64(self.seed.wrapping_add(100 + number));
        let mut committed = 0;
        for turn in 0.. {
            while self.backlog() > BACKLOG_MAX && !self.calm.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            if self.calm.load(Ordering::SeqCst) {
                break;
            }
            let plan = Plan::draw(&mut dice, turn * PRODUCERS + number);
            committed += u64::from(self.transact(conn, &plan));
            std::thread::sleep(Duration::from_millis(dice.random_range(0..40)));
        }
        committed
    }

    /// Carries a plan out; true when it committed.
    fn transact<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C, plan: &Plan) -> bool {
        let tx = self.recorder.transaction();
        let mut units = 0;
        let ended = conn.transaction::<_, Error, _>(|conn| {
            conn.batch_execute(&format!("INSERT INTO orders VALUES ({})", plan.order))?;
            let enqueue = |conn: &mut C, message: &Planned| -> Result<Id, Error> {
                let began = self.recorder.now();
                let mut envelope =
                    Envelope::raw("storm.order", message.body.as_bytes()).content_type("application/json");
                if let Some(key) = &message.key {
                    envelope = envelope.key(key);
                }
                let id = outbox::enqueue(conn, envelope)?.message_id.to_string();
                let body = message.body.as_bytes();
                tx.enqueued(began, &id, "storm.order", message.key.as_deref(), &DESTINATIONS, body);
                Ok(id)
            };
            for message in &plan.messages {
                if message.undone {
                    let mut undone = Vec::new();
                    let rolled_back = conn.transaction::<(), Error, _>(|conn| {
                        undone.push(enqueue(conn, message)?);
                        Err(DieselError::RollbackTransaction.into())
                    });
                    assert!(matches!(rolled_back, Err(Error::Database(DieselError::RollbackTransaction))));
                    tx.undone(undone);
                } else {
                    enqueue(conn, message)?;
                    units += DESTINATIONS.len() as u64;
                }
            }
            std::thread::sleep(plan.dawdle);
            if plan.rolls_back {
                return Err(DieselError::RollbackTransaction.into());
            }
            tx.commit_asked();
            Ok(())
        });
        match ended {
            Ok(()) => {
                tx.committed();
                self.owed.fetch_add(units, Ordering::SeqCst);
                true
            }
            Err(Error::Database(DieselError::RollbackTransaction)) => {
                tx.rolled_back();
                false
            }
            Err(error) => panic!("a producer failed: {error}"),
        }
    }
}

/// Ends the producers when it is dropped.
struct Calm<'a>(&'a AtomicBool);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What one transaction will do.
struct Plan {
    order: u64,
    messages: Vec<Planned>,
    rolls_back: bool,
    /// Between the last statement and the end: others overtake it.
    dawdle: Duration,
}

struct Planned {
    key: Option<String>,
    body: String,
    undone: bool,
}

impl Plan {
    fn draw(dice: &mut SmallRng, order: u64) -> Plan {
        let count = dice.random_range(1..4);
        let mut messages: Vec<Planned> = (0..count)
            .map(|nth| {
                // A few keys have most of the traffic.
                let key = (40.0 * dice.random::<f64>().powi(3)) as u64;
                let key = dice.random_ratio(17, 20).then(|| format!("customer-{key}"));
                let refused = if dice.random_ratio(1, 50) { ",\"refused\":true" } else { "" };
                let body = format!("{{\"order\": {order}, \"line\":{nth}{refused}}}");
                Planned { key, body, undone: false }
            })
            .collect();
        if dice.random_ratio(1, 20) {
            let at = dice.random_range(0..messages.len());
            messages[at].undone = true;
        }
        let dawdle = if dice.random_ratio(1, 5) { dice.random_range(0..30) } else { 0 };
        Plan { order, messages, rolls_back: dice.random_ratio(3, 10), dawdle: Duration::from_millis(dawdle) }
    }
}
