//! Which waiting rows may be attempted, and when the next may.

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::message::{MessageId, PartitionSet, WaitingDelivery};
use relay::store::{
    DestinationSpec, Dies, DueIn, KeyAfter, LaneDemand, LaneWaiting, Reason, State, UnroutedAfter, UnroutedRow, Waits,
};

use super::fixture::{Draft, Outbox, after_noon, dies, mine, moved, noon, register, secs, time, unit, waits};

fn lane(destination: &str, limit: u32) -> LaneDemand {
    LaneDemand { destination: destination.into(), limit, without: Vec::new() }
}

fn numbers(rows: &[WaitingDelivery]) -> Vec<i64> {
    rows.iter().map(|row| row.message.seq).collect()
}

/// Rows without key that wait for `destination`, one due each minute after noon, the last one first.
async fn each_minute(outbox: &Outbox, destination: &str, count: u64) -> Vec<i64> {
    let mut seqs = Vec::new();
    for minute in (1..=count).rev() {
        let seq = outbox.insert(&Draft::default());
        let message = outbox.message(seq).await;
        let later = Waits { due: DueIn::Pause(secs(60 * minute)), ..waits(State::Retry) };
        outbox.settle_all(vec![moved(&message, vec![unit(destination, later)])], vec![]).await;
        seqs.push(seq);
    }
    seqs.reverse();
    seqs
}

async fn rows_are_returned_when_they_are_due_oldest_first(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let seqs = each_minute(&outbox, "mail", 3).await;
    assert_eq!(numbers(&outbox.due_at("mail", after_noon(59)).await), [0; 0]);
    assert_eq!(numbers(&outbox.due_at("mail", after_noon(60)).await), seqs[..1]);
    assert_eq!(numbers(&outbox.due_at("mail", after_noon(3600)).await), seqs);
    assert_eq!(outbox.waiting().len(), 3, "looking changes nothing");
}
for_each_database!(rows_are_returned_when_they_are_due_oldest_first);

async fn without_an_hour_the_clock_of_the_database_decides(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    each_minute(&outbox, "mail", 2).await;
    let shift = |rows: &str, to: chrono::DateTime<chrono::Utc>| {
        let due_at = time(outbox.kind(), to);
        outbox.database.exec(&format!("UPDATE outbox_deliveries SET due_at = {due_at} WHERE id = {rows}"));
    };
    let ids: Vec<i64> = outbox.waiting().iter().map(|row| row.id).collect();
    shift(&ids[0].to_string(), chrono::Utc::now() - chrono::TimeDelta::minutes(10));
    shift(&ids[1].to_string(), chrono::Utc::now() + chrono::TimeDelta::minutes(10));
    let due = outbox.store.delivery_due(&[lane("mail", 9)], PartitionSet::ALL, None).await.unwrap();
    assert_eq!(due.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [ids[0]]);
}
for_each_database!(without_an_hour_the_clock_of_the_database_decides);

async fn each_lane_gets_at_most_its_limit(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let mail = each_minute(&outbox, "mail", 4).await;
    let sms = each_minute(&outbox, "sms", 3).await;
    each_minute(&outbox, "push", 1).await;
    let lanes = [lane("sms", 2), lane("mail", 3), lane("none", 5), lane("push", 0)];
    let due = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(after_noon(3600))).await.unwrap();
    let of = |destination: &str| {
        let rows: Vec<_> = due.rows.iter().filter(|row| row.destination == destination).cloned().collect();
        numbers(&rows)
    };
    assert_eq!(of("sms"), sms[..2]);
    assert_eq!(of("mail"), mail[..3]);
    assert_eq!(due.rows.len(), 5);
    assert_eq!(due.lanes.len(), 4, "one answer for each lane, in the order of the question");
    assert_eq!(due.lanes[2], LaneWaiting { occupied: false, next_due_in: None });
    assert_eq!(due.lanes[3], LaneWaiting { occupied: true, next_due_in: Some(secs(0)) });
    let none = outbox.store.delivery_due(&[], PartitionSet::ALL, None).await.unwrap();
    assert!(none.rows.is_empty() && none.lanes.is_empty());
}
for_each_database!(each_lane_gets_at_most_its_limit);

