//! Messages whose handler kills the process, and processes that are killed by others.
//!
//! The program `outbox-test-poison` aborts for some messages. The tests start it again each time, as a supervisor would.
//! What its handlers were given stands in a file, and judges: a process that dies leaves whole lines.
//!
//! How often a unit may come again is not guessed: at each death the units are noted that a handler had finished and the
//! tables still hold. Nothing else has a reason to come again.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{Process, Signal};
use outbox_tests::tables::snapshot;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::delivery::stage::{Left, dead_letters, enqueue, keyed, plain};

const LIMIT: Duration = Duration::from_secs(60);
const SIGABRT: i32 = 6;
/// The handlers of the program.
const DESTINATIONS: [&str; 2] = ["work", "also"];
/// One on the fast path, where nothing is written before; one beside others; three alone.
const DEATHS_MAX: usize = 5;

/// What may come again when a living relay is taken for dead: all in hands, and for each lane what it holds of waiting
/// rows and what is being written of them.
const REPEATS_MAX: usize = (64 + 4 * 16) * DESTINATIONS.len();

/// A destination and a body.
type Unit = (String, String);

struct Scene {
    database: TestDatabase,
    folder: tempfile::TempDir,
    /// The handlers take so long.
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ids: HashMap<String, Uuid>,
    /// How often more than once each unit may come.
    again: HashMap<Unit, usize>,
    deaths: usize,
    /// Living relays that were declared dead: the machine was too busy.
    accused: usize,
}

/// What the handlers wrote down.
#[derive(Default)]
struct Log {
    /// The attempts that began, in order.
    begun: Vec<Unit>,
    /// Those that ended well.
    done: Vec<Unit>,
}

