//! What the tests of handlers share: a table of effects, and a transactional handler that does as it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel_async::AsyncConnection;
use outbox::{Envelope, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};
use relay::{Context, Handler, HandlerResult};

/// Runs a body with the type of diesel-async's connection to a database.
macro_rules! with_driver {
    ($kind:expr, $conn:ident => $body:expr) => {
        match $kind {
            outbox_tests::database::Kind::Postgres => {
                type $conn = diesel_async::AsyncPgConnection;
                $body
            }
            outbox_tests::database::Kind::Mariadb => {
                type $conn = diesel_async::AsyncMysqlConnection;
                $body
            }
            outbox_tests::database::Kind::Sqlite => {
                type $conn = diesel_async::sync_connection_wrapper::SyncConnectionWrapper<diesel::SqliteConnection>;
                $body
            }
        }
    };
}
pub(crate) use with_driver;

/// A message for the ledger alone.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Posted {
    pub(crate) body: String,
}

impl outbox::Message for Posted {
    const TOPIC: &'static str = "posted";
}

/// One without a key, of the topic that only the ledger takes.
pub(crate) fn posted(body: &str) -> Envelope {
    outbox::envelope(&Posted { body: body.to_owned() })
}

/// One of a topic that others may take too.
pub(crate) fn shared(body: &str) -> Envelope {
    Envelope::raw("shared", format!("{{\"body\":\"{body}\"}}"))
}

pub(crate) fn create_effects(database: &TestDatabase) {
    let id = match database.kind() {
        Kind::Postgres => "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        Kind::Mariadb => "BIGINT AUTO_INCREMENT PRIMARY KEY",
        Kind::Sqlite => "INTEGER PRIMARY KEY AUTOINCREMENT",
    };
    // Nothing here keeps an effect from happening twice.
    database.exec(&format!("CREATE TABLE effects (id {id}, body VARCHAR(100) NOT NULL)"));
}

/// What has happened, in the order it was written.
pub(crate) fn effects(database: &TestDatabase) -> Vec<String> {
    let mut rows: Vec<(i64, String)> = database
        .query_text("SELECT concat_ws('|', id, body) FROM effects")
        .into_iter()
        .map(|line| {
            let line = line.unwrap();
            let (id, body) = line.split_once('|').unwrap();
            (id.parse().unwrap(), body.to_owned())
        })
        .collect();
    rows.sort();
    rows.into_iter().map(|(_, body)| body).collect()
}

/// The same by name.
pub(crate) fn sorted_effects(database: &TestDatabase) -> Vec<String> {
    let mut effects = effects(database);
    effects.sort();
    effects
}

/// How an attempt ends after it has written its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Well,
    Error,
    Panic,
    /// It does not return.
    Hang,
    /// The database does not answer for a long time.
    SlowStatement,
    /// The database gives the transaction up, and the handler returns Ok.
    Swallow,
    /// The server closes the connection.
    Sever,
}

/// Tells each attempt how to end, and remembers all of them.
#[derive(Clone)]
pub(crate) struct Script(Arc<Inner>);

/// How an attempt at a message of this body ends, by its number.
type Ends = Box<dyn Fn(&str, u32) -> End + Send + Sync>;

struct Inner {
    kind: Kind,
    end: Ends,
    attempts: Mutex<BTreeMap<String, Vec<u32>>>,
}

impl Script {
    pub(crate) fn new(database: &TestDatabase, end: impl Fn(&str, u32) -> End + Send + Sync + 'static) -> Script {
        Script(Arc::new(Inner { kind: database.kind(), end: Box::new(end), attempts: Mutex::default() }))
    }

    /// Every attempt ends well.
    pub(crate) fn well(database: &TestDatabase) -> Script {
        Script::new(database, |_, _| End::Well)
    }

    /// The numbers of the attempts at a message, as the handler was told.
    pub(crate) fn attempts(&self, body: &str) -> Vec<u32> {
        self.0.attempts.lock().unwrap().get(body).cloned().unwrap_or_default()
    }

    /// The transactional handler `ledger`.
    pub(crate) fn ledger<C: AsyncConnection<Backend: OutboxBackend> + 'static>(&self) -> Handler {
        let script = self.clone();
        Handler::transactional("ledger", async move |posted: Posted, conn: &mut C, context: Context| {
            script.act(&posted.body, conn, &context).await
        })
    }

    /// One attempt.
    pub(crate) async fn act<C>(&self, body: &str, conn: &mut C, context: &Context) -> HandlerResult
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        self.0.attempts.lock().unwrap().entry(body.to_owned()).or_default().push(context.attempt());
        conn.batch_execute(&format!("INSERT INTO effects (body) VALUES ('{body}')")).await?;
        match ((self.0.end)(body, context.attempt()), self.0.kind) {
            (End::Well, _) => {}
            (End::Error, _) | (End::Sever, Kind::Sqlite) => return Err("not now".into()),
            (End::Panic, _) => panic!("not now"),
            (End::Hang, _) | (End::SlowStatement, Kind::Sqlite) => std::future::pending().await,
            (End::SlowStatement, Kind::Postgres) => conn.batch_execute("SELECT pg_sleep(30)").await?,
            (End::SlowStatement, Kind::Mariadb) => conn.batch_execute("DO sleep(30)").await?,
            (End::Swallow, Kind::Postgres) => _ = conn.batch_execute("INSERT INTO nowhere VALUES (1)").await,
            // As a deadlock does; what is written after it must not stay either.
            (End::Swallow, Kind::Mariadb) => {
                conn.batch_execute("ROLLBACK").await?;
                conn.batch_execute(&format!("INSERT INTO effects (body) VALUES ('{body}')")).await?;
            }
            (End::Swallow, Kind::Sqlite) => conn.batch_execute("ROLLBACK").await?,
            (End::Sever, Kind::Postgres) => {
                conn.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await?;
            }
            (End::Sever, Kind::Mariadb) => conn.batch_execute("KILL CONNECTION_ID()").await?,
        }
        Ok(())
    }
}

/// A handler that takes less than this is not the one that is waited for.
pub(crate) const SHORT: Duration = Duration::from_secs(2);
