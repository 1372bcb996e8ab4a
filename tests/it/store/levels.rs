//! Applications at REPEATABLE READ and SERIALIZABLE, whose transactions may be older than what a relay has written: they
//! decide about a key by what is there, or are told to begin again.

use diesel::connection::{Connection, LoadConnection, SimpleConnection, TransactionManager};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use outbox::dead_letters::{self, By};
use outbox::destinations::{self, Waiting};
use outbox::keys;
use outbox::{Error, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::{Message, Seq};
use relay::store::{Dies, Reason, State, WaitingChange};

use super::fixture::{Draft, Outbox, dies, moved, outcome, unit, waits};
use crate::dead_letters::{Plant, on};

/// What the databases are asked for where it is not what they do anyway.
fn levels(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Postgres => &["REPEATABLE READ", "SERIALIZABLE"],
        Kind::Mariadb => &["REPEATABLE READ", REFUSING],
        Kind::Sqlite => &[""],
    }
}

/// MariaDB's REPEATABLE READ of later releases.
const REFUSING: &str = "REPEATABLE READ with innodb_snapshot_isolation";

fn by() -> By {
    By { actor: "ada".to_owned(), reason: None }
}

/// A transaction that has seen the tables before `meanwhile` and does its work after it.
async fn in_an_older_state<C, T>(
    conn: &mut C,
    (kind, level): (Kind, &str),
    meanwhile: impl Future<Output = ()>,
    work: impl FnOnce(&mut C) -> Result<T, Error>,
) -> Result<T, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    // MariaDB takes a level for the next transaction, PostgreSQL for the one that is open.
    let set = format!("SET TRANSACTION ISOLATION LEVEL {}", level.trim_end_matches(" with innodb_snapshot_isolation"));
    if level == REFUSING {
        refuse_what_has_changed(conn);
    }
    if kind == Kind::Mariadb {
        conn.batch_execute(&set).unwrap();
    }
    C::TransactionManager::begin_transaction(conn).unwrap();
    if kind == Kind::Postgres {
        conn.batch_execute(&set).unwrap();
    }
    conn.batch_execute("SELECT count(*) FROM outbox_deliveries").unwrap();
    meanwhile.await;
    let done = work(conn);
    match &done {
        Ok(_) => C::TransactionManager::commit_transaction(conn).unwrap(),
        Err(_) => C::TransactionManager::rollback_transaction(conn).unwrap(),
    }
    done
}

/// Does some work in an older state, and repeats it where the database asks for that.
async fn done<T>(outbox: &Outbox, level: &str, meanwhile: impl Future<Output = ()>, work: impl Work<T>) -> T {
    let outcome = on!(outbox.database, conn => {
        in_an_older_state(conn, (outbox.kind(), level), meanwhile, |conn| work.over(conn)).await
    });
    match (outbox.kind(), outcome) {
        (Kind::Mariadb, Ok(value)) => value,
        (Kind::Mariadb, Err(Error::Database(told))) => {
            assert!(level == REFUSING && told.to_string().contains("Record has changed"), "{told}");
            on!(outbox.database, conn => outbox::transaction(conn, |conn| work.over(conn))).unwrap()
        }
        (Kind::Postgres, Err(Error::Database(DieselError::DatabaseError(kind, told)))) => {
            assert!(matches!(kind, DatabaseErrorKind::SerializationFailure), "{kind:?}: {}", told.message());
            on!(outbox.database, conn => outbox::transaction(conn, |conn| work.over(conn))).unwrap()
        }
        (Kind::Sqlite, Err(Error::Database(told))) => {
            assert!(told.to_string().contains("locked"), "{told}");
            on!(outbox.database, conn => outbox::transaction(conn, |conn| work.over(conn))).unwrap()
        }
        (kind, Err(other)) => panic!("{kind} at {level}: {other}"),
        (kind, Ok(_)) => panic!("{kind} at {level} decided by what it could not know"),
    }
}

/// Something an application does over whichever connection it has.
trait Work<T> {
    fn over<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C) -> Result<T, Error>;
}

struct Cancel(Message);

impl Work<bool> for Cancel {
    fn over<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C) -> Result<bool, Error> {
        outbox::cancel(conn, (self.0.id, self.0.seq))
    }
}

#[derive(Clone, Copy, Debug)]
enum Decide {
    Discard,
    Redrive,
    Release,
}

struct Decision(Decide, i64);

impl Work<()> for Decision {
    fn over<C: LoadConnection<Backend: OutboxBackend>>(&self, conn: &mut C) -> Result<(), Error> {
        match self.0 {
            Decide::Discard => dead_letters::discard(conn, &[self.1], &by()).map(drop),
            Decide::Redrive => dead_letters::redrive(conn, &[self.1], &by()).map(drop),
            Decide::Release => keys::release(conn, "mail", b"k", &by()).map(drop),
        }
    }
}

