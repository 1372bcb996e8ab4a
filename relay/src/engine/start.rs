//! Counts the attempts of waiting rows of handlers before they begin.
//!
//! A handler may end the process, and then nothing is left that could write what happened. So what is about to be
//! attempted is written down first, many rows in one transaction under the partition locks, and begins when that has
//! committed. Every outcome zeroes the count; whatever has one when its relay is dead was under way at that moment.
//!
//! Invariants
//! - No row of a handler is attempted without its start being counted under the epoch it is owned under.
//! - From the count to the settle of the outcome the row is *open*; nothing is tried alone meanwhile.
//! - Rows that wait in line behind one of their key are counted with it, a few of them: otherwise a long line would cost
//!   a transaction for each. At a death they seem to have been under way, and are tried alone; that is all it costs them.
//! - A row that could not be counted goes back to its table and is read again; a count that failed is repeated.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tracing::debug;

use super::{Answer, Engine};
use crate::lane::{Care, Fate, Origin, Work};
use crate::message::{Key, PartitionSet};
use crate::outcome::Outcome;
use crate::solitude::{Seen, Solitude, Turn};
use crate::store::{DueIn, Remains, Start, StartBatch, State, StoreError, Waits};

/// Rows between their lane and their attempt.
#[derive(Default)]
pub(super) struct Starts {
    /// To be counted with the next call.
    waiting: Vec<(usize, Work)>,
    /// Being counted, by id.
    sent: HashMap<i64, (usize, Work)>,
    /// Keys of whose lines some are being counted.
    ahead: Vec<(usize, Key)>,
    /// Counted: they begin as soon as the lease is known to be held.
    counted: Vec<(usize, Work)>,
    busy: bool,
    retry_at: Option<Instant>,
    /// Counted, or about to be, and not settled: their partitions by id.
    open: HashMap<i64, u8>,
    solitude: Solitude,
}

/// What came of a count.
pub(super) struct StartAnswer(Result<Vec<i64>, StoreError>);

impl Starts {
    /// Nothing is on its way to its attempt.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty() && self.counted.is_empty()
    }

    /// The outcome was written, or refused.
    pub(super) fn settled(&mut self, id: i64) {
        self.open.remove(&id);
    }

    fn take(&mut self, gone: impl Fn(&Work) -> bool) -> Vec<(usize, Work)> {
        let mut taken: Vec<(usize, Work)> = self.waiting.extract_if(.., |(_, work)| gone(work)).collect();
        taken.extend(self.counted.extract_if(.., |(_, work)| gone(work)));
        taken.extend(self.sent.extract_if(|_, (_, work)| gone(work)).map(|(_, sent)| sent));
        taken
    }
}

