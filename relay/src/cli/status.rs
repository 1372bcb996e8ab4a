//! `relay status`: what is pending, waiting and dead, and who is delivering.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Global, Status as Options};
use super::beats::{self, Beats};
use super::database::open_store;
use super::dead::letters;
use super::output::{table, visible};
use super::{Exit, Failure, block_on, settings};
use crate::config::Scope;
use crate::duration;
use crate::lease::{self, Seat};
use crate::store::{Circuit, RelaySeen, State, Status, StoreError};

/// Shows the figures, and what needs a person when asked to.
pub(super) fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    let config = settings::load(global, Scope::Database)?;
    let seen = block_on(async {
        let store = open_store(&config).await?;
        store.verify().await?;
        let mut status = store.status(None).await?;
        let beats = beats::watch(&*store, &mut status.membership, options.look.wait).await?;
        Ok((status, beats))
    })?;
    let (status, beats) = seen.map_err(|error: StoreError| Failure::from(error))?;
    if !options.exit_code {
        global.output().one(&as_text(&status, &beats), &as_json(&status, &beats))?;
        return Ok(Exit::Ok);
    }
    let attention = attention(&status, &beats, options);
    let mut text = as_text(&status, &beats);
    if !attention.is_empty() {
        text.push_str("\nATTENTION\n");
    }
    for (_, sentence) in &attention {
        text.push_str(&format!("{}\n", visible(sentence)));
    }
    let mut value = as_json(&status, &beats);
    value["attention"] = attention.iter().map(|(code, text)| json!({ "code": code, "text": text })).collect();
    global.output().one(&text, &value)?;
    Ok(if attention.is_empty() { Exit::Ok } else { Exit::Found })
}

/// What needs a person: a word for programs and a sentence for each.
fn attention(status: &Status, beats: &Beats, options: &Options) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let dead: i64 = status.dead.iter().map(|(_, _, count)| count).sum();
    if u64::try_from(dead).unwrap_or(0) > options.dead_max {
        let them = letters(dead.unsigned_abs());
        found.push(("dead_letters", format!("{them}: see `relay dead groups`")));
    }
    for (destination, age) in status.oldest_due.iter().filter(|(_, age)| *age > options.due_max) {
        let (name, age) = (named(destination), rounded(*age));
        found.push(("due", format!("a delivery for {name} has been due for {age}: see `relay messages list`")));
    }
    if let Some(age) = status.oldest_pending.filter(|age| *age > options.pending_max) {
        let age = rounded(age);
        let help = "see `relay messages list --state pending` and `relay explain`";
        found.push(("pending", format!("a message has been pending for {age}: {help}")));
    }
    if unowned(status, beats) > 0 {
        found.push(("partitions", owners(status, beats)));
    }
    for seen in status.routing.destinations.iter().filter(|seen| seen.paused) {
        let name = &seen.spec.name;
        found.push(("paused", format!("{name} is paused: see `relay destinations list`")));
    }
    for (name, count) in unserved(status, beats) {
        let help = format!("see `relay messages list --destination {name}`");
        found.push(("unserved", format!("no running relay serves {name}, for which {count} wait: {help}")));
    }
    for (relay, circuit) in circuits(status, beats).filter(|(_, circuit)| circuit.state != LIMITED) {
        let name = &circuit.destination;
        let text = format!("{name} fails at every attempt of {}: {}", relay.name, circuit.cause);
        found.push(("circuit", text));
    }
    let unrouted = status.waiting.iter().filter(|(_, state, _)| state == State::Unrouted.as_str());
    let unrouted: i64 = unrouted.map(|(_, _, count)| count).sum();
    if unrouted > 0 {
        let text = format!("no destination wants {unrouted} of what waits: see `relay messages list --state unrouted`");
        found.push(("unrouted", text));
    }
    found
}

