//! Taking a destination out for good.
//!
//! Invariants
//! - While a relay that may live serves it, nothing changes.
//! - The first transaction holds the locks of all partitions. In it the destination goes and the version of the routes
//!   rises; a relay that decided by the older routes compares the version under these locks, so that no waiting row
//!   comes after those that are dealt with here.
//! - A bounded number of waiting deliveries goes with each transaction, whole keys from their ends: the first of a key
//!   is the last to go, so that nothing else of it comes free before its turn.
//! - All relays wait for what it holds, so it waits a second at most for each lock another holds, and for deliveries not at
//!   all.
//! - Done again after it broke off, it goes on with what is left.

use std::time::{Duration, Instant};

use diesel::connection::LoadConnection;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::By;
use crate::by_hand::lock_wait::{LOCK_WAIT, held, limit_waits, locking, with_short_waits};
use crate::by_hand::sql::{current_read, now, text, uuid_literal};
use crate::by_hand::{Statement, audit, list_of, transaction};
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::error::Error;
use crate::relays::{self, Relay};

/// What becomes of the deliveries that wait for a destination when it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// They become dead letters, reason `removed`, and can be redriven when the destination comes back.
    Dead,
    /// They are dropped.
    Discard,
}

/// What came of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// It is gone, and nothing waits for it any more.
    Done {
        /// True when it was registered. Otherwise a removal that broke off was finished, or messages waited that had
        /// named a destination nobody ever registered.
        registered: bool,
        /// Waiting deliveries that were dealt with.
        waiting: u64,
    },
    /// Relays serve it: stop them first, or take it out of their configuration.
    Served {
        /// Those relays.
        by: Vec<Relay>,
        /// Waiting deliveries that were dealt with before one of them came.
        waiting: u64,
    },
    /// It is not registered and nothing waits for it.
    Unknown,
}

/// Removes a destination: it is no longer routed to, and what waits for it becomes dead letters or is dropped.
///
/// `silent` are relays the caller knows to be dead: it has looked at their beats, each for the
/// [lease](Relay::lease) of that relay, and they did not move.
/// Those whose beat is still the same are declared dead here, as another relay would do, and do not count. Every other
/// relay that serves the destination keeps it from being removed.
///
/// Its dead letters stay. Messages that are still pending are routed without it; one that no other destination wants
/// waits, `unrouted`.
///
/// Works in transactions of its own, each bounded, and can be repeated when it broke off: do not call it inside one.
///
/// ```
/// # use diesel::prelude::*;
/// use outbox::destinations::{self, By, Removal, Waiting};
///
/// # let mut conn = SqliteConnection::establish(":memory:")?;
/// # outbox::migrations::run(&mut conn)?;
/// # diesel::sql_query("INSERT INTO outbox_destinations (name, patterns) VALUES ('billing', '[\"order.*\"]')")
/// #     .execute(&mut conn)?;
/// let by = By { actor: "ada".to_owned(), reason: Some("replaced by invoices".to_owned()) };
/// match destinations::remove(&mut conn, "billing", Waiting::Dead, &[], &by)? {
///     Removal::Done { waiting, .. } => println!("gone; {waiting} became dead letters"),
///     Removal::Served { by, .. } => println!("{} relays serve it", by.len()),
///     _ => println!("there is no such destination"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Locked`] when another transaction holds what it needs for longer than a second, and [`Error::Database`] when
/// the database refuses; what earlier transactions did stays done.
pub fn remove<C>(conn: &mut C, name: &str, waiting: Waiting, silent: &[Relay], by: &By) -> Result<Removal, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    // Rows without a destination are not routed yet: they are nobody's to remove.
    if name.is_empty() {
        return Ok(Removal::Unknown);
    }
    with_short_waits(conn, |conn| steps(conn, name, waiting, silent, by))
}

fn steps<C>(conn: &mut C, name: &str, waiting: Waiting, silent: &[Relay], by: &By) -> Result<Removal, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let (mut registered, mut total) = (false, 0);
    let began = Instant::now();
    loop {
        let done = transaction(conn, |conn| step(conn, name, waiting, silent, by));
        if done.as_ref().is_err_and(Error::is_locked) && began.elapsed() < LOCK_WAIT {
            // Not inside the transaction: nobody waits meanwhile.
            std::thread::sleep(PAUSE);
            continue;
        }
        match done? {
            Step::Served(by) => return Ok(Removal::Served { by, waiting: total }),
            Step::Went { removed, rows } => {
                registered |= removed;
                total += rows;
                if rows == 0 && total == 0 && !registered {
                    return Ok(Removal::Unknown);
                }
                if rows < AT_ONCE {
                    return Ok(Removal::Done { registered, waiting: total });
                }
            }
        }
    }
}

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Waiting deliveries in one transaction.
const AT_ONCE: u64 = 1_000;

/// Written where a delivery had no error of its own.
const REMOVED: &str = "its destination was removed";

enum Step {
    Served(Vec<Relay>),
    Went { removed: bool, rows: u64 },
}

