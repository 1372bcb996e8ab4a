//! Who is there, who owns what, and who may take it away.

use std::time::Duration;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::message::{PartitionSet, RelayId};
use relay::store::{Membership, RelayRow, Store};

use super::fixture::{Outbox, acquire, moved, register, store_on, unit, waits};

fn some(numbers: &[u8]) -> PartitionSet {
    numbers.iter().copied().collect()
}

fn owned_by(membership: &Membership, relay: RelayId) -> PartitionSet {
    let own = membership.partitions.iter().filter(|(_, owner, _)| *owner == Some(relay));
    own.map(|(partition_no, ..)| *partition_no).collect()
}

fn beat_of(membership: &Membership, relay: RelayId) -> i64 {
    membership.relays.iter().find(|seen| seen.id == relay).unwrap().beat
}

async fn beat(store: &dyn Store, relay: RelayId) -> Membership {
    store.relay_beat(relay, false).await.unwrap().expect("the relay is registered")
}

async fn a_beat_is_raised_and_reads_back_who_is_there(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let row = RelayRow {
        id: RelayId::from_u128(7),
        name: "shop-1".into(),
        version: "1.2.3".into(),
        lease: Duration::from_micros(7_000_001),
        serves: vec!["mail".into(), "billing".into()],
    };
    store.relay_register(&row).await.unwrap();
    store.relay_register(&row).await.unwrap();
    let other = register(&*store, "other").await;
    let first = beat(&*store, row.id).await;
    assert_eq!(first.partitions, (0..32).map(|n| (n, None, 0)).collect::<Vec<_>>());
    assert_eq!(first.relays.len(), 2, "registering again is harmless");
    let seen = first.relays.iter().find(|seen| seen.id == row.id).unwrap();
    assert_eq!((&seen.name, &seen.version, &seen.serves), (&row.name, &row.version, &row.serves));
    assert_eq!(seen.lease, Duration::from_millis(7_001), "never shorter than what it was");
    let read = store.membership_read().await.unwrap();
    assert_eq!(read.relays.iter().find(|seen| seen.id == row.id).unwrap().lease, seen.lease);
    assert!(!seen.draining && (chrono::Utc::now() - seen.started_at).num_seconds().abs() < 60);

    let second = store.relay_beat(row.id, true).await.unwrap().unwrap();
    assert_eq!(beat_of(&second, row.id), beat_of(&first, row.id) + 1);
    assert_eq!(beat_of(&second, other), beat_of(&first, other), "nobody else's beat is raised");
    assert!(second.relays.iter().find(|seen| seen.id == row.id).unwrap().draining);
    assert!(!beat(&*store, row.id).await.relays.iter().any(|seen| seen.draining));

    let stranger = store.relay_beat(RelayId::from_u128(8), false).await.unwrap();
    assert!(stranger.is_none(), "whoever has no row is told so");
}
for_each_database!(a_beat_is_raised_and_reads_back_who_is_there);

async fn free_partitions_are_taken_and_their_epochs_raised(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let (one, two) = (register(&*store, "one").await, register(&*store, "two").await);
    assert_eq!(acquire(&*store, one, some(&[3, 1, 31])).await, [(1, 1), (3, 1), (31, 1)]);
    assert_eq!(acquire(&*store, two, some(&[1, 2, 3])).await, [(2, 1)], "the others have an owner");
    assert_eq!(acquire(&*store, one, some(&[1])).await, [], "what is mine is not taken again");
    assert_eq!(acquire(&*store, one, PartitionSet::EMPTY).await, []);
    let seen = beat(&*store, one).await;
    assert_eq!((owned_by(&seen, one), owned_by(&seen, two)), (some(&[1, 3, 31]), some(&[2])));
    let stranger = RelayId::from_u128(9);
    assert_eq!(acquire(&*store, stranger, PartitionSet::ALL).await, [], "only a relay with a row takes");
}
for_each_database!(free_partitions_are_taken_and_their_epochs_raised);

async fn partitions_of_an_owner_without_a_row_are_free(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let (one, two) = (register(&*store, "one").await, register(&*store, "two").await);
    acquire(&*store, one, some(&[4, 5])).await;
    let id = super::fixture::uuid(database.kind(), one);
    database.exec(&format!("DELETE FROM outbox_relays WHERE id = {id}"));
    assert_eq!(acquire(&*store, two, some(&[4])).await, [(4, 2)]);
}
for_each_database!(partitions_of_an_owner_without_a_row_are_free);

