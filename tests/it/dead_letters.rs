//! Dead letters through the library, on every database, with nothing else running.
//!
//! Rows are planted with plain SQL, as a relay would have left them, and looked at with plain SQL afterwards.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::LoadConnection;
use outbox::OutboxBackend;
use outbox::dead_letters::{self, By, DeadLetter, Detail, Filter, Outcome};
use outbox::messages::{self, Bounds};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

/// Runs the same code over a connection of the database's own kind.
macro_rules! on {
    ($database:expr, $conn:ident => $work:expr) => {
        match $database.kind() {
            Kind::Postgres => {
                let $conn = &mut $database.postgres();
                $work
            }
            Kind::Mariadb => {
                let $conn = &mut $database.mariadb();
                $work
            }
            Kind::Sqlite => {
                let $conn = &mut $database.sqlite();
                $work
            }
        }
    };
}
pub(crate) use on;

/// A dead letter or a waiting delivery to plant; its number is how the tests find it again.
#[derive(Clone)]
pub(crate) struct Plant {
    pub(crate) seq: i64,
    pub(crate) key: Option<&'static str>,
    pub(crate) destination: &'static str,
    pub(crate) topic: &'static str,
    pub(crate) payload: &'static [u8],
    pub(crate) error: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) blocks_key: bool,
    pub(crate) expired: bool,
}

impl Plant {
    pub(crate) fn new(seq: i64) -> Plant {
        Plant {
            seq,
            key: None,
            destination: "billing",
            topic: "order.placed",
            payload: b"{}",
            error: "503 Service Unavailable",
            reason: "exhausted",
            blocks_key: false,
            expired: false,
        }
    }

    /// One that keeps its key blocked.
    pub(crate) fn blocking(seq: i64, key: &'static str) -> Plant {
        Plant { key: Some(key), blocks_key: true, ..Plant::new(seq) }
    }

    /// The columns both tables share, and their values.
    fn common(&self, kind: Kind) -> (String, String) {
        let hex: String = self.payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let (id, payload_column, payload) = match kind {
            Kind::Postgres => ("gen_random_uuid()", "payload_bytes", format!("decode('{hex}', 'hex')")),
            Kind::Mariadb => ("random_bytes(16)", "payload", format!("x'{hex}'")),
            Kind::Sqlite => ("randomblob(16)", "payload", format!("x'{hex}'")),
        };
        let key = self.key.map_or_else(|| "NULL".to_owned(), |key| format!("'{key}'"));
        let expires = if self.expired { time(kind, 1) } else { "NULL".to_owned() };
        (
            format!(
                "message_id, seq, partition_no, topic, ordering_key, {payload_column}, content_type, headers, \
                 expires_at, version, created_at, destination, life, attempts, last_verdict, last_error, history"
            ),
            format!(
                "{id}, {}, {}, '{}', {key}, {payload}, 'text/plain', '{{\"a\":\"b\"}}', {expires}, 1, {}, '{}', 0, 3, \
                 'retry', '{}', '[{{\"n\":3}}]'",
                self.seq,
                self.seq % 32,
                self.topic,
                time(kind, 0),
                self.destination,
                self.error,
            ),
        )
    }

    /// Plants it among the dead letters; returns its id.
    pub(crate) fn dead(&self, database: &TestDatabase) -> i64 {
        let kind = database.kind();
        let (columns, values) = self.common(kind);
        database.exec(&format!(
            "INSERT INTO outbox_dead_letters ({columns}, in_order, reason, fingerprint, blocks_key, died_at) \
             VALUES ({values}, true, '{}', 'f-{}', {}, {})",
            self.reason,
            self.reason,
            self.blocks_key,
            time(kind, self.seq),
        ));
        database.query_i64(&format!("SELECT max(id) FROM outbox_dead_letters WHERE seq = {}", self.seq))
    }

    /// Plants it among the waiting deliveries.
    pub(crate) fn waiting(&self, database: &TestDatabase, blocked: bool) {
        let kind = database.kind();
        let (columns, values) = self.common(kind);
        database.exec(&format!(
            "INSERT INTO outbox_deliveries ({columns}, state, blocked, in_order, due_at) \
             VALUES ({values}, 'blocked', {blocked}, true, {})",
            time(kind, 2),
        ));
    }
}

