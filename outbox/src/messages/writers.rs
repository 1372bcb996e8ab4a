//! Who may still hold a message back by not committing.

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use serde::Deserialize;

use crate::by_hand::sql::{build, hex, micros};
use crate::by_hand::{Hex, Statement, instant, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::error::Error;

/// An open transaction that has written to `outbox_messages`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Writer {
    /// The process on the server; `pg_terminate_backend` takes it.
    pub pid: i32,
    /// What the session calls itself, when it says so.
    pub application: Option<String>,
    /// Since when the transaction is open, where we may know.
    pub since: Option<DateTime<Utc>>,
    /// What the session is doing, such as `idle in transaction`, where we may know.
    pub state: Option<String>,
}

/// Lists open transactions that have written to `outbox_messages`, the oldest first: what they enqueued is not there for
/// anybody yet. Relays are left out.
///
/// Only PostgreSQL can tell; elsewhere the answer is empty. Of other roles' sessions only members of `pg_read_all_stats`
/// see more than the pid.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn writers<C>(conn: &mut C) -> Result<Vec<Writer>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    if database != Database::Postgres {
        return Ok(Vec::new());
    }
    let row = build(
        database,
        &[
            ("pid", "a.pid".to_owned()),
            ("application", hex(database, "nullif(a.application_name, '')")),
            ("since", micros(database, "a.xact_start")),
            ("state", "a.state".to_owned()),
        ],
    );
    // Writing takes this lock and keeps it until the transaction ends.
    let select = format!(
        "-- message_writers\nSELECT {row} FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted \
         AND l.relation = to_regclass('outbox_messages') \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND a.pid <> pg_backend_pid() AND a.application_name NOT LIKE 'outbox-relay%' \
         ORDER BY a.xact_start, a.pid"
    );
    Statement::new(select).load(conn)?.iter().map(|json| read(json)).collect()
}

#[derive(Deserialize)]
struct WriterRow {
    pid: i32,
    application: Option<Hex>,
    since: Option<i64>,
    state: Option<String>,
}

fn read(json: &str) -> Result<Writer, Error> {
    let row: WriterRow = serde_json::from_str(json).map_err(unreadable)?;
    Ok(Writer {
        pid: row.pid,
        application: row.application.map(|name| name.text()),
        since: row.since.map(instant),
        state: row.state,
    })
}
