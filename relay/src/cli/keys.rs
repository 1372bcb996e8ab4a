//! `relay keys`: ordering keys that stand still, and letting one go on.

use chrono::{DateTime, Utc};
use outbox::dead_letters::DeadLetter;
use outbox::keys::{self, By, Filter, ParkedKey, Release};
use serde_json::{Value, json};

use super::args::{Global, KeyFilter, Keys};
use super::database::connect;
use super::destinations::note_unknown;
use super::messages::waiting_json;
use super::output::{Format, say, shortened, table, visible};
use super::stored::{hex, key, time};
use super::{Exit, Failure, settings};
use crate::admin::{Connection, with_connection};

/// Rows shown when `--limit` does not say otherwise.
const SHOWN: u32 = 50;

/// How many dead letters are named in a line.
const NAMED: usize = 3;

/// Runs one of the `keys` commands.
pub(super) fn run(global: &Global, command: Keys) -> Result<Exit, Failure> {
    match command {
        Keys::List(filter) => list(global, filter),
        Keys::Release { destination, key } => release(global, &destination, &key.into_encoded_bytes()),
    }
}

fn list(global: &Global, filter: KeyFilter) -> Result<Exit, Failure> {
    let KeyFilter { destination, key, blocked } = filter;
    let filter = Filter { destination, key: key.map(|key| key.into_encoded_bytes()), only_blocked: blocked };
    let limit = global.limit.unwrap_or(SHOWN);
    let mut conn = connect(global)?;
    // One more than is shown tells whether there is more.
    let mut parked = with_connection!(&mut conn, conn => keys::list(conn, &filter, limit.saturating_add(1)))?;
    if parked.is_empty() {
        note_unknown(&mut conn, filter.destination.as_deref())?;
    }
    let has_more = parked.len() > limit as usize;
    parked.truncate(limit as usize);
    let now = Utc::now();
    let titles = ["DESTINATION", "KEY", "WAITING", "HEAD", "ATTEMPTS", "STANDS", "LAST ERROR"];
    let output = global.output();
    match output.format() {
        Format::Table => {
            let rows: Vec<_> = parked.iter().map(|parked| cells(parked, now)).collect();
            output.lines(&table(&titles, &rows))?;
        }
        _ => output.many(&titles, &parked.iter().map(as_json).collect::<Vec<_>>(), |_| Vec::new())?,
    }
    if has_more {
        say(&format!("only the first {limit} are shown; --limit shows more"));
    }
    Ok(Exit::Ok)
}

fn cells(parked: &ParkedKey, now: DateTime<Utc>) -> Vec<String> {
    let head = parked.head.as_ref();
    let error = match parked.blocked_by.first() {
        Some(letter) => letter.last_error.as_deref(),
        None => head.and_then(|head| head.last_error.as_deref()),
    };
    vec![
        parked.destination.clone(),
        key(&parked.key),
        parked.waiting.to_string(),
        head.map_or_else(String::new, |head| head.message_id.to_string()),
        head.map_or_else(String::new, |head| head.attempts.to_string()),
        stands(parked, now),
        shortened(error.unwrap_or(""), 60),
    ]
}

/// What the key waits for.
fn stands(parked: &ParkedKey, now: DateTime<Utc>) -> String {
    if let Some(first) = parked.blocked_by.first() {
        let letters = named(parked.blocked_by.iter().map(|letter| letter.id), parked.blockers);
        return format!("blocked by {letters} since {}", time(first.died_at));
    }
    match &parked.head {
        Some(head) if head.blocked => "goes on in a moment: its relay frees the head".to_owned(),
        Some(head) if head.due_at > now => format!("{}, next attempt {}", head.state, time(head.due_at)),
        // It waited behind another, and its state still says so.
        Some(head) if head.state == "blocked" => format!("due since {}", time(head.due_at)),
        Some(head) => format!("{}, due since {}", head.state, time(head.due_at)),
        None => String::new(),
    }
}

/// `dead letters 17, 18 and 4 more`
fn named(ids: impl Iterator<Item = i64>, count: u64) -> String {
    let ids: Vec<String> = ids.take(NAMED).map(|id| id.to_string()).collect();
    let more = count.saturating_sub(ids.len() as u64);
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{letters} {}{more}", ids.join(", "))
}

