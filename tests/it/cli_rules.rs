//! What holds for every command of the command line, so that nobody has to look up whether it holds for this one.
//!
//! The commands are those clap knows. A new one fails here until it is entered in the table, and then it is held to the
//! same rules: dry runs change nothing, destruction asks first, lists come in every format, failures have their numbers.

use std::collections::BTreeSet;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::Ended;
use serde_json::Value;

use crate::cli::{DESTINATION, assert_ended, json, on, run, with};
use crate::cli_messages::{enqueue, newest};
use crate::dead_letters::Plant;

/// A command as it is tried here.
struct Case {
    /// Its name.
    path: &'static str,
    /// What else it needs; `ID` is a waiting message, `LETTER` a dead letter.
    arguments: &'static [&'static str],
    does: Does,
    /// True when it asks the database.
    asks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Shows many things.
    Lists,
    /// Shows one thing, or works until it is told to stop.
    Shows,
    /// Changes what can be changed back.
    Changes,
    /// Loses something for good.
    Destroys,
}

use Does::{Changes, Destroys, Lists, Shows};

const fn case(path: &'static str, arguments: &'static [&'static str], does: Does, asks: bool) -> Case {
    Case { path, arguments, does, asks }
}

const CASES: &[Case] = &[
    case("run", &["--drain"], Shows, true),
    case("migrate up", &[], Changes, true),
    case("migrate status", &[], Lists, true),
    case("migrate print", &["--backend", "sqlite"], Shows, false),
    case("check", &[], Shows, false),
    case("status", &[], Shows, true),
    case("explain", &["ID"], Shows, true),
    case("messages list", &[], Lists, true),
    case("messages show", &["ID"], Shows, true),
    case("messages cancel", &["ID"], Destroys, true),
    case("destinations list", &[], Lists, true),
    case("destinations show", &["billing"], Shows, true),
    case("destinations ping", &["billing"], Shows, false),
    case("destinations remove", &["billing", "--waiting", "dead"], Destroys, true),
    case("destinations pause", &["billing"], Changes, true),
    case("destinations resume", &["audit"], Changes, true),
    case("dead list", &[], Lists, true),
    case("dead groups", &[], Lists, true),
    case("dead export", &[], Shows, true),
    case("dead show", &["LETTER"], Shows, true),
    case("dead redrive", &["LETTER"], Changes, true),
    case("dead discard", &["LETTER"], Destroys, true),
    case("keys list", &[], Lists, true),
    case("keys release", &["billing", "order-2"], Changes, true),
    case("send", &["order.placed"], Changes, true),
    case("listen", &["--port", "0", "--limit", "1"], Shows, false),
    case("secret new", &[], Shows, false),
    case("secret public", &["env:KEY"], Shows, false),
    case("secret sign", &["--secret", "env:KEY", "--id", "m1", "{}"], Shows, false),
    case(
        "secret verify",
        &["--secret", "env:KEY", "--id", "m1", "--timestamp", "1", "--signature", "v1,", "{}"],
        Shows,
        false,
    ),
    case("config example", &[], Shows, false),
    case("config schema", &[], Shows, false),
    case("config show", &[], Shows, false),
    case("completions", &["bash"], Shows, false),
    case("bench drain", &[], Shows, false),
];

/// The commands that do something themselves, as clap knows them.
fn commands() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![(String::new(), relay::cli::command())];
    while let Some((path, command)) = left.pop() {
        let below: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
        if below.is_empty() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            found.push((path.clone(), help));
        }
        for command in below {
            left.push((format!("{path} {}", command.get_name()).trim().to_owned(), command.clone()));
        }
    }
    found.sort();
    found
}

/// An outbox with a message of each kind.
struct Stage {
    database: TestDatabase,
    waiting: String,
    letter: String,
}

impl Stage {
    fn new() -> Stage {
        let database = TestDatabase::create(Kind::Sqlite);
        assert_ended(&on(&database, &["migrate", "up"]), 0);
        database.exec(
            "INSERT INTO outbox_destinations (name, patterns, paused_at, paused_by) \
             VALUES ('audit', '[\"**\"]', 0, 'ada'), ('billing', '[\"order.*\"]', NULL, NULL)",
        );
        enqueue(&database, "order.placed", "{}");
        Plant::new(900).waiting(&database, false);
        let waiting = newest(&database, "outbox_deliveries", "message_id", "id");
        let letter = Plant::new(901).dead(&database).to_string();
        Plant::new(902).dead(&database);
        Plant::blocking(903, "order-2").dead(&database);
        Stage { database, waiting, letter }
    }

    fn run(&self, case: &Case, more: &[&str]) -> Ended {
        on(&self.database, &[&self.words(case)[..], more].concat())
    }