impl Scene {
    fn new(database: TestDatabase, pause: Duration) -> Scene {
        Scene { database, folder: tempfile::tempdir().unwrap(), pause, state: Mutex::default() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn start(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-test-poison"));
        command.arg(self.database.url()).arg(self.file()).args([&self.pause.as_millis().to_string(), "continue"]);
        Process::start(command)
    }

    fn enqueue(&self, messages: impl IntoIterator<Item = (String, Envelope)>) {
        let (bodies, envelopes): (Vec<String>, Vec<Envelope>) = messages.into_iter().unzip();
        let ids = enqueue(&self.database, envelopes);
        self.state.lock().unwrap().ids.extend(bodies.into_iter().zip(ids));
    }

    fn log(&self) -> Log {
        let mut log = Log::default();
        for line in std::fs::read_to_string(self.file()).unwrap_or_default().lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            let unit = (words[2].to_owned(), words[3].to_owned());
            if words[0] == "begin" { log.begun.push(unit) } else { log.done.push(unit) }
        }
        log
    }

    /// A process died: notes what may come again for it.
    fn died(&self) {
        let tables = snapshot(&self.database);
        let pending: HashSet<String> = tables.pending.into_iter().collect();
        let waiting: HashSet<(String, String)> =
            tables.waiting.into_iter().map(|row| (row.destination, row.id)).collect();
        let done: HashSet<Unit> = self.log().done.into_iter().collect();
        let mut state = self.state.lock().unwrap();
        let State { ids, again, deaths, .. } = &mut *state;
        *deaths += 1;
        for (destination, body) in done {
            let id = ids[&body].to_string();
            if pending.contains(&id) || waiting.contains(&(destination.clone(), id)) {
                *again.entry((destination, body)).or_default() += 1;
            }
        }
    }

    /// How many partitions this relay owns, under the name it has now.
    fn owned_by(&self, relay: &Process) -> i64 {
        self.database.query_i64(&format!(
            "SELECT count(*) FROM outbox_partitions p JOIN outbox_relays r ON r.id = p.owner WHERE r.name = 'poison-{}'",
            relay.id()
        ))
    }

    fn wait(&self, for_what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is_so() {
            assert!(Instant::now() < deadline, "{for_what}: it never came to that\n{}", Left::of(&self.database));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Freezes a relay until another has declared it dead.
    fn freeze_to_death(&self, relay: &Process) {
        let deadline = Instant::now() + LIMIT;
        while self.owned_by(relay) > 0 {
            relay.signal(Signal::Stop);
            // Frozen while it writes to a SQLite file it keeps all others from writing, whoever they are: not a case of
            // this test. On a server the transaction is ended.
            let patience = Instant::now() + Duration::from_secs(5);
            while self.owned_by(relay) > 0 && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(10));
            }
            relay.signal(Signal::Cont);
            assert!(Instant::now() < deadline, "never declared dead:\n{}", Left::of(&self.database));
        }
    }

    fn deaths(&self) -> usize {
        self.state.lock().unwrap().deaths
    }

    /// Starts again what has died.
    fn restart_dead(&self, relays: &mut [Process]) {
        for relay in relays {
            if !relay.is_running() {
                // Noted before the next one starts: then nothing moves, unless another relay does.
                self.died();
                let ended = std::mem::replace(relay, self.start()).wait(LIMIT);
                assert_eq!(ended.status.signal(), Some(SIGABRT), "{ended:?}");
                self.heard(&ended.stderr);
                assert!(self.deaths() <= 2 * DEATHS_MAX, "it dies and dies:\n{}", Left::of(&self.database));
            }
        }
    }

    /// Starts again what has died, until the tables are empty but for dead letters; then all end in order.
    fn supervise(&self, mut relays: Vec<Process>) {
        let deadline = Instant::now() + LIMIT;
        while !Left::of(&self.database).waiting().is_some_and(|waiting| waiting.is_empty()) {
            self.restart_dead(&mut relays);
            assert!(Instant::now() < deadline, "{} deaths, and left:\n{}", self.deaths(), Left::of(&self.database));
            std::thread::sleep(Duration::from_millis(10));
        }
        for relay in relays {
            let ended = relay.terminate(LIMIT);
            assert!(ended.status.success(), "{ended:?}");
            self.heard(&ended.stderr);
        }
    }

    /// Takes note of what a relay said.
    fn heard(&self, said: &str) {
        assert!(!said.contains("panicked"), "{said}");
        self.state.lock().unwrap().accused += said.matches("declared dead by another").count();
    }

    /// `destination body` of what was given up as `crashed`; nothing else was given up.
    fn crashed(&self) -> Vec<String> {
        let letters = dead_letters(&self.database);
        let state = self.state.lock().unwrap();
        let body = |id: Uuid| state.ids.iter().find(|(_, known)| **known == id).unwrap().0.clone();
        letters
            .iter()
            .map(|letter| {
                let letter = &letter.letter;
                assert_eq!(letter.reason, "crashed", "{letter:?}");
                format!("{} {}", letter.destination, body(letter.message_id))
            })
            .collect()
    }

    /// Nothing is lost and nothing came again without a reason, but for what was given up.
    fn judge(&self, about: &str) {
        let (log, crashed) = (self.log(), self.crashed());
        let mut times: HashMap<Unit, usize> = HashMap::new();
        for unit in log.done {
            *times.entry(unit).or_default() += 1;
        }
        let state = self.state.lock().unwrap();
        let mut lost = Vec::new();
        for body in state.ids.keys() {
            for destination in DESTINATIONS {
                let unit = (destination.to_owned(), body.clone());
                if !times.contains_key(&unit) && !crashed.contains(&format!("{destination} {body}")) {
                    lost.push(unit);
                }
            }
        }
        let repeats: usize = times.values().map(|times| times - 1).sum();
        let budget: usize = state.again.values().sum();
        println!(
            "{}  {about}: messages {}  deaths {} and {}  crashed {}  lost {}  duplicates {repeats} of {budget} allowed",
            self.database.kind(),
            state.ids.len(),
            state.deaths,
            state.accused,
            crashed.len(),
            lost.len(),
        );
        assert!(lost.is_empty(), "lost: {lost:?}");
        if state.accused > 0 {
            let allowed = budget + state.accused * REPEATS_MAX;
            assert!(repeats <= allowed, "{repeats} came again, {allowed} were allowed");
            return;
        }
        for (unit, times) in times {
            let allowed = 1 + state.again.get(&unit).copied().unwrap_or_default();
            assert!(times <= allowed, "{unit:?} came {times} times, {allowed} were allowed");
        }
    }
}

/// Runs a scene on each database, all at the same time: most of the time is spent waiting for leases.
async fn on_each_database<F: Future<Output = ()> + Send + 'static>(scene: impl Fn(TestDatabase) -> F) {
    // One after another: a machine that is too busy makes living relays look dead.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenes: Vec<_> =
        Kind::ALL.into_iter().map(|kind| tokio::spawn(scene(TestDatabase::with_schema(kind)))).collect();
    let mut failed = None;
    for scene in scenes {
        // All have their say before one of them fails the test.
        failed = scene.await.err().or(failed);
    }
    if let Some(failed) = failed {
        std::panic::resume_unwind(failed.into_panic());
    }
}

