//! One handler, several types of messages.

use std::sync::{Arc, Mutex};

use outbox::Envelope;
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::{Context, Handler, HandlerResult};
use serde::{Deserialize, Serialize};

use crate::delivery::stage::{Running, dead_letters, enqueue, relay_on, until_dead};

#[derive(Serialize, Deserialize)]
struct Placed {
    order: i64,
}

impl outbox::Message for Placed {
    const TOPIC: &'static str = "order.placed";
}

#[derive(Serialize, Deserialize)]
struct Cancelled {
    order: i64,
}

impl outbox::Message for Cancelled {
    const TOPIC: &'static str = "order.cancelled";
}

type Book = Arc<Mutex<Vec<String>>>;

async fn placed(book: Book, order: Placed, context: Context) -> HandlerResult {
    // The first attempt fails: whatever follows with the same key has to wait.
    if context.attempt() == 1 {
        return Err("not now".into());
    }
    let tenant = context.header("TENANT").unwrap_or("-").to_owned();
    book.lock().unwrap().push(format!("placed {} {tenant}", order.order));
    Ok(())
}

async fn messages_of_a_key_stay_in_order_across_types(database: TestDatabase) {
    let book = Book::default();
    let cancelled = book.clone();
    let handler = Handler::with_state("stock", book.clone(), placed).on(move |order: Cancelled, _: Context| {
        let book = cancelled.clone();
        async move {
            book.lock().unwrap().push(format!("cancelled {}", order.order));
            HandlerResult::Ok(())
        }
    });
    let placed = |order| outbox::envelope(&Placed { order }).key("k").header("tenant", "eu");
    let cancelled = |order| outbox::envelope(&Cancelled { order }).key("k");
    let secret = Envelope::raw("order.placed", "{\"order\":\"secret\"}");
    enqueue(&database, [placed(1), cancelled(1), placed(2), secret, cancelled(2)]);
    let relay = Running::start(relay_on(&database).destination(handler)).await;
    until_dead(&database, &["stock undecodable"]).await;
    crate::delivery::stage::until_waiting(&database, &[]).await;
    relay.stop().await;
    assert_eq!(*book.lock().unwrap(), ["placed 1 eu", "cancelled 1", "placed 2 eu", "cancelled 2"]);
    let letters = dead_letters(&database);
    let told = letters[0].letter.last_error.as_deref().unwrap();
    assert!(told.starts_with("the payload does not fit the handler's type: ") && !told.contains("secret"), "{told}");
}
for_each_database!(messages_of_a_key_stay_in_order_across_types);
