//! What a test expects, how a message differs from it, and the words for that.
//!
//! Pure: the messages come in as they were read.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::Enqueued;
use crate::error::Error;
use crate::message::Message;

/// How many messages a failure shows.
const SHOWN_MAX: usize = 20;

/// How much of a payload a failure shows, in characters.
const PAYLOAD_SHOWN_MAX: usize = 500;

/// What a message must be like. What is not said does not matter.
#[derive(Clone, Debug)]
#[must_use = "an expectation does nothing until it is asserted"]
pub struct Expected {
    topic: String,
    facts: Vec<Fact>,
    count: Option<usize>,
}

#[derive(Clone, Debug)]
enum Fact {
    Text { name: &'static str, is: fn(&Enqueued) -> Option<String>, expected: String },
    Header { name: String, expected: String },
    Json(Value),
    Bytes(Vec<u8>),
}

impl Expected {
    /// A message of this type, that is, of its topic.
    pub fn of<M: Message + ?Sized>() -> Expected {
        Expected::topic(M::TOPIC)
    }

    /// A message of this topic.
    pub fn topic(topic: impl Into<String>) -> Expected {
        Expected { topic: topic.into(), facts: Vec::new(), count: None }
    }

    /// With this ordering key.
    pub fn key(self, key: impl Into<String>) -> Expected {
        self.text("key", |message| message.key.clone(), key)
    }

    /// With this header, given as `(name, value)`.
    pub fn header(mut self, (name, value): (&str, &str)) -> Expected {
        self.facts.push(Fact::Header { name: name.to_ascii_lowercase(), expected: value.to_owned() });
        self
    }

    /// With this correlation id.
    pub fn correlation_id(self, id: &str) -> Expected {
        self.header(("correlation-id", id))
    }

    /// With a JSON payload that has all of this. Objects may have more members, lists have as many elements.
    ///
    /// # Panics
    ///
    /// When `payload` does not turn into JSON.
    pub fn payload(mut self, payload: impl Serialize) -> Expected {
        let payload = serde_json::to_value(payload).expect("the expected payload turns into JSON");
        self.facts.push(Fact::Json(payload));
        self
    }

    /// With a payload of exactly these bytes.
    pub fn bytes(mut self, payload: impl AsRef<[u8]>) -> Expected {
        self.facts.push(Fact::Bytes(payload.as_ref().to_owned()));
        self
    }

    /// With this content type.
    pub fn content_type(self, content_type: impl Into<String>) -> Expected {
        self.text("content_type", |message| Some(message.content_type.clone()), content_type)
    }

    /// For this destination, named by the sender.
    pub fn to(self, destination: impl Into<String>) -> Expected {
        self.text("to", |message| message.destination.clone(), destination)
    }

    /// With this dedup key.
    pub fn dedup_key(self, key: impl Into<String>) -> Expected {
        self.text("dedup_key", |message| message.dedup_key.clone(), key)
    }

    /// Of this version.
    pub fn version(self, version: u16) -> Expected {
        self.text("version", |message| Some(message.version.to_string()), version.to_string())
    }

    /// So many of them, instead of one or more.
    pub fn count(mut self, count: usize) -> Expected {
        self.count = Some(count);
        self
    }

    fn text(
        mut self,
        name: &'static str,
        is: fn(&Enqueued) -> Option<String>,
        expected: impl Into<String>,
    ) -> Expected {
        self.facts.push(Fact::Text { name, is, expected: expected.into() });
        self
    }

    /// How the message differs, one line for each field that does; empty when it is as expected.
    fn differences(&self, message: &Enqueued) -> Vec<String> {
        if message.topic != self.topic {
            return vec![format!("topic: `{}` expected", self.topic)];
        }
        let mut lines = Vec::new();
        for fact in &self.facts {
            match fact {
                Fact::Text { name, is, expected } => differ(&mut lines, name, expected, is(message).as_deref()),
                Fact::Header { name, expected } => {
                    let is = message.headers.get(name).map(String::as_str);
                    differ(&mut lines, &format!("header {name}"), expected, is);
                }
                Fact::Json(expected) => match message.json() {
                    Some(is) => differ_json(&mut lines, "payload", expected, Some(&is)),
                    None => lines.push("payload: JSON expected".to_owned()),
                },
                Fact::Bytes(expected) if *expected == message.payload => {}
                Fact::Bytes(expected) => lines.push(format!("payload: {} expected", shown(expected))),
            }
        }
        lines
    }

    /// In words.
    fn told(&self) -> String {
        let mut told = self.topic.clone();
        for fact in &self.facts {
            let _ = match fact {
                Fact::Text { name, expected, .. } => write!(told, ", {name} `{expected}`"),
                Fact::Header { name, expected } => write!(told, ", header {name} `{expected}`"),
                Fact::Json(expected) => write!(told, ", payload {expected}"),
                Fact::Bytes(expected) => write!(told, ", payload {}", shown(expected)),
            };
        }
        told
    }

