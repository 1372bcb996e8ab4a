//! Everything between the feed and one destination.
//!
//! Pure state: what may start next, what must become a waiting row, how full the lane is. The engine starts the
//! attempts and tells the lane how they ended.
//!
//! Invariants
//! - Never more than `concurrency` attempts at a time, fewer while the destination fails; never more than `queue_max`
//!   messages, or one beyond `bytes_max`, in memory. Waiting rows are bounded apart from that, so that a lane full of fresh
//!   messages takes some too: two for each attempt it may make, and half of `bytes_max`, or one row beyond.
//! - Fresh messages and waiting rows take turns while both have something to start; neither starves the other.
//! - A lane that is closed (paused, held) starts nothing and keeps nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::key_gate::{Admission, KeyGate};
use crate::message::{HistoryEntry, Key, Message, Seq};
use crate::ramp::Ramp;
use crate::store::Reason;

/// One delivery on its way: a message for this lane's destination.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The message.
    pub(crate) message: Arc<Message>,
    /// Where it was read.
    pub(crate) origin: Origin,
    /// Attempts judged so far.
    pub(crate) attempts: u32,
    /// False for what neither blocks its key nor waits for it.
    pub(crate) in_order: bool,
    /// When the first attempt began, on this relay's clock.
    pub(crate) first_attempt_at: Option<Instant>,
    /// The attempts so far, newest last.
    pub(crate) history: Vec<HistoryEntry>,
    /// It takes its turn like any other, but is given up instead of attempted.
    pub(crate) doomed: Option<(Reason, String)>,
    /// What has to be done before it is attempted.
    pub(crate) care: Care,
    /// A relay may have died of it.
    pub(crate) suspect: bool,
    /// How often its relay died while it was being attempted.
    pub(crate) deaths: u32,
}

/// What has to be done before a delivery is attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// Nothing, or nothing any more.
    Plain,
    /// It is marked as under way.
    Marked,
    /// Nothing any more: it was marked with the one before it in its line.
    Ahead,
    /// It is marked, and no other handler of this process is at work meanwhile.
    Alone,
}

/// Where a delivery was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In `outbox_messages`.
    Fresh,
    /// In `outbox_deliveries`, under this id.
    Waiting(i64),
}

/// How a delivery left the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Delivered, or given up without blocking its key: the next of its key may go.
    Through,
    /// It waits, or it died and blocks its key: those behind it become rows.
    Stays,
}

/// How a lane is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneLimits {
    /// Attempts at a time.
    pub(crate) concurrency: usize,
    /// Messages kept in memory for this lane, those being attempted included.
    pub(crate) queue_max: usize,
    /// Their bytes.
    pub(crate) bytes_max: usize,
    /// True keeps the messages of a key in order.
    pub(crate) keyed: bool,
}

/// The lane of one destination.
#[derive(Debug)]
pub(crate) struct Lane {
    limits: LaneLimits,
    gate: KeyGate<Work>,
    fresh: VecDeque<Work>,
    waiting: VecDeque<Work>,
    /// Rows that must be alone.
    alone: Vec<Work>,
    ramp: Ramp,
    running: usize,
    bytes: usize,
    /// Waiting rows that may start, or have, and have no fate yet.
    rows_taken: usize,
    /// The bytes of all rows in memory, those in line included.
    row_bytes: usize,
    /// What a row cost in the last looks: how many more there is room for.
    typical_row_bytes: usize,
    waiting_turn: bool,
    closed: bool,
}

impl Lane {
    /// An open, empty lane.
    pub(crate) fn new(limits: LaneLimits) -> Lane {
        Lane {
            limits,
            gate: KeyGate::default(),
            fresh: VecDeque::new(),
            waiting: VecDeque::new(),
            alone: Vec::new(),
            ramp: Ramp::new(limits.concurrency),
            running: 0,
            bytes: 0,
            rows_taken: 0,
            row_bytes: 0,
            typical_row_bytes: TYPICAL_ROW_BYTES_FIRST,
            waiting_turn: false,
            closed: false,
        }
    }

