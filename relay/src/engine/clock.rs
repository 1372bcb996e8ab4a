//! Brings waiting rows and holds forward when the database's clock was put back.
//!
//! Each relay does so for the rows of the partitions it owns when it notices. A pass goes through them in the order of their
//! ids, a page at a time however many there are, and ends at the last row there was when the step was noticed: what is
//! written later is written by the clock as it is. Holds belong to nobody: every relay asks for those it had read before
//! the step, as they stood then, so one of them moves each.
//!
//! Invariants
//! - A pass brings a row forward once: it goes only upwards, and a page that has to be written again says when each row
//!   was due. What this relay has written anew since is due by the clock as it is, and stays.
//! - What the database refuses to bring forward is left late, and told about: it keeps no partition and no stop waiting.
//! - A partition that is given up stays until its pass has ended. So whoever takes it begins anew only when its owner
//!   died, or may not have noticed yet; then some retries come early, which is better than late by as much as the clock was
//!   put back. So do those that were written between the step and the moment it was noticed.
//! - A message's own `deliver_at` is an hour somebody named, and stays.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::{error, warn};

use super::{Answer, Engine};
use crate::cause::chain;
use crate::clock_watch::{ClockWatch, Look, Said};
use crate::message::PartitionSet;
use crate::store::{Routing, RowAhead, StoreError, Written};

/// What is known of the database's clock.
#[derive(Debug, Default)]
pub(super) struct DatabaseClock {
    watch: ClockWatch,
    /// Noticed lately, newest last.
    steps: Vec<Step>,
    passes: VecDeque<Pass>,
    /// What is held, as it was read last by a clock that went on.
    holds: Vec<Hold>,
    /// Holds to bring forward.
    late_holds: Option<(Vec<Hold>, Duration)>,
    /// Those were asked for, and may have come forward: how they stand has to be read before another step is made up for.
    holds_asked: bool,
    /// The clock was put back once more since they were asked for.
    holds_again: Duration,
    busy: bool,
    /// So often the same work was refused.
    refusals: u32,
    retry_at: Option<Instant>,
    /// Reads of the destinations numbered below this one may tell of holds that last too long.
    holds_known_from: u64,
}

type Hold = (String, Written);

/// The clock was put back.
#[derive(Clone, Copy, Debug)]
struct Step {
    by: Duration,
    noticed: Instant,
    /// The last row there was then, once that is known.
    until: Option<i64>,
}

/// A way through the rows of some partitions.
#[derive(Debug)]
struct Pass {
    step: Step,
    partitions: PartitionSet,
    /// Done up to this row.
    after: i64,
    /// Read, and not certainly written.
    page: Option<Page>,
    /// Written by the clock as it is, since the step was noticed.
    rewritten: HashSet<i64>,
}

/// Rows to bring forward in one write, and up to which row that is all.
#[derive(Clone, Debug)]
struct Page {
    rows: Vec<RowAhead>,
    until: i64,
}

/// What has come of a piece of the work.
pub(super) enum Forwarded {
    Holds,
    /// The last row there is.
    Last(i64),
    /// The next rows, none when there are no more.
    Read(Vec<RowAhead>),
    Written,
}

/// What the database refuses to bring forward.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Holds,
    Row(i64),
    /// Not even to say which rows there are.
    Pass,
}

impl Pass {
    fn new(step: Step, partitions: PartitionSet) -> Pass {
        Pass { step, partitions, after: 0, page: None, rewritten: HashSet::new() }
    }
}

impl DatabaseClock {
    /// Whether holds told by this read of the destinations are by the clock as it is.
    pub(super) fn trusts_holds(&self, routing_read: u64) -> bool {
        routing_read >= self.holds_known_from
    }

    /// The partitions a pass has still to go through.
    pub(super) fn partitions(&self) -> PartitionSet {
        self.passes.iter().fold(PartitionSet::EMPTY, |all, pass| all.or(pass.partitions))
    }

    /// These are another's, whose they are to bring forward.
    pub(super) fn lose(&mut self, lost: PartitionSet) {
        for pass in &mut self.passes {
            pass.partitions = pass.partitions.without(lost);
        }
    }

    /// These were taken, some of them from a relay that died.
    pub(super) fn gain(&mut self, gained: PartitionSet, inherited: PartitionSet, now: Instant) {
        self.steps.retain(|step| now.saturating_duration_since(step.noticed) < REMEMBERED);
        for step in &self.steps {
            let is_new = now.saturating_duration_since(step.noticed) < NOTICED_BY_ALL;
            let partitions = if is_new { gained } else { gained.and(inherited) };
            if !partitions.is_empty() {
                self.passes.push_back(Pass::new(*step, partitions));
            }
        }
    }

