//! Holes that end by age: no snapshot says who is still running.
//!
//! The database does prove one thing: a read that locks and does not wait finds every row that is there, committed or
//! not. It does not find a number that a running statement has reserved and not used yet. So a hole is kept for as long
//! as transactions are promised to be short, then doubted, and forgotten when such a read finds nothing in it.
//!
//! Looking for a number costs far more here than on PostgreSQL, and holes live for seconds. So a poll looks for a fair
//! share of them only, see [`NUMBERS_PER_POLL`].

use std::time::Instant;

use super::{Evidence, Frontier, HoleProbe, NUMBERS_PER_POLL, Rule};
use crate::frontier::holes::Hole;
use crate::message::Seq;
use crate::poll::Probe;

/// Of these, how many are the youngest, which are the likeliest to fill; the others take turns.
const YOUNGEST_PER_POLL: i64 = 750;

/// A running transaction prolongs the life of a hole at most to this many times the age limit. One that is forgotten
/// for hours must not make every hole live for hours; the sweep finds what it commits after that.
const PROLONGED_MAX: u32 = 30;

impl Frontier {
    /// Ranges old enough to be forgotten if a locking read finds nothing in them (MySQL/MariaDB); often empty.
    ///
    /// No poll needs to have looked into them lately: the locking read finds committed rows as well.
    pub fn doubtful(&self, now: Instant) -> Vec<(Seq, Seq)> {
        let mut ranges = Vec::new();
        let mut numbers = 0;
        for (lo, hole) in
            self.active.due().take_while(|(_, hole)| hole.due <= now || self.lacks(Rule::AgeBeforeForgetting))
        {
            // A poll comes first where it is owed; it may be cheaper, and it cannot be under way now.
            if hole.again {
                continue;
            }
            // A wide range is asked for as one, so it fills the read whatever its width.
            numbers += (hole.hi - lo + 1).min(NUMBERS_PER_POLL);
            if numbers > NUMBERS_PER_POLL && !ranges.is_empty() {
                break;
            }
            ranges.push((lo, hole.hi));
        }
        ranges.sort_unstable();
        ranges
    }

    /// The locking read over `ranges` (from [`Frontier::doubtful`]) has answered.
    ///
    /// What it found free is forgotten: nobody who has inserted there is still running, and nothing there is
    /// committed. What it found occupied stays, and the next poll looks there.
    pub fn probed(&mut self, ranges: &[(Seq, Seq)], probe: &Probe, now: Instant) {
        let Evidence::Ages(limit) = self.evidence else {
            return;
        };
        self.tick += 1;
        self.now = Some(now);
        let later = now + limit / 8;
        let mut occupied = if self.lacks(Rule::OccupiedIsKept) { Vec::new() } else { probe.occupied.clone() };
        occupied.sort_unstable();
        for (lo, hi) in ranges {
            for start in self.active.touching(*lo, *hi) {
                let Some((_, hole)) = self.active.at(start) else {
                    continue;
                };
                // Reopened since it was doubted: the locking read came before.
                if hole.again {
                    continue;
                }
                let age = now.saturating_duration_since(hole.born);
                if probe.oldest_transaction.is_some_and(|oldest| oldest >= age) && age < limit * PROLONGED_MAX {
                    self.put_off(start, later, false);
                } else {
                    self.forget_free(start, (*lo).max(start), (*hi).min(hole.hi), &occupied, later);
                }
            }
        }
    }

    /// Which holes the next poll looks into where they end by age: those owed a poll, the youngest, and in turn the
    /// others.
    ///
    /// Young ones are the likeliest to fill, and a row found late is a row out of order; so they come first, and the
    /// turn sees to it that no old one starves.
    pub(super) fn some_holes(&mut self) -> Vec<HoleProbe> {
        let mut ranges: Vec<(Seq, Seq)> = Vec::new();
        let mut budget = NUMBERS_PER_POLL;
        let mut wide = false;
        for (lo, hole) in self.active.again() {
            let width = hole.hi - lo + 1;
            if width > NUMBERS_PER_POLL {
                // One read over a wide range, not a list of its numbers, and one of these in a poll.
                if !std::mem::replace(&mut wide, true) {
                    ranges.push((lo, hole.hi));
                }
            } else if width <= budget {
                budget -= width;
                ranges.push((lo, hole.hi));
            }
        }

        let older = budget.min(NUMBERS_PER_POLL - YOUNGEST_PER_POLL);
        let mut young = budget - older;
        let mut floor = Seq::MAX;
        for (lo, hole) in self.active.iter().rev() {
            if young == 0 {
                break;
            }
            floor = lo.max(hole.hi - young + 1);
            young -= hole.hi - floor + 1;
            ranges.push((floor, hole.hi));
        }

        // Twice at most: from the turn up to the youngest, then once more from the bottom.
        let mut left = older + young;
        let mut from = self.turn.min(floor);
        for until in [floor, from] {
            while left > 0 && from < until {
                let inside = self.active.at(from).map(|(_, hole)| (from, hole.hi));
                let next = inside.or_else(|| self.active.iter_from(from).next().map(|(lo, hole)| (lo, hole.hi)));
                let Some((lo, hi)) = next.filter(|(lo, _)| *lo < until) else {
                    break;
                };
                let hi = hi.min(lo + left - 1).min(until - 1);
                left -= hi - lo + 1;
                ranges.push((lo, hi));
                from = hi + 1;
            }
            if left > 0 && until == floor {
                from = 1;
            }
        }
        self.turn = from;

        ranges.sort_unstable();
        let mut probes: Vec<HoleProbe> = Vec::with_capacity(ranges.len());
        for (lo, hi) in ranges {
            match probes.last_mut() {
                Some(last) if lo <= last.hi => last.hi = last.hi.max(hi),
                _ => probes.push(HoleProbe { lo, hi, gained: None }),
            }
        }
        probes
    }

    /// Leaves the hole that begins at `lo` alone until `later`.
    fn put_off(&mut self, lo: Seq, later: Instant, again: bool) {
        if let Some(hole) = self.active.remove(lo) {
            self.active.insert(lo, Hole { due: later, again, ..hole });
        }
    }

    /// Takes out of the hole that begins at `start` what lies in `from..=to` and in nothing occupied (ascending).
    fn forget_free(&mut self, start: Seq, from: Seq, to: Seq, occupied: &[(Seq, Seq)], later: Instant) {
        let mut free = Vec::new();
        let mut next = from;
        for (lo, hi) in occupied.iter().filter(|(lo, hi)| *lo <= to && from <= *hi) {
            if next < *lo {
                free.push((next, lo - 1));
            }
            next = next.max(hi + 1);
        }
        if next <= to {
            free.push((next, to));
        }
        for (lo, hi) in free {
            if let Some((inside, _)) = self.active.at(lo) {
                self.active.cut(inside, lo, hi);
            }
        }
        for lo in self.active.touching(from.max(start), to) {
            self.put_off(lo, later, true);
        }
    }
}
