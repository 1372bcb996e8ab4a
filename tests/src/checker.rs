//! Whether the promises were kept, judged from a history alone.
//!
//! Reads what producers, receivers and fault injectors wrote down and the tables as they were left; knows nothing of
//! the product but the words of `history`. One pass over the records, one over the units, and per key one sort by time.
//!
//! A *unit* is a message for one destination. What each invariant means stands at [`Invariant`].
//!
//! Deliberately lenient where the outside cannot know better: transactions that overlapped have no order, copies after
//! the first accepted one have none either, and a message whose commit nobody could confirm may exist or not.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use crate::history::{Enqueued, Fact, History, Id, Micros, Received, Run, Snapshot, Tx};

/// What has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// Every committed unit was accepted by its receiver, or is pending, waiting, dead, or was discarded.
    Lost,
    /// Whatever was received or stored belongs to a committed transaction, and was received after its commit was asked
    /// for, by a receiver it was meant for.
    Phantom,
    /// If one message's commit was acknowledged before the enqueueing of another of the same key began, a destination
    /// accepts the first before the second. It never accepts the second while the first waits.
    Order,
    /// Every attempt carries the bytes and the key that were enqueued.
    Drift,
    /// A unit rests in one place: pending, waiting or dead, once.
    Split,
    /// In the end nothing is pending, nothing that is due waits, and nothing waits for a key that nobody holds.
    Stuck,
    /// Every commit whose answer was lost was found out.
    Unresolved,
    /// Units were accepted more than once no more often than the faults explain.
    Duplicates,
}

impl Invariant {
    const COUNTED: [Invariant; 7] = [
        Invariant::Lost,
        Invariant::Phantom,
        Invariant::Order,
        Invariant::Drift,
        Invariant::Split,
        Invariant::Stuck,
        Invariant::Unresolved,
    ];

    fn name(self) -> &'static str {
        match self {
            Invariant::Lost => "lost",
            Invariant::Phantom => "phantom",
            Invariant::Order => "order",
            Invariant::Drift => "drift",
            Invariant::Split => "split",
            Invariant::Stuck => "stuck",
            Invariant::Unresolved => "unresolved",
            Invariant::Duplicates => "duplicates",
        }
    }
}

/// The judgement. Its display is the block that tests print.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What was run.
    pub run: Run,
    /// Messages of committed transactions.
    pub committed: u64,
    /// Messages that were rolled back.
    pub rolled_back: u64,
    /// Different ordering keys among the committed ones.
    pub keys: u64,
    /// Different destinations among them.
    pub destinations: u64,
    /// Units among them.
    pub units: u64,
    /// What receivers were asked.
    pub attempts: u64,
    /// Faults injected.
    pub faults: u64,
    /// Pairs of one key whose order could be told.
    pub ordered: u64,
    /// Units accepted again.
    pub duplicates: u64,
    /// How many of those the run and its faults allow.
    pub budget: u64,
    offences: BTreeMap<Invariant, Offences>,
}

#[derive(Clone, Debug, Default)]
struct Offences {
    count: u64,
    first: Vec<String>,
}

/// How many offenders of each kind are described.
const DESCRIBED_MAX: usize = 5;

impl Verdict {
    /// How often this invariant was broken.
    pub fn count(&self, invariant: Invariant) -> u64 {
        match invariant {
            Invariant::Duplicates => self.duplicates,
            _ => self.offences.get(&invariant).map_or(0, |offences| offences.count),
        }
    }

    /// The invariants that do not hold.
    pub fn broken(&self) -> BTreeSet<Invariant> {
        let mut broken: BTreeSet<Invariant> =
            self.offences.keys().copied().filter(|invariant| *invariant != Invariant::Duplicates).collect();
        if self.duplicates > self.budget {
            broken.insert(Invariant::Duplicates);
        }
        broken
    }

    /// Fails the test with the whole block unless everything holds.
    ///
    /// # Panics
    ///
    /// When an invariant is broken.
    pub fn assert_kept(&self) {
        assert!(self.broken().is_empty(), "\n{self}");
    }

