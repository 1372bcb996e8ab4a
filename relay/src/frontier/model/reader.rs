//! A relay as the frontier knows it, the hands included, against a model of a database, in steps of any order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::database::{Answer, Database};
use crate::frontier::{Evidence, Frontier, Reading, Rule, Stamp};
use crate::message::{PartitionSet, Seq};
use crate::poll::{Probe, Wanted};

/// What must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// A committed message is not in hands although everything ended and was polled.
    Lost(Seq),
    /// The second was handed out although the first had committed before its number was drawn.
    Overtaken(Seq, Seq),
    /// A message was handed out again although its deletion stands.
    Repeated(Seq),
    /// A number that may fill, or has filled, lies in no hole.
    Forgotten(Seq),
    /// Holes remain although nobody is left who could fill them.
    Remains(usize, usize),
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) evidence: Evidence,
    /// The rule the frontier forgets.
    pub(super) left_out: Option<Rule>,
    /// The database draws ids after numbers.
    pub(super) number_before_xid: bool,
    /// A row leaves hands as soon as its settle returned.
    pub(super) hands_let_go_early: bool,
    /// Looks into the frontier after each poll, not only at what comes out of it.
    pub(super) strict: bool,
    pub(super) climate: Climate,
    /// Beyond this many, ranges merge.
    pub(super) ranges_max: Option<usize>,
}

/// What else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Climate {
    /// Partitions change hands, connections break, servers crash and lose what they had acknowledged.
    Rough,
    /// Only transactions and time. What needs a long build-up happens here.
    Calm,
}

impl Setup {
    pub(super) fn new(evidence: Evidence) -> Setup {
        Setup {
            evidence,
            left_out: None,
            number_before_xid: false,
            hands_let_go_early: false,
            strict: true,
            climate: Climate::Rough,
            ranges_max: None,
        }
    }
}

#[derive(Debug)]
struct Poll {
    number: u64,
    wanted: Wanted,
    owned: PartitionSet,
    /// Partitions whose owner changed since it was sent.
    changed: PartitionSet,
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Hand {
    partition_no: u8,
    settling: bool,
    /// The last poll sent when the settle returned.
    settled: Option<u64>,
    /// Turned up in a page while it was in hands.
    turned_up: bool,
}

#[derive(Debug)]
enum Stage {
    Sent,
    Runs(u64),
    Done(Option<u64>),
}

#[derive(Debug)]
struct Settle {
    stamp: Stamp,
    rows: Vec<(Seq, usize)>,
    stage: Stage,
}

/// A locking read under way: what is asked, and the answer.
type Doubt = (Vec<(Seq, Seq)>, Option<Probe>);

#[derive(Debug)]
pub(super) struct World {
    setup: Setup,
    pub(super) database: Database,
    pub(super) frontier: Frontier,
    now: Instant,
    owned: PartitionSet,
    polls: u64,
    poll: Option<Poll>,
    doubt: Option<Doubt>,
    hands: BTreeMap<(Seq, usize), Hand>,
    settles: Vec<Settle>,
    /// Left hands before, or came back when a crash undid its deletion; may come later than it should.
    refused: BTreeSet<usize>,
    /// Went to the other relay once; may come twice.
    shared: BTreeSet<usize>,
    finished: BTreeSet<usize>,
}

const PARTITIONS: u8 = 3;
pub(super) const AGE_MAX: Duration = Duration::from_millis(800);

impl World {
    pub(super) fn new(setup: Setup) -> World {
        let mut frontier = Frontier::new(setup.evidence);
        frontier.left_out = setup.left_out;
        frontier.active_max = setup.ranges_max.unwrap_or(frontier.active_max);
        frontier.parked_max = setup.ranges_max.unwrap_or(frontier.parked_max);
        let mut database = Database::new(setup.evidence);
        database.number_before_xid = setup.number_before_xid;
        World {
            setup,
            database,
            frontier,
            now: Instant::now(),
            owned: [0, 1].into_iter().collect(),
            polls: 0,
            poll: None,
            doubt: None,
            hands: BTreeMap::new(),
            settles: Vec::new(),
            refused: BTreeSet::new(),
            shared: BTreeSet::new(),
            finished: BTreeSet::new(),
        }
    }

