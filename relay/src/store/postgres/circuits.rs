//! What relays tell about their destinations.

use tokio_postgres::Row as SqlRow;

use super::connection::{Connection, Sql};
use super::value::Octets;
use crate::message::RelayId;
use crate::store::{Circuit, StoreError, decode};

const RELAY_CIRCUITS: Sql = Sql {
    name: "relay_circuits",
    text: "-- relay_circuits\n\
           UPDATE outbox_relays SET circuits = $2::text WHERE id = $1::uuid",
};

const CIRCUITS_READ: Sql = Sql {
    name: "circuits_read",
    text: "-- circuits_read\nSELECT id, circuits FROM outbox_relays ORDER BY started_at, id",
};

/// Reads them all.
pub(super) const READ: &Sql = &CIRCUITS_READ;

pub(super) async fn relay_circuits(
    connection: &mut Connection,
    relay: RelayId,
    circuits: &[Circuit],
) -> Result<(), StoreError> {
    connection.run(&RELAY_CIRCUITS, &[&relay, &decode::circuits_text(circuits)]).await?;
    Ok(())
}

pub(super) fn circuits(rows: &[SqlRow]) -> Vec<(RelayId, Circuit)> {
    let told = |row: &SqlRow| {
        let relay: RelayId = row.get(0);
        decode::circuits(&row.get::<_, Octets<'_>>(1).text()).into_iter().map(move |circuit| (relay, circuit))
    };
    rows.iter().flat_map(told).collect()
}
