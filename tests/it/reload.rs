//! `relay run` reads its configuration anew: the real program, its signals and what arrives at the receivers.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Ended, Process, Signal, free_address, relay};
use outbox_tests::receiver::{Answer, Receiver, Request};
use outbox_tests::tables;

use crate::delivery::stage::{enqueue, keyed, millis, until, until_nothing_is_left};

const LIMIT: Duration = Duration::from_secs(30);
const IN_FORCE: &str = "the new configuration is in force";

/// A relay whose file can be changed while it runs.
struct Daemon {
    process: Process,
    file: PathBuf,
    health: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    fn start(database: &TestDatabase, destinations: &str) -> Daemon {
        Daemon::start_with(database, destinations, &[])
    }

    fn start_with(database: &TestDatabase, destinations: &str, environment: &[(&str, &str)]) -> Daemon {
        let folder = tempfile::Builder::new().prefix("outbox-reload-").tempdir().unwrap();
        let (file, health) = (folder.path().join("relay.toml"), free_address());
        let mut command = relay(["-c"]);
        command.arg(&file).args(["--database-url", database.url(), "run"]).envs(environment.iter().copied());
        std::fs::write(&file, Daemon::text(health, destinations)).unwrap();
        let mut daemon = Daemon { process: Process::start(command), file, health, _folder: folder };
        daemon.process.wait_for_200(health, "/readyz", LIMIT);
        daemon
    }

    fn text(health: SocketAddr, destinations: &str) -> String {
        // A lease so long that nobody waits for a third of it unnoticed.
        format!("[health]\nlisten = \"{health}\"\n[relay]\nlease = \"15s\"\npoll_idle = \"20ms\"\n{destinations}")
    }

    fn write(&self, destinations: &str) {
        std::fs::write(&self.file, Daemon::text(self.health, destinations)).unwrap();
    }

    fn hang_up(&self) {
        self.process.signal(Signal::Hup);
    }

    /// Reads the file anew and waits until it is in force.
    async fn reload(&self, destinations: &str) {
        let before = self.told(IN_FORCE);
        self.write(destinations);
        self.hang_up();
        self.until_told(IN_FORCE, before + 1).await;
    }

    /// How many lines hold this text.
    fn told(&self, text: &str) -> usize {
        self.process.output().lines().filter(|line| line.contains(text)).count()
    }

    async fn until_told(&self, text: &str, times: usize) {
        let end = Instant::now() + LIMIT;
        while self.told(text) < times {
            assert!(Instant::now() < end, "`{text}` was not told {times} times:\n{}", self.process.output());
            tokio::time::sleep(millis(5)).await;
        }
    }

    /// Ends it, in order and with nothing left owned.
    fn end(self, database: &TestDatabase) -> Ended {
        let ended = self.process.terminate(LIMIT);
        assert!(ended.status.success(), "{}", ended.stderr);
        assert_nothing_owned(database, &ended);
        ended
    }
}

fn assert_nothing_owned(database: &TestDatabase, ended: &Ended) {
    let owned = database.query_i64("SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL");
    let relays = database.query_i64("SELECT count(*) FROM outbox_relays");
    assert_eq!((owned, relays), (0, 0), "{}", ended.stderr);
}

fn destination(name: &str, url: &str, topics: &str, more: &str) -> String {
    format!("[destinations.{name}]\nurl = \"{url}\"\ntopics = [\"{topics}\"]\n{more}\n")
}

fn message(topic: &'static str, body: &str) -> outbox::Envelope {
    outbox::Envelope::raw(topic, body)
}

fn bodies(requests: &[Request], path: &str) -> Vec<String> {
    let of_path = requests.iter().filter(|request| request.line.starts_with(&format!("POST {path} ")));
    of_path.map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
}

async fn until_received(receiver: &Receiver, path: &str, wanted: &[&str]) {
    let all = |requests: &[Request]| bodies(requests, path) == wanted;
    receiver.wait_until(LIMIT, &format!("{path} gets {wanted:?}"), all).await;
}

