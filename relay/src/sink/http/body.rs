//! A message as the body of a request, in each of the modes.
//!
//! Invariants
//! - The same message has the same body, byte for byte, on every attempt: what an attempt knows does not get in here.
//! - A payload that is JSON stands in the body as it was enqueued.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::Mode;
use super::attributes::{Attribute, bare, time};
use super::data::Data;
use crate::message::Message;

/// What is sent.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    /// Empty when nobody knows.
    pub(super) content_type: String,
}

/// The body of a message with these attributes.
pub(super) fn body(mode: Mode, message: &Message, attributes: &[Attribute]) -> Body {
    match mode {
        Mode::Binary | Mode::Raw => Body { bytes: message.payload.clone(), content_type: declared(message).to_owned() },
        Mode::Structured => structured(message, attributes),
        Mode::Standard => standard(message),
    }
}

/// The content type without the blanks around it, which no header keeps; of blanks alone nothing is left.
fn declared(message: &Message) -> &str {
    message.content_type.trim_matches([' ', '\t'])
}

/// A CloudEvent in the JSON format.
fn structured(message: &Message, attributes: &[Attribute]) -> Body {
    let mut object = Object::begin(message);
    for (name, value) in attributes {
        object.text(bare(name), value);
    }
    if !declared(message).is_empty() {
        object.text("datacontenttype", declared(message));
    }
    object.data(Data::of(message));
    object.end("application/cloudevents+json")
}

/// What Standard Webhooks recommends as a payload. The time is the message's own: that of the attempt is in a header.
fn standard(message: &Message) -> Body {
    let mut object = Object::begin(message);
    object.text("type", &message.topic);
    object.text("timestamp", &time(message.created_at));
    match Data::of(message) {
        Data::Nothing => object.json("data", "null"),
        data => object.data(data),
    }
    object.end("application/json")
}

/// A JSON object that is being written.
struct Object(Vec<u8>);

impl Object {
    fn begin(message: &Message) -> Object {
        let mut object = Vec::with_capacity(512 + message.payload.len());
        object.push(b'{');
        Object(object)
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.string(name);
        self.0.push(b':');
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut self.0, text).expect("every text can be written as JSON into memory");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.string(value);
    }

    fn json(&mut self, name: &str, document: &str) {
        self.name(name);
        self.0.extend_from_slice(document.as_bytes());
    }

    fn data(&mut self, data: Data<'_>) {
        match data {
            Data::Nothing => {}
            Data::Json(document) => self.json("data", document),
            Data::Text(text) => self.text("data", text),
            Data::Bytes(bytes) => self.text("data_base64", &STANDARD.encode(bytes)),
        }
    }

    fn end(mut self, content_type: &str) -> Body {
        self.0.push(b'}');
        Body { bytes: self.0.into(), content_type: content_type.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attributes::attributes;
    use super::super::request::tests::message;
    use super::*;

    fn text(mode: Mode, message: &Message) -> String {
        let body = body(mode, message, &attributes(message, "/shop", None));
        String::from_utf8(body.bytes.to_vec()).unwrap()
    }

    fn with(content_type: &str, payload: &'static [u8]) -> Message {
        Message { content_type: content_type.into(), payload: Bytes::from_static(payload), ..message() }
    }

    #[test]
    fn a_payload_stands_in_the_envelope_as_it_was_enqueued() {
        let head = "{\"specversion\":\"1.0\",\"id\":\"01935a7e-0000-7000-8000-00000000002a\",\"source\":\"/shop\",\
                    \"type\":\"order.placed\",\"time\":\"2026-11-18T11:06:40.123456Z\",\"subject\":\"customer-1\",\
                    \"partitionkey\":\"customer-1\",";
        let short = "{\"type\":\"order.placed\",\"timestamp\":\"2026-11-18T11:06:40.123456Z\",";
        for (content_type, payload, structured, standard) in [
            (
                "application/json",
                &b" {\"b\":1.0,\"a\":18446744073709551616,\"b\":\"\\u0041\"}\n"[..],
                "\"datacontenttype\":\"application/json\",\"data\": {\"b\":1.0,\"a\":18446744073709551616,\"b\":\"\\u0041\"}\n}",
                "\"data\": {\"b\":1.0,\"a\":18446744073709551616,\"b\":\"\\u0041\"}\n}",
            ),
            (
                "text/plain",
                b"say \"hi\"\n",
                "\"datacontenttype\":\"text/plain\",\"data\":\"say \\\"hi\\\"\\n\"}",
                "\"data\":\"say \\\"hi\\\"\\n\"}",
            ),
            (
                "image/png",
                b"\x89PNG",
                "\"datacontenttype\":\"image/png\",\"data_base64\":\"iVBORw==\"}",
                "\"data_base64\":\"iVBORw==\"}",
            ),
            (
                "application/json",
                b"{broken",
                "\"datacontenttype\":\"application/json\",\"data_base64\":\"e2Jyb2tlbg==\"}",
                "\"data_base64\":\"e2Jyb2tlbg==\"}",
            ),
            ("application/json", b"", "\"datacontenttype\":\"application/json\"}", "\"data\":null}"),
            ("", b"17", "\"data\":17}", "\"data\":17}"),
        ] {
            let message = with(content_type, payload);
            assert_eq!(text(Mode::Structured, &message), format!("{head}{structured}"));
            assert_eq!(text(Mode::Standard, &message), format!("{short}{standard}"));
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_envelope() {
        let message = Message {
            topic: "a\",\"id\":\"forged".into(),
            ordering_key: Some(b"\"}{\\".as_slice().into()),
            content_type: "text/plain; x=\"}\"".into(),
            ..message()
        };
        let seen: serde_json::Value = serde_json::from_str(&text(Mode::Structured, &message)).unwrap();
        assert_eq!(seen["type"], message.topic);
        assert_eq!(seen["id"], message.id.to_string());
        assert_eq!(seen["subject"], "\"}{\\");
        assert_eq!(seen["datacontenttype"], message.content_type);
        assert_eq!(seen.as_object().unwrap().len(), 9);
    }
}
