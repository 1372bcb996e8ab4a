//! `docs/CLI.md` is what a person sees: every session in it is run, and compared with what is written there.
//!
//! A session is a block of ```` ```console ````. Its lines that begin with `$ ` are given to a shell, one after another,
//! in a folder with the configuration and the outbox of [`Scene`]; what follows a command is what came on both its
//! outputs. `exit=N` behind `console` is how the last command ends. A command that ends with `&` stays in the background
//! until the session is over.
//!
//! What differs from run to run (ids that are drawn, times, spans, rates) is compared by its kind alone, and so is the
//! width of columns. `OUTBOX_REWRITE=1` writes what was seen into the documentation and the snapshot of the help texts.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{free_address, relay, relay_path};

use crate::cli::{assert_ended, on, run};

/// Where the documentation lets a receiver listen; replaced by a port that is free.
const PORT: &str = "8080";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rewrites() -> bool {
    std::env::var_os("OUTBOX_REWRITE").is_some()
}

/// A folder with `relay.toml` and an outbox in the middle of its life.
struct Scene {
    database: TestDatabase,
    folder: tempfile::TempDir,
    port: String,
    over: Arc<AtomicBool>,
    heart: Option<JoinHandle<()>>,
}

impl Scene {
    fn new() -> Scene {
        let database = TestDatabase::create(Kind::Sqlite);
        assert_ended(&on(&database, &["migrate", "up"]), 0);
        database.exec(include_str!("cli_docs.sql"));
        let folder = tempfile::tempdir().unwrap();
        let port = free_address().port().to_string();
        let configuration = include_str!("cli_docs.toml").replace(PORT, &port);
        std::fs::write(folder.path().join("relay.toml"), configuration).unwrap();
        // The relay of the scene lives: its beat rises.
        let over = Arc::new(AtomicBool::new(false));
        let (until, mut conn) = (over.clone(), database.sqlite());
        // Nothing depends on its writes being on the disk, and a busy disk must not stop the heart.
        conn.batch_execute("PRAGMA synchronous = OFF").unwrap();
        let heart = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                // The session may hold the lock for a moment: then the next beat comes through.
                let _ = conn.batch_execute("UPDATE outbox_relays SET beat = beat + 1 WHERE name = 'shop-1'");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Scene { database, folder, port, over, heart: Some(heart) }
    }

    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &line.replace(PORT, &self.port)]).current_dir(self.folder.path());
        let programs = relay_path().parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let own = std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("RELAY_"));
        own.for_each(|name| {
            command.env_remove(name);
        });
        command.env("PATH", format!("{programs}:{path}")).env("DATABASE_URL", self.database.url());
        command.env("USER", "ada").env("HOSTNAME", "laptop").env("NO_COLOR", "1").env_remove("RUST_LOG");
        command.stdin(Stdio::null());
        command
    }

    /// Runs the command; returns what a terminal would show, and how it ended.
    fn run(&self, line: &str) -> (String, i32) {
        let output = self.shell(&format!("exec 2>&1; {line}")).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        let path = self.database.url();
        let shown = shown.replace(path, "sqlite:shop.db").replace(path.trim_start_matches("sqlite:"), "shop.db");
        (shown.replace(&format!(":{}", self.port), &format!(":{PORT}")), output.status.code().unwrap_or(-1))
    }

    /// Starts what stays in the background; waits until it listens.
    fn start(&self, line: &str) -> Background {
        let line = line.trim_end_matches('&').trim();
        let child = self.shell(&format!("exec {line}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(90);
        let address = format!("127.0.0.1:{}", self.port);
        while std::net::TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "`{line}` does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Background(child)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(heart) = self.heart.take() {
            heart.join().unwrap();
        }
    }
}

struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The document, cut where sessions begin and end; every second piece is a session with its opening line.
fn pieces(document: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for line in document.split_inclusive('\n') {
        let inside = pieces.len() % 2 == 0;
        match (inside, line.trim_end()) {
            (false, opening) if opening.starts_with("```console") => pieces.push(line.to_owned()),
            (true, "```") => pieces.push(line.to_owned()),
            _ => pieces.last_mut().unwrap().push_str(line),
        }
    }
    pieces
}

/// The session as it goes here and now.
fn played(session: &str) -> String {
    let scene = Scene::new();
    let (opening, lines) = session.split_once('\n').unwrap();
    let (mut seen, mut ended, mut background) = (format!("{opening}\n"), 0, Vec::new());
    for command in lines.lines().filter_map(|line| line.strip_prefix("$ ")) {
        seen.push_str(&format!("$ {command}\n"));
        // Without its comment.
        let line = command.split(" # ").next().unwrap_or(command);
        if line.ends_with('&') {
            background.push(scene.start(line));
            continue;
        }
        let (shown, exit) = scene.run(line);
        seen.push_str(&shown);
        ended = exit;
    }
    let expected = opening.split("exit=").nth(1).map_or(0, |number| number.trim().parse().unwrap());
    assert_eq!(ended, expected, "the session\n{session}\nended with {ended}; it showed\n{seen}");
    seen
}

/// The text with whatever differs from run to run replaced by its kind.
fn settled(text: &str) -> String {
    text.lines().map(|line| if line.starts_with("$ ") { line.to_owned() } else { settled_line(line) }).collect()
}

