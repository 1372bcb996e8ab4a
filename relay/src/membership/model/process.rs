//! A relay that runs: the member and the engine, and what each step of theirs does.

use super::engine::Engine;
use super::tables::Tables;
use super::world::Step;
use super::{Bug, Scope, Violation, at};
use crate::membership::member::{Answer, Facts, Member, Task};
use crate::message::{PartitionSet, RelayId};

/// A relay that runs, under one identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub id: RelayId,
    pub member: Member,
    pub call: Call,
    pub engine: Engine,
    pub phase: Phase,
    /// How long the engine has not turned, when it does not any more.
    pub wedged: Option<u8>,
    /// How long ago the last successful renewal was sent.
    pub renewed: u8,
}

/// A call of the membership on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    None,
    Sent(Task),
    Answered(Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// Asked to stop: what is under way is finished.
    Stopping,
    /// The engine has ended; the row is to be taken out.
    Leaving,
}

impl Process {
    pub(super) fn new(id: RelayId, lease: u8) -> Process {
        Process {
            id,
            member: Member::new(id, std::time::Duration::from_secs(lease.into()), at(0)),
            call: Call::None,
            engine: Engine::default(),
            phase: Phase::Running,
            wedged: None,
            renewed: lease,
        }
    }

    /// In ticks.
    pub(super) fn lease(&self) -> u8 {
        u8::try_from(self.member.lease.as_secs()).expect("a few ticks")
    }

    fn next(&mut self, task: Task) {
        self.call = match task {
            Task::Rest(_) | Task::Stall(_) | Task::End => Call::None,
            task => Call::Sent(task),
        };
    }

    pub(super) fn is_expelled(&self) -> bool {
        self.member.ownership().expelled
    }

    pub(super) fn wake(&mut self, scope: &Scope) -> Result<(), Violation> {
        let turns = self.wedged.is_none() || scope.bug == Some(Bug::RenewForTheWedged);
        let facts = Facts {
            ticks: u64::from(turns),
            draining: self.phase == Phase::Stopping,
            quiet: if scope.bug == Some(Bug::ReleaseBeforeQuiet) { PartitionSet::ALL } else { self.engine.quiet },
        };
        let task = self.member.wake(facts, at(0));
        if matches!(task, Task::Beat { .. }) && self.wedged.is_some_and(|wedged| wedged > self.lease()) {
            return Err(Violation::RenewedForTheWedged);
        }
        self.next(task);
        Ok(())
    }

