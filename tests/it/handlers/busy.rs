//! A relay whose handlers, and whose connections for them, are all taken goes on saying that it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel_async::AsyncConnection;
use outbox::OutboxBackend;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::{Context, Handler};
use tokio::sync::Semaphore;

use super::stage::{Posted, posted, with_driver};
use crate::delivery::stage::{LIMIT, Running, enqueue, relay_on, until, until_nothing_is_left};

const SLOTS: usize = 4;
const MESSAGES: usize = 40;
const LEASE: Duration = Duration::from_secs(3);

/// Attempts begun and not let go yet wait at the gate.
#[derive(Clone)]
struct Gate {
    begun: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

impl Gate {
    async fn pass(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
    }
}

fn slow(gate: &Gate) -> Handler {
    let gate = gate.clone();
    Handler::new("slow", move |_: Posted, _: Context| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok::<_, std::io::Error>(())
        }
    })
}

/// Each attempt keeps a connection, with a transaction open in it.
fn keeping<C: AsyncConnection<Backend: OutboxBackend> + 'static>(gate: &Gate) -> Handler {
    let gate = gate.clone();
    Handler::transactional("slow", async move |_: Posted, _: &mut C, _: Context| {
        gate.pass().await;
        Ok::<_, std::io::Error>(())
    })
}

async fn the_beat_goes_on_while_every_handler_is_busy(database: TestDatabase) {
    let gate = Gate { begun: Arc::default(), open: Arc::new(Semaphore::new(0)) };
    // SQLite's one writer would be the handler: nobody can write a beat beside it, which is documented.
    let handler = match database.kind() {
        Kind::Sqlite => slow(&gate),
        kind => with_driver!(kind, Conn => keeping::<Conn>(&gate)),
    };
    enqueue(&database, (0..MESSAGES).map(|n| posted(&n.to_string())));
    let handler = handler.concurrency(SLOTS).timeout(3 * LIMIT);
    let relay = Running::start(relay_on(&database).lease(LEASE).destination(handler)).await;
    until(&database, "every slot is taken", || gate.begun.load(Ordering::SeqCst) == SLOTS).await;
    let beat = || database.query_i64("SELECT coalesce(max(beat), 0) FROM outbox_relays");
    let before = beat();
    // Two leases' worth of renewals: without them somebody else could have taken everything.
    until(&database, "six more beats", || beat() >= before + 6).await;
    assert_eq!(gate.begun.load(Ordering::SeqCst), SLOTS, "all of them are busy still");
    gate.open.add_permits(MESSAGES);
    until_nothing_is_left(&database).await;
    assert_eq!(gate.begun.load(Ordering::SeqCst), MESSAGES, "it was never declared dead: each was attempted once");
    relay.stop().await;
}
for_each_database!(the_beat_goes_on_while_every_handler_is_busy);
