//! What relays tell about their destinations.

use diesel::sql_types::{Binary, Text};
use diesel::{QueryResult, SqliteConnection};
use uuid::Uuid;

use super::statement::{execute, load, statement};
use super::worker::Open;
use crate::message::RelayId;
use crate::store::{Circuit, decode};

statement!(RelayCircuits, "-- relay_circuits\nUPDATE outbox_relays SET circuits = ? WHERE id = ?");
statement!(
    CircuitsRead,
    "-- circuits_read\nSELECT id, circuits FROM outbox_relays ORDER BY started_at, id",
    (Binary, Text)
);

pub(super) fn relay_circuits(open: &mut Open, relay: RelayId, circuits: &[Circuit]) -> QueryResult<()> {
    let circuits = decode::circuits_text(circuits);
    open.conn.immediate_transaction(|conn| {
        execute::<RelayCircuits>(conn, &[circuits.as_str().into(), (&relay).into()]).map(drop)
    })
}

/// Inside the transaction of the one who asks.
pub(super) fn circuits(conn: &mut SqliteConnection) -> QueryResult<Vec<(RelayId, Circuit)>> {
    let rows: Vec<(Vec<u8>, String)> = load::<CircuitsRead, _>(conn, &[])?;
    let told = |(id, text): (Vec<u8>, String)| {
        let relay = Uuid::from_slice(&id).unwrap_or_default();
        decode::circuits(&text).into_iter().map(move |circuit| (relay, circuit))
    };
    Ok(rows.into_iter().flat_map(told).collect())
}