async fn only_my_own_partitions_are_given_up(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let (one, two) = (register(&*store, "one").await, register(&*store, "two").await);
    acquire(&*store, one, some(&[1, 2])).await;
    acquire(&*store, two, some(&[3])).await;
    store.partition_release(one, some(&[2, 3, 4])).await.unwrap();
    store.partition_release(one, PartitionSet::EMPTY).await.unwrap();
    let seen = beat(&*store, one).await;
    assert_eq!((owned_by(&seen, one), owned_by(&seen, two)), (some(&[1]), some(&[3])));
    assert_eq!(acquire(&*store, two, some(&[2])).await, [(2, 2)], "a new owner, a new epoch");
}
for_each_database!(only_my_own_partitions_are_given_up);

async fn a_relay_is_buried_only_while_its_beat_stands_still(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let (one, two, three) =
        (register(&*store, "one").await, register(&*store, "two").await, register(&*store, "three").await);
    acquire(&*store, two, some(&[1, 2])).await;
    acquire(&*store, three, some(&[3])).await;
    let seen = beat(&*store, one).await;
    let accused = [(two, beat_of(&seen, two)), (three, beat_of(&seen, three)), (RelayId::from_u128(1), 0)];
    beat(&*store, three).await;
    assert_eq!(store.relay_bury(&accused).await.unwrap(), [two], "three has moved since");
    assert_eq!(store.relay_bury(&accused).await.unwrap(), Vec::<RelayId>::new(), "nobody dies twice");
    assert_eq!(store.relay_bury(&[]).await.unwrap(), Vec::<RelayId>::new());
    let seen = beat(&*store, one).await;
    assert_eq!(seen.relays.len(), 2);
    assert_eq!(
        seen.partitions[1..4],
        [(1, Some(two), 2), (2, Some(two), 2), (3, Some(three), 1)],
        "their owner is dead"
    );
    assert!(store.relay_beat(two, false).await.unwrap().is_none());
    assert_eq!(acquire(&*store, two, some(&[1])).await, [], "the dead take nothing");
    assert_eq!(acquire(&*store, one, some(&[1])).await, [(1, 3)]);
}
for_each_database!(a_relay_is_buried_only_while_its_beat_stands_still);

async fn a_buried_relay_settles_nothing(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    let heir = register(&*outbox.store, "heir").await;
    let seen = beat(&*outbox.store, heir).await;
    outbox.store.relay_bury(&[(outbox.relay, beat_of(&seen, outbox.relay))]).await.unwrap();
    let late = || moved(&message, vec![unit("mail", waits(relay::store::State::Retry))]);
    assert_eq!(outbox.settle(vec![late()], vec![]).await.refused_messages, [message.seq]);
    let taken = acquire(&*outbox.store, heir, PartitionSet::ALL).await;
    assert_eq!(outbox.settle(vec![late()], vec![]).await.refused_messages, [message.seq]);
    let batch = relay::store::Settlement {
        epochs: taken,
        moves: vec![late()],
        waiting: vec![],
        ..relay::store::Settlement::default()
    };
    assert!(outbox.store.settle(heir, &batch, None).await.unwrap().refused_messages.is_empty());
}
for_each_database!(a_buried_relay_settles_nothing);

async fn leaving_frees_everything_at_once(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let (one, two) = (register(&*store, "one").await, register(&*store, "two").await);
    acquire(&*store, one, some(&[1, 2])).await;
    acquire(&*store, two, some(&[3])).await;
    store.relay_leave(one, PartitionSet::EMPTY).await.unwrap();
    store.relay_leave(one, PartitionSet::EMPTY).await.unwrap();
    assert!(store.relay_beat(one, false).await.unwrap().is_none());
    let seen = beat(&*store, two).await;
    assert_eq!(seen.relays.len(), 1);
    assert!(seen.partitions.iter().all(|(n, owner, _)| (*n == 3) == owner.is_some()));
}
for_each_database!(leaving_frees_everything_at_once);

async fn many_relays_never_own_a_partition_together(database: TestDatabase) {
    let mut relays = Vec::new();
    for n in 0..4 {
        let store = store_on(database.url()).await;
        let relay = register(&*store, &n.to_string()).await;
        relays.push((store, relay));
    }
    let rush = relays.iter().map(|(store, relay)| {
        let (store, relay) = (store.clone(), *relay);
        tokio::spawn(async move {
            let mut taken = Vec::new();
            for n in 0..32 {
                loop {
                    match store.partition_acquire(relay, some(&[n, (n + 1) % 32])).await {
                        Ok(more) => break taken.extend(more.iter().map(|taken| (taken.partition_no, taken.epoch))),
                        Err(relay::store::StoreError::TryAgain { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
            taken
        })
    });
    let mut taken = Vec::new();
    for task in rush.collect::<Vec<_>>() {
        taken.extend(task.await.unwrap());
    }
    taken.sort_unstable();
    assert_eq!(taken, (0..32).map(|n| (n, 1)).collect::<Vec<_>>(), "each was taken by exactly one");
}
for_each_database!(many_relays_never_own_a_partition_together);
