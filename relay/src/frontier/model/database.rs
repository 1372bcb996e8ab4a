//! A database as the feed knows it: transactions that draw ids and numbers, commit in any order, roll back, crash.
//!
//! Every step is one event, and events are counted; "before" in the checks means a smaller count.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::frontier::{Evidence, Snapshot};
use crate::message::{PartitionSet, Seq};
use crate::poll::{Page, Probe, Row, Wanted};

/// One message that was ever inserted; its place in `records` is its id.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) seq: Seq,
    pub(super) partition_no: u8,
    pub(super) drawn: u64,
    pub(super) drawn_at: Instant,
    pub(super) committed: Option<u64>,
    pub(super) deleted: Option<u64>,
    pub(super) deleting: bool,
}

/// An open transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) ticket: u64,
    pub(super) xid: Option<u64>,
    /// Ends seldom.
    pub(super) long: bool,
    /// A relay's settle; it ends by the relay's steps only.
    pub(super) settles: bool,
    begun_at: Instant,
    inserts: Vec<usize>,
    /// Numbers drawn whose rows are not there yet.
    reserved: Vec<usize>,
    deletes: Vec<usize>,
}

/// What a poll found, with ids: (number, id, partition).
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) page: Page,
    pub(super) from_holes: Vec<(Seq, usize, u8)>,
    pub(super) from_tail: Vec<(Seq, usize, u8)>,
}

#[derive(Debug)]
pub(super) struct Database {
    pub(super) evidence: Evidence,
    /// Rule 10 left out: the id is drawn after the number.
    pub(super) number_before_xid: bool,
    pub(super) records: Vec<Record>,
    pub(super) visible: BTreeMap<Seq, usize>,
    pub(super) open: Vec<Transaction>,
    pub(super) incarnation: u64,
    pub(super) event: u64,
    tickets: u64,
    seq_next: Seq,
    xid_next: u64,
    /// The highest id of a transaction that has ended.
    completed: u64,
    born: u64,
    /// (next number, next id, highest ended id) after each event.
    history: Vec<(Seq, u64, u64)>,
}

impl Database {
    pub(super) fn new(evidence: Evidence) -> Database {
        Database {
            evidence,
            number_before_xid: false,
            records: Vec::new(),
            visible: BTreeMap::new(),
            open: Vec::new(),
            incarnation: 1,
            event: 0,
            tickets: 0,
            seq_next: 1,
            xid_next: 10,
            completed: 9,
            born: 0,
            history: vec![(1, 10, 9)],
        }
    }

    fn tick(&mut self) -> u64 {
        self.event += 1;
        self.history.push((self.seq_next, self.xid_next, self.completed));
        self.event
    }

    fn draw_xid(&mut self) -> u64 {
        self.xid_next += 1;
        self.xid_next - 1
    }

    pub(super) fn begin(&mut self, long: bool, settles: bool, now: Instant) -> u64 {
        self.tick();
        self.tickets += 1;
        let xid = (!self.number_before_xid || settles).then(|| self.draw_xid());
        self.open.push(Transaction {
            ticket: self.tickets,
            xid,
            long,
            settles,
            begun_at: now,
            inserts: Vec::new(),
            reserved: Vec::new(),
            deletes: Vec::new(),
        });
        self.tickets
    }

    pub(super) fn position(&self, ticket: u64) -> Option<usize> {
        self.open.iter().position(|tx| tx.ticket == ticket)
    }

    /// Draws a number. `reserve`: the row itself comes later.
    pub(super) fn insert(&mut self, tx: usize, partition_no: u8, reserve: bool, now: Instant) {
        let drawn = self.tick();
        let id = self.records.len();
        let seq = self.seq_next;
        self.seq_next += 1;
        self.records.push(Record {
            seq,
            partition_no,
            drawn,
            drawn_at: now,
            committed: None,
            deleted: None,
            deleting: false,
        });
        if reserve { self.open[tx].reserved.push(id) } else { self.open[tx].inserts.push(id) }
    }

    /// Draws the id that rule 10 wants drawn before the first number.
    pub(super) fn draw_late_xid(&mut self, tx: usize) {
        if self.open[tx].xid.is_none() {
            self.tick();
            self.open[tx].xid = Some(self.draw_xid());
        }
    }

    /// Inserts the rows whose numbers were drawn before.
    pub(super) fn fill_reserved(&mut self, tx: usize) {
        let reserved = std::mem::take(&mut self.open[tx].reserved);
        self.open[tx].inserts.extend(reserved);
    }

    /// Inserts what was reserved so long ago that it would exceed `limit` at `then`.
    pub(super) fn fill_overdue(&mut self, limit: Duration, then: Instant) {
        for tx in 0..self.open.len() {
            let records = &self.records;
            if self.open[tx].reserved.iter().any(|id| then.saturating_duration_since(records[*id].drawn_at) >= limit) {
                self.fill_reserved(tx);
            }
        }
    }

    /// Deletes a row that is visible and that nobody else is deleting.
    pub(super) fn delete(&mut self, tx: usize, seq: Seq, id: usize) {
        if self.visible.get(&seq) == Some(&id) && !self.records[id].deleting {
            self.records[id].deleting = true;
            self.open[tx].deletes.push(id);
        }
    }

