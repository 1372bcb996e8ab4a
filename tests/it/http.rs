//! HTTP destinations over real sockets: what is on the wire, and what becomes of what comes back.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outbox::signature::{self, Secret, VerifyError};
use outbox_tests::receiver::{Answer, Receiver, Request};
use relay::message::{Headers, Message};
use relay::sink::http::{Http, HttpSink, Network};
use relay::sink::{Attempt, Judgement, Sink, Unit};
use relay::verdict::Verdict;
use uuid::Uuid;

const RETRY: Verdict = Verdict::Retry { after: None };
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn message(payload: impl Into<Bytes>) -> Message {
    Message {
        seq: 1207,
        id: Uuid::from_u128(0x0193_5a7e_0000_7000_8000_0000_0000_002a),
        partition_no: 3,
        topic: "order.placed".into(),
        ordering_key: Some("customer \u{20ac}".as_bytes().into()),
        payload: payload.into(),
        content_type: "application/json".into(),
        headers: Headers::Decoded(BTreeMap::from([("X-Tenant".into(), "eu".into())])),
        only_destination: None,
        scheduled: false,
        expires: None,
        tracked: false,
        version: 2,
        created_at: chrono::DateTime::from_timestamp_micros(1_795_000_000_123_456).expect("the year 2026 has dates"),
    }
}

fn sink(url: &str) -> HttpSink {
    Http::new("billing", url).header("authorization", "Bearer 1").sink("/shop").expect("plain addresses need nothing")
}

async fn attempt_within(sink: &HttpSink, timeout: Duration) -> Judgement {
    let attempt = Attempt { destination: "billing".into(), number: 4, timeout, unit: Unit::Shared };
    said(sink.attempt(&message("{}"), &attempt).await)
}

/// But for the address that answered, whose port is another one each time.
fn said(judgement: Judgement) -> Judgement {
    Judgement { remote: None, ..judgement }
}

async fn attempt(sink: &HttpSink) -> Judgement {
    attempt_within(sink, LIMIT).await
}

fn failed(verdict: Verdict, code: &str, text: &str) -> Judgement {
    Judgement::failed(verdict, code, text)
}

