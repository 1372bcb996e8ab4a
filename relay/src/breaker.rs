//! Whether a destination is worth an attempt, given how the last ones went.
//!
//! Pure: verdicts and the moment go in, what to do comes out. Closed lets everything pass. After a row of failures of
//! different messages the breaker opens, and nothing is attempted: messages wait without losing attempts. When its pause
//! is over it is half open: one attempt is made, and decides.
//!
//! Invariants
//! - One message that fails for itself, however often, opens nothing.
//! - Any answer that shows the receiver at work closes it, also one that comes late.
//! - Pauses grow up to a minute and spread upward, so that relays do not come back together.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::message::MessageId;
use crate::retry::MISCONFIGURED_MIN;
use crate::verdict::Verdict;

/// The breaker of one destination.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    phase: Phase,
    failures: usize,
    /// The different messages of that row of failures, as many as matter.
    failed: Vec<MessageId>,
    /// Those of them, the newest, that showed the destination to be set up wrongly.
    misconfigured: Vec<MessageId>,
    /// How often it opened without having closed.
    openings: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        since: Instant,
    },
}

/// What an attempt made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing is to be attempted for so long.
    Opened(Duration),
    /// The receiver works.
    Closed,
}

impl Breaker {
    /// An attempt at this message that took so long was judged.
    pub(crate) fn judged(
        &mut self,
        verdict: Verdict,
        message: MessageId,
        took: Duration,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Turn> {
        match verdict {
            Verdict::Delivered | Verdict::Reject { .. } => {
                let was_closed = self.phase == Phase::Closed;
                *self = Breaker::default();
                (!was_closed).then_some(Turn::Closed)
            }
            // It answers, and says itself for how long it is to be left alone.
            Verdict::Hold { .. } => None,
            // It was not asked. Half open stays half open, for the next one to decide.
            Verdict::Undecodable => None,
            Verdict::Retry { .. } | Verdict::Misconfigured => {
                self.count(verdict, message);
                let opens = match self.phase {
                    Phase::Closed => self.is_enough(),
                    // What had begun before says nothing new.
                    Phase::Open { .. } => false,
                    Phase::HalfOpen { since } => since + took <= now,
                };
                opens.then(|| self.open(verdict, now, rng))
            }
        }
    }

    /// True while nothing is to be attempted.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Open { until } if now < until)
    }

    /// When it has been open for long enough it is half open from now on; says whether it is.
    pub(crate) fn probe(&mut self, now: Instant) -> bool {
        if matches!(self.phase, Phase::Open { until } if until <= now) {
            self.phase = Phase::HalfOpen { since: now };
        }
        matches!(self.phase, Phase::HalfOpen { .. })
    }

    /// The word for people and programs, unless it is closed.
    pub(crate) fn word(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Closed => None,
            Phase::Open { .. } => Some("open"),
            Phase::HalfOpen { .. } => Some("half_open"),
        }
    }

    fn count(&mut self, verdict: Verdict, message: MessageId) {
        self.failures += 1;
        note(&mut self.failed, message, FAILED_MIN);
        if verdict == Verdict::Misconfigured {
            note(&mut self.misconfigured, message, MISCONFIGURED);
        } else {
            self.misconfigured.clear();
        }
    }

    fn is_enough(&self) -> bool {
        (self.failures >= FAILURES_MIN && self.failed.len() >= FAILED_MIN) || self.misconfigured.len() >= MISCONFIGURED
    }

    fn open(&mut self, verdict: Verdict, now: Instant, rng: &mut impl Rng) -> Turn {
        let grown = PAUSE_FIRST.saturating_mul(1 << self.openings.min(16)).min(PAUSE_MAX);
        // A person has to act, and hurrying helps nobody.
        let least = if verdict == Verdict::Misconfigured { MISCONFIGURED_MIN } else { Duration::ZERO };
        let pause = grown.max(least);
        let pause = pause + rng.random_range(Duration::ZERO..=pause / 10);
        self.openings = self.openings.saturating_add(1);
        self.phase = Phase::Open { until: now + pause };
        Turn::Opened(pause)
    }
}

