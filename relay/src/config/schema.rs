//! The configuration as JSON Schema, for editors and checks.
//!
//! Nothing is written down here: the sections are read once, as they read a file, and what they ask for is the schema.
//! The descriptions are the comments of the example file, the defaults those of the code.
//!
//! A file that the relay accepts validates. Not everything that validates is accepted: see [`super::accepts`].

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use toml::de::DeTable;

use super::read::{Reader, Section};
use super::{Config, EXAMPLE, Sources, sections};
use crate::sink::http::Class;

/// A destination, so that there is one to ask for.
const SAMPLE: &str = "[destinations.NAME]\n";

/// The schema of `relay.toml`, draft 2020-12.
pub fn schema() -> Value {
    let sources = Sources::default();
    let reader = Reader::new(Path::new("relay.toml"), SAMPLE, &sources.environment);
    let table = DeTable::parse(SAMPLE).expect("a single header is TOML").into_inner();
    sections::read(&mut Config::default(), Section::root(&reader, &table), &sources);

    let comments = comments();
    let defaults = defaults();
    let mut root = object();
    for name in reader.sections() {
        describe(section(&mut root, &name), comments.get(&name));
    }
    for ((name, key), mut shape) in reader.shapes() {
        let path = format!("{name}.{key}");
        // A key of a table that is written in one line is described with the table.
        describe(&mut shape, comments.get(&path).or_else(|| comments.get(&name)));
        if let Some(default) = defaults.pointer(&format!("/{}", path.replace('.', "/")))
            && !default.is_object()
        {
            shape["default"] = default.clone();
        }
        let section = section(&mut root, &name);
        // A key that may also be a table has both; the table is there already when it was read.
        match section["properties"].get_mut(&key).map(Value::take) {
            Some(table) => {
                let title = shape.as_object_mut().and_then(|shape| shape.remove("description"));
                let mut either = json!({ "anyOf": [shape, table] });
                describe(&mut either, title.as_ref().and_then(Value::as_str).map(str::to_owned).as_ref());
                section["properties"][&key] = either;
            }
            None => section["properties"][&key] = shape,
        }
    }
    finish(root)
}

/// Puts the destinations under the pattern of their names, and says what has to be there.
fn finish(mut root: Value) -> Value {
    let mut destination = root["properties"]["destinations"]["properties"]["NAME"].take();
    // The url may come from the environment; a list cannot.
    destination["required"] = json!(["topics"]);
    destination["properties"]["headers"]["additionalProperties"] = super::accepts::secret_schema();
    let words: Vec<&str> = Class::ALL.iter().map(|(word, _)| *word).collect();
    destination["properties"]["classify"]["patternProperties"] =
        json!({ "^([3-9][0-9][0-9]|[3-9]xx)$": { "enum": words } });
    root["properties"]["destinations"] = json!({
        "type": "object",
        "description": "The places messages are sent to, by name.",
        "patternProperties": { sections::NAME_PATTERN: destination },
        "additionalProperties": false,
    });
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "relay.toml",
        "description": "The configuration of the relay. `relay check` says whether a file is right.",
    });
    let (Some(into), Value::Object(from)) = (schema.as_object_mut(), root) else { return schema };
    into.extend(from);
    schema
}

fn object() -> Value {
    json!({ "type": "object", "properties": {}, "additionalProperties": false })
}

fn describe(shape: &mut Value, comment: Option<&String>) {
    let Some(comment) = comment else { return };
    let must = shape["description"].as_str().map(|must| format!(" It is {must}.")).unwrap_or_default();
    shape["description"] = json!(format!("{comment}{must}"));
}

/// The table `name`, made with its parents where it is missing.
fn section<'s>(root: &'s mut Value, name: &str) -> &'s mut Value {
    let mut at = root;
    for part in name.split('.').filter(|part| !part.is_empty()) {
        at = &mut at["properties"][part];
        if at.is_null() {
            *at = object();
        } else if let Some(either) = at.get_mut("anyOf").and_then(Value::as_array_mut).map(|either| either.len()) {
            at = &mut at["anyOf"][either - 1];
        }
    }
    at
}

/// The defaults, by section and key; those of a destination under `NAME`.
fn defaults() -> Value {
    let mut config = Config::default();
    config.destinations.insert("NAME".to_owned(), super::Destination::default());
    let mut shown = config.shown_as_json();
    // They have no default, and an empty one would be shown.
    for key in ["/database/url", "/destinations/NAME/url", "/destinations/NAME/topics"] {
        if let Some((parent, key)) = key.rsplit_once('/')
            && let Some(parent) = shown.pointer_mut(parent).and_then(Value::as_object_mut)
        {
            parent.remove(key);
        }
    }
    shown
}

/// What the example says about each section and key. One comment may stand above several keys.
fn comments() -> BTreeMap<String, String> {
    let mut comments = BTreeMap::new();
    let (mut section, mut comment, mut is_open) = (String::new(), String::new(), false);
    for line in EXAMPLE.lines() {
        if let Some(text) = line.strip_prefix("# ").or(line.strip_prefix('#').filter(|rest| rest.is_empty())) {
            if !is_open {
                comment.clear();
            } else if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(text);
            is_open = true;
            continue;
        }
        is_open = false;
        let line = line.strip_prefix("#or ").or(line.strip_prefix('#')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.replace("billing", "NAME");
            comments.insert(section.clone(), std::mem::take(&mut comment));
        } else if let Some((key, _)) = line.split_once(" = ") {
            let text = if comment.is_empty() { comments.get(&section) } else { Some(&comment) };
            if let Some(text) = text.cloned() {
                comments.entry(format!("{section}.{key}")).or_insert(text);
            }
        } else {
            comment.clear();
        }
    }
    comments.retain(|_, comment| !comment.is_empty());
    comments
}

#[cfg(test)]
mod tests;
