//! The shop: one route, one transaction, one answer.

use std::borrow::Cow;
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel::result::Error::RollbackTransaction;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::Failure;

type Connections = Pool<ConnectionManager<SqliteConnection>>;

diesel::table! {
    orders (id) {
        id -> BigInt,
        item -> Text,
        email -> Text,
    }
}

/// What a customer sends.
#[derive(Deserialize)]
pub(crate) struct NewOrder {
    item: String,
    email: String,
    #[serde(default)]
    card: String,
}

/// What the others are told.
#[derive(Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: i64,
    pub(crate) item: String,
    pub(crate) email: String,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order_id.to_string().into())
    }
}

/// The running shop.
pub(crate) struct Shop {
    url: String,
    connections: Connections,
}

impl Shop {
    /// Creates the tables and listens on `port` of this machine (0: any free one).
    pub(crate) async fn open(database: &Path, port: u16) -> Result<Shop, Failure> {
        let manager = ConnectionManager::new(database.to_string_lossy());
        let connections = Pool::builder().max_size(4).connection_customizer(Box::new(Durable)).build(manager)?;
        let mut conn = connections.get()?;
        outbox::migrations::run(&mut conn)?;
        conn.batch_execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, email TEXT NOT NULL)")?;

        let listener = TcpListener::bind(("127.0.0.1", port)).await;
        let listener = listener.map_err(|error| format!("the shop cannot listen on port {port}: {error}"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().route("/orders", post(place_order)).with_state(connections.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Shop { url, connections })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// How many orders the table holds.
    pub(crate) fn orders(&self) -> Result<i64, Failure> {
        Ok(orders::table.count().get_result(&mut self.connections.get()?)?)
    }

    /// A connection like the shop's own.
    pub(crate) fn connection(&self) -> Result<impl std::ops::DerefMut<Target = SqliteConnection> + use<>, Failure> {
        Ok(self.connections.get()?)
    }
}

/// The order and the message commit together or not at all.
async fn place_order(
    State(connections): State<Connections>,
    Json(order): Json<NewOrder>,
) -> (StatusCode, Json<serde_json::Value>) {
    let placed = tokio::task::spawn_blocking(move || -> Result<Option<i64>, Failure> {
        let mut conn = connections.get()?;
        let id = conn.immediate_transaction(|conn| {
            let id = diesel::insert_into(orders::table)
                .values((orders::item.eq(&order.item), orders::email.eq(&order.email)))
                .returning(orders::id)
                .get_result(conn)?;
            outbox::enqueue(conn, &OrderPlaced { order_id: id, item: order.item.clone(), email: order.email.clone() })?;
            // Late on purpose: the message was enqueued, and is rolled back with the order.
            if order.card == "declined" { Err(outbox::Error::from(RollbackTransaction)) } else { Ok(id) }
        });
        match id {
            Ok(id) => Ok(Some(id)),
            Err(outbox::Error::Database(RollbackTransaction)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    match placed.await {
        Ok(Ok(Some(id))) => (StatusCode::ACCEPTED, Json(serde_json::json!({ "order": id }))),
        Ok(Ok(None)) => (StatusCode::PAYMENT_REQUIRED, Json(serde_json::json!({ "error": "the card was declined" }))),
        // What went wrong is ours to know; a real shop writes it into its log.
        Ok(Err(_)) | Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Json(serde_json::json!({ "error": "the order was not placed" })))
        }
    }
}

/// An acknowledged order survives a power cut: the write-ahead log is flushed at every commit.
#[derive(Debug)]
struct Durable;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for Durable {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000")
            .map_err(diesel::r2d2::Error::QueryError)
    }
}
