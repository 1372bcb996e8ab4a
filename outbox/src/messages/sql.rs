//! The statements about messages. Each row names the place it comes from, as `place`.

use uuid::Uuid;

use crate::by_hand::sql::{build, flag, hex, micros, payload, text, uuid, uuid_literal};
use crate::connection::Database;
use crate::dead_letters;

/// A table messages are in, and its growing number.
#[derive(Clone, Copy)]
pub(super) struct Table {
    name: &'static str,
    pub(super) number: &'static str,
    /// What puts its rows in the order in which their messages were enqueued.
    pub(super) age: &'static str,
    row: fn(Database, bool) -> String,
}

pub(super) const PENDING: Table =
    Table { name: "outbox_messages", number: "outbox_messages.seq", age: "outbox_messages.seq", row: pending };
pub(super) const WAITING: Table = Table {
    name: "outbox_deliveries",
    number: "outbox_deliveries.id",
    // A delivery is written when it first has to wait, which says nothing of its message's age.
    age: "outbox_deliveries.seq, outbox_deliveries.id",
    row: waiting,
};

/// The first number beyond the oldest `looked_at`. Walks the primary key and reads nothing else.
pub(super) fn beyond(database: Database, table: Table, looked_at: u32) -> String {
    let number = text(database, table.number);
    let Table { name, number: by, .. } = table;
    format!("-- message_beyond\nSELECT {number} FROM {name} ORDER BY {by} LIMIT 1 OFFSET {looked_at}")
}

/// The beginning of a list.
pub(super) fn list(database: Database, table: Table) -> String {
    format!("-- message_list\nSELECT {} FROM {}", (table.row)(database, false), table.name)
}

/// Everything there is of one message; `which` bounds the pending ones that are looked at.
pub(super) fn find(database: Database, message_id: Uuid, which: &str, content: bool) -> String {
    let id = uuid_literal(database, message_id);
    let mut dead = dead_letters::sql::letter_fields(database);
    dead.push(("place", "'dead'".to_owned()));
    carry(database, content, &mut dead);
    format!(
        "-- message_find\nSELECT {} FROM outbox_messages WHERE {which} AND id = {id} \
         UNION ALL SELECT {} FROM outbox_deliveries WHERE message_id = {id} \
         UNION ALL SELECT {} FROM outbox_dead_letters WHERE message_id = {id}",
        pending(database, content),
        waiting(database, content),
        build(database, &dead),
    )
}

fn pending(database: Database, content: bool) -> String {
    let mut fields = vec![
        ("place", "'pending'".to_owned()),
        ("message_id", uuid(database, "id")),
        ("ordering_key", hex(database, "ordering_key")),
        ("content_type", hex(database, "content_type")),
        ("destination", hex(database, "destination")),
    ];
    times(database, &["deliver_at", "expires_at", "created_at"], &mut fields);
    plain(&["seq", "partition_no", "topic"], &mut fields);
    carry(database, content, &mut fields);
    build(database, &fields)
}

pub(crate) fn waiting(database: Database, content: bool) -> String {
    let mut fields = vec![
        ("place", "'waiting'".to_owned()),
        ("message_id", uuid(database, "message_id")),
        ("blocked", flag("blocked")),
    ];
    for column in ["ordering_key", "content_type", "destination", "last_error", "history"] {
        fields.push((column, hex(database, column)));
    }
    times(database, &["due_at", "expires_at", "created_at", "first_attempt_at"], &mut fields);
    plain(&["id", "seq", "partition_no", "topic", "state", "attempts", "deaths", "life", "last_verdict"], &mut fields);
    carry(database, content, &mut fields);
    build(database, &fields)
}

type Fields = Vec<(&'static str, String)>;

fn times(database: Database, columns: &[&'static str], into: &mut Fields) {
    into.extend(columns.iter().map(|column| (*column, micros(database, column))));
}

fn plain(columns: &[&'static str], into: &mut Fields) {
    into.extend(columns.iter().map(|column| (*column, (*column).to_owned())));
}

/// What the message carries, when it is asked for.
fn carry(database: Database, content: bool, into: &mut Fields) {
    if content {
        into.push(("payload", payload(database).to_owned()));
        into.push(("headers", hex(database, "headers")));
    }
}

/// The delivery that goes first among those of the key `waiting` has, or the dead letter that blocks that key.
pub(super) fn ahead(database: Database, waiting: i64) -> String {
    let mut dead = dead_letters::sql::letter_fields(database);
    dead.push(("place", "'dead'".to_owned()));
    // Of the same table as the outer query in one of the two, so the row has an alias.
    let same = |column: &str| format!("{column} = (SELECT w.{column} FROM outbox_deliveries w WHERE w.id = {waiting})");
    let key = format!("{} AND {}", same("destination"), same("ordering_key"));
    let first = format!(
        "SELECT d.id FROM outbox_deliveries d WHERE d.in_order AND {} ORDER BY d.seq, d.id LIMIT 1",
        key.replace("destination = ", "d.destination = ").replace("ordering_key = ", "d.ordering_key = ")
    );
    format!(
        "-- message_ahead\nSELECT {} FROM outbox_dead_letters WHERE blocks_key AND {key} \
         UNION ALL SELECT {} FROM outbox_deliveries WHERE id = ({first}) AND id <> {waiting}",
        build(database, &dead),
        self::waiting(database, false),
    )
}

/// The number this connection drew last.
pub(super) fn drawn(database: Database) -> String {
    let number = match database {
        Database::Postgres => "currval(pg_get_serial_sequence('outbox_messages', 'seq'))",
        Database::Mysql => "last_insert_id()",
        Database::Sqlite => "last_insert_rowid()",
    };
    format!("-- message_drawn\nSELECT {}", text(database, number))
}
