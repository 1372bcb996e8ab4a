//! When to try again.
//!
//! Pure arithmetic: how often it failed, since when, and what the receiver asked for go in; a pause comes out, or the
//! finding that nothing is left to wait for. No clock is read, and chance comes in as an argument.
//!
//! Invariants
//! - A receiver can slow a delivery down, never hurry it.
//! - What a receiver asks for is honoured up to an hour; a mistaken header must not stop a delivery for a year.
//! - Deliveries that failed together do not come back together.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use rand::Rng;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::duration;

/// The longest pause a receiver can ask for.
pub const ASKED_MAX: Duration = HOUR;

/// The shortest pause after an attempt that showed a destination to be set up wrongly: a person has to act, and
/// hurrying helps nobody.
pub const MISCONFIGURED_MIN: Duration = MINUTE;

/// How long a destination is held when it does not say for how long.
const HOLD_DEFAULT: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How a destination's failed deliveries are tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The upper bounds of the pauses.
    pub schedule: Schedule,
    /// A delivery is dead once so many attempts failed.
    pub attempts_max: u32,
    /// A delivery that fails is dead when its first attempt is so long ago.
    pub age_max: Duration,
}

/// The upper bounds of the pauses between attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Doubles from `first` until it reaches `max`.
    Exponential {
        /// After the first failure.
        first: Duration,
        /// Never more than this.
        max: Duration,
    },
    /// One after another; the last one repeats if more attempts are allowed.
    Pauses(Vec<Duration>),
}

impl RetryPolicy {
    /// For systems of one's own: quick first, at most a quarter of an hour apart, 20 attempts. They are used up after an
    /// hour and a quarter on average; the age of a day only ends what holds draw out.
    pub fn internal() -> RetryPolicy {
        RetryPolicy {
            schedule: Schedule::Exponential { first: SECOND, max: 15 * MINUTE },
            attempts_max: 20,
            age_max: DAY,
        }
    }

    /// For other people's endpoints: the pauses Standard Webhooks recommends, three days in all at the most.
    pub fn webhook() -> RetryPolicy {
        RetryPolicy::pauses(vec![
            5 * SECOND,
            5 * MINUTE,
            30 * MINUTE,
            2 * HOUR,
            5 * HOUR,
            10 * HOUR,
            14 * HOUR,
            20 * HOUR,
            24 * HOUR,
        ])
    }

    /// These pauses, one attempt more than there are pauses.
    ///
    /// The age only ends what the count cannot: holds, which count no attempt. So it is generous, twice the sum of the
    /// pauses and at least a day.
    pub fn pauses(pauses: Vec<Duration>) -> RetryPolicy {
        let sum = pauses.iter().fold(Duration::ZERO, |sum, pause| sum.saturating_add(*pause));
        RetryPolicy {
            attempts_max: u32::try_from(pauses.len()).unwrap_or(u32::MAX).saturating_add(1),
            age_max: sum.saturating_mul(2).max(DAY),
            schedule: Schedule::Pauses(pauses),
        }
    }

    /// The pause after `failed` attempts, the first of them `age` ago, or `None` when the delivery is dead.
    ///
    /// Drawn from the whole range up to the schedule's bound ("full jitter"): a thousand deliveries that failed
    /// together because one endpoint went down must not come back together. What the receiver `asked` for is a lower
    /// bound, and is itself spread upward for the same reason.
    pub fn next_delay(
        &self,
        failed: NonZeroU32,
        age: Duration,
        asked: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        if self.attempts_max <= failed.get() || self.age_max <= age {
            return None;
        }
        let pause = rng.random_range(Duration::ZERO..=self.bound(failed));
        Some(asked.map_or(pause, |asked| pause.max(spread_upward(asked, rng))))
    }

    /// The same after an attempt that showed the destination to be set up wrongly: at least [`MISCONFIGURED_MIN`].
    pub fn next_delay_misconfigured(&self, failed: NonZeroU32, age: Duration, rng: &mut impl Rng) -> Option<Duration> {
        self.next_delay(failed, age, Some(MISCONFIGURED_MIN), rng)
    }

    /// The longest a delivery can live without being held, its attempts taking no time.
    pub fn horizon(&self) -> Duration {
        let pauses = (1..self.attempts_max).filter_map(NonZeroU32::new).map(|failed| self.bound(failed));
        // A count without end would be summed for long; the age ends it anyway.
        let sum = pauses.take(10_000).fold(Duration::ZERO, Duration::saturating_add);
        sum.min(self.age_max)
    }

