//! The harness' own promises about databases.

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

async fn a_new_outbox_holds_no_message(database: TestDatabase) {
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 0);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_partitions"), 32);
    assert_eq!(database.query_i64("SELECT schema_version FROM outbox_meta"), 1);
}
for_each_database!(a_new_outbox_holds_no_message);

#[test]
fn test_databases_do_not_see_each_other() {
    for kind in Kind::ALL {
        let (one, other) = (TestDatabase::create(kind), TestDatabase::create(kind));
        one.exec("CREATE TABLE here (n int); INSERT INTO here VALUES (7), (8)");
        assert_eq!(one.query_i64("SELECT sum(n) FROM here"), 15);
        assert!(other.try_exec("SELECT n FROM here").is_err(), "{kind}");
    }
}

#[test]
fn text_comes_back_in_order_with_its_nulls() {
    for kind in Kind::ALL {
        let database = TestDatabase::create(kind);
        database.exec("CREATE TABLE t (n int, s varchar(20)); INSERT INTO t VALUES (2, 'b'), (1, NULL), (3, 'ä')");
        let found = database.query_text("SELECT s FROM t ORDER BY n LIMIT 10");
        assert_eq!(found, [None, Some("b".to_owned()), Some("ä".to_owned())], "{kind}");
    }
}

#[test]
fn server_database_is_gone_after_drop_although_a_transaction_is_open() {
    for kind in [Kind::Postgres, Kind::Mariadb] {
        let watcher = TestDatabase::create(kind);
        let database = TestDatabase::create(kind);
        let name = database.name().to_owned();
        let count = match kind {
            Kind::Postgres => format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'"),
            _ => format!("SELECT count(*) FROM information_schema.schemata WHERE schema_name = '{name}'"),
        };
        assert_eq!(watcher.query_i64(&count), 1);
        database.exec("CREATE TABLE t (n int)");
        let mut holders: (Option<diesel::PgConnection>, Option<diesel::MysqlConnection>) = (None, None);
        match kind {
            Kind::Postgres => holders.0.insert(database.postgres()).batch_execute("BEGIN; INSERT INTO t VALUES (1)"),
            _ => holders.1.insert(database.mariadb()).batch_execute("BEGIN; INSERT INTO t VALUES (1)"),
        }
        .unwrap();

        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _owned = database;
            panic!("as a failing test would");
        }));

        assert!(panicked.is_err());
        assert_eq!(watcher.query_i64(&count), 0, "{kind}");
    }
}

#[test]
fn sqlite_file_is_gone_after_drop() {
    let database = TestDatabase::create(Kind::Sqlite);
    database.exec("CREATE TABLE t (n int)");
    let path = database.path().to_owned();
    assert!(path.exists());
    drop(database);
    assert!(!path.exists());
}
