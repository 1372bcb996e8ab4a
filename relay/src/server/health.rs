//! `/livez` and `/readyz`: for whoever starts, stops and replaces relays.
//!
//! Alive means that every loop turns. It does not ask the database: restarting a relay repairs no database. Ready means
//! that this relay could take work now: every loop has begun, the database answers, its schema fits, and nobody has asked
//! the relay to stop. A failing destination is neither.
//!
//! The answers hold no data and no secrets, so they need no authorisation.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::store::{Store, StoreError};

/// How long an answer about the database is repeated before it is asked again.
const ANSWER_KEPT: Duration = Duration::from_secs(1);

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the health endpoint knows.
pub struct Health {
    stall_after: Duration,
    loops: Mutex<Vec<Watched>>,
    draining: Mutex<Option<String>>,
    store: Mutex<Option<Arc<dyn Store>>>,
    asked: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

struct Watched {
    name: &'static str,
    ticks: Arc<AtomicU64>,
    first: u64,
    seen: u64,
    turned_at: Instant,
}

impl Health {
    /// Calls a loop stuck that has not turned for `stall_after`. Without a store, readiness does not ask the database.
    pub fn new(stall_after: Duration, store: Option<Arc<dyn Store>>) -> Health {
        Health {
            stall_after,
            loops: Mutex::default(),
            draining: Mutex::default(),
            store: Mutex::new(store),
            asked: tokio::sync::Mutex::default(),
        }
    }

    /// Watches a loop by a number that rises whenever it turns.
    pub fn watch(&self, name: &'static str, ticks: Arc<AtomicU64>) {
        let first = ticks.load(Ordering::Relaxed);
        lock(&self.loops).push(Watched { name, ticks, first, seen: first, turned_at: Instant::now() });
    }

    /// Follows another relay that takes over in this process: its loop is watched in place of the one of that name, and
    /// its database is asked. It has begun as far as readiness is concerned: the old one gives way only now.
    pub fn follow(&self, name: &'static str, ticks: Arc<AtomicU64>, store: Arc<dyn Store>) {
        *lock(&self.store) = Some(store);
        let seen = ticks.load(Ordering::Relaxed);
        let first = seen.wrapping_sub(1);
        let watched = Watched { name, ticks, first, seen, turned_at: Instant::now() };
        let mut loops = lock(&self.loops);
        loops.retain(|watched| watched.name != name);
        loops.push(watched);
    }

    /// From now on the relay is not ready.
    pub fn not_ready(&self, reason: impl Into<String>) {
        *lock(&self.draining) = Some(reason.into());
    }

    /// Looks which loops have turned since the last look; to be called about once a second.
    pub fn look(&self) {
        let now = Instant::now();
        for watched in lock(&self.loops).iter_mut() {
            let ticks = watched.ticks.load(Ordering::Relaxed);
            if ticks != watched.seen {
                (watched.seen, watched.turned_at) = (ticks, now);
            }
        }
    }

    /// `Err` names the loops that are stuck.
    pub fn alive(&self) -> Result<(), String> {
        self.look();
        let stuck: Vec<String> = lock(&self.loops)
            .iter()
            .map(|watched| (watched.name, watched.turned_at.elapsed()))
            .filter(|(_, still)| *still > self.stall_after)
            .map(|(name, still)| format!("{name} has not turned for {} s", still.as_secs()))
            .collect();
        if stuck.is_empty() { Ok(()) } else { Err(stuck.join("\n")) }
    }

