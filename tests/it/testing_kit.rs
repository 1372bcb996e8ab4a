//! `relay::testing`, used as a user would, on every database.

use std::time::{Duration, Instant};

use chrono::Utc;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::retry::RetryPolicy;
use relay::testing::{Answer, Clock, Outbox, Receiver};
use relay::{Handler, HandlerError, HandlerResult, Http, Relay};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::delivery::stage::{Running, enqueue, lines, plain, until, until_nothing_is_left};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LIMIT: Duration = Duration::from_secs(20);

async fn a_clock_jumps_over_back_off_and_holds(database: TestDatabase) {
    let clock = Clock::new();
    let answers = [Answer::status(500), Answer::status(429).header("retry-after", "600"), Answer::status(500)];
    let receiver = Receiver::answering(answers).await;
    let drain = async || {
        let retry = RetryPolicy::pauses(vec![HOUR; 5]);
        let billing = Http::new("billing", receiver.url("/")).retry(retry);
        Relay::builder(database.url()).clock(&clock).destination(billing).build().await.unwrap().drain().await.unwrap()
    };
    enqueue(&database, ["first"].map(plain));
    let began = Instant::now();
    assert_eq!(drain().await.retried, 1);
    assert_eq!(drain().await.attempts, 0, "the pause is not over");
    clock.advance(HOUR);
    assert_eq!(drain().await.retried, 1, "it is held now");
    enqueue(&database, ["second"].map(plain));
    assert_eq!(drain().await.attempts, 0, "the whole destination is held");
    clock.advance(Duration::from_secs(700));
    let drained = drain().await;
    assert_eq!((drained.attempts, drained.delivered), (2, 1), "the hold is over");
    clock.advance(HOUR);
    let drained = drain().await;
    assert!(drained.delivered == 1 && drained.is_clean(), "{drained:?}");
    assert!(began.elapsed() < LIMIT, "no hour was waited for");
    assert_eq!(receiver.requests().len(), 5);
}
for_each_database!(a_clock_jumps_over_back_off_and_holds);

async fn a_clock_jumps_to_scheduled_messages_and_past_their_end(database: TestDatabase) {
    let clock = Clock::new();
    let drain = async || {
        let all = Handler::raw("all", |_, _| async { HandlerResult::Ok(()) });
        Relay::builder(database.url()).clock(&clock).destination(all).build().await.unwrap().drain().await.unwrap()
    };
    let now = Utc::now();
    enqueue(
        &database,
        [plain("later").deliver_at(now + HOUR), plain("never").deliver_at(now + 2 * HOUR).expires_at(now + 3 * HOUR)],
    );
    assert_eq!(drain().await.attempts, 0);
    // A little more: the clock began before the hour was taken.
    clock.advance(HOUR + SECOND);
    assert_eq!(drain().await.delivered, 1);
    clock.advance(2 * HOUR + SECOND);
    let drained = drain().await;
    assert_eq!((drained.attempts, drained.dead_lettered), (0, 1));
    assert_eq!(drained.status.dead, [("all".to_owned(), "expired".to_owned(), 1)]);
}
for_each_database!(a_clock_jumps_to_scheduled_messages_and_past_their_end);

