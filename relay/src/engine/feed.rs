//! Reads new messages, routes them and hands them to the lanes.
//!
//! One operation at a time: a poll and the look-up of its keys, a locking probe, or one step of the sweep. Rows are
//! handed out only after the look-up, and what the look-up says is acted upon before the next one begins. How they are
//! handed out is told in `hand_out`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

pub(super) use self::hand_out::{UNROUTED_PAUSE, doom, fresh};
use super::unrouted::Unrouted;
use super::{Answer, Engine};
use crate::frontier::{Reading, Stamp};
use crate::message::{Key, Message, PartitionSet, Seq};
use crate::poll::Evidence;
use crate::sink::Ordering;
use crate::store::{Page, Probe, Row, StoreError, Wanted};

mod hand_out;

/// The feed's own state.
pub(super) struct Feeding {
    busy: bool,
    /// Number of the last read begun; a read is a poll with its look-up.
    read: u64,
    next_poll: Instant,
    pause: Duration,
    pending: Option<Vec<Arc<Message>>>,
    pub(super) unrouted: Unrouted,
    /// Lost since the read under way began. What it shows of them may have been delivered by another since, even if they
    /// are ours again: then they are read once more.
    lost: PartitionSet,
    sweep_after: Seq,
    sweep_next: Instant,
    mark_busy: bool,
    /// Not before this, after a failure.
    mark_next: Instant,
    pass_from: u64,
    pass_empty: bool,
    caught_up: bool,
    /// The read under way began when everything that is to be fed from above the cursor had been read.
    tail_is_done: bool,
    /// The last read came to the end of the table.
    tail_ended: bool,
    /// Topics that were told to have no route, each with the destination it was sent to by name, or "".
    unrouted_told: HashSet<(String, String)>,
    /// What a message cost in the last pages: how many more there is room for.
    typical_bytes: usize,
}

/// What a feed operation brought.
pub(super) enum FeedAnswer {
    Page { wanted: Wanted, limit: u32, result: Result<Page, StoreError> },
    Parked { keys: Vec<(Option<usize>, Key)>, result: Result<Vec<bool>, StoreError> },
    Probed { ranges: Vec<(Seq, Seq)>, result: Result<Probe, StoreError> },
    Swept { until: Seq, took: Duration, result: Result<Vec<Seq>, StoreError> },
    Marked { stamp: Stamp, result: Result<Option<u64>, StoreError> },
}

impl Feeding {
    pub(super) fn new(now: Instant) -> Feeding {
        Feeding {
            busy: false,
            read: 0,
            next_poll: now,
            pause: Duration::ZERO,
            pending: None,
            unrouted: Unrouted::default(),
            lost: PartitionSet::EMPTY,
            sweep_after: 0,
            sweep_next: now + SWEEP_PERIOD,
            mark_busy: false,
            mark_next: now,
            pass_from: 0,
            pass_empty: false,
            caught_up: false,
            tail_is_done: false,
            tail_ended: false,
            unrouted_told: HashSet::new(),
            typical_bytes: TYPICAL_BYTES_FIRST,
        }
    }

    /// The number the next read will have.
    pub(super) fn next_read(&self) -> u64 {
        self.read + 1
    }

    /// The number of the last read begun.
    pub(super) fn last_read(&self) -> u64 {
        self.read
    }

    /// By other routes, what has none is told again.
    pub(super) fn routes_changed(&mut self) {
        self.unrouted_told.clear();
    }

    pub(super) fn poll_soon(&mut self, now: Instant) {
        self.next_poll = self.next_poll.min(now);
        self.pause = Duration::ZERO;
    }

    /// From now on only polls that begin later tell whether anything is left.
    pub(super) fn restart_pass(&mut self) {
        self.pass_from = self.read + 1;
        self.pass_empty = false;
    }

    pub(super) fn lose(&mut self, lost: PartitionSet) {
        self.lost = self.lost.or(lost);
    }

    pub(super) fn pass_is_empty(&self) -> bool {
        self.pass_empty
    }

    /// True once a poll found the end of the table: everything visible then has been read.
    pub(super) fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    /// So many messages may be read into this room.
    fn page_limit(&self, messages: usize, bytes: usize) -> u32 {
        let limit = messages.min(bytes / self.typical_bytes);
        u32::try_from(limit).unwrap_or(u32::MAX).clamp(1, PAGE_MAX)
    }

    /// A page of so many messages and bytes was read. Large ones count at once, small ones little by little.
    fn page_weighed(&mut self, messages: usize, bytes: usize) {
        if let Some(mean) = bytes.checked_div(messages) {
            self.typical_bytes = mean.max(self.typical_bytes / 2).max(1);
        }
    }

    /// True while rows that were read have not been handed out.
    pub(super) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }
}