/// So many minutes after the hour all tests begin at, as a literal.
pub(crate) fn time(kind: Kind, minutes: i64) -> String {
    let at = instant(minutes);
    match kind {
        Kind::Postgres => format!("'{}'", at.to_rfc3339()),
        Kind::Mariadb => format!("'{}'", at.format("%Y-%m-%d %H:%M:%S%.6f")),
        Kind::Sqlite => at.timestamp_millis().to_string(),
    }
}

pub(crate) fn instant(minutes: i64) -> DateTime<Utc> {
    "2026-01-02T10:00:00.250Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::minutes(minutes)
}

pub(crate) fn by() -> By {
    By { actor: "o'neill@shop \\ \"1\"".to_owned(), reason: Some("it's fixed; -- really".to_owned()) }
}

fn list(database: &TestDatabase, filter: &Filter) -> Vec<i64> {
    on!(database, conn => dead_letters::list(conn, filter, 100)).unwrap().iter().map(|letter| letter.seq).collect()
}

fn get(database: &TestDatabase, id: i64) -> Option<Detail> {
    on!(database, conn => dead_letters::get(conn, id)).unwrap()
}

pub(crate) fn redrive(database: &TestDatabase, ids: &[i64]) -> Outcome {
    on!(database, conn => dead_letters::redrive(conn, ids, &by())).unwrap()
}

pub(crate) fn discard(database: &TestDatabase, ids: &[i64]) -> Outcome {
    on!(database, conn => dead_letters::discard(conn, ids, &by())).unwrap()
}

fn done(ids: &[i64]) -> Outcome {
    let mut done = ids.to_vec();
    done.sort_unstable();
    Outcome { done, not_found: vec![] }
}

/// The numbers of the unblocked waiting deliveries.
pub(crate) fn unblocked(database: &TestDatabase) -> Vec<i64> {
    let text = if database.kind() == Kind::Mariadb { "CHAR" } else { "text" };
    let rows = database
        .query_text(&format!("SELECT CAST(seq AS {text}) FROM outbox_deliveries WHERE NOT blocked ORDER BY seq"));
    rows.into_iter().map(|seq| seq.unwrap().parse().unwrap()).collect()
}

async fn newest_letters_come_first_and_filters_narrow(database: TestDatabase) {
    for plant in [
        Plant::new(1),
        Plant { destination: "audit", ..Plant::new(2) },
        Plant { topic: "order.refunded", error: "connection reset", ..Plant::new(3) },
        Plant { key: Some("k1"), reason: "rejected", payload: b"the \x00 needle", ..Plant::new(4) },
        Plant { key: Some("K1"), ..Plant::new(5) },
    ] {
        plant.dead(&database);
    }
    let text = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (Filter::default(), vec![5, 4, 3, 2, 1]),
        (Filter { destination: text("audit"), ..Filter::default() }, vec![2]),
        (Filter { topic: text("order.refunded"), ..Filter::default() }, vec![3]),
        (Filter { key: text("k1"), ..Filter::default() }, vec![4]),
        (Filter { error: text("reset"), ..Filter::default() }, vec![3]),
        (Filter { error: text("rejected"), ..Filter::default() }, vec![4]),
        (Filter { error: text("100%' OR '1'='1"), ..Filter::default() }, vec![]),
        (Filter { group: text("f-rejected"), ..Filter::default() }, vec![4]),
        (Filter { since: Some(instant(3)), until: Some(instant(5)), ..Filter::default() }, vec![4, 3]),
        (Filter { contains: text("needle"), ..Filter::default() }, vec![4]),
        (Filter { destination: text("billing"), error: text("503"), ..Filter::default() }, vec![5, 4, 1]),
    ] {
        assert_eq!(list(&database, &filter), expected, "{filter:?}");
    }
    let two: Vec<DeadLetter> = on!(database, conn => dead_letters::list(conn, &Filter::default(), 2)).unwrap();
    assert_eq!(two.iter().map(|letter| letter.seq).collect::<Vec<_>>(), [5, 4]);
    let ids: Vec<i64> = on!(database, conn => dead_letters::ids(conn, &Filter::default(), 2)).unwrap();
    let seqs: Vec<i64> = ids.iter().map(|id| get(&database, *id).unwrap().letter.seq).collect();
    assert_eq!(seqs, [1, 2], "what is changed begins with what died first");
}
for_each_database!(newest_letters_come_first_and_filters_narrow);

