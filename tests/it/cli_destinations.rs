//! Destinations as the command line shows, pauses and resumes them.

use chrono::{DateTime, Utc};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use serde_json::{Value, json};

use crate::cli::{assert_ended, json, on, with};
use crate::dead_letters::Plant;

fn register(database: &TestDatabase, name: &str, pattern: &str) {
    let insert = "INSERT INTO outbox_destinations (name, patterns) VALUES";
    database.exec(&format!("{insert} ('{name}', '[\"{pattern}\"]')"));
}

fn list(database: &TestDatabase) -> Value {
    let ended = on(database, &["destinations", "list", "-o", "json"]);
    assert_ended(&ended, 0);
    json(&ended)
}

fn count(database: &TestDatabase, table: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM {table}"))
}

async fn destinations_are_listed_with_what_waits_and_is_dead(database: TestDatabase) {
    assert_eq!(list(&database), json!([]));
    register(&database, "billing", "order.*");
    register(&database, "audit", "**");
    Plant::new(1).waiting(&database, false);
    Plant::new(2).dead(&database);
    Plant::new(3).dead(&database);
    let found = list(&database);
    let row = |n: usize| {
        let row: &Value = &found[n];
        json!([row["name"], row["topics"], row["waiting"], row["dead"], row["paused"], row["held_until"]])
    };
    assert_eq!(row(0), json!(["audit", ["**"], 0, 0, null, null]));
    assert_eq!(row(1), json!(["billing", ["order.*"], 1, 2, null, null]));
    let ended = on(&database, &["destinations", "list"]);
    assert_ended(&ended, 0);
    let stands = |database: &TestDatabase, command: &[&str], end: &str| {
        let ended = on(database, command);
        assert_ended(&ended, 0);
        assert!(ended.stdout.contains(&format!("  {end}\n")), "{}", ended.stdout);
    };
    let (listed, figures) = (["destinations", "list"], ["status"]);
    stands(&database, &listed, "order.*  key       1        2     not served");
    stands(&database, &figures, "order.*  key       not served");
    let needs = || {
        let attention = json(&on(&database, &["status", "--exit-code", "-o", "json"]))["attention"].clone();
        let texts = attention.as_array().unwrap().iter().filter(|found| found["code"] == "unserved");
        texts.map(|found| found["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // That no relay runs at all is said once.
    assert_eq!(needs(), [""; 0]);
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-000000000001'",
        Kind::Mariadb | Kind::Sqlite => "x'00000000000040008000000000000001'",
    };
    let insert = "INSERT INTO outbox_relays (id, name, version, serves) VALUES";
    database.exec(&format!("{insert} ({id}, 'shop-1', '1', '[\"audit\"]')"));
    stands(&database, &listed, "**       key       0        0     open");
    stands(&database, &listed, "order.*  key       1        2     not served");
    let see = "see `relay messages list --destination billing`";
    assert_eq!(needs(), [format!("no running relay serves billing, for which 1 wait: {see}")]);
    database.exec("UPDATE outbox_relays SET serves = '[\"billing\"]'");
    stands(&database, &listed, "order.*  key       1        2     open");
    stands(&database, &figures, "order.*  key       open");
    assert_eq!(needs(), [""; 0]);
}
for_each_database!(destinations_are_listed_with_what_waits_and_is_dead);

async fn a_destination_is_paused_and_resumed_by_a_named_person(database: TestDatabase) {
    register(&database, "billing", "order.*");
    let before = Utc::now() - chrono::TimeDelta::minutes(1);
    let pause = ["destinations", "pause", "billing", "--actor", "ada", "--reason", "it's down"];

    let ended = on(&database, &[&pause[..], &["--dry-run"]].concat());
    assert_ended(&ended, 0);
    assert_eq!((ended.stderr.as_str(), count(&database, "outbox_audit")), ("would be paused: billing\n", 0));
    assert_eq!(list(&database)[0]["paused"], Value::Null);

    let ended = on(&database, &pause);
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, "paused billing\n");
    let paused = list(&database)[0]["paused"].clone();
    assert_eq!((&paused["by"], &paused["reason"]), (&json!("ada"), &json!("it's down")));
    let at: DateTime<Utc> = paused["at"].as_str().unwrap().parse().unwrap();
    assert!(before < at && at < before + chrono::TimeDelta::minutes(5), "{at}");
    let ended = on(&database, &["destinations", "list"]);
    assert!(ended.stdout.trim_end().ends_with(" by ada: it's down"), "{}", ended.stdout);

    // Whoever paused it first stays named.
    let ended = on(&database, &["destinations", "pause", "billing", "--actor", "bob", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended), json!({ "destination": "billing", "paused": true, "changed": false }));
    assert_eq!(list(&database)[0]["paused"]["by"], "ada");

    let resume = ["destinations", "resume", "billing", "--actor", "bob", "-o", "json"];
    let ended = on(&database, &resume);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended), json!({ "destination": "billing", "paused": false, "changed": true }));
    assert_eq!(list(&database)[0]["paused"], Value::Null);
    assert_eq!(json(&on(&database, &resume))["changed"], false);

    let audit = |what: &str| database.query_i64(&format!("SELECT count(*) FROM outbox_audit WHERE {what}"));
    assert_eq!(audit("action = 'destination.pause' AND actor = 'ada' AND reason = 'it''s down'"), 1);
    assert_eq!(audit("action = 'destination.resume' AND actor = 'bob' AND target = 'destination billing'"), 1);
    assert_eq!(count(&database, "outbox_audit"), 2, "what changed nothing was audited");

    for verb in ["pause", "resume"] {
        let ended = on(&database, &["destinations", verb, "biling"]);
        assert_ended(&ended, 1);
        assert!(ended.stderr.starts_with("relay: there is no destination `biling`\n  help: "), "{}", ended.stderr);
    }
}
for_each_database!(a_destination_is_paused_and_resumed_by_a_named_person);

async fn a_paused_destination_is_sent_nothing_until_it_is_resumed(database: TestDatabase) {
    let receiver = Receiver::always(Answer::status(200)).await;
    let configuration = format!("[destinations.billing]\nurl = \"{}\"\ntopics = [\"**\"]\n", receiver.url("/"));
    let drain = || with(&configuration, &["--database-url", database.url(), "run", "--drain"]);
    // The first start registers the destination.
    assert_ended(&drain(), 0);
    assert_ended(&on(&database, &["destinations", "pause", "billing"]), 0);
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')");
    assert_ended(&drain(), 2);
    assert_eq!(receiver.requests().len(), 0);
    assert_ended(&on(&database, &["destinations", "resume", "billing"]), 0);
    assert_ended(&drain(), 0);
    assert_eq!(receiver.requests().len(), 1);
}
for_each_database!(a_paused_destination_is_sent_nothing_until_it_is_resumed);
