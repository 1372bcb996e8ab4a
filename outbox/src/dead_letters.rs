//! Deliveries that were given up: looked at, sent again, or dropped by a named person.
//!
//! Works on any diesel connection to one of the three databases, and needs no relay to be running.
//!
//! Invariants
//! - A redrive or a discard is one transaction. It locks the partition rows of what it touches first, in ascending
//!   order, as the relay does, so it never meets a settle half way.
//! - A redriven letter becomes a waiting delivery of the next life, with its history, in the transaction that removes
//!   the letter. Doing it again finds nothing, so nothing is ever sent twice by asking twice.
//! - Afterwards exactly the first in-order delivery of each touched (destination, key) is unblocked, and none while
//!   another dead letter blocks that key.
//! - Every change leaves one audit row per letter, by the database's clock.
//!
//! ```
//! # use diesel::prelude::*;
//! use outbox::dead_letters::{self, By, Filter};
//!
//! # let mut conn = SqliteConnection::establish(":memory:")?;
//! # outbox::migrations::run(&mut conn)?;
//! let lately = Filter { destination: Some("billing".to_owned()), ..Filter::default() };
//! for letter in dead_letters::list(&mut conn, &lately, 50)? {
//!     println!("{}: {} after {} attempts", letter.id, letter.reason, letter.attempts);
//! }
//! let ids = dead_letters::ids(&mut conn, &lately, 200)?;
//! let by = By { actor: "ada".to_owned(), reason: Some("billing is back".to_owned()) };
//! let outcome = dead_letters::redrive(&mut conn, &ids, &by)?;
//! println!("{} are sent again", outcome.done.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Absent: editing. A message never changes; what has to be different is a new message.

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::connection::LoadConnection;
use serde::Deserialize;
use uuid::Uuid;

use crate::by_hand::sql::{contains, current_read, instant, text};
use crate::by_hand::{Statement, audit, list_of, transaction, unreadable};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::error::Error;

pub(crate) mod row;
pub(crate) mod sql;

/// Which dead letters; what is `None` does not narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this destination.
    pub destination: Option<String>,
    /// Of this topic.
    pub topic: Option<String>,
    /// With this ordering key.
    pub key: Option<String>,
    /// Whose reason is this, or whose last error contains it.
    pub error: Option<String>,
    /// That died of the same thing: this fingerprint.
    pub group: Option<String>,
    /// Given up at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Given up before this time.
    pub until: Option<DateTime<Utc>>,
    /// Whose payload contains these bytes. Reads every payload the rest of the filter leaves.
    pub contains: Option<String>,
}

/// A dead letter without its payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its id; a letter that is redriven and dies again gets another one.
    pub id: i64,
    /// The message.
    pub message_id: Uuid,
    /// The number the message drew when it was inserted.
    pub seq: i64,
    /// Where it was to go.
    pub destination: String,
    /// The topic.
    pub topic: String,
    /// The ordering key's bytes.
    pub ordering_key: Option<Vec<u8>>,
    /// The type of the payload.
    pub content_type: String,
    /// Why it was given up: `rejected`, `exhausted`, `expired`, `gone`, `crashed`, `undecodable`, `removed`.
    pub reason: String,
    /// Equal for letters that died of the same thing.
    pub fingerprint: String,
    /// True when later messages of its key wait until somebody decides about this one.
    pub blocks_key: bool,
    /// Attempts that were judged.
    pub attempts: u32,
    /// How often it was redriven before.
    pub life: u32,
    /// The dead letter it was redriven from.
    pub redriven_from: Option<i64>,
    /// The last verdict's name.
    pub last_verdict: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When the message was enqueued.
    pub created_at: DateTime<Utc>,
    /// When the first attempt began.
    pub first_attempt_at: Option<DateTime<Utc>>,
    /// When it was given up.
    pub died_at: DateTime<Utc>,
}

/// A dead letter with everything that is known of it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detail {
    /// What a list shows.
    pub letter: DeadLetter,
    /// The payload, exactly as it was enqueued.
    pub payload: Vec<u8>,
    /// The headers, as JSON; other producers may have stored something else.
    pub headers: String,
    /// The attempts, as JSON, newest last.
    pub history: String,
}

