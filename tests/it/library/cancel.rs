//! A message is taken back, or it is not; nothing in between, and nothing else moves.

use diesel::SqliteConnection;
use diesel::connection::{Connection, LoadConnection, SimpleConnection};
use diesel::result::Error as DieselError;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::messages::Look;
use outbox::{Envelope, Error, OutboxBackend, Receipt, aio, cancel};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use uuid::Uuid;

const COLUMNS: &str = "seq, partition_no, topic, ordering_key, payload, content_type, headers, version, created_at";

/// Turns every pending message into waiting deliveries, as a relay does: of each key the first is not blocked.
fn let_wait(database: &TestDatabase, destination: &str) {
    let text = if database.kind() == Kind::Mariadb { "CAST(ordering_key AS CHAR)" } else { "ordering_key" };
    database.exec(&format!(
        "INSERT INTO outbox_deliveries (message_id, {COLUMNS}, destination, state, blocked, due_at) \
         SELECT id, {COLUMNS}, '{destination}', CASE WHEN {text} LIKE '%first' OR ordering_key IS NULL THEN 'retry' \
         ELSE 'blocked' END, ordering_key IS NOT NULL, created_at FROM outbox_messages m"
    ));
    let first = "SELECT min(seq) AS seq FROM outbox_deliveries GROUP BY destination, ordering_key";
    database.exec(&format!(
        "UPDATE outbox_deliveries SET blocked = false, state = 'retry' WHERE seq IN (SELECT seq FROM ({first}) AS f)"
    ));
}

fn enqueue<C>(conn: &mut C, key: &str) -> Uuid
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let message = Envelope::raw("order.placed", "x").key(key);
    let receipt: Result<Receipt, Error> = outbox::transaction(conn, |conn| outbox::enqueue(conn, message));
    receipt.unwrap().message_id
}

fn cancels<C>(conn: &mut C, id: Uuid) -> bool
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    outbox::transaction(conn, |conn| cancel(conn, id)).unwrap()
}

fn count(database: &TestDatabase, rows: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM {rows}"))
}

fn takes_back<C>(database: &TestDatabase, conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    // A pending one, and only that.
    let (first, second) = (enqueue(conn, "k"), enqueue(conn, "k"));
    assert!(cancel(conn, first).unwrap_err().is_not_in_transaction());
    let rolled_back = conn.transaction(|conn| {
        assert!(cancel(conn, first)?);
        Err::<(), _>(Error::from(DieselError::RollbackTransaction))
    });
    assert!(rolled_back.is_err());
    assert_eq!(count(database, "outbox_messages"), 2);
    assert!(cancels(conn, first));
    assert!(!cancels(conn, first));
    assert!(!cancels(conn, Uuid::from_u128(7)));
    assert_eq!(count(database, "outbox_messages"), 1);
    assert!(cancels(conn, second));

    // One of the same transaction.
    outbox::transaction(conn, |conn| {
        let receipt = outbox::enqueue(conn, Envelope::raw("order.placed", "x"))?;
        assert!(cancel(conn, receipt.message_id)?);
        assert!(!cancel(conn, receipt.message_id)?);
        Ok::<(), Error>(())
    })
    .unwrap();
    assert_eq!(count(database, "outbox_messages"), 0);

    // One that waits at two destinations, at the head of its key: the next goes on, others stay as they are.
    let ids = ["k", "k", "k", "other", "other"].map(|key| enqueue(conn, key));
    let_wait(database, "billing");
    let_wait(database, "mail");
    database.exec("DELETE FROM outbox_messages");
    assert_eq!((count(database, "outbox_deliveries"), count(database, "outbox_deliveries WHERE blocked")), (10, 6));
    assert!(cancels(conn, ids[0]));
    assert!(!cancels(conn, ids[0]));
    assert_eq!((count(database, "outbox_deliveries"), count(database, "outbox_deliveries WHERE blocked")), (8, 4));
    let heads = "outbox_deliveries WHERE NOT blocked AND state = 'retry'";
    assert_eq!(count(database, heads), 4);
    // In the middle and at the end nothing is let go.
    assert!(cancels(conn, ids[2]));
    assert!(cancels(conn, ids[4]));
    assert_eq!((count(database, "outbox_deliveries"), count(database, "outbox_deliveries WHERE blocked")), (4, 0));
    assert!(cancels(conn, ids[1]));
    assert!(cancels(conn, ids[3]));
    assert_eq!(count(database, "outbox_deliveries"), 0);

    // A key that a dead letter blocks stays blocked.
    let ids = ["k", "k", "k"].map(|key| enqueue(conn, key));
    let_wait(database, "billing");
    database.exec("DELETE FROM outbox_messages");
    database.exec("UPDATE outbox_deliveries SET blocked = true");
    let lowest = database.query_i64("SELECT min(id) FROM outbox_deliveries");
    database.exec(&format!(
        "INSERT INTO outbox_dead_letters (message_id, {COLUMNS}, destination, in_order, life, attempts, history, reason, \
         fingerprint, died_at, blocks_key) SELECT message_id, {COLUMNS}, destination, true, 0, 1, '[]', 'rejected', 'f', \
         created_at, true FROM outbox_deliveries WHERE id = {lowest}"
    ));
    database.exec(&format!("DELETE FROM outbox_deliveries WHERE id = {lowest}"));
    assert!(!cancels(conn, ids[0]), "dead letters are another matter");
    assert!(cancels(conn, ids[1]));
    assert_eq!(count(database, "outbox_deliveries WHERE blocked"), 1);
    assert_eq!((count(database, "outbox_dead_letters"), count(database, "outbox_deliveries")), (1, 1));
}

