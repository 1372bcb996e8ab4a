//! TLS as a client: what a server has to prove, what this side shows, and what a refusal means.
//!
//! Shared by HTTP destinations and by the connections to PostgreSQL and MariaDB.
//!
//! Invariants
//! - The cryptography is ring's and is always named: a program this library is built into may bring another.
//! - TLS 1.2 and 1.3, nothing older.
//! - Texts repeat what the server showed to everybody, never what stands in a file of ours.
//!
//! Absent: lists of revoked certificates, and names out of a certificate's common name.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, OtherError, RootCertStore, SignatureScheme,
};

pub(crate) mod refusal;

use self::refusal::SelfSigned;

/// Who may vouch for a server.
#[derive(Clone, Debug)]
pub(crate) enum Roots {
    /// The authorities this machine trusts.
    System,
    /// These and no others.
    Given(Vec<CertificateDer<'static>>),
}

/// What a server has to prove.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// Nothing: whoever answers is talked to.
    Nothing,
    /// That one of these vouches for it, by whatever name.
    Issuer(Vec<CertificateDer<'static>>),
    /// That, and that it is called what we call it.
    Name(Roots),
}

/// What this side shows to a server that asks who it is.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Its certificate, and those between it and the authority.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub(crate) key: PrivateKeyDer<'static>,
}

/// The cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How to speak TLS as a client.
///
/// # Errors
/// When there is nothing to check a server against, or the identity does not hold together.
pub(crate) fn client(proof: Proof, identity: Option<Identity>) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?.dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(Verifier::new(proof, provider)?));
    match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain, key),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Reads certificates as PEM, at least one.
///
/// # Errors
/// What is wrong, to be put behind the name of what was read.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|error| format!("no PEM that could be read: {error}"))?;
    if certificates.is_empty() {
        return Err("no certificate in it (`-----BEGIN CERTIFICATE-----`)".to_owned());
    }
    Ok(certificates)
}

/// Reads the certificates of authorities.
///
/// # Errors
/// What is wrong, to be put behind the name of what was read.
pub(crate) fn authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(pem)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| format!("a certificate in it cannot be read: {error}"))?;
    }
    Ok(certificates)
}

/// Reads a certificate with those between it and its authority, and its private key.
///
/// # Errors
/// Which of the two is wrong, and what is.
pub(crate) fn identity(chain: &[u8], key: &[u8]) -> Result<Identity, Unusable> {
    let chain = certificates(chain).map_err(Unusable::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_error| {
        // A parser's words might quote what it could not read.
        Unusable::Key(match find(key, b"ENCRYPTED") {
            true => "it is encrypted; write it without a passphrase, readable for the relay only".to_owned(),
            false => "no private key in it (`-----BEGIN PRIVATE KEY-----`)".to_owned(),
        })
    })?;
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()) {
        Ok(_) => Ok(Identity { chain, key }),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(Unusable::Key("it does not belong to the certificate".to_owned()))
        }
        Err(rustls::Error::InvalidCertificate(error)) => Err(Unusable::Certificate(error.to_string())),
        Err(_error) => Err(Unusable::Key("its kind is not known; RSA, ECDSA and Ed25519 keys are".to_owned())),
    }
}

/// Which half of an identity cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// The certificate.
    Certificate(String),
    /// The key.
    Key(String),
}

fn find(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|part| part == wanted)
}

/// Checks what a server shows.
#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Check {
    Nothing,
    Issuer(Arc<dyn ServerCertVerifier>),
    Name(Arc<dyn ServerCertVerifier>),
}

impl Verifier {
    fn new(proof: Proof, provider: Arc<CryptoProvider>) -> Result<Verifier, rustls::Error> {
        let check = match proof {
            Proof::Nothing => Check::Nothing,
            Proof::Issuer(roots) => Check::Issuer(given(roots, &provider)?),
            Proof::Name(Roots::Given(roots)) => Check::Name(given(roots, &provider)?),
            Proof::Name(Roots::System) => {
                Check::Name(Arc::new(rustls_platform_verifier::Verifier::new(Arc::clone(&provider))?))
            }
        };
        Ok(Verifier { check, provider })
    }

