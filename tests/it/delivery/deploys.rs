//! Relays with different destinations at one outbox, as deploys leave them: started and stopped in every order.
//!
//! A unit is a message for a destination that was registered when the message was routed. Whatever the order, once a
//! relay serves everything each unit has been delivered once, and a key's messages have come in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outbox::Envelope;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use relay::RelayBuilder;

use super::stage::{LIMIT, Left, Log, Running, enqueue, millis, relay_on};

/// A lease long enough that no relay here is ever thought dead, however busy the machine is.
const LEASE: Duration = Duration::from_secs(5);

/// What each relay serves.
const RELAYS: [(&str, &[&str]); 3] = [("a", &["x"]), ("b", &["x", "y"]), ("c", &["y"])];

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

/// Waits until the tables are as wanted. Looks less often than other tests do: many wait at the same time.
async fn until(database: &TestDatabase, wanted: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + LIMIT;
    while !condition() {
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
async fn played(database: &TestDatabase, order: &[Event], seed: u64) -> usize {
    let (log, mut owed, mut dice) = (Log::default(), Owed::default(), SmallRng::seed_from_u64(seed));
    let mut running: [Option<Running>; 3] = [None, None, None];
    let mut registered = BTreeSet::new();
    owed.enqueue(database, &registered);
    for event in order {
        match *event {
            Event::Start(relay) => {
                let (name, serves) = RELAYS[relay];
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
    let orders = Arc::new(orders());
    assert_eq!(orders.len(), 90);
    let (next, seed) = (Arc::new(AtomicUsize::new(0)), rand::random::<u64>());
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
                let Some(order) = orders.get(n) else { return units };
                wipe(&database);
                units += played(&database, order, seed.wrapping_add(n as u64)).await;
            }
        });
    }
    let mut units = 0;
    while let Some(played) = players.join_next().await {
        units += played.unwrap();
    }
    println!("{kind}: {} orders of starts and stops, {units} units, lost 0, doubled 0, out of order 0", orders.len());
}
for_each_database!(no_order_of_starts_and_stops_loses_or_repeats_a_unit);

/// Orders that are played side by side.
const AT_ONCE: usize = 6;
