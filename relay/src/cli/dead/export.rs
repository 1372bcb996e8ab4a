//! `relay dead export`: dead letters with everything, for other programs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outbox::dead_letters::{self, Detail};
use serde_json::{Value, json};

use super::{
    DeadFilter, Exit, Failure, Format, Global, connect, letter_json, letters, note_unknown, say, stored_json,
    understood, with_connection,
};

/// Payloads are a quarter of a megabyte at most unless somebody allowed more: a page fits into memory.
const PAGE: u32 = 100;

/// Writes every letter the filter leaves, a page at a time.
pub(super) fn run(global: &Global, filter: &DeadFilter) -> Result<Exit, Failure> {
    if global.output().format() == Format::Json {
        let help = "leave `-o json` out, or put the lines together with `jq -s`";
        return Err(Failure::new(Exit::Usage, format!("relay: an export is written as jsonl\n  help: {help}")));
    }
    let filter = understood(filter)?;
    let mut conn = connect(global)?;
    let mut left = global.limit.unwrap_or(u32::MAX);
    let (mut after, mut written) = (0, 0_u64);
    while left > 0 {
        let wanted = left.min(PAGE);
        let page = with_connection!(&mut conn, conn => dead_letters::details(conn, &filter, after, wanted))?;
        let mut lines = String::new();
        for detail in &page {
            lines.push_str(&line(detail).to_string());
            lines.push('\n');
        }
        global.output().lines(&lines)?;
        written += page.len() as u64;
        left -= u32::try_from(page.len()).unwrap_or(left).min(left);
        match page.last() {
            Some(last) if page.len() == wanted as usize => after = last.letter.id,
            _ => break,
        }
    }
    if written == 0 {
        note_unknown(&mut conn, filter.destination.as_deref())?;
    }
    say(&format!("written: {}", letters(written)));
    Ok(Exit::Ok)
}

fn line(detail: &Detail) -> Value {
    let mut value = letter_json(&detail.letter);
    value["headers"] = stored_json(&detail.headers);
    value["history"] = stored_json(&detail.history);
    match std::str::from_utf8(&detail.payload) {
        Ok(text) => value["payload"] = json!(text),
        Err(_) => value["payload_base64"] = json!(STANDARD.encode(&detail.payload)),
    }
    value
}
