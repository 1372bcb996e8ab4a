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

fn start(row: &WaitingDelivery) -> Start {
    Start {
        id: row.id,
        partition_no: row.message.partition_no,
        message_id: row.message.id,
        attempts_read: row.attempts,
    }
}

/// Marks rows as the relay of this outbox; returns which were marked, ascending.
async fn mark(outbox: &Outbox, rows: &[Start]) -> Vec<i64> {
    let batch = StartBatch { epochs: outbox.epochs.clone(), rows: rows.to_vec() };
    let mut marked = outbox.store.delivery_start(outbox.relay, &batch).await.unwrap();
    marked.sort_unstable();
    marked
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
    store.relay_leave(leaves, PartitionSet::EMPTY).await.unwrap();
    let inherited: PartitionSet = [1, 2].into_iter().collect();
    // The knowledge outlives whoever had it first.
    let early = register(&*store, "early").await;
    assert_eq!(inherits(&*store, early).await, inherited);
    bury(&*store, early).await;
    assert_eq!(inherits(&*store, heir).await, PartitionSet::ALL, "it died as the owner of all");
    store.relay_leave(heir, PartitionSet::EMPTY.with(7)).await.unwrap();
    let last = register(&*store, "last").await;
    assert_eq!(inherits(&*store, last).await, PartitionSet::EMPTY.with(7), "that one was not read");
}
for_each_database!(partitions_of_the_dead_are_told_from_those_of_relays_that_left);

async fn rows_that_are_about_to_be_attempted_are_marked(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for key in ["a", "b", "c", "d", "e"] {
        outbox.park(key, "mail").await;
    }
    let due = outbox.due("mail").await;
    let [a, b, c, d, e] = due.as_slice() else { panic!("{due:?}") };
    let before = outbox.waiting();
    let stale = Start { attempts_read: 7, ..start(b) };
    let elsewhere = Start { partition_no: (c.message.partition_no + 1) % 32, ..start(c) };
    let gone = Start { id: d.id + 1000, ..start(d) };
    let another = Start { message_id: a.message.id, ..start(e) };
    let mut wanted = vec![start(d), stale, elsewhere, gone, another, start(a)];
    assert_eq!(mark(&outbox, &wanted).await, [a.id, d.id]);
    let marks = |outbox: &Outbox| outbox.waiting().iter().map(|row| row.marked).collect::<Vec<_>>();
    assert_eq!(marks(&outbox), [true, false, false, true, false]);
    wanted.reverse();
    assert_eq!(mark(&outbox, &wanted).await, [a.id, d.id], "asked again, it says the same");
    let apart = |mut rows: Vec<WaitingRow>| {
        rows.iter_mut().for_each(|row| row.marked = false);
        rows
    };
    assert_eq!(apart(outbox.waiting()), apart(before), "nothing else changed");
    assert_eq!(mark(&outbox, &[]).await, [0; 0]);
}
for_each_database!(rows_that_are_about_to_be_attempted_are_marked);

async fn only_the_owner_marks_under_its_epoch(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    let due = outbox.due("mail").await;
    let rows = vec![start(&due[0])];
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
    assert!(!outbox.waiting()[0].marked);
}
for_each_database!(only_the_owner_marks_under_its_epoch);

async fn an_outcome_takes_the_mark_and_the_deaths_off(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&message, vec![unit("mail", waits(State::Suspect))])], vec![]).await;
    let due = outbox.due("mail").await;
    assert!(due[0].suspect && due[0].deaths == 0);
    outbox.database.exec("UPDATE outbox_deliveries SET deaths = 2");
    assert_eq!(mark(&outbox, &[start(&due[0])]).await, [due[0].id]);
    let read = outbox.due("mail").await;
    assert!(read[0].suspect && read[0].deaths == 2);
    outbox.settle_all(vec![], vec![outcome(&read[0], WaitingChange::Waits(waits(State::Retry)))]).await;
    let row = &outbox.waiting()[0];
    assert_eq!((row.suspect, row.marked, row.deaths, row.state.as_str()), (false, false, 0, "retry"));
}
for_each_database!(an_outcome_takes_the_mark_and_the_deaths_off);

