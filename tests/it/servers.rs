//! Databases that are not what they seem: behind a pooler, standing by, put back from a copy, with a clock that jumps.

use std::time::Duration;

use outbox_tests::database::TestDatabase;
use outbox_tests::process::Process;
use outbox_tests::receiver::{Receiver, Request};

mod clocks;
mod frozen;
mod pooler;
mod restore;
mod standby;

/// After this long something that should have happened has not.
const LIMIT: Duration = Duration::from_secs(30);

/// A relay with one destination, which takes topic `t`.
fn configuration(receiver: &Receiver, lease: &str) -> String {
    format!(
        "[relay]\nlease = \"{lease}\"\n[health]\nlisten = \"off\"\n\
         [destinations.mail]\nurl = \"{}\"\ntopics = [\"t\"]\nretry = [\"100ms\", \"100ms\", \"100ms\"]\n",
        receiver.url("/hook")
    )
}

/// The real program.
fn start(configuration: &str, url: &str) -> Process {
    Process::start_relay(configuration, &["--database-url", url, "run"])
}

/// Commits these messages of topic `t`, all of one key.
fn enqueue(database: &TestDatabase, bodies: impl IntoIterator<Item = String>) {
    let rows: Vec<String> = bodies.into_iter().map(|body| format!("('t', 'k', '{body}')")).collect();
    let sql = format!("INSERT INTO outbox_messages (topic, ordering_key, payload) VALUES {}", rows.join(", "));
    database.exec(&sql);
}

/// What arrived, in order.
fn bodies(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
}

/// Waits until each of these has arrived.
async fn until_arrived(receiver: &Receiver, wanted: &[String]) {
    let arrived = |requests: &[Request]| {
        let bodies = bodies(requests);
        wanted.iter().all(|body| bodies.contains(body))
    };
    receiver.wait_until(LIMIT, &format!("{wanted:?} arrived"), arrived).await;
}

fn named(name: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{name}-{n}")).collect()
}
