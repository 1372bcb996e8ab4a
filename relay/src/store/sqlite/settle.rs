//! Writes outcomes.
//!
//! The file has one writer at a time: `BEGIN IMMEDIATE` takes the place of the partition locks, and what is read after
//! it cannot change before the commit. Ownership is compared row by row all the same, because another relay may have
//! taken a partition since the batch was gathered.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::sql_types::{BigInt, Bool, Integer, Nullable};
use diesel::{QueryResult, SqliteConnection};

use super::mask;
use super::read::clock;
use super::statement::{Bind, execute, load, load_one, load_optional, statement};
use super::worker::Open;
use crate::message::{Key, MessageId, PartitionSet, RelayId, Seq};
use crate::store::{
    Delivered, Dies, DueIn, MessageMove, Now, Remains, RoutedUnit, Settled, Settlement, StartBatch, State, UnitMove,
    WaitingChange, WaitingOutcome, Waits, decode,
};

/// What a delivery and a dead letter take over from the message as it is.
macro_rules! carried {
    () => {
        "topic, ordering_key, payload, content_type, headers, deliver_at, expires_at, operation_id, dedup_key, \
         version, created_at"
    };
}

statement!(RoutesVersion, "-- routes_version\nSELECT routes_version FROM outbox_meta", BigInt);
statement!(MessageDelete, "-- message_delete\nDELETE FROM outbox_messages WHERE seq = ? AND id = ?");
statement!(
    PartitionHeld,
    "-- partition_held\nSELECT partition_no, epoch FROM outbox_partitions WHERE owner = ?",
    (Integer, BigInt)
);
statement!(
    MessageExists,
    "-- message_exists\nSELECT 1 FROM outbox_messages WHERE seq = ? AND id = ? AND partition_no = ?",
    Integer
);
statement!(
    MessageWaits,
    concat!(
        "-- message_waits\nINSERT INTO outbox_deliveries (message_id, seq, partition_no, ",
        carried!(),
        ", destination, \
         state, blocked, suspect, in_order, attempts, due_at, first_attempt_at, last_verdict, last_error, history) \
         SELECT id, seq, partition_no, ",
        carried!(),
        ", ?, ?, ordering_key IS NOT NULL AND ?, ?, ?, ?, \
         coalesce(?, deliver_at, ?), ?, ?, ?, ? FROM outbox_messages WHERE seq = ? \
         ON CONFLICT (message_id, destination, life) DO NOTHING"
    )
);
statement!(
    MessageDies,
    concat!(
        "-- message_dies\nINSERT INTO outbox_dead_letters (message_id, seq, partition_no, ",
        carried!(),
        ", destination, \
         in_order, life, attempts, first_attempt_at, last_verdict, last_error, history, reason, fingerprint, \
         blocks_key, died_at) SELECT id, seq, partition_no, ",
        carried!(),
        ", ?, 1, 0, ?, ?, ?, ?, ?, ?, ?, ?, ? \
         FROM outbox_messages WHERE seq = ? \
         ON CONFLICT (message_id, destination, life) DO NOTHING"
    )
);
statement!(
    DeliveryFind,
    "-- delivery_find\nSELECT destination = '' FROM outbox_deliveries WHERE id = ? AND attempts = ? \
     AND partition_no = ? AND message_id = ?",
    Bool
);
// A unit that says nothing about a verdict was not attempted: the last one stays.
statement!(
    DeliveryWaits,
    "-- delivery_waits\nUPDATE outbox_deliveries SET state = ?, suspect = ?, attempted_by = NULL, deaths = 0, attempts = ?, \
     due_at = coalesce(?, deliver_at, ?), first_attempt_at = coalesce(first_attempt_at, ?), \
     last_error = CASE WHEN ? IS NULL THEN coalesce(?, last_error) ELSE ? END, \
     last_verdict = coalesce(?, last_verdict), history = ? WHERE id = ?"
);
statement!(
    DeliveryRouted,
    concat!(
        "-- delivery_routed\nINSERT INTO outbox_deliveries (message_id, seq, partition_no, ",
        carried!(),
        ", \
         destination, state, blocked, suspect, in_order, life, due_at, first_attempt_at, redriven_from, last_verdict, last_error, \
         history) SELECT message_id, seq, partition_no, ",
        carried!(),
        ", ?, ?, ordering_key IS NOT NULL AND ?, ?, ?, \
         life, min(due_at, coalesce(?, deliver_at, ?)), first_attempt_at, redriven_from, ?, ?, ? FROM outbox_deliveries WHERE id = ? \
         ON CONFLICT (message_id, destination, life) DO NOTHING"
    )
);
statement!(
    DeliveryDies,
    concat!(
        "-- delivery_dies\nINSERT INTO outbox_dead_letters (message_id, seq, partition_no, ",
        carried!(),
        ", \
         destination, in_order, life, attempts, first_attempt_at, redriven_from, last_verdict, last_error, history, \
         reason, fingerprint, blocks_key, died_at) SELECT message_id, seq, partition_no, ",
        carried!(),
        ", \
         coalesce(?, destination), in_order, life, ?, coalesce(first_attempt_at, ?), redriven_from, ?, ?, ?, ?, ?, ?, \
         ? FROM outbox_deliveries WHERE id = ? \
         ON CONFLICT (message_id, destination, life) DO NOTHING"
    )
);
statement!(
    DeliveryStart,
    "-- delivery_start\nUPDATE outbox_deliveries SET attempted_by = ? WHERE id = ? AND attempts = ? AND partition_no = ? \
     AND message_id = ?"
);
statement!(DeliveryDelete, "-- delivery_delete\nDELETE FROM outbox_deliveries WHERE id = ?");
statement!(
    KeyHead,
    "-- key_head\nSELECT (SELECT id FROM outbox_deliveries WHERE destination = ? AND ordering_key = CAST(? AS TEXT) \
         AND in_order = 1 AND NOT EXISTS (SELECT 1 FROM outbox_dead_letters \
             WHERE destination = ? AND blocks_key = 1 AND ordering_key = CAST(? AS TEXT)) \
         ORDER BY seq, id LIMIT 1)",
    Nullable<BigInt>
);
statement!(
    KeyBlock,
    "-- key_block\nUPDATE outbox_deliveries SET blocked = 1 WHERE blocked = 0 AND id IS NOT ? AND id IN (\
         SELECT id FROM outbox_deliveries WHERE destination = ? AND ordering_key = CAST(? AS TEXT) AND in_order = 1 \
         ORDER BY seq, id LIMIT ?)"
);
statement!(
    KeyUnblock,
    "-- key_unblock\nUPDATE outbox_deliveries SET blocked = 0, \
     state = CASE state WHEN 'blocked' THEN 'retry' ELSE state END WHERE id = ? AND blocked = 1"
);
statement!(
    PartitionKeyBlock,
    "-- partition_key_block\nUPDATE outbox_deliveries AS follower SET blocked = 1 \
     WHERE ? >> partition_no & 1 AND ordering_key IS NOT NULL AND in_order = 1 AND blocked = 0 AND (\
         EXISTS (SELECT 1 FROM outbox_deliveries AS head WHERE head.destination = follower.destination \
             AND head.ordering_key = follower.ordering_key AND head.in_order = 1 \
             AND (head.seq, head.id) < (follower.seq, follower.id)) \
         OR EXISTS (SELECT 1 FROM outbox_dead_letters AS dead WHERE dead.destination = follower.destination \
             AND dead.blocks_key = 1 AND dead.ordering_key = follower.ordering_key))"
);
statement!(
    PartitionKeyUnblock,
    "-- partition_key_unblock\nUPDATE outbox_deliveries AS head SET blocked = 0, \
         state = CASE state WHEN 'blocked' THEN 'retry' ELSE state END \
     WHERE ? >> partition_no & 1 AND blocked = 1 AND (ordering_key IS NULL OR in_order = 0 OR NOT (\
         EXISTS (SELECT 1 FROM outbox_deliveries AS other WHERE other.destination = head.destination \
             AND other.ordering_key = head.ordering_key AND other.in_order = 1 \
             AND (other.seq, other.id) < (head.seq, head.id)) \
         OR EXISTS (SELECT 1 FROM outbox_dead_letters AS dead WHERE dead.destination = head.destination \
             AND dead.blocks_key = 1 AND dead.ordering_key = head.ordering_key)))"
);