fn step<C>(conn: &mut C, name: &str, waiting: Waiting, silent: &[Relay], by: &By) -> Result<Step, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let database = <C::Backend as Dialect>::DATABASE;
    limit_waits(conn)?;
    lock(conn, database)?;
    let serving =
        relays::list(conn)?.relays.into_iter().filter(|relay| relay.serves.iter().any(|served| served == name));
    let is_silent = |relay: &Relay| silent.iter().any(|dead| (dead.id, dead.beat) == (relay.id, relay.beat));
    let (dead, living): (Vec<Relay>, Vec<Relay>) = serving.partition(is_silent);
    if !living.is_empty() {
        return Ok(Step::Served(living));
    }
    for relay in &dead {
        bury(conn, database, relay.id, relay.beat)?;
    }
    let delete = Statement::new("-- destination_remove\nDELETE FROM outbox_destinations WHERE ");
    let delete = delete.is(database, "name", name);
    let removed = locking("the destination", || delete.execute(conn))? > 0;
    if removed {
        let raise = "-- routes_raise\nUPDATE outbox_meta SET routes_version = routes_version + 1";
        Statement::new(raise).execute(conn)?;
    }
    let rows = end(conn, database, name, waiting)?;
    if removed || rows > 0 {
        let what = match waiting {
            Waiting::Dead => "became dead letters",
            Waiting::Discard => "were discarded",
        };
        let target = format!("destination {name}: {rows} waiting deliveries {what}");
        audit(conn, by, "destination.remove", &[target])?;
    }
    Ok(Step::Went { removed, rows })
}

/// Locks all partitions, then the routes: every settle and every registration comes before or after.
fn lock<C>(conn: &mut C, database: Database) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    if database == Database::Sqlite {
        // The first statement writes, so it waits for the write lock before anything is read.
        let write = Statement::new("-- write_lock\nDELETE FROM outbox_deliveries WHERE id IS NULL");
        locking("the file's write lock", || write.execute(conn))?;
    }
    let lock = current_read(database);
    let partitions = format!(
        "-- partition_lock\nSELECT {} FROM outbox_partitions ORDER BY outbox_partitions.partition_no{lock}",
        text(database, "partition_no")
    );
    locking("partitions", || Statement::new(partitions).load(conn))?;
    let routes = format!("-- routes_lock\nSELECT {} FROM outbox_meta{lock}", text(database, "routes_version"));
    locking("the routes", || Statement::new(routes).load(conn))?;
    Ok(())
}

/// Declares a relay dead, as another relay would: its row goes where the beat is still that one. Its partitions keep its
/// name: whoever takes them has to know that it did not give them up.
fn bury<C>(conn: &mut C, database: Database, id: Uuid, beat: i64) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let id = uuid_literal(database, id);
    let bury = format!("-- relay_bury\nDELETE FROM outbox_relays WHERE id = {id} AND beat = {beat}");
    if locking("the row of a dead relay", || Statement::new(bury).execute(conn))? > 0 {
        let free = format!("-- partition_raise\nUPDATE outbox_partitions SET epoch = epoch + 1 WHERE owner = {id}");
        Statement::new(free).execute(conn)?;
    }
    Ok(())
}

/// Deals with a bounded number of the deliveries that wait; returns how many there were.
fn end<C>(conn: &mut C, database: Database, name: &str, waiting: Waiting) -> Result<u64, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    // In the order of the index, from its end. Under the locks of the partitions only a handler's transaction can hold
    // one, and each would be waited for by itself.
    let free = match database {
        Database::Postgres | Database::Mysql => " FOR UPDATE SKIP LOCKED",
        Database::Sqlite => "",
    };
    let select = format!("-- delivery_lock\nSELECT {} FROM outbox_deliveries WHERE ", text(database, "id"));
    let order = format!(
        " ORDER BY outbox_deliveries.ordering_key DESC, outbox_deliveries.seq DESC, outbox_deliveries.id DESC \
         LIMIT {AT_ONCE}"
    );
    let those = Statement::new(select.clone()).is(database, "destination", name).sql(format!("{order}{free}"));
    let ids = those.load_numbers(conn)?;
    let all = Statement::new(select).is(database, "destination", name).sql(order);
    if !free.is_empty() && all.load_numbers(conn)? != ids {
        return Err(held("deliveries that wait for the destination"));
    }
    if ids.is_empty() {
        return Ok(0);
    }
    let list = list_of(ids.iter());
    if waiting == Waiting::Dead {
        let insert = insert_dead(database, name, &list);
        locking("a dead letter of what waits for the destination", || insert.execute(conn))?;
    }
    let delete = format!("-- delivery_remove\nDELETE FROM outbox_deliveries WHERE id IN ({list})");
    Statement::new(delete).execute(conn)?;
    Ok(ids.len() as u64)
}

/// Nothing of the key waits behind it any more, so a letter blocks nothing.
fn insert_dead(database: Database, name: &str, ids: &str) -> Statement {
    let payload = match database {
        Database::Postgres => "payload, payload_bytes",
        Database::Mysql | Database::Sqlite => "payload",
    };
    let again = match database {
        Database::Postgres | Database::Sqlite => "ON CONFLICT (message_id, destination, life) DO NOTHING",
        Database::Mysql => "ON DUPLICATE KEY UPDATE life = outbox_dead_letters.life",
    };
    let (carried, now) = (
        format!(
            "message_id, seq, partition_no, topic, ordering_key, {payload}, content_type, headers, deliver_at, \
             expires_at, operation_id, dedup_key, version, created_at, destination, in_order, life, attempts, \
             first_attempt_at, redriven_from, last_verdict, history"
        ),
        now(database),
    );
    let insert = format!(
        "-- delivery_dies\nINSERT INTO outbox_dead_letters ({carried}, last_error, reason, fingerprint, blocks_key, died_at) \
         SELECT {carried}, coalesce(last_error, '{REMOVED}'), 'removed', "
    );
    let from = format!(", false, {now} FROM outbox_deliveries WHERE id IN ({ids}) ORDER BY seq, id {again}");
    Statement::new(insert).text(&fingerprint(name)).sql(from)
}

/// As a relay writes it for letters that died of the same thing: destination, reason, code, error.
fn fingerprint(name: &str) -> String {
    let mut hash = Sha256::new();
    for part in [name, "removed", "", REMOVED] {
        hash.update(part.as_bytes());
        hash.update([0xff]);
    }
    hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
