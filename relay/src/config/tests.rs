//! Good files, bad files, and who overrides whom.

use super::*;
use crate::tls::tests::{CERTIFICATE, KEY};

pub(super) mod document;
mod tls;

pub(super) const GOOD: &str = r#"
[database]
url = { env = "SHOP_DATABASE" }
migrate = "auto"
transaction_age_max = "30s"

[relay]
name = "shop-1"
lease = "10s"
poll_busy = "2ms"
poll_idle = "100ms"
shutdown_grace = "1m"
in_hands = 100
in_hands_bytes = "8MiB"
source = "/shop"

[health]
listen = "off"

[defaults]
timeout = "3s"
mode = "standard"
retry = { preset = "webhook" }
network = "public"

[destinations.billing]
url = "https://billing.internal/hooks/outbox"
topics = ["order.*", "refund.issued"]
concurrency = 4
rate_limit = "90/m"
timeout = "7s"
mode = "structured"
ordering = "none"
after_dead_letter = "block"
retry = ["1s", "1m", "1h30m"]
tls = { ca = { env = "CERT" }, client_cert = { env = "CERT" }, client_key = { env = "KEY" } }
allow_http = true
ports = [444, 25]
signing = { scheme = "standard", keys = [{ env = "NEW_KEY" }, { env = "OLD_KEY" }] }
headers = { Authorization = { env = "BILLING_TOKEN" }, x-tenant = "shop" }
classify = { 404 = "reject", 5xx = "hold" }

[destinations.audit]
url = "http://127.0.0.1:8080/"
topics = ["**"]
network = "any"
"#;

const OLD_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Of the other kind: both may stand side by side.
const NEW_KEY: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";

fn signing(keys: &[&str]) -> Signing {
    let keys = keys.iter().map(|key| outbox::signature::Secret::parse(key).unwrap()).collect();
    Signing { scheme: Scheme::Standard, keys }
}

fn tls() -> Tls {
    let secret = |text: &str| Secret::new(text);
    Tls { ca: Some(secret(CERTIFICATE)), client: Some((secret(CERTIFICATE), secret(KEY))) }
}

fn sources(file: &str, environment: &[(&str, &str)]) -> Sources {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { file: Some(("relay.toml".into(), file.to_owned())), environment, ..Sources::default() }
}