impl Engine {
    /// Whose turn it is among the deliveries to handlers.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        let mut seen = Seen { unwritten: self.starts.open.len(), ..Seen::default() };
        for state in self.lanes.iter().filter(|state| state.in_process) {
            seen.running += state.lane.running();
            seen.queued += state.lane.queued();
            seen.candidates += state.lane.alone();
        }
        self.starts.solitude.turn(seen, now)
    }

    /// Starts the delivery to be alone that was under way at the fewest deaths.
    pub(super) fn start_alone(&mut self, now: Instant) {
        let first = (0..self.lanes.len()).filter_map(|lane| Some((self.lanes[lane].lane.first_alone()?, lane))).min();
        if let Some((_, lane)) = first
            && let Some(work) = self.lanes[lane].lane.start_alone()
        {
            self.begin(lane, work, now);
        }
    }

    /// Has the row counted before it begins.
    pub(super) fn count(&mut self, lane: usize, work: Work) {
        self.starts.waiting.push((lane, work));
    }

    /// Sends what is to be counted.
    pub(super) fn send_starts(&mut self, now: Instant) {
        if self.starts.busy || self.starts.waiting.is_empty() || self.starts.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let mut batch = StartBatch {
            epochs: self.epochs.iter().map(|(partition_no, epoch)| (*partition_no, *epoch)).collect(),
            rows: Vec::new(),
        };
        for (lane, work) in std::mem::take(&mut self.starts.waiting) {
            let Origin::Waiting(id) = work.origin else { continue };
            let partition_no = work.message.partition_no;
            batch.rows.push(Start { id, partition_no, attempts_read: work.attempts, starts: work.starts });
            if let Some(key) = work.message.ordering_key.as_ref().filter(|_| work.care == Care::Counted) {
                let line = self.lanes[lane].lane.line_of(key).take(AHEAD_MAX);
                let before = batch.rows.len();
                for follower in line.filter(|follower| follower.care == Care::Counted && !follower.suspect) {
                    let Origin::Waiting(id) = follower.origin else { continue };
                    let (attempts_read, starts) = (follower.attempts, follower.starts);
                    batch.rows.push(Start { id, partition_no, attempts_read, starts });
                }
                if batch.rows.len() > before {
                    self.starts.ahead.push((lane, key.clone()));
                }
            }
            self.starts.open.insert(id, partition_no);
            self.starts.sent.insert(id, (lane, work));
        }
        self.starts.busy = true;
        let (store, answers, relay) = (self.store.clone(), self.answers.clone(), self.relay);
        tokio::spawn(async move {
            let result = store.delivery_start(relay, &batch).await;
            let _ = answers.send(Answer::Start(StartAnswer(result)));
        });
    }

    pub(super) fn start_answered(&mut self, StartAnswer(result): StartAnswer) {
        let now = Instant::now();
        self.starts.busy = false;
        let sent: Vec<(usize, Work)> = std::mem::take(&mut self.starts.sent).into_values().collect();
        let ahead = std::mem::take(&mut self.starts.ahead);
        match result {
            Ok(counted) => {
                let counted: HashSet<i64> = counted.into_iter().collect();
                for (lane, key) in ahead {
                    for follower in self.lanes[lane].lane.line_of(&key) {
                        if matches!(follower.origin, Origin::Waiting(id) if counted.contains(&id)) {
                            follower.care = Care::Plain;
                        }
                    }
                }
                self.outages.recovered("delivery_start");
                self.starts.retry_at = None;
                for (lane, work) in sent {
                    match work.origin {
                        Origin::Waiting(id) if counted.contains(&id) => self.starts.counted.push((lane, work)),
                        _ => self.give_back(lane, &work),
                    }
                }
            }
            Err(error) => {
                self.starts.retry_at = Some(now + self.outages.failed("delivery_start", &error));
                for (lane, work) in sent {
                    // Whether it was counted is not known; the count says how many it is to be, so it can be repeated.
                    if self.leaving.contains(work.message.partition_no) {
                        self.give_back(lane, &work);
                    } else {
                        self.starts.waiting.push((lane, work));
                    }
                }
            }
        }
    }

    /// Begins what was counted.
    pub(super) fn start_counted(&mut self, now: Instant) {
        for (lane, work) in std::mem::take(&mut self.starts.counted) {
            self.start_attempt(lane, work, now);
        }
    }

    /// When there is something to send that had to wait.
    pub(super) fn start_wake(&self) -> Option<Instant> {
        self.starts.retry_at.filter(|_| !self.starts.busy && !self.starts.waiting.is_empty())
    }

    /// A row that will not be attempted stays in its table as it is. It is gone, or somebody holds it, or it is to be
    /// another's: the next look tells.
    fn give_back(&mut self, lane: usize, work: &Work) {
        let Origin::Waiting(id) = work.origin else { return };
        debug!(message.id = %work.message.id, "a row is left to the next look: its start was not counted");
        let (next_read, next_look) = (self.feed.next_read(), self.due.next_number());
        let state = &mut self.lanes[lane];
        // Those behind it in memory must not pass it.
        let behind = state.lane.finished(work, Fate::Stays);
        state.lane.writing(work);
        if let Some(key) = work.message.ordering_key.as_ref().filter(|_| work.in_order) {
            state.lane.written(key, None, next_read, next_look);
        }
        self.starts.open.remove(&id);
        self.due.forget(id);
        if let Some(key) = work.message.ordering_key.as_ref().filter(|_| work.in_order) {
            self.row_stays(lane, key);
        }
        self.step_back(lane, behind);
    }

    /// Leaves what was not counted yet of partitions that are given up. What was, or is about to be, is under way.
    pub(super) fn leave_uncounted(&mut self, leaving: PartitionSet) {
        let gone = |work: &Work| leaving.contains(work.message.partition_no);
        let uncounted: Vec<(usize, Work)> = self.starts.waiting.extract_if(.., |(_, work)| gone(work)).collect();
        for (lane, work) in uncounted {
            self.give_back(lane, &work);
        }
    }

    /// Leaves everything that has not begun.
    pub(super) fn leave_unstarted(&mut self) {
        for (lane, work) in self.starts.take(|_| true) {
            self.give_back(lane, &work);
        }
    }

    /// Drops what is of lost partitions.
    pub(super) fn evict_starts(&mut self, lost: PartitionSet) {
        // What is in line when the answer comes may have been read under another epoch.
        self.starts.ahead.clear();
        self.starts.open.retain(|_, partition_no| !lost.contains(*partition_no));
        for (lane, work) in self.starts.take(|work| lost.contains(work.message.partition_no)) {
            for follower in self.lanes[lane].lane.finished(&work, Fate::Through) {
                debug_assert!(lost.contains(follower.message.partition_no), "a key has one partition");
            }
        }
    }

    /// An attempt that was cut off because the grace is over killed nobody: its count goes, all else stays.
    ///
    /// Not where the attempt is a transaction that deletes the row: it may still hold it, and the write would wait.
    pub(super) fn clear_start(&mut self, lane: usize, work: &Work) {
        if work.care == Care::Plain || self.lanes[lane].served.sink.deletes_rows() {
            return;
        }
        let state = if work.suspect { State::Suspect } else { State::Retry };
        let remains = Remains::Waits(Waits {
            state,
            attempts: work.attempts,
            due: DueIn::Pause(Duration::ZERO),
            in_order: work.in_order,
            first_attempt_age: None,
            last_verdict: None,
            last_error: None,
            history: work.history.clone(),
        });
        self.dispose(lane, work, Outcome::Remains(remains));
    }
}

/// So many in line are counted with the one before them.
const AHEAD_MAX: usize = 16;
