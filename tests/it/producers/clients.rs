//! Plain INSERTs, as any program in any language writes them, through the databases' own command-line clients.

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use super::stored::{hex, nasty_payloads, payloads, stored};

/// Feeds SQL to the client of the database and returns what it said when it failed.
fn client(database: &TestDatabase, charset: &str, sql: &str) -> Result<(), String> {
    let mut command = match database.kind() {
        Kind::Postgres => {
            let mut psql = Command::new("psql");
            psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.url()]);
            psql.env("PGCLIENTENCODING", "UTF8");
            psql
        }
        Kind::Mariadb => {
            let rest = database.url().strip_prefix("mysql://").unwrap();
            let (login, place) = rest.rsplit_once('@').unwrap();
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let (address, name) = place.split_once('/').unwrap();
            let (host, port) = address.split_once(':').unwrap_or((address, "3306"));
            let mut mariadb = Command::new("mariadb");
            mariadb.args(["--no-defaults", "--protocol=tcp", "-h", host, "-P", port, "-u", user]);
            mariadb.arg(format!("--default-character-set={charset}"));
            mariadb.arg(name.split('?').next().unwrap());
            mariadb.env("MYSQL_PWD", password);
            mariadb
        }
        Kind::Sqlite => {
            let mut sqlite = Command::new("sqlite3");
            sqlite.arg("-bail").arg(database.path());
            sqlite
        }
    };
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("`{program}` does not start: {error}\n  help: run the tests with `tests/run`")
        });
    // A client that gave up reads no further; what it says on stderr counts.
    let _ = child.stdin.take().unwrap().write_all(sql.as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A text as a literal. The shells of MariaDB and SQLite read lines and drop the carriage return before a line feed, so
/// it is spelled out for them.
fn quoted(kind: Kind, text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match kind {
        Kind::Mariadb => format!("'{}'", doubled.replace('\\', "\\\\").replace('\r', "\\r")),
        Kind::Postgres => format!("'{doubled}'"),
        Kind::Sqlite => format!("'{}'", doubled.replace('\r', "' || char(13) || '")),
    }
}

/// Bytes as an INSERT with a literal of bytes.
fn insert_bytes(kind: Kind, bytes: &[u8]) -> String {
    let hex = hex(bytes);
    match kind {
        Kind::Postgres => format!("INSERT INTO outbox_messages (topic, payload_bytes) VALUES ('a.b', '\\x{hex}');\n"),
        _ => format!("INSERT INTO outbox_messages (topic, payload) VALUES ('a.b', X'{hex}');\n"),
    }
}

fn insert_text(kind: Kind, text: &str) -> String {
    format!("INSERT INTO outbox_messages (topic, payload) VALUES ('a.b', {});\n", quoted(kind, text))
}

async fn exact_bytes(database: TestDatabase) {
    let kind = database.kind();
    let mut sql = String::from("BEGIN;\n");
    let mut expected = Vec::new();
    for payload in nasty_payloads() {
        sql.push_str(&insert_bytes(kind, &payload));
        expected.push(payload.clone());
        if let Some(text) = String::from_utf8(payload.clone()).ok().filter(|text| !text.contains('\0')) {
            sql.push_str(&insert_text(kind, &text));
            expected.push(payload);
        }
    }
    client(&database, "utf8mb4", &(sql + "COMMIT;\n")).unwrap();
    assert_eq!(payloads(&database), expected);
    // What nobody set has the documented defaults.
    let row = stored(&database).remove(0);
    assert_eq!((row.content_type.as_str(), row.headers.as_str(), row.key), ("application/json", "{}", None));
}
for_each_database!(payload_from_a_client_arrives_byte_for_byte, exact_bytes);

async fn fate(database: TestDatabase) {
    let kind = database.kind();
    let sql = [
        &*insert_text(kind, "autocommit"),
        "BEGIN;\n",
        &*insert_text(kind, "rolled back"),
        "ROLLBACK;\nBEGIN;\n",
        &*insert_text(kind, "committed"),
        "SAVEPOINT one;\n",
        &*insert_text(kind, "in the savepoint"),
        "ROLLBACK TO SAVEPOINT one;\n",
        &*insert_text(kind, "after it"),
        "COMMIT;\nBEGIN;\n",
        &*insert_text(kind, "left open"),
    ];
    client(&database, "utf8mb4", &sql.concat()).unwrap();
    assert_eq!(payloads(&database), [&b"autocommit"[..], b"committed", b"after it"]);
}
for_each_database!(client_shares_the_fate_of_its_transaction, fate);

async fn refused(database: TestDatabase) {
    let kind = database.kind();
    let long_key = "k".repeat(256);
    let bad = [
        insert_text(kind, "x").replace("'a.b'", "'a b'"),
        insert_text(kind, "x").replace("'a.b'", "'a..b'"),
        insert_text(kind, "x").replace("'a.b'", "'a.b\n'"),
        insert_text(kind, "x").replace("'a.b'", "''"),
        format!("INSERT INTO outbox_messages (topic, payload, ordering_key) VALUES ('a.b', 'x', '{long_key}');\n"),
        "INSERT INTO outbox_messages (topic) VALUES ('a.b');\n".to_owned(),
        "INSERT INTO outbox_messages (payload) VALUES ('x');\n".to_owned(),
    ];
    for sql in bad {
        assert!(client(&database, "utf8mb4", &sql).is_err(), "accepted on {kind}: {sql}");
    }
    assert!(payloads(&database).is_empty());
}
for_each_database!(database_refuses_what_no_relay_could_deliver, refused);

fn ids_are_distinct(database: &TestDatabase, charset: &str) {
    database.exec("DELETE FROM outbox_messages");
    let rows: Vec<String> = (0..200).map(|n| format!("('a.b', 'grüße {n}')")).collect();
    let sql = format!("INSERT INTO outbox_messages (topic, payload) VALUES {};\n", rows.join(", "));
    client(database, charset, &sql).unwrap();
    let rows = stored(database);
    let ids: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids.len(), 200, "{charset}");
    assert!(ids.iter().all(|id| id.len() == 32), "{charset}");
    // A payload is bytes: what the client sent, whatever it calls its charset.
    assert_eq!(rows[7].payload, "grüße 7".as_bytes(), "{charset}");
    // Without a key the partition comes from the id, so it spreads.
    assert!(database.query_i64("SELECT count(DISTINCT partition_no) FROM outbox_messages") > 16, "{charset}");
}

