//! Which relays live, as far as somebody who looks can tell.
//!
//! The table holds no time for a relay, only a beat that rises every third of its lease. So whoever wants to know looks
//! again and again: at most for a lease, and no longer than until every beat was seen to move. A relay alone is known to
//! live after a third of the lease; only a dead one costs the whole of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outbox::relays;
use uuid::Uuid;

use super::Failure;
use crate::admin::{Connection, with_connection};
use crate::store::{Membership, Store, StoreError};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was seen of the relays' beats.
#[derive(Clone, Debug, Default)]
pub(super) struct Beats {
    /// Those that did not move, as they were.
    still: BTreeMap<Uuid, i64>,
    /// How long it was looked; zero when it was not.
    looked: Duration,
}

impl Beats {
    /// What is known before the first look.
    fn of(relays: impl IntoIterator<Item = (Uuid, i64)>) -> Beats {
        Beats { still: relays.into_iter().collect(), looked: Duration::ZERO }
    }

    /// Takes a later look into account. Who is gone has left or was declared dead, and is not still.
    fn saw(&mut self, now: impl IntoIterator<Item = (Uuid, i64)>) {
        let now: BTreeMap<Uuid, i64> = now.into_iter().collect();
        self.still.retain(|id, beat| now.get(id) == Some(beat));
    }

    /// True for a relay whose beat did not move while it was looked at. False also when nobody looked.
    pub(super) fn is_still(&self, relay: Uuid) -> bool {
        !self.looked.is_zero() && self.still.contains_key(&relay)
    }

    /// Whether a relay lives; `None` when nobody looked.
    pub(super) fn lives(&self, relay: Uuid) -> Option<bool> {
        (!self.looked.is_zero()).then(|| !self.is_still(relay))
    }

    #[cfg(test)]
    pub(super) fn still_for(relays: &[Uuid], looked: Duration) -> Beats {
        Beats { still: relays.iter().map(|id| (*id, 0)).collect(), looked }
    }

    /// How long it was looked.
    pub(super) fn looked(&self) -> Duration {
        self.looked
    }
}

/// Looks at the beats of these relays for so long at most.
pub(super) fn look(
    conn: &mut Connection,
    relays: impl IntoIterator<Item = (Uuid, i64)>,
    wait: Duration,
) -> Result<Beats, Failure> {
    let (mut beats, began) = (Beats::of(relays), Instant::now());
    while !beats.still.is_empty() && began.elapsed() < wait {
        std::thread::sleep(LOOK_EVERY);
        let now = with_connection!(&mut *conn, conn => relays::list(conn))?;
        beats.saw(now.relays.iter().map(|relay| (relay.id, relay.beat)));
    }
    beats.looked = if wait.is_zero() { Duration::ZERO } else { began.elapsed().max(LOOK_EVERY) };
    Ok(beats)
}

/// The same over a store; leaves in `seen` what it saw last.
pub(super) async fn watch(store: &dyn Store, seen: &mut Membership, wait: Duration) -> Result<Beats, StoreError> {
    let now = |seen: &Membership| seen.relays.iter().map(|relay| (relay.id, relay.beat)).collect::<Vec<_>>();
    let (mut beats, began) = (Beats::of(now(seen)), Instant::now());
    while !beats.still.is_empty() && began.elapsed() < wait {
        tokio::time::sleep(LOOK_EVERY).await;
        *seen = store.membership_read().await?;
        beats.saw(now(seen));
    }
    beats.looked = if wait.is_zero() { Duration::ZERO } else { began.elapsed().max(LOOK_EVERY) };
    Ok(beats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_that_moved_once_lives_and_one_that_did_not_is_still() {
        let id = Uuid::from_u128;
        let mut beats = Beats::of([(id(1), 5), (id(2), 7), (id(3), 9)]);
        assert_eq!((beats.lives(id(1)), beats.is_still(id(1))), (None, false), "nobody looked");
        beats.saw([(id(1), 6), (id(2), 7)]);
        beats.saw([(id(1), 6), (id(2), 7)]);
        beats.looked = Duration::from_secs(5);
        assert_eq!([1, 2, 3].map(|n| beats.lives(id(n))), [Some(true), Some(false), Some(true)]);
    }
}
