//! What is right, and hardly what anybody means.
//!
//! Nothing in here refuses anything: `relay check` says it, and the relay runs.

use std::net::IpAddr;

use url::Url;

use super::{Config, Problem};
use crate::sink::http::{Mode, Network, address};

/// What names end in that mean nothing outside a network of one's own.
const PRIVATE_SUFFIXES: &[&str] = &[".home.arpa", ".internal", ".lan", ".local", ".localhost", ".svc", ".test"];

impl Config {
    /// What deserves a second look, in the order of the destinations' names.
    pub fn advice(&self) -> Vec<Problem> {
        let uncovered = self.destinations.iter().filter(|(_, destination)| {
            let is_public = destination.network == Network::Public || seems_public(&destination.url);
            destination.mode == Mode::Binary && !destination.signing.keys.is_empty() && is_public
        });
        uncovered
            .map(|(name, _)| Problem {
                section: format!("destinations.{name}"),
                place: format!("[destinations.{name}]"),
                message: "requests are signed and go to a public address, but in mode `binary` the signature covers \
                          none of the `ce-` headers: topic, key and time can be changed on the way"
                    .to_owned(),
                help: Some("with `mode = \"structured\"` they stand in the body, which is signed".to_owned()),
            })
            .collect()
    }
}

/// True for an address that others than those of one's own network may be on the way to, as far as its text tells.
fn seems_public(url: &str) -> bool {
    let url = Url::parse(url).ok();
    let Some(host) = url.as_ref().and_then(Url::host_str) else { return false };
    match address::literal(host) {
        Some(IpAddr::V4(ip)) => !(ip.is_private() || ip.is_loopback() || ip.is_link_local()),
        Some(IpAddr::V6(ip)) => !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local()),
        None => {
            let name = host.trim_end_matches('.');
            name.contains('.') && !PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        }
    }
}

#[cfg(test)]
mod tests {
    use outbox::signature::Secret;

    use super::super::{Destination, Signing};
    use super::*;

    #[test]
    fn public_addresses_are_told_from_those_of_a_network_of_ones_own() {
        for url in [
            "https://hooks.example.com/",
            "http://hooks.example.com:8080/",
            "https://example.com./",
            "https://203.0.113.7/",
            "https://[2001:db8::1]/",
        ] {
            assert!(seems_public(url), "{url}");
        }
        for url in [
            "http://127.0.0.1:8080/",
            "http://billing/",
            "https://billing.internal/hooks/outbox",
            "https://billing.shop.svc.cluster.local/",
            "http://localhost/",
            "https://10.1.2.3/",
            "https://169.254.1.1/",
            "https://[::1]/",
            "https://[fd00::1]/",
            "",
        ] {
            assert!(!seems_public(url), "{url}");
        }
    }

    #[test]
    fn a_signature_that_covers_no_headers_on_a_public_way_is_told() {
        let told = |mode, keys: &[Secret], url: &str| {
            let signing = Signing { keys: keys.to_vec(), ..Signing::default() };
            let destination = Destination { url: url.into(), mode, signing, ..Destination::default() };
            let config = Config { destinations: [("billing".to_owned(), destination)].into(), ..Config::default() };
            config.advice()
        };
        let (key, public) = (Secret::generate(), "https://hooks.example.com/");
        let [advice] = &told(Mode::Binary, std::slice::from_ref(&key), public)[..] else { panic!("nothing is told") };
        let text = advice.to_string();
        assert!(text.starts_with("[destinations.billing]: requests are signed"), "{text}");
        assert!(text.contains("help: with `mode = \"structured\"`"), "{text}");
        for (mode, keys, url) in [
            (Mode::Binary, vec![], public),
            (Mode::Structured, vec![key.clone()], public),
            (Mode::Standard, vec![key.clone()], public),
            (Mode::Raw, vec![key.clone()], public),
            (Mode::Binary, vec![key.clone()], "https://billing.internal/"),
        ] {
            assert_eq!(told(mode, &keys, url), [], "{mode:?} {url}");
        }
    }
}
