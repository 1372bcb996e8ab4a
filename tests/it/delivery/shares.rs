//! Several relays on one outbox: they share it, and come and go without anybody noticing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::RelayBuilder;

use super::stage::{Log, Running, enqueue, lines, millis, relay_on, until, until_nothing_is_left};
use super::stops::{assert_exactly_once_in_order, work};

/// A lease long enough that no relay here is ever thought dead, however busy the machine is.
const LEASE: Duration = Duration::from_secs(6);

pub(super) fn member(database: &TestDatabase) -> RelayBuilder {
    relay_on(database).lease(LEASE)
}

/// How many partitions each relay owns, the largest share first; without those nobody owns.
fn shares(database: &TestDatabase) -> Vec<i64> {
    let counts = database
        .query_text("SELECT CAST(count(*) AS CHAR(9)) FROM outbox_partitions WHERE owner IS NOT NULL GROUP BY owner");
    let mut shares: Vec<i64> = counts.into_iter().map(|count| count.unwrap().trim().parse().unwrap()).collect();
    shares.sort_unstable_by(|a, b| b.cmp(a));
    shares
}

pub(super) async fn until_shared(database: &TestDatabase, wanted: &[i64]) {
    until(database, &format!("shares {wanted:?}"), || shares(database) == wanted).await;
}

async fn relays_share_the_partitions_and_hand_them_over(database: TestDatabase) {
    let log = Log::default();
    let start = || Running::start(member(&database).destination(log.accepting("all")));
    let first = start().await;
    until_shared(&database, &[32]).await;
    let second = start().await;
    until_shared(&database, &[16, 16]).await;
    let third = start().await;
    until_shared(&database, &[11, 11, 10]).await;
    first.stop().await;
    until_shared(&database, &[16, 16]).await;
    second.stop().await;
    until_shared(&database, &[32]).await;
    third.stop().await;
    until_shared(&database, &[]).await;
}
for_each_database!(relays_share_the_partitions_and_hand_them_over);

/// What a relay registers counts, not what the one who looks has itself.
async fn a_relay_with_a_longer_lease_is_declared_dead_no_sooner_than_that(database: TestDatabase) {
    let (log, short, long) = (Log::default(), Duration::from_secs(1), Duration::from_secs(5));
    let relay = Running::start(relay_on(&database).lease(long).destination(log.accepting("all"))).await;
    until_shared(&database, &[32]).await;
    let leases = || lines(&database, "SELECT CAST(lease_ms AS CHAR(9)) FROM outbox_relays");
    assert_eq!(leases().iter().map(|ms| ms.trim()).collect::<Vec<_>>(), ["5000"]);
    relay.stop().await;

    // Nobody raises this one's beat.
    let id = match database.kind() {
        Kind::Postgres => "'00000000-0000-4000-8000-0000000000dd'",
        Kind::Mariadb | Kind::Sqlite => "x'000000000000400080000000000000dd'",
    };
    let columns = "(id, name, version, lease_ms, serves)";
    database.exec(&format!("INSERT INTO outbox_relays {columns} VALUES ({id}, 'dead', '1', 5000, '[\"all\"]')"));
    database.exec(&format!("UPDATE outbox_partitions SET owner = {id}, epoch = epoch + 1"));
    let began = Instant::now();
    let observer = Running::start(relay_on(&database).lease(short).destination(log.accepting("all"))).await;
    until_shared(&database, &[32]).await;
    let is_there = || database.query_i64("SELECT count(*) FROM outbox_relays WHERE name = 'dead'") > 0;
    until(&database, "it is declared dead", || !is_there()).await;
    assert!(began.elapsed() >= long, "declared dead after {:?}", began.elapsed());
    observer.stop().await;
}
for_each_database!(a_relay_with_a_longer_lease_is_declared_dead_no_sooner_than_that);

async fn relays_that_come_and_go_lose_nothing_and_repeat_nothing(database: TestDatabase) {
    const KEYS: usize = 40;
    const STOPS: usize = 20;
    const EACH: usize = 60;
    let log = Log::default();
    let start = || {
        let relay = member(&database)
            .destination(log.slow_handler("slow", millis(5), |_| Ok(())).concurrency(4))
            .destination(log.accepting("fast"));
        Running::start(relay)
    };
    let mut relays: VecDeque<Running> = VecDeque::new();
    relays.push_back(start().await);
    relays.push_back(start().await);
    let mut count = 0;
    for stop in 0..STOPS {
        enqueue(&database, work(KEYS, count..count + EACH));
        count += EACH;
        relays.push_back(start().await);
        let wanted = count - EACH / 2;
        log.until("most of it is done", |log| log.accepted("slow").len() >= wanted).await;
        if stop % 2 == 0 {
            enqueue(&database, work(KEYS, count..count + EACH));
            count += EACH;
        }
        relays.pop_front().unwrap().stop().await;
    }
    until_nothing_is_left(&database).await;
    for relay in relays {
        relay.stop().await;
    }
    for destination in ["slow", "fast"] {
        assert_exactly_once_in_order(&log, destination, KEYS, count);
    }
    println!("{}: {STOPS} stops, {count} messages to two destinations, each once", database.kind());
}
for_each_database!(relays_that_come_and_go_lose_nothing_and_repeat_nothing);

async fn a_partition_with_an_attempt_under_way_moves_when_it_ends_and_the_others_at_once(database: TestDatabase) {
    let log = Log::default();
    let slow = log.slow_handler("all", millis(0), |_| Ok(()));
    let (gate, opened) = tokio::sync::watch::channel(false);
    let held = relay::Handler::raw("held", move |_, _| {
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    // Every partition but a few stays idle.
    let start = || Running::start(member(&database).destination(slow.clone()).destination(held.clone()));
    let first = start().await;
    until_shared(&database, &[32]).await;
    enqueue(&database, work(60, 0..60));
    log.until("all are on their way", |log| log.accepted("all").len() >= 16).await;
    let busy = "SELECT count(*) FROM outbox_messages";
    assert!(database.query_i64(busy) > 0);
    let second = start().await;
    // What waits for the gate stays; the rest does not wait for it.
    until(&database, "some have moved", || shares(&database).len() == 2).await;
    gate.send(true).unwrap();
    until_shared(&database, &[16, 16]).await;
    until_nothing_is_left(&database).await;
    first.stop().await;
    second.stop().await;
    assert_exactly_once_in_order(&log, "all", 60, 60);
}
for_each_database!(a_partition_with_an_attempt_under_way_moves_when_it_ends_and_the_others_at_once);
