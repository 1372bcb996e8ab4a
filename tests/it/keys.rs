//! Keys that stand still through the library, on every database, with nothing else running.
//!
//! Rows are planted with plain SQL, as a relay would have left them, and looked at with plain SQL afterwards.

use outbox::dead_letters::By;
use outbox::keys::{self, Filter, ParkedKey, Release};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use crate::dead_letters::{Plant, by, discard, instant, on, redrive, time, unblocked};

fn waiting(database: &TestDatabase, seq: i64, key: &'static str, blocked: bool) {
    Plant { key: Some(key), ..Plant::new(seq) }.waiting(database, blocked);
}

fn list(database: &TestDatabase, filter: &Filter, limit: u32) -> Vec<ParkedKey> {
    on!(database, conn => keys::list(conn, filter, limit)).unwrap()
}

fn release(database: &TestDatabase, destination: &str, key: impl AsRef<[u8]>) -> Release {
    on!(database, conn => keys::release(conn, destination, key.as_ref(), &by())).unwrap()
}

/// `destination key waiting head: numbers of the letters`
fn told(parked: &ParkedKey) -> String {
    let head = parked.head.as_ref().map_or_else(|| "-".to_owned(), |head| head.seq.to_string());
    let letters: Vec<String> = parked.blocked_by.iter().map(|letter| letter.seq.to_string()).collect();
    assert_eq!(letters.len() as u64, parked.blockers);
    let key = String::from_utf8_lossy(&parked.key);
    format!("{} {key} {} {head}: {}", parked.destination, parked.waiting, letters.join(" "))
}

fn all_told(database: &TestDatabase, filter: &Filter, limit: u32) -> Vec<String> {
    list(database, filter, limit).iter().map(told).collect()
}

fn count(database: &TestDatabase, what: &str) -> i64 {
    database.query_i64(&format!("SELECT count(*) FROM {what}"))
}

async fn blocked_keys_come_first_then_those_with_most_waiting_then_the_oldest(database: TestDatabase) {
    assert_eq!(all_told(&database, &Filter::default(), 10), [""; 0]);
    // Nothing else is parked: no key, no order, no destination yet.
    Plant::new(90).waiting(&database, false);
    waiting(&database, 91, "out of order", false);
    database.exec("UPDATE outbox_deliveries SET in_order = false WHERE seq = 91");
    Plant { key: Some("nowhere"), destination: "", ..Plant::new(92) }.waiting(&database, false);
    Plant { key: Some("continued"), ..Plant::new(93) }.dead(&database);
    for (seq, key, blocked) in [(30, "b", true), (20, "b", false), (10, "a", false), (8, "c", false), (50, "d", true)] {
        waiting(&database, seq, key, blocked);
    }
    Plant { key: Some("b"), destination: "audit", ..Plant::new(9) }.waiting(&database, false);
    Plant::blocking(40, "d").dead(&database);
    Plant::blocking(41, "alone").dead(&database);
    Plant::blocking(35, "d").dead(&database);

    let expected = [
        "billing d 1 50: 40 35",
        "billing alone 0 -: 41",
        "billing b 2 20: ",
        "billing c 1 8: ",
        "audit b 1 9: ",
        "billing a 1 10: ",
    ];
    assert_eq!(all_told(&database, &Filter::default(), 10), expected);
    for limit in 1..=6 {
        assert_eq!(all_told(&database, &Filter::default(), limit), expected[..limit as usize], "{limit}");
    }
    let destination = |name: &str| Filter { destination: Some(name.to_owned()), ..Filter::default() };
    assert_eq!(all_told(&database, &destination("audit"), 10), expected[4..5]);
    assert_eq!(all_told(&database, &destination("audit' OR '1'='1"), 10), [""; 0]);
    let blocked = Filter { only_blocked: true, ..Filter::default() };
    assert_eq!(all_told(&database, &blocked, 10), expected[..2]);
    let key = Filter { key: Some(b"b".to_vec()), ..Filter::default() };
    assert_eq!(all_told(&database, &key, 10), [expected[2], expected[4]]);
}
for_each_database!(blocked_keys_come_first_then_those_with_most_waiting_then_the_oldest);

async fn a_parked_key_shows_its_head_and_what_blocks_it(database: TestDatabase) {
    let letter = Plant { reason: "rejected", error: "422: no", ..Plant::blocking(5, "k") }.dead(&database);
    waiting(&database, 9, "k", true);
    waiting(&database, 7, "k", true);
    let parked = on!(database, conn => keys::get(conn, "billing", b"k")).unwrap().unwrap();
    assert_eq!((parked.waiting, parked.blockers), (2, 1));
    let head = parked.head.unwrap();
    assert_eq!((head.seq, head.state.as_str(), head.blocked, head.attempts), (7, "blocked", true, 3));
    assert_eq!((head.due_at, head.last_error.as_deref()), (instant(2), Some("503 Service Unavailable")));
    let blocker = &parked.blocked_by[0];
    assert_eq!((blocker.id, blocker.died_at, blocker.reason.as_str()), (letter, instant(5), "rejected"));
    assert!(on!(database, conn => keys::get(conn, "billing", b"other")).unwrap().is_none());
}
for_each_database!(a_parked_key_shows_its_head_and_what_blocks_it);

