//! Where a MySQL or MariaDB server is, and how it is spoken to: the url, with the parameters about TLS as the clients of
//! these servers know them.
//!
//! Every connection to MySQL and MariaDB is made here: the store's, those of handlers, those of commands.
//!
//! Invariants
//! - `VERIFY_IDENTITY` proves that the server is the one the url names. `REQUIRED` encrypts and proves nothing, `PREFERRED`
//!   does so where the server can. Without `ssl-mode` nothing is encrypted.
//! - An authority or a client certificate is never named in vain: with a mode that would not use it, it is refused. So are
//!   the driver's own words about TLS, and a parameter that is given twice with two values.
//! - Files are read for each connection, so that a certificate that was renewed serves the next one.
//!
//! Known limits, all of the driver: it cannot look at the issuer without the name (`VERIFY_CA`), which is refused; client
//! keys are RSA keys; and it takes the cryptography of the process, which is ring's unless the program has chosen another.

use std::error::Error;
use std::fmt;

use mysql_async::{ClientIdentity, Conn, DriverError, Opts, OptsBuilder, SslOpts, UrlError};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::database_url::{self, Problem};
use crate::tls::refusal::{About, refusal};
use crate::tls::{self, FileError};

/// A server, and how it is spoken to.
#[derive(Clone)]
pub(crate) struct Address {
    opts: Opts,
    mode: Mode,
    authority: Option<String>,
    identity: Option<(String, String)>,
}

/// How much TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disabled,
    Preferred,
    Required,
    VerifyIdentity,
}

const PARAMETERS: [&str; 4] = ["ssl-mode", "ssl-ca", "ssl-cert", "ssl-key"];

/// What the driver calls them. It hears the last three only together with the first, and is silent otherwise.
const OF_THE_DRIVER: [&str; 4] = ["require_ssl", "verify_ca", "verify_identity", "built_in_roots"];

const INSTEAD: &str = "write `ssl-mode=VERIFY_IDENTITY`, and `ssl-ca=FILE` for an authority; `ssl-mode=REQUIRED` encrypts \
                       and checks nothing";

/// Nobody guesses what a driver calls them.
const FORM: &str = "write it as mysql://user:password@host:3306/database";

impl Address {
    /// Reads the url and the files it names. Connects to nothing.
    pub(crate) fn parse(url: &str) -> Result<Address, Problem> {
        database_url::refuse_contradicted(url, known)?;
        let (url, mut ours) = database_url::take_parameters_by(url, known);
        let (url, foreign) = database_url::take_parameters(&url, &OF_THE_DRIVER);
        if let Some(name) = foreign.into_keys().next() {
            let problem = format!("`{name}` in the database url is the driver's word, not ours");
            return Err((problem, INSTEAD.to_owned()));
        }
        // The driver knows its database by one name only.
        let url = match url.strip_prefix("mariadb://") {
            Some(rest) => format!("mysql://{rest}"),
            None => url,
        };
        let opts = Opts::from_url(&url).map_err(|error| {
            // The driver's own text may quote the URL, and with it the password.
            let problem = match error {
                UrlError::UnknownParameter { param } => {
                    format!("the database URL has a parameter `{param}` which is not known")
                }
                UrlError::FeatureRequired { feature, param } => {
                    format!("the database URL has a parameter `{param}` which needs `{feature}`, not built in")
                }
                _ => "the database URL cannot be read".to_owned(),
            };
            (problem, FORM.to_owned())
        })?;
        let authority = ours.remove("ssl-ca");
        let identity = database_url::take_identity(&mut ours, ["ssl-cert", "ssl-key"])?;
        let mode = mode(ours.remove("ssl-mode").as_deref(), authority.is_some(), identity.is_some())?;
        // A socket file is this machine's own. Otherwise the driver leaves the address it was given for a socket file
        // when that address is local.
        let mode = if opts.socket().is_some() { Mode::Disabled } else { mode };
        let opts = OptsBuilder::from_opts(opts).prefer_socket(false).tcp_keepalive(Some(10_000_u32)).into();
        let address = Address { opts, mode, authority, identity };
        if mode != Mode::Disabled {
            address.tls().map_err(|error| (error.to_string(), "name a PEM file that the relay may read".to_owned()))?;
        }
        Ok(address)
    }

    /// The address as the driver knows it.
    pub(crate) fn opts(&self) -> &Opts {
        &self.opts
    }

