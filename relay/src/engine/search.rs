//! Which rows without a destination may have a route by now.
//!
//! Pure. When the routes change, and in partitions that were gained, the topics of such rows are asked for first. That is
//! cheap, and mostly the end of it: no route has come for any of them. Only rows whose topic has one are read, a few at a
//! time, and become rows of their destinations.
//!
//! Invariants
//! - Nothing may pass an earlier message of its key that has a route now. So a partition is *open* while its topics are
//!   not known or such rows have not been read, and a key while such a row of it is being written: until a look that
//!   began afterwards was acted upon.
//! - Each partition is searched by itself: what is gained later restarts nothing, and nobody waits for others.
//! - A row that cannot be written keeps its own key waiting, and no other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::message::{Key, PartitionSet};
use crate::store::{UnroutedAfter, UnroutedRow};

/// The search, and what it found.
#[derive(Debug)]
pub(super) struct Search {
    /// Partitions whose topics are to be asked for, and after which one.
    topics: BTreeMap<u8, String>,
    /// Those of them nobody waits for.
    unhurried: PartitionSet,
    /// Places to read rows at, partition by partition.
    rows: VecDeque<UnroutedAfter>,
    /// What is being asked.
    asked: Option<Question>,
    /// Partitions to be searched once more, and when.
    later: PartitionSet,
    later_at: Instant,
    /// When everything is searched in any case.
    safety_at: Instant,
    /// Not before this: other looks take turns with these.
    next: Instant,
    routes_changed_at: Instant,
    found: HashMap<i64, Found>,
    of_key: HashMap<Key, HashSet<i64>>,
    /// The open partitions, and those that were opened since the look under way began.
    open: PartitionSet,
    opened: PartitionSet,
}

/// A row that has a route and is being written.
#[derive(Debug)]
struct Found {
    partition_no: u8,
    key: Option<Key>,
    /// It cannot be written.
    stuck: bool,
    /// It is being written by routes that had none for it: its partition has to be searched again.
    again: bool,
}

/// What to ask the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Topics of these partitions, each after this one.
    Topics { after: Vec<(u8, String)>, limit: u32 },
    /// Rows at these places.
    Rows { wanted: Vec<UnroutedAfter>, limit: u32 },
}

impl Search {
    /// Everything has to be searched.
    pub(super) fn new(now: Instant) -> Search {
        let mut search = Search {
            topics: BTreeMap::new(),
            unhurried: PartitionSet::EMPTY,
            rows: VecDeque::new(),
            asked: None,
            later: PartitionSet::EMPTY,
            later_at: now,
            safety_at: now + SAFETY_PERIOD,
            next: now,
            routes_changed_at: now,
            found: HashMap::new(),
            of_key: HashMap::new(),
            open: PartitionSet::EMPTY,
            opened: PartitionSet::EMPTY,
        };
        search.routes_changed(now);
        search
    }

    /// The routes are others: every row may have one now.
    pub(super) fn routes_changed(&mut self, now: Instant) {
        self.routes_changed_at = now;
        self.want(PartitionSet::ALL);
    }

    /// These partitions have to be searched from the beginning; of those that are not ours nothing will be asked.
    pub(super) fn want(&mut self, partitions: PartitionSet) {
        self.unhurried = self.unhurried.without(partitions);
        self.later = self.later.without(partitions);
        self.rows.retain(|place| !partitions.contains(place.partition_no));
        for partition_no in partitions.iter() {
            self.topics.insert(partition_no, String::new());
        }
        self.opened = self.opened.or(partitions);
        self.reckon();
    }

    /// A look at waiting rows begins.
    pub(super) fn look_begins(&mut self) {
        self.opened = PartitionSet::EMPTY;
    }

    /// A row without a route was written here. The routes may have changed just then; what is in order is told of that
    /// otherwise.
    pub(super) fn written(&mut self, partition_no: u8, now: Instant) {
        if now.saturating_duration_since(self.routes_changed_at) < ROUTES_FRESH {
            self.again(partition_no, now);
        }
    }

