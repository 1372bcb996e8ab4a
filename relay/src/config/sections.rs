//! Which sections and keys there are, and what each accepts.
//!
//! One function for each section. A function asks for every key it knows and then finishes the section, which makes
//! the keys nobody asked for unknown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use outbox::limits::HeaderOwner;
use outbox::signature;
use serde_json::json;

use super::accepts::{self, Accepts, bytes_in, duration_in, number_in, numbers, one_of, text, texts, yes_or_no};
use super::read::{Origin, Section};
use super::{
    Config, Database, Defaults, Destination, Health, Migrate, Mode, RelayOptions, Scheme, Secret, Signing, Sources,
    Tls, database_url,
};
use crate::duration;
use crate::rate::RateLimit;
use crate::retry::RetryPolicy;
use crate::route::Pattern;
use crate::sink::AfterDeadLetter;
use crate::sink::Ordering;
use crate::sink::http::{Class, Network, Status, is_source};
use crate::tls::Unusable;

/// What is wrong with the configuration of a relay without destinations.
pub(super) const NOWHERE: &str = "no destination is configured";

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Reads the whole file into `config`, which holds the defaults.
pub(super) fn read(config: &mut Config, root: Section<'_, '_>, sources: &Sources) {
    database(&mut config.database, root.section("database"), sources);
    if let Some(host) = &sources.host {
        config.relay.name.clone_from(host);
    }
    relay(&mut config.relay, root.section("relay"));
    health(&mut config.health, root.section("health"));
    defaults(&mut config.defaults, root.section("defaults"));
    let destinations = root.section("destinations");
    if destinations.keys().is_empty() {
        let help = "add a section [destinations.NAME] with `url` and `topics`";
        destinations.problem("", NOWHERE.to_owned(), Some(help));
    }
    for name in destinations.keys() {
        if !is_name(&name) {
            destinations.problem(
                &name,
                format!("`{name}` cannot name a destination"),
                Some("a name is a lower-case letter followed by at most 62 lower-case letters, digits or `_`"),
            );
        }
        let defaults = Destination {
            timeout: config.defaults.timeout,
            mode: config.defaults.mode,
            retry: config.defaults.retry.clone(),
            network: config.defaults.network,
            ..Destination::default()
        };
        let destination = destination(defaults, destinations.section(&name));
        config.destinations.insert(name, destination);
    }
    destinations.finish();
    root.finish();
}

fn database(into: &mut Database, section: Section<'_, '_>, sources: &Sources) {
    section.shape("url", accepts::secret_schema());
    // What a flag overrides need not be there: an operator's shell seldom has the variables of the service.
    let written = match sources.database_url {
        Some(_) => section.scalar("url").and(None),
        None => section.secret("url"),
    };
    if let Some(url) = &sources.database_url {
        into.url = Secret::new(url.clone());
        check_database_url(&section, &into.url);
    } else if let Some((url, origin)) = written {
        check_database_url(&section, &url);
        if origin == Origin::Literal && database_url::has_password(url.expose()) {
            section.problem(
                "url",
                "`url` in [database] contains a password".to_owned(),
                Some(
                    "write `url = { env = \"DATABASE_URL\" }` or `url = { file = \"path\" }`, and keep it out of the file",
                ),
            );
        }
        into.url = url;
    } else if section.has("url") {
        // Its problem was noted; that there is no url is not another one.
    } else if let Some(url) = sources.environment.get("DATABASE_URL").filter(|url| !url.is_empty()) {
        into.url = Secret::new(url.clone());
        check_database_url(&section, &into.url);
    } else {
        section.problem(
            "url",
            "no database is named".to_owned(),
            Some("set DATABASE_URL, `url` in [database], or pass --database-url"),
        );
    }
    let words = [("check", Migrate::Check), ("auto", Migrate::Auto), ("off", Migrate::Off)];
    section.set("migrate", &mut into.migrate, one_of(&words));
    section.set("transaction_age_max", &mut into.transaction_age_max, duration_in(SECOND..=HOUR));
    section.finish();
}

fn check_database_url(section: &Section<'_, '_>, url: &Secret) {
    let url = url.expose();
    // The url itself is not repeated: what is mistaken for a scheme may be half a password.
    match database_url::database(url) {
        None => section.problem(
            "url",
            "the database url names no database this relay knows".to_owned(),
            Some("it begins with `postgres://`, `mysql://` or `sqlite:`"),
        ),
        Some(outbox::Database::Sqlite) if database_url::sqlite_path(url).is_none() => {
            section.problem("url", "the database url names no file".to_owned(), Some("write `sqlite:path/to/file.db`"));
        }
        Some(_) => {
            if let Some((problem, help)) = database_url::unsuitable(url) {
                section.problem("url", problem.to_owned(), Some(help));
            }
        }
    }
}

