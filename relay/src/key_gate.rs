//! Keeps the messages of one key in order on their way to one destination.
//!
//! Pure bookkeeping over (key, number). The gate answers one question: may this message be attempted now, must it wait
//! in memory behind another of its key, or must it become a waiting row?
//!
//! Invariants
//! - At most one message of a key is out at a time.
//! - A key whose head failed is *parked*: everything that follows becomes a row, nothing of it waits in memory.
//! - A row never passes an older message of its key that is about to become a row: the table names the head among its rows
//!   only, and a message waits in memory until each of its destinations has an outcome. A look at the rows knows of it
//!   when it began after the commit.
//! - Rows that keep no order wait aside for their turn, a few of each key: they and the others of the key take turns.
//! - A key stays parked until the rows that were written for it are known to every look-up of waiting keys: the look-up
//!   has to begin after the commit. From then on the table answers instead of the gate.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::message::Key;

/// The gate of one destination. `W` is whatever the lane keeps for a message.
#[derive(Debug)]
pub(crate) struct KeyGate<W> {
    keys: HashMap<Key, KeyState<W>>,
    /// Keys that stop being parked once a look-up with this number, or a later one, has answered.
    leaving: VecDeque<(u64, Key)>,
    /// Messages that have become rows, once a look at the rows with this number, or a later one, has answered.
    becoming: VecDeque<(u64, Key, i64)>,
    in_line: usize,
    /// What a row was refused for is over.
    freed: bool,
    /// Keys with as many rows aside as there may be.
    crowded: HashSet<Key>,
}

#[derive(Debug)]
struct KeyState<W> {
    /// One message is out: started, or about to be.
    out: bool,
    /// Those behind it, by number.
    line: VecDeque<(i64, W)>,
    /// Rows behind it that keep no order.
    aside: VecDeque<W>,
    /// The one that is out keeps no order either.
    out_aside: bool,
    /// Rows of this key that are being written.
    unsettled: u32,
    /// Messages that become rows, by number: the first look that knows the row, once it is written.
    new: BTreeMap<i64, Option<u64>>,
    /// How many entries in `leaving` name this key.
    leaving: u32,
    /// A dead letter blocks the key and the table does not know yet, or a row is being written.
    parked: bool,
    /// A row was refused: for the one that is out, or for an older one that has no row yet.
    refused: bool,
    /// One of the key went through and none has failed since: it is the turn of those that are to become rows.
    moves: bool,
}

impl<W> Default for KeyState<W> {
    fn default() -> Self {
        KeyState {
            out: false,
            line: VecDeque::new(),
            aside: VecDeque::new(),
            out_aside: false,
            unsettled: 0,
            new: BTreeMap::new(),
            leaving: 0,
            parked: false,
            refused: false,
            moves: false,
        }
    }
}

impl<W> KeyState<W> {
    /// True when an older message becomes a row that look number `look` cannot have seen.
    fn knows_older(&self, seq: i64, look: u64) -> bool {
        self.new.range(..seq).any(|(_, known)| known.is_none_or(|first| look < first))
    }

    /// One goes out; with or without order.
    fn goes(&mut self, aside: bool) {
        (self.out, self.out_aside) = (true, aside);
    }

    /// The next one behind the one that was out. Those that keep an order and those that keep none take turns.
    fn take_next(&mut self) -> Option<W> {
        let is_turn_of_aside = !self.out_aside || self.line.is_empty();
        let aside = if is_turn_of_aside { self.aside.pop_front() } else { None };
        self.out_aside = aside.is_some();
        aside.or_else(|| self.line.pop_front().map(|(_, work)| work))
    }

    /// All that are behind it.
    fn take_all(&mut self) -> impl Iterator<Item = W> + use<W> {
        let line = std::mem::take(&mut self.line).into_iter().map(|(_, work)| work);
        line.chain(std::mem::take(&mut self.aside))
    }

    /// True when an older message becomes a row that is not written yet.
    fn waits_for_older(&self, seq: i64) -> bool {
        self.new.range(..seq).any(|(_, known)| known.is_none())
    }
}

/// The gate's answer to a message that asks to pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission<W> {
    /// It may be attempted.
    Go(W),
    /// It waits in memory; the gate keeps it.
    InLine,
    /// Its key is parked: it must become a waiting row.
    Parked(W),
}

impl<W> Default for KeyGate<W> {
    fn default() -> Self {
        KeyGate {
            keys: HashMap::new(),
            leaving: VecDeque::new(),
            becoming: VecDeque::new(),
            in_line: 0,
            freed: false,
            crowded: HashSet::new(),
        }
    }
}

