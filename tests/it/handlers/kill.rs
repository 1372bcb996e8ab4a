//! A process with a transactional handler dies at every step of its transaction, and every effect happens once.
//!
//! The program `outbox-test-ledger` aborts when a chosen step is reached for the nth time. Its messages go to the ledger
//! alone or to a second handler too, so they are claimed in both of the tables. What died is started again and has to
//! wait out the lease of the dead one.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use outbox::Envelope;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::process::Process;

use super::stage::{create_effects, effects};
use crate::delivery::stage::{Left, enqueue, until_nothing_is_left};

/// Before the claim, after it, after the effect, before the commit, and after it before anything is settled.
const STEPS: [&str; 5] = ["begin", "claimed", "written", "commit", "committed"];
/// How often each step kills.
const ROUNDS: usize = 2;
/// Before a process that lives works off what they left.
const DEATHS_IN_A_ROW: usize = 2;
const LIMIT: Duration = Duration::from_secs(60);
const SIGABRT: i32 = 6;

async fn a_process_that_dies_at_any_step_leaves_every_effect_done_once(database: TestDatabase) {
    create_effects(&database);
    let start = |step: &str, times: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-test-ledger"));
        command.args([database.url(), step, &times.to_string()]);
        Process::start(command)
    };
    let mut wanted: Vec<String> = Vec::new();
    let mut died = 0;
    for round in 0..ROUNDS {
        for step in STEPS {
            let bodies: Vec<String> = (0..6).map(|n| format!("k{} {:05}", n % 3, wanted.len() + n)).collect();
            let messages = bodies.iter().enumerate().map(|(n, body)| {
                let topic = if n % 2 == 0 { "posted" } else { "shared" };
                let envelope = Envelope::raw(topic, format!("{{\"body\":\"{body}\"}}"));
                // One of the three keys is none.
                if n % 3 == 0 { envelope } else { envelope.key(&body[..2]) }
            });
            enqueue(&database, messages);
            wanted.extend(bodies);
            let process = start(step, 1 + 2 * round);
            let ended = tokio::task::block_in_place(|| process.wait(LIMIT));
            assert_eq!(ended.status.signal(), Some(SIGABRT), "at `{step}`: {ended:?}");
            died += 1;
            let done = effects(&database);
            let mut once = done.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), done.len(), "twice after a death at `{step}`: {done:?}");
            // Whoever was at work at three deaths is given up, and that is another test's.
            if died % DEATHS_IN_A_ROW == 0 {
                let process = start("never", 1);
                until_nothing_is_left(&database).await;
                let ended = tokio::task::block_in_place(|| process.terminate(LIMIT));
                assert!(ended.status.success(), "{ended:?}");
            }
        }
    }
    let done = effects(&database);
    for key in ["k1", "k2"] {
        let of_key = |bodies: &[String]| bodies.iter().filter(|b| b.starts_with(key)).cloned().collect::<Vec<_>>();
        assert_eq!(of_key(&done), of_key(&wanted), "out of order");
    }
    let mut sorted = done.clone();
    sorted.sort();
    wanted.sort();
    assert_eq!(sorted, wanted);
    assert!(Left::of(&database).is_nothing());
    println!("{}: {died} deaths, {} messages, {} effects", database.kind(), wanted.len(), done.len());
}
for_each_database!(a_process_that_dies_at_any_step_leaves_every_effect_done_once);
