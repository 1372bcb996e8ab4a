//! Polls, holes, sweeps and marks.

use std::time::Instant;

use diesel::connection::SimpleConnection;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::PartitionSet;
use relay::poll::{Evidence, HoleProbe};
use relay::store::{Probe, Row, Wanted};

use super::fixture::{Draft, Outbox, after_noon, mine, noon, seqs};

fn from(cursor: i64) -> Wanted {
    Wanted { cursor, holes: Vec::new(), tail: true }
}

fn hole(lo: i64, hi: i64) -> HoleProbe {
    HoleProbe { lo, hi, gained: None }
}

async fn a_poll_returns_everything_that_was_stored(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.insert(&Draft {
        topic: "a.b-c_d".into(),
        key: Some(b"k".to_vec()),
        payload: b"body".to_vec(),
        headers: "{\"a\":\"1\"}".into(),
        destination: Some("mail".into()),
        deliver_at: Some(after_noon(1)),
        expires_at: Some(after_noon(0)),
        tracked: true,
        created_at: Some(after_noon(-5)),
    });
    outbox.insert(&Draft { deliver_at: Some(after_noon(0)), expires_at: Some(after_noon(1)), ..Draft::default() });
    let began = Instant::now() + std::time::Duration::from_secs(1);
    let messages = mine(outbox.read_all().await.from_tail);
    let [full, plain] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!(full.topic, "a.b-c_d");
    assert_eq!(full.ordering_key.as_deref(), Some(&b"k"[..]));
    assert_eq!(&full.payload[..], b"body");
    assert_eq!(full.content_type, "application/json");
    let expected = std::iter::once(("a".to_owned(), "1".to_owned())).collect();
    assert_eq!(full.headers, relay::message::Headers::Decoded(expected));
    assert_eq!(full.only_destination.as_deref(), Some("mail"));
    assert!(full.scheduled && full.is_expired(Instant::now()) && full.tracked, "{full:?}");
    assert_eq!(full.version, 7);
    assert_eq!(full.created_at, after_noon(-5));
    assert_eq!((plain.ordering_key.as_deref(), plain.only_destination.as_deref()), (None, None));
    assert!(!plain.scheduled && !plain.tracked, "{plain:?}");
    let ahead = plain.expires.map(|at| (at > began, at <= Instant::now() + std::time::Duration::from_secs(1)));
    assert_eq!(ahead, Some((true, true)), "a second ahead when it was read");
    assert!(full.seq < plain.seq && full.id != plain.id);
    let age = chrono::Utc::now() - plain.created_at;
    assert!(age.num_seconds().abs() < 60, "created {} ago", age);
}
for_each_database!(a_poll_returns_everything_that_was_stored);

async fn the_last_number_is_that_of_a_committed_message(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    assert_eq!(outbox.store.message_last().await.unwrap(), 0);
    outbox.insert(&Draft::default());
    let last = outbox.insert(&Draft::default());
    assert_eq!(outbox.store.message_last().await.unwrap(), last);
    outbox.database.exec("DELETE FROM outbox_messages");
    assert_eq!(outbox.store.message_last().await.unwrap(), 0);
}
for_each_database!(the_last_number_is_that_of_a_committed_message);

async fn without_an_hour_the_clock_of_the_database_decides(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let now = chrono::Utc::now();
    let hour = chrono::TimeDelta::hours(1);
    outbox.insert(&Draft { deliver_at: Some(now - hour), expires_at: Some(now + hour), ..Draft::default() });
    outbox.insert(&Draft { deliver_at: Some(now + hour), expires_at: Some(now - hour), ..Draft::default() });
    let page = outbox.store.message_read(&from(0), PartitionSet::ALL, 10, None).await.unwrap();
    let read = Instant::now();
    let seen: Vec<_> = mine(page.from_tail).iter().map(|m| (m.scheduled, m.is_expired(read))).collect();
    assert_eq!(seen, [(false, false), (true, true)]);
}
for_each_database!(without_an_hour_the_clock_of_the_database_decides);

