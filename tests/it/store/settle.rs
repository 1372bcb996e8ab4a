//! What a settle and the plain delete of delivered messages write, and what they refuse.

use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::PartitionSet;
use relay::store::{DestinationSpec, DueIn, LaneDemand, Reason, RoutedUnit, Settlement, State, WaitingChange, Waits};

use super::fixture::{Draft, Outbox, after_noon, dies, entry, mine, moved, noon, outcome, register, secs, unit, waits};

async fn delivered_messages_are_deleted_by_number_and_id(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for _ in 0..4 {
        outbox.insert(&Draft::default());
    }
    let all = mine(outbox.read_all().await.from_tail);
    let version = outbox.store.destination_read(None).await.unwrap().version;
    let other_id = (all[1].seq, all[2].id);
    let unknown = (all[3].seq + 1000, all[3].id);
    let wanted = [(all[0].seq, all[0].id), other_id, (all[2].seq, all[2].id), unknown];
    let mut delivered = outbox.store.message_delivered(&wanted, version).await.unwrap();
    delivered.deleted.sort_unstable();
    assert_eq!(delivered.deleted, [all[0].seq, all[2].seq]);
    assert_eq!(delivered.mark.is_some(), outbox.kind() == Kind::Postgres);
    assert_eq!(outbox.pending(), [all[1].seq, all[3].seq]);

    let again = outbox.store.message_delivered(&wanted, version).await.unwrap();
    assert_eq!(again.deleted, [0; 0], "what is gone is not deleted twice");
    assert_eq!(outbox.pending(), [all[1].seq, all[3].seq]);
    let none = outbox.store.message_delivered(&[], version).await.unwrap();
    assert_eq!(none.deleted, [0; 0]);
}
for_each_database!(delivered_messages_are_deleted_by_number_and_id);

async fn delivered_messages_stay_when_the_routes_changed(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    let version = outbox.store.destination_read(None).await.unwrap().version;
    let spec = DestinationSpec { name: "new".into(), patterns: vec!["**".into()], ordering: "key".into() };
    outbox.store.destination_register(&[spec]).await.unwrap();
    let wanted = [(message.seq, message.id)];
    let delivered = outbox.store.message_delivered(&wanted, version).await.unwrap();
    assert_eq!(delivered.deleted, [0; 0]);
    assert_eq!(outbox.pending(), [message.seq]);
    let delivered = outbox.store.message_delivered(&wanted, version + 1).await.unwrap();
    assert_eq!(delivered.deleted, [message.seq]);
}
for_each_database!(delivered_messages_stay_when_the_routes_changed);

async fn a_message_leaves_one_row_for_each_destination_that_must_wait_or_is_dead(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let body = [0_u8, 1, 0x27, 0x5c, 0xff, b'\n'];
    let seq = outbox.insert(&Draft::default().payload(&body).headers("{\"a\":\"b\"}"));
    let message = outbox.message(seq).await;
    let dead = relay::store::Dies { blocks_key: true, ..dies(Reason::Exhausted) };
    let settled = outbox
        .settle_all(vec![moved(&message, vec![unit("mail", waits(State::Retry)), unit("billing", dead)])], vec![])
        .await;
    assert_eq!(settled.mark.is_some(), outbox.kind() == Kind::Postgres);
    assert_eq!(outbox.pending(), [0; 0]);

    let rows = outbox.waiting();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.seq, row.destination.as_str(), row.state.as_str()), (seq, "mail", "retry"));
    assert_eq!((row.blocked, row.in_order, row.suspect), (false, true, false));
    assert_eq!((row.life, row.attempts, row.deaths, row.partition_no), (0, 1, 0, message.partition_no));
    assert_eq!((row.due_at, row.first_attempt_at), (after_noon(60), Some(after_noon(-2))));
    assert_eq!((row.last_verdict.as_deref(), row.last_error.as_deref()), (Some("retry"), Some("503")));
    assert_eq!(outbox.dead(), [format!("{seq}|billing|exhausted|1|blocks|0|reject|400")]);

    let due = outbox.due("mail").await;
    let [delivery] = due.as_slice() else { panic!("{due:?}") };
    assert_eq!((delivery.id, delivery.destination.as_str()), (row.id, "mail"));
    assert_eq!(&delivery.message.payload[..], body);
    assert_eq!(delivery.message.headers, message.headers);
    assert_eq!((delivery.message.seq, delivery.message.id), (seq, message.id));
    assert_eq!((&delivery.message.topic, &delivery.message.content_type), (&message.topic, &message.content_type));
    assert_eq!((delivery.message.version, delivery.message.created_at), (message.version, message.created_at));
    assert_eq!((delivery.attempts, delivery.life, delivery.in_order), (1, 0, true));
    assert_eq!(delivery.history, [entry(1)]);
    let since = TimeDelta::days(3650) + TimeDelta::seconds(2);
    assert_eq!(delivery.first_attempt_age, Some(since.to_std().unwrap()));
}
for_each_database!(a_message_leaves_one_row_for_each_destination_that_must_wait_or_is_dead);

