//! Brings waiting rows and holds forward when the database's clock was put back.
//!
//! Each relay does so for the rows of the partitions it owns when it notices. A pass goes through them in the order of their
//! ids, a page at a time however many there are, and ends at the last row there was when the step was noticed: what is
//! written later is written by the clock as it is. Holds belong to nobody: every relay asks for those it had read before
//! the step, as they stood then, so one of them moves each.
//!
//! Invariants
//! - A pass brings a row forward once: it goes only upwards, and a page that has to be written again says when each row
//!   was due.
//! - A partition that is given up stays until its pass has ended. So whoever takes it begins anew only when its owner
//!   died, or may not have noticed yet; then some retries come early, which is better than late by as much as the clock was
//!   put back.
//! - A message's own `deliver_at` is an hour somebody named, and stays.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::warn;

use super::{Answer, Engine};
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
    busy: bool,
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
    page: Vec<RowAhead>,
}

/// What has come of a piece of the work.
pub(super) enum Forwarded {
    Holds,
    /// The last row there is.
    Last(i64),
    Page,
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
                self.passes.push_back(Pass { step: *step, partitions, after: 0, page: Vec::new() });
            }
        }
    }

    fn put_back(&mut self, by: Duration, owned: PartitionSet, now: Instant) {
        let step = Step { by, noticed: now, until: None };
        self.steps.push(step);
        self.passes.push_back(Pass { step, partitions: owned, after: 0, page: Vec::new() });
        let earlier = self.late_holds.take().map_or(Duration::ZERO, |(_, by)| by);
        self.late_holds = Some((self.holds.clone(), earlier.saturating_add(by)));
        self.holds_known_from = u64::MAX;
    }

    /// The last row there was, as soon as anybody could ask, when the step of the first pass was noticed.
    fn ends_at(&mut self, last: i64) {
        let Some(noticed) = self.passes.front().map(|pass| pass.step.noticed) else { return };
        let steps = self.steps.iter_mut().chain(self.passes.iter_mut().map(|pass| &mut pass.step));
        for step in steps.filter(|step| step.noticed == noticed) {
            step.until = Some(last);
        }
    }

    /// The page of the first pass is written.
    fn page_done(&mut self) {
        let Some(pass) = self.passes.front_mut() else { return };
        match pass.page.last() {
            Some(last) if pass.page.len() == PAGE as usize => {
                pass.after = last.id;
                pass.page.clear();
            }
            _ => drop(self.passes.pop_front()),
        }
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
            self.clock.holds = holds.collect();
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
            tokio::spawn(async move {
                let result = store.destination_bring_forward(&holds, by).await.map(|()| Forwarded::Holds);
                let _ = answers.send(Answer::BroughtForward { page: None, result });
            });
        } else if let Some(pass) = clock.passes.front_mut() {
            clock.busy = true;
            let (step, after, partitions) = (pass.step, pass.after, pass.partitions);
            let mut page = std::mem::take(&mut pass.page);
            tokio::spawn(async move {
                let work = async {
                    let Some(until) = step.until else { return store.delivery_last().await.map(Forwarded::Last) };
                    if page.is_empty() {
                        page = store.delivery_ahead(after, until, partitions, PAGE, None).await?;
                    }
                    store.delivery_bring_forward(relay, &page, step.by).await.map(|()| Forwarded::Page)
                };
                let result = work.await;
                let _ = answers.send(Answer::BroughtForward { page: Some(page), result });
            });
        }
    }

    pub(super) fn brought_forward(&mut self, page: Option<Vec<RowAhead>>, result: Result<Forwarded, StoreError>) {
        let now = Instant::now();
        self.clock.busy = false;
        if let (Some(pass), Some(page)) = (self.clock.passes.front_mut(), page) {
            pass.page = page;
        }
        match result {
            Ok(done) => {
                self.outages.recovered("delivery_bring_forward");
                self.clock.retry_at = None;
                match done {
                    Forwarded::Holds => self.holds_came_forward(now),
                    Forwarded::Last(last) => self.clock.ends_at(last),
                    Forwarded::Page => self.clock.page_done(),
                }
                for state in &mut self.lanes {
                    state.next_due = Some(now);
                }
                self.due.look_soon(now);
            }
            Err(error) => self.clock.retry_at = Some(now + self.outages.failed("delivery_bring_forward", &error)),
        }
    }

    fn holds_came_forward(&mut self, now: Instant) {
        self.clock.late_holds = None;
        self.clock.holds_known_from = self.settling.routing_read() + 1;
        self.routing_next = now;
        for state in &mut self.lanes {
            state.held_until = None;
        }
    }
}

/// Rows brought forward in one transaction.
const PAGE: u32 = 500;
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

    #[test]
    fn a_pass_goes_on_after_the_last_row_of_its_page_and_ends_with_one_that_is_not_full() {
        let mut clock = hour_put_back(PartitionSet::ALL, Instant::now());
        let row = |id| RowAhead { id, partition_no: 0, due_at: Written(0) };
        for (page, after) in [(1..=500, Some(500)), (501..=1000, Some(1000)), (1001..=1499, None)] {
            clock.passes[0].page = page.map(row).collect();
            clock.page_done();
            assert_eq!(clock.passes.front().map(|pass| pass.after), after);
        }
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
