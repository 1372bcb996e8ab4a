//! A configuration as people may see it: every effective value, no secret.
//!
//! Invariants
//! - Header values, signing keys and the credentials of the database never appear, nor does the query of a destination's url. They
//!   are replaced by [`MASK`], so that it is seen that there is one.
//! - What is shown is named and written as in the file.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Config, Destination, Migrate, Scheme, Signing, Tls, database_url, size};
use crate::duration;
use crate::retry::RetryPolicy;
use crate::sink::http::Network;
use crate::sink::{AfterDeadLetter, Ordering};

/// Stands in place of a secret.
const MASK: &str = "(masked)";

impl Config {
    /// The effective values as the text of a configuration file, secrets masked.
    pub fn shown_as_toml(&self) -> String {
        toml::to_string(&shown(self)).expect("tables of texts, lists and numbers can be written as TOML")
    }

    /// The effective values as JSON, secrets masked.
    pub fn shown_as_json(&self) -> Value {
        serde_json::to_value(shown(self)).expect("tables of texts, lists and numbers can be written as JSON")
    }
}

/// The order of the fields is the order in the file; TOML wants plain values before tables.
#[derive(Serialize)]
struct Shown<'a> {
    database: ShownDatabase,
    relay: ShownRelay<'a>,
    health: ShownHealth,
    defaults: ShownDefaults<'a>,
    destinations: BTreeMap<&'a str, ShownDestination<'a>>,
}

#[derive(Serialize)]
struct ShownDatabase {
    url: String,
    migrate: &'static str,
    transaction_age_max: String,
}

#[derive(Serialize)]
struct ShownRelay<'a> {
    name: &'a str,
    lease: String,
    poll_busy: String,
    poll_idle: String,
    shutdown_grace: String,
    in_hands: usize,
    in_hands_bytes: String,
    source: &'a str,
}

#[derive(Serialize)]
struct ShownHealth {
    listen: String,
}

#[derive(Serialize)]
struct ShownDefaults<'a> {
    timeout: String,
    mode: &'static str,
    network: &'static str,
    retry: &'a RetryPolicy,
}

#[derive(Serialize)]
struct ShownDestination<'a> {
    url: String,
    topics: &'a [String],
    concurrency: usize,
    rate_limit: String,
    timeout: String,
    mode: &'static str,
    ordering: &'static str,
    after_dead_letter: &'static str,
    network: &'static str,
    allow_http: bool,
    ports: &'a [u16],
    retry: &'a RetryPolicy,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tls: BTreeMap<&'static str, &'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing: Option<ShownSigning>,
    headers: BTreeMap<&'a str, &'static str>,
    classify: BTreeMap<String, &'static str>,
}

#[derive(Serialize)]
struct ShownSigning {
    scheme: &'static str,
    keys: Vec<&'static str>,
}

/// Every struct is taken apart without `..`: an option that is added and not shown does not compile.
fn shown(config: &Config) -> Shown<'_> {
    let Config { database, relay, health, defaults, destinations } = config;
    let super::Database { url, migrate, transaction_age_max } = database;
    let super::RelayOptions { name, lease, poll_busy, poll_idle, shutdown_grace, in_hands, in_hands_bytes, source } =
        relay;
    let super::Health { listen } = health;
    let super::Defaults { timeout, mode, retry, network } = defaults;
    let span = |span: &std::time::Duration| duration::format(*span).to_string();
    Shown {
        database: ShownDatabase {
            url: database_shown(url.expose()),
            migrate: match migrate {
                Migrate::Check => "check",
                Migrate::Auto => "auto",
                Migrate::Off => "off",
            },
            transaction_age_max: span(transaction_age_max),
        },
        relay: ShownRelay {
            name,
            lease: span(lease),
            poll_busy: span(poll_busy),
            poll_idle: span(poll_idle),
            shutdown_grace: span(shutdown_grace),
            in_hands: *in_hands,
            in_hands_bytes: size::format(*in_hands_bytes),
            source,
        },
        health: ShownHealth { listen: listen.map_or_else(|| "off".to_owned(), |address| address.to_string()) },
        defaults: ShownDefaults { timeout: span(timeout), mode: mode.name(), network: network_shown(*network), retry },
        destinations: destinations.iter().map(|(name, each)| (name.as_str(), destination(each))).collect(),
    }
}

