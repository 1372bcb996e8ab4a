//! A relay over a store that fails, stalls or panics when the test says so.
//!
//! What is looked for: nothing may spin, hang or stop for good because a call of the store did, and one slow place must
//! not keep the others from their messages.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outbox_tests::database::{Kind, TestDatabase};
use relay::message::{Key, Message, MessageId, PartitionSet, RelayId, Seq};
use relay::poll::Evidence;
use relay::retry::RetryPolicy;
use relay::sink::{Attempt, Judgement, Settings, Sink};
use relay::store::{
    Circuit, Delivered, DestinationSpec, Due, Followers, KeyAfter, LaneDemand, Membership, Now, Page, Probe, RelayRow,
    Routing, RowAhead, Settled, Settlement, StartBatch, Status, Store, StoreError, Taken, UnroutedAfter, UnroutedRow,
    WaitingChange, WaitingOutcome, Wanted, Written,
};
use relay::store::{StoreOptions, open::open};
use relay::{Destination, Relay, RelayBuilder, RelayError};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// After this long something that should have happened has not.
const LIMIT: Duration = Duration::from_secs(20);

/// What happens before a call, or after it.
pub(crate) type Before = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// A store that asks the test before each call.
struct Faulty {
    inner: Arc<dyn Store>,
    before: Box<dyn Fn(&'static str) -> Before + Send + Sync>,
    /// Asked when the call has done what it does, and before anybody knows.
    after: Box<dyn Fn(&'static str) -> Before + Send + Sync>,
    /// The hour a question is asked at.
    hour: Box<dyn Fn(Now) -> Now + Send + Sync>,
}

macro_rules! calls {
    ($($name:ident($($argument:ident: $kind:ty),*$(; $now:ident)?) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Faulty {
            fn evidence(&self) -> Evidence {
                self.inner.evidence()
            }
            async fn partition_acquire(&self, relay: RelayId, wanted: PartitionSet) -> Result<Vec<Taken>, StoreError> {
                let call = if wanted.len() > 16 { "partition_acquire_many" } else { "partition_acquire" };
                (self.before)(call).await?;
                let answer = self.inner.partition_acquire(relay, wanted).await?;
                (self.after)(call).await.map(|()| answer)
            }
            async fn unrouted_topics(&self, after: &[(u8, String)], limit: u32) -> Result<Vec<(u8, String)>, StoreError> {
                (self.before)(if after.len() > 16 { "unrouted_topics_many" } else { "unrouted_topics" }).await?;
                self.inner.unrouted_topics(after, limit).await
            }
            async fn settle(&self, relay: RelayId, batch: &Settlement, now: Now) -> Result<Settled, StoreError> {
                let routes = |row: &WaitingOutcome| matches!(row.change, WaitingChange::Routed(_));
                let call = if batch.waiting.iter().any(routes) { "settle_routed" } else { "settle" };
                (self.before)(call).await?;
                let answer = self.inner.settle(relay, batch, (self.hour)(now)).await?;
                (self.after)(call).await.map(|()| answer)
            }
            $(async fn $name(&self, $($argument: $kind,)* $($now: Now)?) -> Result<$answer, StoreError> {
                (self.before)(stringify!($name)).await?;
                let answer = self.inner.$name($($argument,)* $((self.hour)($now))?).await?;
                (self.after)(stringify!($name)).await.map(|()| answer)
            })*
        }
    };
}

calls! {
    verify() -> ();
    message_read(wanted: &Wanted, owned: PartitionSet, limit: u32; now) -> Page;
    message_probe(ranges: &[(Seq, Seq)]) -> Probe;
    message_sweep(after: Seq, until: Seq, owned: PartitionSet, limit: u32) -> Vec<Seq>;
    message_last() -> Seq;
    mark_draw() -> Option<u64>;
    key_parked(keys: &[(String, Key)]) -> Vec<bool>;
    delivery_due(lanes: &[LaneDemand], owned: PartitionSet; now) -> Due;
    delivery_followers(keys: &[KeyAfter], limit: u32; now) -> Followers;
    unrouted_rows(wanted: &[UnroutedAfter], limit: u32) -> Vec<UnroutedRow>;
    delivery_start(relay: RelayId, batch: &StartBatch) -> Vec<i64>;
    delivery_last() -> i64;
    delivery_ahead(after: i64, until: i64, owned: PartitionSet, limit: u32; now) -> Vec<RowAhead>;
    delivery_bring_forward(relay: RelayId, rows: &[RowAhead], by: Duration) -> ();
    destination_bring_forward(holds: &[(String, Written)], by: Duration) -> ();
    message_delivered(messages: &[(Seq, MessageId)], routes_version: i64) -> Delivered;
    relay_register(relay: &RelayRow) -> ();
    relay_beat(relay: RelayId, draining: bool) -> Option<Membership>;
    membership_read() -> Membership;
    relay_bury(dead: &[(RelayId, i64)]) -> Vec<RelayId>;
    partition_release(relay: RelayId, given_up: PartitionSet) -> ();
    relay_leave(relay: RelayId, unread: PartitionSet) -> ();
    relay_circuits(relay: RelayId, circuits: &[Circuit]) -> ();
    destination_register(served: &[DestinationSpec]) -> ();
    destination_read(; now) -> Routing;
    destination_hold(name: &str, pause: Duration; now) -> ();
    destination_pause(name: &str, by: &str, reason: &str; now) -> ();
    status(; now) -> Status;
}

fn unreachable() -> StoreError {
    StoreError::Unreachable { target: "here".into(), source: "the test says so".into() }
}

pub(crate) fn pass() -> Before {
    Box::pin(async { Ok(()) })
}

pub(crate) fn fail() -> Before {
    Box::pin(async { Err(unreachable()) })
}

/// The rows are at fault, says the database.
pub(crate) fn refuse(operation: &'static str) -> Before {
    Box::pin(async move { Err(StoreError::Refused { operation, source: "the test says so".into() }) })
}

pub(crate) fn stall(pause: Duration) -> Before {
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        Ok(())
    })
}

/// Takes what it gets; bodies that begin with `slow` only when it is let go.
#[derive(Default)]
struct Taker {
    taken: Mutex<Vec<String>>,
    open: AtomicBool,
    changed: Notify,
}

#[async_trait]
impl Sink for Taker {
    async fn attempt(&self, message: &Message, _: &Attempt) -> Judgement {
        let body = String::from_utf8_lossy(&message.payload).into_owned();
        while body.starts_with("slow") && !self.open.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.taken.lock().unwrap().push(body);
        self.changed.notify_waiters();
        Judgement::delivered("ok")
    }
}

impl Taker {
    async fn until_taken(&self, count: usize) {
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            let changed = self.changed.notified();
            let taken = self.taken.lock().unwrap().clone();
            if taken.len() >= count {
                return;
            }
            let in_time = tokio::time::timeout_at(end, changed).await;
            assert!(in_time.is_ok(), "not within {LIMIT:?}: {count} taken; taken are {taken:?}");
        }
    }
}

