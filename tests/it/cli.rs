//! The command line as scripts and people meet it: the real program, its two outputs and its exit codes.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Ended, Process, free_address, relay};
use serde_json::{Value, json};

use crate::dead_letters::Plant;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs the command in an empty folder.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let mut command = relay(arguments);
    command.current_dir(folder.path());
    Process::run(command, LIMIT)
}

/// Runs the command on this database.
pub(crate) fn on(database: &TestDatabase, arguments: &[&str]) -> Ended {
    let mut all = vec!["--database-url", database.url()];
    all.extend(arguments);
    run(&all)
}

/// Runs the command with this configuration.
pub(crate) fn with(configuration: &str, arguments: &[&str]) -> Ended {
    Process::start_relay(configuration, arguments).wait(LIMIT)
}

#[track_caller]
pub(crate) fn assert_ended(ended: &Ended, code: i32) {
    assert_eq!(ended.status.code(), Some(code), "\nstdout: {}\nstderr: {}", ended.stdout, ended.stderr);
}

pub(crate) fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error} in {}", ended.stdout))
}

// ---- usage ----

#[test]
fn help_is_a_result_and_shows_every_command() {
    let ended = run(&["--help"]);
    assert_ended(&ended, 0);
    for command in [
        "run",
        "migrate",
        "check",
        "status",
        "messages",
        "destinations",
        "dead",
        "keys",
        "config",
        "completions",
        "bench",
    ] {
        assert!(ended.stdout.contains(&format!("\n  {command} ")), "no `{command}` in\n{}", ended.stdout);
    }
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_command_line_that_makes_no_sense_is_64() {
    for arguments in [
        vec![],
        vec!["frobnicate"],
        vec!["status", "--frobnicate"],
        vec!["dead", "show", "seventeen"],
        vec!["dead", "list", "--limit", "0"],
        vec!["dead", "redrive", "1", "--destination", "billing"],
        vec!["dead", "redrive", "1", "--all"],
        vec!["status", "-o", "xml"],
        vec!["bench", "drain", "--messages", "0"],
    ] {
        let ended = run(&arguments);
        assert_ended(&ended, 64);
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(ended.stderr.contains("--help"), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn a_change_of_nothing_in_particular_is_64() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    for verb in ["redrive", "discard"] {
        let ended = on(&database, &["dead", verb]);
        assert_ended(&ended, 64);
        assert_eq!(
            ended.stderr,
            format!(
                "relay: nothing says what to {verb}\n  help: name ids, a filter such as `--destination billing`, or `--all`\n"
            )
        );
    }
    let ended = on(&database, &["dead", "list", "--since", "yesterday"]);
    assert_ended(&ended, 64);
    assert!(ended.stderr.starts_with("relay: `yesterday` for --since is no time\n  help: "), "{}", ended.stderr);
}

#[test]
fn a_day_begins_at_midnight_utc() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    Plant::new(1).dead(&database);
    let died = json(&on(&database, &["dead", "list", "-o", "json"]))[0]["died_at"].as_str().unwrap().to_owned();
    let (day, _) = died.split_once('T').unwrap();
    let found = |option: &str| {
        let ended = on(&database, &["dead", "list", option, day, "-o", "jsonl"]);
        assert_ended(&ended, 0);
        ended.stdout.lines().count()
    };
    assert_eq!((found("--since"), found("--until")), (1, 0));
}

#[test]
fn a_payload_that_is_no_text_is_said_to_be_hex() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let id = Plant::new(1).dead(&database).to_string();
    database.exec("UPDATE outbox_dead_letters SET payload = x'00ff'");
    let ended = on(&database, &["dead", "show", &id]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.ends_with("\nbinary, in hex: 00ff\n"), "{}", ended.stdout);
}

#[test]
fn a_dry_run_of_a_new_file_names_it_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let url = format!("sqlite:{}", file.display());
    let ended = run(&["migrate", "up", "--dry-run", "--database-url", &url]);
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, "WOULD APPLY\n2026-11-22-000000_outbox\n");
    assert_eq!(ended.stderr, format!("would create the file {}\n", file.display()));
    assert!(!file.exists());
    // A folder that is not there is not made by the real run either.
    let url = format!("sqlite:{}/nowhere/new.db", folder.path().display());
    for more in [&["--dry-run"][..], &[]] {
        assert_ended(&run(&[&["migrate", "up", "--database-url", &url], more].concat()), 69);
    }
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let mut child = relay(["migrate", "print", "--backend", "postgres"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

// ---- configuration ----

pub(crate) const DESTINATION: &str = "[destinations.billing]\nurl = \"http://127.0.0.1:9/\"\ntopics = [\"**\"]\n";

#[test]
fn a_wrong_configuration_is_78_and_names_every_place() {
    let configuration =
        format!("[database]\nurl = \"sqlite:shop.db\"\n[relay]\nlese = \"5s\"\n{DESTINATION}concurency = 1\n");
    let ended = with(&configuration, &["run"]);
    assert_ended(&ended, 78);
    assert_eq!(ended.stdout, "");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!(lines[0].ends_with("relay.toml:4:1: unknown key `lese` in [relay] - did you mean `lease`?"), "{lines:?}");
    let second = "relay.toml:8:1: unknown key `concurency` in [destinations.billing] - did you mean `concurrency`?";
    assert!(lines[1].ends_with(second), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn a_configuration_that_is_not_there_is_78() {
    let ended = run(&["status", "-c", "nowhere.toml"]);
    assert_ended(&ended, 78);
    assert!(ended.stderr.starts_with("nowhere.toml: cannot be read: "), "{}", ended.stderr);
    let ended = run(&["status"]);
    assert_ended(&ended, 78);
    let help = "help: set DATABASE_URL, `url` in [database], or pass --database-url\n";
    assert_eq!(ended.stderr, format!("relay: no database is named\n  {help}"));
}

#[test]
fn the_environment_overrides_and_its_mistakes_are_named() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let mut command = relay(["status"]);
    command.env("DATABASE_URL", database.url()).current_dir(database.path().parent().unwrap());
    assert_ended(&Process::run(command, LIMIT), 0);

    let mut command = relay(["check"]);
    command.env("DATABASE_URL", database.url()).env("RELAY__HEALTH__LISTEN", "here");
    command.current_dir(database.path().parent().unwrap());
    let ended = Process::run(command, LIMIT);
    assert_ended(&ended, 2);
    let place = "environment variable RELAY__HEALTH__LISTEN: `listen` in [health] must be an address with a port";
    assert!(ended.stdout.starts_with(place), "{}", ended.stdout);
}

#[test]
fn check_says_everything_that_is_wrong_at_once() {
    let configuration = format!("[database]\nurl = \"sqlite:shop.db\"\n{DESTINATION}timeout = 5\n[health]\nport = 1\n");
    let ended = with(&configuration, &["check", "-o", "json"]);
    assert_ended(&ended, 2);
    let answer = json(&ended);
    let problems = answer["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{answer}");
    assert_eq!(problems[0]["section"], "destinations.billing");
    assert_eq!(problems[1]["message"], "unknown key `port` in [health]");
    // The database is looked at although the rest is wrong.
    let ended = with(&configuration, &["check", "--connect", "-o", "json"]);
    assert_ended(&ended, 2);
    assert_eq!(json(&ended)["problems"].as_array().unwrap().len(), 3, "{}", ended.stdout);
}

async fn check_finds_nothing_wrong_with_a_good_configuration(database: TestDatabase) {
    let ended = with(DESTINATION, &["--database-url", database.url(), "check", "--connect"]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.starts_with("database: schema version 1\n"), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("relay.toml: nothing wrong\n"), "{}", ended.stdout);
}
for_each_database!(check_finds_nothing_wrong_with_a_good_configuration);

#[test]
fn a_relay_without_destinations_does_not_start() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let ended = on(&database, &["run"]);
    assert_ended(&ended, 78);
    let help = "help: add a section [destinations.NAME] with `url` and `topics`\n";
    assert_eq!(ended.stderr, format!("relay: no destination is configured\n  {help}"));
}

// ---- database ----

#[test]
fn an_unreachable_database_is_69_and_its_password_is_never_shown() {
    for url in ["postgres://shop:s3cret@127.0.0.1:9/shop", "mysql://shop:s3cret@127.0.0.1:9/shop"] {
        for command in [vec!["status"], vec!["dead", "list"], vec!["migrate", "up"], vec!["run"]] {
            let mut arguments = vec!["--database-url", url];
            arguments.extend(&command);
            let ended = with(DESTINATION, &arguments);
            assert_ended(&ended, 69);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(!said.contains("s3cret"), "{command:?}: {said}");
            assert!(said.contains("127.0.0.1:9") && said.contains("cannot be reached"), "{command:?}: {said}");
            assert!(said.contains("onnection refused"), "{command:?} does not say why: {said}");
        }
    }
}

#[test]
fn a_sqlite_file_that_is_not_there_is_not_made_by_looking() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let url = format!("sqlite:{}", path.display());
    for command in [vec!["status"], vec!["dead", "list"], vec!["migrate", "status"], vec!["run"]] {
        let mut arguments = vec!["--database-url", &url];
        arguments.extend(&command);
        let ended = with(DESTINATION, &arguments);
        assert_ended(&ended, 69);
        assert!(ended.stderr.contains("relay migrate up"), "{command:?} does not say what to do: {}", ended.stderr);
        assert!(!path.exists(), "{command:?} made the file");
    }
    assert_ended(&run(&["migrate", "up", "--database-url", &url]), 0);
    assert!(path.exists());
}

async fn a_schema_that_does_not_fit_is_69_and_says_which_would(database: TestDatabase) {
    database.exec("UPDATE outbox_meta SET schema_version = 99");
    for command in [vec!["status"], vec!["run"]] {
        let mut arguments = vec!["--database-url", database.url()];
        arguments.extend(&command);
        let ended = with(DESTINATION, &arguments);
        assert_ended(&ended, 69);
        assert!(ended.stderr.contains("schema version 99"), "{}", ended.stderr);
        assert!(ended.stderr.contains("\n  help: "), "{}", ended.stderr);
    }
    let ended = on(&database, &["check", "--connect"]);
    assert_ended(&ended, 2);
    assert!(ended.stdout.contains("schema version 99"), "{}", ended.stdout);
}
for_each_database!(a_schema_that_does_not_fit_is_69_and_says_which_would);

/// Starts from an empty database, so it cannot use `for_each_database!`.
fn migrate_brings_an_empty_database_up(kind: Kind) {
    let database = TestDatabase::create(kind);
    if kind == Kind::Sqlite {
        database.exec("PRAGMA user_version = 1");
    }
    for command in [vec!["status"], vec!["dead", "list"], vec!["run"]] {
        let mut arguments = vec!["--database-url", database.url()];
        arguments.extend(&command);
        let ended = with(DESTINATION, &arguments);
        assert_ended(&ended, 69);
        assert!(ended.stderr.contains("`relay migrate up`"), "{command:?}: {}", ended.stderr);
    }
    let state = |ended: &Ended| json(ended)[0]["state"].clone();
    let ended = on(&database, &["migrate", "status", "-o", "json"]);
    assert_ended(&ended, 2);
    assert_eq!(state(&ended), "pending");
    let ended = on(&database, &["migrate", "up", "--dry-run", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended), json!(["2026-11-22-000000_outbox"]));
    let ended = on(&database, &["migrate", "up"]);
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, "APPLIED\n2026-11-22-000000_outbox\n");
    let ended = on(&database, &["migrate", "up", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended), json!([]));
    assert!(ended.stderr.ends_with("nothing to do, the schema is up to date\n"), "{}", ended.stderr);
    let ended = on(&database, &["migrate", "status", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(state(&ended), "applied");
    assert_ended(&on(&database, &["status"]), 0);
}

/// Feeds the printed schema to the database's own client.
fn the_printed_schema_is_plain_sql(kind: Kind) {
    let database = TestDatabase::create(kind);
    let (backend, mut client) = match kind {
        Kind::Postgres => {
            let mut client = Command::new("psql");
            client.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.url()]);
            ("postgres", client)
        }
        Kind::Mariadb => {
            let url = url::Url::parse(database.url()).unwrap();
            let mut client = Command::new("mariadb");
            client.args(["--no-defaults", "--host", url.host_str().unwrap(), "--user", url.username()]);
            client.args([format!("--port={}", url.port().unwrap_or(3306)), database.name().to_owned()]);
            client.env("MYSQL_PWD", url.password().unwrap_or(""));
            ("mariadb", client)
        }
        Kind::Sqlite => {
            let mut client = Command::new("sqlite3");
            client.arg("-bail").arg(database.path());
            ("sqlite", client)
        }
    };
    let printed = run(&["migrate", "print", "--backend", backend]);
    assert_ended(&printed, 0);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(printed.stdout.as_bytes()).unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    assert_ended(&on(&database, &["migrate", "status"]), 0);
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')");
    let ended = on(&database, &["status", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended)["pending"], 1);
}

