//! What is given up rests as a dead letter until a person decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::message::HistoryEntry;
use relay::{AfterDeadLetter, Handler, HandlerError, Http};

use super::stage::{
    Log, Running, dead_letters, discard_all, enqueue, keyed, lines, not_now, plain, quick, redrive_all, relay_on,
    try_enqueue, until_dead, until_nothing_is_left, until_waiting,
};

async fn exhausted_and_rejected_deliveries_are_dead_letters_with_reason_and_history(database: TestDatabase) {
    let log = Log::default();
    let takes = Duration::from_millis(50);
    let receiver = Receiver::always(Answer::status(422).body("no such order").after(takes)).await;
    let began = Utc::now();
    let relay = relay_on(&database)
        .destination(log.handler("strict", |_| Err(HandlerError::reject("no such customer"))))
        .destination(log.handler("tired", |_| Err(not_now())).retry(quick(2)))
        .destination(log.accepting("well"))
        .destination(Http::new("http", receiver.url("/")));
    let relay = Running::start(relay).await;
    let id = enqueue(&database, [keyed("k", "m")])[0];
    until_dead(&database, &["http rejected", "strict rejected", "tired exhausted"]).await;
    until_waiting(&database, &[]).await;
    relay.stop().await;
    let ended = Utc::now();

    let mut letters = dead_letters(&database);
    letters.sort_by(|a, b| a.letter.destination.cmp(&b.letter.destination));
    let mut fingerprints = std::collections::BTreeSet::new();
    let told: Vec<_> = letters
        .iter()
        .map(|detail| {
            let letter = &detail.letter;
            assert_eq!((letter.message_id, &detail.payload[..]), (id, &b"m"[..]));
            assert_eq!(letter.ordering_key.as_deref(), Some(&b"k"[..]));
            let history: Vec<HistoryEntry> = serde_json::from_str(&detail.history).unwrap();
            let codes: Vec<_> = history.iter().map(|entry| entry.code.as_str()).collect();
            assert!(history.iter().map(|entry| entry.n).eq(1..=letter.attempts), "{history:?}");
            assert!(history.is_sorted_by_key(|entry| entry.at), "{history:?}");
            for entry in &history {
                assert!(entry.at > began && entry.at < ended, "{began} {ended}: {entry:?}");
                // It had begun before it ended, and an answer takes its time.
                let least = if letter.destination == "http" { takes } else { Duration::ZERO };
                let most = (entry.at - began).to_std().unwrap();
                assert!((least..=most).contains(&Duration::from_millis(entry.ms)), "{began}: {entry:?}");
            }
            let error = letter.last_error.clone().unwrap();
            fingerprints.insert(letter.fingerprint.clone());
            (letter.attempts, letter.blocks_key, error, codes.join(" "))
        })
        .collect();
    let expected = [
        (1, false, "422: no such order".to_owned(), "422".to_owned()),
        (1, false, "error: no such customer".to_owned(), "error".to_owned()),
        (3, false, "error: not now".to_owned(), "error error error".to_owned()),
    ];
    assert_eq!(told, expected);
    assert!(
        fingerprints.iter().all(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit())),
        "{fingerprints:?}"
    );
    assert_eq!(fingerprints.len(), 3, "{fingerprints:?}");
    assert_eq!((log.accepted("well"), receiver.requests().len(), log.attempts("tired", "m")), (vec!["m".into()], 1, 3));
}
for_each_database!(exhausted_and_rejected_deliveries_are_dead_letters_with_reason_and_history);

