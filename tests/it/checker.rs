//! The checker catches what it names, and nothing else.

use std::collections::BTreeSet;

use outbox_tests::checker::{Invariant, check};
use outbox_tests::history::{Body, Enqueued, Fact, History, Received, Record, Recorder, Run, Snapshot, Waiting};

use crate::toy::{Bug, play};

const SEEDS: std::ops::Range<u64> = 1..25;

#[test]
fn a_right_relay_keeps_every_promise_under_faults() {
    let (mut faults, mut duplicates, mut ordered) = (0, 0, 0);
    for seed in SEEDS {
        let verdict = check(&play(seed, None));
        verdict.assert_kept();
        faults += verdict.faults;
        duplicates += verdict.duplicates;
        ordered += verdict.ordered;
    }
    // Else this would prove nothing.
    assert!(faults > 100 && duplicates > 50 && ordered > 5_000, "{faults} {duplicates} {ordered}");
}

#[test]
fn each_planted_bug_is_caught_by_the_invariant_that_names_it() {
    let mut caught = 0;
    for bug in Bug::ALL {
        let named = match bug {
            Bug::SettleBeforeSend | Bug::RedriveDeletesFirst => Invariant::Lost,
            Bug::CursorWithoutHoles | Bug::FollowerReleasedLater => Invariant::Stuck,
            Bug::OrderForgottenAfterFailure => Invariant::Order,
            Bug::ReadsUncommitted => Invariant::Phantom,
            Bug::RarelySettles => Invariant::Duplicates,
            Bug::DeadMoveInTwoTransactions => Invariant::Split,
            Bug::BodyReencoded => Invariant::Drift,
        };
        let mut broken = BTreeSet::new();
        for seed in SEEDS {
            let verdict = check(&play(seed, Some(bug)));
            let new = &verdict.broken() - &BTreeSet::from([named]);
            assert!(new.is_empty(), "{bug:?} should break {named:?} only, not {new:?}\n{verdict}");
            broken.extend(verdict.broken());
        }
        assert_eq!(broken, BTreeSet::from([named]), "{bug:?}");
        caught += 1;
    }
    println!("planted bugs caught {caught}/{}", Bug::ALL.len());
}

// ---- what the toy never does, by hand ----

#[derive(Default)]
struct Script {
    records: Vec<Record>,
}

impl Script {
    fn at(mut self, t: u64, fact: Fact) -> Script {
        self.records.push(Record { t, fact });
        self
    }

    /// A message `id` of key `k` in a transaction of its own.
    fn enqueued(self, tx: u64, id: &str, began: u64, committed: u64) -> Script {
        let message = Enqueued {
            tx,
            began,
            id: id.to_owned(),
            topic: "t".to_owned(),
            key: Some("k".to_owned()),
            destinations: vec!["d".to_owned()],
            scheduled: false,
            body: Body::of(b"body"),
        };
        self.at(began, Fact::TxInvoke { tx })
            .at(began + 1, Fact::Enqueue(message))
            .at(committed - 1, Fact::TxCommit { tx })
            .at(committed, Fact::TxOk { tx })
    }

    fn accepted(self, id: &str, t1: u64) -> Script {
        let received = Received {
            destination: "d".to_owned(),
            id: id.to_owned(),
            key: Some("k".to_owned()),
            attempt: 1,
            body: Body::of(b"body"),
            t0: t1 - 1,
            t1,
            answer: 204,
        };
        self.at(t1, Fact::Recv(received))
    }

    fn broken(self) -> Vec<Invariant> {
        check(&History { records: self.records }).broken().into_iter().collect()
    }
}

#[test]
fn order_is_demanded_only_of_transactions_that_did_not_overlap() {
    let overlapping = Script::default().enqueued(1, "a", 10, 20).enqueued(2, "b", 15, 30);
    assert_eq!(overlapping.accepted("b", 40).accepted("a", 50).broken(), []);
    let one_after_another = Script::default().enqueued(1, "a", 10, 20).enqueued(2, "b", 25, 30);
    assert_eq!(one_after_another.accepted("b", 40).accepted("a", 50).broken(), [Invariant::Order]);
}

#[test]
fn follower_may_not_pass_a_head_that_still_waits() {
    let row = Waiting {
        id: "a".to_owned(),
        destination: "d".to_owned(),
        state: "retry".to_owned(),
        blocked: false,
        in_order: true,
        due: false,
    };
    let script = || Script::default().enqueued(1, "a", 10, 20).enqueued(2, "b", 25, 30).accepted("b", 40);
    let snapshot = |row| Fact::Snapshot(Snapshot { waiting: vec![row], ..Snapshot::default() });
    assert_eq!(script().at(50, snapshot(row.clone())).broken(), [Invariant::Order]);
    assert_eq!(script().at(50, snapshot(Waiting { in_order: false, ..row })).broken(), []);
}

