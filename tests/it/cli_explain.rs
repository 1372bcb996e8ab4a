//! Why a message is not moving, as the command line tells it: each reason is brought about, and found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Ended, Process, relay};
use serde_json::{Value, json};

use crate::cli::{LIMIT, assert_ended, json, on};
use crate::cli_messages::{enqueue, newest};
use crate::dead_letters::Plant;

/// Explains a message.
fn explain(database: &TestDatabase, id: &str, arguments: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let mut command = relay(["--database-url", database.url(), "explain", id]);
    command.args(arguments).current_dir(folder.path());
    Process::run(command, LIMIT)
}

/// The codes of the reasons, and the whole answer.
fn codes(database: &TestDatabase, id: &str) -> (Vec<String>, Value) {
    let ended = explain(database, id, &["-o", "json"]);
    assert_ended(&ended, 0);
    let answer = json(&ended);
    let codes = answer["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap().to_owned());
    (codes.collect(), answer)
}

fn register(database: &TestDatabase, name: &str, patterns: &str) {
    database.exec(&format!("INSERT INTO outbox_destinations (name, patterns) VALUES ('{name}', '{patterns}')"));
}

/// A relay that owns everything, serves these, and never raises its beat.
fn plant_relay(database: &TestDatabase, serves: &str) {
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-000000000001'",
        Kind::Mariadb | Kind::Sqlite => "x'00000000000040008000000000000001'",
    };
    let columns = "(id, name, version, lease_ms, serves)";
    database.exec(&format!("INSERT INTO outbox_relays {columns} VALUES ({id}, 'shop-1', '1', 1000, '{serves}')"));
    database.exec(&format!("UPDATE outbox_partitions SET owner = {id}"));
}

async fn what_keeps_a_pending_message_is_named(database: TestDatabase) {
    let id = enqueue(&database, "order.placed", "{}");
    register(&database, "billing", "[\"order.placed.*\", \"Order.placed\"]");
    register(&database, "audit", "[\"user.*\"]");

    let (found, answer) = codes(&database, &id);
    assert_eq!(found, ["no_relay", "unrouted"]);
    assert_eq!(answer["next"], "start one: relay run");
    let near = "what comes close: `order.placed.*` of billing, `Order.placed` of billing";
    assert!(answer["reasons"][1]["text"].as_str().unwrap().ends_with(near), "{answer}");

    database.exec("UPDATE outbox_destinations SET patterns = '[\"order.*\"]' WHERE name = 'billing'");
    plant_relay(&database, "[\"audit\"]");
    database.exec("UPDATE outbox_partitions SET owner = NULL");
    let (found, _) = codes(&database, &id);
    assert_eq!(found, ["no_owner", "unserved"]);

    database.exec("DELETE FROM outbox_relays");
    plant_relay(&database, "[\"billing\"]");
    let (found, answer) = codes(&database, &id);
    assert_eq!(found, ["relay_silent"]);
    let text = answer["reasons"][0]["text"].as_str().unwrap();
    assert_eq!(text, "relay shop-1 owns its partition and has given no sign of life for 1s");

    assert_ended(&on(&database, &["destinations", "pause", "billing", "--actor", "ada", "--reason", "it is down"]), 0);
    let ended = explain(&database, &id, &[]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.starts_with(&format!("message {id}: order.placed, key k-order.placed, number ")), "{ended:?}");
    assert!(
        ended.stdout.contains("\npending: committed, and no relay has settled it yet\n  relay shop-1 "),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("\n  billing was paused by ada "), "{ended:?}");
    assert!(ended.stdout.contains(" ago: it is down\n"), "{ended:?}");

    let to = "UPDATE outbox_messages SET destination = 'bulling', deliver_at = ";
    database.exec(&match database.kind() {
        Kind::Postgres => format!("{to} now() + interval '1 hour'"),
        Kind::Mariadb => format!("{to} utc_timestamp() + INTERVAL 1 HOUR"),
        Kind::Sqlite => format!("{to} CAST(strftime('%s', 'now') AS INTEGER) * 1000 + 3600000"),
    });
    let (found, answer) = codes(&database, &id);
    assert_eq!(found, ["relay_silent", "scheduled", "unknown_destination"]);
    assert!(answer["reasons"][2]["text"].as_str().unwrap().ends_with("was `billing` meant?"), "{answer}");
}
for_each_database!(what_keeps_a_pending_message_is_named);

