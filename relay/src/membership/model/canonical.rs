//! One form for states that differ only in when they happen.
//!
//! Moments count from now, and what is over is over, however long ago. Beats and epochs are only compared with each
//! other: the newest of each has a fixed number, older ones the numbers below.

use super::process::{Call, Phase, Process};
use super::world::World;
use super::{LEASE_LONG, at};
use crate::membership::member::{Answer, Step, Task};
use crate::message::RelayId;
use crate::moment::Moment;
use crate::store::Membership;

/// What is done with each number of a kind.
type Each<'a> = dyn FnMut(&mut i64) + 'a;

/// A tick goes by for all this process remembers.
pub(super) fn age(process: &mut Process) {
    let member = &mut process.member;
    member.began = older(member.began);
    member.next_beat = older(member.next_beat);
    member.last_tick.1 = older(member.last_tick.1);
    member.valid_until = member.valid_until.map(older);
    member.published.valid_until = member.published.valid_until.map(older);
    for seen in member.watch.beats.values_mut() {
        seen.since = older(seen.since);
    }
}

fn older(moment: Moment) -> Moment {
    at(offset(moment) - 1)
}

/// Ticks from now, negative for the past; what is not a whole number of them is to come until the next tick.
fn offset(moment: Moment) -> i64 {
    let mut ticks = (-2 * i64::from(LEASE_LONG) - 2..=i64::from(LEASE_LONG)).rev();
    ticks
        .find(|&ticks| at(ticks) <= moment)
        .map(|ticks| ticks + i64::from(at(ticks) != moment))
        .expect("no moment is older")
}

/// How long ago the round of this process began.
pub(super) fn age_of_round(process: &Process) -> u8 {
    u8::try_from(-offset(process.member.began)).expect("it began in the past").min(process.lease())
}

impl World {
    pub(super) fn make_canonical(&mut self) {
        let leases = self.tables.relays.iter().map(|row| row.lease);
        let leases = leases.chain(self.places.iter().flatten().map(Process::lease));
        let longest = leases.max().unwrap_or_default().into();
        for process in self.places.iter_mut().flatten() {
            moments(process, longest);
        }
        for n in 0..super::PARTS {
            if self.tables.parts[n].messages == 0 {
                // There is nothing left to be read, whoever reads.
                self.places.iter_mut().flatten().for_each(|process| process.engine.nothing_to_read(n));
            }
        }
        // Places have no names.
        self.places.sort_by_key(|place| place.as_ref().map_or(RelayId::max(), |process| process.id));
        for id in (0..super::IDENTITIES).map(super::identity) {
            self.rank(NEWEST_BEAT, &mut |world, f| world.each_beat(id, f));
        }
        for n in 0..super::PARTS {
            self.rank(NEWEST_EPOCH, &mut |world, f| world.each_epoch(n, f));
        }
    }

    /// Gives the values `each` comes by the numbers up to `newest`, in their order.
    fn rank(&mut self, newest: i64, each: &mut dyn FnMut(&mut World, &mut Each<'_>)) {
        let mut values = [i64::MIN; 8];
        let mut count = 0;
        each(self, &mut |value| {
            if !values[..count].contains(value) {
                values[count] = *value;
                count += 1;
            }
        });
        let values = &mut values[..count];
        values.sort_unstable_by(|a, b| b.cmp(a));
        if values.iter().zip((0..).map(|rank| newest - rank)).all(|(value, rank)| *value == rank) {
            return;
        }
        each(self, &mut |value| {
            let rank = values.iter().position(|known| known == value).expect("each comes by the same values");
            *value = newest - i64::try_from(rank).unwrap();
        });
    }

    fn each_beat(&mut self, id: RelayId, f: &mut Each<'_>) {
        self.tables.relays.iter_mut().filter(|row| row.id == id).for_each(|row| f(&mut row.beat));
        let in_seen = |seen: &mut Membership, f: &mut Each<'_>| {
            seen.relays.iter_mut().filter(|relay| relay.id == id).for_each(|relay| f(&mut relay.beat));
        };
        for process in self.places.iter_mut().flatten() {
            process.member.watch.beats.get_mut(&id).into_iter().for_each(|seen| f(&mut seen.beat));
            if let Step::Burying(seen) = &mut process.member.step {
                in_seen(seen, f);
            }
            match &mut process.call {
                Call::Answered(Answer::Seen(Some(seen))) => in_seen(seen, f),
                Call::Sent(Task::Bury(dead)) => {
                    dead.iter_mut().filter(|(dead, _)| *dead == id).for_each(|(_, beat)| f(beat));
                }
                _ => {}
            }
        }
    }