async fn parked(outbox: &Outbox, key: &str) -> Message {
    let message = outbox.keyed(key).await;
    parks(outbox, &message).await;
    message
}

async fn parks(outbox: &Outbox, message: &Message) {
    outbox.settle_all(vec![moved(message, vec![unit("mail", waits(State::Retry))])], vec![]).await;
}

/// The message becomes a dead letter that blocks its key.
async fn blocks(outbox: &Outbox, message: &Message) {
    let dead = Dies { blocks_key: true, ..dies(Reason::Exhausted) };
    outbox.settle_all(vec![moved(message, vec![unit("mail", dead)])], vec![]).await;
}

fn letter(outbox: &Outbox, seq: Seq) -> i64 {
    outbox.database.query_i64(&format!("SELECT id FROM outbox_dead_letters WHERE seq = {seq}"))
}

fn free(seqs: &[Seq]) -> Vec<(Seq, String)> {
    seqs.iter().map(|seq| (*seq, "mail".to_owned())).collect()
}

async fn who_comes_while_an_older_transaction_cancels_the_head_is_not_left_behind(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for level in levels(outbox.kind()) {
        let head = parked(&outbox, "k").await;
        let follower = outbox.keyed("k").await;
        let (seq, meanwhile) = (follower.seq, parks(&outbox, &follower));
        assert!(done(&outbox, level, meanwhile, Cancel(head)).await);
        assert_eq!(outbox.free(), free(&[seq]), "{level}");
        outbox.database.exec("DELETE FROM outbox_deliveries");
    }
}
for_each_database!(who_comes_while_an_older_transaction_cancels_the_head_is_not_left_behind);

async fn a_lower_number_that_comes_while_an_older_transaction_cancels_goes_first(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for level in levels(outbox.kind()) {
        let (first, late) = (parked(&outbox, "k").await, outbox.keyed("k").await);
        let last = parked(&outbox, "k").await;
        let (seq, meanwhile) = (late.seq, parks(&outbox, &late));
        assert!(done(&outbox, level, meanwhile, Cancel(first)).await);
        assert_eq!(outbox.free(), free(&[seq]), "{level}: not {}", last.seq);
        outbox.database.exec("DELETE FROM outbox_deliveries");
    }
}
for_each_database!(a_lower_number_that_comes_while_an_older_transaction_cancels_goes_first);

/// Two letters block the key; who decides about the one has not seen the other come.
async fn a_dead_letter_that_comes_while_an_older_transaction_decides_blocks_its_key(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for level in levels(outbox.kind()) {
        for decide in [Decide::Discard, Decide::Redrive, Decide::Release] {
            let (first, second) = (outbox.keyed("k").await, outbox.keyed("k").await);
            blocks(&outbox, &first).await;
            let follower = parked(&outbox, "k").await.seq;
            assert_eq!(outbox.free(), free(&[]));
            let decision = Decision(decide, letter(&outbox, first.seq));
            done(&outbox, level, blocks(&outbox, &second), decision).await;
            // A release is of all letters of the key.
            let released = if matches!(decide, Decide::Release) { vec![follower] } else { vec![] };
            assert_eq!(outbox.free(), free(&released), "{level}, {decide:?}: {:?}", outbox.dead());
            outbox.database.exec("DELETE FROM outbox_deliveries");
            outbox.database.exec("DELETE FROM outbox_dead_letters");
        }
    }
}
for_each_database!(a_dead_letter_that_comes_while_an_older_transaction_decides_blocks_its_key);

async fn a_letter_redriven_while_an_older_transaction_cancels_goes_first(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    for level in levels(outbox.kind()) {
        let dead = outbox.keyed("k").await;
        blocks(&outbox, &dead).await;
        let (second, _third) = (parked(&outbox, "k").await, parked(&outbox, "k").await);
        let id = letter(&outbox, dead.seq);
        let redrive =
            async { on!(outbox.database, conn => dead_letters::redrive(conn, &[id], &by())).map(drop).unwrap() };
        assert!(done(&outbox, level, redrive, Cancel(second)).await);
        assert_eq!(outbox.free(), free(&[dead.seq]), "{level}");
        outbox.database.exec("DELETE FROM outbox_deliveries");
    }
}
for_each_database!(a_letter_redriven_while_an_older_transaction_cancels_goes_first);

