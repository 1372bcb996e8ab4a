//! Care for messages that may have killed a relay: what is counted, what is tried alone, what is given up.
//!
//! Nobody dies here. Dead relays are planted by SQL, as a partition whose owner has no row.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::Message;
use relay::sink::{Attempt, Judgement, Settings, Sink};
use relay::{Destination, Relay, RelayBuilder};
use tokio::sync::Notify;

use crate::delivery::stage::{
    Left, Log, Running, dead_letters, enqueue, keyed, lines, millis, not_now, plain, quick, redrive_all, relay_on,
    until, until_dead, until_nothing_is_left, until_waiting,
};
use crate::faults::{fail, pass, stall, store};

/// Every partition is a dead relay's.
fn somebody_died(database: &TestDatabase) {
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-0000-0000-000000000007'",
        Kind::Mariadb | Kind::Sqlite => "x'00000000000000000000000000000007'",
    };
    database.exec(&format!("UPDATE outbox_partitions SET owner = {id}, epoch = epoch + 1"));
}

/// Commits these bodies and leaves them as waiting rows of `destination`, attempted once and due.
async fn park(database: &TestDatabase, destinations: &[&str], bodies: &[&str]) {
    enqueue(database, bodies.iter().map(|body| plain(body)));
    let log = Log::default();
    let mut relay = relay_on(database).retry(relay::retry::RetryPolicy::pauses(vec![Duration::from_secs(3600)]));
    for destination in destinations {
        relay = relay.destination(log.handler(destination, |_| Err(not_now())));
    }
    let running = Running::start(relay).await;
    let wanted: Vec<String> =
        destinations.iter().flat_map(|name| bodies.iter().map(move |_| format!("{name} retry"))).collect();
    until_waiting(database, &wanted.iter().map(String::as_str).collect::<Vec<_>>()).await;
    running.stop().await;
    let long_ago = match database.kind() {
        Kind::Postgres | Kind::Mariadb => "'2001-01-01 00:00:00'",
        Kind::Sqlite => "1000",
    };
    database.exec(&format!("UPDATE outbox_deliveries SET due_at = {long_ago}"));
}

/// Marks the row of a message as one that was under way at so many deaths.
fn suspect(database: &TestDatabase, body: &str, deaths: u32) {
    let flag = if database.kind() == Kind::Postgres { "true" } else { "1" };
    let payload = match database.kind() {
        Kind::Postgres => format!("coalesce(payload, convert_from(payload_bytes, 'UTF8')) = '{body}'"),
        Kind::Mariadb => format!("payload = '{body}'"),
        Kind::Sqlite => format!("CAST(payload AS TEXT) = '{body}'"),
    };
    let set = format!("suspect = {flag}, state = 'suspect', deaths = {deaths}");
    database.exec(&format!("UPDATE outbox_deliveries SET {set} WHERE {payload}"));
}

/// How many attempts are under way, and who was alone.
#[derive(Default)]
struct Watch {
    now: AtomicUsize,
    /// For each body, the most that were under way while it was.
    most: Mutex<HashMap<String, usize>>,
    order: Mutex<Vec<String>>,
}

/// A sink that takes its time and watches.
struct Watched {
    watch: Arc<Watch>,
    in_process: bool,
}

#[async_trait]
impl Sink for Watched {
    fn runs_in_process(&self) -> bool {
        self.in_process
    }

    async fn attempt(&self, message: &Message, _: &Attempt) -> Judgement {
        let body = String::from_utf8_lossy(&message.payload).into_owned();
        self.watch.order.lock().unwrap().push(body.clone());
        self.watch.now.fetch_add(1, Ordering::SeqCst);
        let mut most = 0;
        for _ in 0..5 {
            tokio::time::sleep(millis(4)).await;
            most = most.max(self.watch.now.load(Ordering::SeqCst));
        }
        self.watch.now.fetch_sub(1, Ordering::SeqCst);
        let mut seen = self.watch.most.lock().unwrap();
        let known = seen.entry(body).or_default();
        *known = most.max(*known);
        Judgement::delivered("ok")
    }
}

fn watched(name: &str, topic: &str, watch: &Arc<Watch>, in_process: bool) -> Destination {
    let sink = Watched { watch: watch.clone(), in_process };
    Destination::new(Settings::new(name, [topic]), Arc::new(sink))
}

