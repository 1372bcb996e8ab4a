//! `relay destinations`: what messages are sent to, and holding it back by hand.

use outbox::destinations::{self, By, Change, Destination};
use outbox::relays::{self, Relays};
use serde_json::{Value, json};

use super::args::{Destinations, Global};
use super::database::connect;
use super::output::{Format, say, table};
use super::stored::time;
use super::{Exit, Failure, settings};
use crate::admin::{Connection, with_connection};
use crate::config::suggestion;

/// Runs one of the `destinations` commands.
pub(super) fn run(global: &Global, command: &Destinations) -> Result<Exit, Failure> {
    match command {
        Destinations::List => list(global),
        Destinations::Pause { name } => change(global, name, Wanted::Paused),
        Destinations::Resume { name } => change(global, name, Wanted::Open),
    }
}

fn list(global: &Global) -> Result<Exit, Failure> {
    let mut conn = connect(global)?;
    let mut destinations = with_connection!(&mut conn, conn => destinations::list(conn))?;
    let relays = with_connection!(&mut conn, conn => relays::list(conn))?;
    let limit = global.limit.map_or(usize::MAX, |limit| limit as usize);
    let has_more = destinations.len() > limit;
    destinations.truncate(limit);
    let cells = |destination: &Destination| cells(destination, is_served(destination, &relays));
    let as_json = |destination: &Destination| as_json(destination, is_served(destination, &relays));
    let titles = ["DESTINATION", "TOPICS", "ORDERING", "WAITING", "DEAD", "STANDS"];
    let output = global.output();
    match output.format() {
        Format::Table => output.lines(&table(&titles, &destinations.iter().map(cells).collect::<Vec<_>>()))?,
        _ => output.many(&titles, &destinations.iter().map(as_json).collect::<Vec<_>>(), |_| Vec::new())?,
    }
    if has_more {
        say(&format!("only the first {limit} are shown; --limit shows more"));
    }
    Ok(Exit::Ok)
}

/// Whether a relay that is registered has it.
fn is_served(destination: &Destination, relays: &Relays) -> bool {
    relays.relays.iter().any(|relay| relay.serves.contains(&destination.name))
}

/// Says so when a filter found nothing because its destination is one that nobody has registered.
pub(super) fn note_unknown(conn: &mut Connection, filter: Option<&str>) -> Result<(), Failure> {
    let Some(name) = filter else {
        return Ok(());
    };
    let known = with_connection!(conn, conn => destinations::list(conn))?;
    if known.iter().all(|destination| destination.name != name) {
        let meant = suggestion(name, known.iter().map(|destination| destination.name.as_str()));
        let meant = meant.map_or_else(String::new, |meant| format!(" - was `{meant}` meant?"));
        say(&format!("no relay has registered a destination `{name}`{meant}"));
    }
    Ok(())
}

fn cells(destination: &Destination, is_served: bool) -> Vec<String> {
    let stands = match (&destination.pause, destination.held_until) {
        (None, _) if !is_served => "not served".to_owned(),
        (Some(pause), _) => {
            let why = pause.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
            format!("paused since {} by {}{why}", time(pause.at), pause.by)
        }
        (None, Some(until)) => format!("held until {}", time(until)),
        (None, None) => "open".to_owned(),
    };
    vec![
        destination.name.clone(),
        destination.patterns.join(" "),
        destination.ordering.clone(),
        destination.waiting.to_string(),
        destination.dead.to_string(),
        stands,
    ]
}

fn as_json(destination: &Destination, is_served: bool) -> Value {
    json!({
        "name": destination.name,
        "topics": destination.patterns,
        "ordering": destination.ordering,
        "paused": destination.pause.as_ref().map(|pause| {
            json!({ "at": pause.at, "by": pause.by, "reason": pause.reason })
        }),
        "held_until": destination.held_until,
        "served": is_served,
        "served_at": destination.served_at,
        "waiting": destination.waiting,
        "dead": destination.dead,
    })
}

/// How a destination shall stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Paused,
    Open,
}

/// Pauses, or ends the pause.
fn change(global: &Global, name: &str, wanted: Wanted) -> Result<Exit, Failure> {
    let pause = wanted == Wanted::Paused;
    let mut conn = connect(global)?;
    let change = if global.dry_run {
        let destinations = with_connection!(&mut conn, conn => destinations::list(conn))?;
        match destinations.iter().find(|destination| destination.name == name) {
            Some(destination) if destination.pause.is_some() == pause => Change::Already,
            Some(_) => Change::Done,
            None => Change::Unknown,
        }
    } else {
        let by = By { actor: settings::actor(global), reason: global.reason.clone() };
        with_connection!(&mut conn, conn => match pause {
            true => destinations::pause(conn, name, &by),
            false => destinations::resume(conn, name, &by),
        })?
    };
    let now = if pause { "paused" } else { "resumed" };
    let text = match (change, global.dry_run) {
        (Change::Done, false) => format!("{now} {name}"),
        (Change::Done, true) => format!("would be {now}: {name}"),
        (Change::Already, _) if pause => format!("{name} is paused already; `relay destinations list` says by whom"),
        (Change::Already, _) => format!("{name} is not paused"),
        (Change::Unknown, _) => {
            let help = "a relay registers its destinations when it starts; see `relay destinations list`";
            return Err(Failure::new(Exit::Failed, format!("relay: there is no destination `{name}`\n  help: {help}")));
        }
    };
    let is_done = change == Change::Done && !global.dry_run;
    match global.output().format() {
        Format::Table if is_done => global.output().lines(&text)?,
        Format::Table => say(&text),
        _ => global.output().one(&text, &json!({ "destination": name, "paused": pause, "changed": is_done }))?,
    }
    Ok(Exit::Ok)
}
