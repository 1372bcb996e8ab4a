//! What only MariaDB can get wrong: locks that reach further than the rows that are meant, and clients that are not
//! strict.

use std::time::Instant;

use diesel::connection::SimpleConnection;
use diesel::{QueryableByName, RunQueryDsl, sql_query, sql_types::Text};
use outbox_tests::database::{Kind, TestDatabase};
use relay::message::PartitionSet;
use relay::poll::HoleProbe;
use relay::store::{Settlement, State, StoreError, WaitingChange, Wanted};

use super::fixture::{Outbox, dies, moved, noon, outcome, secs, store_on, unit, waits};

fn database() -> TestDatabase {
    TestDatabase::with_schema(Kind::Mariadb)
}

/// In a table of few rows the server prefers a scan to a look-up, and a scan under locks waits for every row that is
/// not committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_settle_waits_for_a_producer_that_has_not_committed() {
    let outbox = Outbox::new(database()).await;
    let mut delivered = Vec::new();
    for _ in 0..12 {
        delivered.push(outbox.keyed("k").await);
    }
    outbox.park("parked", "mail").await;
    let mut producer = outbox.database.mariadb();
    producer
        .batch_execute(
            "BEGIN; INSERT INTO outbox_messages (topic, payload, ordering_key) VALUES ('a', 'x', 'k'), ('a', 'x', 'p')",
        )
        .unwrap();
    // A row of another key that somebody holds must not be waited for either.
    let mut operator = outbox.database.mariadb();
    let held = outbox.park("another", "mail").await;
    let held = outbox.waiting().into_iter().find(|row| row.seq == held).unwrap().id;
    operator.batch_execute(&format!("BEGIN; SELECT id FROM outbox_deliveries WHERE id = {held} FOR UPDATE")).unwrap();

    let parked =
        outbox.due("mail").await.into_iter().find(|row| row.message.ordering_key.as_deref() == Some(b"parked"));
    let last = delivered.pop().unwrap();
    let before = Instant::now();
    let pairs: Vec<_> = delivered.iter().map(|message| (message.seq, message.id)).collect();
    let gone = outbox.store.message_delivered(&pairs, 0).await.unwrap();
    assert_eq!(gone.deleted.len(), 11);
    outbox
        .settle_all(
            vec![moved(&last, vec![unit("mail", waits(State::Retry))])],
            vec![outcome(&parked.unwrap(), WaitingChange::Waits(waits(State::Retry)))],
        )
        .await;
    assert!(before.elapsed() < secs(1), "waited for a lock: {:?}", before.elapsed());
    drop((producer, operator));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_not_granted_asks_to_try_again_and_leaves_nothing_open() {
    let outbox = Outbox::new(database()).await;
    let message = outbox.keyed("k").await;
    let batch = Settlement {
        epochs: outbox.epochs.clone(),
        moves: vec![moved(&message, vec![unit("mail", dies(relay::store::Reason::Rejected))])],
        waiting: vec![],
        ..Settlement::default()
    };
    let mut other = outbox.database.mariadb();
    other.batch_execute("BEGIN; SELECT seq FROM outbox_messages FOR UPDATE").unwrap();
    let error = outbox.store.settle(outbox.relay, &batch, Some(noon())).await.unwrap_err();
    assert!(matches!(error, StoreError::TryAgain { .. }), "{error:?}");
    // Its partition lock goes with the connection, as soon as the server sees that it is closed, although the message is
    // still held.
    let locks = "SELECT partition_no FROM outbox_partitions FOR UPDATE NOWAIT";
    let end = Instant::now() + secs(5);
    while let Err(error) = outbox.database.try_exec(locks) {
        assert!(Instant::now() < end, "the partition stays locked: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    other.batch_execute("ROLLBACK").unwrap();
    outbox.store.settle(outbox.relay, &batch, Some(noon())).await.unwrap();
    assert_eq!(outbox.pending(), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_holes_are_one_statement_and_do_not_slow_a_poll() {
    let outbox = Outbox::new(database()).await;
    outbox.database.exec(
        "INSERT INTO outbox_messages (topic, payload) SELECT 'a', 'x' FROM seq_1_to_6000; \
         DELETE FROM outbox_messages WHERE seq % 2 = 1",
    );
    let holes: Vec<HoleProbe> = (0..3000).map(|n| HoleProbe { lo: n * 2 + 1, hi: n * 2 + 1, gained: None }).collect();
    let wanted = Wanted { cursor: 6000, holes, tail: true };
    let before = Instant::now();
    let page = outbox.store.message_read(&wanted, PartitionSet::ALL, 500, None).await.unwrap();
    assert!(page.from_holes.is_empty() && page.from_tail.is_empty());
    assert!(before.elapsed() < secs(1), "{:?}", before.elapsed());
    let found = outbox.store.message_probe(&[(1, 1), (2, 2), (5, 5), (6001, 6100)]).await.unwrap();
    assert_eq!(found.occupied, [(2, 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_transactions_is_refused() {
    let database = database();
    database.exec("ALTER TABLE outbox_audit ENGINE = MyISAM, ROW_FORMAT = DEFAULT");
    let error = store_on(database.url()).await.verify().await.unwrap_err();
    assert!(error.to_string().contains("`outbox_audit` is stored by MyISAM"), "{error}");
}

#[test]
fn a_client_that_is_not_strict_stores_nothing_it_did_not_say() {
    let database = database();
    let mut client = database.mariadb();
    client.batch_execute("SET SESSION sql_mode = ''").unwrap();
    for refused in [
        "(topic) VALUES ('a')",
        "(payload) VALUES ('x')",
        "(topic, payload) VALUES (NULL, 'x'), ('a', 'x')",
        "(topic, payload) VALUES (repeat('a', 5000), 'x')",
        "(topic, payload) VALUES ('a\\n', 'x')",
        "(topic, payload) VALUES ('a ', 'x')",
        "(topic, payload) VALUES ('a..b', 'x')",
        "(topic, payload, ordering_key) VALUES ('a', 'x', repeat('k', 5000))",
        "(topic, payload, dedup_key) VALUES ('a', 'x', repeat('k', 5000))",
        "(topic, payload, deliver_at) VALUES ('a', 'x', 'tomorrow')",
    ] {
        let error = client.batch_execute(&format!("INSERT INTO outbox_messages {refused}")).unwrap_err();
        assert!(error.to_string().contains("CONSTRAINT"), "{refused}: {error}");
    }
    for charset in ["latin1", "utf8mb3", "utf8mb4"] {
        client
            .batch_execute(&format!(
                "SET NAMES {charset}; INSERT INTO outbox_messages (topic, payload, ordering_key) \
                 VALUES ('a', 'grün 🦀', 'grün 🦀')"
            ))
            .unwrap();
    }
    let kept = "SELECT count(*) FROM outbox_messages WHERE hex(payload) = hex(ordering_key) \
                AND payload = CONVERT(_utf8mb4 x'6772c3bc6e20f09fa680' USING utf8mb4)";
    assert_eq!(database.query_i64(kept), 3);
    assert_eq!(database.query_i64("SELECT count(DISTINCT partition_no) FROM outbox_messages"), 1);
}

#[derive(QueryableByName)]
struct Plan {
    #[diesel(sql_type = Text, column_name = "Extra")]
    extra: String,
}

/// There is no index of such rows alone; that of the partitions has to do.
#[test]
fn topics_without_a_route_are_stepped_through_by_the_index() {
    let database = database();
    database.exec(
        "INSERT INTO outbox_deliveries (message_id, seq, partition_no, topic, payload, content_type, headers, version, \
             created_at, destination, state, due_at) \
         SELECT unhex(md5(seq)), seq, seq % 2, concat('typo.', seq % 3), 'x', 'a', '{}', 1, now(), '', 'unrouted', now() \
         FROM seq_1_to_5000",
    );
    database.exec("ANALYZE TABLE outbox_deliveries");
    // As the store asks.
    let question = "SELECT partition_no, topic FROM outbox_deliveries FORCE INDEX (delivery_by_partition) \
                    WHERE partition_no = 1 AND destination = '' AND state = 'unrouted' AND topic > '' \
                    GROUP BY partition_no, destination, state, topic ORDER BY topic LIMIT 64";
    let plan: Vec<Plan> = sql_query(format!("EXPLAIN {question}")).load(&mut database.mariadb()).unwrap();
    assert!(plan.iter().all(|step| step.extra.contains("Using index for group-by")), "{:?}", plan[0].extra);
}
