//! `relay messages`, and how a message is named.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Messages {
    /// List pending messages and waiting deliveries, the oldest first
    ///
    /// A pending message is committed and no relay has settled it yet; it has a destination only if its sender named
    /// one, so `--destination` leaves the others out. A waiting delivery is one that could not be sent at once.
    ///
    /// No more than the oldest --scan rows of each are looked at, because the tables are not indexed by topic or key.
    #[command(after_help = "\
Examples:
  relay messages list --topic order.placed
  relay messages list --destination billing --key 4711
  relay messages list --since 1h --error timeout
  relay messages list --state retry -o jsonl | jq -r .message_id")]
    List(MessageFilter),
    /// Say where a message is: pending, waiting, dead, or not here
    ///
    /// Exits 1 when it is in none of the tables: it was delivered, was discarded, or never was.
    ///
    /// Waiting deliveries and dead letters are found by the message's id. Pending messages are not indexed by it: without
    /// --seq, no more than the oldest --scan of them are looked at.
    #[command(after_help = "\
Examples:
  relay messages show 0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10
  relay messages show 0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10 --seq 4711 --payload")]
    Show {
        #[command(flatten)]
        message: OneMessage,
        /// Also show its payload and its headers
        #[arg(long)]
        payload: bool,
    },
    /// Take a message back that was not delivered yet; leaves an audit entry
    ///
    /// It is not attempted again. A relay that is sending it at that moment finishes its attempt, and with several
    /// destinations some may have it already. Dead letters stay: see `relay dead discard`.
    ///
    /// Exits 1 when there is nothing to take back: it was delivered, is dead, was cancelled before, or never was.
    #[command(after_help = "\
Examples:
  relay messages cancel 0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10 --dry-run
  relay messages cancel 0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10 --seq 4711 --reason \"wrong price\" --yes")]
    Cancel {
        #[command(flatten)]
        message: OneMessage,
    },
}

/// Where a message can be before it is delivered or dead.
const STATES: [&str; 8] = ["pending", "retry", "blocked", "scheduled", "unrouted", "unserved", "overflow", "suspect"];

/// Which message.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct OneMessage {
    /// The message's id
    #[arg(value_name = "MESSAGE_ID", value_parser = message_id)]
    pub(in crate::cli) id: uuid::Uuid,
    /// The number it drew when it was inserted: `seq` in outbox_messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..), conflicts_with = "scan")]
    pub(in crate::cli) seq: Option<i64>,
    #[command(flatten)]
    pub(in crate::cli) scan: Scan,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(in crate::cli) struct MessageFilter {
    /// Only for this destination
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) destination: Option<String>,
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    pub(in crate::cli) topic: Option<String>,
    /// Only with this ordering key
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) key: Option<String>,
    /// Only whose last error contains this; pending messages have none
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) error: Option<String>,
    /// Only enqueued since then: `2h` ago, `2026-11-22T10:00:00Z`, or `2026-11-22` (midnight UTC)
    #[arg(long, value_name = "WHEN")]
    pub(in crate::cli) since: Option<String>,
    /// Only enqueued before then
    #[arg(long, value_name = "WHEN")]
    pub(in crate::cli) until: Option<String>,
    /// Only whose payload contains this
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) contains: Option<String>,
    /// Only `pending`, or waiting in one of the other states
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    pub(in crate::cli) state: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) scan: Scan,
}

/// How far to look.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Scan {
    /// The most rows of a table to look at, the oldest first
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) scan: u32,
}

fn message_id(text: &str) -> Result<uuid::Uuid, String> {
    text.parse().map_err(|_| match text.parse::<i64>() {
        Ok(number) => format!("`{number}` is no message id (a UUID); for a dead letter: relay dead show {number}"),
        Err(_) => "a message id is a UUID, as `enqueue` returns it; see `relay messages list`".to_owned(),
    })
}
