//! Keys that stand still, as the command line lists and releases them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Process, relay};
use serde_json::{Value, json};

use crate::cli::{LIMIT, assert_ended, json, on};
use crate::dead_letters::{Plant, unblocked};

fn waiting(database: &TestDatabase, seq: i64, key: &'static str, blocked: bool) {
    Plant { key: Some(key), ..Plant::new(seq) }.waiting(database, blocked);
}

fn list(database: &TestDatabase, arguments: &[&str]) -> Value {
    let ended = on(database, &[&["keys", "list", "-o", "json"], arguments].concat());
    assert_ended(&ended, 0);
    json(&ended)
}

async fn keys_that_stand_still_are_listed_with_what_they_wait_for(database: TestDatabase) {
    assert_eq!(list(&database, &[]), json!([]));
    waiting(&database, 3, "retried", false);
    waiting(&database, 4, "retried", true);
    let error = "422: no";
    let letters = [5, 6].map(|seq| Plant { error, ..Plant::blocking(seq, "stuck") }.dead(&database));
    waiting(&database, 7, "stuck", true);
    let found = list(&database, &[]);
    let row = |n: usize| {
        let row = &found[n];
        let ids: Vec<&Value> = row["blocked_by"].as_array().unwrap().iter().map(|letter| &letter["id"]).collect();
        json!([
            row["key"],
            row["key_hex"],
            row["waiting"],
            row["head"]["seq"],
            row["head"]["state"],
            row["blockers"],
            ids
        ])
    };
    assert_eq!(row(0), json!(["stuck", "737475636b", 1, 7, "blocked", 2, letters]));
    assert_eq!(row(1), json!(["retried", "72657472696564", 2, 3, "blocked", 0, []]));
    assert_eq!(found[0]["blocked_by"][0]["last_error"], error);

    let ended = on(&database, &["keys", "list"]);
    assert_ended(&ended, 0);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let [first, second] = letters;
    let stands = format!("blocked by dead letters {first}, {second} since 2026-01-02T10:05:00Z  422: no");
    assert!(lines[1].ends_with(&stands), "{}", lines[1]);
    assert!(lines[2].contains("  due since 2026-01-02T10:02:00Z  "), "{}", lines[2]);
    assert!(lines[2].ends_with("  503 Service Unavailable"), "{}", lines[2]);

    assert_eq!(list(&database, &["--blocked"]).as_array().unwrap().len(), 1);
    assert_eq!(list(&database, &["--key", "retried"])[0]["key"], "retried");
    assert_eq!(list(&database, &["--destination", "audit"]), json!([]));
    let ended = on(&database, &["keys", "list", "--limit", "1"]);
    assert_eq!((ended.stdout.lines().count(), &*ended.stderr), (2, "only the first 1 are shown; --limit shows more\n"));
}
for_each_database!(keys_that_stand_still_are_listed_with_what_they_wait_for);

async fn a_key_is_released_by_a_named_person(database: TestDatabase) {
    let letter = Plant::blocking(5, "k").dead(&database);
    waiting(&database, 7, "k", true);
    let command = ["keys", "release", "billing", "k", "--actor", "ada", "--reason", "by phone"];
    let ended = on(&database, &[&command[..], &["--dry-run"]].concat());
    assert_ended(&ended, 0);
    let said = format!("would be released: k at billing from dead letter {letter}; 1 wait\n");
    assert_eq!((&*ended.stdout, ended.stderr), ("", said));
    assert_eq!(unblocked(&database), [0; 0]);

    let ended = on(&database, &command);
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, format!("released k at billing from dead letter {letter}\n"));
    assert_eq!(unblocked(&database), [7]);
    let audit =
        "SELECT count(*) FROM outbox_audit WHERE actor = 'ada' AND action = 'key.release' AND reason = 'by phone'";
    assert_eq!(database.query_i64(audit), 1);

    // Now its first message has a cause of its own.
    for command in [&command[..], &[&command[..], &["--dry-run"]].concat()] {
        let ended = on(&database, command);
        assert_ended(&ended, 0);
        assert!(
            ended.stderr.starts_with("no dead letter blocks k at billing: it waits for message "),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.trim_end().ends_with(" --seq 7"), "{}", ended.stderr);
    }
    let answer = json(&on(&database, &[&command[..], &["-o", "json"]].concat()));
    let expected = json!({ "destination": "billing", "key": "k", "blockers": 0, "dead_letters": [], "changed": false });
    assert_eq!(answer, expected);

    let ended = on(&database, &["keys", "release", "billing", "K"]);
    assert_ended(&ended, 1);
    let said = "relay: nothing of the key `K` stands still at billing\n  help: ";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_audit"), 1, "what changed nothing was audited");
}
for_each_database!(a_key_is_released_by_a_named_person);

#[test]
fn a_dry_run_says_when_it_does_not_name_every_letter() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let ids: Vec<i64> = (0..103).map(|seq| Plant::blocking(seq, "k").dead(&database)).collect();
    let command = ["keys", "release", "billing", "k", "-o", "json"];
    let ended = on(&database, &[&command[..], &["--dry-run"]].concat());
    assert_ended(&ended, 0);
    let answer = json(&ended);
    assert_eq!((&answer["blockers"], &answer["dead_letters"]), (&json!(103), &json!(ids[..100])));
    assert_eq!(ended.stderr, "only the oldest 100 of the 103 dead letters are named\n");
    let released = json(&on(&database, &command));
    assert_eq!((&released["blockers"], &released["dead_letters"]), (&json!(103), &json!(ids)));
}

#[test]
fn a_key_that_is_no_text_is_named_by_its_bytes() {
    let database = TestDatabase::create(Kind::Mariadb);
    assert_ended(&on(&database, &["migrate", "up"]), 0);
    Plant::blocking(5, "k").dead(&database);
    database.exec("UPDATE outbox_dead_letters SET ordering_key = x'6bff'");
    assert_eq!(list(&database, &[])[0]["key_hex"], "6bff");
    let folder = tempfile::tempdir().unwrap();
    let mut command = relay(["--database-url", database.url(), "keys", "release", "billing"]);
    command.arg(OsString::from_vec(b"k\xff".to_vec())).current_dir(folder.path());
    assert_ended(&Process::run(command, LIMIT), 0);
    assert_eq!(list(&database, &[]), json!([]));
}
