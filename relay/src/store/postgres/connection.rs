//! Connections, one for each role, and what the driver's errors mean.
//!
//! A connection is taken out of its slot for a call and put back when the call succeeded. Whatever else happens to the
//! call (an error, a panic, a dropped future), the connection is dropped, which closes its socket: nothing is ever
//! reused in an unknown state. Calls of one role wait for each other.
//!
//! Every new connection is asked who answers: a standby is not worked on, and neither is a session that changes under
//! the connection.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::AbortHandle;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row, SimpleQueryMessage, Statement};

use super::address::{Address, turned_away};
use crate::store::StoreError;
use crate::store::StoreOptions;

/// A statement: the name it is reported under, and its text, which begins with that name as a comment.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

/// Parameters of a statement.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Feed,
    Due,
    Delivered,
    Settle,
    Beat,
    Other,
}

/// The place where the connection of one role rests between calls.
#[derive(Debug)]
pub(super) struct Slot {
    role: Role,
    idle: Mutex<Option<Connection>>,
}

impl Slot {
    pub(super) fn new(role: Role) -> Slot {
        Slot { role, idle: Mutex::new(None) }
    }

    /// Takes the connection out, or opens one when there is none or the server has closed it.
    pub(super) async fn take(&self, connector: &Connector) -> Result<Held<'_>, StoreError> {
        let mut place = self.idle.lock().await;
        let connection = match place.take() {
            Some(connection) if !connection.client.is_closed() => connection,
            _ => connector.connect(self.role).await?,
        };
        Ok(Held { place, connection })
    }
}

/// A connection in use. Dropping it closes the connection.
pub(super) struct Held<'a> {
    place: MutexGuard<'a, Option<Connection>>,
    pub(super) connection: Connection,
}

impl Held<'_> {
    /// The call succeeded: the connection may serve the next one.
    pub(super) fn put_back(mut self) {
        *self.place = Some(self.connection);
    }
}

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    address: Address,
    target: Arc<str>,
    lease: Duration,
}

impl Connector {
    pub(super) fn new(url: &str, options: &StoreOptions) -> Result<Connector, StoreError> {
        let mut address = Address::parse(url).map_err(|(problem, help)| StoreError::Unsuitable { problem, help })?;
        let config = &mut address.config;
        config.application_name(&options.application_name);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        // A peer that vanished without a word is noticed within half a minute, while idle and while waiting.
        config.keepalives(true).keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5));
        config.keepalives_retries(3).tcp_user_timeout(Duration::from_secs(25));
        let target = target(&address.config).into();
        Ok(Connector { address, target, lease: options.lease })
    }

    async fn connect(&self, role: Role) -> Result<Connection, StoreError> {
        let (client, driver) = self.address.connect().await.map_err(|error| self.unreachable(error))?;
        let driver = tokio::spawn(async move {
            // Whoever uses the client is told the same; nobody else needs to know.
            let _ = driver.await;
        })
        .abort_handle();
        let mut connection = Connection {
            client,
            statements: HashMap::new(),
            target: Arc::clone(&self.target),
            identity: RandomState::new().hash_one(0),
            backend: 0,
            driver,
        };
        let settings = self.settings(role);
        connection.client.batch_execute(&settings).await.map_err(|error| self.unreachable(error.into()))?;
        let session = connection.session().await?;
        if session.in_recovery {
            return Err(self.standby());
        }
        connection.backend = session.backend;
        // Apart from the settings, so that a pooler has had the occasion to give the session to somebody else.
        if connection.session().await?.backend != session.backend {
            return Err(pooled());
        }
        Ok(connection)
    }

    /// Refuses an address behind which sessions are handed around between transactions.
    ///
    /// Two connections are open at the same time and asked in turn who they are. A session is always the same, and never
    /// the other's. Behind a pooler in transaction or statement mode an idle connection has no session of its own: the
    /// two meet in one, or one of them wanders. No order of questions is a multiple of another, so that a pooler which
    /// deals its sessions out in turn does not deal each the same one again and again.
    pub(super) async fn prove_sessions(&self) -> Result<(), StoreError> {
        let (first, second) = (self.connect(Role::Other).await?, self.connect(Role::Other).await?);
        for connection in [&first, &second] {
            let name = format!("SET outbox.connection = '{:x}'", connection.identity);
            connection.client.batch_execute(&name).await.map_err(|error| connection.failed("session_name", error))?;
        }
        for turn in [&first, &first, &second, &first, &second, &second, &first, &first, &second, &second] {
            let session = turn.session().await?;
            let own = session.name == format!("{:x}", turn.identity);
            if session.backend != turn.backend || first.backend == second.backend || !own {
                return Err(pooled());
            }
        }
        Ok(())
    }

    fn standby(&self) -> StoreError {
        StoreError::ReadOnly {
            target: self.target.to_string(),
            found: "it is a standby, which only replays what its primary writes".into(),
            help: STANDBY_HELP.into(),
        }
    }

    fn unreachable(&self, error: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
        if let Some((problem, help)) = turned_away(&self.target, &*error) {
            return StoreError::Unsuitable { problem, help };
        }
        StoreError::Unreachable { target: self.target.to_string(), source: error }
    }

    /// The settings of a session, made in one statement list right after connecting.
    fn settings(&self, role: Role) -> String {
        let lease = self.lease.as_millis().max(1000);
        let statement = match role {
            Role::Beat => lease,
            _ => 30_000,
        };
        // A zombie that stopped in mid-transaction holds partition rows; its successor must not wait a whole lease.
        let idle = lease / 4;
        let mut settings = format!(
            "SET TIME ZONE 'UTC'; SET default_transaction_isolation = 'read committed'; \
             SET statement_timeout = {statement}; SET lock_timeout = {lease}; \
             SET idle_in_transaction_session_timeout = {idle}; SET jit = off; \
             SELECT set_config('synchronous_commit', 'on', false) \
                 WHERE current_setting('synchronous_commit') = 'off';"
        );
        match role {
            Role::Feed | Role::Delivered => settings.push_str(PLANNED_ONCE),
            Role::Due | Role::Settle => settings.push_str(PLANNED_EACH_TIME),
            Role::Beat | Role::Other => {}
        }
        settings
    }
}