/// Deletes messages that every destination has received, unless the routes have changed.
pub(super) fn message_delivered(
    open: &mut Open,
    messages: &[(Seq, MessageId)],
    routes_version: i64,
) -> QueryResult<Delivered> {
    open.conn.immediate_transaction(|conn| {
        let mut deleted = Vec::with_capacity(messages.len());
        if load_one::<RoutesVersion, i64>(conn, &[])? == routes_version {
            for (seq, id) in messages {
                // One short statement for each finds its row by number; a joined list of pairs is not faster.
                if execute::<MessageDelete>(conn, &[(*seq).into(), id.into()])? > 0 {
                    deleted.push(*seq);
                }
            }
        }
        Ok(Delivered { deleted, mark: None })
    })
}

/// Counts rows that are about to be attempted.
pub(super) fn delivery_start(open: &mut Open, relay: RelayId, batch: &StartBatch) -> QueryResult<Vec<i64>> {
    open.conn.immediate_transaction(|conn| {
        let held = partitions_held(conn, relay, &batch.epochs)?;
        let mut counted = Vec::new();
        for row in batch.rows.iter().filter(|row| held.contains(row.partition_no)) {
            let named = [row.id.into(), row.attempts_read.into(), row.partition_no.into(), (&row.message_id).into()];
            let [id, attempts, partition_no, message_id] = named;
            let binds = [(&relay).into(), id, attempts, partition_no, message_id];
            if execute::<DeliveryStart>(conn, &binds)? > 0 {
                counted.push(row.id);
            }
        }
        Ok(counted)
    })
}

