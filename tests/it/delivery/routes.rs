//! Who gets a message, and when: patterns, named destinations, later ones, and those nobody serves yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::Utc;
use outbox::Envelope;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;

use super::stage::{Log, Running, enqueue, keyed, millis, now, plain, relay_on, until_nothing_is_left, until_waiting};

async fn a_message_to_one_destination_goes_there_only(database: TestDatabase) {
    let log = Log::default();
    let relay = relay_on(&database).destination(log.accepting("a")).destination(log.accepting("b").topics(["never.*"]));
    let relay = Running::start(relay).await;
    enqueue(&database, [plain("all"), plain("for b").to("b"), plain("for a").to("a"), plain("again")]);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let mut a = log.accepted("a");
    a.sort();
    assert_eq!(a, ["again", "all", "for a"]);
    assert_eq!(log.accepted("b"), ["for b"]);
    assert_eq!(log.arrivals().len(), 4);
}
for_each_database!(a_message_to_one_destination_goes_there_only);

async fn an_empty_destination_means_none(database: TestDatabase) {
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("a"))).await;
    database.exec("INSERT INTO outbox_messages (topic, payload, destination) VALUES ('t', 'x', '')");
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("a"), ["x"]);
}
for_each_database!(an_empty_destination_means_none);

async fn a_later_message_is_not_early_and_holds_nobody_up(database: TestDatabase) {
    let database = Arc::new(database);
    let (log, early) = (Log::default(), Arc::new(AtomicI64::new(0)));
    let handler = {
        let (database, early) = (database.clone(), early.clone());
        log.handler("d", move |arrival| {
            if arrival.body.starts_with("later") {
                // Its row stands until the attempt is settled; the longer one of the two must not be the one in hand.
                let millis = &arrival.headers["x-millis"];
                let select = format!(
                    "SELECT count(*) FROM outbox_deliveries WHERE deliver_at > {} AND headers LIKE '%\"{millis}\"%'",
                    now(database.kind())
                );
                early.fetch_add(database.query_i64(&select), Ordering::SeqCst);
            }
            Ok(())
        })
    };
    let relay = relay_on(&database).destination(handler).destination(log.accepting("other").topics(["none"]));
    let relay = Running::start(relay).await;
    enqueue(
        &database,
        [
            keyed("k", "later 900").delay(millis(900)).header("x-millis", "900"),
            keyed("k", "later 600").to("d").deliver_at(Utc::now() + millis(600)).header("x-millis", "600"),
            keyed("k", "now"),
        ],
    );
    until_waiting(&database, &[" scheduled", "d scheduled"]).await;
    log.until_accepted("d", &["now"]).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("d"), ["now", "later 600", "later 900"]);
    assert_eq!(early.load(Ordering::SeqCst), 0, "a message was delivered before its time");
}
for_each_database!(a_later_message_is_not_early_and_holds_nobody_up);

async fn what_nobody_takes_waits_visibly_until_somebody_does(database: TestDatabase) {
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("a").topics(["a.*"]))).await;
    enqueue(
        &database,
        [
            Envelope::raw("b.one", "b 1").key("k"),
            Envelope::raw("b.one", "b 2").key("k"),
            Envelope::raw("a.one", "a 1").key("k"),
            Envelope::raw("a.one", "to c").to("c"),
        ],
    );
    log.until_accepted("a", &["a 1"]).await;
    until_waiting(&database, &[" unrouted", " unrouted", "c unrouted"]).await;
    relay.stop().await;

    let relay = relay_on(&database)
        .destination(log.accepting("a").topics(["a.*"]))
        .destination(log.accepting("b").topics(["b.**"]))
        .destination(log.accepting("c").topics(["none"]));
    let relay = Running::start(relay).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!((log.accepted("a"), log.accepted("b")), (vec!["a 1".into()], vec!["b 1".into(), "b 2".into()]));
    assert_eq!(log.accepted("c"), ["to c"]);
}
for_each_database!(what_nobody_takes_waits_visibly_until_somebody_does);

async fn a_destination_served_elsewhere_keeps_its_messages_until_it_is_served(database: TestDatabase) {
    let log = Log::default();
    let both = || Running::start(relay_on(&database).destination(log.accepting("a")).destination(log.accepting("b")));
    let relay = both().await;
    enqueue(&database, [keyed("k", "one")]);
    until_nothing_is_left(&database).await;
    relay.stop().await;

    let relay = Running::start(relay_on(&database).destination(log.accepting("a"))).await;
    enqueue(&database, [keyed("k", "two"), keyed("k", "three"), plain("four")]);
    log.until_accepted("a", &["two", "three", "four"]).await;
    until_waiting(&database, &["b unserved"; 3]).await;
    assert_eq!(log.accepted("b"), ["one"]);
    relay.stop().await;

    let relay = both().await;
    enqueue(&database, [keyed("k", "five")]);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    for destination in ["a", "b"] {
        let accepted = log.accepted(destination);
        let keyed: Vec<_> = accepted.iter().filter(|body| *body != "four").collect();
        assert_eq!(keyed, ["one", "two", "three", "five"]);
        assert_eq!(accepted.len(), 5);
    }
}
for_each_database!(a_destination_served_elsewhere_keeps_its_messages_until_it_is_served);