impl<W> KeyGate<W> {
    /// A message read from the feed asks to pass.
    pub(crate) fn admit(&mut self, key: &Key, seq: i64, work: W) -> Admission<W> {
        let state = self.keys.entry(key.clone()).or_default();
        if state.parked {
            return Admission::Parked(work);
        }
        if !state.out {
            state.goes(false);
            return Admission::Go(work);
        }
        // Almost always the last; a late commit brings a lower number.
        let at = state.line.iter().rposition(|(s, _)| *s < seq).map_or(0, |i| i + 1);
        state.line.insert(at, (seq, work));
        self.in_line += 1;
        Admission::InLine
    }

    /// A waiting row asks to pass. Look number `look` said that it is the head of its key's rows, so only a message that
    /// is out stops it, or an older one whose row that look did not know. Parked: not now, and [`KeyGate::take_freed`] tells
    /// when that is over.
    pub(crate) fn admit_row(&mut self, key: &Key, seq: i64, look: u64, work: W) -> Admission<W> {
        let state = self.keys.entry(key.clone()).or_default();
        let knows_older = state.knows_older(seq, look);
        if knows_older && !state.out && !state.waits_for_older(seq) {
            // All that is older has its row by now; only this look is too old to know.
            self.freed = true;
            return Admission::Parked(work);
        }
        if knows_older || state.out && !(state.out_aside && state.line.is_empty()) {
            state.refused = true;
            return Admission::Parked(work);
        }
        // Behind one that keeps no order it is next in line.
        self.line_up(key, seq, look, work)
    }

    /// A waiting row that keeps no order asks to pass. It waits for nothing but the one that is out: never are two of a key
    /// out at a time. Parked: so many wait already; [`KeyGate::crowded`] names its key until there is room.
    pub(crate) fn admit_aside(&mut self, key: &Key, max: usize, work: W) -> Admission<W> {
        let state = self.keys.entry(key.clone()).or_default();
        if !state.out {
            state.goes(true);
            return Admission::Go(work);
        }
        if state.aside.len() >= max {
            self.crowded.insert(key.clone());
            return Admission::Parked(work);
        }
        state.aside.push_back(work);
        self.in_line += 1;
        Admission::InLine
    }

    /// Keys whose rows that keep no order need not be looked for.
    pub(crate) fn crowded(&self) -> impl Iterator<Item = &Key> {
        self.crowded.iter()
    }

    /// A message that failed, and has not become a row, asks to pass once more. It went first when it failed, and what came
    /// behind it cannot have passed it.
    pub(crate) fn admit_again(&mut self, key: &Key, seq: i64) -> bool {
        let Some(state) = self.keys.get_mut(key) else { return false };
        let is_next = !state.out && state.new.first_key_value() == Some((&seq, &None));
        if is_next {
            state.goes(false);
        }
        is_next
    }

    /// True when a row that was refused may pass now; says so once.
    pub(crate) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// The same without forgetting it.
    pub(crate) fn is_freed(&self) -> bool {
        self.freed
    }

    /// True when the key goes on: one of it went through since the last one failed.
    pub(crate) fn moves(&self, key: &Key) -> bool {
        self.keys.get(key).is_some_and(|state| state.moves)
    }

    /// A waiting row asks for its place behind another row of its key: look number `look` said that it comes next. With
    /// nobody out it goes itself. Parked: not now, an older one becomes a row that look did not know.
    pub(crate) fn line_up(&mut self, key: &Key, seq: i64, look: u64, work: W) -> Admission<W> {
        let state = self.keys.entry(key.clone()).or_default();
        if state.knows_older(seq, look) {
            return Admission::Parked(work);
        }
        if !state.out {
            state.goes(false);
            return Admission::Go(work);
        }
        state.line.push_back((seq, work));
        self.in_line += 1;
        Admission::InLine
    }

    /// Those of this key that wait in memory, in order.
    pub(crate) fn line_of(&mut self, key: &Key) -> impl Iterator<Item = &mut W> {
        self.keys.get_mut(key).into_iter().flat_map(|state| state.line.iter_mut().map(|(_, work)| work))
    }

    /// How many of this key wait in memory.
    pub(crate) fn in_line_of(&self, key: &Key) -> usize {
        self.keys.get(key).map_or(0, |state| state.line.len())
    }

    /// The message that was out is through. Returns the next of its key, which is out from now on.
    pub(crate) fn passed(&mut self, key: &Key) -> Option<W> {
        let state = self.keys.get_mut(key)?;
        let next = state.take_next();
        if next.is_some() {
            self.in_line -= 1;
        } else {
            state.out = false;
            state.moves = true;
        }
        if next.is_none() || state.out_aside {
            self.freed |= std::mem::take(&mut state.refused);
        }
        if state.aside.len() <= ASIDE_MIN {
            self.freed |= self.crowded.remove(key);
        }
        self.forget_if_idle(key);
        next
    }