async fn waiting_deliveries_are_listed_by_the_age_of_their_messages(database: TestDatabase) {
    // A delivery's own number says when it first had to wait.
    for seq in [7, 3, 9, 5] {
        Plant::new(seq).waiting(&database, false);
    }
    let bounds = Bounds { shown: 2, ..Bounds::default() };
    let page = on!(database, conn => messages::waiting(conn, &messages::Filter::default(), bounds)).unwrap();
    assert_eq!(page.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [3, 5]);
    assert!(page.has_more && page.looked_at_all);
}
for_each_database!(waiting_deliveries_are_listed_by_the_age_of_their_messages);

async fn a_letter_is_shown_byte_for_byte(database: TestDatabase) {
    const PAYLOAD: &[u8] = b"\x00\xff'\"\\\n\r\x1b[31m \xe2\x82\xac";
    let id = Plant { payload: PAYLOAD, key: Some("k\\é \t"), error: "line 1\nline \"2\"\\", ..Plant::new(7) };
    let id = {
        // MariaDB reads a backslash in a literal as an escape; the others do not.
        let mut plant = id;
        if database.kind() == Kind::Mariadb {
            plant.key = Some("k\\\\é \t");
            plant.error = "line 1\nline \"2\"\\\\";
        }
        plant.dead(&database)
    };
    let detail = get(&database, id).expect("the letter is there");
    assert_eq!(detail.payload, PAYLOAD);
    assert_eq!(detail.headers, "{\"a\":\"b\"}");
    assert_eq!(detail.history, "[{\"n\":3}]");
    let letter = detail.letter;
    assert_eq!(letter.ordering_key.as_deref(), Some("k\\é \t".as_bytes()));
    assert_eq!(letter.last_error.as_deref(), Some("line 1\nline \"2\"\\"));
    assert_eq!((letter.id, letter.seq, letter.attempts, letter.life), (id, 7, 3, 0));
    assert_eq!((letter.destination.as_str(), letter.topic.as_str()), ("billing", "order.placed"));
    assert_eq!((letter.reason.as_str(), letter.content_type.as_str()), ("exhausted", "text/plain"));
    assert_eq!(letter.last_verdict.as_deref(), Some("retry"));
    assert_eq!((letter.created_at, letter.died_at), (instant(0), instant(7)));
    assert_eq!((letter.first_attempt_at, letter.redriven_from, letter.blocks_key), (None, None, false));
    assert!(get(&database, id + 1).is_none());
}
for_each_database!(a_letter_is_shown_byte_for_byte);

async fn a_redriven_letter_waits_in_its_next_life_and_only_once(database: TestDatabase) {
    let id = Plant { key: Some("k"), payload: b"\x00body", ..Plant::new(9) }.dead(&database);
    let before = get(&database, id).unwrap();
    assert_eq!(redrive(&database, &[id, id]), done(&[id]));

    assert_eq!(list(&database, &Filter::default()), [0; 0]);
    let payload = if database.kind() == Kind::Postgres { "payload_bytes" } else { "payload" };
    let hex = if database.kind() == Kind::Postgres {
        format!("encode({payload}, 'hex')")
    } else {
        format!("lower(hex({payload}))")
    };
    let message_id = before.letter.message_id.simple().to_string();
    let same_id = match database.kind() {
        Kind::Postgres => format!("message_id = '{message_id}'"),
        Kind::Mariadb | Kind::Sqlite => format!("message_id = x'{message_id}'"),
    };
    let now = match database.kind() {
        Kind::Postgres => "clock_timestamp()",
        Kind::Mariadb => "utc_timestamp(6)",
        Kind::Sqlite => "unixepoch('now', 'subsec') * 1000 + 1",
    };
    let row = database.query_i64(&format!(
        "SELECT count(*) FROM outbox_deliveries WHERE {same_id} AND seq = 9 AND partition_no = 9 AND life = 1 \
         AND attempts = 0 AND redriven_from = {id} AND NOT in_order AND NOT blocked AND NOT suspect AND state = 'retry' \
         AND deaths = 0 AND attempted_by IS NULL AND first_attempt_at IS NULL AND history = '[{{\"n\":3}}]' AND due_at <= {now} \
         AND due_at > {} AND {hex} = '00626f6479' AND headers = '{{\"a\":\"b\"}}' AND destination = 'billing'",
        time(database.kind(), 1_000),
    ));
    assert_eq!(row, 1, "the waiting delivery is not what a redrive should make");

    assert_eq!(redrive(&database, &[id]), Outcome { done: vec![], not_found: vec![id] });
    assert_eq!(discard(&database, &[id]), Outcome { done: vec![], not_found: vec![id] });
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries"), 1);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_audit"), 1);
}
for_each_database!(a_redriven_letter_waits_in_its_next_life_and_only_once);

