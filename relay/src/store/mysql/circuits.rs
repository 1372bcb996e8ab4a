//! What relays tell about their destinations.

use super::connection::Session;
use super::literal::{self, bytes};
use super::row::Columns;
use crate::message::RelayId;
use crate::store::{Circuit, StoreError, decode};

pub(super) async fn relay_circuits(
    session: &mut Session<'_>,
    relay: RelayId,
    circuits: &[Circuit],
) -> Result<(), StoreError> {
    let circuits = literal::text(&decode::circuits_text(circuits));
    let sql = format!("-- relay_circuits\nUPDATE outbox_relays SET circuits = {circuits} WHERE id = {}", bytes(relay));
    session.execute(&sql).await.map(drop)
}

pub(super) async fn circuits(session: &mut Session<'_>) -> Result<Vec<(RelayId, Circuit)>, StoreError> {
    let rows = session.rows("-- circuits_read\nSELECT id, circuits FROM outbox_relays ORDER BY started_at, id").await?;
    let told = |row| {
        let mut columns = Columns::new(row);
        let relay = columns.uuid();
        decode::circuits(&columns.text()).into_iter().map(move |circuit| (relay, circuit))
    };
    Ok(rows.into_iter().flat_map(told).collect())
}