fn problems(file: &str, environment: &[(&str, &str)]) -> String {
    let mut environment = environment.to_vec();
    if !file.contains("[database]") {
        environment.push(("DATABASE_URL", "sqlite:test.db"));
    }
    let mut file = file.to_owned();
    if !file.contains("destinations") {
        file.push_str("\n[destinations.needed]\nurl = \"https://a/\"\ntopics = [\"a\"]\n");
    }
    match Config::load(&sources(&file, &environment), Scope::Everything) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_option_arrives_where_it_belongs() {
    let environment = [
        ("SHOP_DATABASE", "postgres://shop:s3cret@db/shop"),
        ("BILLING_TOKEN", "Bearer x"),
        ("NEW_KEY", NEW_KEY),
        ("OLD_KEY", OLD_KEY),
        ("CERT", CERTIFICATE),
        ("KEY", KEY),
    ];
    let config = Config::load(&sources(GOOD, &environment), Scope::Everything).unwrap();
    let expected = Config {
        database: Database {
            url: Secret::new("postgres://shop:s3cret@db/shop"),
            migrate: Migrate::Auto,
            transaction_age_max: Duration::from_secs(30),
        },
        relay: RelayOptions {
            name: "shop-1".into(),
            lease: Duration::from_secs(10),
            poll_busy: Duration::from_millis(2),
            poll_idle: Duration::from_millis(100),
            shutdown_grace: Duration::from_secs(60),
            in_hands: 100,
            in_hands_bytes: 8 << 20,
            source: "/shop".into(),
        },
        health: Health { listen: None },
        defaults: Defaults {
            timeout: Duration::from_secs(3),
            mode: Mode::Standard,
            retry: RetryPolicy::webhook(),
            network: Network::Public,
        },
        destinations: [
            (
                "audit".to_owned(),
                Destination {
                    url: "http://127.0.0.1:8080/".into(),
                    topics: vec!["**".into()],
                    timeout: Duration::from_secs(3),
                    mode: Mode::Standard,
                    retry: RetryPolicy::webhook(),
                    ..Destination::default()
                },
            ),
            (
                "billing".to_owned(),
                Destination {
                    url: "https://billing.internal/hooks/outbox".into(),
                    topics: vec!["order.*".into(), "refund.issued".into()],
                    concurrency: 4,
                    rate_limit: Some(RateLimit::per_minute(90)),
                    timeout: Duration::from_secs(7),
                    mode: Mode::Structured,
                    ordering: Ordering::None,
                    after_dead_letter: AfterDeadLetter::Block,
                    retry: RetryPolicy::pauses([1, 60, 5400].map(Duration::from_secs).to_vec()),
                    tls: tls(),
                    network: Network::Public,
                    allow_http: true,
                    ports: vec![444, 25],
                    signing: signing(&[NEW_KEY, OLD_KEY]),
                    headers: [
                        ("authorization".to_owned(), Secret::new("Bearer x")),
                        ("x-tenant".to_owned(), Secret::new("shop")),
                    ]
                    .into(),
                    classify: [
                        (Status::parse("404").unwrap(), Class::Reject),
                        (Status::parse("5xx").unwrap(), Class::Hold),
                    ]
                    .into(),
                },
            ),
        ]
        .into(),
    };
    assert_eq!(config, expected);
    assert!(!format!("{config:?}").contains("s3cret"), "a secret is in the debug output");
}

#[test]
fn without_a_file_the_defaults_and_database_url_serve() {
    let environment = [("DATABASE_URL".to_owned(), "sqlite:shop.db".to_owned())].into();
    let sources = Sources { environment, host: Some("node-7".into()), ..Sources::default() };
    let config = Config::load(&sources, Scope::Database).unwrap();
    assert_eq!(config.database.url.expose(), "sqlite:shop.db");
    assert_eq!(config.relay, RelayOptions { name: "node-7".into(), ..RelayOptions::default() });
    assert_eq!(config.health.listen.unwrap().to_string(), "127.0.0.1:9464");
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let file = "[database]\nurl = \"sqlite:file.db\"\n[relay]\nlease = \"7s\"\n\
                [destinations.billing]\nurl = \"https://a/\"\ntopics = [\"*\"]\n";
    let url = |sources: &Sources| {
        Config::load(sources, Scope::Everything).map(|c| c.database.url.expose().to_owned()).unwrap()
    };
    let mut sources = sources(file, &[("DATABASE_URL", "sqlite:general.db")]);
    assert_eq!(url(&sources), "sqlite:file.db");
    sources.environment.insert("RELAY__DATABASE__URL".into(), "postgres://a:b@c/d".into());
    assert_eq!(url(&sources), "postgres://a:b@c/d");
    sources.database_url = Some("sqlite:flag.db".into());
    assert_eq!(url(&sources), "sqlite:flag.db");

    for (name, value) in [
        ("RELAY__RELAY__LEASE", "9s"),
        ("RELAY__RELAY__IN_HANDS", "12"),
        ("RELAY__HEALTH__LISTEN", "off"),
        ("RELAY__DESTINATIONS__BILLING__URL", "https://b/"),
        ("RELAY__DESTINATIONS__BILLING__RETRY__PRESET", "webhook"),
    ] {
        sources.environment.insert(name.into(), value.into());
    }
    let config = Config::load(&sources, Scope::Everything).unwrap();
    assert_eq!(config.relay.lease, Duration::from_secs(9));
    assert_eq!(config.relay.in_hands, 12);
    assert_eq!(config.health.listen, None);
    assert_eq!(config.destinations["billing"].url, "https://b/");
    assert_eq!(config.destinations["billing"].retry, RetryPolicy::webhook());
}

#[test]
fn what_a_flag_overrides_need_not_be_there() {
    let mut sources = sources("[database]\nurl = { env = \"ABSENT\" }\n", &[]);
    assert!(Config::load(&sources, Scope::Database).is_err());
    sources.database_url = Some("sqlite:flag.db".into());
    assert_eq!(Config::load(&sources, Scope::Database).unwrap().database.url.expose(), "sqlite:flag.db");
}

#[test]
fn a_relay_that_delivers_nowhere_is_a_problem_of_everything_and_not_of_the_database() {
    let sources = sources("[relay]\nlease = \"5s\"\n", &[("DATABASE_URL", "sqlite:a.db")]);
    let error = Config::load(&sources, Scope::Everything).unwrap_err().to_string();
    let help = "help: add a section [destinations.NAME] with `url` and `topics`";
    assert_eq!(error, format!("relay: no destination is configured\n  {help}"));
    assert!(Config::load(&sources, Scope::Database).is_ok());
    assert!(Config::load(&sources, Scope::Destinations).is_ok_and(|config| config.destinations.is_empty()));
}

#[test]
fn a_secret_comes_from_a_file_beside_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("url"), "sqlite:secret.db\n").unwrap();
    let text = "[database]\nurl = { file = \"url\" }\n".to_owned();
    let sources = Sources { file: Some((folder.path().join("relay.toml"), text)), ..Sources::default() };
    let config = Config::load(&sources, Scope::Database).unwrap();
    assert_eq!(config.database.url.expose(), "sqlite:secret.db");
}

