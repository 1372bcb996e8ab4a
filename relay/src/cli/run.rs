//! `relay run`: the daemon.

use std::sync::Arc;

use super::args::{Global, Run};
use super::output::say;
use super::{Exit, Failure, settings};
use crate::admin::{self, Missing, with_connection};
use crate::config::{Config, Migrate, Scope};
use crate::relay::{Relay, RelayError, shutdown_signal};
use crate::sink::http::Http;
use crate::store::open::{StoreOptions, open};
use crate::store::{Store, StoreError};

/// Runs until told to stop, or until nothing is left to do.
pub(super) fn run(global: &Global, run: &Run) -> Result<Exit, Failure> {
    let config = settings::load(global, Scope::Everything)?;
    if config.database.migrate == Migrate::Auto {
        let mut conn = admin::connect(config.database.url.expose(), Missing::Create)?;
        with_connection!(&mut conn, conn => outbox::migrations::run(conn))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("relay: the runtime cannot start: {error}")))?;
    let exit = runtime.block_on(deliver(&config, run.drain));
    // Attempts that outlived the grace are not waited for a second time.
    runtime.shutdown_background();
    exit
}

async fn deliver(config: &Config, drain: bool) -> Result<Exit, Failure> {
    let relay = build(config).await?;
    if drain {
        let drained = tokio::select! {
            drained = relay.drain() => drained?,
            () = shutdown_signal() => {
                say("relay: stopped before the drain was done");
                return Ok(Exit::Partly);
            }
        };
        let status = &drained.status;
        let waiting: i64 = status.waiting.iter().map(|(_, _, count)| count).sum();
        let dead: i64 = status.dead.iter().map(|(_, _, count)| count).sum();
        say(&format!("drained; left behind: {} pending, {waiting} waiting, {dead} dead letters", status.pending));
        return Ok(if drained.is_clean() { Exit::Ok } else { Exit::Found });
    }
    relay.run_until(shutdown_signal()).await?;
    Ok(Exit::Ok)
}

async fn build(config: &Config) -> Result<Relay, RelayError> {
    let options = &config.relay;
    let store = open_store(config).await?;
    let mut builder = Relay::builder_from_store(store)
        .name(&options.name)
        .source(&options.source)
        .lease(options.lease)
        .poll(options.poll_busy, options.poll_idle)
        .in_hands(options.in_hands, usize::try_from(options.in_hands_bytes).unwrap_or(usize::MAX))
        .shutdown_grace(options.shutdown_grace)
        .timeout(config.defaults.timeout)
        .retry(config.defaults.retry.clone());
    for (name, destination) in &config.destinations {
        let mut http = Http::new(name, &destination.url)
            .topics(&destination.topics)
            .timeout(destination.timeout)
            .concurrency(destination.concurrency)
            .retry(destination.retry.clone())
            .ordering(destination.ordering)
            .after_dead_letter(destination.after_dead_letter);
        for (header, value) in &destination.headers {
            http = http.header(header, value.expose());
        }
        builder = builder.destination(http);
    }
    builder.build().await
}

/// Opens the database as the relay does.
pub(super) async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    let options = StoreOptions {
        lease: config.relay.lease,
        transaction_age_max: config.database.transaction_age_max,
        application_name: format!("relay {}", config.relay.name),
    };
    open(config.database.url.expose(), &options).await
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Failure {
        match error {
            RelayError::Store(error) => Failure::from(error),
            other => Failure::new(Exit::Config, format!("relay: {other}")),
        }
    }
}
