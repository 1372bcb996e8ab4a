//! What starts when, what becomes a row, and that the counting comes out even.

use super::*;
use crate::message;

fn work(seq: Seq, key: Option<&str>) -> Work {
    let ordering_key = key.map(|key| key.as_bytes().into());
    let message = Message { ordering_key, payload: "1234567890".into(), ..message::example(seq) };
    Work {
        message: Arc::new(message),
        origin: Origin::Fresh,
        attempts: 0,
        in_order: true,
        first_attempt_at: None,
        history: Vec::new(),
        doomed: None,
        care: Care::Plain,
        suspect: false,
        deaths: 0,
    }
}

fn row(seq: Seq, key: Option<&str>) -> Work {
    Work { origin: Origin::Waiting(seq), ..work(seq, key) }
}

fn lane(concurrency: usize) -> Lane {
    Lane::new(LaneLimits { concurrency, queue_max: 100, bytes_max: 1 << 20, keyed: true })
}

fn numbers(works: &[Work]) -> Vec<Seq> {
    works.iter().map(|work| work.message.seq).collect()
}

#[test]
fn fresh_messages_and_waiting_rows_take_turns() {
    let mut lane = lane(8);
    for seq in 1..=3 {
        assert!(lane.offer(work(seq, None)).is_none());
        assert!(lane.offer_row(row(10 + seq, None), 1));
    }
    let started: Vec<Seq> = std::iter::from_fn(|| lane.start_next()).map(|work| work.message.seq).collect();
    assert_eq!(started, [1, 11, 2, 12, 3, 13]);
}

#[test]
fn what_is_given_back_takes_what_waits_behind_it_along() {
    let mut lane = lane(2);
    for (seq, key) in [(1, Some("a")), (2, Some("b")), (3, Some("a")), (4, Some("b")), (5, None), (6, Some("b"))] {
        assert!(lane.offer(work(seq, key)).is_none());
    }
    let head = lane.start_next().unwrap();
    assert_eq!(head.message.seq, 1);
    // 1 has started and stays; 2 has not, and 4 and 6 wait behind it; 3 waits behind 1; 5 has no order to keep.
    let back = lane.take_back(&[1, 2, 3].into());
    assert_eq!(numbers(&back), [2, 4, 6, 3]);
    assert_eq!((lane.len(), lane.queued(), lane.running()), (2, 1, 1));
    for work in &back {
        lane.writing(work);
    }
    assert_eq!(lane.offer(work(7, Some("a"))).map(|work| work.message.seq), Some(7), "their rows are being written");
    assert!(lane.finished(&head, Fate::Through).is_empty());
    assert_eq!(lane.start_next().map(|work| work.message.seq), Some(5));
    assert!(lane.start_next().is_none());
}

#[test]
fn bytes_are_counted_until_the_fate_or_the_way_out() {
    let mut lane = lane(1);
    for seq in 1..=4 {
        assert!(lane.offer(work(seq, Some("k"))).is_none());
    }
    assert!(lane.offer_row(row(9, None), 1));
    let one = work(1, None).message.weight();
    assert_eq!(lane.bytes, 5 * one);
    let first = lane.start_next().unwrap();
    assert_eq!(numbers(&lane.take_back(&[3].into())), [3, 4]);
    assert_eq!(lane.bytes, 3 * one);
    assert_eq!(numbers(&lane.finished(&first, Fate::Stays)), [2]);
    assert_eq!(numbers(&lane.clear()), [9]);
    assert_eq!((lane.bytes, lane.row_bytes, lane.len(), lane.rows_taken), (0, 0, 0, 0));
}