fn enqueue(database: &TestDatabase, topic: &str, bodies: impl IntoIterator<Item = String>) {
    for body in bodies {
        database.exec(&format!("INSERT INTO outbox_messages (topic, payload) VALUES ('{topic}', '{body}')"));
    }
}

pub(crate) async fn store(
    database: &TestDatabase,
    before: impl Fn(&'static str) -> Before + Send + Sync + 'static,
) -> Arc<dyn Store> {
    store_at(database, before, |now| now).await
}

/// A store that is asked with the hours the test names.
pub(crate) async fn store_at(
    database: &TestDatabase,
    before: impl Fn(&'static str) -> Before + Send + Sync + 'static,
    hour: impl Fn(Now) -> Now + Send + Sync + 'static,
) -> Arc<dyn Store> {
    let inner = open(database.url(), &StoreOptions::default()).await.unwrap();
    Arc::new(Faulty { inner, before: Box::new(before), after: Box::new(|_| pass()), hour: Box::new(hour) })
}

/// A store that asks the test after each call as well.
pub(crate) async fn store_around(
    database: &TestDatabase,
    before: impl Fn(&'static str) -> Before + Send + Sync + 'static,
    after: impl Fn(&'static str) -> Before + Send + Sync + 'static,
) -> Arc<dyn Store> {
    let inner = open(database.url(), &StoreOptions::default()).await.unwrap();
    Arc::new(Faulty { inner, before: Box::new(before), after: Box::new(after), hour: Box::new(|now| now) })
}

pub(crate) fn relay(store: Arc<dyn Store>) -> RelayBuilder {
    Relay::builder_from_store(store)
        .poll(Duration::from_millis(1), Duration::from_millis(20))
        .retry(RetryPolicy::pauses(vec![Duration::from_millis(20); 1000]))
}

fn to(name: &str, sink: &Arc<Taker>) -> Destination {
    Destination::new(Settings::new(name, [format!("{name}.*")]), sink.clone())
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RelayError>>,
    ticks: Arc<AtomicU64>,
}

impl Running {
    async fn start(builder: RelayBuilder) -> Running {
        let relay = builder.build().await.unwrap();
        let ticks = relay.ticks();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(relay.run_until(async {
            let _ = stopped.await;
        }));
        Running { stop, task, ticks }
    }

    async fn stop(self) -> Duration {
        let asked = Instant::now();
        self.stop.send(()).unwrap();
        tokio::time::timeout(LIMIT, self.task).await.expect("the relay stops").unwrap().unwrap();
        asked.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_rests_while_a_write_that_failed_is_tried_again() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let writes = Arc::new(AtomicUsize::new(0));
    let (second, again) = (Arc::new(Notify::new()), writes.clone());
    let begun = second.clone();
    let store = store(&database, move |call| match call {
        "message_delivered" => match again.fetch_add(1, Ordering::SeqCst) {
            0 => fail(),
            1 => {
                begun.notify_one();
                stall(Duration::from_secs(2))
            }
            _ => pass(),
        },
        _ => pass(),
    })
    .await;
    let sink = Arc::new(Taker::default());
    let running = Running::start(relay(store).destination(to("a", &sink))).await;
    enqueue(&database, "a.b", ["1".to_owned()]);
    tokio::time::timeout(LIMIT, second.notified()).await.unwrap();
    // More comes while the first batch is on its way.
    enqueue(&database, "a.b", ["2".to_owned()]);
    sink.until_taken(2).await;
    let before = running.ticks.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let rounds = running.ticks.load(Ordering::Relaxed) - before;
    assert_eq!(writes.load(Ordering::SeqCst), 2, "the write is still under way");
    println!("{rounds} rounds");
    assert!(rounds < 250, "{rounds} rounds in half a second with nothing to do");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_cannot_be_drawn_is_tried_again_with_pauses() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let (draws, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counter = draws.clone();
    let store = store(&database, move |call| match call {
        "mark_draw" => {
            counter.fetch_add(1, Ordering::SeqCst);
            fail()
        }
        _ => pass(),
    })
    .await;
    let sink = Arc::new(Taker::default());
    let running = Running::start(relay(store).destination(to("a", &sink))).await;
    // A number that is drawn and rolled back is a hole; nothing is settled that would bring a mark.
    database.exec("BEGIN; INSERT INTO outbox_messages (topic, payload) VALUES ('a.b', 'x'); ROLLBACK");
    enqueue(&database, "a.b", ["slow".to_owned()]);
    let end = Instant::now() + LIMIT;
    while draws.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < end, "no mark was asked for");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    counted.store(draws.load(Ordering::SeqCst), Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let more = draws.load(Ordering::SeqCst) - counted.load(Ordering::SeqCst);
    assert!(more <= 10, "{more} marks asked for in half a second");
    sink.open.store(true, Ordering::SeqCst);
    sink.until_taken(1).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_renewals_broke_off_starts_anew() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let breaks = Arc::new(AtomicBool::new(false));
    let once = breaks.clone();
    let store = store(&database, move |call| {
        assert!(!(call == "relay_beat" && once.swap(false, Ordering::SeqCst)), "the test says so");
        pass()
    })
    .await;
    let sink = Arc::new(Taker::default());
    let running = Running::start(relay(store).lease(Duration::from_millis(900)).destination(to("a", &sink))).await;
    enqueue(&database, "a.b", ["1".to_owned()]);
    sink.until_taken(1).await;
    breaks.store(true, Ordering::SeqCst);
    let end = Instant::now() + LIMIT;
    while breaks.load(Ordering::SeqCst) {
        assert!(Instant::now() < end, "no renewal");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Past the lease that nobody renews.
    tokio::time::sleep(Duration::from_secs(1)).await;
    enqueue(&database, "a.b", ["2".to_owned()]);
    sink.until_taken(2).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_breaks_while_the_relay_starts_does_not_end_it() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let (built, broken) = (Arc::new(AtomicBool::new(false)), Mutex::new(Vec::new()));
    let is_built = built.clone();
    let store = store(&database, move |call| {
        let mut broken = broken.lock().unwrap();
        let starts = ["verify", "destination_register", "relay_register", "destination_read"].contains(&call);
        if is_built.load(Ordering::SeqCst) && starts && !broken.contains(&call) {
            broken.push(call);
            return fail();
        }
        pass()
    })
    .await;
    let sink = Arc::new(Taker::default());
    let relay = relay(store).destination(to("a", &sink)).build().await.unwrap();
    built.store(true, Ordering::SeqCst);
    enqueue(&database, "a.b", ["1".to_owned()]);
    let drained = tokio::time::timeout(LIMIT, relay.drain()).await.expect("a drain ends").unwrap();
    assert!(drained.is_clean());
    assert_eq!(*sink.taken.lock().unwrap(), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_does_not_keep_the_relay_from_ending() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let silent = Arc::new(AtomicBool::new(false));
    let asked = silent.clone();
    let store = store(&database, move |_| match asked.load(Ordering::SeqCst) {
        true => stall(Duration::from_secs(3600)),
        false => pass(),
    })
    .await;
    let sink = Arc::new(Taker::default());
    let relay = relay(store).lease(Duration::from_millis(600)).shutdown_grace(Duration::from_secs(1));
    let running = Running::start(relay.destination(to("a", &sink))).await;
    enqueue(&database, "a.b", ["1".to_owned()]);
    sink.until_taken(1).await;
    silent.store(true, Ordering::SeqCst);
    // Until a renewal hangs.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let took = running.stop().await;
    assert!(took < Duration::from_secs(5), "the stop took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_slow_destinations_do_not_keep_a_third_from_its_messages() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database, |_| pass()).await;
    let (slow, fast) = (Arc::new(Taker::default()), Arc::new(Taker::default()));
    let relay = relay(store).in_hands(64, 64 << 20).timeout(Duration::from_secs(60));
    let relay = relay.destination(to("a", &slow)).destination(to("b", &slow)).destination(to("c", &fast));
    for n in 0..100 {
        enqueue(&database, "a.x", [format!("slow a {n}")]);
        enqueue(&database, "b.x", [format!("slow b {n}")]);
    }
    enqueue(&database, "c.x", (0..20).map(|n| format!("{n}")));
    let running = Running::start(relay).await;
    fast.until_taken(20).await;
    assert_eq!(slow.taken.lock().unwrap().len(), 0, "they are slow");
    slow.open.store(true, Ordering::SeqCst);
    slow.until_taken(200).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_whose_repair_takes_too_long_together_are_taken_bit_by_bit() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let store = store(&database, move |call| match call {
        // What waits in all of them cannot be repaired within the patience of the store.
        "partition_acquire_many" => fail(),
        // Nor what waits in the first few, for a while; the others must not wait for them.
        "partition_acquire" => match counter.fetch_add(1, Ordering::SeqCst) {
            0 | 2 => fail(),
            _ => stall(Duration::from_millis(50)),
        },
        _ => pass(),
    })
    .await;
    let sink = Arc::new(Taker::default());
    let relay = relay(store).lease(Duration::from_millis(900)).destination(to("a", &sink));
    enqueue(&database, "a.b", (0..300).map(|n| n.to_string()));
    let running = Running::start(relay).await;
    sink.until_taken(300).await;
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_partitions WHERE owner IS NULL"), 0);
    running.stop().await;
    let taken = sink.taken.lock().unwrap().len();
    assert_eq!(taken, 300, "nothing came twice");
}

/// Refuses everything.
struct Refuser;

#[async_trait]
impl Sink for Refuser {
    async fn attempt(&self, _: &Message, _: &Attempt) -> Judgement {
        Judgement::failed(relay::verdict::Verdict::Reject { gone: false }, "no", "the test says so")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_was_there_at_the_commit_gets_what_another_one_refused() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let store = store(&database, |_| pass()).await;
    let refuser = Destination::new(Settings::new("a", ["a.*"]), Arc::new(Refuser));
    let running = Running::start(relay(store.clone()).destination(refuser)).await;
    let dead = "SELECT count(*) FROM outbox_dead_letters";
    enqueue(&database, "a.x", ["first".to_owned()]);
    let end = Instant::now() + LIMIT;
    while database.query_i64(dead) < 1 {
        assert!(Instant::now() < end, "the first is refused");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Another relay registers one; this one has not heard of it when the next message is refused.
    for n in 0..5 {
        let spec = DestinationSpec { name: format!("b{n}"), patterns: vec!["a.*".into()], ordering: "key".into() };
        store.destination_register(&[spec]).await.unwrap();
        enqueue(&database, "a.x", [n.to_string()]);
        while database.query_i64(dead) < n + 2 {
            assert!(Instant::now() < end, "message {n} is refused");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let kept = database.query_i64(&format!(
            "SELECT count(*) FROM outbox_deliveries WHERE payload = '{n}' AND destination = 'b{n}'"
        ));
        assert_eq!(kept, 1, "the new destination never gets message {n}");
    }
    running.stop().await;
}

/// Is gone, and counts who finds out.
#[derive(Default)]
struct Gone(AtomicUsize);

#[async_trait]
impl Sink for Gone {
    async fn attempt(&self, _: &Message, _: &Attempt) -> Judgement {
        self.0.fetch_add(1, Ordering::SeqCst);
        Judgement::failed(relay::verdict::Verdict::Reject { gone: true }, "410", "gone")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_slow_to_be_recorded_holds_all_the_same() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let (tries, reads) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tried, read) = (tries.clone(), reads.clone());
    let store = store(&database, move |call| match call {
        "destination_pause" if tried.fetch_add(1, Ordering::SeqCst) == 0 => fail(),
        "destination_read" => {
            read.fetch_add(1, Ordering::SeqCst);
            pass()
        }
        _ => pass(),
    })
    .await;
    let gone = Arc::new(Gone::default());
    let destination = Destination::new(Settings::new("a", ["a.*"]), gone.clone());
    let running = Running::start(relay(store).destination(destination)).await;
    let until = async |wanted: &str, condition: &dyn Fn() -> bool| {
        let end = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < end, "{wanted}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    enqueue(&database, "a.x", ["1".to_owned()]);
    until("the pause is tried", &|| tries.load(Ordering::SeqCst) == 1).await;
    // The table has been asked since, and knew nothing.
    let before = reads.load(Ordering::SeqCst);
    until("the destinations are read", &|| reads.load(Ordering::SeqCst) >= before + 2).await;
    enqueue(&database, "a.x", ["2".to_owned()]);
    let paused = "SELECT count(*) FROM outbox_destinations WHERE paused_at IS NOT NULL";
    until("the pause is recorded", &|| database.query_i64(paused) == 1).await;
    let waiting = "SELECT count(*) FROM outbox_deliveries WHERE state = 'overflow'";
    until("the second waits", &|| database.query_i64(waiting) == 1).await;
    assert_eq!(gone.0.load(Ordering::SeqCst), 1, "the second was not attempted");
    running.stop().await;
}

/// Asks for a pause, each time longer than before, when two have begun.
struct Holds {
    asked: AtomicUsize,
    both: tokio::sync::Barrier,
}

#[async_trait]
impl Sink for Holds {
    async fn attempt(&self, _: &Message, _: &Attempt) -> Judgement {
        self.both.wait().await;
        let asked = self.asked.fetch_add(1, Ordering::SeqCst) as u64 + 1;
        let pause = Some(Duration::from_secs(1000 * asked));
        Judgement::failed(relay::verdict::Verdict::Hold { pause }, "503", "not now")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_that_cannot_be_recorded_are_recorded_later() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let tries = Arc::new(AtomicUsize::new(0));
    let tried = tries.clone();
    let store = store(&database, move |call| match call {
        "destination_hold" if tried.fetch_add(1, Ordering::SeqCst) < 2 => fail(),
        _ => pass(),
    })
    .await;
    enqueue(&database, "a.x", ["1".to_owned(), "2".to_owned()]);
    let holds = Arc::new(Holds { asked: AtomicUsize::new(0), both: tokio::sync::Barrier::new(2) });
    let destination = Destination::new(Settings::new("a", ["a.*"]), holds.clone());
    let running = Running::start(relay(store).destination(destination)).await;
    let left = "SELECT coalesce(max(held_until) / 1000 - unixepoch(), 0) FROM outbox_destinations";
    let end = Instant::now() + LIMIT;
    // The longer one of the two.
    while database.query_i64(left) < 1500 {
        assert!(Instant::now() < end, "held for {} s", database.query_i64(left));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.stop().await;
    assert_eq!(holds.asked.load(Ordering::SeqCst), 2);
    assert_eq!(tries.load(Ordering::SeqCst), 3, "one task for both: two tries that failed, and one that did not");
}
