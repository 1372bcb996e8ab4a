//! Looks names up, and lets through what may be connected to.
//!
//! The client connects to what this returns and looks nothing up again: what was judged is what is reached, whatever the
//! name leads to a moment later.
//!
//! Absent: a cache. Names are looked up by the system, for each new connection.

use std::io;
use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{Policy, Refusal};

/// What is said of a name the system knows, without an address for it.
pub(in crate::sink::http) const NO_ADDRESS: &str = "the name has no address";

/// The system's resolver behind a policy.
pub(in crate::sink::http) struct Resolver {
    policy: Policy,
}

impl Resolver {
    pub(in crate::sink::http) fn new(policy: Policy) -> Resolver {
        Resolver { policy }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy.clone();
        Box::pin(async move {
            // The port is the url's; the client puts it in.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, NO_ADDRESS).into());
            }
            judged(&policy, name.as_str(), &found)?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// One refused address refuses them all: a name that leads inside and outside at once is not to be trusted with either,
/// and which of them is connected to is up to the network.
fn judged(policy: &Policy, name: &str, found: &[SocketAddr]) -> Result<(), Refusal> {
    found.iter().try_for_each(|found| policy.address(found.ip())).map_err(|refusal| refusal.of_name(name))
}

#[cfg(test)]
mod tests {
    use super::super::Network;
    use super::*;

    #[test]
    fn one_refused_address_among_others_refuses_the_name() {
        let policy = Policy { network: Network::Public, ..Policy::default() };
        let found = |addresses: &[&str]| addresses.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 0)).collect();
        let outside: Vec<_> = found(&["93.184.215.14", "2606:2800:21f:cb07::1"]);
        assert_eq!(judged(&policy, "a.example", &outside), Ok(()));
        let both: Vec<_> = found(&["93.184.215.14", "2606:2800:21f:cb07::1", "10.0.0.5"]);
        let refusal = judged(&policy, "a.example", &both).unwrap_err().to_string();
        let told = "`a.example` leads to `10.0.0.5`, a private address; `network = \"public\"` refuses it, \
                    `network = \"any\"` would allow it";
        assert_eq!(refusal, told);
        assert_eq!(judged(&Policy::default(), "a.example", &both), Ok(()));
    }
}
