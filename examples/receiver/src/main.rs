//! The receiving side: a ledger that books what it is told by a relay.
//!
//! `POST /hooks/orders` verifies who sent the request, books the amount once although the message may come again, and
//! answers what the relay understands. `hook.rs` is what to copy; `README.md` says how to run it.

mod database;
mod hook;

use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use outbox::signature::VerifyingKey;
use tokio::net::TcpListener;
use tracing::info;

use crate::database::Pool;

type Failure = Box<dyn Error + Send + Sync>;

/// What a request may weigh: what an outbox sends by default, and not a byte more into our memory.
const BODY_BYTES_MAX: usize = outbox::limits::PAYLOAD_BYTES_MAX;

/// What the hook needs.
#[derive(Clone)]
struct Ledger {
    pool: Pool,
    keys: Arc<[VerifyingKey]>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Two, separated by a blank, while one replaces the other.
    let secrets = std::env::var("WEBHOOK_SECRET").map_err(|_| "set WEBHOOK_SECRET to the secret of the relay")?;
    let keys: Arc<[VerifyingKey]> = secrets.split_whitespace().map(VerifyingKey::parse).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("WEBHOOK_SECRET is empty".into());
    }
    let url = std::env::var("DATABASE").unwrap_or_else(|_| "ledger.db".to_owned());
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:4000".to_owned());
    let pool = tokio::task::spawn_blocking(move || database::open(&url)).await??;

    let router = Router::new()
        .route("/hooks/orders", post(hook::order_placed))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .route("/balances", get(hook::balances))
        .with_state(Ledger { pool, keys });
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    info!(address = %listener.local_addr()?, "the ledger listens");
    axum::serve(listener, router).with_graceful_shutdown(ended()).await?;
    Ok(())
}

/// Completes at SIGTERM and at Ctrl-C.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("a process may listen to SIGTERM");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
