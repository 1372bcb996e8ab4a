//! A relay with a transactional handler that aborts at a chosen step of its transaction.
//!
//! `outbox-test-ledger URL STEP N`: the process dies when STEP is reached for the nth time. The steps are seen from
//! outside, by listening to the connection: nothing of the product knows of them. Used by `it/handlers/kill.rs`.

// Whatever does not work out here fails the test that started this.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel::SqliteConnection;
use diesel::connection::InstrumentationEvent;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection};
use outbox::OutboxBackend;
use relay::message::Message;
use relay::{Context, Handler, HandlerResult, Relay};

#[derive(serde::Serialize, serde::Deserialize)]
struct Posted {
    body: String,
}

impl outbox::Message for Posted {
    const TOPIC: &'static str = "posted";
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, step, times] = arguments.try_into().unwrap();
    let death = Death { step, left: Arc::new(AtomicUsize::new(times.parse().unwrap())) };
    match url.split_once(':').unwrap().0 {
        "postgres" => run::<AsyncPgConnection>(&url, url.clone(), death).await,
        "mysql" => run::<AsyncMysqlConnection>(&url, format!("{url}?prefer_socket=false"), death).await,
        _ => {
            let path = url.strip_prefix("sqlite:").unwrap().to_owned();
            run::<SyncConnectionWrapper<SqliteConnection>>(&url, path, death).await;
        }
    }
}

async fn run<C: AsyncConnection<Backend: OutboxBackend> + 'static>(url: &str, address: String, death: Death) {
    let connect = move || {
        let (address, death) = (address.clone(), death.clone());
        async move {
            let mut conn = C::establish(&address).await?;
            conn.set_instrumentation(move |event: InstrumentationEvent<'_>| death.heard(&event));
            diesel::ConnectionResult::Ok(conn)
        }
    };
    let ledger = Handler::transactional_with("ledger", connect, post::<C>).topics(["posted", "shared"]);
    let audit = Handler::raw("audit", |_: Message, _: Context| async { HandlerResult::Ok(()) }).topics(["shared"]);
    Relay::builder(url)
        .name("ledger")
        .lease(Duration::from_secs(1))
        .destination(ledger)
        .destination(audit)
        .build()
        .await
        .unwrap()
        .run_until(relay::shutdown_signal())
        .await
        .unwrap();
}

async fn post<C>(posted: Posted, conn: &mut C, _: Context) -> HandlerResult
where
    C: AsyncConnection<Backend: OutboxBackend>,
{
    conn.batch_execute(&format!("INSERT INTO effects (body) VALUES ('{}')", posted.body)).await?;
    Ok(())
}

/// When to die.
#[derive(Clone)]
struct Death {
    step: String,
    left: Arc<AtomicUsize>,
}

impl Death {
    fn heard(&self, event: &InstrumentationEvent<'_>) {
        let reached = match event {
            InstrumentationEvent::BeginTransaction { .. } => self.step == "begin",
            InstrumentationEvent::CommitTransaction { .. } => self.step == "commit",
            InstrumentationEvent::FinishQuery { query, .. } => {
                let query = query.to_string();
                match self.step.as_str() {
                    "claimed" => query.contains("_claim\n"),
                    "written" => query.contains("INSERT INTO effects"),
                    "committed" => query.starts_with("COMMIT"),
                    _ => false,
                }
            }
            _ => false,
        };
        if reached && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}
