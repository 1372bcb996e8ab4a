//! A relay small enough to be wrong on purpose.
//!
//! Producers with overlapping transactions, two receivers that fail now and then, a relay that is killed, an operator
//! who redrives, all in one thread and drawn from one seed. The relay is right, or has exactly one [`Bug`]. What comes
//! out is the history the outside would have written. It resembles the real relay in nothing but the promises.

use std::collections::{BTreeMap, HashMap};

use outbox_tests::history::{Body, Dead, Enqueued, Fact, History, Id, Received, Record, Run, Snapshot, Tx, Waiting};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What a relay can get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Deletes the message, then sends it.
    SettleBeforeSend,
    /// Asks for `seq > last` only.
    CursorWithoutHoles,
    /// Lets the followers of a failed message pass.
    OrderForgottenAfterFailure,
    /// Reads what is not committed, and may never be.
    ReadsUncommitted,
    /// Settles so rarely that every crash repeats far more than was in flight.
    RarelySettles,
    /// Writes the dead letter, and deletes the message in another transaction.
    DeadMoveInTwoTransactions,
    /// Deletes the dead letter, and writes the waiting row in another transaction.
    RedriveDeletesFirst,
    /// Removes a key's head in one transaction and releases its follower in another.
    FollowerReleasedLater,
    /// Stores the body of a failed message as parsed.
    BodyReencoded,
}

impl Bug {
    pub(crate) const ALL: [Bug; 9] = [
        Bug::SettleBeforeSend,
        Bug::CursorWithoutHoles,
        Bug::OrderForgottenAfterFailure,
        Bug::ReadsUncommitted,
        Bug::RarelySettles,
        Bug::DeadMoveInTwoTransactions,
        Bug::RedriveDeletesFirst,
        Bug::FollowerReleasedLater,
        Bug::BodyReencoded,
    ];
}

const DESTINATIONS: [&str; 2] = ["billing", "mail"];
const TRANSACTIONS: u64 = 150;
const BATCH: usize = 6;

/// Runs a toy with these dice and writes down what happened.
pub(crate) fn play(seed: u64, bug: Option<Bug>) -> History {
    let mut toy = Toy::new(seed, bug);
    while toy.next_tx < TRANSACTIONS || !toy.open.is_empty() {
        match toy.dice.random_range(0..10) {
            0..=2 if toy.next_tx < TRANSACTIONS && toy.open.len() < 6 => toy.begin(),
            0..=4 => toy.end_one(),
            5..=7 => toy.feed(),
            8 => toy.retry(),
            _ => toy.redrive(),
        }
    }
    // Nothing breaks any more, and all that can move has to.
    toy.healed = true;
    for _ in 0..400 {
        toy.feed();
        toy.retry();
    }
    toy.snapshot();
    History { records: toy.records }
}

#[derive(Clone)]
struct Message {
    seq: u64,
    id: Id,
    key: Option<String>,
    body: Vec<u8>,
}

struct Open {
    tx: Tx,
    inserted: Vec<Message>,
    /// It will roll back.
    doomed: bool,
}

struct WaitingRow {
    message: Message,
    destination: &'static str,
    blocked: bool,
    in_order: bool,
    attempts: u32,
}