async fn a_release_frees_the_first_of_the_key_and_nothing_else(database: TestDatabase) {
    let letters = [5, 6].map(|seq| Plant::blocking(seq, "k").dead(&database));
    for follower in [9, 7] {
        waiting(&database, follower, "k", true);
    }
    // The same key in another case, with a blank, and elsewhere.
    for (seq, key, destination) in [(10, "K", "billing"), (12, "k ", "billing"), (14, "k", "audit")] {
        Plant { destination, ..Plant::blocking(seq, key) }.dead(&database);
        Plant { destination, key: Some(key), ..Plant::new(seq + 1) }.waiting(&database, true);
    }
    assert_eq!(release(&database, "billing", "k"), Release::Done(letters.to_vec()));
    assert_eq!(unblocked(&database), [7]);
    assert_eq!(count(&database, "outbox_dead_letters WHERE blocks_key"), 3);
    assert_eq!(count(&database, "outbox_dead_letters"), 5);
    let due = time(database.kind(), 2);
    assert_eq!(count(&database, &format!("outbox_deliveries WHERE due_at = {due}")), 5, "a due time was changed");
    let audit = database.query_text("SELECT concat_ws('|', actor, action, target, reason) FROM outbox_audit");
    let By { actor, reason } = by();
    let target = format!("key k, destination billing, dead letters {}, {}", letters[0], letters[1]);
    assert_eq!(audit, [Some(format!("{actor}|key.release|{target}|{}", reason.unwrap()))]);
}
for_each_database!(a_release_frees_the_first_of_the_key_and_nothing_else);

async fn a_key_that_nothing_blocks_is_left_alone_and_shown(database: TestDatabase) {
    waiting(&database, 7, "k", false);
    waiting(&database, 9, "k", true);
    let Release::NotBlocked(parked) = release(&database, "billing", "k") else { panic!("it was blocked") };
    assert_eq!(told(&parked), "billing k 2 7: ");
    for (destination, key) in
        [("billing", "other"), ("audit", "k"), ("nowhere", "k"), ("billing", "K"), ("billing", "k "), ("billing", "")]
    {
        assert_eq!(release(&database, destination, key), Release::Unknown, "{destination} {key:?}");
    }
    for nonsense in [&b"\xff\xfe"[..], b"a\0b", "' OR ''='".as_bytes()] {
        assert_eq!(release(&database, "billing", nonsense), Release::Unknown, "{nonsense:?}");
    }
    assert_eq!((unblocked(&database), count(&database, "outbox_audit")), (vec![7], 0));
}
for_each_database!(a_key_that_nothing_blocks_is_left_alone_and_shown);

async fn a_letter_of_a_released_key_is_redriven_without_its_order(database: TestDatabase) {
    let letter = Plant::blocking(5, "k").dead(&database);
    waiting(&database, 7, "k", true);
    release(&database, "billing", "k");
    assert_eq!(redrive(&database, &[letter]).done, [letter]);
    let mut free = unblocked(&database);
    free.sort_unstable();
    assert_eq!(free, [5, 7], "it goes beside the others, not before them");
    assert_eq!(count(&database, "outbox_deliveries WHERE seq = 5 AND NOT in_order"), 1);
}
for_each_database!(a_letter_of_a_released_key_is_redriven_without_its_order);

async fn a_release_without_followers_leaves_nothing_that_stands_still(database: TestDatabase) {
    let letter = Plant::blocking(5, "k").dead(&database);
    assert_eq!(release(&database, "billing", "k"), Release::Done(vec![letter]));
    assert_eq!(release(&database, "billing", "k"), Release::Unknown);
    assert_eq!(list(&database, &Filter::default(), 10), []);
    assert_eq!(discard(&database, &[letter]).done, [letter], "it stayed a dead letter");
}
for_each_database!(a_release_without_followers_leaves_nothing_that_stands_still);

