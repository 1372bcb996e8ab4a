//! The sign-ups: a blocking service and a daemon on one SQLite file.

use outbox_tests::process::Process;
use serde_json::json;

use super::{LIMIT, Service, daemon, dependencies, file, lines, wait_until};

/// A folder with the example's `relay.toml`, led to where the service listens.
fn configured(folder: &std::path::Path, service: &Service) {
    let configuration = file("signups/relay.toml");
    assert!(configuration.contains("127.0.0.1:3000"));
    std::fs::write(folder.join("relay.toml"), configuration.replace("127.0.0.1:3000", &service.address)).unwrap();
}

#[test]
fn its_page_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start("signups", folder.path(), &[]);
    configured(folder.path(), &service);
    let readme = file("signups/README.md");
    let [sign_up, list] = lines(&readme, "curl").try_into().unwrap();
    assert!(lines(&readme, "cargo").contains(&"cargo run -p relay -- run".to_owned()));

    // Without a relay nobody waits, and nothing is lost.
    assert_eq!(service.curl(&sign_up).status, 202);
    assert_eq!(service.curl(&list).json(), json!([["ada@example.org", false]]));
    let again = service.curl(&sign_up);
    assert_eq!(again.status, 409, "{again:?}");

    let relay = Process::start(daemon(folder.path(), &["run"], &[]));
    let welcomed = json!([["ada@example.org", true]]);
    wait_until("she is welcomed", || service.curl(&list).json(), |seen| *seen == welcomed);
    service.process.wait_for_line("welcomed", LIMIT);
    assert!(relay.terminate(LIMIT).status.success());

    // One message in all, of the one row that was committed.
    let ended = service.stop();
    assert_eq!(ended.stderr.matches("welcomed message.id").count(), 1, "{ended:?}");
}

#[test]
fn daemon_may_start_first() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("relay.toml"), file("signups/relay.toml")).unwrap();
    let drained = Process::run(daemon(folder.path(), &["run", "--drain"], &[]), LIMIT);
    assert!(drained.status.success(), "{drained:?}");
    let service = Service::start("signups", folder.path(), &[]);
    assert_eq!(service.get("/signups").json(), json!([]));
    service.stop();
}

#[test]
fn it_is_built_without_a_relay() {
    let tree = dependencies(&["-p", "signups"]);
    assert!(tree.contains("outbox v") && !tree.contains("relay v"), "{tree}");
}
