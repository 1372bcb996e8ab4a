//! Ordering keys that stand still: what waits behind what, and letting a blocked one go on.
//!
//! Messages of one key reach a destination one after another. While the first of them, the head, waits for its next
//! attempt, the key is *parked*: what follows waits behind it. With `after_dead_letter = "block"` a key also stands still
//! behind a dead letter, until somebody decides: [`redrive`](crate::dead_letters::redrive) sends the letter first,
//! [`discard`](crate::dead_letters::discard) drops it, and [`release`] keeps it and lets the others go on without it.
//!
//! Invariants
//! - A release is one transaction. It locks the partition of the key first, as the relay does, so it never meets a settle
//!   half way, and of a release and a redrive of the same letter one comes first.
//! - Afterwards exactly the first in-order delivery of the key is unblocked, due when it was.
//! - Every release leaves one audit row, by the database's clock.
//! - Keys are bytes and are compared as such: `k`, `K` and `k ` are three keys.
//!
//! ```
//! # use diesel::prelude::*;
//! use outbox::keys::{self, By, Filter, Release};
//!
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # outbox::migrations::run(&mut conn)?;
//! for parked in keys::list(&mut conn, &Filter { only_blocked: true, ..Filter::default() }, 50)? {
//!     println!("{} wait at {} behind {} dead letters", parked.waiting, parked.destination, parked.blockers);
//! }
//! let by = By { actor: "ada".to_owned(), reason: Some("that order was cancelled by phone".to_owned()) };
//! match keys::release(&mut conn, "billing", b"order-7", &by)? {
//!     Release::Done(letters) => println!("goes on past {letters:?}"),
//!     Release::NotBlocked(parked) => println!("no dead letter blocks it, {} wait", parked.waiting),
//!     _ => println!("nothing of this key waits"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Absent: keys whose messages flow. What is in order and in a relay's hands is in no table by key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use diesel::connection::LoadConnection;
use serde::Deserialize;

use crate::by_hand::sql::{current_read, text};
use crate::by_hand::{Hex, Statement, audit, list_of, transaction, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::dead_letters::{self, DeadLetter};
use crate::error::Error;
use crate::messages::{self, Waiting};

pub use crate::dead_letters::By;

mod sql;

use sql::Key;

/// How many of the dead letters that block one key are returned; [`ParkedKey::blockers`] counts all.
const LETTERS_SHOWN: u32 = 100;

/// How many keys one statement is asked for.
const KEYS_AT_ONCE: usize = 50;

/// Which keys; what is `None` does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// At this destination.
    pub destination: Option<String>,
    /// This key, byte for byte.
    pub key: Option<Vec<u8>>,
    /// Only those that a dead letter blocks.
    pub only_blocked: bool,
}

/// A key that stands still at a destination.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedKey {
    /// The destination.
    pub destination: String,
    /// The key's bytes.
    pub key: Vec<u8>,
    /// How many deliveries of it wait in order, the head among them.
    pub waiting: u64,
    /// The delivery that goes first, if one waits.
    pub head: Option<Waiting>,
    /// How many dead letters block it.
    pub blockers: u64,
    /// The oldest of those, a hundred at most.
    pub blocked_by: Vec<DeadLetter>,
}

/// What became of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Release {
    /// It goes on past the dead letters with these ids, ascending. They stay dead letters.
    Done(Vec<i64>),
    /// No dead letter blocks it; this is how it stands. Nothing was changed.
    NotBlocked(Box<ParkedKey>),
    /// Nothing of this key waits at this destination, and no dead letter blocks it.
    Unknown,
}

