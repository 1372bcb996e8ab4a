//! Writes outcomes, many at a time.
//!
//! Two trays: messages every destination has (a plain DELETE), and everything else (one transaction under the partition
//! locks). Whatever has gathered while the last write was under way is the next batch: small when there is little to
//! do, large when there is much.
//!
//! A batch that fails stays and is written again: nothing here is ever dropped but by an answer of the database. What
//! cannot be written even by itself is set aside, tried again now and then, and told about.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use self::tray::Tray;
use super::{Answer, Engine, TICK};
use crate::cause::chain;
use crate::event::Event;
use crate::frontier::Stamp;
use crate::hands::Concluded;
use crate::message::{Key, Message, MessageId, PartitionSet, Seq};
use crate::outcome::waits;
use crate::store::{
    Delivered, DueIn, MessageMove, Remains, Settled, Settlement, State, StoreError, UnitMove, WaitingChange,
    WaitingOutcome, Waits,
};

mod aside;
mod tray;

/// Outcomes on their way to the database.
#[derive(Default)]
pub(super) struct Settling {
    delivered: Tray<Gone>,
    rest: Tray<Rest>,
    /// Delivered, but not deleted by the plain statement: to be settled under the lock once the routes were read again.
    recheck: Vec<(u64, Gone)>,
    /// Moves of messages that a destination may have been missed for: the routes have to be read once more first. A
    /// plain DELETE compares their version instead.
    unconfirmed: Vec<(u64, MessageMove, i64)>,
    /// Reads of the routes begun, and the last one that has answered.
    routing_read: u64,
    routing_known: u64,
    /// From then on what cannot be written does not keep its partition from being given up.
    leave_from: Option<Instant>,
    /// A drain has nothing else to do: until then it tries what cannot be written.
    drain_until: Option<Instant>,
}

/// A message every destination has.
#[derive(Clone, Copy)]
struct Gone {
    seq: Seq,
    id: MessageId,
    partition_no: u8,
    routes_version: i64,
}

/// Anything but the plain case.
#[derive(Clone)]
enum Rest {
    Move { moved: MessageMove, routes_version: i64 },
    Row(WaitingOutcome),
}

/// What came of a write.
pub(super) enum SettleAnswer {
    Deleted { stamp: Stamp, result: Result<Delivered, StoreError> },
    Settled { stamp: Stamp, result: Result<Settled, StoreError> },
}

impl Settling {
    pub(super) fn push_row(&mut self, outcome: WaitingOutcome) {
        self.rest.items.push_back(Rest::Row(outcome));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.len() == 0
    }

    /// True while something cannot be settled before the routes are read again.
    pub(super) fn needs_routes(&self) -> bool {
        !self.recheck.is_empty() || !self.unconfirmed.is_empty()
    }

    pub(super) fn is_writing(&self) -> bool {
        self.delivered.is_writing() || self.rest.is_writing()
    }

    pub(super) fn len(&self) -> usize {
        self.delivered.len() + self.rest.len() + self.recheck.len() + self.unconfirmed.len()
    }

    /// Drops outcomes of lost partitions: they would be refused, the new owner has the rows. Returns the keys of waiting
    /// rows that would have stayed, each with its destination.
    ///
    /// What is being written of them is forgotten as well: should they be ours again before its answer comes, that is
    /// about what was in hands then, and not about what was read since.
    pub(super) fn evict(&mut self, lost: PartitionSet) -> Vec<(String, Key)> {
        self.delivered.retain(|gone| !lost.contains(gone.partition_no));
        self.recheck.retain(|(_, gone)| !lost.contains(gone.partition_no));
        self.unconfirmed.retain(|(_, moved, _)| !lost.contains(moved.partition_no));
        let mut dropped = Vec::new();
        self.rest.retain(|item: &Rest| {
            let keep = !lost.contains(item.partition_no());
            if let (false, Rest::Row(outcome)) = (keep, item) {
                let key = outcome.ordering_key.clone().filter(|_| outcome.change.parks_key());
                dropped.extend(key.map(|key| (outcome.destination.clone(), key)));
            }
            keep
        });
        dropped
    }

