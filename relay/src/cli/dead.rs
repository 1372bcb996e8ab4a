//! `relay dead`: deliveries that were given up.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use outbox::dead_letters::{self, By, DeadLetter, Detail, Filter, Outcome};
use serde_json::{Value, json};

use super::args::{Dead, DeadFilter, DeadSelection, Global};
use super::database::connect;
use super::destinations::note_unknown;
use super::output::{Format, say, shortened, table, visible};
use super::stored::{attempts, hex, key, payload, stored_json, time};
use super::{Exit, Failure, ask, settings};
use crate::admin::{Connection, with_connection};
use crate::duration;

mod export;
mod groups;

/// Rows shown when `--limit` does not say otherwise.
const SHOWN: u32 = 50;

/// How many dead letters one transaction changes: enough to be quick, few enough not to hold the partitions for long.
const AT_ONCE: usize = 200;

/// Runs one of the `dead` commands.
pub(super) fn dispatch(global: &Global, command: Dead) -> Result<Exit, Failure> {
    match command {
        Dead::List(filter) => list(global, &filter),
        Dead::Groups(filter) => groups::run(global, &filter),
        Dead::Export(filter) => export::run(global, &filter),
        Dead::Show { id } => show(global, id),
        Dead::Redrive(selection) => change(global, &selection, &REDRIVE),
        Dead::Discard(selection) => change(global, &selection, &DISCARD),
    }
}

fn list(global: &Global, filter: &DeadFilter) -> Result<Exit, Failure> {
    let filter = understood(filter)?;
    let limit = global.limit.unwrap_or(SHOWN);
    // One more than is shown tells whether there is more.
    let mut conn = connect(global)?;
    let mut letters = with_connection!(&mut conn, conn => dead_letters::list(conn, &filter, limit.saturating_add(1)))?;
    if letters.is_empty() {
        note_unknown(&mut conn, filter.destination.as_deref())?;
    }
    let has_more = letters.len() > limit as usize;
    letters.truncate(limit as usize);
    let output = global.output();
    match output.format() {
        Format::Table => output.lines(&rows(&letters))?,
        _ => output.many(&[], &letters.iter().map(letter_json).collect::<Vec<_>>(), |_| Vec::new())?,
    }
    if has_more {
        say(&format!("only the newest {limit} are shown; --limit shows more"));
    }
    Ok(Exit::Ok)
}

fn rows(letters: &[DeadLetter]) -> String {
    let row = |letter: &DeadLetter| {
        vec![
            letter.id.to_string(),
            time(letter.died_at),
            letter.destination.clone(),
            letter.topic.clone(),
            letter.ordering_key.as_deref().map_or_else(String::new, key),
            letter.reason.clone(),
            letter.attempts.to_string(),
            if letter.blocks_key { "key" } else { "" }.to_owned(),
            shortened(letter.last_error.as_deref().unwrap_or(""), 60),
        ]
    };
    let titles = ["ID", "DIED", "DESTINATION", "TOPIC", "KEY", "REASON", "ATTEMPTS", "BLOCKS", "LAST ERROR"];
    table(&titles, &letters.iter().map(row).collect::<Vec<_>>())
}

fn show(global: &Global, id: i64) -> Result<Exit, Failure> {
    let detail = with_connection!(&mut connect(global)?, conn => dead_letters::get(conn, id))?;
    let Some(detail) = detail else {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "relay: there is no dead letter {id}\n  help: it may have been redriven or discarded; see `relay dead list`"
            ),
        ));
    };
    let mut value = letter_json(&detail.letter);
    value["headers"] = stored_json(&detail.headers);
    value["history"] = stored_json(&detail.history);
    value["payload"] = match std::str::from_utf8(&detail.payload) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(&detail.payload) }),
    };
    global.output().one(&detail_text(&detail), &value)?;
    Ok(Exit::Ok)
}

fn detail_text(detail: &Detail) -> String {
    let letter = &detail.letter;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{name:<13} {}\n", visible(value)));
        }
    };
    line("id", &letter.id.to_string());
    line("message", &letter.message_id.to_string());
    line("destination", &letter.destination);
    line("topic", &letter.topic);
    line("key", &letter.ordering_key.as_deref().map_or_else(String::new, key));
    line("reason", &letter.reason);
    line("last error", letter.last_error.as_deref().unwrap_or(""));
    line("attempts", &letter.attempts.to_string());
    line("life", &letter.life.to_string());
    line("created", &time(letter.created_at));
    line("first attempt", &letter.first_attempt_at.map_or_else(String::new, time));
    line("died", &time(letter.died_at));
    line("blocks key", if letter.blocks_key { "yes: later messages of this key wait for a decision" } else { "no" });
    line("content type", &letter.content_type);
    line("headers", &detail.headers);
    if let Some(attempts) = attempts(&detail.history) {
        text.push_str(&format!("\n{attempts}"));
    }
    text.push_str(&format!("\n{}\n", payload(&detail.payload)));
    text
}

/// What is done to dead letters, and how it is told.
struct Change {
    verb: &'static str,
    done: &'static str,
    loses: bool,
}

const REDRIVE: Change = Change { verb: "redrive", done: "redriven", loses: false };
const DISCARD: Change = Change { verb: "discard", done: "discarded", loses: true };