struct Toy {
    bug: Option<Bug>,
    dice: SmallRng,
    now: u64,
    records: Vec<Record>,
    healed: bool,
    next_tx: Tx,
    next_seq: u64,
    /// Transactions under way, with what they inserted.
    open: Vec<Open>,
    /// Committed and not settled, by seq.
    messages: BTreeMap<u64, Message>,
    /// In seq order for every key, except what was redriven.
    waiting: Vec<WaitingRow>,
    dead: Vec<(Message, &'static str)>,
    /// What only the relay's memory holds: a kill forgets it.
    cursor: u64,
    unsettled: Vec<u64>,
    /// Accepted of those in `unsettled`.
    accepted: u64,
    attempts: HashMap<(Id, &'static str), u32>,
}

impl Toy {
    fn new(seed: u64, bug: Option<Bug>) -> Toy {
        let run = Run { seed, about: format!("toy with {bug:?}"), duplicates: 0, unordered: Vec::new() };
        let mut toy = Toy {
            bug,
            dice: SmallRng::seed_from_u64(seed),
            now: 0,
            records: Vec::new(),
            healed: false,
            next_tx: 0,
            next_seq: 0,
            open: Vec::new(),
            messages: BTreeMap::new(),
            waiting: Vec::new(),
            dead: Vec::new(),
            cursor: 0,
            unsettled: Vec::new(),
            accepted: 0,
            attempts: HashMap::new(),
        };
        toy.write(Fact::Run(run));
        toy
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.dice.random_range(0..100) < percent
    }

    fn write(&mut self, fact: Fact) {
        self.now += 1;
        self.records.push(Record { t: self.now, fact });
    }

    // ---- producers ----

    fn begin(&mut self) {
        let tx = self.next_tx;
        self.next_tx += 1;
        self.write(Fact::TxInvoke { tx });
        let mut inserted = Vec::new();
        for _ in 0..self.dice.random_range(1..4) {
            self.next_seq += 1;
            let seq = self.next_seq;
            let key = (!self.chance(20)).then(|| format!("k{}", self.dice.random_range(0..5)));
            // Spaces a parser would not keep.
            let body = format!("{{ \"n\":  {seq} }}").into_bytes();
            let message = Message { seq, id: format!("m{seq}"), key, body };
            self.now += 1;
            let enqueued = Enqueued {
                tx,
                began: self.now,
                id: message.id.clone(),
                topic: "toy".to_owned(),
                key: message.key.clone(),
                destinations: DESTINATIONS.map(str::to_owned).to_vec(),
                scheduled: false,
                body: Body::of(&message.body),
            };
            self.write(Fact::Enqueue(enqueued));
            inserted.push(message);
        }
        if self.chance(15) {
            let undone = inserted.pop().expect("at least one was inserted");
            self.write(Fact::Undo { tx, ids: vec![undone.id] });
        }
        let doomed = self.chance(25);
        self.open.push(Open { tx, inserted, doomed });
    }

    fn end_one(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.dice.random_range(0..self.open.len());
        let Open { tx, inserted, doomed } = self.open.swap_remove(at);
        if doomed {
            self.write(Fact::TxFail { tx });
            return;
        }
        self.write(Fact::TxCommit { tx });
        self.messages.extend(inserted.into_iter().map(|message| (message.seq, message)));
        // The answer may be lost on its way back.
        if self.chance(5) {
            self.write(Fact::TxInfo { tx });
            self.write(Fact::TxResolved { tx, committed: true });
        } else {
            self.write(Fact::TxOk { tx });
        }
    }

    // ---- receivers ----

    /// One attempt; true when it was accepted, an error when it never will be.
    fn attempt(&mut self, message: &Message, destination: &'static str) -> Result<bool, ()> {
        let answer = match self.dice.random_range(0..20) {
            _ if self.healed => 200,
            0..=1 => 500,
            2 => 0,
            3 => 400,
            _ => 200,
        };
        let attempt = self.attempts.entry((message.id.clone(), destination)).or_default();
        *attempt += 1;
        let received = Received {
            destination: destination.to_owned(),
            id: message.id.clone(),
            key: message.key.clone(),
            attempt: *attempt,
            body: Body::of(&message.body),
            t0: self.now,
            t1: self.now + 1,
            answer,
        };
        self.write(Fact::Recv(received));
        if answer == 400 { Err(()) } else { Ok(answer == 200) }
    }

    // ---- the relay ----

    /// Dies at this point, if the dice say so. What was accepted and not settled will come again.
    fn killed(&mut self, percent: u32) -> bool {
        if self.healed || !self.chance(percent) {
            return false;
        }
        // One that settles in time has no more than a batch unsettled; nobody grants more than that.
        let in_flight = self.accepted.min((BATCH * DESTINATIONS.len()) as u64);
        self.write(Fact::Fault { kind: "kill".to_owned(), in_flight });
        self.unsettled.clear();
        self.accepted = 0;
        if !self.has(Bug::CursorWithoutHoles) {
            self.cursor = 0;
        }
        true
    }

    fn visible(&self) -> Vec<Message> {
        // A right relay knows every hole, which comes to the same as looking at all that is there.
        let after = if self.has(Bug::CursorWithoutHoles) { self.cursor } else { 0 };
        let new = |message: &&Message| message.seq > after && !self.unsettled.contains(&message.seq);
        let mut visible: Vec<Message> = self.messages.values().filter(new).take(BATCH).cloned().collect();
        if self.has(Bug::ReadsUncommitted) {
            // Those without a key: what the others would do to the order is another promise.
            let doomed = self.open.iter().filter(|open| open.doomed).flat_map(|open| &open.inserted);
            visible.extend(doomed.filter(|message| message.key.is_none()).filter(new).cloned());
        }
        visible
    }

    fn parked(&self, message: &Message, destination: &str) -> bool {
        let same = |row: &WaitingRow| row.in_order && row.destination == destination && row.message.key == message.key;
        message.key.is_some() && !self.has(Bug::OrderForgottenAfterFailure) && self.waiting.iter().any(same)
    }

    /// Reads a batch, makes the attempts, and settles message by message.
    fn feed(&mut self) {
        for message in self.visible() {
            self.cursor = self.cursor.max(message.seq);
            if self.has(Bug::SettleBeforeSend) {
                self.messages.remove(&message.seq);
            }
            let (mut failed, mut dead) = (Vec::new(), Vec::new());
            for destination in DESTINATIONS {
                if self.parked(&message, destination) {
                    failed.push((destination, true));
                    continue;
                }
                if self.killed(2) {
                    return;
                }
                match self.attempt(&message, destination) {
                    Ok(true) => self.accepted += 1,
                    Ok(false) => failed.push((destination, false)),
                    Err(()) => dead.push(destination),
                }
            }
            self.unsettled.push(message.seq);
            if self.has(Bug::RarelySettles) && failed.is_empty() && dead.is_empty() && !self.healed {
                continue;
            }
            if self.killed(3) {
                return;
            }
            if !self.settle(message, failed, dead) {
                return;
            }
        }
        if self.healed {
            self.unsettled.clear();
            self.accepted = 0;
        }
    }

    /// All at once, unless a bug says otherwise; false when the relay died in between.
    fn settle(&mut self, message: Message, failed: Vec<(&'static str, bool)>, dead: Vec<&'static str>) -> bool {
        // What was not committed has no row that could be moved.
        let exists = self.messages.contains_key(&message.seq) || self.has(Bug::SettleBeforeSend);
        if exists {
            self.dead.extend(dead.iter().map(|destination| (message.clone(), *destination)));
            if self.has(Bug::DeadMoveInTwoTransactions) && !dead.is_empty() && self.killed(40) {
                return false;
            }
            self.messages.remove(&message.seq);
            for (destination, blocked) in failed {
                let mut message = message.clone();
                if self.has(Bug::BodyReencoded) {
                    message.body.retain(|byte| *byte != b' ');
                }
                self.waiting.push(WaitingRow { message, destination, blocked, in_order: true, attempts: 0 });
            }
            self.unsettled.retain(|seq| *seq != message.seq);
            if self.unsettled.is_empty() {
                self.accepted = 0;
            }
        }
        true
    }

    /// Attempts one waiting row that may be.
    fn retry(&mut self) {
        let ready: Vec<usize> = (0..self.waiting.len()).filter(|at| !self.waiting[*at].blocked).collect();
        if ready.is_empty() {
            return;
        }
        let at = ready[self.dice.random_range(0..ready.len())];
        let (message, destination) = (self.waiting[at].message.clone(), self.waiting[at].destination);
        match self.attempt(&message, destination) {
            Ok(false) if self.waiting[at].attempts < 3 => {
                self.waiting[at].attempts += 1;
                return;
            }
            Ok(true) => {
                self.accepted += 1;
                let died = self.killed(5);
                self.accepted = self.accepted.saturating_sub(1);
                if died {
                    return;
                }
            }
            Ok(false) | Err(()) => self.dead.push((message.clone(), destination)),
        }
        let gone = self.waiting.remove(at);
        if self.has(Bug::FollowerReleasedLater) && self.killed(40) {
            return;
        }
        let next = self.waiting.iter_mut().filter(|row| row.in_order && row.destination == destination);
        let next = next.filter(|row| row.message.key == message.key).min_by_key(|row| row.message.seq);
        if let Some(next) = next.filter(|_| gone.in_order && message.key.is_some()) {
            next.blocked = false;
        }
    }

    /// What an operator does; the key has gone on without it, so it is out of order from now on.
    fn redrive(&mut self) {
        // Redriving what was delivered as well would show the same bug a second time, as a duplicate.
        if self.dead.is_empty() || self.has(Bug::DeadMoveInTwoTransactions) || !self.chance(30) {
            return;
        }
        let at = self.dice.random_range(0..self.dead.len());
        let (message, destination) = self.dead[at].clone();
        self.write(Fact::Redrive { id: message.id.clone(), destination: destination.to_owned() });
        self.dead.remove(at);
        if self.has(Bug::RedriveDeletesFirst) && self.killed(40) {
            return;
        }
        self.waiting.push(WaitingRow { message, destination, blocked: false, in_order: false, attempts: 0 });
    }

    fn snapshot(&mut self) {
        let waiting = self.waiting.iter().map(|row| Waiting {
            id: row.message.id.clone(),
            destination: row.destination.to_owned(),
            state: if row.blocked { "blocked" } else { "retry" }.to_owned(),
            blocked: row.blocked,
            in_order: row.in_order,
            due: true,
        });
        let dead = self.dead.iter().map(|(message, destination)| Dead {
            id: message.id.clone(),
            destination: (*destination).to_owned(),
            reason: "rejected".to_owned(),
            blocks_key: false,
        });
        let pending = self.messages.values().map(|message| message.id.clone()).collect();
        let snapshot = Snapshot { pending, waiting: waiting.collect(), dead: dead.collect() };
        self.write(Fact::Snapshot(snapshot));
    }
}
