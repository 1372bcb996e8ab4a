//! What stands in backticks exists: commands, options, configuration keys, columns, functions, tests, files, variables.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use outbox_tests::process::{Process, relay};

use super::pages::{Page, pages, root};
use super::scripts::{is_known, relay_commands};

const LIMIT: Duration = Duration::from_secs(60);

/// Words of the databases and of other programs, which our sources need not know.
const WORDS_OF_OTHERS: &[&str] = &[
    "autovacuum_naptime",
    "binlog_format",
    "busy_timeout",
    "default_transaction_isolation",
    "fsync",
    "full_page_writes",
    "idle_in_transaction_session_timeout",
    "innodb_flush_log_at_trx_commit",
    "innodb_lock_wait_timeout",
    "innodb_purge_threads",
    "journal_mode",
    "lock_timeout",
    "max_allowed_packet",
    "max_connections",
    "pg_dump",
    "pg_stat_activity",
    "pool_mode",
    "search_path",
    "sql_mode",
    "statement_timeout",
    "sync_binlog",
    "synchronous_commit",
    "synchronous_standby_names",
];

/// Options of other programs.
const OPTIONS_OF_OTHERS: &[&str] = &["--single-transaction", "--workspace"];

/// Every word of the code: a name that is in none of these files does not exist.
fn words_of_the_code() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for folder in ["outbox", "relay", "migrations", "tests", "examples"] {
        collect(&root().join(folder), &mut words);
    }
    words
}

fn collect(folder: &Path, words: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // These files speak of things that do not exist.
        if path.ends_with("tests/it/docs") || path.is_symlink() || path.ends_with("target") {
            continue;
        }
        if path.is_dir() {
            collect(&path, words);
        } else if path.extension().is_some_and(|kind| ["rs", "sql", "py", "toml"].iter().any(|known| kind == *known)) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let split = code.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
            words.extend(split.filter(|word| !word.is_empty()).map(str::to_owned));
        }
    }
}

/// Every option of every command, and the commands' names.
fn options() -> BTreeSet<String> {
    let mut options = BTreeSet::new();
    let mut commands = vec![Vec::<String>::new()];
    while let Some(command) = commands.pop() {
        let arguments = command.iter().map(String::as_str).chain(["--help"]);
        let help = Process::run(relay(arguments), LIMIT).stdout;
        let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').map(str::to_owned);
        options.extend(words.filter(|word| word.starts_with('-')));
        let listed = help.split("\nCommands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
        for name in listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
            commands.push(command.iter().cloned().chain([name.to_owned()]).collect());
        }
    }
    assert!(options.contains("--dry-run") && options.contains("--payload"), "{options:?}");
    options
}

struct Known {
    words: BTreeSet<String>,
    options: BTreeSet<String>,
    sections: BTreeSet<String>,
    variables: BTreeSet<String>,
}

impl Known {
    fn new(pages: &[Page]) -> Known {
        let configuration = pages.iter().find(|page| page.path == "docs/CONFIGURATION.md").unwrap();
        let quoted = configuration.quoted();
        let quoted = || quoted.iter().map(|(_, quoted)| (*quoted).to_owned());
        let is_variable =
            |word: &String| word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        Known {
            words: words_of_the_code(),
            options: options(),
            sections: quoted().filter(|word| word.starts_with('[')).collect(),
            variables: quoted().filter(|word| word.contains('_')).filter(is_variable).collect(),
        }
    }

