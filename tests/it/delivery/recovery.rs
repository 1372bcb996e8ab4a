//! A destination that was down for long and is back.

use std::sync::{Arc, Mutex};

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;

use super::stage::{Running, enqueue, millis, not_now, plain, relay_on, until, until_nothing_is_left};

/// A destination that comes back gets one attempt more at a time for each that succeeds, and at last as many as configured.
async fn a_destination_that_comes_back_is_not_stampeded(database: TestDatabase) {
    const ROWS: usize = 300;
    const CONCURRENCY: usize = 16;
    let receiver = Arc::new(Mutex::new(Down::default()));
    let handler = {
        let receiver = receiver.clone();
        relay::Handler::raw("d", move |_, _| {
            let receiver = receiver.clone();
            async move {
                let works = receiver.lock().unwrap().begins();
                tokio::time::sleep(millis(15)).await;
                receiver.lock().unwrap().ends(works);
                if works { Ok(()) } else { Err(not_now()) }
            }
        })
    };
    let relay = relay_on(&database).destination(handler.concurrency(CONCURRENCY));
    let relay = Running::start(relay).await;
    enqueue(&database, (0..ROWS).map(|n| plain(&n.to_string())));
    until(&database, "it has been down for long", || receiver.lock().unwrap().failures >= 100).await;
    receiver.lock().unwrap().is_back = true;
    until_nothing_is_left(&database).await;
    relay.stop().await;
    let seen = receiver.lock().unwrap();
    println!("{}: {:?} at a time while {ROWS} rows drained", database.kind(), seen.at_a_time.iter().max().unwrap());
    for (successes, at_a_time) in seen.at_a_time.iter().enumerate() {
        assert!(*at_a_time <= successes + 2, "{at_a_time} at a time after {successes} successes: {:?}", seen.at_a_time);
    }
    assert_eq!(seen.at_a_time.iter().max(), Some(&CONCURRENCY));
}
for_each_database!(a_destination_that_comes_back_is_not_stampeded);

/// A receiver that is down until it is back.
#[derive(Default)]
struct Down {
    is_back: bool,
    failures: usize,
    running: usize,
    /// For each number of successes so far: the most attempts at the same time.
    at_a_time: Vec<usize>,
    successes: usize,
}

impl Down {
    fn begins(&mut self) -> bool {
        if self.is_back {
            self.running += 1;
            self.at_a_time.resize(self.at_a_time.len().max(self.successes + 1), 0);
            let most = &mut self.at_a_time[self.successes];
            *most = (*most).max(self.running);
        }
        self.is_back
    }

    fn ends(&mut self, works: bool) {
        if works {
            self.running -= 1;
            self.successes += 1;
        } else {
            self.failures += 1;
        }
    }
}