/// Dead letters that died of the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    /// What they have in common; [`Filter::group`] takes it.
    pub fingerprint: String,
    /// How many there are.
    pub count: u64,
    /// When the first of them was given up.
    pub first_died_at: DateTime<Utc>,
    /// When the last of them was given up.
    pub last_died_at: DateTime<Utc>,
    /// The newest of them.
    pub example: DeadLetter,
}

/// Who changes something, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// The person or program, for the audit.
    pub actor: String,
    /// Why, for the audit.
    pub reason: Option<String>,
}

/// What became of the ids asked for, each ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Those that were redriven or discarded.
    pub done: Vec<i64>,
    /// Those that are no dead letters, or no more.
    pub not_found: Vec<i64>,
}

/// Lists dead letters, the newest first, at most `limit`. Payloads stay where they are.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn list<C>(conn: &mut C, filter: &Filter, limit: u32) -> Result<Vec<DeadLetter>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let select =
        Statement::new(format!("-- dead_letter_list\nSELECT {} FROM outbox_dead_letters", sql::letter(database)));
    let select = matching(select, database, filter).sql(format!(" ORDER BY id DESC LIMIT {limit}"));
    select.load(conn)?.iter().map(|json| row::letter(json)).collect()
}

/// The ids of dead letters, the oldest first, at most `limit`: for changing many of them a few at a time. What died first
/// is the first to be decided about, where [`list`] shows the newest first.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn ids<C>(conn: &mut C, filter: &Filter, limit: u32) -> Result<Vec<i64>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let id = text(database, "id");
    let select = Statement::new(format!("-- dead_letter_ids\nSELECT {id} FROM outbox_dead_letters"));
    matching(select, database, filter).sql(format!(" ORDER BY outbox_dead_letters.id LIMIT {limit}")).load_numbers(conn)
}

/// Puts together what died of the same thing, the largest group first, at most `limit` groups.
///
/// Reads every dead letter the filter leaves, without payloads unless [`Filter::contains`] asks for them.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn groups<C>(conn: &mut C, filter: &Filter, limit: u32) -> Result<Vec<Group>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let select =
        Statement::new(format!("-- dead_letter_groups\nSELECT {} FROM outbox_dead_letters", sql::group(database)));
    let counted = matching(select, database, filter)
        .sql(format!(" GROUP BY fingerprint ORDER BY count(*) DESC, max(outbox_dead_letters.id) DESC LIMIT {limit}"))
        .load(conn)?;
    let counted = counted.iter().map(|json| row::group(json)).collect::<Result<Vec<_>, _>>()?;
    if counted.is_empty() {
        return Ok(Vec::new());
    }
    let examples = format!(
        "-- dead_letter_examples\nSELECT {} FROM outbox_dead_letters WHERE id IN ({})",
        sql::letter(database),
        list_of(counted.iter().map(|group| group.example))
    );
    let examples = Statement::new(examples).load(conn)?;
    let mut examples = examples.iter().map(|json| row::letter(json)).collect::<Result<Vec<_>, _>>()?;
    // An example that was redriven meanwhile takes its group with it: what is gone needs no decision any more.
    let with_example = |group: row::GroupRow| {
        let at = examples.iter().position(|letter| letter.id == group.example)?;
        Some(group.group(examples.swap_remove(at)))
    };
    Ok(counted.into_iter().filter_map(with_example).collect())
}

/// Dead letters with their payloads and attempts, the oldest first, at most `limit` whose id is greater than `after`.
///
/// For reading many of them a few at a time: begin with `after` at 0 and go on with the last id of each page. Letters
/// that are added meanwhile come last.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn details<C>(conn: &mut C, filter: &Filter, after: i64, limit: u32) -> Result<Vec<Detail>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let select =
        format!("-- dead_letter_details\nSELECT {} FROM outbox_dead_letters WHERE id > {after}", sql::detail(database));
    let rows = narrowed(Statement::new(select), database, filter, " AND ")
        .sql(format!(" ORDER BY id LIMIT {limit}"))
        .load(conn)?;
    rows.iter().map(|json| row::detail(json)).collect()
}

/// One dead letter with its payload and its attempts, or `None` when there is no such letter.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses.
pub fn get<C>(conn: &mut C, id: i64) -> Result<Option<Detail>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    let select =
        format!("-- dead_letter_get\nSELECT {} FROM outbox_dead_letters WHERE id = {id}", sql::detail(database));
    let rows = Statement::new(select).load(conn)?;
    rows.first().map(|json| row::detail(json)).transpose()
}