/// Lists keys that stand still, at most `limit`: those that dead letters block, the longest blocked first; then those
/// whose head waits, the ones with most waiting deliveries first, among equals the one with the oldest head.
///
/// Reads each waiting delivery that has a key and that the filter leaves once, through the index by key, and without its
/// payload; with a destination and a key only what waits there. What blocked keys there are is read from an index of the
/// dead letters. The counts come from one statement, the rest of each key from later ones: what moves meanwhile is shown
/// as it was then or as it is now.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn list<C>(conn: &mut C, filter: &Filter, limit: u32) -> Result<Vec<ParkedKey>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let Some(narrowed) = Narrowed::by(database, filter) else { return Ok(Vec::new()) };
    let select = narrowed.end(Statement::new(sql::blocked(database)), &sql::blocked_end(limit));
    let mut found: Vec<Found> = read(select.load(conn)?, |row: BlockedRow| row.found())?;
    let blocked = u32::try_from(found.len()).unwrap_or(u32::MAX);
    count(conn, database, &mut found)?;
    letters(conn, database, &mut found)?;
    if blocked < limit && !filter.only_blocked {
        // Those that are blocked are all there, so this many more are enough to find the others.
        let select = Statement::new(sql::parked(database));
        let select = narrowed.end(select, &sql::parked_end(limit.saturating_add(blocked)));
        let parked: Vec<Found> = read(select.load(conn)?, |row: ParkedRow| row.found())?;
        let listed: HashSet<(String, Vec<u8>)> = found.iter().map(Found::name).collect();
        found.extend(parked.into_iter().filter(|parked| !listed.contains(&parked.name())));
        found.truncate(limit as usize);
    }
    heads(conn, database, &mut found)?;
    // What was settled between two statements stands still no more.
    let is_still = |parked: &ParkedKey| parked.head.is_some() || parked.blockers > 0;
    Ok(found.into_iter().map(|found| found.parked).filter(is_still).collect())
}

/// One key at one destination, or `None` when nothing of it waits there and no dead letter blocks it.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn get<C>(conn: &mut C, destination: &str, key: &[u8]) -> Result<Option<ParkedKey>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let filter = Filter { destination: Some(destination.to_owned()), key: Some(key.to_owned()), only_blocked: false };
    Ok(list(conn, &filter, 1)?.pop())
}

/// Lets a key go on at a destination past the dead letters that block it. They stay dead letters and block no more.
///
/// What waits of the key is sent from now on, in order, and without those letters. Whoever redrives one of them later
/// sends it without regard to that order, as after `after_dead_letter = "continue"`. A later message of the key that is
/// given up blocks the key again. A running relay goes on with the key at its next look at what is due.
///
/// One transaction; inside one of the caller's it is part of that. It holds the lock of the key's partition meanwhile.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses; then nothing has changed. A transaction of the caller's at REPEATABLE
/// READ or SERIALIZABLE may fail as with [`cancel`](crate::cancel), and is then to be repeated as a whole.
pub fn release<C>(conn: &mut C, destination: &str, key: &[u8], by: &By) -> Result<Release, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let Some(wanted) = Key::of(database, key) else { return Ok(Release::Unknown) };
    let released = transaction(conn, |conn| {
        let letters = lock(conn, database, destination, &wanted)?;
        let Some(first) = letters.first() else { return Ok(letters) };
        let ids = list_of(letters.iter().map(|letter| letter.id));
        Statement::new(format!(
            "-- key_release\nUPDATE outbox_dead_letters SET blocks_key = false WHERE id IN ({ids})"
        ))
        .execute(conn)?;
        // No letter blocks the key any more, so one of them is enough to name it.
        dead_letters::unblock(conn, database, std::slice::from_ref(first))?;
        let target = format!("key {}, destination {destination}, dead letters {ids}", shown(key));
        audit(conn, by, "key.release", &[target])?;
        Ok::<_, Error>(letters)
    })?;
    if !released.is_empty() {
        return Ok(Release::Done(released.iter().map(|letter| letter.id).collect()));
    }
    Ok(get(conn, destination, key)?.map_or(Release::Unknown, |parked| Release::NotBlocked(Box::new(parked))))
}