    fn each_epoch(&mut self, n: usize, f: &mut Each<'_>) {
        f(&mut self.tables.parts[n].epoch);
        let number = super::tables::number(n);
        let in_list = |list: &mut Membership, f: &mut Each<'_>| {
            list.partitions.iter_mut().filter(|(no, ..)| *no == number).for_each(|(.., epoch)| f(epoch));
        };
        for process in self.places.iter_mut().flatten() {
            let member = &mut process.member;
            member.epochs.get_mut(&number).into_iter().for_each(&mut *f);
            member.taken_free.get_mut(&number).into_iter().for_each(&mut *f);
            member.published.epochs.get_mut(&number).into_iter().for_each(&mut *f);
            process.engine.epochs[n].iter_mut().for_each(&mut *f);
            if let Some((_, Some(epoch))) = &mut process.engine.parts[n].settling {
                f(epoch);
            }
            if let Step::Burying(seen) = &mut member.step {
                in_list(seen, f);
            }
            match &mut process.call {
                Call::Answered(Answer::Seen(Some(seen))) => in_list(seen, f),
                Call::Answered(Answer::Acquired(taken)) => {
                    taken.iter_mut().filter(|taken| taken.partition_no == number).for_each(|taken| f(&mut taken.epoch));
                }
                _ => {}
            }
        }
    }
}

const NEWEST_BEAT: i64 = 20;
const NEWEST_EPOCH: i64 = 40;

fn moments(process: &mut Process, longest: i64) {
    let lease = i64::from(process.lease());
    let member = &mut process.member;
    let resting = member.step == Step::Resting;
    // A round that began a lease ago or more proves nothing, however long ago it was.
    member.began = if resting { at(0) } else { at(offset(member.began).max(-lease)) };
    member.next_beat = at(offset(member.next_beat).max(0));
    member.last_tick =
        (0, if process.wedged.is_some() { at(offset(member.last_tick.1).max(-lease - 1)) } else { at(0) });
    member.valid_until = member.valid_until.map(|until| until.max(at(0)));
    member.published.valid_until = member.published.valid_until.map(|until| until.max(at(0)));
    // Nobody is judged by more than the longest lease.
    let oldest = at(offset(member.began) - longest);
    for seen in member.watch.beats.values_mut() {
        seen.since = seen.since.max(oldest);
    }
    member.turn = 0;
    member.moving = false;
    // Only a drain asks for these.
    (member.in_good_hands, member.published.settled) = (member.all, false);
    if member.ownership().expelled || process.phase == Phase::Leaving {
        forget(process);
    }
}

/// What a relay that has ended knew makes no difference any more, but for what is on its way to the database.
fn forget(process: &mut Process) {
    let expelled = process.member.ownership().expelled;
    let mut member = crate::membership::member::Member::new(process.id, process.member.lease, at(0));
    if matches!(process.call, Call::Sent(_)) {
        member.step = process.member.step.clone();
        member.began = process.member.began;
    } else {
        process.call = Call::None;
    }
    if expelled {
        // The engine judges what it owns by what it was told last, until it sees this.
        member.published.expelled = true;
        member.published.epochs.clone_from(&process.member.published.epochs);
    }
    process.member = member;
}
