//! What only the SQLite store has to get right: a file that people move, replace and share with other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use relay::message::PartitionSet;
use relay::store::{Page, RelayRow, Store, StoreError, Wanted};
use relay::store::{StoreOptions, open::open};
use uuid::Uuid;

async fn store(database: &TestDatabase) -> Arc<dyn Store> {
    store_at(database.url()).await.unwrap()
}

async fn store_at(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    open(url, &StoreOptions::default()).await
}

async fn poll_from(store: &dyn Store, cursor: i64) -> Page {
    let wanted = Wanted { cursor, holes: Vec::new(), tail: true };
    store.message_read(&wanted, PartitionSet::ALL, 100, None).await.unwrap()
}

fn problem(result: Result<(), StoreError>) -> (String, String) {
    match result {
        Err(StoreError::Unsuitable { problem, help }) => (problem, help),
        other => panic!("expected an unsuitable database, got {other:?}"),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[tokio::test]
async fn a_file_that_does_not_exist_is_named_with_help_and_never_created() {
    let database = TestDatabase::create(Kind::Sqlite);
    let store = store(&database).await;
    let (problem, help) = problem(store.verify().await);
    assert!(problem.contains("outbox.db") && problem.contains("does not exist"), "{problem}");
    assert!(help.contains("relay migrate up"), "{help}");
    let read = store.message_read(&Wanted::default(), PartitionSet::ALL, 1, None).await;
    assert!(matches!(read, Err(StoreError::Unreachable { .. })), "{read:?}");
    assert!(!database.path().exists());

    // The same store serves the file once it is there.
    database.apply_schema();
    store.verify().await.unwrap();
}

#[tokio::test]
async fn files_that_are_no_outbox_are_refused_with_help() {
    let database = TestDatabase::create(Kind::Sqlite);
    database.exec("CREATE TABLE orders (id INTEGER PRIMARY KEY)");
    let (what, help) = problem(store(&database).await.verify().await);
    assert!(what.contains("tables are missing") && help.contains("relay migrate up"), "{what} {help}");

    let database = TestDatabase::with_schema(Kind::Sqlite);
    database.exec("UPDATE outbox_meta SET schema_version = 2");
    let (what, _) = problem(store(&database).await.verify().await);
    assert!(what.contains("schema version 2") && what.contains("needs 1"), "{what}");

    let database = TestDatabase::create(Kind::Sqlite);
    database.exec("PRAGMA encoding = 'UTF-16'; CREATE TABLE orders (id INTEGER PRIMARY KEY)");
    let (what, help) = problem(store(&database).await.verify().await);
    assert!(what.contains("UTF-16") && help.contains("UTF-8"), "{what} {help}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letter.txt");
    std::fs::write(&file, "Dear reader, ".repeat(1000)).unwrap();
    let store = store_at(&format!("sqlite:{}", file.display())).await.unwrap();
    assert!(problem(store.verify().await).0.contains("not a SQLite database"));
    let store = store_at(&format!("sqlite:{}", folder.path().display())).await.unwrap();
    assert!(problem(store.verify().await).0.contains("is a directory"));
}

#[tokio::test]
async fn a_file_put_in_its_place_is_another_incarnation() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database).await;
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('a', 'old')");
    let before = poll_from(&*store, 0).await;
    assert_eq!(before.from_tail.len(), 1);
    assert_eq!(poll_from(&*store, 0).await.incarnation, before.incarnation);

    let restored = TestDatabase::with_schema(Kind::Sqlite);
    for n in 0..3 {
        restored.exec(&format!("INSERT INTO outbox_messages (topic, payload) VALUES ('a', 'new {n}')"));
    }
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(database.path(), suffix));
    }
    std::fs::rename(restored.path(), database.path()).unwrap();
    let mut application = database.sqlite();
    application.batch_execute("PRAGMA journal_mode = WAL; UPDATE outbox_meta SET routes_version = 7").unwrap();
    assert!(beside(database.path(), "-wal").exists());

    let after = poll_from(&*store, 0).await;
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!(after.from_tail.len(), 3);
    // The log beside the file belongs to the new one: closing the old one has not touched it.
    assert!(beside(database.path(), "-wal").exists());
    assert_eq!(store.destination_read(None).await.unwrap().version, 7);
    // The writing connection follows too.
    let relay = RelayRow {
        id: Uuid::new_v4(),
        name: "r".into(),
        version: "1".into(),
        lease: Duration::from_secs(5),
        serves: Vec::new(),
    };
    store.relay_register(&relay).await.unwrap();
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_relays"), 1);
}