/// Locks the partition of the key and then the dead letters that block it; returns those, by id.
fn lock<C>(conn: &mut C, database: Database, destination: &str, key: &Key) -> Result<Vec<dead_letters::Locked>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    dead_letters::write_lock(conn, database)?;
    let which = |select: String| {
        let select = format!("{select} FROM outbox_dead_letters WHERE blocks_key = true AND ordering_key = ");
        key.end(Statement::new(select)).sql(" AND ").is(database, "destination", destination)
    };
    let partitions = format!("-- key_partitions\nSELECT DISTINCT {}", text(database, "partition_no"));
    let partitions = which(partitions).load_numbers(conn)?;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    dead_letters::lock_partitions(conn, database, &list_of(partitions.iter()))?;
    // Asked again under the lock: until it was ours a relay may have added a letter, or somebody redriven one.
    let letters = which(format!("-- key_letters\nSELECT {}", dead_letters::sql::locked(database)));
    // Unsorted, so that MariaDB and MySQL go by the index and lock these letters, not all they pass on the way.
    let letters = letters.sql(current_read(database)).load(conn)?;
    let mut letters: Vec<dead_letters::Locked> = read(letters, Ok)?;
    letters.sort_unstable_by_key(|letter| letter.id);
    Ok(letters)
}

/// The key as the audit shows it. What is no text keeps its bytes.
fn shown(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(key) => key.to_owned(),
        Err(_) => {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} (hex {hex})", String::from_utf8_lossy(key))
        }
    }
}

/// The conditions of a filter, as both tables understand them.
struct Narrowed<'a> {
    database: Database,
    destination: Option<&'a str>,
    key: Option<Key>,
}

impl<'a> Narrowed<'a> {
    /// `None` when no key in this database can be the one that is wanted.
    fn by(database: Database, filter: &'a Filter) -> Option<Narrowed<'a>> {
        let key = match &filter.key {
            Some(key) => Some(Key::of(database, key)?),
            None => None,
        };
        Some(Narrowed { database, destination: filter.destination.as_deref(), key })
    }

    /// Appends them, and what comes after.
    fn end(&self, mut select: Statement, end: &str) -> Statement {
        if let Some(destination) = self.destination {
            select = select.sql(" AND ").is(self.database, "destination", destination);
        }
        if let Some(key) = &self.key {
            select = key.end(select.sql(" AND ordering_key = "));
        }
        select.sql(end)
    }
}

/// A key while it is put together.
struct Found {
    parked: ParkedKey,
    /// The number of its head.
    head: Option<i64>,
}

impl Found {
    fn new(destination: &Hex, key: Hex) -> Found {
        let (destination, key) = (destination.text(), key.0);
        let parked = ParkedKey { destination, key, waiting: 0, head: None, blockers: 0, blocked_by: Vec::new() };
        Found { parked, head: None }
    }

    fn name(&self) -> (String, Vec<u8>) {
        (self.parked.destination.clone(), self.parked.key.clone())
    }
}

#[derive(Deserialize)]
struct BlockedRow {
    destination: Hex,
    key: Hex,
    blockers: u64,
}

impl BlockedRow {
    fn found(self) -> Result<Found, Error> {
        let mut found = Found::new(&self.destination, self.key);
        found.parked.blockers = self.blockers;
        Ok(found)
    }
}

#[derive(Deserialize)]
struct ParkedRow {
    destination: Hex,
    key: Hex,
    waiting: u64,
    head: i64,
}

impl ParkedRow {
    fn found(self) -> Result<Found, Error> {
        let mut found = Found::new(&self.destination, self.key);
        (found.parked.waiting, found.head) = (self.waiting, Some(self.head));
        Ok(found)
    }
}

fn read<R: for<'r> Deserialize<'r>, T>(
    rows: Vec<String>,
    into: impl Fn(R) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    rows.iter().map(|row| into(serde_json::from_str(row).map_err(unreadable)?)).collect()
}

/// Counts what waits of keys that were found by their dead letters.
fn count<C>(conn: &mut C, database: Database, found: &mut [Found]) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    for some in found.chunks_mut(KEYS_AT_ONCE) {
        let select =
            any_of(Statement::new(sql::parked(database)), database, some.iter().map(|found| (&found.parked, None)));
        let counted = read(select.sql(sql::PARKED_GROUPS).load(conn)?, |row: ParkedRow| row.found())?;
        let mut counted: HashMap<_, _> = counted.into_iter().map(|counted| (counted.name(), counted)).collect();
        for found in some {
            if let Some(counted) = counted.remove(&found.name()) {
                (found.parked.waiting, found.head) = (counted.parked.waiting, counted.head);
            }
        }
    }
    Ok(())
}