    fn add(&mut self, invariant: Invariant, describe: impl FnOnce() -> String) {
        let offences = self.offences.entry(invariant).or_default();
        offences.count += 1;
        if offences.first.len() < DESCRIBED_MAX {
            offences.first.push(describe());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {:#010x}  {}  messages {}", self.run.seed, self.run.about, grouped(self.committed))?;
        write!(f, "  rolled back {}  keys {}", grouped(self.rolled_back), grouped(self.keys))?;
        write!(f, "  destinations {}  attempts {}", self.destinations, grouped(self.attempts))?;
        writeln!(f, "  ordered pairs {}  faults {}", grouped(self.ordered), grouped(self.faults))?;
        let counts = Invariant::COUNTED.map(|invariant| format!("{} {}", invariant.name(), self.count(invariant)));
        writeln!(f, "{}", counts.join("  "))?;
        let share = self.duplicates as f64 * 100.0 / self.units.max(1) as f64;
        let relation = if self.duplicates <= self.budget { "≤" } else { ">" };
        write!(f, "duplicates {} ({share:.3} %) {relation} budget {}", grouped(self.duplicates), grouped(self.budget))?;
        for invariant in self.broken() {
            let Some(offences) = self.offences.get(&invariant) else { continue };
            for offence in &offences.first {
                write!(f, "\n{}: {offence}", invariant.name())?;
            }
            if offences.count > offences.first.len() as u64 {
                write!(f, "\n{}: and {} more", invariant.name(), offences.count - offences.first.len() as u64)?;
            }
        }
        Ok(())
    }
}

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    let facts = Facts::collect(history);
    let mut verdict = Verdict { run: facts.run.clone(), faults: facts.faults, ..Verdict::default() };
    verdict.budget = facts.run.duplicates + facts.budget;
    verdict.attempts = facts.received.len() as u64;
    facts.count(&mut verdict);
    let accepted = facts.judge_received(&mut verdict);
    facts.judge_tables(&mut verdict);
    facts.judge_units(&accepted, &mut verdict);
    facts.judge_order(&accepted, &mut verdict);
    verdict
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed(Micros),
    RolledBack,
    Unknown,
}

/// A unit: the message's place in `Facts::messages`, and the destination.
type Unit<'a> = (usize, &'a str);

/// Each accepted unit with the moment of the first acceptance.
type Accepted<'a> = HashMap<Unit<'a>, Micros>;

#[derive(Default)]
struct Facts<'a> {
    run: Run,
    messages: Vec<&'a Enqueued>,
    by_id: HashMap<&'a str, usize>,
    fates: HashMap<Tx, Fate>,
    commit_asked: HashMap<Tx, Micros>,
    undone: HashSet<&'a str>,
    received: Vec<&'a Received>,
    redriven: HashSet<(&'a str, &'a str)>,
    discarded: HashSet<(&'a str, &'a str)>,
    snapshot: Option<&'a Snapshot>,
    faults: u64,
    budget: u64,
}