#[test]
fn an_operator_needs_the_database_section_only() {
    let file = "[destinations.billing]\nheaders = { authorization = { env = \"ABSENT\" } }\n";
    let mut sources = sources(file, &[("DATABASE_URL", "sqlite:a.db")]);
    assert!(Config::load(&sources, Scope::Everything).is_err());
    assert!(Config::load(&sources, Scope::Database).is_ok());
    sources.environment.clear();
    assert!(Config::load(&sources, Scope::Database).is_err());
}

/// Files with one mistake each, and what is said about it.
pub(super) fn wrong_files() -> Vec<(String, &'static str)> {
    let destination = "[destinations.billing]\nurl = \"https://b/\"\ntopics = [\"order.*\"]\n";
    let with = |line: &str| format!("{destination}{line}\n");
    vec![
        (
            with("concurency = 1"),
            "relay.toml:4:1: unknown key `concurency` in [destinations.billing] - did you mean `concurrency`?",
        ),
        (with("  colour = 1"), "relay.toml:4:3: unknown key `colour` in [destinations.billing]"),
        ("[relais]\nname = \"a\"".into(), "relay.toml:1:2: unknown section [relais] - did you mean [relay]?"),
        ("[dashboard]".into(), "relay.toml:1:2: unknown section [dashboard]"),
        ("relay = 5".into(), "relay.toml:1:9: [relay] must be a table, not a whole number"),
        (
            "[relay]\nlease = \"100ms\"".into(),
            "relay.toml:2:9: `lease` in [relay] must be a duration from `1s` to `5m`, not `100ms`",
        ),
        (
            "[relay]\nlease = 5".into(),
            "relay.toml:2:9: `lease` in [relay] must be a duration from `1s` to `5m`, not `5`",
        ),
        (
            "[relay]\nin_hands = 0".into(),
            "relay.toml:2:12: `in_hands` in [relay] must be a whole number from 1 to 100000, not `0`",
        ),
        (
            "[relay]\nin_hands_bytes = \"64\"".into(),
            "relay.toml:2:18: `in_hands_bytes` in [relay] must be a size from `1MiB` to `64GiB`, not `64`",
        ),
        (
            "[relay]\npoll_busy = \"80ms\"".into(),
            "relay.toml:1:1: `poll_idle` in [relay] (60ms) is shorter than `poll_busy` (80ms)\n  \
             help: the pause grows from `poll_busy` to `poll_idle`",
        ),
        (
            "[health]\nlisten = 9464".into(),
            "relay.toml:2:10: `listen` in [health] must be an address with a port such as `127.0.0.1:9464`, or `off`, \
             not `9464`",
        ),
        (
            "[defaults]\nmode = \"rwa\"".into(),
            "relay.toml:2:8: `mode` in [defaults] must be `binary` or `structured` or `standard` or `raw`, not `rwa`",
        ),
        (
            with("rate_limit = \"50\""),
            "relay.toml:4:14: `rate_limit` in [destinations.billing] must be `off`, or a number from 1 to 1000000 and `/s`, \
             `/m` or `/h`, such as `50/s`, not `50`",
        ),
        (
            with("classify = { 200 = \"retry\" }"),
            "relay.toml:4:14: `200` in [destinations.billing.classify] is no status that can be judged otherwise\n  \
             help: write `404`, or `5xx` for all of them; `2xx` is always a success",
        ),
        (
            with("classify = { 404 = \"ignore\" }"),
            "relay.toml:4:20: `404` in [destinations.billing.classify] must be `delivered` or `retry` or `hold` or \
             `misconfigured` or `reject`, not `ignore`",
        ),
        (
            with("ordering = true"),
            "relay.toml:4:12: `ordering` in [destinations.billing] must be `key` or `none`, not `true`",
        ),
        (
            with("retry = \"often\""),
            "relay.toml:4:9: `retry` in [destinations.billing] must be { preset = \"internal\" }, \
             { preset = \"webhook\" } or a list of 1 to 100 durations up to `30d`, not `often`",
        ),
        (
            with("retry = { preset = \"often\" }"),
            "relay.toml:4:20: `preset` in [destinations.billing.retry] must be `internal` or `webhook`, not `often`",
        ),
        (
            with("retry = { presett = \"webhook\" }"),
            "relay.toml:4:11: unknown key `presett` in [destinations.billing.retry] - did you mean `preset`?",
        ),
        (
            with("network = \"private\""),
            "relay.toml:4:11: `network` in [destinations.billing] must be `any` or `public`, not `private`",
        ),
        (
            with("allow_http = \"yes\""),
            "relay.toml:4:14: `allow_http` in [destinations.billing] must be `true` or `false`, not `yes`",
        ),
        (
            with("ports = [444, 70000]"),
            "relay.toml:4:9: `ports` in [destinations.billing] must be a list of ports such as `[444]`, not a list",
        ),
        (
            "[destinations.billing]\nurl = \"http://b.internal/?token=s3cret\"\ntopics = [\"a\"]".into(),
            "relay.toml:2:1: `url` in [destinations.billing] may not be used: everybody on the way can read and change \
             what is sent to an `http://` address\n  help: write `https://`, or allow it with `allow_http = true`",
        ),
        (
            "[destinations.billing]\nurl = \"https://[::ffff:169.254.169.254]/\"\ntopics = [\"a\"]".into(),
            "relay.toml:2:1: `url` in [destinations.billing] may not be used: `::ffff:169.254.169.254`, a link-local \
             address, where clouds keep the credentials of their machines\n  help: no setting allows it",
        ),
        (
            "[defaults]\nnetwork = \"public\"\n[destinations.billing]\nurl = \"https://0xa000005/\"\ntopics = [\"a\"]"
                .into(),
            "relay.toml:4:1: `url` in [destinations.billing] may not be used: `10.0.0.5`, a private address\n  help: \
             `network = \"public\"` refuses it, `network = \"any\"` would allow it",
        ),
        (
            "[destinations.billing]\nurl = \"https://b.example:25/\"\ntopics = [\"a\"]\nnetwork = \"public\"".into(),
            "relay.toml:2:1: `url` in [destinations.billing] may not be used: port 25 belongs to another service than \
             HTTP\n  help: allow it with `ports = [25]`",
        ),
        (
            with("headers = { authorization = \"Bearer x\" }"),
            "relay.toml:4:13: `authorization` in [destinations.billing.headers] is a secret and must not stand in the file\n  \
             help: write { env = \"NAME\" } or { file = \"path\" }, and keep the value out of the file",
        ),
        (
            with("headers = { webhook-id = \"1\" }"),
            "relay.toml:4:13: `webhook-id` in [destinations.billing.headers] is a header the relay sets itself",
        ),
        (
            with("headers = { Traceparent = \"1\" }"),
            "relay.toml:4:13: `Traceparent` in [destinations.billing.headers] is a header that comes with each message",
        ),
        (
            with("headers = { \"x y\" = \"1\" }"),
            "relay.toml:4:13: `x y` in [destinations.billing.headers] is not the name of a header",
        ),
        (
            with("headers = { x = \"a\\r\\nb\" }"),
            "relay.toml:4:13: the value of `x` in [destinations.billing.headers] holds characters that cannot be sent \
             in a header",
        ),
        (
            with("headers = { x = { env = \"ABSENT\" } }"),
            "relay.toml:4:17: `x` in [destinations.billing.headers]: the environment variable ABSENT is not set\n  \
             help: set it where the relay is started",
        ),
        (
            with("headers = { x = { vault = \"a\" } }"),
            "relay.toml:4:17: `x` in [destinations.billing.headers] is not a reference to a secret\n  \
             help: write { env = \"NAME\" } or { file = \"path\" }",
        ),
        (
            "[destinations.Billing]\nurl = \"https://b/\"\ntopics = [\"a\"]".into(),
            "relay.toml:1:15: `Billing` cannot name a destination\n  help: a name is a lower-case letter followed by \
             at most 62 lower-case letters, digits or `_`",
        ),
        (
            "[destinations.billing]\ntopics = [\"a\"]".into(),
            "relay.toml:1:1: [destinations.billing] needs `url`\n  help: it says where to POST: `url = \"https://…\"`",
        ),
        (
            "[destinations.billing]\nurl = \"https://b/\"".into(),
            "relay.toml:1:1: [destinations.billing] needs `topics`\n  help: for example `topics = [\"order.*\"]`, or \
             `[\"**\"]` for all",
        ),
        (
            "[destinations.billing]\nurl = \"ftp://b/\"\ntopics = [\"a\"]".into(),
            "relay.toml:2:1: `url` in [destinations.billing] must begin with `https://` or `http://`",
        ),
        (
            "[destinations.billing]\nurl = \"https://a:b@c/\"\ntopics = [\"a\"]".into(),
            "relay.toml:2:1: `url` in [destinations.billing] contains credentials; send them as a header, `headers = { \
             authorization = { env = \"NAME\" } }`",
        ),
        (
            "[destinations.billing]\nurl = \"billing\"\ntopics = [\"a\"]".into(),
            "relay.toml:2:1: `url` in [destinations.billing] must be a whole url such as `https://billing.internal/hooks`",
        ),
        (
            "[destinations.billing]\nurl = \"https://b/\"\ntopics = [\"order.*\", \"a..b\"]".into(),
            "relay.toml:3:1: `topics` in [destinations.billing]: the topic pattern `a..b` is not usable: \
             a segment is empty; dots stand between segments only",
        ),
        (
            "[destinations.billing]\nurl = \"https://b/\"\ntopics = \"a\"".into(),
            "relay.toml:3:10: `topics` in [destinations.billing] must be a list of topics such as `[\"order.*\"]`, not `a`",
        ),
        (
            "[database]\nurl = \"postgres://shop:s3cret@db/shop\"".into(),
            "relay.toml:2:1: `url` in [database] contains a password\n  help: write `url = { env = \"DATABASE_URL\" }` \
             or `url = { file = \"path\" }`, and keep it out of the file",
        ),
        (
            "[database]\nurl = \"redis://s3cret\"".into(),
            "relay.toml:2:1: the database url names no database this relay knows\n  help: it begins with \
             `postgres://`, `mysql://` or `sqlite:`",
        ),
        (
            "[database]\nmigrate = \"check\"".into(),
            "relay.toml:1:1: no database is named\n  help: set DATABASE_URL, `url` in [database], or pass --database-url",
        ),
        (
            "[database]\nurl = \"sqlite:\"".into(),
            "relay.toml:2:1: the database url names no file\n  help: write `sqlite:path/to/file.db`",
        ),
    ]
}