    fn put_back(&mut self, by: Duration, owned: PartitionSet, now: Instant) {
        let step = Step { by, noticed: now, until: None };
        self.steps.push(step);
        self.passes.push_back(Pass::new(step, owned));
        if self.holds_asked {
            self.holds_again = self.holds_again.saturating_add(by);
        } else {
            let earlier = self.late_holds.take().map_or(Duration::ZERO, |(_, by)| by);
            self.late_holds = Some((self.holds.clone(), earlier.saturating_add(by)));
        }
        self.holds_known_from = u64::MAX;
    }

    /// Holds were brought forward, or never will be; reads numbered `next_read` and later show how they stand.
    fn holds_done(&mut self, next_read: u64) {
        self.late_holds = None;
        self.holds_asked = false;
        self.holds_known_from = next_read;
    }

    /// This is what is held, by the clock as it is.
    fn holds_read(&mut self, holds: Vec<Hold>) {
        self.holds = holds;
        let by = std::mem::take(&mut self.holds_again);
        if !by.is_zero() {
            // Of several relays each does so: a hold may end early then.
            self.late_holds = Some((self.holds.clone(), by));
            self.holds_known_from = u64::MAX;
        }
    }

    /// The row was written anew.
    pub(super) fn rewritten(&mut self, id: i64) {
        for pass in &mut self.passes {
            pass.rewritten.insert(id);
        }
    }

    /// The last row there was, as soon as anybody could ask, when the step of the first pass was noticed.
    fn ends_at(&mut self, last: i64) {
        let Some(noticed) = self.passes.front().map(|pass| pass.step.noticed) else { return };
        let steps = self.steps.iter_mut().chain(self.passes.iter_mut().map(|pass| &mut pass.step));
        for step in steps.filter(|step| step.noticed == noticed) {
            step.until = Some(last);
        }
    }

    /// The next rows of the first pass.
    fn page_read(&mut self, rows: Vec<RowAhead>) {
        let Some(pass) = self.passes.front_mut() else { return };
        let Some(until) = rows.last().map(|row| row.id) else { return drop(self.passes.pop_front()) };
        let rows: Vec<RowAhead> = rows.into_iter().filter(|row| !pass.rewritten.contains(&row.id)).collect();
        pass.page = Some(Page { rows, until });
    }

    /// The page of the first pass is written.
    fn page_done(&mut self) {
        if let Some(pass) = self.passes.front_mut()
            && let Some(page) = pass.page.take()
        {
            pass.after = page.until;
        }
    }

    /// What was asked for last was refused, for what is in it. Asked for often enough, it is left; of a page that is one
    /// row, which has to be found first.
    fn refused(&mut self) -> Option<Refused> {
        self.refusals += 1;
        if self.refusals < REFUSALS_MAX {
            return None;
        }
        self.refusals = 0;
        if self.late_holds.is_some() {
            return Some(Refused::Holds);
        }
        let pass = self.passes.front_mut()?;
        let Some(page) = &mut pass.page else {
            self.passes.pop_front();
            return Some(Refused::Pass);
        };
        if page.rows.len() > 1 {
            page.rows.truncate(page.rows.len() / 2);
            page.until = page.rows.last().map_or(page.until, |row| row.id);
            return None;
        }
        let row = page.rows.first().map(|row| Refused::Row(row.id));
        self.page_done();
        row
    }
}

impl Engine {
    /// The database told its hour.
    pub(super) fn hour_told(&mut self, hour: DateTime<Utc>, asked: Instant, answered: Instant) -> Said {
        let said = self.clock.watch.see(Look { hour, asked, answered });
        if let Said::PutBack(by) = said {
            warn!(?by, "the database's clock was put back; what waits comes forward by as much");
            self.clock.put_back(by, self.owned, answered);
        }
        said
    }

    /// Destinations were read, and the hour by which they are held.
    pub(super) fn holds_told(&mut self, number: u64, routing: &Routing, asked: Instant, answered: Instant) {
        let Some(hour) = routing.hour else { return };
        if self.hour_told(hour, asked, answered) == Said::AsBefore && self.clock.trusts_holds(number) {
            let held = routing.destinations.iter().filter(|seen| seen.held_for.is_some());
            let holds = held.filter_map(|seen| Some((seen.spec.name.clone(), seen.held_until?)));
            self.clock.holds_read(holds.collect());
        }
    }