async fn a_history_tells_the_numbers_that_were_on_the_wire(database: TestDatabase) {
    let held = Answer::status(429).header("retry-after", "1");
    let answers = [Answer::status(500), Answer::status(500), held, Answer::status(422)];
    let receiver = Receiver::in_turn(answers).await;
    let relay = Running::start(relay_on(&database).destination(Http::new("http", receiver.url("/")))).await;
    enqueue(&database, [plain("m")]);
    until_dead(&database, &["http rejected"]).await;
    relay.stop().await;
    let sent: Vec<String> =
        receiver.requests().iter().map(|request| request.header("outbox-attempt").unwrap().to_owned()).collect();
    assert_eq!(sent, ["1", "2", "3", "3"], "a hold counts no attempt");
    let letter = &dead_letters(&database)[0];
    let history: Vec<HistoryEntry> = serde_json::from_str(&letter.history).unwrap();
    let written: Vec<(String, &str)> = history.iter().map(|entry| (entry.n.to_string(), entry.code.as_str())).collect();
    let codes = ["500", "500", "429", "422"];
    assert_eq!(written, sent.into_iter().zip(codes).collect::<Vec<_>>());
    assert_eq!(letter.letter.attempts, 3);
}
for_each_database!(a_history_tells_the_numbers_that_were_on_the_wire);

async fn letters_are_a_group_when_destination_and_cause_are_the_same(database: TestDatabase) {
    let log = Log::default();
    let relay = relay_on(&database)
        .destination(log.handler("a", |arrival| Err(HandlerError::reject(format!("no order '{}'", arrival.body)))))
        .destination(log.handler("b", |arrival| {
            let text = if arrival.body == "m3" { "no customer" } else { "no order" };
            Err(HandlerError::reject(text))
        }));
    let relay = Running::start(relay).await;
    enqueue(&database, ["m1", "m2", "m3"].map(plain));
    until_dead(&database, &["a rejected", "a rejected", "a rejected", "b rejected", "b rejected", "b rejected"]).await;
    relay.stop().await;
    let mut groups = std::collections::BTreeMap::new();
    for detail in dead_letters(&database) {
        let body = String::from_utf8(detail.payload).unwrap();
        let bodies: &mut Vec<String> =
            groups.entry((detail.letter.destination, detail.letter.fingerprint)).or_default();
        bodies.push(body);
    }
    let mut groups: Vec<String> = groups
        .into_iter()
        .map(|((destination, _), mut bodies)| {
            bodies.sort();
            format!("{destination}: {}", bodies.join(" "))
        })
        .collect();
    groups.sort();
    assert_eq!(groups, ["a: m1 m2 m3", "b: m1 m2", "b: m3"]);
}
for_each_database!(letters_are_a_group_when_destination_and_cause_are_the_same);

/// Rejects the head until it is opened.
fn strict(log: &Log, open: &Arc<AtomicBool>, choice: AfterDeadLetter) -> Handler {
    let open = open.clone();
    let handler = log.handler("d", move |arrival| {
        let reject = arrival.body == "head" && !open.load(Ordering::SeqCst);
        if reject { Err(HandlerError::reject("not like this")) } else { Ok(()) }
    });
    handler.after_dead_letter(choice)
}

async fn a_key_goes_on_after_a_dead_letter_and_a_redrive_delivers_it_under_its_id(database: TestDatabase) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let start = || Running::start(relay_on(&database).destination(strict(&log, &open, AfterDeadLetter::Continue)));
    let relay = start().await;
    let ids = enqueue(&database, [keyed("k", "head"), keyed("k", "f1")]);
    until_dead(&database, &["d rejected"]).await;
    log.until_accepted("d", &["f1"]).await;
    relay.stop().await;
    // Whoever comes next reads the letter in the table, and passes it too.
    let relay = start().await;
    enqueue(&database, [keyed("k", "f1 later")]);
    log.until_accepted("d", &["f1", "f1 later"]).await;
    // Redriven in vain first: it dies again, as another life of the same message.
    redrive_all(&database);
    log.until("it is rejected again", |log| log.attempts("d", "head") == 2).await;
    until_dead(&database, &["d rejected"]).await;
    open.store(true, Ordering::SeqCst);
    redrive_all(&database);
    enqueue(&database, [keyed("k", "f2")]);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let heads: Vec<_> = log.arrivals().into_iter().filter(|arrival| arrival.body == "head").collect();
    assert_eq!(heads.iter().map(|head| (head.id, head.attempt)).collect::<Vec<_>>(), [(ids[0], 1); 3]);
    let mut accepted = log.accepted("d");
    accepted.sort();
    assert_eq!(accepted, ["f1", "f1 later", "f2", "head"]);
}
for_each_database!(a_key_goes_on_after_a_dead_letter_and_a_redrive_delivers_it_under_its_id);

