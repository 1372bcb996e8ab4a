//! `relay explain`: why a message is not moving, and what to do about it.
//!
//! This file gathers what is known and shows what comes out; the reasons themselves are in `reasons`, which knows no
//! database. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use outbox::destinations;
use outbox::messages::{self, Found};
use outbox::relays::{self, Relays};
use serde_json::json;
use uuid::Uuid;

use super::args::{Global, OneMessage};
use super::beats;
use super::database::connect;
use super::messages::{found_json, look};
use super::output::visible;
use super::stored::key;
use super::{Exit, Failure};
use crate::admin::{Connection, with_connection};

mod reasons;

use reasons::{Facts, Reason, ago, reasons};

/// Explains one message.
pub(super) fn run(global: &Global, message: &OneMessage) -> Result<Exit, Failure> {
    let (id, look) = (message.id, look(message));
    let mut conn = connect(global)?;
    let found = with_connection!(&mut conn, conn => messages::find(conn, id, &look))?;
    let destinations = with_connection!(&mut conn, conn => destinations::list(conn))?;
    let relays = with_connection!(&mut conn, conn => relays::list(conn))?;
    let (silent, relays) = silent(&mut conn, &found, &relays)?;
    let mut ahead = BTreeMap::new();
    for waiting in found.waiting.iter().filter(|waiting| waiting.blocked) {
        ahead.insert(waiting.id, with_connection!(&mut conn, conn => messages::ahead(conn, waiting.id))?);
    }
    let writers = match found.is_nowhere() {
        true => with_connection!(&mut conn, conn => messages::writers(conn))?,
        false => Vec::new(),
    };
    let now = Utc::now();
    let facts =
        Facts { found: &found, look, destinations: &destinations, relays: &relays, silent, ahead, writers, now };
    let reasons = reasons(&facts);
    let next = reasons.iter().find_map(|reason| reason.next.clone());
    let mut value = found_json(id, &found);
    value["reasons"] = reasons.iter().map(Reason::as_json).collect();
    value["next"] = json!(next);
    global.output().one(&text(id, &found, &reasons, next.as_deref(), now), &value)?;
    Ok(if found.is_nowhere() { Exit::Failed } else { Exit::Ok })
}

/// The relays that own a partition of the message and have not raised their beat for their lease, and who is there then.
/// Returns as soon as all of them did.
fn silent(conn: &mut Connection, found: &Found, seen: &Relays) -> Result<(BTreeSet<Uuid>, Relays), Failure> {
    let partitions = found.pending.iter().map(|pending| pending.partition_no);
    let partitions = partitions.chain(found.waiting.iter().map(|waiting| waiting.partition_no));
    let owners = partitions.filter_map(|partition| seen.owner(partition));
    let owners: BTreeSet<Uuid> = owners.map(|relay| relay.id).collect();
    let (beats, seen) = beats::look(conn, |relay| owners.contains(&relay.id), None)?;
    Ok((owners.into_iter().filter(|id| beats.is_dead(*id)).collect(), seen))
}

fn text(id: Uuid, found: &Found, reasons: &[Reason], next: Option<&str>, now: DateTime<Utc>) -> String {
    let mut text = format!("message {id}");
    let pending = found.pending.iter().map(|row| (&row.topic, &row.ordering_key, row.seq, row.created_at));
    let waiting = found.waiting.iter().map(|row| (&row.topic, &row.ordering_key, row.seq, row.created_at));
    let dead = found.dead.iter().map(|row| (&row.topic, &row.ordering_key, row.seq, row.created_at));
    if let Some((topic, ordering_key, seq, created_at)) = pending.chain(waiting).chain(dead).next() {
        text.push_str(&format!(": {}", visible(topic)));
        if let Some(bytes) = ordering_key {
            text.push_str(&format!(", key {}", visible(&key(bytes))));
        }
        text.push_str(&format!(", number {seq}, enqueued {}", ago(created_at, now)));
    }
    text.push('\n');
    let mut heading = None;
    for reason in reasons {
        if heading != Some(&reason.subject) {
            text.push_str(&format!("\n{}\n", visible(&reason.subject)));
            heading = Some(&reason.subject);
        }
        text.push_str(&format!("  {}\n", visible(&reason.text)));
    }
    if let Some(next) = next {
        text.push_str(&format!("\nnext: {}\n", visible(next)));
    }
    text
}