    fn bound(&self, failed: NonZeroU32) -> Duration {
        match &self.schedule {
            Schedule::Exponential { first, max } => {
                // Saturate: a wrapped bound would be zero, and zero hammers the endpoint we meant to spare.
                let doublings = (failed.get() - 1).min(31);
                first.saturating_mul(1_u32 << doublings).min(*max)
            }
            Schedule::Pauses(pauses) => {
                let nth = (failed.get() - 1) as usize;
                pauses.get(nth).or(pauses.last()).copied().unwrap_or(MINUTE)
            }
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy::internal()
    }
}

/// How long a destination that asked for a pause is held: as long as it asked, up to [`ASKED_MAX`], and a little more
/// by chance.
pub fn hold_pause(asked: Option<Duration>, rng: &mut impl Rng) -> Duration {
    // A hold of nothing would come back at once, uncounted, for ever.
    spread_upward(asked.unwrap_or(HOLD_DEFAULT).max(SECOND), rng)
}

fn spread_upward(asked: Duration, rng: &mut impl Rng) -> Duration {
    let asked = asked.min(ASKED_MAX);
    asked + rng.random_range(Duration::ZERO..=asked / 10)
}

// ---- as configuration ----

fn preset<E: de::Error>(name: &str) -> Result<RetryPolicy, E> {
    match name {
        "internal" => Ok(RetryPolicy::internal()),
        "webhook" => Ok(RetryPolicy::webhook()),
        _ => Err(E::custom(format!(
            "there is no retry preset `{name}`; choose `internal` or `webhook`, or list the pauses"
        ))),
    }
}

/// Accepts a preset's name, a list of pauses, or a table of `preset` or `pauses` with `attempts_max` and `age_max`.
impl<'de> Deserialize<'de> for RetryPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RetryPolicy, D::Error> {
        deserializer.deserialize_any(PolicyVisitor)
    }
}

struct PolicyVisitor;

impl<'de> Visitor<'de> for PolicyVisitor {
    type Value = RetryPolicy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ preset = \"internal\" }, { preset = \"webhook\" } or a list of pauses such as [\"5s\", \"5m\"]")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<RetryPolicy, E> {
        preset(name)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<RetryPolicy, A::Error> {
        listed(Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))?)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RetryPolicy, A::Error> {
        Table::deserialize(de::value::MapAccessDeserializer::new(map))?.policy()
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    preset: Option<String>,
    pauses: Option<Vec<duration::Text>>,
    attempts_max: Option<u32>,
    age_max: Option<duration::Text>,
}

impl Table {
    fn policy<E: de::Error>(self) -> Result<RetryPolicy, E> {
        let mut policy = match (self.preset, self.pauses) {
            (Some(_), Some(_)) => {
                return Err(E::custom("a retry policy has either a `preset` or `pauses`, not both"));
            }
            (Some(name), None) => preset(&name)?,
            (None, Some(pauses)) => listed(pauses)?,
            (None, None) => RetryPolicy::default(),
        };
        if let Some(attempts_max) = self.attempts_max {
            if attempts_max == 0 {
                return Err(E::custom("`attempts_max` is at least 1: the first attempt counts"));
            }
            policy.attempts_max = attempts_max;
        }
        if let Some(age_max) = self.age_max {
            policy.age_max = age_max.0;
        }
        Ok(policy)
    }
}

fn listed<E: de::Error>(pauses: Vec<duration::Text>) -> Result<RetryPolicy, E> {
    if pauses.is_empty() {
        return Err(E::custom("the list of pauses is empty; to try only once write { attempts_max = 1 }"));
    }
    Ok(RetryPolicy::pauses(pauses.into_iter().map(|pause| pause.0).collect()))
}

