//! Holes that cannot change for now.
//!
//! A hole with a mark, looked into under a snapshot whose xmax has reached that mark, can be filled only by the
//! transactions below the mark that still run in it. While *all* of them go on running, asking again is wasted: the
//! hole rests here with the others that wait for the same transactions, and costs a comparison per poll.
//!
//! Ids are handed out in order, so the transactions a hole waits for are always the lowest of those that run. A group
//! is therefore known by the highest of its candidates, and there are never more groups than running transactions.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::frontier::Snapshot;
use crate::frontier::holes::{Hole, Holes};
use crate::message::Seq;

/// Groups of holes, by the highest candidate of each.
#[derive(Debug, Default)]
pub(super) struct Parked {
    groups: BTreeMap<u64, Group>,
    ranges: usize,
}

#[derive(Debug)]
struct Group {
    candidates: Vec<u64>,
    holes: Holes,
}

impl Parked {
    pub(super) fn len(&self) -> usize {
        self.ranges
    }

    pub(super) fn clear(&mut self) {
        *self = Parked::default();
    }

    /// Parks a hole until the first of `candidates` (not empty, ascending) ends.
    pub(super) fn park(&mut self, candidates: &[u64], lo: Seq, hole: Hole) {
        let highest = *candidates.last().expect("a hole nobody can fill is forgotten, not parked");
        let group = self
            .groups
            .entry(highest)
            .or_insert_with(|| Group { candidates: candidates.to_vec(), holes: Holes::new(false) });
        let before = group.holes.len();
        group.holes.absorb(lo, hole);
        self.ranges = self.ranges + group.holes.len() - before;
    }

    /// Takes out the holes of each group of which a candidate has ended in `snapshot`.
    pub(super) fn take_ended(&mut self, snapshot: &Snapshot) -> Vec<(Seq, Hole)> {
        let mut ended = Vec::new();
        self.groups.retain(|_, group| {
            let rests = snapshot.running.starts_with(&group.candidates);
            if !rests {
                ended.extend(group.holes.drain());
            }
            rests
        });
        self.ranges = self.groups.values().map(|group| group.holes.len()).sum();
        ended
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<(Seq, Hole)> {
        self.ranges = 0;
        std::mem::take(&mut self.groups).into_values().flat_map(|mut group| group.holes.drain()).collect()
    }

    pub(super) fn contains(&self, seq: Seq) -> bool {
        self.groups.values().any(|group| group.holes.at(seq).is_some())
    }

    /// A number was seen: no hole holds it any longer.
    pub(super) fn see(&mut self, seq: Seq) {
        for group in self.groups.values_mut() {
            if let Some((lo, _)) = group.holes.at(seq) {
                let before = group.holes.len();
                group.holes.cut(lo, seq, seq);
                self.ranges = self.ranges + group.holes.len() - before;
            }
        }
    }

    /// Merges neighbours until about half of `most` ranges remain.
    pub(super) fn compact(&mut self, most: usize) {
        let share = (most / self.groups.len().max(1)).max(2);
        for group in self.groups.values_mut() {
            group.holes.compact(share);
        }
        self.ranges = self.groups.values().map(|group| group.holes.len()).sum();
    }
}

/// Since when each running transaction has been seen running.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    /// Ascending by id: (id, first seen, the latest first sighting among this and all lower ids).
    seen: Vec<(u64, Instant, Instant)>,
}

impl Sightings {
    pub(super) fn clear(&mut self) {
        self.seen.clear();
    }

    /// Takes note of who runs now and forgets who does not.
    pub(super) fn update(&mut self, snapshot: &Snapshot, now: Instant) {
        let mut known = std::mem::take(&mut self.seen).into_iter().peekable();
        let mut newest: Option<Instant> = None;
        self.seen.reserve(snapshot.running.len());
        for xid in &snapshot.running {
            while known.next_if(|(id, ..)| id < xid).is_some() {}
            let first = known.next_if(|(id, ..)| id == xid).map_or(now, |(_, first, _)| first);
            let latest = newest.map_or(first, |newest| newest.max(first));
            newest = Some(latest);
            self.seen.push((*xid, first, latest));
        }
    }

    /// Since when all of the `count` lowest running transactions have been seen running.
    pub(super) fn all_since(&self, count: usize) -> Option<Instant> {
        self.seen.get(count.checked_sub(1)?).map(|(_, _, latest)| *latest)
    }
}