async fn whoever_was_under_way_at_a_death_is_tried_alone(database: TestDatabase) {
    park(&database, &["a", "b"], &["twice", "once", "never", "plain"]).await;
    for (body, deaths) in [("twice", 2), ("once", 1), ("never", 0)] {
        suspect(&database, body, deaths);
    }
    // Fresh ones come meanwhile, for handlers and for a destination elsewhere.
    enqueue(&database, (0..200).map(|n| plain(&format!("fresh {n}"))));
    enqueue(&database, (0..200).map(|n| outbox::Envelope::raw("far", format!("far {n}"))));
    let (here, far) = (Arc::new(Watch::default()), Arc::new(Watch::default()));
    let relay = relay_on(&database)
        .destination(watched("a", "t", &here, true))
        .destination(watched("b", "t", &here, true))
        .destination(watched("far", "far", &far, false));
    let running = Running::start(relay).await;
    until_nothing_is_left(&database).await;
    running.stop().await;
    let most = here.most.lock().unwrap();
    assert_eq!((most["once"], most["twice"]), (1, 1), "alone at each of its destinations");
    assert!(most.values().any(|most| *most > 4), "the others were not: {most:?}");
    assert!(far.most.lock().unwrap().values().any(|most| *most > 4), "nobody elsewhere waits");
    let order = here.order.lock().unwrap();
    let at = |body: &str| order.iter().position(|other| other == body).unwrap();
    assert!(at("once") < at("twice"), "who was there at fewer deaths goes first: {order:?}");
}
for_each_database!(whoever_was_under_way_at_a_death_is_tried_alone);

async fn after_three_deaths_alone_a_suspect_is_given_up_and_a_redrive_begins_anew(database: TestDatabase) {
    park(&database, &["d"], &["bad", "good"]).await;
    suspect(&database, "bad", 4);
    let log = Log::default();
    let running = Running::start(relay_on(&database).destination(log.accepting("d"))).await;
    until_dead(&database, &["d crashed"]).await;
    log.until_accepted("d", &["good"]).await;
    assert_eq!(log.attempts("d", "bad"), 0, "not once more");
    let letter = &dead_letters(&database)[0].letter;
    assert_eq!(letter.attempts, 1, "the deaths are no attempts that were judged");
    let said = letter.last_error.as_deref().unwrap();
    assert!(said.starts_with("the process died each of the last 4 times") && said.contains("redrive"), "{said}");
    running.stop().await;

    redrive_all(&database);
    let rows = lines(
        &database,
        "SELECT concat_ws('|', state, CASE WHEN suspect THEN 'suspect' ELSE 'trusted' END, deaths) \
         FROM outbox_deliveries",
    );
    assert_eq!(rows, ["retry|trusted|0"]);
    let running = Running::start(relay_on(&database).destination(log.accepting("d"))).await;
    log.until_accepted("d", &["bad"]).await;
    until_nothing_is_left(&database).await;
    running.stop().await;
}
for_each_database!(after_three_deaths_alone_a_suspect_is_given_up_and_a_redrive_begins_anew);

async fn what_a_dead_relay_may_have_had_in_a_handler_is_marked_first(database: TestDatabase) {
    enqueue(&database, (0..10).map(|n| keyed(&format!("k{}", n % 2), &n.to_string())));
    enqueue(&database, [outbox::Envelope::raw("far", "far")]);
    somebody_died(&database);
    let counted = Arc::new(Notify::new());
    let (open, told) = (Arc::new(AtomicBool::new(false)), counted.clone());
    let may = open.clone();
    let store = store(&database, move |call| match call {
        "delivery_start" if !may.load(Ordering::SeqCst) => {
            told.notify_one();
            fail()
        }
        _ => pass(),
    })
    .await;
    let (log, far) = (Log::default(), Arc::new(Watch::default()));
    let relay =
        quickly(store).destination(log.accepting("d").topics(["t"])).destination(watched("far", "far", &far, false));
    let running = Running::start(relay).await;
    until(&database, "the ten wait as suspects", || {
        Left::of(&database).waiting() == Some(["d suspect"; 10].iter().map(ToString::to_string).collect())
    })
    .await;
    tokio::time::timeout(Duration::from_secs(20), counted.notified()).await.expect("they are to be marked");
    assert!(log.arrivals().is_empty(), "nothing is attempted that is not marked");
    assert_eq!(*far.order.lock().unwrap(), ["far"], "what cannot kill is not held back");
    open.store(true, Ordering::SeqCst);
    until_nothing_is_left(&database).await;
    running.stop().await;
    for key in ["k0", "k1"] {
        let of_key: Vec<String> =
            log.arrivals().into_iter().filter(|a| a.key.as_deref() == Some(key)).map(|a| a.body).collect();
        assert!(of_key.len() == 5 && of_key.is_sorted(), "{of_key:?}");
    }
}
for_each_database!(what_a_dead_relay_may_have_had_in_a_handler_is_marked_first);