/// Followers of a letter that blocks its key wait, over a restart too, until a person decides.
async fn blocked(database: &TestDatabase, decide: impl FnOnce(&AtomicBool)) -> (Log, uuid::Uuid) {
    let (log, open) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let start = || Running::start(relay_on(database).destination(strict(&log, &open, AfterDeadLetter::Block)));
    let relay = start().await;
    let ids = enqueue(database, [keyed("k", "head"), keyed("k", "f1"), keyed("free 1", "o1")]);
    until_dead(database, &["d rejected"]).await;
    enqueue(database, [keyed("k", "f2"), keyed("free 2", "o2")]);
    log.until_accepted("d", &["o1", "o2"]).await;
    until_waiting(database, &["d blocked"; 2]).await;
    relay.stop().await;

    let relay = start().await;
    enqueue(database, [keyed("k", "f3"), keyed("free 3", "o3")]);
    log.until_accepted("d", &["o3"]).await;
    until_waiting(database, &["d blocked"; 3]).await;
    assert_eq!(log.arrivals().len(), 1 + 3, "{:?}", log.arrivals());

    decide(&open);
    until_nothing_is_left(database).await;
    enqueue(database, [keyed("k", "f4")]);
    until_nothing_is_left(database).await;
    relay.stop().await;
    (log, ids[0])
}

fn of_key(log: &Log) -> Vec<String> {
    log.accepted("d").into_iter().filter(|body| !body.starts_with('o')).collect()
}

async fn a_redrive_frees_the_key_that_its_letter_blocked_in_order(database: TestDatabase) {
    let (log, id) = blocked(&database, |open| {
        open.store(true, Ordering::SeqCst);
        redrive_all(&database);
    })
    .await;
    assert_eq!(of_key(&log), ["head", "f1", "f2", "f3", "f4"]);
    assert!(log.arrivals().iter().filter(|arrival| arrival.body == "head").all(|head| head.id == id));
}
for_each_database!(a_redrive_frees_the_key_that_its_letter_blocked_in_order);

async fn a_discard_frees_the_key_and_leaves_a_line_in_the_audit(database: TestDatabase) {
    let (log, id) = blocked(&database, |_| discard_all(&database)).await;
    assert_eq!(of_key(&log), ["f1", "f2", "f3", "f4"]);
    let audit = lines(&database, "SELECT concat_ws('|', actor, action, reason, target) FROM outbox_audit");
    assert_eq!(audit.len(), 1);
    assert!(audit[0].starts_with("ada@desk|dead_letter.discard|looked at it|"), "{audit:?}");
    assert!(audit[0].contains(&id.to_string()), "{audit:?}");
}
for_each_database!(a_discard_frees_the_key_and_leaves_a_line_in_the_audit);

async fn an_expired_message_is_a_dead_letter_that_was_never_attempted(database: TestDatabase) {
    let log = Log::default();
    let relay = Running::start(relay_on(&database).destination(log.accepting("d"))).await;
    let past: DateTime<Utc> = Utc::now() - Duration::from_secs(60);
    enqueue(&database, [keyed("k", "late").expires_at(past), keyed("k", "next")]);
    until_dead(&database, &["d expired"]).await;
    log.until_accepted("d", &["next"]).await;
    until_waiting(&database, &[]).await;
    let letter = dead_letters(&database).remove(0);
    assert_eq!((letter.letter.attempts, letter.history.as_str()), (0, "[]"));
    // Whoever redrives it wants it sent.
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert_eq!(log.accepted("d"), ["next", "late"]);
}
for_each_database!(an_expired_message_is_a_dead_letter_that_was_never_attempted);

