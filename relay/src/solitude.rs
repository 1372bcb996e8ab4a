//! When a delivery may be attempted that must be alone.
//!
//! A delivery that was being attempted when a relay died may have killed it, or may have been beside one that did. To
//! tell, it is tried while no other handler of this process is at work: nothing else starts, what is under way ends and
//! is written down, then one such delivery after another is tried. Pure: counts and the time in, a turn out.
//!
//! Invariants
//! - While one is tried alone no other attempt of a handler is under way, and nothing is left to be written of one whose
//!   start was counted: should the process die, nobody else is suspected of it.
//! - The others wait no longer than they may go on afterwards: half of the time is theirs, when they need it.
//! - The others go first. Where everything dies again and again soon after its start, for whatever reason, the same
//!   delivery must not be met each time.

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
    /// Others that could start.
    pub queued: usize,
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
    /// They need not wait for that hour when nobody else has anything to do.
    had_turn: bool,
}

impl Solitude {
    /// Whose turn it is. After [`Turn::One`] the caller starts one.
    pub(crate) fn turn(&mut self, seen: Seen, now: Instant) -> Turn {
        let Some(closed_at) = self.closed_at else {
            if seen.candidates == 0 {
                self.open_until = self.open_until.filter(|until| now < *until);
                return Turn::Everybody;
            }
            let open_until = *self.open_until.get_or_insert(now + SPAN);
            let is_idle = self.had_turn && seen.running == 0 && seen.queued == 0;
            if now < open_until && !is_idle {
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
        *self = Solitude { open_until: Some(open_until), had_turn: true, ..Solitude::default() };
        Turn::Everybody
    }
}

/// So long the others have from the first moment; and so long one after another is tried alone before they go on.
const SPAN: Duration = Duration::from_secs(1);
/// So long a write of an outcome is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Seen = Seen { running: 0, unwritten: 0, queued: 1, candidates: 0 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn after_a_turn(now: Instant) -> Solitude {
        Solitude { had_turn: true, open_until: Some(now), ..Solitude::default() }
    }

    #[test]
    fn one_is_tried_when_the_others_have_ended_and_their_outcomes_are_written() {
        let (mut solitude, start) = (Solitude::default(), Instant::now());
        let mut turn = |running, unwritten, candidates, at| {
            solitude.turn(Seen { running, unwritten, candidates, queued: 1 }, start + ms(at))
        };
        assert_eq!(turn(3, 0, 0, 0), Turn::Everybody);
        assert_eq!(turn(3, 1, 2, 10), Turn::Everybody, "the others go first");
        assert_eq!(turn(0, 0, 2, 1_000), Turn::Everybody);
        assert_eq!(turn(3, 1, 2, 1_010), Turn::Nobody, "nothing more starts");
        assert_eq!(turn(1, 1, 2, 1_020), Turn::Nobody);
        assert_eq!(turn(0, 1, 2, 1_030), Turn::Nobody, "an outcome is not written");
        assert_eq!(turn(0, 0, 2, 1_040), Turn::One);
        assert_eq!(turn(1, 1, 1, 1_050), Turn::Nobody, "it is under way");
        assert_eq!(turn(0, 1, 1, 1_060), Turn::Nobody, "it has ended and is not written");
        assert_eq!(turn(0, 0, 1, 1_070), Turn::One, "the next");
        assert_eq!(turn(1, 1, 0, 1_080), Turn::Nobody);
        assert_eq!(turn(0, 0, 0, 1_090), Turn::Everybody);
    }

    #[test]
    fn the_others_go_on_for_as_long_as_they_had_to_wait() {
        let start = Instant::now();
        let (mut solitude, one) = (after_a_turn(start), Seen { candidates: 1, ..BUSY });
        assert_eq!(solitude.turn(Seen { running: 1, ..one }, start), Turn::Nobody);
        assert_eq!(solitude.turn(one, start + ms(4_000)), Turn::One, "whoever was under way took long");
        assert_eq!(solitude.turn(one, start + ms(4_500)), Turn::One);
        assert_eq!(solitude.turn(one, start + ms(5_000)), Turn::Everybody);
        assert_eq!(solitude.turn(one, start + ms(9_900)), Turn::Everybody);
        assert_eq!(solitude.turn(one, start + ms(10_000)), Turn::One);
        assert_eq!(solitude.turn(one, start + ms(11_000)), Turn::Everybody);
        let idle = Seen { queued: 0, ..one };
        assert_eq!(solitude.turn(idle, start + ms(11_001)), Turn::One, "they need it no longer");
    }

    #[test]
    fn an_outcome_that_cannot_be_written_stops_nobody_for_good() {
        let start = Instant::now();
        let (mut solitude, stuck) = (after_a_turn(start), Seen { unwritten: 1, candidates: 1, ..BUSY });
        assert_eq!(solitude.turn(stuck, start), Turn::Nobody);
        assert_eq!(solitude.turn(stuck, start + PATIENCE), Turn::One);
    }

    #[test]
    fn candidates_that_left_meanwhile_are_not_waited_for() {
        let start = Instant::now();
        let mut solitude = after_a_turn(start);
        assert_eq!(solitude.turn(Seen { running: 1, candidates: 1, ..BUSY }, start), Turn::Nobody);
        assert_eq!(solitude.turn(BUSY, start + ms(1)), Turn::Everybody);
    }
}