fn settled_line(line: &str) -> String {
    // Two words on both sides of a wide column are as far apart as on both sides of a narrow one.
    let words = line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let pieces = words.split_inclusive([' ', '"', ',', '(', ')', '`']).map(|piece| {
        let word = piece.trim_end_matches([' ', '"', ',', '(', ')', '`']);
        format!("{}{}", kind(word), &piece[word.len()..])
    });
    pieces.chain(["\n".to_owned()]).collect()
}

fn kind(word: &str) -> String {
    let core = word.trim_matches([':', ';', '.', '[', ']', '{', '}']);
    if core.is_empty() {
        return word.to_owned();
    }
    let is_planted = core.starts_with("0199c0de-");
    let name = if uuid::Uuid::parse_str(core).is_ok() && !is_planted {
        "<id>"
    } else if chrono::DateTime::parse_from_rfc3339(core).is_ok() {
        "<time>"
    } else if relay::duration::parse(core).is_ok() {
        "<span>"
    } else if ["whsec_", "whsk_", "whpk_"].iter().any(|prefix| core.starts_with(prefix)) {
        "<secret>"
    } else if [44, 88].contains(&core.len()) && core.ends_with('=') {
        "<signature>"
    } else if core.bytes().all(|b| b.is_ascii_digit() || b == b'.') && core.len() > 2 {
        "<number>"
    } else {
        return word.to_owned();
    };
    word.replace(core, name)
}

#[test]
fn every_session_goes_as_it_is_written() {
    let file = root().join("docs/CLI.md");
    let document = std::fs::read_to_string(&file).unwrap();
    let pieces = pieces(&document);
    assert!(pieces.len() > 20, "sessions were not found");
    let mut rewritten = String::new();
    for (n, piece) in pieces.iter().enumerate() {
        if n % 2 == 0 {
            rewritten.push_str(piece);
            continue;
        }
        let seen = played(piece);
        let is_right = settled(&seen) == settled(piece);
        rewritten.push_str(if is_right { piece } else { &seen });
        assert!(
            is_right || rewrites(),
            "this session of docs/CLI.md\n{piece}\nnow goes\n{seen}\nhelp: OUTBOX_REWRITE=1 writes it down\n{}\n{}",
            settled(piece),
            settled(&seen)
        );
    }
    if rewritten != document {
        std::fs::write(&file, rewritten).unwrap();
    }
}

#[test]
fn every_command_has_its_session() {
    let document = std::fs::read_to_string(root().join("docs/CLI.md")).unwrap();
    for path in paths() {
        assert!(document.contains(&format!("`relay {path}`")), "docs/CLI.md does not speak of `relay {path}`");
        let is_shown = document.lines().any(|line| line.starts_with("$ ") && line.contains(&format!("relay {path}")));
        assert!(is_shown, "docs/CLI.md does not show `relay {path}`");
    }
}

/// All commands, those that only group others included.
fn all() -> Vec<(String, bool)> {
    let (mut found, mut left) = (Vec::new(), vec![(String::new(), relay::cli::command())]);
    while let Some((path, command)) = left.pop() {
        let below: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
        found.push((path.clone(), below.is_empty()));
        left.extend(below.iter().rev().map(|command| {
            let path = format!("{path} {}", command.get_name()).trim().to_owned();
            (path, (*command).clone())
        }));
    }
    found
}

/// The commands that do something themselves.
fn paths() -> Vec<String> {
    all().into_iter().filter(|(_, does)| *does).map(|(path, _)| path).collect()
}

#[test]
fn help_reads_as_it_did() {
    let mut seen = String::new();
    for (path, _) in all() {
        let arguments: Vec<&str> = path.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
        let ended = run(&arguments);
        assert_ended(&ended, 0);
        assert_eq!(ended.stderr, "");
        // The options every command has stand in the first help text.
        let text = ended.stdout.split("\nGlobal options:").next().unwrap_or_default();
        let rest = ended.stdout.split("\nGlobal options:").nth(1).unwrap_or_default();
        let examples = rest.find("\nExample").map_or("", |at| &rest[at..]);
        let shown = if path.is_empty() { ended.stdout.clone() } else { format!("{text}{examples}") };
        seen.push_str(&format!("==== relay {path}\n{shown}\n"));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/cli_help.txt");
    if rewrites() {
        std::fs::write(&file, &seen).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let difference = written.lines().zip(seen.lines()).find(|(written, seen)| written != seen);
    assert!(written == seen, "help has changed: {difference:?}\nhelp: OUTBOX_REWRITE=1 writes it down");
}

#[test]
fn help_is_the_same_however_it_is_asked_for() {
    let command = |arguments: &[&str]| relay(arguments).output().unwrap().stdout;
    assert_eq!(command(&["help"]), command(&["--help"]));
    assert_eq!(command(&["help", "dead", "list"]), command(&["dead", "list", "--help"]));
}

#[test]
fn what_differs_from_run_to_run_is_compared_by_its_kind() {
    let text = "sent 01a20534-4872-7619-bd77-38e9e4d2fee9, number 1 41ms ago  (2026-11-22T10:00:00Z)\n$ a  b 5m";
    assert_eq!(settled(text), "sent <id>, number 1 <span> ago (<time>)\n$ a  b 5m");
    assert_eq!(settled("{\"at\":\"2026-11-22T10:00:00Z\",\"n\":1}"), "{\"at\":\"<time>\",\"n\":1}\n");
    assert_eq!(settled("0199c0de-0000-7000-8000-000000000001"), "0199c0de-0000-7000-8000-000000000001\n");
}
