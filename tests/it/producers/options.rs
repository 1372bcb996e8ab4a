//! What an envelope says is what is stored, on every database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::Connection;
use outbox::{Envelope, Error, Receipt};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use super::stored::stored;

fn enqueue_all(database: &TestDatabase, messages: Vec<Envelope>) -> Vec<Receipt> {
    match database.kind() {
        Kind::Postgres => database.postgres().transaction::<_, Error, _>(|conn| outbox::enqueue_all(conn, messages)),
        Kind::Mariadb => database.mariadb().transaction(|conn| outbox::enqueue_all(conn, messages)),
        Kind::Sqlite => database.sqlite().transaction(|conn| outbox::enqueue_all(conn, messages)),
    }
    .unwrap()
}

/// The milliseconds since 1970 of a time column.
fn ms(database: &TestDatabase, column: &str) -> String {
    match database.kind() {
        Kind::Postgres => format!("CAST(extract(epoch FROM {column}) * 1000 AS bigint)"),
        Kind::Mariadb => format!("timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {column}) DIV 1000"),
        Kind::Sqlite => column.to_owned(),
    }
}

fn number(database: &TestDatabase, column: &str, payload: &str) -> i64 {
    let payload =
        if database.kind() == Kind::Postgres { format!("'{payload}'") } else { format!("CAST('{payload}' AS BINARY)") };
    let payload = if database.kind() == Kind::Sqlite { payload.replace("BINARY", "TEXT") } else { payload };
    database.query_i64(&format!("SELECT {column} FROM outbox_messages WHERE payload = {payload}"))
}

async fn options(database: TestDatabase) {
    let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
    let (soon, last) = (at("2100-02-03T04:05:06.789Z"), at("9999-12-31T23:59:59.999Z"));
    enqueue_all(
        &database,
        vec![
            Envelope::raw("a.b", "full")
                .key("Ünïcode \\ ' \n🦀")
                .header("X-Tenant", "it's \\ \"7\"")
                .correlation_id("c-1")
                .content_type("text/plain; charset=utf-8")
                .to("billing")
                .version(7)
                .deliver_at(soon)
                .expires_at(last),
            Envelope::raw("a.b", "plain").content_type("text/plain"),
            Envelope::raw("a.b", "delayed").delay(Duration::from_millis(3_600_001)),
        ],
    );
    let rows = stored(&database);
    assert_eq!(rows[0].key.as_deref(), Some("Ünïcode \\ ' \n🦀"));
    assert_eq!(rows[0].content_type, "text/plain; charset=utf-8");
    assert_eq!(rows[0].headers, r#"{"correlation-id":"c-1","x-tenant":"it's \\ \"7\""}"#);
    assert_eq!((rows[1].key.as_deref(), rows[1].headers.as_str()), (None, "{}"));
    let full = [
        ("version", 7),
        (&*ms(&database, "deliver_at"), soon.timestamp_millis()),
        (&*ms(&database, "expires_at"), last.timestamp_millis()),
        ("CASE WHEN destination = 'billing' THEN 1 END", 1),
    ];
    for (column, value) in full {
        assert_eq!(number(&database, column, "full"), value, "{column} on {}", database.kind());
    }
    let unset = "CASE WHEN destination IS NULL AND deliver_at IS NULL AND expires_at IS NULL AND dedup_key IS NULL \
                 AND operation_id IS NULL THEN version END";
    assert_eq!(number(&database, unset, "plain"), 1);
    // Both ends come from the database's clock, and the statement takes no second.
    let (delayed, created) = (ms(&database, "deliver_at"), ms(&database, "created_at"));
    let delay = number(&database, &format!("{delayed} - {created}"), "delayed");
    assert!((3_599_000..=3_601_000).contains(&delay), "{delay} on {}", database.kind());
}
for_each_database!(envelope_is_stored_as_it_says, options);

/// More than any statement takes on MariaDB and SQLite.
async fn many(database: TestDatabase) {
    let count = 7_000;
    let messages = (0..count).map(|n| Envelope::raw("a.b", n.to_string()).key((n % 3).to_string())).collect();
    let receipts = enqueue_all(&database, messages);
    let rows = stored(&database);
    assert_eq!(rows.len(), count);
    for (n, (row, receipt)) in rows.iter().zip(&receipts).enumerate() {
        assert_eq!(row.payload, n.to_string().into_bytes());
        assert_eq!(row.id, receipt.message_id.simple().to_string());
    }
}
for_each_database!(thousands_at_once_keep_their_order, many);

/// Beyond one MariaDB packet.
async fn large(database: TestDatabase) {
    let payload = "x".repeat(outbox::limits::PAYLOAD_BYTES_CEILING);
    let messages = (0..3).map(|_| Envelope::raw("a.b", payload.clone()).payload_max(payload.len())).collect();
    enqueue_all(&database, messages);
    let size = "sum(octet_length(payload))";
    let size = if database.kind() == Kind::Sqlite { "sum(length(payload))" } else { size };
    assert_eq!(database.query_i64(&format!("SELECT {size} FROM outbox_messages")), 3 * payload.len() as i64);
}
for_each_database!(largest_payloads_fit_together, large);

/// A table in which somebody else prepared nothing: another search path, another outbox.
#[test]
fn search_path_chooses_the_outbox_on_postgres() {
    use diesel::connection::SimpleConnection;
    let database = TestDatabase::create(Kind::Postgres);
    let mut conn = database.postgres();
    for schema in ["shop", "mail"] {
        conn.batch_execute(&format!("CREATE SCHEMA {schema}; SET search_path = {schema}")).unwrap();
        assert_eq!(outbox::migrations::run(&mut conn).unwrap().len(), 1, "{schema} has an outbox of its own");
    }
    conn.transaction(|conn| outbox::enqueue(conn, Envelope::raw("a.b", "x"))).unwrap();
    assert_eq!(database.query_i64("SELECT count(*) FROM mail.outbox_messages"), 1);
    assert_eq!(database.query_i64("SELECT count(*) FROM shop.outbox_messages"), 0);
}

#[test]
fn insert_is_prepared_once_per_connection() {
    use diesel::sql_types::{BigInt, Text};
    use diesel::{QueryableByName, RunQueryDsl};

    #[derive(QueryableByName)]
    struct Statements {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = database.postgres();
    for n in 0..5 {
        let message = Envelope::raw("a.b", n.to_string());
        let message = if n % 2 == 0 { message.key("k").delay(Duration::from_secs(1)) } else { message };
        conn.transaction(|conn| outbox::enqueue(conn, message)).unwrap();
    }
    let named = "SELECT count(*) AS count FROM pg_prepared_statements WHERE statement LIKE '-- message_insert%'";
    assert_eq!(diesel::sql_query(named).get_result::<Statements>(&mut conn).unwrap().count, 1);

    #[derive(QueryableByName)]
    struct Status {
        #[diesel(sql_type = Text)]
        value: String,
    }
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = database.mariadb();
    let prepared = |conn: &mut diesel::MysqlConnection| -> i64 {
        let status = "SELECT variable_value AS value FROM information_schema.session_status \
                      WHERE variable_name = 'COM_STMT_PREPARE'";
        diesel::sql_query(status).get_result::<Status>(conn).unwrap().value.parse().unwrap()
    };
    let before = prepared(&mut conn);
    for n in 0..5 {
        conn.transaction(|conn| outbox::enqueue(conn, Envelope::raw("a.b", n.to_string()))).unwrap();
    }
    // The question itself is prepared each time it is asked.
    assert_eq!(prepared(&mut conn) - before, 2);
}
