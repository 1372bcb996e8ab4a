//! Of messages with the same dedup key one is enqueued, and everybody learns which.

use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel::SqliteConnection;
use diesel::connection::{Connection, LoadConnection, SimpleConnection};
use diesel::result::Error as DieselError;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::{Envelope, Error, OutboxBackend, Receipt, aio, dedup};
use outbox_tests::database::{Kind, TestDatabase};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

/// A message whose payload tells its dedup key.
fn message(key: &str) -> Envelope {
    Envelope::raw("order.placed", key).dedup_key(key)
}

fn send<C>(conn: &mut C, envelope: Envelope) -> Result<Receipt, Error>
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    outbox::transaction(conn, |conn| outbox::enqueue(conn, envelope))
}

fn roll_back<T>() -> Result<T, Error> {
    Err(DieselError::RollbackTransaction.into())
}

/// The dedup keys of what is enqueued, in order.
fn enqueued(database: &TestDatabase) -> Vec<String> {
    let column = if database.kind() == Kind::Mariadb { "CONVERT(dedup_key USING utf8mb4)" } else { "dedup_key" };
    let column = format!("coalesce({column}, '-')");
    let keys = database.query_text(&format!("SELECT {column} FROM outbox_messages ORDER BY seq LIMIT 1000"));
    keys.into_iter().map(|key| key.unwrap()).collect()
}

fn claims(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT count(*) FROM outbox_dedup_keys")
}

fn empty(database: &TestDatabase) {
    database.exec("DELETE FROM outbox_messages");
    database.exec("DELETE FROM outbox_dedup_keys");
}

/// Lets every key's window have ended `ms` ago; negative, it ends in the future.
fn let_windows_end(database: &TestDatabase, ms: i64) {
    let then = match database.kind() {
        Kind::Postgres => format!("clock_timestamp() - ({ms}) * interval '1 millisecond'"),
        Kind::Mariadb => format!("utc_timestamp(6) - INTERVAL ({ms}) * 1000 MICROSECOND"),
        Kind::Sqlite => format!("CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) - ({ms})"),
    };
    database.exec(&format!("UPDATE outbox_dedup_keys SET expires_at = {then}"));
}