    /// Runs a schedule to its end, then lets everything end and looks at what is left.
    pub(super) fn run(setup: Setup, schedule: &[u32]) -> Result<(), Violation> {
        let mut world = World::new(setup);
        for step in schedule {
            world.step(*step)?;
        }
        world.heal()
    }

    /// Runs a schedule that goes wrong and prints what each step left behind.
    pub(super) fn tell(setup: Setup, schedule: &[u32]) {
        let mut world = World::new(setup);
        for step in schedule {
            let outcome = world.step(*step);
            println!(
                "step {} {}: {outcome:?}\n    open {:?}\n    visible {:?}\n    hands {:?}\n    poll {:?}\n    frontier {:?}",
                step % 128,
                step >> 7,
                world.database.open,
                world.database.visible,
                world.hands.keys(),
                world.poll,
                world.frontier
            );
            if outcome.is_err() {
                return;
            }
        }
        println!("healed: {:?}\n    frontier {:?}", world.heal(), world.frontier);
    }

    fn step(&mut self, step: u32) -> Result<(), Violation> {
        let (kind, pick) = (step % 128, (step >> 7) as usize);
        self.now += Duration::from_millis(1);
        if self.setup.climate == Climate::Calm && matches!(kind, 103..105 | 114..119) {
            return self.advance_poll(pick);
        }
        match kind {
            0..10 => self.begin(pick),
            10..30 => self.insert(pick),
            30..42 => self.end(pick, true),
            42..47 => self.end(pick, false),
            47..79 => return self.advance_poll(pick),
            79..85 => self.send_settle(pick),
            85..99 => self.advance_settle(pick),
            99..103 => self.draw_mark(),
            103..105 => self.lose(self.partition(pick)),
            105..109 => self.gain(PartitionSet::EMPTY.with(self.partition(pick))),
            109..114 => self.delete_elsewhere(pick),
            114..117 => self.refuse(pick),
            117 => self.crash(pick),
            118 => self.database.incarnation += u64::from(pick.is_multiple_of(2)),
            119..123 => self.advance_doubt(pick),
            _ => self.pass(Duration::from_millis([5, 40, 110, 250][pick % 4])),
        }
        Ok(())
    }

    fn partition(&self, pick: usize) -> u8 {
        (pick % usize::from(PARTITIONS)) as u8
    }

    /// Then order is not promised, and ranges may stay while messages are in hands.
    fn merges_by_age(&self) -> bool {
        self.setup.ranges_max.is_some() && matches!(self.setup.evidence, Evidence::Ages(_))
    }

    fn serial(&self) -> bool {
        self.setup.evidence == Evidence::Serial
    }

    pub(super) fn pass(&mut self, span: Duration) {
        self.database.fill_overdue(AGE_MAX, self.now + span + Duration::from_millis(1));
        self.now += span;
    }

    fn begin(&mut self, pick: usize) {
        let most = if self.serial() { 1 } else { 6 };
        if self.database.open.len() < most {
            self.database.begin(pick.is_multiple_of(4), false, self.now);
        }
    }

    fn insert(&mut self, pick: usize) {
        let writers: Vec<usize> = (0..self.database.open.len()).filter(|tx| !self.database.open[*tx].settles).collect();
        let Some(tx) = writers.get(pick % writers.len().max(1)) else { return };
        let reserve = matches!(self.setup.evidence, Evidence::Ages(_)) && (pick >> 8).is_multiple_of(3);
        match (pick >> 4) % 8 {
            0 => self.database.draw_late_xid(*tx),
            1 => self.database.fill_reserved(*tx),
            _ => self.database.insert(*tx, self.partition(pick >> 6), reserve, self.now),
        }
    }

