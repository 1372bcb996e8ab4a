//! The shop that keeps running, as it tells its reader to use it. Its story is told in `readme.rs`.

use std::process::Command;

use outbox_tests::process::{Process, free_address, program_path, relay};

use super::{LIMIT, http};

#[test]
fn what_it_prints_can_be_done() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut command = Command::new(program_path("quickstart"));
    command.arg("--serve").env("TMPDIR", folder.path()).env("PORT", address.port().to_string());
    let shop = Process::start(command);
    shop.wait_for_line("Ctrl-C ends it", LIMIT);
    let told = shop.output();
    let lines: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let [order, declined, repair, redrive] = lines[..] else { panic!("{told}") };

    let answer = http::curl(order, &address.to_string());
    assert_eq!((answer.status, answer.body.as_str()), (202, r#"{"order":1}"#), "{answer:?}");
    let answer = http::curl(declined, &address.to_string());
    assert_eq!((answer.status, answer.body.as_str()), (402, r#"{"error":"the card was declined"}"#), "{answer:?}");
    for line in
        ["billing      given up: rejected", "warehouse    attempt 3: delivered", "confirmation attempt 1: delivered"]
    {
        shop.wait_for_line(line, LIMIT);
    }
    // Billing is another service, at the address in the line.
    let billing = repair.split("http://").nth(1).unwrap().split('/').next().unwrap();
    assert_eq!(http::curl(repair, billing).status, 204);
    // The row is written a moment after it was told of.
    let arguments: Vec<&str> = redrive.strip_prefix("cargo run -p relay -- ").unwrap().split(' ').collect();
    super::wait_until("redriven", || Process::run(relay(&arguments), LIMIT), |ended| ended.status.success());
    shop.wait_for_line("billing      attempt 1: delivered", LIMIT);
    assert!(shop.terminate(LIMIT).status.success());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program_path("quickstart"));
    command.arg("--serve").env("TMPDIR", folder.path()).env("PORT", &port);
    let ended = Process::run(command, LIMIT);
    assert!(!ended.status.success() && ended.stderr.contains(&format!("cannot listen on port {port}")), "{ended:?}");
}
