//! The roles of docs/SECURITY.md: what each may do, it can; what it may not, it cannot.
//!
//! The statements of the page are run as they stand, under names of their own, because roles belong to the whole server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::connection::{Connection, LoadConnection, SimpleConnection};
use diesel::{MysqlConnection, PgConnection};
use outbox::{Envelope, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{Ended, Process, relay};
use relay::retry::{RetryPolicy, Schedule};
use relay::{Context, Handler, HandlerError, Relay};

use super::pages::{Block, blocks, pages};

const LIMIT: Duration = Duration::from_secs(60);
const ROLES: [&str; 4] = ["shop_migrator", "shop_producer", "shop_relay", "shop_reader"];

/// A database and its roles, dropped together.
struct Stage {
    database: TestDatabase,
}

impl Stage {
    fn new(kind: Kind) -> Stage {
        Stage { database: TestDatabase::create(kind) }
    }

    /// The name a role of the page goes by here; MySQL allows 32 characters.
    fn name(&self, role: &str) -> String {
        let database = self.database.name();
        format!("{role}_{}", &database[database.len() - 8..])
    }

    /// The statements of the page for this database, number `n`.
    fn statements(&self, n: usize) -> String {
        let mark = if self.database.kind() == Kind::Postgres { "postgres" } else { "mariadb" };
        let blocks = blocks(&pages(), "sql");
        let of_roles = blocks.iter().filter(|block| block.is_marked("roles") && block.is_marked(mark));
        let of_roles: Vec<&Block> = of_roles.collect();
        assert_eq!(of_roles.len(), 2, "the page makes the roles, and gives them their rights");
        assert!(of_roles.iter().all(|block| block.place.starts_with("docs/SECURITY.md")));
        let text = ROLES.iter().fold(of_roles[n].text.clone(), |text, role| text.replace(role, &self.name(role)));
        text.replace("shop.", &format!("{}.", self.database.name()))
    }

    fn exec(&self, n: usize) {
        let text = self.statements(n);
        self.database.exec(&text);
        if self.database.kind() == Kind::Mariadb {
            // Fresh servers have a nameless user at localhost, who comes before one from anywhere.
            self.database.exec(&text.replace("'%'", "'localhost'"));
        }
    }

    /// The URL of the database for a role.
    fn url(&self, role: &str) -> String {
        let (scheme, rest) = self.database.url().split_once("://").unwrap();
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        format!("{scheme}://{}:change-me@{place}", self.name(role))
    }

    fn relay(&self, role: &str, arguments: &[&str]) -> Ended {
        let folder = tempfile::tempdir().unwrap();
        let configuration = "[destinations.books]\nurl = \"http://127.0.0.1:9/\"\ntopics = [\"**\"]\n";
        std::fs::write(folder.path().join("relay.toml"), configuration).unwrap();
        let mut command = relay(arguments.iter().chain(&["--actor", "ada", "--yes"]));
        command.current_dir(folder.path()).env("DATABASE_URL", self.url(role));
        Process::run(command, LIMIT)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for role in ROLES.map(|role| self.name(role)) {
            // Some may not have been made.
            let _ = match self.database.kind() {
                Kind::Postgres => self.database.try_exec(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")),
                _ => self.database.try_exec(&format!("DROP USER IF EXISTS {role}@'%', {role}@'localhost'")),
            };
        }
    }
}

fn is_denied(conn: &mut impl SimpleConnection, statement: &str) {
    let error = conn.batch_execute(statement).expect_err(statement).to_string();
    assert!(error.contains("denied") || error.contains("must be owner"), "`{statement}`: {error}");
}

fn produces_and_nothing_else<C>(conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    conn.transaction(|conn| {
        let full = Envelope::raw("order.placed", "1").key("k").header("x-a", "b").to("letters");
        outbox::enqueue(conn, full.delay(Duration::from_millis(1)))?;
        outbox::enqueue(conn, Envelope::raw("order.placed", b"\0".to_vec()))?;
        outbox::enqueue(conn, Envelope::raw("order.placed", "2").dedup_key("once"))?;
        let copy = outbox::enqueue(conn, Envelope::raw("order.placed", "2").dedup_key("once"))?;
        assert!(copy.is_duplicate());
        Ok::<_, outbox::Error>(())
    })
    .unwrap();
    for _ in 0..2 {
        outbox::inbox::once(conn, "ledger", "1", |_| Ok::<_, outbox::Error>(())).unwrap();
    }
    for forbidden in [
        "SELECT payload FROM outbox_messages",
        "UPDATE outbox_messages SET topic = 'x'",
        "DELETE FROM outbox_messages",
        "INSERT INTO outbox_messages (operation_id, topic, payload) VALUES (NULL, 'x', '{}')",
        "SELECT payload FROM outbox_deliveries",
        "SELECT payload FROM outbox_dead_letters",
        "DELETE FROM outbox_dead_letters",
        "DELETE FROM outbox_inbox",
        "UPDATE outbox_destinations SET paused_at = NULL",
        "INSERT INTO outbox_audit (actor, action, target) VALUES ('x', 'y', 'z')",
        "UPDATE outbox_partitions SET owner = NULL",
        "DROP TABLE outbox_messages",
    ] {
        is_denied(conn, forbidden);
    }
}

fn cannot_forge_or_cover_up(conn: &mut impl SimpleConnection) {
    for forbidden in [
        "INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')",
        "DELETE FROM outbox_audit",
        "UPDATE outbox_audit SET actor = 'somebody'",
        "DROP TABLE outbox_messages",
    ] {
        is_denied(conn, forbidden);
    }
}

fn only_reads(conn: &mut impl SimpleConnection) {
    for forbidden in [
        "INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{}')",
        "DELETE FROM outbox_messages",
        "UPDATE outbox_dead_letters SET reason = 'x'",
        "UPDATE outbox_destinations SET paused_at = NULL",
        "INSERT INTO outbox_audit (actor, action, target) VALUES ('x', 'y', 'z')",
    ] {
        is_denied(conn, forbidden);
    }
}

/// Delivers, retries and gives up, as the relay's role, until nothing waits.
async fn delivers(stage: &Stage) {
    let calls = Arc::new(AtomicU32::new(0));
    for _round in 0..100 {
        let counted = Arc::clone(&calls);
        let letters = Handler::raw("letters", move |_message, _context: Context| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(HandlerError::reject("not this one")) }
        });
        let books = Handler::raw("books", |_message, context: Context| async move {
            // The second attempt comes from a row that waited.
            if context.attempt() > 1 { Ok(()) } else { Err(HandlerError::retry("not yet")) }
        });
        let policy =
            RetryPolicy { schedule: Schedule::Pauses(vec![Duration::from_millis(1)]), ..RetryPolicy::internal() };
        let builder = Relay::builder(stage.url("shop_relay")).retry(policy);
        let relay = builder.destination(letters).destination(books).build().await.unwrap();
        let left = relay.drain().await.unwrap().status;
        if left.pending == 0 && left.waiting.is_empty() {
            assert_eq!(calls.load(Ordering::Relaxed), 3);
            return;
        }
    }
    panic!("something waits although everything was due");
}

