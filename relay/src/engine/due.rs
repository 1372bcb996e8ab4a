//! Fetches waiting rows that are due and gives them to their lanes.
//!
//! One look for all lanes. A row stays in hands until a look that began after its settle committed, for the same reason
//! as a message does. Looks at rows without a destination take turns with the others; `routes` tells of those.
//!
//! What may not start comes back with every look. Nothing is looked at again soon for its sake: its lane tells when its key
//! is free. And no look asks for more than there is room for, in rows and, going by what the last ones cost, in bytes.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use self::routes::{Doubts, Told};
use super::feed::doom;
use super::followers::Followers;
use super::search::Search;
use super::{Answer, Engine, TICK};
use crate::lane::{Care, Origin, Work};
use crate::message::{Key, PartitionSet, WaitingDelivery};
use crate::store::{Due, LaneDemand, LaneWaiting, Reason, StoreError, WaitingChange, WaitingOutcome};

mod routes;

/// The state of the looks.
pub(super) struct DueState {
    busy: bool,
    /// Number of the last look begun.
    number: u64,
    /// Not before this, after a failure.
    retry_at: Instant,
    held: HashMap<i64, HeldRow>,
    leaving: VecDeque<(u64, i64)>,
    /// Lost since the look under way began: what it shows of them may be out of date, even if they are ours again.
    lost: PartitionSet,
    /// Looks for rows that have a route by now.
    pub(super) search: Search,
    /// Due rows of each lane that could not start when they were looked at last: the next look has to reach beyond them.
    not_certain: HashMap<usize, usize>,
    /// How long until those that wait for the feed, or the search, are looked at again.
    not_yet_pause: Duration,
    /// What a row without destination cost in the last looks.
    typical_bytes: usize,
    safety_next: Instant,
    pass_from: u64,
    pass_empty: bool,
    /// An answer that came while a page waited for its look-up.
    deferred: Option<DueAnswer>,
    pub(super) followers: Followers,
}

/// When a row that could not start is worth another look, the soonest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    WhenItsKeyIsFree,
    WhenThereIsRoom,
    Soon,
}

struct HeldRow {
    partition_no: u8,
    lane: Option<usize>,
    settled: bool,
}

/// What a look brought.
pub(super) struct DueAnswer {
    pub(super) number: u64,
    pub(super) found: Found,
}

pub(super) enum Found {
    Followers {
        asked: Vec<(usize, Key)>,
        limit: usize,
        result: Result<crate::store::Followers, StoreError>,
    },
    Due {
        demands: Vec<(Option<usize>, LaneDemand)>,
        result: Result<(Due, Doubts), StoreError>,
        asked: Instant,
        answered: Instant,
    },
    Unrouted(Told),
}

impl DueState {
    pub(super) fn new(now: Instant) -> DueState {
        DueState {
            busy: false,
            number: 0,
            retry_at: now,
            held: HashMap::new(),
            leaving: VecDeque::new(),
            lost: PartitionSet::EMPTY,
            search: Search::new(now),
            not_certain: HashMap::new(),
            not_yet_pause: NOT_YET_PAUSE,
            typical_bytes: TYPICAL_BYTES_FIRST,
            safety_next: now,
            pass_from: 0,
            pass_empty: false,
            deferred: None,
            followers: Followers::default(),
        }
    }

    /// The number the next look will have.
    pub(super) fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// How many rows are in hands and not settled.
    pub(super) fn rows(&self) -> usize {
        self.held.values().filter(|row| !row.settled).count()
    }

    /// A look begins; returns its number.
    pub(super) fn begin_look(&mut self) -> u64 {
        self.busy = true;
        self.number += 1;
        self.lost = PartitionSet::EMPTY;
        self.search.look_begins();
        self.number
    }

    /// The row is in hands: on its way, or settled and perhaps not gone from a snapshot.
    pub(super) fn holds(&self, id: i64) -> bool {
        self.held.contains_key(&id)
    }

    /// The row is taken by a lane.
    pub(super) fn hold(&mut self, id: i64, partition_no: u8, lane: usize) {
        self.held.insert(id, HeldRow { partition_no, lane: Some(lane), settled: false });
    }

