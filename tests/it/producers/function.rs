//! PostgreSQL's `outbox_enqueue`, for programs that would rather call than INSERT.

use diesel::connection::{Connection, SimpleConnection};
use outbox_tests::database::{Kind, TestDatabase};

use super::stored::{hex, nasty_payloads, stored};

#[test]
fn function_stores_text_and_bytes_exactly() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut expected = Vec::new();
    for payload in nasty_payloads() {
        database.exec(&format!("SELECT outbox_enqueue('some.bytes', '\\x{}'::bytea)", hex(&payload)));
        expected.push((payload.clone(), "application/octet-stream".to_owned()));
        if let Some(text) = String::from_utf8(payload.clone()).ok().filter(|text| !text.contains('\0')) {
            database.exec(&format!("SELECT outbox_enqueue('some.text', '{}')", text.replace('\'', "''")));
            expected.push((payload, "application/json".to_owned()));
        }
    }
    let rows: Vec<_> = stored(&database).into_iter().map(|row| (row.payload, row.content_type)).collect();
    assert_eq!(rows, expected);
}

#[test]
fn function_takes_every_option_by_name_and_returns_the_id() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let ids = database.query_text(
        "SELECT outbox_enqueue('order.placed', '{}', ordering_key => '7', content_type => 'application/vnd.shop+json', \
         headers => '{\"x-a\":\"b\"}', destination => 'billing', deliver_at => '2100-01-01 00:00Z', \
         expires_at => '2101-01-01 00:00Z', version => 3)::text",
    );
    let row = stored(&database).remove(0);
    assert_eq!(ids, [Some(uuid::Uuid::parse_str(&row.id).unwrap().to_string())]);
    assert_eq!((row.key.as_deref(), row.content_type.as_str()), (Some("7"), "application/vnd.shop+json"));
    assert_eq!(row.headers, "{\"x-a\":\"b\"}");
    let others = "destination = 'billing' AND version = 3 AND deliver_at = '2100-01-01 00:00Z' \
                  AND expires_at = '2101-01-01 00:00Z'";
    assert_eq!(database.query_i64(&format!("SELECT count(*) FROM outbox_messages WHERE {others}")), 1);
}

#[test]
fn function_belongs_to_the_transaction_that_calls_it() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = database.postgres();
    let rolled_back = conn.transaction(|conn| {
        conn.batch_execute("SELECT outbox_enqueue('order.placed', '{}')")?;
        Err::<(), _>(diesel::result::Error::RollbackTransaction)
    });
    assert!(rolled_back.is_err());
    assert!(stored(&database).is_empty());
    conn.transaction(|conn| conn.batch_execute("SELECT outbox_enqueue('order.placed', '{}')")).unwrap();
    assert_eq!(stored(&database).len(), 1);
}
