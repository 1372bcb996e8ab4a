//! The file `relay config example` prints: every key with its default.
//!
//! Invariants, kept by the tests below
//! - As it stands, and with every default uncommented, it loads as the defaults with one destination, which has to be.
//! - Every key the code asks for stands in it, under its section, and no other key does.

/// The text.
pub const EXAMPLE: &str = include_str!("example.toml");

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use toml::Value;
    use toml::de::DeTable;

    use super::super::read::{Reader, Section};
    use super::super::{Config, Destination, Scope, Secret, Sources, sections};
    use super::EXAMPLE;
    use crate::tls::tests as tls;

    const URL: &str = "sqlite:shop.db";
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn sources(text: &str) -> Sources {
        let environment = [
            ("DATABASE_URL", URL),
            ("BILLING_TOKEN", "t0ken"),
            ("BILLING_SIGNING_KEY", KEY),
            ("BILLING_TLS_CA", tls::CERTIFICATE),
            ("BILLING_TLS_CERT", tls::CERTIFICATE),
            ("BILLING_TLS_KEY", tls::KEY),
        ];
        Sources {
            file: Some((PathBuf::from("relay.toml"), text.to_owned())),
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..Sources::default()
        }
    }

    fn load(text: &str) -> Config {
        Config::load(&sources(text), Scope::Everything).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// The defaults, and what has none.
    fn defaults() -> Config {
        let mut config = Config::default();
        config.database.url = Secret::new(URL);
        let billing = Destination {
            url: "https://billing.internal/hooks/outbox".to_owned(),
            topics: vec!["order.*".to_owned(), "refund.issued".to_owned()],
            ..Destination::default()
        };
        config.destinations.insert("billing".to_owned(), billing);
        config
    }

    /// The example with its defaults uncommented, and where `alternatives` says so with the other ways to write it.
    pub(in crate::config) fn uncommented(alternatives: bool) -> String {
        let mut lines: Vec<&str> = Vec::new();
        for line in EXAMPLE.lines() {
            match (line.strip_prefix("#or "), line.strip_prefix('#')) {
                (Some(other), _) if alternatives => {
                    // It stands in place of the key above it.
                    if other.starts_with("pauses ") {
                        lines.pop();
                    }
                    lines.push(other);
                }
                (None, Some(line)) if line.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
                    lines.push(line)
                }
                _ => lines.push(line),
            }
        }
        lines.join("\n")
    }

    #[test]
    fn as_it_stands_it_changes_nothing() {
        assert_eq!(load(EXAMPLE), defaults());
    }

    #[test]
    fn uncommented_it_says_the_defaults() {
        assert_ne!(uncommented(false), EXAMPLE.trim_end());
        assert_eq!(load(&uncommented(false)), defaults());
    }

    #[test]
    fn the_other_ways_to_write_a_key_load_too() {
        let config = load(&uncommented(true));
        assert_ne!(config.defaults.retry, defaults().defaults.retry);
        assert_eq!(config.destinations["billing"].headers["authorization"].expose(), "t0ken");
        assert_eq!(config.destinations["billing"].signing.keys[0].expose(), KEY);
        assert!(config.destinations["billing"].tls.ca.is_some() && config.destinations["billing"].tls.client.is_some());
    }

    #[test]
    fn every_key_the_code_knows_stands_in_it_and_no_other() {
        // Both ways of writing, so that each key is there at least once.
        let mut written = BTreeSet::new();
        for text in [uncommented(false), uncommented(true)] {
            keys("", &Value::Table(toml::from_str(&text).unwrap()), &mut written);
        }
        let text = uncommented(false);
        let table = DeTable::parse(&text).unwrap().into_inner();
        let sources = sources(&text);
        let reader = Reader::new(&PathBuf::from("relay.toml"), &text, &sources.environment);
        sections::read(&mut Config::default(), Section::root(&reader, &table), &sources);
        let known = reader.known().into_keys().map(|(section, key)| format!("{section}.{key}"));
        // A table in the example, whose keys are compared; a list alone is short for it.
        let known: BTreeSet<String> = known.filter(|key| !key.ends_with(".retry")).collect();
        // Names people choose.
        written.retain(|key| !key.contains(".headers.") && !key.contains(".classify."));
        assert_eq!(written, known, "the keys of the example and the keys of the code differ");
    }

    fn keys(prefix: &str, value: &Value, into: &mut BTreeSet<String>) {
        let is_reference = |table: &toml::Table| table.contains_key("env") || table.contains_key("file");
        match value {
            Value::Table(table) if !is_reference(table) => {
                for (key, value) in table {
                    let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    keys(&key, value, into);
                }
            }
            _ => {
                into.insert(prefix.to_owned());
            }
        }
    }
}
