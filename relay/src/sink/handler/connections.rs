//! The connections of one transactional handler.
//!
//! Opened when they are needed, kept on a stack while they are not. A connection goes back only after its transaction
//! has ended in order; whatever else happens to it, a panic, a dropped future, an error of its own, it is closed, and the
//! server rolls back.
//!
//! A known limit: what a server is doing for a connection that was dropped goes on until the server notices. PostgreSQL
//! and MySQL are asked to stop it; SQLite finishes its statement.

use std::any::{Any, TypeId};
use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diesel_async::{
    AsyncConnection, AsyncConnectionCore, AsyncMysqlConnection, AsyncPgConnection, MysqlCancelToken, TransactionManager,
};
use outbox::Database;

use crate::config::database_url;
use crate::store::mysql::address as mysql;
use crate::store::postgres::address as postgres;
use crate::store::{claim, sqlite};

/// Opens a connection.
pub(super) type Connect<C> = Arc<dyn Fn() -> Connecting<C> + Send + Sync>;
/// A connection on its way.
pub(super) type Connecting<C> = Pin<Box<dyn Future<Output = Result<C, Cause>> + Send>>;
/// Why there is none.
pub(super) type Cause = Box<dyn Error + Send + Sync>;

/// Where a relay works, and what it says about time.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The database's address, when the relay was given one.
    pub(crate) url: Option<String>,
    /// Which database it is, when that is known.
    pub(crate) database: Option<Database>,
    /// How long an attempt may take.
    pub(crate) timeout: Duration,
}

/// The connections of one handler.
pub(super) struct Connections<C> {
    database: Database,
    timeout: Duration,
    connect: Connect<C>,
    /// How a PostgreSQL server is asked to stop.
    postgres: Option<Arc<postgres::Address>>,
    idle: Mutex<Vec<Idle<C>>>,
}

struct Idle<C> {
    conn: C,
    cancel: Cancel,
}

/// A connection in use. Dropping it closes the connection.
pub(super) struct Lease<C: Send + 'static> {
    inner: Option<Idle<C>>,
    home: Arc<Connections<C>>,
    /// It has served before: the server may have closed it since.
    pub(super) was_idle: bool,
}

/// The database a type of connection speaks to.
fn database_of<C: AsyncConnection>() -> Option<Database>
where
    <C as AsyncConnectionCore>::Backend: 'static,
{
    let backend = TypeId::of::<<C as AsyncConnectionCore>::Backend>();
    [
        (TypeId::of::<diesel::pg::Pg>(), Database::Postgres),
        (TypeId::of::<diesel::mysql::Mysql>(), Database::Mysql),
        (TypeId::of::<diesel::sqlite::Sqlite>(), Database::Sqlite),
    ]
    .into_iter()
    .find_map(|(known, database)| (known == backend).then_some(database))
}

impl<C> Connections<C>
where
    C: AsyncConnection<Backend: 'static> + 'static,
{
    /// None opened yet. Says what is wrong when connections of this type cannot lead to that place.
    pub(super) fn new(place: &Place, connect: Option<Connect<C>>) -> Result<Connections<C>, String> {
        let Some(database) = database_of::<C>() else {
            return Err("its function takes a connection to a database that holds no outbox".to_owned());
        };
        if let Some(actual) = place.database.filter(|actual| *actual != database) {
            return Err(format!(
                "its function takes a connection to {}, the relay's database is {}\n  help: let it take `&mut {}`",
                name(database),
                name(actual),
                connection(actual)
            ));
        }
        let connect = match (connect, &place.url) {
            (Some(connect), _) => connect,
            (None, Some(url)) => by_url(database, url)?,
            (None, None) => {
                let text = "the relay was built from a store and knows no address to connect to\n  help: use \
                            `Handler::transactional_with` and say how to connect";
                return Err(text.to_owned());
            }
        };
        let postgres = place.url.as_deref().filter(|_url| database == Database::Postgres);
        let postgres = postgres.and_then(|url| postgres::Address::parse(url).ok()).map(Arc::new);
        Ok(Connections { database, timeout: place.timeout, connect, postgres, idle: Mutex::default() })
    }

    pub(super) fn database(&self) -> Database {
        self.database
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Takes a connection, the one that was used last, or opens one.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Lease<C>, Cause> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(idle) = idle {
            return Ok(Lease { inner: Some(idle), home: self.clone(), was_idle: true });
        }
        let mut conn = (self.connect)().await?;
        if let Some(session) = claim::session(self.database, self.timeout) {
            conn.batch_execute(&session).await?;
        }
        let cancel = Cancel::of(&conn, self.postgres.clone());
        Ok(Lease { inner: Some(Idle { conn, cancel }), home: self.clone(), was_idle: false })
    }
}