/// What to do about a standby.
const STANDBY_HELP: &str = "use the address of the primary, or add `target_session_attrs=read-write` to an address that \
                            lists several hosts; a relay that runs goes on by itself once the server is promoted";

/// Somebody in between hands sessions around.
fn pooled() -> StoreError {
    StoreError::Unsuitable {
        problem: "the address leads to a pooler that gives every transaction another session, as pgbouncer does in \
                  `pool_mode = transaction` and `statement`; the relay's settings and prepared statements belong to one \
                  session"
            .into(),
        help: "connect the relay directly to PostgreSQL, or through a pooler with `pool_mode = session`; applications \
               that only enqueue may stay behind this one"
            .into(),
    }
}

/// For statements on `outbox_messages`, written so that no statistics can make them anything but look-ups in its one
/// index: planned once. A table that was empty when it was analysed must not talk the planner into reading all of it.
pub(super) const PLANNED_ONCE: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
     SET enable_bitmapscan = off; SET max_parallel_workers_per_gather = 0;";

/// For statements on tables with several indexes. While such a table is empty they all look the same to the planner, and
/// it is empty until the first destination fails; a plan kept from then reads a whole index for every batch.
pub(super) const PLANNED_EACH_TIME: &str = "SET plan_cache_mode = force_custom_plan; SET enable_seqscan = off; \
     SET enable_bitmapscan = off; SET max_parallel_workers_per_gather = 0;";

/// Host and database, without credentials.
fn target(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => config.get_hostaddrs().first().map_or_else(String::new, ToString::to_string),
    };
    // Where an `@` in a password is not escaped, the driver takes the rest of the password for the host.
    let host = host.rsplit('@').next().unwrap_or_default();
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{host}:{port}/{database}")
}

/// A connection and the statements prepared on it.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    target: Arc<str>,
    identity: u64,
    backend: i32,
    driver: AbortHandle,
}

/// What a session says of itself.
struct Session {
    backend: i32,
    in_recovery: bool,
    name: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the session at once: the driver would otherwise wait for what is still running.
        self.driver.abort();
    }
}

impl Connection {
    /// Differs from that of every other connection.
    pub(super) fn identity(&self) -> u64 {
        self.identity
    }

