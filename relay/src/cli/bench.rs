//! `relay bench`: how fast an outbox drains here.

use serde_json::json;

use super::output::say;
use super::{BenchDrain, Exit, Failure, Output, block_on, settings};
use crate::bench::{self, BenchError, DrainBench};
use crate::cause::chain;

/// Measures the floor and the drain in one run, and the drain beside a pinned transaction if asked.
pub(super) fn drain(output: &Output, options: &BenchDrain) -> Result<Exit, Failure> {
    options.database_url.as_deref().map_or(Ok(()), settings::understood)?;
    let bench = DrainBench {
        messages: options.messages,
        payload: options.payload,
        per_key: options.per_key,
        pinned: options.pinned,
    };
    let report = block_on(bench::drain(options.database_url.as_deref(), &bench, |step| say(&format!("{step} …"))))?
        .map_err(|error| {
            let exit = if matches!(error, BenchError::Ground(_)) { Exit::Database } else { Exit::Failed };
            Failure::new(exit, format!("relay: {}", chain(&error)))
        })?;
    let (floor, drain) = (report.rate(report.floor), report.rate(report.drain));
    let pinned = report.pinned.map(|took| report.rate(took));
    let mut text = format!(
        "messages     {} of {} bytes\nfloor        {floor:.0} messages/s (read a batch, delete it)\ndrain        {drain:.0} messages/s = {:.2} of the floor",
        report.messages,
        options.payload,
        drain / floor,
    );
    if let Some(pinned) = pinned {
        text.push_str(&format!(
            "\npinned       {pinned:.0} messages/s = {:.2} of the drain (beside an open transaction)",
            pinned / drain
        ));
    }
    let value = json!({
        "messages": report.messages,
        "payload_bytes": options.payload,
        "floor_per_second": floor,
        "drain_per_second": drain,
        "drain_of_floor": drain / floor,
        "pinned_per_second": pinned,
        "pinned_of_drain": pinned.map(|pinned| pinned / drain),
    });
    output.one(&text, &value)?;
    Ok(Exit::Ok)
}
