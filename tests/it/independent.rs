//! Receivers that know nothing of this project accept what it sends, and understand what was meant.
//!
//! Every message of a varied set goes over a socket in each mode, signed with a key of each kind. What arrived is given to
//! the Python libraries of [Standard Webhooks](https://pypi.org/project/standardwebhooks/) and of
//! [CloudEvents](https://pypi.org/project/cloudevents/), which pip puts into a folder of this test's own, and to `ring`,
//! where a signature is of Ed25519 or a body is no text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use outbox::signature::Secret;
use outbox_tests::process::Process;
use outbox_tests::receiver::{Answer, Receiver, Request};
use relay::message::{Headers, Message};
use relay::sink::{Attempt, Sink, Unit};
use relay::verdict::Verdict;
use relay::{Http, Mode};
use ring::{hmac, signature};
use serde_json::{Value, json};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);

/// What pip installs, and what has to be another folder when it changes.
const LIBRARIES: [&str; 2] = ["cloudevents==2.2.0", "standardwebhooks==1.1.0"];

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A payload, and what it is as `data`.
struct Payload {
    content_type: &'static str,
    bytes: Vec<u8>,
    is: Is,
}

enum Is {
    Nothing,
    Json(Value),
    Text,
    Bytes,
}

fn payloads() -> Vec<Payload> {
    let payload = |content_type, bytes: &[u8], is| Payload { content_type, bytes: bytes.to_vec(), is };
    let order = json!({ "order_id": 42, "total": 1.5, "note": "\u{20ac} \u{1f600} \"quoted\" \\ \u{7}", "lines": [null, true, {}] });
    vec![
        payload("application/json", order.to_string().as_bytes(), Is::Json(order.clone())),
        payload("application/json", b" [1,  2]\r\n", Is::Json(json!([1, 2]))),
        payload("application/json; charset=utf-8", b"17", Is::Json(json!(17))),
        payload("application/json", b"\"a \\u20ac\"", Is::Json(json!("a \u{20ac}"))),
        payload("application/json", b"null", Is::Json(Value::Null)),
        payload(
            "application/vnd.shop.order+json; v=2",
            b"{\"a\":{\"b\":\"}\"}}",
            Is::Json(json!({ "a": { "b": "}" } })),
        ),
        payload("application/json", b"{\"broken\": ", Is::Bytes),
        payload("application/json", b"\xff\xfe", Is::Bytes),
        payload("", b"{}", Is::Json(json!({}))),
        payload("text/plain", "Gr\u{fc}\u{df}e,\r\n\t\"\u{1f600}\" 100 % \0 \u{1b}[31m".as_bytes(), Is::Text),
        payload("text/plain; charset=iso-8859-1", b"Gr\xfc\xdfe", Is::Bytes),
        payload("application/xml", b"<much wow=\"xml\"/>", Is::Text),
        payload("application/octet-stream", &(0..=255).collect::<Vec<u8>>(), Is::Bytes),
        payload("application/octet-stream", b"looks like text", Is::Bytes),
        payload("application/json", b"", Is::Nothing),
        payload("image/png", b"", Is::Nothing),
    ]
}

/// Ordering keys as producers write them, and those only bytes can be.
const KEYS: [Option<&[u8]>; 14] = [
    None,
    Some(b""),
    Some(b"customer-1"),
    Some("Euro \u{20ac} \u{1f600}".as_bytes()),
    Some(b" leading and trailing "),
    Some(b"100% \"sure\""),
    Some(b"%41%E2%82%AC"),
    Some(b"a,b;c=d"),
    Some("\u{202e}reversed".as_bytes()),
    Some("e\u{301}\u{200d}\u{1f468}\u{200d}\u{1f469}".as_bytes()),
    Some(b"line\r\nbreak: evil"),
    Some(b"tab\tand\0nul"),
    Some(b"\xff\xfe"),
    Some(b"half \xe2\x82"),
];

const TOPICS: [&str; 3] = ["order.placed", "a", "A-1.b_2.C"];

fn messages() -> Vec<(Message, Payload)> {
    let mut messages = Vec::new();
    for key in KEYS {
        for payload in payloads() {
            let seq = i64::try_from(messages.len()).unwrap();
            let with_headers =
                [("x-tenant".to_owned(), "eu; q=\"1\" %".to_owned()), ("traceparent".into(), TRACE.into())];
            let headers = if seq % 2 == 0 { BTreeMap::new() } else { BTreeMap::from(with_headers) };
            let message = Message {
                seq,
                id: Uuid::now_v7(),
                partition_no: 3,
                topic: TOPICS[messages.len() % TOPICS.len()].into(),
                ordering_key: key.map(Into::into),
                payload: Bytes::from(payload.bytes.clone()),
                content_type: payload.content_type.into(),
                headers: Headers::Decoded(headers),
                only_destination: None,
                scheduled: false,
                expires: None,
                tracked: false,
                version: 1,
                created_at: DateTime::from_timestamp_micros(1_795_000_000_000_000 + seq * 1_000_001).unwrap(),
            };
            messages.push((message, payload));
        }
    }
    messages
}

