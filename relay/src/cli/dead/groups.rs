//! `relay dead groups`: what died of the same thing.

use outbox::dead_letters::{self, Group};
use serde_json::{Value, json};

use super::{
    DeadFilter, Exit, Failure, Format, Global, SHOWN, connect, letter_json, note_unknown, say, shortened, table, time,
    understood, with_connection,
};

/// Shows the groups, the largest first.
pub(super) fn run(global: &Global, filter: &DeadFilter) -> Result<Exit, Failure> {
    let filter = understood(filter)?;
    let limit = global.limit.unwrap_or(SHOWN);
    // One more than is shown tells whether there is more.
    let mut conn = connect(global)?;
    let mut groups = with_connection!(&mut conn, conn => dead_letters::groups(conn, &filter, limit.saturating_add(1)))?;
    if groups.is_empty() {
        note_unknown(&mut conn, filter.destination.as_deref())?;
    }
    let has_more = groups.len() > limit as usize;
    groups.truncate(limit as usize);
    let titles = ["COUNT", "FIRST DIED", "LAST DIED", "EXAMPLE", "DESTINATION", "REASON", "GROUP", "LAST ERROR"];
    let output = global.output();
    match output.format() {
        Format::Table => output.lines(&table(&titles, &groups.iter().map(cells).collect::<Vec<_>>()))?,
        _ => output.many(&titles, &groups.iter().map(as_json).collect::<Vec<_>>(), |_| Vec::new())?,
    }
    if has_more {
        say(&format!("only the largest {limit} groups are shown; --limit shows more"));
    }
    Ok(Exit::Ok)
}

fn cells(group: &Group) -> Vec<String> {
    vec![
        group.count.to_string(),
        time(group.first_died_at),
        time(group.last_died_at),
        group.example.id.to_string(),
        group.example.destination.clone(),
        group.example.reason.clone(),
        group.fingerprint.clone(),
        shortened(group.example.last_error.as_deref().unwrap_or(""), 60),
    ]
}

fn as_json(group: &Group) -> Value {
    json!({
        "fingerprint": group.fingerprint,
        "count": group.count,
        "first_died_at": group.first_died_at,
        "last_died_at": group.last_died_at,
        "example": letter_json(&group.example),
    })
}
