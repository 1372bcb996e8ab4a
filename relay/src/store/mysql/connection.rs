//! Connections: how they are made, lent, and given up.
//!
//! Invariants
//! - A connection is out of its slot while a call uses it and goes back only when the call says that all went well.
//!   Whatever else happens, an error or a dropped future, it is closed, and the server rolls back what was open.
//! - Every session is READ COMMITTED, strict, in UTC, and waits for a lock only for a fraction of the lease.
//! - An answer that does not come is an error: no call waits for ever.
//!
//! Absent: a pool. The drivers' pools reset or roll back at the next checkout, and until then keep locks. MySQL has no
//! limit for an idle transaction (MariaDB has one, and gets it).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, Row};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::address::{Address, turned_away};
use super::row::Columns;
use crate::store::StoreError;

/// Which of the two servers answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    MariaDb,
    MySql,
}

/// What a connection is for: how long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A lease depends on it.
    OfTheRelay,
    /// Somebody waits at a screen; counting millions of rows takes its time.
    ForPeople,
}

/// Makes connections.
pub(super) struct Connector {
    address: Address,
    target: String,
    lease: Duration,
    lock_wait: Duration,
    connections: AtomicU64,
}

impl Connector {
    /// Reads the URL; does not connect yet.
    ///
    /// `lease` bounds everything the relay's own work waits for: a lock for a quarter of it, an answer for the whole.
    pub(super) fn new(url: &str, lease: Duration) -> Result<Connector, StoreError> {
        let address = Address::parse(url).map_err(|(problem, help)| StoreError::Unsuitable { problem, help })?;
        let opts = address.opts();
        if opts.db_name().is_none() {
            return Err(StoreError::Unsuitable {
                problem: "the database URL names no database".into(),
                help: "write it as mysql://user:password@host:3306/database".into(),
            });
        }
        let target = format!("{}:{}/{}", opts.ip_or_hostname(), opts.tcp_port(), opts.db_name().unwrap_or_default());
        let lock_wait = Duration::from_secs((lease / 4).as_secs().max(1));
        Ok(Connector { address, target, lease, lock_wait, connections: AtomicU64::new(0) })
    }

    /// Host and database, without credentials.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    async fn connect(&self, work: Work, operation: &'static str) -> Result<Link, StoreError> {
        let patience = self.patience(work);
        let conn = self.answer(operation, patience, self.address.connect()).await?;
        let mut link = Link {
            conn,
            flavour: Flavour::MySql,
            number: self.connections.fetch_add(1, Ordering::Relaxed),
            used_at: Instant::now(),
        };
        let question = "SELECT version(), CAST(@@global.read_only AS CHAR), CAST(@@global.innodb_read_only AS CHAR)";
        let rows: Vec<Row> = self.answer(operation, patience, link.conn.query(question)).await?;
        if let Some(row) = rows.into_iter().next() {
            let mut columns = Columns::new(row);
            if columns.text().contains("MariaDB") {
                link.flavour = Flavour::MariaDb;
            }
            // Also where the user's rights would let it write: a replica that is written to is no replica any more.
            if says_on(&columns.text()) || says_on(&columns.text()) {
                return Err(self.read_only());
            }
        }
        for statement in self.session(link.flavour, patience) {
            self.answer(operation, patience, link.conn.query_drop(statement)).await?;
        }
        Ok(link)
    }

    /// The server takes no writes for the moment.
    pub(super) fn read_only(&self) -> StoreError {
        StoreError::ReadOnly {
            target: self.target.clone(),
            found: "it is read-only, as a replica is".into(),
            help: "use the address of the primary, or switch `read_only` off; a relay that runs goes on by itself then"
                .into(),
        }
    }

    /// What every session starts with.
    fn session(&self, flavour: Flavour, patience: Duration) -> Vec<String> {
        let lock_wait = self.lock_wait.as_secs();
        let mut statements = vec![
            "SET NAMES utf8mb4".to_owned(),
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
            format!(
                "SET SESSION autocommit = 1, time_zone = '+00:00', \
                 sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
                 innodb_lock_wait_timeout = {lock_wait}, lock_wait_timeout = {lock_wait}"
            ),
        ];
        statements.push(match flavour {
            // Only a transaction is cut when it idles; a connection may.
            Flavour::MariaDb => format!(
                "SET SESSION idle_transaction_timeout = {lock_wait}, max_statement_time = {}",
                patience.as_secs_f64()
            ),
            Flavour::MySql => format!("SET SESSION max_execution_time = {}", patience.as_millis()),
        });
        statements
    }

    fn patience(&self, work: Work) -> Duration {
        match work {
            Work::OfTheRelay => self.lease.max(self.lock_wait * 2),
            Work::ForPeople => self.lease.max(Duration::from_secs(60)),
        }
    }

    /// Waits for an answer of the server, not for ever.
    async fn answer<T>(
        &self,
        operation: &'static str,
        patience: Duration,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refusal(operation, error)),
            Err(_) => Err(StoreError::Unreachable {
                target: self.target.clone(),
                source: format!("no answer to `{operation}` within {patience:?}").into(),
            }),
        }
    }

    /// Sorts the driver's errors by what is right to do next.
    fn refusal(&self, operation: &'static str, error: Error) -> StoreError {
        let target = self.target.clone();
        match error {
            Error::Server(ref server) => match server.code {
                LOCK_WAIT_TIMEOUT | DEADLOCK | NOWAIT_REFUSED | QUERY_INTERRUPTED => {
                    StoreError::TryAgain { operation, source: error.into() }
                }
                code if DISCONNECTING.contains(&code) => StoreError::Unreachable { target, source: error.into() },
                _ => match turned_away(&target, &error) {
                    Some((problem, help)) => StoreError::Unsuitable { problem, help },
                    None => StoreError::Refused { operation, source: error.into() },
                },
            },
            // A value that cannot be read is a fault of ours, not of the network.
            Error::Driver(DriverError::FromRow { .. } | DriverError::FromValue { .. }) => {
                StoreError::Refused { operation, source: error.into() }
            }
            _ => match turned_away(&target, &error) {
                Some((problem, help)) => StoreError::Unsuitable { problem, help },
                None => StoreError::Unreachable { target, source: error.into() },
            },
        }
    }
}

