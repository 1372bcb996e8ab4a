//! Spans of time as people write them: `250ms`, `5s`, `30m`, `1h30m`, `90d`.
//!
//! Whole numbers with a unit, largest first by custom but in any order. No fractions (`90s` says it better than `1.5m`)
//! and no number without a unit: nobody remembers whether a bare `30` meant seconds.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// The units, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// What is wrong with a span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a span of time: {problem}; write for example `250ms`, `5s`, `30m`, `1h30m` or `90d`")]
pub struct DurationError {
    text: String,
    problem: &'static str,
}

/// The names of the units.
pub(crate) fn units() -> Vec<&'static str> {
    UNITS.iter().map(|(name, _)| *name).collect()
}

/// Reads a span of time.
///
/// # Errors
/// When the text is empty, a number has no unit or an unknown one, or the sum is too large to count in milliseconds.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = |problem| DurationError { text: text.chars().take(40).collect(), problem };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error("it is empty"));
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(error("a whole number is missing"));
        }
        if unit.is_empty() {
            return Err(error("a number has no unit"));
        }
        let Some((_, unit_ms)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(error("the units are ms, s, m, h and d"));
        };
        total_ms = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*unit_ms))
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or_else(|| error("it is too long"))?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a span of time the way [`parse`] reads it, to the millisecond.
pub fn format(duration: Duration) -> impl fmt::Display {
    Written(duration)
}

struct Written(Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest_ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest_ms == 0 {
            return f.write_str("0s");
        }
        for (unit, unit_ms) in UNITS {
            let count = rest_ms / unit_ms;
            rest_ms %= unit_ms;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

/// For `#[serde(with = "crate::duration")]`.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format(*duration))
}

/// For `#[serde(with = "crate::duration")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Text::deserialize(deserializer).map(|text| text.0)
}

/// A span of time inside lists and options, where `with` does not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Duration);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a span of time in quotes, such as \"5s\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text, E> {
                parse(text).map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_back() {
        for (text, ms, written) in [
            ("250ms", 250, "250ms"),
            ("5s", 5_000, "5s"),
            ("30m", 1_800_000, "30m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90m", 5_400_000, "1h30m"),
            ("90d", 7_776_000_000, "90d"),
            (" 1s500ms ", 1_500, "1s500ms"),
            ("0s", 0, "0s"),
            ("0ms", 0, "0s"),
        ] {
            let duration = parse(text).unwrap();
            assert_eq!(duration, Duration::from_millis(ms), "{text}");
            assert_eq!(format(duration).to_string(), written);
        }
    }

    #[test]
    fn what_is_not_a_span_is_refused_with_an_example() {
        for text in
            ["", "5", "s", "5 s", "-5s", "1.5h", "5w", "5S", "1e3s", "99999999999999999999s", "18446744073709551615d"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("1h30m"), "{text}: {error}");
        }
    }
}
