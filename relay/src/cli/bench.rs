//! Measures how fast an outbox drains.

use super::{BenchDrain, Exit, Failure, Output};

/// Measures one drain.
pub(super) fn drain(_output: &Output, _drain: &BenchDrain) -> Result<Exit, Failure> {
    Err(Failure::new(Exit::Failed, "relay: `bench drain` is not part of this build"))
}