async fn what_moves_to_several_destinations_may_have_failed_at_one_of_them(database: TestDatabase) {
    let id = enqueue(&database, "order.placed", "{}");
    register(&database, "fast", "[\"order.*\"]");
    plant_relay(&database, "[\"fast\",\"slow\"]");
    let over = Arc::new(AtomicBool::new(false));
    let (until, mut conn) = (over.clone(), database.sqlite());
    let heart = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            conn.batch_execute("UPDATE outbox_relays SET beat = beat + 1").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let one = codes(&database, &id);
    register(&database, "slow", "[\"**\"]");
    let two = codes(&database, &id);
    over.store(true, Ordering::Relaxed);
    heart.join().unwrap();
    let text = "nothing holds it back on its way to fast: relay shop-1 sends it, or is about to";
    assert_eq!((&one.0[..], &one.1["reasons"][0]["text"]), (&["moving".to_owned()][..], &json!(text)));
    let text = "nothing holds it back on its way to fast, slow: relay shop-1 sends it, or is about to; one of its \
                destinations may be slow or have failed: outcomes are written when all have one";
    assert_eq!((&two.0[..], &two.1["reasons"][0]["text"]), (&["moving".to_owned()][..], &json!(text)));
}
for_each_database!(
    what_moves_to_several_destinations_may_have_failed_at_one_of_them,
    what_moves_to_several_destinations_may_have_failed_at_one_of_them,
    [sqlite]
);

async fn what_keeps_a_waiting_delivery_is_named(database: TestDatabase) {
    register(&database, "billing", "[\"order.*\"]");
    plant_relay(&database, "[\"billing\"]");
    let plant = |seq: i64, state: &str, blocked: bool| {
        Plant { key: Some("k"), ..Plant::new(seq) }.waiting(&database, blocked);
        database.exec(&format!("UPDATE outbox_deliveries SET state = '{state}' WHERE seq = {seq}"));
        newest(&database, "outbox_deliveries", "message_id", "id")
    };
    let first = plant(900, "retry", false);
    let second = plant(901, "blocked", true);
    let third = plant(902, "blocked", true);
    database.exec("UPDATE outbox_relays SET draining = true");

    let (found, answer) = codes(&database, &first);
    assert_eq!(found, ["relay_silent", "failed"]);
    assert_eq!(answer["reasons"][1]["text"], "3 attempts failed, the last with: 503 Service Unavailable");
    assert_eq!(answer["reasons"][1]["destination"], "billing");
    for id in [&second, &third] {
        let (found, answer) = codes(&database, id);
        assert_eq!(found, ["relay_silent", "failed", "blocked"]);
        let text = answer["reasons"][2]["text"].as_str().unwrap();
        let expected = format!(
            "an earlier message of its key k goes first: {first}, retry after 3 attempts: 503 Service Unavailable"
        );
        assert_eq!(
            (text, &answer["reasons"][2]["next"]),
            (&*expected, &json!(format!("relay explain {first} --seq 900")))
        );
    }
    let letter = Plant { key: Some("k"), blocks_key: true, ..Plant::new(899) }.dead(&database);
    let (found, answer) = codes(&database, &second);
    assert_eq!(found, ["relay_silent", "failed", "blocked_by_dead_letter"]);
    let next = format!(
        "relay dead show {letter}, then relay dead redrive {letter} or relay dead discard {letter}, \
         or relay keys release billing k to go on without it"
    );
    assert_eq!(answer["reasons"][2]["next"], next);

    database.exec("UPDATE outbox_deliveries SET state = 'suspect', destination = 'audit' WHERE seq = 900");
    let (found, answer) = codes(&database, &first);
    assert_eq!(found, ["relay_silent", "failed", "suspect", "unknown_destination"]);
    assert_eq!(
        answer["reasons"][2]["text"],
        "it was in the hands of a relay that died, so it is marked while its handler has it"
    );
    database.exec("UPDATE outbox_deliveries SET deaths = 2 WHERE seq = 900");
    let (_, answer) = codes(&database, &first);
    let told = answer["reasons"][2]["text"].as_str().unwrap();
    assert!(told.contains("had it at 2 deaths of a relay"), "{told}");
    database
        .exec("UPDATE outbox_deliveries SET state = 'unrouted', destination = '', topic = 'user.left' WHERE seq = 900");
    let (found, _) = codes(&database, &first);
    assert_eq!(found, ["relay_silent", "failed", "unrouted"]);
    let far = match database.kind() {
        Kind::Postgres => "'2199-01-01T00:00:00Z'",
        Kind::Mariadb => "'2199-01-01 00:00:00'",
        Kind::Sqlite => "7226582400000",
    };
    database.exec(&format!(
        "UPDATE outbox_deliveries SET state = 'retry', destination = 'billing', due_at = {far} WHERE seq = 900"
    ));
    let (found, answer) = codes(&database, &first);
    assert_eq!(found, ["relay_silent", "failed", "backing_off"]);
    assert!(answer["reasons"][2]["text"].as_str().unwrap().ends_with("(2199-01-01T00:00:00Z)"), "{answer}");
}
for_each_database!(what_keeps_a_waiting_delivery_is_named);