async fn a_lane_says_when_its_next_row_is_due(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    each_minute(&outbox, "mail", 2).await;
    let ask = async |seconds: i64| {
        let lanes = [lane("mail", 0)];
        let due = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(after_noon(seconds))).await.unwrap();
        due.lanes[0]
    };
    assert_eq!(ask(0).await, LaneWaiting { occupied: true, next_due_in: Some(secs(60)) });
    assert_eq!(ask(45).await, LaneWaiting { occupied: true, next_due_in: Some(secs(15)) });
    assert_eq!(ask(60).await.next_due_in, Some(secs(0)));
    assert_eq!(ask(600).await.next_due_in, Some(secs(0)), "overdue is due");
}
for_each_database!(a_lane_says_when_its_next_row_is_due);

async fn blocked_rows_are_neither_returned_nor_next(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let head = outbox.keyed("k").await;
    let follower = outbox.keyed("k").await;
    let later = Waits { due: DueIn::Pause(secs(600)), ..waits(State::Retry) };
    let soon = Waits { due: DueIn::Pause(secs(0)), ..waits(State::Blocked) };
    let moves = vec![moved(&head, vec![unit("mail", later)]), moved(&follower, vec![unit("mail", soon)])];
    outbox.settle_all(moves, vec![]).await;
    let lanes = [lane("mail", 9)];
    let due = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(after_noon(1))).await.unwrap();
    assert_eq!(numbers(&due.rows), [0; 0]);
    assert_eq!(due.lanes[0], LaneWaiting { occupied: true, next_due_in: Some(secs(599)) });
}
for_each_database!(blocked_rows_are_neither_returned_nor_next);

async fn rows_of_keys_that_are_left_out_are_not_there_unless_they_keep_an_order(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    // Any bytes a key may have, on each database.
    let keys = ["k", "K", "it's 10% €", "k "];
    let mut seqs = Vec::new();
    for (minute, key) in (1..).zip(keys.iter().chain(&keys)) {
        let message = outbox.keyed(key).await;
        let due = DueIn::Pause(secs(60 * minute));
        let wait = Waits { due, in_order: minute > 4, ..waits(State::Retry) };
        outbox.settle_all(vec![moved(&message, vec![unit("mail", wait)])], vec![]).await;
        seqs.push(message.seq);
    }
    let plain = outbox.insert(&Draft::default());
    let message = outbox.message(plain).await;
    let wait = Waits { due: DueIn::Pause(secs(900)), in_order: false, ..waits(State::Retry) };
    outbox.settle_all(vec![moved(&message, vec![unit("mail", wait)])], vec![]).await;
    let ask = async |without: &[&str], limit| {
        let without = without.iter().map(|key| key.as_bytes().into()).collect();
        let lanes = [LaneDemand { without, ..lane("mail", limit) }, lane("other", 9)];
        let due = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(after_noon(59))).await.unwrap();
        let later = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(after_noon(3600))).await.unwrap();
        (numbers(&later.rows), due.lanes[0].next_due_in)
    };
    let (in_order, mut all) = (&seqs[4..], seqs.clone());
    all.push(plain);
    assert_eq!(ask(&[], 99).await, (all.clone(), Some(secs(1))));
    assert_eq!(ask(&["nobody's"], 99).await, (all.clone(), Some(secs(1))));
    assert_eq!(ask(&["k"], 99).await, (all[1..].to_vec(), Some(secs(61))), "neither K nor one with a blank");
    assert_eq!(ask(&["k", "K"], 2).await, (all[2..4].to_vec(), Some(secs(121))), "they hide nothing");
    assert_eq!(ask(&keys, 99).await, ([in_order, &[plain]].concat(), Some(secs(241))));
}
for_each_database!(rows_of_keys_that_are_left_out_are_not_there_unless_they_keep_an_order);