fn by_url<C: AsyncConnection + 'static>(database: Database, url: &str) -> Result<Connect<C>, String> {
    let unusable = |(problem, help): (String, String)| format!("{problem}\n  help: {help}");
    // A type of somebody else's that speaks to one of these databases knows how to connect by itself.
    let is = |ours: TypeId| TypeId::of::<C>() == ours;
    match database {
        Database::Postgres if is(TypeId::of::<AsyncPgConnection>()) => {
            let mut address = postgres::Address::parse(url).map_err(unusable)?;
            if address.config.get_application_name().is_none() {
                address.config.application_name("outbox-relay handler");
            }
            Ok(opened(move || open_postgres(address.clone())))
        }
        Database::Mysql if is(TypeId::of::<AsyncMysqlConnection>()) => {
            let address = mysql::Address::parse(url).map_err(unusable)?.for_diesel();
            Ok(opened(move || open_mysql(address.clone())))
        }
        Database::Postgres | Database::Mysql => Ok(established(url.to_owned())),
        // Opening must not create a file where none is.
        Database::Sqlite => {
            let path = database_url::sqlite_path(url).ok_or("the relay's database address names no file")?;
            Ok(established(sqlite::existing_file_uri(path.as_ref())))
        }
    }
}

fn established<C: AsyncConnection + 'static>(url: String) -> Connect<C> {
    Arc::new(move || {
        let url = url.clone();
        Box::pin(async move { Ok(C::establish(&url).await?) })
    })
}

/// Connections of `C`, opened as those of `D`, which it was found to be.
fn opened<C: 'static, D: 'static, F>(open: impl Fn() -> F + Send + Sync + 'static) -> Connect<C>
where
    F: Future<Output = Result<D, Cause>> + Send + 'static,
{
    Arc::new(move || {
        let opening = open();
        Box::pin(async move {
            let conn: Box<dyn Any> = Box::new(opening.await?);
            Ok(*conn.downcast::<C>().expect("the types were compared"))
        })
    })
}

/// diesel's own way of connecting keeps only the first words of an error, so that "connection refused" is lost.
async fn open_postgres(address: postgres::Address) -> Result<AsyncPgConnection, Cause> {
    let (client, connection) = address.connect().await?;
    Ok(AsyncPgConnection::try_from_client_and_connection(client, connection).await?)
}

async fn open_mysql(address: mysql::Address) -> Result<AsyncMysqlConnection, Cause> {
    Ok(AsyncMysqlConnection::try_from(address.connect().await?).await?)
}

fn name(database: Database) -> &'static str {
    match database {
        Database::Postgres => "PostgreSQL",
        Database::Mysql => "MariaDB or MySQL",
        Database::Sqlite => "SQLite",
    }
}

fn connection(database: Database) -> &'static str {
    match database {
        Database::Postgres => "AsyncPgConnection",
        Database::Mysql => "AsyncMysqlConnection",
        Database::Sqlite => "SyncConnectionWrapper<SqliteConnection>",
    }
}

impl<C: Send + 'static> Lease<C> {
    pub(super) fn conn(&mut self) -> &mut C {
        &mut self.inner.as_mut().expect("it is there until it is given back").conn
    }

    /// The transaction has ended: the connection may serve the next one, unless diesel has lost track of it.
    pub(super) fn give_back(mut self)
    where
        C: AsyncConnection,
    {
        let Some(mut idle) = self.inner.take() else { return };
        if !C::TransactionManager::is_broken_transaction_manager(&mut idle.conn) {
            self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
        }
    }
}