impl Engine {
    /// Starts the next feed operation when one is due and there is room for what it may bring.
    pub(super) fn start_feed(&mut self, now: Instant) {
        if self.frontier.needs_mark()
            && !self.feed.mark_busy
            && now >= self.feed.mark_next
            && !self.settling.is_writing()
        {
            self.feed.mark_busy = true;
            let stamp = self.frontier.stamp();
            self.spawn_feed(move |store| async move { FeedAnswer::Marked { stamp, result: store.mark_draw().await } });
        }
        if self.feed.busy || now < self.feed.next_poll || !self.has_room() {
            return;
        }
        let doubtful = self.frontier.doubtful(now);
        if !doubtful.is_empty() {
            self.feed.busy = true;
            self.spawn_feed(move |store| async move {
                let result = store.message_probe(&doubtful).await;
                FeedAnswer::Probed { ranges: doubtful, result }
            });
        } else if now >= self.feed.sweep_next && self.frontier.cursor() > 0 {
            self.feed.busy = true;
            let (after, until, owned) = (self.feed.sweep_after, self.frontier.cursor(), self.kept());
            self.spawn_feed(move |store| async move {
                let began = Instant::now();
                let result = store.message_sweep(after, until, owned, SWEEP_LIMIT).await;
                FeedAnswer::Swept { until, took: began.elapsed(), result }
            });
        } else {
            self.feed.busy = true;
            self.feed.read += 1;
            self.feed.lost = PartitionSet::EMPTY;
            let wanted = self.frontier.wanted(now);
            self.feed.tail_is_done = wanted.tail && wanted.cursor >= self.feeds_until();
            let limit = self.feed.page_limit(
                self.pace.in_hands.saturating_sub(self.hands.open()),
                self.pace.in_hands_bytes.saturating_sub(self.hands.bytes()),
            );
            let owned = self.kept();
            self.spawn_feed(move |store| async move {
                let result = store.message_read(&wanted, owned, limit, None).await;
                FeedAnswer::Page { wanted, limit, result }
            });
        }
    }

    pub(super) fn feed_wake(&self, now: Instant) -> Instant {
        if self.feed.busy || !self.has_room() { now + super::TICK } else { self.feed.next_poll }
    }

    /// Room in hands, and no full lane that would keep others waiting for nothing.
    ///
    /// A full lane stops the feed while every other lane has work: nothing is rewritten. When another lane idles, the
    /// feed goes on and the full lane's messages become waiting rows.
    fn has_room(&self) -> bool {
        let enough = (self.pace.in_hands / 4).clamp(1, PAGE_MAX as usize);
        let open = self.hands.open();
        if open > 0 && self.pace.in_hands.saturating_sub(open) < enough {
            return false;
        }
        if self.hands.bytes() >= self.pace.in_hands_bytes {
            return false;
        }
        !self.lanes.iter().any(|l| l.lane.is_full()) || self.lanes.iter().any(|l| l.lane.is_idle())
    }

    /// True while a read is under way or may begin.
    pub(super) fn feeds(&self) -> bool {
        self.feed.busy || self.has_room()
    }

    fn spawn_feed<F, Fut>(&self, operation: F)
    where
        F: FnOnce(Arc<dyn crate::store::Store>) -> Fut,
        Fut: Future<Output = FeedAnswer> + Send + 'static,
    {
        let answers = self.answers.clone();
        let operation = operation(self.store.clone());
        tokio::spawn(async move {
            let _ = answers.send(Answer::Feed(operation.await));
        });
    }

    pub(super) fn feed_answered(&mut self, answer: FeedAnswer) {
        let now = Instant::now();
        match answer {
            FeedAnswer::Marked { stamp, result } => {
                self.feed.mark_busy = false;
                match result {
                    Ok(xid) => {
                        self.outages.recovered("mark_draw");
                        if let Some(xid) = xid {
                            self.frontier.mark(stamp, xid);
                        }
                    }
                    Err(error) => self.feed.mark_next = now + self.outages.failed("mark_draw", &error),
                }
            }
            FeedAnswer::Probed { ranges, result } => {
                self.feed.busy = false;
                if let Some(probe) = self.feed_result("message_probe", result, now) {
                    self.frontier.probed(&ranges, &probe, now);
                }
            }
            FeedAnswer::Swept { until, took, result } => {
                self.feed.busy = false;
                if let Some(found) = self.feed_result("message_sweep", result, now) {
                    self.swept(&found, until, took, now);
                }
            }
            FeedAnswer::Page { wanted, limit, result } => {
                self.feed.busy = false;
                if let Some(page) = self.feed_result("message_read", result, now) {
                    self.page_arrived(&wanted, page, limit, now);
                }
            }
            FeedAnswer::Parked { keys, result } => match result {
                Ok(parked) => {
                    self.outages.recovered("key_parked");
                    self.feed.busy = false;
                    let messages = self.feed.pending.take().unwrap_or_default();
                    let asked: HashSet<Key> =
                        keys.iter().filter(|(lane, _)| lane.is_none()).map(|(_, key)| key.clone()).collect();
                    let parked = keys.into_iter().zip(parked).filter(|(_, parked)| *parked).map(|(key, _)| key);
                    if messages
                        .iter()
                        .any(|message| self.may_pass_found(message).is_some_and(|key| !asked.contains(key)))
                    {
                        // The routes changed meanwhile, or partitions were gained, or a row of the key was found.
                        self.look_up_and_hand_out(messages);
                    } else {
                        self.hand_out(messages, &parked.collect());
                    }
                }
                Err(error) => {
                    // The page is in memory only: ask again rather than read again.
                    let pause = self.outages.failed("key_parked", &error);
                    self.spawn_look_up(keys, pause);
                }
            },
        }
    }