#[tokio::test]
async fn a_message_arrives_byte_for_byte_under_its_headers() {
    let receiver = Receiver::always(Answer::status(202)).await;
    let payload: Bytes = (0..=255).cycle().take(200_000).collect::<Vec<u8>>().into();
    let attempt = Attempt { destination: "billing".into(), number: 4, timeout: LIMIT, unit: Unit::Shared };
    let judgement = sink(&receiver.url("/hooks?x=1")).attempt(&message(payload.clone()), &attempt).await;
    assert_eq!(judgement, Judgement { remote: Some(receiver.address()), ..Judgement::delivered("202") });

    let [request]: [Request; 1] = receiver.requests().try_into().unwrap();
    assert_eq!(request.line, "POST /hooks?x=1 HTTP/1.1");
    assert!(request.body == payload, "the body arrived changed");
    let sent_at: i64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
    assert!((chrono::Utc::now().timestamp() - sent_at).abs() <= 60, "{sent_at}");
    let mut headers: Vec<String> = request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    headers.retain(|line| !line.starts_with("webhook-timestamp: "));
    headers.sort();
    let expected = [
        "accept: */*".to_owned(),
        "authorization: Bearer 1".to_owned(),
        "ce-id: 01935a7e-0000-7000-8000-00000000002a".to_owned(),
        "ce-partitionkey: customer%20%E2%82%AC".to_owned(),
        "ce-source: /shop".to_owned(),
        "ce-specversion: 1.0".to_owned(),
        "ce-subject: customer%20%E2%82%AC".to_owned(),
        "ce-time: 2026-11-18T11:06:40.123456Z".to_owned(),
        "ce-type: order.placed".to_owned(),
        "content-length: 200000".to_owned(),
        "content-type: application/json".to_owned(),
        format!("host: {}", receiver.address()),
        "idempotency-key: \"01935a7e-0000-7000-8000-00000000002a\"".to_owned(),
        "outbox-attempt: 4".to_owned(),
        "outbox-destination: billing".to_owned(),
        "outbox-message-version: 2".to_owned(),
        "outbox-sequence: 1207".to_owned(),
        format!("user-agent: outbox-relay/{}", env!("CARGO_PKG_VERSION")),
        "webhook-id: 01935a7e-0000-7000-8000-00000000002a".to_owned(),
        "x-tenant: eu".to_owned(),
    ];
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn a_signed_request_is_believed_by_receivers_that_know_either_key() {
    let receiver = Receiver::always(Answer::status(202)).await;
    let (new, old, other) = (Secret::generate(), Secret::generate(), Secret::generate());
    let http = Http::new("billing", receiver.url("/")).signing_key(new.clone()).signing_key(old.clone());
    let sink = http.sink("/shop").unwrap();
    for payload in [Bytes::from_static(b""), (0..=255).cycle().take(100_000).collect::<Vec<u8>>().into()] {
        let attempt = Attempt { destination: "billing".into(), number: 1, timeout: LIMIT, unit: Unit::Shared };
        assert_eq!(said(sink.attempt(&message(payload.clone()), &attempt).await), Judgement::delivered("202"));
        let request = receiver.requests().pop().unwrap();
        let headers = signature::Headers::find(|name| request.header(name)).unwrap();
        assert_eq!(headers.id, "01935a7e-0000-7000-8000-00000000002a");
        for known in [&new, &old] {
            assert_eq!(signature::verify([known], &headers, &request.body), Ok(()));
        }
        let newest = headers.signature.split(' ').next().unwrap();
        let first = signature::Headers { signature: newest, ..headers };
        assert_eq!(signature::verify([&new], &first, &request.body), Ok(()), "the newest key signs first");
        assert_eq!(signature::verify([&other], &headers, &request.body), Err(VerifyError::Mismatch));
        let body = [&request.body[..], b"x"].concat();
        assert_eq!(signature::verify([&new], &headers, &body), Err(VerifyError::Mismatch));
    }
}

#[tokio::test]
async fn an_empty_payload_is_sent_as_an_empty_body() {
    let receiver = Receiver::always(Answer::status(204)).await;
    let attempt = Attempt { destination: "billing".into(), number: 1, timeout: LIMIT, unit: Unit::Shared };
    assert_eq!(said(sink(&receiver.url("/")).attempt(&message(""), &attempt).await), Judgement::delivered("204"));
    assert_eq!(receiver.requests()[0].header("content-length"), Some("0"));
}

#[tokio::test]
async fn answers_are_judged_by_status_and_headers() {
    let secs = Duration::from_secs;
    for (answer, expected) in [
        (Answer::status(200).body("fine"), Judgement::delivered("200")),
        (
            Answer::status(422).body("{\"error\": \"no such\n\x1b[31morder\"}"),
            failed(Verdict::Reject { gone: false }, "422", "{\"error\": \"no such order\"}"),
        ),
        (Answer::status(410), failed(Verdict::Reject { gone: true }, "410", "")),
        (Answer::status(404), failed(Verdict::Misconfigured, "404", "")),
        (Answer::status(500).body("oops"), failed(RETRY, "500", "oops")),
        (Answer::status(500).header("Outbox-Retry", "no"), failed(Verdict::Reject { gone: false }, "500", "")),
        (Answer::status(400).header("Outbox-Retry", "yes"), failed(RETRY, "400", "")),
        (Answer::status(500).header("Retry-After", "7"), failed(Verdict::Retry { after: Some(secs(7)) }, "500", "")),
        (Answer::status(503).header("Retry-After", "7"), failed(Verdict::Hold { pause: Some(secs(7)) }, "503", "")),
        (Answer::status(429).header("Retry-After", "1e3"), failed(Verdict::Hold { pause: None }, "429", "")),
        (Answer::status(999), failed(RETRY, "999", "")),
    ] {
        let receiver = Receiver::always(answer.clone()).await;
        assert_eq!(attempt(&sink(&receiver.url("/"))).await, expected, "{answer:?}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Receiver::always(Answer::status(200)).await;
    for status in [301, 302, 303, 307, 308] {
        let receiver = Receiver::always(Answer::redirect(status, &elsewhere.url("/inner"))).await;
        let judgement = attempt(&sink(&receiver.url("/"))).await;
        assert_eq!((judgement.verdict, judgement.code), (Verdict::Misconfigured, status.to_string()));
        assert!(judgement.text.contains(&elsewhere.url("/inner")), "{}", judgement.text);
        assert_eq!(receiver.requests().len(), 1);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn proxies_of_the_environment_are_not_asked() {
    let proxy = Receiver::always(Answer::status(502)).await;
    let receiver = Receiver::always(Answer::status(200)).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "http::one_attempt_for_a_parent", "--ignored"]).env("ATTEMPT_URL", receiver.url("/"));
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
        child.env(name, proxy.url(""));
    }
    child.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("REQUEST_METHOD").kill_on_drop(true);
    let output = child.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((receiver.requests().len(), proxy.connections()), (1, 0));
}

#[tokio::test]
#[ignore = "runs as the child of `proxies_of_the_environment_are_not_asked`"]
async fn one_attempt_for_a_parent() {
    let url = std::env::var("ATTEMPT_URL").expect("the parent says where to");
    assert_eq!(attempt(&sink(&url)).await, Judgement::delivered("200"));
}

#[tokio::test]
async fn a_name_that_leads_inside_is_not_connected_to() {
    let receiver = Receiver::always(Answer::status(200)).await;
    let url = format!("http://localhost:{}/?token=hunter2", receiver.address().port());
    let inside = Http::new("billing", &url).sink("/shop").unwrap();
    assert_eq!(attempt(&inside).await, Judgement::delivered("200"));
    let outside = Http::new("billing", &url).network(Network::Public).allow_http().sink("/shop").unwrap();
    let judgement = attempt(&outside).await;
    let seen = (judgement.verdict, judgement.code.as_str(), judgement.maybe);
    assert_eq!(seen, (Verdict::Misconfigured, "address", false));
    assert!(judgement.text.starts_with("`localhost` leads to `"), "{}", judgement.text);
    assert!(judgement.text.contains("`network = \"public\"` refuses it"), "{}", judgement.text);
    assert!(!judgement.text.contains("hunter2"), "{}", judgement.text);
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_refused_connection_is_tried_again() {
    // Bound and let go: nobody listens there now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let judgement = attempt(&sink(&format!("http://127.0.0.1:{port}/?token=hunter2"))).await;
    assert_eq!((judgement.verdict, judgement.code.as_str(), judgement.maybe), (RETRY, "connect", false));
    assert_eq!(judgement.text, "tcp connect error: Connection refused (os error 111)");
}

#[tokio::test]
async fn silence_is_a_timeout_and_the_receiver_may_have_acted() {
    let receiver = Receiver::always(Answer::Never).await;
    let begun = Instant::now();
    let judgement = attempt_within(&sink(&receiver.url("/")), Duration::from_millis(300)).await;
    assert_eq!(judgement, Judgement { maybe: true, ..failed(RETRY, "timeout", "no answer within 300ms") });
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(receiver.requests().len(), 1);
}

#[tokio::test]
async fn a_broken_connection_is_tried_again_and_the_receiver_may_have_acted() {
    for answer in [
        Answer::Close,
        Answer::Reset,
        Answer::Raw("HTTP/1.1 2".into()),
        Answer::Raw("no HTTP at all\r\n\r\n".into()),
        Answer::Raw("HTTP/1.1 099 Odd\r\n\r\n".into()),
        Answer::Raw("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".into()),
        Answer::Raw(format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(1_000)).into()),
        Answer::Raw(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into()),
    ] {
        let receiver = Receiver::always(answer.clone()).await;
        let judgement = attempt(&sink(&receiver.url("/"))).await;
        let seen = (judgement.verdict, judgement.code.as_str(), judgement.maybe);
        assert_eq!(seen, (RETRY, "reset", true), "{answer:?}: {}", judgement.text);
        assert_eq!(receiver.requests().len(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn a_connection_that_serves_is_kept() {
    let receiver = Receiver::always(Answer::status(500).body("no")).await;
    let sink = sink(&receiver.url("/"));
    for _ in 0..5 {
        assert_eq!(attempt(&sink).await.code, "500");
    }
    assert_eq!((receiver.requests().len(), receiver.connections()), (5, 1));
}

#[tokio::test]
async fn an_attempt_on_a_dying_connection_is_not_sent_again() {
    // The second request arrives on the connection that was kept, and is answered by closing it. A client that helps
    // itself would send it once more.
    for dying in [Answer::Close, Answer::Reset] {
        let receiver = Receiver::in_turn([Answer::status(200), dying.clone(), Answer::status(200)]).await;
        let sink = sink(&receiver.url("/"));
        assert_eq!(attempt(&sink).await, Judgement::delivered("200"));
        let judgement = attempt(&sink).await;
        assert_eq!((judgement.verdict, judgement.code.as_str(), judgement.maybe), (RETRY, "reset", true), "{dying:?}");
        let connections: Vec<u64> = receiver.requests().iter().map(|request| request.connection).collect();
        assert_eq!(connections, [1, 1], "{dying:?}: each attempt was on the wire once, on the same connection");
    }
}

#[tokio::test]
async fn a_connection_the_server_closed_does_not_carry_an_attempt_twice() {
    let receiver = Receiver::always(Answer::status(200).then_close()).await;
    let sink = sink(&receiver.url("/"));
    let mut delivered = 0;
    for _ in 0..50 {
        // The client notices the end before it writes the next request, and takes a new connection, or only after, and
        // the attempt fails. Whatever the race gives, what arrived was delivered and nothing arrived twice.
        let judgement = attempt(&sink).await;
        match judgement.verdict {
            Verdict::Delivered => delivered += 1,
            _ => assert!(judgement.maybe, "{judgement:?}"),
        }
        assert_eq!(receiver.requests().len(), delivered);
    }
    assert!(delivered > 0);
}

#[tokio::test]
async fn a_body_without_end_is_dropped() {
    for (status, verdict) in [(200, Verdict::Delivered), (500, RETRY)] {
        let receiver = Receiver::always(Answer::Endless(status)).await;
        let begun = Instant::now();
        let judgement = attempt(&sink(&receiver.url("/"))).await;
        assert_eq!((judgement.verdict, judgement.maybe), (verdict, false));
        assert!(judgement.text.len() <= 4096, "{}", judgement.text.len());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // What is in the sockets' buffers has left the receiver as well.
        assert!(receiver.endless_bytes_sent() < 32 << 20, "{} bytes", receiver.endless_bytes_sent());
    }
}

#[tokio::test]
async fn a_body_that_drips_does_not_hold_the_attempt() {
    let receiver = Receiver::always(Answer::Dripping(500, Duration::from_millis(20))).await;
    let begun = Instant::now();
    let judgement = attempt_within(&sink(&receiver.url("/")), Duration::from_secs(60)).await;
    assert_eq!((judgement.verdict, judgement.maybe), (RETRY, false));
    assert!(judgement.text.starts_with("xxx"), "{}", judgement.text);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_complete_head_is_the_answer_whatever_becomes_of_the_body() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegin";
    for answer in [Answer::Raw(head.into()), Answer::RawThenReset(head.into())] {
        let receiver = Receiver::always(answer.clone()).await;
        assert_eq!(attempt(&sink(&receiver.url("/"))).await, Judgement::delivered("200"), "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_after_the_time_is_none() {
    let receiver = Receiver::always(Answer::status(200).after(Duration::from_millis(600))).await;
    let sink = sink(&receiver.url("/"));
    let judgement = attempt_within(&sink, Duration::from_millis(100)).await;
    assert_eq!((judgement.verdict, judgement.code.as_str(), judgement.maybe), (RETRY, "timeout", true));
    let judgement = attempt_within(&sink, LIMIT).await;
    assert_eq!(judgement, Judgement::delivered("200"), "the late answer is not taken for the next attempt's");
    let connections: Vec<u64> = receiver.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [1, 2]);
}

#[tokio::test]
async fn a_message_that_cannot_be_a_request_is_no_attempt() {
    let receiver = Receiver::always(Answer::status(200)).await;
    let strange = Message { content_type: "text/plain\r\nx: y".into(), ..message("{}") };
    let attempt = Attempt { destination: "billing".into(), number: 1, timeout: LIMIT, unit: Unit::Shared };
    let judgement = sink(&receiver.url("/")).attempt(&strange, &attempt).await;
    assert_eq!((judgement.verdict, judgement.code.as_str()), (Verdict::Undecodable, "undecodable"));
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn what_a_receiver_repeats_of_our_secrets_is_not_kept() {
    let page = |request: &Request| {
        format!("Cannot {}\nauthorization: {}", request.line, request.header("authorization").unwrap())
    };
    for status in [200, 302, 404] {
        let receiver = Receiver::start(move |request| {
            let place = request.line.split(' ').nth(1).unwrap();
            Answer::status(status).header("location", &place.replace("/hooks", "/v2/hooks")).body(page(request))
        })
        .await;
        let url = receiver.url("/hooks/T0123456789abcdef?token=hunter2hunter2");
        let sink = Http::new("billing", url).header("authorization", "Bearer s3cr3ts3cr3t").sink("/shop").unwrap();
        let judgement = attempt(&sink).await;
        let told = match status {
            200 => "",
            302 => "redirected to `/v2(masked)?…`; redirects are not followed",
            _ => "Cannot POST (masked) HTTP/1.1 authorization: (masked)",
        };
        assert_eq!((judgement.code, judgement.text.as_str()), (status.to_string(), told));
    }
}

#[tokio::test]
async fn an_attempt_that_is_dropped_ends_its_connection() {
    let receiver = Receiver::always(Answer::Never).await;
    let sink = sink(&receiver.url("/"));
    let running = tokio::spawn(async move { attempt(&sink).await });
    receiver.wait_until(LIMIT, "the request arrives", |requests| requests.len() == 1).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    receiver.wait_until(LIMIT, "the connection ends", |_| receiver.connections_ended() == 1).await;
}

#[tokio::test]
async fn an_attempt_without_an_answer_tells_where_it_was_made() {
    let receiver = Receiver::always(Answer::Never).await;
    let attempt =
        Attempt { destination: "billing".into(), number: 1, timeout: Duration::from_millis(300), unit: Unit::Shared };
    let judgement = sink(&receiver.url("/")).attempt(&message("{}"), &attempt).await;
    assert_eq!((judgement.code.as_str(), judgement.remote), ("timeout", Some(receiver.address())));
    let nowhere = Http::new("billing", "http://nowhere.invalid:9/")
        .allow_http()
        .sink("/")
        .unwrap()
        .attempt(&message("{}"), &attempt)
        .await;
    assert_eq!(nowhere.remote, None, "{nowhere:?}");
}
