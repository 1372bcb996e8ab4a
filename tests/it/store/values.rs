//! What other programs store arrives byte for byte, and what cannot be understood harms nobody else.

use std::time::Instant;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::message::Headers;
use relay::store::{State, WaitingChange};

use super::fixture::{Draft, Outbox, mine, moved, outcome, unit, waits};

/// Pairs that a sloppy comparison takes for the same, and some that are hard to carry.
fn nasty_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "A",
        "a ",
        " a",
        "a\t",
        "ä",
        "a\u{308}",
        "Ä",
        "ae",
        "ß",
        "ss",
        "é",
        "e\u{301}",
        "",
        " ",
        "%",
        "_",
        "\\",
        "'",
        "\"",
        "a'b",
        "null",
        "NULL",
        "\u{202e}a",
        "🦀",
        "ａ",
        "ı",
        "i",
        "İ",
        "\u{feff}a",
        "\n",
        "a\nb",
        "{a}",
    ]
    .map(str::to_owned)
    .into();
    keys.push("x".repeat(255));
    keys.push(format!("{}y", "x".repeat(254)));
    keys.push("ö".repeat(127));
    keys
}

async fn keys_that_differ_in_a_byte_are_different_keys(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let keys = nasty_keys();
    let insert: String =
        keys.iter().map(|key| format!("{};\n", Draft::default().key(key).sql(outbox.kind()))).collect();
    outbox.database.exec(&format!("BEGIN;\n{insert}COMMIT;\nBEGIN;\n{insert}COMMIT;"));
    let messages = mine(outbox.read_all().await.from_tail);
    let read: Vec<&[u8]> = messages.iter().map(|message| message.ordering_key.as_deref().unwrap()).collect();
    let written: Vec<&[u8]> = keys.iter().chain(&keys).map(|key| key.as_bytes()).collect();
    assert_eq!(read, written);

    let moves = messages.iter().map(|message| moved(message, vec![unit("mail", waits(State::Blocked))])).collect();
    outbox.settle_all(moves, vec![]).await;
    let due = outbox.due("mail").await;
    let mut heads: Vec<&[u8]> = due.iter().map(|row| row.message.ordering_key.as_deref().unwrap()).collect();
    let mut once: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    heads.sort_unstable();
    once.sort_unstable();
    assert_eq!(heads, once, "one head for each key, none blocks another's");

    let asked: Vec<_> = keys.iter().map(|key| ("mail".to_owned(), key.as_bytes().into())).collect();
    assert_eq!(outbox.store.key_parked(&asked).await.unwrap(), vec![true; keys.len()]);
    let outcomes = due.iter().step_by(2).map(|row| outcome(row, WaitingChange::Delivered)).collect();
    outbox.settle_all(vec![], outcomes).await;
    assert_eq!(outbox.free().len(), keys.len(), "followers of exactly the delivered keys moved up");
    let outcomes = outbox.due("mail").await;
    let outcomes = outcomes.iter().map(|row| outcome(row, WaitingChange::Delivered)).collect();
    outbox.settle_all(vec![], outcomes).await;
    let parked = outbox.store.key_parked(&asked).await.unwrap();
    let left: Vec<bool> = keys.iter().map(|key| outbox_has_key(&due, key)).collect();
    assert_eq!(parked, left);
}
for_each_database!(keys_that_differ_in_a_byte_are_different_keys);

/// True when the key was left out by the first of two rounds, so that its follower still waits.
fn outbox_has_key(due: &[relay::message::WaitingDelivery], key: &str) -> bool {
    let place = due.iter().position(|row| row.message.ordering_key.as_deref() == Some(key.as_bytes())).unwrap();
    place % 2 == 1
}

async fn payloads_arrive_byte_for_byte(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        every_byte.clone(),
        b"'\"\\ \\x00 %s $1 ? -- /* */ \r\n".to_vec(),
        "{\"a\": \"\\u0000 \u{1f980}\"}".into(),
        vec![0xff, 0xfe, 0xc3, 0x28],
        every_byte.iter().copied().cycle().take(256 * 1024).collect(),
    ];
    for payload in &payloads {
        outbox.insert(&Draft::default().payload(payload));
    }
    let messages = mine(outbox.read_all().await.from_tail);
    for (message, payload) in messages.iter().zip(&payloads) {
        assert!(message.payload == payload[..], "{} bytes were changed", payload.len());
    }
    let moves = messages.iter().map(|message| moved(message, vec![unit("mail", waits(State::Retry))])).collect();
    outbox.settle_all(moves, vec![]).await;
    let mut due = outbox.due("mail").await;
    due.sort_by_key(|row| row.message.seq);
    assert_eq!(due.len(), payloads.len());
    for (row, payload) in due.iter().zip(&payloads) {
        assert!(row.message.payload == payload[..], "{} bytes were changed by waiting", payload.len());
    }
}
for_each_database!(payloads_arrive_byte_for_byte);

