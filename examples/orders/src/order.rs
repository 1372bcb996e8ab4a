//! The order, and the message that tells of it.

use std::borrow::Cow;

use diesel::prelude::*;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::database::orders;

/// What a customer sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOrder {
    pub(crate) customer: String,
    pub(crate) item: String,
    pub(crate) quantity: i32,
}

/// A row.
#[derive(Queryable, Selectable, Insertable, Serialize)]
#[diesel(table_name = orders)]
pub(crate) struct Order {
    pub(crate) id: Uuid,
    #[serde(skip)]
    pub(crate) message_id: Uuid,
    pub(crate) customer: String,
    pub(crate) item: String,
    pub(crate) quantity: i32,
    pub(crate) status: String,
}

/// What the handlers are told. It is stored as JSON, so a later release may add fields, with `#[serde(default)]`, and
/// must not rename any while messages of the older one may be waiting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: Uuid,
    pub(crate) customer: String,
    pub(crate) item: String,
    pub(crate) quantity: i32,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";

    // What one customer orders is handled in the order in which it was placed; customers do not wait for each other.
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.customer))
    }
}