fn note(messages: &mut Vec<MessageId>, message: MessageId, enough: usize) {
    if messages.len() < enough && !messages.contains(&message) {
        messages.push(message);
    }
}

/// So many failures in a row open it,
const FAILURES_MIN: usize = 10;
/// when they are of so many messages.
const FAILED_MIN: usize = 5;
/// So many messages in a row for which the destination turned out to be set up wrongly open it at once.
const MISCONFIGURED: usize = 3;
/// How long it stays open the first time.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// How long at most, but for chance.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const RETRY: Verdict = Verdict::Retry { after: None };

    struct Rig {
        breaker: Breaker,
        now: Instant,
        rng: SmallRng,
    }

    impl Rig {
        fn new() -> Rig {
            Rig { breaker: Breaker::default(), now: Instant::now(), rng: SmallRng::seed_from_u64(7) }
        }

        fn judged(&mut self, verdict: Verdict, message: u128) -> Option<Turn> {
            self.judged_after(verdict, message, Duration::ZERO)
        }

        fn judged_after(&mut self, verdict: Verdict, message: u128, took: Duration) -> Option<Turn> {
            self.breaker.judged(verdict, MessageId::from_u128(message), took, self.now, &mut self.rng)
        }

        /// Fails different messages until it opens; returns how many that took, and the pause.
        fn opens(&mut self, verdict: Verdict) -> (u128, Duration) {
            for n in 1..100 {
                if let Some(Turn::Opened(pause)) = self.judged(verdict, n) {
                    return (n, pause);
                }
            }
            panic!("it never opened");
        }
    }

    #[test]
    fn a_row_of_failures_opens_it_and_one_attempt_decides() {
        let mut rig = Rig::new();
        let (count, pause) = rig.opens(RETRY);
        assert_eq!(count, 10);
        assert!(pause >= PAUSE_FIRST && pause <= PAUSE_FIRST * 11 / 10, "{pause:?}");
        assert!(rig.breaker.is_open(rig.now) && !rig.breaker.probe(rig.now));
        assert_eq!(rig.judged(RETRY, 200), None, "it had begun before");
        rig.now += pause;
        assert!(!rig.breaker.is_open(rig.now) && rig.breaker.probe(rig.now));
        rig.now += PAUSE_FIRST;
        assert_eq!(rig.judged_after(RETRY, 200, 2 * PAUSE_FIRST), None, "that had, too");
        let Some(Turn::Opened(second)) = rig.judged_after(RETRY, 201, PAUSE_FIRST) else {
            panic!("one failure is enough now")
        };
        assert!(second >= 2 * PAUSE_FIRST);
        rig.now += second;
        assert!(rig.breaker.probe(rig.now));
        assert_eq!(rig.judged(Verdict::Delivered, 202), Some(Turn::Closed));
        assert_eq!(rig.breaker.word(), None);
        assert_eq!(rig.opens(RETRY).0, 10, "and it begins anew");
    }

    #[test]
    fn what_cannot_be_sent_says_nothing_about_the_receiver() {
        let mut rig = Rig::new();
        for n in 0..9 {
            assert_eq!(rig.judged(RETRY, n), None);
        }
        assert_eq!(rig.judged(Verdict::Undecodable, 50), None);
        let Some(Turn::Opened(pause)) = rig.judged(RETRY, 9) else { panic!("the row was not interrupted") };
        assert_eq!(rig.judged(Verdict::Undecodable, 51), None, "nor does one that had begun before close it");
        assert!(rig.breaker.is_open(rig.now));
        rig.now += pause;
        assert!(rig.breaker.probe(rig.now));
        for n in 60..70 {
            assert_eq!(rig.judged(Verdict::Undecodable, n), None);
            assert!(rig.breaker.word() == Some("half_open") && !rig.breaker.is_open(rig.now), "the next one decides");
        }
        let Some(Turn::Opened(second)) = rig.judged(RETRY, 70) else { panic!("and it does: it opens") };
        assert!(second >= 2 * PAUSE_FIRST, "{second:?}");
        rig.now += second;
        assert!(rig.breaker.probe(rig.now));
        assert_eq!(rig.judged(Verdict::Undecodable, 71), None);
        assert_eq!(rig.judged(Verdict::Delivered, 72), Some(Turn::Closed), "or closes");
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let mut rig = Rig::new();
        let mut last = rig.opens(RETRY).1;
        for _ in 0..40 {
            rig.now += last;
            assert!(rig.breaker.probe(rig.now));
            let Some(Turn::Opened(pause)) = rig.judged(RETRY, 1) else { panic!("it opens again") };
            last = pause;
        }
        assert!(last >= PAUSE_MAX && last <= PAUSE_MAX * 11 / 10, "{last:?}");
    }

    #[test]
    fn one_message_opens_nothing_however_often_it_fails() {
        let mut rig = Rig::new();
        for n in 0..1000 {
            assert_eq!(rig.judged(RETRY, n % 4), None);
        }
        assert_eq!(rig.judged(RETRY, 4), Some(Turn::Opened(rig.breaker_pause())), "the fifth message shows it");
        let mut rig = Rig::new();
        for n in 0..9 {
            assert_eq!(rig.judged(Verdict::Misconfigured, n % 2), None, "a missing customer is no missing receiver");
        }
    }

    impl Rig {
        fn breaker_pause(&self) -> Duration {
            let Phase::Open { until } = self.breaker.phase else { panic!("it is not open") };
            until - self.now
        }
    }

    #[test]
    fn three_messages_in_a_row_show_that_it_is_set_up_wrongly() {
        let mut rig = Rig::new();
        let (count, pause) = rig.opens(Verdict::Misconfigured);
        assert_eq!(count, 3);
        assert!(pause >= MISCONFIGURED_MIN);
        for between in [RETRY, Verdict::Delivered, Verdict::Reject { gone: false }] {
            let mut rig = Rig::new();
            for n in 0..2 {
                assert_eq!(rig.judged(Verdict::Misconfigured, n), None);
            }
            assert_eq!(rig.judged(between, 9), None);
            assert_eq!(rig.judged(Verdict::Misconfigured, 2), None, "they are not in a row: {between:?}");
        }
    }

    #[test]
    fn an_answer_that_comes_late_closes_it() {
        for verdict in [Verdict::Delivered, Verdict::Reject { gone: false }] {
            let mut rig = Rig::new();
            rig.opens(RETRY);
            assert_eq!(rig.judged(Verdict::Hold { pause: None }, 50), None, "a hold says nothing about it");
            assert_eq!(rig.judged(verdict, 51), Some(Turn::Closed));
            assert!(!rig.breaker.is_open(rig.now));
        }
    }

    proptest! {
        /// Whatever happens, it is open for a bounded time, and opens only after failures since the last sign of life.
        #[test]
        fn it_is_never_stuck(steps in proptest::collection::vec((0..6_u8, 0..20_u128, 0..90_u64), 1..400)) {
            let mut rig = Rig::new();
            let mut since_life = 0;
            for (what, message, seconds) in steps {
                rig.now += Duration::from_secs(seconds);
                rig.breaker.probe(rig.now);
                let verdict = match what {
                    0 => Verdict::Delivered,
                    1 => Verdict::Reject { gone: false },
                    2 => Verdict::Hold { pause: None },
                    3 => Verdict::Misconfigured,
                    4 => Verdict::Undecodable,
                    _ => RETRY,
                };
                let was_closed = rig.breaker.word().is_none();
                let turn = rig.judged(verdict, message);
                since_life = match what { 0 | 1 => 0, 2 | 4 => since_life, _ => since_life + 1 };
                if let Some(Turn::Opened(pause)) = turn {
                    prop_assert!(pause <= PAUSE_MAX * 11 / 10);
                    prop_assert!(!was_closed || since_life >= 3);
                }
                if since_life == 0 {
                    prop_assert!(rig.breaker.word().is_none());
                }
                prop_assert!(!rig.breaker.is_open(rig.now + PAUSE_MAX * 11 / 10));
            }
        }
    }
}