/// Writes all other outcomes.
pub(super) fn settle(open: &mut Open, relay: RelayId, batch: &Settlement, now: Now) -> QueryResult<Settled> {
    open.conn.immediate_transaction(|conn| {
        let now = clock(conn, now)?;
        if batch.routes_version.is_some() && batch.routes_version != Some(load_one::<RoutesVersion, i64>(conn, &[])?) {
            return Ok(Settled { routes_changed: true, ..Settled::default() });
        }
        let held = partitions_held(conn, relay, &batch.epochs)?;
        let mut work = Work { conn, now, touched: BTreeMap::new() };
        let mut settled = Settled::default();
        let partitions = batch.moves.iter().map(|m| m.partition_no).chain(batch.waiting.iter().map(|w| w.partition_no));
        settled.stale = partitions.filter(|partition_no| !held.contains(*partition_no)).count();
        for message in &batch.moves {
            if !held.contains(message.partition_no) || !work.message(message)? {
                settled.refused_messages.push(message.seq);
            }
        }
        for outcome in &batch.waiting {
            if !held.contains(outcome.partition_no) || !work.waiting(outcome)? {
                settled.refused_waiting.push(outcome.id);
            }
        }
        work.repair()?;
        Ok(settled)
    })
}

/// Leaves exactly the lowest in-order row of every key of these partitions unblocked.
pub(super) fn repair_partitions(conn: &mut SqliteConnection, partitions: PartitionSet) -> QueryResult<()> {
    execute::<PartitionKeyBlock>(conn, &[mask(partitions).into()])?;
    execute::<PartitionKeyUnblock>(conn, &[mask(partitions).into()])?;
    Ok(())
}

/// The partitions the relay owns under the epoch it believes in.
fn partitions_held(conn: &mut SqliteConnection, relay: RelayId, epochs: &[(u8, i64)]) -> QueryResult<PartitionSet> {
    let owned: Vec<(i32, i64)> = load::<PartitionHeld, _>(conn, &[(&relay).into()])?;
    Ok(owned
        .into_iter()
        .map(|(partition_no, epoch)| (partition_no as u8, epoch))
        .filter(|held| epochs.contains(held))
        .map(|(partition_no, _)| partition_no)
        .collect())
}

/// A settle in progress.
struct Work<'c> {
    conn: &'c mut SqliteConnection,
    now: i64,
    /// The keys whose rows have changed, with the number of rows that were added.
    touched: BTreeMap<(String, Key), u32>,
}

