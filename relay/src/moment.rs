//! Moments by which leases are judged.
//!
//! The clock goes on while the machine is suspended: a virtual machine that was put to sleep has to notice that its lease
//! is over when it wakes. [`std::time::Instant`] does not do that on Linux, where it stands still meanwhile. Like it, this
//! clock cannot be set, so nothing here depends on the time of day.
//!
//! On systems that offer no such clock it is that of `Instant`; a suspended relay then learns from the table that
//! it was declared dead, with its next renewal.

use std::ops::Add;
use std::time::Duration;

/// A moment on a clock that never stands still and cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// The present.
    pub(crate) fn now() -> Moment {
        Moment(since_boot())
    }

    /// What has passed since `earlier`; nothing when that is later.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// So long after the clock's beginning.
    #[cfg(test)]
    pub(crate) fn at(since_start: Duration) -> Moment {
        Moment(since_start)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).expect("the time since the boot is not negative")
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;

    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_never_less_than_nothing() {
        let (start, second) = (Moment::at(Duration::from_secs(5)), Duration::from_secs(1));
        assert_eq!((start + second).since(start), second);
        assert_eq!(start.since(start + second), Duration::ZERO);
        assert!(start < start + second);
        assert_eq!(start + Duration::MAX, Moment::at(Duration::MAX), "it does not wrap");
    }

    #[test]
    fn it_goes_on_as_fast_as_the_clock_of_the_program() {
        let (first, began) = (Moment::now(), std::time::Instant::now());
        while began.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        assert!(Moment::now().since(first) >= Duration::from_millis(20));
    }

    /// The other clock of the same system stands still in suspend, so it is never ahead.
    #[cfg(target_os = "linux")]
    #[test]
    fn it_is_not_the_clock_that_stands_still() {
        let awake = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        assert!(Moment::now() >= Moment::at(Duration::try_from(awake).unwrap()));
    }
}
