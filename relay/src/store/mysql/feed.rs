//! What the feed asks: polls, locking probes, the sweep.
//!
//! A poll is one statement and so has one read view, although it has several branches. Every branch is ordered and
//! limited for itself and the whole is not ordered: the server then streams it and copies no payload into a temporary
//! table.
//!
//! Narrow holes are asked for number by number. A range over deleted rows that were not purged yet costs a thousand
//! times more than the numbers in it (measured: 1,000 ranges 8.8 s, 1,000 numbers 9 ms); it is left to the wide ones.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::connection::{Flavour, Session, says_on};
use super::literal;
use super::row::{Columns, message, message_columns};
use crate::message::{PartitionSet, Seq};
use crate::poll::HoleProbe;
use crate::store::{Now, Page, Probe, Row, StoreError, Wanted};

/// The widest range that is asked for number by number, and the most numbers in one poll.
const NARROW: i64 = crate::poll::NUMBERS_PER_POLL;
const NUMBERS_MAX: i64 = 4096;

const SERVER: i64 = 0;
const HOLES: i64 = 1;

pub(super) async fn message_read(
    session: &mut Session<'_>,
    wanted: &Wanted,
    owned: PartitionSet,
    limit: u32,
    now: Now,
) -> Result<Page, StoreError> {
    let rows = session.rows(&poll(wanted, owned, limit, now)).await?;
    let mut page = Page::default();
    let mut is_read_only = false;
    for row in rows {
        let mut columns = Columns::new(row);
        let (branch, seq, partition_no) = (columns.number(), columns.number(), columns.partition());
        if branch == SERVER {
            let mut identity = DefaultHasher::new();
            (session.number(), columns.bytes()).hash(&mut identity);
            page.incarnation = identity.finish();
            is_read_only = says_on(&columns.text());
            continue;
        }
        let row = if owned.contains(partition_no) {
            Row::Mine(Box::new(message(seq, partition_no, &mut columns)))
        } else {
            Row::Foreign { seq, partition_no }
        };
        if branch == HOLES { page.from_holes.push(row) } else { page.from_tail.push(row) }
    }
    if is_read_only {
        // What could be delivered could not be settled.
        return Err(session.read_only());
    }
    // Each branch returned its lowest rows, so the lowest of all are among them.
    page.from_holes.sort_by_key(Row::seq);
    page.from_holes.dedup_by_key(|row| row.seq());
    page.from_holes.truncate(limit as usize);
    page.holes_full = page.from_holes.len() == limit as usize;
    Ok(page)
}

/// The statement of a poll.
fn poll(wanted: &Wanted, owned: PartitionSet, limit: u32, now: Now) -> String {
    let mine = format!("partition_no IN ({})", literal::partitions(owned));
    let mine = (owned != PartitionSet::ALL).then_some(mine.as_str());
    let columns = message_columns("id", "destination", &literal::now(now), mine);
    let branch = |branch: i64, condition: &str| {
        format!(
            "(SELECT {branch} AS branch, {columns} FROM outbox_messages FORCE INDEX (PRIMARY) \
             WHERE {condition} ORDER BY seq LIMIT {limit})"
        )
    };
    // Behind a proxy the connection may stay and the server change.
    let nulls = ", NULL".repeat(10);
    let mut branches = vec![format!(
        "(SELECT {SERVER}, 0, 0, concat_ws(' ', @@hostname, @@port, @@server_id), \
         CAST(@@global.read_only AS CHAR){nulls})"
    )];
    let (numbers, ranges) = cut(&wanted.holes);
    if !numbers.is_empty() {
        branches.push(branch(HOLES, &format!("seq IN ({})", literal::numbers(numbers))));
    }
    for HoleProbe { lo, hi, gained } in ranges {
        let mut condition = format!("seq BETWEEN {lo} AND {hi}");
        if let Some(gained) = gained {
            condition.push_str(&format!(" AND partition_no IN ({})", literal::partitions(gained)));
        }
        branches.push(branch(HOLES, &condition));
    }
    if wanted.tail {
        branches.push(branch(HOLES + 1, &format!("seq > {}", wanted.cursor)));
    }
    format!("-- message_read\n{}", branches.join("\nUNION ALL\n"))
}

/// Cuts holes into single numbers and ranges.
fn cut(holes: &[HoleProbe]) -> (Vec<Seq>, Vec<HoleProbe>) {
    let mut numbers = Vec::new();
    let mut ranges = Vec::new();
    let mut left = NUMBERS_MAX;
    for hole in holes {
        let width = hole.hi.saturating_sub(hole.lo).saturating_add(1);
        if hole.gained.is_none() && width <= NARROW.min(left) {
            left -= width;
            numbers.extend(hole.lo..=hole.hi);
        } else {
            ranges.push(*hole);
        }
    }
    (numbers, ranges)
}

