//! The statements about keys that stand still.
//!
//! All of them go by the index (destination, ordering_key, seq) of the waiting deliveries or by the index
//! (destination, blocks_key, ordering_key) of the dead letters. Conditions are appended by the caller, hence the ends.

use crate::by_hand::Statement;
use crate::by_hand::sql::{build, hex};
use crate::connection::Database;
use crate::{dead_letters, messages};

/// A key as a value of its column's type.
pub(super) enum Key {
    /// Bound, so that a database in another encoding than ours converts it.
    Text(String),
    /// Bytes that stand in the SQL.
    Literal(String),
}

impl Key {
    /// The key with these bytes; `None` for what cannot stand in the column.
    pub(super) fn of(database: Database, key: &[u8]) -> Option<Key> {
        let hex = || key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        match database {
            // Text there is valid and has no zero byte; asking for another would be an error, not an empty answer.
            Database::Postgres => {
                std::str::from_utf8(key).ok().filter(|key| !key.contains('\0')).map(|key| Key::Text(key.to_owned()))
            }
            Database::Mysql => Some(Key::Literal(format!("x'{}'", hex()))),
            Database::Sqlite => Some(Key::Literal(format!("CAST(x'{}' AS TEXT)", hex()))),
        }
    }

    /// Appends it.
    pub(super) fn end(&self, statement: Statement) -> Statement {
        match self {
            Key::Text(text) => statement.text(text),
            Key::Literal(literal) => statement.sql(literal.clone()),
        }
    }
}

/// Keys that dead letters block.
pub(super) fn blocked(database: Database) -> String {
    let row = build(
        database,
        &[
            ("destination", hex(database, "destination")),
            ("key", hex(database, "ordering_key")),
            ("blockers", "count(*)".to_owned()),
        ],
    );
    format!(
        "-- key_blocked\nSELECT {row} FROM outbox_dead_letters WHERE blocks_key = true AND ordering_key IS NOT NULL"
    )
}

/// The longest blocked first. By id, because the indexes know it and not the time.
pub(super) fn blocked_end(limit: u32) -> String {
    format!(" GROUP BY destination, ordering_key ORDER BY min(id) LIMIT {limit}")
}

/// Keys of which something waits in order.
pub(super) fn parked(database: Database) -> String {
    let row = build(
        database,
        &[
            ("destination", hex(database, "destination")),
            ("key", hex(database, "ordering_key")),
            ("waiting", "count(*)".to_owned()),
            ("head", "min(seq)".to_owned()),
        ],
    );
    // What is not routed yet has no destination, and waits for no other.
    format!(
        "-- key_parked\nSELECT {row} FROM outbox_deliveries WHERE in_order AND ordering_key IS NOT NULL \
         AND destination <> ''"
    )
}

pub(super) const PARKED_GROUPS: &str = " GROUP BY destination, ordering_key";

/// Most waiting first, then the oldest head.
pub(super) fn parked_end(limit: u32) -> String {
    format!("{PARKED_GROUPS} ORDER BY count(*) DESC, min(seq) LIMIT {limit}")
}

/// The deliveries of some keys and numbers, those that go first before others.
pub(super) fn heads(database: Database) -> [String; 2] {
    let row = messages::sql::waiting(database, false);
    [
        format!("-- key_heads\nSELECT {row} FROM outbox_deliveries WHERE in_order"),
        " ORDER BY outbox_deliveries.seq, outbox_deliveries.id".to_owned(),
    ]
}

/// The dead letters that block some keys, so many of each at most, the oldest first.
pub(super) fn letters(database: Database, each: u32) -> [String; 2] {
    let row = build(database, &dead_letters::sql::letter_fields(database));
    [
        format!(
            "-- key_blockers\nSELECT {row} FROM outbox_dead_letters WHERE id IN (SELECT ranked.id FROM (SELECT id, \
             row_number() OVER (PARTITION BY destination, ordering_key ORDER BY id) AS place \
             FROM outbox_dead_letters WHERE blocks_key = true"
        ),
        format!(") ranked WHERE ranked.place <= {each}) ORDER BY outbox_dead_letters.id"),
    ]
}
