//! What failed waits for its time, and what is known of it stands in the table meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::HandlerError;

use super::stage::{Log, Running, enqueue, keyed, lines, millis, now, relay_on, until, until_nothing_is_left};

async fn a_failed_attempt_waits_for_its_time_with_its_history(database: TestDatabase) {
    let database = Arc::new(database);
    let log = Log::default();
    let early = Arc::new(AtomicI64::new(0));
    let handler = {
        let (database, early) = (database.clone(), early.clone());
        log.handler("d", move |arrival| {
            // The row stands until the attempt is settled, so that its own clock can be asked.
            let select = format!("SELECT count(*) FROM outbox_deliveries WHERE due_at > {}", now(database.kind()));
            early.fetch_add(database.query_i64(&select), Ordering::SeqCst);
            match arrival.copy {
                n @ 1..=2 => Err(HandlerError::retry_after(millis(400), format!("no disk, {n}"))),
                _ => Ok(()),
            }
        })
    };
    let relay = Running::start(relay_on(&database).destination(handler)).await;
    let ids = enqueue(&database, [keyed("k", "m")]);

    for failed in [1, 2] {
        let select = format!(
            "SELECT concat_ws('|', state, attempts, last_verdict, last_error, \
             CASE WHEN due_at > {} THEN 'later' ELSE 'due' END, \
             CASE WHEN first_attempt_at IS NULL THEN 'never' ELSE 'begun' END, blocked) FROM outbox_deliveries",
            now(database.kind())
        );
        let rows = || lines(&database, &select);
        let no = if database.kind() == outbox_tests::database::Kind::Postgres { "f" } else { "0" };
        let wanted = format!("retry|{failed}|retry|error: no disk, {failed}|later|begun|{no}");
        until(&database, &wanted, || rows() == [wanted.clone()]).await;
        let history: serde_json::Value =
            serde_json::from_str(&lines(&database, "SELECT history FROM outbox_deliveries")[0]).unwrap();
        let entries = history.as_array().unwrap();
        assert_eq!(entries.len(), failed);
        for (at, entry) in entries.iter().enumerate() {
            assert_eq!(
                (&entry["n"], &entry["verdict"], &entry["code"]),
                (&(at + 1).into(), &"retry".into(), &"error".into())
            );
            assert_eq!((&entry["text"], &entry["relay"]), (&format!("no disk, {}", at + 1).into(), &"e2e".into()));
        }
    }
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let arrivals = log.arrivals();
    let attempts: Vec<(u32, bool)> = arrivals.iter().map(|arrival| (arrival.attempt, arrival.accepted)).collect();
    assert_eq!(attempts, [(1, false), (2, false), (3, true)]);
    assert!(arrivals.iter().all(|arrival| arrival.id == ids[0]));
    assert_eq!(early.load(Ordering::SeqCst), 0, "an attempt began before its time by the database's clock");
    for pair in arrivals.windows(2) {
        assert!(pair[1].at - pair[0].at >= millis(400), "{:?}", pair[1].at - pair[0].at);
    }
}
for_each_database!(a_failed_attempt_waits_for_its_time_with_its_history);