/// Sends dead letters again: each becomes a waiting delivery that is due now, in its next life, attempts at zero. A
/// message whose `deliver_at` is still to come is due then.
///
/// A letter that blocks its key goes first among what waits there; one that does not is sent without regard to its
/// key's order, because later messages have been. An expiry that has passed no longer counts: whoever redrives an
/// expired message wants it sent.
///
/// One transaction; inside one of the caller's it is part of that. Meant for some hundreds of ids at a time, since it
/// holds the locks of their partitions meanwhile.
///
/// # Errors
///
/// [`Error::Database`] when the database refuses; then nothing has changed. A transaction of the caller's at REPEATABLE
/// READ or SERIALIZABLE may fail as with [`cancel`](crate::cancel), and is then to be repeated as a whole.
pub fn redrive<C>(conn: &mut C, ids: &[i64], by: &By) -> Result<Outcome, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    change(conn, ids, |conn, letters| {
        let ids = list_of(letters.iter().map(|letter| letter.id));
        if database == Database::Postgres {
            Statement::new(sql::partition_version(&ids)).execute(conn)?;
        }
        Statement::new(sql::redrive(database, &ids)).execute(conn)?;
        audit_letters(conn, letters, "dead_letter.redrive", by)
    })
}

/// Drops dead letters for good. The audit keeps who did it and what it was, not the payload.
///
/// Like [`redrive`] in everything else: a key that was blocked by a letter goes on.
///
/// # Errors
///
/// Those of [`redrive`].
pub fn discard<C>(conn: &mut C, ids: &[i64], by: &By) -> Result<Outcome, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    change(conn, ids, |conn, letters| audit_letters(conn, letters, "dead_letter.discard", by))
}

/// What a change has to know of a letter.
#[derive(Deserialize)]
pub(crate) struct Locked {
    pub(crate) id: i64,
    message_id: String,
    destination: String,
    blocks_key: u8,
    has_key: u8,
}

/// Locks, lets `work` do what is particular to the change, removes the letters and repairs their keys.
fn change<C>(
    conn: &mut C,
    ids: &[i64],
    work: impl FnOnce(&mut C, &[Locked]) -> Result<(), Error>,
) -> Result<Outcome, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let mut wanted = ids.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(Outcome::default());
    }
    let database = <C::Backend as Dialect>::DATABASE;
    transaction(conn, |conn| {
        let letters = lock(conn, database, &wanted)?;
        let done: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
        if !letters.is_empty() {
            work(conn, &letters)?;
            // The letters still name their keys, so the keys are repaired before the letters go.
            unblock(conn, database, &letters)?;
            let remove = format!(
                "-- dead_letter_remove\nDELETE FROM outbox_dead_letters WHERE id IN ({})",
                list_of(done.iter())
            );
            Statement::new(remove).execute(conn)?;
        }
        let not_found = wanted.iter().copied().filter(|id| !done.contains(id)).collect();
        Ok(Outcome { done, not_found })
    })
}

/// Locks the partitions of the letters and then the letters; returns those that are there, by id.
fn lock<C>(conn: &mut C, database: Database, ids: &[i64]) -> Result<Vec<Locked>, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let ids = list_of(ids.iter());
    write_lock(conn, database)?;
    let partitions = format!(
        "-- dead_letter_partitions\nSELECT DISTINCT {} FROM outbox_dead_letters WHERE id IN ({ids})",
        text(database, "partition_no")
    );
    let partitions = Statement::new(partitions).load_numbers(conn)?;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let partitions = list_of(partitions.iter());
    lock_partitions(conn, database, &partitions)?;
    let lock = current_read(database);
    let rows = Statement::new(format!(
        "-- dead_letter_lock\nSELECT {} FROM outbox_dead_letters WHERE id IN ({ids}) AND partition_no IN ({partitions}) \
         ORDER BY outbox_dead_letters.id{lock}",
        sql::locked(database)
    ))
    .load(conn)?;
    rows.iter().map(|row| serde_json::from_str(row).map_err(unreadable)).collect()
}

/// Takes the write lock where there is only one, before anything is read.
pub(crate) fn write_lock<C>(conn: &mut C, database: Database) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    if database == Database::Sqlite {
        // The first statement writes, so it waits for the lock.
        Statement::new("-- write_lock\nDELETE FROM outbox_dead_letters WHERE id IS NULL").execute(conn)?;
    }
    Ok(())
}

