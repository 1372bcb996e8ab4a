//! What a message may look like.
//!
//! The same rules for everybody who writes or reads messages: the library refuses what breaks them before anything is
//! written, the relay calls a row of another producer that breaks them undecodable. Each check and its text are built
//! from the same constant.

use crate::error::Refusal;

/// The longest topic, in bytes.
pub const TOPIC_BYTES_MAX: usize = 128;
/// The longest ordering key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// The largest payload, in bytes, unless the envelope allows more.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// The largest payload an envelope may allow. A row must fit into MariaDB's packet of 16 MiB with room to spare: beyond
/// it the server closes the connection, which looks like an outage.
pub const PAYLOAD_BYTES_CEILING: usize = 8 * 1024 * 1024;
/// The most headers of one message.
pub const HEADERS_MAX: usize = 64;
/// The most bytes of all header names and values of one message together. Common servers accept 8 KiB of headers in
/// all, and the relay adds its own.
pub const HEADERS_BYTES_MAX: usize = 4 * 1024;
/// The longest content type, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// The longest name of a destination, in bytes.
pub const DESTINATION_BYTES_MAX: usize = 63;
/// The highest version of a message type; the column is a small integer.
pub const VERSION_MAX: u16 = i16::MAX as u16;

/// What the relay says about a message and what belongs to the connection.
const RELAY_NAMES: [&str; 14] = [
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
const RELAY_PREFIXES: [&str; 4] = ["ce-", "outbox-", "proxy-", "webhook-"];

/// What gives rights, or speaks for somebody on the way.
const DESTINATION_NAMES: [&str; 10] = [
    "authorization",
    "cf-connecting-ip",
    "cookie",
    "forwarded",
    "true-client-ip",
    "via",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-real-ip",
];
const DESTINATION_PREFIXES: [&str; 2] = ["sec-", "x-forwarded-"];

/// The context a message was created in.
const MESSAGE_NAMES: [&str; 2] = ["traceparent", "tracestate"];

/// Who may set a header of the requests that carry a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderOwner {
    /// The relay and its HTTP client, nobody else.
    Relay,
    /// The configuration of a destination, not a message.
    Destination,
    /// A message, not the configuration of a destination.
    Message,
    /// A message, or the configuration of a destination, which prevails.
    Anyone,
}

impl HeaderOwner {
    /// Whose the header `name` is, in whatever case it is written.
    pub fn of(name: &str) -> HeaderOwner {
        let is_one_of = |names: &[&str]| names.iter().any(|each| name.eq_ignore_ascii_case(each));
        let begins_with_one_of = |prefixes: &[&str]| {
            prefixes.iter().any(|each| name.get(..each.len()).is_some_and(|start| start.eq_ignore_ascii_case(each)))
        };
        if is_one_of(&RELAY_NAMES) || begins_with_one_of(&RELAY_PREFIXES) {
            HeaderOwner::Relay
        } else if is_one_of(&DESTINATION_NAMES) || begins_with_one_of(&DESTINATION_PREFIXES) {
            HeaderOwner::Destination
        } else if is_one_of(&MESSAGE_NAMES) {
            HeaderOwner::Message
        } else {
            HeaderOwner::Anyone
        }
    }

    /// True when a message may bring the header along.
    pub fn is_message(self) -> bool {
        matches!(self, HeaderOwner::Message | HeaderOwner::Anyone)
    }
}

/// Checks a topic.
pub fn check_topic(topic: &str) -> Result<(), Refusal> {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(is_topic_byte);
    if topic.len() > TOPIC_BYTES_MAX {
        return Err(Refusal::new(
            format!("the topic has {} bytes, at most {TOPIC_BYTES_MAX} are allowed", topic.len()),
            "name the kind of message; what differs from message to message belongs into the payload or the key",
        ));
    }
    if !topic.split('.').all(is_word) {
        return Err(Refusal::new(
            format!("`{}` is not a topic", topic.escape_debug()),
            "join words of letters, digits, `_` and `-` by single dots, as in `order.placed`",
        ));
    }
    Ok(())
}

/// Checks an ordering key.
pub fn check_key(key: &str) -> Result<(), Refusal> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::new(
            format!("the ordering key has {} bytes, at most {KEY_BYTES_MAX} are allowed", key.len()),
            "use the id of the thing whose messages must stay in order, or a hash of it",
        ));
    }
    if key.contains('\0') {
        return Err(Refusal::new(
            "the ordering key contains a NUL character",
            "databases cannot store it in a text; encode the key, for example as hexadecimal digits",
        ));
    }
    Ok(())
}

