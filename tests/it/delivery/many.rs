//! Many messages, few keys, and a destination that fails at random.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;

use super::stage::{Log, Running, enqueue, keyed, not_now, relay_on, until_nothing_is_left};

const SEED: u64 = 0x0b0e_2026;
const MESSAGES: usize = 2_000;
const KEYS: usize = 50;
const DESTINATIONS: [&str; 2] = ["a", "b"];

/// One attempt in ten fails, the same ones in every run.
fn fails(destination: &str, body: &str, copy: usize) -> bool {
    let mut hasher = DefaultHasher::new();
    (SEED, destination, body, copy).hash(&mut hasher);
    hasher.finish().is_multiple_of(10)
}

async fn two_thousand_messages_arrive_once_each_in_order_although_one_attempt_in_ten_fails(database: TestDatabase) {
    let (log, began) = (Log::default(), Instant::now());
    let mut relay = relay_on(&database);
    for name in DESTINATIONS {
        relay = relay.destination(log.handler(name, move |arrival| {
            if fails(name, &arrival.body, arrival.copy) { Err(not_now()) } else { Ok(()) }
        }));
    }
    let relay = Running::start(relay).await;
    for batch in (0..MESSAGES).collect::<Vec<_>>().chunks(100) {
        enqueue(&database, batch.iter().map(|n| keyed(&format!("{}", n % KEYS), &format!("{n:04}"))));
    }
    let enqueued = began.elapsed();
    until_nothing_is_left(&database).await;
    let took = began.elapsed();
    relay.stop().await;

    let arrivals = log.arrivals();
    let failed = arrivals.iter().filter(|arrival| !arrival.accepted).count();
    let mut disorder = 0;
    for name in DESTINATIONS {
        let mut last: HashMap<String, String> = HashMap::new();
        for arrival in arrivals.iter().filter(|arrival| arrival.accepted && arrival.destination == name) {
            let before = last.insert(arrival.key.clone().unwrap(), arrival.body.clone());
            disorder += usize::from(before.is_some_and(|before| before >= arrival.body));
        }
        let mut accepted = log.accepted(name);
        accepted.sort();
        let copies = accepted.len();
        accepted.dedup();
        println!(
            "{} {name}: accepted {copies}, distinct {}, failed attempts in all {failed}, disorder {disorder}; \
             enqueued in {enqueued:?}, done in {took:?}",
            database.kind(),
            accepted.len()
        );
        assert_eq!((copies, accepted.len()), (MESSAGES, MESSAGES));
    }
    assert_eq!(disorder, 0);
    assert!(failed > MESSAGES / 10, "{failed} attempts failed: the dice are loaded");
    assert_eq!(arrivals.len(), 2 * MESSAGES + failed);
}
for_each_database!(two_thousand_messages_arrive_once_each_in_order_although_one_attempt_in_ten_fails);
