//! What the relay accepts validates, and what a schema can refuse is refused.
//!
//! The validator knows the keywords the schema uses and fails on any other, so that none is overlooked.

use std::collections::BTreeMap;
use std::path::Path;

use regex_lite::Regex;
use serde_json::{Value, json};

use super::super::example::tests::uncommented;
use super::super::read::{Kind, Reader, Section};
use super::super::tests::{GOOD, document, wrong_files};
use super::*;

/// Everything about `value` the schema refuses.
fn refusals(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut refusals = Vec::new();
    let none = serde_json::Map::new();
    let members = value.as_object().unwrap_or(&none);
    let mut refuse = |is_right: bool, why: String| {
        if !is_right {
            refusals.push(format!("{at}: {why}"));
        }
    };
    let mut inner = Vec::new();
    for (keyword, said) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "default" => {}
            "type" => {
                let is_right = match said.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "boolean" => value.is_boolean(),
                    other => panic!("the type {other}"),
                };
                refuse(is_right, format!("{value} is no {said}"));
            }
            "enum" => refuse(said.as_array().unwrap().contains(value), format!("{value} is none of {said}")),
            "pattern" => {
                let pattern = Regex::new(said.as_str().unwrap()).unwrap();
                refuse(value.as_str().is_none_or(|text| pattern.is_match(text)), format!("{value} is not {said}"));
            }
            "minimum" => refuse(value.as_i64().is_none_or(|n| n >= said.as_i64().unwrap()), format!("below {said}")),
            "maximum" => refuse(value.as_i64().is_none_or(|n| n <= said.as_i64().unwrap()), format!("above {said}")),
            "minLength" => refuse(value.as_str().is_none_or(|text| !text.is_empty()), "empty".into()),
            "minItems" => {
                refuse(value.as_array().is_none_or(|a| a.len() as u64 >= said.as_u64().unwrap()), "too few".into());
            }
            "maxItems" => {
                refuse(value.as_array().is_none_or(|a| a.len() as u64 <= said.as_u64().unwrap()), "too many".into());
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    inner.extend(refusals_of(said, item, &format!("{at}[{n}]")));
                }
            }
            "required" => {
                for key in said.as_array().unwrap() {
                    let key = key.as_str().unwrap();
                    refuse(!value.is_object() || members.contains_key(key), format!("`{key}` is missing"));
                }
            }
            "anyOf" => {
                let any = said.as_array().unwrap().iter().any(|one| refusals_of(one, value, at).is_empty());
                refuse(any, format!("{value} is none of the alternatives"));
            }
            "properties" | "patternProperties" | "additionalProperties" => {}
            other => panic!("the validator does not know the keyword {other}"),
        }
    }
    let patterns: Vec<(Regex, &Value)> = schema["patternProperties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(pattern, schema)| (Regex::new(pattern).unwrap(), schema))
        .collect();
    for (key, member) in members {
        let at = format!("{at}.{key}");
        if let Some(schema) = schema["properties"].get(key) {
            inner.extend(refusals_of(schema, member, &at));
        } else if let Some((_, schema)) = patterns.iter().find(|(pattern, _)| pattern.is_match(key)) {
            inner.extend(refusals_of(schema, member, &at));
        } else {
            match &schema["additionalProperties"] {
                Value::Bool(false) => inner.push(format!("{at} is not known")),
                Value::Null => {}
                schema => inner.extend(refusals_of(schema, member, &at)),
            }
        }
    }
    refusals.extend(inner);
    refusals
}

fn refusals_of(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    refusals(schema, value, at)
}

fn as_json(file: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(file).unwrap()).unwrap()
}

#[test]
fn what_the_relay_accepts_validates() {
    let schema = schema();
    let minimal = "[destinations.a]\ntopics = [\"**\"]\n";
    let files = [EXAMPLE, &uncommented(false), &uncommented(true), GOOD, document::example(), minimal, ""];
    for file in files {
        assert_eq!(refusals(&schema, &as_json(file), ""), [""; 0], "{file}");
    }
    let shown = Config::default().shown_as_json();
    assert_eq!(refusals(&schema, &shown, ""), [""; 0], "{shown}");
}

#[test]
fn what_a_schema_can_refuse_is_refused() {
    let schema = schema();
    // What only code can say: relations, references, places, and ranges of what is written as text.
    let beyond = [
        "must be a duration from `1s` to `5m`, not `100ms`",
        "is shorter than",
        "is a header",
        "is a secret and must not",
        "is not the name of a header",
        "cannot be sent in a header",
        "is not set",
        "needs `url`",
        "contains credentials",
        "may not be used",
        "contains a password",
        "is not usable",
        "names no",
        "no database is named",
    ];
    let mut refused = 0;
    for (file, told) in wrong_files() {
        let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
        if beyond.iter().any(|beyond| told.contains(beyond)) {
            assert_eq!(refusals(&schema, &as_json(&file), ""), [""; 0], "it can be said after all: {told}");
            continue;
        }
        assert_ne!(refusals(&schema, &as_json(&file), ""), [""; 0], "not refused although {told}\n{file}");
        refused += 1;
    }
    assert!(refused > 15, "only {refused} mistakes can be refused");
}

#[test]
fn every_key_has_a_type_and_a_description() {
    let schema = schema();
    let environment = BTreeMap::new();
    let reader = Reader::new(Path::new("relay.toml"), SAMPLE, &environment);
    let table = DeTable::parse(SAMPLE).unwrap().into_inner();
    sections::read(&mut Config::default(), Section::root(&reader, &table), &Sources::default());
    let known: BTreeMap<(String, String), Kind> = reader.known();
    assert!(known.len() > 25, "{known:?}");
    for (section, key) in known.keys() {
        let path = format!("{section}.{key}");
        let mut at = &schema;
        for part in path.split('.') {
            // A key of a table that may also be a list.
            let table = at["anyOf"].as_array().map_or(at, |either| &either[either.len() - 1]);
            at = match part {
                "NAME" => &table["patternProperties"][sections::NAME_PATTERN],
                part => &table["properties"][part],
            };
        }
        let says = ["type", "enum", "anyOf"].iter().any(|keyword| at.get(keyword).is_some());
        assert!(says, "{path} may be anything: {at}");
        assert!(at["description"].as_str().is_some_and(|text| text.len() > 10), "{path}: {at}");
    }
    let defaults = ["database.migrate", "relay.lease", "relay.in_hands", "health.listen", "defaults.timeout"];
    for path in defaults {
        let (section, key) = path.split_once('.').unwrap();
        let written = Config::default().shown_as_json()[section][key].clone();
        assert_eq!(schema["properties"][section]["properties"][key]["default"], written, "{path}");
    }
}

#[test]
fn the_validator_refuses() {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer", "minimum": 1 } },
                         "required": ["a"], "additionalProperties": false });
    for value in [json!([]), json!({}), json!({ "a": 0 }), json!({ "a": "1" }), json!({ "a": 1, "b": 1 })] {
        assert_ne!(refusals(&schema, &value, ""), [""; 0], "{value}");
    }
    assert_eq!(refusals(&schema, &json!({ "a": 1 }), ""), [""; 0]);
}
