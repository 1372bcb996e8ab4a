//! Works off the rows of a key without looking for each of them.
//!
//! A row of a key is promoted in the transaction that removes the one before it, and then found by a look: two round
//! trips for each. A key that gathered thousands of rows while its destination was down, and goes on getting more, would
//! never be done with that. So once two rows of a key went through, those that follow are read ahead and wait in line;
//! each starts when the one before it is through, as fresh messages of a key do, and is settled after it.
//!
//! Invariants
//! - What is in line follows without a gap; the first that is not due, or not ours, or not certain ends the line. Rows of
//!   the key before them that are not in hands (a late commit, or what a lane let go of) end it too: they go first.
//! - When one of them has to wait or dies in the way, nothing behind it is attempted: it is let go of and read again.
//! - Bounded: a few keys in one look, a few rows of each.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::due::{DueAnswer, Found};
use super::{Answer, Engine};
use crate::message::{Key, Seq, WaitingDelivery};
use crate::store::{self, KeyAfter};

/// The keys whose rows are worked off.
#[derive(Debug, Default)]
pub(super) struct Followers {
    chains: HashMap<(usize, Key), Chain>,
    wanted: VecDeque<(usize, Key)>,
    /// The last look was for followers: other looks take turns with these.
    had_turn: bool,
}

#[derive(Debug)]
struct Chain {
    /// The highest number that went through or is in line.
    last: Seq,
    asked: bool,
}

impl Followers {
    /// A row of the key is through, with so many in line behind it.
    fn through(&mut self, lane: usize, key: &Key, seq: Seq, in_line: usize) {
        let name = (lane, key.clone());
        let Some(chain) = self.chains.get_mut(&name) else {
            // One alone is no line: it is only remembered, and most keys have no more.
            if self.chains.len() >= CHAINS_MAX {
                self.chains.retain(|_, chain| chain.asked);
            }
            self.chains.insert(name, Chain { last: seq, asked: false });
            return;
        };
        chain.last = chain.last.max(seq);
        if !chain.asked && in_line <= IN_LINE_MIN {
            chain.asked = true;
            self.wanted.push_back(name);
        }
    }

    /// A row of the key stays: nothing follows.
    fn broken(&mut self, lane: usize, key: &Key) {
        self.chains.remove(&(lane, key.clone()));
    }

    /// The lane let go of what waited in it: what follows is not known any more.
    pub(super) fn lane_cleared(&mut self, lane: usize) {
        self.chains.retain(|(of, _), _| *of != lane);
    }

    /// Which rows to look for now.
    fn take_wanted(&mut self) -> Vec<(usize, Key, Seq)> {
        let mut wanted = Vec::new();
        while wanted.len() < KEYS_MAX
            && let Some((lane, key)) = self.wanted.pop_front()
        {
            if let Some(chain) = self.chains.get(&(lane, key.clone())) {
                wanted.push((lane, key, chain.last));
            }
        }
        wanted
    }

    /// True when a look is wanted, and whether it is its turn when another look is due as well.
    pub(super) fn is_wanted(&self, other_is_due: bool) -> bool {
        let must_wait = self.had_turn && other_is_due;
        !self.wanted.is_empty() && !must_wait
    }

    /// These were looked for in vain: ordinary looks find their rows.
    pub(super) fn give_up(&mut self, asked: &[(usize, Key)]) {
        for (lane, key) in asked {
            self.broken(*lane, key);
        }
    }

    /// Another look begins.
    pub(super) fn other_look(&mut self) {
        self.had_turn = false;
    }
}

impl Engine {
    /// A waiting row of a key went through.
    pub(super) fn row_through(&mut self, lane: usize, key: &Key, seq: Seq) {
        let in_line = self.lanes[lane].lane.in_line_of(key);
        self.due.followers.through(lane, key, seq, in_line);
    }

    /// A waiting row of a key stays.
    pub(super) fn row_stays(&mut self, lane: usize, key: &Key) {
        self.due.followers.broken(lane, key);
    }