async fn rows_of_other_partitions_come_back_as_bare_numbers(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for n in 0..40 {
        outbox.insert(&Draft::default().key(&n.to_string()));
    }
    let all = mine(outbox.read_all().await.from_tail);
    let owned: PartitionSet = all.iter().take(20).map(|message| message.partition_no).collect();
    assert_ne!(owned, PartitionSet::ALL);
    let holes = vec![hole(all[0].seq, all[19].seq)];
    let wanted = Wanted { cursor: all[19].seq, holes, tail: true };
    let page = outbox.store.message_read(&wanted, owned, 100, None).await.unwrap();
    assert_eq!(page.from_holes.len(), 20);
    for (row, message) in page.from_holes.iter().chain(&page.from_tail).zip(&all) {
        assert_eq!(row.seq(), message.seq);
        match row {
            Row::Mine(read) => {
                assert!(owned.contains(message.partition_no));
                assert_eq!((read.id, &read.ordering_key), (message.id, &message.ordering_key));
            }
            Row::Foreign { partition_no, .. } => {
                assert!(!owned.contains(message.partition_no));
                assert_eq!(*partition_no, message.partition_no);
            }
        }
    }
    let nothing = outbox.store.message_read(&from(0), PartitionSet::EMPTY, 100, None).await.unwrap();
    assert_eq!(nothing.from_tail.len(), 40);
    assert!(nothing.from_tail.iter().all(|row| matches!(row, Row::Foreign { .. })));
}
for_each_database!(rows_of_other_partitions_come_back_as_bare_numbers);

async fn holes_and_tail_are_limited_by_themselves(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let numbers: Vec<i64> = (0..12).map(|_| outbox.insert(&Draft::default())).collect();
    let at = |index: usize| numbers[index];
    let read = async |holes: Vec<HoleProbe>, tail, limit| {
        let wanted = Wanted { cursor: at(7), holes, tail };
        outbox.store.message_read(&wanted, PartitionSet::ALL, limit, None).await.unwrap()
    };

    let page = read(vec![hole(at(0), at(1)), hole(at(3), at(6))], true, 3).await;
    assert_eq!(seqs(&page.from_holes), [at(0), at(1), at(3)]);
    assert_eq!(seqs(&page.from_tail), [at(8), at(9), at(10)]);
    assert!(page.holes_full, "the holes hold more than was asked for");

    let page = read(vec![hole(at(0), at(1)), hole(at(3), at(6))], false, 7).await;
    assert_eq!(seqs(&page.from_holes), [at(0), at(1), at(3), at(4), at(5), at(6)]);
    assert_eq!(seqs(&page.from_tail), [0; 0]);
    assert!(!page.holes_full, "everything was looked at");

    let page = read(vec![], true, 100).await;
    assert_eq!(seqs(&page.from_tail), numbers[8..]);
    assert!(page.from_holes.is_empty() && !page.holes_full);
}
for_each_database!(holes_and_tail_are_limited_by_themselves);

/// Whatever lies below the last row of a full hole branch has been looked at, also where a gained range overlaps the
/// others: the frontier forgets what was looked at.
async fn overlapping_holes_leave_nothing_unseen_below_the_last_row(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let numbers: Vec<i64> = (0..60).map(|n| outbox.insert(&Draft::default().key(&n.to_string()))).collect();
    let all = mine(outbox.read_all().await.from_tail);
    let gained: PartitionSet = all.iter().step_by(3).map(|message| message.partition_no).collect();
    let probe = |lo: i64, hi: i64| hole(numbers[lo as usize], numbers[hi as usize]);
    let mut holes = vec![HoleProbe { lo: 1, hi: numbers[59], gained: Some(gained) }];
    holes.extend([probe(10, 12), probe(20, 20), probe(30, 40), probe(55, 59)]);
    let covered = |seq: i64| {
        let message = all.iter().find(|message| message.seq == seq).unwrap();
        gained.contains(message.partition_no) || holes[1..].iter().any(|hole| (hole.lo..=hole.hi).contains(&seq))
    };
    let expected: Vec<i64> = numbers.iter().copied().filter(|seq| covered(*seq)).collect();
    for limit in 1..70 {
        let wanted = Wanted { cursor: numbers[59], holes: holes.clone(), tail: true };
        let page = outbox.store.message_read(&wanted, PartitionSet::ALL, limit, None).await.unwrap();
        let found = seqs(&page.from_holes);
        assert!(found.is_sorted() && found.windows(2).all(|pair| pair[0] < pair[1]), "doubles in {found:?}");
        if !page.holes_full {
            assert_eq!(found, expected, "limit {limit}");
        } else {
            let last = *found.last().unwrap();
            let below: Vec<i64> = expected.iter().copied().filter(|seq| *seq <= last).collect();
            assert_eq!(found, below, "limit {limit}");
        }
    }
}
for_each_database!(overlapping_holes_leave_nothing_unseen_below_the_last_row);

