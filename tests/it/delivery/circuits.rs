//! A destination that fails at everything is left alone; one that fails at one message is not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::retry::RetryPolicy;
use relay::{Event, HandlerError, Http};

use super::stage::{
    LIMIT, Left, Log, Running, dead_letters, enqueue, keyed, lines, millis, plain, relay_on, until, until_dead,
    until_nothing_is_left,
};

/// A destination and for how long its circuit opened; without that it closed.
type Turn = (String, Option<Duration>);

/// What the circuits of a relay did, in order.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<Vec<Turn>>>);

impl Turns {
    fn note(&self, event: &Event) {
        let turn = match event {
            Event::CircuitOpened { destination, pause } => (destination.clone(), Some(*pause)),
            Event::CircuitClosed { destination } => (destination.clone(), None),
            _ => return,
        };
        self.0.lock().unwrap().push(turn);
    }

    fn all(&self) -> Vec<Turn> {
        self.0.lock().unwrap().clone()
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}

fn circuits(database: &TestDatabase) -> Vec<String> {
    lines(database, "SELECT circuits FROM outbox_relays")
}

async fn a_destination_that_is_down_costs_its_messages_hardly_an_attempt(database: TestDatabase) {
    let (log, turns, is_down) = (Log::default(), Turns::default(), Arc::new(AtomicBool::new(true)));
    let (down, accepted) = (is_down.clone(), Arc::new(Mutex::new(BTreeMap::<String, Vec<String>>::new())));
    let keys = accepted.clone();
    let receiver = Receiver::start(move |request| {
        if down.load(Ordering::SeqCst) {
            return Answer::status(500).body("on fire");
        }
        let body = text(&request.body);
        keys.lock().unwrap().entry(body[2..].to_owned()).or_default().push(body);
        Answer::status(200)
    })
    .await;
    let seen = turns.clone();
    let relay = relay_on(&database)
        .destination(Http::new("down", receiver.url("/")))
        .destination(log.accepting("up"))
        .on_event(move |event| seen.note(event));
    let relay = Running::start(relay).await;
    let all: Vec<String> = (0..200).map(|n| format!("{n:03}")).collect();
    for chunk in all.chunks(20) {
        enqueue(&database, chunk.iter().map(|body| keyed(&format!("key {}", &body[2..]), body)));
    }
    let bodies: Vec<&str> = all.iter().map(String::as_str).collect();
    log.until_accepted("up", &bodies).await;
    // Open, half open with a probe, and open again for longer.
    until(&database, "it opens twice", || turns.all().len() >= 2).await;
    until(&database, "people see it", || circuits(&database).iter().any(|told| told.contains("500: on fire"))).await;
    let relays = with_connection!(database, |conn| outbox::relays::list(conn)).unwrap();
    let circuit = &relays.relays[0].circuits[0];
    assert_eq!(circuit.destination, "down");
    assert!(["open", "half_open"].contains(&circuit.state.as_str()), "{circuit:?}");

    let requests = receiver.requests().len();
    // Until it opened sixteen could be under way beside each other; after that it was one.
    assert!(requests <= 10 + 16 + turns.all().len(), "{requests} requests at a destination that is down");
    is_down.store(false, Ordering::SeqCst);
    until_nothing_is_left(&database).await;
    until(&database, "people see that it is over", || circuits(&database) == ["[]"]).await;
    relay.stop().await;

    let turns = turns.all();
    let pauses: Vec<Duration> = turns.iter().map_while(|(_, pause)| *pause).collect();
    assert_eq!(pauses.len() + 1, turns.len(), "it closes once, at the end: {turns:?}");
    assert!(pauses.is_sorted(), "{pauses:?}");
    let keys = accepted.lock().unwrap().clone();
    assert_eq!(keys.values().map(Vec::len).sum::<usize>(), 200, "each arrived once");
    assert!(keys.values().all(|bodies| bodies.is_sorted()), "{keys:?}");
}
for_each_database!(a_destination_that_is_down_costs_its_messages_hardly_an_attempt);

async fn messages_that_fail_for_themselves_hold_up_nobody(database: TestDatabase) {
    let (log, turns) = (Log::default(), Turns::default());
    let seen = turns.clone();
    let relay = relay_on(&database)
        .destination(log.handler("picky", |arrival| match arrival.body.starts_with("bad") && arrival.attempt < 20 {
            true => Err(HandlerError::retry("not this one")),
            false => Ok(()),
        }))
        .on_event(move |event| seen.note(event));
    let relay = Running::start(relay).await;
    enqueue(&database, (0..4).map(|n| plain(&format!("bad {n}"))));
    log.until("they have failed often", |log| log.arrivals().len() >= 40).await;
    enqueue(&database, [plain("good")]);
    log.until_accepted("picky", &["good"]).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(turns.all(), [], "four messages are no outage");
}
for_each_database!(messages_that_fail_for_themselves_hold_up_nobody);

async fn a_destination_that_is_set_up_wrongly_is_left_alone_after_three_messages(database: TestDatabase) {
    let turns = Turns::default();
    let receiver = Receiver::always(Answer::status(404)).await;
    let seen = turns.clone();
    let relay = relay_on(&database)
        .destination(Http::new("wrong", receiver.url("/")).concurrency(1))
        .on_event(move |event| seen.note(event));
    let relay = Running::start(relay).await;
    enqueue(&database, (0..30).map(|n| plain(&n.to_string())));
    until(&database, "it opens", || !turns.all().is_empty()).await;
    let moved = "SELECT count(*) FROM outbox_messages";
    until(&database, "all wait", || database.query_i64(moved) == 0).await;
    relay.stop().await;
    assert_eq!(receiver.requests().len(), 3);
    let [(destination, Some(pause))] = &turns.all()[..] else { panic!("{:?}", turns.all()) };
    assert_eq!(destination, "wrong");
    assert!(*pause >= Duration::from_secs(60), "{pause:?}");
    let attempts = "SELECT concat_ws(' ', attempts, count(*)) FROM outbox_deliveries GROUP BY attempts";
    assert_eq!(lines(&database, attempts), ["0 27", "1 3"]);
}
for_each_database!(a_destination_that_is_set_up_wrongly_is_left_alone_after_three_messages);

/// A payload that is an event itself, which no request in mode `binary` can carry.
fn unsendable(body: &str) -> Envelope {
    plain(body).content_type("application/cloudevents+json")
}

async fn what_cannot_be_sent_says_nothing_about_the_receiver(database: TestDatabase) {
    let (turns, attempts, is_down) = (Turns::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (down, seen, counted) = (is_down.clone(), turns.clone(), attempts.clone());
    let receiver = Receiver::start(move |_| Answer::status(if down.load(Ordering::SeqCst) { 500 } else { 200 })).await;
    // What has failed stays away: who is attempted next is what comes after it.
    let never = RetryPolicy::pauses(vec![Duration::from_secs(365 * 24 * 3600)]);
    let relay =
        relay_on(&database).destination(Http::new("down", receiver.url("/")).retry(never)).on_event(move |event| {
            seen.note(event);
            if let Event::Attempted { .. } = event {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
    let relay = Running::start(relay).await;
    enqueue(&database, (0..10).map(|n| plain(&n.to_string())));
    until(&database, "it opens", || turns.all().len() == 1).await;
    let id = enqueue(&database, (0..3).map(|n| unsendable(&n.to_string())))[0];
    until_dead(&database, &["down undecodable"; 3]).await;
    until(&database, "it is half open", || circuits(&database).iter().any(|told| told.contains("half_open"))).await;
    assert_eq!(turns.all().len(), 1, "nobody was asked, so nothing has opened or closed: {:?}", turns.all());
    assert_eq!((receiver.requests().len(), attempts.load(Ordering::SeqCst)), (10, 10));

    // The next one is the probe.
    enqueue(&database, [plain("probe")]);
    until(&database, "it opens again", || turns.all().len() == 2).await;
    let [(_, Some(first)), (_, Some(second))] = turns.all()[..] else { panic!("{:?}", turns.all()) };
    assert!(second > first, "{first:?} {second:?}");
    is_down.store(false, Ordering::SeqCst);
    enqueue(&database, [unsendable("last"), plain("good")]);
    until_dead(&database, &["down undecodable"; 4]).await;
    until(&database, "it closes", || turns.all().last() == Some(&("down".to_owned(), None))).await;
    relay.stop().await;
    assert_eq!((receiver.requests().len(), attempts.load(Ordering::SeqCst)), (12, 12));
    let letters = dead_letters(&database);
    let letter = letters.iter().find(|letter| letter.letter.message_id == id).unwrap();
    assert_eq!((letter.letter.attempts, letter.history.as_str()), (0, "[]"), "nothing was on the wire");
    let told = letter.letter.last_error.as_deref().unwrap();
    assert!(told.contains("the payload is a CloudEvent itself"), "{told}");
}
for_each_database!(what_cannot_be_sent_says_nothing_about_the_receiver);

/// What is logged while this is held, by this thread.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// On one thread, so that all that is logged is seen here.
#[tokio::test]
async fn what_a_receiver_says_is_for_the_status_and_not_for_the_log() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let (turns, written) = (Turns::default(), Written::default());
    let log = written.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    let _logging = tracing::subscriber::set_default(subscriber.with_writer(move || log.clone()).finish());
    let receiver =
        Receiver::start(|request| Answer::status(500).body(format!("you sent {}", text(&request.body)))).await;
    let handler =
        Log::default().handler("handler", |arrival| Err(HandlerError::retry(format!("{} it is", arrival.body))));
    let seen = turns.clone();
    let relay = relay_on(&database)
        .destination(Http::new("page", receiver.url("/")))
        .destination(handler)
        .on_event(move |event| seen.note(event));
    let relay = Running::start(relay).await;
    enqueue(&database, (0..10).map(|n| plain(&format!("confidential {n}"))));
    let has_opened = |name: &str| turns.all().iter().any(|(destination, _)| destination == name);
    until(&database, "both open", || has_opened("page") && has_opened("handler")).await;
    until(&database, "people see what was said", || {
        circuits(&database).iter().any(|told| told.contains("500: you sent confi") && told.contains("error: confi"))
    })
    .await;
    relay.stop().await;
    let logged = text(&written.0.lock().unwrap());
    for (destination, code) in [("page", "500"), ("handler", "error")] {
        let is_told = |line: &str| line.contains(&format!("destination=\"{destination}\" code=\"{code}\""));
        let mut opened = logged.lines().filter(|line| line.contains("the circuit opens"));
        assert!(opened.any(is_told), "{destination}: {logged}");
    }
    assert!(!logged.contains("confidential"), "{logged}");
}

async fn a_rate_limit_is_kept_by_all_relays_together(database: TestDatabase) {
    let receiver = Receiver::always(Answer::status(200)).await;
    let relay = || {
        let limit = relay::RateLimit::parse("40/s").unwrap();
        relay_on(&database).destination(Http::new("limited", receiver.url("/")).rate_limit(limit))
    };
    let relays = [Running::start(relay()).await, Running::start(relay()).await];
    let owners = "SELECT count(DISTINCT owner) FROM outbox_partitions WHERE owner IS NOT NULL";
    until(&database, "both own some", || database.query_i64(owners) == 2).await;
    let began = Instant::now();
    enqueue(&database, (0..120).map(|n| keyed(&n.to_string(), &n.to_string())));
    receiver.wait_until(LIMIT, "all", |requests| requests.len() >= 120).await;
    let took = began.elapsed();
    for relay in relays {
        relay.stop().await;
    }
    let times: Vec<Instant> = receiver.requests().iter().map(|request| request.at).collect();
    assert_eq!(times.len(), 120);
    // What a busy machine delays by a moment may fall into the same second.
    let most =
        times.iter().map(|from| times.iter().filter(|at| (*from..*from + millis(1000)).contains(*at)).count()).max();
    assert!(most.unwrap() <= 40 + 12, "{most:?} requests within a second");
    assert!(took >= millis(119 * 25 * 8 / 10), "120 requests in {took:?} at 40 a second");
}
for_each_database!(a_rate_limit_is_kept_by_all_relays_together);

async fn a_rate_limit_that_is_in_the_way_is_told(database: TestDatabase) {
    let receiver = Receiver::always(Answer::status(200)).await;
    let limit = relay::RateLimit::parse("10/h").unwrap();
    let relay = relay_on(&database).destination(Http::new("limited", receiver.url("/")).rate_limit(limit));
    let relay = Running::start(relay).await;
    let told = r#"SELECT count(*) FROM outbox_relays WHERE circuits LIKE '%"limited","cause":"10/h"%'"#;
    enqueue(&database, [plain("1")]);
    receiver.wait_until(LIMIT, "the first", |requests| requests.len() == 1).await;
    assert_eq!(database.query_i64(told), 0, "nothing waits");
    enqueue(&database, (2..5).map(|n| plain(&n.to_string())));
    until(&database, "the limit is told", || database.query_i64(told) == 1).await;
    assert_eq!(receiver.requests().len(), 1);
    relay.stop().await;
}
for_each_database!(a_rate_limit_that_is_in_the_way_is_told);

#[tokio::test]
async fn one_answer_may_mean_something_else_to_one_destination() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let receiver = Receiver::start(|request| {
        let status = text(&request.body).parse().unwrap();
        match request.header("outbox-attempt") {
            Some("1") => Answer::status(status),
            _ => Answer::status(200),
        }
    })
    .await;
    let status = |text| relay::sink::http::Status::parse(text).unwrap();
    use relay::sink::http::Class;
    let http = Http::new("own", receiver.url("/"))
        .classify(status("409"), Class::Delivered)
        .classify(status("4xx"), Class::Reject)
        .classify(status("500"), Class::Reject);
    let relay = Running::start(relay_on(&database).destination(http)).await;
    enqueue(&database, ["409", "404", "500", "502"].map(plain));
    until_dead(&database, &["own rejected", "own rejected"]).await;
    until(&database, "the others arrived", || Left::of(&database).waiting().is_some_and(|waiting| waiting.is_empty()))
        .await;
    relay.stop().await;
    let mut sent: Vec<String> = receiver.requests().iter().map(|request| text(&request.body)).collect();
    sent.sort();
    assert_eq!(sent, ["404", "409", "500", "502", "502"]);
    let history = &dead_letters(&database)[0].history;
    assert!(history.contains(&receiver.address().to_string()), "who answered is kept: {history}");
}
