//! The outbox' tables as a history shows them.
//!
//! Plain SQL of its own: what is judged must not be asked through the code that is judged.

use crate::database::{Kind, TestDatabase};
use crate::history::{Dead, Id, Snapshot, Waiting};

/// Reads all tables in one statement, therefore in one snapshot.
pub fn snapshot(database: &TestDatabase) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for line in database.query_text(&select(database.kind())) {
        let line = line.expect("no column is NULL");
        let fields: Vec<&str> = line.split('|').collect();
        let (id, destination, word) = (message_id(fields[1]), fields[2].to_owned(), fields[3].to_owned());
        let flag = |at: usize| match fields[at] {
            "1" => true,
            "0" => false,
            other => panic!("`{other}` is no flag in `{line}`"),
        };
        match fields[0] {
            "pending" => snapshot.pending.push(id),
            "waiting" => snapshot.waiting.push(Waiting {
                id,
                destination,
                state: word,
                blocked: flag(4),
                in_order: flag(5),
                due: flag(6),
            }),
            _ => snapshot.dead.push(Dead { id, destination, reason: word, blocks_key: flag(4) }),
        }
    }
    snapshot
}

/// Destinations, states and reasons are words of ours, so that a bar can stand between them.
fn select(kind: Kind) -> String {
    let id = |column: &str| match kind {
        Kind::Postgres => format!("{column}::text"),
        Kind::Mariadb | Kind::Sqlite => format!("lower(hex({column}))"),
    };
    let now = match kind {
        Kind::Postgres => "clock_timestamp()",
        Kind::Mariadb => "utc_timestamp(6)",
        Kind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    };
    let flag = |condition: &str| format!("CASE WHEN {condition} THEN '1' ELSE '0' END");
    let joined = |parts: &[&str]| match kind {
        Kind::Mariadb => format!("CAST(concat_ws('|', {}) AS CHAR)", parts.join(", ")),
        Kind::Postgres | Kind::Sqlite => parts.join(" || '|' || "),
    };
    let pending = joined(&["'pending'", &id("id"), "''", "''"]);
    let (message, due) = (id("message_id"), flag(&format!("due_at <= {now}")));
    let waiting = joined(&["'waiting'", &message, "destination", "state", &flag("blocked"), &flag("in_order"), &due]);
    let dead = joined(&["'dead'", &message, "destination", "reason", &flag("blocks_key")]);
    format!(
        "SELECT {pending} FROM outbox_messages UNION ALL SELECT {waiting} FROM outbox_deliveries \
         UNION ALL SELECT {dead} FROM outbox_dead_letters"
    )
}

/// As receivers see it, whether the database shows it with hyphens or without.
fn message_id(text: &str) -> Id {
    uuid::Uuid::parse_str(text).unwrap_or_else(|error| panic!("`{text}` is no message id: {error}")).to_string()
}