async fn rolled_back_messages_are_never_read(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let first = outbox.insert(&Draft::default());
    outbox.database.exec(&format!("BEGIN; {}; ROLLBACK", Draft::default().sql(outbox.kind())));
    let last = outbox.insert(&Draft::default());
    assert_eq!(seqs(&outbox.read_all().await.from_tail), [first, last]);
}
for_each_database!(rolled_back_messages_are_never_read);

async fn a_number_drawn_first_and_committed_last_is_found_in_the_hole(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let insert = Draft::default().key("late").sql(outbox.kind());
    let mut late: Box<dyn SimpleConnectionObject> = match outbox.kind() {
        Kind::Postgres => Box::new(outbox.database.postgres()),
        _ => Box::new(outbox.database.mariadb()),
    };
    late.run("BEGIN");
    late.run(&insert);
    let early = outbox.insert(&Draft::default());

    let page = outbox.read_all().await;
    assert_eq!(seqs(&page.from_tail), [early]);
    let wanted = Wanted { cursor: early, holes: vec![hole(1, early - 1)], tail: true };
    let page = outbox.store.message_read(&wanted, PartitionSet::ALL, 10, None).await.unwrap();
    assert_eq!(seqs(&page.from_holes), [0; 0], "not committed yet");
    if let Some(snapshot) = &page.snapshot {
        // Other databases of the server count as well.
        assert_eq!(Some(&snapshot.xmin), snapshot.running.first(), "{snapshot:?}");
        assert!(snapshot.running.iter().all(|xid| *xid < snapshot.xmax), "{snapshot:?}");
        let mark = outbox.store.mark_draw().await.unwrap().unwrap();
        assert!(mark >= snapshot.xmax, "the mark {mark} is above whoever holds the number: {snapshot:?}");
    }

    late.run("COMMIT");
    let page = outbox.store.message_read(&wanted, PartitionSet::ALL, 10, None).await.unwrap();
    assert_eq!(seqs(&page.from_holes), [early - 1]);
}
for_each_database!(
    a_late_commit_is_found_in_the_hole,
    a_number_drawn_first_and_committed_last_is_found_in_the_hole,
    [postgres, mariadb]
);

/// A connection whose kind the test does not care about.
trait SimpleConnectionObject: Send {
    fn run(&mut self, sql: &str);
}

impl<C: SimpleConnection + Send> SimpleConnectionObject for C {
    fn run(&mut self, sql: &str) {
        self.batch_execute(sql).unwrap();
    }
}

async fn evidence_is_what_the_database_can_prove(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let page = outbox.read_all().await;
    let first = outbox.store.mark_draw().await.unwrap();
    let second = outbox.store.mark_draw().await.unwrap();
    match outbox.kind() {
        Kind::Postgres => {
            assert_eq!(outbox.store.evidence(), Evidence::Snapshots);
            let snapshot = page.snapshot.unwrap();
            assert!(snapshot.xmin <= snapshot.xmax);
            assert!(first.unwrap() >= snapshot.xmax && second > first);
        }
        Kind::Mariadb => {
            assert!(matches!(outbox.store.evidence(), Evidence::Ages(_)));
            assert!(page.snapshot.is_none() && first.is_none() && second.is_none());
        }
        Kind::Sqlite => {
            assert_eq!(outbox.store.evidence(), Evidence::Serial);
            assert!(page.snapshot.is_none() && first.is_none() && second.is_none());
        }
    }
}
for_each_database!(evidence_is_what_the_database_can_prove);