    /// `Err` says why this relay should not be counted on.
    pub async fn ready(&self) -> Result<(), String> {
        if let Some(reason) = lock(&self.draining).clone() {
            return Err(reason);
        }
        self.look();
        if let Some(name) = lock(&self.loops).iter().find(|watched| watched.seen == watched.first).map(|w| w.name) {
            return Err(format!("starting: {name} has not turned yet"));
        }
        let Some(store) = lock(&self.store).clone() else { return Ok(()) };
        // Whoever asks meanwhile waits here, so the database is asked once however often we are.
        let mut asked = self.asked.lock().await;
        if let Some((at, answer)) = &*asked
            && at.elapsed() < ANSWER_KEPT
        {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(PATIENCE, store.verify()).await {
            Ok(Ok(())) => Ok(()),
            // The address of the database is nobody's business here.
            Ok(Err(StoreError::Unsuitable { problem, .. })) => Err(problem),
            Ok(Err(StoreError::ReadOnly { found, .. })) => Err(format!("the database takes no writes: {found}")),
            Ok(Err(_)) => Err("the database cannot be reached".to_owned()),
            Err(_) => Err(format!("the database has not answered within {} s", PATIENCE.as_secs())),
        };
        *asked = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// The two questions.
pub fn router(health: Arc<Health>) -> Router {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(health)
}

async fn livez(State(health): State<Arc<Health>>) -> impl IntoResponse {
    answer(health.alive())
}

async fn readyz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    answer(health.ready().await)
}

fn answer(result: Result<(), String>) -> impl IntoResponse {
    let (status, text) = match result {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    };
    (status, [(header::CACHE_CONTROL, "no-store")], format!("{text}\n"))
}

/// Takes the address; separate from [`serve`], so that a relay that cannot listen does not start.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Answers until the future is dropped.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let looked = health.clone();
    let look = async move {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            looked.look();
        }
    };
    let answer = async {
        if let Err(error) = axum::serve(listener, router(health)).await {
            tracing::error!(%error, "the health endpoint has ended");
        }
    };
    tokio::join!(look, answer);
}

/// Why the health endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "the health endpoint cannot listen on {address}: {source}\n  help: set another `listen` in [health], or \"off\""
)]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A panic while the lock was held leaves plain values behind: go on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_turn_is_named_and_one_that_does_is_not() {
        let health = Health::new(Duration::from_secs(10), None);
        let (turning, stuck) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(7)));
        health.watch("membership", turning.clone());
        health.watch("delivery", stuck);
        for _ in 0..11 {
            assert_eq!(health.alive(), Ok(()));
            tokio::time::advance(Duration::from_secs(1)).await;
            turning.fetch_add(1, Ordering::Relaxed);
            health.look();
        }
        assert_eq!(health.alive(), Err("delivery has not turned for 11 s".to_owned()));
    }

    #[tokio::test]
    async fn a_relay_is_not_ready_before_its_loops_have_begun() {
        let health = Health::new(Duration::from_secs(10), None);
        let ticks = Arc::new(AtomicU64::new(0));
        health.watch("delivery", ticks.clone());
        assert_eq!(health.ready().await, Err("starting: delivery has not turned yet".to_owned()));
        ticks.fetch_add(1, Ordering::Relaxed);
        assert_eq!(health.ready().await, Ok(()));
    }

    #[tokio::test]
    async fn a_relay_that_drains_is_alive_and_not_ready() {
        let health = Health::new(Duration::from_secs(10), None);
        assert_eq!(health.ready().await, Ok(()));
        health.not_ready("stopping");
        assert_eq!(health.ready().await, Err("stopping".to_owned()));
        assert_eq!(health.alive(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_takes_over_is_ready_at_once_and_is_the_one_that_is_watched() {
        let health = Health::new(Duration::from_secs(10), None);
        let (old, new) = (Arc::new(AtomicU64::new(5)), Arc::new(AtomicU64::new(0)));
        health.watch("delivery", old.clone());
        old.fetch_add(1, Ordering::Relaxed);
        assert_eq!(health.ready().await, Ok(()));
        let store = crate::store::sqlite::Sqlite::new("sqlite:/nowhere/at/all.db").unwrap();
        health.follow("delivery", new.clone(), Arc::new(store));
        assert!(health.ready().await.is_err(), "its database is asked");
        *lock(&health.store) = None;
        assert_eq!(health.ready().await, Ok(()), "it need not turn first");
        for _ in 0..11 {
            tokio::time::advance(Duration::from_secs(1)).await;
            old.fetch_add(1, Ordering::Relaxed);
            health.look();
        }
        let stuck = health.alive().expect_err("the old one does not count");
        assert!(stuck.starts_with("delivery has not turned for 1"), "{stuck}");
    }

    #[tokio::test]
    async fn a_taken_address_is_said_with_the_option_to_change() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("the health endpoint cannot listen on {address}: ")), "{error}");
        assert!(error.ends_with("help: set another `listen` in [health], or \"off\""), "{error}");
    }
}
