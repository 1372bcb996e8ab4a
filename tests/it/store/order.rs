//! Exactly the lowest in-order row of a (destination, key) is unblocked, none while a blocking dead letter exists.

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::message::PartitionSet;
use relay::store::{Dies, DueIn, Reason, Remains, RoutedUnit, State, WaitingChange, Waits};

use super::fixture::{Draft, Outbox, after_noon, dies, moved, outcome, register, unit, waits};

async fn only_the_head_of_a_key_is_due(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(outbox.park("k", "mail").await);
    }
    let other_key = outbox.park("other", "mail").await;
    let other_place = outbox.park("k", "sms").await;
    assert_eq!(
        outbox.free(),
        [(first[0], "mail".to_owned()), (other_key, "mail".to_owned()), (other_place, "sms".to_owned())]
    );
    let due: Vec<i64> = outbox.due("mail").await.iter().map(|row| row.message.seq).collect();
    assert_eq!(due, [first[0], other_key]);
}
for_each_database!(only_the_head_of_a_key_is_due);

async fn the_next_row_follows_when_the_head_leaves(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let mut seqs = Vec::new();
    for state in [State::Retry, State::Blocked, State::Overflow, State::Blocked] {
        let message = outbox.keyed("k").await;
        let due = DueIn::Pause(super::fixture::secs(10 * seqs.len() as u64));
        outbox.settle_all(vec![moved(&message, vec![unit("mail", Waits { due, ..waits(state) })])], vec![]).await;
        seqs.push(message.seq);
    }
    let states = |outbox: &Outbox| outbox.waiting().into_iter().map(|row| row.state).collect::<Vec<_>>();
    assert_eq!(states(&outbox), ["retry", "blocked", "overflow", "blocked"]);

    let head = outbox.due("mail").await.remove(0);
    outbox.settle_all(vec![], vec![outcome(&head, WaitingChange::Delivered)]).await;
    assert_eq!(outbox.free(), [(seqs[1], "mail".to_owned())]);
    assert_eq!(states(&outbox), ["retry", "overflow", "blocked"], "whoever was blocked is now to be retried");
    assert_eq!(outbox.waiting()[0].due_at, after_noon(10), "its `due_at` is unchanged");

    let head = outbox.due("mail").await.remove(0);
    outbox.settle_all(vec![], vec![outcome(&head, WaitingChange::Dies(dies(Reason::Rejected)))]).await;
    assert_eq!(outbox.free(), [(seqs[2], "mail".to_owned())], "after a dead letter the key continues");
    assert_eq!(states(&outbox), ["overflow", "blocked"], "another label stays");

    let head = outbox.due("mail").await.remove(0);
    let again = Waits { attempts: 2, ..waits(State::Retry) };
    outbox.settle_all(vec![], vec![outcome(&head, WaitingChange::Waits(again))]).await;
    assert_eq!(outbox.free(), [(seqs[2], "mail".to_owned())], "a head that waits again is still the head");
}
for_each_database!(the_next_row_follows_when_the_head_leaves);

/// A transactional handler deletes its row itself; what the relay then settles finds nothing, whatever it says.
async fn the_next_row_follows_when_somebody_else_deleted_the_head(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let changes = [
        WaitingChange::Delivered,
        WaitingChange::Waits(Waits { attempts: 2, ..waits(State::Retry) }),
        WaitingChange::Dies(dies(Reason::Exhausted)),
    ];
    for (key, change) in ["a", "b", "c"].into_iter().zip(changes) {
        let first = outbox.park(key, "mail").await;
        let second = outbox.park(key, "mail").await;
        let head = outbox.due("mail").await.into_iter().find(|row| row.message.seq == first).unwrap();
        outbox.database.exec(&format!("DELETE FROM outbox_deliveries WHERE id = {}", head.id));
        let settled = outbox.settle(vec![], vec![outcome(&head, change)]).await;
        assert_eq!(settled.refused_waiting, [head.id]);
        assert!(outbox.free().contains(&(second, "mail".to_owned())), "{key}: {:?}", outbox.free());
    }
    assert!(outbox.dead().is_empty());
}
for_each_database!(the_next_row_follows_when_somebody_else_deleted_the_head);