    /// The row was not taken after all; it will be read again.
    pub(super) fn forget(&mut self, id: i64) {
        self.held.remove(&id);
        self.search.released(id);
    }

    /// Its settle committed, or was refused.
    pub(super) fn settled(&mut self, id: i64) {
        if let Some(row) = self.held.get_mut(&id) {
            row.settled = true;
            self.leaving.push_back((self.number + 1, id));
        } else {
            self.search.released(id);
        }
    }

    /// Look number `number` was acted upon: what was settled before it began is out of hands.
    fn looked(&mut self, number: u64) {
        while let Some((at, id)) = self.leaving.front().copied()
            && at <= number
        {
            self.leaving.pop_front();
            if self.held.get(&id).is_some_and(|row| row.settled) {
                // An older look does not know where it stands now.
                self.forget(id);
            }
        }
    }

    /// The partitions of rows in hands that are not settled.
    pub(super) fn partitions(&self) -> PartitionSet {
        self.held.values().filter(|row| !row.settled).map(|row| row.partition_no).collect()
    }

    pub(super) fn evict(&mut self, lost: PartitionSet) {
        self.held.retain(|_, row| !lost.contains(row.partition_no));
        self.search.lose(lost);
        self.lost = self.lost.or(lost);
    }

    pub(super) fn restart_pass(&mut self) {
        self.pass_from = self.number + 1;
        self.pass_empty = false;
    }

    /// A look is wanted now.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.safety_next = self.safety_next.min(now);
    }

    /// Something was scheduled: a look tells for when.
    pub(super) fn learn_when(&mut self, now: Instant) {
        self.look_soon(now + IN_HANDS_PAUSE);
    }

    pub(super) fn pass_is_empty(&self) -> bool {
        self.pass_empty && self.search.is_done()
    }

    fn held_in(&self, lane: usize) -> usize {
        self.held.values().filter(|row| row.lane == Some(lane)).count()
    }
}

impl Engine {
    /// Looks for due rows when a lane that may take some has any, and now and then in any case.
    pub(super) fn start_due(&mut self, now: Instant) {
        if self.due.busy || self.due.deferred.is_some() || now < self.due.retry_at {
            return;
        }
        let is_time = now >= self.rows_wake(now);
        if self.due.followers.is_wanted(is_time) {
            return self.start_followers();
        }
        if !is_time {
            return;
        }
        self.due.followers.other_look();
        let kept = self.kept();
        if self.due.search.wake() <= now
            && let Some(question) = self.due.search.ask(kept, now)
        {
            self.start_search(question);
            return;
        }
        let mut demands: Vec<(Option<usize>, LaneDemand)> = (0..self.lanes.len())
            .map(|lane| {
                let state = &self.lanes[lane];
                // Rows in hands come back too, and first; so do those that cannot start yet.
                let not_certain = self.due.not_certain.get(&lane).copied().unwrap_or(0).min(NOT_CERTAIN_MAX);
                let limit = state.lane.rows_to_ask(self.due.held_in(lane), not_certain);
                let limit = u32::try_from(limit).unwrap_or(u32::MAX).min(ROWS_MAX);
                let (destination, without) = (state.served.name.to_string(), state.lane.crowded());
                (Some(lane), LaneDemand { destination, limit, without })
            })
            .collect();
        let unrouted = u32::try_from(UNROUTED_BYTES / self.due.typical_bytes).unwrap_or(u32::MAX);
        let limit = unrouted.clamp(1, UNROUTED_LIMIT);
        demands.push((None, LaneDemand { destination: String::new(), limit, without: Vec::new() }));
        let number = self.due.begin_look();
        self.due.safety_next = now + SAFETY_PERIOD;
        for state in &mut self.lanes {
            state.next_due = None;
            state.lane.take_freed();
        }
        let (store, answers) = (self.store.clone(), self.answers.clone());
        let doubtful = self.due.search.open();
        tokio::spawn(async move {
            let lanes: Vec<LaneDemand> = demands.iter().map(|(_, demand)| demand.clone()).collect();
            let asked = Instant::now();
            let due = store.delivery_due(&lanes, kept, None).await;
            let answered = Instant::now();
            let result = match due {
                // After the rows: what a key's row must not pass was there when it was read, or is in our hands.
                Ok(due) => Doubts::ask(&*store, doubtful, &due.rows).await.map(|doubts| (due, doubts)),
                Err(error) => Err(error),
            };
            let found = Found::Due { demands, result, asked, answered };
            let _ = answers.send(Answer::Due(DueAnswer { number, found }));
        });
    }

