//! A payload as a value within JSON.
//!
//! The content type decides, so that the messages of a topic look alike; the bytes have a veto, so that nothing is lost:
//! what is not what its type says is carried as bytes.
//!
//! JSON is checked and never rewritten. Numbers beyond a double, names that come twice, blanks: they arrive as they were
//! enqueued.

use std::str::from_utf8;

use serde::de::IgnoredAny;

use crate::message::{Headers, Message};

/// What a payload is within JSON.
#[derive(Debug, PartialEq)]
pub(super) enum Data<'m> {
    /// There is none.
    Nothing,
    /// A JSON document, which stands in another as it is.
    Json(&'m str),
    /// Text, which becomes a JSON string.
    Text(&'m str),
    /// Anything else, which becomes base64.
    Bytes(&'m [u8]),
}

impl Data<'_> {
    /// The payload as what its content type says, or as bytes where it is not that.
    pub(super) fn of(message: &Message) -> Data<'_> {
        let payload = message.payload.as_ref();
        if payload.is_empty() {
            return Data::Nothing;
        }
        // Whatever its type says: it is packed.
        let kind = if is_encoded(&message.headers) { Kind::Bytes } else { kind(&message.content_type) };
        match from_utf8(payload) {
            Ok(text) if kind == Kind::Json && is_readable(text) => Data::Json(text),
            Ok(text) if kind == Kind::Text => Data::Text(text),
            _ => Data::Bytes(payload),
        }
    }
}

/// True for JSON that a receiver's parser can read within an envelope. Many refuse the whole of it for one value that is
/// nested too deeply, or for half of a surrogate pair.
fn is_readable(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok() && depth(text) <= DEPTH_MAX && !has_lone_surrogate(text)
}

/// How deeply arrays and objects of valid JSON are nested.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// True when an escape of valid JSON names one half of a character that takes two.
fn has_lone_surrogate(text: &str) -> bool {
    let mut rest = text;
    let mut high = false;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at + 1..];
        let unit = escape.strip_prefix('u').and_then(|digits| u16::from_str_radix(digits.get(..4)?, 16).ok());
        let is_low = unit.is_some_and(|unit| (0xdc00..=0xdfff).contains(&unit));
        // The second half follows at once.
        if high != is_low || high && at > 0 {
            return true;
        }
        high = unit.is_some_and(|unit| (0xd800..=0xdbff).contains(&unit));
        rest = &escape[if unit.is_some() { 5 } else { 1 }..];
    }
    high
}

/// With the envelope around it this is 64, what .NET's parser reads unless it is told otherwise
/// (`JsonReaderOptions.MaxDepth`); the others read more.
const DEPTH_MAX: usize = 63;