async fn a_message_without_units_leaves_nothing(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&message, vec![])], vec![]).await;
    assert_eq!(outbox.pending(), [0; 0]);
    assert!(outbox.waiting().is_empty() && outbox.dead().is_empty());
}
for_each_database!(a_message_without_units_leaves_nothing);

async fn a_scheduled_message_is_due_at_its_own_time(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let later = outbox.insert(&Draft::default().deliver_at(after_noon(3600)));
    let never_set = outbox.insert(&Draft::default());
    let scheduled = Waits {
        attempts: 0,
        due: DueIn::DeliverAt,
        in_order: false,
        first_attempt_age: None,
        last_verdict: None,
        last_error: None,
        history: vec![],
        ..waits(State::Scheduled)
    };
    let moves = mine(outbox.read_all().await.from_tail)
        .iter()
        .map(|message| moved(message, vec![unit("", scheduled.clone())]))
        .collect();
    outbox.settle_all(moves, vec![]).await;
    let rows = outbox.waiting();
    assert_eq!((rows[0].seq, rows[0].due_at), (later, after_noon(3600)));
    assert_eq!((rows[1].seq, rows[1].due_at), (never_set, noon()));
    assert_eq!((rows[0].destination.as_str(), rows[0].state.as_str()), ("", "scheduled"));
    assert_eq!((rows[0].first_attempt_at, rows[0].last_verdict.as_deref()), (None, None));
    let due = outbox.due_at("", after_noon(3600)).await;
    assert!(due.iter().all(|row| !row.in_order && row.first_attempt_age.is_none() && row.history.is_empty()));
    assert_eq!(due.len(), 2);
}
for_each_database!(a_scheduled_message_is_due_at_its_own_time);

async fn a_waiting_row_is_delivered_waits_again_or_dies(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for key in ["a", "b", "c"] {
        outbox.park(key, "mail").await;
    }
    let due = outbox.due("mail").await;
    let [a, b, c] = due.as_slice() else { panic!("{due:?}") };
    let again = Waits {
        attempts: 2,
        due: DueIn::Pause(secs(120)),
        first_attempt_age: Some(secs(1)),
        history: vec![entry(1), entry(2)],
        ..waits(State::Retry)
    };
    let dead = relay::store::Dies { attempts: 2, ..dies(Reason::Rejected) };
    outbox
        .settle_all(
            vec![],
            vec![
                outcome(a, WaitingChange::Delivered),
                outcome(b, WaitingChange::Waits(again)),
                outcome(c, WaitingChange::Dies(dead)),
            ],
        )
        .await;
    let rows = outbox.waiting();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.id, row.attempts, row.due_at), (b.id, 2, after_noon(120)));
    assert_eq!(row.first_attempt_at, Some(after_noon(-2)), "the first attempt stays the first");
    assert_eq!(outbox.due("mail").await[0].history, [entry(1), entry(2)]);
    assert_eq!(outbox.dead(), [format!("{}|mail|rejected|2|passes|0|reject|400", c.message.seq)]);
}
for_each_database!(a_waiting_row_is_delivered_waits_again_or_dies);

