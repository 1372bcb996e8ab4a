//! Connections, one for each role, and what the driver's errors mean.
//!
//! A connection is taken out of its slot for a call and put back when the call succeeded. Whatever else happens to the
//! call (an error, a panic, a dropped future), the connection is dropped, which closes its socket: nothing is ever
//! reused in an unknown state. Calls of one role wait for each other.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::AbortHandle;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use crate::cause::chain;
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
    config: Config,
    target: Arc<str>,
    lease: Duration,
}

impl Connector {
    pub(super) fn new(url: &str, options: &StoreOptions) -> Result<Connector, StoreError> {
        let mut config: Config = url.parse().map_err(|error| StoreError::Unsuitable {
            problem: format!("the database address cannot be understood: {}", chain(&error)),
            help: "it has the form `postgres://user:password@host:5432/database`".into(),
        })?;
        config.application_name(&options.application_name);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        // A peer that vanished without a word is noticed within half a minute, while idle and while waiting.
        config.keepalives(true).keepalives_idle(Duration::from_secs(10)).keepalives_interval(Duration::from_secs(5));
        config.keepalives_retries(3).tcp_user_timeout(Duration::from_secs(25));
        let target = target(&config).into();
        Ok(Connector { config, target, lease: options.lease })
    }

    async fn connect(&self, role: Role) -> Result<Connection, StoreError> {
        let (client, driver) = self.config.connect(NoTls).await.map_err(|error| self.unreachable(error))?;
        let driver = tokio::spawn(async move {
            // Whoever uses the client is told the same; nobody else needs to know.
            let _ = driver.await;
        })
        .abort_handle();
        let connection = Connection {
            client,
            statements: HashMap::new(),
            target: Arc::clone(&self.target),
            identity: RandomState::new().hash_one(0),
            driver,
        };
        let settings = self.settings(role);
        connection.client.batch_execute(&settings).await.map_err(|error| self.unreachable(error))?;
        Ok(connection)
    }

    fn unreachable(&self, error: tokio_postgres::Error) -> StoreError {
        if let Some((problem, help)) = turned_away(&self.target, &error) {
            return StoreError::Unsuitable { problem, help };
        }
        StoreError::Unreachable { target: self.target.to_string(), source: Box::new(error) }
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

/// For statements on `outbox_messages`, written so that no statistics can make them anything but look-ups in its one
/// index: planned once. A table that was empty when it was analysed must not talk the planner into reading all of it.
pub(super) const PLANNED_ONCE: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
     SET enable_bitmapscan = off; SET max_parallel_workers_per_gather = 0;";

/// For statements on tables with several indexes. While such a table is empty they all look the same to the planner, and
/// it is empty until the first destination fails; a plan kept from then reads a whole index for every batch.
pub(super) const PLANNED_EACH_TIME: &str = "SET plan_cache_mode = force_custom_plan; SET enable_seqscan = off; \
     SET enable_bitmapscan = off; SET max_parallel_workers_per_gather = 0;";

/// When a server was there and did not let us in: what it said, and what to do. Trying again would not help.
pub(crate) fn turned_away(target: &str, error: &tokio_postgres::Error) -> Option<(String, String)> {
    let answer = error.as_db_error()?;
    let code = answer.code();
    let help = if *code == SqlState::INVALID_CATALOG_NAME {
        "create the database, or correct its name in the database url"
    } else if [SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_PASSWORD].contains(code) {
        "check role and password in the database url, and `pg_hba.conf` on the server"
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        "grant the role CONNECT on the database"
    } else {
        return None;
    };
    Some((format!("the server refuses `{target}`: {}", answer.message()), help.to_owned()))
}

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
    driver: AbortHandle,
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
