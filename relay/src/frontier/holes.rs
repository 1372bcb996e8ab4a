//! Ranges of numbers that were not seen, kept apart and in order.
//!
//! Invariants
//! - Ranges in one set never overlap; adding one that does makes a single range of them that knows the least.
//! - The indexes (`unmarked`, `again`, `due`) always agree with the ranges.
//!
//! What a range means, and when it may be forgotten, is decided one level up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::message::Seq;

/// A range of numbers that were not seen; its first number is the key it is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    /// The last number.
    pub(super) hi: Seq,
    /// The moment it came to be: only polls asked for, and marks stamped, at or after it say anything about it.
    pub(super) since: u64,
    /// Every transaction that could fill it has a smaller id.
    pub(super) mark: Option<u64>,
    /// When it came to be, for its age.
    pub(super) born: Instant,
    /// When it may be doubted (kept in order only where holes end by age).
    pub(super) due: Instant,
    /// True while a poll is owed to it: it was reopened, found occupied, or is wide and was never looked into.
    pub(super) again: bool,
}

impl Hole {
    /// What can be said of both holes together.
    fn least(self, other: Hole) -> Hole {
        Hole {
            hi: self.hi.max(other.hi),
            since: self.since.max(other.since),
            // Whatever could fill either is below the higher mark; the numbers between were seen.
            mark: self.mark.zip(other.mark).map(|(a, b)| a.max(b)),
            born: self.born.max(other.born),
            due: self.due.max(other.due),
            again: self.again || other.again,
        }
    }
}

/// Disjoint holes in ascending order.
#[derive(Debug, Default)]
pub(super) struct Holes {
    ranges: BTreeMap<Seq, Hole>,
    unmarked: usize,
    again: BTreeSet<Seq>,
    due: Option<BTreeSet<(Instant, Seq)>>,
}

impl Holes {
    /// No holes. `timed` keeps them also in the order in which they may be doubted.
    pub(super) fn new(timed: bool) -> Holes {
        Holes { due: timed.then(BTreeSet::new), ..Holes::default() }
    }

