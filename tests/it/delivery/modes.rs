//! What a receiver was sent once it is sent again: the same bytes, wherever the message had to wait meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use outbox::Envelope;
use outbox::signature::{self, Secret};
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver, Request};
use relay::{Http, Mode};

use super::stage::{Running, enqueue, redrive_all, relay_on, until_dead, until_nothing_is_left, until_waiting};

/// The message, also where no header of Standard Webhooks says it.
fn id(request: &Request) -> String {
    request.header("idempotency-key").unwrap().trim_matches('"').to_owned()
}

async fn body_is_the_same_bytes_on_every_attempt_and_after_a_redrive(database: TestDatabase) {
    // Tried again once, then given up: so each copy of the message has been in another table.
    let seen: Arc<Mutex<BTreeMap<(String, String), usize>>> = Arc::default();
    let receiver = Receiver::start(move |request| {
        let mut seen = seen.lock().unwrap();
        let attempts = seen.entry((request.line.clone(), id(request))).or_default();
        *attempts += 1;
        Answer::status([500, 400, 200][*attempts - 1])
    })
    .await;
    let (pair, shared) = (Secret::generate_asymmetric(), Secret::generate());
    let mut builder = relay_on(&database);
    for (name, mode) in Mode::ALL {
        let http = Http::new(name, receiver.url(&format!("/{name}"))).mode(mode);
        builder = builder.destination(http.signing_key(pair.clone()).signing_key(shared.clone()));
    }
    let relay = Running::start(builder).await;
    let nested = format!("{}{}", "[".repeat(2_000), "]".repeat(2_000));
    let payloads: [(&str, &[u8]); 7] = [
        ("application/json", nested.as_bytes()),
        ("application/json", br#"["\ud83d", 1e999, -0.0, 12345678901234567890123]"#),
        ("application/problem+json; charset=latin1", b"{\"a\":1,\"a\":2}"),
        ("application/json", b" {\"n\": 1.0, \"text\": \"\\u20ac\"}\n"),
        ("application/json", b"{broken"),
        ("text/plain", "Grüße \u{1f600}\r\n".as_bytes()),
        ("application/octet-stream", b"\xff\0\xfe"),
    ];
    let messages = payloads.map(|(content_type, payload)| {
        Envelope::raw("t", payload).content_type(content_type).key("Euro \u{20ac}").header("x-tenant", "eu")
    });
    enqueue(&database, messages);
    let rejected: Vec<String> = Mode::ALL
        .iter()
        .flat_map(|(name, _)| std::iter::repeat_n(format!("{name} rejected"), payloads.len()))
        .collect();
    let mut rejected: Vec<&str> = rejected.iter().map(String::as_str).collect();
    rejected.sort_unstable();
    until_dead(&database, &rejected).await;
    until_waiting(&database, &[]).await;
    redrive_all(&database);
    until_nothing_is_left(&database).await;
    relay.stop().await;

    let mut sent: BTreeMap<(String, String), Vec<Request>> = BTreeMap::new();
    for request in receiver.requests() {
        sent.entry((request.line.clone(), id(&request))).or_default().push(request);
    }
    assert_eq!(sent.len(), 4 * payloads.len());
    for ((line, id), requests) in &sent {
        assert_eq!(requests.len(), 3, "{line} {id}");
        let bodies: BTreeSet<&[u8]> = requests.iter().map(|request| &request.body[..]).collect();
        assert_eq!(bodies.len(), 1, "{line} {id} was sent as {bodies:?}");
        for request in requests {
            // Each attempt is signed anew, over what was sent.
            let headers = signature::Headers::find(|name| request.header(name)).unwrap();
            for key in [&pair, &shared] {
                assert_eq!(signature::verify([key], &headers, &request.body), Ok(()), "{line} {id}");
            }
        }
        let numbers: Vec<Option<&str>> = requests.iter().map(|request| request.header("outbox-attempt")).collect();
        let expected = if line.contains("raw") { [None; 3] } else { [Some("1"), Some("2"), Some("1")] };
        assert_eq!(numbers, expected, "{line} {id}");
    }
    let unchanged = |mode: &str| {
        let line = format!("POST /{mode} HTTP/1.1");
        let bodies = sent.iter().filter(|((at, _), _)| *at == line).map(|(_, requests)| requests[0].body.to_vec());
        bodies.collect::<BTreeSet<_>>()
    };
    let enqueued = payloads.map(|(_, payload)| payload.to_vec());
    for mode in ["binary", "raw"] {
        assert_eq!(unchanged(mode), BTreeSet::from(enqueued.clone()), "{mode}");
    }
}
for_each_database!(body_is_the_same_bytes_on_every_attempt_and_after_a_redrive);
