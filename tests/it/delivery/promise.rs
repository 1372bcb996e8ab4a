//! Committed means delivered, as it was; rolled back means never.

use diesel::connection::{LoadConnection, TransactionManager};
use outbox::{Envelope, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::{Handler, Http};
use std::time::{Duration, Instant};

use super::stage::{
    LIMIT, Log, Running, enqueue, enqueue_and_roll_back, keyed, not_now, plain, relay_on, until_nothing_is_left,
};

async fn what_is_rolled_back_is_never_delivered_and_what_is_committed_arrives_as_it_was(database: TestDatabase) {
    let (log, receiver) = (Log::default(), Receiver::always(Answer::status(204)).await);
    let relay =
        relay_on(&database).destination(log.accepting("handler")).destination(Http::new("http", receiver.url("/hook")));
    let relay = Running::start(relay).await;

    let text = "{\"quote\": \"it's \\\\ ünique\", \n\t\"n\": 1.50}";
    let binary: Vec<u8> = (0..=255).collect();
    enqueue_and_roll_back(&database, [keyed("k", "rolled back"), plain("rolled back")]);
    let ids = enqueue(
        &database,
        [
            Envelope::raw("order.placed", text).key("k €").header("x-tenant", "eu; \"q\"").content_type("text/plain"),
            Envelope::raw("order.placed", binary.clone()).content_type("application/octet-stream"),
            Envelope::raw("order.placed", ""),
        ],
    );
    enqueue_and_roll_back(&database, [keyed("k €", "rolled back")]);
    // When this one has come, whatever was to come before it has: the feed goes by number.
    let last = enqueue(&database, [keyed("k €", "last")]);

    let requests = receiver.wait_until(LIMIT, "four requests", |requests| requests.len() >= 4).await;
    log.until("four messages", |log| log.accepted("handler").len() >= 4).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;

    let bodies = [text.as_bytes(), &binary, b"", b"last"];
    let ids = [ids, last].concat();
    assert_eq!((log.arrivals().len(), receiver.requests().len()), (4, 4));
    for (id, body) in ids.iter().zip(bodies) {
        let arrival = log.arrivals().into_iter().find(|arrival| arrival.id == *id).unwrap();
        assert_eq!((&arrival.payload[..], arrival.attempt), (body, 1));
        let request = requests.iter().find(|request| request.id() == id.to_string()).unwrap();
        assert_eq!(&request.body[..], body);
        assert_eq!(request.header("outbox-attempt"), Some("1"));
    }
    let first = log.arrivals().into_iter().find(|arrival| arrival.id == ids[0]).unwrap();
    assert_eq!(first.key.as_deref(), Some("k €"));
    assert_eq!(first.headers.iter().collect::<Vec<_>>(), [(&"x-tenant".to_owned(), &"eu; \"q\"".to_owned())]);
    let request = requests.iter().find(|request| request.id() == ids[0].to_string()).unwrap();
    assert_eq!(request.header("x-tenant"), Some("eu; \"q\""));
    assert_eq!(request.header("content-type"), Some("text/plain"));
    assert_eq!(request.header("ce-type"), Some("order.placed"));
}
for_each_database!(what_is_rolled_back_is_never_delivered_and_what_is_committed_arrives_as_it_was);

/// Well below the period of the sweep, which would find it as well.
const PROMPTLY: Duration = Duration::from_secs(3);

async fn late_commit<C>(database: &TestDatabase, conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let log = Log::default();
    let relay = Running::start(relay_on(database).destination(log.accepting("d"))).await;
    enqueue(database, [plain("before")]);
    log.until_accepted("d", &["before"]).await;

    C::TransactionManager::begin_transaction(conn).unwrap();
    outbox::enqueue(conn, keyed("k", "late 1")).unwrap();
    // Numbers above it, committed and delivered in several rounds.
    let others: Vec<String> = (0..60).map(|n| format!("other {n}")).collect();
    for round in others.chunks(20) {
        enqueue(database, round.iter().map(|body| keyed(body, body)));
        log.until("the others pass", |log| round.iter().all(|body| log.has_accepted("d", body))).await;
    }
    until_nothing_is_left(database).await;
    outbox::enqueue(conn, keyed("k", "late 2")).unwrap();
    assert!(!log.has_accepted("d", "late 1"));

    C::TransactionManager::commit_transaction(conn).unwrap();
    let committed = Instant::now();
    enqueue(database, [keyed("k", "later")]);
    log.until_accepted("d", &["late 1", "late 2", "later"]).await;
    let came = |body: &str| log.arrivals().into_iter().find(|arrival| arrival.body == body).unwrap().at;
    let took = came("late 1").saturating_duration_since(committed);
    println!("{}: found {took:?} after the commit", database.kind());
    assert!(took < PROMPTLY, "found {took:?} after the commit");
    assert!(came("late 1") < came("late 2") && came("late 2") < came("later"), "{:?}", log.accepted("d"));
    until_nothing_is_left(database).await;
    relay.stop().await;
    assert_eq!(log.arrivals().len(), 1 + 60 + 3);
}

async fn a_transaction_that_drew_its_number_first_and_commits_last_is_found_and_keeps_its_keys_order(
    database: TestDatabase,
) {
    match database.kind() {
        Kind::Postgres => late_commit(&database, &mut database.postgres()).await,
        Kind::Mariadb => late_commit(&database, &mut database.mariadb()).await,
        Kind::Sqlite => unreachable!("there is one writer, so numbers are drawn in the order of commits"),
    }
}
for_each_database!(
    a_transaction_that_drew_its_number_first_and_commits_last_is_found_and_keeps_its_keys_order,
    a_transaction_that_drew_its_number_first_and_commits_last_is_found_and_keeps_its_keys_order,
    [postgres, mariadb]
);

async fn three_destinations_get_a_message_once_each_although_one_fails_first(database: TestDatabase) {
    let log = Log::default();
    let receiver = Receiver::in_turn([Answer::status(500), Answer::status(500), Answer::status(200)]).await;
    let failing_once = |log: &Log| -> Handler {
        log.handler("flaky", |arrival| if arrival.copy == 1 { Err(not_now()) } else { Ok(()) })
    };
    let relay = relay_on(&database)
        .destination(log.accepting("steady"))
        .destination(failing_once(&log))
        .destination(Http::new("http", receiver.url("/")));
    let relay = Running::start(relay).await;
    let ids = enqueue(&database, [keyed("k", "one"), plain("two")]);
    until_nothing_is_left(&database).await;
    relay.stop().await;

    let mut steady = log.accepted("steady");
    steady.sort();
    assert_eq!(steady, ["one", "two"]);
    let mut flaky = log.accepted("flaky");
    flaky.sort();
    assert_eq!(flaky, ["one", "two"]);
    assert_eq!(log.arrivals().len(), 2 + 4);
    for id in ids {
        let requests: Vec<_> = receiver.requests().into_iter().filter(|r| r.id() == id.to_string()).collect();
        let attempts: Vec<_> = requests.iter().map(|request| request.header("outbox-attempt").unwrap()).collect();
        assert_eq!(attempts, ["1", "2", "3"]);
    }
}
for_each_database!(three_destinations_get_a_message_once_each_although_one_fails_first);