    /// Drops what would be written of rows without a destination in partitions that are given up: they stand in their
    /// table, and their next owner finds them. Returns those rows.
    pub(super) fn leave_unrouted(&mut self, leaving: PartitionSet) -> Vec<i64> {
        let mut left = Vec::new();
        let mut keep = |item: &Rest| {
            let Rest::Row(outcome) = item else { return true };
            let keep = !outcome.destination.is_empty() || !leaving.contains(outcome.partition_no);
            left.extend((!keep).then_some(outcome.id));
            keep
        };
        self.rest.items.retain(&mut keep);
        self.rest.aside.retain(|(_, item)| keep(item));
        left
    }

    /// The partitions of which waiting rows are to be written.
    pub(super) fn partitions(&self) -> PartitionSet {
        let rest = self.rest.items.iter().chain(&self.rest.writing).chain(self.rest.aside());
        rest.map(Rest::partition_no).chain(self.unconfirmed.iter().map(|(_, moved, _)| moved.partition_no)).collect()
    }

    /// The routes the moves that are to be written were decided by.
    pub(super) fn routes_versions(&self) -> impl Iterator<Item = i64> {
        let rest = self.rest.items.iter().chain(&self.rest.writing).chain(self.rest.aside());
        let version = |item: &Rest| match item {
            Rest::Move { routes_version, .. } => Some(*routes_version),
            Rest::Row(_) => None,
        };
        rest.filter_map(version).chain(self.unconfirmed.iter().map(|(_, _, version)| *version))
    }

    /// How many reads of the routes have begun.
    pub(super) fn routing_read(&self) -> u64 {
        self.routing_read
    }

    /// A routing read begins; returns its number.
    pub(super) fn routing_read_begins(&mut self) -> u64 {
        self.routing_read += 1;
        self.routing_read
    }
}

impl Rest {
    /// True when it writes rows for destinations the routes named.
    fn names_destinations(&self) -> bool {
        match self {
            Rest::Move { moved, .. } => !moved.units.is_empty(),
            Rest::Row(outcome) => matches!(outcome.change, WaitingChange::Routed(_)),
        }
    }

    fn message_id(&self) -> MessageId {
        match self {
            Rest::Move { moved, .. } => moved.id,
            Rest::Row(outcome) => outcome.message_id,
        }
    }

    fn partition_no(&self) -> u8 {
        match self {
            Rest::Move { moved, .. } => moved.partition_no,
            Rest::Row(outcome) => outcome.partition_no,
        }
    }
}

impl Engine {
    /// One destination of a fresh message has its outcome.
    pub(super) fn conclude_fresh(&mut self, message: &Arc<Message>, destination: &str, remains: Option<Remains>) {
        let version = self.hands.routes_version(message.seq);
        let needs = self.hands.routes_read(message.seq).unwrap_or_default() + 1;
        match self.hands.conclude(message.seq, destination, remains, Instant::now()) {
            None => {}
            Some(Concluded::Delivered { seq, id, routes_version }) => {
                let partition_no = message.partition_no;
                self.settling.delivered.items.push_back(Gone { seq, id, partition_no, routes_version });
            }
            Some(Concluded::Moves(moved)) => {
                let routes_version = version.unwrap_or_default();
                if needs <= self.settling.routing_known {
                    self.settling.rest.items.push_back(Rest::Move { moved, routes_version });
                } else {
                    self.settling.unconfirmed.push((needs, moved, routes_version));
                    self.routing_next = self.routing_next.min(Instant::now());
                }
            }
        }
    }

