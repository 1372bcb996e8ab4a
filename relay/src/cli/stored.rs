//! What applications and relays stored, as it is shown: keys, times, payloads, attempts.
//!
//! None of it is trusted. For a terminal it is made visible; as JSON it is escaped anyway.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::output::{table, visible};

/// A key is bytes; nearly always they are text.
pub(super) fn key(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// A key as one word of a shell's command line, after the options; nothing when it is no text.
pub(super) fn shell_word(key: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(key).ok().filter(|text| !text.chars().any(char::is_control))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.,:/@%+=-".contains(c);
    let quoted = match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    };
    Some(if text.starts_with('-') { format!("-- {quoted}") } else { quoted })
}

/// An instant, to the second.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A payload on one line, or its digits when it is no text; said so, because text may look like digits.
pub(super) fn payload(payload: &[u8]) -> String {
    std::str::from_utf8(payload).map_or_else(|_| format!("binary, in hex: {}", hex(payload)), visible)
}

/// JSON that somebody stored as text; the text when it is none.
pub(super) fn stored_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

/// Bytes as digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The attempts of a history as a table, when there are any.
pub(super) fn attempts(history: &str) -> Option<String> {
    let attempts: Vec<Value> = serde_json::from_str(history).unwrap_or_default();
    if attempts.is_empty() {
        return None;
    }
    let cell = |attempt: &Value, name: &str| match &attempt[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(value) => if *value { "maybe" } else { "" }.to_owned(),
        other => other.to_string(),
    };
    let columns = ["n", "at", "ms", "verdict", "code", "relay", "remote", "maybe", "text"];
    let rows: Vec<Vec<String>> =
        attempts.iter().map(|attempt| columns.map(|name| cell(attempt, name)).to_vec()).collect();
    Some(table(&["N", "AT", "MS", "VERDICT", "CODE", "RELAY", "ADDRESS", "ARRIVED", "TEXT"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word_for_a_shell() {
        for (key, word) in [
            ("order-7", "order-7"),
            ("a b", "'a b'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
            ("", "''"),
            ("-7", "-- -7"),
            ("ä", "'ä'"),
        ] {
            assert_eq!(shell_word(key.as_bytes()).as_deref(), Some(word));
        }
        assert_eq!(shell_word(b"k\xff"), None);
        assert_eq!(shell_word(b"a\nb"), None);
    }
}