impl<C: Send + 'static> Drop for Lease<C> {
    fn drop(&mut self) {
        if let Some(Idle { conn, cancel }) = self.inner.take() {
            drop(conn);
            cancel.spawn();
        }
    }
}

/// Asks a server to stop what it is doing for a connection.
enum Cancel {
    /// And how the server is spoken to, where we know.
    Postgres(tokio_postgres::CancelToken, Option<Arc<postgres::Address>>),
    Mysql(MysqlCancelToken),
    /// Nobody can be asked.
    Nobody,
}

impl Cancel {
    fn of<C: 'static>(conn: &C, postgres: Option<Arc<postgres::Address>>) -> Cancel {
        let conn: &dyn Any = conn;
        if let Some(conn) = conn.downcast_ref::<AsyncPgConnection>() {
            Cancel::Postgres(conn.cancel_token(), postgres)
        } else if let Some(conn) = conn.downcast_ref::<AsyncMysqlConnection>() {
            Cancel::Mysql(conn.cancel_token())
        } else {
            Cancel::Nobody
        }
    }

    /// Whether it helps is not waited for: a statement has a limit of its own.
    fn spawn(self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        match self {
            Cancel::Postgres(token, address) => drop(runtime.spawn(tokio::time::timeout(PATIENCE, async move {
                // The question is as secret as the connection: with its answer anybody could stop what it does.
                let _ = match address.and_then(|address| address.connector().ok()) {
                    Some(tls) => token.cancel_query(tls).await,
                    None => token.cancel_query(tokio_postgres::NoTls).await,
                };
            }))),
            Cancel::Mysql(token) => drop(runtime.spawn(tokio::time::timeout(PATIENCE, async move {
                let _ = token.cancel_query().await;
            }))),
            Cancel::Nobody => {}
        }
    }
}

/// How long it may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use diesel::SqliteConnection;
    use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;

    use super::*;

    fn place(url: Option<&str>, database: Database) -> Place {
        Place { url: url.map(str::to_owned), database: Some(database), timeout: Duration::from_secs(15) }
    }

    fn problem<C: AsyncConnection<Backend: 'static> + 'static>(place: &Place) -> Option<String> {
        Connections::<C>::new(place, None).err()
    }

    #[test]
    fn a_connection_to_another_database_is_refused_with_help() {
        let url = Some("sqlite:shop.db");
        let told = problem::<AsyncPgConnection>(&place(url, Database::Sqlite)).unwrap();
        assert!(told.contains("a connection to PostgreSQL, the relay's database is SQLite"), "{told}");
        assert!(told.contains("help: let it take `&mut SyncConnectionWrapper<SqliteConnection>`"), "{told}");
        assert_eq!(problem::<SyncConnectionWrapper<SqliteConnection>>(&place(url, Database::Sqlite)), None);
        let told = problem::<AsyncMysqlConnection>(&place(None, Database::Mysql)).unwrap();
        assert!(told.contains("help: use `Handler::transactional_with`"), "{told}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_in_the_systems_words() {
        // Nobody listens on the port of a socket that was closed again.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("postgres://me@127.0.0.1:{port}/shop");
        let connections: Connections<AsyncPgConnection> =
            Connections::new(&place(Some(&url), Database::Postgres), None).unwrap();
        let error = Arc::new(connections).take().await.err().unwrap();
        assert!(crate::cause::chain(&*error).contains("refused"), "{error}");
    }

    #[test]
    fn opening_a_file_that_is_not_there_creates_none() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/none.db", folder.path().display());
        let connections: Connections<SyncConnectionWrapper<SqliteConnection>> =
            Connections::new(&place(Some(&url), Database::Sqlite), None).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        assert!(runtime.block_on(Arc::new(connections).take()).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
