//! What the relay calls.
//!
//! The order matters: first who sent it, then what it says, then whether it was here before. And so do the answers,
//! because the relay decides by them:
//!
//! | Answer | When | What the relay does |
//! |---|---|---|
//! | 204 | booked, now or by an earlier copy | forgets the message |
//! | 401 | the signature or its time is wrong | tries again slowly: a secret or a clock is being mended, and no message may be lost meanwhile |
//! | 413, 422 | too large, or not to be understood | puts it among the dead letters: sending it again changes nothing |
//! | 500 | our database fails | tries again |

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use diesel::prelude::*;
use outbox::signature::{self, Headers};
use serde::Deserialize;
use tracing::{error, info, warn};

use crate::database::{balances, book};
use crate::{Failure, Ledger};

/// What an order says that the ledger wants to know. Other fields may come and are passed over.
#[derive(Deserialize)]
struct OrderPlaced {
    customer: String,
    total_cents: i64,
}

/// Verifies, understands, books once.
///
/// `Bytes`, not `Json`: the signature covers the bytes as they came. And nothing is parsed before it is known who sent it.
pub(crate) async fn order_placed(
    State(ledger): State<Ledger>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, (StatusCode, String)> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let signed = Headers::find(header).and_then(|signed| {
        signature::verify(ledger.keys.iter(), &signed, &body)?;
        Ok(signed)
    });
    let signed = signed.map_err(|error| {
        // Why is for us to know. Whoever guesses at signatures learns only that this was none.
        warn!(%error, "a request was refused");
        (StatusCode::UNAUTHORIZED, String::new())
    })?;
    // The text becomes part of the dead letter, so that whoever looks at it sees what was wrong.
    let order: OrderPlaced =
        serde_json::from_slice(&body).map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;

    let id = signed.id.to_owned();
    let booked = tokio::task::spawn_blocking(move || -> Result<bool, Failure> {
        // The id and the booking commit together, or neither does: a crash in between leaves nothing half-done, and the
        // relay, which got no answer, sends the message again.
        let booked = outbox::inbox::once(&mut *ledger.pool.get()?, "ledger", &id, |conn| {
            book(conn, &order.customer, order.total_cents)
        })?;
        Ok(booked.is_some())
    });
    match booked.await.expect("the work does not panic") {
        Ok(is_first) => {
            info!(message.id = signed.id, is_first, "booked");
            // A copy was done before: for the relay that is as good as now.
            Ok(StatusCode::NO_CONTENT)
        }
        Err(error) => {
            error!(error, "a booking failed");
            Err((StatusCode::INTERNAL_SERVER_ERROR, String::new()))
        }
    }
}

/// The balances, for you to look at.
pub(crate) async fn balances(State(ledger): State<Ledger>) -> Result<Json<Vec<(String, i64)>>, StatusCode> {
    let loaded = tokio::task::spawn_blocking(move || -> Result<Vec<(String, i64)>, Failure> {
        Ok(balances::table.order(balances::customer).load(&mut ledger.pool.get()?)?)
    });
    match loaded.await.expect("the work does not panic") {
        Ok(balances) => Ok(Json(balances)),
        Err(error) => {
            error!(error, "the balances cannot be read");
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}