    /// Starts the writes that can start.
    pub(super) fn start_settles(&mut self, now: Instant) {
        self.settling.delivered.bring_back(now);
        self.settling.rest.bring_back(now);
        if self.settling.delivered.is_ready(now) {
            let batch = self.settling.delivered.begin(|first, next| first.routes_version == next.routes_version);
            let stamp = self.frontier.stamp();
            let (store, answers) = (self.store.clone(), self.answers.clone());
            tokio::spawn(async move {
                let version = batch.first().map_or(0, |gone| gone.routes_version);
                let named: Vec<(Seq, MessageId)> = batch.iter().map(|gone| (gone.seq, gone.id)).collect();
                let result = store.message_delivered(&named, version).await;
                let _ = answers.send(Answer::Settle(SettleAnswer::Deleted { stamp, result }));
            });
        }
        if self.settling.rest.is_ready(now) {
            let mut batch = self.settling.rest.begin(|_, _| true);
            let mut settlement = Settlement {
                epochs: self.epochs.iter().map(|(partition, epoch)| (*partition, *epoch)).collect(),
                ..Settlement::default()
            };
            for item in &mut batch {
                if let Rest::Move { moved, routes_version } = item {
                    self.follow_routes(moved, *routes_version);
                    *routes_version = self.routes.version();
                }
            }
            // A unit must not be written for a destination that was removed since the routes were read.
            settlement.routes_version = batch.iter().any(Rest::names_destinations).then(|| self.routes.version());
            // The acknowledgement has to see what was sent.
            self.settling.rest.writing.clone_from(&batch);
            for item in batch {
                match item {
                    Rest::Move { moved, .. } => settlement.moves.push(moved),
                    Rest::Row(outcome) => settlement.waiting.push(outcome),
                }
            }
            let stamp = self.frontier.stamp();
            let (store, answers, relay) = (self.store.clone(), self.answers.clone(), self.relay);
            tokio::spawn(async move {
                let result = store.settle(relay, &settlement, None).await;
                let _ = answers.send(Answer::Settle(SettleAnswer::Settled { stamp, result }));
            });
        }
    }

    pub(super) fn settle_wake(&self, now: Instant) -> Instant {
        let mut at = now + TICK;
        // While a batch is being written its answer wakes the loop; the hour it was to be tried again is past.
        for retry_at in [self.settling.delivered.next_try(), self.settling.rest.next_try()].into_iter().flatten() {
            at = at.min(retry_at);
        }
        at
    }

    pub(super) fn settle_answered(&mut self, answer: SettleAnswer) {
        let now = Instant::now();
        match answer {
            SettleAnswer::Deleted { stamp, result } => match result {
                Ok(delivered) => self.deleted(stamp, &delivered, now),
                Err(error) => {
                    let (content, pause) = self.write_failed("message_delivered", &error);
                    if let Some(gone) = self.settling.delivered.failed(content, pause, now) {
                        tell_aside(gone.id, &error);
                        self.leave_aside(now);
                    }
                }
            },
            SettleAnswer::Settled { stamp, result } => match result {
                Ok(settled) if settled.routes_changed => self.decide_again(stamp, &settled, now),
                Ok(settled) => self.settled(stamp, &settled, now),
                Err(error) => {
                    let (content, pause) = self.write_failed("settle", &error);
                    if let Some(item) = self.settling.rest.failed(content, pause, now) {
                        tell_aside(item.message_id(), &error);
                        match item {
                            Rest::Row(outcome) => {
                                self.due.search.stuck(outcome.id);
                                // Its attempt has ended: who has to be alone need not wait for what may never be written.
                                self.starts.settled(outcome.id);
                            }
                            Rest::Move { moved, .. } => {
                                if let Some(key) = &moved.ordering_key {
                                    self.feed.unrouted.stuck(key, moved.seq);
                                }
                            }
                        }
                        self.leave_aside(now);
                    }
                }
            },
        }
    }

    /// Whether the rows themselves may be at fault, and how long to wait. While the one among many is looked for, its
    /// neighbours wait; what cannot be written even by itself rests for longer.
    fn write_failed(&mut self, operation: &'static str, error: &StoreError) -> (bool, Duration) {
        let pause = self.outages.failed(operation, error);
        let content = matches!(error, StoreError::Refused { .. });
        (content, if content { pause.min(CONTENT_PAUSE) } else { pause })
    }