async fn every_change_is_audited_with_actor_and_reason(database: TestDatabase) {
    let (first, second) = (Plant::new(1).dead(&database), Plant::new(2).dead(&database));
    let message = get(&database, second).unwrap().letter.message_id;
    redrive(&database, &[first]);
    discard(&database, &[second]);
    let column = |name: &str| database.query_text(&format!("SELECT {name} FROM outbox_audit ORDER BY id"));
    let twice = |text: String| vec![Some(text.clone()), Some(text)];
    assert_eq!(column("actor"), twice(by().actor));
    assert_eq!(column("reason"), twice(by().reason.unwrap()));
    assert_eq!(column("action"), [Some("dead_letter.redrive".to_owned()), Some("dead_letter.discard".to_owned())]);
    let target = column("target")[1].clone().unwrap();
    assert_eq!(target, format!("dead letter {second}, message {message}, destination billing"));
}
for_each_database!(every_change_is_audited_with_actor_and_reason);

async fn a_redriven_head_goes_first_and_its_followers_stay_blocked(database: TestDatabase) {
    let head = Plant::blocking(5, "k").dead(&database);
    for follower in [7, 9] {
        Plant { key: Some("k"), ..Plant::new(follower) }.waiting(&database, true);
    }
    // Another key, the same key in another case, and the same key elsewhere are nobody's business.
    Plant { key: Some("other"), ..Plant::new(6) }.waiting(&database, true);
    Plant { key: Some("K"), ..Plant::new(8) }.waiting(&database, true);
    Plant { key: Some("k"), destination: "audit", ..Plant::new(10) }.waiting(&database, true);
    redrive(&database, &[head]);
    assert_eq!(unblocked(&database), [5]);
    let in_order = "SELECT count(*) FROM outbox_deliveries WHERE seq = 5 AND in_order";
    assert_eq!(database.query_i64(in_order), 1);
}
for_each_database!(a_redriven_head_goes_first_and_its_followers_stay_blocked);

async fn a_delivery_that_was_free_is_blocked_behind_a_redriven_head(database: TestDatabase) {
    let head = Plant::blocking(5, "k").dead(&database);
    Plant { key: Some("k"), ..Plant::new(7) }.waiting(&database, false);
    redrive(&database, &[head]);
    assert_eq!(unblocked(&database), [5]);
}
for_each_database!(a_delivery_that_was_free_is_blocked_behind_a_redriven_head);

async fn a_key_stays_blocked_while_another_letter_blocks_it(database: TestDatabase) {
    let first = Plant::blocking(5, "k").dead(&database);
    let second = Plant::blocking(6, "k").dead(&database);
    Plant { key: Some("k"), ..Plant::new(7) }.waiting(&database, true);
    redrive(&database, &[second]);
    assert_eq!(unblocked(&database), [0; 0]);
    discard(&database, &[first]);
    assert_eq!(unblocked(&database), [6]);
}
for_each_database!(a_key_stays_blocked_while_another_letter_blocks_it);

async fn letters_of_one_key_are_redriven_together_in_their_order(database: TestDatabase) {
    let ids: Vec<i64> = [8, 5, 6].map(|seq| Plant::blocking(seq, "k").dead(&database)).to_vec();
    Plant { key: Some("k"), ..Plant::new(7) }.waiting(&database, true);
    assert_eq!(redrive(&database, &ids), done(&ids));
    assert_eq!(unblocked(&database), [5]);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE in_order"), 4);
}
for_each_database!(letters_of_one_key_are_redriven_together_in_their_order);