    /// What in backticks is said of something that is not there.
    fn problem(&self, quoted: &str) -> Option<String> {
        let is_word = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !word.is_empty();
        let is_there = |word: &str| self.words.contains(word) || WORDS_OF_OTHERS.contains(&word);
        if quoted == "relay" || quoted.starts_with("relay ") {
            let unknown = relay_commands(quoted).into_iter().find(|arguments| !is_known(arguments))?;
            return Some(format!("the relay knows no `{}`", unknown.join(" ")));
        }
        if let Some(option) = quoted.split([' ', '=']).next().filter(|word| word.starts_with("--")) {
            let is_there = self.options.contains(option) || OPTIONS_OF_OTHERS.contains(&option);
            return (!is_there).then(|| format!("no command takes `{option}`"));
        }
        if let Some(section) = quoted.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let is_section = !section.is_empty() && section.split('.').all(is_word);
            let named = section.strip_prefix("destinations.").map(|rest| match rest.split_once('.') {
                Some((_, rest)) => format!("[destinations.NAME.{rest}]"),
                None => "[destinations.NAME]".to_owned(),
            });
            let is_there = self.sections.contains(&named.unwrap_or_else(|| quoted.to_owned()));
            return (is_section && !is_there).then(|| format!("there is no section `{quoted}`"));
        }
        if quoted.starts_with("RELAY__") || quoted == "RELAY_CONFIG" || quoted == "DATABASE_URL" {
            let mut parts: Vec<&str> = quoted.split("__").collect();
            if parts.get(1) == Some(&"DESTINATIONS") && parts.len() > 3 {
                parts[2] = "NAME";
            }
            let is_there = quoted == "RELAY__" || self.variables.contains(&parts.join("__"));
            return (!is_there).then(|| format!("nothing reads the variable `{quoted}`"));
        }
        let folders = ["outbox/", "relay/", "migrations/", "tests/", "examples/", "docs/", ".ci/"];
        if folders.iter().any(|folder| quoted.starts_with(folder)) {
            let path = quoted.split(' ').next().unwrap_or_default().trim_end_matches('/');
            return (!root().join(path).exists()).then(|| format!("there is no file `{path}`"));
        }
        if quoted.contains("::") {
            let path = quoted.split(['(', '!', '<', '{']).next().unwrap_or_default();
            let ours = ["outbox::", "relay::", "Relay::", "Envelope::", "Context::", "HandlerError::", "Handler::"];
            if !ours.iter().any(|prefix| path.starts_with(prefix)) {
                return None;
            }
            let missing = path.split("::").find(|part| !part.is_empty() && !is_there(part))?;
            return Some(format!("the code knows no `{missing}`"));
        }
        let mut parts = quoted.split('.');
        if let (Some(section), Some(key), None) = (parts.next(), parts.next(), parts.next())
            && self.sections.contains(&format!("[{section}]"))
            && is_word(key)
        {
            return (!is_there(key)).then(|| format!("there is no key `{quoted}`"));
        }
        let looks_ours = is_word(quoted) && quoted.contains('_') && quoted.bytes().any(|b| b.is_ascii_lowercase());
        (looks_ours && !is_there(quoted)).then(|| format!("the code knows no `{quoted}`"))
    }
}

#[test]
fn what_is_named_exists() {
    let pages = pages();
    let known = Known::new(&pages);
    let quoted = pages.iter().flat_map(Page::quoted);
    let problems: Vec<String> =
        quoted.filter_map(|(place, quoted)| Some(format!("{place}: {}", known.problem(quoted)?))).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_does_not_exist_is_found() {
    let known = Known::new(&pages());
    for bad in [
        "relay dead bury 17",
        "relay status --colour",
        "--colour never",
        "[teleport]",
        "[destinations.billing.teleport]",
        "relay.leese",
        "RELAY__RELAY__LEESE",
        "outbox_messages_pending_total",
        "outbox::teleport",
        "outbox::inbox::tvice",
        "a_test_that_nobody_wrote",
        "tests/it/nothing.rs",
    ] {
        assert!(known.problem(bad).is_some(), "{bad}");
    }
    for good in [
        "relay",
        "relay dead redrive 17 --dry-run",
        "--dry-run",
        "[database]",
        "[destinations.billing.retry]",
        "relay.lease",
        "RELAY__DESTINATIONS__BILLING__TIMEOUT",
        "outbox_messages",
        "outbox::inbox::once",
        "what_is_rolled_back_is_never_delivered_and_what_is_committed_arrives_as_it_was",
        "tests/it/main.rs",
        "postgres://user:password@host:5432/database",
        "order.placed",
        "webhook-id",
        "synchronous_commit = on",
    ] {
        assert_eq!(known.problem(good), None, "{good}");
    }
}
