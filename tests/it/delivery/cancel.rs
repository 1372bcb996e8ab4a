//! What a producer takes back is not delivered, and what waited behind it is.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use outbox::Error;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::HandlerError;
use uuid::Uuid;

use super::stage::{
    Arrival, Log, Running, enqueue, keyed, millis, not_now, plain, relay_on, until_nothing_is_left, until_waiting,
};

const HOUR: Duration = Duration::from_secs(3600);

fn cancel(database: &TestDatabase, id: Uuid) -> bool {
    try_cancel(database, id).unwrap()
}

/// Nothing when the database preferred another transaction.
fn try_cancel(database: &TestDatabase, id: Uuid) -> Option<bool> {
    match database.kind() {
        Kind::Postgres => outbox::transaction(&mut database.postgres(), |conn| outbox::cancel(conn, id)),
        Kind::Mariadb => outbox::transaction(&mut database.mariadb(), |conn| outbox::cancel(conn, id)),
        Kind::Sqlite => outbox::transaction::<_, _, Error>(&mut database.sqlite(), |conn| outbox::cancel(conn, id)),
    }
    .ok()
}

async fn a_message_taken_back_lets_those_behind_it_go(database: TestDatabase) {
    let log = Log::default();
    let handler = log.handler("d", |arrival| match &*arrival.body {
        "head" => Err(HandlerError::retry_after(HOUR, "not now")),
        _ => Ok(()),
    });
    let relay = Running::start(relay_on(&database).destination(handler)).await;
    let ids = enqueue(&database, [keyed("k", "head"), keyed("k", "behind"), plain("reminder").delay(HOUR)]);
    until_waiting(&database, &[" scheduled", "d blocked", "d retry"]).await;
    assert!(cancel(&database, ids[2]));
    assert!(cancel(&database, ids[0]));
    log.until_accepted("d", &["behind"]).await;
    until_nothing_is_left(&database).await;
    assert!(!ids.iter().any(|id| cancel(&database, *id)), "what is gone or delivered cannot be taken back");
    relay.stop().await;
    assert_eq!((log.arrivals().len(), log.attempts("d", "head")), (2, 1));
}
for_each_database!(a_message_taken_back_lets_those_behind_it_go);

async fn messages_taken_back_while_they_are_delivered_do_not_come_back(database: TestDatabase) {
    const MESSAGES: usize = 400;
    const KEYS: usize = 20;
    let log = Log::default();
    // Half of the attempts fail: messages become rows, rows are written again, keys are parked and come free.
    let handler = |name: &'static str| {
        let fails = |copy: usize, body: &str| (copy + body.len()).is_multiple_of(2);
        log.slow_handler(name, millis(8), move |arrival| match fails(arrival.copy, &arrival.body) {
            true => Err(not_now()),
            false => Ok(()),
        })
        .concurrency(4)
    };
    let relay = Running::start(relay_on(&database).destination(handler("a")).destination(handler("b"))).await;
    let shared = Arc::new(database);
    let (ids, takes) = mpsc::channel::<(Uuid, String)>();
    let taker = {
        let database = shared.clone();
        std::thread::spawn(move || {
            let mut taken = HashMap::new();
            for (id, body) in takes {
                if let Some(true) = try_cancel(&database, id) {
                    taken.insert(body, Instant::now());
                }
            }
            taken
        })
    };
    for n in 0..MESSAGES / KEYS {
        let bodies: Vec<String> =
            (0..KEYS).map(|key| "x".repeat(1 + (n * KEYS + key) % 7) + &format!(" {n} {key}")).collect();
        let envelopes = bodies.iter().enumerate().map(|(key, body)| keyed(&key.to_string(), body));
        for (id, body) in enqueue(&shared, envelopes).into_iter().zip(bodies) {
            // Every third: the producer is not to be faster than whoever takes back.
            if body.len() % 3 == 0 {
                ids.send((id, body)).unwrap();
            }
        }
        tokio::time::sleep(millis(5)).await;
    }
    drop(ids);
    let taken = tokio::task::spawn_blocking(move || taker.join().unwrap()).await.unwrap();
    until_nothing_is_left(&shared).await;
    // Whatever a relay had read ahead has been attempted by now: nothing is left that could come.
    let settled = log.arrivals().len();
    relay.stop().await;
    assert_eq!(log.arrivals().len(), settled);
    let arrivals = log.arrivals();
    let (mut lost, mut after, mut again, mut back) = (0, 0, 0, 0);
    for n in 0..MESSAGES / KEYS {
        for key in 0..KEYS {
            let body = "x".repeat(1 + (n * KEYS + key) % 7) + &format!(" {n} {key}");
            let is_taken = taken.get(&body);
            for destination in ["a", "b"] {
                lost += usize::from(is_taken.is_none() && !log.has_accepted(destination, &body));
                let is_late = |arrival: &&Arrival| is_taken.is_some_and(|at| arrival.at > *at);
                let of_unit = arrivals.iter().filter(|other| other.destination == destination && other.body == body);
                let late = of_unit.filter(is_late).count();
                after += usize::from(late > 0);
                // What was read before may be attempted, and nothing of that can be written. Twice while the first attempt
                // at the other destination is under way: then a retry goes out from memory.
                again += usize::from(late > 1);
                back += usize::from(late > 2);
            }
        }
    }
    let kind = shared.kind();
    let taken = taken.len();
    println!(
        "{kind}: {taken} of {MESSAGES} taken back, {after} of their deliveries attempted once more, {again} twice, lost {lost}"
    );
    // Of two attempts in a row one is accepted, so a third would be of something that had come back.
    assert_eq!((lost, back), (0, 0));
    assert!(taken > 0, "there was no race");
}
for_each_database!(messages_taken_back_while_they_are_delivered_do_not_come_back);