async fn what_was_being_attempted_when_its_relay_died_becomes_suspect(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for key in ["a", "b", "c"] {
        outbox.park(key, "mail").await;
    }
    outbox.park("b", "mail").await;
    let due = outbox.due("mail").await;
    let [a, b, _] = due.as_slice() else { panic!("{due:?}") };
    mark(&outbox, &[start(a), start(b)]).await;
    let before = outbox.waiting();

    // Handed over in order, nothing is suspected, and not when the next one dies that had not begun with them.
    outbox.store.partition_release(outbox.relay, PartitionSet::ALL).await.unwrap();
    let second = register(&*outbox.store, "second").await;
    assert_eq!(inherits(&*outbox.store, second).await, PartitionSet::EMPTY);
    bury(&*outbox.store, second).await;
    let third = register(&*outbox.store, "third").await;
    let taken = outbox.store.partition_acquire(third, PartitionSet::ALL).await.unwrap();
    assert_eq!(outbox.waiting(), before);

    let epochs = taken.iter().map(|taken| (taken.partition_no, taken.epoch)).collect();
    let batch = StartBatch { epochs, rows: vec![start(a)] };
    assert_eq!(outbox.store.delivery_start(third, &batch).await.unwrap(), [a.id]);
    let mut expected = before;
    for (deaths, name) in [(1, "fourth"), (1, "fifth")] {
        let seen = outbox.store.membership_read().await.unwrap();
        for relay in seen.relays.iter().filter(|relay| relay.id != outbox.relay) {
            bury(&*outbox.store, relay.id).await;
        }
        let heir = register(&*outbox.store, name).await;
        assert_eq!(inherits(&*outbox.store, heir).await, PartitionSet::ALL);
        let row = expected.iter_mut().find(|row| row.id == a.id).unwrap();
        (row.suspect, row.state, row.marked, row.deaths) = (true, "suspect".into(), false, deaths);
        assert_eq!(outbox.waiting(), expected, "their hours and their keys stay as they are; {name}");
    }
}
for_each_database!(what_was_being_attempted_when_its_relay_died_becomes_suspect);

async fn a_relay_that_leaves_what_it_did_not_read_was_not_killed_by_its_rows(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    let due = outbox.due("mail").await;
    mark(&outbox, &[start(&due[0])]).await;
    outbox.store.relay_leave(outbox.relay, PartitionSet::ALL).await.unwrap();
    let heir = register(&*outbox.store, "heir").await;
    assert_eq!(inherits(&*outbox.store, heir).await, PartitionSet::ALL);
    assert_eq!((outbox.waiting()[0].suspect, outbox.waiting()[0].deaths), (false, 0));
}
for_each_database!(a_relay_that_leaves_what_it_did_not_read_was_not_killed_by_its_rows);

/// A relay that is frozen may hold a row in the transaction of its handler.
async fn a_row_in_a_zombies_hands_keeps_nobody_waiting(outbox: &Outbox, zombie: &mut impl SimpleConnection) {
    for key in ["a", "b"] {
        outbox.park(key, "mail").await;
    }
    let due = outbox.due("mail").await;
    let [a, b] = due.as_slice() else { panic!("{due:?}") };
    mark(outbox, &[start(a), start(b)]).await;
    zombie.batch_execute("BEGIN").unwrap();
    zombie.batch_execute(&format!("DELETE FROM outbox_deliveries WHERE id = {}", a.id)).unwrap();
    let began = Instant::now();
    assert_eq!(mark(outbox, &[start(a), start(b)]).await, [b.id]);
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

async fn marks_and_settles_do_not_wait_for_each_other_for_good(database: TestDatabase) {
    // The mark and the settle take the same locks: one after the other, never both waiting.
    let outbox = Outbox::new(database).await;
    for n in 0..40 {
        outbox.park(&n.to_string(), "mail").await;
    }
    let due = outbox.due("mail").await;
    let marking = async {
        for _ in 1..6 {
            let rows = due.iter().rev().map(start).collect();
            let batch = StartBatch { epochs: outbox.epochs.clone(), rows };
            outbox.store.delivery_start(outbox.relay, &batch).await.unwrap();
        }
    };
    let settling = async {
        for row in &due[..20] {
            let waiting = vec![outcome(row, WaitingChange::Delivered)];
            let batch = Settlement { epochs: outbox.epochs.clone(), waiting, ..Settlement::default() };
            outbox.store.settle(outbox.relay, &batch, None).await.unwrap();
        }
    };
    tokio::join!(marking, settling);
    assert_eq!(outbox.waiting().len(), 20);
}
for_each_database!(marks_and_settles_do_not_wait_for_each_other_for_good);