fn release(global: &Global, destination: &str, bytes: &[u8]) -> Result<Exit, Failure> {
    let mut conn = connect(global)?;
    let outcome = match global.dry_run {
        true => {
            let parked = with_connection!(&mut conn, conn => keys::get(conn, destination, bytes))?;
            match parked {
                Some(parked) if parked.blockers > 0 => return dry_run(global, &parked),
                Some(parked) => Release::NotBlocked(Box::new(parked)),
                None => Release::Unknown,
            }
        }
        false => {
            let by = By { actor: settings::actor(global), reason: global.reason.clone() };
            with_connection!(&mut conn, conn => keys::release(conn, destination, bytes, &by))?
        }
    };
    let shown = visible(&key(bytes));
    match outcome {
        Release::Done(letters) => {
            let count = letters.len() as u64;
            let text = format!("released {shown} at {destination} from {}", named(letters.iter().copied(), count));
            global.output().one(&text, &answer(destination, bytes, &letters, count, true))?;
        }
        Release::NotBlocked(parked) => {
            let text = format!("no dead letter blocks {shown} at {destination}: {}", head_text(&parked));
            match global.output().format() {
                Format::Table => say(&text),
                _ => global.output().one(&text, &answer(destination, bytes, &[], 0, false))?,
            }
        }
        _ => return unknown(&mut conn, destination, &shown),
    }
    Ok(Exit::Ok)
}

/// What the first message of a key that nothing blocks waits for.
fn head_text(parked: &ParkedKey) -> String {
    let stands = stands(parked, Utc::now());
    match &parked.head {
        Some(head) => format!(
            "it waits for message {} ({stands})\n  help: relay explain {} --seq {}",
            head.message_id, head.message_id, head.seq
        ),
        None => "it goes on".to_owned(),
    }
}

fn dry_run(global: &Global, parked: &ParkedKey) -> Result<Exit, Failure> {
    let letters: Vec<i64> = parked.blocked_by.iter().map(|letter| letter.id).collect();
    let shown = visible(&key(&parked.key));
    let from = named(letters.iter().copied(), parked.blockers);
    let text = format!("would be released: {shown} at {} from {from}; {} wait", parked.destination, parked.waiting);
    match global.output().format() {
        Format::Table => say(&text),
        _ => {
            let answer = answer(&parked.destination, &parked.key, &letters, parked.blockers, false);
            global.output().one(&text, &answer)?;
            if parked.blockers > letters.len() as u64 {
                say(&format!("only the oldest {} of the {} dead letters are named", letters.len(), parked.blockers));
            }
        }
    }
    Ok(Exit::Ok)
}

/// `blockers` counts all letters, also those that are not named.
fn answer(destination: &str, bytes: &[u8], letters: &[i64], blockers: u64, is_changed: bool) -> Value {
    json!({
        "destination": destination,
        "key": key(bytes),
        "blockers": blockers,
        "dead_letters": letters,
        "changed": is_changed,
    })
}

fn unknown(conn: &mut Connection, destination: &str, shown: &str) -> Result<Exit, Failure> {
    note_unknown(conn, Some(destination))?;
    let help = format!("`relay keys list --destination {destination}` shows what stands still there");
    Err(Failure::new(
        Exit::Failed,
        format!("relay: nothing of the key `{shown}` stands still at {destination}\n  help: {help}"),
    ))
}

fn as_json(parked: &ParkedKey) -> Value {
    let letter = |letter: &DeadLetter| {
        json!({
            "id": letter.id,
            "message_id": letter.message_id.to_string(),
            "reason": letter.reason,
            "last_error": letter.last_error,
            "died_at": letter.died_at,
        })
    };
    json!({
        "destination": parked.destination,
        "key": key(&parked.key),
        "key_hex": hex(&parked.key),
        "waiting": parked.waiting,
        "head": parked.head.as_ref().map(waiting_json),
        "blockers": parked.blockers,
        "blocked_by": parked.blocked_by.iter().map(letter).collect::<Vec<_>>(),
    })
}
