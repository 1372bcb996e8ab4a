//! What follows from a verdict.
//!
//! Pure: a delivery, a judgement and the destination's policy in; what becomes of the delivery out. Nothing here reads a
//! clock, a table or the network.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rand::Rng;

use crate::fingerprint::fingerprint;
use crate::lane::{Fate, Work, age};
use crate::message::{HISTORY_MAX, HistoryEntry};
use crate::retry::{RetryPolicy, hold_pause};
use crate::sink::{AfterDeadLetter, Judgement};
use crate::store::{Dies, DueIn, Reason, Remains, State, WaitingChange, Waits};
use crate::verdict::Verdict;

/// What a destination does about failures.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// When to try again and when to give up.
    pub retry: RetryPolicy,
    /// What happens to a key after one of its messages died.
    pub after_dead_letter: AfterDeadLetter,
    /// Its name: letters of different destinations never count as the same.
    pub destination: String,
    /// The relay's name, for histories.
    pub relay: String,
}

/// What becomes of a delivery.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It is done.
    Delivered,
    /// It leaves a row.
    Remains(Remains),
}

impl Outcome {
    /// What this means for the messages behind it.
    pub(crate) fn fate(&self) -> Fate {
        match self {
            Outcome::Delivered => Fate::Through,
            Outcome::Remains(Remains::Dies(dies)) if !dies.blocks_key => Fate::Through,
            Outcome::Remains(_) => Fate::Stays,
        }
    }
}

/// What an attempt that took `took` and ended at (`at`, `now`) makes of a delivery.
pub(crate) fn outcome(
    work: &Work,
    judgement: &Judgement,
    policy: &Policy,
    took: Duration,
    at: DateTime<Utc>,
    now: Instant,
    rng: &mut impl Rng,
) -> Outcome {
    let verdict = judgement.verdict;
    match verdict {
        Verdict::Delivered => return Outcome::Delivered,
        // Histories tell what was on the wire, and nothing was.
        Verdict::Undecodable => return doomed(work, Reason::Undecodable, &judgement.text, policy, now),
        Verdict::Retry { .. } | Verdict::Hold { .. } | Verdict::Misconfigured | Verdict::Reject { .. } => {}
    }
    let started = now.checked_sub(took).unwrap_or(now);
    let first = Some(work.first_attempt_at.unwrap_or(started));
    let since_first = age(first, now).unwrap_or_default();
    // What the receiver was told.
    let n = work.attempts + 1;
    // A hold is the destination's doing, not this message's: it costs no attempt, and the next one has the same number.
    let attempts = if matches!(verdict, Verdict::Hold { .. }) { work.attempts } else { n };
    let mut history = work.history.clone();
    history.push(HistoryEntry {
        n,
        at,
        ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        verdict: verdict.name().to_owned(),
        code: judgement.code.clone(),
        relay: policy.relay.clone(),
        maybe: judgement.maybe,
        remote: judgement.remote.map(|address| address.to_string()),
        text: judgement.text.clone(),
    });
    let surplus = history.len().saturating_sub(HISTORY_MAX);
    history.drain(..surplus);
    let last_error = Some(judgement.said());

    let counted = NonZeroU32::new(attempts).unwrap_or(NonZeroU32::MIN);
    let pause = match verdict {
        Verdict::Hold { pause } if since_first <= policy.retry.age_max => Some(hold_pause(pause, rng)),
        Verdict::Retry { after } => policy.retry.next_delay(counted, since_first, after, rng),
        Verdict::Misconfigured => policy.retry.next_delay_misconfigured(counted, since_first, rng),
        Verdict::Hold { .. } | Verdict::Reject { .. } | Verdict::Delivered | Verdict::Undecodable => None,
    };
    let first_attempt_age = Some(since_first);
    Outcome::Remains(match pause {
        Some(pause) => Remains::Waits(Waits {
            state: State::Retry,
            attempts,
            due: DueIn::Pause(pause),
            in_order: work.in_order,
            first_attempt_age,
            last_verdict: Some(verdict.name()),
            last_error,
            history,
        }),
        None => {
            let reason = match verdict {
                Verdict::Reject { gone: true } => Reason::Gone,
                Verdict::Reject { gone: false } => Reason::Rejected,
                _ => Reason::Exhausted,
            };
            Remains::Dies(Dies {
                reason,
                attempts,
                blocks_key: blocks_key(work, policy),
                fingerprint: fingerprint(&policy.destination, reason.as_str(), &judgement.code, &judgement.text),
                first_attempt_age,
                last_verdict: Some(verdict.name()),
                last_error,
                history,
            })
        }
    })
}

