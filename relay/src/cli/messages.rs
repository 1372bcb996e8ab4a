//! `relay messages`: where messages are that are not delivered yet.

use outbox::messages::{self, Bounds, Filter, Found, Look, Pending, Waiting};
use serde_json::{Value, json};
use uuid::Uuid;

use super::args::{Global, MessageFilter, Messages, OneMessage};
use super::database::connect;
use super::dead::{instant, letter_json};
use super::destinations::note_unknown;
use super::output::{Format, say, shortened, table, visible};
use super::stored::{attempts, hex, key, payload, stored_json, time};
use super::{Exit, Failure};
use crate::admin::with_connection;

mod cancel;

/// Rows shown when `--limit` does not say otherwise.
const SHOWN: u32 = 50;

/// The state of what has none yet.
const PENDING: &str = "pending";

/// Runs one of the `messages` commands.
pub(super) fn run(global: &Global, command: Messages) -> Result<Exit, Failure> {
    match command {
        Messages::List(filter) => list(global, &filter),
        Messages::Show { message, payload } => show(global, message.id, &Look { content: payload, ..look(&message) }),
        Messages::Cancel { message } => cancel::run(global, &message),
    }
}

/// How to look for the message that was named.
pub(super) fn look(message: &OneMessage) -> Look {
    Look { seq: message.seq, looked_at: message.scan.scan, content: false }
}

/// A row of the list, whichever table it is from.
enum Listed {
    Pending(Pending),
    Waiting(Waiting),
}

fn list(global: &Global, filter: &MessageFilter) -> Result<Exit, Failure> {
    let looked_at = filter.scan.scan;
    let since = filter.since.as_deref().map(|text| instant("--since", text)).transpose()?;
    let until = filter.until.as_deref().map(|text| instant("--until", text)).transpose()?;
    let bounds = Bounds { shown: global.limit.unwrap_or(SHOWN), looked_at };
    let wanted = |state: Option<&String>| Filter {
        destination: filter.destination.clone(),
        topic: filter.topic.clone(),
        key: filter.key.clone(),
        state: state.cloned(),
        error: filter.error.clone(),
        since,
        until,
        contains: filter.contains.clone(),
    };
    let mut conn = connect(global)?;
    let (mut rows, mut has_more, mut unseen) = (Vec::new(), false, Vec::new());
    let state = filter.state.as_ref();
    if state.is_none_or(|state| state == PENDING) {
        let page = with_connection!(&mut conn, conn => messages::pending(conn, &wanted(None), bounds))?;
        has_more |= page.has_more;
        if !page.looked_at_all {
            unseen.push("pending messages");
        }
        rows.extend(page.rows.into_iter().map(Listed::Pending));
    }
    if state.is_none_or(|state| state != PENDING) {
        let page = with_connection!(&mut conn, conn => messages::waiting(conn, &wanted(state), bounds))?;
        has_more |= page.has_more;
        if !page.looked_at_all {
            unseen.push("waiting deliveries");
        }
        rows.extend(page.rows.into_iter().map(Listed::Waiting));
    }
    rows.sort_by_key(Listed::seq);
    has_more |= rows.len() > bounds.shown as usize;
    rows.truncate(bounds.shown as usize);
    let titles = ["MESSAGE", "SEQ", "STATE", "DESTINATION", "TOPIC", "KEY", "ATTEMPTS", "DUE", "LAST ERROR"];
    let output = global.output();
    match output.format() {
        Format::Table => output.lines(&table(&titles, &rows.iter().map(Listed::cells).collect::<Vec<_>>()))?,
        _ => output.many(&titles, &rows.iter().map(Listed::as_json).collect::<Vec<_>>(), |_| Vec::new())?,
    }
    if rows.is_empty() {
        note_unknown(&mut conn, filter.destination.as_deref())?;
    }
    if has_more {
        say(&format!("only the oldest {} are shown; --limit shows more", bounds.shown));
    }
    if !unseen.is_empty() {
        say(&format!("only the oldest {looked_at} {} were looked at; --scan looks further", unseen.join(" and ")));
    }
    Ok(Exit::Ok)
}

impl Listed {
    fn seq(&self) -> i64 {
        match self {
            Listed::Pending(pending) => pending.seq,
            Listed::Waiting(waiting) => waiting.seq,
        }
    }

    fn cells(&self) -> Vec<String> {
        let shown_key = |bytes: &Option<Vec<u8>>| bytes.as_deref().map_or_else(String::new, key);
        match self {
            Listed::Pending(pending) => vec![
                pending.message_id.to_string(),
                pending.seq.to_string(),
                PENDING.to_owned(),
                pending.destination.clone().unwrap_or_default(),
                pending.topic.clone(),
                shown_key(&pending.ordering_key),
                String::new(),
                pending.deliver_at.map_or_else(String::new, time),
                String::new(),
            ],
            Listed::Waiting(waiting) => vec![
                waiting.message_id.to_string(),
                waiting.seq.to_string(),
                waiting.state.clone(),
                waiting.destination.clone(),
                waiting.topic.clone(),
                shown_key(&waiting.ordering_key),
                waiting.attempts.to_string(),
                if waiting.blocked { String::new() } else { time(waiting.due_at) },
                shortened(waiting.last_error.as_deref().unwrap_or(""), 60),
            ],
        }
    }

    fn as_json(&self) -> Value {
        match self {
            Listed::Pending(pending) => pending_json(pending),
            Listed::Waiting(waiting) => waiting_json(waiting),
        }
    }
}

