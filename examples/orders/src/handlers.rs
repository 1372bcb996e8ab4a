//! What follows from an order.
//!
//! Each handler is a destination of its own: one that fails does not keep the other waiting. Any error they return means
//! "try again later", so `?` is all the care a failing database needs.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use relay::{Context, HandlerResult};
use tracing::info;

use crate::database::{Pool, orders, stock};
use crate::order::OrderPlaced;

/// Takes the items out of stock, or says that they are sold out.
///
/// A message may come again, and taking twice would be wrong. So the inbox notes the message in the transaction of the
/// effect, and a copy has none.
pub(crate) async fn reserve_stock(pool: Pool, order: OrderPlaced, context: Context) -> HandlerResult {
    let mut conn = pool.get().await?;
    let id = context.message_id().to_string();
    let reserved = outbox::aio::inbox::once(&mut *conn, "stock", &id, async move |conn: &mut AsyncPgConnection| {
        let enough = stock::table.find(order.item).filter(stock::available.ge(order.quantity));
        let taken = diesel::update(enough).set(stock::available.eq(stock::available - order.quantity));
        let status = if taken.execute(conn).await? == 1 { "reserved" } else { "sold out" };
        diesel::update(orders::table.find(order.order_id)).set(orders::status.eq(status)).execute(conn).await?;
        Ok::<_, outbox::Error>(status)
    })
    .await?;
    // Neither customer nor item: logs are read by more people than orders are.
    info!(order.id = %order.order_id, status = reserved.unwrap_or("already done"), "stock");
    Ok(())
}

/// Stands for a call to somebody else, a mail for example.
///
/// Their side of the effect is not in our database, so nothing here can make it happen exactly once. What it can do is
/// to pass the message id on, which is the same each time, for them to know a copy by.
pub(crate) async fn send_confirmation(order: OrderPlaced, context: Context) -> HandlerResult {
    info!(order.id = %order.order_id, message.id = %context.message_id(), "confirmation sent");
    Ok(())
}
