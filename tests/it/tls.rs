//! TLS, with certificates made for the occasion: what is accepted, what is refused, and that the refusal says which.

mod http;
mod mariadb;
mod postgres;

use std::path::Path;
use std::time::Duration;

use outbox_tests::certificates::{Authority, Certificate, Validity};
use outbox_tests::database::TestDatabase;
use outbox_tests::process::{Ended, Process};
use outbox_tests::receiver::{Answer, Receiver};

use crate::cli;

/// After this long something that should have happened has not.
const LIMIT: Duration = Duration::from_secs(60);

/// Whom a server on this machine is called by.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

fn good(authority: &Authority) -> Certificate {
    authority.server(&NAMES, Validity::Now)
}

/// A text as a file, and where it is.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A relay on this url delivers, and meanwhile `looks` at the server.
async fn delivers(database: &TestDatabase, url: &str, looks: impl Fn(&TestDatabase)) {
    let receiver = Receiver::always(Answer::status(200)).await;
    let configuration = format!(
        "[health]\nlisten = \"off\"\n[destinations.mail]\nurl = \"{}\"\ntopics = [\"t\"]\n",
        receiver.url("/hook")
    );
    let relay = Process::start_relay(&configuration, &["--database-url", url, "run"]);
    database.exec("INSERT INTO outbox_messages (topic, ordering_key, payload) VALUES ('t', 'k', 'over TLS')");
    receiver.wait_until(LIMIT, "the message arrived", |requests| requests.len() == 1).await;
    assert_eq!(&receiver.requests()[0].body[..], b"over TLS");
    looks(database);
    let ended = relay.terminate(LIMIT);
    assert!(ended.status.success(), "{ended:?}");
}

/// Commands of each kind: by the store, by a diesel connection, and by both.
const COMMANDS: [&[&str]; 3] = [&["status"], &["migrate", "status"], &["dead", "list"]];

fn commands_work(url: &str) {
    for command in COMMANDS {
        // The tables were made without diesel, so that it finds them missing.
        let code = if command[0] == "migrate" { 2 } else { 0 };
        cli::assert_ended(&command_on(url, command), code);
    }
}

fn command_on(url: &str, command: &[&str]) -> Ended {
    let mut arguments = vec!["--database-url", url];
    arguments.extend(command);
    cli::run(&arguments)
}

/// Every command ends with 69, says these words and shows no password.
fn is_refused(url: &str, said: &str, help: &str) {
    for command in COMMANDS {
        let ended = command_on(url, command);
        cli::assert_ended(&ended, 69);
        assert!(ended.stderr.contains(said), "`{said}` is not in\n{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("help: {help}")), "`{help}` is not in\n{}", ended.stderr);
        assert!(!ended.stderr.contains("cannot be reached"), "{}", ended.stderr);
    }
}
