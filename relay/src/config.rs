//! What a person may set, its defaults, and what is refused.
//!
//! Order: flags, environment, file, defaults. The environment overrides any scalar as `RELAY__SECTION__KEY`, and
//! `DATABASE_URL` serves when nothing else names the database. Unknown keys are errors: a misspelt option that is
//! silently ignored is found on the day it was needed.
//!
//! All problems are reported together, each with its place. Nothing here connects, listens or starts anything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use crate::rate::RateLimit;
use crate::retry::RetryPolicy;
use crate::sink::AfterDeadLetter;
use crate::sink::Ordering;
use crate::sink::http::Network;
use crate::sink::http::address::Policy;
use crate::sink::http::{Class, Status};

mod accepts;
mod advice;
pub mod database_url;
mod example;
mod problem;
mod read;
mod reload;
mod schema;
mod secret;
mod sections;
mod shown;
mod size;

pub use example::EXAMPLE;
pub(crate) use problem::suggestion;
pub use problem::{ConfigError, Problem};
pub use reload::Reloaded;
pub use schema::schema;
pub use secret::Secret;

pub use crate::sink::http::Mode;

use read::{Place, Reader, Section};

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `[database]`
    pub database: Database,
    /// `[relay]`
    pub relay: RelayOptions,
    /// `[health]`
    pub health: Health,
    /// `[defaults]`
    pub defaults: Defaults,
    /// `[destinations.NAME]`, by name. What a destination leaves out is filled in from `[defaults]`.
    pub destinations: BTreeMap<String, Destination>,
}

/// Where the outbox is.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// The url, credentials included.
    pub url: Secret,
    /// What to do about the schema at the start.
    pub migrate: Migrate,
    /// MySQL/MariaDB: a key's order holds for transactions shorter than this.
    pub transaction_age_max: Duration,
}

/// What `relay run` does about the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrate {
    /// Refuses to start on a schema it does not fit.
    Check,
    /// Migrates first.
    Auto,
    /// Looks at nothing.
    Off,
}

/// How the relay works.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayOptions {
    /// A name for people; the identity is random per start.
    pub name: String,
    /// After how long without a beat a relay is declared dead.
    pub lease: Duration,
    /// The pause between polls while there is work.
    pub poll_busy: Duration,
    /// The pause it grows to when there is none.
    pub poll_idle: Duration,
    /// How long a stop waits for attempts under way.
    pub shutdown_grace: Duration,
    /// Messages read and not settled, at most.
    pub in_hands: usize,
    /// Their bytes, at most.
    pub in_hands_bytes: u64,
    /// The CloudEvents source.
    pub source: String,
}

/// The health endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Where it listens; `None` is off.
    pub listen: Option<SocketAddr>,
}

/// What a destination gets that does not say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// How long an attempt may take.
    pub timeout: Duration,
    /// The shape of the request.
    pub mode: Mode,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Which addresses requests may go to.
    pub network: Network,
}

/// An HTTP destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// Where to POST.
    pub url: String,
    /// The topics it wants.
    pub topics: Vec<String>,
    /// Attempts at the same time, per relay.
    pub concurrency: usize,
    /// How often it is called, by all relays together.
    pub rate_limit: Option<RateLimit>,
    /// How long an attempt may take.
    pub timeout: Duration,
    /// The shape of the request.
    pub mode: Mode,
    /// Whether a key's messages wait for each other.
    pub ordering: Ordering,
    /// What happens to a key after one of its messages died.
    pub after_dead_letter: AfterDeadLetter,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Whom TLS trusts, and what it shows.
    pub tls: Tls,
    /// Which addresses it may have.
    pub network: Network,
    /// Whether it may have an `http://` address that is not one of this machine.
    pub allow_http: bool,
    /// Which ports below 1024 it may have in the public internet, beside 80 and 443.
    pub ports: Vec<u16>,
    /// How every request is signed.
    pub signing: Signing,
    /// Headers sent with every request.
    pub headers: BTreeMap<String, Secret>,
    /// Answers that are judged otherwise than by the table.
    pub classify: BTreeMap<Status, Class>,
}

