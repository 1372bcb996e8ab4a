//~ Serialize` is not satisfied
//~ consider adding `#[derive(serde::Serialize)]` to your `OrderPlaced` type

pub struct OrderPlaced {
    pub order_id: i64,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";
}
