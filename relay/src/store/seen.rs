//! Relays, destinations and figures, as they are registered and as they are seen.

use std::time::Duration;

use chrono::{DateTime, Utc};
pub use outbox::relays::Circuit;

use super::Written;
use crate::message::RelayId;

/// A relay as it registers.
#[derive(Clone, Debug)]
pub struct RelayRow {
    /// Its identity.
    pub id: RelayId,
    /// Its name for people.
    pub name: String,
    /// Its version.
    pub version: String,
    /// After how long without a beat it may be declared dead.
    pub lease: Duration,
    /// The destinations it serves.
    pub serves: Vec<String>,
}

/// Who is there and who owns what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Membership {
    /// All relays, ourselves included.
    pub relays: Vec<RelaySeen>,
    /// All partitions: (number, owner, epoch).
    pub partitions: Vec<(u8, Option<RelayId>, i64)>,
}

/// A relay as another sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelaySeen {
    /// Its identity.
    pub id: RelayId,
    /// Its name for people.
    pub name: String,
    /// Its version.
    pub version: String,
    /// After how long without a beat it may be declared dead.
    pub lease: Duration,
    /// Its beat counter.
    pub beat: i64,
    /// True when it is stopping.
    pub draining: bool,
    /// The destinations it serves.
    pub serves: Vec<String>,
    /// When it registered.
    pub started_at: DateTime<Utc>,
}

/// A destination as a relay registers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationSpec {
    /// Its name.
    pub name: String,
    /// The topics it wants.
    pub patterns: Vec<String>,
    /// `key` or `none`.
    pub ordering: String,
}

/// Every registered destination.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// Rises with every change of names, patterns or orderings.
    pub version: i64,
    /// The destinations, by name.
    pub destinations: Vec<DestinationSeen>,
    /// The hour by which they are held, where it is the database's own.
    pub hour: Option<DateTime<Utc>>,
}

/// A destination as it stands in the table.
#[derive(Clone, Debug)]
pub struct DestinationSeen {
    /// What was registered.
    pub spec: DestinationSpec,
    /// True when an operator, or a 410, paused it.
    pub paused: bool,
    /// How much longer it is held, by the database's clock.
    pub held_for: Option<Duration>,
    /// Until when, as it is written.
    pub held_until: Option<Written>,
}

/// The figures `relay status` shows.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Rows in `outbox_messages`.
    pub pending: i64,
    /// How old the oldest of them is.
    pub oldest_pending: Option<Duration>,
    /// Waiting rows: (destination, state, count).
    pub waiting: Vec<(String, String, i64)>,
    /// For each destination: how long the oldest due row has been due.
    pub oldest_due: Vec<(String, Duration)>,
    /// Dead letters: (destination, reason, count).
    pub dead: Vec<(String, String, i64)>,
    /// Who is there and who owns what.
    pub membership: Membership,
    /// The destinations.
    pub routing: Routing,
    /// What relays told of their circuit breakers, where one is not closed.
    pub circuits: Vec<(RelayId, Circuit)>,
    /// The schema version found.
    pub schema_version: i32,
}
