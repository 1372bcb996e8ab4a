//! The decisions of a relay among relays: when to renew, who is dead, what to take, give up and release.
//!
//! Pure: facts and answers go in, the next task comes out, and so does what the relay may believe it owns. The moment is
//! an argument. One round is a chain of tasks, each following from the answer to the one before, that ends with a rest:
//! release what has come to rest, renew (or only look), bury the dead, take what is free.
//!
//! Invariants
//! - The table is right: what is owned is what the last look read back.
//! - The lease counts from before the renewal was sent.
//! - A relay is accused only by one whose own rounds succeeded all the while.
//! - No renewal for an engine that does not tick.
//! - Only what is being given up and has come to rest is released; what is being given up once, goes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Ownership;
use super::watch::Watch;
use crate::lease::{self, Plan, Seat};
use crate::message::{PartitionSet, RelayId};
use crate::moment::Moment;
use crate::store::{Membership, Taken};

/// What a round begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// A count that rises while the engine turns.
    pub ticks: u64,
    /// True when the relay was asked to stop.
    pub draining: bool,
    /// Partitions of which the engine has nothing in hands any more and takes nothing new.
    pub quiet: PartitionSet,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Give these partitions back.
    Release(PartitionSet),
    /// Raise the beat and read everything.
    Beat { draining: bool },
    /// Read everything.
    Look,
    /// Declare these dead, where the beat is still that one.
    Bury(Vec<(RelayId, i64)>),
    /// Take those of these that are free.
    Acquire(PartitionSet),
    /// Nothing until so long after the round began, or until a fact changes.
    Rest(Duration),
    /// The same; the engine has not turned for a lease, and the lease was not renewed.
    Stall(Duration),
    /// Nothing any more: our row is gone.
    End,
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Released,
    /// Everything there is, or nothing when the renewal found no row of ours.
    Seen(Option<Membership>),
    Buried(Vec<RelayId>),
    /// What was taken.
    Acquired(Vec<Taken>),
    /// The database did not answer, or refused; it may have acted all the same.
    Failed,
}

/// One relay, as far as the others are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    pub(super) me: RelayId,
    pub(super) lease: Duration,
    pub(super) step: Step,
    /// When the round began.
    pub(super) began: Moment,
    pub(super) draining: bool,
    pub(super) next_beat: Moment,
    /// The engine's count when it was last seen to have risen, and when that was.
    pub(super) last_tick: (u64, Moment),
    pub(super) watch: Watch,
    pub(super) epochs: BTreeMap<u8, i64>,
    /// The epochs under which partitions were taken that nobody owned. Of what is owned beside these it is known, or has
    /// to be feared because an answer was lost, that their former owner is dead.
    pub(super) taken_free: BTreeMap<u8, i64>,
    pub(super) giving_up: PartitionSet,
    pub(super) valid_until: Option<Moment>,
    /// What was there at the last look.
    pub(super) all: PartitionSet,
    /// Those of them whose owner is another that is known to live.
    pub(super) in_good_hands: PartitionSet,
    pub(super) moving: bool,
    pub(super) not_serving: Vec<String>,
    /// Which of the free partitions are tried first.
    pub(super) turn: usize,
    pub(super) published: Ownership,
}

/// The task whose answer is awaited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Resting,
    Releasing(PartitionSet),
    Renewing,
    Looking,
    /// With what was seen.
    Burying(Membership),
    /// With what is to be taken after that.
    Acquiring(Vec<u8>),
}

impl Member {
    pub(crate) fn new(me: RelayId, lease: Duration, now: Moment) -> Member {
        Member {
            me,
            lease,
            step: Step::Resting,
            began: now,
            draining: false,
            next_beat: now,
            last_tick: (0, now),
            watch: Watch::default(),
            epochs: BTreeMap::new(),
            taken_free: BTreeMap::new(),
            giving_up: PartitionSet::EMPTY,
            valid_until: None,
            all: PartitionSet::EMPTY,
            in_good_hands: PartitionSet::EMPTY,
            moving: false,
            not_serving: Vec::new(),
            turn: 0,
            published: Ownership::default(),
        }
    }

    /// What the engine is to be told.
    pub(crate) fn ownership(&self) -> &Ownership {
        &self.published
    }

