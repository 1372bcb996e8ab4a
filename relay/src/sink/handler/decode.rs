//! Payloads into the types of handlers.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::result::HandlerError;
use crate::message::Message;

/// The message as the type a handler takes.
///
/// What was written as a newer version than the type may mean something else although it fits. A relay that knows the
/// newer version may be about to start, so that is tried again rather than given up.
pub(super) fn typed<M: outbox::Message + DeserializeOwned>(message: &Message) -> Result<M, HandlerError> {
    if message.version > M::VERSION {
        return Err(HandlerError::unknown_version(M::TOPIC, message.version, M::VERSION));
    }
    json(message).map_err(HandlerError::undecodable)
}

/// Reads the payload as JSON; otherwise says what is wrong with it, without repeating any of it.
fn json<M: DeserializeOwned>(message: &Message) -> Result<M, String> {
    serde_json::from_slice(&message.payload).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what = match error.classify() {
            Category::Data => without_content(&error.to_string()),
            // Mistakes of syntax come with fixed texts.
            Category::Syntax | Category::Eof | Category::Io => return format!("the payload is not JSON: {error}"),
        };
        format!("the payload does not fit the handler's type: {what} at line {line} column {column}")
    })
}

/// What serde says about a value that does not fit, without the value: payloads hold what must not be in logs.
///
/// Serde tells first what it found, which is payload, then what it had expected, which is code. A text in no known form
/// comes from somebody's own `Deserialize` and may hold anything.
fn without_content(text: &str) -> String {
    // `serde_json` adds the place, which is added again for all of them.
    let text = text.rsplit_once(" at line ").map_or(text, |(text, _)| text);
    if text.starts_with("missing field `") || text.starts_with("duplicate field `") {
        return text.to_owned();
    }
    let kinds = ["invalid type", "invalid value", "invalid length", "unknown variant", "unknown field"];
    let Some(kind) = kinds.into_iter().find(|kind| text.starts_with(kind)) else {
        return "a value was refused".to_owned();
    };
    match text.rsplit_once(", expected ") {
        // A type without fields expects nothing; what looks like it then is part of the name that was found.
        Some((_, expected)) if !text.contains(", there are no ") => format!("{kind}, expected {expected}"),
        _ => kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Order {
        id: i64,
        state: State,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum State {
        New,
        Paid,
    }

    fn refusal(payload: &str) -> String {
        let error = serde_json::from_str::<Order>(payload).unwrap_err();
        without_content(&error.to_string())
    }

    #[test]
    fn what_is_told_about_a_payload_holds_none_of_it() {
        for (payload, expected) in [
            (r#"{"state":"new"}"#, "missing field `id`"),
            (r#"{"id":1,"id":2}"#, "duplicate field `id`"),
            (r#"{"id":"secret"}"#, "invalid type, expected i64"),
            (r#"{"id":"secret, expected secret"}"#, "invalid type, expected i64"),
            (r#"{"id":99999999999999999999}"#, "invalid type, expected i64"),
            (r#"{"state":"secret"}"#, "unknown variant, expected `new` or `paid`"),
            (r#"{"secret at line 1":1}"#, "unknown field, expected `id` or `state`"),
            (r#"["secret"]"#, "invalid type, expected i64"),
        ] {
            assert_eq!(refusal(payload), expected, "{payload}");
        }
        for (text, expected) in [
            ("unknown field `secret, expected secret`, there are no fields at line 1 column 1", "unknown field"),
            ("`secret` is no e-mail address", "a value was refused"),
        ] {
            assert_eq!(without_content(text), expected);
        }
    }
}
