//! A producer needs INSERT on the columns the front page of the crate names, and nothing else.

use diesel::connection::{Connection, LoadConnection, SimpleConnection};
use diesel::{MysqlConnection, RunQueryDsl};
use outbox::{Envelope, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};

use super::stored::payloads;

fn enqueues_but_sees_nothing<C>(database: &TestDatabase, conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    conn.transaction(|conn| {
        let full = Envelope::raw("some.topic", "one").key("k").header("x-a", "b").to("billing");
        outbox::enqueue(conn, full.delay(std::time::Duration::from_secs(1)))?;
        outbox::enqueue_all(conn, [Envelope::raw("some.topic", "two"), Envelope::raw("some.topic", b"\0".to_vec())])
    })
    .unwrap();
    assert_eq!(payloads(database), [&b"one"[..], b"two", b"\0"]);
    for forbidden in [
        "SELECT id FROM outbox_messages",
        "DELETE FROM outbox_messages",
        "UPDATE outbox_messages SET topic = 'x'",
        "INSERT INTO outbox_dead_letters (destination) VALUES ('x')",
    ] {
        let error = conn.batch_execute(forbidden).unwrap_err().to_string();
        assert!(error.contains("denied"), "`{forbidden}`: {error}");
    }
}

#[test]
fn column_level_insert_is_enough_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let role = format!("{}_producer", database.name());
    let mut conn = database.postgres();
    conn.batch_execute(&format!(
        "CREATE ROLE {role}; GRANT INSERT (id, topic, ordering_key, payload, payload_bytes, content_type, headers, \
         destination, deliver_at, expires_at, version, dedup_key) ON outbox_messages TO {role}; SET ROLE {role}"
    ))
    .unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        enqueues_but_sees_nothing(&database, &mut conn);
    }));
    conn.batch_execute(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
    outcome.unwrap();
}

#[test]
fn column_level_insert_is_enough_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let user = format!("p{}", &database.name()[database.name().len() - 16..]);
    let mut root = database.mariadb();
    // Fresh servers have a nameless user at localhost, who would come before one from anywhere.
    for host in ["%", "localhost"] {
        let create = format!("CREATE USER {user}@'{host}' IDENTIFIED BY 'producer'");
        let grant = format!(
            "GRANT INSERT (id, topic, ordering_key, payload, content_type, headers, destination, deliver_at, \
             expires_at, version, dedup_key) ON {}.outbox_messages TO {user}@'{host}'",
            database.name()
        );
        diesel::sql_query(create).execute(&mut root).unwrap();
        diesel::sql_query(grant).execute(&mut root).unwrap();
    }
    let (_, place) = database.url().rsplit_once('@').unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut conn = MysqlConnection::establish(&format!("mysql://{user}:producer@{place}")).unwrap();
        enqueues_but_sees_nothing(&database, &mut conn);
    }));
    diesel::sql_query(format!("DROP USER {user}@'%', {user}@localhost")).execute(&mut root).unwrap();
    outcome.unwrap();
}
