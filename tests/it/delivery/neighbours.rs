//! What a destination in trouble costs its neighbours, and the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::{Handler, HandlerError};
use tokio::sync::watch;

use super::costs::Calls;
use super::stage::{
    LIMIT, Log, Running, enqueue, keyed, millis, not_now, plain, relay_on, until, until_nothing_is_left, until_waiting,
};

/// A handler that says nothing before the gate is opened, and how many attempts it has begun.
fn hanging(name: &str) -> (Handler, watch::Sender<bool>, Arc<AtomicUsize>) {
    let (gate, opened) = watch::channel(false);
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let handler = Handler::raw(name, move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    (handler.timeout(LIMIT * 9), gate, begun)
}

/// The rows there are of a destination.
fn rows_of(database: &TestDatabase, destination: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM outbox_deliveries WHERE destination = '{destination}'"))
}

/// A message leaves its table in one write. That must not make a retry wait for an attempt elsewhere.
async fn retries_do_not_wait_for_attempts_under_way_elsewhere(database: TestDatabase) {
    // So few that their failures open no circuit.
    const KEYS: usize = 2;
    const EACH: usize = 8;
    let log = Log::default();
    let (hangs, gate, begun) = hanging("hangs");
    let flaky = log.handler("flaky", |arrival| if arrival.copy <= 2 { Err(not_now()) } else { Ok(()) });
    let relay = Running::start(relay_on(&database).destination(hangs.concurrency(99)).destination(flaky)).await;
    let first = (0..KEYS).map(|key| keyed(&key.to_string(), "00")).chain([plain("free 0"), plain("free 1")]);
    enqueue(&database, first);
    until(&database, "all of them hang", || begun.load(Ordering::SeqCst) == KEYS + 2).await;
    for n in 1..EACH {
        enqueue(&database, (0..KEYS).map(|key| keyed(&key.to_string(), &format!("{n:02}"))));
    }
    log.until("all are through", |log| log.accepted("flaky").len() == EACH * KEYS + 2).await;
    assert!(log.accepted("hangs").is_empty());
    gate.send(true).unwrap();
    until_nothing_is_left(&database).await;
    relay.stop().await;

    assert_eq!(begun.load(Ordering::SeqCst), EACH * KEYS + 2, "each once");
    let arrivals = log.arrivals();
    assert_eq!(arrivals.len(), 3 * (EACH * KEYS + 2), "each three times");
    assert!(arrivals.iter().all(|arrival| arrival.attempt == u32::try_from(arrival.copy).unwrap()), "{arrivals:?}");
    for key in 0..KEYS {
        let of_key = arrivals.iter().filter(|arrival| arrival.key == Some(key.to_string()));
        let bodies: Vec<&str> = of_key.map(|arrival| &*arrival.body).collect();
        let wanted: Vec<String> = (0..EACH).flat_map(|n| vec![format!("{n:02}"); 3]).collect();
        assert_eq!(bodies, wanted, "nothing was attempted before what it follows was through");
    }
}
for_each_database!(retries_do_not_wait_for_attempts_under_way_elsewhere);

/// What was tried again from memory is written down like anything else when the other one is done, and at a stop.
async fn what_was_tried_again_from_memory_is_counted_where_it_is_written(database: TestDatabase) {
    let log = Log::default();
    let (hangs, gate, _) = hanging("hangs");
    let fails = log.handler("fails", |arrival| {
        // The fourth is not due before the test is over.
        let pause = if arrival.copy < 3 { millis(1) } else { Duration::from_secs(3600) };
        Err(HandlerError::retry_after(pause, format!("no {}", arrival.copy)))
    });
    let relay = Running::start(relay_on(&database).destination(hangs).destination(fails)).await;
    enqueue(&database, [keyed("k", "m")]);
    log.until("it fails three times", |log| log.attempts("fails", "m") == 3).await;
    assert_eq!(rows_of(&database, "fails"), 0, "kept by the one that hangs");
    gate.send(true).unwrap();
    until_waiting(&database, &["fails retry"]).await;
    relay.stop().await;
    let row = "SELECT concat_ws('|', attempts, last_error, history) FROM outbox_deliveries";
    let row = database.query_text(row).remove(0).unwrap();
    assert!(row.starts_with("3|error: no 3|"), "{row}");
    for said in ["no 1", "no 2", "no 3"] {
        assert!(row.contains(said), "{row}");
    }
}
for_each_database!(what_was_tried_again_from_memory_is_counted_where_it_is_written);

/// What it got while it was paused leaves the other's queue when it is open again and would idle.
async fn a_destination_that_was_paused_does_not_wait_for_the_queue_of_another(database: TestDatabase) {
    const MESSAGES: usize = 40;
    let log = Log::default();
    let (hangs, gate, begun) = hanging("hangs");
    let hangs = hangs.topics(["**"]).concurrency(1);
    let other = log.accepting("other").topics(["t"]);
    let relay = Running::start(relay_on(&database).destination(hangs).destination(other)).await;
    enqueue(&database, [outbox::Envelope::raw("plug", "x")]);
    until(&database, "it hangs", || begun.load(Ordering::SeqCst) == 1).await;
    let pause = |at: &str| database.exec(&format!("UPDATE outbox_destinations SET {at} WHERE name = 'other'"));
    pause("paused_at = CURRENT_TIMESTAMP, paused_by = 'ada'");
    // The relay reads it soon; what came before that is taken.
    for n in 0.. {
        let taken = log.accepted("other").len();
        if taken < n {
            break;
        }
        enqueue(&database, [plain("too early, perhaps")]);
        tokio::time::sleep(millis(50)).await;
    }
    enqueue(&database, (0..MESSAGES).map(|n| keyed(&format!("{}", n % 7), &format!("{n:02}"))));
    tokio::time::sleep(millis(200)).await;
    pause("paused_at = NULL, paused_by = NULL");
    let bodies: Vec<String> = (0..MESSAGES).map(|n| format!("{n:02}")).collect();
    log.until_accepted("other", &bodies.iter().map(|body| &**body).collect::<Vec<_>>()).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    gate.send(true).unwrap();
    until_nothing_is_left(&database).await;
    relay.stop().await;
}
for_each_database!(a_destination_that_was_paused_does_not_wait_for_the_queue_of_another);

/// It keeps its queue in memory, whatever the other one's retries and followers wait for.
async fn a_destination_that_is_down_costs_one_with_a_queue_no_rows(database: TestDatabase) {
    const MESSAGES: usize = 200;
    let log = Log::default();
    let later = Duration::from_secs(3600);
    let down = log.handler("down", move |_| Err(HandlerError::retry_after(later, "down")));
    // Two seconds of work.
    let busy = log.slow_handler("busy", millis(40), |_| Ok(())).concurrency(4);
    let relay = Running::start(relay_on(&database).destination(down).destination(busy)).await;
    let messages = |n: usize| if n.is_multiple_of(2) { plain("x") } else { keyed(&format!("{}", n % 9), "x") };
    enqueue(&database, (0..MESSAGES).map(messages));
    let end = std::time::Instant::now() + LIMIT;
    while log.accepted("busy").len() < MESSAGES {
        assert!(std::time::Instant::now() < end, "{} of {MESSAGES} arrived", log.accepted("busy").len());
        assert_eq!(rows_of(&database, "busy"), 0, "after {} of {MESSAGES}", log.accepted("busy").len());
        tokio::time::sleep(millis(5)).await;
    }
    until(&database, "all wait for the other", || {
        rows_of(&database, "down") == i64::try_from(MESSAGES).unwrap()
            && database.query_i64("SELECT count(*) FROM outbox_messages") == 0
    })
    .await;
    relay.stop().await;
}
for_each_database!(a_destination_that_is_down_costs_one_with_a_queue_no_rows);

/// Rows whose key is not free come back with each look. They must neither bring the next one nor hide what is behind them.
async fn rows_that_may_not_start_bring_no_looks_and_hide_nothing(database: TestDatabase) {
    const KEYS: usize = 12;
    refuse_worse(&database);
    let (log, calls) = (Log::default(), Calls::default());
    let handler = log.handler("d", |arrival| {
        let fails = arrival.body.starts_with("worse") || arrival.body == "late" && arrival.copy == 1;
        if fails { Err(not_now()) } else { Ok(()) }
    });
    let relay = Running::start(calls.relay(&database).await.destination(handler.concurrency(4))).await;
    let key = |n: usize| format!("key {n}");
    // Each of these fails, and its row cannot be written; so what follows it has to wait, in rows that are due.
    // The fine ones show the relay that its destination works: no circuit opens.
    enqueue(&database, (0..KEYS).flat_map(|n| [plain("fine"), keyed(&key(n), &format!("worse {n}")), plain("fine")]));
    log.until("all have failed", |log| (0..KEYS).all(|n| log.attempts("d", &format!("worse {n}")) > 0)).await;
    enqueue(&database, (0..KEYS).map(|n| keyed(&key(n), &format!("after {n}"))));
    until(&database, "they stand in rows", || rows_of(&database, "d") == i64::try_from(KEYS).unwrap()).await;
    enqueue(&database, [plain("late")]);
    log.until_accepted("d", &["late"]).await;

    let (looks, reads) = (calls.of("delivery_due"), calls.of("destination_read"));
    // As long as the relay's own clock says, however slow the machine is: it reads the destinations now and then.
    until(&database, "some time has passed", || calls.of("destination_read") >= reads + 6).await;
    let looks = calls.of("delivery_due") - looks;
    println!("{}: {looks} looks beside {KEYS} rows that may not start", database.kind());
    assert!(looks <= 50, "{looks} looks while six times the destinations were read");
    assert!(log.accepted("d").iter().all(|body| body == "late" || body == "fine"), "something passed what had failed");
    relay.stop().await;
}
for_each_database!(rows_that_may_not_start_bring_no_looks_and_hide_nothing);

/// The database refuses every row for what is `worse`.
fn refuse_worse(database: &TestDatabase) {
    let trigger = "CREATE TRIGGER refuse_worse BEFORE INSERT ON outbox_deliveries FOR EACH ROW";
    match database.kind() {
        Kind::Postgres => {
            database.exec(
                "CREATE FUNCTION refuse_worse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF coalesce(NEW.payload, convert_from(NEW.payload_bytes, 'UTF8')) LIKE 'worse%' THEN \
                 RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$",
            );
            database.exec(&format!("{trigger} EXECUTE FUNCTION refuse_worse()"));
        }
        Kind::Mariadb => database.exec(&format!(
            "{trigger} BEGIN IF NEW.payload LIKE 'worse%' THEN \
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF; END"
        )),
        Kind::Sqlite => database.exec(&format!(
            "{trigger} WHEN CAST(NEW.payload AS TEXT) LIKE 'worse%' BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )),
    }
}

/// What is to be tried again from memory, and may not for long, goes into its row when another one waits for that.
async fn a_retry_that_waits_for_its_turn_holds_up_nobody(database: TestDatabase) {
    let log = Log::default();
    let limited = log.handler("limited", |_| Err(not_now())).rate_limit(relay::RateLimit::parse("10/h").unwrap());
    let (gate, opened) = watch::channel(false);
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let other = Handler::raw("other", move |_, context: relay::Context| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            if context.attempt() == 1 { Err(not_now()) } else { Ok(()) }
        }
    });
    let relay = relay_on(&database).destination(limited).destination(other.timeout(LIMIT * 9));
    let relay = Running::start(relay).await;
    enqueue(&database, [keyed("k", "first")]);
    log.until("the limited one has failed", |log| log.arrivals().len() == 1).await;
    until(&database, "the other one hangs", || begun.load(Ordering::SeqCst) == 1).await;
    // Longer than the pause: by now it waits for its turn in memory.
    tokio::time::sleep(millis(200)).await;
    gate.send(true).unwrap();
    until(&database, "the other one is tried again", || begun.load(Ordering::SeqCst) == 2).await;
    until_waiting(&database, &["limited overflow"]).await;
    assert_eq!(database.query_i64("SELECT attempts FROM outbox_deliveries"), 1);
    assert_eq!(log.arrivals().len(), 1, "ten an hour");
    relay.stop().await;
}
for_each_database!(a_retry_that_waits_for_its_turn_holds_up_nobody);