async fn waiting_without_an_attempt_keeps_what_was_said_last(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("k", "mail").await;
    let due = outbox.due("mail").await;
    let again = Waits { last_verdict: None, last_error: None, in_order: false, ..waits(State::Overflow) };
    outbox.settle_all(vec![], vec![outcome(&due[0], WaitingChange::Waits(again))]).await;
    let row = &outbox.waiting()[0];
    assert_eq!((row.last_verdict.as_deref(), row.last_error.as_deref()), (Some("retry"), Some("503")));
    assert_eq!((row.state.as_str(), row.in_order), ("overflow", true), "`in_order` is the row's own");
}
for_each_database!(waiting_without_an_attempt_keeps_what_was_said_last);

async fn a_verdict_clears_the_count_of_starts_and_the_suspicion(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&message, vec![unit("mail", waits(State::Suspect))])], vec![]).await;
    assert!(outbox.waiting()[0].suspect);
    outbox.database.exec("UPDATE outbox_deliveries SET deaths = 2");
    let due = outbox.due("mail").await;
    let again = Waits { attempts: 2, ..waits(State::Retry) };
    outbox.settle_all(vec![], vec![outcome(&due[0], WaitingChange::Waits(again))]).await;
    let row = &outbox.waiting()[0];
    assert_eq!((row.suspect, row.deaths, row.state.as_str()), (false, 0, "retry"));
}
for_each_database!(a_verdict_clears_the_count_of_starts_and_the_suspicion);

async fn a_row_without_route_becomes_one_row_for_each_destination(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    let unrouted = Waits { attempts: 0, due: DueIn::Pause(secs(30)), history: vec![], ..waits(State::Unrouted) };
    outbox.settle_all(vec![moved(&message, vec![unit("", unrouted)])], vec![]).await;
    let due = outbox.due("").await;
    let routed = |destination: &str, remains: super::fixture::RemainsOf| RoutedUnit {
        destination: destination.into(),
        remains: remains.0,
    };
    let units = vec![
        routed("mail", waits(State::Retry).into()),
        routed("billing", Waits { in_order: false, due: DueIn::Pause(secs(0)), ..waits(State::Unserved) }.into()),
        routed("gone", dies(Reason::Removed).into()),
    ];
    outbox.settle_all(vec![], vec![outcome(&due[0], WaitingChange::Routed(units))]).await;
    let rows = outbox.waiting();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.destination.as_str(), row.state.as_str(), row.in_order, row.blocked, row.attempts, row.due_at))
        .collect();
    assert_eq!(
        seen,
        [("billing", "unserved", false, false, 0, noon()), ("mail", "retry", true, false, 0, after_noon(30)),]
    );
    assert_eq!(outbox.dead(), [format!("{}|gone|removed|1|passes|0|reject|400", message.seq)]);
    assert_eq!(outbox.due("mail").await[0].message.id, message.id);
}
for_each_database!(a_row_without_route_becomes_one_row_for_each_destination);

async fn a_row_routed_to_nowhere_is_refused_and_stays(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    outbox.settle_all(vec![moved(&message, vec![unit("", waits(State::Unrouted))])], vec![]).await;
    let before = outbox.everything();
    let row = outbox.due("").await.remove(0);
    let settled = outbox.settle(vec![], vec![outcome(&row, WaitingChange::Routed(vec![]))]).await;
    assert_eq!(settled.refused_waiting, [row.id]);
    assert_eq!(outbox.everything(), before);
}
for_each_database!(a_row_routed_to_nowhere_is_refused_and_stays);

async fn repeating_a_settle_changes_nothing(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for key in ["a", "b", "c", "d"] {
        outbox.park(key, if key == "d" { "" } else { "mail" }).await;
    }
    let messages = [outbox.keyed("a").await, outbox.keyed("e").await];
    let moves = vec![
        moved(&messages[0], vec![unit("mail", waits(State::Blocked)), unit("sms", dies(Reason::Gone))]),
        moved(&messages[1], vec![]),
    ];
    let due = outbox.due("mail").await;
    let unrouted = outbox.due("").await.remove(0);
    let routed = RoutedUnit { destination: "mail".into(), remains: relay::store::Remains::Waits(waits(State::Retry)) };
    let waiting = vec![
        outcome(&due[0], WaitingChange::Delivered),
        outcome(&due[1], WaitingChange::Waits(Waits { attempts: 2, ..waits(State::Retry) })),
        outcome(&due[2], WaitingChange::Dies(dies(Reason::Rejected))),
        outcome(&unrouted, WaitingChange::Routed(vec![routed])),
    ];
    let ids: Vec<i64> = waiting.iter().map(|row| row.id).collect();
    outbox.settle_all(moves.clone(), waiting.clone()).await;
    let after = outbox.everything();
    let again = outbox.settle(moves, waiting).await;
    assert_eq!(again.refused_messages, [messages[0].seq, messages[1].seq]);
    assert_eq!(again.refused_waiting, ids);
    assert_eq!(outbox.everything(), after);
}
for_each_database!(repeating_a_settle_changes_nothing);

