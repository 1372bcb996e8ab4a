//! The schema, applied by the library: by many at once, again and again, taken back, and as plain SQL.

use std::sync::Barrier;

use diesel::connection::{LoadConnection, SimpleConnection};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use outbox::migrations::{self, State};
use outbox::{Database, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};

const NAMES: [&str; 1] = ["2026-11-22-000000_outbox"];
const STARTERS: usize = 8;

/// Starts several at once on an empty database and returns how many applied something.
fn start_together<C>(connect: impl Fn() -> C + Sync) -> usize
where
    C: LoadConnection<Backend: OutboxBackend> + 'static,
{
    let barrier = Barrier::new(STARTERS);
    std::thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut conn = connect();
                    barrier.wait();
                    migrations::run(&mut conn).unwrap()
                })
            })
            .collect();
        starters.into_iter().map(|starter| starter.join().unwrap()).filter(|applied| !applied.is_empty()).count()
    })
}

fn holds_one_schema(database: &TestDatabase) {
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_schema_migrations"), 1);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_meta"), 1);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_partitions"), 32);
}

#[test]
fn processes_that_start_together_apply_the_schema_once_on_postgres() {
    let database = TestDatabase::create(Kind::Postgres);
    assert_eq!(start_together(|| database.postgres()), 1);
    holds_one_schema(&database);
}

#[test]
fn processes_that_start_together_apply_the_schema_once_on_mariadb() {
    let database = TestDatabase::create(Kind::Mariadb);
    assert_eq!(start_together(|| database.mariadb()), 1);
    holds_one_schema(&database);
}

#[test]
fn processes_that_start_together_apply_the_schema_once_on_sqlite() {
    let database = TestDatabase::create(Kind::Sqlite);
    // Plain connections, as diesel opens them: they do not wait for another writer by themselves.
    let path = database.path().to_str().unwrap().to_owned();
    let connect = || <diesel::SqliteConnection as diesel::Connection>::establish(&path).unwrap();
    assert_eq!(start_together(connect), 1);
    holds_one_schema(&database);
}

#[test]
fn async_connections_migrate_through_their_blocking_wrapper() {
    let postgres = TestDatabase::create(Kind::Postgres);
    assert_eq!(start_together(|| wrapped::<AsyncConnectionWrapper<AsyncPgConnection>>(postgres.url())), 1);
    holds_one_schema(&postgres);
    let mariadb = TestDatabase::create(Kind::Mariadb);
    assert_eq!(start_together(|| wrapped::<AsyncConnectionWrapper<AsyncMysqlConnection>>(mariadb.url())), 1);
    holds_one_schema(&mariadb);
}

fn wrapped<C: diesel::Connection>(url: &str) -> C {
    C::establish(url).unwrap()
}

/// Applied, asked about, applied again, taken back, asked about.
fn comes_and_goes<C>(mut conn: C)
where
    C: LoadConnection<Backend: OutboxBackend> + 'static,
{
    let conn = &mut conn;
    let states = |conn: &mut C| migrations::status(conn).unwrap().iter().map(|one| one.state).collect::<Vec<_>>();
    assert_eq!(states(conn), [State::Pending]);
    assert_eq!(migrations::revert(conn).unwrap(), None);
    assert_eq!(migrations::run(conn).unwrap(), NAMES);
    assert_eq!(states(conn), [State::Applied]);
    assert!(migrations::run(conn).unwrap().is_empty());
    assert_eq!(migrations::revert(conn).unwrap().as_deref(), Some(NAMES[0]));
    assert_eq!(states(conn), [State::Pending]);
    assert_eq!(migrations::run(conn).unwrap(), NAMES);
    conn.batch_execute("INSERT INTO outbox_schema_migrations (version) VALUES ('29990101000000')").unwrap();
    assert_eq!(states(conn), [State::Applied, State::Unknown]);
    assert!(migrations::run(conn).unwrap().is_empty());
}

#[test]
fn schema_comes_and_goes_on_postgres() {
    comes_and_goes(TestDatabase::create(Kind::Postgres).postgres());
}

#[test]
fn schema_comes_and_goes_on_mariadb() {
    let database = TestDatabase::create(Kind::Mariadb);
    comes_and_goes(database.mariadb());
}

#[test]
fn schema_comes_and_goes_on_sqlite() {
    let database = TestDatabase::create(Kind::Sqlite);
    comes_and_goes(database.sqlite());
}

#[test]
fn printed_sql_is_what_the_library_would_have_applied() {
    for (kind, name) in
        [(Kind::Postgres, Database::Postgres), (Kind::Mariadb, Database::Mysql), (Kind::Sqlite, Database::Sqlite)]
    {
        let database = TestDatabase::create(kind);
        database.exec(&migrations::sql(name));
        holds_one_schema(&database);
        let applied = match kind {
            Kind::Postgres => migrations::run(&mut database.postgres()),
            Kind::Mariadb => migrations::run(&mut database.mariadb()),
            Kind::Sqlite => migrations::run(&mut database.sqlite()),
        };
        assert!(applied.unwrap().is_empty(), "{kind}");
    }
}

#[test]
fn migration_that_was_cut_off_on_mariadb_is_completed_by_the_next_start() {
    let database = TestDatabase::create(Kind::Mariadb);
    let whole = migrations::sql(Database::Mysql);
    let half = whole.find("CREATE TABLE IF NOT EXISTS outbox_partitions").unwrap();
    database.exec(&whole[..half]);
    database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('early.bird', 'x')");
    assert_eq!(migrations::run(&mut database.mariadb()).unwrap(), NAMES);
    holds_one_schema(&database);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 1, "what was enqueued meanwhile stays");
}

#[test]
fn migrations_inside_a_mariadb_transaction_are_refused() {
    let database = TestDatabase::create(Kind::Mariadb);
    let mut conn = database.mariadb();
    let error = diesel::Connection::transaction(&mut conn, migrations::run).unwrap_err();
    assert!(error.to_string().contains("inside a transaction"), "{error}");
    assert_eq!(database.query_i64("SELECT count(*) FROM information_schema.tables WHERE table_schema = database()"), 0);
}

#[test]
fn role_that_may_only_read_the_versions_starts_on_a_migrated_database() {
    let database = TestDatabase::create(Kind::Postgres);
    let mut conn = database.postgres();
    migrations::run(&mut conn).unwrap();
    let role = format!("{}_reader", database.name());
    conn.batch_execute(&format!("CREATE ROLE {role}; GRANT SELECT ON outbox_schema_migrations TO {role}")).unwrap();
    conn.batch_execute(&format!("SET ROLE {role}")).unwrap();
    let applied = migrations::run(&mut conn);
    conn.batch_execute(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
    assert!(applied.unwrap().is_empty());
}
