//! A relay that dies at any of its writes, before it or when it stands and nobody knows: no unit is lost, and none is
//! attempted again that had been settled.
//!
//! A unit is a message for one destination. It is settled when the tables say nothing of it any more. The relay does not
//! die for real: its tasks are ended while the write hangs, and its row is taken away as if a lease had passed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::tables::snapshot;
use relay::{Relay, RelayBuilder};
use uuid::Uuid;

use super::stage::{Left, Log, Running, enqueue, keyed, millis, not_now, plain, quick, until, until_nothing_is_left};
use crate::faults::{pass, store_around};

const DESTINATIONS: [&str; 3] = ["quick", "slow", "flaky"];
const WRITES: [&str; 4] = ["settle", "message_delivered", "delivery_start", "partition_acquire"];
const DEATHS_MAX: usize = 25;
const MESSAGES: usize = 9;

type Unit = (Uuid, &'static str);

fn serve(relay: RelayBuilder, log: &Log) -> RelayBuilder {
    let flaky = log.handler("flaky", |arrival| if arrival.copy == 1 { Err(not_now()) } else { Ok(()) });
    let slow = log.slow_handler("slow", millis(3), |_| Ok(()));
    relay
        .poll(millis(1), millis(20))
        .retry(quick(1000))
        .lease(millis(900))
        .destination(log.accepting("quick"))
        .destination(slow)
        .destination(flaky)
}

/// How often each unit was attempted, and how often of that accepted.
fn attempted(log: &Log) -> HashMap<Unit, (usize, usize)> {
    let mut times: HashMap<Unit, (usize, usize)> = HashMap::new();
    for arrival in log.arrivals() {
        let name = DESTINATIONS.into_iter().find(|name| *name == arrival.destination).unwrap();
        let (attempts, accepted) = times.entry((arrival.id, name)).or_default();
        *attempts += 1;
        *accepted += usize::from(arrival.accepted);
    }
    times
}

/// Those of the units that are settled.
fn settled(database: &TestDatabase, ids: &[Uuid]) -> Vec<Unit> {
    let tables = snapshot(database);
    let units = ids.iter().flat_map(|id| DESTINATIONS.map(|destination| (*id, destination)));
    let stands = |(id, destination): &Unit| {
        let id = id.to_string();
        tables.pending.contains(&id) || tables.waiting.iter().any(|row| row.id == id && row.destination == *destination)
    };
    units.filter(|unit| !stands(unit)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    /// The write was asked for and never begun.
    Before,
    /// It was committed.
    After,
}

async fn a_death_before_any_write_loses_no_unit_and_repeats_none_that_was_settled(database: TestDatabase) {
    die_everywhere(database, Death::Before).await;
}
for_each_database!(a_death_before_any_write_loses_no_unit_and_repeats_none_that_was_settled);

async fn a_death_after_any_write_loses_no_unit_and_repeats_none_that_was_settled(database: TestDatabase) {
    die_everywhere(database, Death::After).await;
}
for_each_database!(a_death_after_any_write_loses_no_unit_and_repeats_none_that_was_settled);

async fn die_everywhere(database: TestDatabase, death: Death) {
    let log = Log::default();
    let (mut deaths, mut spared, mut repeated) = (0, 0, 0);
    for nth in 1..=DEATHS_MAX {
        let message = |n: usize| {
            let body = format!("{nth}.{n}");
            if n.is_multiple_of(3) { plain(&body) } else { keyed(&format!("k{}", n % 3), &body) }
        };
        let ids = enqueue(&database, (0..MESSAGES).map(message));
        let writes = Arc::new(AtomicUsize::new(0));
        // Counts where the relay dies: the dead one writes nothing more.
        let dies = |at: Death| {
            let counter = writes.clone();
            move |call: &'static str| {
                let is_write = WRITES.contains(&call);
                let count = match death == at {
                    true => counter.fetch_add(usize::from(is_write), Ordering::SeqCst) + 1,
                    false => counter.load(Ordering::SeqCst),
                };
                if is_write && count >= nth { Box::pin(std::future::pending()) } else { pass() }
            }
        };
        let dying = store_around(&database, dies(Death::Before), dies(Death::After)).await;
        let relay = Running::start(serve(Relay::builder_from_store(dying), &log)).await;
        let is_dead = || writes.load(Ordering::SeqCst) >= nth;
        until(&database, "it comes to that write, or to the end", || is_dead() || Left::of(&database).is_nothing())
            .await;
        if !is_dead() {
            relay.stop().await;
            break;
        }
        drop(relay);
        deaths += 1;
        database.exec("DELETE FROM outbox_relays");
        // Whatever is settled now stays so, even if something of the dead one is still being carried out.
        let settled = settled(&database, &ids);
        let before = attempted(&log);
        spared += settled.len();

        let relay = Running::start(serve(Relay::builder(database.url()), &log)).await;
        until_nothing_is_left(&database).await;
        relay.stop().await;
        let after = attempted(&log);
        for unit in settled {
            assert_eq!(after.get(&unit), before.get(&unit), "settled, and came again after death {nth}: {unit:?}");
            assert!(before.get(&unit).is_some_and(|(_, accepted)| *accepted > 0), "lost at death {nth}: {unit:?}");
        }
        for unit in ids.iter().flat_map(|id| DESTINATIONS.map(|destination| (*id, destination))) {
            let (_, times) = after.get(&unit).copied().unwrap_or_default();
            assert!(times > 0, "lost at death {nth}: {unit:?}");
            repeated += times - 1;
        }
    }
    println!(
        "{}: {death:?} a write: deaths {deaths}  units {}  settled before {spared}, of which again 0  lost 0  of the others again {repeated}",
        database.kind(),
        deaths * MESSAGES * DESTINATIONS.len(),
    );
    assert!(deaths >= 5 && spared > 0, "{deaths} deaths, {spared} settled before: nothing was tried");
}