    pub(super) fn due_wake(&self, now: Instant) -> Instant {
        if self.due.busy || self.due.deferred.is_some() {
            return now + TICK;
        }
        if self.due.followers.is_wanted(false) { now.max(self.due.retry_at) } else { self.rows_wake(now) }
    }

    fn rows_wake(&self, now: Instant) -> Instant {
        let lanes = self.lanes.iter().filter(|l| l.lane.room_for_rows() > 0);
        let lanes = lanes.filter_map(|l| if l.lane.is_freed() { Some(now) } else { l.next_due });
        lanes.chain([self.due.search.wake(), self.due.safety_next]).min().unwrap_or(now + TICK).max(self.due.retry_at)
    }

    pub(super) fn due_answered(&mut self, answer: DueAnswer) {
        self.due.busy = false;
        if self.feed.has_pending() {
            // A row's key may be in the page that has not been handed out: after it, not before.
            self.due.deferred = Some(answer);
            return;
        }
        let (now, number) = (Instant::now(), answer.number);
        match answer.found {
            Found::Due { demands, result, asked, answered } => {
                if let Some((due, doubts)) = self.due_result("delivery_due", result, now) {
                    if let Some(hour) = due.hour {
                        self.hour_told(hour, asked, answered);
                    }
                    self.due_found(number, &demands, due, &doubts, now);
                    self.looked(number);
                }
            }
            Found::Followers { asked, limit, result } => {
                if let Some(rows) = self.due_result("delivery_followers", result, now) {
                    self.followers_found(number, asked, limit, rows, now);
                    self.looked(number);
                } else {
                    self.due.followers.give_up(&asked);
                }
            }
            Found::Unrouted(told) => {
                if self.search_told(told, now) {
                    self.looked(number);
                }
            }
        }
    }