async fn a_probe_is_empty_where_there_is_better_evidence(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let seq = outbox.insert(&Draft::default());
    assert_eq!(outbox.store.message_probe(&[(1, seq)]).await.unwrap(), Probe::default());
}
for_each_database!(
    a_probe_says_nothing_where_there_is_better_evidence,
    a_probe_is_empty_where_there_is_better_evidence,
    [postgres, sqlite]
);

async fn a_probe_finds_numbers_a_transaction_holds(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let gone = outbox.insert(&Draft::default());
    outbox.database.exec("DELETE FROM outbox_messages");
    let mut holder = outbox.database.mariadb();
    holder.batch_execute("BEGIN").unwrap();
    holder.batch_execute(&Draft::default().sql(outbox.kind())).unwrap();
    let held = gone + 1;
    let committed = {
        outbox.database.exec(&Draft::default().sql(outbox.kind()));
        gone + 2
    };
    let probe = outbox.store.message_probe(&[(gone, gone), (held, held), (committed, committed)]).await.unwrap();
    assert_eq!(probe.occupied, [(held, held), (committed, committed)]);
    holder.batch_execute("ROLLBACK").unwrap();
    let probe = outbox.store.message_probe(&[(gone, gone), (held, held)]).await.unwrap();
    assert_eq!(probe.occupied, []);
}
for_each_database!(a_probe_finds_what_is_held, a_probe_finds_numbers_a_transaction_holds, [mariadb]);

async fn a_sweep_lists_numbers_of_owned_partitions(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for n in 0..30 {
        outbox.insert(&Draft::default().key(&n.to_string()));
    }
    let all = mine(outbox.read_all().await.from_tail);
    let owned: PartitionSet = all.iter().step_by(4).map(|message| message.partition_no).collect();
    let expected: Vec<i64> =
        all[3..=20].iter().filter(|message| owned.contains(message.partition_no)).map(|message| message.seq).collect();
    let sweep = async |limit| outbox.store.message_sweep(all[2].seq, all[20].seq, owned, limit).await.unwrap();
    assert_eq!(sweep(1000).await, expected);
    assert_eq!(sweep(2).await, expected[..2]);
    assert_eq!(outbox.store.message_sweep(0, 1 << 40, PartitionSet::EMPTY, 10).await.unwrap(), [0; 0]);
}
for_each_database!(a_sweep_lists_numbers_of_owned_partitions);

async fn another_connection_is_another_incarnation(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let seq = outbox.insert(&Draft::default());
    let first = outbox.read_all().await.incarnation;
    assert_eq!(outbox.read_all().await.incarnation, first, "nothing happened in between");
    outbox.sever();
    // The first call after the cut may be the one that notices it.
    let mut attempts = 0;
    let page = loop {
        attempts += 1;
        match outbox.store.message_read(&from(0), PartitionSet::ALL, 10, Some(noon())).await {
            Ok(page) => break page,
            Err(error) => assert!(attempts < 3, "still cut off: {error:?}"),
        }
    };
    assert_ne!(page.incarnation, first);
    assert_eq!(seqs(&page.from_tail), [seq]);
    assert_eq!(outbox.read_all().await.incarnation, page.incarnation);
    // The other connections were cut as well.
    for _ in 0..3 {
        let _ = outbox.store.relay_beat(outbox.relay, false).await;
    }
    assert!(outbox.store.relay_beat(outbox.relay, false).await.unwrap().is_some());
}
for_each_database!(
    a_cut_connection_is_replaced_by_another_incarnation,
    another_connection_is_another_incarnation,
    [postgres, mariadb]
);

async fn dropped_polls_leave_a_store_that_works(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let seq = outbox.insert(&Draft::default());
    for polls in 1..20 {
        let wanted = from(0);
        let mut poll = outbox.store.message_read(&wanted, PartitionSet::ALL, 10, None);
        for _ in 0..polls {
            let waker = std::task::Waker::noop();
            if poll.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(seqs(&outbox.read_all().await.from_tail), [seq]);
}
for_each_database!(dropped_polls_leave_a_store_that_works);