    fn end(&mut self, pick: usize, commit: bool) {
        let writers: Vec<usize> = (0..self.database.open.len()).filter(|tx| !self.database.open[*tx].settles).collect();
        let Some(tx) = writers.get(pick % writers.len().max(1)) else { return };
        if !self.database.open[*tx].long || (pick >> 8).is_multiple_of(4) {
            self.database.end(*tx, commit);
        }
    }

    /// The next step of the poll: send it, let the database read, process the answer.
    pub(super) fn advance_poll(&mut self, pick: usize) -> Result<(), Violation> {
        match self.poll.take() {
            None if self.doubt.is_some() => Ok(()),
            None => {
                self.polls += 1;
                self.poll = Some(Poll {
                    number: self.polls,
                    wanted: self.frontier.wanted(self.now),
                    owned: self.owned,
                    changed: PartitionSet::EMPTY,
                    answer: None,
                });
                Ok(())
            }
            Some(mut poll) if poll.answer.is_none() => {
                // Now and then it fails; then another one is sent.
                if !pick.is_multiple_of(32) {
                    poll.answer = Some(self.database.read(&poll.wanted, 2 + pick % 4));
                    self.poll = Some(poll);
                }
                Ok(())
            }
            Some(poll) => self.receive(&poll),
        }
    }

    fn receive(&mut self, poll: &Poll) -> Result<(), Violation> {
        let answer = poll.answer.as_ref().expect("it was answered");
        let reading = self.frontier.receive(&poll.wanted, &answer.page, self.now);
        if let Reading::Use { tail } = reading {
            let mut rows = answer.from_holes.clone();
            if tail {
                rows.extend(&answer.from_tail);
            }
            rows.sort_unstable();
            rows.dedup();
            let mine = poll.owned.and(self.owned).without(poll.changed);
            for (seq, id, partition_no) in rows.into_iter().filter(|(_, _, partition_no)| mine.contains(*partition_no))
            {
                self.hand_out(seq, id, partition_no)?;
            }
        }
        let let_go = |hand: &Hand| hand.settled.is_some_and(|number| number < poll.number);
        let turned_up: Vec<Seq> =
            self.hands.iter().filter(|(_, hand)| let_go(hand) && hand.turned_up).map(|((seq, _), _)| *seq).collect();
        self.hands.retain(|_, hand| !let_go(hand));
        // Its deletion may have been undone by a crash.
        turned_up.into_iter().for_each(|seq| self.frontier.reopen(seq));
        if self.setup.strict { self.look_inside() } else { Ok(()) }
    }

    fn hand_out(&mut self, seq: Seq, id: usize, partition_no: u8) -> Result<(), Violation> {
        if let Some(hand) = self.hands.get_mut(&(seq, id)) {
            hand.turned_up = true;
            return Ok(());
        }
        if self.finished.contains(&id) && !self.shared.contains(&id) {
            return Err(Violation::Repeated(seq));
        }
        let drawn = self.database.records[id].drawn;
        let until = if self.merges_by_age() { 0 } else { seq };
        for (earlier, other) in self.database.visible.range(..until) {
            let record = &self.database.records[*other];
            if record.partition_no == partition_no
                && record.committed.is_some_and(|committed| committed < drawn)
                && !self.hands.contains_key(&(*earlier, *other))
                && !self.refused.contains(other)
            {
                return Err(Violation::Overtaken(*earlier, seq));
            }
        }
        self.refused.remove(&id);
        self.hands.insert((seq, id), Hand { partition_no, settling: false, settled: None, turned_up: false });
        Ok(())
    }

    /// What may still fill, or has filled unseen, lies in a hole.
    fn look_inside(&self) -> Result<(), Violation> {
        let cursor = self.frontier.cursor();
        if self.frontier.incarnation != Some(self.database.incarnation) {
            return Ok(());
        }
        let unseen = self.database.visible.iter().filter(|(seq, id)| {
            let partition_no = self.database.records[**id].partition_no;
            self.owned.contains(partition_no) && !self.hands.contains_key(&(**seq, **id))
        });
        let held = self.database.held().filter(|_| !self.serial());
        let missing =
            unseen.map(|(seq, _)| *seq).chain(held).find(|seq| *seq <= cursor && !self.frontier.is_hole(*seq));
        missing.map_or(Ok(()), |seq| Err(Violation::Forgotten(seq)))
    }

