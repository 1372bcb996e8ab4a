//! A message as the headers and the body of a request.
//!
//! Pure: the message, the attempt and the hour go in. The names of a message come from other programs and are only
//! trusted to be text; what cannot be a header is an error for the caller to judge.
//!
//! What the relay says about a message is written last and replaces what the message says itself.

use std::time::SystemTime;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use outbox::limits::HeaderOwner;
use outbox::signature::{self, Secret};

use super::attributes::attributes;
use super::body::{Body, body};
use super::{HttpError, Mode};
use crate::message::{Headers, Message};
use crate::sink::Attempt;

/// How many headers a message may bring; the rest of the world refuses more.
const MESSAGE_HEADERS_MAX: usize = 100;

/// The header that carries a trace, passed on as it is and, as the context of the creation, as an attribute.
const TRACEPARENT: &str = "traceparent";

/// What a message may say about the bytes of its payload.
const OF_THE_PAYLOAD: [&str; 7] =
    ["content-digest", "content-encoding", "content-language", "content-md5", "content-range", "digest", "repr-digest"];

/// What the requests of a destination have in common.
#[derive(Clone)]
pub(super) struct Setup {
    /// Their shape.
    pub(super) mode: Mode,
    /// How this outbox names itself.
    pub(super) source: String,
    /// The headers of [`fixed`].
    pub(super) headers: HeaderMap,
    /// What signs them, the newest first.
    pub(super) keys: Vec<Secret>,
}

/// What is sent.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Builds a request, or says what in the message cannot be a header.
pub(super) fn request(message: &Message, attempt: &Attempt, setup: &Setup, now: SystemTime) -> Result<Request, String> {
    let mut headers = stored(&message.headers)?;
    // Of several none is the right one (W3C Trace Context, 3.2.1); they are sent as they are.
    let mut contexts = headers.get_all(TRACEPARENT).iter();
    let traceparent = contexts.next().filter(|_| contexts.next().is_none());
    let traceparent = traceparent.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let attributes = attributes(message, &setup.source, traceparent);
    // Also where it travels in the body, so that a message is not a good one in one mode and a bad one in another.
    HeaderValue::from_bytes(message.content_type.as_bytes())
        .map_err(|_| "the content type has a character no header may have".to_owned())?;
    if setup.mode == Mode::Binary && is_event(&message.content_type) {
        return Err(
            "the payload is a CloudEvent itself (by its content type), and in mode `binary` receivers would take it \
                    for the one that is sent; use mode `raw` or `structured`"
                .to_owned(),
        );
    }
    let Body { bytes: body, content_type } = body(setup.mode, message, &attributes);
    if matches!(setup.mode, Mode::Structured | Mode::Standard) {
        // They speak of the payload, which is a part of the body now.
        for name in OF_THE_PAYLOAD {
            headers.remove(name);
        }
    }

    for (name, value) in &setup.headers {
        headers.insert(name, value.clone());
    }
    if !content_type.is_empty() {
        let checked = "a content type of our own is ASCII, and the message's was looked at";
        headers.insert(CONTENT_TYPE, HeaderValue::from_bytes(content_type.as_bytes()).expect(checked));
    }
    if body.is_empty() {
        // The client leaves it out where there is no body, and servers may then refuse a POST with 411.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("outbox-relay/", env!("CARGO_PKG_VERSION"))));

    let id = message.id.to_string();
    // Quoted, because the header is defined to hold a structured-field string.
    let quoted = HeaderValue::try_from(format!("\"{id}\"")).expect("an id consists of hexadecimal digits and dashes");
    headers.insert("idempotency-key", quoted);
    let is_raw = setup.mode == Mode::Raw;
    if !is_raw || !setup.keys.is_empty() {
        webhook(&mut headers, &id, &body, &setup.keys, now);
    }
    if setup.mode == Mode::Binary {
        for (name, value) in &attributes {
            set(&mut headers, name, value);
        }
    }
    if !is_raw {
        set(&mut headers, "outbox-attempt", attempt.number.to_string());
        set(&mut headers, "outbox-destination", attempt.destination.as_bytes());
        set(&mut headers, "outbox-sequence", message.seq.to_string());
        set(&mut headers, "outbox-message-version", message.version.to_string());
    }
    Ok(Request { headers, body })
}

/// By this type a receiver decides that a body is an event, or several, whatever the headers say.
fn is_event(content_type: &str) -> bool {
    let start = content_type.trim_start().get(.."application/cloudevents".len());
    start.is_some_and(|start| start.eq_ignore_ascii_case("application/cloudevents"))
}

/// The headers of Standard Webhooks, with a signature for each key.
fn webhook(headers: &mut HeaderMap, id: &str, body: &[u8], keys: &[Secret], now: SystemTime) {
    let unix_secs = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    set(headers, signature::ID, id);
    set(headers, signature::TIMESTAMP, unix_secs.to_string());
    if !keys.is_empty() {
        let signatures = signature::sign(keys, id, unix_secs, body);
        let signatures = HeaderValue::try_from(signatures).expect("signatures are base64, commas and blanks");
        headers.insert(signature::SIGNATURE, signatures);
    }
}

/// The headers configured for every request of a destination.
pub(super) fn fixed(configured: &[(String, String)]) -> Result<HeaderMap, HttpError> {
    let mut headers = HeaderMap::new();
    for (name, value) in configured {
        let error = |problem| HttpError::Header { name: name.clone(), problem };
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| error("this is no header name"))?;
        match HeaderOwner::of(key.as_str()) {
            HeaderOwner::Relay => return Err(error("the relay or the connection sets it")),
            HeaderOwner::Message => return Err(error("it comes with each message")),
            HeaderOwner::Destination | HeaderOwner::Anyone => {}
        }
        let mut value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| error("its value has a line break or another character no header may have"))?;
        value.set_sensitive(true);
        headers.try_insert(key, value).map_err(|_| error("there are too many headers"))?;
    }
    Ok(headers)
}

