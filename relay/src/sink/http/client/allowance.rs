//! How much of what a destination says is read.
//!
//! Pure: moments and numbers of bytes go in, and for how long nothing more is read comes out.
//!
//! Each attempt allows for more than its answer is read, so whoever answers is never slowed down. Without an attempt it is a
//! steady trickle. What was said beyond that stays in the buffers of the network until its time has come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// Bytes a destination may say, at a moment.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Below zero, more was read at once than was allowed.
    left: i64,
    /// Bodies that are on their way, whether anybody still reads them or not.
    bodies: i64,
    at: Instant,
    under_way: u32,
}

/// For an attempt: a handshake, and the head of an answer, which may come to twice its limit before that is looked at.
const PER_ATTEMPT: i64 = 192 * 1024;
/// For a second: words of the protocol.
const PER_SECOND: i64 = 64 * 1024;
/// What is not used adds up to this, beside what the attempts under way allow for.
const SPARE_MAX: i64 = 256 * 1024;

impl Allowance {
    pub(super) fn new(now: Instant) -> Allowance {
        Allowance { left: SPARE_MAX, bodies: 0, at: now, under_way: 0 }
    }

    fn begins(&mut self, now: Instant) {
        self.pass(now);
        self.under_way += 1;
        self.left = self.left.saturating_add(PER_ATTEMPT).min(self.max());
    }

    fn ends(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        self.left = self.left.min(self.max());
        self.bodies = self.bodies.min(self.bodies_max());
    }

    fn max(&self) -> i64 {
        SPARE_MAX + i64::from(self.under_way) * PER_ATTEMPT
    }

    /// What answers that were cut off had sent until then, which is no more than a connection takes unread, and what those
    /// may send that are not.
    fn bodies_max(&self) -> i64 {
        i64::from(CONNECTION_WINDOW_BYTES) + i64::from(self.under_way) * i64::from(STREAM_WINDOW_BYTES)
    }

    /// An answer came over HTTP/2, so the beginning of its body comes, too, beside other answers.
    pub(super) fn answered(&mut self) {
        self.bodies = (self.bodies + i64::from(STREAM_WINDOW_BYTES)).min(self.bodies_max());
    }

    /// So many bytes were read.
    pub(super) fn read(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Of what comes anew by itself first, and not of what the bodies were given that are still to come.
        let at_hand = bytes.min(self.left.max(0));
        let of_bodies = (bytes - at_hand).min(self.bodies);
        self.bodies -= of_bodies;
        self.left = self.left.saturating_sub(bytes - of_bodies);
    }

    /// For how long nothing more is read, if so.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.pass(now);
        let missing = u64::try_from(1 - self.left - self.bodies).ok().filter(|missing| *missing > 0)?;
        // Not for every byte.
        Some(Duration::from_secs(missing).div_f64(PER_SECOND as f64).max(Duration::from_millis(10)))
    }

    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let more = (passed.as_secs_f64() * PER_SECOND as f64) as i64;
        // What is less than a byte adds up until it is one.
        if more > 0 {
            self.at = now;
            self.left = self.left.saturating_add(more).min(self.max());
        }
    }
}

/// An attempt that is under way until this is dropped.
pub(super) struct UnderWay(Arc<Mutex<Allowance>>);

impl UnderWay {
    pub(super) fn begins(allowance: &Arc<Mutex<Allowance>>) -> UnderWay {
        locked(allowance).begins(Instant::now());
        UnderWay(Arc::clone(allowance))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        locked(&self.0).ends();
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
        for at_once in [1, 16, 1024, 20_000] {
            // All ask before the first one answers.
            for _ in 0..at_once {
                allowance.begins(start);
            }
            for _ in 0..at_once {
                allowance.read(PER_ATTEMPT as usize);
                assert_eq!(allowance.pause(start), None, "{at_once} at once");
            }
            for _ in 0..at_once {
                allowance.ends();
            }
        }
    }

    #[test]
    fn whoever_answers_all_and_then_sends_the_bodies_is_never_slowed_down() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for at_once in [1, 8, 9, 16, 100, 1024] {
            for _ in 0..at_once {
                allowance.begins(start);
            }
            for _ in 0..at_once {
                allowance.read(PER_ATTEMPT as usize);
                assert_eq!(allowance.pause(start), None, "{at_once} at once");
                allowance.answered();
            }
            for _ in 0..at_once {
                allowance.read(STREAM_WINDOW_BYTES as usize);
                assert_eq!(allowance.pause(start), None, "{at_once} at once");
                allowance.ends();
            }
        }
    }

    #[test]
    fn the_bodies_of_answers_that_were_cut_off_take_nothing_from_those_that_follow() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        // They fill the connection, and are given up before anything of them is read.
        for _ in 0..100 {
            allowance.begins(start);
            allowance.answered();
        }
        for _ in 0..100 {
            allowance.ends();
        }
        allowance.begins(start);
        allowance.answered();
        allowance.read((CONNECTION_WINDOW_BYTES + STREAM_WINDOW_BYTES) as usize);
        assert_eq!(allowance.pause(start), None);
    }

    #[test]
    fn whoever_pours_is_read_at_its_pace() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let (mut now, mut read) = (start, 0);
        allowance.begins(now);
        while now < after(start, 10_000) {
            match allowance.pause(now) {
                Some(pause) => now += pause,
                None => {
                    allowance.read(64 * 1024);
                    read += 64 * 1024;
                }
            }
        }
        let fair = SPARE_MAX + PER_ATTEMPT + 10 * PER_SECOND;
        assert!((fair - 65_536..=fair + 131_072).contains(&read), "{read} of {fair}");
    }

    #[test]
    fn a_body_nobody_reads_to_its_end_takes_nothing_from_the_other_answers() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for _ in 0..1000 {
            allowance.begins(start);
            allowance.answered();
            allowance.ends();
            allowance.read(PER_ATTEMPT as usize + STREAM_WINDOW_BYTES as usize);
            assert_eq!(allowance.pause(start), None);
        }
        // Nor does what was never sent of them add up.
        for _ in 0..1000 {
            allowance.answered();
        }
        allowance.read((CONNECTION_WINDOW_BYTES as i64 + SPARE_MAX) as usize);
        assert!(allowance.pause(start).is_some());
    }

    #[test]
    fn what_is_not_used_adds_up_to_a_limit_only() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!(allowance.pause(after(start, 1_000_000)), None);
        for _ in 0..1000 {
            allowance.begins(after(start, 1_000_000));
        }
        for _ in 0..1000 {
            allowance.ends();
        }
        allowance.read(SPARE_MAX as usize);
        assert!(allowance.pause(after(start, 1_000_000)).is_some());
        // The clock of the machine never goes back; if it seemed to, nothing would be given twice.
        assert!(allowance.pause(start).is_some());
    }
}
