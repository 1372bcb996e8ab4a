//~ `OrderPlaced` cannot be enqueued
//~ help: consider borrowing here

#[derive(serde::Serialize)]
struct OrderPlaced {
    order_id: i64,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";
}

pub fn place_order(conn: &mut diesel::PgConnection) -> Result<(), outbox::Error> {
    outbox::transaction(conn, |conn| outbox::enqueue(conn, OrderPlaced { order_id: 1 }).map(drop))
}
