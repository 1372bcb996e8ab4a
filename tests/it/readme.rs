//! The README does what it says: its configuration, its commands, its quickstart.
//!
//! Its Rust is compiled as documentation tests of this package; its links and words are looked at with those of the other
//! pages, in `docs`.

use std::process::Command;
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{Process, Signal, program_path, relay};

use crate::dead_letters::Plant;
use crate::docs::relay_commands;

const README: &str = include_str!("../../README.md");
const LIMIT: Duration = Duration::from_secs(60);

/// The blocks of code in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let parts = README.split("\n```").collect::<Vec<_>>();
    let with_language = parts.iter().filter_map(|part| part.split_once('\n'));
    with_language.filter(|(found, _)| *found == language).map(|(_, block)| block).collect()
}

#[test]
fn its_commands_work_with_its_configuration() {
    let configuration = blocks("toml").into_iter().find(|block| block.contains("[destinations."));
    let configuration = configuration.expect("the README shows a relay.toml");
    let commands: Vec<Vec<String>> = blocks("sh").into_iter().flat_map(relay_commands).collect();
    assert!(commands.len() >= 7, "{commands:?}");

    let database = TestDatabase::create(Kind::Sqlite);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("relay.toml"), configuration).unwrap();
    for words in commands {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        if arguments[0] == "bench" {
            // As written, but not on somebody's server, and short.
            let at = arguments.iter().position(|word| *word == "--database-url").expect("the README names a server");
            arguments.drain(at..at + 2);
            arguments.extend(["--messages", "200"]);
        }
        if let ["dead", "redrive", id] = arguments[..] {
            Plant::new(id.parse().unwrap()).dead(&database);
            database.exec(&format!("UPDATE outbox_dead_letters SET id = {id}"));
        }
        let mut command = relay(&arguments);
        command.current_dir(folder.path()).env("DATABASE_URL", database.url()).env("RELAY__HEALTH__LISTEN", "off");
        let process = Process::start(command);
        if arguments == ["run"] {
            process.wait_for_line("relay started", LIMIT);
            process.signal(Signal::Term);
        }
        let ended = process.wait(LIMIT);
        assert!(ended.status.success(), "{words:?}: {ended:?}");
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_dead_letters"), 0, "it was redriven");
}

#[test]
fn its_plain_insert_is_a_producer() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let inserts = blocks("sql");
    assert_eq!(inserts.len(), 1);
    database.exec(inserts[0]);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 1);
}

#[test]
fn the_quickstart_tells_its_story_and_ends() {
    assert!(blocks("sh").contains(&"cargo run -p quickstart"));
    // It leaves its database and its mails for the reader to look at.
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program_path("quickstart"));
    command.env("TMPDIR", folder.path());
    let ended = Process::run(command, Duration::from_secs(30));
    assert!(ended.status.success(), "{ended:?}");
    let mut rest = ended.stdout.as_str();
    for told in [
        "POST /orders -> 202",
        "rolled back",
        "POST /orders -> 402",
        "next attempt in",
        "#1 order.placed for billing: rejected",
        "billing      attempt 1: delivered",
        "1 order in the table, 1 mail sent",
        "The database and the mail stay in",
    ] {
        let Some((_, after)) = rest.split_once(told) else {
            panic!("`{told}` is missing, or in the wrong place, in\n{}", ended.stdout)
        };
        rest = after;
    }
    // The story sends its dead letter again at once: a reader would find none to list or redrive.
    assert!(!ended.stdout.contains("relay dead"), "{}", ended.stdout);
    for told in [
        "warehouse    attempt 2: failed (503)",
        "warehouse    attempt 3: delivered",
        "confirmation attempt 1: delivered",
    ] {
        assert!(ended.stdout.contains(told), "`{told}` is missing in\n{}", ended.stdout);
    }
    assert_eq!(ended.stderr, "");
}
