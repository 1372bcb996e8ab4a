//! Reads what other programs may have written into text columns, and writes the same formats.
//!
//! Shared by the three stores, so that a row means the same on each of them. Nothing here fails: a row that cannot be
//! understood becomes a value that says so, and its neighbours are not touched.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outbox::limits::HeaderOwner;
use serde::de::IgnoredAny;

use super::Circuit;
use crate::message::{HISTORY_MAX, Headers, HistoryEntry, Key, WaitingDelivery};

/// When a message expires that has so much time left. What is so far ahead that no clock can name it never does.
pub(crate) fn expiry(left: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(left?)
}

/// Reads the `headers` column: a JSON object of strings that may travel as HTTP headers.
///
/// The reason of an undecodable one never quotes the column, because headers may hold secrets and the reason is shown
/// to people.
pub(crate) fn headers(text: &str) -> Headers {
    if text == "{}" {
        return Headers::Decoded(BTreeMap::new());
    }
    let decoded: BTreeMap<String, String> = match serde_json::from_str(text) {
        Ok(decoded) => decoded,
        Err(_) if serde_json::from_str::<IgnoredAny>(text).is_err() => {
            return Headers::Undecodable("the headers are not JSON".into());
        }
        Err(_) => return Headers::Undecodable("the headers are not a JSON object of strings".into()),
    };
    for (name, value) in &decoded {
        if name.is_empty() || !name.bytes().all(is_token) {
            return Headers::Undecodable("a header name has a character no header name may have".into());
        }
        if !HeaderOwner::of(name).is_message() {
            return Headers::Undecodable("a header has a name that is reserved for the relay".into());
        }
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Headers::Undecodable("a header value has a line break or another control character".into());
        }
    }
    Headers::Decoded(decoded)
}

/// Reads a `history` column. Entries of an unknown shape are left out: an older relay must survive a newer one's.
pub(crate) fn history(text: &str) -> Vec<HistoryEntry> {
    if text == "[]" {
        return Vec::new();
    }
    let entries: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect()
}

/// Writes a `history` column: the newest entries, as many as are kept.
pub(crate) fn history_text(entries: &[HistoryEntry]) -> String {
    let kept = &entries[entries.len().saturating_sub(HISTORY_MAX)..];
    serde_json::to_string(kept).expect("a list of plain values has a JSON form")
}

/// Reads a JSON array of strings (`serves`, `patterns`); empty when it is something else.
pub(crate) fn names(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_default()
}

/// Writes a JSON array of strings.
pub(crate) fn names_text(names: &[String]) -> String {
    serde_json::to_string(names).expect("a list of strings has a JSON form")
}

/// Reads a `circuits` column; empty when it is something else.
pub(crate) fn circuits(text: &str) -> Vec<Circuit> {
    serde_json::from_str(text).unwrap_or_default()
}

/// Writes a `circuits` column.
pub(crate) fn circuits_text(circuits: &[Circuit]) -> String {
    serde_json::to_string(circuits).expect("a list of plain values has a JSON form")
}

/// Reads a `lease_ms` column; what no relay registers is a lease without length.
pub(crate) fn lease(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

/// Writes a `lease_ms` column, rounded up: nobody may be declared dead early.
pub(crate) fn lease_ms(lease: Duration) -> i64 {
    i64::try_from(lease.as_micros().div_ceil(1_000)).unwrap_or(i64::MAX)
}

/// True for the bytes RFC 9110 allows in a header name.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may be attempted one after another: of each key, everything before its first row that is not due. The rows come
/// key by key and in order, each with whether it is due.
pub(super) fn until_not_due(rows: impl IntoIterator<Item = (WaitingDelivery, bool)>) -> Vec<WaitingDelivery> {
    let mut cut: Option<(String, Option<Key>)> = None;
    let mut kept = Vec::new();
    for (row, is_due) in rows {
        let key = (row.destination.clone(), row.message.ordering_key.clone());
        if cut.as_ref() == Some(&key) {
            continue;
        }
        if is_due {
            kept.push(row);
        } else {
            cut = Some(key);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        match headers(text) {
            Headers::Undecodable(reason) => reason,
            Headers::Decoded(decoded) => panic!("{text} was decoded as {decoded:?}"),
        }
    }

    #[test]
    fn an_object_of_strings_is_decoded_whatever_its_spacing() {
        let Headers::Decoded(decoded) = headers(" { \"a\" : \"1\", \"x-b\":\"grün\" }\n") else { panic!() };
        assert_eq!(
            decoded.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), "1".to_owned()), ("x-b".to_owned(), "grün".to_owned())]
        );
        assert_eq!(headers("{}"), Headers::Decoded(BTreeMap::new()));
    }

    #[test]
    fn what_cannot_travel_is_named_and_never_quoted() {
        for (text, word) in [
            ("", "JSON"),
            ("{", "not JSON"),
            ("[]", "object"),
            ("{\"a\":1}", "object of strings"),
            ("\"hunter2\"", "object"),
            ("{\"hunter2 \":\"x\"}", "name"),
            ("{\"\":\"x\"}", "name"),
            ("{\"Host\":\"hunter2\"}", "reserved"),
            ("{\"Webhook-Id\":\"hunter2\"}", "reserved"),
            ("{\"Authorization\":\"hunter2\"}", "reserved"),
            ("{\"x-forwarded-for\":\"hunter2\"}", "reserved"),
            ("{\"a\":\"hunter2\\r\\nb: c\"}", "line break"),
            ("{\"a\":\"hunter2\\u0000\"}", "control"),
            ("{\"a\":\"hunter2\\u007f\"}", "control"),
            ("{\"a\":\"hunter2\\u001b[2J\"}", "control"),
        ] {
            let reason = reason(text);
            assert!(reason.contains(word), "{text}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn a_history_keeps_the_newest_and_survives_what_it_does_not_know() {
        let known =
            r#"{"n":1,"at":"2026-01-02T03:04:05Z","ms":12,"verdict":"retry","code":"503","relay":"r","new":{}}"#;
        assert_eq!(history(&format!("[{known},{{\"n\":\"?\"}},7]")).len(), 1);
        assert!(history("broken").is_empty());
        let mut entries = Vec::new();
        for n in 1..=HISTORY_MAX as u32 + 5 {
            entries.push(HistoryEntry { n, ..history(&format!("[{known}]"))[0].clone() });
        }
        let kept = history(&history_text(&entries));
        assert_eq!((kept.len(), kept[0].n), (HISTORY_MAX, 6));
    }

    #[test]
    fn names_survive_the_round_trip() {
        let some = vec!["a".to_owned(), "\"b".to_owned()];
        assert_eq!(names(&names_text(&some)), some);
        assert!(names("{}").is_empty());
    }
}
