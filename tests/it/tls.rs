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
use outbox_tests::server::{Server, Tls};
use tempfile::TempDir;

use crate::cli;

/// After this long something that should have happened has not.
const LIMIT: Duration = Duration::from_secs(60);

/// Whom a server on this machine is called by.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// A server of a database with an authority of its own, and a client certificate in the folder of the files.
struct Stage {
    authority: Authority,
    folder: TempDir,
    server: Server,
    database: TestDatabase,
    scheme: &'static str,
    /// Of every user, with its colon.
    password: &'static str,
}

impl Stage {
    fn new(
        authority: Authority,
        server: Server,
        scheme: &'static str,
        password: &'static str,
        client: &Certificate,
    ) -> Stage {
        let (database, folder) = (TestDatabase::on(&server), tempfile::tempdir().unwrap());
        file(folder.path(), "ca.crt", &authority.pem());
        client.write(folder.path(), "client");
        Stage { authority, folder, server, database, scheme, password }
    }

    /// With a certificate that is as it should be.
    fn encrypted(mut self) -> Stage {
        self.restart(Some(&good(&self.authority)), false);
        self
    }

    fn restart(&mut self, certificate: Option<&Certificate>, is_old: bool) {
        self.server.stop();
        let clients = self.authority.pem();
        let tls = certificate.map(|certificate| Tls { certificate, clients: &clients, is_old });
        self.server.set_tls(tls.as_ref());
        self.server.resume();
    }

    /// The url of a user, with these parameters in which `{}` is the folder of the files.
    fn url(&self, user: &str, parameters: &str) -> String {
        let Stage { scheme, password, .. } = self;
        let place = format!("{user}{password}@{}/{}", self.server.address(), self.database.name());
        let parameters = parameters.replace("{}", &self.folder().display().to_string());
        format!("{scheme}://{place}?{parameters}")
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

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
