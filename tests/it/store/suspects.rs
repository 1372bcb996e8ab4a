//! What is told of attempts that never ended, and of the relays that made them.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::{PartitionSet, RelayId, WaitingDelivery};
use relay::store::{Settlement, Start, StartBatch, State, Store, WaitingChange};

use super::fixture::{Outbox, WaitingRow, acquire, moved, outcome, register, store_on, unit, uuid, waits};

/// Which of all partitions `relay` inherits when it takes them.
async fn inherits(store: &dyn Store, relay: RelayId) -> PartitionSet {
    let taken = store.partition_acquire(relay, PartitionSet::ALL).await.unwrap();
    taken.into_iter().filter(|taken| taken.inherited).map(|taken| taken.partition_no).collect()
}

async fn bury(store: &dyn Store, dead: RelayId) {
    let seen = store.membership_read().await.unwrap();
    let beat = seen.relays.iter().find(|relay| relay.id == dead).unwrap().beat;
    assert_eq!(store.relay_bury(&[(dead, beat)]).await.unwrap(), [dead]);
}

fn start(row: &WaitingDelivery, starts: u32) -> Start {
    Start { id: row.id, partition_no: row.message.partition_no, attempts_read: row.attempts, starts }
}

/// Counts rows as the relay of this outbox; returns which were counted, ascending.
async fn count(outbox: &Outbox, rows: &[Start]) -> Vec<i64> {
    let batch = StartBatch { epochs: outbox.epochs.clone(), rows: rows.to_vec() };
    let mut counted = outbox.store.delivery_start(outbox.relay, &batch).await.unwrap();
    counted.sort_unstable();
    counted
}

fn row(outbox: &Outbox, id: i64) -> WaitingRow {
    outbox.waiting().into_iter().find(|row| row.id == id).unwrap()
}

async fn partitions_of_the_dead_are_told_from_those_of_relays_that_left(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let names = ["buried", "vanished", "releases", "leaves", "heir"];
    let mut relays = Vec::new();
    for name in names {
        relays.push(register(&*store, name).await);
    }
    let [buried, vanished, releases, leaves, heir] = relays[..] else { panic!() };
    for (relay, partition) in [(buried, 1), (vanished, 2), (releases, 3), (leaves, 4)] {
        acquire(&*store, relay, PartitionSet::EMPTY.with(partition)).await;
    }
    bury(&*store, buried).await;
    database.exec(&format!("DELETE FROM outbox_relays WHERE id = {}", uuid(database.kind(), vanished)));
    store.partition_release(releases, PartitionSet::EMPTY.with(3)).await.unwrap();
    store.relay_leave(leaves).await.unwrap();
    let inherited: PartitionSet = [1, 2].into_iter().collect();
    // The knowledge outlives whoever had it first.
    let early = register(&*store, "early").await;
    assert_eq!(inherits(&*store, early).await, inherited);
    bury(&*store, early).await;
    assert_eq!(inherits(&*store, heir).await, PartitionSet::ALL, "it died as the owner of all");
    store.relay_leave(heir).await.unwrap();
    let last = register(&*store, "last").await;
    assert_eq!(inherits(&*store, last).await, PartitionSet::EMPTY);
}
for_each_database!(partitions_of_the_dead_are_told_from_those_of_relays_that_left);

async fn rows_that_are_about_to_be_attempted_are_counted(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for key in ["a", "b", "c", "d"] {
        outbox.park(key, "mail").await;
    }
    let due = outbox.due("mail").await;
    let [a, b, c, d] = due.as_slice() else { panic!("{due:?}") };
    let before = outbox.waiting();
    let stale = Start { attempts_read: 7, ..start(b, 1) };
    let elsewhere = Start { partition_no: (c.message.partition_no + 1) % 32, ..start(c, 1) };
    let gone = Start { id: d.id + 1000, ..start(d, 1) };
    let mut wanted = vec![start(d, 4), stale, elsewhere, gone, start(a, 1)];
    assert_eq!(count(&outbox, &wanted).await, [a.id, d.id]);
    let starts = |outbox: &Outbox| outbox.waiting().iter().map(|row| row.starts).collect::<Vec<_>>();
    assert_eq!(starts(&outbox), [1, 0, 0, 4]);
    wanted.reverse();
    assert_eq!(count(&outbox, &wanted).await, [a.id, d.id], "asked again, it says the same");
    assert_eq!(starts(&outbox), [1, 0, 0, 4], "and counts nothing twice");
    let apart = |mut rows: Vec<WaitingRow>| {
        rows.iter_mut().for_each(|row| row.starts = 0);
        rows
    };
    assert_eq!(apart(outbox.waiting()), apart(before), "nothing else changed");
    let read = outbox.due("mail").await;
    assert_eq!(
        read.iter().map(|row| (row.suspect, row.starts)).collect::<Vec<_>>(),
        [(false, 1), (false, 0), (false, 0), (false, 4)]
    );
    assert_eq!(count(&outbox, &[]).await, [0; 0]);
}
for_each_database!(rows_that_are_about_to_be_attempted_are_counted);

async fn only_the_owner_counts_under_its_epoch(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    let due = outbox.due("mail").await;
    let rows = vec![start(&due[0], 1)];
    let stranger = register(&*outbox.store, "stranger").await;
    let ask = async |relay, epochs: Vec<(u8, i64)>| {
        outbox.store.delivery_start(relay, &StartBatch { epochs, rows: rows.clone() }).await.unwrap()
    };
    assert_eq!(ask(stranger, outbox.epochs.clone()).await, [0; 0]);
    let older = outbox.epochs.iter().map(|(partition_no, epoch)| (*partition_no, epoch - 1)).collect();
    assert_eq!(ask(outbox.relay, older).await, [0; 0]);
    assert_eq!(ask(outbox.relay, vec![]).await, [0; 0]);
    bury(&*outbox.store, outbox.relay).await;
    assert_eq!(ask(outbox.relay, outbox.epochs.clone()).await, [0; 0], "it is still named as the owner, and is dead");
    assert_eq!(outbox.waiting()[0].starts, 0);
}
for_each_database!(only_the_owner_counts_under_its_epoch);