/// The relays that are not known to be dead.
fn living<'s>(status: &'s Status, beats: &'s Beats) -> impl Iterator<Item = &'s RelaySeen> {
    status.membership.relays.iter().filter(|relay| !beats.is_dead(relay.id))
}

/// Whether one of them has this destination.
fn is_served(status: &Status, beats: &Beats, destination: &str) -> bool {
    living(status, beats).any(|relay| relay.serves.iter().any(|served| served == destination))
}

/// The state of a destination that is as slow as somebody wanted it to be.
pub(super) const LIMITED: &str = "limited";

/// Circuit breakers that are not closed, and rate limits that are in the way, of relays that are not known to be dead.
fn circuits<'s>(status: &'s Status, beats: &'s Beats) -> impl Iterator<Item = (&'s RelaySeen, &'s Circuit)> {
    status.circuits.iter().filter_map(|(id, circuit)| {
        let relay = living(status, beats).find(|relay| relay.id == *id)?;
        Some((relay, circuit))
    })
}

/// What waits for destinations that none of the running relays has, by destination.
fn unserved<'s>(status: &'s Status, beats: &Beats) -> BTreeMap<&'s str, i64> {
    let mut found = BTreeMap::new();
    // Without any relay that is one thing to say, and it is said of the partitions.
    let some_live = living(status, beats).next().is_some();
    for (destination, _, count) in status.waiting.iter().filter(|_| some_live) {
        if !destination.is_empty() && !is_served(status, beats, destination) {
            *found.entry(destination.as_str()).or_insert(0) += count;
        }
    }
    found
}

pub(super) fn as_text(status: &Status, beats: &Beats) -> String {
    let mut text = String::new();
    match status.oldest_pending {
        Some(age) => text.push_str(&format!("pending   {}, the oldest {}\n", status.pending, ago(age))),
        None => text.push_str(&format!("pending   {}\n", status.pending)),
    }
    text.push_str(&format!("waiting   {}\n", status.waiting.iter().map(|(_, _, count)| count).sum::<i64>()));
    text.push_str(&format!("dead      {}\n", status.dead.iter().map(|(_, _, count)| count).sum::<i64>()));
    text.push_str(&format!("schema    version {}\n", status.schema_version));
    text.push_str(&format!("owners    {}\n", owners(status, beats)));

    let mut part = |titles: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            text.push('\n');
            text.push_str(&table(titles, &rows));
        }
    };
    part(
        &["DESTINATION", "TOPICS", "ORDERING", "STANDS"],
        status
            .routing
            .destinations
            .iter()
            .map(|seen| {
                let stands = match (seen.paused, seen.held_for) {
                    (true, _) => "paused".to_owned(),
                    (false, _) if !is_served(status, beats, &seen.spec.name) => "not served".to_owned(),
                    (false, Some(pause)) => format!("held for {}", rounded(pause)),
                    (false, None) => "open".to_owned(),
                };
                vec![seen.spec.name.clone(), seen.spec.patterns.join(" "), seen.spec.ordering.clone(), stands]
            })
            .collect(),
    );
    part(
        &["CIRCUIT", "STANDS", "AT RELAY", "LAST FAILURE OR LIMIT"],
        circuits(status, beats)
            .map(|(relay, circuit)| {
                let stands = circuit.state.replace('_', " ");
                vec![circuit.destination.clone(), stands, relay.name.clone(), circuit.cause.clone()]
            })
            .collect(),
    );
    part(
        &["WAITING FOR", "STATE", "COUNT", "OLDEST DUE"],
        status
            .waiting
            .iter()
            .map(|(destination, state, count)| {
                // What is blocked waits for its key, not for a time.
                let due = status.oldest_due.iter().find(|(name, _)| name == destination && state != "blocked");
                let due = due.map_or_else(String::new, |(_, age)| ago(*age));
                vec![named(destination), state.clone(), count.to_string(), due]
            })
            .collect(),
    );
    part(
        &["DEAD FOR", "REASON", "COUNT"],
        status
            .dead
            .iter()
            .map(|(destination, reason, count)| vec![named(destination), reason.clone(), count.to_string()])
            .collect(),
    );
    part(
        &["RELAY", "VERSION", "PARTITIONS", "BEAT", "SERVES", "STARTED"],
        status
            .membership
            .relays
            .iter()
            .map(|relay| {
                let draining = if relay.draining { " (draining)" } else { "" };
                vec![
                    format!("{}{draining}", relay.name),
                    relay.version.clone(),
                    owned_by(status, Some(relay.id)).to_string(),
                    beat(relay, beats),
                    relay.serves.join(" "),
                    relay.started_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
                ]
            })
            .collect(),
    );
    let remarks = remarks(status, beats);
    if !remarks.is_empty() {
        text.push('\n');
    }
    for remark in remarks {
        text.push_str(&format!("{}\n", visible(&remark)));
    }
    text
}