    pub(super) fn due_result<T>(
        &mut self,
        operation: &'static str,
        result: Result<T, StoreError>,
        now: Instant,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.outages.recovered(operation);
                Some(value)
            }
            Err(error) => {
                self.due.retry_at = now + self.outages.failed(operation, &error);
                None
            }
        }
    }

    /// What has been ours without a break since the look under way began.
    pub(super) fn kept_since_look(&self) -> PartitionSet {
        self.kept().without(self.due.lost)
    }

    /// Everything look number `number` said has been acted upon.
    fn looked(&mut self, number: u64) {
        self.due.looked(number);
        for state in &mut self.lanes {
            state.lane.look_done(number);
        }
    }

    fn due_found(
        &mut self,
        number: u64,
        demands: &[(Option<usize>, LaneDemand)],
        due: Due,
        doubts: &Doubts,
        now: Instant,
    ) {
        let returned = due.rows.len();
        let mut taken = 0;
        let mut again: Vec<Option<Again>> = vec![None; self.lanes.len()];
        self.due.not_certain.clear();
        let unrouted = self.rows_weighed(&due.rows);
        if demands.iter().any(|(lane, demand)| lane.is_none() && unrouted >= demand.limit as usize) {
            // There are more, and what was scheduled must not wait long for those nobody wants.
            self.due.look_soon(now + IN_HANDS_PAUSE);
        }
        for row in due.rows {
            if self.due.held.contains_key(&row.id) || !self.kept_since_look().contains(row.message.partition_no) {
                continue;
            }
            if row.destination.is_empty() {
                if row.message.is_expired(now) && self.routes.route(&row.message.topic).is_empty() {
                    self.expire_row(row);
                } else {
                    self.route_row(row.into());
                }
                taken += 1;
                continue;
            }
            let Some(&lane) = self.lane_by_name.get(&row.destination) else { continue };
            let waits_for_long = self.settling.keeps_waiting(&row.destination, row.message.ordering_key.as_ref());
            let waits = if self.must_wait_in_line(lane, &row, doubts) {
                *self.due.not_certain.entry(lane).or_default() += 1;
                // What waits for a row that cannot be written waits for long.
                let is_stuck = row.message.ordering_key.as_ref().is_some_and(|key| self.is_stuck_behind_unrouted(key));
                if is_stuck { None } else { Some(Again::Soon) }
            } else if self.lanes[lane].lane.room_for_rows() == 0 {
                Some(Again::WhenThereIsRoom)
            } else if self.take_row(lane, row, number, now) {
                taken += 1;
                None
            } else {
                *self.due.not_certain.entry(lane).or_default() += 1;
                // What waits for an outcome that was set aside holds up no drain.
                (!waits_for_long).then_some(Again::WhenItsKeyIsFree)
            };
            again[lane] = again[lane].max(waits);
        }
        for ((lane, demand), waiting) in demands.iter().zip(&due.lanes) {
            match lane {
                Some(lane) => self.note_waiting(*lane, demand, *waiting, again[*lane], number, now),
                // What is scheduled has no destination yet.
                None => {
                    let next = waiting.next_due_in.filter(|pause| !pause.is_zero());
                    next.into_iter().for_each(|pause| self.due.look_soon(now + pause));
                }
            }
        }
        self.due.not_yet_pause = match taken == 0 && again.contains(&Some(Again::Soon)) {
            true => (self.due.not_yet_pause * 2).min(IN_HANDS_PAUSE),
            false => NOT_YET_PAUSE,
        };
        let is_held_back = again.iter().any(Option::is_some) || demands.iter().any(|(_, d)| !d.without.is_empty());
        let nothing_held_back =
            returned == 0 && !is_held_back || (taken == 0 && !is_held_back && self.holds_no_rows_but_aside());
        if number >= self.due.pass_from && taken == 0 && nothing_held_back {
            self.due.pass_empty = true;
        }
    }

    /// Acts upon a look whose answer had to wait for the feed.
    pub(super) fn resume_due(&mut self) {
        if let Some(answer) = self.due.deferred.take() {
            self.due_answered(answer);
        }
    }

    fn note_waiting(
        &mut self,
        lane: usize,
        demand: &LaneDemand,
        waiting: LaneWaiting,
        again: Option<Again>,
        number: u64,
        now: Instant,
    ) {
        let state = &mut self.lanes[lane];
        if waiting.occupied {
            state.occupied = true;
        } else if number >= state.occupied_until {
            state.occupied = false;
        }
        let next = match waiting.next_due_in {
            Some(pause) if !pause.is_zero() => Some(now + pause),
            // Due already: either it is in hands (then its settle brings the next look), or the lane was full (then room
            // does), or its key is not free (then the lane tells when it is), or it has to wait for the feed.
            Some(_) if again == Some(Again::Soon) => Some(now + self.due.not_yet_pause),
            Some(_) if again == Some(Again::WhenThereIsRoom) || demand.limit == 0 => Some(now),
            Some(_) => Some(now + IN_HANDS_PAUSE),
            None => None,
        };
        state.next_due = [state.next_due, next].into_iter().flatten().min();
    }

    /// Takes note of what rows cost; returns how many have no destination.
    pub(super) fn rows_weighed(&mut self, rows: &[WaitingDelivery]) -> usize {
        let mut of_lane: HashMap<Option<usize>, (usize, usize)> = HashMap::new();
        for row in rows {
            let lane = self.lane_by_name.get(&row.destination).copied();
            if lane.is_some() || row.destination.is_empty() {
                let (rows, bytes) = of_lane.entry(lane).or_default();
                (*rows, *bytes) = (*rows + 1, *bytes + row.message.weight());
            }
        }
        let unrouted = of_lane.remove(&None).unwrap_or_default();
        if let Some(mean) = unrouted.1.checked_div(unrouted.0) {
            self.due.typical_bytes = mean.max(self.due.typical_bytes / 2).max(1);
        }
        for (lane, (rows, bytes)) in of_lane {
            if let Some(lane) = lane {
                self.lanes[lane].lane.rows_weighed(rows, bytes);
            }
        }
        unrouted.0
    }

    /// Gives a due row to its lane. False: not now, its key is not free.
    fn take_row(&mut self, lane: usize, row: WaitingDelivery, look: u64, now: Instant) -> bool {
        let (id, work) = (row.id, self.work(lane, row, now));
        let partition_no = work.message.partition_no;
        if !self.lanes[lane].lane.offer_row(work, look) {
            return false;
        }
        self.due.hold(id, partition_no, lane);
        true
    }

    /// A waiting row on its way.
    pub(super) fn work(&self, lane: usize, row: WaitingDelivery, now: Instant) -> Work {
        let in_process = self.lanes[lane].in_process;
        let crashed = in_process && row.suspect && row.deaths >= DEATHS_MAX;
        let doomed = doom(&row.message, now).or_else(|| crashed.then(|| (Reason::Crashed, crash_text(row.deaths))));
        let care = match in_process {
            _ if doomed.is_some() => Care::Plain,
            false => Care::Plain,
            true if row.suspect && row.deaths > 0 => Care::Alone,
            true => Care::Marked,
        };
        Work {
            doomed,
            care,
            suspect: row.suspect,
            deaths: row.deaths,
            origin: Origin::Waiting(row.id),
            attempts: row.attempts,
            in_order: row.in_order,
            first_attempt_at: row.first_attempt_age.and_then(|age| now.checked_sub(age)),
            history: row.history,
            message: std::sync::Arc::new(row.message),
        }
    }

    /// True when the row has to keep the order of its key and something older of it may not have gone before.
    fn must_wait_in_line(&self, lane: usize, row: &WaitingDelivery, doubts: &Doubts) -> bool {
        let keeps_order = row.in_order && row.message.ordering_key.is_some() && self.lanes[lane].served.limits.keyed;
        keeps_order && !self.is_certain(row, Some(doubts))
    }

    /// False while something older of its key may not have been read yet, or has had no route until now.
    pub(super) fn is_certain(&self, row: &WaitingDelivery, doubts: Option<&Doubts>) -> bool {
        let message = &row.message;
        let is_read = self.feed.has_caught_up() || self.frontier.cursor() >= message.seq;
        is_read
            && !self.may_pass_unrouted(row, doubts)
            && !self.frontier.gain_pending(message.partition_no, message.seq)
    }

    pub(super) fn conclude_row(&mut self, id: i64, work: &Work, destination: &str, change: WaitingChange) {
        self.settling.push_row(WaitingOutcome {
            id,
            message_id: work.message.id,
            partition_no: work.message.partition_no,
            destination: destination.to_owned(),
            ordering_key: work.message.ordering_key.clone(),
            attempts_read: work.attempts,
            change,
        });
    }
}