    /// The same for a connection of diesel's, which counts the rows a statement has found, as PostgreSQL does.
    pub(crate) fn for_diesel(mut self) -> Address {
        self.opts = OptsBuilder::from_opts(self.opts).client_found_rows(true).stmt_cache_size(0).into();
        self
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Conn, mysql_async::Error> {
        if self.mode == Mode::Disabled {
            return Conn::new(self.opts.clone()).await;
        }
        let tls = self.tls().map_err(|error| mysql_async::Error::Other(Box::new(error)))?;
        if CryptoProvider::get_default().is_none() {
            // The driver asks for the process's, and ends the process where two are linked and none was chosen.
            let _ = tls::provider().as_ref().clone().install_default();
        }
        let encrypted = OptsBuilder::from_opts(self.opts.clone()).ssl_opts(tls);
        match Conn::new(encrypted).await {
            Err(mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer)) if self.mode == Mode::Preferred => {
                Conn::new(self.opts.clone()).await
            }
            connected => connected,
        }
    }

    fn tls(&self) -> Result<SslOpts, FileError> {
        let mut tls = SslOpts::default();
        if self.mode == Mode::VerifyIdentity {
            let roots = match &self.authority {
                Some(file) => {
                    let pem = FileError::read("ssl-ca", file)?;
                    tls::authorities(&pem)
                        .map_err(|problem| FileError::new("ssl-ca", format!("{file} has {problem}")))?
                }
                None => system()?,
            };
            let roots = roots.into_iter().map(|root| root.as_ref().to_vec().into()).collect();
            tls = tls.with_root_certs(roots).with_disable_built_in_roots(true);
        } else {
            tls = tls.with_danger_accept_invalid_certs(true);
        }
        Ok(tls.with_client_identity(self.identity()?))
    }

    fn identity(&self) -> Result<Option<ClientIdentity>, FileError> {
        let Some((certificate, key)) = &self.identity else { return Ok(None) };
        let chain = FileError::read("ssl-cert", certificate)?;
        let private = FileError::read("ssl-key", key)?;
        let identity = tls::identity(&chain, &private).map_err(|unusable| match unusable {
            tls::Unusable::Certificate(problem) => FileError::new("ssl-cert", format!("{certificate}: {problem}")),
            tls::Unusable::Key(problem) => FileError::new("ssl-key", format!("{key}: {problem}")),
        })?;
        let rsa = rsa(&identity.key).ok_or_else(|| {
            FileError::new("ssl-key", format!("{key}: the driver for this database takes RSA keys only"))
        })?;
        Ok(Some(ClientIdentity::new(chain.into(), rsa.into())))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's options hold the password.
        f.debug_struct("Address").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// A parameter under the name the servers' own clients have for it; other worlds write `sslMode` or `ssl_mode`.
fn known(name: &str) -> Option<String> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "");
    PARAMETERS.into_iter().find(|known| plain(known) == plain(name)).map(str::to_owned)
}

fn mode(mode: Option<&str>, has_authority: bool, has_identity: bool) -> Result<Mode, Problem> {
    let verify = "write `ssl-mode=VERIFY_IDENTITY`, which checks the server's certificate and its name";
    let plain = mode.map(|mode| mode.to_ascii_uppercase().replace('-', "_"));
    let mode = match plain.as_deref() {
        None | Some("DISABLED") => Mode::Disabled,
        Some("PREFERRED") => Mode::Preferred,
        Some("REQUIRED") => Mode::Required,
        Some("VERIFY_IDENTITY") => Mode::VerifyIdentity,
        Some("VERIFY_CA") => {
            let problem = "`ssl-mode=VERIFY_CA` cannot be had: the driver checks the issuer together with the name";
            return Err((problem.to_owned(), verify.to_owned()));
        }
        Some(_) => {
            let problem = "the database url has an `ssl-mode` that is not known".to_owned();
            let help = "it is one of `DISABLED`, `PREFERRED`, `REQUIRED`, `VERIFY_IDENTITY`";
            return Err((problem, help.to_owned()));
        }
    };
    if has_authority && mode != Mode::VerifyIdentity {
        let problem = "`ssl-ca` in the database url is not looked at without a stricter `ssl-mode`";
        return Err((problem.to_owned(), verify.to_owned()));
    }
    if has_identity && mode == Mode::Disabled {
        let problem = "`ssl-cert` in the database url is not shown to anybody without an `ssl-mode`";
        return Err((problem.to_owned(), verify.to_owned()));
    }
    Ok(mode)
}

