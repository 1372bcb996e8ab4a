//! Short waits for rows that others hold, for work by hand that holds locks itself meanwhile.
//!
//! Whoever waits without limit holds up everybody behind its own locks. PostgreSQL waits for ever unless told otherwise,
//! MariaDB and MySQL for 50 s. On SQLite there is one lock, nothing is held before it is taken, and the connection's
//! `busy_timeout` says for how long it is waited for.

use std::time::{Duration, Instant};

use diesel::connection::LoadConnection;
use diesel::result::{DatabaseErrorKind, Error as DieselError};

use super::Statement;
use crate::connection::sealed::Dialect;
use crate::connection::{Database, OutboxBackend};
use crate::error::Error;

/// How long one statement waits for a lock.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Does some work in transactions of its own, none of whose statements waits for a lock longer than [`LOCK_WAIT`]. On
/// PostgreSQL each of them says so itself, by [`limit_waits`]: behind a pooler the next one may have another connection.
/// On MariaDB and MySQL the connection has the settings afterwards that it had before.
pub(crate) fn with_short_waits<C, T>(conn: &mut C, work: impl FnOnce(&mut C) -> Result<T, Error>) -> Result<T, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let settings: &[&str] = match <C::Backend as Dialect>::DATABASE {
        // Of rows and of tables.
        Database::Mysql => &["innodb_lock_wait_timeout", "lock_wait_timeout"],
        Database::Postgres | Database::Sqlite => &[],
    };
    let mut before = Vec::new();
    for setting in settings {
        let was =
            Statement::new(format!("-- setting_read\nSELECT CAST(@@SESSION.{setting} AS CHAR)")).load(conn)?.pop();
        before.push((*setting, was.unwrap_or_default()));
        set(conn, setting, &LOCK_WAIT.as_secs().to_string())?;
    }
    let outcome = work(conn);
    for (setting, value) in before {
        // A connection on which even this fails is a broken one, and the work has failed of the same.
        let _ = set(conn, setting, &value);
    }
    outcome
}

/// It takes no parameter; what stands here is a number, ours or the server's.
fn set<C>(conn: &mut C, setting: &str, value: &str) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    Statement::new(format!("-- setting_write\nSET SESSION {setting} = {value}")).execute(conn).map(drop)
}

/// The same for this transaction, on PostgreSQL.
pub(crate) fn limit_waits<C>(conn: &mut C) -> Result<(), Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    if <C::Backend as Dialect>::DATABASE == Database::Postgres {
        let limit = LOCK_WAIT.as_millis();
        let set = format!("-- setting_write\nSELECT set_config('lock_timeout', '{limit}ms', true)");
        Statement::new(set).load(conn)?;
    }
    Ok(())
}

/// What is said when rows were not waited for at all.
pub(crate) fn held(what: &'static str) -> Error {
    let answer = DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new("they are locked".to_owned()));
    Error::Locked { what, answer }
}

/// Runs a statement that locks `what`; says so when it has waited in vain.
///
/// diesel shows no codes, and servers speak many languages, so time tells: no error without a name of its own takes as long
/// as the limit by chance. The database's answer goes along.
pub(crate) fn locking<T>(what: &'static str, statement: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let began = Instant::now();
    statement().map_err(|error| match error {
        Error::Database(answer @ DieselError::DatabaseError(DatabaseErrorKind::Unknown, _))
            if began.elapsed() >= LOCK_WAIT || answer.to_string().contains("database is locked") =>
        {
            Error::Locked { what, answer }
        }
        error => error,
    })
}
