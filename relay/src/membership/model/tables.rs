//! The tables, and what each call of the store does to them: in one piece, as its transaction does.

use super::{Bug, PARTS, Violation};
use crate::membership::member::{Answer, Task};
use crate::message::{PartitionSet, RelayId};
use crate::store::{Membership, RelaySeen, Taken};

/// `outbox_relays`, `outbox_partitions`, `outbox_messages`, and what the receiver has got.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Tables {
    /// Sorted by identity.
    pub relays: Vec<Row>,
    pub parts: [Part; PARTS],
    /// The identities that have ever been there, one bit each.
    pub known: u8,
    /// Those that were declared dead: what they owned is named after them until somebody takes it.
    pub buried: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub id: RelayId,
    pub beat: i64,
    pub draining: bool,
    pub lease: u8,
    /// How long the beat has stood still, whatever anybody believes.
    pub still: u8,
}

/// A partition, and the only key in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Part {
    pub owner: Option<RelayId>,
    pub epoch: i64,
    /// The messages that are still in the table, one bit each.
    pub messages: u8,
    /// How many the receiver has got: always the first ones.
    pub delivered: u8,
}

impl Tables {
    pub(super) fn register(&mut self, id: RelayId, lease: u8) {
        self.known |= bit(id);
        self.relays.push(Row { id, beat: 1, draining: false, lease, still: 0 });
        self.relays.sort_unstable_by_key(|row| row.id);
    }

    pub(super) fn row(&self, id: RelayId) -> Option<&Row> {
        self.relays.iter().find(|row| row.id == id)
    }

    /// Performs a call of the membership.
    pub(super) fn perform(&mut self, me: RelayId, task: &Task, scope: &super::Scope) -> Result<Answer, Violation> {
        Ok(match task {
            Task::Beat { draining } => {
                let Some(row) = self.relays.iter_mut().find(|row| row.id == me) else { return Ok(Answer::Seen(None)) };
                row.beat += 1;
                row.still = 0;
                row.draining = *draining;
                Answer::Seen(Some(self.read(scope)))
            }
            Task::Look => Answer::Seen(Some(self.read(scope))),
            Task::Bury(dead) => Answer::Buried(self.bury(dead, scope)?),
            Task::Acquire(wanted) => Answer::Acquired(self.acquire(me, *wanted, scope)),
            Task::Release(given_up) => {
                for (n, part) in self.parts.iter_mut().enumerate() {
                    if part.owner == Some(me) && given_up.contains(number(n)) {
                        part.owner = None;
                    }
                }
                Answer::Released
            }
            Task::Rest(_) | Task::Stall(_) | Task::End => unreachable!("not a call"),
        })
    }

    fn read(&self, scope: &super::Scope) -> Membership {
        // Whoever sees no lease judges by its own.
        let is_seen = scope.bug != Some(Bug::JudgeByOwnLease);
        let relay = |row: &Row| RelaySeen {
            id: row.id,
            name: String::new(),
            version: String::new(),
            lease: std::time::Duration::from_secs(if is_seen { row.lease.into() } else { 0 }),
            beat: row.beat,
            draining: row.draining,
            serves: Vec::new(),
            started_at: chrono::DateTime::UNIX_EPOCH,
        };
        let partitions = self.parts.iter().enumerate().map(|(n, part)| (number(n), part.owner, part.epoch));
        Membership { relays: self.relays.iter().map(relay).collect(), partitions: partitions.collect() }
    }

    fn bury(&mut self, dead: &[(RelayId, i64)], scope: &super::Scope) -> Result<Vec<RelayId>, Violation> {
        let mut buried = Vec::new();
        for &(id, beat) in dead {
            let found = self
                .relays
                .iter()
                .position(|row| row.id == id && (row.beat == beat || scope.bug == Some(Bug::BuryWhateverTheBeat)));
            let Some(found) = found else { continue };
            let row = self.relays.remove(found);
            if row.still < row.lease {
                return Err(Violation::BuriedAlive);
            }
            if scope.calm {
                return Err(Violation::BuriedInCalm);
            }
            for part in self.parts.iter_mut().filter(|part| part.owner == Some(id)) {
                part.epoch += 1;
            }
            self.buried |= bit(id);
            buried.push(id);
        }
        Ok(buried)
    }

    fn acquire(&mut self, me: RelayId, wanted: PartitionSet, scope: &super::Scope) -> Vec<Taken> {
        let mut taken = Vec::new();
        if self.row(me).is_none() {
            return taken;
        }
        for n in wanted.iter() {
            let part = &self.parts[usize::from(n)];
            if part.owner.is_none_or(|owner| self.row(owner).is_none()) {
                let part = &mut self.parts[usize::from(n)];
                let inherited = part.owner.replace(me).is_some();
                if scope.bug != Some(Bug::AcquireWithoutEpoch) {
                    part.epoch += 1;
                }
                taken.push(Taken { partition_no: n, epoch: part.epoch, inherited });
            }
        }
        taken
    }

    pub(super) fn leave(&mut self, me: RelayId, scope: &super::Scope) {
        self.relays.retain(|row| row.id != me);
        if scope.bug == Some(Bug::LeaveAsOwner) {
            return;
        }
        for part in self.parts.iter_mut().filter(|part| part.owner == Some(me)) {
            part.owner = None;
        }
    }

    /// The receiver gets message `m` of partition `n`.
    pub(super) fn receive(&mut self, n: usize, m: u8, scope: &super::Scope) -> Result<(), Violation> {
        let delivered = &mut self.parts[n].delivered;
        match m.cmp(delivered) {
            std::cmp::Ordering::Less if scope.calm => return Err(Violation::Repeated),
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => *delivered += 1,
            std::cmp::Ordering::Greater => return Err(Violation::Overtaken),
        }
        Ok(())
    }

    /// Ends messages: the plain statement asks for no owner, the settle under the lock for owner and epoch.
    ///
    /// Returns false when the settle was refused.
    pub(super) fn settle(
        &mut self,
        me: RelayId,
        n: usize,
        messages: u8,
        epoch: Option<i64>,
        scope: &super::Scope,
    ) -> Result<bool, Violation> {
        let part = &mut self.parts[n];
        let valid = part.owner == Some(me) && epoch == Some(part.epoch);
        if !is_plain(n) && !valid {
            if scope.bug != Some(Bug::SettleWithoutEpoch) {
                return Ok(false);
            }
            if part.messages & messages != 0 {
                return Err(Violation::WrittenByAStranger);
            }
        }
        part.messages &= !messages;
        for m in 0..8 {
            if messages & (1 << m) != 0 && m >= part.delivered {
                return Err(Violation::Lost);
            }
        }
        Ok(true)
    }
}

pub(super) fn bit(id: RelayId) -> u8 {
    1 << (id.as_u128() - 1)
}

/// The messages of the first partition are ended by the plain DELETE, those of the others under the lock.
pub(super) fn is_plain(n: usize) -> bool {
    n == 0
}

pub(super) fn number(n: usize) -> u8 {
    u8::try_from(n).unwrap()
}