async fn an_outcome_read_before_another_attempt_is_refused(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    outbox.park("b", "mail").await;
    let due = outbox.due("mail").await;
    outbox.database.exec(&format!("UPDATE outbox_deliveries SET attempts = 5 WHERE id = {}", due[0].id));
    for change in [
        WaitingChange::Delivered,
        WaitingChange::Waits(waits(State::Retry)),
        WaitingChange::Dies(dies(Reason::Rejected)),
    ] {
        let settled = outbox.settle(vec![], vec![outcome(&due[0], change)]).await;
        assert_eq!(settled.refused_waiting, [due[0].id]);
    }
    assert_eq!(outbox.waiting().len(), 2);
    assert!(outbox.dead().is_empty());
    let settled = outbox
        .settle(vec![], vec![outcome(&due[0], WaitingChange::Delivered), outcome(&due[1], WaitingChange::Delivered)])
        .await;
    assert_eq!(settled.refused_waiting, [due[0].id], "its neighbour passes");
    assert_eq!(outbox.waiting().len(), 1);
}
for_each_database!(an_outcome_read_before_another_attempt_is_refused);

async fn what_is_not_owned_is_refused_row_by_row(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for n in 0..20 {
        outbox.park(&format!("w{n}"), "mail").await;
    }
    for n in 0..20 {
        outbox.insert(&Draft::default().key(&format!("m{n}")));
    }
    let messages = mine(outbox.read_all().await.from_tail);
    let due = outbox.due("mail").await;
    assert_eq!((messages.len(), due.len()), (20, 20));

    // A third of the partitions goes to another relay, a third comes back under a later epoch, a third stays.
    let lost: PartitionSet = (0..32).filter(|n| n % 3 == 0).collect();
    let regained: PartitionSet = (0..32).filter(|n| n % 3 == 1).collect();
    let kept = PartitionSet::ALL.without(lost).without(regained);
    outbox.store.partition_release(outbox.relay, lost.or(regained)).await.unwrap();
    let second = register(&*outbox.store, "second").await;
    outbox.store.partition_acquire(second, lost).await.unwrap();
    outbox.store.partition_acquire(outbox.relay, regained).await.unwrap();

    let moves: Vec<_> =
        messages.iter().map(|message| moved(message, vec![unit("mail", waits(State::Retry))])).collect();
    let waiting: Vec<_> = due.iter().map(|row| outcome(row, WaitingChange::Delivered)).collect();
    let settled = outbox.settle(moves, waiting).await;
    let stale = |partition_no: u8| !kept.contains(partition_no);
    let mut refused: Vec<i64> =
        messages.iter().filter(|message| stale(message.partition_no)).map(|message| message.seq).collect();
    assert!(!refused.is_empty() && refused.len() < 20);
    let mut seen = settled.refused_messages.clone();
    seen.sort_unstable();
    assert_eq!(seen, refused);
    assert_eq!(outbox.pending(), refused);
    refused = due.iter().filter(|row| stale(row.message.partition_no)).map(|row| row.id).collect();
    refused.sort_unstable();
    let mut seen = settled.refused_waiting.clone();
    seen.sort_unstable();
    assert_eq!(seen, refused);
    assert!(refused.iter().all(|id| outbox.waiting().iter().any(|row| row.id == *id)));

    let batch = Settlement {
        epochs: vec![],
        moves: vec![moved(&messages[0], vec![])],
        waiting: vec![],
        ..Settlement::default()
    };
    let settled = outbox.store.settle(outbox.relay, &batch, None).await.unwrap();
    assert_eq!(settled.refused_messages, [messages[0].seq], "an epoch nobody named is nobody's");
}
for_each_database!(what_is_not_owned_is_refused_row_by_row);