    fn words<'a>(&'a self, case: &Case) -> Vec<&'a str>
    where
        Case: 'a,
    {
        let named = |word: &'static str| match word {
            "ID" => self.waiting.as_str(),
            "LETTER" => self.letter.as_str(),
            other => other,
        };
        case.path.split(' ').map(named).chain(case.arguments.iter().map(|word| named(word))).collect()
    }

    /// Everything in all tables.
    fn rows(&self) -> Vec<String> {
        let texts = |select: &str| self.database.query_text(select).into_iter().map(Option::unwrap).collect::<Vec<_>>();
        let mut rows = Vec::new();
        for table in texts("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'outbox%' ORDER BY name")
        {
            let columns = texts(&format!("SELECT name FROM pragma_table_info('{table}')"));
            let columns: Vec<String> = columns.iter().map(|column| format!("quote({column})")).collect();
            let columns = columns.join(" || ',' || ");
            rows.extend(texts(&format!("SELECT {columns} FROM {table}")).iter().map(|row| format!("{table} {row}")));
        }
        rows
    }
}

fn cases(does: &[Does]) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| does.contains(&case.does))
}

#[test]
fn every_command_is_held_to_the_rules() {
    let known: BTreeSet<String> = commands().into_iter().map(|(path, _)| path).collect();
    let tried: BTreeSet<String> = CASES.iter().map(|case| case.path.to_owned()).collect();
    assert_eq!(known, tried, "enter the command into `CASES`");
}

#[test]
fn every_command_shows_an_example_of_itself() {
    for (path, help) in commands() {
        assert!(
            help.contains(&format!("  relay {path}")) || help.contains(&format!("| relay {path}")),
            "`{path}`: {help}"
        );
    }
}

#[test]
fn every_example_is_a_command_line() {
    let mut all: Vec<String> = commands().into_iter().map(|(_, help)| help).collect();
    all.push(relay::cli::command().get_after_help().map(ToString::to_string).unwrap());
    let mut tried = 0;
    for line in all.iter().flat_map(|help| help.lines()).filter(|line| line.starts_with("  ")) {
        let from = line.find("relay ").unwrap_or_else(|| panic!("no command in `{line}`"));
        let words: Vec<String> = words(&line[from..]);
        let parsed = relay::cli::command().try_get_matches_from(&words);
        assert!(parsed.is_ok(), "`{line}` as {words:?}: {}", parsed.unwrap_err());
        tried += 1;
    }
    assert!(tried > CASES.len(), "{tried}");
}

/// The words of one command, as a shell reads it; what follows two blanks is an explanation.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quote, mut last) = (None, 'x');
    for c in line.chars() {
        match (quote, c) {
            (None, '|' | '>') => break,
            (None, ' ') if last == ' ' => break,
            (None, ' ') => words.push(String::new()),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (_, c) => words.last_mut().unwrap().push(c),
        }
        last = c;
    }
    words.retain(|word| !word.is_empty());
    for word in &mut words {
        if word == "MESSAGE_ID" {
            "0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10".clone_into(word);
        }
    }
    words
}

#[test]
fn a_dry_run_changes_nothing() {
    for case in cases(&[Changes, Destroys]) {
        let stage = Stage::new();
        let before = stage.rows();
        let ended = stage.run(case, &["--dry-run"]);
        assert_ended(&ended, 0);
        assert_eq!(stage.rows(), before, "{}", case.path);
        // Something was there to be done, or the test proves nothing.
        let ended = stage.run(case, &["--yes"]);
        assert_ended(&ended, 0);
        assert!(case.path == "migrate up" || stage.rows() != before, "{} changes nothing at all", case.path);
    }
}

#[test]
fn a_dry_run_is_refused_where_it_could_not_be_kept() {
    let stage = Stage::new();
    let before = stage.rows();
    for case in cases(&[Lists, Shows]) {
        let ended = stage.run(case, &["--dry-run"]);
        assert_ended(&ended, 64);
        let said = format!("relay: `relay {}` has no --dry-run: nothing was done\n  help: ", case.path);
        assert!(ended.stderr.starts_with(&said), "{}: {}", case.path, ended.stderr);
        assert_eq!((ended.stdout.as_str(), stage.rows()), ("", before.clone()), "{}", case.path);
    }
}

#[test]
fn a_limit_is_kept_or_refused() {
    let kept = ["dead discard", "dead export", "dead groups", "dead list", "dead redrive", "destinations list"];
    let kept = [&kept[..], &["keys list", "listen", "messages list"]].concat();
    let stage = Stage::new();
    for case in CASES.iter().filter(|case| !kept.contains(&case.path)) {
        let ended = stage.run(case, &["--limit", "1"]);
        assert_ended(&ended, 64);
        let said = format!("relay: `relay {}` has no --limit: nothing was done\n  help: ", case.path);
        assert!(ended.stderr.starts_with(&said), "{}: {}", case.path, ended.stderr);
    }
    for case in cases(&[Lists]).filter(|case| kept.contains(&case.path)) {
        let ended = stage.run(case, &["--limit", "1", "-o", "jsonl"]);
        assert_ended(&ended, 0);
        assert_eq!(ended.stdout.lines().count(), 1, "{}", case.path);
    }
}

