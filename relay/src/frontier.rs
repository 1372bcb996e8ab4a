//! What was seen of the table, and what may still turn up below it.
//!
//! Transactions commit in another order than they drew their numbers. The frontier keeps the highest number seen (the
//! cursor) and, as ranges, the numbers below it that were not seen (holes). It says what the next poll has to ask for,
//! and from each answer which holes have filled, which can never fill, and which need not be looked into for now.
//!
//! Invariants
//! - A committed row at or below the cursor was returned by a poll, or lies in a hole, or in a gain not yet read.
//! - An answer is judged by what was asked: a hole, a gain or a mark that came while a poll was under way gets nothing
//!   from that poll. Every change draws a tick, and polls, stamps, holes and gains remember theirs.
//! - A row is not handed out while one that committed before its number was drawn may be visible and unread. Where
//!   holes end by age this holds as long as no more than [`NUMBERS_PER_POLL`] numbers are missing.
//!
//! How a hole ends
//! - Snapshots: it has a *mark*, a transaction id drawn after the hole was known. Whoever could fill it drew an id
//!   before drawing the number, hence a smaller one. A poll that looked into the hole under a snapshot whose xmin has
//!   reached the mark has seen everything that could be there.
//! - Ages: it is old, and a locking read finds neither a committed row nor a lock in it.
//! - Serial: gaps are no holes. What is reopened is looked for once.
//!
//! Nothing here reads a clock or a database, or knows which rows are in hands: a number may be returned again, and the
//! caller knows those it still holds.

mod ages;
mod gains;
mod holes;
#[cfg(test)]
mod model;
mod parked;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::message::{PartitionSet, Seq};
use crate::poll::{Evidence, HoleProbe, NUMBERS_PER_POLL, Page, Snapshot, Wanted};

use gains::Gains;
use holes::{Hole, Holes};
use parked::{Parked, Sightings};

/// When a hole came to be, for marks: see [`Frontier::stamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

/// The reader's memory: the highest number seen, and the numbers below it that were not.
#[derive(Debug)]
pub struct Frontier {
    evidence: Evidence,
    incarnation: Option<u64>,
    cursor: Seq,
    active: Holes,
    parked: Parked,
    gains: Gains,
    sightings: Sightings,
    /// Rises with every change, so that polls and marks can be told from what came after them.
    tick: u64,
    /// The tick of the poll under way.
    asked: Option<u64>,
    /// The latest hour heard of.
    now: Option<Instant>,
    /// Where the next poll goes on looking into the older holes (ages only).
    turn: Seq,
    /// True once neighbours were merged where holes end by age, until few ranges are left.
    crowded: bool,
    /// True when the next poll is to look above the cursor only.
    tail_next: bool,
    active_max: usize,
    parked_max: usize,
    #[cfg(test)]
    left_out: Option<Rule>,
}

/// Beyond this many ranges sent with polls, neighbours merge.
const ACTIVE_MAX: usize = 10_000;

/// Likewise where only some are sent with each poll.
const ACTIVE_MAX_BY_AGE: usize = 200_000;

/// Likewise for ranges that rest.
const PARKED_MAX: usize = 500_000;

/// A hole, or all transactions it waits for, must be this old to be parked: most end sooner, and ending costs a poll.
const PARK_AFTER: Duration = Duration::from_millis(100);

/// The rules that can be left out in tests, to prove that the tests would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    SnapshotFirst,
    FullHolesHideTheTail,
    FullHolesProveNothingBeyond,
    GapsAreHoles,
    MarkDrawnAfterThePoll,
    RowsSplitHoles,
    MarkAfterTheHole,
    MarkMustBeReached,
    OnlyCoveredIsForgotten,
    OnlyCoveredIsParked,
    ParkOnlyWhenXmaxReachedTheMark,
    UnparkWhenOneEnds,
    GainsAreRead,
    GainsCoverPollsUnderWay,
    GainsComeBeforeTheTail,
    IncarnationStartsAnew,
    StalePagesAreDiscarded,
    ReopenedAfterThePoll,
    AgeBeforeForgetting,
    OccupiedIsKept,
}

/// What to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Hand the rows out: first those `from_holes`, merged with those `from_tail`, in ascending order.
    Use {
        /// False: the tail is to be ignored (rule 2), only `from_holes` count.
        tail: bool,
    },
    /// Throw the whole page away and poll again at once.
    Discard,
}

