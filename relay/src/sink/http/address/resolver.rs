//! Looks names up, and lets through what may be connected to.
//!
//! The client connects to what this returns and looks nothing up again: what was judged is what is reached, whatever the
//! name leads to a moment later.
//!
//! Absent: a cache. Names are looked up by the system, for each new connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use super::{Policy, Refusal};

/// What is said of a name the system knows, without an address for it.
pub(in crate::sink::http) const NO_ADDRESS: &str = "the name has no address";

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(in crate::sink::http) enum Unresolved {
    /// The system does not know where, or cannot be asked.
    #[error(transparent)]
    Lookup(#[from] io::Error),
    /// It leads where nothing may be connected to.
    #[error("the address is refused")]
    Refused(#[source] Refusal),
}

/// The system's resolver behind a policy.
#[derive(Clone)]
pub(in crate::sink::http) struct Resolver {
    policy: Policy,
    known: Known,
}

/// Where a name led to when it was looked up last, if that was one address and nobody looks it up anew.
#[derive(Clone, Default)]
pub(in crate::sink::http) struct Known(Arc<Mutex<Option<IpAddr>>>);

impl Known {
    pub(in crate::sink::http) fn address(&self) -> Option<IpAddr> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, found: &[SocketAddr]) {
        let one = found.first().map(SocketAddr::ip).filter(|first| found.iter().all(|other| other.ip() == *first));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = one;
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Resolver {
    pub(in crate::sink::http) fn new(policy: Policy, known: Known) -> Resolver {
        Resolver { policy, known }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Unresolved;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unresolved>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unresolved>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (policy, known) = (self.policy.clone(), self.known.clone());
        known.forget();
        Box::pin(async move {
            // The port is the url's; the client puts it in.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, NO_ADDRESS).into());
            }
            judged(&policy, name.as_str(), &found).map_err(Unresolved::Refused)?;
            known.note(&found);
            Ok(found.into_iter())
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
    fn a_name_with_several_addresses_tells_none() {
        let (known, at) = (Known::default(), |text: &str| SocketAddr::new(text.parse().unwrap(), 0));
        known.note(&[at("10.0.0.5"), at("10.0.0.5")]);
        assert_eq!(known.address(), Some(at("10.0.0.5").ip()));
        known.note(&[at("10.0.0.5"), at("10.0.0.6")]);
        assert_eq!(known.address(), None);
    }

    #[tokio::test]
    async fn an_address_is_forgotten_when_its_name_is_looked_up_anew() {
        let known = Known::default();
        let mut resolver = Resolver::new(Policy::default(), known.clone());
        known.note(&["10.0.0.5:0".parse().unwrap()]);
        let looking = resolver.call("127.0.0.1".parse().unwrap());
        assert_eq!(known.address(), None, "nothing is connected to before the look-up has ended");
        looking.await.unwrap();
        assert_eq!(known.address(), Some("127.0.0.1".parse().unwrap()));
        drop(resolver.call("127.0.0.1".parse().unwrap()));
        assert_eq!(known.address(), None, "this one never ended");
    }

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