/// What a relay's beat did while it was looked at.
fn beat(relay: &RelaySeen, beats: &Beats) -> String {
    match beats.lives(relay.id) {
        Some(true) => "moves".to_owned(),
        Some(false) => format!("still for {}", rounded(beats.still(relay.id))),
        None if beats.still(relay.id).is_zero() => "not looked at".to_owned(),
        // Shorter than its lease: that proves nothing.
        None => format!("not known, still for {}", rounded(beats.still(relay.id))),
    }
}

/// What is to be said about single relays: who is dead, and who owns nothing and why.
fn remarks(status: &Status, beats: &Beats) -> Vec<String> {
    let relays = &status.membership.relays;
    let seats: Vec<Seat<'_>> = living(status, beats)
        .map(|relay| Seat {
            id: relay.id,
            started_at: relay.started_at,
            draining: relay.draining,
            serves: &relay.serves,
            lives: true,
        })
        .collect();
    let mut remarks = Vec::new();
    for relay in relays {
        let name = &relay.name;
        if beats.is_dead(relay.id) {
            let looked = rounded(beats.still(relay.id));
            remarks.push(format!(
                "{name} is dead, stuck, or cut off from the database: its beat did not move for {looked}"
            ));
            continue;
        }
        let missing = lease::not_serving(relay.id, &seats);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let owns = match owned_by(status, Some(relay.id)) {
                0 => "it owns no partition",
                _ => "it gives its partitions up",
            };
            remarks.push(format!("{name} does not serve {missing}, which another relay serves: {owns}"));
        }
    }
    remarks
}

/// Who owns the partitions, in a sentence.
fn owners(status: &Status, beats: &Beats) -> String {
    let all = status.membership.partitions.len();
    let unowned = unowned(status, beats);
    if status.membership.relays.is_empty() {
        return "no relay is running: nothing is delivered".to_owned();
    }
    if unowned == 0 {
        return format!("all {all} partitions are owned");
    }
    let next = match living(status, beats).any(|relay| !relay.draining) {
        true => "a running relay takes them within a lease",
        false => "start a relay",
    };
    format!("{unowned} of {all} partitions have no living owner, and nothing of them is delivered: {next}")
}

/// How many partitions nobody owns who lives, or of whom it is not known. An owner without a row was declared dead or was removed; what it had is as
/// good as free.
fn unowned(status: &Status, beats: &Beats) -> usize {
    let is_there = |owner| living(status, beats).any(|relay| relay.id == owner);
    status.membership.partitions.iter().filter(|(_, owner, _)| !owner.is_some_and(is_there)).count()
}

fn owned_by(status: &Status, relay: Option<crate::message::RelayId>) -> usize {
    status.membership.partitions.iter().filter(|(_, owner, _)| *owner == relay).count()
}

fn named(destination: &str) -> String {
    if destination.is_empty() { "(not routed)".to_owned() } else { destination.to_owned() }
}

fn ago(age: Duration) -> String {
    format!("{} ago", rounded(age))
}

