//! Trying things out from the command line: a message sent by hand, and a receiver that shows it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use outbox::signature::{Secret, sign};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Process, Signal, free_address, relay};
use serde_json::{Value, json};

use crate::cli::{LIMIT, assert_ended, json, on, run, with};

fn count(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT count(*) FROM outbox_messages")
}

async fn a_message_is_sent_by_hand_with_its_options(database: TestDatabase) {
    database.exec("INSERT INTO outbox_destinations (name, patterns) VALUES ('billing', '[\"order.*\"]')");
    let send = |arguments: &[&str]| on(&database, &[&["send"], arguments].concat());
    let ended = send(&["order.placed", "{\"a\": 1}", "--dry-run"]);
    assert_ended(&ended, 0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("would be sent to billing\n", ""));
    assert_eq!(count(&database), 0);

    let options =
        ["--key", "k", "--header", "X-Tenant: 7", "--dedup-key", "once", "--correlation-id", "c", "-o", "json"];
    let ended = send(&[&["order.placed", "{\"a\": 1}"], &options[..]].concat());
    assert_ended(&ended, 0);
    let sent = json(&ended);
    assert_eq!((&sent["sent"], &sent["destinations"]), (&json!(true), &json!(["billing"])));
    let seq = database.query_i64("SELECT max(seq) FROM outbox_messages");
    assert_eq!(sent["seq"], seq);
    let id = sent["message_id"].as_str().unwrap();
    let shown = json(&on(&database, &["messages", "show", id, "--seq", &seq.to_string(), "--payload", "-o", "json"]));
    assert_eq!((&shown["payload"], &shown["pending"]["key"]), (&json!("{\"a\": 1}"), &json!("k")));
    assert_eq!(shown["headers"], json!({ "x-tenant": "7", "correlation-id": "c" }));
    assert_eq!(shown["pending"]["content_type"], "application/json");

    let ended = send(&[&["order.placed"], &options[..]].concat());
    assert_ended(&ended, 0);
    let again = json(&ended);
    assert_eq!((&again["sent"], &again["message_id"], &again["seq"]), (&json!(false), &json!(id), &Value::Null));
    assert_eq!(count(&database), 1);

    let ended = send(&["user.left", "--delay", "1h"]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.ends_with(", to no destination yet\n"), "{}", ended.stdout);
    assert!(ended.stderr.starts_with("no registered destination wants the topic `user.left`; "), "{}", ended.stderr);
    let ended = send(&["user.left", "--to", "nobody", "--dry-run"]);
    assert!(ended.stderr.starts_with("no relay has registered a destination `nobody`; "), "{}", ended.stderr);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages WHERE deliver_at > created_at"), 1);
}
for_each_database!(a_message_is_sent_by_hand_with_its_options);

#[test]
fn what_can_never_be_sent_is_64_and_enqueues_nothing() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let long = "k".repeat(256);
    for (arguments, said) in [
        (vec!["a b"], "is not a topic"),
        (vec!["a", "--header", "host: x"], "host"),
        (vec!["a", "--to", "Billing"], "Billing"),
        (vec!["a", "@nowhere.json"], "cannot be read from `nowhere.json`"),
        (vec!["a", "--header", "x"], "write it as `name: value`"),
        (vec!["a", "--delay", "soon"], "soon"),
        (vec!["a", "--deliver-at", "tomorrow"], "write it as `2026-"),
        (vec!["a", "--key", &long], "255"),
    ] {
        let ended = on(&database, &[vec!["send"], arguments.clone()].concat());
        assert_ended(&ended, 64);
        assert_eq!(ended.stdout, "");
        assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
    }
    assert_eq!(count(&database), 0);
}

#[test]
fn a_payload_comes_from_stdin_or_from_a_file() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("order.json"), "[1]").unwrap();
    for (payload, expected, content_type) in
        [("@order.json", &b"[1]"[..], "application/json"), ("-", b"\xff\x00", "application/octet-stream")]
    {
        let mut command = relay(["send", "order.placed", payload, "--database-url", database.url(), "-o", "json"]);
        command.current_dir(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"\xff\x00").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let hex: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
        let is_it = format!("lower(hex(payload)) = '{hex}' AND content_type = '{content_type}'");
        assert_eq!(database.query_i64(&format!("SELECT count(*) FROM outbox_messages WHERE {is_it}")), 1, "{payload}");
    }
}