/// Written as the table that reads back as the same policy.
impl Serialize for RetryPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        // An exponential schedule can only be configured through its preset.
        match &self.schedule {
            Schedule::Exponential { .. } => map.serialize_entry("preset", "internal")?,
            Schedule::Pauses(pauses) => {
                let pauses: Vec<String> = pauses.iter().map(|pause| duration::format(*pause).to_string()).collect();
                map.serialize_entry("pauses", &pauses)?;
            }
        }
        map.serialize_entry("attempts_max", &self.attempts_max)?;
        map.serialize_entry("age_max", &duration::format(self.age_max).to_string())?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn nth(failed: u32) -> NonZeroU32 {
        NonZeroU32::new(failed).unwrap()
    }

    #[test]
    fn bounds_follow_the_schedule() {
        let table = [
            (RetryPolicy::internal(), vec![(1, 1), (2, 2), (3, 4), (10, 512), (11, 900), (19, 900)]),
            (RetryPolicy::webhook(), vec![(1, 5), (2, 300), (3, 1_800), (8, 72_000), (9, 86_400)]),
            (RetryPolicy { attempts_max: 9, ..RetryPolicy::pauses(vec![SECOND]) }, vec![(1, 1), (8, 1)]),
            (RetryPolicy { attempts_max: 9, ..RetryPolicy::pauses(vec![]) }, vec![(1, 60)]),
        ];
        for (policy, cases) in table {
            for (failed, secs) in cases {
                assert_eq!(policy.bound(nth(failed)).as_secs(), secs, "{policy:?} after {failed}");
            }
        }
    }

    #[test]
    fn a_delivery_dies_of_attempts_or_of_age() {
        let mut rng = StdRng::seed_from_u64(1);
        for (policy, failed, age, alive) in [
            (RetryPolicy::internal(), 19, Duration::ZERO, true),
            (RetryPolicy::internal(), 20, Duration::ZERO, false),
            (RetryPolicy::internal(), u32::MAX, Duration::ZERO, false),
            (RetryPolicy::internal(), 1, DAY - SECOND, true),
            (RetryPolicy::internal(), 1, DAY, false),
            (RetryPolicy::webhook(), 9, 3 * DAY, true),
            (RetryPolicy::webhook(), 10, 3 * DAY, false),
        ] {
            assert_eq!(policy.next_delay(nth(failed), age, None, &mut rng).is_some(), alive, "{failed} {age:?}");
        }
    }

    #[test]
    fn a_misconfigured_destination_is_asked_once_a_minute_at_most() {
        let mut rng = StdRng::seed_from_u64(2);
        for _ in 0..1_000 {
            let pause = RetryPolicy::internal().next_delay_misconfigured(nth(1), Duration::ZERO, &mut rng).unwrap();
            assert!((MISCONFIGURED_MIN..MISCONFIGURED_MIN * 2).contains(&pause), "{pause:?}");
        }
    }

    #[test]
    fn pauses_use_the_whole_range() {
        let mut rng = StdRng::seed_from_u64(3);
        let policy = RetryPolicy::pauses(vec![100 * SECOND]);
        let pauses: Vec<Duration> =
            (0..1_000).map(|_| policy.next_delay(nth(1), Duration::ZERO, None, &mut rng).unwrap()).collect();
        assert!(pauses.iter().any(|pause| *pause < 5 * SECOND) && pauses.iter().any(|pause| *pause > 95 * SECOND));
    }

    #[test]
    fn a_hold_is_never_nothing_and_never_long() {
        let mut rng = StdRng::seed_from_u64(4);
        assert!(hold_pause(Some(Duration::ZERO), &mut rng) >= SECOND);
        assert!(hold_pause(None, &mut rng) >= HOLD_DEFAULT);
        assert!(hold_pause(Some(Duration::MAX), &mut rng) <= ASKED_MAX * 2);
    }

    proptest! {
        #[test]
        fn a_receiver_slows_down_and_never_hurries(
            failed in 1_u32..20, asked_ms in proptest::option::of(any::<u64>()), seed: u64,
        ) {
            let asked = asked_ms.map(Duration::from_millis);
            let policy = RetryPolicy::internal();
            let mut same = StdRng::seed_from_u64(seed);
            let unasked = policy.next_delay(nth(failed), Duration::ZERO, None, &mut same).unwrap();
            let mut same = StdRng::seed_from_u64(seed);
            let pause = policy.next_delay(nth(failed), Duration::ZERO, asked, &mut same).unwrap();
            prop_assert!(pause >= unasked);
            prop_assert!(pause >= asked.unwrap_or_default().min(ASKED_MAX));
            prop_assert!(pause <= unasked.max(ASKED_MAX + ASKED_MAX / 10));
        }
    }

    #[test]
    fn policies_are_configured_by_preset_or_by_list() {
        #[derive(serde::Deserialize)]
        struct File {
            retry: RetryPolicy,
        }
        for (text, expected) in [
            ("retry = { preset = \"internal\" }", RetryPolicy::internal()),
            ("retry = { preset = \"webhook\" }", RetryPolicy::webhook()),
            ("retry = \"webhook\"", RetryPolicy::webhook()),
            ("retry = [\"1s\", \"1h30m\"]", RetryPolicy::pauses(vec![SECOND, 90 * MINUTE])),
            (
                "retry = { pauses = [\"1s\"], attempts_max = 5, age_max = \"2d\" }",
                RetryPolicy { schedule: Schedule::Pauses(vec![SECOND]), attempts_max: 5, age_max: 2 * DAY },
            ),
            ("retry = { attempts_max = 1 }", RetryPolicy { attempts_max: 1, ..RetryPolicy::internal() }),
        ] {
            let read: File = toml::from_str(text).unwrap();
            assert_eq!(read.retry, expected, "{text}");
            let again: RetryPolicy = serde_json::from_value(serde_json::to_value(&read.retry).unwrap()).unwrap();
            assert_eq!(again, expected, "{text}");
        }
        for (text, reason) in [
            ("retry = { preset = \"externl\" }", "choose `internal` or `webhook`"),
            ("retry = []", "the list of pauses is empty"),
            ("retry = [5]", "a span of time in quotes"),
            ("retry = [\"5\"]", "a number has no unit"),
            ("retry = { preset = \"webhook\", pauses = [\"1s\"] }", "not both"),
            ("retry = { attempts_max = 0 }", "at least 1"),
            ("retry = { attempts = 3 }", "unknown field `attempts`"),
            ("retry = 3", "a list of pauses"),
        ] {
            let error = toml::from_str::<File>(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn horizons_bound_the_life_of_a_delivery() {
        assert_eq!(RetryPolicy::webhook().horizon(), 272_105 * SECOND);
        assert!(RetryPolicy { attempts_max: u32::MAX, ..RetryPolicy::internal() }.horizon() <= DAY);
    }
}
