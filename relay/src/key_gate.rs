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
//! - A key stays parked until the rows that were written for it are known to every look-up of waiting keys: the look-up
//!   has to begin after the commit. From then on the table answers instead of the gate.

use std::collections::{BTreeMap, HashMap, VecDeque};

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
}

#[derive(Debug)]
struct KeyState<W> {
    /// One message is out: started, or about to be.
    out: bool,
    /// Those behind it, by number.
    line: VecDeque<(i64, W)>,
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
        KeyGate { keys: HashMap::new(), leaving: VecDeque::new(), becoming: VecDeque::new(), in_line: 0, freed: false }
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
            state.out = true;
            return Admission::Go(work);
        }
        // Almost always the last; a late commit brings a lower number.
        let at = state.line.iter().rposition(|(s, _)| *s < seq).map_or(0, |i| i + 1);
        state.line.insert(at, (seq, work));
        self.in_line += 1;
        Admission::InLine
    }

    /// A waiting row asks to pass. Look number `look` said that it is the head of its key's rows, so only a message that
    /// is out stops it, or an older one whose row that look did not know. [`KeyGate::take_freed`] tells when that is over.
    pub(crate) fn admit_row(&mut self, key: &Key, seq: i64, look: u64) -> bool {
        let state = self.keys.entry(key.clone()).or_default();
        if state.out || state.knows_older(seq, look) {
            if state.out || state.waits_for_older(seq) {
                state.refused = true;
            } else {
                // All that is older has its row by now; only this look is too old to know.
                self.freed = true;
            }
            return false;
        }
        state.out = true;
        true
    }

    /// A message that failed, and has not become a row, asks to pass once more. It went first when it failed, and what came
    /// behind it cannot have passed it.
    pub(crate) fn admit_again(&mut self, key: &Key, seq: i64) -> bool {
        let Some(state) = self.keys.get_mut(key) else { return false };
        let is_next = !state.out && state.new.first_key_value() == Some((&seq, &None));
        state.out |= is_next;
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
        if !std::mem::replace(&mut state.out, true) {
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
        let next = state.line.pop_front();
        if next.is_some() {
            self.in_line -= 1;
        } else {
            state.out = false;
            state.moves = true;
            self.freed |= std::mem::take(&mut state.refused);
            self.forget_if_idle(key);
        }
        next.map(|(_, work)| work)
    }

    /// The message that was out must wait, or died and blocks its key. Returns those behind it: they must become rows.
    pub(crate) fn park(&mut self, key: &Key) -> Vec<W> {
        let state = self.keys.entry(key.clone()).or_default();
        state.out = false;
        state.parked = true;
        state.moves = false;
        self.freed |= std::mem::take(&mut state.refused);
        let line = std::mem::take(&mut state.line);
        self.in_line -= line.len();
        line.into_iter().map(|(_, work)| work).collect()
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
        self.keys.values_mut().flat_map(|state| std::mem::take(&mut state.line)).map(|(_, work)| work).collect()
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
            && state.leaving == 0
            && state.new.is_empty()
        {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        name.as_bytes().into()
    }

    #[test]
    fn one_message_of_a_key_is_out_and_the_rest_follow_in_order() {
        let mut gate = KeyGate::default();
        let k = key("k");
        assert_eq!(gate.admit(&k, 1, 1), Admission::Go(1));
        assert_eq!(gate.admit(&k, 3, 3), Admission::InLine);
        assert_eq!(gate.admit(&k, 2, 2), Admission::InLine, "a late commit takes its place");
        assert_eq!(gate.admit(&key("other"), 4, 4), Admission::Go(4));
        assert_eq!(gate.in_line(), 2);
        assert_eq!(gate.passed(&k), Some(2));
        assert_eq!(gate.passed(&k), Some(3));
        assert_eq!(gate.passed(&k), None);
        assert_eq!(gate.admit(&k, 5, 5), Admission::Go(5));
    }

    #[test]
    fn followers_of_a_failed_head_become_rows_until_a_look_up_knows_them() {
        let mut gate = KeyGate::default();
        let k = key("k");
        assert_eq!(gate.admit(&k, 1, 1), Admission::Go(1));
        assert_eq!(gate.admit(&k, 2, 2), Admission::InLine);
        assert_eq!(gate.park(&k), [2]);
        gate.writing(&k, None);
        gate.writing(&k, None);
        assert_eq!(gate.admit(&k, 3, 3), Admission::Parked(3));
        gate.written(&k, None, 7, 1);
        assert_eq!(gate.admit(&k, 3, 3), Admission::Parked(3), "one row is not written yet");
        gate.written(&k, None, 7, 1);
        gate.read_done(6);
        assert_eq!(gate.admit(&k, 3, 3), Admission::Parked(3), "look-up 6 began before the commit");
        gate.read_done(7);
        assert_eq!(gate.admit(&k, 3, 3), Admission::Go(3));
    }

    #[test]
    fn a_key_parked_again_meanwhile_stays_parked() {
        let mut gate = KeyGate::default();
        let k = key("k");
        gate.writing(&k, None);
        gate.written(&k, None, 2, 1);
        gate.writing(&k, None);
        gate.read_done(5);
        assert_eq!(gate.admit(&k, 9, ()), Admission::Parked(()));
        gate.written(&k, None, 6, 1);
        gate.read_done(6);
        assert_eq!(gate.admit(&k, 9, ()), Admission::Go(()));
    }

    #[test]
    fn a_row_waits_for_the_message_that_is_out() {
        let mut gate: KeyGate<()> = KeyGate::default();
        let k = key("k");
        assert!(gate.admit_row(&k, 1, 0));
        assert!(!gate.admit_row(&k, 1, 0));
        assert_eq!(gate.passed(&k), None);
        assert!(gate.admit_row(&k, 1, 0));
    }

    #[test]
    fn a_row_waits_for_an_older_message_whose_row_is_not_written_yet() {
        let mut gate: KeyGate<()> = KeyGate::default();
        let k = key("k");
        // 5 is still on its way to another destination, so its row comes later than the one of 6.
        gate.writing(&k, Some(5));
        gate.writing(&k, Some(6));
        gate.written(&k, Some(6), 1, 1);
        assert!(!gate.admit_row(&k, 6, 1), "5 would be overtaken");
        gate.writing(&k, Some(7));
        assert!(
            gate.admit_row(&k, 4, 1),
            "nothing older is on its way; a stream of younger ones must not stop the head"
        );
        gate.passed(&k);
        gate.written(&k, Some(5), 2, 3);
        assert!(!gate.admit_row(&k, 6, 2), "look 2 began before 5 was written and takes 6 for the head");
        gate.look_done(2);
        assert!(gate.admit_row(&k, 6, 3), "look 3 knows who is first");
    }

    #[test]
    fn a_row_that_was_refused_is_told_of_once_when_its_key_is_free() {
        let k = key("k");
        // For the one that is out.
        let mut gate: KeyGate<()> = KeyGate::default();
        assert_eq!(gate.admit(&k, 1, ()), Admission::Go(()));
        assert_eq!(gate.admit(&k, 2, ()), Admission::InLine);
        assert!(!gate.admit_row(&k, 5, 1) && !gate.take_freed());
        assert_eq!(gate.passed(&k), Some(()));
        assert!(!gate.is_freed(), "the next of its line is out");
        assert_eq!(gate.passed(&k), None);
        assert!(gate.is_freed() && gate.take_freed() && !gate.take_freed());
        assert!(gate.admit_row(&k, 5, 2));
        gate.passed(&k);
        assert!(!gate.is_freed(), "nobody was refused since");

        // For one that fails.
        assert_eq!(gate.admit(&k, 6, ()), Admission::Go(()));
        assert!(!gate.admit_row(&k, 5, 3));
        gate.park(&k);
        assert!(gate.take_freed());

        // For an older one without a row, however often it is looked at.
        gate.writing(&k, Some(6));
        for look in 4..9 {
            assert!(!gate.admit_row(&k, 7, look) && !gate.take_freed());
        }
        gate.written(&k, Some(6), 1, 10);
        assert!(gate.take_freed());
        assert!(!gate.admit_row(&k, 7, 9), "look 9 began before 6 was written");
        assert!(gate.take_freed(), "the next look knows");
        assert!(gate.admit_row(&k, 7, 10));
    }

    #[test]
    fn what_failed_and_has_no_row_yet_may_go_again_before_all_that_came_behind_it() {
        let mut gate: KeyGate<()> = KeyGate::default();
        let k = key("k");
        assert!(!gate.admit_again(&k, 1), "nobody knows it");
        assert_eq!(gate.admit(&k, 1, ()), Admission::Go(()));
        assert_eq!(gate.admit(&k, 2, ()), Admission::InLine);
        assert_eq!(gate.park(&k), [()]);
        gate.writing(&k, Some(1));
        gate.writing(&k, Some(2));
        gate.written(&k, Some(2), 1, 1);
        assert!(!gate.moves(&k) && !gate.admit_again(&k, 2), "1 goes first");
        assert!(gate.admit_again(&k, 1) && !gate.admit_again(&k, 1), "one at a time");
        assert!(!gate.admit_row(&k, 2, 1), "2 stands in a row by now");
        assert_eq!(gate.admit(&k, 3, ()), Admission::Parked(()));

        // It fails once more, and then it is through: it becomes no row.
        gate.park(&k);
        gate.writing(&k, Some(1));
        assert!(gate.admit_again(&k, 1));
        assert_eq!(gate.passed(&k), None);
        gate.written(&k, Some(1), 5, 5);
        assert!(gate.moves(&k) && !gate.admit_again(&k, 1));
        gate.read_done(5);
        gate.look_done(5);
        assert!(gate.admit_row(&k, 2, 5));
        gate.passed(&k);
        assert!(gate.keys.is_empty(), "{:?}", gate.keys);

        // Once it stands in a row it is the table's.
        gate.writing(&k, Some(8));
        gate.written(&k, Some(8), 6, 6);
        assert!(!gate.admit_again(&k, 8));
    }

    #[test]
    fn a_row_that_is_never_written_stops_nobody() {
        let mut gate: KeyGate<()> = KeyGate::default();
        let k = key("k");
        gate.writing(&k, Some(5));
        gate.written(&k, Some(5), 1, 1);
        // Its partition was lost while it was being written: the answer comes all the same.
        gate.written(&k, Some(5), 1, 1);
        gate.read_done(1);
        gate.look_done(1);
        assert!(gate.keys.is_empty());
    }

    #[test]
    fn a_line_is_cut_from_the_first_wanted_one_on_and_what_is_before_it_goes_on() {
        let mut gate = KeyGate::default();
        for name in ["a", "b"] {
            for seq in 1..=5 {
                let _ = gate.admit(&key(name), seq, (name, seq));
            }
        }
        let cut = gate.cut_lines(|work| matches!(work, ("a", 3 | 5)));
        assert_eq!(cut, [("a", 3), ("a", 4), ("a", 5)]);
        assert_eq!(gate.in_line(), 5);
        assert_eq!(gate.passed(&key("a")), Some(("a", 2)));
        assert_eq!(gate.passed(&key("a")), None);
        assert_eq!(gate.passed(&key("b")), Some(("b", 2)), "others stay as they are");
        assert!(gate.cut_lines(|work| work.0 == "a").is_empty());
    }

    #[test]
    fn idle_keys_cost_no_memory() {
        let mut gate = KeyGate::default();
        for n in 0..1000 {
            let k = key(&n.to_string());
            let _ = gate.admit(&k, n, ());
            gate.passed(&k);
            gate.writing(&k, Some(n));
            gate.written(&k, Some(n), 1, 1);
        }
        gate.read_done(1);
        gate.look_done(1);
        assert!(gate.keys.is_empty());
    }
}