/// True for every value of a switch but off; `read_only` has several on some servers.
pub(super) fn says_on(value: &str) -> bool {
    !(value.is_empty() || value == "0" || value.eq_ignore_ascii_case("off"))
}

const LOCK_WAIT_TIMEOUT: u16 = 1205;
const DEADLOCK: u16 = 1213;
const QUERY_INTERRUPTED: u16 = 1317;
const NOWAIT_REFUSED: u16 = 3572;

/// Too many connections, shutting down, host blocked, packets lost, killed, idle too long; and a server that became
/// read-only, because after a failover the same address leads to another one.
const DISCONNECTING: [u16; 13] = [1040, 1053, 1129, 1152, 1158, 1159, 1160, 1161, 1290, 1836, 1927, 3169, 4031];

/// One connection and what is known of it.
struct Link {
    conn: Conn,
    flavour: Flavour,
    number: u64,
    used_at: Instant,
}

/// The place of one connection. Calls that share a slot take turns.
pub(super) struct Slot {
    work: Work,
    link: Arc<Mutex<Option<Link>>>,
}

/// A connection that idled for so long is asked whether it still lives before a transaction is begun on it.
const IDLE_DOUBTFUL: Duration = Duration::from_secs(20);

impl Slot {
    pub(super) fn new(work: Work) -> Slot {
        Slot { work, link: Arc::new(Mutex::new(None)) }
    }

    /// Lends the connection, making it where there is none.
    pub(super) async fn lend<'a>(
        &self,
        connector: &'a Connector,
        operation: &'static str,
    ) -> Result<Session<'a>, StoreError> {
        let patience = connector.patience(self.work);
        let mut slot = Arc::clone(&self.link).lock_owned().await;
        let mut link = slot.take();
        if let Some(idle) = link.as_mut().filter(|link| link.used_at.elapsed() >= IDLE_DOUBTFUL)
            && connector.answer(operation, patience, idle.conn.ping()).await.is_err()
        {
            link = None;
        }
        let link = match link {
            Some(link) => link,
            None => connector.connect(self.work, operation).await?,
        };
        Ok(Session { connector, operation, patience, slot, link })
    }
}

/// A connection on loan. Dropping it closes the connection; [`Session::give_back`] keeps it.
pub(super) struct Session<'a> {
    connector: &'a Connector,
    operation: &'static str,
    patience: Duration,
    slot: OwnedMutexGuard<Option<Link>>,
    link: Link,
}

impl Session<'_> {
    /// Which server this is.
    pub(super) fn flavour(&self) -> Flavour {
        self.link.flavour
    }

    /// The refusal of a server that takes no writes.
    pub(super) fn read_only(&self) -> StoreError {
        self.connector.read_only()
    }

    /// A number no other connection of this process has.
    pub(super) fn number(&self) -> u64 {
        self.link.number
    }

    /// Runs a query and collects its rows.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, StoreError> {
        self.connector.answer(self.operation, self.patience, self.link.conn.query(sql)).await
    }

    /// Runs a query whose refusal for a lock is an answer: `None`.
    pub(super) async fn rows_unless_locked(&mut self, sql: &str) -> Result<Option<Vec<Row>>, StoreError> {
        let answer = async {
            match self.link.conn.query(sql).await {
                Err(Error::Server(error)) if [LOCK_WAIT_TIMEOUT, NOWAIT_REFUSED].contains(&error.code) => Ok(None),
                rows => rows.map(Some),
            }
        };
        self.connector.answer(self.operation, self.patience, answer).await
    }

    /// Runs a query that the user may not be allowed to ask: then `None`.
    pub(super) async fn rows_if_allowed(&mut self, sql: &str) -> Result<Option<Vec<Row>>, StoreError> {
        const DENIED: [u16; 3] = [1142, 1143, 1227];
        let answer = async {
            match self.link.conn.query(sql).await {
                Err(Error::Server(error)) if DENIED.contains(&error.code) => Ok(None),
                rows => rows.map(Some),
            }
        };
        self.connector.answer(self.operation, self.patience, answer).await
    }

    /// Runs a statement and says how many rows it changed.
    pub(super) async fn execute(&mut self, sql: &str) -> Result<u64, StoreError> {
        let conn = &mut self.link.conn;
        let answer = async {
            conn.query_drop(sql).await?;
            Ok(conn.affected_rows())
        };
        self.connector.answer(self.operation, self.patience, answer).await
    }

    /// Begins a transaction.
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        self.execute("START TRANSACTION").await.map(drop)
    }

    /// Commits, and keeps the connection.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        self.execute("COMMIT").await?;
        self.give_back();
        Ok(())
    }

    /// Puts the connection back: no transaction is open on it and every answer has been read.
    pub(super) fn give_back(mut self) {
        self.link.used_at = Instant::now();
        *self.slot = Some(self.link);
    }
}
