//! Is this a database to work on, and how does it stand there?

use std::collections::BTreeMap;

use super::connection::{Flavour, Session, says_on};
use super::row::Columns;
use super::{circuits, destination, literal, membership};
use crate::store::{Now, Status, StoreError};

/// The schema this build needs.
const SCHEMA_VERSION: i64 = 1;

pub(super) async fn verify(session: &mut Session<'_>) -> Result<(), StoreError> {
    let sql = "-- verify_server\nSHOW VARIABLES WHERE variable_name IN \
         ('version', 'read_only', 'innodb_read_only', 'log_bin', 'binlog_format')";
    // Asked for as a list, because not every server has all of them.
    let rows = session.rows(sql).await?.into_iter().map(Columns::new);
    let variables: BTreeMap<String, String> =
        rows.map(|mut columns| (columns.text().to_ascii_lowercase(), columns.text())).collect();
    let variable = |name: &str| variables.get(name).map_or("", String::as_str);
    let version = variable("version");
    if let Some((name, least)) = too_old(session.flavour(), version) {
        return Err(unsuitable(
            format!("the database is {name} {version}, too old"),
            format!(
                "use {name} {least} or later; before, numbers are handed out again after a restart or a default is missing"
            ),
        ));
    }
    // It may have changed since the connection was made.
    if says_on(variable("read_only")) || says_on(variable("innodb_read_only")) {
        return Err(session.read_only());
    }
    if says_on(variable("log_bin")) && variable("binlog_format").eq_ignore_ascii_case("statement") {
        return Err(unsuitable(
            "the server replicates by statement, which READ COMMITTED does not allow",
            "set binlog_format to ROW or MIXED",
        ));
    }
    verify_schema(session).await
}

async fn verify_schema(session: &mut Session<'_>) -> Result<(), StoreError> {
    let sql = "-- verify_schema\n\
         SELECT table_name, engine FROM information_schema.tables \
         WHERE table_schema = database() AND table_name LIKE 'outbox\\_%'";
    let mut has_schema = false;
    for row in session.rows(sql).await? {
        let mut columns = Columns::new(row);
        let (table, engine) = (columns.text(), columns.text());
        has_schema |= table == "outbox_meta";
        if !engine.eq_ignore_ascii_case("innodb") {
            return Err(unsuitable(
                format!("table `{table}` is stored by {engine}, which has no transactions"),
                format!("run `ALTER TABLE {table} ENGINE = InnoDB`"),
            ));
        }
    }
    if !has_schema {
        return Err(unsuitable(
            "the outbox tables are missing in this database",
            "run `relay migrate up`, or correct the database's name in the URL",
        ));
    }
    match schema_version(session).await? {
        None => Err(unsuitable(
            "the table `outbox_meta` is empty",
            "restore its one row from a backup, or drop the outbox tables and run `relay migrate up`",
        )),
        Some(SCHEMA_VERSION) => Ok(()),
        Some(found) if found < SCHEMA_VERSION => Err(unsuitable(
            format!("schema version {found} found, this build needs {SCHEMA_VERSION}"),
            "run `relay migrate up`; applications may keep enqueueing",
        )),
        Some(found) => Err(unsuitable(
            format!("schema version {found} found, this build needs {SCHEMA_VERSION}"),
            "run a newer relay; applications may keep enqueueing",
        )),
    }
}

async fn schema_version(session: &mut Session<'_>) -> Result<Option<i64>, StoreError> {
    let rows = session.rows("-- schema_version\nSELECT schema_version FROM outbox_meta").await?;
    Ok(rows.into_iter().next().map(|row| Columns::new(row).number()))
}

/// What is too old, by name and least version.
fn too_old(flavour: Flavour, version: &str) -> Option<(&'static str, &'static str)> {
    // MariaDB puts `5.5.5-` before its version for clients that expect MySQL's.
    let plain = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = plain.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0_u32));
    let found = [(); 3].map(|()| numbers.next().unwrap_or(0));
    match flavour {
        Flavour::MariaDb => (found < [10, 11, 0]).then_some(("MariaDB", "10.11")),
        Flavour::MySql => (found < [8, 0, 16]).then_some(("MySQL", "8.0.16")),
    }
}

/// A server variable may show as `1`, `ON`, or, on newer servers, as a word that says why it is on.
fn unsuitable(problem: impl Into<String>, help: impl Into<String>) -> StoreError {
    StoreError::Unsuitable { problem: problem.into(), help: help.into() }
}

pub(super) async fn status(mut session: Session<'_>, now: Now) -> Result<Status, StoreError> {
    // One read view for all figures: a message that is settled meanwhile must not count twice.
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    session.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
    let mut status = Status {
        schema_version: schema_version(&mut session).await?.and_then(|n| i32::try_from(n).ok()).unwrap_or_default(),
        membership: membership::membership(&mut session).await?,
        routing: destination::destination_read(&mut session, now).await?,
        circuits: circuits::circuits(&mut session).await?,
        ..Status::default()
    };
    let now = literal::now(now);
    let sql = format!(
        "-- status_pending\nSELECT count(*), timestampdiff(MICROSECOND, min(created_at), {now}) FROM outbox_messages"
    );
    if let Some(row) = session.rows(&sql).await?.into_iter().next() {
        let mut columns = Columns::new(row);
        (status.pending, status.oldest_pending) = (columns.number(), columns.maybe_span());
    }
    let sql =
        "-- status_waiting\nSELECT destination, state, count(*) FROM outbox_deliveries GROUP BY 1, 2 ORDER BY 1, 2";
    status.waiting = counts(&mut session, sql).await?;
    let sql =
        "-- status_dead\nSELECT destination, reason, count(*) FROM outbox_dead_letters GROUP BY 1, 2 ORDER BY 1, 2";
    status.dead = counts(&mut session, sql).await?;
    let sql = format!(
        "-- status_due\nSELECT destination, timestampdiff(MICROSECOND, min(due_at), {now}) FROM outbox_deliveries \
         WHERE blocked = false AND due_at <= {now} GROUP BY destination ORDER BY destination"
    );
    for row in session.rows(&sql).await? {
        let mut columns = Columns::new(row);
        status.oldest_due.push((columns.text(), columns.maybe_span().unwrap_or_default()));
    }
    session.commit().await?;
    Ok(status)
}

async fn counts(session: &mut Session<'_>, sql: &str) -> Result<Vec<(String, String, i64)>, StoreError> {
    let rows = session.rows(sql).await?.into_iter().map(Columns::new);
    Ok(rows.map(|mut columns| (columns.text(), columns.text(), columns.number())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_hand_numbers_out_again_are_too_old() {
        for (flavour, version, old) in [
            (Flavour::MariaDb, "10.11.19-MariaDB-0+deb12u1", false),
            (Flavour::MariaDb, "5.5.5-10.6.18-MariaDB", true),
            (Flavour::MariaDb, "11.4.2-MariaDB", false),
            (Flavour::MySql, "8.0.36", false),
            (Flavour::MySql, "8.0.15", true),
            (Flavour::MySql, "5.7.44-log", true),
            (Flavour::MySql, "9.1.0", false),
        ] {
            assert_eq!(too_old(flavour, version).is_some(), old, "{version}");
        }
    }

    #[test]
    fn a_server_variable_is_on_unless_it_says_otherwise() {
        for (value, on) in [("0", false), ("OFF", false), ("1", true), ("ON", true), ("READ_ONLY", true)] {
            assert_eq!(says_on(value), on, "{value}");
        }
    }
}