    pub(super) fn start_followers(&mut self) {
        let asked = self.due.followers.take_wanted();
        self.due.followers.had_turn = true;
        if asked.is_empty() {
            return;
        }
        let number = self.due.begin_look();
        let limit = asked.iter().map(|(lane, ..)| self.lanes[*lane].lane.followers_to_ask(asked.len())).min();
        let limit = limit.unwrap_or(1).min(ROWS_MAX);
        let keys: Vec<KeyAfter> = asked
            .iter()
            .map(|(lane, key, after)| KeyAfter {
                destination: self.lanes[*lane].served.name.to_string(),
                key: key.clone(),
                after: *after,
            })
            .collect();
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::spawn(async move {
            let result = store.delivery_followers(&keys, u32::try_from(limit).unwrap_or(1), None).await;
            let asked = asked.into_iter().map(|(lane, key, _)| (lane, key)).collect();
            let _ = answers.send(Answer::Due(DueAnswer { number, found: Found::Followers { asked, limit, result } }));
        });
    }

    pub(super) fn followers_found(
        &mut self,
        number: u64,
        asked: Vec<(usize, Key)>,
        limit: usize,
        found: store::Followers,
        now: Instant,
    ) {
        let store::Followers { rows, earlier } = found;
        self.rows_weighed(&rows);
        let mut of_key: HashMap<(usize, Key), Vec<WaitingDelivery>> = HashMap::new();
        for row in rows {
            let lane = self.lane_by_name.get(&row.destination).copied();
            if let (Some(lane), Some(key)) = (lane, row.message.ordering_key.clone()) {
                of_key.entry((lane, key)).or_default().push(row);
            }
        }
        for ((lane, key), earlier) in asked.into_iter().zip(earlier) {
            // One that somebody else's transaction left behind goes first, and nothing here may pass it.
            if earlier.len() >= store::EARLIER_MAX || !earlier.iter().all(|id| self.due.holds(*id)) {
                self.due.followers.broken(lane, &key);
                continue;
            }
            let rows = of_key.remove(&(lane, key.clone())).unwrap_or_default();
            let is_all = rows.len() < limit;
            // Since the question was asked one of them may have had to stay.
            let Some(chain) = self.due.followers.chains.get_mut(&(lane, key.clone())) else { continue };
            chain.asked = false;
            let last = chain.last;
            match self.line_up(lane, rows, number, now) {
                Some(reached) if !is_all => {
                    if let Some(chain) = self.due.followers.chains.get_mut(&(lane, key)) {
                        chain.last = last.max(reached);
                    }
                }
                _ => self.due.followers.broken(lane, &key),
            }
        }
    }

    /// Puts the rows of a key in line; returns how far they reach, or nothing when one could not be taken.
    fn line_up(&mut self, lane: usize, rows: Vec<WaitingDelivery>, number: u64, now: Instant) -> Option<Seq> {
        let mut reached = Seq::MIN;
        for row in rows {
            let seq = row.message.seq;
            // In the lane already, or settled and seen by an older snapshot.
            if !self.due.holds(row.id) && !self.take_follower(lane, row, number, now) {
                return None;
            }
            reached = seq;
        }
        Some(reached)
    }

    fn take_follower(&mut self, lane: usize, row: WaitingDelivery, number: u64, now: Instant) -> bool {
        let state = &self.lanes[lane];
        let is_full = state.lane.is_full() || state.lane.is_full_of_rows();
        let has_room = !state.lane.is_closed() && !is_full && state.served.limits.keyed;
        if !has_room || !self.kept_since_look().contains(row.message.partition_no) || !self.is_certain(&row, None) {
            return false;
        }
        let (id, work) = (row.id, self.work(lane, row, now));
        let partition_no = work.message.partition_no;
        if !self.lanes[lane].lane.offer_follower(work, number) {
            return false;
        }
        self.due.hold(id, partition_no, lane);
        true
    }
}

/// Keys in one look.
const KEYS_MAX: usize = 8;
/// Rows of one key in one look.
const ROWS_MAX: usize = 16;
/// With so few in line the next ones are looked for.
const IN_LINE_MIN: usize = 4;
/// Keys that are remembered.
const CHAINS_MAX: usize = 1_024;
