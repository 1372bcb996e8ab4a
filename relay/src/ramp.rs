//! How many attempts at a time a destination gets, given how the last ones went.
//!
//! Pure counting. A destination that is down gets one attempt at a time: sixteen that hang are no better than one, and
//! when it comes back everything that waited for it must not arrive at once. Each success then allows one more, so the
//! number doubles with every full round of successes, until it is what the configuration says.
//!
//! Invariants
//! - Between one and the configured number.
//! - A destination that fails now and then keeps what it has: only a whole round of failures, without a success in
//!   between, takes half of it.

/// The attempts at a time of one destination.
#[derive(Debug)]
pub(crate) struct Ramp {
    max: usize,
    limit: usize,
    /// Failures since the last success or the last step down.
    failed: usize,
}

impl Ramp {
    /// Begins with the configured number.
    pub(crate) fn new(max: usize) -> Ramp {
        Ramp { max, limit: max, failed: 0 }
    }

    /// Attempts at a time, now.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// One at a time: the next attempt is to show whether the receiver works.
    pub(crate) fn probe(&mut self) {
        (self.limit, self.failed) = (1, 0);
    }

    /// The receiver has answered that it works, whatever it thinks of the message.
    pub(crate) fn succeeded(&mut self) {
        self.failed = 0;
        self.limit = (self.limit + 1).min(self.max);
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self) {
        self.failed += 1;
        if self.failed >= self.limit.max(ROUND_MIN) {
            self.failed = 0;
            self.limit = (self.limit / 2).max(1);
        }
    }
}

/// A round has so many attempts at least: a few failures in a row are no outage.
const ROUND_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ramp: &mut Ramp, successes: usize, failures: usize) -> usize {
        (0..failures).for_each(|_| ramp.failed());
        (0..successes).for_each(|_| ramp.succeeded());
        ramp.limit()
    }

    #[test]
    fn an_outage_leaves_one_attempt_at_a_time_and_successes_bring_the_others_back() {
        let mut ramp = Ramp::new(16);
        assert_eq!(after(&mut ramp, 0, 15), 16);
        assert_eq!(after(&mut ramp, 0, 1), 8);
        assert_eq!(after(&mut ramp, 0, 8 + 8 + 8), 1);
        assert_eq!(after(&mut ramp, 0, 1000), 1, "never none");
        assert_eq!(after(&mut ramp, 1, 0), 2);
        assert_eq!(after(&mut ramp, 2, 0), 4, "a round of successes doubles it");
        assert_eq!(after(&mut ramp, 1000, 0), 16, "never more than configured");
    }

    #[test]
    fn failures_between_successes_change_nothing() {
        let mut ramp = Ramp::new(16);
        for _ in 0..100 {
            assert_eq!(after(&mut ramp, 1, 7), 16);
        }
    }

    #[test]
    fn one_at_a_time_stays_one() {
        let mut ramp = Ramp::new(1);
        assert_eq!((after(&mut ramp, 0, 50), after(&mut ramp, 50, 0)), (1, 1));
    }
}