    /// A fresh message arrives. Comes back when it must become a waiting row because its key is parked.
    pub(crate) fn offer(&mut self, work: Work) -> Option<Work> {
        let bytes = work.message.weight();
        match self.key_of(&work) {
            None => self.fresh.push_back(work),
            Some(key) => match self.gate.admit(&key, work.message.seq, work) {
                Admission::Go(work) => self.fresh.push_back(work),
                Admission::InLine => {}
                Admission::Parked(work) => return Some(work),
            },
        }
        self.bytes += bytes;
        None
    }

    /// A waiting row that look number `look` found due arrives. False: not now, its key is not free; it will be read again.
    pub(crate) fn offer_row(&mut self, work: Work, look: u64) -> bool {
        let bytes = work.message.weight();
        match self.key_of(&work) {
            None => self.push(work),
            Some(key) => {
                // A full lane takes one of each key all the same: else it could hide what is behind it.
                let aside_max = if self.is_full() { 1 } else { ASIDE_MAX };
                let admission = match work.in_order {
                    true => self.gate.admit_row(&key, work.message.seq, look, work),
                    false => self.gate.admit_aside(&key, aside_max, work),
                };
                match admission {
                    Admission::Go(work) => self.push(work),
                    Admission::InLine => {}
                    Admission::Parked(_) => return false,
                }
            }
        }
        self.bytes += bytes;
        self.row_bytes += bytes;
        true
    }

    /// Keys whose rows that keep no order need not be looked for: enough of them are here.
    pub(crate) fn crowded(&self) -> Vec<Key> {
        self.gate.crowded().take(CROWDED_MAX).cloned().collect()
    }

    /// A fresh message that failed, and has not become a row yet, may be tried again from memory. If so, it is to be given
    /// to [`Lane::push_again`] at once.
    pub(crate) fn may_go_again(&mut self, message: &Message) -> bool {
        let key = message.ordering_key.as_ref().filter(|_| self.limits.keyed);
        !self.closed && !self.is_full() && key.is_none_or(|key| self.gate.admit_again(key, message.seq))
    }

    /// That message.
    pub(crate) fn push_again(&mut self, work: Work) {
        self.entered(&work);
        self.push(work);
    }

    /// The waiting row that follows another of its key arrives. False: not now; it will be read again.
    pub(crate) fn offer_follower(&mut self, work: Work, look: u64) -> bool {
        let Some(key) = self.key_of(&work) else { return false };
        let bytes = work.message.weight();
        match self.gate.line_up(&key, work.message.seq, look, work) {
            Admission::Go(work) => self.push(work),
            Admission::InLine => {}
            Admission::Parked(_) => return false,
        }
        self.bytes += bytes;
        self.row_bytes += bytes;
        true
    }

    /// How many of this key wait in memory behind the one that is out.
    pub(crate) fn in_line_of(&self, key: &Key) -> usize {
        self.gate.in_line_of(key)
    }

    /// The next delivery to start, if one may start now.
    pub(crate) fn start_next(&mut self) -> Option<Work> {
        if self.closed || self.running >= self.ramp.limit() {
            return None;
        }
        let (first, second) =
            if self.waiting_turn { (&mut self.waiting, &mut self.fresh) } else { (&mut self.fresh, &mut self.waiting) };
        let work = first.pop_front().or_else(|| second.pop_front())?;
        self.waiting_turn = work.origin == Origin::Fresh;
        self.running += 1;
        Some(work)
    }

    /// How many wait to be alone.
    pub(crate) fn alone(&self) -> usize {
        self.alone.len()
    }

    /// The one of them that goes first: it was started least often, and is the oldest of those.
    pub(crate) fn first_alone(&self) -> Option<(u32, Seq)> {
        self.alone.iter().map(|work| (work.deaths, work.message.seq)).min()
    }

    /// Starts that one.
    pub(crate) fn start_alone(&mut self) -> Option<Work> {
        let first = self.first_alone()?;
        let at = self.alone.iter().position(|work| (work.deaths, work.message.seq) == first)?;
        self.running += 1;
        Some(self.alone.remove(at))
    }

    /// How many could start but for the limits.
    pub(crate) fn queued(&self) -> usize {
        self.fresh.len() + self.waiting.len()
    }

    /// Those that wait in memory behind the one of this key that is out, in order.
    pub(crate) fn line_of(&mut self, key: &Key) -> impl Iterator<Item = &mut Work> {
        self.gate.line_of(key)
    }