mod from_empty {
    use super::*;

    #[test]
    fn postgres() {
        migrate_brings_an_empty_database_up(Kind::Postgres);
        the_printed_schema_is_plain_sql(Kind::Postgres);
    }

    #[test]
    fn mariadb() {
        migrate_brings_an_empty_database_up(Kind::Mariadb);
        the_printed_schema_is_plain_sql(Kind::Mariadb);
    }

    #[test]
    fn sqlite() {
        migrate_brings_an_empty_database_up(Kind::Sqlite);
        the_printed_schema_is_plain_sql(Kind::Sqlite);
    }
}

// ---- status ----

async fn status_shows_what_is_pending_waiting_and_dead(database: TestDatabase) {
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')");
    Plant::new(1).dead(&database);
    Plant::new(2).waiting(&database, true);
    let ended = on(&database, &["status", "-o", "json"]);
    assert_ended(&ended, 0);
    let status = json(&ended);
    assert_eq!(status["pending"], 1);
    assert_eq!(status["schema_version"], 1);
    assert_eq!(status["dead"], json!([{ "destination": "billing", "reason": "exhausted", "count": 1 }]));
    assert_eq!(status["waiting"], json!([{ "destination": "billing", "state": "blocked", "count": 1 }]));
    assert_eq!(status["partitions"].as_array().unwrap().len(), 32);
    assert_eq!(status["relays"], json!([]));

    let ended = on(&database, &["status"]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.contains("owners    no relay is running: nothing is delivered\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("\nDEAD FOR  REASON     COUNT\nbilling   exhausted  1\n"), "{}", ended.stdout);
}
for_each_database!(status_shows_what_is_pending_waiting_and_dead);

#[test]
fn status_says_what_needs_a_person_when_asked_to() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let codes = |arguments: &[&str]| {
        let ended = on(&database, &[&["status", "--exit-code", "--wait", "0s", "-o", "json"], arguments].concat());
        let found: Vec<String> = json(&ended)["attention"]
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each["code"].as_str().unwrap().to_owned())
            .collect();
        assert_ended(&ended, if found.is_empty() { 0 } else { 2 });
        found
    };
    assert_eq!(codes(&[]), ["partitions"], "nobody delivers");
    database
        .exec("INSERT INTO outbox_relays (id, name, version, lease_ms) VALUES (x'01000000000000000000000000000000', 'a', '1', 5000)");
    database.exec("UPDATE outbox_partitions SET owner = x'01000000000000000000000000000000'");
    assert_eq!(codes(&[]), [""; 0]);
    Plant::new(1).dead(&database);
    assert_eq!(codes(&[]), ["dead_letters"]);
    assert_eq!(codes(&["--dead-max", "1"]), [""; 0]);
    Plant::new(2).waiting(&database, false);
    database.exec("UPDATE outbox_deliveries SET state = 'unrouted', destination = ''");
    database.exec("INSERT INTO outbox_messages (topic, payload, created_at) VALUES ('a', '{}', 0)");
    database.exec("INSERT INTO outbox_destinations (name, patterns, paused_at) VALUES ('billing', '[]', 0)");
    assert_eq!(codes(&[]), ["dead_letters", "due", "pending", "paused", "unrouted"]);
    let long = ["--due-max", "99999d", "--pending-max", "99999d"];
    assert_eq!(codes(&long), ["dead_letters", "paused", "unrouted"]);
    let ended = on(&database, &["status", "--exit-code"]);
    assert_ended(&ended, 2);
    assert!(ended.stdout.contains("\nATTENTION\n1 dead letter: see `relay dead groups`\n"), "{}", ended.stdout);
    // Without being asked it only tells.
    let ended = on(&database, &["status"]);
    assert_ended(&ended, 0);
    assert!(!ended.stdout.contains("ATTENTION"), "{}", ended.stdout);
    assert_ended(&on(&database, &["status", "--dead-max", "1"]), 64);
}