/// What the people who find the dead letter have to know.
fn crash_text(deaths: u32) -> String {
    format!(
        "the process died each of the last {deaths} times the handler had this message, but for the first with no other \
         handler at work; it is not tried again: repair the handler, then redrive it"
    )
}

/// A suspect that was being attempted at so many deaths is given up: at the first it may have had neighbours, at the
/// three others it was alone.
const DEATHS_MAX: u32 = 4;
/// Rows of one lane in one look, at most.
const ROWS_MAX: u32 = 1_000;
/// So many rows that cannot start yet are looked beyond.
const NOT_CERTAIN_MAX: usize = 100;
/// Rows without destination in one look, at most, and their bytes, about.
const UNROUTED_LIMIT: u32 = 200;
const UNROUTED_BYTES: usize = 8 << 20;
/// What one of them may cost before any was read.
const TYPICAL_BYTES_FIRST: usize = 256 << 10;
/// A look in any case: somebody may have redriven, or another relay left rows.
const SAFETY_PERIOD: Duration = Duration::from_secs(1);
/// A row that has to wait for the feed is looked at again; where that does not help, less and less often.
const NOT_YET_PAUSE: Duration = Duration::from_millis(10);
/// Rows in hands hide how many more are due.
const IN_HANDS_PAUSE: Duration = Duration::from_millis(100);
