//! What the frontier asks a table for, and what comes back.
//!
//! The common words of the one who decides (the frontier) and the one who asks (the store). Values only.

use std::time::Duration;

use crate::message::{Message, PartitionSet, Seq};

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

/// What a poll asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// The highest number seen.
    pub cursor: Seq,
    /// Ranges at or below the cursor to look into, ascending by `lo`.
    pub holes: Vec<HoleProbe>,
    /// False asks for the holes only (a wide gain is paged before the tail is used).
    pub tail: bool,
}

/// What a poll returned.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Changes when the connection, or the server behind it, is another one than at the last poll: then nothing that
    /// was seen before proves anything.
    pub incarnation: u64,
    /// Which transactions the poll could see (PostgreSQL).
    pub snapshot: Option<Snapshot>,
    /// Rows found in holes, ascending, without doubles.
    pub from_holes: Vec<Row>,
    /// True when the hole branch returned as many rows as it may: beyond its last row nothing was looked at.
    pub holes_full: bool,
    /// Rows above the cursor, ascending.
    pub from_tail: Vec<Row>,
}

/// A row a poll returned.
#[derive(Clone, Debug)]
pub enum Row {
    /// In one of our partitions.
    Mine(Box<Message>),
    /// In a partition of somebody else: its number only.
    Foreign {
        /// The number.
        seq: Seq,
        /// The partition.
        partition_no: u8,
    },
}

impl Row {
    /// The row's number.
    pub fn seq(&self) -> Seq {
        match self {
            Row::Mine(message) => message.seq,
            Row::Foreign { seq, .. } => *seq,
        }
    }
}

/// What a locking read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Ranges in which a running transaction holds a row, or in which a committed row appeared.
    pub occupied: Vec<(Seq, Seq)>,
    /// How long the oldest running transaction has been going, where that can be known. May prolong, never shorten.
    pub oldest_transaction: Option<Duration>,
}

/// How many numbers a poll, or a locking read, looks for one by one where holes end by age.
pub const NUMBERS_PER_POLL: i64 = 1_000;
