//! The relay's database cannot be reached for a while, longer than the lease: connections are refused, or made and
//! never answered. SQLite is absent: a file is always within reach.

use std::time::Instant;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::network::{Network, Stretch, authority};
use relay::Relay;

use super::stage::{Log, Running, enqueue, millis, quick, until, until_nothing_is_left};
use super::stops::{assert_exactly_once_in_order, work};

async fn a_database_out_of_reach_for_longer_than_the_lease_costs_nothing(database: TestDatabase) {
    const KEYS: usize = 20;
    const COUNT: usize = 300;
    let log = Log::default();
    let stretch = Stretch::to(authority(database.url()));
    let relay = Relay::builder(stretch.url(database.url()))
        .lease(millis(900))
        .poll(millis(1), millis(20))
        .retry(quick(1000))
        .destination(log.slow_handler("slow", millis(10), |_| Ok(())).concurrency(2))
        .destination(log.handler("flaky", |arrival| {
            let fails = arrival.copy == 1 && arrival.body.ends_with('7');
            if fails { Err(super::stage::not_now()) } else { Ok(()) }
        }));
    let relay = Running::start(relay).await;
    enqueue(&database, work(KEYS, 0..COUNT / 3));
    log.until("it is under way", |log| log.accepted("slow").len() > 20).await;
    let began = Instant::now();

    stretch.set(Network::Cut);
    enqueue(&database, work(KEYS, COUNT / 3..2 * COUNT / 3));
    tokio::time::sleep(millis(1500)).await;
    stretch.set(Network::Whole);
    let left = || database.query_i64("SELECT count(*) FROM outbox_messages");
    let had = left();
    until(&database, "it goes on after the cut", || left() < had).await;
    let resumed = began.elapsed();

    stretch.set(Network::Silent);
    enqueue(&database, work(KEYS, 2 * COUNT / 3..COUNT));
    tokio::time::sleep(millis(1500)).await;
    stretch.set(Network::Whole);
    until_nothing_is_left(&database).await;
    println!("{}: went on {resumed:?} after the cut, done after {:?}", database.kind(), began.elapsed());
    relay.stop().await;
    for destination in ["slow", "flaky"] {
        assert_exactly_once_in_order(&log, destination, KEYS, COUNT);
    }
}
for_each_database!(
    a_database_out_of_reach_for_longer_than_the_lease_costs_nothing,
    a_database_out_of_reach_for_longer_than_the_lease_costs_nothing,
    [postgres, mariadb]
);