/// Checks the size of a payload against `max`, itself limited by [`PAYLOAD_BYTES_CEILING`].
pub fn check_payload_bytes(bytes: usize, max: usize) -> Result<(), Refusal> {
    let max = max.min(PAYLOAD_BYTES_CEILING);
    if bytes > max {
        return Err(Refusal::new(
            format!("the payload has {bytes} bytes, at most {max} are allowed"),
            if max < PAYLOAD_BYTES_CEILING {
                "store it elsewhere and enqueue a reference, or raise the limit with `Envelope::payload_max`"
            } else {
                "store it elsewhere and enqueue a reference"
            },
        ));
    }
    Ok(())
}

/// Checks one header. `name` must already be in lower case.
///
/// `traceparent` and `tracestate` are allowed: they carry the context the message was created in, and are passed on.
pub fn check_header(name: &str, value: &str) -> Result<(), Refusal> {
    if name.is_empty() || !name.bytes().all(is_name_byte) {
        return Err(Refusal::new(
            format!("`{}` is not a header name", name.escape_debug()),
            "use lower-case letters, digits and `-`",
        ));
    }
    if !HeaderOwner::of(name).is_message() {
        return Err(Refusal::new(
            format!("the header `{name}` is reserved"),
            match name {
                "content-type" => "use `Envelope::content_type`",
                "authorization" | "cookie" => "put credentials into the configuration of the destination",
                "idempotency-key" => "receivers get the message id there",
                _ => "choose another name; this one belongs to the relay or to HTTP itself",
            },
        ));
    }
    if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return Err(Refusal::new(
            format!("the value of the header `{name}` contains a line break, a control or a non-ASCII character"),
            "encode it, for example with percent signs, or move it into the payload",
        ));
    }
    if value.trim_matches([' ', '\t']).len() != value.len() {
        return Err(Refusal::new(
            format!("the value of the header `{name}` begins or ends with a blank"),
            "trim it; receivers would see another value than the one stored",
        ));
    }
    if name == "traceparent" && !is_traceparent(value) {
        return Err(Refusal::new(
            "the header `traceparent` is not a trace context",
            "write it as the W3C recommendation says: `00-<32 hexadecimal digits>-<16>-<2>`, in lower case",
        ));
    }
    Ok(())
}

/// Checks the number and the size of all headers of a message.
pub fn check_header_total<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), Refusal> {
    let (count, bytes) =
        headers.into_iter().fold((0, 0), |(count, bytes), (name, value)| (count + 1, bytes + name.len() + value.len()));
    if count > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        return Err(Refusal::new(
            format!(
                "the message has {count} headers of {bytes} bytes together, at most {HEADERS_MAX} and \
                 {HEADERS_BYTES_MAX} bytes are allowed"
            ),
            "move what is not about transport into the payload",
        ));
    }
    Ok(())
}

