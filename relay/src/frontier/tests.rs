//! The frontier step by step; `model` tries it against whole databases.

use super::*;
use crate::poll::{Probe, Row};

fn row(seq: Seq) -> Row {
    Row::Foreign { seq, partition_no: 0 }
}

fn page(snapshot: Option<Snapshot>, from_holes: &[Seq], from_tail: &[Seq]) -> Page {
    Page {
        incarnation: 1,
        snapshot,
        from_holes: from_holes.iter().map(|seq| row(*seq)).collect(),
        holes_full: false,
        from_tail: from_tail.iter().map(|seq| row(*seq)).collect(),
    }
}

fn snapshot(xmin: u64, xmax: u64, running: &[u64]) -> Option<Snapshot> {
    Some(Snapshot { xmin, xmax, running: running.to_vec() })
}

fn asked(wanted: &Wanted) -> Vec<(Seq, Seq)> {
    wanted.holes.iter().map(|probe| (probe.lo, probe.hi)).collect()
}

/// One poll that answers with `page`.
fn poll(frontier: &mut Frontier, now: Instant, page: &Page) -> (Wanted, Reading) {
    let wanted = frontier.wanted(now);
    let reading = frontier.receive(&wanted, page, now);
    (wanted, reading)
}

#[test]
fn gap_is_asked_for_until_everybody_below_its_mark_has_ended() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Snapshots);
    poll(&mut frontier, now, &page(snapshot(5, 9, &[5]), &[], &[3, 4, 7]));
    assert_eq!(frontier.cursor(), 7);
    assert!(frontier.needs_mark() && frontier.is_hole(1) && frontier.is_hole(6) && !frontier.is_hole(4));
    frontier.mark(frontier.stamp(), 9);
    assert!(!frontier.needs_mark());
    let (wanted, _) = poll(&mut frontier, now, &page(snapshot(5, 10, &[5]), &[6], &[]));
    assert_eq!(asked(&wanted), [(1, 2), (5, 6)]);
    let (wanted, _) = poll(&mut frontier, now, &page(snapshot(9, 10, &[9]), &[], &[]));
    assert_eq!(asked(&wanted), [(1, 2), (5, 5)]);
    assert_eq!(frontier.holes(), (0, 0));
}

#[test]
fn gained_partition_is_read_in_pages_before_anything_else() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Ages(Duration::from_secs(10)));
    poll(&mut frontier, now, &page(None, &[], &[2, 3, 9]));
    frontier.gain(PartitionSet::EMPTY.with(4));
    assert!(frontier.gain_pending(4, 1) && !frontier.gain_pending(5, 9));
    let full = Page { holes_full: true, ..page(None, &[2, 3], &[]) };
    let (wanted, reading) = poll(&mut frontier, now, &full);
    assert_eq!((asked(&wanted), wanted.tail), (vec![(1, 9)], false));
    assert_eq!(reading, Reading::Use { tail: false });
    assert!(!frontier.gain_pending(4, 3) && frontier.gain_pending(4, 4));
    let (wanted, _) = poll(&mut frontier, now, &page(None, &[9], &[]));
    assert_eq!(asked(&wanted), [(4, 9)]);
    assert!(!frontier.gain_pending(4, 9));
    assert!(frontier.wanted(now).tail);
}

#[test]
fn gain_during_a_poll_looks_again_at_what_that_poll_passed_over() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Serial);
    let wanted = frontier.wanted(now);
    frontier.gain(PartitionSet::EMPTY.with(4));
    assert!(frontier.gain_pending(4, 5));
    frontier.receive(&wanted, &page(None, &[], &[1, 5]), now);
    assert_eq!(asked(&frontier.wanted(now)), [(1, 5)]);
}