async fn each_role_can_do_its_work_and_nothing_else<C>(kind: Kind)
where
    C: Connection + LoadConnection<Backend: OutboxBackend> + SimpleConnection,
{
    let stage = Stage::new(kind);
    let works = |role: &str, arguments: &[&str]| {
        let ended = stage.relay(role, arguments);
        assert!(ended.status.success(), "{role}: relay {arguments:?}: {ended:?}");
        ended
    };
    stage.exec(0);
    works("shop_migrator", &["migrate", "up"]);
    stage.exec(1);

    produces_and_nothing_else(&mut C::establish(&stage.url("shop_producer")).unwrap());
    delivers(&stage).await;
    let dead = "SELECT count(*) FROM outbox_dead_letters";
    assert_eq!(stage.database.query_i64(dead), 3);

    for role in ["shop_relay", "shop_reader"] {
        let commands = ["status", "dead list", "dead groups", "dead export", "messages list", "destinations list"];
        for command in [&commands[..], &["keys list"]].concat() {
            works(role, &command.split(' ').collect::<Vec<_>>());
        }
        works(role, &["migrate", "status"]);
    }
    assert!(!stage.relay("shop_reader", &["dead", "discard", "--all"]).status.success());
    assert!(!stage.relay("shop_reader", &["destinations", "pause", "books"]).status.success());
    stage.database.exec("UPDATE outbox_dead_letters SET blocks_key = true WHERE ordering_key = 'k'");
    assert!(!stage.relay("shop_reader", &["keys", "release", "letters", "k"]).status.success());
    assert_eq!(stage.database.query_i64("SELECT count(*) FROM outbox_dead_letters WHERE blocks_key"), 1);
    works("shop_relay", &["keys", "release", "letters", "k"]);
    assert_eq!(stage.database.query_i64("SELECT count(*) FROM outbox_dead_letters WHERE blocks_key"), 0);
    assert_eq!(stage.database.query_i64(dead), 3);

    works("shop_relay", &["check", "--connect"]);
    assert_eq!(stage.relay("shop_reader", &["check", "--connect"]).status.code(), Some(2));
    works("shop_relay", &["destinations", "pause", "books"]);
    works("shop_relay", &["destinations", "resume", "books"]);
    let first = stage.database.query_i64("SELECT min(id) FROM outbox_dead_letters").to_string();
    works("shop_relay", &["dead", "redrive", &first]);
    works("shop_relay", &["dead", "discard", "--all"]);
    assert_eq!(stage.database.query_i64(dead), 0);
    works("shop_reader", &["messages", "list"]);

    cannot_forge_or_cover_up(&mut C::establish(&stage.url("shop_relay")).unwrap());
    only_reads(&mut C::establish(&stage.url("shop_reader")).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_can_do_its_work_and_nothing_else_on_postgres() {
    each_role_can_do_its_work_and_nothing_else::<PgConnection>(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_can_do_its_work_and_nothing_else_on_mariadb() {
    each_role_can_do_its_work_and_nothing_else::<MysqlConnection>(Kind::Mariadb).await;
}
