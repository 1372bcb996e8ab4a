//! How often a destination is called.
//!
//! Pure: the moment is an argument. Attempts are spaced evenly, so in no second are there more than were allowed, and a
//! receiver that counts sees no bursts. A limit is for the outbox; each relay keeps to the share of its partitions.
//!
//! Invariants
//! - What was not used is not saved up, but for what a late timer missed.
//! - In any span of time there are at most as many attempts as its length allows, and one, and what fits into [`LATE`].

use std::fmt;
use std::time::{Duration, Instant};

use crate::message::PARTITIONS;

/// So many attempts in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    count: u32,
    per: Duration,
}

const UNITS: [(&str, Duration); 3] =
    [("s", Duration::from_secs(1)), ("m", Duration::from_secs(60)), ("h", Duration::from_secs(3600))];

impl RateLimit {
    /// So many each second. A limit of nothing is none; it counts as one.
    pub fn per_second(count: u32) -> RateLimit {
        RateLimit { count: count.max(1), per: Duration::from_secs(1) }
    }

    /// So many each minute.
    pub fn per_minute(count: u32) -> RateLimit {
        RateLimit { per: Duration::from_secs(60), ..RateLimit::per_second(count) }
    }

    /// Reads `50/s`, `1000/m` or `10/h`; at least one.
    pub fn parse(text: &str) -> Option<RateLimit> {
        let (count, unit) = text.split_once('/')?;
        let (_, per) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
        let digits = Some(count.trim()).filter(|count| count.bytes().all(|byte| byte.is_ascii_digit()));
        let count = digits?.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count))?;
        Some(RateLimit { count, per: *per })
    }

    /// The time between two attempts for somebody who owns so many partitions.
    fn interval(self, owned: usize) -> Duration {
        let all = self.per * u32::from(PARTITIONS) / self.count;
        all / u32::try_from(owned.clamp(1, usize::from(PARTITIONS))).unwrap_or(1)
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, per)| *per == self.per).map_or("s", |(name, _)| name);
        write!(f, "{}/{unit}", self.count)
    }
}

/// Spaces the attempts of one destination.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    limit: Option<RateLimit>,
    interval: Duration,
    /// When the last one was to start.
    last: Option<Instant>,
    /// Since when there has always been something that had to wait, and when that was seen last.
    pressed: Option<(Instant, Instant)>,
}

impl Pacer {
    /// Without a limit everything may start at once.
    pub(crate) fn new(limit: Option<RateLimit>) -> Pacer {
        let mut pacer = Pacer { limit, ..Pacer::default() };
        pacer.share(usize::from(PARTITIONS));
        pacer
    }

    /// So many partitions are owned from now on.
    pub(crate) fn share(&mut self, owned: usize) {
        self.interval = self.limit.map_or(Duration::ZERO, |limit| limit.interval(owned));
    }

    /// When the next attempt may start, if it has to wait.
    pub(crate) fn wait(&self, now: Instant) -> Option<Instant> {
        self.last.map(|last| last + self.interval).filter(|next| now < *next)
    }

    /// Something has to wait now.
    pub(crate) fn presses(&mut self, now: Instant) {
        let since = self.pressed.filter(|(_, seen)| now.saturating_duration_since(*seen) < BREAK);
        self.pressed = Some((since.map_or(now, |(since, _)| since), now));
    }

    /// The limit, when it is what attempts have waited for: for a while, without a break.
    pub(crate) fn in_the_way(&self, now: Instant) -> Option<RateLimit> {
        let (since, seen) = self.pressed?;
        let is_lasting = seen.saturating_duration_since(since) >= BREAK && now.saturating_duration_since(seen) < BREAK;
        self.limit.filter(|_| is_lasting)
    }

    /// One starts now.
    pub(crate) fn started(&mut self, now: Instant) {
        if self.limit.is_some() {
            let earliest = now.checked_sub(LATE).unwrap_or(now);
            self.last = Some(self.last.map_or(now, |last| (last + self.interval).max(earliest)));
        }
    }
}

