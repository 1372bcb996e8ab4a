//! A destination that asks for a pause, or is paused by a person, takes nothing; the others notice nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::Http;

use super::stage::{
    LIMIT, Log, Running, enqueue, keyed, lines, millis, now, relay_on, until, until_dead, until_nothing_is_left,
    until_waiting,
};

async fn a_destination_that_asks_for_a_pause_is_held_and_no_attempt_is_counted(database: TestDatabase) {
    let log = Log::default();
    let busy = |status| {
        let asked = AtomicBool::new(false);
        Receiver::start(move |_| match asked.swap(true, Ordering::SeqCst) {
            false => Answer::status(status).header("retry-after", "2"),
            true => Answer::status(200),
        })
    };
    let receivers = [busy(429).await, busy(503).await];
    let relay = relay_on(&database)
        .destination(log.accepting("free"))
        .destination(Http::new("h429", receivers[0].url("/")))
        .destination(Http::new("h503", receivers[1].url("/")));
    let relay = Running::start(relay).await;
    enqueue(&database, [keyed("k", "first")]);
    let holds = format!(
        "SELECT concat_ws('|', name, CASE WHEN held_until > {} THEN 'held' ELSE 'free' END) FROM outbox_destinations",
        now(database.kind())
    );
    let expected = ["free|free", "h429|held", "h503|held"];
    until(&database, "two are held", || lines(&database, &holds) == expected).await;
    let rows = "SELECT concat_ws('|', destination, state, attempts, last_verdict) FROM outbox_deliveries";
    let expected = ["h429|retry|0|hold", "h503|retry|0|hold"];
    until(&database, "both wait uncounted", || lines(&database, rows) == expected).await;
    enqueue(&database, [keyed("k", "second"), keyed("other", "third")]);
    log.until_accepted("free", &["first", "second", "third"]).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;

    for receiver in receivers {
        let requests = receiver.requests();
        let first = requests[0].at;
        let attempts: Vec<_> = requests.iter().map(|request| request.header("outbox-attempt").unwrap()).collect();
        assert_eq!(attempts, ["1"; 4], "{requests:?}");
        let early = requests[1..].iter().filter(|request| request.at - first < Duration::from_secs(2));
        assert_eq!(early.count(), 0, "a held destination was asked: {requests:?}");
        let of_key: Vec<_> =
            requests.iter().map(|request| &request.body[..]).filter(|body| *body != b"third").collect();
        assert_eq!(of_key, [&b"first"[..], b"first", b"second"]);
    }
    assert_eq!(log.arrivals().len(), 3);
}
for_each_database!(a_destination_that_asks_for_a_pause_is_held_and_no_attempt_is_counted);

async fn a_paused_destination_takes_nothing_within_a_second_and_goes_on_when_resumed(database: TestDatabase) {
    const OBEYED: Duration = Duration::from_secs(1);
    let log = Log::default();
    let relay = relay_on(&database).destination(log.accepting("pausing")).destination(log.accepting("steady"));
    let relay = Running::start(relay).await;
    let mut count = 0;
    let mut enqueue_one = || {
        let key = ["a", "b"][count % 2];
        enqueue(&database, [keyed(key, &format!("{key} {count:03}"))]);
        count += 1;
        count
    };
    for _ in 0..4 {
        enqueue_one();
    }
    log.until("both take", |log| log.accepted("pausing").len() == 4 && log.accepted("steady").len() == 4).await;

    database.exec(&format!(
        "UPDATE outbox_destinations SET paused_at = {}, paused_by = 'ada' WHERE name = 'pausing'",
        now(database.kind())
    ));
    let paused = Instant::now();
    while paused.elapsed() < OBEYED {
        enqueue_one();
        tokio::time::sleep(millis(40)).await;
    }
    for _ in 0..9 {
        enqueue_one();
    }
    let all = enqueue_one();
    log.until("the other one takes all", |log| log.accepted("steady").len() == all).await;
    until(&database, "nothing is pending", || database.query_i64("SELECT count(*) FROM outbox_messages") == 0).await;
    let late = log.arrivals().into_iter().filter(|a| a.destination == "pausing" && a.at > paused + OBEYED);
    assert_eq!(late.count(), 0);
    let waiting = database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE destination = 'pausing'");
    assert!(waiting >= 10, "{waiting} wait");
    assert_eq!(usize::try_from(waiting).unwrap() + log.accepted("pausing").len(), all);

    database.exec("UPDATE outbox_destinations SET paused_at = NULL WHERE name = 'pausing'");
    until_nothing_is_left(&database).await;
    relay.stop().await;
    for destination in ["pausing", "steady"] {
        let accepted = log.accepted(destination);
        assert_eq!(accepted.len(), all);
        for key in ["a", "b"] {
            let of_key: Vec<_> = accepted.iter().filter(|body| body.starts_with(key)).collect();
            assert!(of_key.is_sorted(), "{destination}: {of_key:?}");
        }
    }
}
for_each_database!(a_paused_destination_takes_nothing_within_a_second_and_goes_on_when_resumed);

async fn a_receiver_that_is_gone_pauses_its_destination_visibly(database: TestDatabase) {
    let (log, receiver) = (Log::default(), Receiver::in_turn([Answer::status(410), Answer::status(200)]).await);
    let relay =
        relay_on(&database).destination(Http::new("http", receiver.url("/"))).destination(log.accepting("other"));
    let relay = Running::start(relay).await;
    enqueue(&database, [keyed("k", "first")]);
    until_dead(&database, &["http gone"]).await;
    let paused = "SELECT count(*) FROM outbox_destinations WHERE name = 'http' AND paused_at IS NOT NULL";
    until(&database, "it is paused", || database.query_i64(paused) == 1).await;
    enqueue(&database, [keyed("k", "second")]);
    log.until_accepted("other", &["first", "second"]).await;
    until_waiting(&database, &["http overflow"]).await;
    assert_eq!(receiver.requests().len(), 1);

    database.exec("UPDATE outbox_destinations SET paused_at = NULL WHERE name = 'http'");
    receiver.wait_until(LIMIT, "the second is asked for", |requests| requests.len() == 2).await;
    relay.stop().await;
}
for_each_database!(a_receiver_that_is_gone_pauses_its_destination_visibly);