#[test]
fn wrong_files_are_answered_with_the_place_and_the_remedy() {
    for (file, expected) in wrong_files() {
        assert_eq!(problems(&file, &[]), expected, "for the file\n{file}");
    }
}

#[test]
fn bad_signing_keys_are_answered_with_the_place_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short");
    std::fs::write(&short, "whsec_czNjcmV0\n").unwrap();
    let environment =
        [("GOOD", OLD_KEY), ("PASSWORD", "s3cret"), ("BROKEN", "whsec_s3cret!"), ("EMPTY", ""), ("PUBLIC", PUBLIC)];
    let with = |signing: &str| {
        let file = format!("[destinations.billing]\nurl = \"https://b/\"\ntopics = [\"a\"]\nsigning = {signing}\n");
        problems(&file, &environment)
    };
    let (here, list) =
        ("`keys` in [destinations.billing.signing]", "a list of references such as `[{ file = \"path\" }]`");
    let reference = "\n  help: write { env = \"NAME\" } or { file = \"path\" }";
    for (signing, expected) in [
        ("{ }", "4:11: [destinations.billing.signing] needs `keys`\n  help: write what to sign with: `keys = [{ file = \"path\" }]`".to_owned()),
        ("true", "4:11: [destinations.billing.signing] must be a table, not true or false".to_owned()),
        ("{ keys = [] }", format!("4:20: {here} must be {list}, the newest first{reference}")),
        ("{ keys = { env = \"GOOD\" } }", format!("4:20: {here} must be {list}, the newest first{reference}")),
        ("{ keys = [\"s3cret\"] }", format!("4:21: {here}: a secret must not stand in the file{reference}")),
        ("{ keys = [{ vault = \"a\" }] }", format!("4:21: {here} is not a reference to a secret{reference}")),
        (
            "{ keys = [{ env = \"GOOD\" }, { env = \"EMPTY\" }] }",
            format!("4:39: {here}: the environment variable EMPTY is not set\n  help: set it where the relay is started"),
        ),
        (
            "{ keys = [{ env = \"PASSWORD\" }, { env = \"BROKEN\" }] }",
            format!(
                "4:21: {here}: a signing secret begins with `whsec_` or `whsk_`\n\
                 relay.toml:4:43: {here}: what follows `whsec_` must be base64"
            ),
        ),
        (
            &format!("{{ keys = [{{ file = \"{}\" }}] }}", short.display()),
            format!("4:21: {here}: what follows `whsec_` stands for 24 to 64 bytes, here for 6"),
        ),
        (
            "{ keys = [{ env = \"PUBLIC\" }] }",
            format!("4:21: {here}: this is a public key, which signs nothing; the private one begins with `whsk_`"),
        ),
        (
            "{ scheme = \"rot13\", keys = [{ env = \"GOOD\" }] }",
            "4:22: `scheme` in [destinations.billing.signing] must be `standard`, not `rot13`".to_owned(),
        ),
        (
            "{ key = [{ env = \"GOOD\" }], keys = [{ env = \"GOOD\" }] }",
            "4:13: unknown key `key` in [destinations.billing.signing] - did you mean `keys`?".to_owned(),
        ),
    ] {
        assert_eq!(with(signing), format!("relay.toml:{expected}"), "{signing}");
    }
}