fn relay(into: &mut RelayOptions, section: Section<'_, '_>) {
    let must = "1 to 64 visible ASCII characters without blanks";
    let name = text(must, "^[!-~]{1,64}$", |name| {
        let fits = !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_graphic());
        fits.then(|| name.to_owned())
    });
    section.set("name", &mut into.name, name);
    section.set("lease", &mut into.lease, duration_in(SECOND..=5 * MINUTE));
    section.set("poll_busy", &mut into.poll_busy, duration_in(Duration::ZERO..=SECOND));
    section.set("poll_idle", &mut into.poll_idle, duration_in(Duration::from_millis(1)..=MINUTE));
    section.set("shutdown_grace", &mut into.shutdown_grace, duration_in(Duration::ZERO..=HOUR));
    section.set("in_hands", &mut into.in_hands, number_in(1..=100_000));
    section.set("in_hands_bytes", &mut into.in_hands_bytes, bytes_in(1 << 20..=64 << 30));
    let source =
        text("a URI reference such as `/shop`", "^[!-~]+$", |source| is_source(source).then(|| source.to_owned()));
    section.set("source", &mut into.source, source);
    if into.poll_idle < into.poll_busy {
        section.problem(
            "poll_idle",
            format!(
                "`poll_idle` in [relay] ({}) is shorter than `poll_busy` ({})",
                duration::format(into.poll_idle),
                duration::format(into.poll_busy)
            ),
            Some("the pause grows from `poll_busy` to `poll_idle`"),
        );
    }
    section.finish();
}

fn health(into: &mut Health, section: Section<'_, '_>) {
    let must = "an address with a port such as `127.0.0.1:9464`, or `off`";
    let listen = text(must, "^off$|^.+:[0-9]+$", |text| match text {
        "off" => Some(None),
        text => text.parse::<SocketAddr>().ok().map(Some),
    });
    section.set("listen", &mut into.listen, listen);
    section.finish();
}

fn defaults(into: &mut Defaults, section: Section<'_, '_>) {
    section.set("timeout", &mut into.timeout, attempt_timeout());
    section.set("mode", &mut into.mode, one_of(&Mode::ALL));
    section.set("network", &mut into.network, network());
    retry(&mut into.retry, &section);
    section.finish();
}

fn destination(mut into: Destination, section: Section<'_, '_>) -> Destination {
    section.set("network", &mut into.network, network());
    section.set("allow_http", &mut into.allow_http, yes_or_no());
    ports(&mut into.ports, &section);
    url(&mut into, &section);
    topics(&mut into.topics, &section);
    section.set("concurrency", &mut into.concurrency, number_in(1..=1024));
    section.set("rate_limit", &mut into.rate_limit, rate_limit());
    section.set("timeout", &mut into.timeout, attempt_timeout());
    section.set("mode", &mut into.mode, one_of(&Mode::ALL));
    section.set("ordering", &mut into.ordering, one_of(&[("key", Ordering::Key), ("none", Ordering::None)]));
    let words = [("continue", AfterDeadLetter::Continue), ("block", AfterDeadLetter::Block)];
    section.set("after_dead_letter", &mut into.after_dead_letter, one_of(&words));
    retry(&mut into.retry, &section);
    tls(&mut into.tls, &section, &into.url);
    signing(&mut into.signing, &section);
    headers(&mut into, section.section("headers"));
    classify(&mut into.classify, section.section("classify"));
    section.finish();
    into
}

fn network() -> Accepts<'static, Network> {
    one_of(&[("any", Network::Any), ("public", Network::Public)])
}

fn ports(into: &mut Vec<u16>, section: &Section<'_, '_>) {
    let accepts = numbers("a list of ports such as `[444]`", 1..=65535);
    match section.value("ports") {
        Some(given) => section.accept("ports", &given, into, accepts),
        None => section.shape("ports", accepts.schema),
    }
}

