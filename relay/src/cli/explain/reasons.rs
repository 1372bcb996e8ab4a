//! From what is known of a message to the reasons why it is not moving.
//!
//! Pure: facts in, sentences out. Every reason has a code for programs, a sentence for people, and often a next step;
//! what stops everything comes first, so that the first next step is the one to take.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use outbox::dead_letters::DeadLetter;
use outbox::destinations::Destination;
use outbox::messages::{Ahead, Found, Look, Pending, Waiting, Writer};
use outbox::relays::Relays;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::status::{LIMITED, rounded};
use crate::cli::stored::time;
use crate::config::suggestion;
use crate::duration;
use crate::route::Pattern;

/// After how long something that nothing holds back is worth a look into the log.
const SOON: Duration = Duration::from_secs(10);

/// All that is known.
pub(super) struct Facts<'a> {
    pub(super) found: &'a Found,
    pub(super) look: Look,
    pub(super) destinations: &'a [Destination],
    pub(super) relays: &'a Relays,
    /// Relays whose beat did not rise for their lease.
    pub(super) silent: BTreeSet<Uuid>,
    /// For each blocked delivery: what goes before it.
    pub(super) ahead: BTreeMap<i64, Vec<Ahead>>,
    /// Open transactions that wrote messages.
    pub(super) writers: Vec<Writer>,
    pub(super) now: DateTime<Utc>,
}

/// One reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// A word for programs.
    pub(super) code: &'static str,
    /// What it is about, as a heading.
    pub(super) subject: String,
    /// The destination, when it is about one.
    pub(super) destination: Option<String>,
    /// The sentence.
    pub(super) text: String,
    /// What to do.
    pub(super) next: Option<String>,
}

impl Reason {
    pub(super) fn as_json(&self) -> Value {
        json!({ "code": self.code, "destination": self.destination, "text": self.text, "next": self.next })
    }
}

/// Why the message is not moving; what concerns everything first.
pub(super) fn reasons(facts: &Facts<'_>) -> Vec<Reason> {
    let mut reasons = Reasons { facts, subject: String::new(), destination: None, list: Vec::new() };
    if let Some(pending) = &facts.found.pending {
        reasons.pending(pending);
    }
    for waiting in &facts.found.waiting {
        reasons.waiting(waiting);
    }
    for letter in &facts.found.dead {
        reasons.dead(letter);
    }
    if facts.found.is_nowhere() {
        reasons.nowhere();
    }
    reasons.list
}

/// `3m ago`.
pub(super) fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    (now - at).to_std().map_or_else(|_| "just now".to_owned(), |age| format!("{} ago", rounded(age)))
}

/// `in 3m (2026-…)`, or `3m ago`.
fn when(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (at - now).to_std() {
        Ok(left) => format!("in {} ({})", rounded(left), time(at)),
        Err(_) => ago(at, now),
    }
}

struct Reasons<'a> {
    facts: &'a Facts<'a>,
    subject: String,
    destination: Option<String>,
    list: Vec<Reason>,
}

