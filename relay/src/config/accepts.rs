//! What a key accepts: one value that reads it, says it to people, and says it to editors.
//!
//! Reader, error message and JSON Schema come from the same place, so none of them can be forgotten when another
//! changes. JSON Schema cannot say everything (a range of durations, a pattern of topics); what it cannot say stands in
//! the description, and `relay check` has the last word.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};

use super::read::Given;
use super::size;
use crate::duration;

/// What a key accepts.
pub(crate) struct Accepts<'f, T> {
    /// Ends the sentence "`key` must be …".
    pub must: String,
    /// The same as JSON Schema.
    pub schema: Value,
    /// Reads it; `None` refuses.
    pub understand: Understand<'f, T>,
}

/// Reads a value; `None` refuses.
type Understand<'f, T> = Box<dyn Fn(&Given<'_, '_>) -> Option<T> + 'f>;

/// A duration within a range.
pub(super) fn duration_in(range: RangeInclusive<Duration>) -> Accepts<'static, Duration> {
    let (low, high) = (duration::format(*range.start()), duration::format(*range.end()));
    Accepts {
        must: format!("a duration from `{low}` to `{high}`"),
        schema: duration_schema(),
        understand: Box::new(move |given| duration::parse(given.text()?).ok().filter(|value| range.contains(value))),
    }
}

/// A number of bytes within a range.
pub(super) fn bytes_in(range: RangeInclusive<u64>) -> Accepts<'static, u64> {
    let (low, high) = (size::format(*range.start()), size::format(*range.end()));
    Accepts {
        must: format!("a size from `{low}` to `{high}`"),
        schema: json!({ "type": "string", "pattern": format!("^\\s*[0-9]+({})\\s*$", size::units().join("|")) }),
        understand: Box::new(move |given| size::parse(given.text()?).filter(|value| range.contains(value))),
    }
}

/// A whole number within a range.
pub(super) fn number_in(range: RangeInclusive<usize>) -> Accepts<'static, usize> {
    Accepts {
        must: format!("a whole number from {} to {}", range.start(), range.end()),
        schema: json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
        understand: Box::new(move |given| usize::try_from(given.integer()?).ok().filter(|value| range.contains(value))),
    }
}

/// Whole numbers within a range, as a list.
pub(super) fn numbers(must: &str, range: RangeInclusive<u16>) -> Accepts<'static, Vec<u16>> {
    Accepts {
        must: must.to_owned(),
        schema: json!({
            "type": "array",
            "items": { "type": "integer", "minimum": range.start(), "maximum": range.end() },
        }),
        understand: Box::new(move |given| {
            let number = |number: u64| u16::try_from(number).ok().filter(|number| range.contains(number));
            given.integers()?.into_iter().map(number).collect()
        }),
    }
}

/// `true` or `false`.
pub(super) fn yes_or_no() -> Accepts<'static, bool> {
    Accepts {
        must: "`true` or `false`".to_owned(),
        schema: json!({ "type": "boolean" }),
        understand: Box::new(|given| given.boolean()),
    }
}

/// One of these words.
pub(super) fn one_of<'f, T: Clone + 'f>(words: &[(&'f str, T)]) -> Accepts<'f, T> {
    let words = words.to_vec();
    let all: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    Accepts {
        must: all.join(" or "),
        schema: json!({ "enum": words.iter().map(|(word, _)| word).collect::<Vec<_>>() }),
        understand: Box::new(move |given| {
            let text = given.text()?;
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone())
        }),
    }
}

/// A text that `understand` reads; `pattern` says to editors as much of it as a pattern can.
pub(super) fn text<T>(
    must: &str,
    pattern: &str,
    understand: impl Fn(&str) -> Option<T> + 'static,
) -> Accepts<'static, T> {
    Accepts {
        must: must.to_owned(),
        schema: json!({ "type": "string", "pattern": pattern }),
        understand: Box::new(move |given| understand(given.text()?)),
    }
}

/// A list of texts, `range` of them, that `understand` reads.
pub(super) fn texts<T>(
    must: &str,
    range: RangeInclusive<usize>,
    item: &Value,
    understand: impl Fn(&[&str]) -> Option<T> + 'static,
) -> Accepts<'static, T> {
    let mut schema = json!({ "type": "array", "items": item, "minItems": range.start() });
    if *range.end() < usize::MAX {
        schema["maxItems"] = json!(range.end());
    }
    Accepts {
        must: must.to_owned(),
        schema,
        understand: Box::new(move |given| understand(&given.texts().filter(|texts| range.contains(&texts.len()))?)),
    }
}

/// A span of time, as [`duration::parse`] reads it.
pub(super) fn duration_schema() -> Value {
    json!({ "type": "string", "pattern": format!("^\\s*([0-9]+({}))+\\s*$", duration::units().join("|")) })
}

/// Where to find a secret.
pub(super) fn reference_schema() -> Value {
    let reference = |key: &str, what: &str| {
        json!({
            "type": "object",
            "properties": { key: { "type": "string", "description": what } },
            "required": [key],
            "additionalProperties": false,
        })
    };
    json!({ "anyOf": [
        reference("env", "The environment variable that holds it."),
        reference("file", "The file that holds it; a relative path starts at the folder of this file."),
    ] })
}

/// A text, or where to find it.
pub(super) fn secret_schema() -> Value {
    json!({ "anyOf": [{ "type": "string" }, reference_schema()] })
}
