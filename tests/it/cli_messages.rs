//! Where messages are, as the command line tells it; and dead letters put together and written out.

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::Ended;
use serde_json::{Value, json};

use crate::cli::{assert_ended, json, on, run};
use crate::dead_letters::Plant;

/// Commits a message; returns its id as people write it.
///
/// The id says nothing about its time, so only a bounded look finds it. One in sixteen of those that databases draw by
/// chance looks as if it did.
pub(crate) fn enqueue(database: &TestDatabase, topic: &str, payload: &str) -> String {
    let id = uuid::Uuid::new_v4();
    let literal = match database.kind() {
        Kind::Postgres => format!("'{id}'"),
        Kind::Mariadb | Kind::Sqlite => format!("x'{}'", id.simple()),
    };
    database.exec(&format!(
        "INSERT INTO outbox_messages (id, topic, ordering_key, payload, headers) \
         VALUES ({literal}, '{topic}', 'k-{topic}', '{payload}', '{{\"tenant\":\"shop\"}}')"
    ));
    id.to_string()
}

/// The id of the newest row of a table.
pub(crate) fn newest(database: &TestDatabase, table: &str, id: &str, order: &str) -> String {
    let id = match database.kind() {
        Kind::Postgres => format!("{id}::text"),
        Kind::Mariadb | Kind::Sqlite => format!("lower(hex({id}))"),
    };
    let found = database.query_text(&format!("SELECT {id} FROM {table} ORDER BY {table}.{order} DESC LIMIT 1"));
    uuid::Uuid::parse_str(found[0].as_ref().unwrap()).unwrap().to_string()
}

fn lines(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn column(ended: &Ended, name: &str) -> Vec<String> {
    lines(ended).iter().map(|row| row[name].as_str().unwrap_or("").to_owned()).collect()
}

async fn pending_and_waiting_messages_are_listed_the_oldest_first(database: TestDatabase) {
    Plant { key: Some("k"), ..Plant::new(1) }.waiting(&database, false);
    Plant { topic: "refund.issued", ..Plant::new(1) }.waiting(&database, true);
    Plant { destination: "audit", ..Plant::new(1) }.waiting(&database, false);
    database.exec("UPDATE outbox_deliveries SET state = 'retry' WHERE NOT blocked");
    enqueue(&database, "order.placed", "{}");
    enqueue(&database, "order.shipped", if database.kind() == Kind::Mariadb { "''x'' \\\\" } else { "''x'' \\" });
    let list = |arguments: &[&str]| {
        let ended = on(&database, &[&["messages", "list", "-o", "jsonl"], arguments].concat());
        assert_ended(&ended, 0);
        ended
    };
    let mut states = column(&list(&[]), "state");
    states.sort();
    assert_eq!(states, ["blocked", "pending", "pending", "retry", "retry"]);
    assert_eq!(column(&list(&["--state", "pending"]), "topic"), ["order.placed", "order.shipped"]);
    assert_eq!(column(&list(&["--state", "blocked"]), "topic"), ["refund.issued"]);
    assert_eq!(column(&list(&["--topic", "order.shipped"]), "state"), ["pending"]);
    assert_eq!(column(&list(&["--key", "k-order.shipped"]), "topic"), ["order.shipped"]);
    assert_eq!(column(&list(&["--destination", "audit"]), "destination"), ["audit"]);
    assert_eq!(column(&list(&["--destination", "billing", "--key", "k"]), "key"), ["k"]);
    assert_eq!(column(&list(&["--topic", "order.lost"]), "topic"), [""; 0]);

    assert_eq!(column(&list(&["--error", "Unavailable", "--destination", "audit"]), "destination"), ["audit"]);
    assert_eq!(column(&list(&["--error", "timeout"]), "topic"), [""; 0]);
    assert_eq!(column(&list(&["--since", "1d"]), "state"), ["pending", "pending"]);
    assert_eq!(list(&["--until", "2026-01-02T11:00:00Z"]).stdout.lines().count(), 3);
    assert_eq!(column(&list(&["--contains", "'x' \\"]), "topic"), ["order.shipped"]);

    let ended = list(&["--state", "pending", "--limit", "1"]);
    assert_eq!(column(&ended, "topic"), ["order.placed"]);
    assert_eq!(ended.stderr, "only the oldest 1 are shown; --limit shows more\n");
    // Nothing beyond the bound is looked at, and that is said.
    let ended = list(&["--topic", "order.shipped", "--scan", "1"]);
    assert_eq!(ended.stdout, "");
    let said = "only the oldest 1 pending messages and waiting deliveries were looked at; --scan looks further\n";
    assert_eq!(ended.stderr, said);
    // There is an index for a destination's key, so the bound does not count there.
    assert_eq!(column(&list(&["--destination", "billing", "--key", "k", "--scan", "1"]), "key"), ["k"]);

    let ended = on(&database, &["messages", "list", "--state", "pending"]);
    assert_ended(&ended, 0);
    let rows: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["MESSAGE", "SEQ", "STATE", "DESTINATION", "TOPIC", "KEY", "ATTEMPTS", "DUE", "LAST", "ERROR"]);
    assert_eq!(rows[1][2..], ["pending", "order.placed", "k-order.placed"]);
}
for_each_database!(pending_and_waiting_messages_are_listed_the_oldest_first);

