//! Relays with different destinations at one outbox, as deploys leave them: started and stopped in every order.
//!
//! A unit is a message for a destination that was registered when the message was routed. Whatever the order, once a
//! relay serves everything each unit has been delivered once, and a key's messages have come in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use relay::RelayBuilder;

use super::stage::{Left, Log, Running, enqueue, millis, relay_on};

/// After this long something that should have happened has not. Three hundred relays start here, on a machine that may be
/// busy with others.
const LIMIT: Duration = Duration::from_secs(60);

/// A lease long enough that no relay here is ever thought dead, however busy the machine is.
const LEASE: Duration = Duration::from_secs(5);

/// Orders that are played side by side.
const AT_ONCE: usize = 8;

/// A relay's name, and what it serves.
type Serves = (&'static str, &'static [&'static str]);

/// Each of them may come and go at any time.
const RELAYS: [Serves; 3] = [("a", &["x"]), ("b", &["x", "y"]), ("c", &["y"])];

/// How a message is enqueued; each kind has keys of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sort {
    /// Both destinations want it.
    Both,
    /// Only `y` wants its topic: without it, it has no route.
    OnlyY,
    /// It names `y`.
    ToY,
}

/// A relay comes, or goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Start(usize),
    Stop(usize),
}

/// Every order in which three relays can be started and stopped, each once.
fn orders() -> Vec<Vec<Event>> {
    fn grow(so_far: &mut Vec<Event>, found: &mut Vec<Vec<Event>>) {
        if so_far.len() == 2 * RELAYS.len() {
            found.push(so_far.clone());
            return;
        }
        for relay in 0..RELAYS.len() {
            let next = match (so_far.contains(&Event::Start(relay)), so_far.contains(&Event::Stop(relay))) {
                (false, _) => Event::Start(relay),
                (true, false) => Event::Stop(relay),
                (true, true) => continue,
            };
            so_far.push(next);
            grow(so_far, found);
            so_far.pop();
        }
    }
    let mut found = Vec::new();
    grow(&mut Vec::new(), &mut found);
    found
}

/// A relay that serves these destinations.
fn serving(database: &TestDatabase, log: &Log, name: &str, serves: &[&str]) -> RelayBuilder {
    serves.iter().fold(relay_on(database).poll(millis(2), millis(40)).name(name).lease(LEASE), |relay, destination| {
        let topics: &[&str] = if *destination == "x" { &["t"] } else { &["t", "u"] };
        relay.destination(log.accepting(destination).topics(topics.iter().copied()))
    })
}

/// Waits until the tables are as wanted. Looks less often than other tests do: many wait at the same time, and the relays
/// beside them need the threads.
async fn until(database: &TestDatabase, wanted: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + LIMIT;
    while !tokio::task::block_in_place(&condition) {
        assert!(std::time::Instant::now() < end, "not within {LIMIT:?}: {wanted}\n{}", Left::of(database));
        tokio::time::sleep(millis(50)).await;
    }
}

/// Starts a relay and waits until it is known.
async fn start(database: &TestDatabase, log: &Log, name: &str, serves: &[&str]) -> Running {
    let relay = Running::start(serving(database, log, name, serves)).await;
    let known = format!("SELECT count(*) FROM outbox_relays WHERE name = '{name}'");
    until(database, "the relay is registered", || database.query_i64(&known) == 1).await;
    relay
}

/// What was enqueued, and who has to get it.
#[derive(Default)]
struct Owed {
    bodies: Vec<(String, Sort, BTreeSet<&'static str>)>,
}

impl Owed {
    /// Enqueues a few of each sort.
    fn enqueue(&mut self, database: &TestDatabase, registered: &BTreeSet<&'static str>) {
        let mut envelopes = Vec::new();
        for n in 0..6 {
            let number = self.bodies.len();
            let (sort, key, topic) = match n {
                0..4 => (Sort::Both, format!("both-{}", n % 2), "t"),
                4 => (Sort::OnlyY, "only".to_owned(), "u"),
                _ => (Sort::ToY, "to".to_owned(), "t"),
            };
            let body = format!("{key} {number:04}");
            let envelope = Envelope::raw(topic, body.as_str()).key(key);
            envelopes.push(if sort == Sort::ToY { envelope.to("y") } else { envelope });
            let wanted = match sort {
                Sort::Both => registered.clone(),
                Sort::OnlyY | Sort::ToY => BTreeSet::from(["y"]),
            };
            self.bodies.push((body, sort, wanted));
        }
        enqueue(database, envelopes);
    }