fn is_encoded(headers: &Headers) -> bool {
    let Headers::Decoded(headers) = headers else { return false };
    let mut encodings = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-encoding"));
    encodings.any(|(_, encoding)| !encoding.trim().eq_ignore_ascii_case("identity"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Text,
    Bytes,
}

/// What a content type declares. JSON is what CloudEvents takes for it, also where nothing is declared; text is what says
/// so by its type, its suffix, or by being in UTF-8.
fn kind(content_type: &str) -> Kind {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let charset = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("charset").then(|| value.trim_matches('"').to_ascii_lowercase())
    });
    let (major, minor) = essence.split_once('/').unwrap_or_default();
    // JSON has one encoding, whatever a parameter says.
    if essence.is_empty() || minor == "json" || minor.ends_with("+json") {
        return Kind::Json;
    }
    match charset.as_deref() {
        Some("utf-8" | "utf8" | "us-ascii") => Kind::Text,
        Some(_) => Kind::Bytes,
        None if major == "text" || minor == "xml" || minor.ends_with("+xml") => Kind::Text,
        None if essence == "application/x-www-form-urlencoded" => Kind::Text,
        None => Kind::Bytes,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::request::tests::message;
    use super::*;

    #[test]
    fn a_content_type_says_what_is_json_and_what_is_text() {
        for (content_type, expected) in [
            ("", Kind::Json),
            ("application/json", Kind::Json),
            ("Application/JSON; charset=latin1", Kind::Json),
            ("text/json", Kind::Json),
            ("application/vnd.shop.order+json;v=2", Kind::Json),
            ("application/cloudevents+json", Kind::Json),
            ("text/plain", Kind::Text),
            ("text/csv; header=present; Charset=\"UTF-8\"", Kind::Text),
            ("image/svg+xml", Kind::Text),
            ("application/xml", Kind::Text),
            ("application/x-www-form-urlencoded", Kind::Text),
            ("application/yaml; charset=utf-8", Kind::Text),
            ("text/plain; charset=iso-8859-1", Kind::Bytes),
            ("application/octet-stream", Kind::Bytes),
            ("application/jsonlines", Kind::Bytes),
            ("application/x-protobuf", Kind::Bytes),
            ("json", Kind::Bytes),
            ("/", Kind::Bytes),
            (";", Kind::Json),
        ] {
            assert_eq!(kind(content_type), expected, "{content_type}");
        }
    }

    #[test]
    fn what_is_packed_is_carried_as_bytes() {
        for (encoding, expected) in [("gzip", Data::Bytes(b"{}")), ("Identity", Data::Json("{}"))] {
            let headers = Headers::Decoded([("Content-Encoding".to_owned(), encoding.to_owned())].into());
            assert_eq!(Data::of(&Message { headers, ..message() }), expected);
        }
    }

    #[test]
    fn what_many_parsers_refuse_is_carried_as_bytes() {
        let nested = |depth: usize| format!("{}\"[{{\\\"[[\"{}", "[".repeat(depth), "]".repeat(depth));
        for (payload, is_json) in [
            (nested(63), true),
            (nested(64), false),
            (nested(100_000), false),
            (format!("[{}{{}}]", "[],".repeat(1000)), true),
            (r#""\ud83d\ude00 \u20ac \n\\""#.to_owned(), true),
            (r#""\uD83D\uDE00\uD83D\uDE00""#.to_owned(), true),
            (r#""\\ud83d""#.to_owned(), true),
            (r#""\ud83d""#.to_owned(), false),
            (r#""\ude00""#.to_owned(), false),
            (r#""\ud83d \ude00""#.to_owned(), false),
            (r#""\ud83d\n""#.to_owned(), false),
            (r#"["\ud83d","\ude00"]"#.to_owned(), false),
        ] {
            let message = Message { payload: payload.clone().into(), ..message() };
            let payload = &payload[..payload.len().min(200)];
            assert_eq!(matches!(Data::of(&message), Data::Json(_)), is_json, "{payload}");
        }
    }

    #[test]
    fn what_is_not_what_its_type_says_is_carried_as_bytes() {
        for (content_type, payload, expected) in [
            ("application/json", &b""[..], Data::Nothing),
            ("text/plain", b"", Data::Nothing),
            ("application/json", b"{\"a\": 1e999, \"a\":\t2}\n", Data::Json("{\"a\": 1e999, \"a\":\t2}\n")),
            ("application/json", b"null", Data::Json("null")),
            ("application/json", b" ", Data::Bytes(b" ")),
            ("application/json", b"{\"a\": }", Data::Bytes(b"{\"a\": }")),
            ("application/json", b"{} {}", Data::Bytes(b"{} {}")),
            ("application/json", b"1}, \"id\": \"forged\"", Data::Bytes(b"1}, \"id\": \"forged\"")),
            ("application/json", b"\"\xff\"", Data::Bytes(b"\"\xff\"")),
            ("application/json", b"\xef\xbb\xbf{}", Data::Bytes(b"\xef\xbb\xbf{}")),
            ("application/json", b"NaN", Data::Bytes(b"NaN")),
            ("text/plain", b"{}", Data::Text("{}")),
            ("text/plain", b"a\0\xff", Data::Bytes(b"a\0\xff")),
            ("application/octet-stream", b"plain", Data::Bytes(b"plain")),
        ] {
            let message =
                Message { content_type: content_type.into(), payload: Bytes::from_static(payload), ..message() };
            assert_eq!(Data::of(&message), expected, "{content_type}: {payload:?}");
        }
    }
}
