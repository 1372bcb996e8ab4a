//! `relay destinations ping`: one harmless request, sent as a message would be.
//!
//! By the relay's own sink: the same client, headers and signatures. No database is asked and nothing is written, so that
//! it can be tried before the first start.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use chrono::Utc;
use serde_json::json;
use uuid::Uuid;

use super::super::args::Global;
use super::super::output::visible;
use super::super::{Exit, Failure, block_on, run, settings, status};
use crate::config::{Config, Scope, suggestion};
use crate::message::{Headers, Message};
use crate::sink::{Attempt, Judgement, Unit};
use crate::verdict::Verdict;

/// The topic of a ping.
const TOPIC: &str = "outbox.ping";

/// Sends it and shows what came back.
pub(super) fn run(global: &Global, name: &str) -> Result<Exit, Failure> {
    let config = Config::load(&settings::sources(global)?, Scope::Destinations)?;
    let Some(destination) = config.destinations.get(name) else {
        return Err(unknown(name, config.destinations.keys().map(String::as_str)));
    };
    let sink = run::http(name, destination)
        .sink(&config.relay.source)
        .map_err(|error| Failure::from_error(Exit::Config, &error))?;
    let message = message(name, &settings::actor(global), global.reason.as_deref());
    let attempt = Attempt { destination: name.into(), number: 1, timeout: destination.timeout, unit: Unit::Shared };
    let began = Instant::now();
    let judgement = block_on(sink.ping(&message, &attempt))?;
    let took = began.elapsed();

    let is_delivered = judgement.verdict == Verdict::Delivered;
    let Judgement { code, text: answer, maybe, .. } = &judgement;
    let verdict = judgement.verdict.name();
    let outcome = if is_delivered { verdict.to_owned() } else { format!("not delivered, {verdict}") };
    let mut text = format!("{name}: {outcome}: {code} in {}\n", status::rounded(took));
    if *maybe {
        text.push_str("it may have arrived all the same\n");
    }
    if !answer.is_empty() {
        text.push_str(&format!("it said: {}\n", visible(answer)));
    }
    let value = json!({
        "destination": name,
        "message_id": message.id.to_string(),
        "topic": TOPIC,
        "delivered": is_delivered,
        "verdict": verdict,
        "code": code,
        "ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "maybe": maybe,
        "answer": answer,
    });
    global.output().one(&text, &value)?;
    Ok(if is_delivered { Exit::Ok } else { Exit::Found })
}

/// What says of itself, wherever a receiver looks, that it is none of its messages.
fn message(destination: &str, actor: &str, reason: Option<&str>) -> Message {
    let now = Utc::now();
    let body = json!({
        "type": TOPIC,
        "timestamp": now,
        "data": {
            "text": "This is a test sent by hand with `relay destinations ping`. Nothing has happened, and nothing needs to be done.",
            "destination": destination,
            "sent_by": actor,
            "reason": reason,
        },
    });
    Message {
        seq: 0,
        id: Uuid::now_v7(),
        partition_no: 0,
        topic: TOPIC.to_owned(),
        ordering_key: None,
        payload: Bytes::from(body.to_string()),
        content_type: "application/json".to_owned(),
        headers: Headers::Decoded(BTreeMap::new()),
        only_destination: None,
        scheduled: false,
        expires: None,
        tracked: false,
        version: 1,
        created_at: now,
    }
}

fn unknown<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Failure {
    let meant = suggestion(name, known).map_or_else(String::new, |meant| format!(" - was `{meant}` meant?"));
    let help = "only a destination with a `url` in the configuration can be pinged (`-c` names the file); a handler runs \
                inside a program, and no request reaches it";
    Failure::new(Exit::Failed, format!("relay: the configuration has no destination `{name}`{meant}\n  help: {help}"))
}