#[test]
fn message_is_taken_back_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    takes_back(&database, &mut database.postgres());
}

#[test]
fn message_is_taken_back_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    takes_back(&database, &mut database.mariadb());
}

#[test]
fn message_is_taken_back_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    takes_back(&database, &mut database.sqlite());
}

/// A relay moves the message while somebody has found it and waits for the partition.
fn meets_a_settle<C>(database: &TestDatabase, connect: impl Fn() -> C + Sync)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let id = enqueue(&mut connect(), "k");
    let partition = database.query_i64("SELECT partition_no FROM outbox_messages");
    let mut relay = connect();
    std::thread::scope(|scope| {
        relay.batch_execute("BEGIN").unwrap();
        relay
            .batch_execute(&format!("UPDATE outbox_partitions SET epoch = epoch WHERE partition_no = {partition}"))
            .unwrap();
        let cancelled = scope.spawn(|| cancels(&mut connect(), id));
        database.until_a_lock_is_waited_for("the cancel waits for the partition");
        relay
            .batch_execute(&format!(
                "INSERT INTO outbox_deliveries (message_id, {COLUMNS}, destination, state, due_at) \
                 SELECT id, {COLUMNS}, 'billing', 'retry', created_at FROM outbox_messages"
            ))
            .unwrap();
        relay.batch_execute("DELETE FROM outbox_messages").unwrap();
        relay.batch_execute("COMMIT").unwrap();
        assert!(cancelled.join().unwrap());
    });
    assert_eq!((count(database, "outbox_messages"), count(database, "outbox_deliveries")), (0, 0));
}

#[test]
fn message_that_a_relay_moves_meanwhile_is_taken_back_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    meets_a_settle(&database, || database.postgres());
}

#[test]
fn message_that_a_relay_moves_meanwhile_is_taken_back_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    meets_a_settle(&database, || database.mariadb());
}

#[test]
fn message_is_not_removed_in_a_transaction_the_server_has_ended() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    let mut conn = database.mariadb();
    let id = enqueue(&mut conn, "k");
    let lost = conn.transaction(|conn| {
        conn.batch_execute("CREATE TABLE surprise (id INT)")?;
        assert!(cancel(conn, id).unwrap_err().is_not_in_transaction());
        Err::<(), _>(Error::from(DieselError::RollbackTransaction))
    });
    assert!(lost.is_err());
    assert_eq!(count(&database, "outbox_messages"), 1);
}

async fn takes_back_async<C>(database: &TestDatabase, mut conn: C)
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    let message = || Envelope::raw("order.placed", "x").key("k");
    let conn = &mut conn;
    let (first, second) = aio::transaction(conn, async |conn| {
        let first = aio::enqueue(conn, message()).await?;
        Ok::<_, Error>((first, aio::enqueue(conn, message()).await?))
    })
    .await
    .unwrap();
    let outside = aio::cancel(conn, &first).await.unwrap_err();
    assert!(outside.to_string().starts_with("outbox: cancel was called outside a transaction."), "{outside}");
    let rolled_back = aio::transaction(conn, async |conn| {
        assert!(aio::cancel(conn, &first).await?);
        Err::<(), _>(Error::from(DieselError::RollbackTransaction))
    });
    assert!(rolled_back.await.is_err());
    assert_eq!(count(database, "outbox_messages"), 2);
    let both = aio::transaction(conn, async |conn| {
        let pending = (aio::cancel(conn, &first).await?, aio::cancel(conn, &first).await?);
        Ok::<_, Error>(pending)
    });
    assert_eq!(both.await.unwrap(), (true, false));
    // One that waits, and the next of its key.
    aio::transaction(conn, async |conn| aio::enqueue(conn, message()).await).await.unwrap();
    let_wait(database, "billing");
    database.exec("DELETE FROM outbox_messages");
    assert_eq!(count(database, "outbox_deliveries WHERE blocked"), 1);
    let id = second.message_id;
    assert!(aio::transaction(conn, async |conn| aio::cancel(conn, id).await).await.unwrap());
    assert_eq!((count(database, "outbox_deliveries"), count(database, "outbox_deliveries WHERE blocked")), (1, 0));
}