async fn only_rows_of_owned_partitions_are_returned(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for n in 0..20 {
        outbox.park(&format!("k{n}"), "mail").await;
    }
    let rows = outbox.waiting();
    let owned: PartitionSet = rows.iter().take(5).map(|row| row.partition_no).collect();
    let expected = rows.iter().filter(|row| owned.contains(row.partition_no)).count();
    assert!(expected < 20);
    let ask = async |owned| {
        let hour = Some(after_noon(3600));
        outbox.store.delivery_due(&[lane("mail", 99)], owned, hour).await.unwrap()
    };
    let due = ask(owned).await;
    assert!(due.rows.iter().all(|row| owned.contains(row.message.partition_no)));
    assert_eq!(due.rows.len(), expected);
    let nobody = ask(PartitionSet::EMPTY).await;
    assert_eq!(nobody.rows.len(), 0);
    assert_eq!(nobody.lanes, [LaneWaiting { occupied: true, next_due_in: None }], "occupied in any partition");
}
for_each_database!(only_rows_of_owned_partitions_are_returned);

async fn a_blocking_dead_letter_occupies_its_lane(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    let blocks = Dies { blocks_key: true, ..dies(Reason::Rejected) };
    outbox.settle_all(vec![moved(&message, vec![unit("mail", blocks), unit("sms", dies(Reason::Gone))])], vec![]).await;
    let lanes = [lane("mail", 9), lane("sms", 9)];
    let due = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(noon())).await.unwrap();
    assert_eq!(
        due.lanes,
        [LaneWaiting { occupied: true, next_due_in: None }, LaneWaiting { occupied: false, next_due_in: None }]
    );
}
for_each_database!(a_blocking_dead_letter_occupies_its_lane);

/// Rows of these topics, each with a key of its own unless one is named, in this state and without a destination.
async fn without_destination(outbox: &Outbox, rows: &[(&str, Option<&str>, State)]) -> Vec<MessageId> {
    let drafts = rows.iter().enumerate().map(|(n, (topic, key, _))| {
        Draft { topic: (*topic).into(), ..Draft::default() }.key(key.unwrap_or(&format!("key {n}")))
    });
    drafts.for_each(|draft| {
        outbox.insert(&draft);
    });
    let messages = mine(outbox.read_all().await.from_tail);
    let later = |state| Waits { due: DueIn::Pause(secs(3600)), ..waits(state) };
    let moves = messages.iter().zip(rows).map(|(message, (_, _, state))| moved(message, vec![unit("", later(*state))]));
    outbox.settle_all(moves.collect(), vec![]).await;
    messages.iter().map(|message| message.id).collect()
}

async fn rows_without_a_destination_are_found_by_topic_and_partition(database: TestDatabase) {
    use State::{Scheduled, Unrouted};
    let outbox = Outbox::new(database).await;
    let rows = [
        ("b", Some("k"), Unrouted),
        ("b", Some("k"), Unrouted),
        ("a.b", Some("k"), Unrouted),
        ("b", None, Unrouted),
        ("later", Some("k"), Scheduled),
    ];
    let ids = without_destination(&outbox, &rows).await;
    outbox.park("k", "mail").await;
    let waiting = outbox.waiting();
    let of_k = waiting[0].partition_no;
    let every: Vec<(u8, String)> = PartitionSet::ALL.iter().map(|partition_no| (partition_no, String::new())).collect();

    let mut topics = outbox.store.unrouted_topics(&every, 9).await.unwrap();
    topics.sort();
    let mut expected = vec![(of_k, "a.b".to_owned()), (of_k, "b".into()), (waiting[3].partition_no, "b".into())];
    expected.sort();
    expected.dedup();
    assert_eq!(topics, expected, "each topic once, and none of what is scheduled or has a destination");
    let next = async |after: &str, limit| {
        let found = outbox.store.unrouted_topics(&[(of_k, after.to_owned())], limit).await.unwrap();
        found.into_iter().map(|(_, topic)| topic).collect::<Vec<_>>()
    };
    assert_eq!(
        (next("", 1).await, next("a.b", 1).await, next("b", 1).await),
        (vec!["a.b".into()], vec!["b".into()], vec![])
    );
    assert!(outbox.store.unrouted_topics(&[], 9).await.unwrap().is_empty());

    let place = |topic: &str, after| UnroutedAfter { partition_no: of_k, topic: topic.into(), after };
    let read = async |wanted: &[UnroutedAfter], limit| outbox.store.unrouted_rows(wanted, limit).await.unwrap();
    let found = read(&[place("b", 0), place("a.b", 0), place("later", 0), place("none", 0)], 2).await;
    let numbers: Vec<i64> = found.iter().map(|row| row.id).collect();
    assert_eq!(
        numbers,
        [waiting[0].id, waiting[1].id, waiting[2].id],
        "heads and followers, due or not, place by place"
    );
    let expected = UnroutedRow {
        id: waiting[0].id,
        message_id: ids[0],
        partition_no: of_k,
        topic: "b".into(),
        ordering_key: Some(b"k".as_slice().into()),
        in_order: true,
        attempts: 1,
    };
    assert_eq!(found[0], expected);
    assert_eq!(read(&[place("b", 0)], 1).await.len(), 1);
    let beyond = read(&[place("b", numbers[0])], 9).await;
    assert_eq!(beyond[0].id, numbers[1]);
    assert!(read(&[], 9).await.is_empty());
}
for_each_database!(rows_without_a_destination_are_found_by_topic_and_partition);

