//! Who gets a message, and when: patterns, named destinations, later ones, and those nobody serves yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::Utc;
use outbox::Envelope;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::process::Process;
use relay::store::open::open;
use relay::store::{DestinationSpec, StoreOptions};

use super::shares::{allow, refuse};
use super::stage::{
    LIMIT, Log, Running, enqueue, keyed, millis, now, plain, relay_on, until, until_nothing_is_left, until_waiting,
};

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

async fn a_head_without_a_route_does_not_keep_its_follower_from_one(database: TestDatabase) {
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("a").topics(["a"]))).await;
    enqueue(&database, [Envelope::raw("nobody", "head").key("k"), Envelope::raw("b", "follower").key("k")]);
    until_waiting(&database, &[" unrouted", " unrouted"]).await;
    relay.stop().await;

    let relay = relay_on(&database).destination(log.accepting("a").topics(["a"]));
    let relay = Running::start(relay.destination(log.accepting("b").topics(["b"]))).await;
    log.until_accepted("b", &["follower"]).await;
    until_waiting(&database, &[" unrouted"]).await;
    relay.stop().await;
}
for_each_database!(a_head_without_a_route_does_not_keep_its_follower_from_one);

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

/// What a message was routed by is known as long as it is in hands, however often the routes change meanwhile.
async fn a_destination_that_came_while_a_message_was_attempted_gets_it_after_any_number_of_changes(
    database: TestDatabase,
) {
    const CHANGES: usize = 20;
    let (log, begun) = (Log::default(), Arc::new(AtomicI64::new(0)));
    let (gate, opened) = tokio::sync::watch::channel(false);
    let counted = begun.clone();
    let held = relay::Handler::raw("d", move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    let relay = Running::start(relay_on(&database).destination(held.topics(["t"]).timeout(millis(120_000)))).await;
    enqueue(&database, [keyed("k", "first"), keyed("k", "second")]);
    until(&database, "the first is attempted", || begun.load(Ordering::SeqCst) == 1).await;

    let store = open(database.url(), &StoreOptions::default()).await.unwrap();
    let register = async |name: String, topic: &str| {
        let spec = DestinationSpec { name, patterns: vec![topic.into()], ordering: "key".into() };
        store.destination_register(&[spec]).await.unwrap();
    };
    register("audit".into(), "t").await;
    for n in 0..CHANGES {
        register(format!("d{n}"), "never").await;
        // It is written when the routes have been read once more.
        enqueue(&database, [Envelope::raw("nobody", n.to_string())]);
        let rows = i64::try_from(n).unwrap() + 1;
        let unrouted = "SELECT count(*) FROM outbox_deliveries WHERE state = 'unrouted'";
        until(&database, "the relay knows the routes", || database.query_i64(unrouted) == rows).await;
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    gate.send(true).unwrap();
    let mut wanted = vec![" unrouted"; CHANGES];
    wanted.extend(["audit unserved"; 2]);
    until_waiting(&database, &wanted).await;
    relay.stop().await;

    let relay = relay_on(&database).destination(log.accepting("d").topics(["t"]));
    let relay = Running::start(relay.destination(log.accepting("audit").topics(["t"]))).await;
    log.until_accepted("audit", &["first", "second"]).await;
    until_waiting(&database, &[" unrouted"; CHANGES]).await;
    relay.stop().await;
    assert_eq!((log.accepted("audit"), begun.load(Ordering::SeqCst)), (vec!["first".into(), "second".into()], 2));
    assert_eq!(log.accepted("d"), [""; 0]);
}
for_each_database!(a_destination_that_came_while_a_message_was_attempted_gets_it_after_any_number_of_changes);

/// Topics nobody takes, and destinations nobody has registered, are told once each, however many messages of them come.
async fn a_topic_nobody_takes_is_told_once(database: TestDatabase) {
    const EACH: usize = 40;
    let configuration =
        "[health]\nlisten = \"off\"\n[destinations.a]\nurl = \"http://127.0.0.1:9\"\ntopics = [\"a\"]\n";
    let relay = Process::start_relay(configuration, &["--database-url", database.url(), "run"]);
    for n in 0..EACH {
        enqueue(&database, ["b", "c"].map(|topic| Envelope::raw(topic, n.to_string())));
        enqueue(&database, ["unknown", "mistyped"].map(|name| Envelope::raw("a", n.to_string()).to(name)));
    }
    let mut wanted = vec![" unrouted"; 2 * EACH];
    wanted.extend(["mistyped unrouted"; EACH]);
    wanted.extend(["unknown unrouted"; EACH]);
    until_waiting(&database, &wanted).await;
    let said = tokio::task::spawn_blocking(move || relay.terminate(LIMIT)).await.unwrap().stderr;
    assert_eq!(said.matches("no destination takes this topic").count(), 2, "{said}");
    assert_eq!(said.matches("nobody has registered this destination").count(), 2, "{said}");
    for name in ["unknown", "mistyped"] {
        assert_eq!(said.matches(&format!("\"{name}\"")).count(), 1, "{name}: {said}");
    }
}
for_each_database!(a_topic_nobody_takes_is_told_once);

/// Routes may change while a message that had none cannot be written. What comes later of its key waits in rows, as it
/// would behind one that stands; nothing is read again and again, and nobody else waits.
async fn a_message_without_a_route_that_cannot_be_written_stops_its_key_only(database: TestDatabase) {
    refuse(&database);
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("all").topics(["t"]))).await;
    enqueue(&database, [Envelope::raw("nowhere", "worse").key("k"), plain("read after it")]);
    log.until_accepted("all", &["read after it"]).await;

    // Nobody serves the new destination, whose messages show when the relay knows of it.
    let store = open(database.url(), &StoreOptions::default()).await.unwrap();
    let spec = |name: &str, topic: &str| DestinationSpec {
        name: name.to_owned(),
        patterns: vec![topic.to_owned()],
        ordering: "key".to_owned(),
    };
    store.destination_register(&[spec("late", "later")]).await.unwrap();
    let known = || {
        enqueue(&database, [Envelope::raw("later", "is it known?")]);
        database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE state = 'unserved'") > 0
    };
    until(&database, "the relay knows the new routes", known).await;

    enqueue(&database, [keyed("k", "behind it"), keyed("other", "beside it")]);
    log.until_accepted("all", &["beside it"]).await;
    let pending = || database.query_i64("SELECT count(*) FROM outbox_messages");
    until(&database, "all but that one stand in rows", || pending() == 1).await;
    assert!(!log.has_accepted("all", "behind it"), "it has no way of knowing that the other one still has no route");

    allow(&database);
    relay.stop().await;
    let relay = Running::start(relay_on(&database).destination(log.accepting("all").topics(["t"]))).await;
    log.until_accepted("all", &["behind it"]).await;
    relay.stop().await;
}
for_each_database!(a_message_without_a_route_that_cannot_be_written_stops_its_key_only);
