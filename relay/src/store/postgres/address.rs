//! Where a PostgreSQL server is, and how it is spoken to: the url, with the parameters about TLS as libpq knows them.
//!
//! Every connection to PostgreSQL is made here: the store's, those of handlers, those of commands.
//!
//! Invariants
//! - `verify-full` proves that the server is the one the url names, `verify-ca` that the authority in `sslrootcert` vouches
//!   for it. `require` encrypts and proves nothing, `prefer` does so where the server can.
//! - An authority or a client certificate is never named in vain: with a mode that would not use it, it is refused. So is a
//!   parameter that is given twice with two values.
//! - Files are read for each connection, so that a certificate that was renewed serves the next one.
//!
//! Different from libpq: a handshake that fails is never followed by a connection in plain text; `allow` is taken as
//! `prefer`; `verify-full` without `sslrootcert` asks the authorities this machine trusts; no file is looked for in the
//! home folder; names in a certificate's common name do not count. As in libpq, a socket file is never encrypted.

use std::error::Error;

use rustls::ClientConfig;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::cause::chain;
use crate::config::database_url::{self, Problem};
use crate::tls::refusal::{About, refusal};
use crate::tls::{self, FileError, Identity, Proof, Roots};

/// What the driver gives beside a client.
pub(crate) type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

type Cause = Box<dyn Error + Send + Sync>;

/// A server, and how it is spoken to.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// Everything but TLS.
    pub(crate) config: Config,
    proof: Asked,
    identity: Option<(String, String)>,
}

/// What the server has to prove, before the files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Issuer { file: String },
    Name { file: Option<String> },
}

/// The parameters the driver does not know, or not all values of.
const PARAMETERS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

/// Those about TLS that the driver reads, and of which it takes the last.
const OF_THE_DRIVER: [&str; 2] = ["sslnegotiation", "channel_binding"];

impl Address {
    /// Reads the url and the files it names. Connects to nothing.
    pub(crate) fn parse(url: &str) -> Result<Address, Problem> {
        let about_tls =
            |name: &str| (PARAMETERS.contains(&name) || OF_THE_DRIVER.contains(&name)).then(|| name.to_owned());
        database_url::refuse_contradicted(url, about_tls)?;
        let (url, mut ours) = database_url::take_parameters(url, &PARAMETERS);
        let mut config: Config = url.parse().map_err(|error| {
            let problem = format!("the database address cannot be understood: {}", chain(&error));
            (problem, "it has the form `postgres://user:password@host:5432/database`".to_owned())
        })?;
        let is_plain = ours.get("sslmode").is_some_and(|mode| mode == "disable");
        if let Some(file) =
            ["sslrootcert", "sslcert", "sslkey"].into_iter().find(|file| ours.contains_key(*file)).filter(|_| is_plain)
        {
            let problem = format!("`{file}` in the database url is of no use with `sslmode=disable`");
            return Err((problem, format!("leave it out, or {FULL}")));
        }
        let (mode, proof) = mode(ours.remove("sslmode").as_deref(), ours.remove("sslrootcert"))?;
        let identity = database_url::take_identity(&mut ours, ["sslcert", "sslkey"])?;
        if config.get_ssl_negotiation() == SslNegotiation::Direct && mode != SslMode::Require {
            let problem = "`sslnegotiation=direct` in the database url needs a connection that is always encrypted";
            return Err((problem.to_owned(), "add `sslmode=verify-full`".to_owned()));
        }
        config.ssl_mode(if is_local(&config) { SslMode::Disable } else { mode });
        let address = Address { config, proof, identity };
        if address.config.get_ssl_mode() != SslMode::Disable {
            address.tls().map_err(|error| (error.to_string(), unreadable(&*error)))?;
        }
        Ok(address)
    }

    /// Opens a connection. The driver has to be spawned.
    pub(crate) async fn connect(&self) -> Result<(Client, Driver), Cause> {
        Ok(self.config.connect(self.connector()?).await?)
    }

