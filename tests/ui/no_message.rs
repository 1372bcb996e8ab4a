//~ `&OrderPlaced` cannot be enqueued
//~ the trait `outbox::Message` is not implemented for `OrderPlaced`
//~ a type becomes a message by `impl outbox::Message for … { const TOPIC: &'static str = "what.happened"; }`

#[derive(serde::Serialize)]
struct OrderPlaced {
    order_id: i64,
}

pub fn place_order(conn: &mut diesel::PgConnection) -> Result<(), outbox::Error> {
    outbox::transaction(conn, |conn| outbox::enqueue(conn, &OrderPlaced { order_id: 1 }).map(drop))
}