    /// Who answers. Asked without preparing anything, which some poolers could not do.
    async fn session(&self) -> Result<Session, StoreError> {
        let text = "-- session_read\n\
                    SELECT pg_backend_pid(), pg_is_in_recovery(), coalesce(current_setting('outbox.connection', true), '')";
        let answers = self.client.simple_query(text).await.map_err(|error| self.failed("session_read", error))?;
        for answer in &answers {
            if let SimpleQueryMessage::Row(row) = answer {
                return Ok(Session {
                    backend: row.get(0).and_then(|pid| pid.parse().ok()).unwrap_or_default(),
                    in_recovery: row.get(1) == Some("t"),
                    name: row.get(2).unwrap_or_default().to_owned(),
                });
            }
        }
        Err(StoreError::Refused { operation: "session_read", source: "the server returned no row".into() })
    }

    /// The session is still the one this connection began with, and its server still takes writes.
    pub(super) fn proven(&self, backend: i32, in_recovery: bool) -> Result<(), StoreError> {
        if backend != self.backend {
            return Err(pooled());
        }
        if in_recovery {
            return Err(StoreError::ReadOnly {
                target: self.target.to_string(),
                found: "it has become a standby".into(),
                help: STANDBY_HELP.into(),
            });
        }
        Ok(())
    }

    /// The statement, prepared at its first use.
    pub(super) async fn prepare(&mut self, sql: &'static Sql) -> Result<Prepared, StoreError> {
        if let Some(statement) = self.statements.get(sql.name) {
            return Ok(Prepared { name: sql.name, statement: statement.clone() });
        }
        let statement = self.client.prepare(sql.text).await.map_err(|error| self.failed(sql.name, error))?;
        self.statements.insert(sql.name, statement.clone());
        Ok(Prepared { name: sql.name, statement })
    }

    /// Runs a prepared statement. Futures of several calls may be polled together: they are sent in the order of their
    /// first poll, without waiting for each other's answers.
    pub(super) async fn query(&self, prepared: &Prepared, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        self.client.query(&prepared.statement, params).await.map_err(|error| self.failed(prepared.name, error))
    }

    /// Runs a statement that stands alone.
    pub(super) async fn run(&mut self, sql: &'static Sql, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        let prepared = self.prepare(sql).await?;
        self.query(&prepared, params).await
    }

    /// Opens a transaction.
    pub(super) async fn begin(&self) -> Result<(), StoreError> {
        self.client.batch_execute("BEGIN").await.map_err(|error| self.failed("begin", error))
    }

    /// Opens a transaction whose commit need not survive a crash of the server, only of its client: it does not wait for
    /// the disk.
    pub(super) async fn begin_light(&self) -> Result<(), StoreError> {
        let begin = "BEGIN; SET LOCAL synchronous_commit = off";
        self.client.batch_execute(begin).await.map_err(|error| self.failed("begin", error))
    }

    /// Opens a transaction in which all statements see the same state and none can write.
    pub(super) async fn begin_reading(&self) -> Result<(), StoreError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        self.client.batch_execute(begin).await.map_err(|error| self.failed("begin", error))
    }

    /// Commits.
    ///
    /// The server answers the COMMIT of a failed transaction with success and a rollback, so this proves something only
    /// when every statement of the transaction succeeded. Callers poll it together with them and fail on any error.
    pub(super) async fn commit(&self) -> Result<(), StoreError> {
        self.client.batch_execute("COMMIT").await.map_err(|error| self.failed("commit", error))
    }

    fn failed(&self, operation: &'static str, error: tokio_postgres::Error) -> StoreError {
        let Some(code) = error.code() else {
            // Without an answer of the server it is the connection that failed, or a value of ours that the driver
            // could not encode; only the first is cured by trying again.
            return match error.is_closed() || is_io(&error) {
                true => StoreError::Unreachable { target: self.target.to_string(), source: Box::new(error) },
                false => StoreError::Refused { operation, source: Box::new(error) },
            };
        };
        let lost_a_race = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::QUERY_CANCELED,
        ];
        let session_ended = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            // The server became a standby: the next connection may find its successor.
            SqlState::READ_ONLY_SQL_TRANSACTION,
        ];
        if lost_a_race.contains(code) {
            StoreError::TryAgain { operation, source: Box::new(error) }
        } else if session_ended.contains(code) {
            StoreError::Unreachable { target: self.target.to_string(), source: Box::new(error) }
        } else {
            StoreError::Refused { operation, source: Box::new(error) }
        }
    }
}

/// A statement that is ready on one connection.
#[derive(Clone)]
pub(super) struct Prepared {
    name: &'static str,
    statement: Statement,
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<std::io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}
