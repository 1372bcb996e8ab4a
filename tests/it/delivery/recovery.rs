//! A destination that was down for long and is back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
    // More than can be under way when the circuit opens: it has been half open, and open again.
    until(&database, "it has been down for long", || receiver.lock().unwrap().failures > CONCURRENCY + 1).await;
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

/// Load that would keep four fifths of the destination busy goes on while its backlog drains.
async fn a_backlog_drains_beside_four_fifths_of_what_its_destination_can_take(database: TestDatabase) {
    const CONCURRENCY: usize = 2;
    const NAP: Duration = Duration::from_millis(20);
    const MEASURED: usize = 150;
    const BACKLOG: usize = 150;
    let (works, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (works, done) = (works.clone(), done.clone());
        relay::Handler::raw("d", move |_, _| {
            let (works, done) = (works.clone(), done.clone());
            async move {
                tokio::time::sleep(NAP).await;
                if !works.load(Ordering::SeqCst) {
                    return Err(not_now());
                }
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        })
    };
    let relay = Running::start(relay_on(&database).destination(handler.concurrency(CONCURRENCY))).await;
    let bodies = |count: usize| (0..count).map(|n| plain(&n.to_string()));

    // What it can take, and what is four fifths of that.
    let began = Instant::now();
    enqueue(&database, bodies(MEASURED));
    until(&database, "all are taken", || done.load(Ordering::SeqCst) == MEASURED).await;
    let capacity = MEASURED as f64 / began.elapsed().as_secs_f64();
    let pause = Duration::from_secs_f64(1.0 / (capacity * 0.8));

    works.store(false, Ordering::SeqCst);
    enqueue(&database, bodies(BACKLOG));
    let waiting = || database.query_i64("SELECT count(*) FROM outbox_deliveries");
    until(&database, "all of the backlog waits", || waiting() == i64::try_from(BACKLOG).unwrap()).await;
    works.store(true, Ordering::SeqCst);
    let (back, before, mut produced) = (Instant::now(), done.load(Ordering::SeqCst), 0);
    let drained = loop {
        // By the clock: as many as are due by now, and a look at what waits.
        let due = (back.elapsed().as_secs_f64() / pause.as_secs_f64()) as usize;
        enqueue(&database, bodies(due - produced));
        produced = due;
        tokio::time::sleep(pause).await;
        // What is in memory for it counts, too.
        let missing = BACKLOG + produced - (done.load(Ordering::SeqCst) - before);
        if waiting() == 0 && missing <= 2 * CONCURRENCY {
            break back.elapsed();
        }
        assert!(back.elapsed() < DRAIN_LIMIT, "{missing} are missing, {} of them rows", waiting());
    };
    let taken = done.load(Ordering::SeqCst) - before;
    let load = produced as f64 / drained.as_secs_f64() / capacity;
    println!(
        "{}: {BACKLOG} rows drained in {drained:.1?} beside {:.0} % of {capacity:.0} messages a second; {taken} taken, {produced} \
         of them new",
        database.kind(),
        load * 100.0
    );
    until_nothing_is_left(&database).await;
    relay.stop().await;
    assert!(load > 0.7, "the load was {load:.2} only");
    assert_eq!(done.load(Ordering::SeqCst) - before, BACKLOG + produced);
}
for_each_database!(a_backlog_drains_beside_four_fifths_of_what_its_destination_can_take);

/// Many times what it takes on an idle machine.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