fn show(global: &Global, id: Uuid, look: &Look) -> Result<Exit, Failure> {
    let found = with_connection!(&mut connect(global)?, conn => messages::find(conn, id, look))?;
    global.output().one(&found_text(id, look, &found), &found_json(id, &found))?;
    Ok(if found.is_nowhere() { Exit::Failed } else { Exit::Ok })
}

fn found_text(id: Uuid, look: &Look, found: &Found) -> String {
    let mut text = format!("message {id}\n");
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<13} {}\n", visible(value)));
        }
    };
    for (name, value) in nowhere(look, found) {
        line(name, &value);
    }
    if let Some(pending) = &found.pending {
        line("pending", "committed; no relay has settled it yet");
        line("destination", pending.destination.as_deref().unwrap_or(""));
        line("seq", &pending.seq.to_string());
        line("topic", &pending.topic);
        line("key", &pending.ordering_key.as_deref().map_or_else(String::new, key));
        line("created", &time(pending.created_at));
        line("not before", &pending.deliver_at.map_or_else(String::new, time));
        line("not after", &pending.expires_at.map_or_else(String::new, time));
    }
    for waiting in &found.waiting {
        let until = match waiting.blocked {
            true => "until an earlier message of its key is settled".to_owned(),
            false => format!("until {}", time(waiting.due_at)),
        };
        line("waiting", &format!("{}, {until}", waiting.state));
        line("destination", if waiting.destination.is_empty() { "(not routed)" } else { &waiting.destination });
        line("seq", &waiting.seq.to_string());
        line("topic", &waiting.topic);
        line("key", &waiting.ordering_key.as_deref().map_or_else(String::new, key));
        line("created", &time(waiting.created_at));
        line("attempts", &waiting.attempts.to_string());
        line("life", &waiting.life.to_string());
        line("first attempt", &waiting.first_attempt_at.map_or_else(String::new, time));
        line("not after", &waiting.expires_at.map_or_else(String::new, time));
        line("last error", waiting.last_error.as_deref().unwrap_or(""));
    }
    for letter in &found.dead {
        line("dead", &format!("since {}: {}", time(letter.died_at), letter.reason));
        line("destination", &letter.destination);
        line("last error", letter.last_error.as_deref().unwrap_or(""));
        line("more", &format!("relay dead show {}", letter.id));
    }
    for waiting in &found.waiting {
        if let Some(attempts) = attempts(&waiting.history) {
            text.push_str(&format!("\nattempts at {}\n{attempts}", visible(&waiting.destination)));
        }
    }
    if let Some(content) = &found.content {
        text.push_str(&format!("\nheaders {}\n\n{}\n", visible(&content.headers), payload(&content.payload)));
    }
    text
}

/// What to say of a message that was not found, as far as was looked.
fn nowhere(look: &Look, found: &Found) -> Vec<(&'static str, String)> {
    match (found.is_nowhere(), found.looked_at_all, look.seq) {
        (false, ..) => Vec::new(),
        (true, true, None) => {
            vec![("not here", "it was delivered, was cancelled or discarded, or never was".to_owned())]
        }
        (true, true, Some(seq)) => {
            let why = format!("it was delivered, was cancelled or discarded, never was, or {seq} is not its number");
            vec![("not here", why)]
        }
        (true, false, _) => {
            let looked_at = look.looked_at;
            let seen = format!("it does not wait, is not dead, and is not among the oldest {looked_at} pending");
            let help = "pass --seq, the number it drew when it was inserted, or a larger --scan";
            vec![("not found", seen), ("help", help.to_owned())]
        }
    }
}

pub(super) fn found_json(id: Uuid, found: &Found) -> Value {
    let waiting = |waiting: &Waiting| {
        let mut value = waiting_json(waiting);
        value["history"] = stored_json(&waiting.history);
        value
    };
    let mut value = json!({
        "message_id": id.to_string(),
        "pending": found.pending.as_ref().map(pending_json),
        "waiting": found.waiting.iter().map(waiting).collect::<Vec<_>>(),
        "dead": found.dead.iter().map(letter_json).collect::<Vec<_>>(),
        "looked_at_all": found.looked_at_all,
    });
    if let Some(content) = &found.content {
        value["headers"] = stored_json(&content.headers);
        value["payload"] = match std::str::from_utf8(&content.payload) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex(&content.payload) }),
        };
    }
    value
}

fn pending_json(pending: &Pending) -> Value {
    json!({
        "message_id": pending.message_id.to_string(),
        "seq": pending.seq,
        "state": PENDING,
        "destination": pending.destination,
        "topic": pending.topic,
        "key": pending.ordering_key.as_deref().map(key),
        "content_type": pending.content_type,
        "deliver_at": pending.deliver_at,
        "expires_at": pending.expires_at,
        "created_at": pending.created_at,
    })
}

pub(super) fn waiting_json(waiting: &Waiting) -> Value {
    json!({
        "message_id": waiting.message_id.to_string(),
        "seq": waiting.seq,
        "state": waiting.state,
        "blocked": waiting.blocked,
        "destination": waiting.destination,
        "topic": waiting.topic,
        "key": waiting.ordering_key.as_deref().map(key),
        "content_type": waiting.content_type,
        "attempts": waiting.attempts,
        "life": waiting.life,
        "due_at": waiting.due_at,
        "expires_at": waiting.expires_at,
        "created_at": waiting.created_at,
        "first_attempt_at": waiting.first_attempt_at,
        "last_verdict": waiting.last_verdict,
        "last_error": waiting.last_error,
    })
}
