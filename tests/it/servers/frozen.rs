//! A relay stops in the middle of a write, with every lock taken and nothing committed. The server ends the transaction,
//! another relay takes over, and when the first wakes its write changes nothing.
//!
//! The network in front of the frozen relay stops at its COMMIT. SQLite is absent: who holds its only lock is a process
//! on the same machine, and nobody can end its transaction for it.

use std::time::{Duration, Instant};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::network::{Network, Stretch, authority};
use outbox_tests::receiver::{Answer, Receiver, Request};
use relay::message::PartitionSet;
use relay::store::open::open;
use relay::store::{Settlement, State, StoreError, StoreOptions};

use super::{LIMIT, configuration, named, start, until_arrived};
use crate::store::fixture::{Outbox, acquire, moved, register, unit, waits};

const LEASE: Duration = Duration::from_secs(4);

/// Does to the end what may have to wait for locks.
async fn insist<T, F: Future<Output = Result<T, StoreError>>>(ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) if error.is_passing() && Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn a_write_that_froze_before_its_commit_is_undone_and_holds_nobody_up(database: TestDatabase) {
    for write in ["settle", "acquire", "release", "leave", "bury"] {
        freeze(TestDatabase::with_schema(database.kind()), write).await;
    }
}
for_each_database!(
    a_write_that_froze_before_its_commit_is_undone_and_holds_nobody_up,
    a_write_that_froze_before_its_commit_is_undone_and_holds_nobody_up,
    [postgres, mariadb]
);

async fn freeze(database: TestDatabase, write: &'static str) {
    let stretch = Stretch::to(authority(database.url()));
    let options = StoreOptions { lease: LEASE, ..StoreOptions::default() };
    let frozen = open(&stretch.url(database.url()), &options).await.unwrap();
    let other = open(database.url(), &options).await.unwrap();
    let (me, successor) = (register(&*frozen, "frozen").await, register(&*other, "other").await);
    let mine = if write == "acquire" { PartitionSet::EMPTY } else { PartitionSet::ALL };
    let epochs = acquire(&*frozen, me, mine).await;
    let outbox = Outbox { database, store: other.clone(), relay: me, epochs: epochs.clone() };
    let message = outbox.keyed("k").await;
    let moves = vec![moved(&message, vec![unit("mail", waits(State::Retry))])];
    let batch = Settlement { epochs, moves, ..Settlement::default() };

    stretch.set_trap("");
    let (asked, settlement) = (frozen.clone(), batch.clone());
    let call = tokio::spawn(async move {
        match write {
            "settle" => asked.settle(me, &settlement, None).await.map(drop),
            "acquire" => asked.partition_acquire(me, PartitionSet::ALL).await.map(drop),
            "release" => asked.partition_release(me, PartitionSet::ALL).await,
            "leave" => asked.relay_leave(me, PartitionSet::EMPTY).await,
            _ => asked.relay_bury(&[(successor, 0)]).await.map(drop),
        }
    });
    tokio::task::block_in_place(|| stretch.wait_until_sprung(LIMIT));
    let began = Instant::now();
    let dead = [(me, 0)];
    insist(|| other.relay_bury(&dead)).await;
    let taken = insist(|| other.partition_acquire(successor, PartitionSet::ALL)).await;
    let took = began.elapsed();
    println!("{}: {write} frozen, taken over after {took:.1?}", outbox.kind());
    assert_eq!(taken.len(), 32, "{write}");
    assert!(took < LEASE / 4 + Duration::from_millis(1500), "{write}: {took:?}");

    stretch.set(Network::Whole);
    let woken = tokio::time::timeout(LIMIT, call).await.unwrap().unwrap();
    assert!(woken.is_err(), "{write} of a relay whose partitions were taken over");
    let settled = insist(|| frozen.settle(me, &batch, None)).await;
    assert_eq!((settled.refused_messages, settled.stale), (vec![message.seq], 1), "{write}");
    assert_eq!(insist(|| frozen.partition_acquire(me, PartitionSet::ALL)).await, [], "{write}");
    insist(|| frozen.partition_release(me, PartitionSet::ALL)).await;
    let membership = other.membership_read().await.unwrap();
    assert!(membership.partitions.iter().all(|(_, owner, _)| *owner == Some(successor)), "{write}: {membership:?}");
    assert_eq!(outbox.pending(), [message.seq], "{write}");
    assert_eq!(outbox.waiting(), [], "{write}");
}

/// The same with two real relays: the first freezes as a whole in the middle of its settle.
async fn a_relay_frozen_in_its_settle_is_replaced_within_two_leases(database: TestDatabase) {
    const POLL: Duration = Duration::from_millis(60);
    let stretch = Stretch::to(authority(database.url()));
    // Half of the first attempts fail, so that their outcomes are written under the locks.
    let fails = |request: &Request| request.copy == 1 && request.body.last().is_some_and(|digit| digit % 2 == 0);
    let receiver = Receiver::start(move |request| Answer::status(if fails(request) { 503 } else { 200 })).await;
    let configuration = configuration(&receiver, "4s").replace("100ms", "10s");
    let frozen = start(&configuration, &stretch.url(database.url()));
    frozen.wait_for_line("partitions gained", LIMIT);
    let successor = start(&configuration, database.url());
    successor.wait_for_line("partitions gained", LIMIT);
    let halves = "SELECT count(*) FROM (SELECT owner FROM outbox_partitions WHERE owner IS NOT NULL \
                  GROUP BY owner HAVING count(*) = 16) AS halves";
    let deadline = Instant::now() + LIMIT;
    while database.query_i64(halves) < 2 {
        assert!(Instant::now() < deadline, "the partitions are not shared");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    stretch.set_trap("outbox_deliveries");
    let wanted = named("m", 0..60);
    for body in &wanted {
        database.exec(&format!(
            "INSERT INTO outbox_messages (topic, ordering_key, payload) VALUES ('t', '{body}', '{body}')"
        ));
    }
    tokio::task::block_in_place(|| stretch.wait_until_sprung(LIMIT));
    let began = Instant::now();
    let owned = "SELECT count(*) FROM outbox_partitions WHERE owner = (SELECT id FROM outbox_relays \
                 ORDER BY started_at DESC LIMIT 1)";
    while database.query_i64(owned) < 32 {
        assert!(began.elapsed() < LIMIT, "the partitions are not taken over");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = began.elapsed();
    println!("{}: taken over after {took:.1?}", database.kind());
    assert!(took <= LEASE * 2 + POLL + Duration::from_secs(1), "{took:?}");

    stretch.set(Network::Whole);
    frozen.wait_for_line("starts anew under a new identity", LIMIT);
    until_arrived(&receiver, &wanted).await;
    let deadline = Instant::now() + LIMIT;
    let left = "SELECT (SELECT count(*) FROM outbox_messages) + (SELECT count(*) FROM outbox_deliveries)";
    while database.query_i64(left) > 0 {
        assert!(Instant::now() < deadline, "messages are left behind");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for relay in [frozen, successor] {
        let ended = relay.terminate(LIMIT);
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    }
    let accepted = receiver.requests().iter().filter(|request| !fails(request)).count();
    assert!(accepted >= wanted.len(), "{accepted} accepted");
}
for_each_database!(
    a_relay_frozen_in_its_settle_is_replaced_within_two_leases,
    a_relay_frozen_in_its_settle_is_replaced_within_two_leases,
    [postgres, mariadb]
);