/// So many neighbours, some with keys.
fn neighbours(from: usize, count: usize) -> impl Iterator<Item = (String, Envelope)> {
    (from..from + count).map(|n| {
        let body = format!("n{n:05}");
        let envelope = if n.is_multiple_of(3) { plain(&body) } else { keyed(&format!("k{}", n % 7), &body) };
        (body, envelope)
    })
}

fn poison(body: &str) -> (String, Envelope) {
    (body.to_owned(), plain(body))
}

/// A poison among a thousand neighbours.
async fn contained(database: TestDatabase, relays: usize, about: &'static str) {
    let scene = Scene::new(database, Duration::from_millis(1));
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let producer = scope.spawn(|| {
                for batch in 0..50 {
                    scene.enqueue(neighbours(batch * 20, 20));
                    if batch == 5 {
                        scene.enqueue([poison("poison")]);
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let mut relays: Vec<Process> = (0..relays).map(|_| scene.start()).collect();
            while !producer.is_finished() {
                scene.restart_dead(&mut relays);
                std::thread::sleep(Duration::from_millis(5));
            }
            producer.join().unwrap();
            scene.supervise(relays);
        });
    });
    scene.judge(about);
    assert_eq!(scene.crashed(), ["work poison"]);
    assert!((2..=DEATHS_MAX).contains(&scene.deaths()), "{} deaths", scene.deaths());
    let letter = &dead_letters(&scene.database)[0];
    let said = letter.letter.last_error.as_deref().unwrap();
    assert!(said.contains("the process died") && said.contains("redrive"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_that_kills_its_relay_is_given_up_and_its_neighbours_arrive() {
    on_each_database(killed_by_a_message).await;
}

async fn killed_by_a_message(database: TestDatabase) {
    contained(database, 1, "one relay").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_that_kills_one_relay_after_the_other_is_given_up() {
    on_each_database(killed_in_turn).await;
}

async fn killed_in_turn(database: TestDatabase) {
    contained(database, 2, "two relays").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn relays_that_are_killed_from_outside_condemn_nobody() {
    on_each_database(killed_from_outside).await;
}

async fn killed_from_outside(database: TestDatabase) {
    const KILLS: usize = 15;
    let scene = Scene::new(database, Duration::from_millis(20));
    let mut dice = SmallRng::seed_from_u64(rand::random());
    tokio::task::block_in_place(|| {
        for kill in 0..KILLS {
            scene.enqueue(neighbours(kill * 30, 30));
            let (mut relay, before) = (scene.start(), scene.log().begun.len());
            let deadline = Instant::now() + LIMIT;
            let wanted = before + dice.random_range(1..30);
            while scene.log().begun.len() < wanted && Left::of(&scene.database).waiting() != Some(vec![]) {
                assert!(relay.is_running() && Instant::now() < deadline, "{}", relay.output());
                std::thread::sleep(Duration::from_millis(2));
            }
            let said = relay.kill();
            scene.heard(&said.stderr);
            scene.died();
        }
        scene.supervise(vec![scene.start()]);
    });
    scene.judge("killed from outside");
    assert_eq!(scene.crashed(), [""; 0], "it was not theirs");
    assert_eq!(scene.deaths(), KILLS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_goes_on_in_order_after_the_message_that_killed() {
    on_each_database(killed_within_a_key).await;
}

async fn killed_within_a_key(database: TestDatabase) {
    let scene = Scene::new(database, Duration::from_millis(1));
    let bodies: Vec<String> = (0..40).map(|n| if n == 7 { "poison".into() } else { format!("n{n:05}") }).collect();
    scene.enqueue(bodies.iter().map(|body| (body.clone(), keyed("k", body))));
    tokio::task::block_in_place(|| scene.supervise(vec![scene.start()]));
    scene.judge("within a key");
    assert_eq!(scene.crashed(), ["work poison"]);
    for destination in DESTINATIONS {
        // Copies aside: each has its place where it came first.
        let mut first: Vec<String> = Vec::new();
        for (_, body) in scene.log().done.into_iter().filter(|(to, _)| to == destination) {
            if !first.contains(&body) {
                first.push(body);
            }
        }
        let wanted: Vec<String> =
            bodies.iter().filter(|body| destination == "also" || *body != "poison").cloned().collect();
        assert_eq!(first, wanted, "{destination}: out of order");
    }
    // Nothing of the key was tried at the one that killed before its fate was known.
    let begun: Vec<String> =
        scene.log().begun.into_iter().filter(|(to, _)| to == "work").map(|(_, body)| body).collect();
    let last = begun.iter().rposition(|body| body == "poison").unwrap();
    let next = begun.iter().position(|body| body == "n00008").unwrap();
    assert!(last < next, "overtaken: {begun:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_that_kills_at_a_later_attempt_is_given_up() {
    on_each_database(killed_later).await;
}

async fn killed_later(database: TestDatabase) {
    let scene = Scene::new(database, Duration::from_millis(1));
    scene.enqueue(neighbours(0, 50).chain([poison("late")]).chain(neighbours(50, 50)));
    tokio::task::block_in_place(|| scene.supervise(vec![scene.start()]));
    scene.judge("at the second attempt");
    assert_eq!(scene.crashed(), ["work late"]);
    assert_eq!(scene.deaths(), DEATHS_MAX - 1, "its attempts were marked from the first death on");
}

/// A freeze is a death to the others, and the frozen one goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn relays_that_are_frozen_condemn_nobody() {
    on_each_database(frozen).await;
}

async fn frozen(database: TestDatabase) {
    const FREEZES: usize = 2;
    let scene = Scene::new(database, Duration::from_millis(20));
    tokio::task::block_in_place(|| {
        let mut relays = vec![scene.start(), scene.start()];
        for freeze in 0..FREEZES {
            for relay in &relays {
                scene.wait("both have their share", || scene.owned_by(relay) > 0);
            }
            let before = scene.log().begun.len();
            scene.enqueue(neighbours(freeze * 200, 200));
            scene.wait("some have begun", || scene.log().begun.len() >= before + 20);
            scene.freeze_to_death(&relays[0]);
            relays.rotate_left(1);
        }
        assert!(relays.iter_mut().all(Process::is_running));
        scene.supervise(relays);
    });
    scene.judge("frozen");
    assert_eq!(scene.crashed(), [""; 0], "it was not theirs");
    assert!(scene.state.lock().unwrap().accused >= 1, "no freeze was taken for a death");
}