async fn followers_of_a_key_come_in_order_up_to_the_first_that_is_not_due(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let mut of_k = Vec::new();
    for pause in [0, 0, 0, 60, 0] {
        let message = outbox.keyed("k").await;
        let state = Waits { due: DueIn::Pause(secs(pause)), ..waits(State::Blocked) };
        outbox
            .settle_all(vec![moved(&message, vec![unit("mail", state), unit("sms", waits(State::Retry))])], vec![])
            .await;
        of_k.push(message.seq);
    }
    let no_order = Waits { in_order: false, ..waits(State::Retry) };
    let passes = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&passes, vec![unit("mail", no_order)])], vec![]).await;
    let others = [outbox.park("K", "mail").await, outbox.park("k ", "mail").await];
    let ask = async |keys: &[(&str, &str, i64)], limit, hour| {
        let after = |(destination, key, after): &(&str, &str, i64)| KeyAfter {
            destination: (*destination).into(),
            key: key.as_bytes().into(),
            after: *after,
        };
        let keys: Vec<KeyAfter> = keys.iter().map(after).collect();
        outbox.store.delivery_followers(&keys, limit, Some(hour)).await.unwrap()
    };
    let rows_of = async |keys: &[(&str, &str, i64)], limit, hour| ask(keys, limit, hour).await.rows;
    let first = ("mail", "k", of_k[0]);
    assert_eq!(
        numbers(&rows_of(&[first], 9, after_noon(1)).await),
        of_k[1..3],
        "the fourth is not due, nothing passes it"
    );
    assert_eq!(numbers(&rows_of(&[first], 9, after_noon(60)).await), of_k[1..], "what is not in order is no follower");
    assert_eq!(numbers(&rows_of(&[first], 2, after_noon(60)).await), of_k[1..3]);
    assert_eq!(numbers(&rows_of(&[("mail", "k", of_k[4])], 9, after_noon(60)).await), [0; 0]);
    let several = [("sms", "k", of_k[2]), ("none", "k", 0), ("mail", "K", 0), ("mail", "k ", 0), first];
    let found = ask(&several, 9, after_noon(60)).await;
    let rows = found.rows;
    assert_eq!(numbers(&rows), [&of_k[3..], &others[..], &of_k[1..]].concat(), "each key by itself, to the byte");
    assert_eq!(rows[0].destination, "sms");
    assert!(ask(&[], 9, noon()).await.rows.is_empty());
    let id_of = |seq: i64, destination: &str| {
        let rows = outbox.waiting();
        rows.iter().find(|row| (row.seq, row.destination.as_str()) == (seq, destination)).unwrap().id
    };
    let ids = |seqs: &[i64], destination| seqs.iter().map(|seq| id_of(*seq, destination)).collect::<Vec<_>>();
    let earlier = [ids(&of_k[..3], "sms"), vec![], vec![], vec![], ids(&of_k[..1], "mail")];
    assert_eq!(found.earlier, earlier, "what comes before is told, each key by itself");
}
for_each_database!(followers_of_a_key_come_in_order_up_to_the_first_that_is_not_due);

