//! `relay keys`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Keys {
    /// List ordering keys that stand still, and what each waits for
    ///
    /// First those that dead letters block, the longest blocked first; then those whose first message waits for its next
    /// attempt, the ones with most waiting messages first.
    ///
    /// Reads every waiting delivery that has a key once, through an index; --destination and --blocked make it less.
    #[command(after_help = "\
Examples:
  relay keys list --blocked
  relay keys list --destination billing
  relay keys list --destination billing --key order-2 -o jsonl | jq .blocked_by")]
    List(KeyFilter),
    /// Let a key go on past the dead letters that block it; leaves an audit entry
    ///
    /// They stay dead letters, and what waits behind them is sent, in order. Redriven later, they are sent without regard
    /// to that order. To send them first: `relay dead redrive`. To drop them: `relay dead discard`.
    ///
    /// Where no dead letter blocks the key nothing is changed, and it says what the key waits for. Exits 1 when nothing
    /// of the key stands still.
    #[command(after_help = "\
Examples:
  relay keys release billing order-2 --dry-run
  relay keys release billing order-2 --reason \"cancelled by phone\"
  relay keys release billing -- -7    a key that begins with a hyphen")]
    Release {
        /// The destination
        destination: String,
        /// The ordering key, byte for byte
        key: OsString,
    },
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(in crate::cli) struct KeyFilter {
    /// Only at this destination
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) destination: Option<String>,
    /// Only this ordering key
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) key: Option<OsString>,
    /// Only those that dead letters block
    #[arg(long)]
    pub(in crate::cli) blocked: bool,
}
