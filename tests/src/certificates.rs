//! Certificates for tests: authorities, servers and clients, good ones and bad ones.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    date_time_ymd,
};

/// An RSA key, because nothing here can make one.
const RSA: &str = include_str!("../keys/rsa.key");

/// An authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub pem: String,
    /// Its private key.
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// Until 2020-02-01.
    Past,
    /// From 2099-01-01.
    Future,
}

impl Authority {
    /// An authority of this name.
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, name);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a server of these names.
    pub fn server(&self, names: &[&str], validity: Validity) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, "server", validity).signed_by(&key, &self.issuer).unwrap();
        Certificate { pem: certificate.pem(), key: key.serialize_pem() }
    }

    /// A certificate for a client that is called so.
    pub fn client(&self, name: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params(&[], name, Validity::Now).signed_by(&key, &self.issuer).unwrap();
        Certificate { pem: certificate.pem(), key: key.serialize_pem() }
    }

    /// The same with an RSA key.
    pub fn client_with_rsa(&self, name: &str) -> Certificate {
        let key = KeyPair::from_pem_and_sign_algo(RSA, &PKCS_RSA_SHA256).unwrap();
        let certificate = params(&[], name, Validity::Now).signed_by(&key, &self.issuer).unwrap();
        Certificate { pem: certificate.pem(), key: RSA.to_owned() }
    }
}

impl Certificate {
    /// A server's certificate that only the server itself vouches for.
    pub fn self_signed(names: &[&str]) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, "self-signed", Validity::Now).self_signed(&key).unwrap();
        Certificate { pem: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes both into a folder and returns where they are.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.pem).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (certificate, key)
    }
}

fn params(names: &[&str], common_name: &str, validity: Validity) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let (from, until) = match validity {
        Validity::Now => ((2020, 1, 1), (2099, 1, 1)),
        Validity::Past => ((2020, 1, 1), (2020, 2, 1)),
        Validity::Future => ((2099, 1, 1), (2099, 2, 1)),
    };
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(until.0, until.1, until.2);
    params
}