    /// True when the certificate is vouched for by itself, and therefore by nobody.
    fn is_self_signed(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
        let mut roots = RootCertStore::empty();
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verify = rustls::client::verify_server_cert_signed_by_trust_anchor;
        roots.add(certificate.clone().into_owned()).is_ok() && verify(&parsed, &roots, &[], now, algorithms).is_ok()
    }
}

fn given(
    roots: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root)?;
    }
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    Ok(builder.build().map_err(|error| rustls::Error::General(error.to_string()))?)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        let (Check::Issuer(inner) | Check::Name(inner)) = &self.check else {
            return Ok(ServerCertVerified::assertion());
        };
        match inner.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last, when everything else was right.
            Err(InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if matches!(self.check, Check::Issuer(_)) => Ok(ServerCertVerified::assertion()),
            Err(InvalidCertificate(CertificateError::UnknownIssuer)) if self.is_self_signed(certificate, now) => {
                Err(InvalidCertificate(CertificateError::Other(OtherError(Arc::new(SelfSigned)))))
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A file that TLS needs and cannot have.
#[derive(Debug)]
pub(crate) struct FileError {
    /// The parameter that names it.
    pub(crate) parameter: &'static str,
    /// What is wrong with the file.
    pub(crate) problem: String,
}

impl FileError {
    pub(crate) fn new(parameter: &'static str, problem: impl Into<String>) -> FileError {
        FileError { parameter, problem: problem.into() }
    }

    /// Reads the file `parameter` names.
    pub(crate) fn read(parameter: &'static str, path: &str) -> Result<Vec<u8>, FileError> {
        std::fs::read(path).map_err(|error| FileError::new(parameter, format!("{path} cannot be read: {error}")))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of the database url cannot be used: {}", self.parameter, self.problem)
    }
}

impl Error for FileError {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A self-signed certificate until 2126, and its key. Nothing trusts it.
    pub(crate) const CERTIFICATE: &str = include_str!("tls/example.crt");
    pub(crate) const KEY: &str = include_str!("tls/example.key");

    #[test]
    fn what_cannot_be_an_identity_is_told_by_halves_without_repeating_it() {
        let ok = identity(CERTIFICATE.as_bytes(), KEY.as_bytes());
        assert!(ok.is_ok(), "{ok:?}");
        let certificate = |problem: &str| Some(Unusable::Certificate(problem.to_owned()));
        let key = |problem: &str| Some(Unusable::Key(problem.to_owned()));
        let encrypted = KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
        let other = "-----BEGIN PRIVATE KEY-----\n\
                     MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                     -----END PRIVATE KEY-----\n";
        for (chain, private, expected) in [
            ("", KEY, certificate("no certificate in it (`-----BEGIN CERTIFICATE-----`)")),
            (KEY, KEY, certificate("no certificate in it (`-----BEGIN CERTIFICATE-----`)")),
            (CERTIFICATE, "hunter2", key("no private key in it (`-----BEGIN PRIVATE KEY-----`)")),
            (CERTIFICATE, CERTIFICATE, key("no private key in it (`-----BEGIN PRIVATE KEY-----`)")),
            (CERTIFICATE, other, key("it does not belong to the certificate")),
            (
                CERTIFICATE,
                &encrypted,
                key("it is encrypted; write it without a passphrase, readable for the relay only"),
            ),
        ] {
            assert_eq!(identity(chain.as_bytes(), private.as_bytes()).err(), expected);
        }
        let shown = format!("{:?}", identity(CERTIFICATE.as_bytes(), KEY.as_bytes()).unwrap());
        assert!(shown.contains("elided") && shown.len() < 4000, "{shown}");
    }

    #[test]
    fn authorities_are_read_from_pem_and_from_nothing_else() {
        assert_eq!(authorities(CERTIFICATE.repeat(2).as_bytes()).map(|all| all.len()), Ok(2));
        assert!(authorities(b"hunter2").unwrap_err().starts_with("no certificate in it"));
        let broken = CERTIFICATE.replace("MII", "MIJ");
        assert!(authorities(broken.as_bytes()).unwrap_err().starts_with("a certificate in it cannot be read"));
    }
}