/// Two units at most: nobody needs the milliseconds of a day.
pub(super) fn rounded(age: Duration) -> String {
    let step = match age.as_secs() {
        0 => return duration::format(Duration::from_millis(age.subsec_millis().into())).to_string(),
        1..=3_599 => 1,
        3_600..=86_399 => 60,
        _ => 3_600,
    };
    duration::format(Duration::from_secs(age.as_secs() / step * step)).to_string()
}

pub(super) fn as_json(status: &Status, beats: &Beats) -> Value {
    let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let membership = &status.membership;
    json!({
        "schema_version": status.schema_version,
        "routes_version": status.routing.version,
        "pending": status.pending,
        "oldest_pending_ms": status.oldest_pending.map(ms),
        "waiting": status.waiting.iter().map(|(destination, state, count)| {
            json!({ "destination": destination, "state": state, "count": count })
        }).collect::<Vec<_>>(),
        "oldest_due": status.oldest_due.iter().map(|(destination, age)| {
            json!({ "destination": destination, "ms": ms(*age) })
        }).collect::<Vec<_>>(),
        "dead": status.dead.iter().map(|(destination, reason, count)| {
            json!({ "destination": destination, "reason": reason, "count": count })
        }).collect::<Vec<_>>(),
        "destinations": status.routing.destinations.iter().map(|seen| json!({
            "name": seen.spec.name,
            "topics": seen.spec.patterns,
            "ordering": seen.spec.ordering,
            "served": is_served(status, beats, &seen.spec.name),
            "paused": seen.paused,
            "held_ms": seen.held_for.map(ms),
        })).collect::<Vec<_>>(),
        "circuits": circuits(status, beats).map(|(relay, circuit)| json!({
            "destination": circuit.destination,
            "relay": relay.id.to_string(),
            "state": circuit.state,
            "cause": circuit.cause,
        })).collect::<Vec<_>>(),
        "relays": membership.relays.iter().map(|relay| json!({
            "id": relay.id.to_string(),
            "name": relay.name,
            "version": relay.version,
            "lease_ms": ms(relay.lease),
            "beat": relay.beat,
            "lives": beats.lives(relay.id),
            "draining": relay.draining,
            "serves": relay.serves,
            "started_at": relay.started_at,
            "partitions": owned_by(status, Some(relay.id)),
        })).collect::<Vec<_>>(),
        "partitions_without_living_owner": unowned(status, beats),
        "partitions": membership.partitions.iter().map(|(partition_no, owner, epoch)| {
            json!({ "partition": partition_no, "owner": owner.map(|owner| owner.to_string()), "epoch": epoch })
        }).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::Membership;

    const LEASE: Duration = Duration::from_secs(5);

    fn status(relays: &[Uuid], owners: &[Option<Uuid>]) -> Status {
        let relay = |id: &Uuid| RelaySeen {
            id: *id,
            name: "shop-1".into(),
            version: "0.1.0".into(),
            lease: LEASE,
            beat: 1,
            draining: false,
            serves: vec![],
            started_at: chrono::DateTime::UNIX_EPOCH,
        };
        let partitions = owners.iter().enumerate().map(|(n, owner)| (n as u8, *owner, 1)).collect();
        let membership = Membership { relays: relays.iter().map(relay).collect(), partitions };
        Status { membership, ..Status::default() }
    }

    #[test]
    fn partitions_without_a_living_owner_are_said_plainly() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let alive = Beats::default();
        assert_eq!(owners(&status(&[], &[None, None]), &alive), "no relay is running: nothing is delivered");
        assert_eq!(owners(&status(&[a], &[Some(a), Some(a)]), &alive), "all 2 partitions are owned");
        let missing = "of 3 partitions have no living owner, and nothing of them is delivered";
        let taken = format!("2 {missing}: a running relay takes them within a lease");
        assert_eq!(owners(&status(&[a], &[Some(a), None, Some(b)]), &alive), taken);
        let dead = Beats::still_for(&[b], LEASE, LEASE);
        assert_eq!(owners(&status(&[a, b], &[Some(a), Some(b), Some(b)]), &dead), taken);
        let dead = Beats::still_for(&[a, b], LEASE, LEASE);
        assert_eq!(
            owners(&status(&[a, b], &[Some(a), Some(b), Some(b)]), &dead),
            format!("3 {missing}: start a relay")
        );
        let doubtful = Beats::still_for(&[a, b], LEASE, LEASE / 2);
        assert_eq!(owners(&status(&[a, b], &[Some(a), Some(b)]), &doubtful), "all 2 partitions are owned");
        assert_eq!(beat(&status(&[a], &[]).membership.relays[0], &doubtful), "not known, still for 2s");
        let mut leaving = status(&[a], &[Some(a), None, None]);
        leaving.membership.relays[0].draining = true;
        assert_eq!(owners(&leaving, &alive), format!("2 {missing}: start a relay"));
    }

    #[test]
    fn a_dead_relay_and_one_that_serves_too_little_are_told_apart() {
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        let mut status = status(&[a, b, c], &[Some(a), Some(c)]);
        for (relay, (name, serves)) in status.membership.relays.iter_mut().zip([
            ("whole", &["mail", "billing"][..]),
            ("poor", &["mail"]),
            ("gone", &["mail", "billing", "audit"]),
        ]) {
            relay.name = name.to_owned();
            relay.serves = serves.iter().map(|name| (*name).to_owned()).collect();
        }
        let dead = Beats::still_for(&[c], LEASE, LEASE);
        let told = remarks(&status, &dead);
        assert_eq!(
            told,
            [
                "poor does not serve billing, which another relay serves: it owns no partition",
                "gone is dead, stuck, or cut off from the database: its beat did not move for 5s",
            ]
        );
        assert!(is_served(&status, &dead, "billing") && !is_served(&status, &dead, "audit"));
        assert!(is_served(&status, &Beats::default(), "audit"), "nobody looked");
    }

    #[test]
    fn a_circuit_that_is_open_at_a_running_relay_is_shown_and_needs_a_person() {
        let [a, b] = [1, 2].map(Uuid::from_u128);
        let mut status = status(&[a, b], &[Some(a)]);
        let circuit = |state: &str| Circuit {
            destination: "billing".into(),
            state: state.into(),
            cause: "connect: connection refused".into(),
        };
        status.circuits = vec![(a, circuit("limited"))];
        let span = Duration::from_secs(300);
        let look = crate::cli::args::Look { wait: None };
        let options = Options { exit_code: true, dead_max: 0, due_max: span, pending_max: span, look };
        let told = |status: &Status, beats: &Beats| -> Vec<&str> {
            attention(status, beats, &options).into_iter().map(|(code, _)| code).collect()
        };
        let told_of_limits = told(&status, &Beats::default());
        assert!(!told_of_limits.contains(&"circuit"), "somebody wanted it so: {told_of_limits:?}");
        status.circuits = vec![(a, circuit("half_open")), (b, circuit("open"))];
        let dead = Beats::still_for(&[b], LEASE, LEASE);
        let text = as_text(&status, &dead);
        let shown: Vec<&str> = text.lines().filter(|line| line.starts_with("billing")).collect();
        assert_eq!(shown, ["billing  half open  shop-1    connect: connection refused"], "{text}");
        assert_eq!(as_json(&status, &dead)["circuits"][0]["state"], "half_open");
        let told = told(&status, &dead);
        assert!(told.contains(&"circuit"), "{told:?}");
    }

    #[test]
    fn ages_are_shown_with_two_units_at_most() {
        for (seconds, shown) in [(0, "0s"), (61, "1m1s"), (3_661, "1h1m"), (90_061, "1d1h")] {
            assert_eq!(rounded(Duration::from_secs(seconds)), shown);
        }
    }
}
