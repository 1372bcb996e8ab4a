//! `relay send`: one message enqueued by hand.
//!
//! In its own transaction, which is what the library is there to avoid: this is for trying things out and for repairs.
//! The message passes the library's own checks; there is no other way into the outbox from here.

use outbox::destinations::{self, Destination};
use outbox::{Envelope, Receipt, messages};
use serde_json::json;

use super::args::{Global, Send};
use super::database::connect;
use super::output::say;
use super::{Exit, Failure, given};
use crate::admin::with_connection;
use crate::route::Pattern;

/// Enqueues the message, or only checks it.
pub(super) fn run(global: &Global, send: &Send) -> Result<Exit, Failure> {
    let payload = given::bytes("payload", &send.payload)?;
    let envelope = || envelope(send, &payload);
    envelope().check().map_err(refused)?;
    let mut conn = connect(global)?;
    let known = with_connection!(&mut conn, conn => destinations::list(conn))?;
    let targets = targets(send, &known);
    if targets.is_empty() {
        let (help, topic) = ("it will wait until one does; see `relay destinations list`", &send.topic);
        match &send.to {
            _ if known.is_empty() => say("no destination is registered yet: a relay does that when it starts"),
            Some(name) => say(&format!("no relay has registered a destination `{name}`; {help}")),
            None => say(&format!("no registered destination wants the topic `{topic}`; {help}")),
        }
    }
    if global.dry_run {
        let text = format!("would be sent to {}", shown(&targets));
        global.output().one(&text, &json!({ "sent": false, "destinations": targets }))?;
        return Ok(Exit::Ok);
    }
    let sent = with_connection!(&mut conn, conn => outbox::transaction(conn, |conn| {
        let receipt = outbox::enqueue(conn, envelope())?;
        let seq = if receipt.is_duplicate() { None } else { messages::drawn(conn)? };
        Ok::<(Receipt, Option<i64>), outbox::Error>((receipt, seq))
    }));
    let (receipt, seq) = sent.map_err(refused)?;
    let id = receipt.message_id;
    let text = match seq {
        Some(seq) => format!("sent {id}, number {seq}, to {}", shown(&targets)),
        None => format!("not sent: message {id} was enqueued with this dedup key before"),
    };
    let value = json!({
        "sent": !receipt.is_duplicate(),
        "message_id": id.to_string(),
        "seq": seq,
        "duplicate": receipt.is_duplicate(),
        "destinations": targets,
    });
    global.output().one(&text, &value)?;
    Ok(Exit::Ok)
}

fn envelope(send: &Send, payload: &[u8]) -> Envelope {
    let content_type = send.content_type.clone().unwrap_or_else(|| looks_like(payload).to_owned());
    let mut envelope = Envelope::raw(send.topic.clone(), payload).content_type(content_type);
    for (name, value) in &send.headers {
        envelope = envelope.header(name, value);
    }
    if let Some(key) = &send.key {
        envelope = envelope.key(key);
    }
    if let Some(name) = &send.to {
        envelope = envelope.to(name);
    }
    if let Some(delay) = send.delay {
        envelope = envelope.delay(delay);
    }
    if let Some(at) = send.deliver_at {
        envelope = envelope.deliver_at(at);
    }
    if let Some(at) = send.expires_at {
        envelope = envelope.expires_at(at);
    }
    if let Some(key) = &send.dedup_key {
        envelope = envelope.dedup_key(key);
    }
    if let Some(id) = &send.correlation_id {
        envelope = envelope.correlation_id(id);
    }
    envelope
}

fn looks_like(payload: &[u8]) -> &'static str {
    match std::str::from_utf8(payload) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    }
}

/// Where it goes, as far as destinations are registered.
fn targets(send: &Send, known: &[Destination]) -> Vec<String> {
    let matches = |pattern: &String| Pattern::parse(pattern).is_ok_and(|pattern| pattern.matches(&send.topic));
    let wants = |destination: &&Destination| match &send.to {
        Some(name) => destination.name == *name,
        None => destination.patterns.iter().any(matches),
    };
    known.iter().filter(wants).map(|destination| destination.name.clone()).collect()
}

fn shown(targets: &[String]) -> String {
    if targets.is_empty() { "no destination yet".to_owned() } else { targets.join(", ") }
}

/// A message that can never be sent is a mistake on the command line.
fn refused(error: outbox::Error) -> Failure {
    match error.is_refused() {
        true => Failure::new(Exit::Usage, error.to_string().replacen("outbox: ", "relay: ", 1)),
        false => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_taken_for_what_it_looks_like() {
        for (payload, expected) in [
            (&b"{\"a\": 1}"[..], "application/json"),
            (b"17", "application/json"),
            (b"hello", "text/plain; charset=utf-8"),
            (b"\xff\x00", "application/octet-stream"),
        ] {
            assert_eq!(looks_like(payload), expected, "{payload:?}");
        }
    }
}