/// What one connection after the other sees.
fn one_after_the_other<C>(database: &TestDatabase, connect: impl Fn() -> C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let (conn, other) = (&mut connect(), &mut connect());

    // The first wins, whoever comes later learns its id.
    let first = send(conn, message("k")).unwrap();
    assert!(!first.is_duplicate());
    for conn in [&mut *conn, &mut *other] {
        let second = send(conn, message("k")).unwrap();
        assert!(second.is_duplicate());
        assert_eq!(second.message_id, first.message_id);
    }
    assert_eq!(enqueued(database), ["k"]);

    // Another key, be it by one byte, or another topic is another message.
    for key in ["K", "k ", " k", "ḱ", "k\u{301}", "\\k", "k'"] {
        assert!(!send(conn, message(key)).unwrap().is_duplicate(), "{key:?}");
        assert!(send(other, message(key)).unwrap().is_duplicate(), "{key:?}");
    }
    let longest = ["x".repeat(255), format!("{}y", "x".repeat(254))];
    for key in &longest {
        assert!(!send(conn, message(key)).unwrap().is_duplicate());
    }
    assert!(!send(conn, Envelope::raw("order.paid", "k").dedup_key("k")).unwrap().is_duplicate());
    assert_eq!(enqueued(database).len() as i64, claims(database));
    empty(database);

    // A rollback frees the key, also that of a savepoint.
    let rolled_back = conn.transaction(|conn| {
        assert!(!outbox::enqueue(conn, message("k"))?.is_duplicate());
        assert!(outbox::enqueue(conn, message("k"))?.is_duplicate());
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    outbox::transaction(conn, |conn| {
        let inner = conn.transaction(|conn| {
            outbox::enqueue(conn, message("k"))?;
            roll_back::<()>()
        });
        assert!(inner.is_err());
        assert!(!outbox::enqueue(conn, message("k"))?.is_duplicate());
        Ok::<(), Error>(())
    })
    .unwrap();
    assert_eq!((enqueued(database).len(), claims(database)), (1, 1));

    // After its window a key is free, and taken again for the next one.
    let_windows_end(database, -60_000);
    let held = send(conn, message("k")).unwrap();
    assert!(held.is_duplicate());
    assert_eq!(dedup::purge(conn).unwrap(), 0);
    let_windows_end(database, 1);
    let again = send(conn, message("k").dedup_window(Duration::from_secs(60))).unwrap();
    assert!(!again.is_duplicate());
    assert_ne!(again.message_id, held.message_id);
    assert_eq!(send(other, message("k")).unwrap().message_id, again.message_id);
    assert_eq!((enqueued(database).len(), claims(database)), (2, 1));
    let_windows_end(database, 1);
    assert_eq!(dedup::purge(conn).unwrap(), 1);
    empty(database);

    // The window that was asked for is the one that is kept.
    send(conn, message("default")).unwrap();
    send(conn, message("long").dedup_window(Duration::from_secs(100_000))).unwrap();
    let seconds = |key: &str| match database.kind() {
        Kind::Postgres => format!(
            "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM outbox_dedup_keys WHERE dedup_key = '{key}'"
        ),
        Kind::Mariadb => format!(
            "SELECT timestampdiff(SECOND, utc_timestamp(6), expires_at) FROM outbox_dedup_keys WHERE dedup_key = '{key}'"
        ),
        Kind::Sqlite => format!(
            "SELECT (expires_at - CAST(strftime('%s', 'now') AS INTEGER) * 1000) / 1000 FROM outbox_dedup_keys WHERE dedup_key = '{key}'"
        ),
    };
    for (key, window) in [("default", 86_400), ("long", 100_000)] {
        let left = database.query_i64(&seconds(key));
        assert!((window - 60..=window + 1).contains(&left), "{key}: {left}");
    }
    empty(database);

    // Messages keep their order, whatever the order of their keys; of copies in one call the first is sent.
    outbox::transaction(conn, |conn| {
        for key in ["z", "a", "m"] {
            outbox::enqueue(conn, message(key))?;
        }
        Ok::<(), Error>(())
    })
    .unwrap();
    let plain = Envelope::raw("order.placed", "plain");
    let batch = ["y", "a", "b", "y"].map(message).into_iter().chain([plain]);
    let receipts = outbox::transaction(conn, |conn| outbox::enqueue_all(conn, batch)).unwrap();
    assert_eq!(receipts.iter().map(Receipt::is_duplicate).collect::<Vec<_>>(), [false, true, false, true, false]);
    assert_eq!(receipts[3].message_id, receipts[0].message_id);
    assert_eq!(enqueued(database), ["z", "a", "m", "y", "b", "-"]);
    empty(database);

    // A plain BEGIN is as good.
    conn.batch_execute("BEGIN").unwrap();
    assert!(!outbox::enqueue_unchecked(conn, message("k")).unwrap().is_duplicate());
    conn.batch_execute("ROLLBACK").unwrap();
    conn.batch_execute("BEGIN").unwrap();
    assert!(!outbox::enqueue_unchecked(conn, message("k")).unwrap().is_duplicate());
    assert!(outbox::enqueue_unchecked(conn, message("k")).unwrap().is_duplicate());
    conn.batch_execute("COMMIT").unwrap();
    assert_eq!(enqueued(database), ["k"]);
    if database.kind() != Kind::Sqlite {
        assert!(outbox::enqueue_unchecked(conn, message("free")).is_err());
        assert_eq!(claims(database), 1);
    }
    empty(database);
}

/// The keys and receipts of so many producers, each on a thread of its own.
fn side_by_side(producers: usize, produce: impl Fn(usize) -> Vec<(String, Receipt)> + Sync) -> Vec<(String, Receipt)> {
    std::thread::scope(|scope| {
        let produce = &produce;
        let threads: Vec<_> = (0..producers).map(|number| scope.spawn(move || produce(number))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Every id somebody was told for each key.
fn ids_told(receipts: &[(String, Receipt)]) -> HashMap<&str, Vec<Uuid>> {
    let mut ids: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for (key, receipt) in receipts {
        ids.entry(key).or_default().push(receipt.message_id);
    }
    ids
}

/// Many producers at once, each with all keys, each key in a transaction of its own; every third rolls back.
fn all_at_once<C>(database: &TestDatabase, connect: impl Fn() -> C + Sync)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    const PRODUCERS: usize = 20;
    const KEYS: usize = 20;
    let together = Barrier::new(PRODUCERS);
    let produce = |number: usize| {
        let mut conn = connect();
        let mut receipts = Vec::new();
        together.wait();
        for n in 0..KEYS {
            let key = format!("key-{}", (n + number) % KEYS);
            if (n + number).is_multiple_of(3) {
                let rolled_back = outbox::transaction(&mut conn, |conn| {
                    outbox::enqueue(conn, message(&key))?;
                    roll_back::<()>()
                });
                assert!(rolled_back.is_err());
            }
            // A deadlock is an error, after which one tries again.
            let receipt = (0..100).find_map(|_| send(&mut conn, message(&key)).ok());
            receipts.push((key, receipt.expect("one of many tries succeeds")));
        }
        receipts
    };
    let receipts = side_by_side(PRODUCERS, produce);
    let ids = ids_told(&receipts);
    assert!(ids.values().all(|ids| ids.len() == PRODUCERS && ids.iter().all(|id| *id == ids[0])), "{ids:?}");
    assert_eq!(receipts.iter().filter(|(_, receipt)| !receipt.is_duplicate()).count(), KEYS);
    let mut stored = enqueued(database);
    stored.sort();
    stored.dedup();
    assert_eq!((stored.len(), database.query_i64("SELECT count(*) FROM outbox_messages")), (KEYS, KEYS as i64));
}

#[test]
fn one_message_for_one_key_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    one_after_the_other(&database, || database.postgres());
    all_at_once(&database, || database.postgres());
}

#[test]
fn one_message_for_one_key_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    one_after_the_other(&database, || database.mariadb());
    all_at_once(&database, || database.mariadb());
}

#[test]
fn one_message_for_one_key_in_a_loose_mode_of_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    one_after_the_other(&database, || {
        let mut conn = database.mariadb();
        conn.batch_execute("SET SESSION sql_mode = ''").unwrap();
        conn
    });
}

#[test]
fn one_message_for_one_key_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    one_after_the_other(&database, || database.sqlite());
    all_at_once(&database, || database.sqlite());
}

/// Fifty producers, two keys in each transaction in whichever order comes, at whichever isolation; a fifth rolls back. A
/// transaction that the database ends is tried again.
fn stampede<C>(database: &TestDatabase, connect: impl Fn(usize) -> C + Sync)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    const PRODUCERS: usize = 50;
    const KEYS: usize = 200;
    const TURNS: usize = 16;
    let together = Barrier::new(PRODUCERS);
    let ended = AtomicUsize::new(0);
    let produce = |number: usize| {
        let mut dice = SmallRng::seed_from_u64(number as u64);
        let mut conn = connect(number);
        let mut receipts = Vec::new();
        together.wait();
        for turn in 0..TURNS {
            // All keys have their turn, and most of them several at the same time.
            let keys = [(number * TURNS + turn) % KEYS, dice.random_range(0..KEYS)].map(|n| format!("key-{n}"));
            let rolls_back = dice.random_ratio(1, 5);
            let taken = (0..200).find_map(|_| {
                let taken = outbox::transaction(&mut conn, |conn| {
                    let mut taken = Vec::new();
                    for key in &keys {
                        taken.push((key.clone(), outbox::enqueue(conn, message(key))?));
                    }
                    if rolls_back { roll_back() } else { Ok(taken) }
                });
                match taken {
                    Ok(taken) => Some(taken),
                    Err(Error::Database(DieselError::RollbackTransaction)) => Some(Vec::new()),
                    Err(_) => {
                        ended.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(dice.random_range(0..20)));
                        None
                    }
                }
            });
            receipts.extend(taken.expect("one of many tries succeeds"));
        }
        receipts
    };
    let receipts = side_by_side(PRODUCERS, produce);
    let ids = ids_told(&receipts);
    let split = ids.values().filter(|ids| ids.iter().any(|id| *id != ids[0])).count();
    let winners = receipts.iter().filter(|(_, receipt)| !receipt.is_duplicate()).count();
    let (rows, mut stored) = (database.query_i64("SELECT count(*) FROM outbox_messages"), enqueued(database));
    stored.sort();
    stored.dedup();
    println!(
        "{}: {} receipts for {} keys, winners {winners}, keys told two ids {split}, rows {rows}; {} transactions ended \
         by the database and tried again",
        database.kind(),
        receipts.len(),
        ids.len(),
        ended.into_inner()
    );
    assert_eq!((split, winners, rows as usize, stored.len()), (0, ids.len(), ids.len(), ids.len()));
    assert!(ids.len() > KEYS * 9 / 10, "only {} keys were used", ids.len());
}