/// Bytes that are no text, as MariaDB and SQLite store them when another producer sends them.
async fn a_key_that_is_no_text_is_found_by_its_bytes(database: TestDatabase) {
    if database.kind() == Kind::Postgres {
        return; // Text there is always valid.
    }
    Plant::blocking(5, "odd").dead(&database);
    Plant::blocking(6, "odd").dead(&database);
    waiting(&database, 7, "odd", true);
    waiting(&database, 8, "odd", true);
    let bytes = |hex: &str| match database.kind() {
        Kind::Mariadb => format!("x'{hex}'"),
        _ => format!("CAST(x'{hex}' AS TEXT)"),
    };
    // Two keys that look alike where bytes are shown as text.
    for (table, seq, hex) in
        [("dead_letters", 5, "6bff"), ("dead_letters", 6, "6bfe"), ("deliveries", 7, "6bff"), ("deliveries", 8, "6bfe")]
    {
        database.exec(&format!("UPDATE outbox_{table} SET ordering_key = {} WHERE seq = {seq}", bytes(hex)));
    }
    let found = list(&database, &Filter::default(), 10);
    let found: Vec<_> = found.iter().map(|parked| (&parked.key[..], told(parked))).collect();
    assert_eq!(
        found,
        [
            (&b"k\xff"[..], "billing k\u{fffd} 1 7: 5".to_owned()),
            (&b"k\xfe"[..], "billing k\u{fffd} 1 8: 6".to_owned())
        ]
    );
    assert!(matches!(release(&database, "billing", b"k\xfe"), Release::Done(letters) if letters.len() == 1));
    assert_eq!(unblocked(&database), [8]);
    let target = database.query_text("SELECT target FROM outbox_audit")[0].clone().unwrap();
    assert!(target.starts_with("key k\u{fffd} (hex 6bfe), destination billing, dead letters "), "{target}");
}
for_each_database!(a_key_that_is_no_text_is_found_by_its_bytes);

/// The database converts what it is sent, and so must what names a key.
#[test]
fn a_key_is_found_in_a_database_of_another_encoding() {
    let (database, neighbour) = (TestDatabase::create(Kind::Postgres), TestDatabase::create(Kind::Postgres));
    let (name, latin) = (database.name(), "ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    neighbour.exec(&format!("DROP DATABASE {name}"));
    neighbour.exec(&format!("CREATE DATABASE {name} {latin}"));
    database.apply_schema();
    Plant::blocking(5, "kä").dead(&database);
    waiting(&database, 7, "kä", true);
    waiting(&database, 8, "ß", false);
    assert_eq!(all_told(&database, &Filter::default(), 10), ["billing kä 1 7: 5", "billing ß 1 8: "]);
    assert!(matches!(release(&database, "billing", "kä"), Release::Done(letters) if letters.len() == 1));
    assert_eq!(unblocked(&database), [7, 8]);
    let released = on!(database, conn => keys::release(conn, "billing", "k€".as_bytes(), &by()));
    let answer = released.unwrap_err().to_string();
    assert!(answer.contains("has no equivalent in encoding \"LATIN1\""), "{answer}");
}

async fn of_a_release_a_redrive_and_a_discard_at_once_each_letter_has_one(database: TestDatabase) {
    for round in 0..5 {
        let seqs = [round * 10 + 1, round * 10 + 2, round * 10 + 3];
        let ids = seqs.map(|seq| Plant::blocking(seq, "k").dead(&database));
        waiting(&database, round * 10 + 5, "k", true);
        waiting(&database, round * 10 + 6, "k", true);
        // As a key's rows are, all in one.
        for table in ["outbox_dead_letters", "outbox_deliveries"] {
            database.exec(&format!("UPDATE {table} SET partition_no = 3"));
        }
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            let (database, start) = (&database, &start);
            for _ in 0..2 {
                scope.spawn(move || {
                    start.wait();
                    release(database, "billing", "k")
                });
            }
            scope.spawn(move || {
                start.wait();
                redrive(database, &ids[..1])
            });
            scope.spawn(move || {
                start.wait();
                discard(database, &ids[1..2])
            });
        });
        // The third letter was for the release alone, so nothing blocks the key any more.
        assert_eq!(count(&database, "outbox_dead_letters WHERE blocks_key"), 0);
        let free = count(&database, "outbox_deliveries WHERE in_order AND NOT blocked");
        assert_eq!(free, 1, "round {round}: exactly the first goes");
        let first = database.query_i64("SELECT min(seq) FROM outbox_deliveries WHERE in_order");
        assert!(unblocked(&database).contains(&first), "round {round}");
        database.exec("DELETE FROM outbox_deliveries; DELETE FROM outbox_dead_letters");
    }
}
for_each_database!(of_a_release_a_redrive_and_a_discard_at_once_each_letter_has_one);

async fn a_rolled_back_release_changed_nothing(database: TestDatabase) {
    use diesel::connection::Connection;
    Plant::blocking(5, "k").dead(&database);
    waiting(&database, 7, "k", true);
    on!(database, conn => {
        let result: Result<(), outbox::Error> = conn.transaction(|conn| {
            assert!(matches!(keys::release(conn, "billing", b"k", &by())?, Release::Done(_)));
            Err(diesel::result::Error::RollbackTransaction.into())
        });
        assert!(result.is_err());
    });
    assert_eq!(all_told(&database, &Filter::default(), 10), ["billing k 1 7: 5"]);
    assert_eq!((unblocked(&database).len(), count(&database, "outbox_audit")), (0, 0));
}
for_each_database!(a_rolled_back_release_changed_nothing);