impl Frontier {
    /// A frontier that has seen nothing.
    pub fn new(evidence: Evidence) -> Frontier {
        let by_age = matches!(evidence, Evidence::Ages(_));
        Frontier {
            evidence,
            incarnation: None,
            cursor: 0,
            active: Holes::new(by_age),
            parked: Parked::default(),
            gains: Gains::default(),
            sightings: Sightings::default(),
            tick: 0,
            asked: None,
            now: None,
            turn: 0,
            crowded: false,
            tail_next: false,
            active_max: if by_age { ACTIVE_MAX_BY_AGE } else { ACTIVE_MAX },
            parked_max: PARKED_MAX,
            #[cfg(test)]
            left_out: None,
        }
    }

    /// What the next poll should ask for. The ownership it is sent with must be the one at this moment.
    ///
    /// While gained partitions have not been read, only they are asked for: what they hold comes before anything of
    /// theirs above it, and reading a page of the gain together with half of the holes would prove nothing about
    /// either.
    pub fn wanted(&mut self, now: Instant) -> Wanted {
        self.now = Some(now);
        self.asked = Some(self.tick);
        self.gains.prune();
        if !self.gains.is_empty() {
            let tail = self.lacks(Rule::GainsComeBeforeTheTail);
            return Wanted { cursor: self.cursor, holes: self.gains.probes(), tail };
        }
        let holes = match self.evidence {
            // Merged ranges span rows that were seen. Were there pages and pages of these, nothing new would be read.
            Evidence::Ages(_) if self.tail_next => Vec::new(),
            Evidence::Ages(_) => self.some_holes(),
            Evidence::Snapshots | Evidence::Serial => {
                self.active.iter().map(|(lo, hole)| HoleProbe { lo, hi: hole.hi, gained: None }).collect()
            }
        };
        Wanted { cursor: self.cursor, holes, tail: true }
    }

    /// Takes note of the page that answers `wanted`, which must be the last one drawn. Starts anew by itself when the
    /// page's incarnation is not the last one's; then the page counts only if it was asked with cursor 0, and is
    /// otherwise to be discarded.
    pub fn receive(&mut self, wanted: &Wanted, page: &Page, now: Instant) -> Reading {
        self.tick += 1;
        self.now = Some(now);
        let asked = self.asked.take();
        let reborn = self.incarnation.replace(page.incarnation).is_some_and(|known| known != page.incarnation);
        if reborn && !self.lacks(Rule::IncarnationStartsAnew) {
            self.restart();
            if wanted.cursor != 0 && !self.lacks(Rule::StalePagesAreDiscarded) {
                return Reading::Discard;
            }
        }
        let Some(asked) = asked else {
            // It was asked before a restart.
            return Reading::Discard;
        };
        if self.evidence == Evidence::Snapshots && self.unpark(page.snapshot.as_ref(), now) {
            return Reading::Discard;
        }

        let through = self.read_through(page);
        for row in &page.from_holes {
            self.see(row.seq(), asked);
        }
        if wanted.holes.first().is_some_and(|probe| probe.gained.is_some()) {
            self.gains.covered(asked, through);
        } else {
            self.judge_holes(asked, wanted, page.snapshot.as_ref(), through, now);
        }
        let tail = wanted.tail && (!page.holes_full || self.lacks(Rule::FullHolesHideTheTail));
        if tail {
            self.advance(page, now);
            if !self.lacks(Rule::GainsCoverPollsUnderWay) {
                self.gains.extend(asked, self.cursor);
            }
        }
        self.tail_next = self.crowded && page.holes_full && wanted.tail;
        self.crowded &= self.active.len() > self.active_max / 4;
        self.merge_when_crowded();
        Reading::Use { tail }
    }

