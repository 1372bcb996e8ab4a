//! Two relays over the tables, and every step that can be taken from here.

use std::fmt;

use super::process::{Call, Phase, Process, take_of};
use super::tables::{Tables, is_plain, number};
use super::{FIRST, PARTS, Scope, Violation, at, identity};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub tables: Tables,
    pub places: [Option<Process>; 2],
    /// How many relays have been started.
    pub boots: usize,
}

/// One step. `usize` is a place, then a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Tick,
    /// With its identity.
    Boot(usize, u8),
    Stop(usize),
    Crash(usize),
    Wedge(usize),
    /// The membership begins a round.
    Wake(usize),
    /// A call takes effect and is answered.
    Act(usize),
    /// It takes effect, and an error is answered.
    ActUnheard(usize),
    /// It does not take effect, and an error is answered.
    Fail(usize),
    /// The membership hears the answer.
    Hear(usize),
    /// The engine follows what is owned, and tells what has come to rest.
    Turn(usize),
    Poll(usize),
    PollHeard(usize),
    Start(usize, usize),
    /// The receiver has it, and the engine knows.
    Arrive(usize, usize),
    Settled(usize, usize),
    SettledUnheard(usize, usize),
    SettleFailed(usize, usize),
    /// The engine notices that the relay is expelled, or that it has finished.
    End(usize),
    Leave(usize),
    LeaveFailed(usize),
}

impl Step {
    /// True for what has to go wrong, and for what people do: progress must not need it.
    pub(super) fn is_fault(self) -> bool {
        use Step::{ActUnheard, Crash, Fail, LeaveFailed, SettleFailed, SettledUnheard, Stop, Wedge};
        matches!(
            self,
            Stop(_)
                | Crash(_)
                | Wedge(_)
                | ActUnheard(_)
                | Fail(_)
                | SettledUnheard(..)
                | SettleFailed(..)
                | LeaveFailed(_)
        )
    }
}

impl World {
    pub(super) fn new(scope: &Scope) -> World {
        let mut tables = Tables::default();
        for (part, messages) in tables.parts.iter_mut().zip(scope.messages) {
            part.messages = (1 << messages) - 1;
        }
        World { tables, places: [None, None], boots: 0 }
    }

    /// Every step that is possible here and may change something.
    pub(super) fn steps(&self, scope: &Scope) -> Vec<Step> {
        let mut steps = Vec::with_capacity(24);
        let mut booting = false;
        if self.may_tick(scope) {
            steps.push(Step::Tick);
        }
        for (place, process) in self.places.iter().enumerate() {
            match process {
                // Places have no names: one that is empty is as good as the other.
                None if booting => {}
                None => {
                    booting = true;
                    steps.extend(self.next_identities(scope).iter().map(|&id| Step::Boot(place, id)));
                }
                Some(process) => self.steps_of(place, process, scope, &mut steps),
            }
        }
        steps
    }

    fn steps_of(&self, place: usize, process: &Process, scope: &Scope, steps: &mut Vec<Step>) {
        if scope.crashes {
            steps.push(Step::Crash(place));
        }
        match &process.call {
            Call::None if process.phase != Phase::Leaving && !process.is_expelled() => steps.push(Step::Wake(place)),
            Call::None => {}
            Call::Sent(_) => {
                steps.push(Step::Act(place));
                if scope.errors {
                    steps.extend([Step::ActUnheard(place), Step::Fail(place)]);
                }
            }
            Call::Answered(_) if process.phase == Phase::Leaving => {}
            Call::Answered(_) => steps.push(Step::Hear(place)),
        }
        for (n, hands) in process.engine.parts.iter().enumerate() {
            if hands.settling.is_some() {
                steps.push(Step::Settled(place, n));
                if scope.errors {
                    steps.extend([Step::SettledUnheard(place, n), Step::SettleFailed(place, n)]);
                }
            }
        }
        if process.phase == Phase::Leaving {
            if !matches!(process.call, Call::Sent(_)) {
                steps.push(Step::Leave(place));
                if scope.errors {
                    steps.push(Step::LeaveFailed(place));
                }
            }
            return;
        }
        let alone_in_it = self.places[1 - place].as_ref().is_none_or(|other| other.phase == Phase::Running);
        if process.phase == Phase::Running && scope.stops && alone_in_it {
            steps.push(Step::Stop(place));
        }
        if process.wedged.is_some() {
            return;
        }
        if scope.wedges && process.phase == Phase::Running && self.other_turns(place) {
            steps.push(Step::Wedge(place));
        }
        if process.would_turn(scope) {
            steps.push(Step::Turn(place));
        }
        if process.is_expelled() || process.phase == Phase::Stopping && process.engine.is_done() {
            steps.push(Step::End(place));
        }
        if process.engine.poll.is_some() {
            steps.push(Step::PollHeard(place));
        } else if scope.slow_polls && process.phase == Phase::Running {
            steps.push(Step::Poll(place));
        }
        for (n, hands) in process.engine.parts.iter().enumerate() {
            if hands.running.is_some() {
                steps.push(Step::Arrive(place, n));
            } else if process.phase == Phase::Running
                && (hands.waiting != 0 || !scope.slow_polls && self.tables.parts[n].messages != 0)
            {
                steps.push(Step::Start(place, n));
            }
        }
    }

