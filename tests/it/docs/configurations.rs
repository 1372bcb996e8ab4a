//! Configurations and manifests in the pages.

use std::collections::BTreeSet;
use std::time::Duration;

use outbox_tests::process::{Ended, Process, relay};
use relay::retry::RetryPolicy;

use super::pages::{Block, blocks, pages, root};

const LIMIT: Duration = Duration::from_secs(60);

/// Stands for every secret: a key to sign with, and good enough for a header.
const SECRET: &str = "whsec_c2VjcmV0LW9mLWEtdGVzdC1vbmx5LTMyYnl0ZXM=";

/// Stands for a certificate and for its key, where TLS wants them.
const CERTIFICATE: &str = include_str!("../../../relay/src/tls/example.crt");
const KEY: &str = include_str!("../../../relay/src/tls/example.key");

/// What stands for the secret that is called so.
fn secret(name: &str) -> &'static str {
    match name {
        "DATABASE_URL" => "sqlite:completed.db",
        name if name.ends_with("_TLS_KEY") || name.ends_with(".key") => KEY,
        name if name.contains("_TLS_") || name.ends_with(".crt") => CERTIFICATE,
        _ => SECRET,
    }
}

/// What `relay check` says to a block, completed by what a fragment leaves out.
fn checked(block: &Block) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let mut text = block.text.clone();
    if !text.contains("[destinations.") {
        text.push_str("\n[destinations.completed]\nurl = \"https://completed.internal/\"\ntopics = [\"**\"]\n");
    }
    let mut command = relay(["check"]);
    command.current_dir(folder.path()).env("DATABASE_URL", "sqlite:completed.db");
    for name in quoted_after(&block.text, "env = \"") {
        command.env(name, secret(name));
    }
    for (number, path) in quoted_after(&block.text, "file = \"").into_iter().enumerate() {
        std::fs::write(folder.path().join(number.to_string()), format!("{}\n", secret(path))).unwrap();
        text = text.replace(&format!("file = \"{path}\""), &format!("file = \"{number}\""));
    }
    std::fs::write(folder.path().join("relay.toml"), text).unwrap();
    Process::run(command, LIMIT)
}

/// What stands between this and the next quotation mark, each once.
fn quoted_after<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

fn is_manifest(block: &Block) -> bool {
    block.text.contains("dependencies]")
}

#[test]
fn configurations_are_right() {
    let blocks = blocks(&pages(), "toml");
    let configurations: Vec<&Block> = blocks.iter().filter(|block| !is_manifest(block)).collect();
    assert!(!configurations.is_empty());
    for block in configurations {
        let ended = checked(block);
        assert!(ended.status.success(), "{}: {ended:?}", block.place);
    }
}

#[test]
fn a_configuration_that_is_not_right_is_found() {
    let text = "[defaults]\ntimout = \"1s\"\n".to_owned();
    let ended = checked(&Block { place: String::new(), info: Vec::new(), text });
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}

#[test]
fn schedules_give_up_when_the_runbook_says() {
    let hours = |policy: RetryPolicy| policy.horizon().as_secs_f64() / 3600.0;
    let page = pages().into_iter().find(|page| page.path == "docs/OPERATING.md").unwrap();
    for (policy, attempts, latest, row) in [
        (RetryPolicy::internal(), 20, 2.5..2.6, "20 attempts | an hour and a quarter | two and a half hours |"),
        (RetryPolicy::webhook(), 10, 75.0..76.0, "10 attempts | a day and a half | a bit more than three days |"),
    ] {
        assert!(page.text.contains(row), "the page says otherwise: {row}");
        assert_eq!(policy.attempts_max, attempts);
        assert!(latest.contains(&hours(policy.clone())), "{} h", hours(policy));
    }
}

#[test]
fn manifests_name_features_that_exist() {
    let ours = std::fs::read_to_string(root().join("outbox/Cargo.toml")).unwrap();
    let features: BTreeSet<&str> = ours
        .split("[features]\n")
        .nth(1)
        .and_then(|rest| rest.split("\n[").next())
        .into_iter()
        .flat_map(str::lines)
        .filter_map(|line| line.split_once(" =").map(|(name, _)| name))
        .collect();
    assert!(features.contains("sqlite-bundled"), "{features:?}");
    let blocks = blocks(&pages(), "toml");
    let lines = blocks.iter().filter(|block| is_manifest(block)).flat_map(|block| block.text.lines());
    let mut seen = 0;
    for line in lines.filter(|line| line.starts_with("outbox = ")) {
        let list = line.split("features = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
        for feature in list.split(',').map(|feature| feature.trim().trim_matches('"')) {
            assert!(features.contains(feature), "`{feature}` is no feature of outbox: {line}");
            seen += 1;
        }
    }
    assert!(seen > 0, "no page shows how to depend on outbox");
}