async fn destinations_come_change_and_go(database: TestDatabase) {
    let (old, new) = (Receiver::always(Answer::status(200)).await, Receiver::always(Answer::status(200)).await);
    let billing = |url: &str| destination("billing", url, "order.*", "");
    let first = billing(&old.url("/billing")) + &destination("audit", &old.url("/audit"), "order.*", "");
    let daemon = Daemon::start(&database, &first);
    enqueue(&database, [message("order.a", "1")]);
    until_received(&old, "/billing", &["1"]).await;
    until_received(&old, "/audit", &["1"]).await;

    daemon.reload(&(billing(&new.url("/billing")) + &destination("mail", &new.url("/mail"), "mail.*", ""))).await;
    enqueue(&database, [message("order.b", "2"), message("mail.a", "3")]);
    until_received(&new, "/billing", &["2"]).await;
    until_received(&new, "/mail", &["3"]).await;
    let waiting = || tables::snapshot(&database).waiting;
    until(
        &database,
        "what is for the removed destination waits",
        || matches!(&waiting()[..], [row] if row.destination == "audit" && row.state == "unserved"),
    )
    .await;
    assert_eq!(bodies(&old.requests(), "/audit"), ["1"]);

    daemon.reload(&first).await;
    until_received(&old, "/audit", &["1", "2"]).await;
    until_nothing_is_left(&database).await;
    let told = daemon.end(&database).stderr;
    let summary = "\"added\":\"[\\\"mail\\\"]\",\"changed\":\"[\\\"billing\\\"]\",\"removed\":\"[\\\"audit\\\"]\"";
    assert!(told.contains(summary), "{told}");
}
for_each_database!(destinations_come_change_and_go);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_file_is_told_with_its_place_and_changes_nothing() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let receiver = Receiver::always(Answer::status(200)).await;
    let good = destination("billing", &receiver.url("/in"), "**", "");
    let daemon = Daemon::start(&database, &good);
    for (n, (wrong, told)) in [
        ("[destinations.billing]\nurl = \"https://b/\"\ntopics = [\"**\"]\nconcurency = 4\n", ":9:1: unknown key"),
        ("[destinations.billing]\nurl = \n", ":7:7: "),
        ("[destinations.billing]\nurl = \"https://b/\"\ntopics = [\"a..b\"]\n", ":8:1: `topics`"),
    ]
    .into_iter()
    .enumerate()
    {
        daemon.write(wrong);
        daemon.hang_up();
        daemon.until_told("the new configuration is refused; the old one stays", n + 1).await;
        let output = daemon.process.output();
        let line = output.lines().rfind(|line| line.contains("is refused")).unwrap();
        assert!(line.contains(&format!("relay.toml{told}")), "{told} is not in {line}");
        enqueue(&database, [message("a", &n.to_string())]);
        receiver.wait_until(LIMIT, "the old one delivers", |requests| requests.len() == n + 1).await;
    }
    std::fs::remove_file(&daemon.file).unwrap();
    daemon.hang_up();
    daemon.until_told("cannot be read", 1).await;
    daemon.write(&good);
    daemon.hang_up();
    daemon.until_told("the relay goes on as it is", 1).await;
    assert_eq!(daemon.told("relay started"), 1, "{}", daemon.process.output());
    daemon.end(&database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_named_and_the_rest_is_in_force() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let (old, new) = (Receiver::always(Answer::status(200)).await, Receiver::always(Answer::status(200)).await);
    let mut daemon = Daemon::start(&database, &destination("billing", &old.url("/in"), "**", ""));
    let text = format!(
        "[health]\nlisten = \"off\"\n[relay]\nlease = \"30s\"\n{}",
        destination("billing", &new.url("/in"), "**", "")
    );
    std::fs::write(&daemon.file, text).unwrap();
    daemon.hang_up();
    daemon.until_told(IN_FORCE, 1).await;
    let told = daemon.process.output();
    for key in ["relay.lease", "health.listen"] {
        let named = |line: &&str| line.contains("needs a restart") && line.contains(&format!("\"key\":\"{key}\""));
        assert_eq!(told.lines().filter(named).count(), 1, "{key}: {told}");
    }
    let health = daemon.health;
    daemon.process.wait_for_200(health, "/readyz", LIMIT);
    enqueue(&database, [message("a", "1")]);
    until_received(&new, "/in", &["1"]).await;
    daemon.end(&database);
}

async fn reloads_under_load_lose_nothing_and_repeat_nothing(database: TestDatabase) {
    const KEYS: usize = 16;
    const COUNT: usize = 320;
    let receiver = Receiver::always(Answer::status(200).after(millis(8))).await;
    let configuration = |concurrency: usize| {
        let more = format!("concurrency = {concurrency}");
        destination("one", &receiver.url("/one"), "**", &more) + &destination("two", &receiver.url("/two"), "**", &more)
    };
    let mut daemon = Daemon::start(&database, &configuration(4));
    let (health, mut reloads) = (daemon.health, 0);
    for round in 0..8 {
        let numbers = round * COUNT / 8..(round + 1) * COUNT / 8;
        enqueue(&database, numbers.map(|n| keyed(&format!("{:02}", n % KEYS), &format!("{:02} {n:04}", n % KEYS))));
        let had = receiver.requests().len();
        receiver.wait_until(LIMIT, "it works", |requests| requests.len() >= had + 5).await;
        if round % 2 == 0 {
            daemon.reload(&configuration(5 + round)).await;
            reloads += 1;
        } else {
            // A second one before the first is done.
            daemon.write(&configuration(5 + round));
            daemon.hang_up();
            daemon.write(&configuration(15 + round));
            daemon.hang_up();
        }
        daemon.process.wait_for_200(health, "/readyz", millis(0));
    }
    until_nothing_is_left(&database).await;
    let in_force = daemon.told(IN_FORCE);
    assert!(in_force >= reloads, "{}", daemon.process.output());
    println!("{}: {in_force} reloads under load", database.kind());
    daemon.end(&database);
    for path in ["/one", "/two"] {
        let received = bodies(&receiver.requests(), path);
        let mut distinct = received.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!((distinct.len(), received.len()), (COUNT, COUNT), "{path}: each once");
        for key in 0..KEYS {
            let of_key: Vec<_> = received.iter().filter(|body| body.starts_with(&format!("{key:02} "))).collect();
            assert!(of_key.is_sorted(), "{path}: {of_key:?}");
        }
    }
}
for_each_database!(reloads_under_load_lose_nothing_and_repeat_nothing);