async fn rows_whose_headers_nobody_can_read_die_alone(database: TestDatabase) {
    let log = Log::default();
    let receiver = Receiver::always(Answer::status(200)).await;
    let relay =
        relay_on(&database).destination(log.accepting("handler")).destination(Http::new("http", receiver.url("/")));
    let relay = Running::start(relay).await;
    enqueue(&database, [keyed("k", "before")]);
    for headers in ["{\"broken", "[1]", "{\"a\": 7}", ""] {
        database.exec(&format!(
            "INSERT INTO outbox_messages (topic, ordering_key, payload, headers) VALUES ('t', 'k', 'x', '{headers}')"
        ));
    }
    enqueue(&database, [keyed("k", "after"), plain("neighbour")]);
    log.until_accepted("handler", &["before", "after", "neighbour"]).await;
    until_waiting(&database, &[]).await;
    let dead = ["handler undecodable", "http undecodable"].iter().flat_map(|word| [*word; 4]).collect::<Vec<_>>();
    until_dead(&database, &dead).await;
    relay.stop().await;
    assert_eq!((log.arrivals().len(), receiver.requests().len()), (3, 3));
    assert!(dead_letters(&database).iter().all(|detail| detail.letter.last_error.is_some()));
}
for_each_database!(rows_whose_headers_nobody_can_read_die_alone);

async fn hostile_topics_and_headers_are_refused_before_they_are_stored(database: TestDatabase) {
    let long = "a".repeat(129);
    for topic in ["", "a b", "a..b", ".a", "a.", "a\nb", "a'--", "a*", "ü", "a.b\n", &long] {
        let sql = format!("INSERT INTO outbox_messages (topic, payload) VALUES ('{}', 'x')", topic.replace('\'', "''"));
        assert!(database.try_exec(&sql).is_err(), "{topic:?} was stored by a plain INSERT");
        let refused = try_enqueue(&database, [Envelope::raw(topic.to_owned(), "x")]);
        assert!(refused.is_err_and(|error| error.is_refused()), "{topic:?} was stored by the library");
    }
    for (name, value) in [("x-a", "b\r\nc: d"), ("x-a\r\nb", "c"), ("", "a"), ("webhook-id", "1"), ("x-a", "\0")] {
        let refused = try_enqueue(&database, [plain("x").header(name, value)]);
        assert!(refused.is_err_and(|error| error.is_refused()), "the header {name:?}: {value:?} was stored");
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 0);

    // What another program stores all the same does not get onto the wire.
    let receiver = Receiver::always(Answer::status(200)).await;
    let relay = Running::start(relay_on(&database).destination(Http::new("http", receiver.url("/")))).await;
    let quoted = r#"{"x-a": "b\r\nx-evil: 1"}"#;
    // MariaDB reads backslashes in literals.
    let quoted = if database.kind() == Kind::Mariadb { quoted.replace('\\', "\\\\") } else { quoted.to_owned() };
    database.exec(&format!("INSERT INTO outbox_messages (topic, payload, headers) VALUES ('t', 'evil', '{quoted}')"));
    enqueue(&database, [plain("good")]);
    receiver.wait_until(super::stage::LIMIT, "the neighbour", |requests| !requests.is_empty()).await;
    until_waiting(&database, &[]).await;
    relay.stop().await;
    assert_eq!(receiver.requests().iter().map(|request| &request.body[..]).collect::<Vec<_>>(), [b"good"]);
    assert_eq!(dead_letters(&database).len(), 1);
}
for_each_database!(hostile_topics_and_headers_are_refused_before_they_are_stored);
