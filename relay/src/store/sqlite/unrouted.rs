//! Rows without a destination, for the search for routes.
//!
//! The index holds nothing but such rows. Its topics are stepped through one by one: asked for all of them at once, SQLite
//! would read every row.

use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
use diesel::{Connection, QueryResult};
use uuid::Uuid;

use super::statement::{load, load_optional, statement};
use super::worker::Open;
use crate::message::Key;
use crate::store::{UnroutedAfter, UnroutedRow};

statement!(
    UnroutedTopic,
    "-- unrouted_topics\nSELECT topic FROM outbox_deliveries \
     WHERE destination = '' AND state = 'unrouted' AND partition_no = ? AND topic > ? ORDER BY topic LIMIT 1",
    Text
);
statement!(
    UnroutedRows,
    "-- unrouted_rows\nSELECT id, message_id, ordering_key, in_order, attempts FROM outbox_deliveries \
     WHERE destination = '' AND state = 'unrouted' AND partition_no = ? AND topic = ? AND id > ? ORDER BY id LIMIT ?",
    (BigInt, Binary, Nullable<Binary>, Bool, Integer)
);
type RowColumns = (i64, Vec<u8>, Option<Vec<u8>>, bool, i32);

pub(super) fn topics(open: &mut Open, after: &[(u8, String)], limit: u32) -> QueryResult<Vec<(u8, String)>> {
    open.conn.transaction(|conn| {
        let mut found = Vec::new();
        for (partition_no, after) in after {
            let mut after = after.clone();
            for _ in 0..limit {
                let binds = [(*partition_no).into(), after.as_str().into()];
                let Some(topic) = load_optional::<UnroutedTopic, String>(conn, &binds)? else { break };
                found.push((*partition_no, topic.clone()));
                after = topic;
            }
        }
        Ok(found)
    })
}

pub(super) fn rows(open: &mut Open, wanted: &[UnroutedAfter], limit: u32) -> QueryResult<Vec<UnroutedRow>> {
    open.conn.transaction(|conn| {
        let mut found = Vec::new();
        for UnroutedAfter { partition_no, topic, after } in wanted {
            let binds = [(*partition_no).into(), topic.as_str().into(), (*after).into(), limit.into()];
            let read: Vec<RowColumns> = load::<UnroutedRows, _>(conn, &binds)?;
            found.extend(read.into_iter().map(|(id, message_id, ordering_key, in_order, attempts)| UnroutedRow {
                id,
                message_id: Uuid::from_slice(&message_id).unwrap_or_default(),
                partition_no: *partition_no,
                topic: topic.clone(),
                ordering_key: ordering_key.map(Key::from),
                in_order,
                attempts: attempts.max(0) as u32,
            }));
        }
        Ok(found)
    })
}

#[cfg(test)]
mod tests {
    use super::super::statement::{Sql, plan};
    use super::*;

    #[test]
    fn rows_without_a_destination_are_found_by_their_own_index() {
        for (text, search) in [
            (UnroutedTopic::TEXT, "USING COVERING INDEX unrouted_by_topic (partition_no=? AND topic>?)"),
            (UnroutedRows::TEXT, "USING INDEX unrouted_by_topic (partition_no=? AND topic=? AND rowid>?)"),
        ] {
            let plan = plan(text);
            assert!(plan.contains(search) && !plan.contains("B-TREE"), "{text}\n{plan}");
        }
    }
}
