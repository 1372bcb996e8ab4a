//! Removing a destination: through the library on planted rows, and beside relays that do not know it yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use outbox::Envelope;
use outbox::destinations::{self, By, Removal, Waiting};
use outbox::relays::{self, Relay};
use outbox::{dead_letters, keys, messages};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use crate::dead_letters::Plant;
use crate::delivery::stage::{
    Left, Log, Running, enqueue, keyed, lines, relay_on, until, until_nothing_is_left, until_waiting, with_connection,
};
use crate::faults;

fn ada() -> By {
    By { actor: "ada".to_owned(), reason: Some("no longer needed".to_owned()) }
}

fn remove(database: &TestDatabase, name: &str, waiting: Waiting, silent: &[Relay]) -> Removal {
    with_connection!(database, |conn| destinations::remove(conn, name, waiting, silent, &ada())).unwrap()
}

fn relays(database: &TestDatabase) -> Vec<Relay> {
    with_connection!(database, |conn| relays::list(conn)).unwrap().relays
}

fn register(database: &TestDatabase, name: &str, pattern: &str) {
    let insert = "INSERT INTO outbox_destinations (name, patterns) VALUES";
    database.exec(&format!("{insert} ('{name}', '[\"{pattern}\"]')"));
}

fn plant_relay(database: &TestDatabase, name: &str, serves: &str) {
    let id = match database.kind() {
        Kind::Postgres => "gen_random_uuid()",
        Kind::Mariadb => "random_bytes(16)",
        Kind::Sqlite => "randomblob(16)",
    };
    let insert = "INSERT INTO outbox_relays (id, name, version, lease_ms, serves) VALUES";
    database.exec(&format!("{insert} ({id}, '{name}', '1', 5000, '[\"{serves}\"]')"));
}

fn count(database: &TestDatabase, from: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM outbox_{from}"))
}

fn routes_version(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT routes_version FROM outbox_meta")
}

const OF_BILLING: &str = "deliveries WHERE destination = 'billing'";

async fn what_waits_for_a_removed_destination_becomes_dead_letters(database: TestDatabase) {
    register(&database, "billing", "order.*");
    register(&database, "audit", "**");
    Plant { key: Some("k"), ..Plant::new(1) }.waiting(&database, false);
    Plant { key: Some("k"), error: "", ..Plant::new(2) }.waiting(&database, true);
    Plant { destination: "audit", ..Plant::new(3) }.waiting(&database, false);
    let letter = Plant { key: Some("k"), blocks_key: true, ..Plant::new(4) }.dead(&database);
    let version = routes_version(&database);

    let removal = remove(&database, "billing", Waiting::Dead, &[]);
    assert_eq!(removal, Removal::Done { registered: true, waiting: 2 });
    assert_eq!(routes_version(&database), version + 1);
    assert_eq!(lines(&database, "SELECT name FROM outbox_destinations"), ["audit"]);
    assert_eq!((count(&database, OF_BILLING), count(&database, "deliveries")), (0, 1));
    let removed =
        "dead_letters WHERE reason = 'removed' AND destination = 'billing' AND NOT blocks_key AND attempts = 3";
    assert_eq!(count(&database, &format!("{removed} AND last_error = '503 Service Unavailable'")), 1);
    // Their payloads, headers and attempts are kept, and all of them are one group.
    let kept = format!("{removed} AND headers LIKE '%\"a\"%' AND history LIKE '%\"n\"%' AND ordering_key IS NOT NULL");
    assert_eq!(count(&database, &kept), 2);
    let groups = "SELECT count(DISTINCT fingerprint) FROM outbox_dead_letters WHERE reason = 'removed'";
    assert_eq!(database.query_i64(groups), 1);
    // What somebody has to decide about is not decided by this.
    assert_eq!(count(&database, &format!("dead_letters WHERE id = {letter} AND blocks_key")), 1);
    let audited = "audit WHERE action = 'destination.remove' AND actor = 'ada' AND reason = 'no longer needed' \
                   AND target = 'destination billing: 2 waiting deliveries became dead letters'";
    assert_eq!((count(&database, audited), count(&database, "audit")), (1, 1));

    assert_eq!(remove(&database, "billing", Waiting::Dead, &[]), Removal::Unknown);
    assert_eq!((count(&database, "audit"), routes_version(&database)), (1, version + 1), "nothing was done");
}
for_each_database!(what_waits_for_a_removed_destination_becomes_dead_letters);