    fn feed_result<T>(&mut self, operation: &'static str, result: Result<T, StoreError>, now: Instant) -> Option<T> {
        match result {
            Ok(value) => {
                self.outages.recovered(operation);
                Some(value)
            }
            Err(error) => {
                self.feed.next_poll = now + self.outages.failed(operation, &error);
                None
            }
        }
    }

    fn page_arrived(&mut self, wanted: &Wanted, page: Page, limit: u32, now: Instant) {
        let with_tail = match self.frontier.receive(wanted, &page, now) {
            Reading::Discard => {
                debug!("page discarded; polling again");
                self.feed.caught_up = false;
                self.feed.next_poll = now;
                return;
            }
            Reading::Use { tail } => tail,
        };
        let full = page.holes_full || page.from_tail.len() >= limit as usize;
        let page_ends = page.from_tail.len() < limit as usize;
        let mut rows = page.from_holes;
        if with_tail {
            rows.extend(page.from_tail);
        }
        let rows_read = rows.len();
        let mut messages: Vec<Arc<Message>> = rows.into_iter().filter_map(|row| self.accept(row)).collect();
        messages.sort_by_key(|message| message.seq);
        self.feed.page_weighed(messages.len(), messages.iter().map(|message| message.weight()).sum());

        if full && !self.feed.tail_is_done {
            self.feed.pause = Duration::ZERO;
        } else if rows_read > 0 {
            self.feed.pause = self.pace.poll_busy;
        } else {
            self.feed.pause = (self.feed.pause * 2).clamp(self.pace.poll_busy, self.pace.poll_idle);
        }
        self.feed.next_poll = now + self.feed.pause;
        self.feed.tail_ended = with_tail && wanted.tail && page_ends;
        self.feed.caught_up |= self.feed.tail_ended;
        // What has come above the last number that is to be fed does not count, however much of it there is.
        let read_all = wanted.tail && (!full || self.feed.tail_is_done && !page.holes_full);
        if messages.is_empty() && read_all && self.feed.read >= self.feed.pass_from {
            self.feed.pass_empty = true;
        }
        if messages.is_empty() {
            self.acted_upon_read();
            return;
        }
        self.look_up_and_hand_out(messages);
    }

    fn look_up_and_hand_out(&mut self, messages: Vec<Arc<Message>>) {
        let keys = self.keys_to_look_up(&messages);
        if keys.is_empty() {
            self.hand_out(messages, &HashSet::new());
        } else {
            self.feed.busy = true;
            self.feed.pending = Some(messages);
            self.spawn_look_up(keys, Duration::ZERO);
        }
    }

    /// What has been ours without a break since the read under way began.
    fn kept_since_read(&self) -> PartitionSet {
        self.kept().without(self.feed.lost)
    }

    /// Ours, and not in hands already.
    fn accept(&mut self, row: Row) -> Option<Arc<Message>> {
        let Row::Mine(message) = row else { return None };
        if !self.kept_since_read().contains(message.partition_no) || message.seq > self.feeds_until() {
            return None;
        }
        if self.hands.contains(message.seq) {
            self.hands.seen_again(message.seq);
            return None;
        }
        let mut message = message;
        // Some producers write an empty text where they mean none.
        message.only_destination = message.only_destination.take().filter(|name| !name.is_empty());
        Some(Arc::from(message))
    }

    /// The keys whose waiting rows only the table knows.
    ///
    /// A key comes without a lane as well when there may be rows of it that were written without a destination and have
    /// one now.
    fn keys_to_look_up(&self, messages: &[Arc<Message>]) -> Vec<(Option<usize>, Key)> {
        let mut keys: HashSet<(Option<usize>, Key)> = HashSet::new();
        for message in messages {
            let Some(key) = &message.ordering_key else { continue };
            if message.scheduled {
                continue;
            }
            let may_find_route = self.may_pass_found(message).is_some();
            if may_find_route {
                keys.insert((None, key.clone()));
            }
            for destination in self.destinations_of(message).iter() {
                let Some(lane) = self.lane_of(*destination) else { continue };
                let state = &self.lanes[lane];
                // A row that finds its route while this is asked stands on one side or on the other.
                let occupied = state.occupied || may_find_route;
                if occupied && state.served.limits.keyed && !state.lane.is_parked(key) {
                    keys.insert((Some(lane), key.clone()));
                }
            }
        }
        keys.into_iter().collect()
    }

