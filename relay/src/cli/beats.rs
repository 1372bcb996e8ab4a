//! Which relays live, as far as somebody who looks can tell.
//!
//! The table holds no time for a relay, only a beat that rises every third of its lease, and how long that lease is. So
//! whoever wants to know looks again and again, until of each relay it is known: its beat has moved, or it stood still for
//! that relay's own lease. A relay that lives is known to after a third of it; only a dead one costs the whole.
//!
//! Invariants
//! - Nobody is called dead whose beat did not stand still for its lease, by the clock of the one who looks, from when its
//!   first sight was heard of to the question that found it unchanged. Whoever does not look for so long does not know.
//! - Who has left or was declared dead meanwhile is not there any more: what was seen last counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outbox::relays::{self, Relay, Relays};
use uuid::Uuid;

use super::Failure;
use super::output::say;
use crate::admin::{Connection, with_connection};
use crate::duration;
use crate::store::{Membership, RelaySeen, Store, StoreError};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Tells a person once, when it takes long.
#[derive(Default)]
struct Patience {
    is_told: bool,
}

impl Patience {
    fn tell(&mut self, beats: &Beats, looked: Duration) {
        if !self.is_told && looked >= PATIENCE {
            self.is_told = true;
            say(&beats.awaited());
        }
    }
}

/// What was seen of the relays' beats.
#[derive(Clone, Debug, Default)]
pub(super) struct Beats {
    relays: BTreeMap<Uuid, Sight>,
}

/// What was seen of one.
#[derive(Clone, Debug)]
struct Sight {
    beat: i64,
    lease: Duration,
    /// When its first sight was heard of.
    since: Instant,
    /// For how long it did not move after that, as far as it was asked.
    still: Duration,
    moved: bool,
}

/// A relay as it was read: its id, its beat and its lease.
type Read = (Uuid, i64, Duration);

/// After how long a person is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

impl Beats {
    /// What is known from the first look.
    fn of(relays: impl IntoIterator<Item = Read>, heard: Instant) -> Beats {
        let sight = |(id, beat, lease)| (id, Sight { beat, lease, since: heard, still: Duration::ZERO, moved: false });
        Beats { relays: relays.into_iter().map(sight).collect() }
    }

    /// Takes a later look into account, by when it was asked.
    fn saw(&mut self, now: impl IntoIterator<Item = Read>, asked: Instant) {
        let mut before = std::mem::take(&mut self.relays);
        for (id, beat, lease) in now {
            let still = |sight: &Sight| asked.saturating_duration_since(sight.since);
            let sight = match before.remove(&id) {
                Some(sight) if sight.moved || sight.beat != beat => Sight { moved: true, ..sight },
                Some(sight) => Sight { still: still(&sight), ..sight },
                // It has come meanwhile, so it lives.
                None => Sight { beat, lease, since: asked, still: Duration::ZERO, moved: true },
            };
            self.relays.insert(id, sight);
        }
    }

    /// True when nothing is left to be found out.
    fn is_known(&self) -> bool {
        self.relays.keys().all(|id| self.lives(*id).is_some())
    }

    /// Whether a relay lives; `None` when it was not looked at for its lease and its beat did not move meanwhile.
    pub(super) fn lives(&self, relay: Uuid) -> Option<bool> {
        let sight = self.relays.get(&relay)?;
        if sight.moved {
            return Some(true);
        }
        (!sight.still.is_zero() && sight.still >= sight.lease).then_some(false)
    }

    /// What is waited for, in a sentence.
    fn awaited(&self) -> String {
        let open = self.relays.iter().filter(|(id, _)| self.lives(**id).is_none()).map(|(_, sight)| sight.lease);
        let (count, lease) = (open.clone().count(), duration::format(open.max().unwrap_or_default()));
        let them = if count == 1 { "1 relay shows".to_owned() } else { format!("{count} relays show") };
        format!("{them} no sign of life; who is dead is known when its lease is over, in {lease} at most")
    }

    /// True for a relay that is known to be dead.
    pub(super) fn is_dead(&self, relay: Uuid) -> bool {
        self.lives(relay) == Some(false)
    }

    /// For how long a relay's beat was seen not to move.
    pub(super) fn still(&self, relay: Uuid) -> Duration {
        self.relays.get(&relay).map_or(Duration::ZERO, |sight| sight.still)
    }

