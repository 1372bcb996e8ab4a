//! What the relay has read and not yet settled.
//!
//! Pure bookkeeping. A message is in hands from the moment it was read until a read that *began* after its settle
//! committed has answered: an older snapshot may still show the row, and such a row must be ignored.
//!
//! Invariants
//! - A number in hands is never handed out a second time.
//! - A message is concluded when each of its destinations has an outcome, and only then.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Message, MessageId, PartitionSet, Seq};
use crate::store::{DueIn, MessageMove, Remains, UnitMove, Waits};

/// The messages in hands.
#[derive(Debug, Default)]
pub(crate) struct Hands {
    held: HashMap<Seq, Held>,
    /// Settled numbers and the first read that cannot show them any more, in that order.
    leaving: VecDeque<(u64, Seq)>,
    open: usize,
    bytes: usize,
    /// Messages of which something waits to be written.
    kept_back: usize,
}

#[derive(Debug)]
struct Held {
    id: MessageId,
    /// Gone once settled; only the number is kept then.
    message: Option<Arc<Message>>,
    /// Destinations without an outcome.
    undecided: usize,
    destinations: usize,
    /// What remains where, and since when that is known.
    units: Vec<(UnitMove, Instant)>,
    routes_version: i64,
    /// How many reads of the routes had begun when it was taken.
    routes_read: u64,
    leaves_at: u64,
    /// A read brought it again while it was held.
    seen_again: bool,
}

impl Held {
    /// True while an outcome waits to be written for destinations that have none.
    fn is_kept_back(&self) -> bool {
        self.message.is_some() && self.undecided > 0 && !self.units.is_empty()
    }
}

/// A message whose destinations all have an outcome.
#[derive(Debug)]
pub(crate) enum Concluded {
    /// Every destination has it.
    Delivered {
        /// Its number.
        seq: Seq,
        /// Its id.
        id: MessageId,
        /// The routes it was routed by.
        routes_version: i64,
    },
    /// Something remains.
    Moves(MessageMove),
}

impl Hands {
    /// True when a row with this number must be ignored.
    pub(crate) fn contains(&self, seq: Seq) -> bool {
        self.held.contains_key(&seq)
    }

    /// A read brought a held number again. Should its settle be undone by a crash of the database, only another look
    /// finds it: [`Hands::read_done`] asks for one.
    pub(crate) fn seen_again(&mut self, seq: Seq) {
        if let Some(held) = self.held.get_mut(&seq) {
            held.seen_again = true;
        }
    }

    /// Takes a message that has `destinations` outcomes to come (at least one).
    pub(crate) fn take(&mut self, message: &Arc<Message>, destinations: usize, routes_version: i64, routes_read: u64) {
        debug_assert!(destinations > 0);
        self.open += 1;
        self.bytes += message.weight();
        self.held.insert(
            message.seq,
            Held {
                id: message.id,
                message: Some(message.clone()),
                undecided: destinations,
                destinations,
                units: Vec::new(),
                routes_version,
                routes_read,
                leaves_at: u64::MAX,
                seen_again: false,
            },
        );
    }

    /// One destination has its outcome; `None` is delivered. Returns the message when it was the last.
    ///
    /// The others may have taken long: a pause counts from when it was decided upon, not from now.
    pub(crate) fn conclude(
        &mut self,
        seq: Seq,
        destination: &str,
        remains: Option<Remains>,
        now: Instant,
    ) -> Option<Concluded> {
        let held = self.held.get_mut(&seq)?;
        let was_kept_back = held.is_kept_back();
        let message = held.message.as_ref()?;
        if let Some(remains) = remains {
            held.units.push((UnitMove { destination: destination.to_owned(), remains }, now));
        }
        held.undecided = held.undecided.saturating_sub(1);
        self.kept_back -= usize::from(was_kept_back);
        self.kept_back += usize::from(held.is_kept_back());
        if held.undecided > 0 {
            return None;
        }
        if held.units.is_empty() && !message.tracked {
            return Some(Concluded::Delivered { seq, id: held.id, routes_version: held.routes_version });
        }
        Some(Concluded::Moves(MessageMove {
            seq,
            id: held.id,
            partition_no: message.partition_no,
            ordering_key: message.ordering_key.clone(),
            units: std::mem::take(&mut held.units).into_iter().map(|(unit, since)| aged(unit, now - since)).collect(),
        }))
    }

    /// The message, while it is not settled.
    pub(crate) fn message(&self, seq: Seq) -> Option<&Arc<Message>> {
        self.held.get(&seq)?.message.as_ref()
    }

    /// The routes it was routed by, while it is not settled.
    pub(crate) fn routes_version(&self, seq: Seq) -> Option<i64> {
        Some(self.held.get(&seq)?.routes_version)
    }

    /// The routes anything that is not settled was routed by; each may come more than once.
    pub(crate) fn routes_versions(&self) -> impl Iterator<Item = i64> {
        self.held.values().filter(|held| held.message.is_some()).map(|held| held.routes_version)
    }