async fn an_outcome_clears_the_count(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&message, vec![unit("mail", waits(State::Suspect))])], vec![]).await;
    let due = outbox.due("mail").await;
    assert!(due[0].suspect && due[0].starts == 0);
    assert_eq!(count(&outbox, &[start(&due[0], 2)]).await, [due[0].id]);
    let read = outbox.due("mail").await;
    assert!(read[0].suspect && read[0].starts == 2);
    outbox.settle_all(vec![], vec![outcome(&read[0], WaitingChange::Waits(waits(State::Retry)))]).await;
    let row = &outbox.waiting()[0];
    assert_eq!((row.suspect, row.starts, row.state.as_str()), (false, 0, "retry"));
}
for_each_database!(an_outcome_clears_the_count);

async fn what_was_being_attempted_when_its_relay_died_becomes_suspect(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for key in ["a", "b", "c"] {
        outbox.park(key, "mail").await;
    }
    outbox.park("b", "mail").await;
    let due = outbox.due("mail").await;
    let [a, b, _] = due.as_slice() else { panic!("{due:?}") };
    count(&outbox, &[start(a, 1), start(b, 2)]).await;
    let before = outbox.waiting();

    // Handed over in order, nothing is suspected.
    outbox.store.partition_release(outbox.relay, PartitionSet::ALL).await.unwrap();
    let second = register(&*outbox.store, "second").await;
    assert_eq!(inherits(&*outbox.store, second).await, PartitionSet::EMPTY);
    assert_eq!(outbox.waiting(), before);

    bury(&*outbox.store, second).await;
    let third = register(&*outbox.store, "third").await;
    assert_eq!(inherits(&*outbox.store, third).await, PartitionSet::ALL);
    let mut expected = before;
    for row in &mut expected {
        if row.starts > 0 {
            (row.suspect, row.state) = (true, "suspect".into());
        }
    }
    assert_eq!(outbox.waiting(), expected, "their counts, their hours and their keys stay as they are");
    assert_eq!((row(&outbox, a.id).suspect, row(&outbox, b.id).starts), (true, 2));
}
for_each_database!(what_was_being_attempted_when_its_relay_died_becomes_suspect);

/// A relay that is frozen may hold a row in the transaction of its handler.
async fn a_row_in_a_zombies_hands_keeps_nobody_waiting(outbox: &Outbox, zombie: &mut impl SimpleConnection) {
    for key in ["a", "b"] {
        outbox.park(key, "mail").await;
    }
    let due = outbox.due("mail").await;
    let [a, b] = due.as_slice() else { panic!("{due:?}") };
    count(outbox, &[start(a, 1), start(b, 1)]).await;
    zombie.batch_execute("BEGIN").unwrap();
    zombie.batch_execute(&format!("DELETE FROM outbox_deliveries WHERE id = {}", a.id)).unwrap();
    let began = Instant::now();
    assert_eq!(count(outbox, &[start(a, 2), start(b, 2)]).await, [b.id]);
    bury(&*outbox.store, outbox.relay).await;
    let heir = register(&*outbox.store, "heir").await;
    assert_eq!(inherits(&*outbox.store, heir).await, PartitionSet::ALL);
    assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    zombie.batch_execute("ROLLBACK").unwrap();
    assert_eq!((row(outbox, a.id).suspect, row(outbox, b.id).suspect), (false, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_a_zombies_hands_keeps_nobody_waiting_on_postgres() {
    let outbox = Outbox::new(TestDatabase::with_schema(Kind::Postgres)).await;
    let mut zombie = outbox.database.postgres();
    a_row_in_a_zombies_hands_keeps_nobody_waiting(&outbox, &mut zombie).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_a_zombies_hands_keeps_nobody_waiting_on_mariadb() {
    let outbox = Outbox::new(TestDatabase::with_schema(Kind::Mariadb)).await;
    let mut zombie = outbox.database.mariadb();
    a_row_in_a_zombies_hands_keeps_nobody_waiting(&outbox, &mut zombie).await;
}

async fn counts_and_settles_do_not_wait_for_each_other_for_good(database: TestDatabase) {
    // The count and the settle take the same locks: one after the other, never both waiting.
    let outbox = Outbox::new(database).await;
    for n in 0..40 {
        outbox.park(&n.to_string(), "mail").await;
    }
    let due = outbox.due("mail").await;
    let counting = async {
        for round in 1..6 {
            let rows = due.iter().rev().map(|row| start(row, round)).collect();
            let batch = StartBatch { epochs: outbox.epochs.clone(), rows };
            outbox.store.delivery_start(outbox.relay, &batch).await.unwrap();
        }
    };
    let settling = async {
        for row in &due[..20] {
            let waiting = vec![outcome(row, WaitingChange::Delivered)];
            let batch = Settlement { epochs: outbox.epochs.clone(), moves: vec![], waiting };
            outbox.store.settle(outbox.relay, &batch, None).await.unwrap();
        }
    };
    tokio::join!(counting, settling);
    assert_eq!(outbox.waiting().len(), 20);
}
for_each_database!(counts_and_settles_do_not_wait_for_each_other_for_good);