    /// The message that was out must wait, or died and blocks its key. Returns those behind it: they must become rows.
    pub(crate) fn park(&mut self, key: &Key) -> Vec<W> {
        let state = self.keys.entry(key.clone()).or_default();
        state.out = false;
        state.parked = true;
        state.moves = false;
        self.freed |= std::mem::take(&mut state.refused) | self.crowded.remove(key);
        let behind: Vec<W> = state.take_all().collect();
        self.in_line -= behind.len();
        behind
    }

    /// Parks a key none of whose messages is out (the table says that rows of it wait).
    pub(crate) fn is_parked(&self, key: &Key) -> bool {
        self.keys.get(key).is_some_and(|state| state.parked)
    }

    /// A row of the key (a waiting one or a dead letter that blocks it) is about to be written. `new` is the number of a
    /// message that has no row yet.
    pub(crate) fn writing(&mut self, key: &Key, new: Option<i64>) {
        let state = self.keys.entry(key.clone()).or_default();
        state.parked = true;
        if new.is_none_or(|seq| state.new.insert(seq, None) != Some(None)) {
            state.unsettled += 1;
        }
    }

    /// That row was written, or refused, or never will be. Look-ups numbered `next_read` and later know it, and so do
    /// looks at the rows numbered `next_look` and later.
    pub(crate) fn written(&mut self, key: &Key, new: Option<i64>, next_read: u64, next_look: u64) {
        let Some(state) = self.keys.get_mut(key) else { return };
        if let Some(seq) = new {
            let Some(known @ None) = state.new.get_mut(&seq) else { return };
            *known = Some(next_look);
            self.freed |= std::mem::take(&mut state.refused);
            self.becoming.push_back((next_look, key.clone(), seq));
        }
        state.unsettled = state.unsettled.saturating_sub(1);
        if state.unsettled == 0 {
            state.leaving += 1;
            self.leaving.push_back((next_read, key.clone()));
        }
    }

    /// Look-up number `read` has answered and its answer was acted upon.
    pub(crate) fn read_done(&mut self, read: u64) {
        while self.leaving.front().is_some_and(|(at, _)| *at <= read) {
            let Some((_, key)) = self.leaving.pop_front() else { return };
            if let Some(state) = self.keys.get_mut(&key) {
                state.leaving -= 1;
                if state.leaving == 0 && state.unsettled == 0 {
                    state.parked = false;
                }
            }
            self.forget_if_idle(&key);
        }
    }

    /// Look number `look` at the rows has answered and its answer was acted upon.
    pub(crate) fn look_done(&mut self, look: u64) {
        while self.becoming.front().is_some_and(|(at, ..)| *at <= look) {
            let Some((at, key, seq)) = self.becoming.pop_front() else { return };
            if let Some(state) = self.keys.get_mut(&key)
                && state.new.get(&seq) == Some(&Some(at))
            {
                state.new.remove(&seq);
            }
            self.forget_if_idle(&key);
        }
    }

    /// Takes out everything that waits in memory, in order within each key; what is out stays out.
    pub(crate) fn drain_lines(&mut self) -> Vec<W> {
        self.in_line = 0;
        self.freed |= !self.crowded.is_empty();
        self.crowded.clear();
        self.keys.values_mut().flat_map(KeyState::take_all).collect()
    }

    /// Takes out those that wait in memory from the first wanted one of each key on: what becomes a row is followed by rows
    /// only. What comes before it goes on.
    pub(crate) fn cut_lines(&mut self, is_wanted: impl Fn(&W) -> bool) -> Vec<W> {
        let mut cut = Vec::new();
        for state in self.keys.values_mut() {
            if let Some(at) = state.line.iter().position(|(_, work)| is_wanted(work)) {
                cut.extend(state.line.drain(at..).map(|(_, work)| work));
            }
        }
        self.in_line -= cut.len();
        cut
    }

    /// How many wait in memory behind others.
    pub(crate) fn in_line(&self) -> usize {
        self.in_line
    }

    fn forget_if_idle(&mut self, key: &Key) {
        if let Some(state) = self.keys.get(key)
            && !state.out
            && !state.parked
            && state.line.is_empty()
            && state.aside.is_empty()
            && state.leaving == 0
            && state.new.is_empty()
        {
            self.keys.remove(key);
        }
    }
}

/// With so few rows aside the next ones are looked for.
const ASIDE_MIN: usize = 4;

#[cfg(test)]
mod tests;