// ---- dead letters ----

async fn dead_letters_are_listed_and_shown(database: TestDatabase) {
    let (first, second) = (Plant::new(1).dead(&database), Plant { key: Some("k"), ..Plant::new(2) }.dead(&database));
    let ended = on(&database, &["dead", "list", "-o", "json"]);
    assert_ended(&ended, 0);
    let ids: Vec<i64> = json(&ended).as_array().unwrap().iter().map(|letter| letter["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [second, first]);

    let ended = on(&database, &["dead", "list", "--limit", "1", "-o", "jsonl"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended)["key"], "k");
    assert_eq!(ended.stderr, "only the newest 1 are shown; --limit shows more\n");

    let ended = on(&database, &["dead", "list", "--key", "k"]);
    assert_ended(&ended, 0);
    let lines: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 2, "{}", ended.stdout);
    assert_eq!(lines[1][2..7], ["billing", "order.placed", "k", "exhausted", "3"]);

    let ended = on(&database, &["dead", "show", &second.to_string(), "-o", "json"]);
    assert_ended(&ended, 0);
    let letter = json(&ended);
    assert_eq!((&letter["payload"], &letter["headers"]), (&json!("{}"), &json!({ "a": "b" })));
    assert_eq!(letter["history"], json!([{ "n": 3 }]));
    let ended = on(&database, &["dead", "show", &second.to_string()]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.contains("last error    503 Service Unavailable\n"), "{}", ended.stdout);

    let ended = on(&database, &["dead", "show", "4711"]);
    assert_ended(&ended, 1);
    assert!(ended.stderr.starts_with("relay: there is no dead letter 4711\n  help: "), "{}", ended.stderr);
}
for_each_database!(dead_letters_are_listed_and_shown);

async fn dead_letters_are_redriven_and_discarded_by_a_named_person(database: TestDatabase) {
    let ids: Vec<String> = (1..=5).map(|seq| Plant::new(seq).dead(&database).to_string()).collect();
    let left = || database.query_i64("SELECT count(*) FROM outbox_dead_letters");

    let ended = on(&database, &["dead", "redrive", &ids[0], "--dry-run"]);
    assert_ended(&ended, 0);
    assert_eq!((ended.stderr.as_str(), left()), ("would be redriven: 1 of 1\n", 5));

    for (given, exit) in [(vec![ids[0].as_str(), "4711"], 75), (vec!["4711"], 1)] {
        let ended = on(&database, &[&["dead", "redrive"], &given[..], &["--dry-run"]].concat());
        assert_ended(&ended, exit);
        let said = format!("would be redriven: {} of {}\nnot found 1: 4711\n", given.len() - 1, given.len());
        assert_eq!((ended.stderr, left()), (said, 5));
    }

    let ended = on(&database, &["dead", "redrive", &ids[0], "--actor", "ada", "--reason", "fixed", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended), json!({ "redriven": [ids[0].parse::<i64>().unwrap()], "not_found": [] }));
    let ended = on(&database, &["dead", "redrive", &ids[0]]);
    assert_ended(&ended, 1);
    let ended = on(&database, &["dead", "redrive", &ids[0], &ids[1]]);
    assert_ended(&ended, 75);
    assert_eq!(ended.stdout, format!("redriven 1\nnot found 1: {}\n", ids[0]));
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE life = 1"), 2);

    // Nobody is at the terminal, and nobody said yes.
    let ended = on(&database, &["dead", "discard", &ids[2]]);
    assert_ended(&ended, 64);
    assert!(ended.stderr.contains("there is no terminal to ask at; pass --yes"), "{}", ended.stderr);
    assert_eq!(left(), 3);
    let ended = on(&database, &["dead", "discard", &ids[2], "--yes", "--actor", "ada", "--reason", "test order"]);
    assert_ended(&ended, 0);
    assert_eq!((ended.stdout.as_str(), left()), ("discarded 1\n", 2));
    let ended = on(&database, &["dead", "discard", "--destination", "billing", "--limit", "1", "--yes"]);
    assert_ended(&ended, 0);
    assert_eq!(left(), 1);
    let ended = on(&database, &["dead", "discard", "--all", "--yes"]);
    assert_ended(&ended, 0);
    assert_eq!(left(), 0);

    let by_ada = "SELECT count(*) FROM outbox_audit WHERE actor = 'ada' AND reason IN ('fixed', 'test order')";
    assert_eq!(database.query_i64(by_ada), 2);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_audit WHERE actor LIKE '%@%'"), 3);
}
for_each_database!(dead_letters_are_redriven_and_discarded_by_a_named_person);

#[test]
fn stored_text_cannot_steer_the_terminal() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let id = Plant { payload: b"\x1b]0;owned\x07\x1b[2J", error: "\x1b[31m\u{202e}", ..Plant::new(1) }.dead(&database);
    for arguments in [vec!["dead", "list"], vec!["dead", "show", &id.to_string()]] {
        let ended = on(&database, &arguments);
        assert_ended(&ended, 0);
        let is_harmless = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(ended.stdout.chars().all(is_harmless), "{arguments:?}: {:?}", ended.stdout);
    }
}

