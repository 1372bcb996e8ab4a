//! What a producer takes back is not delivered, and what waited behind it is.

use std::time::Duration;

use outbox::Error;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::HandlerError;
use uuid::Uuid;

use super::stage::{Log, Running, enqueue, keyed, plain, relay_on, until_nothing_is_left, until_waiting};

const HOUR: Duration = Duration::from_secs(3600);

fn cancel(database: &TestDatabase, id: Uuid) -> bool {
    match database.kind() {
        Kind::Postgres => outbox::transaction(&mut database.postgres(), |conn| outbox::cancel(conn, id)),
        Kind::Mariadb => outbox::transaction(&mut database.mariadb(), |conn| outbox::cancel(conn, id)),
        Kind::Sqlite => outbox::transaction::<_, _, Error>(&mut database.sqlite(), |conn| outbox::cancel(conn, id)),
    }
    .unwrap()
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