/// The kinds differ in how text gets in, not in what comes out.
async fn a_payload_given_as_text_is_its_bytes(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let body = "{\"name\": \"Grüße, O'Neil\\n\"}";
    let literal = body.replace('\'', "''");
    let literal = if outbox.kind() == Kind::Mariadb { literal.replace('\\', "\\\\") } else { literal };
    let names = if outbox.kind() == Kind::Mariadb { "SET NAMES utf8mb4; " } else { "" };
    outbox
        .database
        .exec(&format!("{names}INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{literal}')"));
    let message = mine(outbox.read_all().await.from_tail).remove(0);
    assert_eq!(&message.payload[..], body.as_bytes());
    assert_eq!((message.version, message.headers), (1, Headers::Decoded(Default::default())));
}
for_each_database!(a_payload_given_as_text_is_its_bytes);

async fn headers_nobody_can_send_do_not_harm_their_neighbours(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let broken = ["", "nonsense", "[]", "{\"a\":1}", "{\"a\":\"x\\ny\"}", "{\"Host\":\"x\"}", "{\"a\":\"b\"", "null"];
    for headers in broken {
        outbox.insert(&Draft::default().headers(headers));
        outbox.insert(&Draft::default().headers("{\"a\": \"ü\"}"));
    }
    let messages = mine(outbox.read_all().await.from_tail);
    assert_eq!(messages.len(), 2 * broken.len());
    for pair in messages.chunks(2) {
        assert!(matches!(&pair[0].headers, Headers::Undecodable(_)), "{:?}", pair[0].headers);
        let fine = std::iter::once(("a".to_owned(), "ü".to_owned())).collect();
        assert_eq!(pair[1].headers, Headers::Decoded(fine));
    }
    let moves = messages.iter().map(|message| moved(message, vec![unit("mail", waits(State::Retry))])).collect();
    outbox.settle_all(moves, vec![]).await;
    let due = outbox.due("mail").await;
    let undecodable = due.iter().filter(|row| matches!(row.message.headers, Headers::Undecodable(_))).count();
    assert_eq!((due.len(), undecodable), (2 * broken.len(), broken.len()));
}
for_each_database!(headers_nobody_can_send_do_not_harm_their_neighbours);

async fn a_broken_history_is_read_as_far_as_it_goes(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    outbox.park("a", "mail").await;
    outbox.park("b", "mail").await;
    let id = outbox.waiting()[0].id;
    outbox.database.exec(&format!("UPDATE outbox_deliveries SET history = 'nonsense' WHERE id = {id}"));
    let lengths: Vec<usize> = outbox.due("mail").await.iter().map(|row| row.history.len()).collect();
    assert_eq!(lengths, [0, 1]);
}
for_each_database!(a_broken_history_is_read_as_far_as_it_goes);

async fn times_and_numbers_out_of_range_do_not_harm_their_neighbours(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let (far, past) = match outbox.kind() {
        Kind::Postgres => ("'infinity'", "'-infinity'"),
        Kind::Mariadb => ("'9999-12-31 23:59:59.999999'", "'0001-01-01 00:00:00'"),
        Kind::Sqlite => ("9223372036854775807", "-9223372036854775808"),
    };
    let insert = |created_at: &str, deliver_at: &str, expires_at: &str, version: i32| {
        outbox.database.exec(&format!(
            "INSERT INTO outbox_messages (topic, payload, created_at, deliver_at, expires_at, version) \
             VALUES ('t', '', {created_at}, {deliver_at}, {expires_at}, {version})"
        ));
    };
    insert(far, far, far, -1);
    insert(past, past, past, 32767);
    outbox.insert(&Draft::default());
    let messages = mine(outbox.read_all().await.from_tail);
    let seen: Vec<_> = messages.iter().map(|m| (m.scheduled, m.is_expired(Instant::now()), m.version)).collect();
    assert_eq!(seen, [(true, false, 0), (false, true, 32767), (false, false, 7)]);

    let waits = relay::store::Waits { due: relay::store::DueIn::DeliverAt, ..waits(State::Scheduled) };
    let moves = messages.iter().map(|message| moved(message, vec![unit("mail", waits.clone())])).collect();
    outbox.settle_all(moves, vec![]).await;
    let lanes = [relay::store::LaneDemand { destination: "mail".into(), limit: 10, without: Vec::new() }];
    let owned = relay::message::PartitionSet::ALL;
    let due = outbox.store.delivery_due(&lanes, owned, Some(super::fixture::noon())).await.unwrap();
    assert_eq!(due.rows.len(), 2);
    assert_eq!(due.lanes[0].next_due_in, Some(std::time::Duration::ZERO));
    outbox.store.status(None).await.unwrap();
}
for_each_database!(times_and_numbers_out_of_range_do_not_harm_their_neighbours);

async fn what_went_wrong_is_stored_whatever_its_bytes(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let message = outbox.keyed("k").await;
    let said = relay::store::Waits {
        last_error: Some(format!("a\u{0}b'\"\\ \u{1f980} {}", "x".repeat(5000))),
        ..waits(State::Retry)
    };
    let died = relay::store::Dies {
        last_error: Some("\u{0}".into()),
        fingerprint: "f\u{0}".into(),
        ..super::fixture::dies(relay::store::Reason::Rejected)
    };
    outbox.settle_all(vec![moved(&message, vec![unit("mail", said), unit("sms", died)])], vec![]).await;
    let row = &outbox.waiting()[0];
    assert!(row.last_error.as_ref().unwrap().contains("b'\"\\ \u{1f980} x"), "{row:?}");
    assert_eq!(outbox.dead().len(), 1);
}
for_each_database!(what_went_wrong_is_stored_whatever_its_bytes);