async fn a_discarded_head_lets_the_next_of_its_key_go(database: TestDatabase) {
    let head = Plant::blocking(5, "k").dead(&database);
    for follower in [9, 7] {
        Plant { key: Some("k"), ..Plant::new(follower) }.waiting(&database, true);
    }
    assert_eq!(discard(&database, &[head]), done(&[head]));
    assert_eq!(unblocked(&database), [7]);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_dead_letters"), 0);
    let kept = format!("SELECT count(*) FROM outbox_deliveries WHERE due_at = {}", time(database.kind(), 2));
    assert_eq!(database.query_i64(&kept), 2, "the due time of a follower was changed");
}
for_each_database!(a_discarded_head_lets_the_next_of_its_key_go);

async fn an_expiry_that_has_passed_no_longer_counts(database: TestDatabase) {
    let id = Plant { expired: true, reason: "expired", ..Plant::new(3) }.dead(&database);
    redrive(&database, &[id]);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries WHERE expires_at IS NULL"), 1);
}
for_each_database!(an_expiry_that_has_passed_no_longer_counts);

/// A destination that is removed, for one, gives up what is scheduled for it long before its time.
async fn a_scheduled_letter_is_redriven_for_its_time(database: TestDatabase) {
    let [scheduled, late, plain] = [3, 4, 5].map(|seq| Plant::new(seq).dead(&database));
    let at = |letter: i64, minutes: i64| {
        let at = time(database.kind(), minutes);
        database.exec(&format!("UPDATE outbox_dead_letters SET deliver_at = {at} WHERE id = {letter}"));
    };
    const CENTURY: i64 = 100 * 365 * 24 * 60;
    at(scheduled, CENTURY);
    at(late, 1);
    redrive(&database, &[scheduled, late, plain]);
    let due = |condition: String| {
        let seq = if database.kind() == Kind::Mariadb { "CAST(seq AS CHAR)" } else { "CAST(seq AS text)" };
        let rows = database.query_text(&format!("SELECT {seq} FROM outbox_deliveries WHERE {condition} ORDER BY seq"));
        rows.into_iter().map(Option::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(due(format!("due_at = {}", time(database.kind(), CENTURY))), ["3"]);
    assert_eq!(due(format!("due_at < {}", time(database.kind(), CENTURY))), ["4", "5"]);
    assert_eq!(due(format!("due_at > {}", time(database.kind(), 1))), ["3", "4", "5"], "not before they were redriven");
}
for_each_database!(a_scheduled_letter_is_redriven_for_its_time);

async fn a_rolled_back_redrive_changed_nothing(database: TestDatabase) {
    let id = Plant::blocking(5, "k").dead(&database);
    fn attempt<C>(conn: &mut C, id: i64)
    where
        C: LoadConnection<Backend: OutboxBackend>,
    {
        let result: Result<(), outbox::Error> = conn.transaction(|conn| {
            assert_eq!(dead_letters::redrive(conn, &[id], &by())?.done, [id]);
            Err(diesel::result::Error::RollbackTransaction.into())
        });
        assert!(result.is_err());
    }
    on!(database, conn => attempt(conn, id));
    assert_eq!(list(&database, &Filter::default()), [5]);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries"), 0);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_audit"), 0);
}
for_each_database!(a_rolled_back_redrive_changed_nothing);

async fn many_who_redrive_the_same_letters_redrive_each_once(database: TestDatabase) {
    let ids: Vec<i64> =
        (1..=20).map(|seq| Plant::blocking(seq, ["a", "b", "c"][seq as usize % 3]).dead(&database)).collect();
    let start = std::sync::Barrier::new(6);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|n| {
                let (database, ids, start) = (&database, &ids, &start);
                scope.spawn(move || {
                    // Everyone takes them in another order; the locks are taken in one order all the same.
                    let mut mine = ids.clone();
                    mine.rotate_left(n * 3);
                    start.wait();
                    if n % 2 == 0 { redrive(database, &mine) } else { discard(database, &mine[..10]) }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut all: Vec<i64> = outcomes.into_iter().flat_map(|outcome| outcome.done).collect();
    all.sort_unstable();
    assert_eq!(all, ids, "a letter was changed twice, or not at all");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_dead_letters"), 0);
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_audit"), 20);
    let redriven = database.query_i64("SELECT count(*) FROM outbox_audit WHERE action = 'dead_letter.redrive'");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries"), redriven);
    let keys = database.query_i64("SELECT count(DISTINCT ordering_key) FROM outbox_deliveries");
    assert_eq!(unblocked(&database).len() as i64, keys, "each key has one delivery that may go");
}
for_each_database!(many_who_redrive_the_same_letters_redrive_each_once);