/// Locks these partitions, in ascending order.
pub(crate) fn lock_partitions<C>(conn: &mut C, database: Database, partitions: &str) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let (number, lock) = (text(database, "partition_no"), current_read(database));
    let select = format!(
        "-- partition_lock\nSELECT {number} FROM outbox_partitions WHERE partition_no IN ({partitions}) \
         ORDER BY outbox_partitions.partition_no{lock}"
    );
    Statement::new(select).load(conn)?;
    Ok(())
}

/// Leaves exactly the first in-order delivery of each key that one of the letters blocks unblocked, none while a letter
/// that stays blocks it.
pub(crate) fn unblock<C>(conn: &mut C, database: Database, letters: &[Locked]) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let going = list_of(letters.iter().map(|letter| letter.id));
    let (mut free, mut bind) = (Vec::new(), Vec::new());
    for letter in letters.iter().filter(|letter| letter.blocks_key == 1 && letter.has_key == 1) {
        let first = Statement::new(sql::key_first(database, letter.id)).load_numbers(conn)?.first().copied();
        let is_held = !Statement::new(sql::key_blockers(database, letter.id, &going)).load(conn)?.is_empty();
        let first = first.filter(|_| !is_held);
        free.extend(first);
        let unblocked = Statement::new(sql::key_unblocked(database, letter.id)).load_numbers(conn)?;
        bind.extend(unblocked.into_iter().filter(|id| Some(*id) != first));
    }
    for (ids, blocked) in [(bind, "true"), (free, "false")] {
        if !ids.is_empty() {
            let ids = list_of(ids.iter());
            let update =
                format!("-- key_unblock\nUPDATE outbox_deliveries SET blocked = {blocked} WHERE id IN ({ids})");
            Statement::new(update).execute(conn)?;
        }
    }
    Ok(())
}

fn audit_letters<C>(conn: &mut C, letters: &[Locked], action: &str, by: &By) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let target = |letter: &Locked| {
        // Written as people see the id elsewhere, whatever the database makes of it.
        let message = Uuid::parse_str(&letter.message_id).map_err(unreadable)?;
        Ok(format!("dead letter {}, message {}, destination {}", letter.id, message, letter.destination))
    };
    audit(conn, by, action, &letters.iter().map(target).collect::<Result<Vec<_>, Error>>()?)
}

/// Appends the WHERE of a filter.
fn matching(select: Statement, database: Database, filter: &Filter) -> Statement {
    narrowed(select, database, filter, " WHERE ")
}

/// Appends the conditions of a filter, the first of them after `word`.
fn narrowed(mut select: Statement, database: Database, filter: &Filter, mut word: &'static str) -> Statement {
    let mut next = |select: Statement| select.sql(std::mem::replace(&mut word, " AND "));
    for (column, text) in [
        ("destination", &filter.destination),
        ("topic", &filter.topic),
        ("ordering_key", &filter.key),
        ("fingerprint", &filter.group),
    ] {
        if let Some(text) = text {
            select = next(select).is(database, column, text);
        }
    }
    if let Some(text) = &filter.error {
        let [before, after] = contains(database, "last_error");
        select =
            next(select).sql("(").is(database, "reason", text).sql(" OR ").sql(before).text(text).sql(after).sql(")");
    }
    if let Some(since) = filter.since {
        select = next(select).sql(format!("died_at >= {}", instant(database, since)));
    }
    if let Some(until) = filter.until {
        select = next(select).sql(format!("died_at < {}", instant(database, until)));
    }
    if let Some(text) = &filter.contains {
        let [before, after] = sql::payload_contains(database);
        select = next(select).sql(before).text(text).sql(after);
    }
    select
}

impl fmt::Debug for DeadLetter {
    /// Leaves out what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("id", &self.id)
            .field("message_id", &self.message_id)
            .field("destination", &self.destination)
            .field("topic", &self.topic)
            .field("reason", &self.reason)
            .field("attempts", &self.attempts)
            .field("life", &self.life)
            .field("blocks_key", &self.blocks_key)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Detail {
    /// Leaves out what users stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detail").field("letter", &self.letter).finish_non_exhaustive()
    }
}
