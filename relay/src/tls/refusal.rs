//! What it means when two sides did not agree on TLS.
//!
//! The libraries' errors say it to those who know TLS; a text of ours says which certificate was refused, by whom, and
//! why, so that what to do next follows from it. What is no refusal, a connection that broke for instance, is not told
//! here.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;

use chrono::{DateTime, SecondsFormat};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, PeerIncompatible};

/// Why TLS was refused, by either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What a person has to look at.
    pub(crate) about: About,
    /// What was refused, and why.
    pub(crate) said: String,
}

/// What a person has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// Who vouches for the server.
    Issuer,
    /// What the server is called.
    Name,
    /// Until when its certificate is valid, or the clock.
    Time,
    /// Something else about the server's certificate.
    Certificate,
    /// The versions and algorithms of both sides.
    Protocol,
    /// The certificate of this side.
    Ours,
}

/// A certificate nobody but its owner vouches for.
#[derive(Debug)]
pub(super) struct SelfSigned;

impl fmt::Display for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("self-signed")
    }
}

impl Error for SelfSigned {}

/// The refusal among what caused `error`, if there is one.
pub(crate) fn refusal(error: &(dyn Error + 'static)) -> Option<Refusal> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An I/O error shows the cause of what it wraps, not what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return understood(tls);
        }
        if let Some(alert) = retold(error) {
            return understood(&rustls::Error::AlertReceived(alert));
        }
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The alert in an error that has only kept rustls' words, as HTTP/2 does.
fn retold(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let text = error.downcast_ref::<io::Error>()?.to_string();
    let name = text.strip_prefix("received fatal alert: ")?;
    ALERTS.into_iter().find(|alert| format!("{alert:?}") == name)
}

fn understood(error: &rustls::Error) -> Option<Refusal> {
    let (about, said) = match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::NoCertificatesPresented => (About::Certificate, "the server shows no certificate".to_owned()),
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => (About::Protocol, OLD.to_owned()),
        rustls::Error::PeerIncompatible(error) => {
            (About::Protocol, format!("the server speaks TLS in a way that is not safe ({error:?})"))
        }
        rustls::Error::AlertReceived(alert) => alerted(*alert)?,
        _ => return None,
    };
    Some(Refusal { about, said })
}

const OLD: &str = "the server speaks TLS 1.1 or older only; at least TLS 1.2 is asked for";

fn certificate(error: &CertificateError) -> (About, String) {
    let its = "the server's certificate";
    match error {
        CertificateError::Expired => (About::Time, format!("{its} has expired")),
        CertificateError::ExpiredContext { not_after, .. } => {
            (About::Time, format!("{its} expired at {}", instant(*not_after)))
        }
        CertificateError::NotValidYet => (About::Time, format!("{its} is not valid yet")),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (About::Time, format!("{its} is not valid before {}", instant(*not_before)))
        }
        CertificateError::NotValidForName => (About::Name, format!("{its} is for another host")),
        CertificateError::NotValidForNameContext { expected, presented } => {
            (About::Name, format!("{its} is not for {}, {}", shown(expected), names(expected, presented)))
        }
        CertificateError::UnknownIssuer => {
            (About::Issuer, format!("{its} was issued by an authority that is not trusted"))
        }
        CertificateError::Other(other) if other.0.is::<SelfSigned>() => {
            (About::Issuer, format!("{its} is self-signed, and not trusted"))
        }
        // The library's enum cannot be named without depending on it for this one word.
        CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity" => {
            (About::Certificate, format!("{its} is an authority's own (`CA:TRUE`), often a self-signed one"))
        }
        CertificateError::Revoked => (About::Certificate, format!("{its} was revoked")),
        other => (About::Certificate, format!("{its} cannot be accepted: {other}")),
    }
}

fn shown(name: &ServerName<'_>) -> String {
    format!("`{}`", name.to_str())
}

/// The names a certificate is for, which the library gives as `DnsName("a")`.
fn names(expected: &ServerName<'_>, presented: &[String]) -> String {
    if presented.is_empty() {
        // Some certificates still name a host in the common name alone.
        return "nor for any other: it has no subject alternative name".to_owned();
    }
    let names: Vec<String> = presented
        .iter()
        .map(|name| {
            let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')')).unwrap_or(name);
            let inner = inner.trim_matches('"');
            // An address that somebody has put down as a name is none, and looks the same.
            match (name.starts_with("DnsName("), expected) {
                (true, ServerName::IpAddress(_)) if inner.parse::<IpAddr>().is_ok() => format!("the name \"{inner}\""),
                _ => format!("`{inner}`"),
            }
        })
        .collect();
    // A certificate may be for hundreds.
    match names.split_at_checked(5) {
        Some((first, more)) if !more.is_empty() => format!("but for {} and {} more", first.join(", "), more.len()),
        _ => format!("but for {}", names.join(", ")),
    }
}