async fn distinct(database: TestDatabase) {
    let charsets: &[&str] =
        if database.kind() == Kind::Mariadb { &["utf8mb4", "utf8mb3", "latin1"] } else { &["utf8"] };
    for charset in charsets {
        ids_are_distinct(&database, charset);
    }
}
for_each_database!(ids_are_distinct_within_one_insert, distinct);

async fn same_partition(database: TestDatabase) {
    use diesel::connection::Connection;
    use outbox::{Envelope, Error};
    let kind = database.kind();
    let keys = ["1", "order-42", "", "Grüße 🦀", "a\\b'c", "A", "a", "trailing "];
    let mut sql = String::new();
    for key in keys {
        let key = quoted(kind, key);
        sql.push_str(&format!(
            "INSERT INTO outbox_messages (topic, payload, ordering_key) VALUES ('a.b', 'x', {key});\n"
        ));
    }
    client(&database, "utf8mb4", &sql).unwrap();
    let messages = keys.map(|key| Envelope::raw("a.b", "x").key(key));
    match kind {
        Kind::Postgres => database.postgres().transaction::<_, Error, _>(|conn| outbox::enqueue_all(conn, messages)),
        Kind::Mariadb => database.mariadb().transaction(|conn| outbox::enqueue_all(conn, messages)),
        Kind::Sqlite => database.sqlite().transaction(|conn| outbox::enqueue_all(conn, messages)),
    }
    .unwrap();
    let rows = stored(&database);
    let (theirs, ours) = rows.split_at(keys.len());
    for (theirs, ours) in theirs.iter().zip(ours) {
        assert_eq!(theirs.key, ours.key);
        let partition =
            |seq: i64| database.query_i64(&format!("SELECT partition_no FROM outbox_messages WHERE seq = {seq}"));
        assert_eq!(partition(theirs.seq), partition(ours.seq), "{:?} on {kind}", ours.key);
    }
}
for_each_database!(key_has_one_partition_whoever_wrote_it, same_partition);
