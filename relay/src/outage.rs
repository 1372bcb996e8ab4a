//! Says once that the database fails, and once that it works again.
//!
//! A retry loop that logs every failure buries the line that matters; an outage is a few lines, however long it lasts.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::cause::chain;

/// What fails at the moment.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    failing: HashMap<&'static str, Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    times: u32,
    told_at: Instant,
}

impl Outages {
    /// An operation failed. Returns how long to wait before it is tried again.
    pub(crate) fn failed(&mut self, operation: &'static str, error: &dyn Error) -> Duration {
        let now = Instant::now();
        let failing = self.failing.entry(operation).or_insert_with(|| {
            warn!(operation, error = %chain(error), "the database fails; trying again");
            Failing { since: now, times: 0, told_at: now }
        });
        failing.times += 1;
        if now.duration_since(failing.told_at) >= REMIND {
            failing.told_at = now;
            warn!(operation, error = %chain(error), since = ?now.duration_since(failing.since), "the database still fails");
        }
        PAUSE_FIRST.saturating_mul(1 << failing.times.min(6).saturating_sub(1)).min(PAUSE_MAX)
    }

    /// An operation worked.
    pub(crate) fn recovered(&mut self, operation: &'static str) {
        if self.failing.is_empty() {
            return;
        }
        if let Some(failing) = self.failing.remove(operation) {
            info!(operation, after = ?failing.since.elapsed(), failures = failing.times, "the database works again");
        }
    }
}

const REMIND: Duration = Duration::from_secs(30);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
