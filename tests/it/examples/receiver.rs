//! The receiver, called by the real daemon and by those it must not believe.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use outbox::signature::{self, Secret};
use outbox_tests::process::Process;
use serde_json::json;

use super::{LIMIT, Service, daemon, file, http, lines};

const ORDER: &[u8] = br#"{"order_id": 7, "customer": "ada", "total_cents": 4200}"#;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Sends a request that is signed, as of this second, with this secret.
fn signed(service: &Service, secret: &Secret, id: &str, at: u64, body: &[u8]) -> http::Answer {
    let signature = signature::sign([secret], id, at, body);
    let at = at.to_string();
    let headers = [(signature::ID, id), (signature::TIMESTAMP, &at), (signature::SIGNATURE, &signature)];
    service.post("/hooks/orders", &headers, body)
}

fn start(folder: &Path, secrets: &[&Secret]) -> Service {
    let secrets: Vec<String> = secrets.iter().map(|secret| secret.expose()).collect();
    Service::start("receiver", folder, &[("WEBHOOK_SECRET", &secrets.join(" "))])
}

fn configured(folder: &Path, service: &Service) {
    let configuration = file("receiver/relay.toml");
    assert!(configuration.contains("127.0.0.1:4000"));
    std::fs::write(folder.join("relay.toml"), configuration.replace("127.0.0.1:4000", &service.address)).unwrap();
}

#[test]
fn its_page_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::generate();
    let service = start(folder.path(), &[&secret]);
    configured(folder.path(), &service);
    let readme = file("receiver/README.md");

    // The commands of the second shell, as they stand there.
    let relay = outbox_tests::process::relay_path();
    let path = format!("{}:{}", relay.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let block = readme.split("```sh\n").find(|block| block.starts_with("relay migrate up")).unwrap();
    let block = block.split("```").next().unwrap();
    let mut shell = std::process::Command::new("bash");
    shell.args(["-euc", block]).current_dir(folder.path()).env("PATH", path);
    shell.env("RELAY__HEALTH__LISTEN", "off").env("WEBHOOK_SECRET", secret.expose()).env_remove("DATABASE_URL");
    let ended = Process::run(shell, LIMIT);
    assert!(ended.status.success(), "{ended:?}\n{}", service.process.output());

    let [balances, unsigned] = lines(&readme, "curl").try_into().unwrap();
    assert_eq!(service.curl(&balances).json(), json!([["ada", 5700]]));
    assert_eq!(service.curl(&unsigned).status, 401);
    assert_eq!(service.curl(&balances).json(), json!([["ada", 5700]]));
    service.stop();
}

#[test]
fn copy_is_answered_like_the_first_and_books_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (secret, old) = (Secret::generate(), Secret::generate());
    let service = start(folder.path(), &[&secret, &old]);
    assert_eq!(signed(&service, &secret, "m1", now(), ORDER).status, 204);
    assert_eq!(signed(&service, &secret, "m1", now(), ORDER).status, 204);
    // Also from a relay that does not know the new secret yet, and at the same time.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| signed(&service, &old, "m2", now(), ORDER).status)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(statuses, [204; 6]);
    assert_eq!(service.get("/balances").json(), json!([["ada", 8400]]));
    service.stop();
}

#[test]
fn what_is_not_the_relays_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::generate();
    let service = start(folder.path(), &[&secret]);
    let forged = signed(&service, &Secret::generate(), "m1", now(), ORDER);
    assert_eq!((forged.status, forged.body.as_str()), (401, ""), "{forged:?}");
    assert_eq!(signed(&service, &secret, "m1", now() - 3600, ORDER).status, 401, "recorded and sent again");
    assert_eq!(signed(&service, &secret, "m1", now() + 3600, ORDER).status, 401);

    // Another body, another id, another time under a signature that was right.
    let (at, signature) = (now().to_string(), signature::sign([&secret], "m1", now(), ORDER));
    let later = (now() + 1).to_string();
    let changed = String::from_utf8(ORDER.to_vec()).unwrap().replace("4200", "9900");
    for (id, at, body) in [("m1", &at, changed.as_bytes()), ("m2", &at, ORDER), ("m1", &later, ORDER)] {
        let headers = [("webhook-id", id), ("webhook-timestamp", at.as_str()), ("webhook-signature", &signature)];
        assert_eq!(service.post("/hooks/orders", &headers, body).status, 401, "{id} {at}");
    }
    assert_eq!(service.get("/balances").json(), json!([]));
    service.stop();
}

#[test]
fn what_it_cannot_take_is_refused_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::generate();
    let service = start(folder.path(), &[&secret]);
    let nonsense = signed(&service, &secret, "m1", now(), b"{\"customer\": \"ada\"}");
    assert_eq!(nonsense.status, 422, "{nonsense:?}");
    assert!(nonsense.body.contains("missing field `total_cents`"), "{nonsense:?}");
    // As large as an outbox sends is taken, one byte more is not.
    let sized = |bytes: usize| {
        let mut body = ORDER.to_vec();
        body.resize(bytes, b' ');
        body
    };
    let limit = outbox::limits::PAYLOAD_BYTES_MAX;
    assert_eq!(signed(&service, &secret, "m2", now(), &sized(limit)).status, 204);
    assert_eq!(signed(&service, &secret, "m3", now(), &sized(limit + 1)).status, 413);
    assert_eq!(service.get("/balances").json(), json!([["ada", 4200]]));
    service.stop();
}

#[test]
fn with_a_wrong_secret_nothing_is_lost_and_the_relay_waits() {
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::generate();
    let service = start(folder.path(), &[&Secret::generate()]);
    configured(folder.path(), &service);
    let text = secret.expose();
    let relay =
        |arguments: &[&str]| Process::run(daemon(folder.path(), arguments, &[("WEBHOOK_SECRET", &text)]), LIMIT);
    assert!(relay(&["migrate", "up"]).status.success());
    let mut sqlite = std::process::Command::new("sqlite3");
    sqlite.current_dir(folder.path()).arg("shop.db");
    sqlite.arg("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')");
    assert!(Process::run(sqlite, LIMIT).status.success());
    relay(&["run", "--drain"]);
    let left = relay(&["messages", "list", "-o", "jsonl"]).stdout;
    assert!(left.contains("401"), "{left}");
    assert_eq!(relay(&["dead", "list", "-o", "jsonl"]).stdout, "");
    service.stop();
}

#[test]
fn without_a_secret_it_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    for secret in ["", " ", "whsec_short", "hunter2"] {
        let mut command = std::process::Command::new(outbox_tests::process::program_path("receiver"));
        command.current_dir(folder.path()).env("LISTEN", "127.0.0.1:0").env("WEBHOOK_SECRET", secret);
        let ended = Process::run(command, LIMIT);
        assert!(!ended.status.success(), "{secret:?}: {ended:?}");
        assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
    }
}
