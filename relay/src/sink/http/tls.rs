//! TLS to one destination: whom it has to be vouched for by, and what it is shown.
//!
//! Absent: the protocol, which is rustls' affair, and the words for its refusals; see [`crate::tls`].

use rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::HttpError;
use crate::tls::{self, Proof, Roots, Unusable};

/// What differs from what every destination gets: the system's authorities, and nothing to show.
#[derive(Clone, Default)]
pub(super) struct Tls {
    /// The authorities, as PEM.
    pub(super) ca: Option<String>,
    /// A certificate with those between it and its authority, and its private key, as PEM.
    pub(super) identity: Option<(String, String)>,
}

impl Tls {
    /// How the address is spoken to.
    pub(super) fn config(&self, url: &Url) -> Result<ClientConfig, HttpError> {
        if url.scheme() != "https" {
            return self.plain();
        }
        let unusable = |what: &'static str| move |problem: String| HttpError::Certificate { what, problem };
        let proof = match &self.ca {
            Some(pem) => {
                let roots = tls::authorities(pem.as_bytes()).map_err(unusable("certificate of the authority"))?;
                Proof::Name(Roots::Given(roots))
            }
            None => Proof::Name(Roots::System),
        };
        let identity = match &self.identity {
            Some((chain, key)) => {
                Some(tls::identity(chain.as_bytes(), key.as_bytes()).map_err(|error| match error {
                    Unusable::Certificate(problem) => unusable("client certificate")(problem),
                    Unusable::Key(problem) => unusable("key of the client certificate")(problem),
                })?)
            }
            None => None,
        };
        tls::client(proof, identity).map_err(HttpError::Tls)
    }

    /// Without redirects a plain address never comes to speak TLS, and must work on a system without certificates: nobody
    /// is trusted.
    fn plain(&self) -> Result<ClientConfig, HttpError> {
        if self.ca.is_some() || self.identity.is_some() {
            return Err(HttpError::Url { problem: "it is not encrypted, and has a certificate; write https".into() });
        }
        let builder = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(HttpError::Tls)?;
        Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Http;
    use super::*;
    use crate::tls::tests::{CERTIFICATE, KEY};

    #[test]
    fn a_plain_address_needs_no_certificates_and_takes_none() {
        let url = Url::parse("http://127.0.0.1:9/").unwrap();
        Tls::default().config(&url).unwrap();
        Http::new("billing", "http://127.0.0.1:9/").sink("/").unwrap();
        let told = Http::new("billing", url.as_str()).ca(CERTIFICATE).sink("/").map(|_| ()).unwrap_err().to_string();
        assert!(told.contains("write https"), "{told}");
    }

    #[test]
    fn what_cannot_be_used_is_named_and_never_shown() {
        let https = || Http::new("billing", "https://127.0.0.1:9/").ca(CERTIFICATE);
        https().client_certificate(CERTIFICATE, KEY).sink("/").unwrap();
        for (http, told) in [
            (https().ca("hunter2"), "the certificate of the authority cannot be used: no certificate in it"),
            (https().client_certificate("hunter2", KEY), "the client certificate cannot be used: no certificate in it"),
            (
                https().client_certificate(CERTIFICATE, "hunter2"),
                "the key of the client certificate cannot be used: no private key in it",
            ),
        ] {
            let error = http.sink("/").map(|_| ()).unwrap_err().to_string();
            assert!(error.starts_with(told) && !error.contains("hunter2"), "{error}");
            assert!(!format!("{http:?}").contains("hunter2"));
        }
    }
}
