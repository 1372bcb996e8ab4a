//! Claiming a delivery from inside somebody else's transaction.
//!
//! A transactional handler deletes the row of its own delivery first, in the transaction its effects are written in:
//! then both happen or neither does, and whoever else deletes that row waits for the outcome. The statements here take
//! no partition lock. What makes that safe is that each names the row exactly as it was read: a message with the routes
//! it was routed by, a waiting row with its attempts and its message; and that each names who owns its partition since
//! when: a relay that was frozen for longer than its lease claims nothing when it wakes.
//!
//! Numbers and ids are written into the text: they come from our own tables, and binding them would ask every caller's
//! connection type for more than that it speaks to one of our databases.
//!
//! Absent: connections, and what follows from a claim that found nothing.

use std::time::Duration;

use diesel::QueryResult;
use diesel::backend::Backend;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use outbox::Database;
use uuid::Uuid;

use crate::sink::{Held, Unit};

/// Deletes the row of a delivery; one row is affected when it was still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim(String);

impl Claim {
    /// The statement for this row, or none where the row is not the delivery's own.
    pub(crate) fn new(database: Database, unit: Unit) -> Option<Claim> {
        Some(Claim(match unit {
            Unit::Shared => return None,
            Unit::Message { seq, id, routes_version, held } => {
                let (id, routes) = (literal(database, id), routes(database, routes_version));
                let held = is_held(database, held);
                format!(
                    "-- message_claim\nDELETE FROM outbox_messages \
                     WHERE seq = {seq} AND id = {id} AND {held} AND {routes}"
                )
            }
            Unit::Waiting { id, message_id, attempts, held } => {
                let (message_id, held) = (literal(database, message_id), is_held(database, held));
                format!(
                    "-- delivery_claim\nDELETE FROM outbox_deliveries \
                     WHERE id = {id} AND message_id = {message_id} AND {held} AND attempts = {attempts}"
                )
            }
        }))
    }
}

/// The partition is still the relay's, since the same time. Without its lock this says what was so a moment ago, which is
/// enough for a relay that was frozen.
fn is_held(database: Database, held: Held) -> String {
    match database {
        Database::Mysql => "@outbox_held = 1".to_owned(),
        Database::Postgres | Database::Sqlite => {
            format!("EXISTS (SELECT 1 FROM outbox_partitions WHERE {})", holding(database, held))
        }
    }
}

fn holding(database: Database, held: Held) -> String {
    let Held { partition_no, relay, epoch } = held;
    format!("partition_no = {partition_no} AND owner = {} AND epoch = {epoch}", literal(database, relay))
}

fn literal(database: Database, id: Uuid) -> String {
    match database {
        Database::Postgres => format!("'{id}'"),
        Database::Mysql | Database::Sqlite => format!("x'{}'", id.simple()),
    }
}

fn routes(database: Database, version: i64) -> String {
    match database {
        Database::Mysql => format!("@outbox_routes = {version}"),
        Database::Postgres | Database::Sqlite => {
            format!("EXISTS (SELECT 1 FROM outbox_meta WHERE routes_version = {version})")
        }
    }
}

/// Runs first in the transaction, before the claim.
///
/// PostgreSQL is told here, not at the connection, how long a statement may take and that a commit has to be durable:
/// behind a pooler the next transaction may run on another session. MariaDB and MySQL read the routes here, because a read inside a DELETE locks what it reads for
/// as long as the transaction lasts, and a relay that starts has to write there. Nor may it keep the partition's row.
pub(crate) fn prelude(database: Database, timeout: Duration, unit: Unit) -> Option<String> {
    match database {
        Database::Postgres => {
            let limit = timeout.as_millis().clamp(1, i32::MAX as u128);
            Some(format!(
                "SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}; \
                 SELECT set_config('synchronous_commit', 'on', true) \
                     WHERE current_setting('synchronous_commit') = 'off'"
            ))
        }
        Database::Mysql => {
            let (Unit::Message { held, .. } | Unit::Waiting { held, .. }) = unit else { return None };
            Some(format!(
                "SELECT (SELECT max(routes_version) FROM outbox_meta), \
                 (SELECT count(*) FROM outbox_partitions WHERE {}) INTO @outbox_routes, @outbox_held",
                holding(database, held)
            ))
        }
        Database::Sqlite => None,
    }
}

/// Runs once on every connection.
///
/// No statement lasts much longer than the attempt it belongs to: what was abandoned must not keep its row locked. On
/// MariaDB and MySQL a deadlock ends the transaction; without autocommit, what a handler writes after one that it passed
/// over is in a new transaction, which is rolled back too when the proof fails.
pub(crate) fn session(database: Database, timeout: Duration) -> Option<String> {
    let seconds = timeout.as_secs_f64().ceil().clamp(1.0, 86_400.0);
    match database {
        Database::Postgres => None,
        // MariaDB executes what stands in `/*M! … */`, MySQL 8 what stands in `/*!80000 … */`.
        Database::Mysql => Some(format!(
            "SET SESSION autocommit = 0, innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds} \
             /*M! , max_statement_time = {seconds}, idle_transaction_timeout = {seconds} */ \
             /*!80000 , max_execution_time = {} */",
            timeout.as_millis().clamp(1, 86_400_000)
        )),
        // What commits has to survive a power cut, as the message did.
        Database::Sqlite => Some(format!(
            "PRAGMA busy_timeout = {}; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL",
            timeout.as_millis().clamp(1, 60_000)
        )),
    }
}

impl QueryId for Claim {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<DB: Backend> QueryFragment<DB> for Claim {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        // Every one is another text.
        out.unsafe_to_cache_prepared();
        out.push_sql(&self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_names_the_row_as_it_was_read() {
        let id = Uuid::from_u128(0xab);
        let held = Held { partition_no: 5, relay: Uuid::from_u128(0xcd), epoch: 12 };
        let message = Unit::Message { seq: 7, id, routes_version: 3, held };
        let text = |database, unit| Claim::new(database, unit).unwrap().0;
        let postgres = text(Database::Postgres, message);
        assert!(postgres.contains("seq = 7 AND id = '00000000-0000-0000-0000-0000000000ab'"), "{postgres}");
        assert!(postgres.contains("routes_version = 3"), "{postgres}");
        let sqlite = text(Database::Sqlite, message);
        assert!(sqlite.contains("id = x'000000000000000000000000000000ab'"), "{sqlite}");
        let mysql = text(Database::Mysql, message);
        assert!(mysql.ends_with("AND @outbox_routes = 3"), "{mysql}");
        let row = text(Database::Postgres, Unit::Waiting { id: 9, message_id: id, attempts: 2, held });
        assert!(row.contains("outbox_deliveries WHERE id = 9 AND message_id = '0000"), "{row}");
        assert!(row.ends_with("AND attempts = 2"), "{row}");
        let owner = "owner = '00000000-0000-0000-0000-0000000000cd' AND epoch = 12";
        for claim in [postgres, row] {
            assert!(claim.contains("partition_no = 5") && claim.contains(owner), "{claim}");
        }
        assert!(mysql.contains("@outbox_held = 1"), "{mysql}");
        let prelude = prelude(Database::Mysql, Duration::from_secs(1), message).unwrap();
        assert!(prelude.contains("owner = x'000000000000000000000000000000cd' AND epoch = 12"), "{prelude}");
        assert_eq!(Claim::new(Database::Sqlite, Unit::Shared), None);
    }
}
