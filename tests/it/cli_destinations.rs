//! Destinations as the command line shows, pauses and resumes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Process, relay};
use outbox_tests::receiver::{Answer, Receiver};
use serde_json::{Value, json};

use crate::cli::{LIMIT, assert_ended, json, on, with};
use crate::dead_letters::Plant;
use crate::delivery::stage::with_connection;

fn register(database: &TestDatabase, name: &str, pattern: &str) {
    let insert = "INSERT INTO outbox_destinations (name, patterns) VALUES";
    database.exec(&format!("{insert} ('{name}', '[\"{pattern}\"]')"));
}

fn list(database: &TestDatabase) -> Value {
    let ended = on(database, &["destinations", "list", "-o", "json", "--wait", "0s"]);
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
    // Here every row of a relay is believed; what lives is another test's subject.
    let (listed, figures) = (["destinations", "list", "--wait", "0s"], ["status", "--wait", "0s"]);
    stands(&database, &listed, "order.*  key       1        2     not served");
    stands(&database, &figures, "order.*  key       not served");
    let needs = || {
        let attention =
            json(&on(&database, &["status", "--exit-code", "-o", "json", "--wait", "0s"]))["attention"].clone();
        let texts = attention.as_array().unwrap().iter().filter(|found| found["code"] == "unserved");
        texts.map(|found| found["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // That no relay runs at all is said once.
    assert_eq!(needs(), [""; 0]);
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-000000000001'",
        Kind::Mariadb | Kind::Sqlite => "x'00000000000040008000000000000001'",
    };
    let insert = "INSERT INTO outbox_relays (id, name, version, lease_ms, serves) VALUES";
    database.exec(&format!("{insert} ({id}, 'shop-1', '1', 1000, '[\"audit\"]')"));
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

// ---- show ----

async fn one_destination_is_shown_with_who_serves_it_and_what_waits(database: TestDatabase) {
    register(&database, "billing", "order.*");
    Plant::new(1).waiting(&database, false);
    Plant { key: Some("k"), ..Plant::new(2) }.waiting(&database, true);
    Plant::new(3).dead(&database);
    plant_relay(&database, 1, "shop-1", "billing");
    let show = ["destinations", "show", "billing", "--wait", "0s"];
    let ended = on(&database, &show);
    assert_ended(&ended, 0);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(
        lines[..7],
        [
            "destination  billing",
            "topics       order.*",
            "ordering     key",
            "stands       open",
            "served by    shop-1",
            "registered   by hand",
            "waiting      2 blocked",
        ]
    );
    assert!(lines[7].starts_with("oldest due   ") && lines[7].ends_with(" ago"), "{}", lines[7]);
    assert_eq!(lines[8..], ["dead         1"]);
    assert_ended(&on(&database, &["destinations", "pause", "billing", "--actor", "ada", "--reason", "noon"]), 0);
    let shown = json(&on(&database, &[&show[..], &["-o", "json"]].concat()));
    assert_eq!(shown["waiting_by_state"], json!({ "blocked": 2 }));
    assert_eq!((&shown["waiting"], &shown["dead"], &shown["paused"]["by"]), (&json!(2), &json!(1), &json!("ada")));
    assert_eq!(shown["served_by"], json!([{ "name": "shop-1", "lives": null }]));
    assert!(shown["oldest_due_ms"].as_u64().unwrap() > 0, "{shown}");

    let ended = on(&database, &["destinations", "show", "biling"]);
    assert_ended(&ended, 1);
    assert!(ended.stderr.starts_with("relay: there is no destination `biling`\n  help: "), "{}", ended.stderr);
}
for_each_database!(one_destination_is_shown_with_who_serves_it_and_what_waits);

// ---- who lives ----

fn plant_relay(database: &TestDatabase, number: u8, name: &str, serves: &str) {
    let id = match database.kind() {
        Kind::Postgres => format!("'00000000-0000-4000-8000-0000000000{number:02}'"),
        Kind::Mariadb | Kind::Sqlite => format!("x'000000000000400080000000000000{number:02}'"),
    };
    let insert = "INSERT INTO outbox_relays (id, name, version, lease_ms, serves) VALUES";
    database.exec(&format!("{insert} ({id}, '{name}', '1', 1000, '[\"{serves}\"]')"));
}

/// Raises the beat of some relays until it is dropped.
struct Heart(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Heart {
    fn of(database: &Arc<TestDatabase>, name: &'static str) -> Heart {
        let (over, database) = (Arc::new(AtomicBool::new(false)), database.clone());
        let until = over.clone();
        let beating = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                database.exec(&format!("UPDATE outbox_relays SET beat = beat + 1 WHERE name = '{name}'"));
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        Heart(over, Some(beating))
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().unwrap().join();
    }
}

async fn the_row_of_a_dead_relay_neither_serves_nor_owns(database: TestDatabase) {
    let database = Arc::new(database);
    register(&database, "billing", "order.*");
    register(&database, "audit", "**");
    plant_relay(&database, 1, "living", "audit");
    plant_relay(&database, 2, "dead", "billing");
    let owned_by = |name: &str| format!("owner = (SELECT id FROM outbox_relays WHERE name = '{name}')");
    database.exec(&format!("UPDATE outbox_partitions SET {} WHERE partition_no < 20", owned_by("living")));
    database.exec(&format!("UPDATE outbox_partitions SET {} WHERE partition_no >= 20", owned_by("dead")));
    let heart = Heart::of(&database, "living");

    let ended = on(&database, &["status"]);
    assert_ended(&ended, 0);
    let says = |text: &str| assert!(ended.stdout.contains(text), "no `{text}` in\n{}", ended.stdout);
    says(
        "12 of 32 partitions have no living owner, and nothing of them is delivered: a running relay takes them within",
    );
    says("dead is dead, stuck, or cut off from the database: its beat did not move for 1s");
    says("billing      order.*  key       not served");
    says("audit        **       key       open");
    let shown = json(&on(&database, &["status", "--exit-code", "-o", "json"]));
    let lives: Vec<_> =
        shown["relays"].as_array().unwrap().iter().map(|r| (r["name"].clone(), r["lives"].clone())).collect();
    assert_eq!(lives, [(json!("living"), json!(true)), (json!("dead"), json!(false))]);
    assert_eq!(shown["partitions_without_living_owner"], 12);
    assert!(shown["attention"].as_array().unwrap().iter().any(|found| found["code"] == "partitions"), "{shown}");
    // Believed without a look, all is well.
    let shown = json(&on(&database, &["status", "-o", "json", "--wait", "0s"]));
    assert_eq!((&shown["partitions_without_living_owner"], &shown["relays"][1]["lives"]), (&json!(0), &Value::Null));
    let shown = json(&on(&database, &["destinations", "show", "billing", "-o", "json"]));
    assert_eq!((&shown["served"], &shown["served_by"][0]["lives"]), (&json!(false), &json!(false)));

    // All that live is known at once; nobody waits for a lease then.
    database.exec("DELETE FROM outbox_relays WHERE name = 'dead'");
    let began = std::time::Instant::now();
    let ended = on(&database, &["status", "--wait", "60s"]);
    assert_ended(&ended, 0);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    drop(heart);
}
for_each_database!(the_row_of_a_dead_relay_neither_serves_nor_owns);

/// Starts commands whose own configuration has the shortest lease, and leaves them alone for longer than that.
fn start_with_a_short_lease<const N: usize>(database: &TestDatabase, commands: [&[&str]; N]) -> [Process; N] {
    let mut running = commands.map(|arguments| {
        let arguments = [&["--database-url", database.url()], arguments].concat();
        Process::start_relay("[relay]\nlease = \"1s\"\n", &arguments)
    });
    std::thread::sleep(Duration::from_secs(3));
    for process in &mut running {
        assert!(process.is_running(), "it has decided already:\n{}", process.output());
    }
    running
}

const REMOVE: [&str; 6] = ["destinations", "remove", "billing", "--waiting", "dead", "--yes"];

async fn a_relay_is_judged_by_its_own_lease_and_not_by_that_of_whoever_looks(database: TestDatabase) {
    register(&database, "billing", "order.*");
    plant_relay(&database, 1, "slow", "billing");
    database.exec("UPDATE outbox_relays SET lease_ms = 60000");
    let commands: [&[&str]; 4] =
        [&REMOVE, &["status", "-o", "json"], &["destinations", "list"], &["destinations", "show", "billing"]];
    let running = start_with_a_short_lease(&database, commands);
    database.exec("UPDATE outbox_relays SET beat = beat + 1");
    let [remove, status, list, show] = running.map(|command| command.wait(LIMIT));
    assert_ended(&remove, 1);
    assert!(remove.stderr.contains("relay: billing is not removed: slow serves it\n"), "{}", remove.stderr);
    let relay = &json(&status)["relays"][0];
    assert_eq!((&relay["lives"], &relay["lease_ms"]), (&json!(true), &json!(60_000)));
    assert!(list.stdout.trim_end().ends_with("open"), "{}", list.stdout);
    assert!(show.stdout.contains("\nserved by    slow\n"), "{}", show.stdout);
}
for_each_database!(a_relay_is_judged_by_its_own_lease_and_not_by_that_of_whoever_looks);

async fn a_relay_that_leaves_while_it_is_looked_at_is_in_nobodys_way(database: TestDatabase) {
    register(&database, "billing", "order.*");
    plant_relay(&database, 1, "leaving", "billing");
    database.exec("UPDATE outbox_relays SET lease_ms = 60000");
    let commands: [&[&str]; 3] = [&REMOVE, &["status", "-o", "json"], &["destinations", "show", "billing"]];
    let [remove, status, show] = start_with_a_short_lease(&database, commands);
    // It is shown first, because the removal takes it away.
    database.exec("DELETE FROM outbox_relays");
    let (status, show) = (status.wait(LIMIT), show.wait(LIMIT));
    let remove = remove.wait(LIMIT);
    assert_ended(&remove, 0);
    assert_eq!(remove.stdout, "removed billing; nothing waits for it\n");
    assert_eq!(json(&status)["relays"], json!([]));
    assert!(show.stdout.contains("\nserved by    nobody\n"), "{}", show.stdout);
}
for_each_database!(a_relay_that_leaves_while_it_is_looked_at_is_in_nobodys_way);

async fn who_looks_for_less_than_a_lease_does_not_know(database: TestDatabase) {
    register(&database, "billing", "order.*");
    plant_relay(&database, 1, "shop-1", "billing");
    database.exec("UPDATE outbox_relays SET lease_ms = 60000");
    database.exec("UPDATE outbox_partitions SET owner = (SELECT id FROM outbox_relays)");
    let status = ["status", "--wait", "300ms"];
    let ended = on(&database, &status);
    assert_ended(&ended, 0);
    assert!(ended.stdout.contains("owners    all 32 partitions are owned\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("  not known, still for 3"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("dead, stuck"), "{}", ended.stdout);
    let shown = json(&on(&database, &[&status[..], &["-o", "json"]].concat()));
    assert_eq!((&shown["relays"][0]["lives"], &shown["partitions_without_living_owner"]), (&Value::Null, &json!(0)));
    let show = ["destinations", "show", "billing", "--wait", "300ms"];
    let ended = on(&database, &show);
    assert!(ended.stdout.contains("\nstands       open\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("shop-1 (not known: its beat did not move for 3"), "{}", ended.stdout);
    assert_eq!(json(&on(&database, &[&show[..], &["-o", "json"]].concat()))["served_by"][0]["lives"], Value::Null);
}
for_each_database!(who_looks_for_less_than_a_lease_does_not_know);

// ---- remove ----

async fn a_destination_is_removed_when_no_living_relay_serves_it(database: TestDatabase) {
    let database = Arc::new(database);
    register(&database, "billing", "order.*");
    Plant::new(1).waiting(&database, false);
    Plant::new(2).dead(&database);
    plant_relay(&database, 1, "shop-1", "billing");
    let remove = ["destinations", "remove", "billing", "--waiting", "dead", "--actor", "ada"];
    let heart = Heart::of(&database, "shop-1");
    for more in [&["--yes"][..], &["--dry-run"]] {
        let ended = on(&database, &[&remove[..], more].concat());
        assert_ended(&ended, 1);
        assert!(
            ended.stderr.starts_with("relay: billing is not removed: shop-1 serves it\n  help: "),
            "{}",
            ended.stderr
        );
    }
    drop(heart);

    let ended = on(&database, &[&remove[..], &["--dry-run"]].concat());
    assert_ended(&ended, 0);
    let says = "shop-1 serves it too, but its beat has not moved for 1s: it counts as dead\n\
                would be removed: billing; 1 waiting delivery would become a dead letter; its dead letter stays\n";
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", says));
    assert_eq!((count(&database, "outbox_destinations"), count(&database, "outbox_audit")), (1, 0));

    let ended = on(&database, &[&remove[..], &["--yes"]].concat());
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, "removed billing; 1 waiting delivery became a dead letter\n");
    assert_eq!((count(&database, "outbox_destinations"), count(&database, "outbox_dead_letters")), (0, 2));
    assert_eq!((count(&database, "outbox_relays"), count(&database, "outbox_audit")), (0, 1));

    let ended = on(&database, &[&remove[..], &["--yes"]].concat());
    assert_ended(&ended, 1);
    assert!(ended.stderr.starts_with("relay: there is no destination `billing`"), "{}", ended.stderr);
    // What names a destination that nobody has can be dealt with in the same way.
    Plant { destination: "typo", ..Plant::new(3) }.waiting(&database, false);
    let ended = on(&database, &["destinations", "show", "typo"]);
    assert_ended(&ended, 1);
    let says =
        "1 delivery waits for it; `relay destinations remove typo --waiting dead` or `--waiting discard` decides";
    assert!(ended.stderr.starts_with(says), "{}", ended.stderr);
    let ended = on(&database, &["destinations", "remove", "typo", "--waiting", "discard", "--yes", "-o", "json"]);
    assert_ended(&ended, 0);
    let said =
        json!({ "destination": "typo", "registered": false, "removed": true, "dead_lettered": 0, "discarded": 1 });
    assert_eq!(json(&ended), said);
    let ended = on(&database, &["destinations", "remove", "typo", "--waiting", "keep"]);
    assert_ended(&ended, 64);
}
for_each_database!(a_destination_is_removed_when_no_living_relay_serves_it);

#[test]
fn a_removal_that_would_wait_for_others_says_so_and_changes_nothing() {
    for kind in [Kind::Postgres, Kind::Mariadb] {
        let database = TestDatabase::with_schema(kind);
        register(&database, "billing", "order.*");
        Plant::new(1).waiting(&database, false);
        let ended = with_connection!(database, |holder| {
            holder.batch_execute("BEGIN; SELECT id FROM outbox_deliveries FOR UPDATE").unwrap();
            on(&database, &REMOVE)
        });
        assert_ended(&ended, 69);
        let says = "billing is not removed: nothing was changed\n\
                    relay: outbox: another transaction holds deliveries that wait for the destination: ";
        assert!(ended.stderr.starts_with(says), "{kind:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("\n  help: try again when that transaction has ended. "), "{}", ended.stderr);
        assert_eq!((count(&database, "outbox_destinations"), count(&database, "outbox_deliveries")), (1, 1));
        assert_ended(&on(&database, &REMOVE), 0);
    }
}

// ---- ping ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_sent_like_a_message_and_says_that_it_is_none() {
    let receiver = Receiver::always(Answer::status(200).body("thank you")).await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let configuration = format!(
        "[destinations.billing]\nurl = \"{}\"\ntopics = [\"order.*\"]\nheaders = {{ authorization = {{ env = \"TOKEN\" }} }}\n\
         signing = {{ keys = [{{ env = \"KEY\" }}] }}\n",
        receiver.url("/hook")
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relay.toml");
    std::fs::write(&file, &configuration).unwrap();
    let ping = |more: &[&str]| {
        let mut command = relay([&["-c", file.to_str().unwrap(), "destinations", "ping"], more].concat());
        command.env("TOKEN", "Bearer x").env("KEY", secret).env_remove("DATABASE_URL");
        Process::run(command, LIMIT)
    };
    // No database is named anywhere.
    let ended = ping(&["billing", "--actor", "ada"]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.starts_with("billing: delivered: 200 in "), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("\nit said: thank you\n"), "{}", ended.stdout);
    let requests = receiver.requests();
    let request = &requests[0];
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    assert_eq!((header("outbox-ping"), header("ce-type")), ("true".to_owned(), "outbox.ping".to_owned()));
    assert_eq!((header("authorization"), header("outbox-destination")), ("Bearer x".to_owned(), "billing".to_owned()));
    assert_eq!(header("webhook-id"), header("ce-id"));
    let key = outbox::signature::Secret::parse(secret).unwrap();
    let seen = outbox::signature::Headers::find(|name| request.header(name)).unwrap();
    outbox::signature::verify([&key], &seen, &request.body).unwrap();
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["sent_by"]), (&json!("outbox.ping"), &json!("ada")));

    let ended = ping(&["billing", "-o", "json"]);
    let said = json(&ended);
    assert_eq!(
        (&said["delivered"], &said["code"], &said["answer"]),
        (&json!(true), &json!("200"), &json!("thank you"))
    );
    assert_ne!(said["message_id"].as_str(), Some(header("webhook-id").as_str()), "each ping has an id of its own");

    // Where none is configured it is none of these either.
    let ended = with("[relay]\nlease = \"5s\"\n", &["destinations", "ping", "billing"]);
    assert_ended(&ended, 1);
    let said = "relay: the configuration has no destination `billing`\n  help: only a destination with a `url`";
    assert!(ended.stderr.starts_with(said), "{}", ended.stderr);

    let ended = ping(&["biling"]);
    assert_ended(&ended, 1);
    let said =
        "relay: the configuration has no destination `biling` - was `billing` meant?\n  help: only a destination with";
    assert!(
        ended.stderr.starts_with(said) && ended.stderr.contains("a handler runs inside a program"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_that_is_not_taken_says_why() {
    let receiver = Receiver::always(Answer::status(404).body("no such hook")).await;
    let configuration = |url: &str| format!("[destinations.billing]\nurl = \"{url}\"\ntopics = [\"**\"]\n");
    let ended = with(&configuration(&receiver.url("/")), &["destinations", "ping", "billing"]);
    assert_ended(&ended, 2);
    assert!(ended.stdout.starts_with("billing: not delivered, misconfigured: 404 in "), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("\nit said: no such hook\n"), "{}", ended.stdout);
    let ended = with(&configuration("http://127.0.0.1:9/"), &["destinations", "ping", "billing"]);
    assert_ended(&ended, 2);
    assert!(ended.stdout.starts_with("billing: not delivered, retry: connect in "), "{}", ended.stdout);
    assert!(ended.stdout.contains("refused"), "{}", ended.stdout);
}
