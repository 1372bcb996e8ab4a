//! Notices that the database's clock was put back.
//!
//! Pauses are written down as hours of that clock. When it is put back, what was to wait for seconds waits for as long as
//! it was put back. Pure: the hours the database tells and the moments it was asked, by a clock nobody sets, go in; by how
//! much the hours fell behind comes out.
//!
//! Invariants
//! - A slow answer is no step: only what no delay between question and answer can explain counts.
//! - Looks that overlap have no order, so only one of them is used.
//! - A clock that is put forward is not noticed here: nothing waits longer for it.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct ClockWatch {
    last: Option<Look>,
}

/// An hour the database told, and between which moments it did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// The hour.
    pub hour: DateTime<Utc>,
    /// When it was asked for.
    pub asked: Instant,
    /// When the answer was there.
    pub answered: Instant,
}

/// What an hour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The clock goes on as it did.
    AsBefore,
    /// It was put back since the last look, at most by so much.
    PutBack(Duration),
    /// Nothing: this was asked before the last look was answered.
    Nothing,
}

impl ClockWatch {
    /// Takes note of an hour.
    pub(crate) fn see(&mut self, look: Look) -> Said {
        let Some(last) = self.last else {
            self.last = Some(look);
            return Said::AsBefore;
        };
        if look.asked < last.answered {
            return Said::Nothing;
        }
        self.last = Some(look);
        let told = look.hour.signed_duration_since(last.hour);
        let behind = |passed: Duration| {
            let passed = chrono::TimeDelta::from_std(passed).unwrap_or(chrono::TimeDelta::MAX);
            passed.checked_sub(&told).and_then(|behind| behind.to_std().ok()).unwrap_or_default()
        };
        let least = behind(look.asked.saturating_duration_since(last.answered));
        let most = behind(look.answered.saturating_duration_since(last.asked));
        if least > TOLERANCE { Said::PutBack(most) } else { Said::AsBefore }
    }
}

/// Clocks are adjusted all the time; what waits so much longer does not matter.
const TOLERANCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked so many milliseconds after the start, answered and told so many.
    fn look(start: Instant, asked: u64, answered: u64, hour: i64) -> Look {
        Look {
            hour: DateTime::from_timestamp_millis(1_000_000_000 + hour).unwrap(),
            asked: start + Duration::from_millis(asked),
            answered: start + Duration::from_millis(answered),
        }
    }

    #[test]
    fn only_a_clock_that_was_put_back_is_noticed() {
        let (mut watch, start) = (ClockWatch::default(), Instant::now());
        for (asked, answered, hour, by) in [
            (0, 10, 5, None),
            (1_000, 1_010, 1_005, None),
            // Put forward, and nothing since.
            (2_000, 2_010, 3_602_005, None),
            (3_000, 3_010, 3_603_005, None),
            // Put back again.
            (4_000, 4_010, 4_005, Some(3_600_010)),
            (5_000, 5_010, 5_005, None),
            // A little, then an answer that took long.
            (6_000, 6_010, 5_505, None),
            (7_000, 17_000, 6_505, None),
            (18_000, 18_010, 17_505, None),
            // A frozen relay asks again after an hour.
            (3_618_000, 3_618_010, 3_617_505, None),
        ] {
            let said = watch.see(look(start, asked, answered, hour));
            let wanted = by.map_or(Said::AsBefore, |by| Said::PutBack(Duration::from_millis(by)));
            assert_eq!(said, wanted, "asked at {asked}");
        }
    }

    #[test]
    fn a_look_that_was_under_way_during_another_says_nothing() {
        let (mut watch, start) = (ClockWatch::default(), Instant::now());
        assert_eq!(watch.see(look(start, 5_000, 5_010, 5_005)), Said::AsBefore);
        // Told long before it was answered, and once by a clock that was put back since.
        assert_eq!(watch.see(look(start, 0, 6_000, 5)), Said::Nothing);
        assert_eq!(watch.see(look(start, 5_005, 6_000, 1_000)), Said::Nothing);
        assert_eq!(watch.see(look(start, 5_010, 6_000, 1_005)), Said::PutBack(Duration::from_millis(5_000)));
        assert_eq!(watch.see(look(start, 6_000, 6_010, 1_500)), Said::AsBefore);
    }
}
