//! Clocks that are put forward and back by an hour under load: the database's, and the relays' own.
//!
//! Leases and timeouts go by clocks nobody sets. What waits is due by the database's clock: put back, it would keep
//! everything that waits for as long, so relays notice and bring their rows forward.

use std::time::Duration;

use outbox_tests::checker::Verdict;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::Process;
use outbox_tests::server::{Clock, Server};

use crate::storm::{LIMIT, Place, Producers, Storm, storms_on};

const HOUR: i64 = 3600;

/// Relays under load while `step` sets the clock, forward and back, back and forward.
fn stepped(storm: &Storm, configuration: &str, producers: Producers<'_>, step: impl Fn(i64)) -> Verdict {
    let configuration = configuration.replace("lease = \"1s\"", "lease = \"5s\"");
    let count = if storm.database.kind() == Kind::Sqlite { 2 } else { 3 };
    let mut relays: Vec<Process> = (0..count).map(|_| storm.start(&configuration)).collect();
    let last = relays.last_mut().expect("some relay runs");
    storm.wait_for_attempts(200, last);
    for seconds in [HOUR, 0, -HOUR, 0] {
        step(seconds);
        storm.harmless("clock");
        let resumed = storm.wait_for_attempts(200, last);
        println!("{}: clock at {seconds:+} s, next attempt after {resumed:.1?}", storm.database.kind());
        // So that a relay has the time to look, and to write by the clock as it is.
        std::thread::sleep(Duration::from_millis(1500));
    }
    let orders = producers.finish(storm);
    storm.wait_for_rest(last);
    for relay in relays {
        let ended = relay.terminate(LIMIT);
        assert_eq!(ended.status.code(), Some(0), "asked to end, it said:\n{}", ended.stderr);
        for word in ["panicked", "declared dead", "starts anew", "partitions lost"] {
            assert!(!ended.stderr.contains(word), "`{word}`:\n{}", ended.stderr);
        }
    }
    let verdict = storm.judge(orders);
    assert_eq!(verdict.duplicates, 0, "a clock is no reason for anything to come twice");
    verdict
}

/// The clocks of the servers, by kind: a storm knows only its database.
fn servers() -> Vec<(Server, Clock)> {
    [Kind::Postgres, Kind::Mariadb]
        .map(|kind| {
            let clock = Clock::new();
            (Server::start_with_clock(kind, &clock), clock)
        })
        .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_clock_that_steps_by_an_hour_loses_and_delays_nothing() {
    static SERVERS: std::sync::OnceLock<std::sync::Mutex<Vec<(Server, Clock)>>> = std::sync::OnceLock::new();
    let servers = SERVERS.get_or_init(|| std::sync::Mutex::new(servers()));
    let places: Vec<Place> = servers
        .lock()
        .unwrap()
        .iter()
        .map(|(server, _)| Place { database: TestDatabase::on(server), variables: Vec::new() })
        .collect();
    storms_on("database clock", places, |storm, configuration, producers| {
        stepped(storm, configuration, producers, |seconds| {
            let servers = SERVERS.get().expect("it was filled above").lock().unwrap();
            let (_, clock) = servers.iter().find(|(server, _)| server.kind() == storm.database.kind()).unwrap();
            clock.step(seconds);
        });
    })
    .await;
    // Statics are never dropped.
    servers.lock().unwrap().clear();
}

/// On SQLite the relay's clock is the database's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_clock_that_steps_by_an_hour_loses_and_delays_nothing() {
    static CLOCK: std::sync::OnceLock<Clock> = std::sync::OnceLock::new();
    let clock = CLOCK.get_or_init(Clock::new);
    let places =
        Kind::ALL.map(|kind| Place { database: TestDatabase::with_schema(kind), variables: clock.variables() });
    storms_on("relay clock", places, |storm, configuration, producers| {
        stepped(storm, configuration, producers, |seconds| CLOCK.get().expect("it was made above").step(seconds));
    })
    .await;
}
