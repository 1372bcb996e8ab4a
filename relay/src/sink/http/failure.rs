//! What it means when no answer came.

use std::error::Error;
use std::time::Duration;

use super::address::Refusal;
use super::address::resolver::{NO_ADDRESS, Unresolved};
use super::client::{Failure, cause};
use crate::duration;
use crate::sink::{Judgement, text};
use crate::tls::refusal;
use crate::verdict::Verdict;

const RETRY: Verdict = Verdict::Retry { after: None };

/// Judges an attempt whose time was up before the head of an answer had arrived.
pub(super) fn timeout(after: Duration) -> Judgement {
    let said = format!("no answer within {}", duration::format(after));
    Judgement { maybe: true, ..Judgement::failed(RETRY, "timeout", said) }
}

/// Judges an attempt the client gave up.
pub(super) fn judge(error: &Failure) -> Judgement {
    // Also after the handshake: a server judges a client certificate when the first request may be on its way.
    if let Some(refused) = refusal::refusal(error) {
        return refused_tls(&refused, error.is_connect());
    }
    let said = said(error);
    if !error.is_connect() {
        // The connection stood, so the request may have arrived, whole or in part.
        return Judgement { maybe: true, ..Judgement::failed(RETRY, "reset", said) };
    }
    if let Some(refusal) = cause::<Refusal>(error) {
        return Judgement::failed(Verdict::Misconfigured, "address", refusal.to_string());
    }
    if cause::<Unresolved>(error).is_some() {
        return Judgement::failed(dns(&said), "dns", said);
    }
    Judgement::failed(RETRY, "connect", said)
}

/// Judges a refusal of TLS, which a server may also speak out on a connection that has served.
fn refused_tls(refused: &refusal::Refusal, is_connect: bool) -> Judgement {
    let judgement = Judgement::failed(Verdict::Misconfigured, "certificate", text::cleaned(&refused.said));
    // Once the handshake has ended on this side, the request may have been read before the refusal was spoken.
    Judgement { maybe: !is_connect, ..judgement }
}

/// What happened, without the outer layer, which only says that it happened to a client.
fn said(error: &Failure) -> String {
    match error.source() {
        Some(cause) => text::chain(cause),
        None => text::chain(error),
    }
}

/// What systems say of a name that nobody has, or that has no address.
const UNKNOWN: &[&str] = &[
    // glibc
    "Name or service not known",
    "No address associated with hostname",
    // macOS
    "nodename nor servname provided",
    // musl
    "Name does not resolve",
    "Name has no usable address",
    // Windows
    "No such host is known",
    NO_ADDRESS,
];

/// A name that does not exist is a mistake; a resolver that cannot be asked is an outage. The standard library tells
/// them apart by their text only, which is the system's. A text that is not known here counts as an outage: to ask again
/// too soon costs less than to call a right name wrong.
fn dns(said: &str) -> Verdict {
    let is_unknown = UNKNOWN.iter().any(|unknown| said.contains(unknown));
    if is_unknown { Verdict::Misconfigured } else { RETRY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_after_the_handshake_does_not_say_that_nothing_arrived() {
        let refused = refusal::Refusal { about: refusal::About::Ours, said: "no".to_owned() };
        let expected = Judgement::failed(Verdict::Misconfigured, "certificate", "no");
        assert_eq!(refused_tls(&refused, true), expected);
        assert_eq!(refused_tls(&refused, false), Judgement { maybe: true, ..expected });
    }

    #[test]
    fn an_unknown_name_is_a_mistake_and_whatever_else_befalls_a_resolver_an_outage() {
        let judged = |said: &str| dns(&format!("failed to lookup address information: {said}"));
        for said in [
            "Name or service not known",
            "No address associated with hostname",
            "nodename nor servname provided, or not known",
            "Name does not resolve",
            "Name has no usable address",
            "No such host is known. (os error 11001)",
            "the name has no address",
        ] {
            assert_eq!(judged(said), Verdict::Misconfigured, "{said}");
        }
        for said in [
            "Temporary failure in name resolution",
            "Non-recoverable failure in name resolution",
            "System error",
            "Memory allocation failure",
            "Try again",
            "Non-recoverable error",
            "Too many open files (os error 24)",
            "This is usually a temporary error during hostname resolution. (os error 11002)",
            "something nobody has said yet",
            "",
        ] {
            assert_eq!(judged(said), RETRY, "{said}");
        }
    }
}
