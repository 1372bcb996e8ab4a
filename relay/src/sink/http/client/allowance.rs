//! How much of what a destination says is read.
//!
//! Pure: moments and numbers of bytes go in, and for how long nothing more is read comes out.
//!
//! Each attempt allows for more than its answer is read, so whoever answers is never slowed down. Without an attempt it is a
//! steady trickle. What was said beyond that stays in the buffers of the network until its time has come.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes a destination may say, at a moment.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Below zero, more was read at once than was allowed.
    left: i64,
    at: Instant,
}

/// For an attempt: the head of an answer, what is read of its body, and what comes with them.
const PER_ATTEMPT: i64 = 128 * 1024;
/// For a second: certificates, and words of the protocol.
const PER_SECOND: i64 = 512 * 1024;
/// What is not used adds up to this.
const MAX: i64 = 4 * 1024 * 1024;

impl Allowance {
    pub(super) fn new(now: Instant) -> Allowance {
        Allowance { left: PER_SECOND, at: now }
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self, now: Instant) {
        self.pass(now);
        self.left = (self.left + PER_ATTEMPT).min(MAX);
    }

    /// So many bytes were read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// For how long nothing more is read, if so.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.pass(now);
        let missing = u64::try_from(1 - self.left).ok().filter(|missing| *missing > 0)?;
        // Not for every byte.
        Some(Duration::from_secs(missing).div_f64(PER_SECOND as f64).max(Duration::from_millis(10)))
    }

    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let more = (passed.as_secs_f64() * PER_SECOND as f64) as i64;
        // What is less than a byte adds up until it is one.
        if more > 0 {
            self.at = now;
            self.left = self.left.saturating_add(more).min(MAX.max(self.left));
        }
    }
}

pub(super) fn locked(allowance: &Mutex<Allowance>) -> MutexGuard<'_, Allowance> {
    allowance.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn whoever_answers_is_never_slowed_down() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for n in 0..100_000 {
            let now = start + Duration::from_micros(n);
            allowance.attempt(now);
            allowance.read(PER_ATTEMPT as usize - 1);
            assert_eq!(allowance.pause(now), None);
        }
    }

    #[test]
    fn whoever_pours_is_read_at_its_pace() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let (mut now, mut read) = (start, 0);
        allowance.attempt(now);
        while now < after(start, 10_000) {
            match allowance.pause(now) {
                Some(pause) => now += pause,
                None => {
                    allowance.read(64 * 1024);
                    read += 64 * 1024;
                }
            }
        }
        let fair = PER_ATTEMPT + 11 * PER_SECOND;
        assert!((fair - 65_536..=fair + 131_072).contains(&read), "{read} of {fair}");
    }

    #[test]
    fn what_is_not_used_adds_up_to_a_limit_only() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!(allowance.pause(after(start, 1_000_000)), None);
        for _ in 0..1000 {
            allowance.attempt(after(start, 1_000_000));
        }
        allowance.read(MAX as usize);
        assert!(allowance.pause(after(start, 1_000_000)).is_some());
        // The clock of the machine never goes back; if it seemed to, nothing would be given twice.
        assert!(allowance.pause(start).is_some());
    }
}