    fn send_settle(&mut self, pick: usize) {
        let ready: Vec<(Seq, usize)> = self
            .hands
            .iter()
            .filter(|(_, hand)| !hand.settling && hand.settled.is_none())
            .map(|(key, _)| *key)
            .skip(pick % 3)
            .take(1 + (pick >> 4) % 4)
            .collect();
        if ready.is_empty() || self.settles.len() >= 3 {
            return;
        }
        for key in &ready {
            self.hands.get_mut(key).expect("it is in hands").settling = true;
        }
        self.settles.push(Settle { stamp: self.frontier.stamp(), rows: ready, stage: Stage::Sent });
    }

    pub(super) fn draw_mark(&mut self) {
        if self.frontier.needs_mark() && self.settles.len() < 4 {
            self.settles.push(Settle { stamp: self.frontier.stamp(), rows: Vec::new(), stage: Stage::Sent });
        }
    }

    /// The next step of one settle: the database begins it, commits it, the relay hears of it.
    pub(super) fn advance_settle(&mut self, pick: usize) {
        if self.settles.is_empty() {
            return;
        }
        let at = pick % self.settles.len();
        match self.settles[at].stage {
            Stage::Sent => {
                let locked = |(_, id): &(Seq, usize)| self.database.records[*id].deleting;
                if self.serial() && !self.database.open.is_empty() || self.settles[at].rows.iter().any(locked) {
                    return;
                }
                let ticket = self.database.begin(false, true, self.now);
                let tx = self.database.position(ticket).expect("it has just begun");
                for (seq, id) in &self.settles[at].rows {
                    self.database.delete(tx, *seq, *id);
                }
                self.settles[at].stage = Stage::Runs(ticket);
            }
            Stage::Runs(ticket) => {
                let tx = self.database.position(ticket).expect("only a crash ends it otherwise");
                let (xid, deleted) = self.database.end(tx, true);
                self.finished.extend(deleted);
                self.settles[at].stage = Stage::Done(xid);
            }
            Stage::Done(xid) => {
                let settle = self.settles.remove(at);
                for key in &settle.rows {
                    if self.setup.hands_let_go_early {
                        self.hands.remove(key);
                    } else if let Some(hand) = self.hands.get_mut(key).filter(|hand| hand.settling) {
                        hand.settled = Some(self.polls);
                    }
                }
                if let Some(xid) = xid {
                    self.frontier.mark(settle.stamp, xid);
                }
            }
        }
    }

    fn lose(&mut self, partition_no: u8) {
        let lost = PartitionSet::EMPTY.with(partition_no);
        self.owned = self.owned.without(lost);
        if let Some(poll) = &mut self.poll {
            poll.changed = poll.changed.or(lost);
        }
        self.shared
            .extend(self.hands.iter().filter(|(_, hand)| hand.partition_no == partition_no).map(|((_, id), _)| *id));
        self.hands.retain(|_, hand| hand.partition_no != partition_no);
    }

    fn gain(&mut self, gained: PartitionSet) {
        let gained = gained.without(self.owned);
        if !gained.is_empty() {
            self.owned = self.owned.or(gained);
            if let Some(poll) = &mut self.poll {
                poll.changed = poll.changed.or(gained);
            }
            self.frontier.gain(gained);
        }
    }