    /// What encrypts: for a connection, and for the one that asks the server to stop what another is doing.
    pub(crate) fn connector(&self) -> Result<MakeRustlsConnect, Cause> {
        match self.config.get_ssl_mode() {
            // Never used, so that nothing has to be read for it.
            SslMode::Disable => Ok(MakeRustlsConnect::new(tls::client(Proof::Nothing, None)?)),
            _ => Ok(MakeRustlsConnect::new(self.tls()?)),
        }
    }

    fn tls(&self) -> Result<ClientConfig, Cause> {
        let roots = |file: &str| {
            let pem = FileError::read("sslrootcert", file)?;
            tls::authorities(&pem).map_err(|problem| FileError::new("sslrootcert", format!("{file} has {problem}")))
        };
        let proof = match &self.proof {
            Asked::Nothing => Proof::Nothing,
            Asked::Issuer { file } => Proof::Issuer(roots(file)?),
            Asked::Name { file: Some(file) } => Proof::Name(Roots::Given(roots(file)?)),
            Asked::Name { file: None } => Proof::Name(Roots::System),
        };
        let mut config = tls::client(proof, self.identity()?)?;
        // What speaks TLS before the server, or a server that is spoken to without a question, can tell what for.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(config)
    }

    fn identity(&self) -> Result<Option<Identity>, FileError> {
        let Some((certificate, key)) = &self.identity else { return Ok(None) };
        let chain = FileError::read("sslcert", certificate)?;
        let private = FileError::read("sslkey", key)?;
        let identity = tls::identity(&chain, &private).map_err(|unusable| match unusable {
            tls::Unusable::Certificate(problem) => FileError::new("sslcert", format!("{certificate}: {problem}")),
            tls::Unusable::Key(problem) => FileError::new("sslkey", format!("{key}: {problem}")),
        })?;
        Ok(Some(identity))
    }
}

