//! An order service: PostgreSQL, diesel-async and axum, with the relay in the same process.
//!
//! `POST /orders` writes the order and its message in one transaction and answers 202 at once. What follows from an
//! order is done afterwards by two handlers, as often as it takes to succeed. `README.md` says how to run it.
//!
//! Absent: authorisation, TLS to the database, and everything else an order service needs that is not about messages.

mod api;
mod database;
mod handlers;
mod order;

use std::error::Error;
use std::future::IntoFuture;
use std::time::Duration;

use relay::Relay;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

type Failure = Box<dyn Error + Send + Sync>;

/// How long requests that have begun may take when the service is asked to end. The relay's own grace (25 s) comes on
/// top, so whoever stops this service has to wait longer than both.
const REQUESTS_GRACE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Listened to from the beginning: a signal that comes during the start ends the service in order, too.
    let mut shutdown = tokio::spawn(relay::shutdown_signal());
    let url = std::env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL to a postgres:// url")?;
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());

    database::migrate(&url).await?;
    let pool = database::pool(&url)?;

    let handlers_pool = pool.clone();
    let relay = Relay::builder(url)
        .name("orders")
        .handler("stock", move |order, context| handlers::reserve_stock(handlers_pool.clone(), order, context))
        .handler("confirmation", handlers::send_confirmation)
        .build()
        .await?;
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    info!(address = %listener.local_addr()?, "orders are taken");

    let (stop_relay, stopped) = oneshot::channel::<()>();
    let mut relay = tokio::spawn(relay.run_until(async { drop(stopped.await) }));
    let (stop_server, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, api::router(pool)).with_graceful_shutdown(async { drop(stopped.await) });
    let server = tokio::spawn(server.into_future());

    tokio::select! {
        asked = &mut shutdown => asked?,
        // It survives outages of the database; what ends it is for a person to mend, and orders without a relay would
        // be promises that nobody keeps.
        ended = &mut relay => {
            ended??;
            return Err("the relay ended although nobody asked it to".into());
        }
    }

    info!("no new requests are taken");
    // First no new requests, then the relay: what the last request enqueued may still be delivered, and nothing is lost
    // when it is not, because it is committed and waits for the next start.
    drop(stop_server);
    match tokio::time::timeout(REQUESTS_GRACE, server).await {
        Ok(served) => served??,
        Err(_) => warn!("some requests take too long; they are cut off when this ends"),
    }
    drop(stop_relay);
    relay.await??;
    info!("ended in order");
    Ok(())
}
