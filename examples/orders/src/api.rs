//! The two routes, and what a customer is told when something is wrong.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tracing::error;
use uuid::Uuid;

use crate::Failure;
use crate::database::{Pool, orders};
use crate::order::{NewOrder, Order, OrderPlaced};

pub(crate) fn router(pool: Pool) -> Router {
    Router::new().route("/orders", post(place)).route("/orders/{id}", get(show)).with_state(pool)
}

/// Writes the order and its message, both or neither, and answers 202: accepted, and not done yet.
///
/// A customer who got no answer asks again with the same `Idempotency-Key`. The key is the message's dedup key, so the
/// second request finds that its message exists, and with it the order. Two requests at the same time are no different:
/// the second waits until the first has committed or rolled back.
async fn place(State(pool): State<Pool>, headers: HeaderMap, Json(new): Json<NewOrder>) -> Result<Response, Problem> {
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).filter(|key| !key.is_empty());
    let key = key.ok_or(Problem::Request("send an Idempotency-Key, and the same one when you ask again".to_owned()))?;
    if new.quantity < 1 {
        return Err(Problem::Request("order at least one".to_owned()));
    }

    let mut conn = pool.get().await?;
    // Not diesel's own transaction: this one proves that it committed, and only then may 202 be said.
    let order = outbox::aio::transaction(&mut *conn, async |conn: &mut AsyncPgConnection| {
        let NewOrder { customer, item, quantity } = new;
        let id = Uuid::new_v4();
        // A key belongs to the customer who made it up; nobody else may find an order by it. A header holds no line break,
        // so no two pairs of customer and key become the same text.
        let dedup_key = format!("{customer}\n{key}");
        let placed = OrderPlaced { order_id: id, customer, item, quantity };
        let receipt = outbox::aio::enqueue(conn, outbox::envelope(&placed).dedup_key(dedup_key)).await?;
        if receipt.is_duplicate() {
            let first = orders::table.filter(orders::message_id.eq(receipt.message_id));
            let first: Order = first.select(Order::as_select()).first(conn).await?;
            return if (&first.item, first.quantity) == (&placed.item, placed.quantity) {
                Ok(first)
            } else {
                Err(Problem::Request("this Idempotency-Key was used for another order".to_owned()))
            };
        }
        let OrderPlaced { customer, item, quantity, .. } = placed;
        let status = "placed".to_owned();
        let order = Order { id, message_id: receipt.message_id, customer, item, quantity, status };
        diesel::insert_into(orders::table).values(&order).execute(conn).await?;
        Ok(order)
    })
    .await?;
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, format!("/orders/{}", order.id))], Json(order)).into_response())
}

/// How far it is.
async fn show(State(pool): State<Pool>, Path(id): Path<Uuid>) -> Result<Json<Order>, Problem> {
    let mut conn = pool.get().await?;
    let order = orders::table.find(id).select(Order::as_select()).first(&mut *conn).await.optional()?;
    order.map(Json).ok_or(Problem::NotFound)
}

/// Why there is no answer, in three kinds.
enum Problem {
    /// The customer can do something about it.
    Request(String),
    NotFound,
    /// Ours to find out; the customer may ask again.
    Ours(Failure),
}

impl From<outbox::Error> for Problem {
    fn from(error: outbox::Error) -> Problem {
        // A key that is too long, for example: it says what is wrong, and asking again does not help.
        if error.is_refused() { Problem::Request(error.to_string()) } else { Problem::Ours(error.into()) }
    }
}

impl From<diesel::result::Error> for Problem {
    fn from(error: diesel::result::Error) -> Problem {
        // One of the outbox may be inside.
        outbox::Error::from(error).into()
    }
}

impl From<diesel_async::pooled_connection::deadpool::PoolError> for Problem {
    fn from(error: diesel_async::pooled_connection::deadpool::PoolError) -> Problem {
        Problem::Ours(error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Problem::Request(text) => (StatusCode::UNPROCESSABLE_ENTITY, text),
            Problem::NotFound => (StatusCode::NOT_FOUND, "there is no such order".to_owned()),
            Problem::Ours(error) => {
                error!(error, "a request failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "this failed on our side; ask again".to_owned())
            }
        };
        (status, Json(serde_json::json!({ "error": text }))).into_response()
    }
}