    /// Calm: everybody renews within every tick. Otherwise anybody may stand still for as long as it pleases.
    fn may_tick(&self, scope: &Scope) -> bool {
        let is_late = |process: &Process| {
            let is_due = process.member.next_beat <= at(0) && process.wedged.is_none();
            process.call != Call::None || is_due || process.phase == Phase::Leaving
        };
        self.places.iter().flatten().filter(|process| is_late(process)).count() <= scope.late
    }

    /// Who may come next: every relay has an identity of its own, which may be above or below those before.
    fn next_identities(&self, scope: &Scope) -> &[u8] {
        match self.boots {
            boots if boots == scope.boots => &[],
            0 => &[FIRST],
            1 => &[0, 2],
            // The one that is left.
            2 if self.tables.known & 1 == 0 => &[0],
            2 => &[2],
            _ => &[],
        }
    }

    /// Somebody is there who could take everything over, or can come.
    pub(super) fn has_hope(&self, scope: &Scope) -> bool {
        let lives = |process: &Process| {
            process.phase == Phase::Running && process.wedged.is_none() && self.tables.row(process.id).is_some()
        };
        !self.next_identities(scope).is_empty() || self.places.iter().flatten().any(lives)
    }

    fn other_turns(&self, place: usize) -> bool {
        self.places[1 - place].as_ref().is_none_or(|other| other.wedged.is_none())
    }

    /// Takes a step; what follows has to be made canonical.
    pub(super) fn take(&mut self, step: Step, scope: &Scope) -> Result<(), Violation> {
        match step {
            Step::Tick => self.tick(),
            Step::Boot(place, n) => {
                let id = identity(n);
                self.boots += 1;
                let lease = scope.lease_of(n);
                self.tables.register(id, lease);
                self.places[place] = Some(Process::new(id, lease));
            }
            Step::Crash(place) => self.places[place] = None,
            Step::Leave(place) => {
                let process = self.places[place].take().expect("the step is possible");
                self.tables.leave(process.id, scope);
            }
            Step::LeaveFailed(place) => self.places[place] = None,
            Step::Stop(place)
            | Step::Wedge(place)
            | Step::Wake(place)
            | Step::Act(place)
            | Step::ActUnheard(place)
            | Step::Fail(place)
            | Step::Hear(place)
            | Step::Turn(place)
            | Step::Poll(place)
            | Step::PollHeard(place)
            | Step::Start(place, _)
            | Step::Arrive(place, _)
            | Step::Settled(place, _)
            | Step::SettledUnheard(place, _)
            | Step::SettleFailed(place, _)
            | Step::End(place) => {
                let process = self.places[place].as_mut().expect("the step is possible");
                take_of(process, &mut self.tables, step, scope)?;
            }
        }
        self.check()
    }

    fn tick(&mut self) {
        for row in &mut self.tables.relays {
            row.still = (row.still + 1).min(row.lease);
        }
        for process in self.places.iter_mut().flatten() {
            let lease = process.lease();
            process.renewed = (process.renewed + 1).min(lease);
            process.wedged = process.wedged.map(|wedged| (wedged + 1).min(lease + 2));
            super::canonical::age(process);
        }
    }