async fn what_waits_for_a_removed_destination_is_dropped_on_demand(database: TestDatabase) {
    register(&database, "billing", "order.*");
    Plant::new(1).waiting(&database, false);
    Plant { destination: "audit", ..Plant::new(2) }.waiting(&database, false);
    let removal = remove(&database, "billing", Waiting::Discard, &[]);
    assert_eq!(removal, Removal::Done { registered: true, waiting: 1 });
    assert_eq!((count(&database, "deliveries"), count(&database, "dead_letters")), (1, 0));
    let audited = "audit WHERE target = 'destination billing: 1 waiting deliveries were discarded'";
    assert_eq!(count(&database, audited), 1);
}
for_each_database!(what_waits_for_a_removed_destination_is_dropped_on_demand);

async fn a_destination_a_relay_serves_is_not_removed(database: TestDatabase) {
    register(&database, "billing", "order.*");
    Plant::new(1).waiting(&database, false);
    plant_relay(&database, "shop-1", "billing");
    plant_relay(&database, "shop-2", "audit");
    let owner = "(SELECT id FROM outbox_relays WHERE name = 'shop-1')";
    database.exec(&format!("UPDATE outbox_partitions SET owner = {owner}, epoch = 4 WHERE partition_no < 5"));
    let seen = relays(&database);
    let Removal::Served { by, waiting: 0 } = remove(&database, "billing", Waiting::Discard, &[]) else {
        panic!("it was removed")
    };
    assert_eq!(by.iter().map(|relay| relay.name.as_str()).collect::<Vec<_>>(), ["shop-1"]);
    // It was thought dead, and has raised its beat meanwhile.
    database.exec("UPDATE outbox_relays SET beat = beat + 1");
    let removal = remove(&database, "billing", Waiting::Discard, &seen);
    assert!(matches!(removal, Removal::Served { .. }), "{removal:?}");
    assert_eq!((count(&database, OF_BILLING), count(&database, "audit"), count(&database, "relays")), (1, 0, 2));

    let removal = remove(&database, "billing", Waiting::Discard, &relays(&database));
    assert_eq!(removal, Removal::Done { registered: true, waiting: 1 });
    // Only the dead one that served it was in the way.
    assert_eq!(lines(&database, "SELECT name FROM outbox_relays"), ["shop-2"]);
    assert_eq!(count(&database, "partitions WHERE owner IS NOT NULL AND epoch = 5"), 5);
}
for_each_database!(a_destination_a_relay_serves_is_not_removed);

async fn a_removal_of_many_goes_in_steps_and_goes_on_where_it_broke_off(database: TestDatabase) {
    const MANY: i64 = 2_300;
    for seq in 0..5 {
        Plant { key: Some(["a", "b", "c"][seq % 3]), ..Plant::new(seq as i64) }.waiting(&database, seq > 2);
    }
    while count(&database, "deliveries") < MANY {
        let left = MANY - count(&database, "deliveries");
        let columns = "seq, partition_no, topic, ordering_key, payload, content_type, headers, version, created_at, \
                       destination, life, attempts, history, state, blocked, in_order, due_at";
        let id = match database.kind() {
            Kind::Postgres => "gen_random_uuid()",
            Kind::Mariadb => "random_bytes(16)",
            Kind::Sqlite => "randomblob(16)",
        };
        database.exec(&format!(
            "INSERT INTO outbox_deliveries (message_id, {columns}) SELECT {id}, {columns} FROM outbox_deliveries LIMIT {left}"
        ));
    }
    // The destination is gone already: somebody stopped a removal half-way.
    let removal = remove(&database, "billing", Waiting::Dead, &[]);
    assert_eq!(removal, Removal::Done { registered: false, waiting: MANY as u64 });
    assert_eq!((count(&database, "deliveries"), count(&database, "dead_letters")), (0, MANY));
    assert_eq!(count(&database, "audit"), 3, "one for each transaction");
}
for_each_database!(a_removal_of_many_goes_in_steps_and_goes_on_where_it_broke_off);

/// The relay has routed a message to a destination that goes before it can settle.
async fn a_relay_that_routed_before_the_removal_leaves_nothing_behind_it(database: TestDatabase) {
    let log = Log::default();
    register(&database, "gone", "**");
    let (gate, opened) = tokio::sync::watch::channel(false);
    let held = relay::Handler::raw("here", move |_, _| {
        let mut opened = opened.clone();
        async move {
            let _ = opened.wait_for(|open| *open).await;
            Ok::<(), std::io::Error>(())
        }
    });
    let relay = relay_on(&database).destination(held.topics(["t"])).destination(log.accepting("quick").topics(["t"]));
    let relay = Running::start(relay).await;
    enqueue(&database, [keyed("k", "routed to three")]);
    log.until_accepted("quick", &["routed to three"]).await;
    let removal = remove(&database, "gone", Waiting::Discard, &[]);
    assert_eq!(removal, Removal::Done { registered: true, waiting: 0 }, "its unit is in the relay's hands");
    gate.send(true).unwrap();
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.attempts("quick", "routed to three"), 1);
}
for_each_database!(a_relay_that_routed_before_the_removal_leaves_nothing_behind_it);

