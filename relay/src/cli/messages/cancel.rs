//! `relay messages cancel`: one message taken back by a named person.
//!
//! The message is looked for first, within bounds, and then removed by its number: the search itself locks nothing.

use chrono::Utc;
use outbox::destinations::By;
use outbox::messages::{self, Cancelled, Found};
use outbox::relays::{self, Relays};
use serde_json::json;
use uuid::Uuid;

use super::{connect, look, nowhere, visible};
use crate::admin::with_connection;
use crate::cli::args::{Global, OneMessage};
use crate::cli::output::{Format, say};
use crate::cli::{Exit, Failure, ask, settings};

/// Takes the message back, if there is something to take back.
pub(super) fn run(global: &Global, message: &OneMessage) -> Result<Exit, Failure> {
    let (id, look) = (message.id, look(message));
    let mut conn = connect(global)?;
    let found = with_connection!(&mut conn, conn => messages::find(conn, id, &look))?;
    if found.pending.is_none() && found.waiting.is_empty() {
        let mut told: Vec<String> =
            nowhere(&look, &found).into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
        for letter in &found.dead {
            let destination = visible(&letter.destination);
            told.push(format!("it is dead for {destination}; to drop that: relay dead discard {}", letter.id));
        }
        return nothing(global, id, &told);
    }
    if global.dry_run {
        let value = json!({
            "message_id": id.to_string(),
            "cancelled": false,
            "dry_run": true,
            "pending": found.pending.is_some(),
            "waiting": found.waiting.len(),
        });
        global.output().one(&format!("would be cancelled: {}", what(&found)), &value)?;
        return Ok(Exit::Ok);
    }
    ask::confirm(global, &format!("Message {id} ({}) would never be sent.", what(&found)))?;
    let relays = with_connection!(&mut conn, conn => relays::list(conn))?;
    let seq = found.pending.as_ref().map(|pending| pending.seq).or(found.waiting.first().map(|waiting| waiting.seq));
    let by = By { actor: settings::actor(global), reason: global.reason.clone() };
    let cancelled = with_connection!(&mut conn, conn => messages::cancel(conn, id, seq, &by))?;
    if cancelled.is_nothing() {
        return nothing(global, id, &["it was delivered, was given up or was cancelled just now".to_owned()]);
    }
    if may_be_on_its_way(&found, &relays) {
        say("a relay may have been sending it at that moment: it may have arrived all the same");
    }
    if !found.dead.is_empty() {
        say("its dead letters stay; see `relay dead list`");
    }
    told(global, id, &cancelled, format!("cancelled {id}"))
}

/// What would be taken back, in words.
fn what(found: &Found) -> String {
    let pending = found.pending.iter().map(|pending| format!("{}, pending", pending.topic));
    let waiting = found.waiting.iter().map(|waiting| {
        let destination = if waiting.destination.is_empty() { "no destination yet" } else { &waiting.destination };
        format!("{} for {destination}, {} after {} attempts", waiting.topic, waiting.state, waiting.attempts)
    });
    visible(&pending.chain(waiting).collect::<Vec<_>>().join("; "))
}

/// Nothing is written before an attempt begins, so whatever is due and has an owner may be under way.
fn may_be_on_its_way(found: &Found, relays: &Relays) -> bool {
    let now = Utc::now();
    let pending = found.pending.iter().filter(|pending| pending.deliver_at.is_none_or(|at| at <= now));
    let waiting = found.waiting.iter().filter(|waiting| !waiting.blocked && waiting.due_at <= now);
    let partitions = pending.map(|pending| pending.partition_no).chain(waiting.map(|waiting| waiting.partition_no));
    partitions.into_iter().any(|partition| relays.owner(partition).is_some())
}

fn nothing(global: &Global, id: Uuid, why: &[String]) -> Result<Exit, Failure> {
    if global.output().format() == Format::Table {
        return Err(Failure::new(
            Exit::Failed,
            format!("relay: message {id} was not cancelled\n  {}", why.join("\n  ")),
        ));
    }
    say(&format!("relay: message {id} was not cancelled\n  {}", why.join("\n  ")));
    told(global, id, &Cancelled::default(), String::new())?;
    Ok(Exit::Failed)
}

fn told(global: &Global, id: Uuid, cancelled: &Cancelled, text: String) -> Result<Exit, Failure> {
    let value = json!({
        "message_id": id.to_string(),
        "cancelled": !cancelled.is_nothing(),
        "pending": cancelled.pending,
        "waiting": cancelled.waiting,
    });
    global.output().one(&text, &value)?;
    Ok(Exit::Ok)
}