#[test]
fn reopened_numbers_make_one_range_and_are_looked_for_once_where_commits_are_serial() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Serial);
    poll(&mut frontier, now, &page(None, &[], &[1, 2, 3, 9]));
    assert_eq!(frontier.holes(), (0, 0));
    for seq in [3, 1, 2, 9] {
        frontier.reopen(seq);
    }
    frontier.reopen(10);
    let (wanted, _) = poll(&mut frontier, now, &page(None, &[2], &[]));
    assert_eq!(asked(&wanted), [(1, 3), (9, 9)]);
    assert_eq!(frontier.holes(), (0, 0));
}

#[test]
fn another_incarnation_starts_anew_and_an_answer_from_before_is_discarded() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Snapshots);
    poll(&mut frontier, now, &page(snapshot(5, 5, &[]), &[], &[4]));
    let other = Page { incarnation: 2, ..page(snapshot(5, 5, &[]), &[], &[6]) };
    assert_eq!(poll(&mut frontier, now, &other).1, Reading::Discard);
    assert_eq!((frontier.cursor(), frontier.holes()), (0, (0, 0)));
    assert_eq!(poll(&mut frontier, now, &other).1, Reading::Use { tail: true });
    let wanted = frontier.wanted(now);
    frontier.restart();
    assert_eq!(frontier.receive(&wanted, &other, now), Reading::Discard);
}

#[test]
fn hole_is_doubted_only_when_old_and_stays_while_it_is_occupied() {
    let (start, limit) = (Instant::now(), Duration::from_secs(10));
    let mut frontier = Frontier::new(Evidence::Ages(limit));
    poll(&mut frontier, start, &page(None, &[], &[3, 6]));
    assert!(frontier.doubtful(start + limit - Duration::from_millis(1)).is_empty());
    let later = start + limit;
    assert_eq!(frontier.doubtful(later), [(1, 2), (4, 5)]);
    let probe = Probe { occupied: vec![(2, 2)], oldest_transaction: None };
    frontier.probed(&[(1, 2), (4, 5)], &probe, later);
    assert_eq!(asked(&frontier.wanted(later)), [(2, 2)]);
    assert!(frontier.doubtful(later).is_empty());
    let (later, none) = (later + limit, Probe::default());
    poll(&mut frontier, later, &page(None, &[], &[]));
    let running = Probe { oldest_transaction: Some(limit * 3), ..Probe::default() };
    frontier.probed(&[(2, 2)], &running, later);
    assert_eq!(frontier.holes(), (1, 0));
    frontier.probed(&[(2, 2)], &none, later + limit);
    assert_eq!(frontier.holes(), (0, 0));
}

#[test]
fn many_old_holes_take_turns_and_none_starves() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Ages(Duration::from_secs(10)));
    let seen: Vec<Seq> = (1..=5_000).map(|n| n * 2).collect();
    poll(&mut frontier, now, &page(None, &[], &seen));
    let mut looked = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let (wanted, _) = poll(&mut frontier, now, &page(None, &[], &[]));
        let numbers: Seq = wanted.holes.iter().map(|probe| probe.hi - probe.lo + 1).sum();
        assert_eq!(numbers, NUMBERS_PER_POLL);
        assert!(wanted.holes.windows(2).all(|pair| pair[0].hi < pair[1].lo));
        looked.extend(asked(&wanted));
    }
    assert_eq!(looked.len(), 5_000);
}

#[test]
fn too_many_ranges_merge_with_their_closest_neighbours() {
    let now = Instant::now();
    let mut frontier = Frontier::new(Evidence::Snapshots);
    frontier.active_max = 10;
    poll(&mut frontier, now, &page(snapshot(1, 1, &[]), &[], &[2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 500, 502]));
    let (wanted, _) = poll(&mut frontier, now, &page(snapshot(1, 1, &[]), &[], &[]));
    assert!(wanted.holes.len() <= 5, "{:?}", asked(&wanted));
    assert!((1..=502).filter(|n| n % 2 == 1).all(|n| frontier.is_hole(n)));
}
