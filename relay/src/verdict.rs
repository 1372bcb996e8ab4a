//! How an attempt is judged.
//!
//! The same five words for handlers and HTTP, and a sixth for what is no attempt at all. What an answer means is decided in
//! the sink; what follows from a verdict is decided by the lane.

use std::time::Duration;

/// The judgement of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Delivered,
    /// It failed; try again later, not before `after` if that is given.
    Retry {
        /// What the receiver asked for.
        after: Option<Duration>,
    },
    /// The receiver asks for a pause of the whole destination. No attempt is counted.
    Hold {
        /// For how long.
        pause: Option<Duration>,
    },
    /// The destination is set up wrongly: retry slowly.
    Misconfigured,
    /// The receiver will never take it: dead letter now.
    Reject {
        /// True when the receiver is gone for good: the destination pauses.
        gone: bool,
    },
    /// What its producer stored cannot be sent: dead letter now. Nobody was asked, so it is no attempt, and says nothing
    /// about the receiver.
    Undecodable,
}

impl Verdict {
    /// The word in histories, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Delivered => "delivered",
            Verdict::Retry { .. } => "retry",
            Verdict::Hold { .. } => "hold",
            Verdict::Misconfigured => "misconfigured",
            Verdict::Reject { .. } => "reject",
            Verdict::Undecodable => "undecodable",
        }
    }
}
