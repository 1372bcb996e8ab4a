//! A relay that dies at any of its writes: no unit is lost, and none comes again that had been settled.
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
use crate::faults::{pass, store};

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

/// How often each unit was accepted.
fn accepted(log: &Log) -> HashMap<Unit, usize> {
    let mut times = HashMap::new();
    for arrival in log.arrivals().into_iter().filter(|arrival| arrival.accepted) {
        let name = DESTINATIONS.into_iter().find(|name| *name == arrival.destination).unwrap();
        *times.entry((arrival.id, name)).or_default() += 1;
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

async fn a_death_at_any_write_loses_no_unit_and_repeats_none_that_was_settled(database: TestDatabase) {
    let log = Log::default();
    let (mut deaths, mut spared, mut repeated) = (0, 0, 0);
    for nth in 1..=DEATHS_MAX {
        let message = |n: usize| {
            let body = format!("{nth}.{n}");
            if n.is_multiple_of(3) { plain(&body) } else { keyed(&format!("k{}", n % 3), &body) }
        };
        let ids = enqueue(&database, (0..MESSAGES).map(message));
        let writes = Arc::new(AtomicUsize::new(0));
        let counter = writes.clone();
        let dying = store(&database, move |call| {
            let is_write = WRITES.contains(&call);
            let before = counter.fetch_add(usize::from(is_write), Ordering::SeqCst);
            if is_write && before + 1 >= nth { Box::pin(std::future::pending()) } else { pass() }
        })
        .await;
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
        let before = accepted(&log);
        spared += settled.len();

        let relay = Running::start(serve(Relay::builder(database.url()), &log)).await;
        until_nothing_is_left(&database).await;
        relay.stop().await;
        let after = accepted(&log);
        for unit in settled {
            assert_eq!(after.get(&unit), before.get(&unit), "settled, and came again after death {nth}: {unit:?}");
        }
        for unit in ids.iter().flat_map(|id| DESTINATIONS.map(|destination| (*id, destination))) {
            let times = after.get(&unit).copied().unwrap_or_default();
            assert!(times > 0, "lost at death {nth}: {unit:?}");
            repeated += times - 1;
        }
    }
    println!(
        "{}: deaths {deaths}  units {}  settled before {spared}, of which again 0  lost 0  of the others again {repeated}",
        database.kind(),
        deaths * MESSAGES * DESTINATIONS.len(),
    );
    assert!(deaths >= 5 && spared > 0, "{deaths} deaths, {spared} settled before: nothing was tried");
}
for_each_database!(a_death_at_any_write_loses_no_unit_and_repeats_none_that_was_settled);