    fn deleted(&mut self, stamp: Stamp, delivered: &Delivered, now: Instant) {
        self.outages.recovered("message_delivered");
        if let Some(xid) = delivered.mark {
            self.frontier.mark(stamp, xid);
        }
        let next_read = self.feed.next_read();
        self.settling.drain_until = None;
        let batch = self.settling.delivered.written();
        let deleted: HashSet<Seq> = delivered.deleted.iter().copied().collect();
        for gone in batch {
            if deleted.contains(&gone.seq) {
                self.hands.settled(gone.seq, next_read);
            } else {
                // Gone already, or the routes changed since. Only the lock and the newest routes can tell.
                self.settling.recheck.push((self.settling.routing_read + 1, gone));
                self.routing_next = now;
            }
        }
    }

    /// The routes were read; the read had this number.
    pub(super) fn routes_confirmed(&mut self, number: u64) {
        self.settling.routing_known = number;
        for (needs, moved, routes_version) in std::mem::take(&mut self.settling.unconfirmed) {
            if needs > number {
                self.settling.unconfirmed.push((needs, moved, routes_version));
            } else {
                self.settling.rest.items.push_back(Rest::Move { moved, routes_version });
            }
        }
        let recheck = std::mem::take(&mut self.settling.recheck);
        for (needs, gone) in recheck {
            if needs > number {
                self.settling.recheck.push((needs, gone));
                continue;
            }
            let Gone { seq, id, routes_version, .. } = gone;
            let Some(message) = self.hands.message(seq).cloned() else { continue };
            let moved = MessageMove {
                seq,
                id,
                partition_no: message.partition_no,
                ordering_key: message.ordering_key.clone(),
                units: Vec::new(),
            };
            self.settling.rest.items.push_back(Rest::Move { moved, routes_version });
        }
    }

    /// Nothing was written, because the routes are others by now: they are read, and what follows from them is decided
    /// again.
    fn decide_again(&mut self, stamp: Stamp, settled: &Settled, now: Instant) {
        self.outages.recovered("settle");
        if let Some(xid) = settled.mark {
            self.frontier.mark(stamp, xid);
        }
        let needs = self.settling.routing_read + 1;
        for item in self.settling.rest.written().into_iter().rev() {
            match item {
                Rest::Move { moved, routes_version } => {
                    self.settling.unconfirmed.push((needs, moved, routes_version));
                }
                // Still in its table, and looked at again with the new routes.
                Rest::Row(WaitingOutcome { id, change: WaitingChange::Routed(_), .. }) => self.due.forget(id),
                row => self.settling.rest.items.push_front(row),
            }
        }
        self.due.search.routes_changed(now);
        self.routing_next = now;
    }

    /// A message routed by older routes gets a waiting row for each destination that has come since, and none for one
    /// that was removed. Without any it waits for a route.
    fn follow_routes(&mut self, moved: &mut MessageMove, routed_by: i64) {
        if routed_by == self.routes.version() {
            return;
        }
        let Some(message) = self.hands.message(moved.seq).cloned() else { return };
        let known: Vec<String> = match self.old_routes.iter().find(|old| old.version == routed_by) {
            Some(old) if message.only_destination.is_none() && !message.scheduled => old.names_for(&message.topic),
            _ => return,
        };
        let units = moved.units.len();
        moved.units.retain(|unit| self.routes.named(&unit.destination).is_some() || !was_never_served(unit));
        let was_removed = moved.units.len() < units;
        for &destination in self.destinations_of(&message).iter() {
            let name = &self.routing.destinations[destination].spec.name;
            if known.contains(name) {
                continue;
            }
            info!(message.id = %message.id, destination = %name, "a destination that came meanwhile gets the message too");
            let label = if self.lane_of(destination).is_some() { State::Overflow } else { State::Unserved };
            let in_order = self.keeps_order(destination);
            let remains = waits(label, in_order, DueIn::Pause(Duration::ZERO));
            moved.units.push(UnitMove { destination: name.clone(), remains });
            if let (Some(lane), Some(key), true) = (self.lane_of(destination), &message.ordering_key, in_order) {
                self.lanes[lane].lane.writing_key(key, moved.seq);
            }
        }
        if moved.units.len() > 1 {
            moved.units.retain(|unit| !unit.destination.is_empty());
        }
        let is_elsewhere = known.iter().any(|name| self.routes.named(name).is_some());
        if was_removed && moved.units.is_empty() && !is_elsewhere {
            info!(message.id = %message.id, "its only destination was removed; the message waits for a route");
            self.feed.unrouted.writing(&message, self.routes.version());
            let remains = waits(State::Unrouted, true, DueIn::Pause(super::feed::UNROUTED_PAUSE));
            moved.units.push(UnitMove { destination: String::new(), remains });
        }
    }