    /// Counts what is missing and what came twice, and looks at the order of the keys.
    fn judge(&self, log: &Log) -> Judged {
        let mut judged = Judged::default();
        let accepted: BTreeMap<&str, Vec<String>> = ["x", "y"].map(|name| (name, log.accepted(name))).into();
        for (body, sort, wanted) in &self.bodies {
            let times = |name: &str| accepted[name].iter().filter(|got| *got == body).count();
            let got: Vec<&str> = ["x", "y"].into_iter().filter(|name| times(name) > 0).collect();
            judged.units += got.len();
            judged.lost += wanted.iter().filter(|name| times(name) == 0).count();
            // Enqueued before anybody had registered, it belongs to whoever was there when it was routed.
            judged.lost += usize::from(wanted.is_empty() && got.is_empty());
            judged.doubled += ["x", "y"].iter().map(|name| times(name).saturating_sub(1)).sum::<usize>();
            judged.astray += usize::from(*sort != Sort::Both && times("x") > 0);
        }
        for (name, bodies) in &accepted {
            for key in ["both-0", "both-1", "only", "to"] {
                let of_key: Vec<&String> = bodies.iter().filter(|body| body.starts_with(key)).collect();
                judged.disordered += of_key.windows(2).filter(|pair| pair[0] > pair[1]).count();
                if !of_key.is_sorted() {
                    judged.told.push(format!("{name}: {of_key:?}"));
                }
            }
        }
        judged
    }
}

#[derive(Default, Debug)]
struct Judged {
    units: usize,
    lost: usize,
    doubled: usize,
    astray: usize,
    disordered: usize,
    told: Vec<String>,
}

/// One order of starts and stops; returns how many units there were.
async fn played(database: &TestDatabase, relays: &[Serves], order: &[Event], seed: u64) -> usize {
    let (log, mut owed, mut dice) = (Log::default(), Owed::default(), SmallRng::seed_from_u64(seed));
    let mut running: Vec<Option<Running>> = relays.iter().map(|_| None).collect();
    let mut registered = BTreeSet::new();
    owed.enqueue(database, &registered);
    for event in order {
        match *event {
            Event::Start(relay) => {
                let (name, serves) = relays[relay];
                running[relay] = Some(start(database, &log, name, serves).await);
                registered.extend(serves);
            }
            Event::Stop(relay) => {
                running[relay].take().expect("it was started").stop().await;
            }
        }
        owed.enqueue(database, &registered);
        // Some orders rush on, others let everything come to rest first.
        if dice.random_bool(0.4) && running.iter().any(Option::is_some) {
            until(database, &format!("nothing is pending after {event:?} of {order:?}"), || {
                Left::of(database).waiting().is_some()
            })
            .await;
        }
    }
    let last = start(database, &log, "all", &["x", "y"]).await;
    owed.enqueue(database, &registered);
    until(database, "nothing is left", || Left::of(database).is_nothing()).await;
    last.stop().await;
    let judged = owed.judge(&log);
    let Judged { lost, doubled, astray, disordered, .. } = &judged;
    assert_eq!((*lost, *doubled, *astray, *disordered), (0, 0, 0, 0), "{order:?} seed {seed}: {judged:#?}");
    judged.units
}

/// Everything as it was before the first relay.
fn wipe(database: &TestDatabase) {
    for table in ["messages", "deliveries", "dead_letters", "relays", "destinations"] {
        database.exec(&format!("DELETE FROM outbox_{table}"));
    }
    database.exec("UPDATE outbox_partitions SET owner = NULL");
}

async fn no_order_of_starts_and_stops_loses_or_repeats_a_unit(database: TestDatabase) {
    let kind = database.kind();
    let (mut orders, seed) = (orders(), rand::random::<u64>());
    assert_eq!(orders.len(), 90);
    // Logging in to PostgreSQL takes a debug build so long that a third of them has to do, another one in each run, unless
    // somebody has the time.
    if kind == Kind::Postgres && std::env::var_os("OUTBOX_TEST_EFFORT").is_none() {
        orders = orders.into_iter().skip((seed % 3) as usize).step_by(3).collect();
    }
    let (orders, next) = (Arc::new(orders), Arc::new(AtomicUsize::new(0)));
    // Several at a time, each on a database of its own: most of an order is waiting for a beat.
    let others = (1..AT_ONCE).map(|_| TestDatabase::with_schema(kind));
    let databases: Vec<TestDatabase> = std::iter::once(database).chain(others).collect();
    let mut players = tokio::task::JoinSet::new();
    for database in databases {
        let (orders, next) = (orders.clone(), next.clone());
        players.spawn(async move {
            let mut units = 0;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(order) = orders.get(n) else { return (units, database) };
                wipe(&database);
                units += played(&database, &RELAYS, order, seed.wrapping_add(n as u64)).await;
            }
        });
    }
    let (mut units, mut played) = (0, Vec::new());
    while let Some(player) = players.join_next().await {
        let (its_units, database) = player.unwrap();
        units += its_units;
        // None of them is dropped while relays of others log in: PostgreSQL would wait for the logins to end, and they for
        // the thread that waits.
        played.push(database);
    }
    println!("{kind}: {} orders of starts and stops, {units} units, lost 0, doubled 0, out of order 0", orders.len());
}
for_each_database!(no_order_of_starts_and_stops_loses_or_repeats_a_unit);

