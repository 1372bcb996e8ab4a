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
            Ok(text) if kind == Kind::Json && serde_json::from_str::<IgnoredAny>(text).is_ok() => Data::Json(text),
            Ok(text) if kind == Kind::Text => Data::Text(text),
            _ => Data::Bytes(payload),
        }
    }
}

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