    /// Destinations that others serve and this relay does not, which is why it owns nothing.
    pub(crate) fn not_serving(&self) -> &[String] {
        &self.not_serving
    }

    /// The name of a relay that is being buried.
    pub(crate) fn name_of(&self, id: RelayId) -> &str {
        let Step::Burying(seen) = &self.step else { return "" };
        seen.relays.iter().find(|relay| relay.id == id).map_or("", |relay| &relay.name)
    }

    /// Begins a round.
    pub(crate) fn wake(&mut self, facts: Facts, now: Moment) -> Task {
        self.began = now;
        if facts.draining != self.draining {
            // The others have to know as soon as possible: they take over what we leave.
            self.next_beat = now;
            self.draining = facts.draining;
        }
        if facts.ticks != self.last_tick.0 {
            self.last_tick = (facts.ticks, now);
        }
        if now.since(self.last_tick.1) > self.lease {
            self.watch.start_over();
            return Task::Stall(self.lease / 3);
        }
        let quiet = facts.quiet.and(self.giving_up);
        if quiet.is_empty() {
            return self.renew_or_look();
        }
        self.step = Step::Releasing(quiet);
        Task::Release(quiet)
    }

    /// Goes on with a round.
    pub(crate) fn answered(&mut self, answer: Answer, now: Moment) -> Task {
        match (std::mem::replace(&mut self.step, Step::Resting), answer) {
            (Step::Releasing(quiet), Answer::Released) => {
                self.epochs.retain(|partition_no, _| !quiet.contains(*partition_no));
                self.giving_up = self.giving_up.without(quiet);
                self.publish();
                self.renew_or_look()
            }
            // They are still ours, and tried again with the next round.
            (Step::Releasing(_), _) => self.renew_or_look(),
            (Step::Renewing, Answer::Seen(Some(seen))) => {
                self.valid_until = Some(self.began + self.lease);
                self.next_beat = self.began + self.lease / 3;
                self.seen(seen, now)
            }
            (Step::Looking, Answer::Seen(Some(seen))) if seen.relays.iter().any(|relay| relay.id == self.me) => {
                self.seen(seen, now)
            }
            (Step::Renewing | Step::Looking, Answer::Seen(_)) => {
                self.published.expelled = true;
                Task::End
            }
            (Step::Burying(mut seen), Answer::Buried(buried)) => {
                seen.relays.retain(|relay| !buried.contains(&relay.id));
                self.share(&seen, now)
            }
            (Step::Acquiring(left), Answer::Acquired(taken)) => {
                for Taken { partition_no, epoch, inherited } in taken {
                    self.epochs.insert(partition_no, epoch);
                    if !inherited {
                        self.taken_free.insert(partition_no, epoch);
                    }
                }
                self.acquire(left, now)
            }
            (Step::Acquiring(_), _) => {
                // What is owned is owned all the same. The others go first the next time.
                self.turn = self.turn.wrapping_add(ACQUIRED_AT_ONCE);
                self.rest()
            }
            // Whatever was not seen meanwhile proves nothing.
            (Step::Renewing | Step::Looking | Step::Burying(_), _) => {
                self.watch.start_over();
                Task::Rest(self.lease / 3)
            }
            (Step::Resting, _) => Task::Rest(self.lease / 3),
        }
    }

    fn renew_or_look(&mut self) -> Task {
        if self.began >= self.next_beat {
            self.step = Step::Renewing;
            Task::Beat { draining: self.draining }
        } else {
            self.step = Step::Looking;
            Task::Look
        }
    }

    fn seen(&mut self, seen: Membership, now: Moment) -> Task {
        let dead = self.watch.observe(self.me, &seen, self.lease, self.began, now);
        if dead.is_empty() {
            return self.share(&seen, now);
        }
        self.step = Step::Burying(seen);
        Task::Bury(dead)
    }