    fn settled(&mut self, stamp: Stamp, settled: &Settled, now: Instant) {
        self.outages.recovered("settle");
        self.tell_stale(settled.stale);
        if let Some(xid) = settled.mark {
            self.frontier.mark(stamp, xid);
        }
        // A look under way may have begun before this was written: it must not tell that nothing is left.
        self.due.restart_pass();
        self.settling.drain_until = None;
        let next_read = self.feed.next_read();
        let refused: HashSet<Seq> = settled.refused_messages.iter().copied().collect();
        let refused_rows: HashSet<i64> = settled.refused_waiting.iter().copied().collect();
        for item in self.settling.rest.written() {
            match item {
                Rest::Move { moved, .. } => {
                    self.unrouted_settled(&moved, now);
                    for unit in &moved.units {
                        let key = moved.ordering_key.as_ref().map(|key| (key, Some(moved.seq)));
                        self.row_written(&unit.destination, key, &unit.remains, next_read, now);
                    }
                    if refused.contains(&moved.seq) {
                        // Not ours any more, or settled before: if it is still there, the next poll finds it.
                        self.hands.drop_held(moved.seq);
                        self.frontier.reopen(moved.seq);
                        self.feed.poll_soon(now);
                    } else {
                        self.hands.settled(moved.seq, next_read);
                    }
                }
                Rest::Row(outcome) => {
                    self.due.settled(outcome.id);
                    self.starts.settled(outcome.id);
                    let key = outcome.ordering_key.as_ref().map(|key| (key, None));
                    match &outcome.change {
                        WaitingChange::Delivered => self.look_soon(&outcome.destination, now),
                        WaitingChange::Waits(waits) => {
                            if outcome.destination.is_empty() {
                                self.due.search.written(outcome.partition_no, now);
                            }
                            if !refused_rows.contains(&outcome.id) {
                                self.clock.rewritten(outcome.id);
                            }
                            let remains = Remains::Waits(waits.clone());
                            self.row_written(&outcome.destination, key, &remains, next_read, now);
                        }
                        WaitingChange::Dies(dies) => {
                            let remains = Remains::Dies(dies.clone());
                            self.row_written(&outcome.destination, key, &remains, next_read, now);
                            self.look_soon(&outcome.destination, now);
                        }
                        WaitingChange::Routed(units) => {
                            if refused_rows.contains(&outcome.id) {
                                // Gone, or other than it was read: then it is read again.
                                self.due.search.again(outcome.partition_no, now);
                            }
                            for unit in units {
                                self.occupy(&unit.destination);
                                self.look_soon(&unit.destination, now);
                            }
                        }
                    }
                }
            }
        }
    }

    /// A message that had no route stands in a row now, or was refused.
    fn unrouted_settled(&mut self, moved: &MessageMove, now: Instant) {
        let is_unrouted =
            |unit: &UnitMove| matches!(&unit.remains, Remains::Waits(Waits { state: State::Unrouted, .. }));
        if moved.units.iter().any(|unit| unit.destination.is_empty() && is_unrouted(unit)) {
            self.due.search.written(moved.partition_no, now);
        }
        let Some(key) = &moved.ordering_key else { return };
        let routed_by = self.feed.unrouted.written(key, moved.seq);
        if routed_by.is_some_and(|version| version != self.routes.version()) {
            // There may be one by now, and what comes later of its key waits for that.
            self.due.search.want(PartitionSet::EMPTY.with(moved.partition_no));
        }
    }

