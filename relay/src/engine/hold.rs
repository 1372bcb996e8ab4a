//! A destination that asks not to be asked for a while.
//!
//! It is held here at once, and everywhere as soon as the table says so. The table may fail meanwhile: what it is to say is
//! kept and written later, as long as it still lies ahead. Otherwise the other relays, and this one after a restart, would
//! go on asking.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;

use super::Engine;
use crate::outcome::Outcome;
use crate::store::{DueIn, Remains, Waits};

/// Until when a destination is held, as long as the table does not say so. Nothing, or somebody is at it.
#[derive(Debug, Default)]
pub(super) struct Unrecorded(Mutex<Option<Instant>>);

impl Unrecorded {
    /// Asks for a hold to be written, or for a longer one than was asked for; true when nobody is at it yet.
    fn ask(&self, until: Instant) -> bool {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nobody = asked.is_none();
        *asked = (*asked).max(Some(until));
        nobody
    }

    /// The longest that was asked for; nothing when that is no longer than what the table says.
    fn beyond(&self, written: Option<Instant>) -> Option<Instant> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = asked.filter(|until| written.is_none_or(|written| *until > written));
        *asked
    }
}

impl Engine {
    /// Nothing more starts here at once, elsewhere as soon as the table says so.
    pub(super) fn hold(&mut self, lane: usize, outcome: &Outcome, now: Instant) {
        let Outcome::Remains(Remains::Waits(Waits { due: DueIn::Pause(pause), .. })) = outcome else { return };
        let until = now + *pause;
        let held = &mut self.lanes[lane].held_until;
        *held = Some(held.map_or(until, |held| held.max(until)));
        self.open_or_close(lane, self.is_paused(lane), now);
        if self.lanes[lane].unrecorded.ask(until) {
            self.record_hold(lane);
        }
    }

    /// One task for each destination, which takes over what is asked for meanwhile.
    fn record_hold(&self, lane: usize) {
        let (name, unrecorded) = (self.lanes[lane].served.name.clone(), self.lanes[lane].unrecorded.clone());
        let (store, answers) = (self.store.clone(), self.answers.clone());
        tokio::spawn(async move {
            let mut written = None;
            while let Some(until) = unrecorded.beyond(written) {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero()
                    && let Err(error) = store.destination_hold(&name, left, None).await
                {
                    error!(destination = %name, error = %crate::cause::chain(&error), "the hold could not be recorded");
                    tokio::time::sleep(HOLD_AGAIN.min(left)).await;
                    if answers.is_closed() {
                        return;
                    }
                    continue;
                }
                written = Some(until);
            }
        });
    }
}

/// Between two tries to record a hold.
const HOLD_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_hold_is_written_by_whoever_is_at_it() {
        let (unrecorded, now) = (Unrecorded::default(), Instant::now());
        let [short, long, longer] = [1, 5, 9].map(|seconds| now + Duration::from_secs(seconds));
        assert!(unrecorded.ask(long), "nobody is at it");
        assert!(!unrecorded.ask(short), "somebody is");
        assert_eq!(unrecorded.beyond(None), Some(long));
        assert!(!unrecorded.ask(longer));
        assert_eq!(unrecorded.beyond(Some(long)), Some(longer), "what came meanwhile is written, too");
        assert_eq!(unrecorded.beyond(Some(longer)), None);
        assert!(unrecorded.ask(short), "whoever was at it has ended");
    }
}