fn url(into: &mut Destination, section: &Section<'_, '_>) {
    section.shape("url", json!({ "type": "string", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://" }));
    let Some(given) = section.scalar("url") else {
        let message = format!("[{}] needs `url`", section.name());
        section.problem("url", message, Some("it says where to POST: `url = \"https://…\"`"));
        return;
    };
    let parsed = given.text().and_then(|text| url::Url::parse(text).ok());
    // The value is not repeated in messages: a path or a query may be a secret.
    let wrong = match &parsed {
        Some(url) if !matches!(url.scheme(), "http" | "https") => Some("must begin with `https://` or `http://`"),
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            Some("contains credentials; send them as a header, `headers = { authorization = { env = \"NAME\" } }`")
        }
        Some(url) if url.fragment().is_some() => Some("has a fragment (`#…`), which is never sent"),
        Some(_) => None,
        None => Some("must be a whole url such as `https://billing.internal/hooks`"),
    };
    if let Some(wrong) = wrong {
        section.problem("url", format!("`url` in [{}] {wrong}", section.name()), None);
    } else if let Some(refusal) = parsed.and_then(|url| into.policy().url(&url).err()) {
        let message = format!("`url` in [{}] may not be used: {}", section.name(), refusal.problem);
        section.problem("url", message, Some(&refusal.help));
    } else if let Some(text) = given.text() {
        text.clone_into(&mut into.url);
    }
}

fn topics(into: &mut Vec<String>, section: &Section<'_, '_>) {
    let item = json!({ "type": "string", "minLength": 1 });
    let accepts = texts("a list of topics such as `[\"order.*\"]`", 1..=usize::MAX, &item, |topics| {
        Some(topics.iter().map(|topic| (*topic).to_owned()).collect())
    });
    let Some(given) = section.value("topics") else {
        section.shape("topics", accepts.schema);
        let message = format!("[{}] needs `topics`", section.name());
        section.problem("topics", message, Some("for example `topics = [\"order.*\"]`, or `[\"**\"]` for all"));
        return;
    };
    section.accept("topics", &given, into, accepts);
    for error in into.iter().filter_map(|topic| Pattern::parse(topic).err()) {
        section.problem("topics", format!("`topics` in [{}]: {error}", section.name()), None);
    }
}

/// A table, `{ preset = "internal" }` or `{ pauses = ["5s", "5m"] }`, or the list of pauses alone.
fn retry(into: &mut RetryPolicy, section: &Section<'_, '_>) {
    if let Some(list) = section.value("retry").filter(|given| !given.is_table()) {
        section.accept("retry", &list, into, pauses());
        return;
    }
    section.shape("retry", pauses().schema);
    let table = section.section("retry");
    let presets = [("internal", RetryPolicy::internal()), ("webhook", RetryPolicy::webhook())];
    table.set("preset", into, one_of(&presets));
    table.shape("pauses", pauses().schema);
    if let Some(list) = table.value("pauses") {
        table.accept("pauses", &list, into, pauses());
        if table.has("preset") {
            table.problem("pauses", format!("[{}] has both `preset` and `pauses`", table.name()), None);
        }
    }
    let mut attempts_max = into.attempts_max as usize;
    table.set("attempts_max", &mut attempts_max, number_in(1..=1000));
    into.attempts_max = u32::try_from(attempts_max).unwrap_or(u32::MAX);
    table.set("age_max", &mut into.age_max, duration_in(SECOND..=365 * 24 * HOUR));
    table.finish();
}

fn pauses() -> Accepts<'static, RetryPolicy> {
    let must = "{ preset = \"internal\" }, { preset = \"webhook\" } or a list of 1 to 100 durations up to `30d`";
    texts(must, 1..=100, &accepts::duration_schema(), |texts| {
        let pauses: Option<Vec<Duration>> = texts.iter().map(|text| duration::parse(text).ok()).collect();
        pauses.filter(|pauses| pauses.iter().all(|pause| *pause <= 30 * 24 * HOUR)).map(RetryPolicy::pauses)
    })
}

fn tls(into: &mut Tls, section: &Section<'_, '_>, url: &str) {
    let table = section.section("tls");
    let here = |key: &str| format!("`{key}` in [{}]", table.name());
    for key in ["ca", "client_cert"] {
        table.shape(key, accepts::secret_schema());
    }
    table.shape("client_key", accepts::reference_schema());
    if let Some((ca, _)) = table.secret("ca") {
        match crate::tls::authorities(ca.expose().as_bytes()) {
            Ok(_) => into.ca = Some(ca),
            Err(problem) => table.problem("ca", format!("{}: {problem}", here("ca")), None),
        }
    }
    let (certificate, key) = (table.secret("client_cert"), table.secret("client_key"));
    match (certificate, key) {
        (_, Some((_, Origin::Literal))) => {
            let message = format!("{} is a secret and must not stand in the file", here("client_key"));
            table.problem("client_key", message, Some("write { env = \"NAME\" } or { file = \"path\" }"));
        }
        (Some((certificate, _)), Some((key, _))) => {
            match crate::tls::identity(certificate.expose().as_bytes(), key.expose().as_bytes()) {
                Ok(_) => into.client = Some((certificate, key)),
                Err(Unusable::Certificate(problem)) => {
                    table.problem("client_cert", format!("{}: {problem}", here("client_cert")), None);
                }
                Err(Unusable::Key(problem)) => {
                    table.problem("client_key", format!("{}: {problem}", here("client_key")), None);
                }
            }
        }
        _ => {
            for (key, other) in [("client_cert", "client_key"), ("client_key", "client_cert")] {
                if table.has(key) && !table.has(other) {
                    let help = "a client certificate is shown together with its private key";
                    table.problem(key, format!("{} needs `{other}`", here(key)), Some(help));
                }
            }
        }
    }
    if *into != Tls::default() && url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:")) {
        section.problem("tls", format!("[{}] is for `https://` only, and the url is `http://`", table.name()), None);
    }
    table.finish();
}