async fn what_waits_comes_forward_when_the_clock_was_put_back(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("soon", "mail").await;
    let later = outbox.insert(&Draft::default().deliver_at(after_noon(500)));
    let later = outbox.message(later).await;
    let scheduled = Waits { due: DueIn::DeliverAt, ..waits(State::Scheduled) };
    outbox.settle_all(vec![moved(&later, vec![unit("mail", scheduled)])], vec![]).await;
    let due = |outbox: &Outbox| outbox.waiting().iter().map(|row| row.due_at).collect::<Vec<_>>();
    assert_eq!(due(&outbox), [after_noon(60), after_noon(500)]);

    // Those of some partitions that are not due, a page at a time, up to a last one.
    let store = &outbox.store;
    let last = store.delivery_last().await.unwrap();
    let ahead = async |after, until, owned, limit, hour| {
        let rows = store.delivery_ahead(after, until, owned, limit, Some(hour)).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    let ids = ahead(0, last, PartitionSet::ALL, 9, noon()).await;
    assert_eq!((ids.len(), ids[1]), (2, last));
    assert_eq!(ahead(0, last, PartitionSet::ALL, 1, noon()).await, ids[..1]);
    assert_eq!(ahead(ids[0], last, PartitionSet::ALL, 9, noon()).await, ids[1..]);
    assert_eq!(ahead(0, ids[0], PartitionSet::ALL, 9, noon()).await, ids[..1]);
    assert_eq!(ahead(0, last, PartitionSet::ALL, 9, after_noon(60)).await, ids[1..]);
    assert_eq!(ahead(0, last, PartitionSet::EMPTY, 9, noon()).await, [0; 0]);

    let rows = store.delivery_ahead(0, last, PartitionSet::ALL, 9, Some(noon())).await.unwrap();
    let stranger = register(&**store, "stranger").await;
    store.delivery_bring_forward(stranger, &rows, secs(30)).await.unwrap();
    assert_eq!(due(&outbox), [after_noon(60), after_noon(500)], "another's rows are not touched");
    for _ in 0..2 {
        store.delivery_bring_forward(outbox.relay, &rows, secs(40)).await.unwrap();
        assert_eq!(due(&outbox), [after_noon(20), after_noon(500)], "once, and an hour that somebody named stays");
    }
}
for_each_database!(what_waits_comes_forward_when_the_clock_was_put_back);

async fn of_several_that_bring_a_hold_forward_one_does(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let store = &outbox.store;
    let spec = |name: &str| DestinationSpec { name: name.into(), patterns: vec!["**".into()], ordering: "key".into() };
    store.destination_register(&[spec("mail"), spec("sms")]).await.unwrap();
    let read = async || {
        let routing = store.destination_read(Some(noon())).await.unwrap();
        assert_eq!(routing.hour, Some(noon()));
        routing.destinations
    };
    let held = async || read().await.into_iter().map(|seen| seen.held_for).collect::<Vec<_>>();
    for name in ["mail", "sms"] {
        store.destination_hold(name, secs(3600), Some(noon())).await.unwrap();
    }
    let seen = read().await;
    let holds: Vec<_> = seen.into_iter().map(|seen| (seen.spec.name, seen.held_until.unwrap())).collect();
    // One of them was held for longer meanwhile, by the clock as it is.
    store.destination_hold("sms", secs(5000), Some(noon())).await.unwrap();
    for _ in 0..2 {
        store.destination_bring_forward(&holds, secs(40)).await.unwrap();
        assert_eq!(held().await, [Some(secs(3560)), Some(secs(5000))]);
    }
}
for_each_database!(of_several_that_bring_a_hold_forward_one_does);