#[test]
fn fifty_producers_on_two_hundred_keys_enqueue_each_once_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    stampede(&database, |number| {
        let mut conn = database.postgres();
        let level = ["read committed", "repeatable read", "serializable"][number % 3];
        conn.batch_execute(&format!("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")).unwrap();
        conn
    });
}

#[test]
fn fifty_producers_on_two_hundred_keys_enqueue_each_once_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    stampede(&database, |number| {
        let mut conn = database.mariadb();
        let level = ["READ COMMITTED", "REPEATABLE READ"][number % 2];
        conn.batch_execute(&format!("SET SESSION TRANSACTION ISOLATION LEVEL {level}")).unwrap();
        conn
    });
}

#[test]
fn fifty_producers_on_two_hundred_keys_enqueue_each_once_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    stampede(&database, |_| database.sqlite());
}

/// Two transactions take two keys in opposite order.
fn opposite_order<C>(database: &TestDatabase, connect: impl Fn() -> C + Sync)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let both_hold_one = Barrier::new(2);
    let produce = |keys: [&str; 2]| {
        let mut conn = connect();
        outbox::transaction(&mut conn, |conn| {
            let first = outbox::enqueue(conn, message(keys[0]))?;
            both_hold_one.wait();
            Ok::<_, Error>([first, outbox::enqueue(conn, message(keys[1]))?])
        })
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(|| produce(["b", "a"]));
        [produce(["a", "b"]), other.join().unwrap()]
    });
    let kept: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(kept.len(), 1, "{results:?}");
    assert!(kept[0].iter().all(|receipt| !receipt.is_duplicate()), "{results:?}");
    assert_eq!((enqueued(database).len(), claims(database)), (2, 2));
}

