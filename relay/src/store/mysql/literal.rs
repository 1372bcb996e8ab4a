//! Values as SQL text.
//!
//! Everything is sent as plain text: the number of holes, rows and units differs with every call, so that prepared
//! statements would be prepared once and used once. What this file writes is made of digits, hexadecimal digits and the
//! punctuation of JSON only. It reads the same in every sql_mode and every character set, and nothing has to be
//! escaped.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::message::PartitionSet;
use crate::store::Now;

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: impl AsRef<[u8]>) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = bytes.as_ref();
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// A binary string.
pub(super) fn bytes(value: impl AsRef<[u8]>) -> String {
    format!("x'{}'", hex(value))
}

/// A character string that compares as the columns do.
pub(super) fn text(value: &str) -> String {
    format!("_utf8mb4 x'{}' COLLATE utf8mb4_bin", hex(value))
}

/// A document for JSON_TABLE.
pub(super) fn document(value: &Value) -> String {
    let json = value.to_string();
    if json.contains(['\'', '\\']) {
        return format!("_utf8mb4 x'{}'", hex(json));
    }
    format!("'{json}'")
}

/// The hour a question is asked at.
pub(super) fn now(now: Now) -> String {
    now.map_or_else(|| "utc_timestamp(6)".into(), instant)
}

/// An instant, to the microsecond.
pub(super) fn instant(at: DateTime<Utc>) -> String {
    format!("CAST('{}' AS DATETIME(6))", at.format("%Y-%m-%d %H:%M:%S%.6f"))
}

/// A list for `IN (…)`. No partition at all becomes a list that nothing is in.
pub(super) fn partitions(set: PartitionSet) -> String {
    if set.is_empty() { "NULL".into() } else { numbers(set.iter()) }
}

/// Numbers with commas between them.
pub(super) fn numbers<N: ToString>(numbers: impl IntoIterator<Item = N>) -> String {
    numbers.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

/// Microseconds, at most a century: beyond the year 9999 the server's sum would be NULL.
pub(super) fn micros(duration: Duration) -> i64 {
    const CENTURY: i64 = 100 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).unwrap_or(CENTURY).min(CENTURY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_any_kind_becomes_digits() {
        assert_eq!(hex([0, 0x7f, 0xff]), "007fff");
        assert_eq!(text("a'\\\0"), "_utf8mb4 x'61275c00' COLLATE utf8mb4_bin");
        assert_eq!(bytes([]), "x''");
        assert_eq!(document(&serde_json::json!([[1, "ab"]])), "'[[1,\"ab\"]]'");
        assert!(document(&serde_json::json!(["'"])).starts_with("_utf8mb4 x'"));
        assert!(document(&serde_json::json!(["\n"])).starts_with("_utf8mb4 x'"));
    }

    #[test]
    fn no_partition_is_a_list_nothing_is_in() {
        assert_eq!(partitions(PartitionSet::EMPTY), "NULL");
        assert_eq!(partitions([3, 1].into_iter().collect()), "1,3");
    }

    #[test]
    fn a_pause_without_end_stays_within_the_calendar() {
        assert_eq!(micros(Duration::from_micros(7)), 7);
        assert_eq!(micros(Duration::MAX), 100 * 365 * 86_400 * 1_000_000);
    }
}
