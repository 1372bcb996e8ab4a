//! Outcomes that wait to be written, and the batch that is being written.
//!
//! A batch that fails for its content twice is halved until the row that cannot be written stands alone. It is set aside
//! and its neighbours go on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A queue of outcomes of which at most one batch is being written.
pub(super) struct Tray<T> {
    pub(super) items: VecDeque<T>,
    pub(super) writing: Vec<T>,
    /// A write is under way, even when nobody wants to know any more what comes of it.
    busy: bool,
    batch_max: usize,
    failures: u32,
    retry_at: Option<Instant>,
    pub(super) aside: VecDeque<(Instant, T)>,
}

impl<T> Default for Tray<T> {
    fn default() -> Self {
        Tray {
            items: VecDeque::new(),
            writing: Vec::new(),
            busy: false,
            batch_max: BATCH_MAX,
            failures: 0,
            retry_at: None,
            aside: VecDeque::new(),
        }
    }
}

impl<T: Clone> Tray<T> {
    pub(super) fn len(&self) -> usize {
        self.items.len() + self.writing.len() + self.aside.len()
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        !self.busy && !self.items.is_empty() && self.retry_at.is_none_or(|at| at <= now)
    }

    pub(super) fn is_writing(&self) -> bool {
        self.busy
    }

    /// When what could not be written is to be tried again.
    pub(super) fn next_try(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.busy && !self.items.is_empty())
    }

    pub(super) fn bring_back(&mut self, now: Instant) {
        while self.aside.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, item)) = self.aside.pop_front() {
                self.items.push_back(item);
            }
        }
    }

    /// What was set aside is tried again at once.
    pub(super) fn try_aside(&mut self) {
        self.items.extend(self.aside.drain(..).map(|(_, item)| item));
    }

    /// What was set aside of these is tried again then.
    pub(super) fn try_at(&mut self, at: Instant, which: impl Fn(&T) -> bool) {
        for entry in self.aside.iter_mut().filter(|(_, item)| which(item)) {
            entry.0 = at;
        }
        self.aside.make_contiguous().sort_by_key(|(at, _)| *at);
    }

    /// Takes out what was set aside and is no longer wanted.
    pub(super) fn take_aside(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let (left, kept) = std::mem::take(&mut self.aside).into_iter().partition(|(_, item)| gone(item));
        self.aside = kept;
        let left: VecDeque<(Instant, T)> = left;
        left.into_iter().map(|(_, item)| item).collect()
    }

    /// Keeps these, also of what is being written: what comes of the others is no longer of interest.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.items.retain(&mut keep);
        let count = self.writing.len();
        self.writing.retain(&mut keep);
        if self.writing.len() < count {
            // Should it fail, that says nothing about what is left of it.
            self.failures = 0;
        }
        self.aside.retain(|(_, item)| keep(item));
    }

    /// What was set aside.
    pub(super) fn aside(&self) -> impl Iterator<Item = &T> {
        self.aside.iter().map(|(_, item)| item)
    }

    pub(super) fn begin(&mut self, fits: impl Fn(&T, &T) -> bool) -> Vec<T> {
        let mut count = 1;
        while count < self.items.len().min(self.batch_max) && fits(&self.items[0], &self.items[count]) {
            count += 1;
        }
        self.busy = true;
        self.writing = self.items.drain(..count.min(self.items.len())).collect();
        self.writing.clone()
    }

    pub(super) fn written(&mut self) -> Vec<T> {
        self.busy = false;
        self.failures = 0;
        self.retry_at = None;
        self.batch_max = (self.batch_max * 2).min(BATCH_MAX);
        std::mem::take(&mut self.writing)
    }

    /// Keeps the batch for another try. `content` says that the rows themselves may be at fault. Returns the one that is
    /// set aside, because it cannot be written even by itself.
    pub(super) fn failed(&mut self, content: bool, pause: Duration, now: Instant) -> Option<T> {
        self.busy = false;
        let batch = std::mem::take(&mut self.writing);
        self.failures = if content { self.failures + 1 } else { 0 };
        self.retry_at = Some(now + pause);
        if self.failures >= 2 {
            self.failures = 0;
            if batch.len() <= 1 {
                let alone = batch.first().cloned();
                self.aside.extend(batch.into_iter().map(|item| (now + ASIDE_PAUSE, item)));
                return alone;
            }
            self.batch_max = batch.len() / 2;
            self.retry_at = None;
        }
        for item in batch.into_iter().rev() {
            self.items.push_front(item);
        }
        None
    }
}

/// Outcomes in one write.
const BATCH_MAX: usize = 1_000;
/// How long an outcome that cannot be written rests.
const ASIDE_PAUSE: Duration = Duration::from_secs(30);
