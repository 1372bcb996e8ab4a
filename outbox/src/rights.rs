//! What a relay's role must be allowed to do, and whether this connection's role is.
//!
//! Each right is tried with a statement that touches no row, and everything is rolled back: nothing is left behind, and
//! it works alike on databases that can be asked about rights and on those that cannot.
//!
//! ```
//! # use diesel::prelude::*;
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # outbox::migrations::run(&mut conn)?;
//! for missing in outbox::rights::missing(&mut conn)? {
//!     println!("GRANT {} ON {} TO …", missing.right, missing.table);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use diesel::connection::LoadConnection;
use diesel::result::Error as DieselError;

use crate::by_hand::Statement;
use crate::connection::OutboxBackend;
use crate::error::Error;

/// A right that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// `SELECT`, `INSERT`, `UPDATE` or `DELETE`.
    pub right: &'static str,
    /// On which table.
    pub table: &'static str,
    /// What the database said.
    pub answer: String,
}

/// A table, the rights a relay and the commands of its operators need on it, and columns an INSERT may name.
struct Needs {
    table: &'static str,
    rights: &'static [&'static str],
    columns: &'static str,
}

const ALL: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE"];

const NEEDS: &[Needs] = &[
    Needs { table: "outbox_messages", rights: &["SELECT", "DELETE"], columns: "" },
    Needs {
        table: "outbox_deliveries",
        rights: ALL,
        columns: "message_id, seq, partition_no, topic, payload, content_type, headers, version, created_at, \
                  destination, state, due_at",
    },
    Needs {
        table: "outbox_dead_letters",
        rights: ALL,
        columns: "message_id, seq, partition_no, topic, payload, content_type, headers, version, created_at, \
                  destination, life, attempts, in_order, history, reason, fingerprint, blocks_key, died_at",
    },
    Needs { table: "outbox_partitions", rights: &["SELECT", "UPDATE"], columns: "partition_no" },
    Needs { table: "outbox_relays", rights: ALL, columns: "id, name, version, lease_ms" },
    Needs { table: "outbox_destinations", rights: &["SELECT", "INSERT", "UPDATE"], columns: "name, patterns" },
    Needs { table: "outbox_audit", rights: &["SELECT", "INSERT"], columns: "actor, action, target" },
    Needs { table: "outbox_meta", rights: &["SELECT", "UPDATE"], columns: "schema_version" },
];

/// The rights a relay needs and this connection's role has not.
///
/// # Errors
///
/// [`Error::Database`] when the connection breaks, or a transaction is open on it that has failed before.
pub fn missing<C>(conn: &mut C) -> Result<Vec<Missing>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let mut missing = Vec::new();
    let outcome = conn.transaction(|conn| {
        for Needs { table, rights, columns } in NEEDS {
            for right in *rights {
                // A refusal ends PostgreSQL's transaction, so each is tried in a savepoint.
                let tried = conn.transaction(|conn| try_out(conn, right, table, columns));
                if let Err(Error::Database(DieselError::DatabaseError(_, answer))) = &tried {
                    missing.push(Missing { right, table, answer: answer.message().to_owned() });
                } else {
                    tried?;
                }
            }
        }
        Err::<(), Error>(DieselError::RollbackTransaction.into())
    });
    match outcome {
        Err(Error::Database(DieselError::RollbackTransaction)) | Ok(()) => Ok(missing),
        Err(error) => Err(error),
    }
}

fn try_out<C>(conn: &mut C, right: &str, table: &str, columns: &str) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let first = columns.split(',').next().unwrap_or_default();
    let sql = match right {
        "SELECT" => format!("SELECT 'seen' FROM {table} WHERE 1 = 0"),
        "INSERT" => format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE 1 = 0"),
        "UPDATE" => format!("UPDATE {table} SET {first} = {first} WHERE 1 = 0"),
        _ => format!("DELETE FROM {table} WHERE 1 = 0"),
    };
    let statement = Statement::new(format!("-- right_try\n{sql}"));
    match right {
        "SELECT" => statement.load(conn).map(drop),
        _ => statement.execute(conn).map(drop),
    }
}