#[test]
fn an_empty_actor_or_reason_was_not_given() {
    for case in cases(&[Changes, Destroys]).filter(|case| !["migrate up", "send"].contains(&case.path)) {
        let stage = Stage::new();
        assert_ended(&stage.run(case, &["--yes", "--actor", "", "--reason", " "]), 0);
        let by = "SELECT count(*) FROM outbox_audit WHERE actor LIKE '%@%' AND reason IS NULL";
        assert_eq!(stage.database.query_i64(by), 1, "{}", case.path);
    }
}

#[test]
fn a_destination_that_nobody_registered_is_told_apart_from_one_for_which_nothing_waits() {
    let stage = Stage::new();
    stage.database.exec("DELETE FROM outbox_dead_letters");
    for case in
        cases(&[Lists]).filter(|case| ["messages list", "dead list", "dead groups", "keys list"].contains(&case.path))
    {
        let ended = stage.run(case, &["--destination", "biling"]);
        assert_ended(&ended, 0);
        assert_eq!(ended.stderr, "no relay has registered a destination `biling` - was `billing` meant?\n");
        let ended = stage.run(case, &["--destination", "audit"]);
        assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{}", case.path);
    }
}

#[test]
fn nothing_is_lost_unless_somebody_says_yes() {
    for case in cases(&[Destroys]) {
        let stage = Stage::new();
        let before = stage.rows();
        let ended = stage.run(case, &[]);
        assert_ended(&ended, 64);
        assert_eq!((ended.stdout.as_str(), stage.rows()), ("", before), "{}", case.path);
        assert!(ended.stderr.contains("pass --yes to do it, or --dry-run"), "{}: {}", case.path, ended.stderr);
    }
}

#[test]
fn whoever_changes_something_is_named_in_the_audit() {
    for case in cases(&[Changes, Destroys]).filter(|case| !["migrate up", "send"].contains(&case.path)) {
        let stage = Stage::new();
        assert_ended(&stage.run(case, &["--yes", "--actor", "ada", "--reason", "asked for"]), 0);
        let by_ada = "SELECT count(*) FROM outbox_audit WHERE actor = 'ada' AND reason = 'asked for'";
        assert_eq!(stage.database.query_i64(by_ada), 1, "{}", case.path);
    }
}

#[test]
fn what_is_listed_comes_in_every_format_and_alone() {
    let stage = Stage::new();
    for case in cases(&[Lists]) {
        let table = stage.run(case, &[]);
        let (shown, lines) = (stage.run(case, &["-o", "json"]), stage.run(case, &["-o", "jsonl"]));
        for ended in [&table, &shown, &lines] {
            assert!(matches!(ended.status.code(), Some(0 | 2)), "{}: {ended:?}", case.path);
        }
        let shown = json(&shown);
        let lines: Vec<Value> = lines.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!lines.is_empty(), "{} shows nothing", case.path);
        assert_eq!(shown.as_array(), Some(&lines), "{}", case.path);
        assert_eq!(table.stdout.lines().count(), lines.len() + 1, "{}: {}", case.path, table.stdout);
    }
}

#[test]
fn filters_are_the_same_everywhere() {
    let all = ["contains", "destination", "error", "group", "key", "since", "topic", "until"];
    for (path, expected) in [
        ("dead list", &all[..]),
        ("dead groups", &all),
        ("dead export", &all),
        ("dead redrive", &all),
        ("dead discard", &all),
        // A group is what dead letters died of.
        ("messages list", &["contains", "destination", "error", "key", "since", "topic", "until"]),
    ] {
        let mut command = relay::cli::command();
        for name in path.split(' ') {
            command = command.find_subcommand(name).unwrap().clone();
        }
        let options = command.get_arguments().filter_map(|argument| argument.get_long());
        let mut filters: Vec<&str> = options.filter(|name| all.contains(name)).collect();
        filters.sort_unstable();
        assert_eq!(filters, expected, "{path}");
    }
}

#[test]
fn a_database_that_fails_has_its_own_number_everywhere() {
    let stage = Stage::new();
    for case in CASES.iter().filter(|case| case.asks) {
        let words = stage.words(case);
        let ended = with(DESTINATION, &[&["--database-url", "postgres://127.0.0.1:9/shop"], &words[..]].concat());
        assert_ended(&ended, 69);
        let ended = with(DESTINATION, &[&["--database-url", "postgres://127.0.0.1:port/shop"], &words[..]].concat());
        assert_ended(&ended, 78);
        let ended = with(DESTINATION, &words);
        assert_ended(&ended, 78);
        assert_eq!(ended.stdout, "", "{}", case.path);
        assert!(ended.stderr.contains("help: set DATABASE_URL"), "{}: {}", case.path, ended.stderr);
    }
}

#[test]
fn an_option_that_does_not_exist_is_64_everywhere() {
    for case in CASES {
        let mut words: Vec<&str> = case.path.split(' ').collect();
        words.push("--frobnicate");
        let ended = run(&words);
        assert_ended(&ended, 64);
        assert_eq!(ended.stdout, "");
    }
}
