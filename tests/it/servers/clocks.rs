//! Clocks that are put forward and back by an hour under load: the database's, and the relays' own.
//!
//! Leases and timeouts go by clocks nobody sets. What waits is due by the database's clock: put back, it would keep
//! everything that waits for as long, so relays notice and bring their rows forward.

use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::Process;
use outbox_tests::server::{Clock, Server};

use crate::storm::{LIMIT, Place, Producers, Storm, storms_on};

const HOUR: i64 = 3600;

/// Relays under load while the clock is put forward and back, back and forward. Each of them has to say these words twice.
fn stepped(storm: &Storm, configuration: &str, producers: Producers<'_>, words: &[&str]) {
    let configuration = configuration.replace("lease = \"1s\"", "lease = \"5s\"");
    let (kind, clock) = (storm.database.kind(), storm.clock.as_ref().expect("this storm has a clock"));
    let count = if kind == Kind::Sqlite { 2 } else { 3 };
    let mut relays: Vec<Process> = (0..count).map(|_| storm.start(&configuration)).collect();
    let last = relays.last_mut().expect("some relay runs");
    storm.wait_for_attempts(200, last);
    for seconds in [HOUR, 0, -HOUR, 0] {
        clock.step(seconds);
        storm.harmless("clock");
        let resumed = storm.wait_for_attempts(200, last);
        println!("{kind}: clock at {seconds:+} s, next attempt after {resumed:.1?}");
        // So that a relay has the time to look, and to write by the clock as it is.
        std::thread::sleep(Duration::from_millis(1500));
    }
    let orders = producers.finish(storm);
    storm.wait_for_rest(last);
    for relay in relays {
        let said = relay.terminate(LIMIT);
        assert_eq!(said.status.code(), Some(0), "asked to end, it said:\n{}", said.stderr);
        for word in ["panicked", "declared dead", "starts anew", "partitions lost"] {
            assert!(!said.stderr.contains(word), "`{word}`:\n{}", said.stderr);
        }
        for word in words {
            assert!(said.stderr.matches(word).count() >= 2, "not twice `{word}`:\n{}", said.stderr);
        }
    }
    let verdict = storm.judge(orders);
    assert_eq!(verdict.duplicates, 0, "a clock is no reason for anything to come twice");
}

const NOTICED: &str = "clock was put back";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_clock_that_steps_by_an_hour_loses_and_delays_nothing() {
    let places = [Kind::Postgres, Kind::Mariadb].map(|kind| {
        let clock = Clock::new();
        let server = Server::start_with_clock(kind, &clock);
        Place { database: TestDatabase::on(&server), clock: Some(clock), server: Some(server) }
    });
    storms_on("database clock", places, |storm, configuration, producers| {
        stepped(storm, configuration, producers, &[NOTICED]);
    })
    .await;
}

/// On SQLite the relay's clock is the database's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_clock_that_steps_by_an_hour_loses_and_delays_nothing() {
    let places = Kind::ALL.map(|kind| Place { clock: Some(Clock::new()), ..Place::from(kind) });
    storms_on("relay clock", places, |storm, configuration, producers| {
        let words: &[&str] = if storm.database.kind() == Kind::Sqlite { &[NOTICED] } else { &[] };
        stepped(storm, configuration, producers, words);
    })
    .await;
}