async fn a_rolling_deploy_that_adds_a_destination_and_its_rollback_lose_nothing(database: TestDatabase) {
    use Event::{Start, Stop};
    const OLD: &[&str] = &["x"];
    const NEW: &[&str] = &["x", "y"];
    let relays = [
        ("old-1", OLD),
        ("old-2", OLD),
        ("new-1", NEW),
        ("new-2", NEW),
        ("back-1", OLD),
        ("back-2", OLD),
        ("last", NEW),
    ];
    let deploy = [Start(0), Start(1), Start(2), Stop(0), Start(3), Stop(1)];
    let rollback = [Start(4), Stop(2), Start(5), Stop(3)];
    // The one that does it right in the end meets both that do not.
    let again = [Start(6), Stop(4), Stop(5), Stop(6)];
    let (order, seed) = ([&deploy[..], &rollback, &again].concat(), rand::random());
    let units = played(&database, &relays, &order, seed).await;
    println!("{}: deploy and rollback, {units} units, lost 0, doubled 0, out of order 0", database.kind());
}
for_each_database!(a_rolling_deploy_that_adds_a_destination_and_its_rollback_lose_nothing);

async fn what_no_owner_serves_waits_and_is_found_when_somebody_does(database: TestDatabase) {
    let log = Log::default();
    let first = start(&database, &log, "a", &["x"]).await;
    let second = start(&database, &log, "c", &["y"]).await;
    // None serves both: the one started last rules, and what is for the other waits where everybody sees it.
    let owner = "SELECT count(*) FROM outbox_partitions p JOIN outbox_relays r ON r.id = p.owner WHERE r.name = 'c'";
    until(&database, "the younger one owns everything", || database.query_i64(owner) == 32).await;
    enqueue(&database, [Envelope::raw("t", "1").key("k"), Envelope::raw("t", "2").key("k")]);
    let rows = || Left::of(&database).waiting();
    let unserved = Some(vec!["x unserved".to_owned(); 2]);
    until(&database, "what is for x waits", || rows() == unserved).await;
    assert_eq!((log.accepted("x").len(), log.accepted("y")), (0, vec!["1".to_owned(), "2".to_owned()]));
    second.stop().await;
    log.until_accepted("x", &["1", "2"]).await;
    until(&database, "nothing is left", || Left::of(&database).is_nothing()).await;
    first.stop().await;
    assert_eq!((log.accepted("x"), log.accepted("y").len()), (vec!["1".to_owned(), "2".to_owned()], 2));
}
for_each_database!(what_no_owner_serves_waits_and_is_found_when_somebody_does);