    /// How many have started and have no fate yet.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// A started delivery has its fate. Returns those behind it that must become rows.
    pub(crate) fn finished(&mut self, work: &Work, fate: Fate) -> Vec<Work> {
        self.running -= 1;
        self.left(std::slice::from_ref(work));
        if work.origin != Origin::Fresh {
            self.rows_taken -= 1;
        }
        let Some(key) = self.key_of(work) else { return Vec::new() };
        if fate == Fate::Stays && work.in_order {
            let behind = self.gate.park(&key);
            self.left(&behind);
            return behind;
        }
        if let Some(next) = self.gate.passed(&key) {
            self.push(next);
        }
        Vec::new()
    }

    /// It may start as soon as there is room.
    fn push(&mut self, work: Work) {
        if work.origin == Origin::Fresh {
            self.fresh.push_back(work);
        } else {
            self.rows_taken += 1;
            if work.care == Care::Alone { self.alone.push(work) } else { self.waiting.push_back(work) }
        }
    }

    /// How an attempt went: whether the receiver works.
    pub(crate) fn attempted(&mut self, works: bool) {
        if works { self.ramp.succeeded() } else { self.ramp.failed() }
    }

    /// One attempt at a time, until one succeeds.
    pub(crate) fn probe(&mut self) {
        self.ramp.probe();
    }

    /// A row that parks the key of `work` is about to be written.
    pub(crate) fn writing(&mut self, work: &Work) {
        if let Some(key) = self.key_of(work).filter(|_| work.in_order) {
            self.gate.writing(&key, (work.origin == Origin::Fresh).then_some(work.message.seq));
        }
    }

    /// The same for a row that belongs to no delivery in this lane.
    pub(crate) fn writing_key(&mut self, key: &Key, seq: Seq) {
        if self.limits.keyed {
            self.gate.writing(key, Some(seq));
        }
    }

    /// That row was written or refused, or never will be; look-ups numbered `next_read` and looks numbered `next_look`, and
    /// later ones, know it. `new` is the number of a message that had no row before.
    pub(crate) fn written(&mut self, key: &Key, new: Option<Seq>, next_read: u64, next_look: u64) {
        if self.limits.keyed {
            self.gate.written(key, new, next_read, next_look);
        }
    }

    /// Look-up number `read` was acted upon.
    pub(crate) fn read_done(&mut self, read: u64) {
        self.gate.read_done(read);
    }

    /// Look number `look` at the waiting rows was acted upon.
    pub(crate) fn look_done(&mut self, look: u64) {
        self.gate.look_done(look);
    }

    /// True when a message of this key would have to become a row.
    pub(crate) fn is_parked(&self, key: &Key) -> bool {
        self.limits.keyed && self.gate.is_parked(key)
    }

    /// Stops starting; returns the fresh messages and the rows kept in memory, which are no longer the lane's.
    pub(crate) fn close(&mut self) -> Vec<Work> {
        self.closed = true;
        self.clear()
    }

    /// Starts again.
    pub(crate) fn open(&mut self) {
        self.closed = false;
    }

    /// True while paused or held.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes out everything that has not started.
    pub(crate) fn clear(&mut self) -> Vec<Work> {
        let mut left: Vec<Work> = self.fresh.drain(..).collect();
        let rows: Vec<Work> = self.waiting.drain(..).chain(self.alone.drain(..)).collect();
        self.rows_taken -= rows.len();
        left.extend(rows);
        // What was about to start held its key; those in line behind it leave with it.
        for work in &left {
            if let Some(key) = self.limits.keyed.then(|| work.message.ordering_key.clone()).flatten() {
                while self.gate.passed(&key).is_some_and(|behind| {
                    self.fresh.push_back(behind);
                    true
                }) {}
            }
        }
        left.extend(self.fresh.drain(..));
        left.extend(self.gate.drain_lines());
        self.left(&left);
        left
    }

    /// Takes out fresh messages that wait to be attempted, or attempted again, and what waits behind them: all of it must
    /// become rows.
    pub(crate) fn take_back(&mut self, wanted: &HashSet<Seq>) -> Vec<Work> {
        let is_wanted = |work: &Work| work.origin == Origin::Fresh && wanted.contains(&work.message.seq);
        let mut back = Vec::new();
        for work in std::mem::take(&mut self.fresh) {
            if !is_wanted(&work) {
                self.fresh.push_back(work);
                continue;
            }
            let behind = self.key_of(&work).map(|key| self.gate.park(&key));
            back.push(work);
            back.extend(behind.into_iter().flatten());
        }
        back.extend(self.gate.cut_lines(is_wanted));
        self.left(&back);
        back
    }