impl Reasons<'_> {
    fn add(&mut self, code: &'static str, text: impl Into<String>, next: Option<String>) {
        let (subject, destination) = (self.subject.clone(), self.destination.clone());
        self.list.push(Reason { code, subject, destination, text: text.into(), next });
    }

    fn pending(&mut self, pending: &Pending) {
        let now = self.facts.now;
        "pending: committed, and no relay has settled it yet".clone_into(&mut self.subject);
        self.destination = None;
        let is_carried = self.carrier(pending.partition_no);
        if let Some(at) = pending.expires_at.filter(|at| *at <= now) {
            self.add("expired", format!("it expired {}: it will become a dead letter", ago(at, now)), None);
        }
        if let Some(at) = pending.deliver_at.filter(|at| *at > now) {
            self.add("scheduled", format!("its sender asked to deliver it not before {}", when(at, now)), None);
        }
        let targets = self.targets(&pending.topic, pending.destination.as_deref());
        let before = self.list.len();
        for name in &targets {
            self.destination(name, pending.partition_no);
        }
        let is_free = is_carried && self.list.len() == before && !targets.is_empty();
        if is_free && pending.deliver_at.is_none_or(|at| at <= now) {
            let names = targets.join(", ");
            let text = format!("nothing holds it back on its way to {names}");
            // What became of it at one of them is written together with the others: until then nobody can see it.
            let unseen = match targets.len() {
                1 => "",
                _ => "; one of its destinations may be slow or have failed: outcomes are written when all have one",
            };
            self.free(pending.partition_no, &text, unseen, pending.created_at);
        }
    }

    /// Where a pending message goes; says so when that is nowhere.
    fn targets(&mut self, topic: &str, only: Option<&str>) -> Vec<String> {
        let destinations = self.facts.destinations;
        if let Some(name) = only {
            if destinations.iter().all(|destination| destination.name != name) {
                self.unknown(name);
                return Vec::new();
            }
            return vec![name.to_owned()];
        }
        let wants = |destination: &&Destination| destination.patterns.iter().any(|pattern| matches(pattern, topic));
        let targets: Vec<String> =
            destinations.iter().filter(wants).map(|destination| destination.name.clone()).collect();
        if targets.is_empty() {
            self.unrouted(topic);
        }
        targets
    }

    fn unknown(&mut self, name: &str) {
        let known = self.facts.destinations.iter().map(|destination| destination.name.as_str());
        let meant = suggestion(name, known).map_or_else(String::new, |meant| format!(" - was `{meant}` meant?"));
        let next = format!("add [destinations.{name}] to relay.toml, or register a handler of that name; or cancel it");
        self.add("unknown_destination", format!("no relay has registered its destination `{name}`{meant}"), Some(next));
    }

    fn unrouted(&mut self, topic: &str) {
        if self.facts.destinations.is_empty() {
            let text = "no destination is registered yet: a relay does that when it starts";
            self.add("unrouted", text, Some("start a relay that has a destination for it: relay run".to_owned()));
            return;
        }
        let near = near(topic, self.facts.destinations);
        let text = match near.is_empty() {
            true => format!("no destination wants the topic `{topic}`"),
            false => format!("no destination wants the topic `{topic}`; what comes close: {}", near.join(", ")),
        };
        let next = format!("add `{topic}` to the topics of a destination, or cancel the message");
        self.add("unrouted", text, Some(next));
    }

    fn waiting(&mut self, waiting: &Waiting) {
        let now = self.facts.now;
        let destination = Some(waiting.destination.clone()).filter(|name| !name.is_empty());
        let named = destination.as_deref().unwrap_or("no destination yet");
        self.subject = format!("{named}: waiting ({})", waiting.state);
        self.destination = destination;
        let is_carried = self.carrier(waiting.partition_no);
        if waiting.attempts > 0 {
            let error = waiting.last_error.as_deref().unwrap_or("no reason was noted");
            let times =
                if waiting.attempts == 1 { "1 attempt".to_owned() } else { format!("{} attempts", waiting.attempts) };
            self.add("failed", format!("{times} failed, the last with: {error}"), None);
        }
        if waiting.state == "suspect" {
            let text = match waiting.deaths {
                0 => "it was in the hands of a relay that died, so it is marked while its handler has it".to_owned(),
                n => format!(
                    "its handler had it at {}: it is tried with no other handler at work, and given up as `crashed` \
                     after three deaths like that",
                    if n == 1 { "the death of a relay".to_owned() } else { format!("{n} deaths of a relay") }
                ),
            };
            let next = "look into the output of the relay that died: killed from outside, or by its handler?";
            self.add("suspect", text, Some(next.to_owned()));
        }
        if waiting.destination.is_empty() {
            self.unrouted(&waiting.topic);
            return;
        }
        if self.facts.destinations.iter().any(|destination| destination.name == waiting.destination) {
            self.destination(&waiting.destination, waiting.partition_no);
        } else {
            self.unknown(&waiting.destination);
        }
        if let Some(at) = waiting.expires_at.filter(|at| *at <= now) {
            self.add("expired", format!("it expired {}: it will become a dead letter", ago(at, now)), None);
        }
        if waiting.blocked {
            self.blocked(waiting);
        } else if waiting.due_at > now {
            let text = match waiting.state.as_str() {
                "scheduled" => format!("its sender asked to deliver it not before {}", when(waiting.due_at, now)),
                _ => format!("the next attempt is due {}", when(waiting.due_at, now)),
            };
            self.add(if waiting.state == "scheduled" { "scheduled" } else { "backing_off" }, text, None);
        } else if is_carried && !self.list.iter().any(|reason| is_obstacle(reason) && reason.subject == self.subject) {
            let text = format!("it has been due since {}", ago(waiting.due_at, now));
            self.free(waiting.partition_no, &text, "", waiting.due_at);
        }
    }

    fn blocked(&mut self, waiting: &Waiting) {
        let shown = |bytes: Option<&[u8]>| bytes.map(crate::cli::stored::key).unwrap_or_default();
        let key = shown(waiting.ordering_key.as_deref());
        let ahead = self.facts.ahead.get(&waiting.id).and_then(|ahead| ahead.first());
        match ahead {
            Some(Ahead::Dead(letter)) => {
                let text = format!(
                    "the key {key} is blocked by a dead letter: message {} was given up ({}) {}",
                    letter.message_id,
                    letter.reason,
                    ago(letter.died_at, self.facts.now)
                );
                let id = letter.id;
                // A key that is no text cannot be written down as a word.
                let bytes = waiting.ordering_key.as_deref().unwrap_or_default();
                let release = crate::cli::stored::shell_word(bytes).map_or_else(String::new, |key| {
                    format!(", or relay keys release {} {key} to go on without it", waiting.destination)
                });
                let next =
                    format!("relay dead show {id}, then relay dead redrive {id} or relay dead discard {id}{release}");
                self.add("blocked_by_dead_letter", text, Some(next));
            }
            Some(Ahead::Delivery(first)) => {
                let error = first.last_error.as_deref().map_or_else(String::new, |error| format!(": {error}"));
                let text = format!(
                    "an earlier message of its key {key} goes first: {}, {} after {} attempts{error}",
                    first.message_id, first.state, first.attempts
                );
                self.add("blocked", text, Some(format!("relay explain {} --seq {}", first.message_id, first.seq)));
            }
            _ => {
                let text = format!("it was blocked by an earlier message of its key {key}, which is gone");
                self.add("blocked", text, Some("ask again: its relay lets it go on in a moment".to_owned()));
            }
        }
    }

    fn dead(&mut self, letter: &DeadLetter) {
        self.subject = format!("{}: dead", letter.destination);
        self.destination = Some(letter.destination.clone());
        let why = match letter.reason.as_str() {
            "rejected" => "the receiver refused it for good",
            "exhausted" => "all its attempts failed",
            "expired" => "it could not be delivered before it expired",
            "gone" => "the receiver said that it is gone for good",
            "crashed" => "the process of its handler died whenever it had it",
            "undecodable" => "what its producer stored cannot be sent",
            "removed" => "its destination was removed",
            other => other,
        };
        let error = letter.last_error.as_deref().map_or_else(String::new, |error| format!(": {error}"));
        let text = format!(
            "given up {} after {} attempts: {why}{error}",
            ago(letter.died_at, self.facts.now),
            letter.attempts
        );
        self.add("dead", text, Some(format!("repair the cause, then relay dead redrive {}", letter.id)));
        if letter.blocks_key {
            self.add("blocks_key", "later messages of its key wait for a decision about it", None);
        }
    }

    fn nowhere(&mut self) {
        let look = self.facts.look;
        self.destination = None;
        "not found".clone_into(&mut self.subject);
        for writer in &self.facts.writers {
            let named = writer.application.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
            let state = writer.state.as_deref().map_or_else(String::new, |state| format!(", {state}"));
            let since = writer.since.map_or_else(String::new, |since| format!(", open since {}", time(since)));
            let pid = writer.pid;
            let text = format!(
                "it may be held back by the transaction of pid {pid}{named}, which has written messages and is not \
                 committed{state}{since}"
            );
            let next = format!("see what pid {pid} waits for; SELECT pg_terminate_backend({pid}) rolls it back");
            self.add("uncommitted", text, Some(next));
        }
        if !self.facts.found.looked_at_all {
            let looked_at = look.looked_at;
            let text = format!("it does not wait, is not dead, and is not among the oldest {looked_at} pending");
            let next = "pass --seq, the number it drew when it was inserted, or a larger --scan".to_owned();
            self.add("not_found", text, Some(next));
            return;
        }
        let number = look.seq.map_or_else(String::new, |seq| format!(", or {seq} is not its number"));
        let text = format!("it was delivered, was cancelled or discarded, or never was committed{number}");
        let next = "a receiver's log shows whether it arrived: its id is the header webhook-id".to_owned();
        self.add("gone", text, Some(next));
    }

    /// Whether somebody delivers what is in this partition; says so when nobody does.
    fn carrier(&mut self, partition: u8) -> bool {
        let relays = self.facts.relays;
        if relays.relays.is_empty() {
            self.add("no_relay", "no relay is running: nothing is delivered", Some("start one: relay run".to_owned()));
            return false;
        }
        let Some(owner) = relays.owner(partition) else {
            let text = format!("its partition {partition} has no owner; a running relay takes it within a lease");
            self.add("no_owner", text, Some("ask again; if it stays so, look into the relays' logs".to_owned()));
            return false;
        };
        let (name, lease) = (&owner.name, duration::format(owner.lease));
        if self.facts.silent.contains(&owner.id) {
            let text = format!("relay {name} owns its partition and has given no sign of life for {lease}");
            let next =
                format!("look at relay {name}: if it is dead, another one takes over within a lease of its start");
            self.add("relay_silent", text, Some(next));
            return false;
        }
        if owner.draining {
            self.add("draining", format!("relay {name} owns its partition and is stopping"), None);
        }
        true
    }

    /// What keeps a destination from being sent anything.
    fn destination(&mut self, name: &str, partition: u8) {
        let now = self.facts.now;
        let Some(destination) = self.facts.destinations.iter().find(|destination| destination.name == name) else {
            return;
        };
        if let Some(pause) = &destination.pause {
            let why = pause.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
            let text = format!("{name} was paused by {} {}{why}", pause.by, ago(pause.at, now));
            self.add("paused", text, Some(format!("relay destinations resume {name}")));
        }
        if let Some(until) = destination.held_until {
            let text = format!("{name} asked to be left alone; the next attempt is made {}", when(until, now));
            self.add("held", text, None);
        }
        let owner = self.facts.relays.owner(partition);
        if let Some((relay, circuit)) = owner.and_then(|relay| {
            let circuit = relay.circuits.iter().find(|circuit| circuit.destination == name)?;
            Some((&relay.name, circuit))
        }) {
            let cause = &circuit.cause;
            if circuit.state == LIMITED {
                let text = format!("{name} is called {cause} by all relays together, and what is more than that waits");
                self.add("rate_limit", text, Some(format!("wait, or raise `rate_limit` of {name}")));
            } else {
                let text = format!(
                    "{name} failed at every attempt of relay {relay} ({cause}): that relay tries one message now and then, at \
                     least once a minute, and sends the others when one succeeds"
                );
                self.add("circuit", text, Some(format!("repair {name}, or the way to it")));
            }
        }
        let relays = &self.facts.relays.relays;
        if !relays.is_empty() && !relays.iter().any(|relay| relay.serves.iter().any(|served| served == name)) {
            let next = format!("start a relay whose configuration or code has the destination {name}");
            self.add("unserved", format!("no running relay serves {name}"), Some(next));
        }
    }

    /// Nothing holds it back.
    fn free(&mut self, partition: u8, text: &str, unseen: &str, since: DateTime<Utc>) {
        let owner = self.facts.relays.owner(partition).map_or("the relay", |relay| relay.name.as_str());
        let is_young = (self.facts.now - since).to_std().is_ok_and(|age| age < SOON);
        let next = match is_young {
            true => "ask again in a moment".to_owned(),
            false => format!("look at relay status and at the log of {owner}: it is behind, or busy with it"),
        };
        self.add("moving", format!("{text}: relay {owner} sends it, or is about to{unseen}"), Some(next));
    }
}