/// What only leaves the tables makes no new version of a partition's row: its lock is enough.
#[tokio::test(flavor = "multi_thread")]
async fn what_adds_nothing_to_a_key_writes_no_partition_on_postgres() {
    let outbox = Outbox::new(TestDatabase::with_schema(Kind::Postgres)).await;
    let versions = || {
        outbox.database.query_text("SELECT string_agg(xmin::text, ' ' ORDER BY partition_no) FROM outbox_partitions")
    };
    parked(&outbox, "k").await;
    let before = versions();
    let head = outbox.due("mail").await.remove(0);
    let again = outcome(&head, WaitingChange::Waits(waits(State::Retry)));
    outbox.settle_all(vec![], vec![again]).await;
    let head = outbox.due("mail").await.remove(0);
    outbox.settle_all(vec![], vec![outcome(&head, WaitingChange::Delivered)]).await;
    let keyless = outbox.insert(&Draft::default());
    let keyless = outbox.message(keyless).await;
    parks(&outbox, &keyless).await;
    assert_eq!(versions(), before);
    parked(&outbox, "k").await;
    assert_ne!(versions(), before);
}

/// Refuses rows of transactions at another level than READ COMMITTED.
fn want_read_committed(database: &TestDatabase) {
    for table in ["outbox_audit", "outbox_dead_letters", "outbox_deliveries"] {
        database.exec(&format!(
            "CREATE OR REPLACE FUNCTION level_is_right() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF current_setting('transaction_isolation') <> 'read committed' THEN \
                 RAISE EXCEPTION 'at %', current_setting('transaction_isolation'); END IF; RETURN NEW; END $$; \
             CREATE TRIGGER level_is_right BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION level_is_right()"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_and_work_by_hand_are_read_committed_whatever_the_default_is_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let name = database.name().to_owned();
    database.exec(&format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));
    let outbox = Outbox::new(database).await;
    want_read_committed(&outbox.database);
    let insert = "INSERT INTO outbox_audit (actor, action, target) VALUES ('a', 'b', 'c')";
    let refused = outbox.database.try_exec(insert).unwrap_err().to_string();
    assert!(refused.starts_with("at serializable"), "the triggers look at the level: {refused}");
    let mut letters = Vec::new();
    for _ in 0..3 {
        let message = outbox.keyed("k").await;
        blocks(&outbox, &message).await;
        letters.push(letter(&outbox, message.seq));
    }
    let waiting = parked(&outbox, "k").await;
    let conn = &mut outbox.database.postgres();
    dead_letters::redrive(conn, &letters[..1], &by()).unwrap();
    dead_letters::discard(conn, &letters[1..2], &by()).unwrap();
    keys::release(conn, "mail", b"k", &by()).unwrap();
    let cancelled = outbox::messages::cancel(conn, waiting.id, Some(waiting.seq), &by()).unwrap();
    assert_eq!(cancelled.waiting, 1);
    let silent = outbox::relays::list(conn).unwrap().relays;
    destinations::remove(conn, "mail", Waiting::Dead, &silent, &by()).unwrap();
    assert_eq!(outbox.database.query_i64("SELECT count(DISTINCT action) FROM outbox_audit"), 5);
}

/// Work by hand waits for a partition whose relay writes meanwhile about what is worked on.
fn waits_for_a_relay<C>(database: &TestDatabase, connect: impl Fn() -> C + Sync)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let id = Plant::blocking(5, "k").dead(database);
    let mut relay = connect();
    relay.batch_execute("BEGIN").unwrap();
    relay.batch_execute("UPDATE outbox_partitions SET epoch = epoch + 1").unwrap();
    std::thread::scope(|scope| {
        let redriven = scope.spawn(|| dead_letters::redrive(&mut connect(), &[id], &by()));
        database.until_a_lock_is_waited_for("the redrive waits for the partition");
        relay.batch_execute("UPDATE outbox_dead_letters SET last_error = 'seen once more'").unwrap();
        relay.batch_execute("COMMIT").unwrap();
        assert_eq!(redriven.join().unwrap().unwrap().done, [id]);
    });
    let seen = "SELECT count(*) FROM outbox_deliveries WHERE last_error = 'seen once more' AND NOT blocked";
    assert_eq!(database.query_i64(seen), 1);
}

#[test]
fn work_by_hand_sees_what_came_while_it_waited_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let name = database.name().to_owned();
    database.exec(&format!("ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"));
    waits_for_a_relay(&database, || database.postgres());
}

#[test]
fn work_by_hand_sees_what_came_while_it_waited_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    waits_for_a_relay(&database, || {
        let mut conn = database.mariadb();
        conn.batch_execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").unwrap();
        refuse_what_has_changed(&mut conn);
        conn
    });
}

/// As MariaDB does by itself from its release 11.6 on; MySQL never does.
fn refuse_what_has_changed<C: Connection>(conn: &mut C) {
    if let Err(refused) = conn.batch_execute("SET SESSION innodb_snapshot_isolation = ON") {
        println!("this server has no such setting: {refused}");
    }
}
