//! What was seen of the table, and what may still turn up below it.

use std::time::{Duration, Instant};

use crate::message::{PartitionSet, Seq};
use crate::store::{Page, Probe, Wanted};

/// What a database can prove about transactions that are still running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Snapshots and transaction ids: exact (PostgreSQL).
    Snapshots,
    /// Age and a locking probe: holes are forgotten when older than this and nothing is found (MySQL/MariaDB).
    Ages(Duration),
    /// One writer: commit order is number order, and no gap ever fills (SQLite).
    Serial,
}

/// A range of numbers a poll looks into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoleProbe {
    /// The first number.
    pub lo: Seq,
    /// The last number.
    pub hi: Seq,
    /// For a hole that stands for gained partitions: only rows of these are wanted.
    pub gained: Option<PartitionSet>,
}

/// Which transactions a poll could see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction below has ended.
    pub xmin: u64,
    /// No transaction at or above had begun to write.
    pub xmax: u64,
    /// Those in between that were still running, ascending.
    pub running: Vec<u64>,
}

/// When a hole came to be, for marks: see [`Frontier::stamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

/// The reader's memory: the highest number seen, and the numbers below it that were not.
#[derive(Debug)]
pub struct Frontier {
    #[allow(dead_code)]
    evidence: Evidence,
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
        Frontier { evidence }
    }

    /// What the next poll should ask for.
    pub fn wanted(&mut self, now: Instant) -> Wanted {
        let _ = now;
        unimplemented!()
    }

    /// Takes note of a page that answers `wanted`. Starts anew by itself when the page's incarnation is not the last
    /// one's; then the page counts only if it was asked with cursor 0, and is otherwise to be discarded.
    pub fn receive(&mut self, wanted: &Wanted, page: &Page, now: Instant) -> Reading {
        let _ = (wanted, page, now);
        unimplemented!()
    }

    /// The present moment in the order of polls; drawn when a statement that will yield a mark is sent.
    pub fn stamp(&self) -> Stamp {
        Stamp(0)
    }

    /// A transaction id was drawn by a statement sent at `stamp`: it is the mark of every unmarked hole known then.
    pub fn mark(&mut self, stamp: Stamp, xid: u64) {
        let _ = (stamp, xid);
    }

    /// True when an unmarked hole exists that a mark would help (PostgreSQL).
    pub fn needs_mark(&self) -> bool {
        false
    }

    /// Ranges old enough to be forgotten if a locking read finds nothing in them (MySQL/MariaDB); often empty.
    pub fn doubtful(&self, now: Instant) -> Vec<(Seq, Seq)> {
        let _ = now;
        Vec::new()
    }

    /// The locking read over `ranges` (from [`Frontier::doubtful`]) has answered.
    pub fn probed(&mut self, ranges: &[(Seq, Seq)], probe: &Probe, now: Instant) {
        let _ = (ranges, probe, now);
    }

    /// Partitions were gained: whatever they hold at or below the cursor has to be read.
    pub fn gain(&mut self, partitions: PartitionSet) {
        let _ = partitions;
    }

    /// A number that was seen is to be looked for again: a refused or lost row, or one the sweep found.
    pub fn reopen(&mut self, seq: Seq) {
        let _ = seq;
    }

    /// Forgets everything: the next poll begins at the start of the table.
    pub fn restart(&mut self) {}

    /// The highest number seen.
    pub fn cursor(&self) -> Seq {
        0
    }

    /// True when `seq` lies in a hole, parked ones included: nobody needs to be told about it.
    pub fn is_hole(&self, seq: Seq) -> bool {
        let _ = seq;
        false
    }

    /// True while partitions gained earlier have not been read completely at or below `seq`.
    pub fn gain_pending(&self, partition_no: u8, seq: Seq) -> bool {
        let _ = (partition_no, seq);
        false
    }

    /// How many ranges are remembered: (sent with polls, parked).
    pub fn holes(&self) -> (usize, usize) {
        (0, 0)
    }
}