async fn show_says_where_a_message_is(database: TestDatabase) {
    let first = enqueue(&database, "order.placed", "first payload");
    let pending = enqueue(&database, "order.placed", "second payload");
    let seq = database.query_i64("SELECT max(seq) FROM outbox_messages").to_string();
    Plant { error: "503 \x1b[31mUnavailable", ..Plant::new(900) }.waiting(&database, false);
    let waiting = newest(&database, "outbox_deliveries", "message_id", "id");
    let letter = Plant::new(901).dead(&database);
    let dead = newest(&database, "outbox_dead_letters", "message_id", "id");
    let show = |id: &str, arguments: &[&str]| on(&database, &[&["messages", "show", id], arguments].concat());

    let ended = show(&pending, &["-o", "json"]);
    assert_ended(&ended, 0);
    let found = json(&ended);
    assert_eq!(
        (&found["pending"]["message_id"], &found["waiting"], &found["dead"]),
        (&json!(pending), &json!([]), &json!([]))
    );
    assert_eq!(found["pending"]["key"], "k-order.placed");
    assert!(!ended.stdout.contains("payload") && !ended.stdout.contains("tenant"), "unasked: {}", ended.stdout);
    let ended = show(&pending, &["--payload"]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.contains("\nheaders {\"tenant\":\"shop\"}\n\nsecond payload\n"), "{}", ended.stdout);

    let ended = show(&waiting, &["-o", "json"]);
    assert_ended(&ended, 0);
    let found = json(&ended);
    assert_eq!((&found["pending"], &found["dead"]), (&Value::Null, &json!([])));
    let delivery = &found["waiting"][0];
    assert_eq!((&delivery["destination"], &delivery["attempts"]), (&json!("billing"), &json!(3)));
    assert_eq!((&delivery["history"], &delivery["due_at"]), (&json!([{ "n": 3 }]), &json!("2026-01-02T10:02:00.250Z")));
    let ended = show(&waiting, &[]);
    assert!(ended.stdout.contains("waiting       blocked, until 2026-01-02T10:02:00Z\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("last error    503 \\u{1b}[31mUnavailable\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("\nattempts at billing\n"), "{}", ended.stdout);

    let ended = show(&dead, &[]);
    assert_ended(&ended, 0);
    assert!(ended.stdout.contains(&format!("more          relay dead show {letter}\n")), "{}", ended.stdout);

    // By its number a message is found wherever it stands; without it only among those that are looked at.
    assert_ended(&show(&pending, &["--seq", &seq]), 0);
    let ended = show(&first, &["--seq", &seq]);
    assert_ended(&ended, 1);
    assert!(ended.stdout.ends_with(&format!("never was, or {seq} is not its number\n")), "{}", ended.stdout);
    assert_ended(&show(&first, &["--scan", "1"]), 0);
    let ended = show(&pending, &["--scan", "1"]);
    assert_ended(&ended, 1);
    assert!(
        ended.stdout.contains("it does not wait, is not dead, and is not among the oldest 1 pending\n"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("pass --seq"), "{}", ended.stdout);
    // What waits or is dead is found by its id, whatever the bound.
    assert_ended(&show(&waiting, &["--scan", "1"]), 0);

    let ended = show("00000000-0000-4000-8000-000000000000", &[]);
    assert_ended(&ended, 1);
    assert!(
        ended.stdout.ends_with("not here      it was delivered, was cancelled or discarded, or never was\n"),
        "{}",
        ended.stdout
    );
}
for_each_database!(show_says_where_a_message_is);

async fn a_message_is_taken_back_by_a_named_person(database: TestDatabase) {
    let pending = enqueue(&database, "order.placed", "{}");
    enqueue(&database, "order.placed", "{}");
    let seq = database.query_i64("SELECT min(seq) FROM outbox_messages").to_string();
    Plant { key: Some("k"), ..Plant::new(900) }.waiting(&database, false);
    let waiting = newest(&database, "outbox_deliveries", "message_id", "id");
    Plant { key: Some("k"), ..Plant::new(901) }.waiting(&database, true);
    let letter = Plant::new(902).dead(&database);
    let dead = newest(&database, "outbox_dead_letters", "message_id", "id");
    let cancel = |id: &str, arguments: &[&str]| on(&database, &[&["messages", "cancel", id], arguments].concat());
    let count = |table: &str| database.query_i64(&format!("SELECT count(*) FROM {table}"));

    let ended = cancel(&pending, &["--dry-run"]);
    assert_ended(&ended, 0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("would be cancelled: order.placed, pending\n", ""));
    for (id, is_pending, waiting) in [(&pending, true, 0), (&waiting, false, 1)] {
        let found = json(&cancel(id, &["--dry-run", "-o", "json"]));
        let expected = json!({
            "message_id": id, "cancelled": false, "dry_run": true, "pending": is_pending, "waiting": waiting
        });
        assert_eq!(found, expected);
    }
    // Nobody is at the terminal, and nobody said yes.
    let ended = cancel(&pending, &[]);
    assert_ended(&ended, 64);
    assert!(ended.stderr.contains("pass --yes to do it"), "{}", ended.stderr);
    assert_eq!((count("outbox_messages"), count("outbox_deliveries"), count("outbox_audit")), (2, 2, 0));

    // A number that is another message's takes nothing back.
    let ended = cancel(&pending, &["--seq", "4711", "--yes"]);
    assert_ended(&ended, 1);
    assert!(ended.stderr.contains("4711 is not its number"), "{}", ended.stderr);
    let ended = cancel(&pending, &["--seq", &seq, "--yes", "--actor", "ada", "--reason", "wrong price"]);
    assert_ended(&ended, 0);
    assert_eq!((ended.stdout, ended.stderr.as_str()), (format!("cancelled {pending}\n"), ""));
    assert_eq!((count("outbox_messages"), count("outbox_deliveries")), (1, 2));
    let audit = format!("target = 'message {pending}' AND actor = 'ada' AND reason = 'wrong price'");
    assert_eq!(count(&format!("outbox_audit WHERE action = 'message.cancel' AND {audit}")), 1);

    let ended = cancel(&waiting, &["--yes", "-o", "json"]);
    assert_ended(&ended, 0);
    assert_eq!(json(&ended), json!({ "message_id": waiting, "cancelled": true, "pending": false, "waiting": 1 }));
    assert_eq!(count("outbox_deliveries WHERE NOT blocked"), 1, "the next of its key goes on");

    // Cancelled once, it does not come back, and there is nothing to cancel.
    for (id, why) in [(&pending, "was cancelled or discarded"), (&dead, "relay dead discard")] {
        let ended = cancel(id, &["--yes"]);
        assert_ended(&ended, 1);
        assert_eq!(ended.stdout, "");
        assert!(ended.stderr.starts_with(&format!("relay: message {id} was not cancelled\n")), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }
    let ended = cancel(&dead, &["--yes", "-o", "json"]);
    assert_ended(&ended, 1);
    assert_eq!(json(&ended)["cancelled"], false);
    assert!(ended.stderr.contains(&format!("relay dead discard {letter}\n")), "{}", ended.stderr);
    assert_eq!((count("outbox_dead_letters"), count("outbox_audit")), (1, 2));
}
for_each_database!(a_message_is_taken_back_by_a_named_person);

async fn who_cancels_what_a_relay_may_be_sending_is_told(database: TestDatabase) {
    let id = enqueue(&database, "order.placed", "{}");
    let relay = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-000000000001'",
        Kind::Mariadb | Kind::Sqlite => "x'00000000000040008000000000000001'",
    };
    database.exec(&format!(
        "INSERT INTO outbox_relays (id, name, version, lease_ms) VALUES ({relay}, 'shop-1', '1', 5000)"
    ));
    database.exec(&format!("UPDATE outbox_partitions SET owner = {relay}"));
    let ended = on(&database, &["messages", "cancel", &id, "--yes"]);
    assert_ended(&ended, 0);
    let said = "a relay may have been sending it at that moment: it may have arrived all the same\n";
    assert_eq!(ended.stderr, said);
}
for_each_database!(who_cancels_what_a_relay_may_be_sending_is_told);

#[test]
fn what_is_named_by_another_kind_of_id_is_told_where_to_look() {
    let id = "0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10";
    for (arguments, said) in [
        (
            ["explain", "17", "-ojson"],
            "`17` is no message id (a UUID); for a dead letter: relay dead show 17".to_owned(),
        ),
        (["dead", "show", id], format!("see: relay messages show {id}")),
        (["messages", "show", "order-7"], "a message id is a UUID".to_owned()),
        (["dead", "redrive", "order-7"], "a dead letter's id is a number".to_owned()),
    ] {
        let ended = run(&arguments);
        assert_ended(&ended, 64);
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
    }
}

#[test]
fn a_state_that_does_not_exist_is_refused_with_those_that_do() {
    let ended = run(&["messages", "list", "--state", "nosuch"]);
    assert_ended(&ended, 64);
    let states = "pending, retry, blocked, scheduled, unrouted, unserved, overflow, suspect";
    assert!(ended.stderr.contains(states), "{}", ended.stderr);
    let database = TestDatabase::with_schema(Kind::Sqlite);
    for state in states.split(", ") {
        assert_ended(&on(&database, &["messages", "list", "--state", state]), 0);
    }
}

#[test]
fn a_message_is_named_by_its_id() {
    for arguments in [["messages", "show", "17"], ["messages", "list", "--scan=0"]] {
        let ended = run(&arguments);
        assert_ended(&ended, 64);
        assert!(ended.stderr.contains("--help"), "{}", ended.stderr);
    }
}

async fn dead_letters_are_put_together_by_what_they_died_of(database: TestDatabase) {
    for seq in [1, 2, 3] {
        Plant::new(seq).dead(&database);
    }
    let rejected = Plant { reason: "rejected", error: "422", topic: "refund.issued", ..Plant::new(4) }.dead(&database);
    let ended = on(&database, &["dead", "groups", "-o", "json"]);
    assert_ended(&ended, 0);
    let groups = json(&ended);
    let count = |n: usize| (&groups[n]["fingerprint"], &groups[n]["count"]);
    assert_eq!((count(0), count(1)), ((&json!("f-exhausted"), &json!(3)), (&json!("f-rejected"), &json!(1))));
    assert_eq!(groups[0]["first_died_at"], "2026-01-02T10:01:00.250Z");
    assert_eq!(groups[0]["last_died_at"], "2026-01-02T10:03:00.250Z");
    assert_eq!(groups[0]["example"]["seq"], 3);
    assert_eq!(groups[1]["example"]["id"], rejected);

    let ended = on(&database, &["dead", "groups", "--topic", "refund.issued"]);
    assert_ended(&ended, 0);
    let rows: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 2, "{}", ended.stdout);
    assert_eq!(rows[1][3..], [rejected.to_string().as_str(), "billing", "rejected", "f-rejected", "422"]);
    let ended = on(&database, &["dead", "groups", "--limit", "1", "-o", "jsonl"]);
    assert_eq!(
        (lines(&ended).len(), ended.stderr.as_str()),
        (1, "only the largest 1 groups are shown; --limit shows more\n")
    );
    let ended = on(&database, &["dead", "list", "--group", "f-exhausted", "-o", "jsonl"]);
    assert_eq!(lines(&ended).len(), 3, "a group's fingerprint is a filter");
    assert_eq!(json(&on(&database, &["dead", "groups", "--key", "none", "-o", "json"])), json!([]));
}
for_each_database!(dead_letters_are_put_together_by_what_they_died_of);

async fn an_export_holds_every_letter_with_its_payload(database: TestDatabase) {
    // More than are fetched at once.
    for seq in 1..=101 {
        Plant::new(seq).dead(&database);
    }
    Plant { payload: b"\xff\x00\x01", topic: "image.made", ..Plant::new(200) }.dead(&database);
    let ended = on(&database, &["dead", "export"]);
    assert_ended(&ended, 0);
    let letters = lines(&ended);
    let seqs: Vec<i64> = letters.iter().map(|letter| letter["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=101).chain([200]).collect::<Vec<_>>());
    assert_eq!(ended.stderr, "written: 102 dead letters\n");
    assert_eq!((&letters[0]["payload"], &letters[0]["headers"]), (&json!("{}"), &json!({ "a": "b" })));
    assert_eq!((&letters[101]["payload"], &letters[101]["payload_base64"]), (&Value::Null, &json!("/wAB")));

    let ended = on(&database, &["dead", "export", "--topic", "order.placed", "--limit", "2", "-o", "jsonl"]);
    assert_eq!(lines(&ended).len(), 2);
    let ended = on(&database, &["dead", "export", "--topic", "image.made"]);
    assert_eq!(lines(&ended).len(), 1);
    let ended = on(&database, &["dead", "export", "-o", "json"]);
    assert_ended(&ended, 64);
    assert_eq!(ended.stdout, "");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_dead_letters"), 102, "an export removes nothing");
}
for_each_database!(an_export_holds_every_letter_with_its_payload);
