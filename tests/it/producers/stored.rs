//! What lies in `outbox_messages`, read from outside, byte for byte.

use outbox_tests::database::{Kind, TestDatabase};

/// A row as every database can show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) seq: i64,
    /// In hexadecimal digits.
    pub(crate) id: String,
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    pub(crate) payload: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) headers: String,
}

/// Every committed message, by its number.
pub(crate) fn stored(database: &TestDatabase) -> Vec<Stored> {
    let columns = match database.kind() {
        Kind::Postgres => [
            "seq::text",
            "replace(id::text, '-', '')",
            "topic",
            "CASE WHEN ordering_key IS NULL THEN '-' ELSE encode(convert_to(ordering_key, 'UTF8'), 'hex') END",
            "encode(coalesce(payload_bytes, convert_to(payload, 'UTF8')), 'hex')",
            "encode(convert_to(content_type, 'UTF8'), 'hex')",
            "encode(convert_to(headers, 'UTF8'), 'hex')",
        ],
        Kind::Mariadb => [
            "CAST(seq AS CHAR)",
            "lower(hex(id))",
            "topic",
            "CASE WHEN ordering_key IS NULL THEN '-' ELSE hex(ordering_key) END",
            "hex(payload)",
            "hex(content_type)",
            "hex(headers)",
        ],
        Kind::Sqlite => [
            "CAST(seq AS TEXT)",
            "lower(hex(id))",
            "topic",
            "CASE WHEN ordering_key IS NULL THEN '-' ELSE hex(ordering_key) END",
            "hex(payload)",
            "hex(content_type)",
            "hex(headers)",
        ],
    };
    let line = match database.kind() {
        Kind::Mariadb => format!("concat({})", columns.join(", ' ', ")),
        Kind::Postgres | Kind::Sqlite => columns.join(" || ' ' || "),
    };
    let lines = database.query_text(&format!("SELECT {line} FROM outbox_messages"));
    let mut rows: Vec<Stored> = lines.iter().map(|line| read(line.as_deref().unwrap())).collect();
    rows.sort_by_key(|row| row.seq);
    rows
}

/// Only the payloads.
pub(crate) fn payloads(database: &TestDatabase) -> Vec<Vec<u8>> {
    stored(database).into_iter().map(|row| row.payload).collect()
}

fn read(line: &str) -> Stored {
    let words: Vec<&str> = line.split(' ').collect();
    let [seq, id, topic, key, payload, content_type, headers] = words[..] else { panic!("`{line}`") };
    let text = |hex: &str| String::from_utf8(unhex(hex)).unwrap();
    Stored {
        seq: seq.parse().unwrap(),
        id: id.to_owned(),
        topic: topic.to_owned(),
        key: (key != "-").then(|| text(key)),
        payload: unhex(payload),
        content_type: text(content_type),
        headers: text(headers),
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// In hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Payloads that text handling likes to damage.
pub(crate) fn nasty_payloads() -> Vec<Vec<u8>> {
    let texts = [
        "",
        r#"{"path":"C:\\temp\\new","quote":"it's \"quoted\"","nul":"\u0000"}"#,
        "two\nlines\r\nand a tab\t and a trailing blank ",
        r"\x41 \101 \n \0 \\ % _ '' $1 ? :name @x -- /* */ ;",
        "grüße 🦀 \u{202e}\u{feff}",
    ];
    let binaries = [(0..=255).collect(), b"a\0b".to_vec(), b"\xff\xfe\xfd".to_vec(), vec![0], vec![b'\\'; 3]];
    texts.iter().map(|text| text.as_bytes().to_vec()).chain(binaries).collect()
}