/// Fetches the dead letters that block these keys.
fn letters<C>(conn: &mut C, database: Database, found: &mut [Found]) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    for some in found.chunks_mut(KEYS_AT_ONCE) {
        let [before, after] = sql::letters(database, LETTERS_SHOWN);
        let select =
            any_of(Statement::new(before), database, some.iter().map(|found| (&found.parked, None))).sql(after);
        let mut by_key: HashMap<_, Vec<DeadLetter>> = HashMap::new();
        for letter in read(select.load(conn)?, dead_letters::row::Row::letter)? {
            let name = (letter.destination.clone(), letter.ordering_key.clone().unwrap_or_default());
            by_key.entry(name).or_default().push(letter);
        }
        for found in some {
            found.parked.blocked_by = by_key.remove(&found.name()).unwrap_or_default();
            if found.parked.blocked_by.is_empty() {
                found.parked.blockers = 0;
            }
        }
    }
    Ok(())
}

/// Fetches the deliveries that go first.
fn heads<C>(conn: &mut C, database: Database, found: &mut [Found]) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    for some in found.chunks_mut(KEYS_AT_ONCE) {
        let numbered = some.iter().filter(|found| found.head.is_some()).map(|found| (&found.parked, found.head));
        if numbered.clone().next().is_none() {
            continue;
        }
        let [before, after] = sql::heads(database);
        let select = any_of(Statement::new(before), database, numbered);
        let mut by_key = HashMap::new();
        for head in messages::read_waiting(&select.sql(after).load(conn)?)? {
            let name = (head.destination.clone(), head.ordering_key.clone().unwrap_or_default());
            // Of two lives of a message the older goes first.
            by_key.entry(name).or_insert(head);
        }
        for found in some {
            found.parked.head = by_key.remove(&found.name());
        }
    }
    Ok(())
}

/// Appends the condition that a row is of one of these keys, and has the number that stands with the key.
///
/// By destination, of which there are few, and with lists: a planner without statistics reads the whole table for a
/// disjunction with an arm for each key. A number belongs to one message and so to one key, hence two lists are exact.
fn any_of<'f>(
    mut select: Statement,
    database: Database,
    some: impl Iterator<Item = (&'f ParkedKey, Option<i64>)>,
) -> Statement {
    let mut by_destination: BTreeMap<&str, (Vec<Key>, Vec<i64>)> = BTreeMap::new();
    for (parked, number) in some {
        let (keys, numbers) = by_destination.entry(&parked.destination).or_default();
        // All of them: what the database gave us can be written down again.
        keys.extend(Key::of(database, &parked.key));
        numbers.extend(number);
    }
    let mut word = " AND (";
    for (destination, (keys, numbers)) in by_destination {
        select = select.sql(std::mem::replace(&mut word, " OR ")).sql("(").is(database, "destination", destination);
        let mut before = " AND ordering_key IN (";
        for key in keys {
            select = key.end(select.sql(std::mem::replace(&mut before, ", ")));
        }
        select = select.sql(")");
        if !numbers.is_empty() {
            select = select.sql(format!(" AND seq IN ({})", list_of(numbers.iter())));
        }
        select = select.sql(")");
    }
    select.sql(")")
}

impl fmt::Debug for ParkedKey {
    /// Leaves out what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParkedKey")
            .field("destination", &self.destination)
            .field("waiting", &self.waiting)
            .field("head", &self.head)
            .field("blockers", &self.blockers)
            .finish_non_exhaustive()
    }
}