/// Whom TLS trusts, and what it shows, where the system's authorities and nothing are not right. All of it is PEM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// The authorities one of which has to vouch for the server.
    pub ca: Option<Secret>,
    /// What is shown to a server that asks: a certificate with those between it and its authority, and its private key.
    pub client: Option<(Secret, Secret)>,
}

/// How requests are signed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signing {
    /// What is signed, and how it is written.
    pub scheme: Scheme,
    /// What is signed with, the newest first; without one nothing is signed.
    pub keys: Vec<outbox::signature::Secret>,
}

/// What is signed, and how it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Standard Webhooks: `v1` or `v1a`, as each key is.
    #[default]
    Standard,
}

impl Default for Database {
    fn default() -> Self {
        Database { url: Secret::default(), migrate: Migrate::Check, transaction_age_max: Duration::from_secs(10) }
    }
}

impl Default for RelayOptions {
    fn default() -> Self {
        RelayOptions {
            name: "relay".to_owned(),
            lease: Duration::from_secs(5),
            poll_busy: Duration::from_millis(1),
            poll_idle: Duration::from_millis(60),
            shutdown_grace: Duration::from_secs(25),
            in_hands: 4096,
            in_hands_bytes: 64 << 20,
            source: "/outbox".to_owned(),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Health { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))) }
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            timeout: Duration::from_secs(15),
            mode: Mode::default(),
            retry: RetryPolicy::internal(),
            network: Network::Any,
        }
    }
}

impl Default for Destination {
    fn default() -> Self {
        Destination {
            url: String::new(),
            topics: Vec::new(),
            concurrency: 16,
            rate_limit: None,
            timeout: Defaults::default().timeout,
            mode: Defaults::default().mode,
            ordering: Ordering::Key,
            after_dead_letter: AfterDeadLetter::Continue,
            retry: Defaults::default().retry,
            tls: Tls::default(),
            network: Defaults::default().network,
            allow_http: false,
            ports: Vec::new(),
            signing: Signing::default(),
            headers: BTreeMap::new(),
            classify: BTreeMap::new(),
        }
    }
}

impl Destination {
    /// What its url may be.
    fn policy(&self) -> Policy {
        Policy { network: self.network, allows_http: self.allow_http, ports: self.ports.clone() }
    }
}

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file; `None` means defaults and environment only.
    pub file: Option<(PathBuf, String)>,
    /// `--database-url`.
    pub database_url: Option<String>,
    /// The name of this machine, which names the relay when nothing else does.
    pub host: Option<String>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
}

/// How much of the configuration has to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it: the relay runs by it.
    Everything,
    /// All but `[database]`: what is sent where, and how. To know of no destination is no mistake here.
    Destinations,
    /// `[database]` alone: an operator looking at dead letters need not have every destination's secrets at hand.
    Database,
}

impl Config {
    /// Puts the configuration together.
    ///
    /// # Errors
    /// Everything that is wrong within the scope.
    pub fn load(sources: &Sources, scope: Scope) -> Result<Config, ConfigError> {
        let nothing = (PathBuf::from("relay.toml"), String::new());
        let (path, text) = sources.file.as_ref().unwrap_or(&nothing);
        let reader = Reader::new(path, text, &sources.environment);
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let place = error.span().map_or(Place::Nowhere, Place::File);
                reader.problem("", &place, error.message().to_owned(), None);
                // What stands in a broken file is unknown, so nothing more can be said about it.
                return Err(ConfigError { problems: reader.finish().into_iter().take(1).collect() });
            }
        };
        let mut config = Config::default();
        sections::read(&mut config, Section::root(&reader, &table), sources);
        let mut problems = reader.finish();
        match scope {
            Scope::Everything => {}
            Scope::Destinations => {
                problems.retain(|problem| problem.section != "database" && problem.message != sections::NOWHERE);
            }
            Scope::Database => problems.retain(|problem| problem.section == "database"),
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }
}

#[cfg(test)]
mod tests;