/// More than anybody can mean.
const COUNT_MAX: u32 = 1_000_000;
/// A limit that was in the way for less is not spoken of, nor is one that has not been for so long.
const BREAK: Duration = Duration::from_secs(5);
/// What a timer that fires late may make up for.
const LATE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_written_back() {
        for text in ["50/s", "1/s", "1000/m", "10/h", "1000000/s"] {
            assert_eq!(RateLimit::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(RateLimit::parse(" 50 / s "), Some(RateLimit::per_second(50)));
        for text in ["", "50", "/s", "0/s", "-1/s", "+1/s", "1.5/s", "50/d", "50/second", "1000001/s", "99999999999/s"]
        {
            assert_eq!(RateLimit::parse(text), None, "{text:?}");
        }
    }

    /// Starts whatever may start, looking every `step`; returns how many that were in each second.
    fn starts(pacer: &mut Pacer, step: Duration, seconds: u32) -> Vec<u32> {
        let began = Instant::now();
        let mut counts = vec![0; seconds as usize];
        let mut at = Duration::ZERO;
        while at < Duration::from_secs(u64::from(seconds)) {
            while pacer.wait(began + at).is_none() {
                pacer.started(began + at);
                counts[usize::try_from(at.as_secs()).unwrap()] += 1;
            }
            at += step;
        }
        counts
    }

    #[test]
    fn no_second_has_more_than_the_limit_and_none_is_wasted() {
        for (count, step) in [(50, 1), (50, 7), (1, 3), (900, 1), (5_000, 1), (5_000, 9)] {
            let mut pacer = Pacer::new(Some(RateLimit::per_second(count)));
            let counts = starts(&mut pacer, Duration::from_millis(step), 4);
            let late = count / 100 + 1;
            assert!(counts.iter().all(|started| *started <= count + late), "{count} {counts:?}");
            assert!(counts.iter().sum::<u32>() + late + 1 >= 4 * count, "{count} {counts:?}");
        }
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut pacer = Pacer::new(Some(RateLimit::per_second(10)));
        let now = Instant::now();
        pacer.started(now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(pacer.wait(later), None);
        pacer.started(later);
        assert_eq!(pacer.wait(later), Some(later + Duration::from_millis(90)), "a late timer is made up for, no more");
    }

    #[test]
    fn a_limit_is_spoken_of_when_it_lasts() {
        let (mut pacer, start) = (Pacer::new(RateLimit::parse("10/h")), Instant::now());
        let at = |secs: u64| start + Duration::from_secs(secs);
        for (presses, now, told) in [
            (true, 0, false),
            (true, 4, false),
            (false, 6, false),
            (true, 8, true),
            (false, 12, true),
            (false, 13, false),
            // Something waits again, after a break.
            (true, 14, false),
            (true, 18, false),
            (true, 19, true),
        ] {
            if presses {
                pacer.presses(at(now));
            }
            assert_eq!(pacer.in_the_way(at(now)).is_some(), told, "after {now} s");
        }
    }

    #[test]
    fn a_relay_keeps_to_its_share() {
        let mut pacer = Pacer::new(Some(RateLimit::per_second(64)));
        pacer.share(8);
        assert_eq!(starts(&mut pacer, Duration::from_millis(1), 2).iter().sum::<u32>(), 32);
        // What a small share had to wait for is not waited for with a large one.
        let (mut pacer, now) = (Pacer::new(RateLimit::parse("10/h")), Instant::now());
        pacer.share(1);
        pacer.started(now);
        assert_eq!(pacer.wait(now), Some(now + Duration::from_secs(32 * 360)));
        pacer.share(32);
        assert_eq!(pacer.wait(now), Some(now + Duration::from_secs(360)));
        pacer.share(0);
        assert_eq!(
            pacer.wait(now),
            Some(now + Duration::from_secs(32 * 360)),
            "nothing is owned and nothing divided by it"
        );
        let mut free = Pacer::new(None);
        free.started(Instant::now());
        assert_eq!(free.wait(Instant::now()), None);
    }
}