/// Asks whether a running transaction holds a row in any of the ranges, by reading them under a shared lock without
/// waiting. Where the answer is yes, each half is asked.
pub(super) async fn message_probe(session: &mut Session<'_>, ranges: &[(Seq, Seq)]) -> Result<Probe, StoreError> {
    let mut probe = Probe::default();
    let mut parts = vec![ranges];
    while let Some(part) = parts.pop() {
        if part.is_empty() || session.rows_unless_locked(&locking_read(session.flavour(), part)).await? == Some(vec![])
        {
            continue;
        }
        match part {
            [range] => probe.occupied.push(*range),
            _ => {
                let (lower, upper) = part.split_at(part.len() / 2);
                parts.extend([upper, lower]);
            }
        }
    }
    if !ranges.is_empty() {
        probe.oldest_transaction = oldest_transaction(session).await?;
    }
    Ok(probe)
}

fn locking_read(flavour: Flavour, ranges: &[(Seq, Seq)]) -> String {
    let holes: Vec<HoleProbe> = ranges.iter().map(|&(lo, hi)| HoleProbe { lo, hi, gained: None }).collect();
    let (numbers, ranges) = cut(&holes);
    let mut conditions: Vec<String> =
        ranges.iter().map(|range| format!("seq BETWEEN {} AND {}", range.lo, range.hi)).collect();
    if !numbers.is_empty() {
        conditions.push(format!("seq IN ({})", literal::numbers(numbers)));
    }
    let lock = match flavour {
        Flavour::MariaDb => "LOCK IN SHARE MODE NOWAIT",
        Flavour::MySql => "FOR SHARE NOWAIT",
    };
    format!(
        "-- message_probe\nSELECT seq FROM outbox_messages FORCE INDEX (PRIMARY) WHERE {} ORDER BY seq LIMIT 1 {lock}",
        conditions.join(" OR ")
    )
}

/// How long the oldest transaction that has written, or is writing, has been going. Unknown without the PROCESS
/// privilege.
async fn oldest_transaction(session: &mut Session<'_>) -> Result<Option<std::time::Duration>, StoreError> {
    // `trx_started` is in the server's own zone, which need not be the session's.
    let sql = "-- transaction_oldest\n\
         SELECT max(timestampdiff(MICROSECOND, convert_tz(trx_started, 'SYSTEM', '+00:00'), utc_timestamp(6))) \
         FROM information_schema.innodb_trx \
         WHERE trx_mysql_thread_id <> connection_id() AND (trx_rows_modified > 0 OR trx_tables_locked > 0)";
    let rows = session.rows_if_allowed(sql).await?.unwrap_or_default();
    Ok(rows.into_iter().next().and_then(|row| Columns::new(row).maybe_span()))
}

pub(super) async fn message_sweep(
    session: &mut Session<'_>,
    after: Seq,
    until: Seq,
    owned: PartitionSet,
    limit: u32,
) -> Result<Vec<Seq>, StoreError> {
    let sql = format!(
        "-- message_sweep\nSELECT seq FROM outbox_messages FORCE INDEX (PRIMARY) \
         WHERE seq > {after} AND seq <= {until} AND partition_no IN ({}) ORDER BY seq LIMIT {limit}",
        literal::partitions(owned)
    );
    Ok(session.rows(&sql).await?.into_iter().map(|row| Columns::new(row).number()).collect())
}

pub(super) async fn message_last(session: &mut Session<'_>) -> Result<Seq, StoreError> {
    let rows = session.rows("-- message_last\nSELECT coalesce(max(seq), 0) FROM outbox_messages").await?;
    Ok(rows.into_iter().next().map_or(0, |row| Columns::new(row).number()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hole(lo: Seq, hi: Seq) -> HoleProbe {
        HoleProbe { lo, hi, gained: None }
    }

    #[test]
    fn narrow_holes_become_numbers_and_the_rest_ranges() {
        let gained = HoleProbe { gained: Some(PartitionSet::ALL), ..hole(1, 2) };
        let holes = [hole(1, 3), hole(10, 10 + NARROW), gained];
        assert_eq!(cut(&holes), (vec![1, 2, 3], vec![hole(10, 10 + NARROW), gained]));
        assert_eq!(cut(&[hole(Seq::MIN, Seq::MAX)]).1.len(), 1);
        let many: Vec<HoleProbe> = (0..NUMBERS_MAX + 5).map(|n| hole(n * 10, n * 10)).collect();
        assert_eq!(cut(&many).0.len() as i64, NUMBERS_MAX);
        assert_eq!(cut(&many).1.len(), 5);
    }
}