    /// The present moment in the order of polls; drawn when a statement that will yield a mark is sent.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.tick)
    }

    /// A transaction id was drawn by a statement sent at `stamp`: it is the mark of every unmarked hole known then.
    pub fn mark(&mut self, stamp: Stamp, xid: u64) {
        if self.evidence == Evidence::Snapshots {
            let known = if self.lacks(Rule::MarkAfterTheHole) { u64::MAX } else { stamp.0 };
            self.active.mark(known, xid);
        }
    }

    /// True when an unmarked hole exists that a mark would help (PostgreSQL).
    pub fn needs_mark(&self) -> bool {
        self.evidence == Evidence::Snapshots && self.active.unmarked() > 0
    }

    /// Partitions were gained: whatever they hold at or below the cursor has to be read.
    pub fn gain(&mut self, partitions: PartitionSet) {
        self.tick += 1;
        if !self.lacks(Rule::GainsAreRead) {
            self.gains.add(partitions, self.cursor, self.tick);
        }
    }

    /// A number that was seen is to be looked for again: a refused or lost row, or one the sweep found.
    pub fn reopen(&mut self, seq: Seq) {
        // Above the cursor the tail finds it. Before the first poll there is nothing below it.
        let (true, Some(now)) = (seq >= 1 && seq <= self.cursor, self.now) else {
            return;
        };
        self.tick += 1;
        if let Some((lo, _)) = self.active.at(seq) {
            self.active.cut(lo, seq, seq);
        }
        let due = match self.evidence {
            Evidence::Ages(limit) => now + limit,
            Evidence::Snapshots | Evidence::Serial => now,
        };
        let since = if self.lacks(Rule::ReopenedAfterThePoll) { 0 } else { self.tick };
        let (mut lo, mut hole) = (seq, Hole { hi: seq, since, mark: None, born: now, due, again: true });
        // Refusals come in runs; a run is one range.
        if let Some((start, below)) = self.active.at(seq - 1).filter(|(_, below)| below.again && below.mark.is_none()) {
            self.active.remove(start);
            (lo, hole) = (start, Hole { hi: below.hi.max(seq), ..hole });
        }
        if let Some((start, above)) = self.active.at(seq + 1).filter(|(_, above)| above.again && above.mark.is_none()) {
            self.active.remove(start);
            hole.hi = above.hi;
        }
        self.active.absorb(lo, hole);
        self.merge_when_crowded();
    }

    /// Forgets everything: the next poll begins at the start of the table, and an answer still to come is discarded.
    pub fn restart(&mut self) {
        self.tick += 1;
        self.asked = None;
        self.cursor = 0;
        self.turn = 0;
        (self.crowded, self.tail_next) = (false, false);
        self.active.clear();
        self.parked.clear();
        self.sightings.clear();
        self.gains.restart();
    }

    /// The highest number seen.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// True when `seq` lies in a hole, parked ones included, or in a gain not yet read: nobody needs to be told about
    /// it.
    pub fn is_hole(&self, seq: Seq) -> bool {
        self.active.at(seq).is_some() || self.gains.contains(seq) || self.parked.contains(seq)
    }

    /// True while partitions gained earlier have not been read completely at or below `seq`.
    pub fn gain_pending(&self, partition_no: u8, seq: Seq) -> bool {
        self.gains.pending(partition_no, seq, self.asked.is_some())
    }

    /// How many ranges are remembered: (sent with polls, parked).
    pub fn holes(&self) -> (usize, usize) {
        (self.active.len() + self.gains.len(), self.parked.len())
    }

    /// Takes parked holes back when a transaction they wait for has ended. True when the page is to be discarded: it
    /// did not look into them, and what it found elsewhere may have come after what they hold by now.
    fn unpark(&mut self, snapshot: Option<&Snapshot>, now: Instant) -> bool {
        let ended = match snapshot {
            Some(snapshot) => {
                self.sightings.update(snapshot, now);
                if self.lacks(Rule::UnparkWhenOneEnds) { Vec::new() } else { self.parked.take_ended(snapshot) }
            }
            None => self.parked.take_all(),
        };
        let any = !ended.is_empty();
        for (lo, hole) in ended {
            // The page under way did not ask for it.
            self.active.absorb(lo, Hole { since: self.tick, ..hole });
        }
        self.merge_when_crowded();
        any && !self.lacks(Rule::SnapshotFirst)
    }

    /// Keeps the number of ranges bounded.
    fn merge_when_crowded(&mut self) {
        if self.active.len() > self.active_max {
            self.active.compact(self.active_max);
            self.crowded = matches!(self.evidence, Evidence::Ages(_));
        }
        if self.parked.len() > self.parked_max {
            self.parked.compact(self.parked_max);
        }
    }

    /// Up to which number the ranges asked for were looked into.
    fn read_through(&self, page: &Page) -> Seq {
        if !page.holes_full || self.lacks(Rule::FullHolesProveNothingBeyond) {
            return Seq::MAX;
        }
        page.from_holes.last().map_or(0, |row| row.seq())
    }

    /// A row was found below the cursor: its number is no hole any longer, unless it was reopened since the poll.
    fn see(&mut self, seq: Seq, asked: u64) {
        match self.active.at(seq) {
            Some((lo, hole)) if hole.since <= asked => {
                let whole = self.lacks(Rule::RowsSplitHoles);
                let (from, to) = if whole { (lo, hole.hi) } else { (seq, seq) };
                self.active.cut(lo, from, to);
            }
            _ => self.parked.see(seq),
        }
    }

    /// Decides about the holes that were asked for and did not fill.
    fn judge_holes(&mut self, asked: u64, wanted: &Wanted, snapshot: Option<&Snapshot>, through: Seq, now: Instant) {
        match self.evidence {
            Evidence::Snapshots => {
                if let Some(snapshot) = snapshot {
                    self.forget_or_park(asked, snapshot, through, now);
                }
            }
            Evidence::Serial => self.active.retain(|_, hole| hole.since > asked || hole.hi > through),
            Evidence::Ages(_) => {
                for probe in &wanted.holes {
                    for lo in self.active.touching(probe.lo, probe.hi.min(through)) {
                        let whole = |hole: &Hole| probe.lo <= lo && hole.hi <= probe.hi.min(through);
                        if self.active.at(lo).is_some_and(|(_, hole)| hole.again && hole.since <= asked && whole(&hole))
                        {
                            let hole = self.active.remove(lo).expect("it was found above");
                            self.active.insert(lo, Hole { again: false, ..hole });
                        }
                    }
                }
            }
        }
    }

    /// Every hole that was asked for and read: nobody is left who could fill it, or those who could all go on running.
    fn forget_or_park(&mut self, asked: u64, snapshot: &Snapshot, through: Seq, now: Instant) {
        let long_enough = |since: Instant| now.saturating_duration_since(since) >= PARK_AFTER;
        let forget_uncovered = self.lacks(Rule::OnlyCoveredIsForgotten);
        let park_uncovered = self.lacks(Rule::OnlyCoveredIsParked);
        let xmin = if self.lacks(Rule::MarkMustBeReached) { snapshot.xmax } else { snapshot.xmin };
        let xmax = if self.lacks(Rule::ParkOnlyWhenXmaxReachedTheMark) { u64::MAX } else { snapshot.xmax };
        let Frontier { active, parked, sightings, .. } = self;
        active.retain(|lo, hole| {
            let covered = hole.since <= asked && hole.hi <= through;
            let Some(mark) = hole.mark else { return true };
            if mark <= xmin && (covered || forget_uncovered) {
                return false;
            }
            let candidates = &snapshot.running[..snapshot.running.partition_point(|xid| *xid < mark)];
            let parks = mark > xmin
                && mark <= xmax
                && !candidates.is_empty()
                && (covered || park_uncovered)
                && (long_enough(hole.born) || sightings.all_since(candidates.len()).is_some_and(long_enough));
            if parks {
                parked.park(candidates, lo, *hole);
            }
            !parks
        });
    }

    /// Moves the cursor over the rows of the tail; what they leave out are holes.
    fn advance(&mut self, page: &Page, now: Instant) {
        let due = match self.evidence {
            Evidence::Ages(limit) => now + limit,
            Evidence::Snapshots | Evidence::Serial => now,
        };
        let gaps = self.evidence != Evidence::Serial && !self.lacks(Rule::GapsAreHoles);
        for seq in page.from_tail.iter().map(|row| row.seq()) {
            let next = self.cursor + 1;
            if gaps && next < seq {
                let again = matches!(self.evidence, Evidence::Ages(_)) && seq - next > NUMBERS_PER_POLL;
                let mark =
                    self.lacks(Rule::MarkDrawnAfterThePoll).then(|| page.snapshot.as_ref().map(|s| s.xmax)).flatten();
                let hole = Hole { hi: seq - 1, since: self.tick, mark, born: now, due, again };
                self.active.insert(next, hole);
            }
            self.cursor = self.cursor.max(seq);
        }
    }

    /// True in tests that leave this rule out.
    #[cfg(test)]
    fn lacks(&self, rule: Rule) -> bool {
        self.left_out == Some(rule)
    }

    #[cfg(not(test))]
    #[inline(always)]
    fn lacks(&self, _: Rule) -> bool {
        false
    }
}