    /// Why an assertion fails, or nothing.
    fn complaint(&self, messages: &[Enqueued], is_wanted: bool) -> Option<String> {
        let found = messages.iter().filter(|message| self.differences(message).is_empty()).count();
        let is_right = match self.count {
            Some(count) => found == count,
            None => found > 0,
        };
        if is_right == is_wanted {
            return None;
        }
        let expected = match (self.count, is_wanted) {
            (Some(count), true) => format!("{count} of these expected, {found} enqueued"),
            (Some(count), false) => format!("not {count} of these expected"),
            (None, true) => "this is not enqueued".to_owned(),
            (None, false) => "this is enqueued and must not be".to_owned(),
        };
        let mut text = format!("outbox: {expected}:\n  {}\n", self.told());
        if messages.is_empty() {
            text.push_str("nothing is enqueued; what a relay has taken counts no more, nor what was rolled back");
            return Some(text);
        }
        let _ = writeln!(text, "enqueued ({}):", messages.len());
        // The newest are those of this test.
        for message in messages.iter().skip(messages.len().saturating_sub(SHOWN_MAX)) {
            let _ = writeln!(text, "  {}", message.told());
            for line in self.differences(message) {
                let _ = writeln!(text, "    differs in {line}");
            }
        }
        if messages.len() > SHOWN_MAX {
            let _ = writeln!(text, "  and {} older ones", messages.len() - SHOWN_MAX);
        }
        Some(text)
    }
}

impl Enqueued {
    /// In one line.
    fn told(&self) -> String {
        let mut told = self.topic.clone();
        let options = [("key", &self.key), ("to", &self.destination), ("dedup_key", &self.dedup_key)];
        for (name, value) in options.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            let _ = write!(told, ", {name} `{value}`");
        }
        for (name, value) in &self.headers {
            let _ = write!(told, ", header {name} `{value}`");
        }
        let _ = write!(told, ", payload {}", shown(&self.payload));
        told
    }
}

fn differ(lines: &mut Vec<String>, name: &str, expected: &str, is: Option<&str>) {
    match is {
        Some(is) if is == expected => {}
        Some(is) => lines.push(format!("{name}: `{expected}` expected, it is `{is}`")),
        None => lines.push(format!("{name}: `{expected}` expected, it has none")),
    }
}

fn differ_json(lines: &mut Vec<String>, path: &str, expected: &Value, is: Option<&Value>) {
    let Some(is) = is else {
        lines.push(format!("{path}: {expected} expected, it has none"));
        return;
    };
    match (expected, is) {
        (Value::Object(expected), Value::Object(is)) => {
            for (name, expected) in expected {
                differ_json(lines, &format!("{path}.{name}"), expected, is.get(name));
            }
        }
        (Value::Array(expected), Value::Array(is)) if expected.len() == is.len() => {
            for (n, (expected, is)) in expected.iter().zip(is).enumerate() {
                differ_json(lines, &format!("{path}[{n}]"), expected, Some(is));
            }
        }
        _ if expected == is => {}
        _ => lines.push(format!("{path}: {expected} expected, it is {is}")),
    }
}

/// A payload for people.
fn shown(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if text.chars().count() <= PAYLOAD_SHOWN_MAX => text.to_owned(),
        Ok(text) => format!("{}… ({} bytes)", text.chars().take(PAYLOAD_SHOWN_MAX).collect::<String>(), text.len()),
        Err(_) => format!("{} bytes that are no text", payload.len()),
    }
}

/// What [`assert_enqueued!`](crate::assert_enqueued) does with what it has read.
///
/// # Panics
///
/// When there is no such message, or the messages could not be read.
#[track_caller]
pub fn assert_enqueued(messages: Result<Vec<Enqueued>, Error>, expected: &Expected) {
    complain(messages, expected, true);
}

/// What [`refute_enqueued!`](crate::refute_enqueued) does with what it has read.
///
/// # Panics
///
/// When there is such a message, or the messages could not be read.
#[track_caller]
pub fn refute_enqueued(messages: Result<Vec<Enqueued>, Error>, expected: &Expected) {
    complain(messages, expected, false);
}

