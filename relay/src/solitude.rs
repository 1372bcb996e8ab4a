//! When a delivery may be attempted that must be alone.
//!
//! A delivery that was being attempted when a relay died may have killed it, or may have been beside one that did. To
//! tell, it is tried while no other handler of this process is at work: nothing else starts, what is under way ends and
//! is written down, then one such delivery after another is tried. Pure: counts and the time in, a turn out.
//!
//! Invariants
//! - While one is tried alone no other attempt of a handler is under way, and nothing is left to be written of one whose
//!   start was counted: should the process die, nobody else is suspected of it.
//! - The others wait no longer than they may go on afterwards: half of the time is theirs.

use std::time::{Duration, Instant};

/// Who may start now, of the deliveries to handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All but those that must be alone.
    Everybody,
    /// Nobody.
    Nobody,
    /// One of those that must be alone.
    One,
}

/// What the handlers of this process are doing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Attempts under way.
    pub running: usize,
    /// Outcomes of counted attempts that are not written yet.
    pub unwritten: usize,
    /// Deliveries that must be alone.
    pub candidates: usize,
}

/// Remembers whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Solitude {
    /// When the others were last asked to wait.
    closed_at: Option<Instant>,
    /// When the first delivery could be alone.
    alone_at: Option<Instant>,
    /// When the last attempt ended.
    quiet_at: Option<Instant>,
    /// Until then it is the others' turn.
    open_until: Option<Instant>,
}

impl Solitude {
    /// Whose turn it is. After [`Turn::One`] the caller starts one.
    pub(crate) fn turn(&mut self, seen: Seen, now: Instant) -> Turn {
        let Some(closed_at) = self.closed_at else {
            if seen.candidates == 0 || self.open_until.is_some_and(|until| now < until) {
                return Turn::Everybody;
            }
            self.closed_at = Some(now);
            return self.turn(seen, now);
        };
        if seen.running > 0 {
            self.quiet_at = None;
            return Turn::Nobody;
        }
        let quiet_at = *self.quiet_at.get_or_insert(now);
        // An outcome that cannot be written must not stop all handlers for good.
        if seen.unwritten > 0 && now.saturating_duration_since(quiet_at) < PATIENCE {
            return Turn::Nobody;
        }
        let alone_at = *self.alone_at.get_or_insert(now);
        if seen.candidates > 0 && now.saturating_duration_since(alone_at) < SPAN {
            return Turn::One;
        }
        let open_until = now + now.saturating_duration_since(closed_at);
        *self = Solitude { open_until: Some(open_until), ..Solitude::default() };
        Turn::Everybody
    }
}

/// So long one after another is tried alone before the others go on.
const SPAN: Duration = Duration::from_secs(1);
/// So long a write of an outcome is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Seen = Seen { running: 0, unwritten: 0, candidates: 0 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_is_tried_when_the_others_have_ended_and_their_outcomes_are_written() {
        let (mut solitude, start) = (Solitude::default(), Instant::now());
        let mut turn =
            |running, unwritten, candidates, at| solitude.turn(Seen { running, unwritten, candidates }, start + ms(at));
        assert_eq!(turn(3, 0, 0, 0), Turn::Everybody);
        assert_eq!(turn(3, 1, 2, 0), Turn::Nobody, "nothing more starts");
        assert_eq!(turn(1, 1, 2, 10), Turn::Nobody);
        assert_eq!(turn(0, 1, 2, 20), Turn::Nobody, "an outcome is not written");
        assert_eq!(turn(0, 0, 2, 30), Turn::One);
        assert_eq!(turn(1, 1, 1, 40), Turn::Nobody, "it is under way");
        assert_eq!(turn(0, 1, 1, 50), Turn::Nobody, "it has ended and is not written");
        assert_eq!(turn(0, 0, 1, 60), Turn::One, "the next");
        assert_eq!(turn(1, 1, 0, 70), Turn::Nobody);
        assert_eq!(turn(0, 0, 0, 80), Turn::Everybody);
    }

    #[test]
    fn the_others_go_on_for_as_long_as_they_had_to_wait() {
        let (mut solitude, start) = (Solitude::default(), Instant::now());
        let one = Seen { candidates: 1, ..QUIET };
        assert_eq!(solitude.turn(Seen { running: 1, ..one }, start), Turn::Nobody);
        assert_eq!(solitude.turn(one, start + ms(4_000)), Turn::One, "whoever was under way took long");
        assert_eq!(solitude.turn(one, start + ms(4_500)), Turn::One);
        assert_eq!(solitude.turn(one, start + ms(5_000)), Turn::Everybody);
        assert_eq!(solitude.turn(one, start + ms(9_900)), Turn::Everybody);
        assert_eq!(solitude.turn(one, start + ms(10_000)), Turn::One);
    }

    #[test]
    fn an_outcome_that_cannot_be_written_stops_nobody_for_good() {
        let (mut solitude, start) = (Solitude::default(), Instant::now());
        let stuck = Seen { running: 0, unwritten: 1, candidates: 1 };
        assert_eq!(solitude.turn(stuck, start), Turn::Nobody);
        assert_eq!(solitude.turn(stuck, start + PATIENCE), Turn::One);
    }

    #[test]
    fn candidates_that_left_meanwhile_are_not_waited_for() {
        let (mut solitude, start) = (Solitude::default(), Instant::now());
        assert_eq!(solitude.turn(Seen { running: 1, unwritten: 0, candidates: 1 }, start), Turn::Nobody);
        assert_eq!(solitude.turn(QUIET, start + ms(1)), Turn::Everybody);
    }
}