/// True for reasons that keep a delivery from being attempted.
fn is_obstacle(reason: &Reason) -> bool {
    matches!(reason.code, "paused" | "held" | "circuit" | "rate_limit" | "unserved" | "unknown_destination" | "expired")
}

fn matches(pattern: &str, topic: &str) -> bool {
    Pattern::parse(pattern).is_ok_and(|pattern| pattern.matches(topic))
}

/// Patterns that nearly match: but for case, a slip, or what follows the first segment.
fn near(topic: &str, destinations: &[Destination]) -> Vec<String> {
    const SHOWN: usize = 3;
    let lower = topic.to_lowercase();
    let first = lower.split('.').next().unwrap_or_default();
    let comes_close = |pattern: &str| {
        let pattern = pattern.to_lowercase();
        matches(&pattern, &lower)
            || pattern.split('.').next() == Some(first)
            || suggestion(&lower, [pattern.as_str()]).is_some()
    };
    let all = destinations.iter().flat_map(|destination| {
        destination.patterns.iter().map(move |pattern| (pattern.as_str(), destination.name.as_str()))
    });
    let near = all.filter(|(pattern, _)| comes_close(pattern));
    near.map(|(pattern, name)| format!("`{pattern}` of {name}")).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn what_is_past_and_what_is_to_come_are_told_apart() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::hours(1);
        assert_eq!(when(now + TimeDelta::seconds(90), now), "in 1m30s (1970-01-01T01:01:30Z)");
        assert_eq!(when(now - TimeDelta::seconds(90), now), "1m30s ago");
        assert_eq!(ago(now + TimeDelta::seconds(90), now), "just now", "clocks differ");
    }
}