    /// Ends a transaction. Returns its id and the ids of the rows it deleted.
    pub(super) fn end(&mut self, tx: usize, commit: bool) -> (Option<u64>, Vec<usize>) {
        self.draw_late_xid(tx);
        self.fill_reserved(tx);
        let event = self.tick();
        let tx = self.open.remove(tx);
        for id in &tx.deletes {
            self.records[*id].deleting = false;
            if commit {
                self.records[*id].deleted = Some(event);
                self.visible.remove(&self.records[*id].seq);
            }
        }
        for id in &tx.inserts {
            if commit {
                self.records[*id].committed = Some(event);
                self.visible.insert(self.records[*id].seq, *id);
            } else if self.evidence == Evidence::Serial {
                // The counter is part of the transaction.
                self.seq_next = self.seq_next.min(self.records[*id].seq);
            }
        }
        self.completed = self.completed.max(tx.xid.unwrap_or(0));
        (tx.xid, if commit { tx.deletes } else { Vec::new() })
    }

    /// Open transactions abort, and what happened in the last `lost` events has not happened: commits, deletes, numbers
    /// and ids. Returns the messages whose deletion was undone.
    pub(super) fn crash(&mut self, lost: u64) -> BTreeSet<usize> {
        let until = self.event.saturating_sub(lost).max(self.born);
        self.open.clear();
        let mut undone = BTreeSet::new();
        for (id, record) in self.records.iter_mut().enumerate() {
            record.deleting = false;
            if record.committed.is_some_and(|event| event > until) {
                record.committed = None;
                record.deleted = None;
            }
            if record.deleted.is_some_and(|event| event > until) {
                record.deleted = None;
                undone.insert(id);
            }
        }
        let stands = |record: &Record| record.committed.is_some() && record.deleted.is_none();
        self.visible = self.records.iter().enumerate().filter(|(_, r)| stands(r)).map(|(id, r)| (r.seq, id)).collect();
        (self.seq_next, self.xid_next, self.completed) = self.history[until as usize];
        self.incarnation += 1;
        self.born = self.tick();
        undone
    }

    /// The poll: one snapshot, rows in the holes, rows above the cursor.
    pub(super) fn read(&self, wanted: &Wanted, limit: usize) -> Answer {
        let mut answer = Answer::default();
        let row = |(seq, id): (&Seq, &usize)| (*seq, *id, self.records[*id].partition_no);
        for hole in &wanted.holes {
            let inside = self.visible.range(hole.lo..=hole.hi).map(row);
            let gained = hole.gained.unwrap_or(PartitionSet::ALL);
            answer.from_holes.extend(inside.filter(|(_, _, partition_no)| gained.contains(*partition_no)).take(limit));
        }
        answer.from_holes.sort_unstable();
        answer.from_holes.dedup();
        answer.from_holes.truncate(limit);
        if wanted.tail {
            answer.from_tail = self.visible.range(wanted.cursor + 1..).map(row).take(limit).collect();
        }
        let foreign =
            |(seq, _, partition_no): &(Seq, usize, u8)| Row::Foreign { seq: *seq, partition_no: *partition_no };
        answer.page = Page {
            incarnation: self.incarnation,
            snapshot: (self.evidence == Evidence::Snapshots).then(|| self.snapshot()),
            from_holes: answer.from_holes.iter().map(foreign).collect(),
            holes_full: answer.from_holes.len() == limit,
            from_tail: answer.from_tail.iter().map(foreign).collect(),
        };
        answer
    }

    /// As PostgreSQL builds it: xmax is one above the highest id that has *ended*, not above the highest drawn.
    pub(super) fn snapshot(&self) -> Snapshot {
        let xmax = self.completed + 1;
        let mut running: Vec<u64> = self.open.iter().filter_map(|tx| tx.xid).filter(|xid| *xid < xmax).collect();
        running.sort_unstable();
        Snapshot { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
    }

    /// The locking read: committed rows and those of running transactions, not the numbers these have only reserved.
    pub(super) fn probe(&self, ranges: &[(Seq, Seq)], tell_ages: bool, now: Instant) -> Probe {
        let held: BTreeSet<Seq> =
            self.open.iter().flat_map(|tx| tx.inserts.iter()).map(|id| self.records[*id].seq).collect();
        let occupied = |(lo, hi): &&(Seq, Seq)| {
            self.visible.range(*lo..=*hi).next().is_some() || held.range(*lo..=*hi).next().is_some()
        };
        let oldest = self.open.iter().map(|tx| now.saturating_duration_since(tx.begun_at)).max();
        Probe {
            occupied: ranges.iter().filter(occupied).copied().collect(),
            oldest_transaction: oldest.filter(|_| tell_ages),
        }
    }

    /// Numbers drawn by transactions that are still open.
    pub(super) fn held(&self) -> impl Iterator<Item = Seq> {
        self.open.iter().flat_map(|tx| tx.inserts.iter().chain(&tx.reserved)).map(|id| self.records[*id].seq)
    }
}
