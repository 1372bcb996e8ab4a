//! The database is put back to an earlier state under a relay that runs: numbers it has seen are handed out again, rows
//! it has settled are there again, and its own row is old or gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::network::{Network, Stretch};
use outbox_tests::process::Process;
use outbox_tests::receiver::{Answer, Receiver, Request};
use outbox_tests::server::Server;

use super::{LIMIT, bodies, configuration, enqueue, named, start, until_arrived};

/// Takes everything, what is called slow only after a while.
async fn receiver() -> Receiver {
    Receiver::start(|request: &Request| {
        let pause = if request.body.starts_with(b"slow") { 1500 } else { 0 };
        Answer::status(200).after(Duration::from_millis(pause))
    })
    .await
}

fn times(requests: &[Request], body: &str) -> usize {
    bodies(requests).iter().filter(|arrived| *arrived == body).count()
}

/// After the database was put back: what it holds is delivered, what is new as well and once, although it bears numbers
/// that were seen before, some of which are still being delivered.
async fn is_served_after_a_restore(relay: Process, receiver: &Receiver, database: &TestDatabase, highest: i64) {
    let before = receiver.requests().len();
    enqueue(database, named("new", 0..40));
    assert!(
        database.query_i64("SELECT max(seq) FROM outbox_messages") <= highest + 40,
        "no number was handed out again"
    );
    until_arrived(receiver, &named("new", 0..40)).await;
    let kept = |requests: &[Request]| named("kept", 0..20).iter().all(|body| times(&requests[before..], body) == 1);
    receiver.wait_until(LIMIT, "what the copy held came once more", kept).await;
    until_empty(database).await;
    // What was under way for rows that are gone has been judged by now.
    tokio::time::sleep(Duration::from_secs(2)).await;
    enqueue(database, named("after", 0..10));
    until_arrived(receiver, &named("after", 0..10)).await;
    until_empty(database).await;
    let requests = receiver.requests();
    for body in named("new", 0..40).iter().chain(&named("after", 0..10)) {
        assert_eq!(times(&requests, body), 1, "{body}");
    }
    let ended = relay.terminate(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

async fn until_empty(database: &TestDatabase) {
    let deadline = Instant::now() + LIMIT;
    while database.query_i64("SELECT (SELECT count(*) FROM outbox_messages) + (SELECT count(*) FROM outbox_deliveries)")
        > 0
    {
        assert!(Instant::now() < deadline, "messages are left behind");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_when_postgres_is_put_back_to_a_copy() {
    let mut server = Server::start(Kind::Postgres);
    let database = TestDatabase::on(&server);
    let receiver = receiver().await;
    enqueue(&database, named("kept", 0..20));
    // Copied while the relay runs, with its row and its partitions; its destination takes nothing yet.
    database.exec(
        "INSERT INTO outbox_destinations (name, patterns, ordering, paused_at) VALUES ('mail', 't', 'key', now())",
    );
    let relay = start(&configuration(&receiver, "2s"), database.url());
    relay.wait_for_line("partitions gained", LIMIT);
    let highest = database.query_i64("SELECT last_value FROM outbox_messages_seq_seq");
    server.back_up();
    database.exec("UPDATE outbox_destinations SET paused_at = NULL");
    until_arrived(&receiver, &named("kept", 0..20)).await;
    enqueue(&database, named("lost", 0..30));
    until_arrived(&receiver, &named("lost", 0..30)).await;
    // Longer than between two beats, so that the copy's is older.
    tokio::time::sleep(Duration::from_secs(1)).await;
    enqueue(&database, named("slow", 0..3));
    until_arrived(&receiver, &named("slow", 0..1)).await;

    server.restore();
    database.exec("UPDATE outbox_destinations SET paused_at = NULL");
    relay.wait_for_line("older copy of itself", LIMIT);
    is_served_after_a_restore(relay, &receiver, &database, highest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_when_mariadb_is_put_back_to_a_copy() {
    let mut server = Server::start(Kind::Mariadb);
    let database = TestDatabase::on(&server);
    let receiver = receiver().await;
    enqueue(&database, named("kept", 0..20));
    let highest = database.query_i64("SELECT max(seq) FROM outbox_messages");
    // Copied before any relay was there: no row of one, no owner, no destination.
    server.back_up();
    let relay = start(&configuration(&receiver, "2s"), database.url());
    until_arrived(&receiver, &named("kept", 0..20)).await;
    enqueue(&database, named("lost", 0..30));
    until_arrived(&receiver, &named("lost", 0..30)).await;
    enqueue(&database, named("slow", 0..3));
    until_arrived(&receiver, &named("slow", 0..1)).await;

    server.restore();
    is_served_after_a_restore(relay, &receiver, &database, highest).await;
}

/// A standby is promoted that has not received the last transactions. The relay's own row is there, and no beat was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_after_a_failover_that_lost_the_last_transactions() {
    let mut primary = Server::start(Kind::Postgres);
    let database = TestDatabase::on(&primary);
    let between = Stretch::to(primary.address());
    let standby = primary.standby_by(between.address());
    let stretch = Stretch::to(primary.address());
    let there = database.at(&database.url().replace(&primary.address().to_string(), &standby.address().to_string()));
    let receiver = receiver().await;
    let relay = start(&configuration(&receiver, "30s"), &stretch.url(database.url()));
    enqueue(&database, named("kept", 0..20));
    until_arrived(&receiver, &named("kept", 0..20)).await;
    until_empty(&database).await;
    until_empty(&there).await;

    between.set(Network::Cut);
    // A server writes down numbers ahead, 32 at a time; more than these have to be lost.
    enqueue(&database, named("lost", 0..100));
    until_arrived(&receiver, &named("lost", 0..100)).await;
    enqueue(&database, named("slow", 0..3));
    until_arrived(&receiver, &named("slow", 0..1)).await;
    let last = "SELECT last_value FROM outbox_messages_seq_seq";
    let highest = database.query_i64(last);
    primary.crash();
    standby.promote();
    stretch.lead_to(standby.address());
    let deadline = Instant::now() + LIMIT;
    while there.query_i64("SELECT pg_is_in_recovery()::int") == 1 {
        assert!(Instant::now() < deadline, "the standby is not promoted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let next = there.query_i64(last);
    assert!(next + 50 < highest, "no number is handed out again: {next} of {highest}");
    enqueue(&there, named("new", 0..200));
    until_arrived(&receiver, &named("new", 0..200)).await;
    until_empty(&there).await;
    // What was under way for rows that are gone has been judged by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let requests = receiver.requests();
    for body in named("new", 0..200) {
        assert_eq!(times(&requests, &body), 1, "{body}");
    }
    let ended = relay.terminate(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_when_a_sqlite_file_is_put_back_to_a_copy() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let receiver = receiver().await;
    enqueue(&database, named("kept", 0..20));
    let highest = database.query_i64("SELECT max(seq) FROM outbox_messages");
    let copy = beside(database.path(), ".copy");
    database.exec(&format!("VACUUM INTO '{}'", copy.display()));
    let relay = start(&configuration(&receiver, "2s"), database.url());
    until_arrived(&receiver, &named("kept", 0..20)).await;
    enqueue(&database, named("lost", 0..30));
    until_arrived(&receiver, &named("lost", 0..30)).await;
    enqueue(&database, named("slow", 0..3));
    until_arrived(&receiver, &named("slow", 0..1)).await;

    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(beside(database.path(), suffix)).unwrap();
    }
    std::fs::rename(&copy, database.path()).unwrap();
    is_served_after_a_restore(relay, &receiver, &database, highest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_that_vanishes_or_loses_its_tables_is_told() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let receiver = receiver().await;
    let relay = start(&configuration(&receiver, "2s"), database.url());
    enqueue(&database, named("first", 0..1));
    until_arrived(&receiver, &named("first", 0..1)).await;
    let copy = beside(database.path(), ".copy");
    database.exec(&format!("VACUUM INTO '{}'", copy.display()));
    database.exec("DROP TABLE outbox_messages");
    relay.wait_for_line("no such table: outbox_messages", LIMIT);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(beside(database.path(), suffix)).unwrap();
    }
    relay.wait_for_line("No such file", LIMIT);
    std::fs::rename(&copy, database.path()).unwrap();
    enqueue(&database, named("second", 0..1));
    until_arrived(&receiver, &named("second", 0..1)).await;
    let ended = relay.terminate(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}
