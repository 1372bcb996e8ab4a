//! A list of sign-ups: blocking diesel with an r2d2 pool, on SQLite, with the relay as a daemon beside it.
//!
//! `POST /signups` writes the sign-up and a message in one transaction and answers at once. The daemon, whose
//! `relay.toml` lies beside this folder, reads the message from the same file and calls `POST /hooks/welcome` until that
//! succeeds. The service itself knows nothing of relays.
//!
//! Absent: authorisation. The hook believes whoever calls it, which is why this listens on its own machine only;
//! `examples/receiver` shows a hook that verifies its caller.

mod api;
mod database;

use std::error::Error;

use tokio::net::TcpListener;
use tracing::info;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| "signups.db".to_owned());
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let pool = tokio::task::spawn_blocking(move || database::open(&url)).await??;
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    info!(address = %listener.local_addr()?, "sign-ups are taken");
    // Requests that have begun are answered; what they enqueued is the relay's affair.
    axum::serve(listener, api::router(pool)).with_graceful_shutdown(ended()).await?;
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