/// What to do about files that cannot be used.
fn unreadable(error: &(dyn Error + Send + Sync + 'static)) -> String {
    match error.is::<FileError>() {
        true => "name a PEM file that the relay may read".to_owned(),
        false => "install the system's root certificates (package `ca-certificates`), or name an authority as \
                  `sslrootcert=FILE`"
            .to_owned(),
    }
}

/// What is asked of the server, by `sslmode` and `sslrootcert`.
fn mode(mode: Option<&str>, roots: Option<String>) -> Result<(SslMode, Asked), Problem> {
    let is_system = roots.as_deref() == Some("system");
    match (mode, roots) {
        // As in libpq: anybody gets a certificate for some name from some authority.
        (None | Some("verify-full"), Some(_)) if is_system => Ok((SslMode::Require, Asked::Name { file: None })),
        (Some(weaker), Some(_)) if is_system && MODES.contains(&weaker) => Err((
            format!("`sslrootcert=system` in the database url proves nothing with `sslmode={weaker}`"),
            FULL.into(),
        )),
        (Some("verify-full"), file) => Ok((SslMode::Require, Asked::Name { file })),
        // libpq reads `require` with an authority like this, too.
        (Some("verify-ca" | "require"), Some(file)) => Ok((SslMode::Require, Asked::Issuer { file })),
        (Some("verify-ca"), None) => {
            let problem = "`sslmode=verify-ca` in the database url needs `sslrootcert`, the file of the authority";
            Err((problem.to_owned(), format!("name it, or {FULL}")))
        }
        (Some("require"), None) => Ok((SslMode::Require, Asked::Nothing)),
        (Some("disable"), _) => Ok((SslMode::Disable, Asked::Nothing)),
        (None | Some("prefer" | "allow"), Some(_)) => Err((
            "`sslrootcert` in the database url is not looked at without a stricter `sslmode`".to_owned(),
            FULL.into(),
        )),
        (None | Some("prefer" | "allow"), None) => Ok((SslMode::Prefer, Asked::Nothing)),
        (Some(_), _) => {
            let problem = "the database url has an `sslmode` that is not known".to_owned();
            Err((problem, format!("it is one of {}", MODES.map(|mode| format!("`{mode}`")).join(", "))))
        }
    }
}

const FULL: &str = "write `sslmode=verify-full`, which checks the server's certificate and its name";

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// True when the url leads to nothing but socket files.
fn is_local(config: &Config) -> bool {
    let is_file = |host: &Host| !matches!(host, Host::Tcp(_));
    !config.get_hosts().is_empty() && config.get_hosts().iter().all(is_file)
}

/// When a server was there and did not let us in, or was not let in by us: what was said, and what to do. Trying again
/// would not help.
pub(crate) fn turned_away(target: &str, error: &(dyn Error + 'static)) -> Option<Problem> {
    if let Some(refused) = refusal(error) {
        let help = match refused.about {
            About::Issuer => "name the file of the authority that issued it as `sslrootcert`, if it may be trusted",
            About::Name => "write the host as the certificate names it, or give the server one for this name",
            About::Time => "renew the server's certificate; or set this machine's clock",
            About::Certificate => "give the server another certificate",
            About::Protocol => "let the server speak TLS 1.2 or 1.3 (`ssl_min_protocol_version`)",
            About::Ours => OUR_CERTIFICATE,
        };
        return Some((format!("TLS with `{target}`: {}", refused.said), help.to_owned()));
    }
    let driver = error.downcast_ref::<tokio_postgres::Error>()?;
    if driver.source().is_some_and(|cause| cause.to_string() == "server does not support TLS") {
        let help = "switch `ssl` on at the server; `sslmode=disable` in the database url goes without";
        return Some((format!("the server at `{target}` does not encrypt, and `sslmode` demands it"), help.to_owned()));
    }
    let answer = driver.as_db_error()?;
    let code = answer.code();
    let help = if *code == SqlState::INVALID_CATALOG_NAME {
        "create the database, or correct its name in the database url"
    } else if [SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_PASSWORD].contains(code) {
        // The server's words follow its language; this one stays.
        match answer.message().contains("certificate") {
            true => OUR_CERTIFICATE,
            false => "check role and password in the database url, and `pg_hba.conf` on the server",
        }
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        "grant the role CONNECT on the database"
    } else {
        return None;
    };
    Some((format!("the server refuses `{target}`: {}", answer.message()), help.to_owned()))
}

const OUR_CERTIFICATE: &str =
    "name a client certificate and its key that the server accepts: `sslcert=FILE&sslkey=FILE` in the database url";

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(parameters: &str) -> Result<(SslMode, Asked), String> {
        let address = Address::parse(&format!("postgres://u:p@db.internal/shop?{parameters}"));
        address.map(|address| (address.config.get_ssl_mode(), address.proof)).map_err(|(problem, help)| {
            assert!(!help.is_empty() && !problem.contains("u:p"), "{problem}");
            problem
        })
    }

    #[test]
    fn a_mode_asks_for_what_libpq_says_and_never_for_less() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.crt");
        std::fs::write(&path, tls::tests::CERTIFICATE).unwrap();
        let file = path.display().to_string();
        let escaped = file.replace(' ', "%20");
        let issuer = || Asked::Issuer { file: file.clone() };
        for (parameters, expected) in [
            ("", (SslMode::Prefer, Asked::Nothing)),
            ("application_name=x", (SslMode::Prefer, Asked::Nothing)),
            ("sslmode=disable", (SslMode::Disable, Asked::Nothing)),
            ("sslmode=require&sslmode=require", (SslMode::Require, Asked::Nothing)),
            ("sslmode=allow", (SslMode::Prefer, Asked::Nothing)),
            ("sslmode=prefer", (SslMode::Prefer, Asked::Nothing)),
            ("sslmode=require", (SslMode::Require, Asked::Nothing)),
            (&format!("sslmode=require&sslrootcert={escaped}"), (SslMode::Require, issuer())),
            (&format!("sslrootcert={escaped}&sslmode=verify-ca"), (SslMode::Require, issuer())),
            (
                &format!("application_name=b&sslmode=verify-full&sslrootcert={escaped}"),
                (SslMode::Require, Asked::Name { file: Some(file.clone()) }),
            ),
            ("channel_binding=require&sslmode=require", (SslMode::Require, Asked::Nothing)),
            ("sslnegotiation=direct&sslmode=require", (SslMode::Require, Asked::Nothing)),
            ("host=/var/run/postgresql&sslmode=require", (SslMode::Require, Asked::Nothing)),
        ] {
            assert_eq!(asked(parameters), Ok(expected), "{parameters}");
        }
        let local = Address::parse("postgres:///shop?host=/var/run/postgresql&sslmode=verify-full&sslrootcert=none");
        assert_eq!(local.unwrap().config.get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn what_would_check_less_than_it_seems_to_is_refused() {
        for (parameters, told) in [
            ("sslmode=Require", "the database url has an `sslmode` that is not known"),
            ("sslmode=", "the database url has an `sslmode` that is not known"),
            (
                "sslmode=verify-ca",
                "`sslmode=verify-ca` in the database url needs `sslrootcert`, the file of the authority",
            ),
            ("sslrootcert=x", "`sslrootcert` in the database url is not looked at without a stricter `sslmode`"),
            (
                "sslmode=prefer&sslrootcert=x",
                "`sslrootcert` in the database url is not looked at without a stricter `sslmode`",
            ),
            (
                "sslmode=require&sslrootcert=system",
                "`sslrootcert=system` in the database url proves nothing with `sslmode=require`",
            ),
            ("sslmode=disable&sslrootcert=x", "`sslrootcert` in the database url is of no use with `sslmode=disable`"),
            (
                "sslmode=disable&sslrootcert=system",
                "`sslrootcert` in the database url is of no use with `sslmode=disable`",
            ),
            ("sslcert=x&sslmode=disable&sslkey=y", "`sslcert` in the database url is of no use with `sslmode=disable`"),
            ("sslkey=y&sslmode=disable", "`sslkey` in the database url is of no use with `sslmode=disable`"),
            ("sslmode=verify-full&sslmode=disable", "the database url has `sslmode` twice, with different values"),
            (
                "sslrootcert=x&sslmode=verify-full&ssl%72ootcert=y",
                "the database url has `sslrootcert` twice, with different values",
            ),
            (
                "channel_binding=require&channel_binding=disable",
                "the database url has `channel_binding` twice, with different values",
            ),
            ("sslcert=x", "the database url names only one of `sslcert` and `sslkey`"),
            ("sslkey=x&sslmode=require", "the database url names only one of `sslcert` and `sslkey`"),
            (
                "sslnegotiation=direct",
                "`sslnegotiation=direct` in the database url needs a connection that is always encrypted",
            ),
            (
                "sslmode=verify-full&sslrootcert=/none.crt",
                "`sslrootcert` of the database url cannot be used: /none.crt cannot be read: No such file or directory (os error 2)",
            ),
            (
                "sslmode=require&sslcert=/none.crt&sslkey=/none.key",
                "`sslcert` of the database url cannot be used: /none.crt cannot be read: No such file or directory (os error 2)",
            ),
        ] {
            assert_eq!(asked(parameters), Err(told.to_owned()), "{parameters}");
        }
        assert!(asked("ssl-mode=REQUIRED").unwrap_err().contains("ssl-mode"));
        assert!(asked("sslcrl=x").unwrap_err().contains("sslcrl"));
    }

    #[test]
    fn files_that_hold_something_else_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate, key) = (write("c", tls::tests::CERTIFICATE), write("k", tls::tests::KEY));
        assert!(asked(&format!("sslmode=require&sslcert={certificate}&sslkey={key}")).is_ok());
        let told = asked(&format!("sslmode=require&sslcert={key}&sslkey={certificate}")).unwrap_err();
        assert!(told.contains("`sslcert`") && told.contains("no certificate in it"), "{told}");
        let told = asked(&format!("sslmode=verify-full&sslrootcert={key}")).unwrap_err();
        assert!(told.contains("`sslrootcert`") && told.contains("no certificate in it"), "{told}");
    }
}
