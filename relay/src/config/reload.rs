//! What of a new configuration a running relay takes over.
//!
//! Every struct is taken apart without `..`: an option that is added and not decided upon here does not compile.

use super::{Config, Database, Health, RelayOptions};

/// What a running relay makes of a new configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded {
    /// The configuration it goes on with: the new one, but for what needs a restart.
    pub config: Config,
    /// The keys that were changed and need a restart.
    pub needs_restart: Vec<&'static str>,
    /// Destinations that came.
    pub added: Vec<String>,
    /// Destinations that are set up differently.
    pub changed: Vec<String>,
    /// Destinations that are not there any more; what waits for them waits on.
    pub removed: Vec<String>,
}

impl Config {
    /// What this configuration becomes while the relay runs when the new one is `new`.
    pub fn reloaded(&self, new: Config) -> Reloaded {
        let mut needs_restart = Vec::new();
        let Config { database, relay, health, defaults, destinations } = new;

        let Database { url, migrate, transaction_age_max } = database;
        // Another database is another outbox, with its own tables to look at first.
        let url = keep("database.url", &self.database.url, url, &mut needs_restart);
        let migrate = keep("database.migrate", &self.database.migrate, migrate, &mut needs_restart);
        let database = Database { url, migrate, transaction_age_max };

        let RelayOptions { name, lease, poll_busy, poll_idle, shutdown_grace, in_hands, in_hands_bytes, source } =
            relay;
        // Old and new work side by side for a while; one that beats more slowly than the other's lease would be
        // declared dead.
        let lease = keep("relay.lease", &self.relay.lease, lease, &mut needs_restart);
        let relay =
            RelayOptions { name, lease, poll_busy, poll_idle, shutdown_grace, in_hands, in_hands_bytes, source };

        let Health { listen } = health;
        let health = Health { listen: keep("health.listen", &self.health.listen, listen, &mut needs_restart) };

        let is_new = |name: &&String| !self.destinations.contains_key(*name);
        let differs = |name: &&String| self.destinations.get(*name).is_some_and(|old| *old != destinations[*name]);
        let is_gone = |name: &&String| !destinations.contains_key(*name);
        Reloaded {
            needs_restart,
            added: destinations.keys().filter(is_new).cloned().collect(),
            changed: destinations.keys().filter(differs).cloned().collect(),
            removed: self.destinations.keys().filter(is_gone).cloned().collect(),
            config: Config { database, relay, health, defaults, destinations },
        }
    }
}

fn keep<T: Clone + PartialEq>(key: &'static str, old: &T, new: T, needs_restart: &mut Vec<&'static str>) -> T {
    if *old != new {
        needs_restart.push(key);
    }
    old.clone()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Destination, Migrate, Secret};
    use super::*;

    fn with(names: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        for (name, url) in names {
            let destination = Destination { url: (*url).to_owned(), ..Destination::default() };
            config.destinations.insert((*name).to_owned(), destination);
        }
        config
    }

    #[test]
    fn nothing_changed_is_seen_as_such() {
        let config = with(&[("a", "http://a/")]);
        assert_eq!(config.reloaded(config.clone()).config, config);
    }

    #[test]
    fn destinations_come_change_and_go() {
        let old = with(&[("a", "http://a/"), ("b", "http://b/"), ("c", "http://c/")]);
        let new = with(&[("a", "http://a/"), ("b", "http://other/"), ("d", "http://d/")]);
        let reloaded = old.reloaded(new.clone());
        assert_eq!((reloaded.added, reloaded.changed), (vec!["d".to_owned()], vec!["b".to_owned()]));
        assert_eq!(reloaded.removed, ["c"]);
        assert_eq!(reloaded.config, new);
        assert_eq!(reloaded.needs_restart, [""; 0]);
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named() {
        let old = with(&[]);
        let mut new = old.clone();
        new.database.url = Secret::new("sqlite:other.db");
        new.database.migrate = Migrate::Auto;
        new.relay.lease = Duration::from_secs(60);
        new.relay.poll_idle = Duration::from_secs(2);
        new.health.listen = None;
        let reloaded = old.reloaded(new);
        assert_eq!(reloaded.needs_restart, ["database.url", "database.migrate", "relay.lease", "health.listen"]);
        let mut expected = old.clone();
        expected.relay.poll_idle = Duration::from_secs(2);
        assert_eq!(reloaded.config, expected);
    }
}