fn stored(headers: &Headers) -> Result<HeaderMap, String> {
    let stored = match headers {
        Headers::Decoded(stored) => stored,
        Headers::Undecodable(problem) => return Err(problem.clone()),
    };
    if stored.len() > MESSAGE_HEADERS_MAX {
        return Err(format!("the message has {} headers; {MESSAGE_HEADERS_MAX} can be sent", stored.len()));
    }
    let mut headers = HeaderMap::with_capacity(stored.len() + 20);
    for (name, value) in stored {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| "a header name has a character no header name may have".to_owned())?;
        if !HeaderOwner::of(name.as_str()).is_message() {
            return Err(format!("the header `{name}` is reserved for the relay"));
        }
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| format!("the value of the header `{name}` has a character no header may have"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Sets a header to a value in the encoding of the CloudEvents HTTP binding, which leaves ordinary values as they are.
fn set(headers: &mut HeaderMap, name: &'static str, value: impl AsRef<[u8]>) {
    let value = HeaderValue::try_from(percent_encoded(value.as_ref())).expect("what is encoded is visible ASCII");
    headers.insert(name, value);
}

/// Space, quotes, percent and everything beyond visible ASCII as `%XX`, byte by byte.
fn percent_encoded(value: &[u8]) -> String {
    let mut encoded = String::with_capacity(value.len());
    for &byte in value {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write;
    use std::time::Duration;

    use bytes::Bytes;
    use chrono::DateTime;

    use super::*;
    use crate::message;
    use crate::sink::Unit;

    pub(in crate::sink::http) fn message() -> Message {
        Message {
            id: uuid::Uuid::from_u128(0x0193_5a7e_0000_7000_8000_0000_0000_002a),
            topic: "order.placed".into(),
            ordering_key: Some(b"customer-1".as_slice().into()),
            version: 2,
            created_at: DateTime::from_timestamp_micros(1_795_000_000_123_456).unwrap(),
            ..message::example(1207)
        }
    }

    fn with_headers(stored: &[(&str, &str)]) -> Message {
        let stored = stored.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Message { headers: Headers::Decoded(stored), ..message() }
    }

    fn setup(mode: Mode, keys: &[Secret]) -> Setup {
        Setup { mode, source: "/shop".into(), headers: HeaderMap::new(), keys: keys.to_vec() }
    }

    fn attempt() -> Attempt {
        Attempt { destination: "billing".into(), number: 4, timeout: Duration::from_secs(15), unit: Unit::Shared }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_000_060_900)
    }

    fn build(message: &Message, configured: &[(&str, &str)]) -> Result<HeaderMap, String> {
        let configured: Vec<_> = configured.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let setup = Setup { headers: fixed(&configured).unwrap(), ..setup(Mode::Binary, &[]) };
        request(message, &attempt(), &setup, now()).map(|request| request.headers)
    }

    fn told(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort();
        lines.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        })
    }

    #[test]
    fn a_request_says_all_there_is_to_say() {
        let message = with_headers(&[
            ("X-Tenant", "caf\u{e9}"),
            ("x-priority", "the producer's"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ]);
        let expected = format!(
            "\
authorization: Bearer 1
ce-id: 01935a7e-0000-7000-8000-00000000002a
ce-partitionkey: customer-1
ce-source: /shop
ce-specversion: 1.0
ce-subject: customer-1
ce-time: 2026-11-18T11:06:40.123456Z
ce-traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
ce-type: order.placed
content-type: application/json
idempotency-key: \"01935a7e-0000-7000-8000-00000000002a\"
outbox-attempt: 4
outbox-destination: billing
outbox-message-version: 2
outbox-sequence: 1207
traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
user-agent: outbox-relay/{}
webhook-id: 01935a7e-0000-7000-8000-00000000002a
webhook-timestamp: 1795000060
x-priority: high
x-tenant: caf\u{e9}
",
            env!("CARGO_PKG_VERSION")
        );
        let configured = [("Authorization", "Bearer 1"), ("X-Priority", "high")];
        assert_eq!(told(&build(&message, &configured).unwrap()), expected);
    }

    #[test]
    fn each_attempt_is_signed_for_its_own_hour_over_the_same_body() {
        let keys = [Secret::generate_asymmetric(), Secret::generate()];
        for (name, mode) in Mode::ALL {
            let mut bodies = Vec::new();
            for (number, secs) in [(1, 1_795_000_060), (2, 1_795_000_061), (3, 1_795_086_400)] {
                let now = SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
                let attempt = Attempt { number, ..attempt() };
                let sent = request(&message(), &attempt, &setup(mode, &keys), now).unwrap();
                let seen = signature::Headers::find(|name| sent.headers.get(name)?.to_str().ok()).unwrap();
                assert_eq!(seen.timestamp, secs.to_string());
                let versions: Vec<&str> =
                    seen.signature.split(' ').map(|each| each.split_once(',').unwrap().0).collect();
                assert_eq!(versions, ["v1a", "v1"], "one for each key, in their order");
                for key in &keys {
                    assert_eq!(signature::verify_at([key], &seen, &sent.body, now), Ok(()), "{name}");
                }
                bodies.push(sent.body);
            }
            assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{name}: {bodies:?}");
            let unsigned = request(&message(), &attempt(), &setup(mode, &[]), now()).unwrap();
            assert!(!unsigned.headers.contains_key(signature::SIGNATURE), "without a key nothing is signed");
        }
    }

    #[test]
    fn each_mode_says_what_belongs_to_it() {
        let names = |mode, keys: &[Secret]| {
            let message = with_headers(&[("x-tenant", "eu")]);
            let sent = request(&message, &attempt(), &setup(mode, keys), now()).unwrap();
            let mut names: Vec<String> = sent.headers.keys().map(|name| name.to_string()).collect();
            names.sort();
            (names.join(" "), sent.headers[CONTENT_TYPE].to_str().unwrap().to_owned())
        };
        let outbox = "outbox-attempt outbox-destination outbox-message-version outbox-sequence";
        let enveloped =
            format!("content-type idempotency-key {outbox} user-agent webhook-id webhook-timestamp x-tenant");
        assert_eq!(names(Mode::Structured, &[]), (enveloped.clone(), "application/cloudevents+json".to_owned()));
        assert_eq!(names(Mode::Standard, &[]), (enveloped, "application/json".to_owned()));
        let raw = ("content-type idempotency-key user-agent x-tenant".to_owned(), "application/json".to_owned());
        assert_eq!(names(Mode::Raw, &[]), raw);
        let signed = "content-type idempotency-key user-agent webhook-id webhook-signature webhook-timestamp x-tenant";
        assert_eq!(names(Mode::Raw, &[Secret::generate()]).0, signed);
    }

    #[test]
    fn an_empty_payload_has_a_length_and_an_unknown_type_none() {
        let empty = Message { payload: Bytes::new(), content_type: String::new(), ..message() };
        let message = Message { content_type: " \t".to_owned(), ..empty.clone() };
        for message in [&empty, &message] {
            let headers = build(message, &[]).unwrap();
            assert_eq!(headers[CONTENT_LENGTH], "0");
            assert!(!headers.contains_key(CONTENT_TYPE), "an attribute is never empty");
        }
        let sent = request(&message, &attempt(), &setup(Mode::Structured, &[]), now()).unwrap();
        assert!(!sent.headers.contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn of_several_trace_contexts_none_becomes_an_attribute() {
        const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |names: &[&str]| {
            let headers = names.iter().map(|name| ((*name).to_owned(), CONTEXT.to_owned())).collect();
            build(&Message { headers: Headers::Decoded(headers), ..message() }, &[]).unwrap()
        };
        assert_eq!(of(&["TraceParent"])["ce-traceparent"], CONTEXT);
        let several = of(&["traceparent", "TraceParent"]);
        assert_eq!(several.get_all(TRACEPARENT).iter().count(), 2);
        assert!(!several.contains_key("ce-traceparent"));
    }

    #[test]
    fn attributes_are_encoded_as_the_binding_says() {
        for (key, expected) in [
            ("Euro \u{20ac} \u{1f600}", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("100%\"sure\"", "100%25%22sure%22"),
            ("~!#$&'()*+,-./:;<=>?@[\\]^_`{|}", "~!#$&'()*+,-./:;<=>?@[\\]^_`{|}"),
        ] {
            let message = Message { ordering_key: Some(key.as_bytes().into()), ..message() };
            let headers = build(&message, &[]).unwrap();
            assert_eq!(
                (&headers["ce-subject"], &headers["ce-partitionkey"]),
                (&expected.parse().unwrap(), &expected.parse().unwrap())
            );
        }
        let bytes = Message { ordering_key: Some(b"\xff\r\nHost: evil".as_slice().into()), ..message() };
        let headers = build(&bytes, &[]).unwrap();
        assert_eq!(headers["ce-partitionkeybase64"], "/w0KSG9zdDogZXZpbA==");
        assert!(!headers.contains_key("ce-subject") && !headers.contains_key("ce-partitionkey"));
    }

    #[test]
    fn what_cannot_be_a_header_is_told_and_not_sent() {
        let many: BTreeMap<String, String> = (0..101).map(|n| (format!("x-{n}"), String::new())).collect();
        for (message, told) in [
            (Message { content_type: "text/plain\r\nx: y".into(), ..message() }, "the content type has a character"),
            (Message { content_type: "a\0".into(), ..message() }, "the content type has a character"),
            (Message { headers: Headers::Undecodable("the headers are not JSON".into()), ..message() }, "not JSON"),
            (Message { headers: Headers::Decoded(many), ..message() }, "101 headers"),
            (with_headers(&[("x", "a\r\nhost: evil")]), "the value of the header `x`"),
            (with_headers(&[("x y", "")]), "a header name"),
            (with_headers(&[("", "")]), "a header name"),
            (with_headers(&[("Host", "evil")]), "`host` is reserved"),
            (with_headers(&[("Authorization", "Bearer forged")]), "`authorization` is reserved"),
            (with_headers(&[("X-Forwarded-For", "::1")]), "`x-forwarded-for` is reserved"),
            (with_headers(&[("Content-Length", "0")]), "`content-length` is reserved"),
            (with_headers(&[("Transfer-Encoding", "chunked")]), "`transfer-encoding` is reserved"),
            (with_headers(&[("Webhook-Signature", "v1,forged")]), "`webhook-signature` is reserved"),
            (with_headers(&[("Ce-Datacontenttype", "x")]), "`ce-datacontenttype` is reserved"),
        ] {
            for (_, mode) in Mode::ALL {
                let problem = request(&message, &attempt(), &setup(mode, &[]), now()).unwrap_err();
                assert!(problem.contains(told), "{problem}");
            }
        }
    }

    #[test]
    fn strange_topics_and_names_do_not_break_the_request() {
        let message = Message { topic: "\u{202e}a\r\nb \"%".into(), ..message() };
        assert_eq!(build(&message, &[]).unwrap()["ce-type"], "%E2%80%AEa%0D%0Ab%20%22%25");
    }

    #[test]
    fn configured_headers_are_checked() {
        for (name, value, told) in [
            ("x y", "1", "no header name"),
            ("X-Key", "a\nb", "line break"),
            ("Content-Type", "text/plain", "the relay or the connection sets it"),
            ("Webhook-Id", "1", "the relay or the connection sets it"),
            ("Traceparent", "00-1-2-01", "it comes with each message"),
        ] {
            let error = fixed(&[(name.into(), value.into())]).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(name), "{error}");
        }
        let headers = fixed(&[("authorization".into(), "Bearer secret".into())]).unwrap();
        assert!(!format!("{headers:?}").contains("secret"));
    }

    #[test]
    fn headers_about_the_payload_do_not_speak_of_an_envelope() {
        let packed = with_headers(&[("Content-Encoding", "gzip"), ("Digest", "x"), ("X-Tenant", "eu")]);
        for (mode, is_told) in
            [(Mode::Binary, true), (Mode::Raw, true), (Mode::Structured, false), (Mode::Standard, false)]
        {
            let headers = request(&packed, &attempt(), &setup(mode, &[]), now()).unwrap().headers;
            assert_eq!(headers.contains_key("content-encoding"), is_told, "{mode:?}");
            assert_eq!(headers.contains_key("digest"), is_told, "{mode:?}");
            assert!(headers.contains_key("x-tenant"), "{mode:?}");
        }
    }

    #[test]
    fn an_event_in_an_event_cannot_be_taken_for_the_outer_one() {
        for content_type in ["application/cloudevents+json", " Application/CloudEvents-batch+json; charset=utf-8"] {
            let event = Message { content_type: content_type.into(), ..message() };
            let refused = request(&event, &attempt(), &setup(Mode::Binary, &[]), now()).unwrap_err();
            assert!(refused.contains("mode `raw` or `structured`"), "{refused}");
            for mode in [Mode::Raw, Mode::Structured, Mode::Standard] {
                request(&event, &attempt(), &setup(mode, &[]), now()).unwrap();
            }
        }
    }
}
