//! The mailer, against a real SMTP server (aiosmtpd).

use std::path::{Path, PathBuf};
use std::process::Command;

use outbox_tests::process::{Ended, Process, free_address, program_path};

use super::{LIMIT, daemon, file, python, wait_until};

/// The server, the mails it took, and the folder of the outbox.
struct Post {
    folder: tempfile::TempDir,
    server: Process,
    port: String,
}

fn serve(folder: &Path, port: &str) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/examples/smtp_server.py");
    let mut server = python("aiosmtpd");
    server.arg(script).arg(port).arg(folder.join("mails"));
    Process::start(server)
}

impl Post {
    fn open() -> Post {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("mails")).unwrap();
        let server = serve(folder.path(), "0");
        let line = server.wait_for_line("listens on ", LIMIT);
        Post { folder, server, port: line.replace("listens on ", "") }
    }

    fn email(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program_path("email"));
        command.current_dir(self.folder.path()).env_remove("RUST_LOG").env("NO_COLOR", "1");
        command.env("SMTP_PORT", &self.port).args(arguments);
        command
    }

    /// Enqueues, and returns the message's id.
    fn send(&self, to: &str) -> String {
        let ended = Process::run(self.email(&["send", to, "Your order: 2 × teapot", "Thank you.\n.\nBye."]), LIMIT);
        assert!(ended.status.success(), "{ended:?}");
        ended.stderr.split_once("message.id=").unwrap().1.trim().to_owned()
    }

    fn mails(&self) -> Vec<String> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(self.folder.path().join("mails"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "eml"))
            .collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    fn relay(&self, arguments: &[&str]) -> Ended {
        Process::run(daemon(self.folder.path(), arguments, &[("DATABASE_URL", "sqlite:email.db")]), LIMIT)
    }

    /// What `relay dead list` shows when there are so many.
    fn dead(&self, count: usize) -> String {
        let list = || self.relay(&["dead", "list", "-o", "jsonl"]).stdout;
        wait_until(&format!("{count} dead"), list, |lines| lines.lines().count() == count)
    }
}

#[test]
fn mail_arrives_with_its_words_and_the_id_of_its_message() {
    let post = Post::open();
    let id = post.send("Ada <ada@example.org>");
    let mailer = Process::start(post.email(&[]));
    let mails = wait_until("a mail", || post.mails(), |mails| !mails.is_empty());
    assert_eq!(mails.len(), 1);
    for line in [
        "From: Shop <shop@example.org>",
        "To: Ada <ada@example.org>",
        &format!("Message-ID: <{id}@example.org>"),
        "Thank you.\r\n.\r\nBye.",
    ] {
        assert!(mails[0].contains(line), "`{line}` is missing in\n{}", mails[0]);
    }
    // Not ASCII, hence encoded; `×` is C3 97.
    assert!(mails[0].contains("Subject: ") && mails[0].contains("=?utf-8?"), "{}", mails[0]);
    assert!(mailer.terminate(LIMIT).status.success());
    assert!(post.relay(&["status", "-o", "json"]).stdout.contains("\"pending\": 0"));
}

#[test]
fn refused_for_now_and_accepted_then_is_one_mail() {
    let post = Post::open();
    post.send("busy@example.org");
    let mailer = Process::start(post.email(&[]));
    post.server.wait_for_line("took mail 1 for", LIMIT);
    assert!(mailer.terminate(LIMIT).status.success());
    assert_eq!(post.server.output().matches("asked for busy").count(), 2, "{}", post.server.output());
    assert_eq!(post.mails().len(), 1);
}

#[test]
fn server_that_is_not_there_is_waited_for() {
    let mut post = Post::open();
    // Another port, on which one comes to listen only later.
    post.port = free_address().port().to_string();
    post.send("ada@example.org");
    let mailer = Process::start(post.email(&[]));
    let list = || post.relay(&["messages", "list", "-o", "jsonl"]).stdout;
    wait_until("a failed attempt", list, |lines| lines.contains("\"attempts\":1"));
    let server = serve(post.folder.path(), &post.port);
    server.wait_for_line("took mail 1 for", LIMIT);
    assert!(mailer.terminate(LIMIT).status.success());
}

#[test]
fn refused_for_good_is_a_dead_letter_with_the_servers_words() {
    let post = Post::open();
    post.send("gone@example.org");
    post.send("nobody at all");
    // Who we are is refused, not the mail: this one waits.
    post.send("locked@example.org");
    let mailer = Process::start(post.email(&[]));
    let dead = post.dead(2);
    assert_eq!(dead.matches("\"rejected\"").count(), 2, "{dead}");
    assert!(dead.contains("no such mailbox"), "{dead}");
    assert!(dead.contains("the address of the recipient is not an e-mail address"), "{dead}");
    assert!(!dead.contains("nobody at all"), "{dead}");
    post.server.wait_for_line("asked for locked", LIMIT);
    let list = || post.relay(&["messages", "list", "-o", "jsonl"]).stdout;
    wait_until("it waits", list, |lines| lines.contains("authentication required"));
    assert!(mailer.terminate(LIMIT).status.success());
    assert!(post.mails().is_empty());
    assert_eq!(post.server.output().matches("asked for gone").count(), 1, "a dead letter is not tried again");
}

#[test]
fn server_that_falls_silent_is_given_up_and_tried_again() {
    let post = Post::open();
    post.send("slow@example.org");
    let mut mailer = post.email(&[]);
    mailer.env("SMTP_TIMEOUT_SECS", "1");
    let mailer = Process::start(mailer);
    let list = || post.relay(&["messages", "list", "-o", "jsonl"]).stdout;
    wait_until("it is tried again", list, |lines| lines.contains("\"attempts\":2"));
    assert!(mailer.terminate(LIMIT).status.success());
}

#[test]
fn its_page_names_the_commands_tried_here() {
    let readme = file("email/README.md");
    for command in [
        "cargo run -p email\n",
        "cargo run -p email -- send ada@example.org 'Your order' 'Thank you for the teapot.'",
        "python3 -m aiosmtpd -n -l 127.0.0.1:1025",
    ] {
        assert!(readme.contains(command), "{command}");
    }
    let usage = Process::run(Post::open().email(&["send"]), LIMIT);
    assert!(!usage.status.success() && usage.stderr.contains("usage: email"), "{usage:?}");
}
