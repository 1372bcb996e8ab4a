//! The examples do what their pages say: each is started as its README tells, asked, stopped, and looked at.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use outbox_tests::process::{Ended, Process, program_path, relay};

mod email;
mod http;
mod orders;
mod producers;
mod quickstart;
mod receiver;
mod sidecar;
mod signups;

const LIMIT: Duration = Duration::from_secs(60);

/// The folder of an example.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// A file of an example.
fn file(name: &str) -> String {
    let path = folder("").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An example that listens, and where.
struct Service {
    process: Process,
    address: String,
}

impl Service {
    /// Starts it in this folder, on a port of its own.
    fn start(name: &str, folder: &Path, variables: &[(&str, &str)]) -> Service {
        let mut command = Command::new(program_path(name));
        command.current_dir(folder).env_remove("RUST_LOG").env("NO_COLOR", "1").env("LISTEN", "127.0.0.1:0");
        command.envs(variables.iter().copied());
        let process = Process::start(command);
        let line = process.wait_for_line("address=", LIMIT);
        let address = line.split_once("address=").unwrap().1.trim().to_owned();
        Service { process, address }
    }

    /// Does what a `curl` line of a README says, here instead of there.
    fn curl(&self, line: &str) -> http::Answer {
        http::curl(line, &self.address)
    }

    fn get(&self, path: &str) -> http::Answer {
        http::call(&self.address, "GET", path, &[], b"")
    }

    fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> http::Answer {
        http::call(&self.address, "POST", path, headers, body)
    }

    /// Asks it to end, which it must do in order.
    fn stop(self) -> Ended {
        let ended = self.process.terminate(LIMIT);
        assert!(ended.status.success(), "{ended:?}");
        ended
    }
}

/// The lines of a README's `sh` blocks that begin with this program, continued lines joined.
fn lines(readme: &str, program: &str) -> Vec<String> {
    let blocks = readme.split("\n```sh\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
    let joined: Vec<String> = blocks.map(|(block, _)| block.replace(" \\\n", " ")).collect();
    let all = joined.iter().flat_map(|block| block.lines());
    all.filter(|line| line.split(' ').next() == Some(program)).map(str::to_owned).collect()
}

/// Runs the daemon with these arguments in this folder, whose `relay.toml` it finds, without listening for health.
fn daemon(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = relay(arguments);
    command.current_dir(folder).env("RELAY__HEALTH__LISTEN", "off").envs(variables.iter().copied());
    command
}

/// A Python that has this module. Modules of Debian's packages are seen by Debian's own Python only.
pub(crate) fn python(module: &str) -> Command {
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let tried = Command::new(python).args(["-c", &format!("import {module}")]).output();
        tried.is_ok_and(|output| output.status.success())
    });
    Command::new(found.unwrap_or_else(|| {
        panic!("no Python with the module `{module}`.\n  help: `tests/run --install` installs it on Debian")
    }))
}

/// What cargo says this package is built of, without its build and test tools.
fn dependencies(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(folder("")).args(["tree", "--locked", "--edges", "normal", "--prefix", "none"]).args(arguments);
    let ended = Process::run(command, LIMIT);
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

/// Looks again and again until it is so.
fn wait_until<T: std::fmt::Debug>(wanted: &str, look: impl Fn() -> T, is_so: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        let seen = look();
        if is_so(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{wanted}: not within {LIMIT:?}; last seen: {seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn relay_check_finds_nothing_wrong_with_any_configuration() {
    let secret = outbox::signature::Secret::generate().expose();
    let variables = [("DATABASE_URL", "postgres://localhost/shop"), ("WEBHOOK_SECRET", secret.as_str())];
    let mut seen = 0;
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let configuration = entry.unwrap().path().join("relay.toml");
        let Ok(text) = std::fs::read_to_string(&configuration) else { continue };
        let place = tempfile::tempdir().unwrap();
        let text = if text.contains("{ file = ") {
            sidecar::with_secret(&text, place.path(), "postgres://relay@database/shop")
        } else {
            text
        };
        std::fs::write(place.path().join("relay.toml"), text).unwrap();
        let mut check = relay(["check"]);
        check.current_dir(place.path()).envs(variables);
        let ended = Process::run(check, LIMIT);
        assert!(ended.status.success(), "{}: {ended:?}", configuration.display());
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn every_example_has_a_page_that_the_main_one_can_lead_to() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let path = entry.unwrap().path();
        let has_page = path.join("README.md").is_file();
        let says_so_itself =
            std::fs::read_to_string(path.join("src/main.rs")).is_ok_and(|text| text.starts_with("//! "));
        assert!(has_page || says_so_itself, "{} does not say what it is", path.display());
        seen += 1;
    }
    assert!(seen >= 7, "{seen}");
}

#[test]
fn postgres_over_diesel_async_needs_no_c_library() {
    let tree = dependencies(&["-p", "outbox", "--no-default-features", "--features", "postgres,async"]);
    assert!(tree.contains("tokio-postgres v") || tree.contains("diesel-async v"), "{tree}");
    assert!(!tree.contains("-sys v"), "{tree}");
}