#[test]
fn rows_are_taken_up_to_their_share_of_the_bytes_however_many_attempts_there_may_be() {
    let one = row(1, None).message.weight();
    let limits = LaneLimits { concurrency: 50, queue_max: 100, bytes_max: 8 * one, keyed: true };
    let mut lane = Lane::new(limits);
    assert_eq!(lane.rows_to_ask(0, 0), 1, "nobody knows yet how large they are");
    (0..20).for_each(|_| lane.rows_weighed(10, 10 * one));
    assert_eq!((lane.rows_to_ask(0, 0), lane.rows_to_ask(7, 100)), (4, 4 + 7 + 4));
    for seq in 1..=4 {
        assert!(lane.room_for_rows() > 0);
        assert!(lane.offer_row(row(seq, None), 1));
    }
    assert_eq!((lane.room_for_rows(), lane.rows_to_ask(4, 0)), (0, 0));
    assert!(!lane.is_full(), "fresh messages have their own");
    for seq in 11..=14 {
        assert!(lane.offer(work(seq, None)).is_none());
    }
    assert!(lane.is_full());
    // A lane full of fresh messages takes rows all the same.
    let first_row = std::iter::from_fn(|| lane.start_next()).find(|work| work.origin != Origin::Fresh).unwrap();
    lane.finished(&first_row, Fate::Through);
    assert_eq!((lane.rows_to_ask(3, 0), lane.is_full_of_rows()), (1 + 3, false));
    lane.rows_weighed(2, 200 * one);
    assert_eq!(lane.rows_to_ask(3, 9), 1 + 3, "large ones came, and still one may: it waits for nobody");
    assert_eq!(lane.followers_to_ask(8), 1);
}

#[test]
fn what_failed_goes_again_from_memory_or_is_given_back_with_its_attempts() {
    let mut lane = lane(2);
    assert!(lane.offer(work(1, Some("k"))).is_none());
    let first = lane.start_next().unwrap();
    assert!(lane.finished(&first, Fate::Stays).is_empty());
    lane.writing(&first);
    assert!(lane.may_go_again(&first.message) && !lane.may_go_again(&first.message));
    lane.push_again(Work { attempts: 1, first_attempt_at: Some(Instant::now()), ..first.clone() });
    let [back] = &lane.take_back(&[1].into())[..] else { panic!("it waits, and somebody waits for it") };
    assert_eq!((back.attempts, lane.len(), lane.bytes), (1, 0, 0));
    lane.writing(back);
    assert!(lane.may_go_again(&first.message), "it has no row yet");
    lane.push_again(back.clone());
    let again = lane.start_next().unwrap();
    assert_eq!((again.attempts, lane.finished(&again, Fate::Through).len()), (1, 0));
    assert!(lane.is_parked(again.message.ordering_key.as_ref().unwrap()), "until it is told that no row comes");
    assert_eq!((lane.bytes, lane.len()), (0, 0));
    lane.close();
    assert!(!lane.may_go_again(&work(5, None).message));
}

#[test]
fn a_lane_full_of_one_key_is_not_starving() {
    let mut lane = Lane::new(LaneLimits { concurrency: 4, queue_max: 3, bytes_max: 1 << 20, keyed: true });
    for seq in 1..=3 {
        assert!(lane.offer(work(seq, Some("k"))).is_none());
    }
    assert!(lane.start_next().is_some());
    assert!(lane.is_full() && !lane.is_idle(), "there is more for it, but only one of a key at a time");
}

#[test]
fn a_few_rows_of_a_key_that_keep_no_order_wait_here_and_take_no_room_from_others() {
    let mut lane = lane(4);
    let aside = |seq| Work { in_order: false, ..row(seq, Some("k")) };
    let max = Seq::try_from(ASIDE_MAX).unwrap();
    for seq in 0..=max {
        assert!(lane.offer_row(aside(seq), 1));
    }
    assert!(lane.crowded().is_empty());
    assert!(!lane.offer_row(aside(99), 1));
    assert_eq!(lane.crowded(), [Key::from(&b"k"[..])]);
    assert_eq!(lane.room_for_rows(), 7, "one of them is about to start");
    for seq in 0..=max {
        let work = lane.start_next().unwrap();
        assert!(lane.start_next().is_none(), "one at a time");
        assert_eq!(work.message.seq, seq);
        assert!(lane.finished(&work, Fate::Stays).is_empty(), "one that fails stops no other");
    }
    assert!(lane.crowded().is_empty() && lane.take_freed());
    assert_eq!((lane.len(), lane.bytes, lane.row_bytes, lane.rows_taken), (0, 0, 0, 0));

    // What is let go of is let go of whole.
    for seq in 0..=max {
        assert!(lane.offer_row(aside(seq), 1));
    }
    assert!(!lane.offer_row(aside(99), 1));
    assert_eq!(lane.clear().len(), ASIDE_MAX + 1);
    assert!(lane.crowded().is_empty());
    assert_eq!((lane.len(), lane.bytes, lane.row_bytes, lane.rows_taken), (0, 0, 0, 0));
}