async fn async_cancel(database: TestDatabase) {
    match database.kind() {
        Kind::Postgres => {
            takes_back_async(&database, AsyncPgConnection::establish(database.url()).await.unwrap()).await;
        }
        Kind::Mariadb => {
            takes_back_async(&database, AsyncMysqlConnection::establish(database.url()).await.unwrap()).await;
        }
        Kind::Sqlite => {
            takes_back_async(&database, <SyncConnectionWrapper<SqliteConnection>>::new(database.sqlite())).await;
        }
    }
}
for_each_database!(message_is_taken_back_over_async_connections, async_cancel);

/// So many messages of another producer, enqueued so many seconds from now.
fn crowd(database: &TestDatabase, messages: u32, seconds: i64) {
    let numbers = match database.kind() {
        Kind::Postgres => format!("generate_series(1, {messages}) AS g (n)"),
        Kind::Mariadb => format!("seq_1_to_{messages}"),
        Kind::Sqlite => {
            format!(
                "(WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g LIMIT {messages}) SELECT n FROM g)"
            )
        }
    };
    let at = match database.kind() {
        Kind::Postgres => format!("now() + {seconds} * interval '1 second'"),
        Kind::Mariadb => format!("utc_timestamp(6) + INTERVAL {seconds} SECOND"),
        Kind::Sqlite => format!("(unixepoch() + {seconds}) * 1000"),
    };
    database.exec(&format!(
        "INSERT INTO outbox_messages (topic, payload, created_at) SELECT 'crowd', 'x', {at} FROM {numbers}"
    ));
}

/// One in the middle of a crowd that is more than what is looked at, before and after it.
fn is_found_in_a_crowd<C>(database: &TestDatabase, conn: &mut C)
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    const MANY: u32 = 110_000;
    crowd(database, MANY, -3600);
    let receipts = outbox::transaction(conn, |conn| {
        outbox::enqueue_all(conn, (0..3).map(|n| Envelope::raw("order.placed", n.to_string())))
    });
    let receipts: Vec<Receipt> = receipts.map_err(|error: Error| error).unwrap();
    crowd(database, MANY, 3600);
    // By its place in time, in few statements: among ten at either side of it.
    let look = Look { looked_at: 10, ..Look::default() };
    assert!(outbox::messages::find(conn, receipts[0].message_id, &look).unwrap().pending.is_some());
    assert!(outbox::transaction(conn, |conn| cancel(conn, &receipts[0])).unwrap());

    // An id that tells no time, far from the oldest, is not taken for one that is not there.
    let last = database.query_i64("SELECT max(seq) FROM outbox_messages");
    let id = |seq: i64| {
        let hex = match database.kind() {
            Kind::Postgres => format!("SELECT id::text FROM outbox_messages WHERE seq = {seq}"),
            _ => format!("SELECT hex(id) FROM outbox_messages WHERE seq = {seq}"),
        };
        Uuid::parse_str(database.query_text(&hex)[0].as_deref().unwrap()).unwrap()
    };
    // Of random ids every 64th looks as if it told a time.
    let tells_no_time = |seq: &i64| id(*seq).get_version_num() != 7;
    let seq = (1..).map(|n| last - n).find(tells_no_time).unwrap();
    let other = id(seq);
    let unknown = outbox::transaction(conn, |conn| cancel(conn, other)).unwrap_err();
    assert!(matches!(unknown, Error::NotLookedAtAll { .. }), "{unknown}");
    assert!(outbox::transaction::<_, _, Error>(conn, |conn| cancel(conn, (other, seq))).unwrap());
    assert!(
        !outbox::transaction::<_, _, Error>(conn, |conn| cancel(conn, (other, last))).unwrap(),
        "another message's"
    );
    let first = database.query_i64("SELECT min(seq) FROM outbox_messages");
    let oldest = id((first..).find(tells_no_time).unwrap());
    assert!(outbox::transaction::<_, _, Error>(conn, |conn| cancel(conn, oldest)).unwrap());
    assert_eq!(count(database, "outbox_messages"), i64::from(2 * MANY));
}

#[test]
fn message_is_found_in_a_crowd_on_postgres() {
    let database = TestDatabase::with_schema(Kind::Postgres);
    is_found_in_a_crowd(&database, &mut database.postgres());
}

#[test]
fn message_is_found_in_a_crowd_on_mariadb() {
    let database = TestDatabase::with_schema(Kind::Mariadb);
    is_found_in_a_crowd(&database, &mut database.mariadb());
}

#[test]
fn message_is_found_in_a_crowd_on_sqlite() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    is_found_in_a_crowd(&database, &mut database.sqlite());
}