/// Checks a content type.
pub fn check_content_type(content_type: &str) -> Result<(), Refusal> {
    let is_safe = content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && content_type.trim() == content_type;
    let essence = content_type.split(';').next().unwrap_or_default().trim_end();
    let names_a_type = matches!(essence.split_once('/'), Some((kind, subtype))
        if !kind.is_empty() && !subtype.is_empty() && kind.bytes().chain(subtype.bytes()).all(is_token_byte));
    if content_type.len() > CONTENT_TYPE_BYTES_MAX || !is_safe || !names_a_type {
        return Err(Refusal::new(
            format!("`{}` is not a content type", content_type.escape_debug()),
            format!("write type and subtype, as in `text/plain`, in at most {CONTENT_TYPE_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

/// Checks the name of a destination.
pub fn check_destination(name: &str) -> Result<(), Refusal> {
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
    let goes_on = bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if !begins || !goes_on || name.len() > DESTINATION_BYTES_MAX {
        return Err(Refusal::new(
            format!("`{}` is not the name of a destination", name.escape_debug()),
            format!(
                "begin with a lower-case letter, go on with lower-case letters, digits and `_`, in at most \
                 {DESTINATION_BYTES_MAX} bytes"
            ),
        ));
    }
    Ok(())
}

/// Checks the version of a message type.
pub fn check_version(version: u16) -> Result<(), Refusal> {
    if version == 0 || version > VERSION_MAX {
        return Err(Refusal::new(format!("{version} is not a version"), format!("count from 1 up to {VERSION_MAX}")));
    }
    Ok(())
}

fn is_topic_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// RFC 9110's `tchar`.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_name_byte(byte: u8) -> bool {
    is_token_byte(byte) && !byte.is_ascii_uppercase()
}

fn is_traceparent(value: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let parts: Vec<&str> = value.split('-').collect();
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2])
        && parts.iter().all(|part| is_hex(part))
        && parts[1].bytes().any(|byte| byte != b'0')
        && parts[2].bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_words_joined_by_single_dots() {
        for good in ["a", "order.placed", "A-1.b_2.C", "0", "-", &"x".repeat(TOPIC_BYTES_MAX)] {
            assert_eq!(check_topic(good), Ok(()), "{good}");
        }
        let long = "x".repeat(TOPIC_BYTES_MAX + 1);
        for bad in ["", ".", ".a", "a.", "a..b", "a b", "a\n", "ä", "a.*", "a\0", "a/b", "'; DROP", &long] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_limited_in_bytes_not_in_characters() {
        assert_eq!(check_key(&"k".repeat(255)), Ok(()));
        assert_eq!(check_key(""), Ok(()));
        assert_eq!(check_key("Ünïcode \n' \\ \u{202e}"), Ok(()));
        assert!(check_key(&"k".repeat(256)).is_err());
        assert!(check_key(&"ä".repeat(128)).is_err());
        assert!(check_key("a\0b").is_err());
    }

    #[test]
    fn payload_limit_can_be_raised_up_to_the_ceiling() {
        assert!(check_payload_bytes(PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX).is_ok());
        assert!(check_payload_bytes(PAYLOAD_BYTES_MAX + 1, PAYLOAD_BYTES_MAX).is_err());
        assert!(check_payload_bytes(PAYLOAD_BYTES_CEILING, usize::MAX).is_ok());
        assert!(check_payload_bytes(PAYLOAD_BYTES_CEILING + 1, usize::MAX).is_err());
    }

    #[test]
    fn headers_that_could_forge_a_request_are_refused() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (name, value) in [("x-tenant", "7"), ("x", ""), ("accept-language", "de, en\t;q=1"), ("traceparent", trace)]
        {
            assert_eq!(check_header(name, value), Ok(()), "{name}");
        }
        let host_smuggled = ["host", "content-length", "transfer-encoding", "idempotency-key", "authorization"];
        let spoofed = ["webhook-id", "webhook-signature", "ce-type", "outbox-attempt", "sec-fetch-site", "proxy-a"];
        let malformed = ["", "X-Upper", "a b", "a:b", "a\r\nb", "ä", ":path"];
        for name in host_smuggled.iter().chain(&spoofed).chain(&malformed) {
            assert!(check_header(name, "1").is_err(), "{name:?}");
        }
        for value in ["a\r\nhost: b", "a\n", "\r", "a\0", "\u{7f}", " a", "a\t", "ä"] {
            assert!(check_header("x-tenant", value).is_err(), "{value:?}");
        }
        for value in ["", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", &trace.replace('b', "0")[..54]] {
            assert!(check_header("traceparent", value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_header_has_one_owner_in_whatever_case_it_is_written() {
        for (name, owner) in [
            ("Host", HeaderOwner::Relay),
            ("WEBHOOK-ID", HeaderOwner::Relay),
            ("proxy-connection", HeaderOwner::Relay),
            ("Authorization", HeaderOwner::Destination),
            ("X-Forwarded-For", HeaderOwner::Destination),
            ("traceparent", HeaderOwner::Message),
            ("x-tenant", HeaderOwner::Anyone),
            ("ce", HeaderOwner::Anyone),
            ("c\u{e9}-", HeaderOwner::Anyone),
            ("", HeaderOwner::Anyone),
        ] {
            assert_eq!(HeaderOwner::of(name), owner, "{name}");
        }
    }

    #[test]
    fn headers_are_limited_together() {
        let value = "v".repeat(HEADERS_BYTES_MAX / 4);
        let headers = [("a", &value[1..]), ("b", &value[1..]), ("c", &value[1..]), ("d", &value[1..])];
        assert_eq!(check_header_total(headers), Ok(()));
        assert!(check_header_total(headers.into_iter().chain([("e", "")])).is_err());
        assert!(check_header_total(std::iter::repeat_n(("a", ""), HEADERS_MAX + 1)).is_err());
    }

    #[test]
    fn content_types_name_type_and_subtype() {
        for good in ["application/json", "text/plain; charset=utf-8", "application/vnd.shop+json"] {
            assert_eq!(check_content_type(good), Ok(()), "{good}");
        }
        let long = format!("text/{}", "x".repeat(CONTENT_TYPE_BYTES_MAX));
        for bad in ["", "json", "/", "a/", "text/plain\r\nx: y", "text/pläin", " text/plain", "a b/c", &long] {
            assert!(check_content_type(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn destinations_and_versions_fit_their_columns() {
        for good in ["a", "billing_2", &"a".repeat(63)] {
            assert_eq!(check_destination(good), Ok(()), "{good}");
        }
        for bad in ["", "2b", "Billing", "bill-ing", "_a", "ä", &"a".repeat(64)] {
            assert!(check_destination(bad).is_err(), "{bad}");
        }
        assert_eq!(check_version(VERSION_MAX), Ok(()));
        assert!(check_version(0).is_err() && check_version(VERSION_MAX + 1).is_err());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let error = check_topic("a b").unwrap_err().to_string();
        assert_eq!(
            error,
            "outbox: `a b` is not a topic.\n  help: join words of letters, digits, `_` and `-` by single dots, as in \
             `order.placed`."
        );
    }
}