async fn a_blocking_dead_letter_stops_its_key_only(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("k", "mail").await;
    outbox.park("k", "mail").await;
    let other = outbox.park("other", "mail").await;
    let elsewhere = outbox.park("k", "sms").await;
    let head = outbox.due("mail").await.remove(0);
    let dead = Dies { blocks_key: true, ..dies(Reason::Exhausted) };
    outbox.settle_all(vec![], vec![outcome(&head, WaitingChange::Dies(dead))]).await;
    let rest = [(other, "mail".to_owned()), (elsewhere, "sms".to_owned())];
    assert_eq!(outbox.free(), rest);

    outbox.park("k", "mail").await;
    assert_eq!(outbox.free(), rest, "a newcomer waits behind the dead letter");

    let message = outbox.keyed("fresh").await;
    let dead = Dies { blocks_key: true, ..dies(Reason::Rejected) };
    outbox.settle_all(vec![moved(&message, vec![unit("mail", dead)])], vec![]).await;
    outbox.park("fresh", "mail").await;
    assert_eq!(outbox.free(), rest);
}
for_each_database!(a_blocking_dead_letter_stops_its_key_only);

/// A message from a hole has a lower number than the head that waits.
async fn a_lower_number_that_comes_late_becomes_the_head(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let low = outbox.keyed("k").await;
    let high = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&high, vec![unit("mail", waits(State::Retry))])], vec![]).await;
    assert_eq!(outbox.free(), [(high.seq, "mail".to_owned())]);
    outbox.settle_all(vec![moved(&low, vec![unit("mail", waits(State::Blocked))])], vec![]).await;
    assert_eq!(outbox.free(), [(low.seq, "mail".to_owned())]);
    let states: Vec<String> = outbox.waiting().into_iter().map(|row| row.state).collect();
    assert_eq!(states, ["retry", "retry"], "who becomes blocked keeps its label");
}
for_each_database!(a_lower_number_that_comes_late_becomes_the_head);

async fn rows_without_key_or_order_are_never_blocked(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let head = outbox.park("k", "mail").await;
    let out_of_order = outbox.keyed("k").await;
    let free = Waits { in_order: false, ..waits(State::Scheduled) };
    outbox.settle_all(vec![moved(&out_of_order, vec![unit("mail", free)])], vec![]).await;
    let mut keyless = Vec::new();
    for _ in 0..2 {
        let seq = outbox.insert(&Draft::default());
        let message = outbox.message(seq).await;
        outbox.settle_all(vec![moved(&message, vec![unit("mail", waits(State::Retry))])], vec![]).await;
        keyless.push(seq);
    }
    let all = [head, out_of_order.seq, keyless[0], keyless[1]].map(|seq| (seq, "mail".to_owned()));
    assert_eq!(outbox.free(), all);

    // Neither does a blocking dead letter stop them.
    let row = outbox.due("mail").await.into_iter().find(|row| row.message.seq == head).unwrap();
    let dead = Dies { blocks_key: true, ..dies(Reason::Exhausted) };
    outbox.settle_all(vec![], vec![outcome(&row, WaitingChange::Dies(dead))]).await;
    assert_eq!(outbox.free(), all[1..]);
}
for_each_database!(rows_without_key_or_order_are_never_blocked);

async fn routing_keeps_the_order_of_a_key(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let low = outbox.park("k", "").await;
    let next = outbox.park("k", "").await;
    let high = outbox.park("k", "mail").await;
    assert_eq!(outbox.free(), [(low, String::new()), (high, "mail".to_owned())]);
    let row = outbox.due("").await.remove(0);
    let unit = RoutedUnit { destination: "mail".into(), remains: Remains::Waits(waits(State::Blocked)) };
    outbox.settle_all(vec![], vec![outcome(&row, WaitingChange::Routed(vec![unit]))]).await;
    assert_eq!(outbox.free(), [(low, "mail".to_owned()), (next, String::new())]);
}
for_each_database!(routing_keeps_the_order_of_a_key);