/// What becomes of a delivery that is given up without an attempt.
pub(crate) fn doomed(work: &Work, reason: Reason, text: &str, policy: &Policy, now: Instant) -> Outcome {
    Outcome::Remains(Remains::Dies(Dies {
        reason,
        attempts: work.attempts,
        // Whoever let it expire does not want its key to stand still for it.
        blocks_key: reason != Reason::Expired && blocks_key(work, policy),
        fingerprint: fingerprint(&policy.destination, reason.as_str(), "", text),
        first_attempt_age: age(work.first_attempt_at, now),
        last_verdict: None,
        last_error: Some(text.to_owned()),
        history: work.history.clone(),
    }))
}

/// What becomes of a message that expired before it had a destination.
pub(crate) fn expired_unrouted() -> Dies {
    Dies {
        reason: Reason::Expired,
        attempts: 0,
        blocks_key: false,
        fingerprint: fingerprint("", Reason::Expired.as_str(), "", EXPIRED),
        first_attempt_age: None,
        last_verdict: None,
        last_error: Some(EXPIRED.to_owned()),
        history: Vec::new(),
    }
}

/// What the people who find the dead letter read.
pub(crate) const EXPIRED: &str = "`expires_at` passed before it could be delivered";

/// A message that must wait without having been attempted.
pub(crate) fn waits(state: State, in_order: bool, due: DueIn) -> Remains {
    Remains::Waits(Waits {
        state,
        attempts: 0,
        due,
        in_order,
        first_attempt_age: None,
        last_verdict: None,
        last_error: None,
        history: Vec::new(),
    })
}

/// A message that a lane lets go of without having attempted it, or attempted it again: what is known of it goes along.
pub(crate) fn overflows(work: &Work, now: Instant) -> Remains {
    let last = work.history.last();
    let verdicts = [Verdict::Retry { after: None }, Verdict::Hold { pause: None }, Verdict::Misconfigured];
    Remains::Waits(Waits {
        state: State::Overflow,
        attempts: work.attempts,
        due: DueIn::Pause(Duration::ZERO),
        in_order: work.in_order,
        first_attempt_age: age(work.first_attempt_at, now),
        last_verdict: last.and_then(|last| verdicts.map(Verdict::name).into_iter().find(|name| *name == last.verdict)),
        last_error: last.map(|last| described(&last.code, &last.text)),
        history: work.history.clone(),
    })
}

impl Remains {
    /// True for a row, or a dead letter, behind which the rest of its key waits.
    pub(crate) fn parks_key(&self) -> bool {
        match self {
            Remains::Waits(waits) => waits.in_order,
            Remains::Dies(dies) => dies.blocks_key,
        }
    }
}

impl WaitingChange {
    /// The same of what becomes of a waiting row.
    pub(crate) fn parks_key(&self) -> bool {
        match self {
            WaitingChange::Waits(waits) => waits.in_order,
            WaitingChange::Dies(dies) => dies.blocks_key,
            WaitingChange::Delivered | WaitingChange::Routed(_) => false,
        }
    }
}

fn blocks_key(work: &Work, policy: &Policy) -> bool {
    policy.after_dead_letter == AfterDeadLetter::Block && work.in_order && work.message.ordering_key.is_some()
}

