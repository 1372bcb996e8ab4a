//! What customers call, and the hook that the relay calls.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use diesel::prelude::*;
use diesel::result::DatabaseErrorKind::UniqueViolation;
use serde::{Deserialize, Serialize};
use tracing::{error, info};

use crate::Failure;
use crate::database::{Pool, signups, with_connection};

pub(crate) fn router(pool: Pool) -> Router {
    Router::new().route("/signups", post(sign_up).get(list)).route("/hooks/welcome", post(welcome)).with_state(pool)
}

/// What a customer sends, and what the message says.
#[derive(Serialize, Deserialize)]
struct Signup {
    email: String,
}

impl outbox::Message for Signup {
    const TOPIC: &'static str = "signup.created";
}

/// The row and the message, both or neither: an address that is taken leaves no message behind.
async fn sign_up(State(pool): State<Pool>, Json(signup): Json<Signup>) -> Result<StatusCode, Problem> {
    with_connection(pool, move |conn| {
        // Not `conn.transaction`: here `Ok` means that the database has committed, on every database.
        outbox::transaction(conn, |conn| {
            let row = (signups::email.eq(&signup.email), signups::welcomed.eq(false));
            diesel::insert_into(signups::table).values(row).execute(conn)?;
            outbox::enqueue(conn, &signup)?;
            Ok(StatusCode::ACCEPTED)
        })
    })
    .await
}

/// Who has signed up, and who was welcomed.
async fn list(State(pool): State<Pool>) -> Result<Json<Vec<(String, bool)>>, Problem> {
    with_connection(pool, |conn| Ok(Json(signups::table.order(signups::email).load(conn)?))).await
}

/// Called by the relay, until it answers 2xx. Here a mail would be sent.
///
/// A message may come again. Writing `true` once more changes nothing, so a copy needs no care; where it would,
/// `outbox::inbox::once` takes it.
async fn welcome(
    State(pool): State<Pool>,
    headers: HeaderMap,
    Json(signup): Json<Signup>,
) -> Result<StatusCode, Problem> {
    with_connection(pool, move |conn| {
        diesel::update(signups::table.find(signup.email)).set(signups::welcomed.eq(true)).execute(conn)?;
        Ok::<_, Problem>(())
    })
    .await?;
    info!(message.id = ?headers.get("webhook-id"), "welcomed");
    Ok(StatusCode::NO_CONTENT)
}

/// Why a request failed.
enum Problem {
    /// The address has signed up before.
    Taken,
    /// Asking again later may help, and the relay will.
    Ours(Failure),
}

impl From<diesel::result::Error> for Problem {
    fn from(error: diesel::result::Error) -> Problem {
        match error {
            diesel::result::Error::DatabaseError(UniqueViolation, _) => Problem::Taken,
            error => Problem::Ours(error.into()),
        }
    }
}

impl From<outbox::Error> for Problem {
    fn from(error: outbox::Error) -> Problem {
        Problem::Ours(error.into())
    }
}

impl From<diesel::r2d2::PoolError> for Problem {
    fn from(error: diesel::r2d2::PoolError) -> Problem {
        Problem::Ours(error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        match self {
            Problem::Taken => (StatusCode::CONFLICT, "this address has signed up already").into_response(),
            Problem::Ours(error) => {
                error!(error, "a request failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "this failed on our side; ask again").into_response()
            }
        }
    }
}