async fn one_settle_may_take_the_head_and_bring_followers(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("k", "mail").await;
    let second = outbox.park("k", "mail").await;
    let head = outbox.due("mail").await.remove(0);
    let third = outbox.keyed("k").await;
    let moves = vec![moved(&third, vec![unit("mail", waits(State::Blocked))])];
    outbox.settle_all(moves, vec![outcome(&head, WaitingChange::Delivered)]).await;
    assert_eq!(outbox.free(), [(second, "mail".to_owned())]);
    assert_eq!(outbox.waiting().len(), 2);
}
for_each_database!(one_settle_may_take_the_head_and_bring_followers);

async fn acquiring_a_partition_repairs_its_keys(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let mut heads = Vec::new();
    for key in ["a", "b", "c"] {
        heads.push(outbox.park(key, "mail").await);
        outbox.park(key, "mail").await;
    }
    outbox.insert(&Draft::default());
    let keyless = outbox.read_all().await.from_tail.remove(0);
    let keyless = super::fixture::mine(vec![keyless]).remove(0);
    outbox.settle_all(vec![moved(&keyless, vec![unit("mail", waits(State::Retry))])], vec![]).await;
    let message = outbox.keyed("dead").await;
    let dead = Dies { blocks_key: true, ..dies(Reason::Rejected) };
    outbox.settle_all(vec![moved(&message, vec![unit("mail", dead)])], vec![]).await;
    let stopped = outbox.park("dead", "mail").await;
    let right = outbox.waiting();

    let flip = "UPDATE outbox_deliveries SET blocked = CASE WHEN blocked THEN false ELSE true END";
    outbox.database.exec(flip);
    let second = register(&*outbox.store, "second").await;
    assert_eq!(outbox.store.partition_acquire(second, PartitionSet::ALL).await.unwrap(), [], "nothing is free");
    assert!(outbox.waiting().iter().any(|row| row.seq == stopped && !row.blocked), "so nothing is repaired");
    outbox.store.partition_release(outbox.relay, PartitionSet::ALL).await.unwrap();
    assert_eq!(outbox.store.partition_acquire(second, PartitionSet::ALL).await.unwrap().len(), 32);
    assert_eq!(outbox.waiting(), right);
    assert_eq!(outbox.free().len(), heads.len() + 1);
}
for_each_database!(acquiring_a_partition_repairs_its_keys);

async fn a_key_is_parked_while_rows_or_blocking_dead_letters_of_it_exist(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("waits", "mail").await;
    let message = outbox.keyed("unordered").await;
    let free = Waits { in_order: false, ..waits(State::Scheduled) };
    outbox.settle_all(vec![moved(&message, vec![unit("mail", free)])], vec![]).await;
    for (key, blocks_key) in [("stopped", true), ("continued", false)] {
        let message = outbox.keyed(key).await;
        let dead = Dies { blocks_key, ..dies(Reason::Rejected) };
        outbox.settle_all(vec![moved(&message, vec![unit("mail", dead)])], vec![]).await;
    }
    let ask = [
        ("mail", "waits", true),
        ("sms", "waits", false),
        ("mail", "unordered", false),
        ("mail", "stopped", true),
        ("mail", "continued", false),
        ("mail", "unknown", false),
        ("mail", "waits", true),
    ];
    let keys: Vec<_> = ask.iter().map(|(place, key, _)| ((*place).to_owned(), key.as_bytes().into())).collect();
    let expected: Vec<bool> = ask.iter().map(|(.., parked)| *parked).collect();
    assert_eq!(outbox.store.key_parked(&keys).await.unwrap(), expected);
    assert_eq!(outbox.store.key_parked(&[]).await.unwrap(), [false; 0]);
}
for_each_database!(a_key_is_parked_while_rows_or_blocking_dead_letters_of_it_exist);