    /// Reckons with what was seen.
    fn share(&mut self, seen: &Membership, now: Moment) -> Task {
        let mine = seen.partitions.iter().filter(|(_, owner, _)| *owner == Some(self.me));
        self.epochs = mine.map(|&(partition_no, _, epoch)| (partition_no, epoch)).collect();
        self.taken_free.retain(|partition_no, epoch| self.epochs.get(partition_no) == Some(epoch));
        self.all = seen.partitions.iter().map(|(partition_no, ..)| *partition_no).collect();
        let lives = |id: RelayId| seen.relays.iter().any(|relay| relay.id == id) && self.watch.is_known_to_live(id);
        let in_good_hands = seen.partitions.iter().filter(|(_, owner, _)| owner.is_some_and(lives));
        self.in_good_hands = in_good_hands.map(|(partition_no, ..)| *partition_no).collect();
        let plan = self.plan(seen);
        self.giving_up = self.owned().and(self.giving_up.or(plan.give_up));
        self.moving = plan.uneven || !self.giving_up.is_empty() || seen.relays.iter().any(|relay| relay.draining);
        self.not_serving = plan.not_serving;
        let mut wanted: Vec<u8> = plan.take.iter().collect();
        let turn = self.turn.checked_rem(wanted.len()).unwrap_or(0);
        wanted.rotate_left(turn);
        self.acquire(wanted, now)
    }

    fn plan(&self, seen: &Membership) -> Plan {
        let seats: Vec<Seat<'_>> = seen
            .relays
            .iter()
            .map(|relay| Seat {
                id: relay.id,
                started_at: relay.started_at,
                draining: relay.draining,
                serves: &relay.serves,
                lives: relay.id == self.me || self.watch.is_known_to_live(relay.id),
            })
            .collect();
        let owners: Vec<(u8, Option<RelayId>)> =
            seen.partitions.iter().map(|&(partition_no, owner, _)| (partition_no, owner)).collect();
        lease::plan(self.me, &seats, &owners)
    }

    /// Takes the next of these.
    ///
    /// A few at a time: each repairs the keys of what it takes, however many rows wait there, and neither the beat nor
    /// the patience of a store may depend on that. What is left is taken with the next looks.
    fn acquire(&mut self, mut wanted: Vec<u8>, now: Moment) -> Task {
        if wanted.is_empty() || now.since(self.began) >= self.lease / 3 {
            return self.rest();
        }
        let left = wanted.split_off(wanted.len().min(ACQUIRED_AT_ONCE));
        self.step = Step::Acquiring(left);
        Task::Acquire(wanted.into_iter().collect())
    }

    fn rest(&mut self) -> Task {
        self.publish();
        let pause = if self.moving { self.lease / 30 } else { self.lease / 12 };
        Task::Rest(pause.min(self.next_beat.since(self.began)).max(PAUSE_MIN))
    }

    fn publish(&mut self) {
        let partitions = self.owned();
        self.published = Ownership {
            partitions,
            giving_up: self.giving_up,
            inherited: self.inherited(),
            epochs: self.epochs.clone(),
            valid_until: self.valid_until,
            expelled: false,
            settled: self.all.without(partitions).without(self.in_good_hands).is_empty(),
        };
    }

    fn inherited(&self) -> PartitionSet {
        let free = |(partition_no, epoch): (&u8, &i64)| self.taken_free.get(partition_no) == Some(epoch);
        self.epochs.iter().filter(|owned| !free(*owned)).map(|(partition_no, _)| *partition_no).collect()
    }

    fn owned(&self) -> PartitionSet {
        self.epochs.keys().copied().collect()
    }
}