/// The authorities this machine trusts; the driver has a list of its own, which nobody here maintains.
fn system() -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found = rustls_native_certs::load_native_certs().certs;
    // Some systems carry one that cannot be read; the driver would refuse them all.
    let mut store = RootCertStore::empty();
    let readable: Vec<_> = found.into_iter().filter(|root| store.add(root.clone()).is_ok()).collect();
    match readable.is_empty() {
        true => {
            Err(FileError::new("ssl-ca", "it is missing, and the system has no root certificates (`ca-certificates`)"))
        }
        false => Ok(readable),
    }
}

/// The key as the driver takes it, PKCS #1; `None` when it is no RSA key.
fn rsa(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
    /// Of PKCS #8: version 0, the algorithm rsaEncryption, and the beginning of the key in two bytes of length.
    const RSA: [u8; 20] = [
        0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
        0x04, 0x82,
    ];
    match key {
        PrivateKeyDer::Pkcs1(der) => Some(der.secret_pkcs1_der().to_vec()),
        // No RSA key that anybody takes is so short that its lengths need fewer than two bytes.
        PrivateKeyDer::Pkcs8(der) => match der.secret_pkcs8_der() {
            [0x30, 0x82, _, _, rest @ ..] => match rest.strip_prefix(&RSA)? {
                [high, low, rest @ ..] => {
                    rest.get(..usize::from(u16::from_be_bytes([*high, *low]))).map(<[u8]>::to_vec)
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// When a server was there and did not let us in, or was not let in by us: what was said, and what to do. Trying again
/// would not help.
pub(crate) fn turned_away(target: &str, error: &(dyn Error + 'static)) -> Option<Problem> {
    if let Some(refused) = refusal(error) {
        let (said, help) = match refused.about {
            // The driver does not show us the certificate, so that we could tell the two apart.
            About::Issuer => (
                "the server's certificate is self-signed, or was issued by an authority that is not trusted".to_owned(),
                "name the file of the authority that issued it as `ssl-ca`, if it may be trusted",
            ),
            About::Name => {
                (refused.said, "write the host as the certificate names it, or give the server one for this name")
            }
            About::Time => (refused.said, "renew the server's certificate; or set this machine's clock"),
            About::Certificate => (refused.said, "give the server another certificate"),
            About::Protocol => (refused.said, "let the server speak TLS 1.2 or 1.3 (`tls_version`)"),
            About::Ours => (refused.said, OUR_CERTIFICATE),
        };
        return Some((format!("TLS with `{target}`: {said}"), help.to_owned()));
    }
    let answer = match error.downcast_ref::<mysql_async::Error>()? {
        mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            let help = "give the server a certificate (`ssl_cert`, `ssl_key`); `ssl-mode=DISABLED` in the database url \
                        goes without";
            let problem = format!("the server at `{target}` does not encrypt, and `ssl-mode` demands it");
            return Some((problem, help.to_owned()));
        }
        mysql_async::Error::Server(answer) => answer,
        _ => return None,
    };
    let help = match answer.code {
        DATABASE_UNKNOWN => "create the database, or correct its name in the database url",
        ACCESS_DENIED => {
            "check user and password in the database url; a user may also be bound to TLS (`ssl-mode`) or to a client \
             certificate (`ssl-cert`, `ssl-key`)"
        }
        DATABASE_DENIED => "grant the user rights on the database, or correct its name in the database url",
        TLS_DEMANDED => "add `ssl-mode=VERIFY_IDENTITY` to the database url, and `ssl-ca=FILE` for an authority",
        _ => return None,
    };
    Some((format!("the server refuses `{target}`: {}", answer.message), help.to_owned()))
}

const OUR_CERTIFICATE: &str =
    "name a client certificate and its key that the server accepts: `ssl-cert=FILE&ssl-key=FILE` in the database url";

const DATABASE_DENIED: u16 = 1044;
const ACCESS_DENIED: u16 = 1045;
const DATABASE_UNKNOWN: u16 = 1049;
const TLS_DEMANDED: u16 = 3159;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(parameters: &str) -> Result<Mode, String> {
        let address = Address::parse(&format!("mysql://u:s3cret@db.internal/shop?{parameters}"));
        let shown = format!("{address:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        address.map(|address| address.mode).map_err(|(problem, help)| {
            assert!(!help.is_empty());
            problem
        })
    }

    #[test]
    fn a_mode_is_understood_however_its_world_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, tls::tests::CERTIFICATE).unwrap();
        for (parameters, expected) in [
            ("", Mode::Disabled),
            ("ssl-mode=DISABLED", Mode::Disabled),
            ("ssl-mode=PREFERRED", Mode::Preferred),
            ("ssl-mode=REQUIRED", Mode::Required),
            ("ssl_mode=required&prefer_socket=true", Mode::Required),
            ("ssl-mode=VERIFY_IDENTITY", Mode::VerifyIdentity),
            (&format!("sslMode=verify-identity&ssl-ca={}", file.display()), Mode::VerifyIdentity),
            ("ssl-mode=REQUIRED&socket=/run/mysqld/mysqld.sock", Mode::Disabled),
            ("ssl-mode=REQUIRED&ssl_mode=REQUIRED", Mode::Required),
        ] {
            assert_eq!(asked(parameters), Ok(expected), "{parameters}");
        }
        assert!(Address::parse("mariadb://u@h/x").is_ok());
    }

    #[test]
    fn what_would_check_less_than_it_seems_to_is_refused() {
        for (parameters, told) in [
            ("ssl-mode=on", "the database url has an `ssl-mode` that is not known"),
            ("ssl-mode=", "the database url has an `ssl-mode` that is not known"),
            (
                "ssl-mode=VERIFY_CA&ssl-ca=x",
                "`ssl-mode=VERIFY_CA` cannot be had: the driver checks the issuer together with the name",
            ),
            ("ssl-ca=x", "`ssl-ca` in the database url is not looked at without a stricter `ssl-mode`"),
            (
                "ssl-mode=REQUIRED&ssl-ca=x",
                "`ssl-ca` in the database url is not looked at without a stricter `ssl-mode`",
            ),
            ("ssl-cert=x", "the database url names only one of `ssl-cert` and `ssl-key`"),
            ("ssl-cert=x&ssl-key=y", "`ssl-cert` in the database url is not shown to anybody without an `ssl-mode`"),
            ("ssl-mode=REQUIRED&ssl_mode=DISABLED", "the database url has `ssl-mode` twice, with different values"),
            ("sslCa=x&ssl-mode=VERIFY_IDENTITY&ssl-ca=y", "the database url has `ssl-ca` twice, with different values"),
            (
                "ssl-mode=VERIFY_IDENTITY&ssl-ca=/none.crt",
                "`ssl-ca` of the database url cannot be used: /none.crt cannot be read: No such file or directory (os error 2)",
            ),
            ("ssl-crl=x", "the database URL has a parameter `ssl-crl` which is not known"),
        ] {
            assert_eq!(asked(parameters), Err(told.to_owned()), "{parameters}");
        }
    }

    #[test]
    fn the_words_of_the_driver_are_refused_whatever_they_say() {
        for word in OF_THE_DRIVER {
            // The driver knows it, and so would have taken it.
            assert!(Opts::from_url(&format!("mysql://h/x?{word}=true")).is_ok(), "{word}");
            for said in ["=true", "=false", "=", "", "=true&ssl-mode=REQUIRED", "=true&require_ssl=true"] {
                for word in [word.to_owned(), word.replace('_', "%5F")] {
                    let url = format!("mysql://u:p@db.internal/shop?{word}{said}");
                    let (problem, help) = Address::parse(&url).unwrap_err();
                    assert!(problem.ends_with("` in the database url is the driver's word, not ours"), "{problem}");
                    assert!(help.contains("`ssl-mode=VERIFY_IDENTITY`"), "{help}");
                }
            }
            let told = format!("`{word}` in the database url is the driver's word, not ours");
            assert_eq!(asked(&format!("{word}=false")), Err(told));
        }
    }

    #[test]
    fn a_client_key_is_an_rsa_key_in_either_form() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate, key) = (write("c", tls::tests::CERTIFICATE), write("k", tls::tests::KEY));
        let told = asked(&format!("ssl-mode=REQUIRED&ssl-cert={certificate}&ssl-key={key}")).unwrap_err();
        assert!(told.ends_with(": the driver for this database takes RSA keys only"), "{told}");

        let pkcs1: Vec<u8> = (0..=255).cycle().take(1190).collect();
        let mut pkcs8 = vec![0x30, 0x82, 0x04, 0xbc, 0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09];
        pkcs8.extend([0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00, 0x04, 0x82, 0x04, 0xa6]);
        pkcs8.extend(&pkcs1);
        assert_eq!(rsa(&PrivateKeyDer::Pkcs8(pkcs8.clone().into())), Some(pkcs1.clone()));
        assert_eq!(rsa(&PrivateKeyDer::Pkcs1(pkcs1.clone().into())), Some(pkcs1));
        pkcs8.truncate(200);
        assert_eq!(rsa(&PrivateKeyDer::Pkcs8(pkcs8.into())), None);
    }
}