    /// True when it would take another message at once and has none: starving. What waits in line for its key does not
    /// starve it, and it cannot be full at the same time.
    pub(crate) fn is_idle(&self) -> bool {
        !self.closed
            && !self.is_full()
            && self.fresh.is_empty()
            && self.waiting.is_empty()
            && self.running < self.ramp.limit()
    }

    /// Messages in memory, those being attempted included.
    pub(crate) fn len(&self) -> usize {
        self.fresh.len() + self.waiting.len() + self.alone.len() + self.gate.in_line() + self.running
    }

    /// True when no further message should be taken into memory.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limits.queue_max || self.bytes >= self.limits.bytes_max
    }

    /// How many more waiting rows it would take.
    ///
    /// Fresh messages that run or queue do not count: what comes first of both kinds takes turns.
    pub(crate) fn room_for_rows(&self) -> usize {
        if self.closed || self.is_full_of_rows() {
            return 0;
        }
        (2 * self.ramp.limit()).saturating_sub(self.rows_taken)
    }

    /// True when the bytes of waiting rows fill their share.
    pub(crate) fn is_full_of_rows(&self) -> bool {
        self.row_bytes >= self.row_bytes_max()
    }

    /// How many rows to ask a look for, when so many come back that are in hands, and as many may have to wait.
    pub(crate) fn rows_to_ask(&self, in_hands: usize, waiting: usize) -> usize {
        let room = self.room_for_rows();
        if room == 0 {
            return 0;
        }
        let fits = |bytes: usize| bytes / self.typical_row_bytes;
        let new = room.min(fits(self.row_bytes_max().saturating_sub(self.row_bytes)).max(1));
        new + in_hands + waiting.min(fits(self.row_bytes_max()))
    }

    /// How many rows of one key to ask for.
    pub(crate) fn followers_to_ask(&self, keys: usize) -> usize {
        (self.row_bytes_max().saturating_sub(self.row_bytes) / self.typical_row_bytes / keys.max(1)).max(1)
    }

    /// A look brought so many rows of so many bytes. Large ones count at once, small ones little by little.
    pub(crate) fn rows_weighed(&mut self, rows: usize, bytes: usize) {
        if let Some(mean) = bytes.checked_div(rows) {
            self.typical_row_bytes = mean.max(self.typical_row_bytes / 2).max(1);
        }
    }

    fn row_bytes_max(&self) -> usize {
        self.limits.bytes_max.div_ceil(2)
    }

    /// True when a row that a look brought in vain may pass now; says so once.
    pub(crate) fn take_freed(&mut self) -> bool {
        self.gate.take_freed()
    }

    /// The same without forgetting it.
    pub(crate) fn is_freed(&self) -> bool {
        self.gate.is_freed()
    }

    /// True when rows of this key go on, so that those that are to become rows are waited for.
    pub(crate) fn key_moves(&self, key: &Key) -> bool {
        self.gate.moves(key)
    }

    fn entered(&mut self, work: &Work) {
        self.bytes += work.message.weight();
        if work.origin != Origin::Fresh {
            self.row_bytes += work.message.weight();
        }
    }

    fn left(&mut self, works: &[Work]) {
        for work in works {
            self.bytes -= work.message.weight();
            if work.origin != Origin::Fresh {
                self.row_bytes -= work.message.weight();
            }
        }
    }

    fn key_of(&self, work: &Work) -> Option<Key> {
        if self.limits.keyed { work.message.ordering_key.clone() } else { None }
    }
}

/// What a row may cost before any was read.
const TYPICAL_ROW_BYTES_FIRST: usize = 256 << 10;

/// Rows that keep no order, of one key, that wait here for their turn.
const ASIDE_MAX: usize = 16;
/// Keys that are named to a look.
const CROWDED_MAX: usize = 256;

/// The time since `then`, or nothing when there was no such moment.
pub(crate) fn age(then: Option<Instant>, now: Instant) -> Option<Duration> {
    then.map(|then| now.saturating_duration_since(then))
}

#[cfg(test)]
mod tests;
