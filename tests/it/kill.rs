//! The relay dies again and again, in the middle of its work, and nothing is lost.
//!
//! The real program is killed with SIGKILL twenty times under load; each time it is started again and has to wait out
//! the lease of the dead one.
//!
//! How many units may arrive twice is not guessed: after each kill, while no relay lives, the units that a receiver has
//! accepted and the tables still hold are counted. Nothing else has a reason to come again.

use std::time::Duration;

use outbox_tests::database::Kind;
use outbox_tests::process::Process;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::storm::{LIMIT, Producers, REPEATS_MAX, Storm, storms};

/// Kills of a relay that was delivering.
const KILLS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_killed_again_and_again_loses_nothing() {
    storms("kill", Kind::ALL, killed).await;
}

fn killed(storm: &Storm, configuration: &str, producers: Producers<'_>) {
    let mut dice = SmallRng::seed_from_u64(storm.seed.wrapping_add(1));
    let (mut kills, mut repeats_max, mut resumed) = (0, 0, Vec::new());
    while kills < KILLS {
        let mut relay = storm.start(configuration);
        // Now and then it dies before it could take over, or while it does.
        if dice.random_ratio(1, 5) {
            std::thread::sleep(Duration::from_millis(dice.random_range(0..1_500)));
        } else {
            resumed.push(storm.wait_for_attempts(dice.random_range(1..300), &mut relay));
            std::thread::sleep(Duration::from_micros(dice.random_range(0..20_000)));
            kills += 1;
        }
        repeats_max = repeats_max.max(kill(storm, relay));
    }
    let mut relay = storm.start(configuration);
    storm.wait_for_attempts(300, &mut relay);
    let orders = producers.finish(storm);
    storm.wait_for_rest(&mut relay);
    let ended = relay.terminate(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "asked to end, it said:\n{}", ended.stderr);
    let verdict = storm.judge(orders);
    assert!(verdict.faults >= KILLS);
    assert!(repeats_max <= REPEATS_MAX, "{repeats_max} units came again for one kill");
    assert!(verdict.budget > 0, "no kill met a delivery under way, so nothing was tried");
    resumed.sort();
    let (median, longest) = (resumed[resumed.len() / 2], resumed[resumed.len() - 1]);
    println!(
        "most repeats for one kill {repeats_max}  first attempt after a start: median {median:.1?} longest {longest:.1?}"
    );
}

/// Kills the relay and writes down how many units may come again for it.
fn kill(storm: &Storm, mut relay: Process) -> u64 {
    assert!(relay.is_running(), "it ended by itself:\n{}", relay.output());
    let said = relay.kill();
    let said = said.stdout + &said.stderr;
    assert!(!said.contains("panicked"), "it panicked:\n{said}");
    storm.wait_for_answers();
    storm.fault("kill", 0)
}
