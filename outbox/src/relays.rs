//! The relays that are there, and which partitions they own. Looks only.
//!
//! A relay proves that it lives by raising its beat a few times per lease. The table holds no time for it: clocks differ,
//! so whoever wants to know looks twice, for the lease with which that relay registered: a beat that did not move for so
//! long is that of a dead relay.
//!
//! ```
//! # use diesel::prelude::*;
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # outbox::migrations::run(&mut conn)?;
//! let seen = outbox::relays::list(&mut conn)?;
//! assert!(seen.relays.is_empty(), "nobody delivers here yet");
//! assert!(seen.owner(17).is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::by_hand::sql::{build, flag, hex, micros, uuid};
use crate::by_hand::{Hex, Statement, instant, unreadable};
use crate::connection::OutboxBackend;
use crate::connection::sealed::Dialect;
use crate::error::Error;

/// Who is there and who owns what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relays {
    /// The relays, the longest running first.
    pub relays: Vec<Relay>,
    /// Each partition and the id of its owner, which may have no row any more.
    pub partitions: Vec<(u8, Option<Uuid>)>,
}

/// A relay that has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relay {
    /// Its identity, another one after each start.
    pub id: Uuid,
    /// Its name for people.
    pub name: String,
    /// Its version.
    pub version: String,
    /// After how long without a beat it counts as dead; it renews a few times meanwhile.
    pub lease: Duration,
    /// Rises while it lives.
    pub beat: i64,
    /// True when it is stopping.
    pub draining: bool,
    /// The destinations it serves.
    pub serves: Vec<String>,
    /// Those of them it attempts nothing at, or one message at a time, because they kept failing; and those whose rate limit
    /// has been in the way.
    pub circuits: Vec<Circuit>,
    /// When it registered.
    pub started_at: DateTime<Utc>,
}

/// A circuit breaker that is not closed, or a rate limit that attempts have waited for, for some seconds now, as its relay
/// tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuit {
    /// The destination.
    pub destination: String,
    /// `open`: nothing is attempted for a while. `half_open`: the next attempt decides. `limited`: attempts wait for the
    /// rate limit.
    pub state: String,
    /// How the last attempt failed, or the limit, like `10/h`.
    pub cause: String,
}

impl Relays {
    /// The registered relay that owns this partition.
    pub fn owner(&self, partition_no: u8) -> Option<&Relay> {
        let owner = self.partitions.iter().find(|(number, _)| *number == partition_no)?.1?;
        self.relays.iter().find(|relay| relay.id == owner)
    }
}

/// Lists relays and partitions, in one statement.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn list<C>(conn: &mut C) -> Result<Relays, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let relay = build(
        database,
        &[
            ("place", "'relay'".to_owned()),
            ("id", uuid(database, "id")),
            ("name", hex(database, "name")),
            ("version", hex(database, "version")),
            ("lease_ms", "lease_ms".to_owned()),
            ("beat", "beat".to_owned()),
            ("draining", flag("draining")),
            ("serves", hex(database, "serves")),
            ("circuits", hex(database, "circuits")),
            ("started_at", micros(database, "started_at")),
        ],
    );
    let partition = build(
        database,
        &[
            ("place", "'partition'".to_owned()),
            ("partition_no", "partition_no".to_owned()),
            ("owner", format!("CASE WHEN owner IS NOT NULL THEN {} END", uuid(database, "owner"))),
        ],
    );
    let select =
        format!("-- relay_list\nSELECT {relay} FROM outbox_relays UNION ALL SELECT {partition} FROM outbox_partitions");
    let mut seen = Relays::default();
    for json in Statement::new(select).load(conn)? {
        match serde_json::from_str(&json).map_err(unreadable)? {
            Row::Relay(row) => seen.relays.push(row.read()?),
            Row::Partition { partition_no, owner } => {
                let owner = owner.map(|owner| Uuid::parse_str(&owner)).transpose().map_err(unreadable)?;
                seen.partitions.push((partition_no, owner));
            }
        }
    }
    seen.relays.sort_by_key(|relay| (relay.started_at, relay.id));
    seen.partitions.sort_unstable();
    Ok(seen)
}

#[derive(Deserialize)]
#[serde(tag = "place", rename_all = "lowercase")]
enum Row {
    Relay(RelayRow),
    Partition { partition_no: u8, owner: Option<String> },
}

#[derive(Deserialize)]
struct RelayRow {
    id: String,
    name: Hex,
    version: Hex,
    lease_ms: i64,
    beat: i64,
    draining: u8,
    serves: Hex,
    circuits: Hex,
    started_at: i64,
}

impl RelayRow {
    fn read(self) -> Result<Relay, Error> {
        Ok(Relay {
            id: Uuid::parse_str(&self.id).map_err(unreadable)?,
            name: self.name.text(),
            version: self.version.text(),
            lease: Duration::from_millis(u64::try_from(self.lease_ms).unwrap_or_default()),
            beat: self.beat,
            draining: self.draining == 1,
            serves: serde_json::from_str(&self.serves.text()).unwrap_or_default(),
            circuits: serde_json::from_str(&self.circuits.text()).unwrap_or_default(),
            started_at: instant(self.started_at),
        })
    }
}