impl<'a> Facts<'a> {
    fn collect(history: &'a History) -> Facts<'a> {
        let mut facts = Facts::default();
        for record in &history.records {
            match &record.fact {
                Fact::Run(run) => facts.run = run.clone(),
                Fact::TxInvoke { .. } => {}
                Fact::Enqueue(message) => {
                    facts.by_id.insert(&message.id, facts.messages.len());
                    facts.messages.push(message);
                }
                Fact::Undo { ids, .. } => facts.undone.extend(ids.iter().map(Id::as_str)),
                Fact::TxCommit { tx } => {
                    facts.commit_asked.insert(*tx, record.t);
                    // Until an answer is written down: the producer may have died while it waited for one.
                    facts.fates.insert(*tx, Fate::Unknown);
                }
                Fact::TxOk { tx } => _ = facts.fates.insert(*tx, Fate::Committed(record.t)),
                Fact::TxFail { tx } => _ = facts.fates.insert(*tx, Fate::RolledBack),
                Fact::TxInfo { tx } => _ = facts.fates.insert(*tx, Fate::Unknown),
                Fact::TxResolved { tx, committed: true } => _ = facts.fates.insert(*tx, Fate::Committed(record.t)),
                Fact::TxResolved { tx, committed: false } => _ = facts.fates.insert(*tx, Fate::RolledBack),
                Fact::Recv(received) => facts.received.push(received),
                Fact::Fault { in_flight, .. } => {
                    facts.faults += 1;
                    facts.budget += in_flight;
                }
                Fact::Redrive { id, destination } => _ = facts.redriven.insert((id, destination)),
                Fact::Discard { id, destination } => _ = facts.discarded.insert((id, destination)),
                Fact::Snapshot(snapshot) => facts.snapshot = Some(snapshot),
            }
        }
        facts
    }

    /// A transaction nobody asked to commit cannot have committed.
    fn fate(&self, message: &Enqueued) -> Fate {
        if self.undone.contains(message.id.as_str()) {
            return Fate::RolledBack;
        }
        self.fates.get(&message.tx).copied().unwrap_or(Fate::RolledBack)
    }

    fn count(&self, verdict: &mut Verdict) {
        let (mut keys, mut destinations, mut unknown) = (HashSet::new(), HashSet::new(), BTreeSet::new());
        for message in &self.messages {
            match self.fate(message) {
                Fate::Committed(_) => {
                    verdict.committed += 1;
                    verdict.units += message.destinations.len() as u64;
                    keys.extend(&message.key);
                    destinations.extend(&message.destinations);
                }
                Fate::RolledBack => verdict.rolled_back += 1,
                Fate::Unknown => _ = unknown.insert(message.tx),
            }
        }
        verdict.keys = keys.len() as u64;
        verdict.destinations = destinations.len() as u64;
        for tx in unknown {
            verdict.add(Invariant::Unresolved, || format!("whether transaction {tx} committed is not known"));
        }
    }

    /// Phantoms, drift and duplicates; returns when each unit was first accepted.
    fn judge_received(&self, verdict: &mut Verdict) -> Accepted<'a> {
        let mut accepted = Accepted::new();
        for &received in &self.received {
            let (id, to, at) = (&received.id, &received.destination, seconds(received.t0));
            let Some(&at_message) = self.by_id.get(id.as_str()) else {
                verdict.add(Invariant::Phantom, || format!("`{to}` received `{id}` at {at}, which nobody enqueued"));
                continue;
            };
            let message = self.messages[at_message];
            let early = self.commit_asked.get(&message.tx).is_some_and(|asked| received.t0 < *asked);
            if self.fate(message) == Fate::RolledBack {
                verdict.add(Invariant::Phantom, || format!("`{to}` received `{id}` at {at}, which was rolled back"));
                continue;
            }
            if early {
                verdict.add(Invariant::Phantom, || format!("`{to}` received `{id}` at {at}, before its commit"));
            }
            if !message.destinations.contains(to) {
                verdict.add(Invariant::Phantom, || format!("`{to}` received `{id}` at {at}, which is not for it"));
                continue;
            }
            if received.body != message.body || received.key != message.key {
                verdict.add(Invariant::Drift, || {
                    let attempt = received.attempt;
                    format!("attempt {attempt} of `{id}` at `{to}` is not what was enqueued: {received:?}")
                });
            }
            if received.accepted() {
                let first = accepted.entry((at_message, to.as_str()));
                if let std::collections::hash_map::Entry::Occupied(mut first) = first {
                    verdict.add(Invariant::Duplicates, || {
                        let before = seconds(*first.get());
                        format!("`{to}` accepted `{id}` at {before} and again at {}", seconds(received.t1))
                    });
                    // Records are written when an attempt ends, yet two writers may swap places.
                    first.insert((*first.get()).min(received.t1));
                } else {
                    first.or_insert(received.t1);
                }
            }
        }
        verdict.duplicates = verdict.offences.get(&Invariant::Duplicates).map_or(0, |offences| offences.count);
        accepted
    }

    /// Phantoms at rest, units in two places, and what will never move again.
    fn judge_tables(&self, verdict: &mut Verdict) {
        let Some(snapshot) = self.snapshot else { return };
        let mut places: HashMap<(&str, &str), u32> = HashMap::new();
        let pending = snapshot.pending.iter().map(|id| (id, ""));
        let waiting = snapshot.waiting.iter().map(|row| (&row.id, row.destination.as_str()));
        let dead = snapshot.dead.iter().map(|row| (&row.id, row.destination.as_str()));
        for (id, to) in pending.chain(waiting).chain(dead) {
            let message = self.by_id.get(id.as_str()).map(|at| self.messages[*at]);
            let Some(message) = message.filter(|message| self.fate(message) != Fate::RolledBack) else {
                verdict.add(Invariant::Phantom, || format!("the tables hold `{id}`, which nobody committed"));
                continue;
            };
            // Where no destination is named yet, the row stands for all of them.
            let units =
                if to.is_empty() { message.destinations.iter().map(String::as_str).collect() } else { vec![to] };
            for to in units {
                let rows = places.entry((id.as_str(), to)).or_default();
                *rows += 1;
                if *rows == 2 {
                    verdict.add(Invariant::Split, || format!("`{id}` for `{to}` rests in more than one place"));
                }
            }
        }
        self.judge_rest(snapshot, verdict);
    }