fn instant(at: UnixTime) -> String {
    let at = i64::try_from(at.as_secs()).ok().and_then(|secs| DateTime::from_timestamp(secs, 0));
    at.map_or_else(|| "a time beyond all calendars".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// The alerts that are refusals.
const ALERTS: [AlertDescription; 14] = [
    AlertDescription::HandshakeFailure,
    AlertDescription::NoCertificate,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
    AlertDescription::DecryptError,
    AlertDescription::ProtocolVersion,
    AlertDescription::InsufficientSecurity,
    AlertDescription::UnrecognisedName,
    AlertDescription::CertificateRequired,
];

/// What the other side refused; `None` for what it says when it broke.
fn alerted(alert: AlertDescription) -> Option<(About, String)> {
    let ours = |why: &str| Some((About::Ours, format!("the server refuses the client certificate: {why}")));
    match alert {
        AlertDescription::ProtocolVersion => Some((About::Protocol, OLD.to_owned())),
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            Some((About::Ours, "the server demands a client certificate, and got none".to_owned()))
        }
        // TLS 1.2 has no other word for a client certificate that did not come.
        AlertDescription::HandshakeFailure => Some((
            About::Ours,
            "the server ended the handshake: it demands a client certificate, or no algorithm is common".to_owned(),
        )),
        AlertDescription::InsufficientSecurity => {
            Some((About::Protocol, "the server demands algorithms that are not offered".to_owned()))
        }
        AlertDescription::UnrecognisedName => Some((About::Name, "the server knows no host of this name".to_owned())),
        AlertDescription::UnknownCA => ours("it was issued by an authority the server does not trust"),
        AlertDescription::CertificateExpired => ours("it has expired"),
        AlertDescription::CertificateRevoked => ours("it was revoked"),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => ours(&format!("{alert:?}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::OtherError;

    use super::*;

    fn told(error: rustls::Error) -> Option<(About, String)> {
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        refusal(&wrapped).map(|refusal| (refusal.about, refusal.said))
    }

    #[test]
    fn a_refusal_says_what_was_refused_and_why() {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
        let named = |presented: &[&str]| CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("db.internal").unwrap(),
            presented: presented.iter().map(|name| (*name).to_owned()).collect(),
        };
        let its = "the server's certificate";
        for (error, about, said) in [
            (
                CertificateError::ExpiredContext { time: at, not_after: at },
                About::Time,
                format!("{its} expired at 2023-11-14T22:13:20Z"),
            ),
            (
                CertificateError::NotValidYetContext { time: at, not_before: at },
                About::Time,
                format!("{its} is not valid before 2023-11-14T22:13:20Z"),
            ),
            (
                named(&["DnsName(\"a.example\")", "IpAddress(127.0.0.1)"]),
                About::Name,
                format!("{its} is not for `db.internal`, but for `a.example`, `127.0.0.1`"),
            ),
            (
                named(&[]),
                About::Name,
                format!("{its} is not for `db.internal`, nor for any other: it has no subject alternative name"),
            ),
            (
                named(&["a", "b", "c", "d", "e", "f", "g"]),
                About::Name,
                format!("{its} is not for `db.internal`, but for `a`, `b`, `c`, `d`, `e` and 2 more"),
            ),
            (
                CertificateError::UnknownIssuer,
                About::Issuer,
                format!("{its} was issued by an authority that is not trusted"),
            ),
            (
                CertificateError::Other(OtherError(Arc::new(SelfSigned))),
                About::Issuer,
                format!("{its} is self-signed, and not trusted"),
            ),
        ] {
            assert_eq!(told(rustls::Error::InvalidCertificate(error)), Some((about, said)));
        }
        let host = "127.0.0.1";
        let presented = [format!("DnsName(\"{host}\")"), "DnsName(\"a.example\")".to_owned()];
        let error = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from(host).unwrap(),
            presented: presented.to_vec(),
        };
        let said = format!("{its} is not for `{host}`, but for the name \"{host}\", `a.example`");
        assert_eq!(told(rustls::Error::InvalidCertificate(error)), Some((About::Name, said)));
        let alert = |alert| told(rustls::Error::AlertReceived(alert)).map(|(about, _)| about);
        assert_eq!(alert(AlertDescription::ProtocolVersion), Some(About::Protocol));
        assert_eq!(alert(AlertDescription::CertificateRequired), Some(About::Ours));
        assert_eq!(alert(AlertDescription::UnknownCA), Some(About::Ours));
        for alert in ALERTS {
            let words = io::Error::other(rustls::Error::AlertReceived(alert).to_string());
            assert!(refusal(&words).is_some(), "{words}");
        }
    }

    #[test]
    fn what_broke_is_no_refusal() {
        assert_eq!(told(rustls::Error::HandshakeNotComplete), None);
        assert_eq!(told(rustls::Error::AlertReceived(AlertDescription::InternalError)), None);
        assert_eq!(refusal(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