    /// Goes on with what is to come forward: holds first, then the rows, a page at a time.
    pub(super) fn start_bring_forward(&mut self, now: Instant) {
        let clock = &mut self.clock;
        if clock.busy || clock.retry_at.is_some_and(|at| now < at) {
            return;
        }
        while clock.passes.front().is_some_and(|pass| pass.partitions.is_empty()) {
            clock.passes.pop_front();
        }
        let (store, answers, relay) = (self.store.clone(), self.answers.clone(), self.relay);
        if let Some((holds, by)) = clock.late_holds.clone() {
            clock.busy = true;
            clock.holds_asked = true;
            tokio::spawn(async move {
                let result = store.destination_bring_forward(&holds, by).await.map(|()| Forwarded::Holds);
                let _ = answers.send(Answer::BroughtForward(result));
            });
        } else if let Some(pass) = clock.passes.front() {
            clock.busy = true;
            let (step, after, partitions, page) = (pass.step, pass.after, pass.partitions, pass.page.clone());
            tokio::spawn(async move {
                let result = match (step.until, page) {
                    (None, _) => store.delivery_last().await.map(Forwarded::Last),
                    (Some(until), None) => {
                        store.delivery_ahead(after, until, partitions, PAGE, None).await.map(Forwarded::Read)
                    }
                    (_, Some(page)) => {
                        store.delivery_bring_forward(relay, &page.rows, step.by).await.map(|()| Forwarded::Written)
                    }
                };
                let _ = answers.send(Answer::BroughtForward(result));
            });
        }
    }

    pub(super) fn brought_forward(&mut self, result: Result<Forwarded, StoreError>) {
        let now = Instant::now();
        self.clock.busy = false;
        match result {
            Ok(done) => {
                self.outages.recovered("delivery_bring_forward");
                self.clock.retry_at = None;
                self.clock.refusals = 0;
                match done {
                    Forwarded::Holds => self.holds_came_forward(now),
                    Forwarded::Last(last) => self.clock.ends_at(last),
                    Forwarded::Read(rows) => return self.clock.page_read(rows),
                    Forwarded::Written => self.clock.page_done(),
                }
                for state in &mut self.lanes {
                    state.next_due = Some(now);
                }
                self.due.look_soon(now);
            }
            Err(error) => {
                self.clock.retry_at = Some(now + self.outages.failed("delivery_bring_forward", &error));
                if matches!(error, StoreError::Refused { .. })
                    && let Some(refused) = self.clock.refused()
                {
                    error!(?refused, error = %chain(&error), "what waits by a clock that was put back stays late");
                    if refused == Refused::Holds {
                        self.holds_came_forward(now);
                    }
                }
            }
        }
    }

    fn holds_came_forward(&mut self, now: Instant) {
        self.clock.holds_done(self.settling.routing_read() + 1);
        self.routing_next = now;
        for state in &mut self.lanes {
            state.held_until = None;
        }
    }
}