#[tokio::test]
async fn numbers_handed_out_a_second_time_are_another_incarnation() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database).await;
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('a', '1'), ('a', '2')");
    let before = poll_from(&*store, 0).await;
    // What `.restore` does inside the same file.
    database.exec("DELETE FROM outbox_messages; UPDATE sqlite_sequence SET seq = 0 WHERE name = 'outbox_messages'");
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('a', '3')");
    let after = poll_from(&*store, 2).await;
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!(poll_from(&*store, 0).await.incarnation, after.incarnation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_still_without_wal_is_taken_while_the_application_writes() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let mut application = database.sqlite();
    assert_eq!(database.query_text("SELECT journal_mode FROM pragma_journal_mode"), [Some("delete".to_owned())]);
    application.batch_execute("BEGIN IMMEDIATE").unwrap();
    let store = store(&database).await;
    let mut verify = tokio::spawn(async move { store.verify().await });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut verify).await;
    assert!(early.is_err(), "it did not wait: {early:?}");
    application.batch_execute("COMMIT").unwrap();
    verify.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_the_applications_transaction_and_a_read_does_not() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database).await;
    store.verify().await.unwrap();
    let mut application = database.sqlite();
    application
        .batch_execute("BEGIN IMMEDIATE; INSERT INTO outbox_messages (topic, payload) VALUES ('a', 'not yet')")
        .unwrap();

    let writer = Arc::clone(&store);
    let relay = RelayRow {
        id: Uuid::new_v4(),
        name: "r".into(),
        version: "1".into(),
        lease: Duration::from_secs(5),
        serves: Vec::new(),
    };
    let write = tokio::spawn(async move { writer.relay_register(&relay).await });
    assert!(poll_from(&*store, 0).await.from_tail.is_empty());
    assert!(!write.is_finished());

    application.batch_execute("COMMIT").unwrap();
    write.await.unwrap().unwrap();
    assert_eq!(poll_from(&*store, 0).await.from_tail.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_lasts_too_long_makes_the_relay_try_again() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database).await;
    store.verify().await.unwrap();
    let mut application = database.sqlite();
    application.batch_execute("BEGIN IMMEDIATE").unwrap();
    let refused = store.relay_beat(Uuid::new_v4(), false).await;
    assert!(matches!(refused, Err(StoreError::TryAgain { .. })), "{refused:?}");
    application.batch_execute("ROLLBACK").unwrap();
    assert!(store.relay_beat(Uuid::new_v4(), false).await.unwrap().is_none());
}