async fn a_message_enqueued_while_a_destination_is_removed_keeps_its_units(database: TestDatabase) {
    let database = Arc::new(database);
    let log = Log::default();
    let over = Arc::new(AtomicBool::new(false));
    let producer = std::thread::spawn({
        let (database, over) = (database.clone(), over.clone());
        move || {
            let mut sent = 0;
            while !over.load(Ordering::SeqCst) {
                let key = format!("k{}", sent % 5);
                enqueue(
                    &database,
                    [
                        Envelope::raw("t", format!("both {sent:05}")).key(key.clone()),
                        Envelope::raw("u", format!("only {sent:05}")).key(key),
                    ],
                );
                sent += 1;
            }
            sent
        }
    });
    for round in 0..6 {
        register(&database, "gone", "**");
        database.exec("UPDATE outbox_meta SET routes_version = routes_version + 1");
        let relay = Running::start(relay_on(&database).destination(log.accepting("here").topics(["t"]))).await;
        let unserved = "deliveries WHERE destination = 'gone'";
        until(&database, "something waits for it", || count(&database, unserved) > 0).await;
        let removal = remove(&database, "gone", Waiting::Dead, &[]);
        assert!(matches!(removal, Removal::Done { registered: true, waiting: 1.. }), "{round}: {removal:?}");
        assert_eq!(count(&database, unserved), 0, "round {round}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(count(&database, unserved), 0, "round {round}: a row came after the destination had gone");
        relay.stop().await;
    }
    over.store(true, Ordering::SeqCst);
    let sent = producer.join().unwrap();
    let relay = Running::start(relay_on(&database).destination(log.accepting("here").topics(["t"]))).await;
    until(&database, "nothing is pending", || Left::of(&database).waiting().is_some()).await;
    relay.stop().await;
    let mut accepted = log.accepted("here");
    accepted.sort();
    assert_eq!(accepted, (0..sent).map(|n| format!("both {n:05}")).collect::<Vec<_>>());
    // What only the removed one wanted is dead, or waits where everybody sees it; nothing of it is in both places or none.
    let only = |table: &str| format!("SELECT topic FROM outbox_{table} WHERE topic = 'u'");
    let (dead, waiting) = (lines(&database, &only("dead_letters")).len(), lines(&database, &only("deliveries")).len());
    assert_eq!(dead + waiting, sent, "{dead} dead, {waiting} waiting");
    assert_eq!(count(&database, "deliveries WHERE NOT (state = 'unrouted' AND destination = '')"), 0);
    assert!(dead > 0 && waiting > 0, "{dead} {waiting}");
}
for_each_database!(a_message_enqueued_while_a_destination_is_removed_keeps_its_units);

async fn a_destination_is_renamed_without_losing_what_waits(database: TestDatabase) {
    let log = Log::default();
    let old = || relay_on(&database).destination(log.handler("old", |_| Err("down".into())));
    let relay = Running::start(old()).await;
    enqueue(&database, [keyed("k", "one"), keyed("k", "two")]);
    until_waiting(&database, &["old blocked", "old retry"]).await;
    relay.stop().await;
    // The new relay knows the new name only; what waits for the old one stays until somebody decides.
    let relay = Running::start(relay_on(&database).destination(log.accepting("new"))).await;
    enqueue(&database, [keyed("k", "three")]);
    log.until_accepted("new", &["three"]).await;
    until(&database, "nothing is pending", || Left::of(&database).waiting().is_some_and(|rows| rows.len() == 3)).await;
    assert_eq!(remove(&database, "old", Waiting::Dead, &[]), Removal::Done { registered: true, waiting: 3 });
    enqueue(&database, [keyed("k", "four")]);
    log.until_accepted("new", &["four"]).await;
    until(&database, "only letters are left", || Left::of(&database).waiting() == Some(Vec::new())).await;
    assert_eq!(Left::of(&database).dead(), ["old removed"; 3]);
    relay.stop().await;
    assert_eq!(log.accepted("new"), ["three", "four"]);
}
for_each_database!(a_destination_is_renamed_without_losing_what_waits);

/// MariaDB takes texts for equal that differ in the spaces at their ends.
async fn a_name_is_taken_as_it_is_written(database: TestDatabase) {
    use outbox::destinations::Change;

    register(&database, "billing", "order.*");
    register(&database, "here ", "order.*");
    for (seq, destination) in [(1, "billing"), (2, "billing "), (3, "billing")] {
        Plant { key: Some("w"), destination, ..Plant::new(seq) }.waiting(&database, false);
        Plant { destination, ..Plant::blocking(seq + 10, "k") }.dead(&database);
    }
    let listed = with_connection!(database, |conn| destinations::list(conn)).unwrap();
    let billing = listed.iter().find(|destination| destination.name == "billing").unwrap();
    assert_eq!((billing.waiting, billing.dead), (2, 2));
    let get = |name: &str| with_connection!(database, |conn| destinations::get(conn, name)).unwrap();
    assert_eq!(get("billing").unwrap().states, [("blocked".to_owned(), 2)]);
    assert_eq!(get("billing "), None);
    let waiting = |name: &str| with_connection!(database, |conn| destinations::waiting(conn, name)).unwrap();
    assert_eq!(["billing", "billing ", "billing  ", "Billing"].map(waiting), [2, 1, 0, 0]);

    for name in ["billing ", "here", "Billing"] {
        let changes = with_connection!(database, |conn| (
            destinations::pause(conn, name, &ada()).unwrap(),
            destinations::resume(conn, name, &ada()).unwrap()
        ));
        assert_eq!(changes, (Change::Unknown, Change::Unknown), "{name:?}");
    }
    let only = |name: &str| Some(name.to_owned());
    let dead = |destination, topic, group| {
        let filter = dead_letters::Filter { destination, topic, group, ..dead_letters::Filter::default() };
        with_connection!(database, |conn| dead_letters::list(conn, &filter, 9)).unwrap().len()
    };
    assert_eq!([dead(only("billing"), None, None), dead(only("billing "), None, None)], [2, 1]);
    assert_eq!([dead(None, only("order.placed "), None), dead(None, None, only("f-exhausted "))], [0, 0]);
    assert_eq!([dead(None, only("order.placed"), None), dead(None, None, only("f-exhausted"))], [3, 3]);
    let seen = |destination| {
        let filter = messages::Filter { destination, ..messages::Filter::default() };
        let bounds = messages::Bounds { shown: 9, looked_at: 9 };
        with_connection!(database, |conn| messages::waiting(conn, &filter, bounds)).unwrap().rows.len()
    };
    assert_eq!([seen(only("billing")), seen(only("billing "))], [2, 1]);
    let parked = |destination| {
        let filter = keys::Filter { destination, only_blocked: true, ..keys::Filter::default() };
        let parked = with_connection!(database, |conn| keys::list(conn, &filter, 9)).unwrap();
        parked.iter().map(|parked| parked.blockers).collect::<Vec<_>>()
    };
    assert_eq!([parked(only("billing")), parked(only("billing "))], [vec![2], vec![1]]);
    let released = with_connection!(database, |conn| keys::release(conn, "billing ", b"k", &ada())).unwrap();
    assert!(matches!(&released, keys::Release::Done(letters) if letters.len() == 1), "{released:?}");

    let removal = remove(&database, "billing ", Waiting::Discard, &[]);
    assert_eq!(removal, Removal::Done { registered: false, waiting: 1 });
    assert_eq!(remove(&database, "here", Waiting::Discard, &[]), Removal::Unknown);
    assert_eq!((count(&database, "destinations"), count(&database, "deliveries")), (2, 2));
}
for_each_database!(a_name_is_taken_as_it_is_written);

/// How long a removal of `billing` may take that waits for nobody longer than a moment.
const SOON: Duration = Duration::from_secs(20);

/// Somebody else locks what `select` finds, while a removal is tried; returns what the removal says and how long it took.
fn remove_while_held(database: &TestDatabase, select: &str) -> (outbox::Error, Duration) {
    let (hold, waits) = match database.kind() {
        // Not for ever, should somebody wait for it.
        Kind::Postgres => (
            format!("SET idle_in_transaction_session_timeout = '30s'; BEGIN; {select} FOR UPDATE"),
            "current_setting('lock_timeout')",
        ),
        Kind::Mariadb => {
            (format!("BEGIN; {select} FOR UPDATE"), "concat(@@innodb_lock_wait_timeout, ' ', @@lock_wait_timeout)")
        }
        // There whoever writes holds everything.
        Kind::Sqlite => ("BEGIN IMMEDIATE".to_owned(), "''"),
    };
    with_connection!(database, |holder| {
        holder.batch_execute(&hold).unwrap();
        let told = with_connection!(database, |conn| {
            if database.kind() == Kind::Sqlite {
                conn.batch_execute("PRAGMA busy_timeout = 300").unwrap();
            }
            let waits = |conn: &mut _| -> String { diesel::select(sql::<Text>(waits)).get_result(conn).unwrap() };
            let (before, began) = (waits(conn), Instant::now());
            let error = destinations::remove(conn, "billing", Waiting::Dead, &[], &ada()).unwrap_err();
            let took = began.elapsed();
            assert_eq!(waits(conn), before, "the connection waits as it did before");
            (error, took)
        });
        holder.batch_execute("ROLLBACK").unwrap();
        told
    })
}

async fn a_removal_does_not_wait_for_rows_that_another_holds(database: TestDatabase) {
    register(&database, "billing", "order.*");
    Plant::new(1).waiting(&database, false);
    for (held, select) in [
        ("deliveries that wait for the destination", "SELECT id FROM outbox_deliveries"),
        ("partitions", "SELECT partition_no FROM outbox_partitions WHERE partition_no = 7"),
        ("the destination", "SELECT name FROM outbox_destinations"),
    ] {
        let (error, took) = remove_while_held(&database, select);
        assert!(error.is_locked(), "{error}");
        let held = if database.kind() == Kind::Sqlite { "the file's write lock" } else { held };
        let text = error.to_string();
        assert!(text.starts_with(&format!("outbox: another transaction holds {held}: ")), "{text}");
        assert!(took < SOON, "{took:?}");
        assert_eq!((count(&database, OF_BILLING), count(&database, "destinations")), (1, 1), "{held}");
        assert_eq!((count(&database, "dead_letters"), count(&database, "audit")), (0, 0), "{held}");
    }
    assert_eq!(remove(&database, "billing", Waiting::Dead, &[]), Removal::Done { registered: true, waiting: 1 });
}
for_each_database!(a_removal_does_not_wait_for_rows_that_another_holds);

/// Does something once, before the relay's first call of this name.
async fn relay_with(
    database: &Arc<TestDatabase>,
    call: &'static str,
    once: impl Fn(&TestDatabase) + Send + Sync + 'static,
) -> relay::RelayBuilder {
    let (of_test, is_done) = (database.clone(), AtomicBool::new(false));
    let store = faults::store(database, move |name| {
        if name == call && !is_done.swap(true, Ordering::SeqCst) {
            tokio::task::block_in_place(|| once(&of_test));
        }
        faults::pass()
    });
    faults::relay(store.await)
}

async fn a_settle_that_meets_a_removal_decides_again(database: TestDatabase) {
    let (database, log) = (Arc::new(database), Log::default());
    register(&database, "gone", "**");
    enqueue(&database, [Envelope::raw("u", "only the removed one wanted it").key("k")]);
    let relay = relay_with(&database, "settle", |database| {
        let removal = remove(database, "gone", Waiting::Discard, &[]);
        assert_eq!(removal, Removal::Done { registered: true, waiting: 0 }, "the row is not written yet");
    });
    let relay = Running::start(relay.await.destination(log.accepting("here").topics(["t"]))).await;
    until_waiting(&database, &[" unrouted"]).await;
    relay.stop().await;
    // Whoever comes to want it gets it.
    let relay = Running::start(relay_on(&database).destination(log.accepting("later"))).await;
    log.until_accepted("later", &["only the removed one wanted it"]).await;
    until_nothing_is_left(&database).await;
    relay.stop().await;
}
for_each_database!(a_settle_that_meets_a_removal_decides_again);

async fn a_destination_removed_while_its_relay_starts_is_registered_again(database: TestDatabase) {
    let (database, log) = (Arc::new(database), Log::default());
    let relay = relay_with(&database, "relay_register", |database| {
        let removal = remove(database, "here", Waiting::Discard, &[]);
        assert_eq!(removal, Removal::Done { registered: true, waiting: 0 }, "no relay is known to serve it yet");
    });
    let relay = Running::start(relay.await.destination(log.accepting("here"))).await;
    enqueue(&database, [keyed("k", "one")]);
    log.until_accepted("here", &["one"]).await;
    until_nothing_is_left(&database).await;
    assert!(matches!(remove(&database, "here", Waiting::Discard, &[]), Removal::Served { .. }));
    relay.stop().await;
}
for_each_database!(a_destination_removed_while_its_relay_starts_is_registered_again);