    /// A partition has to be searched once more, and nobody waits for that.
    pub(super) fn again(&mut self, partition_no: u8, now: Instant) {
        if self.later.is_empty() {
            self.later_at = now + LATER_PAUSE;
        }
        self.later = self.later.with(partition_no);
    }

    /// These partitions are no longer ours, or about to be another's.
    pub(super) fn let_go(&mut self, partitions: PartitionSet) {
        self.later = self.later.without(partitions);
        self.unhurried = self.unhurried.without(partitions);
        self.topics.retain(|partition_no, _| !partitions.contains(*partition_no));
        self.rows.retain(|place| !partitions.contains(place.partition_no));
        match &mut self.asked {
            Some(Question::Topics { after, .. }) => {
                after.retain(|(partition_no, _)| !partitions.contains(*partition_no))
            }
            Some(Question::Rows { wanted, .. }) => wanted.retain(|place| !partitions.contains(place.partition_no)),
            None => {}
        }
        self.reckon();
    }

    /// The same, and what was found there is another's too.
    pub(super) fn lose(&mut self, lost: PartitionSet) {
        self.let_go(lost);
        let of_lost = |found: &Found| lost.contains(found.partition_no);
        let gone: Vec<i64> = self.found.iter().filter(|(_, found)| of_lost(found)).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id);
        }
    }

    /// What to ask next in the partitions that are ours, if anything.
    pub(super) fn ask(&mut self, kept: PartitionSet, now: Instant) -> Option<Question> {
        self.let_go(PartitionSet::ALL.without(kept));
        if now >= self.safety_at {
            self.safety_at = now + SAFETY_PERIOD;
            (self.later, self.later_at) = (kept, now);
        }
        if now >= self.later_at {
            for partition_no in std::mem::replace(&mut self.later, PartitionSet::EMPTY).iter() {
                if let Entry::Vacant(free) = self.topics.entry(partition_no) {
                    free.insert(String::new());
                    self.unhurried = self.unhurried.with(partition_no);
                }
            }
        }
        let question = if !self.topics.is_empty() && self.rows.len() < PLACES_MAX {
            let after: Vec<(u8, String)> = std::mem::take(&mut self.topics).into_iter().collect();
            Question::Topics { limit: share(TOPICS_MAX, after.len()), after }
        } else if self.may_read_rows() {
            let wanted: Vec<UnroutedAfter> = self.rows.drain(..self.rows.len().min(PLACES_AT_ONCE)).collect();
            Question::Rows { limit: share(ROWS_MAX, wanted.len()), wanted }
        } else {
            return None;
        };
        self.next = now + TURN;
        self.asked = Some(question.clone());
        self.reckon();
        Some(question)
    }

    fn may_read_rows(&self) -> bool {
        !self.rows.is_empty() && self.found.values().filter(|found| !found.stuck).count() < FOUND_MAX
    }

    /// When there is something to ask.
    pub(super) fn wake(&self) -> Instant {
        let now = !self.topics.is_empty() && self.rows.len() < PLACES_MAX || self.may_read_rows();
        let later = (!self.later.is_empty()).then(|| self.later_at.max(self.next));
        let soon = now.then_some(self.next).into_iter().chain(later);
        soon.fold(self.safety_at.max(self.next), Instant::min)
    }

    /// What was asked was not answered; it is asked again after a pause, and other looks go on.
    pub(super) fn unanswered(&mut self, next: Instant) {
        self.next = next;
        match self.asked.take() {
            Some(Question::Topics { after, .. }) => {
                for (partition_no, topic) in after {
                    self.topics.entry(partition_no).or_insert(topic);
                }
            }
            Some(Question::Rows { wanted, .. }) => {
                let still = wanted.into_iter().filter(|place| !self.topics.contains_key(&place.partition_no));
                still.collect::<Vec<_>>().into_iter().rev().for_each(|place| self.rows.push_front(place));
            }
            None => {}
        }
        self.reckon();
    }

    /// An answer came: before the next question it is the turn of other looks, however long the answer took.
    pub(super) fn answered(&mut self, now: Instant) {
        self.next = self.next.max(now + TURN);
    }

    /// The topics there are. Rows of those that have a route will be read.
    pub(super) fn topics_found(&mut self, found: Vec<(u8, String)>, has_route: impl Fn(&str) -> bool) {
        let Some(Question::Topics { after, limit }) = self.asked.take() else { return };
        let mut of_partition: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        for (partition_no, topic) in found {
            of_partition.entry(partition_no).or_default().push(topic);
        }
        for (partition_no, _) in after {
            // Wanted anew meanwhile: then what was asked before says nothing.
            if self.topics.contains_key(&partition_no) {
                continue;
            }
            let topics = of_partition.remove(&partition_no).unwrap_or_default();
            let more = (topics.len() >= limit as usize).then(|| topics.last().cloned()).flatten();
            let places = topics.into_iter().filter(|topic| has_route(topic));
            self.rows.extend(places.map(|topic| UnroutedAfter { partition_no, topic, after: 0 }));
            match more {
                Some(last) => {
                    self.topics.insert(partition_no, last);
                }
                None => self.unhurried = self.unhurried.without(PartitionSet::EMPTY.with(partition_no)),
            }
        }
        self.reckon();
    }

    /// Rows were read. Returns those of partitions that are ours still.
    pub(super) fn rows_read(&mut self, rows: Vec<UnroutedRow>) -> Vec<UnroutedRow> {
        let Some(Question::Rows { wanted, limit }) = self.asked.take() else { return Vec::new() };
        let asked: PartitionSet = wanted.iter().map(|place| place.partition_no).collect();
        let mut more = Vec::new();
        for place in wanted {
            let of_place = |row: &&UnroutedRow| row.partition_no == place.partition_no && row.topic == place.topic;
            let read = rows.iter().filter(of_place);
            if read.clone().count() >= limit as usize
                && let Some(after) = read.map(|row| row.id).max()
                && !self.topics.contains_key(&place.partition_no)
            {
                more.push(UnroutedAfter { after, ..place });
            }
        }
        more.into_iter().rev().for_each(|place| self.rows.push_front(place));
        self.reckon();
        rows.into_iter().filter(|row| asked.contains(row.partition_no)).collect()
    }

    /// The row has a route and is about to be written.
    pub(super) fn found(&mut self, row: &UnroutedRow) {
        self.insert(row, false);
    }

    /// The row has a route, but is just being written by routes that had none for it.
    pub(super) fn found_busy(&mut self, row: &UnroutedRow) {
        if !self.found.contains_key(&row.id) {
            self.insert(row, true);
        }
    }

    fn insert(&mut self, row: &UnroutedRow, again: bool) {
        let key = row.ordering_key.clone().filter(|_| row.in_order);
        if let Some(key) = &key {
            self.of_key.entry(key.clone()).or_default().insert(row.id);
        }
        let partition_no = row.partition_no;
        self.found.insert(row.id, Found { partition_no, key, stuck: false, again });
    }

    /// The row's write was refused for what is in it; it is tried again now and then.
    pub(super) fn stuck(&mut self, id: i64) {
        if let Some(found) = self.found.get_mut(&id) {
            found.stuck = true;
        }
    }

    /// The row is out of hands: what became of it can be seen by now.
    pub(super) fn released(&mut self, id: i64) {
        if let Some(found) = self.remove(id).filter(|found| found.again) {
            self.want(PartitionSet::EMPTY.with(found.partition_no));
        }
    }

    fn remove(&mut self, id: i64) -> Option<Found> {
        let found = self.found.remove(&id)?;
        if let Some(key) = &found.key
            && let Some(ids) = self.of_key.get_mut(key)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.of_key.remove(key);
            }
        }
        Some(found)
    }

    pub(super) fn is_found(&self, id: i64) -> bool {
        self.found.contains_key(&id)
    }

    /// The partitions in which there may be rows that have a route by now and were not found yet.
    pub(super) fn open(&self) -> PartitionSet {
        self.open
    }

    /// Those of them that were not when the look under way began, or not for the same reason.
    pub(super) fn opened(&self) -> PartitionSet {
        self.opened
    }

    fn reckon(&mut self) {
        let mut asked_topics = PartitionSet::EMPTY;
        let mut open: PartitionSet = self.rows.iter().map(|place| place.partition_no).collect();
        match &self.asked {
            Some(Question::Topics { after, .. }) => {
                asked_topics = after.iter().map(|(partition_no, _)| *partition_no).collect()
            }
            Some(Question::Rows { wanted, .. }) => {
                open = open.or(wanted.iter().map(|place| place.partition_no).collect())
            }
            None => {}
        }
        let topics = self.topics.keys().copied().collect::<PartitionSet>().or(asked_topics);
        self.open = open.or(topics.without(self.unhurried));
    }

    /// True while a row of this key has a route and may not stand where that leads.
    pub(super) fn has_found(&self, key: &Key) -> bool {
        self.of_key.contains_key(key)
    }

    /// True while such a row cannot be written.
    pub(super) fn is_stuck(&self, key: &Key) -> bool {
        self.of_key.get(key).is_some_and(|ids| ids.iter().any(|id| self.found.get(id).is_some_and(|found| found.stuck)))
    }

    /// Nothing is left to be asked.
    pub(super) fn is_done(&self) -> bool {
        self.asked.is_none() && self.topics.is_empty() && self.rows.is_empty() && self.later.is_empty()
    }
}