#[test]
fn what_a_relay_delivers_is_shown_by_the_receiver() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let address = free_address();
    let port = address.port().to_string();
    let listen = ["listen", "--port", &port, "--fail-first", "1", "--limit", "2", "-o", "jsonl"];
    let listening = Process::start(relay(listen));
    listening.wait_for_line("listening on ", LIMIT);
    let headers = ["--header", "x-tenant: 7"];
    let ended = on(&database, &[&["send", "order.placed", "{\"a\": 1}", "--key", "k"], &headers[..]].concat());
    assert_ended(&ended, 0);
    let destination = format!(
        "[destinations.billing]\nurl = \"http://{address}/hooks\"\ntopics = [\"**\"]\nretry = [\"1ms\"]\n\
         headers = {{ authorization = {{ env = \"TOKEN\" }} }}\n[health]\nlisten = \"off\"\n"
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("relay.toml"), destination).unwrap();
    let mut command = relay(["run", "--database-url", database.url()]);
    command.current_dir(folder.path()).env("TOKEN", "Bearer s3cret");
    let delivering = Process::start(command);
    let ended = listening.wait(LIMIT);
    assert_ended(&ended, 0);
    assert_ended(&delivering.terminate(LIMIT), 0);
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!((of("attempt"), of("status")), (vec![json!(1), json!(2)], vec![json!(503), json!(200)]));
    assert_eq!(lines[0]["message_id"], lines[1]["message_id"]);
    let last = &lines[1];
    assert_eq!(json!([last["topic"], last["key"], last["destination"]]), json!(["order.placed", "k", "billing"]));
    assert_eq!(json!([last["method"], last["path"], last["body"]]), json!(["POST", "/hooks", "{\"a\": 1}"]));
    assert_eq!((&last["headers"]["x-tenant"], &last["headers"]["authorization"]), (&json!("7"), &json!("(masked)")));
    assert_eq!(count(&database), 0, "it was delivered");
}

/// POSTs in the plainest way there is; returns the status.
fn post(address: SocketAddr, headers: Vec<(&'static str, String)>, body: &'static str) -> u16 {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let mut socket = TcpStream::connect(address).unwrap();
    let head =
        format!("POST / HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn a_receiver_with_a_secret_refuses_what_was_not_signed_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(&["secret", "new"]);
    assert_ended(&made, 0);
    std::fs::write(folder.path().join("secret"), &made.stdout).unwrap();
    let address = free_address();
    let secret = format!("@{}", folder.path().join("secret").display());
    let listening = Process::start(relay(["listen", "--port", &address.port().to_string(), "--secret", &secret]));
    listening.wait_for_line("listening on ", LIMIT);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let signed = |secret: &Secret| {
        let signature = sign([secret], "m1", now, b"{}");
        vec![("webhook-id", "m1".to_owned()), ("webhook-timestamp", now.to_string()), ("webhook-signature", signature)]
    };
    let right = Secret::parse(made.stdout.trim()).unwrap();
    assert_eq!(post(address, signed(&right), "{}"), 200);
    assert_eq!(post(address, signed(&right), "{ }"), 401);
    assert_eq!(post(address, signed(&Secret::generate()), "{}"), 401);
    assert_eq!(post(address, vec![], "\u{1b}[31m"), 401);
    listening.wait_for_line("    \\u{1b}[31m", LIMIT);
    listening.signal(Signal::Int);
    let ended = listening.wait(Duration::from_secs(10));
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout.matches("    signature: right\n").count(), 1, "{}", ended.stdout);
    assert_eq!(ended.stdout.matches(" -> 401").count(), 3, "{}", ended.stdout);
}

#[test]
fn a_receiver_that_cannot_listen_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(&["listen", "--port", &port]);
    assert_ended(&ended, 1);
    assert!(ended.stderr.starts_with(&format!("relay: cannot listen on 127.0.0.1:{port}: ")), "{}", ended.stderr);
    assert!(ended.stderr.contains("\n  help: "), "{}", ended.stderr);
    assert_ended(&run(&["listen", "-o", "json"]), 64);
    assert_ended(&run(&["listen", "--secret", "hunter2"]), 64);
    assert_ended(&with("", &["listen", "--status", "99"]), 64);
}