    pub(super) fn clear(&mut self) {
        *self = Holes::new(self.due.is_some());
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// How many holes have no mark.
    pub(super) fn unmarked(&self) -> usize {
        self.unmarked
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (Seq, &Hole)> {
        self.ranges.iter().map(|(lo, hole)| (*lo, hole))
    }

    /// Holes that begin at or above `from`, ascending.
    pub(super) fn iter_from(&self, from: Seq) -> impl DoubleEndedIterator<Item = (Seq, &Hole)> {
        self.ranges.range(from..).map(|(lo, hole)| (*lo, hole))
    }

    /// First numbers of the holes a poll is owed to.
    pub(super) fn again(&self) -> impl Iterator<Item = (Seq, &Hole)> {
        self.again.iter().map(|lo| (*lo, &self.ranges[lo]))
    }

    /// Holes in the order in which they may be doubted.
    pub(super) fn due(&self) -> impl Iterator<Item = (Seq, &Hole)> {
        self.due.iter().flatten().map(|(_, lo)| (*lo, &self.ranges[lo]))
    }

    /// The hole that contains `seq`.
    pub(super) fn at(&self, seq: Seq) -> Option<(Seq, Hole)> {
        let (lo, hole) = self.ranges.range(..=seq).next_back()?;
        (hole.hi >= seq).then_some((*lo, *hole))
    }

    /// First numbers of the holes that share a number with `lo..=hi`, ascending.
    pub(super) fn touching(&self, lo: Seq, hi: Seq) -> Vec<Seq> {
        let first = self.at(lo).map_or(lo, |(start, _)| start);
        self.ranges.range(first..=hi.max(first)).map(|(start, _)| *start).filter(|start| *start <= hi).collect()
    }

    /// Adds a hole known to touch no other.
    pub(super) fn insert(&mut self, lo: Seq, hole: Hole) {
        debug_assert!(lo <= hole.hi, "a hole holds a number");
        self.unmarked += usize::from(hole.mark.is_none());
        if hole.again {
            self.again.insert(lo);
        }
        if let Some(due) = &mut self.due {
            due.insert((hole.due, lo));
        }
        let before = self.ranges.insert(lo, hole);
        debug_assert!(before.is_none(), "holes are disjoint");
    }

    /// Removes the hole that begins at `lo`.
    pub(super) fn remove(&mut self, lo: Seq) -> Option<Hole> {
        let hole = self.ranges.remove(&lo)?;
        self.unmarked -= usize::from(hole.mark.is_none());
        if hole.again {
            self.again.remove(&lo);
        }
        if let Some(due) = &mut self.due {
            due.remove(&(hole.due, lo));
        }
        Some(hole)
    }

    /// Adds a hole that may overlap others: they become one.
    pub(super) fn absorb(&mut self, lo: Seq, hole: Hole) {
        let (mut lo, mut hole) = (lo, hole);
        for start in self.touching(lo, hole.hi) {
            let other = self.remove(start).expect("`touching` returned its key");
            lo = lo.min(start);
            hole = hole.least(other);
        }
        self.insert(lo, hole);
    }

    /// Takes `from..=to` out of the hole that begins at `lo` and leaves what remains on both sides.
    pub(super) fn cut(&mut self, lo: Seq, from: Seq, to: Seq) {
        let Some(hole) = self.remove(lo) else { return };
        if lo < from {
            self.insert(lo, Hole { hi: (from - 1).min(hole.hi), ..hole });
        }
        if to < hole.hi {
            self.insert((to + 1).max(lo), hole);
        }
    }

    /// Gives `xid` to every unmarked hole that existed at `stamp`.
    pub(super) fn mark(&mut self, stamp: u64, xid: u64) {
        if self.unmarked == 0 {
            return;
        }
        for hole in self.ranges.values_mut() {
            if hole.mark.is_none() && hole.since <= stamp {
                hole.mark = Some(xid);
                self.unmarked -= 1;
            }
        }
    }

    /// Asks `judge` about each hole; those it answers with `false` go.
    pub(super) fn retain(&mut self, mut judge: impl FnMut(Seq, &Hole) -> bool) {
        let mut gone = Vec::new();
        for (lo, hole) in &self.ranges {
            if !judge(*lo, hole) {
                gone.push(*lo);
            }
        }
        if gone.len() > self.ranges.len() / 2 {
            // Most of them: building the rest anew is cheaper than picking them out.
            let mut gone = gone.into_iter().peekable();
            let before = std::mem::take(&mut self.ranges);
            self.clear();
            for (lo, hole) in before {
                if gone.next_if_eq(&lo).is_none() {
                    self.insert(lo, hole);
                }
            }
        } else {
            for lo in gone {
                self.remove(lo);
            }
        }
    }

    /// Makes one hole of neighbours, closest first, until about half of `most` remain.
    ///
    /// Numbers between them were seen; they will be read again, and ignored again. Halving makes this rare.
    pub(super) fn compact(&mut self, most: usize) {
        let keep = (most / 2).max(1);
        if self.ranges.len() <= keep {
            return;
        }
        let mut gaps: Vec<Seq> =
            self.ranges.iter().zip(self.ranges.keys().skip(1)).map(|((_, hole), next)| next - hole.hi).collect();
        let merges = self.ranges.len() - keep;
        let (_, widest, _) = gaps.select_nth_unstable(merges - 1);
        let widest = *widest;
        let before = std::mem::take(&mut self.ranges);
        self.clear();
        let mut merged: Option<(Seq, Hole)> = None;
        for (lo, hole) in before {
            merged = Some(match merged {
                Some((start, last)) if lo - last.hi <= widest => (start, last.least(hole)),
                Some((start, last)) => {
                    self.insert(start, last);
                    (lo, hole)
                }
                None => (lo, hole),
            });
        }
        if let Some((lo, hole)) = merged {
            self.insert(lo, hole);
        }
    }

    /// Takes every hole out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Seq, Hole)> + use<> {
        let ranges = std::mem::take(&mut self.ranges);
        self.clear();
        ranges.into_iter()
    }
}