#[test]
fn broken_toml_is_answered_with_the_place() {
    let answer = problems("[relay]\nlease = 5s\n", &[]);
    assert!(answer.starts_with("relay.toml:2:"), "{answer}");
    let answer = problems("[relay]\nlease = \"5s\"\nlease = \"6s\"\n", &[]);
    assert!(answer.starts_with("relay.toml:3:1: duplicate key"), "{answer}");
}

#[test]
fn columns_count_characters_not_bytes() {
    let answer = problems("defaults = { \"häß\" = 1 }\n# ü\n[relay]\n\"ü\" = 1\n", &[]);
    assert_eq!(answer, "relay.toml:1:14: unknown key `häß` in [defaults]\nrelay.toml:4:1: unknown key `ü` in [relay]");
    let answer = problems("\"ü\" = 1", &[]);
    assert_eq!(answer, "relay.toml:1:1: unknown section [ü]");
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
    let answer = problems(
        "[relay]\nlese = \"5s\"\n[database]\nurl = \"sqlite:a.db\"\nmigrate = \"maybe\"\n",
        &[("RELAY__RELAY__LEAZE", "5s"), ("RELAY__DATABASE__MIGRATE", "never")],
    );
    assert_eq!(
        answer,
        "relay.toml:2:1: unknown key `lese` in [relay] - did you mean `lease`?\n\
         environment variable RELAY__DATABASE__MIGRATE: `migrate` in [database] must be `check` or `auto` or `off`, \
         not `never`\n\
         environment variable RELAY__RELAY__LEAZE: nothing by that name can be overridden - did you mean \
         `RELAY__RELAY__LEASE`?"
    );
}
