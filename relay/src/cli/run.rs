//! `relay run`: the daemon.

use std::time::Duration;

use serde_json::json;
use tracing::info;

use super::args::{Global, Run};
use super::beats::Beats;
use super::output::say;
use super::{Exit, Failure, settings, status};
use crate::admin::{self, Missing, with_connection};
use crate::config::{Config, Destination, Migrate, Scheme, Scope, Signing, Tls};
use crate::relay::{Drained, Relay, RelayError};
use crate::shutdown::shutdown_signal;
use crate::sink::http::Http;
use crate::telemetry;
use serve::Hangups;

mod serve;

/// A loop that has not turned for so many leases is stuck.
const STALL_LEASES: u32 = 3;

/// Runs until told to stop, or until nothing is left to do.
pub(super) fn run(global: &Global, run: &Run) -> Result<Exit, Failure> {
    let config = settings::load(global, Scope::Everything)?;
    telemetry::start();
    if config.database.migrate == Migrate::Auto {
        migrate(&config)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("relay: the runtime cannot start: {error}")))?;
    let ended = runtime.block_on(async {
        if run.drain {
            return drain(global, set_up(&config).await?).await;
        }
        let hangups = Hangups::listen();
        let relay = set_up(&config).await?;
        serve::serve(global, config, relay, hangups).await
    });
    // What an aborted attempt left on the blocking threads must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Sets the relay up as the configuration says.
async fn set_up(config: &Config) -> Result<Relay, Failure> {
    let relay = &config.relay;
    let mut builder = Relay::builder(config.database.url.expose())
        .name(&relay.name)
        .source(&relay.source)
        .lease(relay.lease)
        .transaction_age_max(config.database.transaction_age_max)
        .poll(relay.poll_busy, relay.poll_idle)
        .in_hands(relay.in_hands, usize::try_from(relay.in_hands_bytes).unwrap_or(usize::MAX))
        .shutdown_grace(relay.shutdown_grace)
        .timeout(config.defaults.timeout)
        .retry(config.defaults.retry.clone());
    for (name, destination) in &config.destinations {
        builder = builder.destination(http(name, destination));
    }
    Ok(builder.build().await?)
}

/// A destination of the configuration.
pub(super) fn http(name: &str, destination: &Destination) -> Http {
    let http = Http::new(name, &destination.url)
        .topics(&destination.topics)
        .concurrency(destination.concurrency)
        .timeout(destination.timeout)
        .mode(destination.mode)
        .ordering(destination.ordering)
        .after_dead_letter(destination.after_dead_letter)
        .retry(destination.retry.clone())
        .network(destination.network)
        .ports(destination.ports.iter().copied());
    let http = if destination.allow_http { http.allow_http() } else { http };
    let Tls { ca, client } = &destination.tls;
    let http = ca.iter().fold(http, |http, ca| http.ca(ca.expose()));
    let http = client.iter().fold(http, |http, (chain, key)| http.client_certificate(chain.expose(), key.expose()));
    let http = match destination.rate_limit {
        Some(limit) => http.rate_limit(limit),
        None => http,
    };
    let http = destination.classify.iter().fold(http, |http, (status, class)| http.classify(*status, *class));
    let Signing { scheme: Scheme::Standard, keys } = &destination.signing;
    let http = keys.iter().fold(http, |http, key| http.signing_key(key.clone()));
    destination.headers.iter().fold(http, |http, (name, value)| http.header(name, value.expose()))
}

/// Delivers what is due, and shows what is left.
async fn drain(global: &Global, relay: Relay) -> Result<Exit, Failure> {
    let drained = tokio::select! {
        drained = relay.drain() => drained?,
        () = shutdown_signal() => {
            return Err(Failure::new(Exit::Partly, "relay: stopped before the drain was done"));
        }
    };
    let Drained { attempts, delivered, retried, dead_lettered, unwritten, status, .. } = &drained;
    let text = format!(
        "attempts  {attempts}: {delivered} delivered, {retried} to be tried again\ngiven up  {dead_lettered}\n{}",
        status::as_text(status, &Beats::default())
    );
    let mut value = status::as_json(status, &Beats::default());
    value["drained"] = json!({
        "attempts": attempts,
        "delivered": delivered,
        "retried": retried,
        "dead_lettered": dead_lettered,
        "unwritten": unwritten,
    });
    global.output().one(&text, &value)?;
    if *unwritten > 0 {
        say(&format!(
            "relay: something is left behind; outcomes that could not be written: {unwritten}\n  \
             help: the log names the messages and says why; they stand as before, and are attempted again"
        ));
    } else if drained.is_clean() {
        return Ok(Exit::Ok);
    } else {
        say("relay: something is left behind");
    }
    Ok(Exit::Found)
}

fn migrate(config: &Config) -> Result<(), Failure> {
    let mut conn = admin::connect(config.database.url.expose(), Missing::Create)?;
    for name in with_connection!(&mut conn, conn => outbox::migrations::run(conn))? {
        info!(%name, "migration applied");
    }
    Ok(())
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Failure {
        let exit = match error {
            RelayError::Store(_) => Exit::Database,
            _ => Exit::Config,
        };
        Failure::from_error(exit, &error)
    }
}
