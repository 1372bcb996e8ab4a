//! Commands in the pages.
//!
//! A script is run as it stands, with our own `relay` in front of the path. It finds a configuration with two
//! destinations and an outbox with something in every table: dead letters 17 and 18 and deliveries that wait for
//! `billing`, a message that is pending.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{Ended, Process, relay, relay_path};

use super::pages::{Block, blocks, pages};
use crate::dead_letters::Plant;

const LIMIT: Duration = Duration::from_secs(90);

const CONFIGURATION: &str = r#"
[destinations.billing]
url = "http://127.0.0.1:9/hooks"
topics = ["order.*"]

[destinations.audit]
url = "http://127.0.0.1:9/audit"
topics = ["**"]
"#;

/// Stands in for `relay` on the path. `relay run` would not end: it is stopped, in order, when it has started.
const STAND_IN: &str = r#"#!/usr/bin/env bash
arguments=" $* "
if [[ $1 != run || $arguments == *" --drain "* || $arguments == *" --help "* ]]; then exec "$REAL_RELAY" "$@"; fi
log=$(mktemp)
"$REAL_RELAY" "$@" 2>"$log" &
child=$!
for _ in {1..600}; do
    if grep -q "relay started" "$log"; then kill -TERM "$child"; break; fi
    kill -0 "$child" 2>/dev/null || break
    sleep 0.1
done
wait "$child"
status=$?
cat "$log" >&2
exit "$status"
"#;

/// An outbox with something in every table, and what the pages call it by.
fn outbox() -> TestDatabase {
    // Migrated, so that what asks for migrations finds them applied.
    let database = TestDatabase::create(Kind::Sqlite);
    outbox::migrations::run(&mut database.sqlite()).unwrap();
    for (destination, pattern) in [("billing", "order.*"), ("audit", "**")] {
        database.exec(&format!(
            "INSERT INTO outbox_destinations (name, patterns) VALUES ('{destination}', '[\"{pattern}\"]')"
        ));
    }
    for id in [17, 18] {
        Plant::blocking(id, "order-1").dead(&database);
    }
    database.exec("UPDATE outbox_dead_letters SET id = seq");
    Plant { key: Some("order-2"), ..Plant::new(20) }.waiting(&database, false);
    Plant { key: Some("order-2"), ..Plant::new(21) }.waiting(&database, true);
    database.exec(
        "UPDATE outbox_deliveries SET message_id = x'0199c0de7a3b7c558b1e3f1f1f2a9d10' WHERE seq = 20; \
         INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')",
    );
    database
}

/// Runs a script where the commands of the pages find what they speak of.
fn run(script: &str) -> Ended {
    let database = outbox();
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let stand_in = bin.join("relay");
    fs::write(&stand_in, STAND_IN).unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("relay.toml"), CONFIGURATION).unwrap();
    let mut command = bash(folder.path());
    command.args(["-euo", "pipefail", "-c", script]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display())).env("REAL_RELAY", relay_path());
    command.env("DATABASE_URL", database.url()).env("OUTBOX_DB", database.path());
    command.env("RELAY__HEALTH__LISTEN", "off").env("RELAY__RELAY__SHUTDOWN_GRACE", "1s");
    Process::run(command, LIMIT)
}

fn bash(folder: &Path) -> Command {
    let mut command = Command::new("bash");
    command.current_dir(folder).env("HOME", folder);
    command
}

/// The `relay` commands of a script, word by word. Knows quotation marks, pipes and comments, nothing else of a shell.
pub(crate) fn relay_commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for line in script.replace("\\\n", " ").lines() {
        let mut segments: Vec<Vec<String>> = vec![vec![]];
        let (mut word, mut quote, mut is_word) = (String::new(), None, false);
        for character in line.chars().chain([' ']) {
            match (character, quote) {
                (mark, Some(open)) if mark == open => quote = None,
                (other, Some(_)) => word.push(other),
                ('"' | '\'', None) => (quote, is_word) = (Some(character), true),
                ('#', None) if !is_word => break,
                (' ' | '\t' | '|' | '&' | ';', None) => {
                    if is_word {
                        segments.last_mut().unwrap().push(std::mem::take(&mut word));
                    }
                    if character != ' ' && character != '\t' {
                        segments.push(Vec::new());
                    }
                    is_word = false;
                }
                (other, None) => {
                    word.push(other);
                    is_word = true;
                }
            }
        }
        for mut words in segments {
            // What is redirected is not the relay's business.
            if let Some(at) = words.iter().position(|word| word.starts_with(['>', '<']) || word.starts_with("2>")) {
                words.truncate(at);
            }
            if let Some(at) = words.iter().position(|word| word == "relay").filter(|at| *at <= 2) {
                commands.push(words.split_off(at + 1));
            }
        }
    }
    commands
}

/// Whether the relay knows the command and its options, whatever their values. Words in capital letters stand for one:
/// `N` for a number, others for a number, an id or a name.
pub(super) fn is_known(arguments: &[String]) -> bool {
    let is_help = arguments.first().is_some_and(|first| first == "help");
    let stands_for_one = |word: &str| word.len() > 1 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    ["1", "0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10", "billing"].into_iter().any(|value| {
        let filled = arguments.iter().map(|word| match word.as_str() {
            "N" => "1",
            word if stands_for_one(word) => value,
            word => word,
        });
        Process::run(relay(filled.chain((!is_help).then_some("--help"))), LIMIT).status.success()
    })
}

#[test]
fn scripts_do_what_they_say() {
    let blocks: Vec<Block> = blocks(&pages(), "sh");
    // Those of the README are run by `readme`, on an outbox they make themselves.
    let whole = blocks.iter().filter(|block| !block.is_marked("parsed") && !block.place.starts_with("README.md"));
    let mut seen = 0;
    for block in whole {
        let ended = run(&block.text);
        assert!(ended.status.success(), "{}: {ended:?}", block.place);
        seen += 1;
    }
    assert!(seen > 0, "no script of the pages was run");
}

#[test]
fn commands_of_scripts_that_are_not_run_exist() {
    let blocks: Vec<Block> = blocks(&pages(), "sh");
    for block in blocks.iter().filter(|block| block.is_marked("parsed")) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = bash(folder.path());
        command.args(["-n", "-c", &block.text]);
        let ended = Process::run(command, LIMIT);
        assert!(ended.status.success(), "{}: {ended:?}", block.place);
        for arguments in relay_commands(&block.text) {
            assert!(is_known(&arguments), "{}: the relay knows no `{}`", block.place, arguments.join(" "));
        }
    }
}

#[test]
fn a_script_that_fails_is_found() {
    assert!(!run("relay dead show 99").status.success());
    assert!(!run("relay status | false").status.success());
    let ended = run("relay run; relay dead list -o jsonl | grep -c billing; test -f \"$OUTBOX_DB\"");
    assert!(ended.status.success() && ended.stdout.contains('2'), "{ended:?}");
}

#[test]
fn relay_commands_are_found_in_scripts() {
    let script = "FOO=1 relay status # relay none\nrelay dead list --error \"a b\" | jq . > x\nrelay \\\n  run 2>log\necho relays\n";
    assert_eq!(relay_commands(script), [vec!["status"], vec!["dead", "list", "--error", "a b"], vec!["run"]]);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(is_known(&words("dead list --since 2h")) && is_known(&words("messages show MESSAGE_ID --seq N")));
    assert!(!is_known(&words("dead bury 17")) && !is_known(&words("dead list --sins 2h")));
}
