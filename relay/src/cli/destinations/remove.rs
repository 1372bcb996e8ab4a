//! `relay destinations remove`: a destination goes, and somebody has decided about what waits for it.

use outbox::destinations::{self, By, Destination, Removal, Waiting};
use outbox::relays::Relay;
use serde_json::json;

use super::super::args::{Global, Remove};
use super::super::database::connect;
use super::super::output::say;
use super::super::{Exit, Failure, ask, beats, settings, status};
use super::serves;
use crate::admin::{Connection, with_connection};

/// Removes it, or says why not.
pub(super) fn run(global: &Global, remove: &Remove) -> Result<Exit, Failure> {
    let Remove { name, waiting } = remove;
    if name.is_empty() {
        return Err(super::unknown(name));
    }
    let mut conn = connect(global)?;
    let known = with_connection!(&mut conn, conn => destinations::list(conn))?;
    let known = known.into_iter().find(|destination| destination.name == *name);
    // Nobody has registered it; what waits for it was left by a removal that broke off, or named it.
    let count = match &known {
        Some(destination) => destination.waiting,
        None => with_connection!(&mut conn, conn => destinations::waiting(conn, name))?,
    };
    if known.is_none() && count == 0 {
        return Err(super::unknown(name));
    }
    let (beats, seen) = beats::look(&mut conn, |relay| serves(relay, name), None)?;
    let serving = seen.relays.into_iter().filter(|relay| serves(relay, name));
    let (silent, living): (Vec<Relay>, Vec<Relay>) = serving.partition(|relay| beats.is_dead(relay.id));
    if !living.is_empty() {
        return Err(served(name, &living, 0));
    }
    for relay in &silent {
        let looked = status::rounded(beats.still(relay.id));
        say(&format!("{} serves it too, but its beat has not moved for {looked}: it counts as dead", relay.name));
    }
    let dead = known.as_ref().map_or(0, |destination| destination.dead);
    if global.dry_run {
        let text = format!("would be removed: {name}; {}", fate(*waiting, count, "would"));
        say(&format!("{text}{}", stays(dead)));
        return told(global, "", known.as_ref(), name, *waiting, count, false);
    }
    ask::confirm(global, &format!("{name} would be removed; {}.", fate(*waiting, count, "would")))?;
    let by = By { actor: settings::actor(global), reason: global.reason.clone() };
    let removal = with_connection!(&mut conn, conn => destinations::remove(conn, name, *waiting, &silent, &by));
    match removal.map_err(|error| broke_off(error, &mut conn, known.as_ref(), name))? {
        Removal::Done { waiting: count, .. } => {
            if let Some(stays) = (dead > 0).then(|| stays(dead)) {
                say(stays.trim_start_matches("; "));
            }
            told(
                global,
                &format!("removed {name}; {}", fate(*waiting, count, "")),
                known.as_ref(),
                name,
                *waiting,
                count,
                true,
            )
        }
        Removal::Served { by, waiting } => Err(served(name, &by, waiting)),
        _ => Err(super::unknown(name)),
    }
}

fn told(
    global: &Global,
    text: &str,
    known: Option<&Destination>,
    name: &str,
    waiting: Waiting,
    count: u64,
    is_done: bool,
) -> Result<Exit, Failure> {
    let (dead, discarded) = if waiting == Waiting::Dead { (count, 0) } else { (0, count) };
    let value = json!({
        "destination": name,
        "registered": known.is_some(),
        "removed": is_done,
        "dead_lettered": dead,
        "discarded": discarded,
    });
    global.output().one(text, &value)?;
    Ok(Exit::Ok)
}

/// What becomes of what waits.
fn fate(waiting: Waiting, count: u64, would: &str) -> String {
    let (deliveries, letters) = if count == 1 { ("delivery", "a dead letter") } else { ("deliveries", "dead letters") };
    match (count, waiting, would) {
        (0, ..) => "nothing waits for it".to_owned(),
        (_, Waiting::Dead, "") => format!("{count} waiting {deliveries} became {letters}"),
        (_, Waiting::Dead, would) => format!("{count} waiting {deliveries} {would} become {letters}"),
        (_, Waiting::Discard, "") => format!("{count} waiting {deliveries} discarded"),
        (_, Waiting::Discard, would) => format!("{count} waiting {deliveries} {would} be discarded and never be sent"),
    }
}

fn stays(dead: u64) -> String {
    match dead {
        0 => String::new(),
        1 => "; its dead letter stays".to_owned(),
        dead => format!("; its {dead} dead letters stay"),
    }
}

fn served(name: &str, by: &[Relay], so_far: u64) -> Failure {
    let names: Vec<&str> = by.iter().map(|relay| relay.name.as_str()).collect();
    let verb = if names.len() == 1 { "serves" } else { "serve" };
    let help = format!(
        "stop that, or take it out of the configuration and reload (SIGHUP), then ask again; \
         `relay destinations pause {name}` stops sending at once"
    );
    let done = if so_far > 0 {
        format!(" since then; {so_far} waiting deliveries were dealt with before")
    } else {
        String::new()
    };
    let problem = format!("relay: {name} is not removed: {} {verb} it{done}", names.join(", "));
    Failure::new(Exit::Failed, format!("{problem}\n  help: {help}"))
}

/// What the first transactions did stays done. In the first of them the destination goes.
fn broke_off(error: outbox::Error, conn: &mut Connection, known: Option<&Destination>, name: &str) -> Failure {
    let left = with_connection!(conn, conn => destinations::list(conn)).unwrap_or_default();
    match known.is_some() && left.iter().any(|destination| destination.name == name) {
        true => say(&format!("{name} is not removed: nothing was changed")),
        false => say(&format!("the removal of {name} broke off; ask again and it goes on with what is left")),
    }
    error.into()
}
