//! What the engine does with a partition, cut down to what membership can harm: read, attempt, settle, follow.

use super::tables::{is_plain, number};
use super::{Bug, PARTS, Scope};
use crate::membership::Ownership;
use crate::message::PartitionSet;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Engine {
    pub epochs: [Option<i64>; PARTS],
    pub leaving: PartitionSet,
    /// What membership is told.
    pub quiet: PartitionSet,
    pub parts: [Hands; PARTS],
    pub poll: Option<Poll>,
    pub winding_down: bool,
}

/// What is in hands of one partition. Messages are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Hands {
    /// What lies below the cursor has been read.
    pub read: bool,
    pub waiting: u8,
    pub running: Option<u8>,
    pub outcomes: u8,
    /// Being written, under this epoch.
    pub settling: Option<(u8, Option<i64>)>,
}

/// A poll under way, with what its snapshot showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Poll {
    pub asked: PartitionSet,
    pub rows: [u8; PARTS],
}

impl Hands {
    pub(super) fn in_hands(&self) -> u8 {
        let running = self.running.map_or(0, |m| 1 << m);
        self.waiting | running | self.outcomes | self.settling.map_or(0, |(messages, _)| messages)
    }
}

impl Engine {
    pub(super) fn owned(&self) -> PartitionSet {
        (0..PARTS).filter(|&n| self.epochs[n].is_some()).map(number).collect()
    }

    pub(super) fn kept(&self) -> PartitionSet {
        self.owned().without(self.leaving)
    }

    /// The same steps as in `engine::ownership`.
    pub(super) fn follow(&mut self, ownership: &Ownership, scope: &Scope) {
        if self.winding_down {
            return;
        }
        for n in 0..PARTS {
            let (was, is) = (self.epochs[n], ownership.epochs.get(&number(n)).copied());
            if was == is {
                continue;
            }
            let this: PartitionSet = [number(n)].into_iter().collect();
            if was.is_some() {
                self.evict(n);
                self.leaving = self.leaving.without(this);
                self.quiet = self.quiet.without(this);
                if let Some(poll) = &mut self.poll
                    && scope.bug != Some(Bug::PollOutlivesOwnership)
                {
                    poll.asked = poll.asked.without(this);
                }
            }
            if is.is_some() && scope.bug != Some(Bug::GainWithoutHole) {
                self.parts[n].read = false;
            }
            self.epochs[n] = is;
        }
        self.let_go(ownership.giving_up.and(self.owned()));
    }

    fn evict(&mut self, n: usize) {
        let hands = &mut self.parts[n];
        hands.waiting = 0;
        hands.running = None;
        if !is_plain(n) {
            hands.outcomes = 0;
        }
    }

    /// Starts nothing more of these; what has not started is dropped.
    pub(super) fn let_go(&mut self, leaving: PartitionSet) {
        for n in leaving.iter().map(usize::from).filter(|n| *n < PARTS) {
            self.parts[n].waiting = 0;
        }
        self.leaving = self.leaving.or(leaving);
    }

    /// Follows, and tells what has come to rest.
    pub(super) fn turn(&mut self, ownership: &Ownership, scope: &Scope) {
        self.follow(ownership, scope);
        self.quiet = self.now_quiet();
    }

    fn now_quiet(&self) -> PartitionSet {
        let busy: PartitionSet = (0..PARTS).filter(|&n| self.parts[n].in_hands() != 0).map(number).collect();
        self.leaving.without(busy)
    }

    /// Everything is written that there was to write.
    pub(super) fn is_done(&self) -> bool {
        self.parts.iter().all(|hands| hands.running.is_none() && hands.outcomes == 0 && hands.settling.is_none())
    }

    pub(super) fn poll(&mut self, tables: &super::tables::Tables) {
        let asked = self.kept();
        let rows = std::array::from_fn(|n| if asked.contains(number(n)) { tables.parts[n].messages } else { 0 });
        // The cursor passes what is another's.
        self.poll = Some(Poll { asked, rows });
        for hands in &mut self.parts {
            hands.read = true;
        }
    }

    pub(super) fn poll_answered(&mut self) {
        let Some(poll) = self.poll.take() else { return };
        for n in 0..PARTS {
            if self.kept().contains(number(n)) && poll.asked.contains(number(n)) {
                let hands = &mut self.parts[n];
                hands.waiting |= poll.rows[n] & !hands.in_hands();
            }
        }
    }

    /// Whether a partition without messages has been read makes no difference.
    pub(super) fn nothing_to_read(&mut self, n: usize) {
        self.parts[n].read = true;
        if let Some(poll) = &mut self.poll {
            poll.asked = poll.asked.without([number(n)].into_iter().filter(|_| poll.rows[n] == 0).collect());
            if poll.asked.is_empty() {
                self.poll = None;
            }
        }
    }

    /// Writes what there is to write, under the epoch that is believed in now.
    pub(super) fn settle(&mut self, n: usize) {
        let hands = &mut self.parts[n];
        if hands.outcomes != 0 && hands.settling.is_none() {
            hands.settling = Some((std::mem::take(&mut hands.outcomes), self.epochs[n]));
        }
    }

    /// The next message of partition `n` that may be attempted.
    pub(super) fn next(&self, n: usize) -> Option<u8> {
        let hands = &self.parts[n];
        let next = hands.waiting.trailing_zeros();
        (hands.waiting != 0 && hands.running.is_none() && self.kept().contains(number(n)))
            .then(|| u8::try_from(next).unwrap())
    }
}
