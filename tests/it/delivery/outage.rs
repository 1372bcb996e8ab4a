//! The relay's database cannot be reached for a while, longer than the lease: connections are refused, or made and
//! never answered. SQLite is absent: a file is always within reach.

use std::sync::Arc;
use std::time::Instant;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::Relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::stage::{Log, Running, enqueue, millis, quick, until, until_nothing_is_left};
use super::stops::{assert_exactly_once_in_order, work};

/// What the network between the relay and its database does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Network {
    /// Carries everything.
    Whole,
    /// Carries nothing, and says nothing about it.
    Silent,
    /// Closes every connection.
    Cut,
}

/// A stretch of network in front of a database.
struct Stretch {
    url: String,
    network: Arc<watch::Sender<Network>>,
    accepting: JoinHandle<()>,
}

impl Stretch {
    async fn before(database: &TestDatabase) -> Stretch {
        let authority = database.url().split_once("://").unwrap().1;
        let (authority, _) = authority.split_once('/').unwrap();
        let target = authority.rsplit_once('@').map_or(authority, |(_, target)| target).to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let url = database.url().replacen(&target, &here, 1);
        let network = Arc::new(watch::channel(Network::Whole).0);
        let accepting = tokio::spawn(accept(listener, target, network.clone()));
        Stretch { url, network, accepting }
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: String, network: Arc<watch::Sender<Network>>) {
    // Dropping the set with this task ends the connections as well.
    let mut carrying = tokio::task::JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        if *network.borrow() == Network::Cut {
            continue;
        }
        let Ok(far) = TcpStream::connect(&target).await else { continue };
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        carrying.spawn(carry(near_read, far_write, network.subscribe()));
        carrying.spawn(carry(far_read, near_write, network.subscribe()));
        while carrying.try_join_next().is_some() {}
    }
}

/// Carries one direction until an end closes or the network is cut.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut network: watch::Receiver<Network>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _cut = network.wait_for(|network| *network == Network::Cut) => return,
        };
        let Ok(count @ 1..) = read else { return };
        let carries = network.wait_for(|network| *network != Network::Silent).await.map(|network| *network);
        if !matches!(carries, Ok(Network::Whole)) || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn a_database_out_of_reach_for_longer_than_the_lease_costs_nothing(database: TestDatabase) {
    const KEYS: usize = 20;
    const COUNT: usize = 300;
    let log = Log::default();
    let stretch = Stretch::before(&database).await;
    let relay = Relay::builder(&stretch.url)
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

    stretch.network.send_replace(Network::Cut);
    enqueue(&database, work(KEYS, COUNT / 3..2 * COUNT / 3));
    tokio::time::sleep(millis(1500)).await;
    stretch.network.send_replace(Network::Whole);
    let left = || database.query_i64("SELECT count(*) FROM outbox_messages");
    let had = left();
    until(&database, "it goes on after the cut", || left() < had).await;
    let resumed = began.elapsed();

    stretch.network.send_replace(Network::Silent);
    enqueue(&database, work(KEYS, 2 * COUNT / 3..COUNT));
    tokio::time::sleep(millis(1500)).await;
    stretch.network.send_replace(Network::Whole);
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