    fn judge_rest(&self, snapshot: &Snapshot, verdict: &mut Verdict) {
        let key = |id: &str| self.by_id.get(id).and_then(|at| self.messages[*at].key.as_deref());
        for id in &snapshot.pending {
            verdict.add(Invariant::Stuck, || format!("`{id}` is still pending"));
        }
        let heads = snapshot.waiting.iter().filter(|row| row.in_order && !row.blocked);
        let mut holders: HashSet<(&str, Option<&str>)> =
            heads.map(|row| (row.destination.as_str(), key(&row.id))).collect();
        let blocking = snapshot.dead.iter().filter(|row| row.blocks_key);
        holders.extend(blocking.map(|row| (row.destination.as_str(), key(&row.id))));
        for row in &snapshot.waiting {
            let (id, to) = (&row.id, row.destination.as_str());
            if row.blocked && !holders.contains(&(to, key(id))) {
                verdict.add(Invariant::Stuck, || format!("`{id}` for `{to}` waits for its key, which nobody holds"));
            } else if row.due && !row.blocked {
                verdict.add(Invariant::Stuck, || format!("`{id}` for `{to}` is due ({}) and waits", row.state));
            }
        }
    }

    /// Every committed unit has to be somewhere.
    fn judge_units(&self, accepted: &Accepted<'_>, verdict: &mut Verdict) {
        let mut at_rest: HashSet<(&str, &str)> = self.discarded.clone();
        if let Some(snapshot) = self.snapshot {
            at_rest.extend(snapshot.pending.iter().map(|id| (id.as_str(), "")));
            at_rest.extend(snapshot.waiting.iter().map(|row| (row.id.as_str(), row.destination.as_str())));
            at_rest.extend(snapshot.dead.iter().map(|row| (row.id.as_str(), row.destination.as_str())));
        }
        for (at, message) in self.messages.iter().enumerate() {
            let Fate::Committed(since) = self.fate(message) else { continue };
            let id = message.id.as_str();
            for to in &message.destinations {
                let known = accepted.contains_key(&(at, to.as_str()))
                    || at_rest.contains(&(id, to.as_str()))
                    || at_rest.contains(&(id, ""));
                if !known {
                    verdict.add(Invariant::Lost, || {
                        format!("`{id}` for `{to}`, known to be committed at {}, is nowhere", seconds(since))
                    });
                }
            }
        }
    }

    fn judge_order(&self, accepted: &Accepted<'_>, verdict: &mut Verdict) {
        // Units that will be accepted later, if at all: whatever was accepted already has overtaken them.
        let mut still_to_come: HashSet<(&str, &str)> = HashSet::new();
        let mut free: HashSet<(&str, &str)> = self.redriven.clone();
        if let Some(snapshot) = self.snapshot {
            for row in &snapshot.waiting {
                let set = if row.in_order { &mut still_to_come } else { &mut free };
                set.insert((&row.id, &row.destination));
            }
            let blocking = snapshot.dead.iter().filter(|row| row.blocks_key);
            still_to_come.extend(blocking.map(|row| (row.id.as_str(), row.destination.as_str())));
        }
        let mut lines: HashMap<(&str, &str), Vec<Step<'_>>> = HashMap::new();
        for (at, &message) in self.messages.iter().enumerate() {
            let (Some(key), Fate::Committed(since)) = (message.key.as_deref(), self.fate(message)) else { continue };
            if message.scheduled {
                continue;
            }
            for to in &message.destinations {
                let unit = (message.id.as_str(), to.as_str());
                if free.contains(&unit) || self.run.unordered.contains(to) {
                    continue;
                }
                let first = accepted.get(&(at, to.as_str())).copied();
                let line = lines.entry((to, key)).or_default();
                if let Some(first) = first {
                    line.push(Step { at: message.began, kind: StepKind::Began, first, message });
                    line.push(Step { at: since, kind: StepKind::Committed, first, message });
                } else if still_to_come.contains(&unit) {
                    line.push(Step { at: since, kind: StepKind::Committed, first: Micros::MAX, message });
                }
            }
        }
        for ((to, key), mut line) in lines {
            // At equal times nothing is known to have come first, so beginnings go before commits.
            line.sort_by_key(|step| (step.at, step.kind));
            let mut latest: Option<&Step<'_>> = None;
            for step in &line {
                match (step.kind, latest) {
                    (StepKind::Committed, Some(before)) if before.first >= step.first => {}
                    (StepKind::Committed, _) => latest = Some(step),
                    (StepKind::Began, None) => {}
                    (StepKind::Began, Some(before)) => {
                        verdict.ordered += 1;
                        if step.first < before.first {
                            verdict.add(Invariant::Order, || {
                                let (late, early) = (&before.message.id, &step.message.id);
                                format!("`{to}` accepted `{early}` of key `{key}` before `{late}`")
                            });
                        }
                    }
                }
            }
        }
    }
}

/// A moment in the life of one key at one destination.
struct Step<'a> {
    at: Micros,
    kind: StepKind,
    first: Micros,
    message: &'a Enqueued,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StepKind {
    Began,
    Committed,
}

fn seconds(t: Micros) -> String {
    format!("{:.6} s", t as f64 / 1e6)
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