    /// What holds in every state, whatever the step was.
    fn check(&self) -> Result<(), Violation> {
        for (n, part) in self.tables.parts.iter().enumerate() {
            let has_left = |id| self.tables.row(id).is_none() && self.tables.buried & super::tables::bit(id) == 0;
            if part.owner.is_some_and(has_left) {
                return Err(Violation::OwnedByNobody);
            }
            let claims = |process: &Process| {
                let member = &process.member;
                let engine = &process.engine;
                [
                    member.epochs.get(&number(n)).copied(),
                    member.ownership().epochs.get(&number(n)).copied(),
                    engine.epochs[n],
                    engine.parts[n].settling.and_then(|(_, epoch)| epoch),
                ]
            };
            if let [Some(one), Some(two)] = &self.places {
                let theirs = claims(two);
                if claims(one).iter().flatten().any(|epoch| theirs.contains(&Some(*epoch))) {
                    return Err(Violation::OneEpochTwoOwners);
                }
            }
        }
        Ok(())
    }

    /// Nothing is left to do, and nothing moves.
    pub(super) fn is_at_rest(&self, scope: &Scope) -> bool {
        let done = self
            .tables
            .parts
            .iter()
            .zip(scope.messages)
            .all(|(part, messages)| part.messages == 0 && part.delivered == messages);
        let healthy = || self.places.iter().flatten().filter(|process| process.wedged.is_none());
        let there = healthy().count();
        if !done || there == 0 || self.tables.relays.len() != there {
            return false;
        }
        let even = PARTS / there..=PARTS.div_ceil(there);
        healthy().all(|process| {
            let owned = |part: &&super::tables::Part| part.owner == Some(process.id);
            even.contains(&self.tables.parts.iter().filter(owned).count()) && self.rests(process, scope)
        })
    }

    /// True when another round of this relay would change nothing.
    fn rests(&self, process: &Process, scope: &Scope) -> bool {
        if process.phase != Phase::Running || process.call != Call::None {
            return false;
        }
        let mut tables = self.tables.clone();
        let mut process = process.clone();
        let told = |process: &Process| {
            let ownership = process.member.ownership();
            (ownership.epochs.clone(), ownership.giving_up)
        };
        let before = told(&process);
        let engine = process.engine.clone();
        process.follow(scope);
        if process.engine != engine || process.wake(scope).is_err() {
            return false;
        }
        let Call::Sent(task) = process.call.clone() else { return false };
        let Ok(answer) = tables.perform(process.id, &task, scope) else { return false };
        process.hear(answer, scope).is_ok()
            && process.call == Call::None
            && !process.is_expelled()
            && told(&process) == before
            && before.1.is_empty()
            && process.member.ownership().settled
    }

    /// What kind of moment a crash of this process would hit.
    pub(super) fn moment(&self, place: usize) -> String {
        let process = self.places[place].as_ref().expect("it is there");
        let call = match &process.call {
            Call::None => "resting".to_owned(),
            Call::Sent(task) => format!("before {}", word(task)),
            Call::Answered(answer) => format!("after {}", word(answer)),
        };
        let parts = process.engine.parts.iter().enumerate().map(|(n, hands)| match hands {
            hands if hands.settling.is_some() => {
                if is_plain(n) {
                    "deleting"
                } else {
                    "settling"
                }
            }
            hands if hands.running.is_some() => "attempting",
            hands if hands.outcomes != 0 => "delivered",
            hands if hands.waiting != 0 => "in hands",
            _ => "nothing",
        });
        let busiest = parts.max_by_key(|word| MOMENTS.iter().position(|known| known == word)).unwrap_or_default();
        format!("{:?}: {call}, {busiest}", process.phase)
    }
}

const MOMENTS: [&str; 6] = ["nothing", "in hands", "attempting", "delivered", "deleting", "settling"];

fn word(value: &impl fmt::Debug) -> String {
    format!("{value:?}").chars().take_while(char::is_ascii_alphabetic).collect()
}
