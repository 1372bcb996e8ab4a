//! Partitions that were gained and have not been read completely below the cursor.
//!
//! Numbers at or below the cursor are of two kinds. Those not seen yet lie in ordinary holes and will turn up there
//! under whoever owns their partition by then. Those seen already were passed over as somebody else's, and every read
//! begun after the gain finds what is left of them. So a gain is read through once, from the bottom, and is then done:
//! it needs no mark and waits for no transaction.

use crate::frontier::HoleProbe;
use crate::message::{PartitionSet, Seq};

/// What is still to be read. A partition is in at most one entry, so there are never more than partitions.
#[derive(Debug, Default)]
pub(super) struct Gains {
    open: Vec<Gain>,
}

#[derive(Debug)]
struct Gain {
    partitions: PartitionSet,
    lo: Seq,
    hi: Seq,
    since: u64,
}

impl Gains {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// `partitions` are to be read up to `cursor`. What was read of them under an earlier ownership does not count.
    pub(super) fn add(&mut self, partitions: PartitionSet, cursor: Seq, since: u64) {
        for gain in &mut self.open {
            gain.partitions = gain.partitions.without(partitions);
        }
        self.open.retain(|gain| !gain.partitions.is_empty());
        if !partitions.is_empty() {
            self.open.push(Gain { partitions, lo: 1, hi: cursor, since });
        }
    }

    /// The cursor fell to the start: nothing is below it, until a poll in flight proves otherwise.
    pub(super) fn restart(&mut self) {
        for gain in &mut self.open {
            (gain.lo, gain.hi) = (1, 0);
        }
    }

    /// Drops what has nothing left to read.
    pub(super) fn prune(&mut self) {
        self.open.retain(|gain| gain.lo <= gain.hi);
    }

    /// A poll asked for at `asked` has read all gained ranges up to `through`.
    pub(super) fn covered(&mut self, asked: u64, through: Seq) {
        for gain in self.open.iter_mut().filter(|gain| gain.since <= asked) {
            gain.lo = gain.lo.max(through.saturating_add(1));
        }
    }

    /// A poll asked for at `asked` moved the cursor. Its rows were judged by the ownership it was sent with, so what
    /// was gained while it was under way has to look at them again.
    pub(super) fn extend(&mut self, asked: u64, cursor: Seq) {
        for gain in self.open.iter_mut().filter(|gain| gain.since > asked) {
            gain.hi = gain.hi.max(cursor);
        }
    }

    /// True when `seq` lies where some gained partition has not been read.
    pub(super) fn contains(&self, seq: Seq) -> bool {
        self.open.iter().any(|gain| gain.lo <= seq && seq <= gain.hi)
    }

    /// True when something of this partition at or below `seq` has not been read. `in_flight`: a poll is under way
    /// that may yet show that there is something.
    pub(super) fn pending(&self, partition_no: u8, seq: Seq, in_flight: bool) -> bool {
        self.open
            .iter()
            .any(|gain| gain.partitions.contains(partition_no) && gain.lo <= seq && (gain.lo <= gain.hi || in_flight))
    }

    /// Disjoint ranges, ascending, each with the partitions wanted there.
    pub(super) fn probes(&self) -> Vec<HoleProbe> {
        let mut edges: Vec<Seq> = self.open.iter().flat_map(|gain| [gain.lo, gain.hi.saturating_add(1)]).collect();
        edges.sort_unstable();
        edges.dedup();
        let mut probes: Vec<HoleProbe> = Vec::new();
        for edge in edges.windows(2) {
            let (lo, hi) = (edge[0], edge[1] - 1);
            let gained = self
                .open
                .iter()
                .filter(|gain| gain.lo <= lo && hi <= gain.hi)
                .fold(PartitionSet::EMPTY, |all, gain| all.or(gain.partitions));
            if gained.is_empty() {
                continue;
            }
            match probes.last_mut() {
                Some(last) if last.hi + 1 == lo && last.gained == Some(gained) => last.hi = hi,
                _ => probes.push(HoleProbe { lo, hi, gained: Some(gained) }),
            }
        }
        probes
    }
}