fn quickly(store: Arc<dyn relay::store::Store>) -> RelayBuilder {
    Relay::builder_from_store(store).poll(millis(1), millis(20)).retry(quick(1000)).lease(millis(900))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_left_in_order_leaves_no_suspects() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let counts = Arc::new(AtomicUsize::new(0));
    let counter = counts.clone();
    let store = store(&database, move |call| {
        counter.fetch_add(usize::from(call == "delivery_start"), Ordering::SeqCst);
        pass()
    })
    .await;
    let log = Log::default();
    for n in 0..3 {
        enqueue(&database, (0..20).map(|m| plain(&format!("{n} {m}"))));
        let running = Running::start(quickly(store.clone()).destination(log.accepting("d"))).await;
        until_nothing_is_left(&database).await;
        running.stop().await;
    }
    assert_eq!(counts.load(Ordering::SeqCst), 0, "nothing had to wait, so nothing was marked");
    assert_eq!(log.accepted("d").len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_destinations_elsewhere_are_never_marked() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database, |call| {
        assert_ne!(call, "delivery_start", "nobody there can kill this process");
        pass()
    })
    .await;
    let far = Arc::new(Watch::default());
    park(&database, &["far"], &["parked"]).await;
    suspect(&database, "parked", 4);
    enqueue(&database, (0..10).map(|n| plain(&n.to_string())));
    somebody_died(&database);
    let running = Running::start(quickly(store).destination(watched("far", "t", &far, false))).await;
    until_nothing_is_left(&database).await;
    running.stop().await;
    assert!(far.order.lock().unwrap().contains(&"parked".to_owned()), "it is attempted, not given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_relay_left_is_not_given_up_before_it_was_read() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    enqueue(&database, (0..40).map(|n| plain(&n.to_string())));
    somebody_died(&database);
    let open = Arc::new(AtomicBool::new(false));
    let may = open.clone();
    let slow = store(&database, move |call| match call {
        "message_read" if !may.load(Ordering::SeqCst) => fail(),
        // Both are busy with their messages for a while.
        "message_read" => stall(millis(20)),
        _ => pass(),
    })
    .await;
    let log = Log::default();
    let heir = Running::start(quickly(slow).name("heir").destination(log.accepting("d"))).await;
    let owned = "SELECT count(*) FROM outbox_partitions p JOIN outbox_relays r ON r.id = p.owner WHERE r.name = 'heir'";
    until(&database, "the heir has everything", || database.query_i64(owned) == 32).await;
    let (counts, seen) = (Arc::new(AtomicUsize::new(0)), log.clone());
    let counter = counts.clone();
    let quick = store(&database, move |call| {
        counter.fetch_add(usize::from(call == "delivery_start"), Ordering::SeqCst);
        pass()
    })
    .await;
    let other = Running::start(quickly(quick).name("other").destination(log.accepting("d"))).await;
    // It was seen to live for so long that its share would have been handed over.
    let beats = "SELECT coalesce(max(beat), 0) FROM outbox_relays WHERE name = 'other'";
    until(&database, "the other one is known to live", || database.query_i64(beats) >= 6).await;
    assert_eq!(database.query_i64(owned), 32, "nothing is handed over");
    assert!(seen.arrivals().is_empty());
    open.store(true, Ordering::SeqCst);
    until_nothing_is_left(&database).await;
    until(&database, "the shares are even", || database.query_i64(owned) == 16).await;
    heir.stop().await;
    other.stop().await;
    assert_eq!(log.accepted("d").len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_reads_first_what_a_dead_relay_left() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    enqueue(&database, (0..40).map(|n| plain(&n.to_string())));
    somebody_died(&database);
    let (open, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let (may, reads) = (open.clone(), asked.clone());
    let slow = store(&database, move |call| match call {
        "message_read" if !may.load(Ordering::SeqCst) => {
            reads.notify_one();
            fail()
        }
        _ => pass(),
    })
    .await;
    let log = Log::default();
    let heir = Running::start(quickly(slow).destination(log.accepting("d"))).await;
    let owned = "SELECT count(*) FROM outbox_partitions p JOIN outbox_relays r ON r.id = p.owner";
    until(&database, "the heir has everything", || database.query_i64(owned) == 32).await;
    // Two more reads: the ownership is known to whoever reads.
    for _ in 0..2 {
        asked.notified().await;
    }
    let stopping = tokio::spawn(heir.stop());
    until(&database, "it is stopping", || database.query_i64("SELECT max(draining) FROM outbox_relays") == 1).await;
    open.store(true, Ordering::SeqCst);
    stopping.await.unwrap();
    assert_eq!(Left::of(&database).waiting(), Some(vec!["d suspect".to_owned(); 40]));
    assert!(log.arrivals().is_empty(), "nothing was begun any more");
}

/// What could not be read to the end is left as it was found: a dead relay's.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_may_not_read_what_a_dead_relay_left_says_so_to_the_next() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    enqueue(&database, (0..40).map(|n| plain(&n.to_string())));
    somebody_died(&database);
    let blind = store(&database, |call| if call == "message_read" { fail() } else { pass() }).await;
    let log = Log::default();
    let first = Running::start(quickly(blind).shutdown_grace(millis(50)).destination(log.accepting("d"))).await;
    let owned = "SELECT count(*) FROM outbox_partitions p JOIN outbox_relays r ON r.id = p.owner";
    until(&database, "it has everything", || database.query_i64(owned) == 32).await;
    first.stop().await;
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_relays"), 0, "it left");
    let marks = Arc::new(AtomicUsize::new(0));
    let counter = marks.clone();
    let seeing = store(&database, move |call| {
        counter.fetch_add(usize::from(call == "delivery_start"), Ordering::SeqCst);
        pass()
    })
    .await;
    let second = Running::start(quickly(seeing).destination(log.accepting("d"))).await;
    until_nothing_is_left(&database).await;
    second.stop().await;
    assert!(marks.load(Ordering::SeqCst) > 0, "they were attempted as if nobody had died");
    assert_eq!(log.accepted("d").len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_destination_is_paused_while_it_is_marked_is_not_attempted() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    park(&database, &["d"], &["parked"]).await;
    let (open, marks, looks) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (may, marked, looked) = (open.clone(), marks.clone(), looks.clone());
    let store = store(&database, move |call| {
        looked.fetch_add(usize::from(call == "destination_read"), Ordering::SeqCst);
        marked.fetch_add(usize::from(call == "delivery_start"), Ordering::SeqCst);
        if call == "delivery_start" && !may.load(Ordering::SeqCst) { fail() } else { pass() }
    })
    .await;
    let log = Log::default();
    let running = Running::start(quickly(store).destination(log.accepting("d"))).await;
    until(&database, "it is to be marked", || marks.load(Ordering::SeqCst) > 0).await;
    let by = outbox::destinations::By { actor: "ada".to_owned(), reason: None };
    outbox::destinations::pause(&mut database.sqlite(), "d", &by).unwrap();
    let before = looks.load(Ordering::SeqCst);
    until(&database, "the pause is seen", || looks.load(Ordering::SeqCst) >= before + 2).await;
    let before = marks.load(Ordering::SeqCst);
    open.store(true, Ordering::SeqCst);
    until(&database, "it was marked", || marks.load(Ordering::SeqCst) > before).await;
    let before = looks.load(Ordering::SeqCst);
    until(&database, "time has passed", || looks.load(Ordering::SeqCst) >= before + 2).await;
    assert!(log.arrivals().is_empty(), "it was attempted");
    outbox::destinations::resume(&mut database.sqlite(), "d", &by).unwrap();
    until_nothing_is_left(&database).await;
    running.stop().await;
    assert_eq!(log.accepted("d"), ["parked"]);
}

/// A suspect is given up for deaths it met alone. One that has ended and is not written down would be taken for one that
/// was under way.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_one_is_tried_alone_when_the_last_ones_outcome_is_written() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    park(&database, &["d"], &["one", "two"]).await;
    suspect(&database, "one", 1);
    suspect(&database, "two", 2);
    let (open, settles) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (may, counter) = (open.clone(), settles.clone());
    let store = store(&database, move |call| match call {
        "settle" if !may.load(Ordering::SeqCst) => {
            counter.fetch_add(1, Ordering::SeqCst);
            fail()
        }
        _ => pass(),
    })
    .await;
    let log = Log::default();
    let running = Running::start(quickly(store).destination(log.accepting("d"))).await;
    until(&database, "the outcome is tried to be written", || settles.load(Ordering::SeqCst) >= 4).await;
    assert_eq!(log.accepted("d"), ["one"]);
    open.store(true, Ordering::SeqCst);
    until_nothing_is_left(&database).await;
    running.stop().await;
    assert_eq!(log.accepted("d"), ["one", "two"]);
}

async fn an_attempt_that_a_stop_cut_off_counts_as_no_death(database: TestDatabase) {
    park(&database, &["d"], &["long"]).await;
    suspect(&database, "long", 2);
    let began = Arc::new(Notify::new());
    let rows = "SELECT concat_ws('|', state, CASE WHEN suspect THEN 'suspect' ELSE 'trusted' END, deaths, attempts) \
                FROM outbox_deliveries";
    for deaths_between in [0, 1] {
        let tell = began.clone();
        let long = relay::Handler::raw("d", move |_: Message, _: relay::Context| {
            tell.notify_one();
            std::future::pending::<relay::HandlerResult>()
        });
        let running = Running::start(relay_on(&database).shutdown_grace(millis(100)).destination(long)).await;
        tokio::time::timeout(Duration::from_secs(20), began.notified()).await.expect("it is attempted");
        assert_eq!(lines(&database, rows), ["suspect|suspect|2|1"]);
        running.stop().await;
        // Whoever owned the partitions since then had not begun with it.
        (0..deaths_between).for_each(|_| somebody_died(&database));
    }
    let log = Log::default();
    let running = Running::start(relay_on(&database).destination(log.accepting("d"))).await;
    until_nothing_is_left(&database).await;
    running.stop().await;
    assert_eq!(log.accepted("d"), ["long"], "given up, or lost");
}
for_each_database!(an_attempt_that_a_stop_cut_off_counts_as_no_death);

/// As the handler of a frozen relay may hold it.
async fn a_row_in_somebodys_hands_is_left_alone(
    database: &TestDatabase,
    holder: &mut impl diesel::connection::SimpleConnection,
) {
    park(database, &["d"], &["held", "free"]).await;
    let payload = match database.kind() {
        Kind::Postgres => "coalesce(payload, convert_from(payload_bytes, 'UTF8'))",
        _ => "payload",
    };
    holder.batch_execute("BEGIN").unwrap();
    // By its id: a search would lock whatever it passes.
    let id = database.query_i64(&format!("SELECT id FROM outbox_deliveries WHERE {payload} = 'held'"));
    holder.batch_execute(&format!("DELETE FROM outbox_deliveries WHERE id = {id}")).unwrap();
    let log = Log::default();
    let running = Running::start(relay_on(database).destination(log.accepting("d"))).await;
    log.until_accepted("d", &["free"]).await;
    until(database, "only the held one is left", || {
        Left::of(database).waiting().is_some_and(|waiting| waiting.len() == 1)
    })
    .await;
    assert_eq!(log.attempts("d", "held"), 0);
    holder.batch_execute("ROLLBACK").unwrap();
    log.until_accepted("d", &["held"]).await;
    until_nothing_is_left(database).await;
    running.stop().await;
    assert_eq!(log.accepted("d"), ["free", "held"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_somebodys_hands_is_left_alone_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut holder = database.postgres();
    a_row_in_somebodys_hands_is_left_alone(&database, &mut holder).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_somebodys_hands_is_left_alone_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut holder = database.mariadb();
    a_row_in_somebodys_hands_is_left_alone(&database, &mut holder).await;
}