    /// The routes it was routed by, when it has one destination only.
    pub(crate) fn sole_routes_version(&self, seq: Seq) -> Option<i64> {
        self.held.get(&seq).filter(|held| held.destinations == 1).map(|held| held.routes_version)
    }

    /// How many reads of the routes had begun when it was taken; the next one knows every destination that was there
    /// when it was committed.
    pub(crate) fn routes_read(&self, seq: Seq) -> Option<u64> {
        Some(self.held.get(&seq)?.routes_read)
    }

    /// The routes have changed since it was routed: only a read of them that begins after the first `routes_read` knows how.
    pub(crate) fn routes_outdated(&mut self, seq: Seq, routes_read: u64) {
        if let Some(held) = self.held.get_mut(&seq) {
            held.routes_read = routes_read;
        }
    }

    /// True when some of its destinations have an outcome and some have not.
    pub(crate) fn is_half_done(&self, seq: Seq) -> bool {
        self.held.get(&seq).is_some_and(|held| held.undecided > 0 && held.undecided < held.destinations)
    }

    /// What has been decided upon, and since when, and waits to be written because another destination has no outcome.
    pub(crate) fn kept_back(&self) -> impl Iterator<Item = (&Arc<Message>, &UnitMove, Instant)> {
        let open = self.held.values().filter(|held| held.is_kept_back());
        let open = open.filter_map(|held| Some((held.message.as_ref()?, &held.units)));
        open.flat_map(|(message, units)| units.iter().map(move |(unit, since)| (message, unit, *since)))
    }

    /// True while there is any of that.
    pub(crate) fn keeps_back(&self) -> bool {
        self.kept_back > 0
    }

    /// A destination whose outcome is kept back has none after all: its delivery is tried again from memory. Returns what
    /// it was to wait with, and since when.
    pub(crate) fn reopen(&mut self, seq: Seq, destination: &str) -> Option<(Waits, Instant)> {
        let held = self.held.get_mut(&seq).filter(|held| held.is_kept_back())?;
        let waits = |unit: &UnitMove| unit.destination == destination && matches!(unit.remains, Remains::Waits(_));
        let at = held.units.iter().position(|(unit, _)| waits(unit))?;
        let (unit, since) = held.units.remove(at);
        held.undecided += 1;
        self.kept_back -= usize::from(!held.is_kept_back());
        match unit.remains {
            Remains::Waits(waits) => Some((waits, since)),
            Remains::Dies(_) => None,
        }
    }

    /// Its settle committed; reads numbered `next_read` and later cannot show it.
    pub(crate) fn settled(&mut self, seq: Seq, next_read: u64) {
        if let Some(held) = self.held.get_mut(&seq) {
            self.kept_back -= usize::from(held.is_kept_back());
            if let Some(message) = held.message.take() {
                self.open -= 1;
                self.bytes -= message.weight();
            }
            held.leaves_at = next_read;
            self.leaving.push_back((next_read, seq));
        }
    }

    /// It leaves without being settled: refused, or its partition was lost.
    pub(crate) fn drop_held(&mut self, seq: Seq) {
        let Some(held) = self.held.remove(&seq) else { return };
        self.kept_back -= usize::from(held.is_kept_back());
        if let Some(message) = held.message {
            self.open -= 1;
            self.bytes -= message.weight();
        }
    }

    /// Numbers of unsettled messages in these partitions.
    pub(crate) fn in_partitions(&self, partitions: PartitionSet) -> Vec<Seq> {
        self.held
            .iter()
            .filter(|(_, held)| held.message.as_ref().is_some_and(|m| partitions.contains(m.partition_no)))
            .map(|(seq, _)| *seq)
            .collect()
    }

    /// The partitions of unsettled messages.
    pub(crate) fn partitions(&self) -> PartitionSet {
        self.held.values().filter_map(|held| held.message.as_ref()).map(|message| message.partition_no).collect()
    }

    /// Read number `read` has answered. Returns numbers that should be looked for once more.
    pub(crate) fn read_done(&mut self, read: u64) -> Vec<Seq> {
        let mut look_again = Vec::new();
        while let Some((at, seq)) = self.leaving.front().copied()
            && at <= read
        {
            self.leaving.pop_front();
            if self.held.get(&seq).is_some_and(|held| held.leaves_at <= read)
                && let Some(held) = self.held.remove(&seq)
                && held.seen_again
            {
                look_again.push(seq);
            }
        }
        look_again
    }

