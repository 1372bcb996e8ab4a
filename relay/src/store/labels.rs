//! Words of ours that stand in the tables for people: why a delivery waits, and why it was given up.
//!
//! Nothing is decided by reading them back.

/// Why a delivery waits: a label for people, never read back to decide anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// An attempt failed.
    Retry,
    /// Its key's head waits.
    Blocked,
    /// Its time has not come.
    Scheduled,
    /// No destination's pattern matches.
    Unrouted,
    /// The owner of its partition does not serve its destination.
    Unserved,
    /// Its destination is slow, paused or held.
    Overflow,
    /// It may have killed a relay.
    Suspect,
}

impl State {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Retry => "retry",
            State::Blocked => "blocked",
            State::Scheduled => "scheduled",
            State::Unrouted => "unrouted",
            State::Unserved => "unserved",
            State::Overflow => "overflow",
            State::Suspect => "suspect",
        }
    }
}

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The receiver said no.
    Rejected,
    /// All attempts failed.
    Exhausted,
    /// `expires_at` passed.
    Expired,
    /// The receiver is gone for good (HTTP 410).
    Gone,
    /// It killed the relay.
    Crashed,
    /// What another producer stored cannot be sent.
    Undecodable,
    /// Its destination was removed.
    Removed,
}

impl Reason {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Rejected => "rejected",
            Reason::Exhausted => "exhausted",
            Reason::Expired => "expired",
            Reason::Gone => "gone",
            Reason::Crashed => "crashed",
            Reason::Undecodable => "undecodable",
            Reason::Removed => "removed",
        }
    }
}