    /// What takes no time unless the scope says so: a look, and hearing an answer.
    fn hurry(&mut self, tables: &mut Tables, scope: &Scope) -> Result<(), Violation> {
        if scope.slow_answers {
            return Ok(());
        }
        loop {
            match std::mem::replace(&mut self.call, Call::None) {
                Call::Answered(answer) => self.hear(answer, scope)?,
                Call::Sent(Task::Look) => self.call = Call::Answered(tables.perform(self.id, &Task::Look, scope)?),
                call => {
                    self.call = call;
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn hear(&mut self, answer: Answer, scope: &Scope) -> Result<(), Violation> {
        if answer == Answer::Seen(None) && scope.calm {
            return Err(Violation::ExpelledInCalm);
        }
        let task = self.member.answered(answer, at(0));
        if scope.bug == Some(Bug::CountFromTheQuestion) {
            let began = self.member.began;
            let fresh = self.member.watch.beats.values_mut().filter(|seen| seen.since == at(0));
            fresh.for_each(|seen| seen.since = began);
        }
        let rests = matches!(task, Task::Rest(_));
        self.next(task);
        if scope.bug == Some(Bug::PlanOscillates) && rests && self.tells_of_company() {
            let first = self.member.epochs.keys().next().copied();
            self.member.giving_up = first.into_iter().collect();
            self.member.published.giving_up = self.member.giving_up;
        }
        Ok(())
    }

    fn tells_of_company(&self) -> bool {
        self.member.watch.beats.values().any(|seen| seen.changed) && !self.member.epochs.is_empty()
    }

    /// True when a turn of the engine would change something.
    pub(super) fn would_turn(&self, scope: &Scope) -> bool {
        let mut engine = self.engine.clone();
        engine.turn(self.member.ownership(), scope);
        engine != self.engine
    }

    /// The engine turns: it follows before it does anything.
    pub(super) fn follow(&mut self, scope: &Scope) {
        self.engine.follow(self.member.ownership(), scope);
    }
}

/// A step of one process.
pub(super) fn take_of(process: &mut Process, tables: &mut Tables, step: Step, scope: &Scope) -> Result<(), Violation> {
    match step {
        Step::Stop(_) => {
            process.follow(scope);
            process.phase = Phase::Stopping;
            process.engine.winding_down = true;
            process.engine.let_go(PartitionSet::ALL);
        }
        Step::Wedge(_) => process.wedged = Some(0),
        Step::Wake(_) => {
            process.wake(scope)?;
            process.hurry(tables, scope)?;
        }
        Step::Act(_) | Step::ActUnheard(_) => {
            let Call::Sent(task) = std::mem::replace(&mut process.call, Call::None) else { return Ok(()) };
            let answer = tables.perform(process.id, &task, scope)?;
            if matches!(task, Task::Beat { .. }) && answer != Answer::Seen(None) && !matches!(step, Step::ActUnheard(_))
            {
                process.renewed = super::canonical::age_of_round(process);
            }
            process.call = Call::Answered(if matches!(step, Step::ActUnheard(_)) { Answer::Failed } else { answer });
            process.hurry(tables, scope)?;
        }
        Step::Fail(_) => {
            process.call = Call::Answered(Answer::Failed);
            process.hurry(tables, scope)?;
        }
        Step::Hear(_) => {
            let Call::Answered(answer) = std::mem::replace(&mut process.call, Call::None) else { return Ok(()) };
            process.hear(answer, scope)?;
            process.hurry(tables, scope)?;
        }
        Step::Turn(_) => {
            process.engine.turn(process.member.ownership(), scope);
        }
        Step::Poll(_) => {
            process.follow(scope);
            poll(process, tables, scope);
        }
        Step::PollHeard(_) => {
            process.follow(scope);
            process.engine.poll_answered();
        }
        Step::Start(_, n) => {
            process.follow(scope);
            if !scope.slow_polls {
                poll(process, tables, scope);
                process.engine.poll_answered();
            }
            if usable(process, scope)
                && let Some(m) = process.engine.next(n)
            {
                start(process, tables, n, m)?;
            }
        }
        Step::Arrive(_, n) => {
            // Judged before the engine looks at what it owns.
            let hands = &mut process.engine.parts[n];
            let Some(m) = hands.running.take() else { return Ok(()) };
            hands.outcomes |= 1 << m;
            tables.receive(n, m, scope)?;
            process.follow(scope);
            process.engine.settle(n);
        }
        Step::Settled(_, n) | Step::SettledUnheard(_, n) | Step::SettleFailed(_, n) => {
            settled(process, tables, step, n, scope)?;
        }
        Step::End(_) => {
            process.phase = Phase::Leaving;
            let settling = process.engine.parts.map(|hands| hands.settling);
            process.engine = Engine::default();
            for (hands, settling) in process.engine.parts.iter_mut().zip(settling) {
                hands.settling = settling;
            }
        }
        Step::Tick | Step::Boot(..) | Step::Crash(_) | Step::Leave(_) | Step::LeaveFailed(_) => {
            unreachable!("not its own")
        }
    }
    Ok(())
}

fn usable(process: &Process, scope: &Scope) -> bool {
    process.member.ownership().usable_at(at(0)) || scope.bug == Some(Bug::LeaseUnchecked)
}

fn poll(process: &mut Process, tables: &Tables, scope: &Scope) {
    let unread = |n: u8| !process.engine.parts[usize::from(n)].read;
    if usable(process, scope) && process.engine.kept().iter().any(unread) {
        process.engine.poll(tables);
    }
}

fn start(process: &mut Process, tables: &Tables, n: usize, m: u8) -> Result<(), Violation> {
    let hands = &mut process.engine.parts[n];
    hands.waiting &= !(1 << m);
    hands.running = Some(m);
    if process.renewed >= process.lease() {
        return Err(Violation::StartedWithoutLease);
    }
    let part = &tables.parts[n];
    if part.owner != Some(process.id) || process.engine.epochs[n] != Some(part.epoch) {
        return Err(Violation::StartedByAStranger);
    }
    Ok(())
}

fn settled(process: &mut Process, tables: &mut Tables, step: Step, n: usize, scope: &Scope) -> Result<(), Violation> {
    let Some((messages, epoch)) = process.engine.parts[n].settling.take() else { return Ok(()) };
    let accepted = match step {
        Step::SettleFailed(..) => None,
        _ => Some(tables.settle(process.id, n, messages, epoch, scope)?),
    };
    let hands = &mut process.engine.parts[n];
    if process.phase == Phase::Leaving {
        return Ok(());
    }
    match (accepted, step) {
        // Heard of: what an older poll showed of it is not taken again.
        (Some(true), Step::Settled(..)) => {
            if let Some(poll) = &mut process.engine.poll {
                poll.rows[n] &= !messages;
            }
        }
        // Refused: if it is still there, and ours, the next poll finds it.
        (Some(false), Step::Settled(..)) => hands.read = false,
        // Not known: written again.
        _ => hands.outcomes |= messages,
    }
    process.follow(scope);
    process.engine.settle(n);
    Ok(())
}