/// Giving up raises no epoch, so the epoch alone would let these through.
async fn what_was_given_up_is_refused_under_the_same_epoch(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    let message = outbox.keyed("b").await;
    let due = outbox.due("mail").await;
    outbox.store.partition_release(outbox.relay, PartitionSet::ALL).await.unwrap();
    let before = outbox.everything();
    let moves = vec![moved(&message, vec![unit("mail", waits(State::Retry))])];
    let settled = outbox.settle(moves.clone(), vec![outcome(&due[0], WaitingChange::Delivered)]).await;
    assert_eq!((settled.refused_messages, settled.refused_waiting), (vec![message.seq], vec![due[0].id]));
    let second = register(&*outbox.store, "second").await;
    let batch = Settlement { epochs: outbox.epochs.clone(), moves, waiting: vec![], ..Settlement::default() };
    let settled = outbox.store.settle(second, &batch, None).await.unwrap();
    assert_eq!(settled.refused_messages, [message.seq], "nor is it anybody else's");
    assert_eq!(outbox.everything(), before);
}
for_each_database!(what_was_given_up_is_refused_under_the_same_epoch);

async fn a_message_that_is_gone_is_refused_and_its_neighbour_passes(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let (one, other) = (outbox.keyed("a").await, outbox.keyed("b").await);
    outbox.database.exec(&format!("DELETE FROM outbox_messages WHERE seq = {}", one.seq));
    let mut swapped = moved(&other, vec![unit("mail", waits(State::Retry))]);
    swapped.id = one.id;
    let settled = outbox.settle(vec![moved(&one, vec![unit("mail", waits(State::Retry))]), swapped], vec![]).await;
    assert_eq!(settled.refused_messages, [one.seq, other.seq], "a number used again is another message");
    assert!(outbox.waiting().is_empty());
    let moves = vec![moved(&one, vec![]), moved(&other, vec![unit("mail", waits(State::Retry))])];
    assert_eq!(outbox.settle(moves, vec![]).await.refused_messages, [one.seq]);
    assert_eq!(outbox.waiting().len(), 1);
}
for_each_database!(a_message_that_is_gone_is_refused_and_its_neighbour_passes);

async fn a_unit_that_waits_already_is_not_written_twice(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    let other = outbox.keyed("b").await;
    // As after a restore that brought the message back beside its waiting row.
    let id = super::fixture::uuid(outbox.kind(), other.id);
    outbox.database.exec(&format!("UPDATE outbox_deliveries SET message_id = {id}, attempts = 3"));
    outbox.settle_all(vec![moved(&other, vec![unit("mail", waits(State::Retry))])], vec![]).await;
    let rows = outbox.waiting();
    assert_eq!((rows.len(), rows[0].attempts), (1, 3), "{rows:?}");
    assert_eq!(outbox.pending(), [0; 0]);
}
for_each_database!(a_unit_that_waits_already_is_not_written_twice);

async fn a_batch_of_a_thousand_is_written_at_once(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let insert = Draft::default().key("k").sql(outbox.kind());
    outbox.database.exec(&format!("BEGIN; {} COMMIT;", format!("{insert};").repeat(1000)));
    let messages = mine(outbox.read_all().await.from_tail);
    let moves = messages.iter().map(|message| moved(message, vec![unit("mail", waits(State::Blocked))])).collect();
    outbox.settle_all(moves, vec![]).await;
    assert_eq!(outbox.free(), [(messages[0].seq, "mail".to_owned())]);
    assert_eq!(outbox.waiting().len(), 1000);
    let lanes = [LaneDemand { destination: "mail".into(), limit: 10, without: Vec::new() }];
    let due = outbox.store.delivery_due(&lanes, PartitionSet::ALL, Some(after_noon(60))).await.unwrap();
    assert_eq!(due.rows.len(), 1);
}
for_each_database!(a_batch_of_a_thousand_is_written_at_once);

