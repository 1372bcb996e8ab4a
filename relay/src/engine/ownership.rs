//! Follows what the relay owns: takes note of partitions gained, lets go of those given up, drops those lost.
//!
//! Giving up and losing are different things. A partition that is given up is still ours: nothing new of it is started,
//! what is under way ends, its outcomes are written, and only when nothing of it is in hands any more is it released. A
//! partition that was lost is another's: its attempts are aborted and nothing is written about them.

use std::collections::HashSet;
use std::time::Instant;

use tracing::{debug, info};

use super::Engine;
use crate::lane::{Origin, Work};
use crate::message::{PartitionSet, Seq};

impl Engine {
    /// Takes note of partitions gained, given up and lost.
    pub(super) fn follow_ownership(&mut self) {
        // Closed, it says nothing new either; the loop looks after that itself.
        if !self.ownership.has_changed().unwrap_or(false) {
            return;
        }
        let ownership = self.ownership.borrow_and_update().clone();
        // Lost and taken again between two looks: only the epoch tells.
        let changed: PartitionSet = self
            .epochs
            .iter()
            .filter(|(partition_no, epoch)| ownership.epochs.get(partition_no).is_some_and(|now| now != *epoch))
            .map(|(partition_no, _)| *partition_no)
            .collect();
        let lost = self.owned.without(ownership.partitions.without(changed));
        let gained = ownership.partitions.without(self.owned.without(changed));
        self.epochs = ownership.epochs;
        if !lost.is_empty() {
            let surprised = lost.without(self.leaving);
            if !surprised.is_empty() {
                info!(partitions = ?surprised, "partitions lost");
            }
            self.evict(lost);
            self.inheritance.lose(lost);
            self.clock.lose(lost);
            self.leaving = self.leaving.without(lost);
            // What was quiet then says nothing about the next time it is ours.
            self.quiet.send_if_modified(|told| std::mem::replace(told, told.without(lost)) != *told);
        }
        self.owned = ownership.partitions;
        for state in &mut self.lanes {
            state.pacer.share(self.owned.len());
        }
        if !gained.is_empty() {
            self.gain(gained);
            self.inherit(gained.and(ownership.inherited));
            self.clock.gain(gained, ownership.inherited, Instant::now());
        }
        self.giving_up = ownership.giving_up;
        self.give_up_late();
    }

    /// Lets go of what is to be given up, as soon as nothing of a dead relay is left to be done there.
    pub(super) fn give_up_late(&mut self) {
        let leaving = self.giving_up.without(self.leaving).without(self.inheritance.partitions());
        if !leaving.is_empty() {
            self.let_go(leaving);
        }
    }

    /// The partitions new work is taken of.
    pub(super) fn kept(&self) -> PartitionSet {
        self.owned.without(self.leaving)
    }

    fn gain(&mut self, gained: PartitionSet) {
        info!(partitions = gained.len(), "partitions gained");
        self.frontier.gain(gained);
        let now = Instant::now();
        for state in &mut self.lanes {
            state.occupied = true;
            state.occupied_until = self.due.next_number();
            state.next_due = Some(now);
        }
        self.due.search.want(gained);
        self.feed.poll_soon(now);
        // What was not ours was not looked at.
        self.feed.restart_pass();
        self.due.restart_pass();
    }

    /// Starts nothing more of these partitions, and drops what has not started.
    ///
    /// A message some destination has, or is about to have, cannot simply be left in its table: the next owner would
    /// send it there again. What it still owes to others becomes waiting rows.
    pub(super) fn let_go(&mut self, leaving: PartitionSet) {
        debug!(partitions = ?leaving, "letting go of partitions");
        self.leaving = self.leaving.or(leaving);
        self.due.search.let_go(leaving);
        for id in self.settling.leave_unrouted(leaving) {
            self.due.forget(id);
        }
        self.try_aside(Instant::now());
        self.leave_unmarked(leaving);
        let begun: HashSet<Seq> = self.running.values().filter_map(super::attempt::Running::fresh).collect();
        for lane in 0..self.lanes.len() {
            let mut aside = Vec::new();
            for work in self.take_out(lane, leaving) {
                match work.origin {
                    Origin::Waiting(id) => self.due.forget(id),
                    Origin::Fresh if begun.contains(&work.message.seq) || self.hands.is_half_done(work.message.seq) => {
                        aside.push(work);
                    }
                    Origin::Fresh => self.hands.drop_held(work.message.seq),
                }
            }
            self.put_aside(lane, aside);
        }
    }

    /// Tells which of the partitions being given up have nothing in hands any more.
    pub(super) fn tell_quiet(&mut self, now: Instant) {
        if self.leaving.is_empty() || now < self.quiet_next {
            return;
        }
        self.quiet_next = now + QUIET_PERIOD;
        let running = self.running.values().map(super::attempt::Running::partition_no).collect::<PartitionSet>();
        let busy = running.or(self.hands.partitions()).or(self.settling.partitions()).or(self.due.partitions());
        let busy = busy.or(self.clock.partitions());
        let quiet = self.leaving.without(busy);
        self.quiet.send_if_modified(|told| std::mem::replace(told, quiet) != quiet);
    }

    /// Drops everything of these partitions and writes nothing about it.
    fn evict(&mut self, lost: PartitionSet) {
        let (next_read, next_look) = (self.feed.next_read(), self.due.next_number());
        for seq in self.hands.in_partitions(lost) {
            let message = self.hands.message(seq);
            if let Some(key) = message.and_then(|message| message.ordering_key.clone()) {
                // A row it was to become is not written by us; its key must not wait for that.
                for state in &mut self.lanes {
                    state.lane.written(&key, Some(seq), next_read, next_look);
                }
            }
            self.hands.drop_held(seq);
        }
        self.feed.lose(lost);
        self.due.evict(lost);
        self.feed.unrouted.evict(lost);
        for (destination, key) in self.settling.evict(lost) {
            if let Some(&lane) = self.lane_by_name.get(&destination) {
                self.lanes[lane].lane.written(&key, None, next_read, next_look);
            }
        }
        self.abort_attempts(lost);
        self.evict_starts(lost);
        for lane in 0..self.lanes.len() {
            let gone = self.take_out(lane, lost);
            let destination = &self.lanes[lane].served.name;
            debug!(%destination, dropped = gone.len(), "deliveries of lost partitions dropped");
        }
    }

    /// Takes what has not started of these partitions out of a lane; the rest stays.
    fn take_out(&mut self, lane: usize, partitions: PartitionSet) -> Vec<Work> {
        self.due.followers.lane_cleared(lane);
        let state = &mut self.lanes[lane];
        let (gone, kept): (Vec<Work>, Vec<Work>) =
            state.lane.clear().into_iter().partition(|work| partitions.contains(work.message.partition_no));
        let mut refused = Vec::new();
        for work in kept {
            match work.origin {
                // A younger one of its key may have overflowed meanwhile: then the key is parked, and it joins it.
                Origin::Fresh => refused.extend(state.lane.offer(work)),
                // Which look brought it is forgotten; refused, it is read again.
                Origin::Waiting(id) => {
                    if !state.lane.offer_row(work, 0) {
                        self.due.forget(id);
                    }
                }
            }
        }
        self.put_aside(lane, refused);
        gone
    }
}

/// How often it is looked which partitions have come to rest.
const QUIET_PERIOD: std::time::Duration = std::time::Duration::from_millis(5);