#[test]
fn keys_taken_in_opposite_order_end_in_an_error_and_lose_nothing_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    opposite_order(&database, || database.postgres());
}

#[test]
fn keys_taken_in_opposite_order_end_in_an_error_and_lose_nothing_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    opposite_order(&database, || database.mariadb());
}

/// The caller swallows the error of an insert and commits.
fn failed_insert<C>(database: &TestDatabase, conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    outbox::transaction(conn, |conn| {
        outbox::enqueue(conn, message("before"))?;
        assert!(outbox::enqueue(conn, Envelope::raw("no.way", "x").dedup_key("k")).is_err());
        assert!(outbox::enqueue_all(conn, [message("k"), Envelope::raw("no.way", "x")]).is_err());
        outbox::enqueue(conn, message("after"))
    })
    .unwrap();
    assert_eq!((enqueued(database), claims(database)), (vec!["before".to_owned(), "after".to_owned()], 2));
}

#[test]
fn key_of_a_message_that_could_not_be_written_stays_free() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    database.exec(
        "CREATE TRIGGER no_way BEFORE INSERT ON outbox_messages FOR EACH ROW \
         BEGIN IF NEW.topic = 'no.way' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no way'; END IF; END",
    );
    failed_insert(&database, &mut database.mariadb());

    let database = TestDatabase::with_schema(Kind::Sqlite);
    database.exec(
        "CREATE TRIGGER no_way BEFORE INSERT ON outbox_messages WHEN NEW.topic = 'no.way' \
         BEGIN SELECT raise(ABORT, 'no way'); END",
    );
    failed_insert(&database, &mut database.sqlite());
}

#[test]
fn no_key_is_taken_in_a_transaction_the_server_has_ended() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let lost = database.mariadb().transaction(|conn| {
        conn.batch_execute("CREATE TABLE surprise (id INT)")?;
        assert!(outbox::enqueue(conn, message("k")).unwrap_err().is_not_in_transaction());
        assert!(outbox::enqueue_all(conn, [message("k")]).unwrap_err().is_not_in_transaction());
        roll_back::<()>()
    });
    assert!(lost.is_err());
    assert_eq!((enqueued(&database).len(), claims(&database)), (0, 0));
    assert!(outbox::enqueue(&mut database.mariadb(), message("k")).unwrap_err().is_not_in_transaction());
}

async fn over_diesel_async<C>(database: &TestDatabase, conn: &mut C)
where
    C: AsyncConnection<Backend: OutboxBackend> + 'static,
{
    let send = async |conn: &mut C| aio::transaction(conn, async |conn| aio::enqueue(conn, message("k")).await).await;
    let rolled_back = conn.transaction(async |conn| {
        aio::enqueue(conn, message("k")).await?;
        roll_back::<()>()
    });
    assert!(rolled_back.await.is_err());
    let first = send(conn).await.unwrap();
    let second = send(conn).await.unwrap();
    assert!(!first.is_duplicate() && second.is_duplicate());
    assert_eq!(first.message_id, second.message_id);
    let batch = ["z", "k", "a", "z"].map(message);
    let receipts = aio::transaction(conn, async |conn| aio::enqueue_all(conn, batch).await).await.unwrap();
    assert_eq!(receipts.iter().map(Receipt::is_duplicate).collect::<Vec<_>>(), [false, true, false, true]);
    assert_eq!(enqueued(database), ["k", "z", "a"]);
    conn.batch_execute("BEGIN").await.unwrap();
    assert!(aio::enqueue_unchecked(conn, message("k")).await.unwrap().is_duplicate());
    conn.batch_execute("COMMIT").await.unwrap();
    let_windows_end(database, 1);
    assert_eq!(aio::dedup::purge(conn).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_for_one_key_over_diesel_async_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = AsyncPgConnection::establish(database.url()).await.unwrap();
    over_diesel_async(&database, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_for_one_key_over_diesel_async_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = AsyncMysqlConnection::establish(database.url()).await.unwrap();
    over_diesel_async(&database, &mut conn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_for_one_key_over_diesel_async_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let path = database.path().to_str().unwrap();
    let mut conn = SyncConnectionWrapper::<SqliteConnection>::establish(path).await.unwrap();
    over_diesel_async(&database, &mut conn).await;
}