#[track_caller]
fn complain(messages: Result<Vec<Enqueued>, Error>, expected: &Expected, is_wanted: bool) {
    let messages = match messages {
        Ok(messages) => messages,
        Err(error) => panic!("outbox: what is enqueued cannot be read: {error}"),
    };
    if let Some(complaint) = expected.complaint(&messages, is_wanted) {
        panic!("{complaint}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn message(topic: &str, key: Option<&str>, payload: &str) -> Enqueued {
        Enqueued {
            message_id: Uuid::nil(),
            seq: 1,
            topic: topic.to_owned(),
            key: key.map(str::to_owned),
            payload: payload.as_bytes().to_vec(),
            content_type: "application/json".to_owned(),
            headers: [("x-tenant".to_owned(), "7".to_owned())].into(),
            destination: None,
            deliver_at: None,
            expires_at: None,
            version: 1,
            dedup_key: None,
        }
    }

    fn placed() -> Enqueued {
        message("order.placed", Some("1"), r#"{"order_id":1,"lines":[{"sku":"a","n":2}],"note":null}"#)
    }

    #[test]
    fn a_message_may_have_more_than_what_is_expected() {
        for expected in [
            Expected::topic("order.placed"),
            Expected::topic("order.placed").key("1").header(("X-Tenant", "7")).version(1).count(1),
            Expected::topic("order.placed").payload(json!({})),
            Expected::topic("order.placed").payload(json!({ "order_id": 1, "lines": [{ "sku": "a" }] })),
            Expected::topic("order.placed").payload(json!({ "note": null })).content_type("application/json"),
            Expected::topic("order.placed").bytes(placed().payload),
        ] {
            assert_eq!(expected.complaint(&[placed()], true), None);
            assert!(expected.complaint(&[placed()], false).is_some());
            assert_eq!(expected.complaint(&[], false), None);
            assert!(expected.complaint(&[], true).is_some());
        }
    }

    #[test]
    fn each_field_that_differs_is_told() {
        let base = || Expected::topic("order.placed");
        for (expected, told) in [
            (Expected::topic("order"), &["topic: `order` expected"][..]),
            (base().key("2"), &["key: `2` expected, it is `1`"]),
            (base().to("billing"), &["to: `billing` expected, it has none"]),
            (base().dedup_key("k"), &["dedup_key: `k` expected, it has none"]),
            (base().header(("x-tenant", "8")), &["header x-tenant: `8` expected, it is `7`"]),
            (base().correlation_id("c"), &["header correlation-id: `c` expected, it has none"]),
            (base().content_type("text/plain"), &["content_type: `text/plain` expected, it is `application/json`"]),
            (base().version(2), &["version: `2` expected, it is `1`"]),
            (base().bytes("x"), &["payload: x expected"]),
            (
                base().payload(json!([])),
                &[r#"payload: [] expected, it is {"lines":[{"n":2,"sku":"a"}],"note":null,"order_id":1}"#],
            ),
            (
                base().key("2").payload(json!({ "order_id": "1", "lines": [{ "sku": "b" }], "missing": 5 })),
                &[
                    "key: `2` expected, it is `1`",
                    r#"payload.lines[0].sku: "b" expected, it is "a""#,
                    "payload.missing: 5 expected, it has none",
                    r#"payload.order_id: "1" expected, it is 1"#,
                ],
            ),
            (base().payload(json!({ "lines": [] })), &[r#"payload.lines: [] expected, it is [{"n":2,"sku":"a"}]"#]),
        ] {
            assert_eq!(expected.differences(&placed()), told);
        }
        let text = message("order.placed", None, "not JSON");
        assert_eq!(base().payload(json!({})).differences(&text), ["payload: JSON expected"]);
    }

    #[test]
    fn a_failure_shows_what_is_enqueued_and_what_differs() {
        let expected = Expected::topic("order.placed").key("2").payload(json!({ "order_id": 2 }));
        let other = message("order.shipped", None, "{}");
        assert_eq!(
            expected.complaint(&[placed(), other], true).unwrap(),
            "outbox: this is not enqueued:\n  \
               order.placed, key `2`, payload {\"order_id\":2}\n\
             enqueued (2):\n  \
               order.placed, key `1`, header x-tenant `7`, payload {\"order_id\":1,\"lines\":[{\"sku\":\"a\",\"n\":2}],\
             \"note\":null}\n    \
                 differs in key: `2` expected, it is `1`\n    \
                 differs in payload.order_id: 2 expected, it is 1\n  \
               order.shipped, header x-tenant `7`, payload {}\n    \
                 differs in topic: `order.placed` expected\n"
        );
        let many = vec![placed(); 30];
        let told = expected.complaint(&many, true).unwrap();
        assert_eq!(
            (told.matches("\n  order.placed").count(), told.contains("and 10 older ones")),
            (21, true),
            "{told}"
        );
        let told = Expected::topic("order.placed").count(2).complaint(&[placed()], true).unwrap();
        assert!(told.starts_with("outbox: 2 of these expected, 1 enqueued:\n  order.placed\n"), "{told}");
        assert_eq!(shown(&[0xff]), "1 bytes that are no text");
        assert_eq!(shown("é".repeat(501).as_bytes()), format!("{}… (1002 bytes)", "é".repeat(500)));
    }
}