fn signing(into: &mut Signing, section: &Section<'_, '_>) {
    let table = section.section("signing");
    table.set("scheme", &mut into.scheme, one_of(&[("standard", Scheme::Standard)]));
    let must = "a list of references such as `[{ file = \"path\" }]`, the newest first";
    let parse = |text: &str| signature::Secret::parse(text).map_err(|error| error.to_string());
    table.shape("keys", json!({ "type": "array", "items": accepts::reference_schema(), "minItems": 1 }));
    if let Some(keys) = table.secrets("keys", must, parse) {
        into.keys = keys;
    } else if table.is_written() && !table.has("keys") {
        table.problem(
            "keys",
            format!("[{}] needs `keys`", table.name()),
            Some("write what to sign with: `keys = [{ file = \"path\" }]`"),
        );
    }
    table.finish();
}

fn headers(into: &mut Destination, section: Section<'_, '_>) {
    for written in section.keys() {
        let Some((value, origin)) = section.secret(&written) else {
            continue;
        };
        let name = written.to_ascii_lowercase();
        let sendable = |b: u8| b == b'\t' || (b' '..=b'~').contains(&b);
        let here = format!("`{written}` in [{}]", section.name());
        if !name.bytes().all(is_token) || name.is_empty() {
            section.problem(&written, format!("{here} is not the name of a header"), None);
        } else if HeaderOwner::of(&name) == HeaderOwner::Relay {
            section.problem(&written, format!("{here} is a header the relay sets itself"), None);
        } else if HeaderOwner::of(&name) == HeaderOwner::Message {
            section.problem(&written, format!("{here} is a header that comes with each message"), None);
        } else if !value.expose().bytes().all(sendable) {
            let message = format!("the value of {here} holds characters that cannot be sent in a header");
            section.problem(&written, message, None);
        } else if origin == Origin::Literal && is_credential(&name) {
            let help = "write { env = \"NAME\" } or { file = \"path\" }, and keep the value out of the file";
            section.problem(&written, format!("{here} is a secret and must not stand in the file"), Some(help));
        } else {
            into.headers.insert(name, value);
        }
    }
    section.finish();
}

/// Which answers mean something else here: statuses and what they mean.
fn classify(into: &mut BTreeMap<Status, Class>, section: Section<'_, '_>) {
    for written in section.keys() {
        let given = section.value(&written);
        let Some(status) = Status::parse(&written) else {
            let message = format!("`{written}` in [{}] is no status that can be judged otherwise", section.name());
            section.problem(
                &written,
                message,
                Some("write `404`, or `5xx` for all of them; `2xx` is always a success"),
            );
            continue;
        };
        if let Some(given) = given {
            let mut class = Class::Retry;
            section.accept(&written, &given, &mut class, one_of(&Class::ALL));
            into.insert(status, class);
        }
    }
    section.finish();
}

fn rate_limit() -> Accepts<'static, Option<RateLimit>> {
    let must = "`off`, or a number from 1 to 1000000 and `/s`, `/m` or `/h`, such as `50/s`";
    text(must, "^off$|^\\s*[0-9]+\\s*/\\s*[smh]\\s*$", |text| match text {
        "off" => Some(None),
        text => RateLimit::parse(text).map(Some),
    })
}

fn attempt_timeout() -> Accepts<'static, Duration> {
    duration_in(Duration::from_millis(100)..=HOUR)
}

/// What names a destination, as [`is_name`] sees it.
pub(super) const NAME_PATTERN: &str = "^[a-z][a-z0-9_]{0,62}$";

fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// RFC 9110 `token`, in lower case.
fn is_token(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Headers whose value nobody should find in a file under version control.
fn is_credential(name: &str) -> bool {
    const PARTS: &[&str] = &["auth", "cookie", "token", "secret", "session", "key", "pass", "signature"];
    PARTS.iter().any(|part| name.contains(part))
}