fn change(global: &Global, selection: &DeadSelection, change: &Change) -> Result<Exit, Failure> {
    let filter = understood(&selection.filter)?;
    if selection.ids.is_empty() && !selection.all && filter == Filter::default() {
        let help = "name ids, a filter such as `--destination billing`, or `--all`";
        return Err(Failure::new(Exit::Usage, format!("relay: nothing says what to {}\n  help: {help}", change.verb)));
    }
    let mut conn = connect(global)?;
    let ids = match selection.ids.is_empty() {
        false => selection.ids.clone(),
        true => {
            let limit = global.limit.unwrap_or(u32::MAX);
            // Oldest first: what died first goes first.
            let mut ids = with_connection!(&mut conn, conn => dead_letters::ids(conn, &filter, limit))?;
            ids.sort_unstable();
            if ids.is_empty() {
                note_unknown(&mut conn, filter.destination.as_deref())?;
            }
            ids
        }
    };
    if global.dry_run {
        return dry_run(global, &mut conn, &ids, change);
    }
    if change.loses && !ids.is_empty() {
        ask::confirm(global, &format!("{} would be discarded and never be sent.", letters(ids.len() as u64)))?;
    }
    let by = By { actor: settings::actor(global), reason: global.reason.clone() };
    let mut outcome = Outcome::default();
    let mut stopped = None;
    for some in ids.chunks(AT_ONCE) {
        let part = with_connection!(&mut conn, conn => match change.loses {
            true => dead_letters::discard(conn, some, &by),
            false => dead_letters::redrive(conn, some, &by),
        });
        match part {
            Ok(part) => {
                outcome.done.extend(part.done);
                outcome.not_found.extend(part.not_found);
            }
            Err(error) => {
                stopped = Some(Failure::from(error));
                break;
            }
        }
    }
    told(global, change, &outcome, stopped)
}

fn dry_run(global: &Global, conn: &mut Connection, ids: &[i64], change: &Change) -> Result<Exit, Failure> {
    let (mut found, mut not_found) = (Vec::new(), Vec::new());
    for id in ids {
        match with_connection!(conn, conn => dead_letters::get(conn, *id))? {
            Some(detail) => found.push(detail.letter),
            None => not_found.push(*id),
        }
    }
    say(&format!("would be {}: {} of {}", change.done, found.len(), ids.len()));
    match global.output().format() {
        Format::Table => global.output().lines(&rows(&found))?,
        _ => global.output().many(&[], &found.iter().map(letter_json).collect::<Vec<_>>(), |_| Vec::new())?,
    }
    if !not_found.is_empty() {
        say(&named(&not_found));
    }
    Ok(ended(found.is_empty(), not_found.is_empty()))
}

/// How a change ends that reached all it could.
fn ended(is_nothing_found: bool, is_all_found: bool) -> Exit {
    match (is_nothing_found, is_all_found) {
        (_, true) => Exit::Ok,
        (false, false) => Exit::Partly,
        (true, false) => Exit::Failed,
    }
}

fn named(not_found: &[i64]) -> String {
    let ids: Vec<String> = not_found.iter().map(i64::to_string).collect();
    format!("not found {}: {}", ids.len(), ids.join(" "))
}

/// So many of them.
pub(super) fn letters(count: u64) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}

/// Tells what was done and what was not.
fn told(global: &Global, change: &Change, outcome: &Outcome, stopped: Option<Failure>) -> Result<Exit, Failure> {
    let mut text = format!("{} {}\n", change.done, outcome.done.len());
    if !outcome.not_found.is_empty() {
        text.push_str(&format!("{}\n", named(&outcome.not_found)));
    }
    let value = json!({ change.done: outcome.done, "not_found": outcome.not_found });
    global.output().one(&text, &value)?;
    match (outcome.done.is_empty(), outcome.not_found.is_empty(), stopped) {
        (true, _, Some(failure)) => Err(failure),
        (false, _, Some(failure)) => {
            let why = failure.message.unwrap_or_default();
            Err(Failure::new(Exit::Partly, format!("{why}\n  help: run the same command again for the rest")))
        }
        (is_nothing_done, is_all_found, None) => Ok(ended(is_nothing_done, is_all_found)),
    }
}

fn understood(filter: &DeadFilter) -> Result<Filter, Failure> {
    Ok(Filter {
        destination: filter.destination.clone(),
        topic: filter.topic.clone(),
        key: filter.key.clone(),
        error: filter.error.clone(),
        group: filter.group.clone(),
        since: filter.since.as_deref().map(|text| instant("--since", text)).transpose()?,
        until: filter.until.as_deref().map(|text| instant("--until", text)).transpose()?,
        contains: filter.contains.clone(),
    })
}

/// `2h` ago, a time, or a day, which begins at midnight UTC.
pub(super) fn instant(option: &str, text: &str) -> Result<DateTime<Utc>, Failure> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    let ago =
        duration::parse(text).ok().and_then(|ago| Utc::now().checked_sub_signed(chrono::Duration::from_std(ago).ok()?));
    ago.ok_or_else(|| {
        let help = "write how long ago, as `2h`, or a time, as `2026-11-22T10:00:00Z`, or a day, as `2026-11-22`";
        Failure::new(Exit::Usage, format!("relay: `{text}` for {option} is no time\n  help: {help}"))
    })
}

/// A dead letter for programs, without its payload.
pub(super) fn letter_json(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "message_id": letter.message_id.to_string(),
        "seq": letter.seq,
        "destination": letter.destination,
        "topic": letter.topic,
        "key": letter.ordering_key.as_deref().map(key),
        "reason": letter.reason,
        "last_verdict": letter.last_verdict,
        "last_error": letter.last_error,
        "fingerprint": letter.fingerprint,
        "blocks_key": letter.blocks_key,
        "attempts": letter.attempts,
        "life": letter.life,
        "redriven_from": letter.redriven_from,
        "content_type": letter.content_type,
        "created_at": letter.created_at,
        "first_attempt_at": letter.first_attempt_at,
        "died_at": letter.died_at,
    })
}
