//~ `OrderPlaced` is not an outbox message: it has no topic
//~ write `impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "what.happened"; }`

#[derive(serde::Serialize)]
pub struct OrderPlaced {
    pub order_id: i64,
}

pub fn with_options(message: &OrderPlaced) -> outbox::Envelope {
    outbox::envelope(message).key("1")
}