    #[cfg(test)]
    pub(super) fn still_for(relays: &[Uuid], lease: Duration, still: Duration) -> Beats {
        let mut beats = Beats::of(relays.iter().map(|id| (*id, 0, lease)), Instant::now());
        beats.relays.values_mut().for_each(|sight| sight.still = still);
        beats
    }
}

/// Looks at the beats of these relays until they are known, or for so long at most. Returns what it saw last, too.
pub(super) fn look(
    conn: &mut Connection,
    which: impl Fn(&Relay) -> bool,
    wait: Option<Duration>,
) -> Result<(Beats, Relays), Failure> {
    let read = |seen: &Relays| -> Vec<Read> {
        seen.relays.iter().filter(|relay| which(relay)).map(|relay| (relay.id, relay.beat, relay.lease)).collect()
    };
    let mut seen = with_connection!(&mut *conn, conn => relays::list(conn))?;
    let (began, mut patience) = (Instant::now(), Patience::default());
    let mut beats = Beats::of(read(&seen), began);
    while !beats.is_known() && wait.is_none_or(|wait| began.elapsed() < wait) {
        std::thread::sleep(LOOK_EVERY);
        let asked = Instant::now();
        seen = with_connection!(&mut *conn, conn => relays::list(conn))?;
        beats.saw(read(&seen), asked);
        patience.tell(&beats, began.elapsed());
    }
    Ok((beats, seen))
}

/// The same over a store; leaves in `seen` what it saw last.
pub(super) async fn watch(
    store: &dyn Store,
    seen: &mut Membership,
    wait: Option<Duration>,
) -> Result<Beats, StoreError> {
    let read = |seen: &Membership| -> Vec<Read> {
        seen.relays.iter().map(|RelaySeen { id, beat, lease, .. }| (*id, *beat, *lease)).collect()
    };
    let (began, mut patience) = (Instant::now(), Patience::default());
    let mut beats = Beats::of(read(seen), began);
    while !beats.is_known() && wait.is_none_or(|wait| began.elapsed() < wait) {
        tokio::time::sleep(LOOK_EVERY).await;
        let asked = Instant::now();
        *seen = store.membership_read().await?;
        beats.saw(read(seen), asked);
        patience.tell(&beats, began.elapsed());
    }
    Ok(beats)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);

    fn id(n: u8) -> Uuid {
        Uuid::from_u128(n.into())
    }

    #[test]
    fn a_beat_that_moved_once_lives_and_one_that_stood_still_for_its_own_lease_is_dead() {
        let start = Instant::now();
        let mut beats = Beats::of([(id(1), 5, LEASE), (id(2), 7, LEASE), (id(3), 9, LEASE * 6)], start);
        assert_eq!([1, 2, 3].map(|n| beats.lives(id(n))), [None; 3], "nobody looked");
        let saw = |beats: &mut Beats, beat, after: Duration| {
            beats.saw([(id(1), beat, LEASE), (id(2), 7, LEASE), (id(3), 9, LEASE * 6)], start + after);
            ([1, 2, 3].map(|n| beats.lives(id(n))), beats.is_known())
        };
        assert_eq!(saw(&mut beats, 6, LEASE - Duration::from_millis(1)), ([Some(true), None, None], false));
        let says = "2 relays show no sign of life; who is dead is known when its lease is over, in 30s at most";
        assert_eq!(beats.awaited(), says);
        assert_eq!(saw(&mut beats, 6, LEASE), ([Some(true), Some(false), None], false), "what moved once lives");
        assert_eq!(saw(&mut beats, 6, LEASE * 6), ([Some(true), Some(false), Some(false)], true));
        assert_eq!(beats.still(id(2)), LEASE * 6);
    }

    #[test]
    fn who_leaves_is_not_there_any_more_and_who_comes_lives() {
        let start = Instant::now();
        let mut beats = Beats::of([(id(1), 5, LEASE)], start);
        assert!(!beats.is_known());
        beats.saw([(id(2), 0, LEASE)], start + LEASE / 10);
        assert_eq!((beats.lives(id(1)), beats.lives(id(2)), beats.is_known()), (None, Some(true), true));
    }

    #[test]
    fn a_lease_without_length_is_no_proof_of_death_without_a_look() {
        let beats = Beats::of([(id(1), 5, Duration::ZERO)], Instant::now());
        assert_eq!(beats.lives(id(1)), None);
    }
}