    /// Messages not settled yet.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The unit as it is after this time has passed.
fn aged(mut unit: UnitMove, passed: Duration) -> UnitMove {
    let first_attempt_age = match &mut unit.remains {
        Remains::Waits(waits) => {
            if let DueIn::Pause(pause) = &mut waits.due {
                *pause = pause.saturating_sub(passed);
            }
            &mut waits.first_attempt_age
        }
        Remains::Dies(dies) => &mut dies.first_attempt_age,
    };
    if let Some(age) = first_attempt_age {
        *age += passed;
    }
    unit
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message;
    use crate::outcome::waits;
    use crate::store::{State, Waits};

    fn message(seq: Seq) -> Arc<Message> {
        Arc::new(Message { payload: Bytes::from_static(b"12345678"), ..message::example(seq) })
    }

    #[test]
    fn a_settled_number_stays_until_a_read_that_began_afterwards() {
        let mut hands = Hands::default();
        hands.take(&message(7), 1, 0, 0);
        assert!(matches!(hands.conclude(7, "a", None, Instant::now()), Some(Concluded::Delivered { seq: 7, .. })));
        hands.settled(7, 4);
        assert_eq!((hands.open(), hands.bytes()), (0, 0));
        hands.read_done(3);
        assert!(hands.contains(7));
        hands.read_done(4);
        assert!(!hands.contains(7));
    }

    #[test]
    fn a_message_is_concluded_when_its_last_destination_is() {
        let mut hands = Hands::default();
        hands.take(&message(1), 2, 0, 0);
        assert!(hands.conclude(1, "a", None, Instant::now()).is_none());
        let remains = waits(State::Overflow, true, DueIn::DeliverAt);
        let Some(Concluded::Moves(moved)) = hands.conclude(1, "b", Some(remains), Instant::now()) else {
            panic!("something remains for `b`");
        };
        assert_eq!(moved.units.len(), 1);
        assert_eq!(moved.units[0].destination, "b");
    }

    #[test]
    fn only_the_sole_destination_of_a_message_may_end_it() {
        let mut hands = Hands::default();
        hands.take(&message(1), 1, 5, 0);
        hands.take(&message(2), 2, 5, 0);
        assert_eq!((hands.sole_routes_version(1), hands.sole_routes_version(2)), (Some(5), None));
    }

    #[test]
    fn a_number_that_turned_up_while_held_is_looked_for_once_more() {
        let mut hands = Hands::default();
        hands.take(&message(1), 1, 0, 0);
        hands.take(&message(2), 1, 0, 0);
        hands.seen_again(2);
        hands.settled(1, 3);
        hands.settled(2, 3);
        assert_eq!(hands.read_done(3), [2]);
        assert!(!hands.contains(2));
    }

    #[test]
    fn what_was_taken_again_is_not_released_by_an_older_settle() {
        let mut hands = Hands::default();
        hands.take(&message(1), 1, 0, 0);
        hands.settled(1, 2);
        hands.drop_held(1);
        hands.take(&message(1), 1, 0, 0);
        hands.read_done(9);
        assert!(hands.contains(1), "the new one is not settled");
    }

    #[test]
    fn what_is_kept_back_may_be_decided_anew_as_long_as_another_keeps_it() {
        let (mut hands, now) = (Hands::default(), Instant::now());
        let pause = || Some(waits(State::Retry, true, DueIn::Pause(Duration::from_secs(1))));
        hands.take(&message(1), 3, 0, 0);
        assert!(hands.conclude(1, "a", None, now).is_none());
        assert!(!hands.keeps_back(), "nothing of it waits");
        assert!(hands.conclude(1, "b", pause(), now).is_none());
        let kept: Vec<_> =
            hands.kept_back().map(|(message, unit, since)| (message.seq, &*unit.destination, since)).collect();
        assert_eq!((kept, hands.keeps_back()), (vec![(1, "b", now)], true));
        assert!(hands.reopen(1, "a").is_none() && hands.reopen(2, "b").is_none());
        let (waits, since) = hands.reopen(1, "b").unwrap();
        assert_eq!((waits.due, since, hands.keeps_back()), (DueIn::Pause(Duration::from_secs(1)), now, false));
        assert!(hands.conclude(1, "c", None, now).is_none(), "`b` has no outcome any more");
        assert!(matches!(hands.conclude(1, "b", None, now), Some(Concluded::Delivered { seq: 1, .. })));

        for (seq, leave) in [(2, Hands::drop_held as fn(&mut Hands, Seq)), (3, |hands, seq| hands.settled(seq, 1))] {
            hands.take(&message(seq), 2, 0, 0);
            assert!(hands.conclude(seq, "a", pause(), now).is_none());
            leave(&mut hands, seq);
            assert!(!hands.keeps_back() && hands.reopen(seq, "a").is_none());
        }
    }

    #[test]
    fn a_pause_counts_from_the_failure_however_long_the_others_take() {
        let (mut hands, failed_at) = (Hands::default(), Instant::now());
        hands.take(&message(1), 2, 0, 0);
        let pause = DueIn::Pause(Duration::from_secs(10));
        let Remains::Waits(remains) = waits(State::Retry, true, pause) else { panic!("it waits") };
        let remains = Waits { first_attempt_age: Some(Duration::from_secs(1)), ..remains };
        assert!(hands.conclude(1, "a", Some(Remains::Waits(remains)), failed_at).is_none());
        let Some(Concluded::Moves(moved)) = hands.conclude(1, "b", None, failed_at + Duration::from_secs(4)) else {
            panic!("something remains for `a`");
        };
        let Remains::Waits(waits) = &moved.units[0].remains else { panic!("it waits") };
        assert_eq!(
            (waits.due, waits.first_attempt_age),
            (DueIn::Pause(Duration::from_secs(6)), Some(Duration::from_secs(5)))
        );
    }
}