async fn a_relay_that_runs_obeys_a_jump_and_keeps_its_partitions(database: TestDatabase) {
    let clock = Clock::new();
    let receiver = Receiver::answering([Answer::status(500)]).await;
    let billing = Http::new("billing", receiver.url("/")).retry(RetryPolicy::pauses(vec![HOUR; 5]));
    let relay = Relay::builder(database.url()).clock(&clock).destination(billing);
    let relay = Running::start(relay).await;
    enqueue(&database, ["one"].map(plain));
    let waiting = || database.query_i64("SELECT count(*) FROM outbox_deliveries") == 1;
    until(&database, "it waits", waiting).await;
    let text = if database.kind() == Kind::Mariadb { "CHAR" } else { "TEXT" };
    let owners = "SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL";
    let epochs = || lines(&database, &format!("SELECT CAST(epoch AS {text}) FROM outbox_partitions"));
    let before = epochs();
    clock.advance(24 * HOUR);
    receiver.wait_for(2, LIMIT).await;
    until_nothing_is_left(&database).await;
    assert_eq!(database.query_i64(owners), 32);
    assert_eq!(epochs(), before, "no partition changed its owner");
    relay.stop().await;
}
for_each_database!(a_relay_that_runs_obeys_a_jump_and_keeps_its_partitions);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_is_gone_with_its_value() {
    let outbox = Outbox::new();
    let path = outbox.path().to_owned();
    outbox.connection().batch_execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)").unwrap();
    outbox.connection().transaction(|conn| outbox::enqueue(conn, Envelope::raw("t", "{}"))).unwrap();
    let never = Handler::raw("never", |_, _| async { HandlerResult::<()>::Err(HandlerError::reject("no")) });
    let drained = outbox.drain(outbox.relay().destination(never)).await;
    assert_eq!((drained.attempts, drained.dead_lettered), (1, 1));
    assert!(path.exists());
    drop(outbox);
    assert!(!path.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "the relay cannot drain: two destinations are called `a`")]
async fn a_relay_that_is_not_set_up_right_fails_the_test() {
    let outbox = Outbox::new();
    let handler = || Handler::raw("a", |_, _| async { HandlerResult::Ok(()) });
    outbox.drain(outbox.relay().destination(handler()).destination(handler())).await;
}

/// Posts as plainly as can be; the head and the body of the answer, or nothing when none came.
async fn post(receiver: &Receiver, path: &str, headers: &str, body: &str) -> Option<(String, String)> {
    let mut stream = tokio::net::TcpStream::connect(receiver.address()).await.unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A reset is no answer either.
    let _ = stream.read_to_string(&mut answer).await;
    answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_ascii_lowercase(), body.to_owned()))
}

#[tokio::test]
#[should_panic(expected = "2 requests expected within 50ms, 1 received:\n  POST /in  attempt 3 of m1: hello -> 202")]
async fn a_receiver_that_waits_in_vain_says_what_it_saw() {
    let receiver = Receiver::answering([Answer::status(202)]).await;
    post(&receiver, "/in", "webhook-id: m1\r\noutbox-attempt: 3\r\n", "hello").await.unwrap();
    receiver.wait_for(2, Duration::from_millis(50)).await;
}

#[tokio::test]
#[should_panic(expected = "1 requests expected, 0 received")]
async fn an_exact_count_is_exact() {
    let [_] = Receiver::start().await.received::<1>();
}

#[tokio::test]
async fn a_receiver_answers_as_its_script_says() {
    let slow = Duration::from_millis(80);
    let answers = [
        Answer::status(503).header("retry-after", "7").body("busy"),
        Answer::drop_connection(),
        Answer::status(204).after(slow),
    ];
    let receiver = Receiver::answering(answers).await;
    let ask = async || post(&receiver, "/hooks?a=1", "", "{\"n\":1}").await;
    let (head, body) = ask().await.unwrap();
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: 7\r\n"), "{head}");
    assert_eq!(body, "busy");
    assert_eq!(ask().await, None, "the connection was dropped");
    let began = Instant::now();
    assert!(ask().await.unwrap().0.starts_with("http/1.1 204 "));
    assert!(began.elapsed() >= slow);
    assert!(ask().await.unwrap().0.starts_with("http/1.1 200 "), "after the script");
    receiver.script(|received| Answer::status(if received.json()["n"] == 1 { 418 } else { 500 }));
    assert!(ask().await.unwrap().0.starts_with("http/1.1 418 "));
    let answered: Vec<_> = receiver.requests().iter().map(|request| request.answered).collect();
    assert_eq!(answered, [Some(503), None, Some(204), Some(200), Some(418)]);
    assert!(receiver.requests().iter().all(|request| request.path == "/hooks?a=1"));
    assert!(receiver.url("x").ends_with("/x") && receiver.url("/x").ends_with("/x"));
}
