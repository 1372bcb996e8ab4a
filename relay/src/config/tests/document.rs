//! The document, and what it claims about every key: section, key, default or `needed`, values, environment variable.

use super::*;
use crate::config::read::{Kind, Reader, Section, override_name};

const DOCUMENT: &str = include_str!("../../../../docs/CONFIGURATION.md");

struct Row {
    section: String,
    key: String,
    values: String,
    default: String,
    variable: String,
}

/// The rows of the tables below headings that name a section.
fn rows() -> Vec<Row> {
    let mut section = None;
    let mut rows = Vec::new();
    for line in DOCUMENT.lines() {
        if line.starts_with('#') {
            let name = line.split_once("`[").and_then(|(_, rest)| rest.split_once("]`")).map(|(name, _)| name);
            section = name.map(|name| name.replace("NAME", "billing"));
        }
        let (Some(section), Some(cells)) = (&section, line.strip_prefix("| `")) else { continue };
        let cells: Vec<&str> = cells.trim_end_matches('|').split(" | ").map(str::trim).collect();
        let [key, _meaning, values, default, variable] = cells[..] else { panic!("not five cells: {line}") };
        let plain = |cell: &str| cell.replace('`', "").replace("__NAME__", "__BILLING__");
        rows.push(Row {
            section: section.clone(),
            key: plain(key),
            values: values.to_owned(),
            default: default.to_owned(),
            variable: plain(variable),
        });
    }
    rows
}

/// The first block of TOML.
pub(in crate::config) fn example() -> &'static str {
    let (_, rest) = DOCUMENT.split_once("```toml\n").expect("there is an example");
    rest.split_once("```").expect("the example ends").0
}

const ENVIRONMENT: [(&str, &str); 6] = [
    ("DATABASE_URL", "postgres://localhost/shop"),
    ("BILLING_AUTHORIZATION", "Bearer x"),
    ("BILLING_SIGNING_KEY", OLD_KEY),
    ("BILLING_TLS_CA", CERTIFICATE),
    ("BILLING_TLS_CERT", CERTIFICATE),
    ("BILLING_TLS_KEY", KEY),
];

fn load(file: &str, more: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment: Vec<_> = ENVIRONMENT.iter().chain(more).copied().collect();
    Config::load(&sources(file, &environment), Scope::Everything)
}

#[test]
fn it_lists_every_key_there_is_and_no_other() {
    let file = "[destinations.billing]\nurl = \"https://a/\"\ntopics = [\"a\"]\nheaders = { x-tenant = \"1\" }\n\
                classify = { 404 = \"reject\" }\n";
    let sources = sources(file, &ENVIRONMENT);
    let reader = Reader::new(std::path::Path::new("relay.toml"), file, &sources.environment);
    let table = DeTable::parse(file).unwrap().into_inner();
    sections::read(&mut Config::default(), Section::root(&reader, &table), &sources);
    let known: Vec<(String, String, String)> = reader
        .known()
        .into_iter()
        .map(|((section, key), kind)| {
            let variable = match kind {
                Kind::Scalar => override_name(&section, &key),
                Kind::List => "-".to_owned(),
            };
            (section, key, variable)
        })
        .collect();
    let mut documented: Vec<_> = rows().into_iter().map(|row| (row.section, row.key, row.variable)).collect();
    documented.sort();
    assert_eq!(documented, known);
}

#[test]
fn its_example_sets_every_key_to_its_default() {
    let written = load(example(), &[]).unwrap();
    let mut expected = Config::default();
    expected.database.url = Secret::new("postgres://localhost/shop");
    // Required, or without a default that could be written down.
    expected.relay.name.clone_from(&written.relay.name);
    let billing = Destination {
        url: "https://billing.internal/hooks/outbox".into(),
        topics: vec!["order.*".into(), "refund.issued".into()],
        tls: tls(),
        signing: signing(&[OLD_KEY]),
        headers: [("authorization".to_owned(), Secret::new("Bearer x")), ("x-tenant".to_owned(), Secret::new("shop"))]
            .into(),
        classify: [(Status::parse("404").unwrap(), Class::Reject)].into(),
        ..Destination::default()
    };
    expected.destinations.insert("billing".to_owned(), billing);
    assert_eq!(written, expected);

    for row in rows().iter().filter(|row| row.default.starts_with('`') && row.variable != "-") {
        let default = row.default.trim_matches(['`', '"']);
        let loaded = load(example(), &[(&row.variable, default)]);
        assert_eq!(loaded, Ok(expected.clone()), "{} = {default}", row.variable);
    }
}

#[test]
fn it_says_what_the_code_accepts() {
    let mut compared = 0;
    for row in rows().iter().filter(|row| row.variable != "-") {
        let Err(error) = load(example(), &[(&row.variable, "\u{1}")]) else {
            panic!("{} takes anything", row.variable)
        };
        let told = error.to_string();
        if let Some((_, must)) = told.split_once(" must be ") {
            let must = must.split(", not `").next().unwrap();
            assert!(row.values.contains(must), "{}: `{}` does not say `{must}`", row.key, row.values);
            compared += 1;
        }
    }
    assert!(compared > 10, "only {compared} rows say what is accepted");
}