/// What each of so many gets of a page.
fn share(page: u32, among: usize) -> u32 {
    (page / u32::try_from(among).unwrap_or(u32::MAX).max(1)).max(1)
}

/// Topics in one answer, about.
const TOPICS_MAX: u32 = 2_048;
/// Rows in one answer, about.
const ROWS_MAX: u32 = 1_024;
/// Places in one question.
const PLACES_AT_ONCE: usize = 32;
/// With so many places to read at, no more are asked for.
const PLACES_MAX: usize = 4_096;
/// With so many rows on their way, no more are read.
const FOUND_MAX: usize = 4_096;
/// Between two questions.
const TURN: Duration = Duration::from_millis(10);
/// For so long after a change of the routes, partitions in which rows without a destination are written are searched once
/// more.
const ROUTES_FRESH: Duration = Duration::from_secs(60);
/// Everything is searched so often, whatever is known: somebody may have changed rows by hand.
const SAFETY_PERIOD: Duration = Duration::from_secs(600);
/// How long that waits for others to be written.
const LATER_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn set(partitions: &[u8]) -> PartitionSet {
        partitions.iter().copied().collect()
    }

    fn row(id: i64, partition_no: u8, topic: &str, key: Option<&str>) -> UnroutedRow {
        UnroutedRow {
            id,
            message_id: uuid::Uuid::from_u128(1),
            partition_no,
            topic: topic.into(),
            ordering_key: key.map(|key| Key::from(key.as_bytes())),
            in_order: true,
            attempts: 0,
        }
    }

    fn key(name: &str) -> Key {
        Key::from(name.as_bytes())
    }

    fn partitions(question: Option<Question>) -> PartitionSet {
        match question {
            Some(Question::Topics { after, .. }) => after.into_iter().map(|(partition_no, _)| partition_no).collect(),
            Some(Question::Rows { wanted, .. }) => wanted.into_iter().map(|place| place.partition_no).collect(),
            None => PartitionSet::EMPTY,
        }
    }

    /// A search that has found nothing in these partitions.
    fn done(kept: PartitionSet, now: Instant) -> Search {
        let mut search = Search::new(now);
        assert_eq!(partitions(search.ask(kept, now)), kept);
        search.topics_found(Vec::new(), |_| false);
        assert!(search.is_done() && search.open().is_empty());
        search
    }

    #[test]
    fn one_question_ends_it_where_no_topic_has_a_route() {
        let (now, kept) = (Instant::now(), set(&[1, 2]));
        let mut search = Search::new(now);
        assert_eq!(partitions(search.ask(kept, now)), kept);
        assert_eq!(search.open(), kept);
        search.topics_found(vec![(1, "typo".into()), (2, "typo".into())], |topic| topic != "typo");
        assert!(search.open().is_empty() && search.is_done());
        assert_eq!((search.wake(), search.ask(kept, now)), (now + SAFETY_PERIOD, None));
    }

    #[test]
    fn a_gain_opens_its_own_partition_and_restarts_no_other() {
        let now = Instant::now();
        let mut search = Search::new(now);
        search.ask(set(&[1]), now);
        search.topics_found(vec![(1, "new".into())], |_| true);
        search.want(set(&[2]));
        assert_eq!(search.open(), set(&[1, 2]));
        assert_eq!(partitions(search.ask(set(&[1, 2]), now)), set(&[2]), "the other's topics are known");
        search.topics_found(Vec::new(), |_| true);
        assert_eq!(search.open(), set(&[1]));
        assert_eq!(partitions(search.ask(set(&[1, 2]), now)), set(&[1]));
        assert!(search.rows_read(Vec::new()).is_empty());
        assert!(search.open().is_empty());
    }

    #[test]
    fn an_answer_to_what_is_wanted_anew_ends_nothing() {
        let (now, kept) = (Instant::now(), set(&[1, 2]));
        let mut search = Search::new(now);
        search.ask(kept, now);
        search.want(set(&[1]));
        search.topics_found(vec![(1, "new".into()), (2, "new".into())], |_| false);
        assert_eq!(search.open(), set(&[1]));
        // The same while rows are read.
        let mut search = Search::new(now);
        search.ask(kept, now);
        search.topics_found(vec![(1, "new".into()), (2, "new".into())], |_| true);
        search.ask(kept, now);
        search.want(set(&[2]));
        assert_eq!(search.rows_read(vec![row(1, 1, "new", None)]).len(), 1);
        assert_eq!(search.open(), set(&[2]));
    }

    #[test]
    fn what_was_not_answered_is_asked_again() {
        let (now, kept) = (Instant::now(), set(&[1, 2]));
        let mut search = Search::new(now);
        let question = search.ask(kept, now);
        let pause = now + LATER_PAUSE;
        search.unanswered(pause);
        assert_eq!((search.open(), search.wake()), (kept, pause));
        assert_eq!(search.ask(kept, now), question);
        search.topics_found(vec![(1, "new".into()), (2, "new".into())], |_| true);
        let question = search.ask(kept, now);
        search.unanswered(pause);
        assert_eq!(search.open(), kept);
        assert_eq!(search.ask(kept, now), question);
    }

    #[test]
    fn lost_partitions_are_not_searched_even_if_an_answer_comes() {
        let (now, kept) = (Instant::now(), set(&[1, 2]));
        let mut search = Search::new(now);
        search.ask(kept, now);
        search.lose(set(&[1]));
        search.topics_found(vec![(1, "new".into()), (2, "new".into())], |_| true);
        assert_eq!(search.open(), set(&[2]));
        search.ask(kept, now);
        search.lose(set(&[2]));
        assert!(search.rows_read(vec![row(1, 2, "new", None)]).is_empty());
        assert!(search.open().is_empty() && search.is_done());
    }

    #[test]
    fn pages_go_on_where_they_ended() {
        let (now, kept) = (Instant::now(), set(&[1]));
        let mut search = Search::new(now);
        let Some(Question::Topics { limit, .. }) = search.ask(kept, now) else { panic!("topics are asked for") };
        let topics: Vec<(u8, String)> = (0..limit).map(|n| (1, format!("{n:05}"))).collect();
        let last = topics.last().unwrap().1.clone();
        search.topics_found(topics, |topic| topic == "00007");
        let Some(Question::Topics { after, .. }) = search.ask(kept, now) else { panic!("there may be more topics") };
        assert_eq!(after, [(1, last)]);
        search.topics_found(Vec::new(), |_| true);
        let Some(Question::Rows { wanted, limit }) = search.ask(kept, now) else { panic!("one topic has a route") };
        assert_eq!(wanted, [UnroutedAfter { partition_no: 1, topic: "00007".into(), after: 0 }]);
        search.rows_read((1..=i64::from(limit)).map(|id| row(id, 1, "00007", None)).collect());
        let Some(Question::Rows { wanted, .. }) = search.ask(kept, now) else { panic!("there may be more rows") };
        assert_eq!(wanted[0].after, i64::from(limit));
        search.rows_read(Vec::new());
        assert!(search.is_done());
    }

    #[test]
    fn a_found_row_keeps_its_key_waiting_until_it_is_out_of_hands() {
        let mut search = done(set(&[1]), Instant::now());
        search.found(&row(1, 1, "new", Some("k")));
        search.found(&row(2, 1, "new", Some("k")));
        search.found(&row(3, 1, "new", None));
        assert!(search.has_found(&key("k")) && !search.has_found(&key("l")) && !search.is_stuck(&key("k")));
        search.stuck(2);
        assert!(search.is_stuck(&key("k")));
        search.released(2);
        assert!(search.has_found(&key("k")) && !search.is_stuck(&key("k")));
        search.released(1);
        assert!(!search.has_found(&key("k")) && search.is_done());
    }

    #[test]
    fn a_row_that_was_just_being_written_is_looked_for_again() {
        let mut search = done(set(&[1]), Instant::now());
        search.found_busy(&row(1, 1, "new", Some("k")));
        assert!(search.has_found(&key("k")) && search.open().is_empty());
        search.released(1);
        assert_eq!((search.open(), search.has_found(&key("k"))), (set(&[1]), false));
    }

    #[test]
    fn what_is_written_soon_after_a_change_is_searched_later_and_nobody_waits() {
        let (now, kept) = (Instant::now(), set(&[1, 2]));
        let mut search = done(kept, now);
        search.written(1, now);
        assert!(search.open().is_empty() && !search.is_done());
        assert_eq!(search.ask(kept, now), None, "more may be written");
        let later = search.wake();
        assert_eq!(partitions(search.ask(kept, later)), set(&[1]));
        assert!(search.open().is_empty());
        search.topics_found(vec![(1, "new".into())], |_| true);
        assert_eq!(search.open(), set(&[1]), "now it is known that there is one");
        search.ask(kept, later);
        search.rows_read(Vec::new());
        search.written(1, now + ROUTES_FRESH);
        assert!(search.is_done(), "the routes have been the same for long");
    }

    #[test]
    fn now_and_then_everything_is_searched_and_nobody_waits() {
        let (now, kept) = (Instant::now(), set(&[1, 2]));
        let mut search = done(kept, now);
        let at = search.wake();
        assert_eq!((at, search.ask(kept, at - TURN)), (now + SAFETY_PERIOD, None));
        assert_eq!(partitions(search.ask(kept, at)), kept);
        assert!(search.open().is_empty());
        search.topics_found(Vec::new(), |_| true);
        assert_eq!(search.wake(), at + SAFETY_PERIOD);
    }

    #[test]
    fn no_more_is_read_than_can_be_written() {
        let (now, kept) = (Instant::now(), set(&[1]));
        let mut search = Search::new(now);
        search.ask(kept, now);
        search.topics_found(vec![(1, "new".into())], |_| true);
        (0..FOUND_MAX as i64).for_each(|id| search.found(&row(id, 1, "new", None)));
        assert_eq!((search.ask(kept, now), search.wake()), (None, now + SAFETY_PERIOD));
        search.stuck(0);
        assert!(search.wake() <= now + TURN, "what cannot be written stops nothing");
    }
}
