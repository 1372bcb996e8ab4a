//! What a relay has seen of the others, and since when.
//!
//! Clocks are never compared: a relay is thought dead when its beat stood still for a lease by the clock of the one who
//! looks. Leases should be the same everywhere and need not be: the longer of the two counts. The other's, because until it
//! is over that relay may believe in what it owns; ours, so that nobody is judged more strictly than we are.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::message::RelayId;
use crate::moment::Moment;
use crate::store::Membership;

/// What was seen of the other relays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Watch {
    pub(super) beats: BTreeMap<RelayId, Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) beat: i64,
    pub(super) since: Moment,
    pub(super) changed: bool,
}

impl Watch {
    /// Takes note of the beats; returns whoever has stood still for a lease, theirs or ours, whichever is longer.
    ///
    /// A beat was read at some moment between asking and hearing. It stands still at least from when its first sight was
    /// heard of until the question that found it unchanged; anything else would accuse the living whenever a question
    /// took long.
    pub(super) fn observe(
        &mut self,
        me: RelayId,
        seen: &Membership,
        lease: Duration,
        asked: Moment,
        heard: Moment,
    ) -> Vec<(RelayId, i64)> {
        self.beats.retain(|id, _| seen.relays.iter().any(|relay| relay.id == *id));
        let mut dead = Vec::new();
        for relay in seen.relays.iter().filter(|relay| relay.id != me) {
            let entry = self.beats.entry(relay.id).or_insert(Seen { beat: relay.beat, since: heard, changed: false });
            if entry.beat != relay.beat {
                *entry = Seen { beat: relay.beat, since: heard, changed: true };
            } else if asked.since(entry.since) >= lease.max(relay.lease) {
                dead.push((relay.id, relay.beat));
            }
        }
        dead
    }

    /// Our own renewals failed: whatever was not seen meanwhile proves nothing.
    pub(super) fn start_over(&mut self) {
        self.beats.clear();
    }

    pub(super) fn is_known_to_live(&self, id: RelayId) -> bool {
        self.beats.get(&id).is_some_and(|seen| seen.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RelaySeen;

    fn seen(beats: &[(u128, i64)]) -> Membership {
        seen_with(beats, LEASE)
    }

    fn seen_with(beats: &[(u128, i64)], lease: Duration) -> Membership {
        let relays = beats
            .iter()
            .map(|&(id, beat)| RelaySeen {
                id: RelayId::from_u128(id),
                name: format!("r{id}"),
                version: "0".into(),
                lease,
                beat,
                draining: false,
                serves: Vec::new(),
                started_at: chrono::DateTime::UNIX_EPOCH,
            })
            .collect();
        Membership { relays, partitions: Vec::new() }
    }

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn a_beat_that_stands_still_for_a_lease_is_a_death() {
        let (mut watch, me, start) = (Watch::default(), RelayId::from_u128(1), Moment::now());
        let mut observe = |beats, at: Moment| watch.observe(me, &seen(beats), LEASE, at, at);
        assert!(observe(&[(1, 5), (2, 7)], start).is_empty());
        assert!(observe(&[(1, 5), (2, 8)], start + LEASE).is_empty(), "it moved");
        assert_eq!(observe(&[(1, 5), (2, 8)], start + LEASE * 2), [(RelayId::from_u128(2), 8)]);
    }

    #[test]
    fn a_relay_with_another_lease_is_judged_by_the_longer_one() {
        let (me, start) = (RelayId::from_u128(1), Moment::now());
        for (theirs, ours) in [(LEASE, LEASE / 3), (LEASE / 3, LEASE)] {
            let mut watch = Watch::default();
            let mut observe = |at: Moment| watch.observe(me, &seen_with(&[(2, 7)], theirs), ours, at, at);
            assert!(observe(start).is_empty());
            let almost = start + (LEASE - Duration::from_millis(1));
            assert!(observe(almost).is_empty(), "theirs {theirs:?}, ours {ours:?}");
            assert_eq!(observe(start + LEASE), [(RelayId::from_u128(2), 7)], "theirs {theirs:?}, ours {ours:?}");
        }
    }

    #[test]
    fn a_question_that_took_long_accuses_nobody() {
        let (mut watch, me, start) = (Watch::default(), RelayId::from_u128(1), Moment::now());
        watch.observe(me, &seen(&[(2, 7)]), LEASE, start, start + LEASE);
        assert!(watch.observe(me, &seen(&[(2, 7)]), LEASE, start + LEASE, start + LEASE * 2).is_empty());
        assert_eq!(watch.observe(me, &seen(&[(2, 7)]), LEASE, start + LEASE * 2, start + LEASE * 2).len(), 1);
    }

    #[test]
    fn an_outage_of_our_own_accuses_nobody() {
        let (mut watch, me, start) = (Watch::default(), RelayId::from_u128(1), Moment::now());
        watch.observe(me, &seen(&[(2, 7)]), LEASE, start, start);
        watch.start_over();
        let later = start + LEASE * 5;
        assert!(watch.observe(me, &seen(&[(2, 7)]), LEASE, later, later).is_empty());
    }
}