#[test]
fn late_copy_breaks_no_order_and_is_paid_for_by_the_fault() {
    let script = Script::default().enqueued(1, "a", 10, 20).enqueued(2, "b", 25, 30);
    let script = script.accepted("a", 40).accepted("b", 50);
    let fault = Fact::Fault { kind: "kill".to_owned(), in_flight: 1 };
    let script = script.at(55, fault).accepted("a", 60);
    assert_eq!(script.broken(), []);
}

#[test]
fn second_copy_without_a_fault_is_one_too_many() {
    let script = Script::default().enqueued(1, "a", 10, 20).accepted("a", 40).accepted("a", 60);
    assert_eq!(script.broken(), [Invariant::Duplicates]);
}

#[test]
fn lost_answer_to_a_commit_accuses_nobody_until_it_is_resolved() {
    let unknown = |script: Script| script.at(21, Fact::TxInfo { tx: 1 });
    let resolved = |script: Script, committed| unknown(script).at(22, Fact::TxResolved { tx: 1, committed });
    let begun = || Script::default().enqueued(1, "a", 10, 20);
    assert_eq!(unknown(begun()).broken(), [Invariant::Unresolved]);
    assert_eq!(unknown(begun()).accepted("a", 40).broken(), [Invariant::Unresolved]);
    assert_eq!(resolved(begun(), true).broken(), [Invariant::Lost]);
    assert_eq!(resolved(begun(), false).broken(), []);
    assert_eq!(resolved(begun(), false).accepted("a", 40).broken(), [Invariant::Phantom]);
}

#[test]
fn message_received_before_its_commit_was_asked_for_is_a_phantom() {
    assert_eq!(Script::default().enqueued(1, "a", 10, 20).accepted("a", 15).broken(), [Invariant::Phantom]);
}

#[test]
fn recording_comes_back_from_its_file_as_it_was_written() {
    let run = Run { seed: 7, about: "round trip".to_owned(), duplicates: 3, unordered: vec!["d".to_owned()] };
    let recorder = Recorder::create("recording_comes_back", run);
    let played = play(3, None);
    for record in &played.records[1..] {
        recorder.write(record.fact.clone());
    }
    let read = recorder.history();
    let facts =
        |history: &History| history.records.iter().skip(1).map(|record| record.fact.clone()).collect::<Vec<_>>();
    assert_eq!(facts(&read), facts(&played));
    assert!(read.records.is_sorted_by_key(|record| record.t));
    assert!(read.records.iter().any(|record| matches!(record.fact, Fact::Snapshot(_))));
    assert_eq!(check(&read).budget, check(&played).budget + 3);
}

#[test]
fn transaction_that_never_ended_is_unknown_only_if_its_commit_was_asked_for() {
    let recorder = Recorder::create("transaction_that_never_ended", Run::default());
    let enqueued = |id: &str| {
        let tx = recorder.transaction();
        tx.enqueued(recorder.now(), id, "t", Some("k"), &["d"], b"body");
        tx
    };
    let (first, abandoned, undoing) = (enqueued("a"), enqueued("b"), enqueued("c"));
    first.commit_asked();
    drop(abandoned);
    undoing.undone(vec!["c".to_owned()]);
    undoing.commit_asked();
    undoing.committed();

    assert_eq!(check(&recorder.history()).count(Invariant::Unresolved), 1);
    first.unknown();
    first.resolved(true);

    let verdict = check(&recorder.history());
    assert_eq!(verdict.broken(), BTreeSet::from([Invariant::Lost]));
    assert_eq!((verdict.committed, verdict.rolled_back), (1, 2));
}

#[test]
fn verdict_is_printed_as_a_block_with_its_seed_and_its_first_offenders() {
    let script = Script::default().enqueued(1, "a", 10, 20).enqueued(2, "b", 25, 30).accepted("a", 40);
    let verdict = check(&History { records: script.records });
    let expected = "seed 0x00000000    messages 2  rolled back 0  keys 1  destinations 1  attempts 1  ordered pairs 0  \
                    faults 0\n\
                    lost 1  phantom 0  order 0  drift 0  split 0  stuck 0  unresolved 0\n\
                    duplicates 0 (0.000 %) ≤ budget 0\n\
                    lost: `b` for `d`, known to be committed at 0.000030 s, is nowhere";
    assert_eq!(verdict.to_string(), expected);
}
