//! `ordering = "none"`: a message that fails, waits or dies holds nobody of its key up, and only at that destination.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::sink::Ordering as Order;
use relay::{AfterDeadLetter, HandlerError};

use super::keys::leave_behind_a_dead_relay;
use super::stage::{
    Arrival, Log, Running, discard_all, enqueue, keyed, lines, millis, not_now, relay_on, until, until_dead,
    until_nothing_is_left, until_waiting,
};

async fn a_failing_message_holds_up_nobody_where_order_is_given_up(database: TestDatabase) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let script = || {
        let open = open.clone();
        move |arrival: &Arrival| match arrival.body.as_str() {
            "fails" if !open.load(Ordering::SeqCst) => Err(not_now()),
            "dies" => Err(HandlerError::reject("no")),
            _ => Ok(()),
        }
    };
    let start = || {
        let free = log.handler("free", script()).ordering(Order::None).after_dead_letter(AfterDeadLetter::Block);
        let relay = relay_on(&database).lease(millis(1000)).destination(free);
        Running::start(relay.destination(log.handler("strict", script())))
    };
    let passes = async |before: &str, bodies: [&str; 2]| {
        let failed = log.attempts("free", "fails");
        log.until(before, |log| log.attempts("free", "fails") > failed + 1).await;
        enqueue(&database, bodies.map(|body| keyed("k", body)));
        log.until_accepted("free", &bodies).await;
        assert_eq!(log.accepted("strict"), [""; 0], "beside it the key waits");
    };
    let relay = start().await;
    enqueue(&database, ["fails", "dies", "first"].map(|body| keyed("k", body)));
    until_dead(&database, &["free rejected"]).await;
    log.until_accepted("free", &["first"]).await;
    passes("it fails again", ["a1", "a2"]).await;
    relay.stop().await;

    let relay = start().await;
    passes("it fails after a restart", ["b1", "b2"]).await;
    relay.stop().await;

    leave_behind_a_dead_relay(&database);
    let relay = start().await;
    passes("it fails after a takeover", ["c1", "c2"]).await;
    let rows = "SELECT concat_ws('|', destination, CASE WHEN in_order THEN 1 ELSE 0 END, CASE WHEN blocked THEN 1 ELSE 0 END, \
                count(*)) FROM outbox_deliveries GROUP BY destination, in_order, blocked";
    let wanted = ["free|0|0|1", "strict|1|0|1", "strict|1|1|8"];
    until(&database, "all but one are through at one, all wait at the other", || lines(&database, rows) == wanted)
        .await;

    open.store(true, Ordering::SeqCst);
    until_dead(&database, &["free rejected", "strict rejected"]).await;
    until_waiting(&database, &[]).await;
    relay.stop().await;
    let wanted = ["fails", "first", "a1", "a2", "b1", "b2", "c1", "c2"];
    assert_eq!(log.accepted("strict"), wanted);
    assert_eq!(log.accepted("free").len(), wanted.len());
    assert_eq!(log.accepted("free").last().map(String::as_str), Some("fails"));
    assert_eq!(log.attempts("free", "dies"), 1);
    discard_all(&database);
    until_nothing_is_left(&database).await;
}
for_each_database!(a_failing_message_holds_up_nobody_where_order_is_given_up);