impl Work<'_> {
    /// Takes a message out of `outbox_messages`, leaving what remains of it; false when its row is gone.
    fn message(&mut self, message: &MessageMove) -> QueryResult<bool> {
        let binds = [message.seq.into(), (&message.id).into(), message.partition_no.into()];
        if load_optional::<MessageExists, i32>(self.conn, &binds)?.is_none() {
            return Ok(false);
        }
        for UnitMove { destination, remains } in &message.units {
            match remains {
                Remains::Waits(waits) => self.message_waits(message.seq, destination, waits)?,
                Remains::Dies(dies) => self.message_dies(message.seq, destination, dies)?,
            }
            self.touch(destination, message.ordering_key.as_ref(), 1);
        }
        execute::<MessageDelete>(self.conn, &[message.seq.into(), (&message.id).into()])?;
        Ok(true)
    }

    fn message_waits(&mut self, seq: Seq, destination: &str, waits: &Waits) -> QueryResult<()> {
        let history = decode::history_text(&waits.history);
        let binds = [
            destination.into(),
            waits.state.as_str().into(),
            waits.in_order.into(),
            (waits.state == State::Suspect).into(),
            waits.in_order.into(),
            waits.attempts.into(),
            self.due_at(waits.due).into(),
            self.now.into(),
            self.began_at(waits.first_attempt_age).into(),
            waits.last_verdict.into(),
            waits.last_error.as_deref().into(),
            history.as_str().into(),
            seq.into(),
        ];
        execute::<MessageWaits>(self.conn, &binds).map(drop)
    }

    fn message_dies(&mut self, seq: Seq, destination: &str, dies: &Dies) -> QueryResult<()> {
        let history = decode::history_text(&dies.history);
        let binds = [
            destination.into(),
            dies.attempts.into(),
            self.began_at(dies.first_attempt_age).into(),
            dies.last_verdict.into(),
            dies.last_error.as_deref().into(),
            history.as_str().into(),
            dies.reason.as_str().into(),
            dies.fingerprint.as_str().into(),
            dies.blocks_key.into(),
            self.now.into(),
            seq.into(),
        ];
        execute::<MessageDies>(self.conn, &binds).map(drop)
    }

    /// Writes the outcome of a waiting row; false when the row is gone or has been judged by somebody else.
    fn waiting(&mut self, outcome: &WaitingOutcome) -> QueryResult<bool> {
        let binds = [
            outcome.id.into(),
            outcome.attempts_read.into(),
            outcome.partition_no.into(),
            (&outcome.message_id).into(),
        ];
        let found: Option<bool> = load_optional::<DeliveryFind, _>(self.conn, &binds)?;
        let key = outcome.ordering_key.as_ref();
        let Some(unrouted) = found else {
            // Somebody else may have deleted it, whose transaction leaves the next of the key to us.
            self.touch(&outcome.destination, key, 0);
            return Ok(false);
        };
        match &outcome.change {
            WaitingChange::Delivered => self.delivery_delete(outcome.id)?,
            WaitingChange::Waits(waits) => self.delivery_waits(outcome.id, waits)?,
            WaitingChange::Dies(dies) => {
                self.delivery_dies(outcome.id, None, dies)?;
                self.delivery_delete(outcome.id)?;
            }
            // A row routed to nowhere would vanish without a trace, one that has its route already would be doubled.
            WaitingChange::Routed(units) if units.is_empty() || !unrouted => return Ok(false),
            WaitingChange::Routed(units) => {
                for RoutedUnit { destination, remains } in units {
                    match remains {
                        Remains::Waits(waits) => self.delivery_routed(outcome.id, destination, waits)?,
                        Remains::Dies(dies) => self.delivery_dies(outcome.id, Some(destination), dies)?,
                    }
                    self.touch(destination, key, 1);
                }
                self.delivery_delete(outcome.id)?;
            }
        }
        self.touch(&outcome.destination, key, 0);
        Ok(true)
    }

    fn delivery_delete(&mut self, id: i64) -> QueryResult<()> {
        execute::<DeliveryDelete>(self.conn, &[id.into()]).map(drop)
    }

    fn delivery_waits(&mut self, id: i64, waits: &Waits) -> QueryResult<()> {
        let history = decode::history_text(&waits.history);
        let binds = [
            waits.state.as_str().into(),
            (waits.state == State::Suspect).into(),
            waits.attempts.into(),
            self.due_at(waits.due).into(),
            self.now.into(),
            self.began_at(waits.first_attempt_age).into(),
            waits.last_verdict.into(),
            waits.last_error.as_deref().into(),
            waits.last_error.as_deref().into(),
            waits.last_verdict.into(),
            history.as_str().into(),
            id.into(),
        ];
        execute::<DeliveryWaits>(self.conn, &binds).map(drop)
    }

    fn delivery_routed(&mut self, id: i64, destination: &str, waits: &Waits) -> QueryResult<()> {
        let history = decode::history_text(&waits.history);
        let binds = [
            destination.into(),
            waits.state.as_str().into(),
            waits.in_order.into(),
            (waits.state == State::Suspect).into(),
            waits.in_order.into(),
            self.due_at(waits.due).into(),
            self.now.into(),
            waits.last_verdict.into(),
            waits.last_error.as_deref().into(),
            history.as_str().into(),
            id.into(),
        ];
        execute::<DeliveryRouted>(self.conn, &binds).map(drop)
    }

    fn delivery_dies(&mut self, id: i64, destination: Option<&str>, dies: &Dies) -> QueryResult<()> {
        let history = decode::history_text(&dies.history);
        let binds = [
            destination.into(),
            dies.attempts.into(),
            self.began_at(dies.first_attempt_age).into(),
            dies.last_verdict.into(),
            dies.last_error.as_deref().into(),
            history.as_str().into(),
            dies.reason.as_str().into(),
            dies.fingerprint.as_str().into(),
            dies.blocks_key.into(),
            self.now.into(),
            id.into(),
        ];
        execute::<DeliveryDies>(self.conn, &binds).map(drop)
    }

    fn touch(&mut self, destination: &str, key: Option<&Key>, added: u32) {
        if let Some(key) = key {
            *self.touched.entry((destination.to_owned(), key.clone())).or_default() += added;
        }
    }

    /// Leaves exactly the lowest in-order row of each touched key unblocked, none behind a blocking dead letter.
    fn repair(&mut self) -> QueryResult<()> {
        for ((destination, key), added) in &self.touched {
            let (destination, key): (Bind<'_>, Bind<'_>) = (destination.as_str().into(), key[..].into());
            let head: Option<i64> = load_one::<KeyHead, _>(self.conn, &[destination, key, destination, key])?;
            // Before this batch the lowest row was the only one unblocked; it has moved up by what was added below it.
            // Looking no further keeps a key with a hundred thousand followers as cheap as any other.
            let depth = (added + 1).max(REPAIR_DEPTH);
            execute::<KeyBlock>(self.conn, &[head.into(), destination, key, depth.into()])?;
            if let Some(head) = head {
                execute::<KeyUnblock>(self.conn, &[head.into()])?;
            }
        }
        Ok(())
    }

    /// The hour of a pause, nothing for the message's own `deliver_at`. Rounded up: never early.
    fn due_at(&self, due: DueIn) -> Option<i64> {
        match due {
            DueIn::Pause(pause) => {
                let ms = pause.as_nanos().div_ceil(1_000_000);
                Some(self.now.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)))
            }
            DueIn::DeliverAt => None,
        }
    }

    fn began_at(&self, age: Option<Duration>) -> Option<i64> {
        age.map(|age| self.now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// How many of a key's lowest rows are looked at in any case, should more than one be unblocked by somebody's mistake.
const REPAIR_DEPTH: u32 = 32;

#[cfg(test)]
mod tests {
    use super::super::statement::{Sql, plan};
    use super::*;

    /// Look-ups by number and by index, whatever the tables hold: a settle keeps the application from writing.
    #[test]
    fn no_statement_of_a_settle_reads_a_whole_table() {
        for text in [
            MessageDelete::TEXT,
            MessageExists::TEXT,
            MessageWaits::TEXT,
            MessageDies::TEXT,
            DeliveryFind::TEXT,
            DeliveryWaits::TEXT,
            DeliveryStart::TEXT,
            DeliveryRouted::TEXT,
            DeliveryDies::TEXT,
            DeliveryDelete::TEXT,
            KeyBlock::TEXT,
            KeyUnblock::TEXT,
        ] {
            let plan = plan(text);
            assert!(!plan.contains("SCAN"), "{text}\n{plan}");
        }
        let plan = plan(KeyHead::TEXT);
        assert!(plan.contains("delivery_by_key (destination=? AND ordering_key=?)"), "{plan}");
        assert!(plan.contains("dead_letter_by_key (destination=? AND blocks_key=? AND ordering_key=?)"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}
