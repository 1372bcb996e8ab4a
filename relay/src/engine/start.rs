//! Marks waiting rows of handlers before they are attempted.
//!
//! A handler may end the process, and then nothing is left that could write what happened. So what is about to be
//! attempted is given this relay's name first, many rows in one transaction under the partition locks, and begins when
//! that has committed. Every outcome takes the mark off; what bears the name of a relay that died as the owner is taken to
//! have been under way. A relay that ended in order owns nothing, so its marks say nothing, whatever it had to cut off.
//!
//! Invariants
//! - No waiting row of a handler is attempted without being marked under the epoch it is owned under.
//! - From the mark to the settle of the outcome an attempted row is *open*; nothing is tried alone meanwhile.
//! - Rows that wait in line behind one of their key are marked with it, a few of them: otherwise a long line would cost
//!   a transaction for each. At a death they seem to have been under way, and are tried alone; that is all it costs them.
//!   So it is with rows given back after they were marked. A death takes the mark off, so none of them is met by four.
//! - A row that could not be marked goes back to its table and is read again; a mark that failed is repeated.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use tracing::debug;

use super::attempt::last_call;
use super::{Answer, Engine};
use crate::lane::{Care, Fate, Origin, Work};
use crate::message::{Key, Message, PartitionSet};
use crate::solitude::{Seen, Solitude, Turn};
use crate::store::{Start, StartBatch, StoreError};

/// Rows between their lane and their attempt.
#[derive(Default)]
pub(super) struct Starts {
    /// To be marked with the next call.
    waiting: Vec<(usize, Work)>,
    /// Being marked, by id.
    sent: HashMap<i64, (usize, Work)>,
    /// Keys of whose lines some are being marked.
    ahead: Vec<(usize, Key)>,
    /// Marked: they begin as soon as the lease is known to be held.
    marked: Vec<(usize, Work)>,
    busy: bool,
    retry_at: Option<Instant>,
    /// Marked or about to be, and not settled: their partitions by id.
    open: HashMap<i64, u8>,
    solitude: Solitude,
}

/// Which rows were marked.
pub(super) struct StartAnswer(Result<Vec<i64>, StoreError>);

impl Starts {
    /// Nothing is on its way to its attempt.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty() && self.marked.is_empty()
    }

    /// The outcome was written, or refused.
    pub(super) fn settled(&mut self, id: i64) {
        self.open.remove(&id);
    }

    fn take(&mut self, gone: impl Fn(&Work) -> bool) -> Vec<(usize, Work)> {
        let mut taken: Vec<(usize, Work)> = self.waiting.extract_if(.., |(_, work)| gone(work)).collect();
        taken.extend(self.marked.extract_if(.., |(_, work)| gone(work)));
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
            && let Some(mut work) = self.lanes[lane].lane.start_alone()
        {
            last_call(&mut work, now);
            self.begin(lane, work, now);
        }
    }

    /// Has the row marked before it begins.
    pub(super) fn mark(&mut self, lane: usize, work: Work) {
        self.starts.waiting.push((lane, work));
    }

    /// Sends what is to be marked.
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
            batch.rows.push(start(id, &work));
            if let Some(key) = work.message.ordering_key.as_ref().filter(|_| work.care == Care::Marked) {
                let line = self.lanes[lane].lane.line_of(key).take(AHEAD_MAX);
                let before = batch.rows.len();
                for follower in line.filter(|follower| follower.care == Care::Marked && !follower.suspect) {
                    let Origin::Waiting(id) = follower.origin else { continue };
                    batch.rows.push(start(id, follower));
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
            Ok(marked) => {
                let marked: HashSet<i64> = marked.into_iter().collect();
                for (lane, key) in ahead {
                    for follower in self.lanes[lane].lane.line_of(&key) {
                        if matches!(follower.origin, Origin::Waiting(id) if marked.contains(&id)) {
                            follower.care = Care::Ahead;
                        }
                    }
                }
                self.outages.recovered("delivery_start");
                self.starts.retry_at = None;
                for (lane, work) in sent {
                    match work.origin {
                        Origin::Waiting(id) if marked.contains(&id) => self.starts.marked.push((lane, work)),
                        _ => self.give_back(lane, &work),
                    }
                }
            }
            Err(error) => {
                self.starts.retry_at = Some(now + self.outages.failed("delivery_start", &error));
                for (lane, work) in sent {
                    // Whether it was marked is not known; doing it again changes nothing.
                    if self.leaving.contains(work.message.partition_no) {
                        self.give_back(lane, &work);
                    } else {
                        self.starts.waiting.push((lane, work));
                    }
                }
            }
        }
    }

    /// Begins what was marked, unless its destination was closed meanwhile.
    pub(super) fn start_marked(&mut self, now: Instant) {
        for (lane, work) in std::mem::take(&mut self.starts.marked) {
            match self.lanes[lane].lane.is_closed() {
                true => self.give_back(lane, &work),
                false => self.start_attempt(lane, work, now),
            }
        }
    }

    /// Begins with a row that was marked with the one before it in its line.
    pub(super) fn start_ahead(&mut self, lane: usize, work: Work, now: Instant) {
        if let Origin::Waiting(id) = work.origin {
            self.starts.open.insert(id, work.message.partition_no);
        }
        self.start_attempt(lane, work, now);
    }

    /// When there is something to send that had to wait.
    pub(super) fn start_wake(&self) -> Option<Instant> {
        self.starts.retry_at.filter(|_| !self.starts.busy && !self.starts.waiting.is_empty())
    }

    /// A row that will not be attempted stays in its table as it is. It is gone, or somebody holds it, or it is to be
    /// another's: the next look tells.
    fn give_back(&mut self, lane: usize, work: &Work) {
        let Origin::Waiting(id) = work.origin else { return };
        debug!(message.id = %work.message.id, "a row is left to the next look: its start was not marked");
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

    /// Leaves what is not marked yet of partitions that are given up. What is, or is about to be, is under way.
    pub(super) fn leave_unmarked(&mut self, leaving: PartitionSet) {
        let gone = |work: &Work| leaving.contains(work.message.partition_no);
        let unmarked: Vec<(usize, Work)> = self.starts.waiting.extract_if(.., |(_, work)| gone(work)).collect();
        for (lane, work) in unmarked {
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
}

fn start(id: i64, work: &Work) -> Start {
    let Message { partition_no, id: message_id, .. } = *work.message;
    Start { id, partition_no, message_id, attempts_read: work.attempts }
}

/// So many in line are marked with the one before them.
const AHEAD_MAX: usize = 16;