// ---- run ----

async fn a_relay_is_alive_and_ready_and_ends_in_order(database: TestDatabase) {
    let address = free_address();
    let configuration = format!("{DESTINATION}[health]\nlisten = \"{address}\"\n");
    let mut process = Process::start_relay(&configuration, &["--database-url", database.url(), "run"]);
    process.wait_for_200(address, "/livez", LIMIT);
    process.wait_for_200(address, "/readyz", LIMIT);
    let status = json(&on(&database, &["status", "-o", "json"]));
    assert_eq!(status["relays"].as_array().unwrap().len(), 1, "{status}");

    let second = with(&configuration, &["--database-url", database.url(), "run"]);
    assert_ended(&second, 1);
    let said = format!("relay: the health endpoint cannot listen on {address}: ");
    assert!(second.stderr.contains(&said), "{}", second.stderr);
    assert!(second.stderr.contains("\n  help: set another `listen` in [health], or \"off\"\n"), "{}", second.stderr);

    let ended = process.terminate(LIMIT);
    assert_ended(&ended, 0);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL"), 0);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_relays"), 0);
}
for_each_database!(a_relay_is_alive_and_ready_and_ends_in_order);

#[test]
fn a_drain_says_what_it_leaves_behind() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let ended = with(DESTINATION, &["--database-url", database.url(), "run", "--drain", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended)["pending"], 0);
    // Nobody listens at the destination, so this one will wait.
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')");
    let ended = with(DESTINATION, &["--database-url", database.url(), "run", "--drain", "-o", "json"]);
    assert_ended(&ended, 2);
    assert_eq!(json(&ended)["waiting"], json!([{ "destination": "billing", "state": "retry", "count": 1 }]));
    let drained = json!({ "attempts": 1, "delivered": 0, "retried": 1, "dead_lettered": 0, "unwritten": 0 });
    assert_eq!(json(&ended)["drained"], drained);
    let ended = with(DESTINATION, &["--database-url", database.url(), "run", "--drain"]);
    assert!(ended.stdout.starts_with("attempts  "), "{}", ended.stdout);
    assert!(ended.stdout.contains(": 0 delivered, ") && ended.stdout.contains("\ngiven up  0\n"), "{}", ended.stdout);
}

#[test]
fn a_drain_says_how_many_outcomes_could_not_be_written() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    database.exec("CREATE TRIGGER no BEFORE INSERT ON outbox_deliveries BEGIN SELECT RAISE(ABORT, 'no room'); END");
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')");
    let ended = with(DESTINATION, &["--database-url", database.url(), "run", "--drain", "-o", "json"]);
    assert_ended(&ended, 2);
    assert_eq!((&json(&ended)["pending"], &json(&ended)["drained"]["unwritten"]), (&json!(1), &json!(1)));
    let said = "relay: something is left behind; outcomes that could not be written: 1\n  help: ";
    assert!(ended.stderr.contains(said) && ended.stderr.contains("no room"), "{}", ended.stderr);
}
