//! The services the shop talks to, played by this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;

use crate::Failure;

/// A warehouse that is down for its first two requests, and a billing service that rejects until it is repaired.
pub(crate) struct Neighbours {
    base: String,
    state: Arc<Behaviour>,
}

#[derive(Default)]
struct Behaviour {
    warehouse_requests: AtomicU32,
    billing_repaired: AtomicBool,
}

impl Neighbours {
    pub(crate) async fn start() -> Result<Neighbours, Failure> {
        let state = Arc::new(Behaviour::default());
        let router = Router::new()
            .route("/warehouse", post(warehouse))
            .route("/billing", post(billing))
            .route("/billing/repair", post(repair))
            .with_state(state.clone());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let base = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Neighbours { base, state })
    }

    pub(crate) fn warehouse_url(&self) -> String {
        format!("{}/warehouse", self.base)
    }

    pub(crate) fn billing_url(&self) -> String {
        format!("{}/billing", self.base)
    }

    pub(crate) fn repair_billing(&self) {
        self.state.repair_billing();
    }
}

impl Behaviour {
    fn repair_billing(&self) {
        self.billing_repaired.store(true, Ordering::Relaxed);
    }
}

async fn warehouse(State(state): State<Arc<Behaviour>>, headers: HeaderMap) -> StatusCode {
    // A real receiver would look the id up in its own database and answer 200 to a copy.
    debug_assert!(headers.contains_key("webhook-id"));
    if state.warehouse_requests.fetch_add(1, Ordering::Relaxed) < 2 {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

async fn billing(State(state): State<Arc<Behaviour>>) -> (StatusCode, &'static str) {
    if state.billing_repaired.load(Ordering::Relaxed) {
        (StatusCode::OK, "")
    } else {
        (StatusCode::UNPROCESSABLE_ENTITY, "no such tax code")
    }
}

/// For whoever plays with `--serve`.
async fn repair(State(state): State<Arc<Behaviour>>) -> StatusCode {
    state.repair_billing();
    StatusCode::NO_CONTENT
}