/// A Python that has pip, and the folder with the libraries.
fn libraries() -> (Command, PathBuf) {
    let python = || crate::examples::python("pip");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(LIBRARIES.join("-").replace("==", "-"));
    if !folder.is_dir() {
        let parent = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let fresh = parent.path().join("libraries");
        let mut install = python();
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target"]);
        install.arg(&fresh).args(LIBRARIES);
        let ended = Process::run(install, Duration::from_secs(300));
        assert!(ended.status.success(), "{ended:?}\n  help: pip must reach a registry to install {LIBRARIES:?}");
        // Whole or not at all; another run may have been quicker.
        if std::fs::rename(&fresh, &folder).is_err() {
            assert!(folder.is_dir(), "{} cannot be moved into place", fresh.display());
        }
    }
    (python(), folder)
}

/// What the independent receivers understood of each request.
fn understood(requests: &[(&str, &Request)], secret: &Secret) -> Vec<Value> {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("requests.jsonl");
    let line = |(mode, request): &(&str, &Request)| {
        let headers: BTreeMap<_, _> = request.headers.iter().cloned().collect();
        let body = STANDARD.encode(&request.body);
        json!({ "mode": mode, "headers": headers, "body": body, "secret": secret.expose() }).to_string() + "\n"
    };
    std::fs::write(&file, requests.iter().map(line).collect::<String>()).unwrap();
    let (mut receive, libraries) = libraries();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/independent/receive.py");
    receive.env("PYTHONPATH", libraries).env("PYTHONDONTWRITEBYTECODE", "1").arg(script).arg(&file);
    let ended = Process::run(receive, LIMIT);
    assert!(ended.status.success(), "{ended:?}");
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), requests.len());
    lines
}

/// The attributes a receiver should see, by the rules of CloudEvents and not by our code.
fn attributes(message: &Message) -> Value {
    let mut expected = json!({
        "specversion": "1.0",
        "id": message.id.to_string(),
        "source": "/shop",
        "type": message.topic,
        "time": message.created_at.timestamp_micros(),
    });
    match message.ordering_key.as_deref() {
        None | Some(b"") => {}
        Some(key) => match std::str::from_utf8(key).ok().filter(|key| !key.contains(['\r', '\n', '\t', '\0'])) {
            Some(key) => {
                expected["subject"] = json!(key);
                expected["partitionkey"] = json!(key);
            }
            None => expected["partitionkeybase64"] = json!(STANDARD.encode(key)),
        },
    }
    if message.seq % 2 == 1 {
        expected["traceparent"] = json!(TRACE);
    }
    if !message.content_type.is_empty() {
        expected["datacontenttype"] = json!(message.content_type);
    }
    expected
}

/// The same with the time as a number, however it is written.
fn with_plain_time(mut event: Value) -> Value {
    let time: DateTime<Utc> = event["time"].as_str().unwrap().parse().unwrap();
    event["time"] = json!(time.timestamp_micros());
    event
}

/// The payload as the library gives it to a receiver of this mode.
fn data(mode: &str, payload: &Payload) -> Value {
    let text = std::str::from_utf8(&payload.bytes).ok();
    match (&payload.is, mode) {
        (Is::Nothing, _) => Value::Null,
        (Is::Json(value), _) => value.clone(),
        (Is::Text, _) => json!(text.unwrap()),
        // Beside headers nothing tells text from bytes, and the library takes for text what may be.
        (Is::Bytes, "binary") if text.is_some() => json!(text),
        (Is::Bytes, _) => json!({ "base64": STANDARD.encode(&payload.bytes) }),
    }
}

fn signed(request: &Request) -> Vec<u8> {
    let header = |name| request.header(name).unwrap();
    [format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).as_bytes(), &request.body].concat()
}

fn signature_of<'r>(request: &'r Request, version: &str) -> Vec<u8> {
    let all: Vec<&'r str> = request.header("webhook-signature").unwrap().split(' ').collect();
    let of_version: Vec<&str> = all.iter().filter_map(|each| each.strip_prefix(version)).collect();
    assert_eq!((all.len(), of_version.len()), (2, 1), "{all:?}");
    STANDARD.decode(of_version[0]).unwrap()
}

fn bytes_of(text: &str, prefix: &str) -> Vec<u8> {
    STANDARD.decode(text.strip_prefix(prefix).unwrap()).unwrap()
}

