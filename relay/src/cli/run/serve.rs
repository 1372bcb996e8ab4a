//! A relay that goes on, through one configuration after another.
//!
//! A reload is a rolling deployment inside the process. The new configuration is read and checked, and a relay is set up
//! by it; only then the old one is asked to stop, as at SIGTERM, and the new one starts. The old one gives back at once
//! the partitions nothing is under way in, and each of the others when its attempts have ended; the new one takes them
//! as they come. So nothing is sent twice, a key stays in order, and a slow attempt holds up its own partition only.
//!
//! For that while a destination may see the attempts of both, twice its concurrency at most.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::super::args::Global;
use super::super::{Exit, Failure, settings};
use super::{STALL_LEASES, set_up};
use crate::config::{Config, Reloaded, Scope};
use crate::relay::{Relay, RelayError};
use crate::server::health::{self, Health};
use crate::server::notify::Notifier;
use crate::shutdown::shutdown_signal;

/// The loop the health endpoint watches.
const LOOP: &str = "delivery";

/// Delivers until a signal, answering health questions meanwhile.
pub(super) async fn serve(
    global: &Global,
    mut config: Config,
    relay: Relay,
    mut hangups: Hangups,
) -> Result<Exit, Failure> {
    let health = Arc::new(Health::new(config.relay.lease * STALL_LEASES, Some(relay.store())));
    health.watch(LOOP, relay.ticks());
    let _answering = answer(&config, &health).await?;
    let notifier = Arc::new(Notifier::from_environment());
    let _telling = Aborted(tokio::spawn(tell(notifier.clone(), health.clone())));

    let mut generations = Generations::default();
    generations.start(relay);
    let mut reload = Reload { global, building: JoinSet::new(), again: false };
    let shutdown = shutdown_signal();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = generations.next_end() => if let Ended::Current(ended) = ended {
                ended?;
                return Ok(Exit::Ok);
            },
            () = hangups.next() => {
                notifier.reloading();
                reload.begin(&config);
                if reload.is_over() {
                    notifier.ready();
                }
            }
            Some(built) = reload.next_built(&config) => {
                if let Some((new, relay)) = built {
                    health.follow(LOOP, relay.ticks(), relay.store());
                    generations.replace(relay);
                    config = new;
                    info!("the new configuration is in force");
                }
                if reload.is_over() {
                    notifier.ready();
                }
            }
        }
    }
    // What is being set up has not begun, and never will.
    drop(reload);
    health.not_ready("stopping");
    notifier.stopping();
    let _second = Aborted(tokio::spawn(async {
        shutdown_signal().await;
        warn!("asked twice to stop: ending at once; what was not settled is delivered again");
        std::process::exit(Exit::Failed as i32);
    }));
    generations.stop().await?;
    Ok(Exit::Ok)
}

/// Opens the health endpoint, if there is to be one.
async fn answer(config: &Config, health: &Arc<Health>) -> Result<Option<Aborted>, Failure> {
    let Some(address) = config.health.listen else { return Ok(None) };
    let listener =
        health::bind(address).await.map_err(|error| Failure::new(Exit::Failed, format!("relay: {error}")))?;
    info!(%address, "health endpoint listens");
    Ok(Some(Aborted(tokio::spawn(health::serve(listener, health.clone())))))
}

/// Tells the service manager when the relay is ready, and from then on that it is alive.
async fn tell(notifier: Arc<Notifier>, health: Arc<Health>) {
    while health.ready().await.is_err() {
        tokio::time::sleep(READY_PAUSE).await;
    }
    notifier.ready();
    let Some(period) = notifier.watchdog_period() else { return };
    loop {
        // Silence is how a stuck relay says so.
        if health.alive().is_ok() {
            notifier.alive();
        }
        tokio::time::sleep(period).await;
    }
}

/// Between two looks whether the relay is ready.
const READY_PAUSE: Duration = Duration::from_millis(50);

/// A task that ends with this value.
struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The relay at work, and those before it that finish.
#[derive(Default)]
struct Generations {
    running: JoinSet<(u64, Result<(), RelayError>)>,
    current: u64,
    /// Stops the current one.
    stop: Option<oneshot::Sender<()>>,
}