fn described(code: &str, text: &str) -> String {
    if text.is_empty() { code.to_owned() } else { format!("{code}: {text}") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::lane::{Care, Origin};
    use crate::message;

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const RETRY: Verdict = Verdict::Retry { after: None };
    const HOLD: Verdict = Verdict::Hold { pause: None };

    fn work(attempts: u32, first_attempt_at: Option<Instant>) -> Work {
        Work {
            message: Arc::new(message::example(1)),
            origin: Origin::Waiting(1),
            attempts,
            in_order: true,
            first_attempt_at,
            history: Vec::new(),
            doomed: None,
            care: Care::Plain,
            suspect: false,
            deaths: 0,
        }
    }

    fn policy() -> Policy {
        Policy {
            retry: RetryPolicy { age_max: HOUR, ..RetryPolicy::internal() },
            after_dead_letter: AfterDeadLetter::Continue,
            destination: "billing".to_owned(),
            relay: "relay".to_owned(),
        }
    }

    const TOOK: Duration = Duration::from_millis(250);

    /// What becomes of it when an attempt ends now.
    fn judged(work: &Work, verdict: Verdict, now: Instant) -> Remains {
        let judgement = Judgement::failed(verdict, "429", "slowly");
        let at = DateTime::from_timestamp_micros(1_795_000_000_123_456).unwrap();
        let mut rng = SmallRng::seed_from_u64(7);
        match outcome(work, &judgement, &policy(), TOOK, at, now, &mut rng) {
            Outcome::Delivered => panic!("it was delivered"),
            Outcome::Remains(remains) => remains,
        }
    }

    fn waits(remains: Remains) -> Waits {
        match remains {
            Remains::Waits(waits) => waits,
            Remains::Dies(dies) => panic!("it died: {dies:?}"),
        }
    }

    fn dies(remains: Remains) -> Dies {
        match remains {
            Remains::Dies(dies) => dies,
            Remains::Waits(waits) => panic!("it waits: {waits:?}"),
        }
    }

    #[test]
    fn a_history_has_the_numbers_that_were_on_the_wire() {
        let now = Instant::now();
        let mut work = work(0, None);
        let mut numbers = Vec::new();
        for verdict in [RETRY, RETRY, HOLD, HOLD, Verdict::Misconfigured] {
            let sent = work.attempts + 1;
            let waits = waits(judged(&work, verdict, now));
            (work.attempts, work.history) = (waits.attempts, waits.history);
            let entry = work.history.last().unwrap();
            assert_eq!(entry.n, sent, "{verdict:?}");
            numbers.push((entry.n, work.attempts));
        }
        assert_eq!(numbers, [(1, 1), (2, 2), (3, 2), (3, 2), (3, 3)], "a hold counts no attempt");
        let dies = dies(judged(&work, Verdict::Reject { gone: false }, now));
        assert_eq!((dies.attempts, dies.history.last().unwrap().n, dies.history.len()), (4, 4, 6));
    }

    #[test]
    fn an_attempt_is_written_down_with_its_end_and_its_length() {
        let waits = waits(judged(&work(0, None), RETRY, Instant::now()));
        let [entry] = &waits.history[..] else { panic!("{:?}", waits.history) };
        assert_eq!(entry.at.timestamp_micros(), 1_795_000_000_123_456);
        assert_eq!((entry.ms, entry.code.as_str(), entry.text.as_str()), (250, "429", "slowly"));
        assert_eq!(waits.first_attempt_age, Some(TOOK), "the first attempt began when it began");
    }

    #[test]
    fn holds_end_when_the_first_attempt_is_too_long_ago() {
        let first = Instant::now();
        let work = work(2, Some(first));
        for now in [first, first + HOUR / 2, first + HOUR] {
            let waits = waits(judged(&work, HOLD, now));
            assert!(matches!(waits.due, DueIn::Pause(pause) if pause >= Duration::from_secs(30)), "{waits:?}");
            assert_eq!((waits.state, waits.attempts), (State::Retry, 2));
        }
        for now in [first + HOUR + Duration::from_millis(1), first + 100 * HOUR] {
            let dies = dies(judged(&work, HOLD, now));
            assert_eq!((dies.reason, dies.attempts, dies.last_verdict), (Reason::Exhausted, 2, Some("hold")));
        }
        // A message that has never been attempted is as old as this attempt.
        waits(judged(&self::work(0, None), HOLD, first + 100 * HOUR));
    }

    #[test]
    fn what_cannot_be_sent_dies_without_an_attempt() {
        let mut work = work(0, None);
        work.history = waits(judged(&work, RETRY, Instant::now())).history;
        work.attempts = 1;
        let dies = dies(judged(&work, Verdict::Undecodable, Instant::now()));
        assert_eq!((dies.reason, dies.attempts, dies.last_verdict), (Reason::Undecodable, 1, None));
        assert_eq!(
            (dies.last_error.as_deref(), dies.history),
            (Some("slowly"), work.history),
            "nothing was on the wire"
        );
    }
}