async fn a_slow_attempt_holds_up_its_own_partition_only(database: TestDatabase) {
    const QUICK: usize = 64;
    const SLOW: Duration = Duration::from_secs(10);
    let receiver = Receiver::start(|request| {
        let is_slow = request.line.starts_with("POST /slow ");
        Answer::status(200).after(if is_slow { SLOW } else { Duration::ZERO })
    })
    .await;
    let configuration = |concurrency: usize| {
        destination("slow", &receiver.url("/slow"), "slow", "")
            + &destination("quick", &receiver.url("/quick"), "quick", &format!("concurrency = {concurrency}"))
    };
    let daemon = Daemon::start(&database, &configuration(4));
    enqueue(&database, [message("slow", "slow").key("k")]);
    receiver.wait_until(LIMIT, "the slow one is under way", |requests| requests.len() == 1).await;
    let began = Instant::now();
    daemon.write(&configuration(5));
    daemon.hang_up();
    enqueue(&database, (0..QUICK).map(|n| message("quick", &n.to_string())));
    // All but those that share its partition: two of 64 on average.
    let most = |requests: &[Request]| bodies(requests, "/quick").len() >= QUICK - 12;
    receiver.wait_until(LIMIT, "others go on", most).await;
    let gap = began.elapsed();
    daemon.until_told(IN_FORCE, 1).await;
    assert_eq!(daemon.told("the relay of the previous configuration has finished"), 0, "too slow a machine");
    enqueue(&database, [message("quick", "same key").key("k")]);
    assert!(gap < SLOW / 2, "others stood still for {gap:?}");
    until_nothing_is_left(&database).await;
    daemon.end(&database);
    let requests = receiver.requests();
    assert_eq!(requests.len(), QUICK + 2, "each once");
    let last = requests.iter().find(|request| &request.body[..] == b"same key").unwrap();
    let behind = last.at.saturating_duration_since(requests[0].at + SLOW);
    println!("{}: others went on {gap:?} after the signal, its key {behind:?} after its end", database.kind());
    assert!(last.at >= requests[0].at + SLOW, "the partition changed hands while it was in use");
    assert!(behind < SLOW / 2, "its partition stood still for {behind:?}");
}
for_each_database!(a_slow_attempt_holds_up_its_own_partition_only);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_reloads_is_a_clean_one() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let receiver = Receiver::always(Answer::status(200).after(millis(20))).await;
    let configuration =
        |n: usize| destination("billing", &receiver.url("/in"), "**", &format!("concurrency = {}", n % 7 + 1));
    let mut expected = 0;
    for round in 0..4 {
        let daemon = Daemon::start(&database, &configuration(0));
        enqueue(&database, (0..20).map(|n| keyed(&format!("{}", n % 5), &format!("{round} {n:02}"))));
        expected += 20;
        for n in 1..=round + 1 {
            daemon.write(&configuration(n));
            daemon.hang_up();
        }
        daemon.end(&database);
    }
    let daemon = Daemon::start(&database, &configuration(0));
    until_nothing_is_left(&database).await;
    daemon.end(&database);
    assert_eq!(receiver.requests().len(), expected, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_how_it_is() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut all = String::new();
    let mut heard = |wanted: &str| loop {
        let mut bytes = [0; 200];
        let length = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{error}; `{wanted}` was not told: {all}"));
        let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let _ = write!(all, "{said};");
        if said.starts_with(wanted) {
            return;
        }
        assert_eq!(said, "WATCHDOG=1", "instead of {wanted}: {all}");
    };
    let configuration = |n: usize| destination("billing", "http://127.0.0.1:9/", "**", &format!("concurrency = {n}"));
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let daemon = Daemon::start_with(&database, &configuration(1), &environment);
    heard("READY=1");
    heard("WATCHDOG=1");
    daemon.write(&configuration(2));
    daemon.hang_up();
    heard("RELOADING=1\nMONOTONIC_USEC=");
    heard("READY=1");
    daemon.write("[relais]");
    daemon.hang_up();
    heard("RELOADING=1");
    heard("READY=1");
    heard("WATCHDOG=1");
    daemon.end(&database);
    heard("STOPPING=1");
}
