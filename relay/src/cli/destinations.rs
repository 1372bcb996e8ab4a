//! `relay destinations`: what messages are sent to, trying it, holding it back and removing it by hand.

use outbox::destinations::{self, By, Change, Destination, Detail};
use outbox::relays::{Relay, Relays};
use serde_json::{Value, json};

use super::args::{Destinations, Global, Look};
use super::beats::{self, Beats};
use super::database::connect;
use super::output::{Format, say, table, visible};
use super::stored::time;
use super::{Exit, Failure, settings, status};
use crate::admin::{Connection, with_connection};
use crate::config::suggestion;

mod ping;
mod remove;

/// Runs one of the `destinations` commands.
pub(super) fn run(global: &Global, command: &Destinations) -> Result<Exit, Failure> {
    match command {
        Destinations::List { look } => list(global, look),
        Destinations::Show { name, look } => show(global, name, look),
        Destinations::Ping { name } => ping::run(global, name),
        Destinations::Pause { name } => change(global, name, Wanted::Paused),
        Destinations::Resume { name } => change(global, name, Wanted::Open),
        Destinations::Remove(remove) => remove::run(global, remove),
    }
}

fn list(global: &Global, look: &Look) -> Result<Exit, Failure> {
    let mut conn = connect(global)?;
    let mut destinations = with_connection!(&mut conn, conn => destinations::list(conn))?;
    let serving = Serving::seen(&mut conn, look)?;
    let limit = global.limit.map_or(usize::MAX, |limit| limit as usize);
    let has_more = destinations.len() > limit;
    destinations.truncate(limit);
    let cells = |destination: &Destination| cells(destination, &serving);
    let as_json = |destination: &Destination| as_json(destination, &serving);
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

/// Who serves what, as far as it can be seen.
struct Serving {
    relays: Relays,
    beats: Beats,
}

impl Serving {
    fn seen(conn: &mut Connection, look: &Look) -> Result<Serving, Failure> {
        let (beats, relays) = beats::look(conn, |_| true, look.wait)?;
        Ok(Serving { relays, beats })
    }

    /// The relays that have it, and whether each was seen to live.
    fn of(&self, name: &str) -> impl Iterator<Item = (&Relay, Option<bool>)> {
        let serving = self.relays.relays.iter().filter(move |relay| serves(relay, name));
        serving.map(|relay| (relay, self.beats.lives(relay.id)))
    }

    /// Those that are not known to be dead.
    fn by(&self, name: &str) -> Vec<&Relay> {
        self.of(name).filter(|(_, lives)| *lives != Some(false)).map(|(relay, _)| relay).collect()
    }
}

/// True for a relay that has the destination.
fn serves(relay: &Relay, name: &str) -> bool {
    relay.serves.iter().any(|served| served == name)
}

fn show(global: &Global, name: &str, look: &Look) -> Result<Exit, Failure> {
    let mut conn = connect(global)?;
    let Some(detail) = with_connection!(&mut conn, conn => destinations::get(conn, name))? else {
        let waiting = with_connection!(&mut conn, conn => destinations::waiting(conn, name))?;
        if waiting > 0 {
            let wait = if waiting == 1 { "1 delivery waits".to_owned() } else { format!("{waiting} deliveries wait") };
            say(&format!(
                "{wait} for it; `relay destinations remove {name} --waiting dead` or `--waiting discard` decides about them"
            ));
        }
        return Err(unknown(name));
    };
    let serving = Serving::seen(&mut conn, look)?;
    let Detail { destination, states, oldest_due, .. } = &detail;
    let shown = |(Relay { id, name, .. }, lives): (&Relay, Option<bool>)| {
        let still = serving.beats.still(*id);
        match lives {
            Some(false) => format!("{name} (dead: its beat did not move for {})", status::rounded(still)),
            None if !still.is_zero() => {
                format!("{name} (not known: its beat did not move for {})", status::rounded(still))
            }
            Some(true) | None => name.clone(),
        }
    };
    let by: Vec<String> = serving.of(name).map(shown).collect();
    let states_text: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let lines = [
        ("destination", name.to_owned()),
        ("topics", destination.patterns.join(" ")),
        ("ordering", destination.ordering.clone()),
        ("stands", stands(destination, &serving)),
        ("served by", if by.is_empty() { "nobody".to_owned() } else { by.join(", ") }),
        (
            "registered",
            destination.served_at.map_or_else(|| "by hand".to_owned(), |at| format!("last at {}", time(at))),
        ),
        ("waiting", if states_text.is_empty() { "0".to_owned() } else { states_text.join(", ") }),
        (
            "oldest due",
            oldest_due.map_or_else(|| "nothing is due".to_owned(), |age| format!("{} ago", status::rounded(age))),
        ),
        ("dead", destination.dead.to_string()),
    ];
    let text: String = lines.iter().map(|(name, value)| format!("{name:<13}{}\n", visible(value))).collect();
    let mut value = as_json(destination, &serving);
    value["waiting_by_state"] = states.iter().map(|(state, count)| (state.clone(), json!(count))).collect();
    value["oldest_due_ms"] = json!(oldest_due.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    value["served_by"] = serving.of(name).map(|(relay, lives)| json!({ "name": relay.name, "lives": lives })).collect();
    global.output().one(&text, &value)?;
    Ok(Exit::Ok)
}

/// A name nobody has registered.
fn unknown(name: &str) -> Failure {
    let help = "a relay registers its destinations when it starts; see `relay destinations list`";
    Failure::new(Exit::Failed, format!("relay: there is no destination `{name}`\n  help: {help}"))
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

/// Whether it is sent anything, and if not, why.
fn stands(destination: &Destination, serving: &Serving) -> String {
    match (&destination.pause, destination.held_until) {
        (None, _) if serving.by(&destination.name).is_empty() => "not served".to_owned(),
        (Some(pause), _) => {
            let why = pause.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
            format!("paused since {} by {}{why}", time(pause.at), pause.by)
        }
        (None, Some(until)) => format!("held until {}", time(until)),
        (None, None) => "open".to_owned(),
    }
}

fn cells(destination: &Destination, serving: &Serving) -> Vec<String> {
    vec![
        destination.name.clone(),
        destination.patterns.join(" "),
        destination.ordering.clone(),
        destination.waiting.to_string(),
        destination.dead.to_string(),
        stands(destination, serving),
    ]
}

fn as_json(destination: &Destination, serving: &Serving) -> Value {
    json!({
        "name": destination.name,
        "topics": destination.patterns,
        "ordering": destination.ordering,
        "paused": destination.pause.as_ref().map(|pause| {
            json!({ "at": pause.at, "by": pause.by, "reason": pause.reason })
        }),
        "held_until": destination.held_until,
        "served": !serving.by(&destination.name).is_empty(),
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
        (Change::Unknown, _) => return Err(unknown(name)),
    };
    let is_done = change == Change::Done && !global.dry_run;
    match global.output().format() {
        Format::Table if is_done => global.output().lines(&text)?,
        Format::Table => say(&text),
        _ => global.output().one(&text, &json!({ "destination": name, "paused": pause, "changed": is_done }))?,
    }
    Ok(Exit::Ok)
}