fn destination(destination: &Destination) -> ShownDestination<'_> {
    let Destination {
        url,
        topics,
        concurrency,
        rate_limit,
        timeout,
        mode,
        ordering,
        after_dead_letter,
        retry,
        tls,
        network,
        allow_http,
        ports,
        signing,
        headers,
        classify,
    } = destination;
    let Tls { ca, client } = tls;
    let Signing { scheme, keys } = signing;
    ShownDestination {
        url: match url.split_once('?') {
            Some((place, _)) => format!("{place}?{MASK}"),
            None => url.clone(),
        },
        topics,
        concurrency: *concurrency,
        rate_limit: rate_limit.map_or_else(|| "off".to_owned(), |limit| limit.to_string()),
        timeout: duration::format(*timeout).to_string(),
        mode: mode.name(),
        ordering: match ordering {
            Ordering::Key => "key",
            Ordering::None => "none",
        },
        after_dead_letter: match after_dead_letter {
            AfterDeadLetter::Continue => "continue",
            AfterDeadLetter::Block => "block",
        },
        network: network_shown(*network),
        allow_http: *allow_http,
        ports,
        retry,
        tls: [("ca", ca.is_some()), ("client_cert", client.is_some()), ("client_key", client.is_some())]
            .into_iter()
            .filter_map(|(key, is_set)| is_set.then_some((key, MASK)))
            .collect(),
        signing: (!keys.is_empty()).then(|| ShownSigning {
            scheme: match scheme {
                Scheme::Standard => "standard",
            },
            keys: keys.iter().map(|_| MASK).collect(),
        }),
        headers: headers.keys().map(|name| (name.as_str(), MASK)).collect(),
        classify: classify.iter().map(|(status, class)| (status.to_string(), class.word())).collect(),
    }
}

fn network_shown(network: Network) -> &'static str {
    match network {
        Network::Any => "any",
        Network::Public => "public",
    }
}

/// The database with a mark where credentials and parameters were.
fn database_shown(url: &str) -> String {
    let target = database_url::target(url);
    if target == url {
        return target;
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return target;
    };
    let user = if database_url::has_user(url) { format!("{MASK}@") } else { String::new() };
    let parameters = if url.contains('?') { format!("?{MASK}") } else { String::new() };
    format!("{scheme}://{user}{rest}{parameters}")
}

#[cfg(test)]
mod tests {
    use super::super::{Scope, Secret, Sources};
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let mut config = Config::default();
        config.database.url = Secret::new("postgres://shop:s3cret@db.internal:5432/shop?password=s3cret");
        let mut billing =
            Destination { url: "https://billing.internal/in?sig=s3cret".to_owned(), ..Destination::default() };
        billing.headers.insert("authorization".to_owned(), Secret::new("Bearer s3cret"));
        let key = outbox::signature::Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        billing.signing.keys.push(key);
        billing.tls.client = Some((Secret::new("s3cret"), Secret::new("s3cret")));
        config.destinations.insert("billing".to_owned(), billing);

        let (toml, json) = (config.shown_as_toml(), config.shown_as_json());
        let all = format!("{toml}{json}");
        assert!(!all.contains("s3cret") && !all.contains("MfKQ"), "{all}");
        assert!(!format!("{config:?}").contains("MfKQ"));
        assert_eq!(json["destinations"]["billing"]["signing"]["keys"], serde_json::json!(["(masked)"]));
        let masked = serde_json::json!({ "client_cert": "(masked)", "client_key": "(masked)" });
        assert_eq!(json["destinations"]["billing"]["tls"], masked);
        assert_eq!(json["database"]["url"], "postgres://(masked)@db.internal:5432/shop?(masked)");
        assert_eq!(json["destinations"]["billing"]["url"], "https://billing.internal/in?(masked)");
        assert_eq!(json["destinations"]["billing"]["headers"]["authorization"], "(masked)");
    }

    #[test]
    fn a_url_without_secrets_is_shown_as_it_is() {
        for url in ["sqlite:shop.db", "postgres://db.internal/shop", "mysql://db.internal:3307/shop"] {
            assert_eq!(database_shown(url), url);
        }
    }

    #[test]
    fn what_is_shown_loads_as_what_it_was() {
        let text = "[database]\nurl = \"sqlite:shop.db\"\nmigrate = \"auto\"\n[relay]\nname = \"shop-1\"\n\
                    in_hands_bytes = \"8MiB\"\n[health]\nlisten = \"off\"\n[defaults]\nretry = { preset = \"webhook\" }\n\
                    [destinations.billing]\nurl = \"https://billing.internal/in\"\ntopics = [\"order.*\"]\n\
                    rate_limit = \"90/m\"\nclassify = { 404 = \"reject\", 5xx = \"hold\" }\nmode = \"raw\"\nordering = \"none\"\n\
                    after_dead_letter = \"block\"\nnetwork = \"public\"\nports = [444]\nallow_http = true\n\
                    retry = { attempts_max = 3 }\n";
        let load = |text: &str| {
            let file = Some(("relay.toml".into(), text.to_owned()));
            Config::load(&Sources { file, ..Sources::default() }, Scope::Everything).unwrap()
        };
        let config = load(text);
        assert_eq!(load(&config.shown_as_toml()), config, "{}", config.shown_as_toml());
    }
}