/// Rows brought forward in one transaction.
const PAGE: u32 = 500;
/// So often something is refused before it is left.
const REFUSALS_MAX: u32 = 3;
/// For so long partitions a relay left when it died are brought forward by whoever takes them.
const REMEMBERED: Duration = Duration::from_secs(60);
/// By then every relay that lives has looked at the clock.
const NOTICED_BY_ALL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn hour_put_back(owned: PartitionSet, now: Instant) -> DatabaseClock {
        let mut clock = DatabaseClock::default();
        clock.put_back(Duration::from_secs(3600), owned, now);
        clock.holds_done(1);
        clock.ends_at(7);
        clock
    }

    fn set(partitions: &[u8]) -> PartitionSet {
        partitions.iter().copied().collect()
    }

    #[test]
    fn partitions_that_change_hands_in_order_are_left_to_their_last_owner() {
        let now = Instant::now();
        let mut clock = hour_put_back(set(&[1, 2]), now);
        clock.lose(set(&[2]));
        assert_eq!(clock.partitions(), set(&[1]));
        // Its owner may not have looked at the clock before it left.
        clock.gain(set(&[3]), PartitionSet::EMPTY, now + Duration::from_secs(1));
        assert_eq!(clock.partitions(), set(&[1, 3]));
        // By now it has; only one that died may not have come to its end.
        clock.gain(set(&[4, 5]), set(&[5, 6]), now + NOTICED_BY_ALL);
        assert_eq!(clock.partitions(), set(&[1, 3, 5]));
        clock.gain(set(&[7]), set(&[7]), now + REMEMBERED);
        assert_eq!(clock.partitions(), set(&[1, 3, 5]));
        assert!(clock.passes.iter().all(|pass| pass.step.until == Some(7)), "none goes further than the first");
    }

    fn rows(ids: impl IntoIterator<Item = i64>) -> Vec<RowAhead> {
        ids.into_iter().map(|id| RowAhead { id, partition_no: 0, due_at: Written(0) }).collect()
    }

    fn page(clock: &DatabaseClock) -> Vec<i64> {
        clock.passes[0].page.iter().flat_map(|page| &page.rows).map(|row| row.id).collect()
    }

    #[test]
    fn a_pass_goes_on_after_the_last_row_of_its_page_and_ends_with_one_that_is_empty() {
        let mut clock = hour_put_back(PartitionSet::ALL, Instant::now());
        for (page, after) in [(1..=500, 500), (501..=1000, 1000), (1001..=1499, 1499)] {
            clock.page_read(rows(page));
            clock.page_done();
            assert_eq!(clock.passes[0].after, after);
        }
        clock.page_read(Vec::new());
        assert!(clock.passes.is_empty());
    }

    #[test]
    fn what_was_written_anew_since_stays_unless_the_clock_is_put_back_again() {
        let mut clock = hour_put_back(PartitionSet::ALL, Instant::now());
        clock.rewritten(2);
        clock.page_read(rows(1..=3));
        assert_eq!(page(&clock), [1, 3]);
        clock.put_back(Duration::from_secs(5), PartitionSet::ALL, Instant::now());
        clock.rewritten(3);
        clock.page_done();
        clock.page_read(Vec::new());
        clock.page_read(rows(1..=3));
        assert_eq!(page(&clock), [1, 2]);
    }

    #[test]
    fn what_is_refused_again_and_again_is_left_alone_and_the_rest_goes_on() {
        let mut clock = hour_put_back(PartitionSet::ALL, Instant::now());
        let mut left = Vec::new();
        for _ in 0..100 {
            match clock.passes.front().map(|pass| (pass.after, pass.page.is_some())) {
                Some((after, false)) => clock.page_read(rows(after + 1..=4)),
                Some(_) if page(&clock).contains(&3) => left.extend(clock.refused()),
                Some(_) => clock.page_done(),
                None => break,
            }
        }
        assert!(clock.passes.is_empty(), "it comes to its end: {:?}", clock.passes);
        assert_eq!(left, [Refused::Row(3)]);
        // To be read, and nobody may.
        let mut clock = hour_put_back(PartitionSet::ALL, Instant::now());
        let left: Vec<Refused> = (0..REFUSALS_MAX).filter_map(|_| clock.refused()).collect();
        assert_eq!((left, clock.partitions()), (vec![Refused::Pass], PartitionSet::EMPTY));
    }

    #[test]
    fn holds_are_brought_forward_again_for_a_step_that_came_while_they_were_asked_for() {
        let (now, hold) = (Instant::now(), |until| vec![("mail".to_owned(), Written(until))]);
        let mut clock = DatabaseClock { holds: hold(500), ..DatabaseClock::default() };
        clock.put_back(Duration::from_secs(60), PartitionSet::ALL, now);
        clock.holds_asked = true;
        clock.put_back(Duration::from_secs(5), PartitionSet::ALL, now);
        assert_eq!(clock.late_holds, Some((hold(500), Duration::from_secs(60))));
        clock.holds_done(3);
        assert!(clock.late_holds.is_none() && !clock.trusts_holds(2) && clock.trusts_holds(3));
        clock.holds_read(hold(440));
        assert_eq!(clock.late_holds, Some((hold(440), Duration::from_secs(5))));
        clock.holds_done(4);
        clock.holds_read(hold(435));
        assert!(clock.late_holds.is_none());
    }

    #[test]
    fn steps_one_after_the_other_are_two_passes_and_one_for_the_holds() {
        let now = Instant::now();
        let mut clock = DatabaseClock { holds: vec![("mail".into(), Written(5))], ..DatabaseClock::default() };
        clock.put_back(Duration::from_secs(60), PartitionSet::ALL, now);
        clock.put_back(Duration::from_secs(5), PartitionSet::ALL, now + Duration::from_secs(1));
        clock.ends_at(7);
        let passes: Vec<_> = clock.passes.iter().map(|pass| (pass.step.by.as_secs(), pass.step.until)).collect();
        assert_eq!(passes, [(60, Some(7)), (5, None)]);
        assert_eq!(clock.late_holds, Some((clock.holds.clone(), Duration::from_secs(65))));
        assert!(!clock.trusts_holds(1));
    }
}