enum Ended {
    /// The relay at work ended although nobody asked it to.
    Current(Result<(), RelayError>),
    /// One before it has finished.
    Former,
}

impl Generations {
    fn start(&mut self, relay: Relay) {
        let (stop, stopped) = oneshot::channel();
        self.current += 1;
        self.stop = Some(stop);
        let number = self.current;
        self.running.spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            (number, relay.run_until(stopped).await)
        });
    }

    /// Asks the relay at work to finish, and lets another take over.
    fn replace(&mut self, relay: Relay) {
        self.ask_to_stop();
        self.start(relay);
    }

    fn ask_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    async fn next_end(&mut self) -> Option<Ended> {
        match self.running.join_next().await? {
            Ok((number, ended)) if number == self.current => Some(Ended::Current(ended)),
            Ok((_, Ok(()))) => {
                info!("the relay of the previous configuration has finished");
                Some(Ended::Former)
            }
            Ok((_, Err(error))) => {
                let error = crate::cause::chain(&error);
                warn!(error, "the relay of the previous configuration ended early; its work is delivered again");
                Some(Ended::Former)
            }
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Some(Ended::Former),
        }
    }

    /// Stops all and waits until they have finished.
    async fn stop(mut self) -> Result<(), RelayError> {
        self.ask_to_stop();
        let mut result = Ok(());
        while let Some(ended) = self.next_end().await {
            if let Ended::Current(ended) = ended {
                result = ended;
            }
        }
        result
    }
}

/// A new configuration on its way from the file to a relay that is set up.
struct Reload<'g> {
    global: &'g Global,
    building: JoinSet<Result<(Config, Relay), Failure>>,
    /// Somebody asked meanwhile: what is being built may be outdated.
    again: bool,
}

impl Reload<'_> {
    /// Reads the configuration. What is wrong with it is told and changes nothing.
    fn begin(&mut self, current: &Config) {
        if !self.building.is_empty() {
            self.again = true;
            return;
        }
        info!("the configuration is read anew");
        match settings::load(self.global, Scope::Everything) {
            Ok(new) => {
                if let Some(config) = taken_over(current, new) {
                    self.building.spawn(async move { Ok((config.clone(), set_up(&config).await?)) });
                }
            }
            Err(failure) => refused(&failure),
        }
    }

    /// Waits until a relay is set up; `None` inside when nothing came of it. `None` when none is on its way.
    async fn next_built(&mut self, current: &Config) -> Option<Option<(Config, Relay)>> {
        let built = self.building.join_next().await?;
        if std::mem::take(&mut self.again) {
            self.begin(current);
            return Some(None);
        }
        match built {
            Ok(Ok(built)) => Some(Some(built)),
            Ok(Err(failure)) => {
                refused(&failure);
                Some(None)
            }
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Some(None),
        }
    }

    fn is_over(&self) -> bool {
        self.building.is_empty()
    }
}

/// What a running relay takes over of a new configuration, if there is anything.
fn taken_over(current: &Config, new: Config) -> Option<Config> {
    let Reloaded { config, needs_restart, added, changed, removed } = current.reloaded(new);
    for key in needs_restart {
        warn!(key, "this change needs a restart; until then the old value stays");
    }
    if config == *current {
        info!("nothing else has changed; the relay goes on as it is");
        return None;
    }
    info!(?added, ?changed, ?removed, "the configuration is right");
    Some(config)
}

/// The whole text, with file, line and column: it is what a person has to act upon.
fn refused(failure: &Failure) {
    let problem = failure.message.as_deref().unwrap_or_default();
    error!(problem, "the new configuration is refused; the old one stays");
}

/// Requests to read the configuration anew: SIGHUP.
pub(super) struct Hangups {
    #[cfg(unix)]
    signals: tokio::signal::unix::Signal,
}

impl Hangups {
    /// Listens from now on. Before this SIGHUP ends the process, as it does by default.
    #[cfg(unix)]
    pub(super) fn listen() -> Hangups {
        use tokio::signal::unix::{SignalKind, signal};
        Hangups { signals: signal(SignalKind::hangup()).expect("a process may listen to SIGHUP") }
    }

    /// There is no such signal here.
    #[cfg(not(unix))]
    pub(super) fn listen() -> Hangups {
        Hangups {}
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if self.signals.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}
