//! What the checker is shown of the tables.

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::history::{Dead, Snapshot, Waiting};
use outbox_tests::tables::snapshot;

async fn tables_are_shown_as_they_are(database: TestDatabase) {
    let kind = database.kind();
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    let id_value = match kind {
        Kind::Postgres => format!("'{id}'"),
        Kind::Mariadb | Kind::Sqlite => "x'00112233445566778899aabbccddeeff'".to_owned(),
    };
    let (past, future) = match kind {
        Kind::Sqlite => ("0", "95617584000000"),
        Kind::Postgres | Kind::Mariadb => ("'1999-12-31 00:00:00'", "'5000-01-01 00:00:00'"),
    };
    let truth = |value: bool| match (kind, value) {
        (Kind::Postgres, true) => "true",
        (Kind::Postgres, false) => "false",
        (_, true) => "1",
        (_, false) => "0",
    };
    let columns =
        "message_id, seq, partition_no, topic, payload, content_type, headers, version, created_at, destination";
    let values = |destination: &str| {
        format!("{id_value}, 7, 3, 't', '{{}}', 'application/json', '{{}}', 1, {past}, '{destination}'")
    };
    let waiting = |destination: &str, blocked: bool, in_order: bool, due_at: &str| {
        database.exec(&format!(
            "INSERT INTO outbox_deliveries ({columns}, state, blocked, in_order, due_at) VALUES ({}, 'retry', {}, {}, {due_at})",
            values(destination), truth(blocked), truth(in_order)
        ));
    };
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('t', '{}')");
    waiting("late", false, true, past);
    waiting("early", false, false, future);
    waiting("behind", true, true, past);
    database.exec(&format!(
        "INSERT INTO outbox_dead_letters ({columns}, in_order, life, attempts, history, reason, fingerprint, blocks_key, \
         died_at) VALUES ({}, {}, 0, 1, '[]', 'rejected', 'f', {}, {past})",
        values("dead"), truth(true), truth(true)
    ));

    let mut found = snapshot(&database);

    assert_eq!(found.pending.len(), 1);
    assert_eq!(found.pending.pop().unwrap().len(), id.len());
    found.waiting.sort_by(|one, other| one.destination.cmp(&other.destination));
    let row = |destination: &str, blocked, in_order, due| Waiting {
        id: id.to_owned(),
        destination: destination.to_owned(),
        state: "retry".to_owned(),
        blocked,
        in_order,
        due,
    };
    let dead =
        Dead { id: id.to_owned(), destination: "dead".to_owned(), reason: "rejected".to_owned(), blocks_key: true };
    let waiting =
        vec![row("behind", true, true, true), row("early", false, false, false), row("late", false, true, true)];
    assert_eq!(found, Snapshot { pending: Vec::new(), waiting, dead: vec![dead] });
}
for_each_database!(tables_are_shown_as_they_are);