async fn dropped_settles_leave_all_or_nothing(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for polls in 1..25 {
        let message = outbox.keyed(&format!("k{polls}")).await;
        let batch = Settlement {
            epochs: outbox.epochs.clone(),
            moves: vec![moved(&message, vec![unit("mail", waits(State::Retry)), unit("sms", dies(Reason::Gone))])],
            waiting: vec![],
            ..Settlement::default()
        };
        let mut call = outbox.store.settle(outbox.relay, &batch, None);
        for _ in 0..polls {
            if call.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        // Another settle waits for the locks of one that is still ending, so afterwards its outcome is known.
        let repeated = outbox.store.settle(outbox.relay, &batch, None).await.unwrap();
        assert!(repeated.refused_messages.is_empty() || repeated.refused_messages == [message.seq]);
        assert_eq!(outbox.pending(), [0; 0]);
        assert_eq!((outbox.waiting().len(), outbox.dead().len()), (polls, polls));
    }
}
for_each_database!(dropped_settles_leave_all_or_nothing);

/// Whoever removes a destination holds the locks of all partitions, and raises the version before it lets go.
async fn units_decided_by_other_routes_are_not_written(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    let version = outbox.store.destination_read(None).await.unwrap().version;
    let batch = |routes_version| Settlement {
        epochs: outbox.epochs.clone(),
        routes_version: Some(routes_version),
        moves: vec![moved(&message, vec![unit("mail", waits(State::Unserved))])],
        ..Settlement::default()
    };
    let before = outbox.everything();
    let (lock, raise) = match outbox.kind() {
        Kind::Sqlite => ("BEGIN IMMEDIATE", "COMMIT"),
        _ => ("BEGIN; SELECT partition_no FROM outbox_partitions ORDER BY partition_no FOR UPDATE", "COMMIT"),
    };
    let raise = format!("UPDATE outbox_meta SET routes_version = routes_version + 1; {raise}");
    crate::delivery::stage::with_connection!(outbox.database, |conn| {
        conn.batch_execute(lock).unwrap();
        let (store, relay, batch) = (outbox.store.clone(), outbox.relay, batch(version));
        let settle = tokio::spawn(async move { store.settle(relay, &batch, None).await });
        // It waits for the lock by now, or comes after the commit; either way it has to see the new version.
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        conn.batch_execute(&raise).unwrap();
        let settled = settle.await.unwrap().unwrap();
        assert!(settled.routes_changed && settled.refused_messages.is_empty(), "{settled:?}");
    });
    assert_eq!(outbox.everything(), before);
    let settled = outbox.store.settle(outbox.relay, &batch(version + 1), None).await.unwrap();
    assert!(!settled.routes_changed && settled.refused_messages.is_empty(), "{settled:?}");
    assert_eq!((outbox.pending().len(), outbox.waiting().len()), (0, 1));
}
for_each_database!(units_decided_by_other_routes_are_not_written);
async fn an_outcome_of_a_row_whose_number_was_handed_out_again_is_refused(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("k", "mail").await;
    let row = outbox.due("mail").await.remove(0);
    // As after a restore: another message waits under the same number, in the same partition, as often attempted.
    let id = match outbox.kind() {
        Kind::Postgres => "gen_random_uuid()",
        Kind::Mariadb => "unhex(replace(uuid(), '-', ''))",
        Kind::Sqlite => "randomblob(16)",
    };
    outbox.database.exec(&format!("UPDATE outbox_deliveries SET message_id = {id}"));
    let before = outbox.waiting();
    let changes = [
        WaitingChange::Delivered,
        WaitingChange::Waits(waits(State::Retry)),
        WaitingChange::Dies(dies(Reason::Rejected)),
    ];
    for change in changes {
        let settled = outbox.settle(vec![], vec![outcome(&row, change)]).await;
        assert_eq!((settled.refused_waiting, settled.stale), (vec![row.id], 0));
    }
    assert_eq!(outbox.waiting(), before);
    assert_eq!(outbox.dead(), [""; 0]);
}
for_each_database!(an_outcome_of_a_row_whose_number_was_handed_out_again_is_refused);