    /// Outcomes that came after their partition had gone to another relay. They are counted, because each may have been
    /// delivered twice.
    fn tell_stale(&self, outcomes: usize) {
        if outcomes == 0 {
            return;
        }
        warn!(outcomes, "outcomes came too late and were refused: their partitions belong to another relay");
        self.tell_event(&Event::Refused { outcomes });
    }

    /// A row now stands in a table: the lane's keys and looks have to know. The key comes with the number of a message
    /// that had no row before.
    fn row_written(
        &mut self,
        destination: &str,
        key: Option<(&Key, Option<Seq>)>,
        remains: &Remains,
        next_read: u64,
        now: Instant,
    ) {
        if destination.is_empty() && matches!(remains, Remains::Waits(Waits { due: DueIn::DeliverAt, .. })) {
            return self.due.learn_when(now);
        }
        let Some(&lane) = self.lane_by_name.get(destination) else { return };
        let parks = remains.parks_key();
        let due = match remains {
            Remains::Waits(Waits { due: DueIn::Pause(pause), .. }) => Some(now + *pause),
            Remains::Waits(Waits { due: DueIn::DeliverAt, .. }) => Some(now),
            Remains::Dies(_) => None,
        };
        if matches!(remains, Remains::Waits(_)) || parks {
            self.occupy(destination);
        }
        let next_look = self.due.next_number();
        let state = &mut self.lanes[lane];
        if let Some((key, new)) = key
            && parks
        {
            state.lane.written(key, new, next_read, next_look);
        }
        state.next_due = [state.next_due, due].into_iter().flatten().min();
    }

    fn occupy(&mut self, destination: &str) {
        if let Some(&lane) = self.lane_by_name.get(destination) {
            self.lanes[lane].occupied = true;
            self.lanes[lane].occupied_until = self.due.next_number();
        }
    }

    fn look_soon(&mut self, destination: &str, now: Instant) {
        if let Some(&lane) = self.lane_by_name.get(destination) {
            self.lanes[lane].next_due = Some(now);
        }
    }
}

/// Between two tries to find what cannot be written.
const CONTENT_PAUSE: Duration = Duration::from_millis(20);

/// One outcome cannot be written.
fn tell_aside(message_id: MessageId, error: &StoreError) {
    error!(
        message.id = %message_id, error = %chain(error),
        "an outcome cannot be written; it is set aside and tried again, its neighbours go on"
    );
}

/// True for what waits only because the relay does not serve its destination: nobody has attempted it.
fn was_never_served(unit: &UnitMove) -> bool {
    matches!(&unit.remains, Remains::Waits(Waits { state: State::Unserved, .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_being_written_of_lost_partitions_concludes_nothing_afterwards() {
        let (now, lost) = (Instant::now(), PartitionSet::EMPTY.with(1));
        let gone = |seq, partition_no| Gone { seq, id: MessageId::from_u128(7), partition_no, routes_version: 0 };
        let seqs = |gone: Vec<Gone>| gone.into_iter().map(|gone| gone.seq).collect::<Vec<_>>();
        let recheck = vec![(1, gone(1, 1)), (1, gone(2, 2))];
        let mut settling = Settling { recheck, ..Settling::default() };
        settling.delivered.items = [gone(3, 1), gone(4, 2)].into();
        settling.delivered.begin(|_, _| true);
        settling.delivered.items = [gone(5, 1)].into();
        settling.evict(lost);
        assert!(settling.is_writing() && !settling.delivered.is_ready(now), "its answer is still to come");
        assert_eq!(seqs(settling.delivered.written()), [4]);
        assert_eq!(settling.recheck.iter().map(|(_, gone)| gone.seq).collect::<Vec<_>>(), [2]);
        // Should the write fail, nothing is tried again that is another's.
        settling.delivered.items = [gone(6, 1)].into();
        settling.delivered.begin(|_, _| true);
        settling.evict(lost);
        assert!(settling.delivered.failed(true, Duration::ZERO, now).is_none());
        assert!(settling.delivered.items.is_empty() && !settling.is_writing());
    }
}