#[tokio::test]
async fn a_call_whose_future_was_dropped_runs_to_its_end() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database).await;
    let relay = RelayRow {
        id: Uuid::new_v4(),
        name: "r".into(),
        version: "1".into(),
        lease: Duration::from_secs(5),
        serves: Vec::new(),
    };
    store.relay_register(&relay).await.unwrap();
    let mut application = database.sqlite();
    application.batch_execute("BEGIN IMMEDIATE").unwrap();
    let mut beat = store.relay_beat(relay.id, false);
    assert!(matches!(beat.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    drop(beat);
    application.batch_execute("COMMIT").unwrap();

    let seen = store.relay_beat(relay.id, false).await.unwrap().unwrap();
    assert_eq!(seen.relays[0].beat, 2);
}

#[tokio::test]
async fn the_file_is_closed_when_the_store_is_dropped() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database).await;
    store.verify().await.unwrap();
    poll_from(&*store, 0).await;
    assert!(open_files(database.path()) > 0);
    drop(store);
    // Whether the write-ahead log goes with it is SQLite's affair: not when two connections close at the same moment.
    let limit = Instant::now() + Duration::from_secs(10);
    while open_files(database.path()) > 0 {
        assert!(Instant::now() < limit, "{} files are still open", open_files(database.path()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many files this process has open that belong to the database at `path`.
fn open_files(path: &Path) -> usize {
    let name = path.to_str().unwrap();
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with(name)).count()
}

#[test]
fn keys_of_every_shape_spread_over_the_partitions() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    // Each is an expression over a counter `n`; the database makes two thousand keys of it.
    let shapes = BTreeMap::from([
        ("no key", "NULL"),
        ("digits", "CAST(n AS TEXT)"),
        ("even digits", "CAST(n * 1000 AS TEXT)"),
        ("padded digits", "printf('%012d', n)"),
        ("a common beginning", "'order-' || n"),
        ("a common ending", "n || '@shop.example.com'"),
        ("a path", "printf('tenant-%d/orders/%d/items', n % 40, n / 40)"),
        ("short", "char(97 + n % 26) || char(97 + n / 26 % 26) || char(97 + n / 676)"),
        ("several bytes", "'schlüssel-' || char(19968 + n) || '-ж'"),
        (
            "uuid",
            "lower(printf('%s-%s-4%s-a%s-%s', hex(randomblob(4)), hex(randomblob(2)), substr(hex(randomblob(2)), 2), \
             substr(hex(randomblob(2)), 2), hex(randomblob(6))))",
        ),
    ]);
    for (shape, key) in shapes {
        database.exec(&format!(
            "DELETE FROM outbox_messages; WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers \
             WHERE n < 2000) INSERT INTO outbox_messages (topic, payload, ordering_key) SELECT 'a', '', {key} \
             FROM numbers"
        ));
        let of_each = "SELECT count(*) AS n FROM outbox_messages GROUP BY partition_no";
        let used = database.query_i64(&format!("SELECT count(*) FROM ({of_each})"));
        let fullest = database.query_i64(&format!("SELECT max(n) FROM ({of_each})"));
        assert_eq!(used, 32, "{shape}");
        assert!(fullest < 2 * 2000 / 32, "{shape}: {fullest} of 2000 keys share a partition");
        let outside = "SELECT count(*) FROM outbox_messages WHERE typeof(partition_no) <> 'integer' \
                       OR partition_no NOT BETWEEN 0 AND 31";
        assert_eq!(database.query_i64(outside), 0, "{shape}");
    }
}

#[test]
fn what_the_relay_could_not_read_is_refused_at_the_insert() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let insert = |columns: &str, values: &str| {
        database.try_exec(&format!("INSERT INTO outbox_messages ({columns}) VALUES ({values})"))
    };
    for topic in ["''", "'.a'", "'a.'", "'a..b'", "'a b'", "'ä'", "'a\n'", "x'61'", "CAST(x'610062' AS TEXT)", "NULL"]
    {
        assert!(insert("topic, payload", &format!("{topic}, ''")).is_err(), "topic {topic}");
    }
    for key in ["x'61'", "CAST(x'6100' AS TEXT)", "replace(hex(zeroblob(128)), '0', 'k')"] {
        assert!(insert("topic, payload, ordering_key", &format!("'a', '', {key}")).is_err(), "key {key}");
    }
    for (column, value) in [
        ("seq", "0"),
        ("seq", "-5"),
        ("id", "'0123456789abcdef'"),
        ("id", "x'00'"),
        ("deliver_at", "'2030-01-01T00:00:00Z'"),
        ("expires_at", "1.5"),
        ("created_at", "CURRENT_TIMESTAMP"),
        ("version", "'two'"),
        ("headers", "x'7b7d'"),
    ] {
        assert!(
            insert(&format!("topic, payload, {column}"), &format!("'a', '', {value}")).is_err(),
            "{column} {value}"
        );
    }
    assert!(insert("topic, payload", "'a', 5").is_err());
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 0);

    let longest = "replace(hex(zeroblob(127)), '0', 'k') || 'k'";
    insert("topic, payload, ordering_key", &format!("'A-_.9', x'00ff', {longest}")).unwrap();
    insert("topic, payload", "replace(hex(zeroblob(64)), '0', 't'), ''").unwrap();
}
