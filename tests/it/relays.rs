//! Several real relays on one outbox under load: stopped in turn, killed, frozen beyond their lease.
//!
//! Three on PostgreSQL and MariaDB, two on SQLite. A stop in order may repeat nothing at all. For a kill or a freeze the
//! budget is counted at that moment: what receivers have accepted and the tables still hold, and the attempts the relay
//! may have had under way.

use std::time::Duration;

use outbox_tests::database::Kind;
use outbox_tests::process::{Process, Signal};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::storm::{CONCURRENCY, DESTINATIONS, LIMIT, Producers, Storm, storms};

/// How often a relay is hurt.
const FAULTS: u64 = 20;
/// As configured.
const LEASE: Duration = Duration::from_secs(1);
/// Attempts a relay may have under way.
const UNDER_WAY: u64 = (CONCURRENCY * DESTINATIONS.len()) as u64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_stopped_in_turn_lose_nothing_and_repeat_nothing() {
    storms("stopped in turn", Kind::ALL, |storm, configuration, producers| {
        // On a busy machine a relay may seem dead for a second, and then things do come twice. Nothing here waits for a
        // lease to pass.
        let configuration = configuration.replace("lease = \"1s\"", "lease = \"10s\"");
        let verdict = hurt(storm, &configuration, producers, |storm, relays, next| {
            let ended = relays.remove(0).terminate(LIMIT);
            assert_eq!(ended.status.code(), Some(0), "asked to end, it said:\n{}", ended.stderr);
            storm.harmless("term");
            relays.push(next());
        });
        assert_eq!(verdict.duplicates, 0, "nothing went wrong, so nothing may come twice");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_killed_beside_others_lose_nothing() {
    storms("killed beside others", Kind::ALL, |storm, configuration, producers| {
        hurt(storm, configuration, producers, |storm, relays, next| {
            let said = relays.remove(0).kill();
            assert!(!said.stderr.contains("panicked"), "it panicked:\n{}", said.stderr);
            storm.fault("kill", UNDER_WAY);
            relays.push(next());
        });
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_frozen_beyond_their_lease_lose_nothing() {
    storms("frozen", Kind::ALL, |storm, configuration, producers| {
        hurt(storm, configuration, producers, |storm, relays, _| {
            relays[0].signal(Signal::Stop);
            storm.fault("stop", UNDER_WAY);
            std::thread::sleep(LEASE * 3);
            relays[0].signal(Signal::Cont);
            // It goes on as a newcomer; the next to be frozen is another.
            relays.rotate_left(1);
        });
    })
    .await;
}

/// Starts relays, hurts them again and again while they deliver, and lets the checker judge.
fn hurt(
    storm: &Storm,
    configuration: &str,
    producers: Producers<'_>,
    fault: impl Fn(&Storm, &mut Vec<Process>, &dyn Fn() -> Process),
) -> outbox_tests::checker::Verdict {
    let mut dice = SmallRng::seed_from_u64(storm.seed.wrapping_add(1));
    let count = if storm.database.kind() == Kind::Sqlite { 2 } else { 3 };
    let next = || storm.start(configuration);
    let mut relays: Vec<Process> = (0..count).map(|_| next()).collect();
    let mut resumed = Vec::new();
    for _ in 0..FAULTS {
        let last = relays.last_mut().expect("some relay runs");
        resumed.push(storm.wait_for_attempts(dice.random_range(1..300), last));
        fault(storm, &mut relays, &next);
        for relay in &mut relays {
            assert!(relay.is_running(), "it ended by itself:\n{}", relay.output());
        }
    }
    let last = relays.last_mut().expect("some relay runs");
    storm.wait_for_attempts(300, last);
    let orders = producers.finish(storm);
    storm.wait_for_rest(relays.last_mut().expect("some relay runs"));
    for relay in relays {
        let ended = relay.terminate(LIMIT);
        assert!(!ended.stderr.contains("panicked"), "it panicked:\n{}", ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "asked to end, it said:\n{}", ended.stderr);
    }
    let verdict = storm.judge(orders);
    assert!(verdict.faults >= FAULTS);
    resumed.sort();
    println!(
        "next attempt after a fault: median {:.1?} longest {:.1?}",
        resumed[resumed.len() / 2],
        resumed[resumed.len() - 1]
    );
    verdict
}