    /// The message's key, when an earlier message of it may have a route since.
    fn may_pass_found<'a>(&self, message: &'a Message) -> Option<&'a Key> {
        let key = message.ordering_key.as_ref().filter(|_| !message.scheduled)?;
        self.may_find_route(message.partition_no, key).then_some(key)
    }

    fn spawn_look_up(&self, keys: Vec<(Option<usize>, Key)>, pause: Duration) {
        let name =
            |lane: &Option<usize>| lane.map_or_else(String::new, |lane| self.lanes[lane].served.name.to_string());
        let named = keys.iter().map(|(lane, key)| (name(lane), key.clone())).collect();
        self.spawn_feed(move |store| async move {
            tokio::time::sleep(pause).await;
            let named: Vec<(String, Key)> = named;
            let result = store.key_parked(&named).await;
            FeedAnswer::Parked { keys, result }
        });
    }

    /// Everything the last read said has been acted upon: older knowledge may go.
    fn acted_upon_read(&mut self) {
        let read = self.feed.read;
        for seq in self.hands.read_done(read) {
            self.frontier.reopen(seq);
        }
        for state in &mut self.lanes {
            state.lane.read_done(read);
        }
        self.inherited_read(self.feed.tail_ended);
    }

    pub(super) fn destinations_of(&self, message: &Message) -> Arc<[usize]> {
        match &message.only_destination {
            Some(name) => self.routes.named(name).into_iter().collect(),
            None => self.routes.route(&message.topic),
        }
    }

    /// True when the destination wants a key's messages in order.
    pub(super) fn keeps_order(&self, destination: usize) -> bool {
        self.routing.destinations[destination].spec.ordering != Ordering::None.as_str()
    }

    pub(super) fn lane_of(&self, destination: usize) -> Option<usize> {
        self.lane_by_name.get(&self.routing.destinations.get(destination)?.spec.name).copied()
    }

    /// Reopens what the frontier missed; it hands nothing out itself.
    fn swept(&mut self, found: &[Seq], until: Seq, took: Duration, now: Instant) {
        let mut missed = 0;
        for &seq in found {
            if !self.hands.contains(seq) && !self.frontier.is_hole(seq) && seq <= self.frontier.cursor() {
                self.frontier.reopen(seq);
                missed += 1;
            }
        }
        if missed > 0 {
            self.feed.poll_soon(now);
            if self.frontier_is_exact() {
                warn!(missed, "the sweep found messages the reader had missed; they are delivered now");
            } else {
                info!(missed, "the sweep found messages of long transactions; they are delivered now");
            }
        }
        // A few per cent of the time at most, however large the table is.
        let rest = (took * 30).max(Duration::from_millis(50));
        if found.len() < SWEEP_LIMIT as usize {
            self.feed.sweep_after = 0;
            self.feed.sweep_next = now + rest.max(SWEEP_PERIOD);
        } else {
            self.feed.sweep_after = found.last().copied().unwrap_or(until);
            self.feed.sweep_next = now + rest;
        }
    }

    fn frontier_is_exact(&self) -> bool {
        !matches!(self.store.evidence(), Evidence::Ages(_))
    }
}

/// What a message may cost before any was read.
const TYPICAL_BYTES_FIRST: usize = 256 << 10;
/// Rows of a poll, at most.
const PAGE_MAX: u32 = 1_000;
/// Numbers of one step of the sweep.
const SWEEP_LIMIT: u32 = 5_000;
/// Between two sweeps of the whole table.
const SWEEP_PERIOD: Duration = Duration::from_secs(20);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_as_long_as_there_is_room_for_their_bytes() {
        let mut feed = Feeding::new(Instant::now());
        let room = 64 << 20;
        assert_eq!(feed.page_limit(4096, room), 256, "nobody knows yet how large they are");
        (0..20).for_each(|_| feed.page_weighed(500, 500 * 1_000));
        assert_eq!(feed.page_limit(4096, room), PAGE_MAX);
        assert_eq!(feed.page_limit(7, room), 7);
        feed.page_weighed(10, 10 << 20);
        assert_eq!(feed.page_limit(4096, room), 64, "large ones came");
        feed.page_weighed(0, 0);
        assert_eq!(feed.page_limit(4096, room), 64, "an empty page says nothing");
        assert_eq!(feed.page_limit(4096, 0), 1, "never none: the loop decides whether to read at all");
    }
}
