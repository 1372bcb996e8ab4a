//! `relay dead`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Dead {
    /// List dead letters, newest first
    #[command(after_help = "\
Examples:
  relay dead list --destination billing --since 2h
  relay dead list --error timeout -o jsonl | jq -r .id")]
    List(DeadFilter),
    /// Put together what died of the same thing, the largest group first
    ///
    /// Reads every dead letter the filters leave. `--group` of the other commands takes a fingerprint.
    #[command(after_help = "\
Examples:
  relay dead groups --since 1d
  relay dead groups -o json | jq -r '.[0].fingerprint'")]
    Groups(DeadFilter),
    /// Write dead letters out whole, the oldest first, one JSON document per line
    ///
    /// Each line is what `list -o jsonl` shows, with `headers`, `history`, and the payload: as `payload` when it is
    /// text, as `payload_base64` when it is not. Nothing is removed. Without --limit all are written.
    #[command(after_help = "\
Examples:
  relay dead export > dead.jsonl
  relay dead export --topic order.placed | jq -r .payload")]
    Export(DeadFilter),
    /// Show one with its attempts and its payload
    #[command(after_help = "Example:\n  relay dead show 17")]
    Show {
        /// The dead letter's id
        #[arg(value_parser = letter_id)]
        id: i64,
    },
    /// Send dead letters again
    #[command(after_help = "\
Examples:
  relay dead redrive 17 18
  relay dead redrive --destination billing --since 2h --dry-run")]
    Redrive(DeadSelection),
    /// Drop dead letters for good; leaves an audit entry for each
    #[command(after_help = "\
Examples:
  relay dead discard 17 --reason \"test order\"
  relay dead discard --topic order.test --yes")]
    Discard(DeadSelection),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeadSelection {
    /// Ids of dead letters
    #[arg(value_name = "ID", value_parser = letter_id, conflicts_with_all = ["DeadFilter", "all"])]
    pub(in crate::cli) ids: Vec<i64>,
    #[command(flatten)]
    pub(in crate::cli) filter: DeadFilter,
    /// All of them
    #[arg(long, conflicts_with = "DeadFilter")]
    pub(in crate::cli) all: bool,
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(in crate::cli) struct DeadFilter {
    /// Only of this destination
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) destination: Option<String>,
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    pub(in crate::cli) topic: Option<String>,
    /// Only with this ordering key
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) key: Option<String>,
    /// Only whose reason is this, or whose last error contains it
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) error: Option<String>,
    /// Only those that died of the same thing
    #[arg(long, value_name = "FINGERPRINT")]
    pub(in crate::cli) group: Option<String>,
    /// Only given up since then: `2h` ago, `2026-11-22T10:00:00Z`, or `2026-11-22` (midnight UTC)
    #[arg(long, value_name = "WHEN")]
    pub(in crate::cli) since: Option<String>,
    /// Only given up before then
    #[arg(long, value_name = "WHEN")]
    pub(in crate::cli) until: Option<String>,
    /// Only whose payload contains this
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) contains: Option<String>,
}

fn letter_id(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| match text.parse::<uuid::Uuid>() {
        Ok(id) => {
            format!("`{id}` is the id of a message, not the number of a dead letter; see: relay messages show {id}")
        }
        Err(_) => "a dead letter's id is a number; see `relay dead list`".to_owned(),
    })
}