    /// Another relay settles a message of its own.
    fn delete_elsewhere(&mut self, pick: usize) {
        if self.serial() && !self.database.open.is_empty() {
            return;
        }
        let theirs: Vec<(Seq, usize)> = self
            .database
            .visible
            .iter()
            .filter(|(_, id)| !self.owned.contains(self.database.records[**id].partition_no))
            .map(|(seq, id)| (*seq, *id))
            .collect();
        if let Some((seq, id)) = theirs.get(pick % theirs.len().max(1)) {
            let ticket = self.database.begin(false, false, self.now);
            let tx = self.database.position(ticket).expect("it has just begun");
            self.database.delete(tx, *seq, *id);
        }
    }

    /// A message leaves hands without being settled.
    fn refuse(&mut self, pick: usize) {
        let idle: Vec<(Seq, usize)> = self
            .hands
            .iter()
            .filter(|(_, hand)| !hand.settling && hand.settled.is_none())
            .map(|(key, _)| *key)
            .collect();
        if let Some(key) = idle.get(pick % idle.len().max(1)) {
            self.hands.remove(key);
            self.refused.insert(key.1);
            self.frontier.reopen(key.0);
        }
    }

    fn crash(&mut self, pick: usize) {
        let undone = self.database.crash((pick % 12) as u64);
        self.finished.retain(|id| !undone.contains(id));
        self.refused.extend(undone);
        let broken = |settle: &Settle| matches!(settle.stage, Stage::Runs(_));
        for settle in self.settles.iter().filter(|settle| broken(settle)) {
            for key in &settle.rows {
                if let Some(hand) = self.hands.get_mut(key) {
                    hand.settling = false;
                }
            }
        }
        self.settles.retain(|settle| !broken(settle));
    }

    /// The next step of a locking read: ask, let the database look, process the answer.
    fn advance_doubt(&mut self, pick: usize) {
        match self.doubt.take() {
            None if self.poll.is_none() => {
                let ranges = self.frontier.doubtful(self.now);
                self.doubt = (!ranges.is_empty()).then_some((ranges, None));
            }
            None => {}
            Some((ranges, None)) => {
                let probe = self.database.probe(&ranges, pick.is_multiple_of(2), self.now);
                self.doubt = Some((ranges, Some(probe)));
            }
            Some((ranges, Some(probe))) => self.frontier.probed(&ranges, &probe, self.now),
        }
    }

    /// Everything that is under way ends, all partitions become ours, and polls go on until nothing new turns up.
    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        self.end_all();
        for turn in 0.. {
            if self.settles.is_empty() {
                break;
            }
            self.advance_settle(turn);
        }
        self.gain((0..PARTITIONS).collect());
        while self.poll.is_some() {
            self.advance_poll(1)?;
        }
        let mut quiet = 0;
        for _ in 0..3_000 {
            let before = (self.hands.len(), self.frontier.holes(), self.frontier.cursor());
            self.advance_doubt(0);
            self.advance_doubt(0);
            self.advance_doubt(0);
            self.draw_mark();
            if self.merges_by_age() {
                // Rows in hands hide those above them in a merged range; settling them is what ends that.
                self.send_settle(0);
            }
            for _ in 0..3 {
                self.advance_settle(0);
            }
            for _ in 0..3 {
                self.advance_poll(1)?;
            }
            self.now += AGE_MAX / 4;
            quiet =
                if before == (self.hands.len(), self.frontier.holes(), self.frontier.cursor()) { quiet + 1 } else { 0 };
            if quiet > 8 {
                break;
            }
        }
        let lost = self.database.visible.iter().find(|(seq, id)| !self.hands.contains_key(&(**seq, **id)));
        if let Some((seq, _)) = lost {
            return Err(Violation::Lost(*seq));
        }
        match self.frontier.holes() {
            (0, 0) => Ok(()),
            // A merged range spans rows that are in hands, and a locking read finds it occupied until they are settled.
            _ if self.merges_by_age() => Ok(()),
            (sent, parked) => Err(Violation::Remains(sent, parked)),
        }
    }

    fn end_all(&mut self) {
        while let Some(tx) = (0..self.database.open.len()).find(|tx| !self.database.open[*tx].settles) {
            self.database.end(tx, true);
        }
    }
}
