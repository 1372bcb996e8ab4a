//! Fetches waiting rows that are due and gives them to their lanes.
//!
//! One look for all lanes. A row stays in hands until a look that began after its settle committed, for the same reason
//! as a message does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::feed::doom;
use super::followers::Followers;
use super::{Answer, Engine, TICK};
use crate::lane::{Care, Origin, Work};
use crate::message::{Key, PartitionSet, Seq, WaitingDelivery};
use crate::outcome::waits;
use crate::store::{
    Due, DueIn, LaneDemand, LaneWaiting, Reason, RoutedUnit, State, StoreError, WaitingChange, WaitingOutcome,
};

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
    unrouted_next: Instant,
    /// The routes changed: every unrouted row is worth a look, and those up to this one have had it.
    unrouted_after: Option<(Seq, i64)>,
    /// Looks numbered below this one began before that, with other routes or fewer partitions.
    unrouted_from: u64,
    /// Messages in order wait for what these looks find: a row that has a route now is older than they are.
    order_waits: bool,
    /// Rows these looks found a route for, until that is written.
    finding: HashSet<i64>,
    routes_changed_at: Instant,
    safety_next: Instant,
    pass_from: u64,
    pass_empty: bool,
    /// An answer that came while a page waited for its look-up.
    deferred: Option<DueAnswer>,
    pub(super) followers: Followers,
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
        result: Result<crate::store::Followers, StoreError>,
    },
    Due {
        demands: Vec<(Option<usize>, LaneDemand)>,
        result: Result<Due, StoreError>,
        asked: Instant,
        answered: Instant,
    },
    Unrouted(Result<Vec<WaitingDelivery>, StoreError>),
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
            unrouted_next: now,
            unrouted_after: Some(START),
            unrouted_from: 0,
            order_waits: true,
            finding: HashSet::new(),
            routes_changed_at: now,
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

    /// True while rows are in hands and not settled.
    pub(super) fn has_rows(&self) -> bool {
        self.held.values().any(|row| !row.settled)
    }

    /// A look begins; returns its number.
    pub(super) fn begin_look(&mut self) -> u64 {
        self.busy = true;
        self.number += 1;
        self.lost = PartitionSet::EMPTY;
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
        self.finding.remove(&id);
    }

    /// Its settle committed, or was refused.
    pub(super) fn settled(&mut self, id: i64) {
        if let Some(row) = self.held.get_mut(&id) {
            row.settled = true;
            self.leaving.push_back((self.number + 1, id));
        } else {
            self.finding.remove(&id);
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
        let held = &self.held;
        self.finding.retain(|id| held.contains_key(id));
        self.lost = self.lost.or(lost);
    }

    /// True while there may be rows without destination that have a route by now. What comes later of their keys must not
    /// pass them.
    pub(super) fn may_find_routes(&self) -> bool {
        self.order_waits && (self.unrouted_after.is_some() || !self.finding.is_empty())
    }

    /// A look at rows without destination answered: it reached this row, or the last one there is.
    fn unrouted_read(&mut self, number: u64, reached: Option<(Seq, i64)>) {
        // One that began before says nothing about the routes and the partitions there are since.
        if number >= self.unrouted_from {
            self.unrouted_after = reached;
        }
    }

    pub(super) fn routes_changed(&mut self, now: Instant) {
        self.unrouted_after = Some(START);
        self.unrouted_from = self.number + 1;
        self.order_waits = true;
        self.unrouted_next = now;
        self.routes_changed_at = now;
    }

    /// A row without destination was written. The routes may have changed between the decision and the write.
    pub(super) fn unrouted_written(&mut self, now: Instant) {
        if !self.may_find_routes() {
            self.order_waits = false;
        }
        if self.unrouted_after.is_none() && now.saturating_duration_since(self.routes_changed_at) < ROUTES_FRESH {
            self.unrouted_after = Some(START);
            self.unrouted_from = self.number + 1;
            self.unrouted_next = now + SAFETY_PERIOD;
        }
    }

    pub(super) fn restart_pass(&mut self) {
        self.pass_from = self.number + 1;
        self.pass_empty = false;
    }

    /// A look is wanted now.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.safety_next = self.safety_next.min(now);
    }

    pub(super) fn pass_is_empty(&self) -> bool {
        self.pass_empty && self.unrouted_after.is_none()
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
        if let Some(after) = self.due.unrouted_after
            && now >= self.due.unrouted_next
        {
            self.start_unrouted(after, now);
            return;
        }
        let mut demands: Vec<(Option<usize>, LaneDemand)> = (0..self.lanes.len())
            .map(|lane| {
                let state = &self.lanes[lane];
                let room = state.lane.room_for_rows();
                // Rows in hands come back too, and first.
                let limit = if room == 0 { 0 } else { room + self.due.held_in(lane) };
                let limit = u32::try_from(limit).unwrap_or(u32::MAX).min(ROWS_MAX);
                (Some(lane), LaneDemand { destination: state.served.name.to_string(), limit })
            })
            .collect();
        demands.push((None, LaneDemand { destination: String::new(), limit: UNROUTED_LIMIT }));
        let number = self.due.begin_look();
        self.due.safety_next = now + SAFETY_PERIOD;
        for state in &mut self.lanes {
            state.next_due = None;
        }
        let (store, answers) = (self.store.clone(), self.answers.clone());
        let owned = self.kept();
        tokio::spawn(async move {
            let lanes: Vec<LaneDemand> = demands.iter().map(|(_, demand)| demand.clone()).collect();
            let asked = Instant::now();
            let result = store.delivery_due(&lanes, owned, None).await;
            let found = Found::Due { demands, result, asked, answered: Instant::now() };
            let _ = answers.send(Answer::Due(DueAnswer { number, found }));
        });
    }

    /// Looks at the next of the rows without destination: the routes changed.
    fn start_unrouted(&mut self, after: (Seq, i64), now: Instant) {
        let number = self.due.begin_look();
        // Ordinary looks take turns with these.
        self.due.unrouted_next = now + NOT_YET_PAUSE;
        let (store, answers) = (self.store.clone(), self.answers.clone());
        let owned = self.kept();
        tokio::spawn(async move {
            let result = store.delivery_unrouted(after, owned, UNROUTED_LIMIT, None).await;
            let _ = answers.send(Answer::Due(DueAnswer { number, found: Found::Unrouted(result) }));
        });
    }

    pub(super) fn due_wake(&self, now: Instant) -> Instant {
        if self.due.busy || self.due.deferred.is_some() {
            return now + TICK;
        }
        if self.due.followers.is_wanted(false) { now.max(self.due.retry_at) } else { self.rows_wake(now) }
    }

    fn rows_wake(&self, now: Instant) -> Instant {
        let lanes = self.lanes.iter().filter(|l| l.lane.room_for_rows() > 0).filter_map(|l| l.next_due);
        let unrouted = self.due.unrouted_after.map(|_| self.due.unrouted_next);
        lanes.chain(unrouted).chain([self.due.safety_next]).min().unwrap_or(now + TICK).max(self.due.retry_at)
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
                if let Some(due) = self.due_result("delivery_due", result, now) {
                    if let Some(hour) = due.hour {
                        self.hour_told(hour, asked, answered);
                    }
                    self.due_found(number, &demands, due, now);
                    self.looked(number);
                }
            }
            Found::Followers { asked, result } => {
                if let Some(rows) = self.due_result("delivery_followers", result, now) {
                    self.followers_found(number, asked, rows, now);
                    self.looked(number);
                } else {
                    self.due.followers.give_up(&asked);
                }
            }
            Found::Unrouted(result) => {
                if let Some(rows) = self.due_result("delivery_unrouted", result, now) {
                    self.unrouted_found(number, rows);
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

    fn unrouted_found(&mut self, number: u64, rows: Vec<WaitingDelivery>) {
        let is_last = rows.len() < UNROUTED_LIMIT as usize;
        let mut reached = rows.last().filter(|_| !is_last).map(|row| (row.message.seq, row.id));
        for row in rows {
            let is_ours = self.kept_since_look().contains(row.message.partition_no);
            if !is_ours || self.destinations_of(&row.message).is_empty() || self.due.finding.contains(&row.id) {
                continue;
            }
            if self.due.holds(row.id) {
                // It is being written once more by routes that had none for it: it has to be looked at again.
                reached = self.due.unrouted_after;
            } else {
                self.route_row(row);
            }
        }
        self.due.unrouted_read(number, reached);
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

    fn due_found(&mut self, number: u64, demands: &[(Option<usize>, LaneDemand)], due: Due, now: Instant) {
        let returned = due.rows.len();
        let mut taken = 0;
        let mut not_yet = vec![false; self.lanes.len()];
        for row in due.rows {
            if self.due.held.contains_key(&row.id) || !self.kept_since_look().contains(row.message.partition_no) {
                continue;
            }
            if row.destination.is_empty() {
                self.route_row(row);
                taken += 1;
                continue;
            }
            let Some(&lane) = self.lane_by_name.get(&row.destination) else { continue };
            if self.take_row(lane, row, number, now) {
                taken += 1;
            } else {
                not_yet[lane] = true;
            }
        }
        for ((lane, demand), waiting) in demands.iter().zip(&due.lanes) {
            if let Some(lane) = lane {
                self.note_waiting(*lane, demand, *waiting, not_yet[*lane], number, now);
            }
        }
        let nothing_held_back = returned == 0 || (taken == 0 && !not_yet.contains(&true) && !self.due.has_rows());
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
        not_yet: bool,
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
            // Due already: either it is in hands (then its settle brings the next look), or the lane was full (then
            // room does), or it has to wait for the feed or its key.
            Some(_) if not_yet => Some(now + NOT_YET_PAUSE),
            Some(_) if demand.limit == 0 => Some(now),
            Some(_) => Some(now + IN_HANDS_PAUSE),
            None => None,
        };
        state.next_due = [state.next_due, next].into_iter().flatten().min();
    }

    /// Gives a due row to its lane. False: not now.
    fn take_row(&mut self, lane: usize, row: WaitingDelivery, look: u64, now: Instant) -> bool {
        let state = &self.lanes[lane];
        if state.lane.is_closed() || state.lane.room_for_rows() == 0 {
            return false;
        }
        let keeps_order = row.in_order && row.message.ordering_key.is_some() && state.served.limits.keyed;
        if keeps_order && !self.is_certain(&row) {
            return false;
        }
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
        let doomed = doom(&row.message).or_else(|| crashed.then(|| (Reason::Crashed, crash_text(row.deaths))));
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

    /// False while something older of its key may not have been read yet, or has had no route until now.
    pub(super) fn is_certain(&self, row: &WaitingDelivery) -> bool {
        let message = &row.message;
        let is_read = self.feed.has_caught_up() || self.frontier.cursor() >= message.seq;
        let writes_unrouted = |key: &Key| self.feed.unrouted.may_have_route(key, self.routes.version());
        let has_found_routes =
            !self.due.may_find_routes() && !message.ordering_key.as_ref().is_some_and(writes_unrouted);
        is_read && has_found_routes && !self.frontier.gain_pending(message.partition_no, message.seq)
    }

    /// A row without destination is due, or the routes changed: it becomes one row for each destination.
    fn route_row(&mut self, row: WaitingDelivery) {
        let units: Vec<RoutedUnit> = self
            .destinations_of(&row.message)
            .iter()
            .map(|&destination| {
                let state = if self.lane_of(destination).is_some() { State::Overflow } else { State::Unserved };
                RoutedUnit {
                    destination: self.routing.destinations[destination].spec.name.clone(),
                    remains: waits(state, row.in_order && self.keeps_order(destination), DueIn::Pause(Duration::ZERO)),
                }
            })
            .collect();
        let change = if units.is_empty() {
            let crate::store::Remains::Waits(waits) =
                waits(State::Unrouted, row.in_order, DueIn::Pause(super::feed::UNROUTED_PAUSE))
            else {
                return;
            };
            WaitingChange::Waits(waits)
        } else {
            self.due.finding.insert(row.id);
            WaitingChange::Routed(units)
        };
        self.due.held.insert(row.id, HeldRow { partition_no: row.message.partition_no, lane: None, settled: false });
        self.settling.push_row(WaitingOutcome {
            id: row.id,
            message_id: row.message.id,
            partition_no: row.message.partition_no,
            destination: String::new(),
            ordering_key: row.message.ordering_key,
            attempts_read: row.attempts,
            change,
        });
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
/// Rows without destination in one look.
const UNROUTED_LIMIT: u32 = 200;
/// For so long after a change of the routes, rows written without destination are looked at once more.
const ROUTES_FRESH: Duration = Duration::from_secs(60);
/// Before the first row.
const START: (Seq, i64) = (i64::MIN, 0);
/// A look in any case: somebody may have redriven, or another relay left rows.
const SAFETY_PERIOD: Duration = Duration::from_secs(1);
/// A row that has to wait for the feed or for its key is looked at again.
const NOT_YET_PAUSE: Duration = Duration::from_millis(10);
/// Rows in hands hide how many more are due.
const IN_HANDS_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_began_before_partitions_were_gained_does_not_end_the_search_for_routes() {
        let now = Instant::now();
        let mut due = DueState::new(now);
        let before = due.begin_look();
        due.routes_changed(now);
        due.unrouted_read(before, None);
        assert!(due.may_find_routes(), "nothing of what was gained has been looked at");
        let after = due.begin_look();
        due.unrouted_read(after, Some((7, 1)));
        assert!(due.may_find_routes(), "there is more");
        let last = due.begin_look();
        due.unrouted_read(last, None);
        assert!(!due.may_find_routes());
        // What is written later is looked at once more, and nobody waits for that.
        due.unrouted_written(now);
        assert!(!due.may_find_routes() && due.unrouted_after.is_some());
    }

    #[test]
    fn a_row_that_found_its_route_is_waited_for_until_a_look_can_have_seen_it() {
        let now = Instant::now();
        let mut due = DueState::new(now);
        let look = due.begin_look();
        due.hold(5, 0, 0);
        due.finding.insert(5);
        due.unrouted_read(look, None);
        assert!(due.may_find_routes());
        due.settled(5);
        assert!(due.may_find_routes(), "a look under way does not know where it stands now");
        due.looked(look);
        assert!(due.may_find_routes());
        let next = due.begin_look();
        due.looked(next);
        assert!(!due.may_find_routes());
    }
}