#[tokio::test]
async fn every_delivery_is_accepted_and_understood_by_receivers_that_are_not_ours() {
    let receiver = Receiver::always(Answer::status(204)).await;
    let (pair, shared) = (Secret::generate_asymmetric(), Secret::generate());
    let messages = messages();
    let mut expected = Vec::new();
    for (name, mode) in Mode::ALL {
        let http = Http::new("billing", receiver.url("/")).mode(mode);
        let sink = http.signing_key(pair.clone()).signing_key(shared.clone()).sink("/shop").unwrap();
        for (message, payload) in &messages {
            let attempt = Attempt { destination: "billing".into(), number: 1, timeout: LIMIT, unit: Unit::Shared };
            assert_eq!(sink.attempt(message, &attempt).await.verdict, Verdict::Delivered, "{name}: {message:?}");
            expected.push((name, message, payload));
        }
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), expected.len());

    let given: Vec<(&str, &Request)> = expected.iter().zip(&requests).map(|((mode, ..), each)| (*mode, each)).collect();
    let understood = understood(&given, &shared);
    let public = bytes_of(&pair.verifying_key().expose(), "whpk_");
    let public = signature::UnparsedPublicKey::new(&signature::ED25519, public);
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &bytes_of(&shared.expose(), "whsec_"));
    let (mut webhooks, mut events, mut other_bodies) = (0, 0, 0);
    for (((mode, message, payload), request), understood) in expected.iter().zip(&requests).zip(&understood) {
        let told = || format!("{mode}, {message:?}\n{:?}\nwas understood as {understood}", request.headers);
        assert_eq!(understood.get("refused"), None, "{}", told());
        public.verify(&signed(request), &signature_of(request, "v1a,")).unwrap_or_else(|_| panic!("v1a: {}", told()));
        if std::str::from_utf8(&request.body).is_ok() {
            assert!(understood.get("webhook").is_some(), "{}", told());
            webhooks += 1;
        } else {
            // No library but ours takes such a body; the computation is theirs all the same.
            let v1 = signature_of(request, "v1,");
            hmac::verify(&secret, &signed(request), &v1).unwrap_or_else(|_| panic!("v1: {}", told()));
            assert!(["binary", "raw"].contains(mode), "{}", told());
            other_bodies += 1;
        }
        match *mode {
            "binary" | "structured" => {
                assert_eq!(with_plain_time(understood["event"].clone()), attributes(message), "{}", told());
                assert_eq!(understood["data"], data(mode, payload), "{}", told());
                events += 1;
            }
            "standard" => {
                let seen = with_plain_time(json!({ "time": understood["webhook"]["timestamp"] }));
                assert_eq!(seen["time"], message.created_at.timestamp_micros(), "{}", told());
                let seen = &understood["webhook"];
                assert_eq!(seen["type"], message.topic, "{}", told());
                let member = if matches!(payload.is, Is::Bytes) { "data_base64" } else { "data" };
                let value = if matches!(payload.is, Is::Bytes) {
                    json!(STANDARD.encode(&payload.bytes))
                } else {
                    data(mode, payload)
                };
                assert_eq!(seen.get(member), Some(&value), "{}", told());
                assert_eq!(seen.as_object().unwrap().len(), 3, "{}", told());
            }
            _ => assert_eq!(request.body, message.payload, "{}", told()),
        }
        if *mode == "binary" {
            assert_eq!(request.body, message.payload, "{}", told());
        }
        let tenant = (message.seq % 2 == 1).then_some("eu; q=\"1\" %");
        assert_eq!(request.header("x-tenant"), tenant, "{}", told());
    }
    println!(
        "{} deliveries of {} messages in {} modes, all accepted: {webhooks} by standardwebhooks and {other_bodies} bodies that \
         are no text by ring (v1), {} by ring (v1a), {events} by cloudevents",
        requests.len(),
        messages.len(),
        Mode::ALL.len(),
        requests.len(),
    );
    assert!(webhooks > 700 && other_bodies > 50 && events == 2 * messages.len());
}

#[tokio::test]
async fn those_receivers_refuse_what_was_changed_on_the_way() {
    let receiver = Receiver::always(Answer::status(204)).await;
    let shared = Secret::generate();
    let sink = Http::new("billing", receiver.url("/")).mode(Mode::Structured).signing_key(shared.clone());
    let attempt = Attempt { destination: "billing".into(), number: 1, timeout: LIMIT, unit: Unit::Shared };
    sink.sink("/shop").unwrap().attempt(&messages()[0].0, &attempt).await;
    let right = receiver.requests().pop().unwrap();
    let body = right.body.iter().map(|byte| if *byte == b'4' { b'5' } else { *byte }).collect::<Vec<u8>>();
    let changed = Request { body: body.into(), ..right.clone() };
    let mut unsigned = right.clone();
    unsigned.headers.retain(|(name, _)| name != "webhook-signature");
    let understood =
        understood(&[("structured", &right), ("structured", &changed), ("structured", &unsigned)], &shared);
    let refused: Vec<bool> = understood.iter().map(|understood| understood.get("refused").is_some()).collect();
    assert_eq!(refused, [false, true, true], "{understood:?}");
}