async fn a_dead_message_and_one_that_is_nowhere_are_told_apart(database: TestDatabase) {
    let letter = Plant { reason: "rejected", error: "422", ..Plant::new(1) }.dead(&database);
    let id = newest(&database, "outbox_dead_letters", "message_id", "id");
    let ended = explain(&database, &id, &[]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.contains("\nbilling: dead\n  given up "), "{}", ended.stdout);
    assert!(ended.stdout.contains(" after 3 attempts: the receiver refused it for good: 422\n"), "{}", ended.stdout);
    assert!(
        ended.stdout.ends_with(&format!("\nnext: repair the cause, then relay dead redrive {letter}\n")),
        "{ended:?}"
    );

    let ended = explain(&database, "00000000-0000-4000-8000-000000000000", &["-o", "json"]);
    assert_ended(&ended, 1);
    assert_eq!(json(&ended)["reasons"][0]["code"], "gone");
    enqueue(&database, "order.placed", "{}");
    enqueue(&database, "order.placed", "{}");
    let ended = explain(&database, "00000000-0000-4000-8000-000000000000", &["--scan", "1", "-o", "json"]);
    assert_ended(&ended, 1);
    assert_eq!(json(&ended)["reasons"][0]["code"], "not_found");
}
for_each_database!(a_dead_message_and_one_that_is_nowhere_are_told_apart);

async fn a_message_whose_transaction_is_open_is_held_back_by_it(database: TestDatabase) {
    use diesel::{Connection, PgConnection};
    let url = format!("{}?application_name=checkout", database.url());
    let mut open = PgConnection::establish(&url).unwrap();
    open.batch_execute("BEGIN; INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')").unwrap();
    let ended = explain(&database, "00000000-0000-4000-8000-000000000000", &["--seq", "1"]);
    assert_ended(&ended, 1);
    assert!(ended.stdout.contains("\n  it may be held back by the transaction of pid "), "{}", ended.stdout);
    assert!(
        ended.stdout.contains(" (checkout), which has written messages and is not committed, idle in "),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("\nnext: see what pid "), "{}", ended.stdout);
    open.batch_execute("ROLLBACK").unwrap();
    let ended = explain(&database, "00000000-0000-4000-8000-000000000000", &["-o", "json"]);
    assert_eq!(json(&ended)["reasons"].as_array().unwrap().len(), 1, "{}", ended.stdout);
}
for_each_database!(
    a_message_whose_transaction_is_open_is_held_back_by_it,
    a_message_whose_transaction_is_open_is_held_back_by_it,
    [postgres]
);