/// Partitions taken in one transaction.
const ACQUIRED_AT_ONCE: usize = 4;
/// The shortest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RelaySeen;

    const LEASE: Duration = Duration::from_secs(3);
    const RUNNING: Facts = Facts { ticks: 1, draining: false, quiet: PartitionSet::EMPTY };

    fn start() -> Moment {
        Moment::at(Duration::from_secs(100))
    }

    fn me() -> RelayId {
        RelayId::from_u128(1)
    }

    /// Relays with their beats; partition 0 is ours, partition 1 the other's.
    fn seen(beats: &[(u128, i64)]) -> Membership {
        let relays = beats.iter().map(|&(id, beat)| RelaySeen {
            id: RelayId::from_u128(id),
            name: String::new(),
            version: String::new(),
            lease: LEASE,
            beat,
            draining: false,
            serves: Vec::new(),
            started_at: chrono::DateTime::UNIX_EPOCH,
        });
        let partitions = vec![(0, Some(me()), 4), (1, Some(RelayId::from_u128(2)), 7)];
        Membership { relays: relays.collect(), partitions }
    }

    /// A member that renewed at the start and owns partition 0.
    fn member() -> Member {
        let mut member = Member::new(me(), LEASE, start());
        assert_eq!(member.wake(RUNNING, start()), Task::Beat { draining: false });
        let task = member.answered(Answer::Seen(Some(seen(&[(1, 1), (2, 7)]))), start());
        assert!(matches!(task, Task::Rest(_)), "{task:?}");
        member
    }

    #[test]
    fn the_lease_counts_from_before_the_renewal_was_sent() {
        let mut member = Member::new(me(), LEASE, start());
        member.wake(RUNNING, start());
        assert!(!member.ownership().usable_at(start()), "it was not answered yet");
        member.answered(Answer::Seen(Some(seen(&[(1, 1)]))), start() + LEASE / 4);
        member.answered(
            Answer::Acquired(vec![Taken { partition_no: 1, epoch: 8, inherited: false }]),
            start() + LEASE / 4,
        );
        let ownership = member.ownership();
        assert_eq!(ownership.epochs, BTreeMap::from([(0, 4), (1, 8)]));
        assert!(ownership.usable_at(start() + LEASE * 2 / 3));
        assert!(!ownership.usable_at(start() + LEASE));
    }

    #[test]
    fn a_renewal_that_finds_no_row_ends_everything() {
        let mut member = member();
        assert_eq!(member.wake(RUNNING, start() + LEASE / 3), Task::Beat { draining: false });
        assert_eq!(member.answered(Answer::Seen(None), start() + LEASE / 3), Task::End);
        assert!(member.ownership().expelled && !member.ownership().usable_at(start() + LEASE / 3));
    }

    #[test]
    fn a_look_that_does_not_find_our_row_ends_everything() {
        let mut member = member();
        assert_eq!(member.wake(RUNNING, start()), Task::Look);
        assert_eq!(member.answered(Answer::Seen(Some(seen(&[(2, 8)]))), start()), Task::End);
        assert!(member.ownership().expelled);
    }

    #[test]
    fn nothing_is_renewed_for_an_engine_that_does_not_turn() {
        let mut member = member();
        let (almost, over) = (start() + LEASE, start() + LEASE + Duration::from_millis(1));
        assert_eq!(member.wake(RUNNING, almost), Task::Beat { draining: false });
        member.answered(Answer::Failed, almost);
        assert_eq!(member.wake(RUNNING, over), Task::Stall(LEASE / 3));
        let turned = Facts { ticks: 2, ..RUNNING };
        assert_eq!(member.wake(turned, over), Task::Beat { draining: false }, "it turns again");
    }

    #[test]
    fn whoever_is_asked_to_stop_says_so_at_once() {
        let mut member = member();
        assert_eq!(member.wake(RUNNING, start()), Task::Look, "no renewal is due");
        member.answered(Answer::Failed, start());
        assert_eq!(member.wake(Facts { draining: true, ..RUNNING }, start()), Task::Beat { draining: true });
    }

    #[test]
    fn the_dead_are_buried_with_the_beat_that_stood_still() {
        let mut member = member();
        let (turned, later) = (Facts { ticks: 2, ..RUNNING }, start() + LEASE);
        member.wake(turned, later);
        let task = member.answered(Answer::Seen(Some(seen(&[(1, 2), (2, 7)]))), later);
        assert_eq!(task, Task::Bury(vec![(RelayId::from_u128(2), 7)]));
        let task = member.answered(Answer::Buried(vec![RelayId::from_u128(2)]), later);
        assert_eq!(task, Task::Acquire([1].into_iter().collect()), "what was the dead relay's is free");
    }

    #[test]
    fn only_what_has_come_to_rest_is_released_and_only_what_is_given_up() {
        let mut member = member();
        member.giving_up = [0].into_iter().collect();
        let quiet = |numbers: &[u8]| Facts { quiet: numbers.iter().copied().collect(), ..RUNNING };
        assert_eq!(member.wake(quiet(&[5]), start()), Task::Look, "that is not being given up");
        member.answered(Answer::Failed, start());
        assert_eq!(member.wake(quiet(&[0, 5]), start()), Task::Release([0].into_iter().collect()));
        assert_eq!(member.answered(Answer::Released, start()), Task::Look);
        assert!(member.ownership().partitions.is_empty());
    }
}
