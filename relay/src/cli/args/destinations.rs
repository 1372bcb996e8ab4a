//! `relay destinations`.

use clap::{Args, Subcommand};
use outbox::destinations::Waiting;

use super::Look;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Destinations {
    /// List what relays have registered, and what waits for each and is dead
    ///
    /// Waits until each relay's beat has moved, a lease at most: one that stands still serves nothing.
    #[command(after_help = "Examples:\n  relay destinations list\n  relay destinations list -o jsonl | jq .paused")]
    List {
        #[command(flatten)]
        look: Look,
    },
    /// Show one destination: who serves it, whether it is paused or held, and what waits for it
    ///
    /// Waits until each relay's beat has moved, a lease at most: one that stands still serves nothing.
    #[command(
        after_help = "Examples:\n  relay destinations show billing\n  relay destinations show billing -o json | jq .served_by"
    )]
    Show {
        /// The destination
        name: String,
        #[command(flatten)]
        look: Look,
    },
    /// Send a destination one harmless request, as it is configured here, and show the answer
    ///
    /// Topic `outbox.ping`, header `outbox-ping: true`, a fresh id, signed like every other. No table is touched, and no
    /// database is needed. Exits 0 when it was taken, 2 when not.
    #[command(after_help = "Example:\n  relay destinations ping billing -c /etc/relay.toml")]
    Ping {
        /// The destination, as the configuration names it
        name: String,
    },
    /// Stop sending to a destination until somebody resumes it; its messages wait
    ///
    /// Attempts that are under way are finished. Leaves an audit entry.
    #[command(after_help = "Example:\n  relay destinations pause billing --reason \"down until noon\"")]
    Pause {
        /// The destination
        name: String,
    },
    /// Send to a paused destination again; leaves an audit entry
    #[command(after_help = "Example:\n  relay destinations resume billing --reason \"it is back\"")]
    Resume {
        /// The destination
        name: String,
    },
    /// Remove a destination no relay serves any more, and decide about what waits for it
    ///
    /// Refused while a relay that lives serves it. Dead letters stay. A message that is still pending is routed without
    /// it. Leaves an audit entry. When it breaks off, the same command goes on with what is left.
    #[command(after_help = "\
Examples:
  relay destinations remove billing --waiting dead --dry-run
  relay destinations remove billing --waiting dead --reason \"renamed to invoices\"
  relay destinations remove billing --waiting discard --yes")]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Remove {
    /// The destination
    pub(in crate::cli) name: String,
    /// What becomes of the deliveries that wait for it: dead letters, reason `removed`, or nothing
    #[arg(long, value_name = "dead|discard", value_parser = waiting)]
    pub(in crate::cli) waiting: Waiting,
}

fn waiting(word: &str) -> Result<Waiting, String> {
    match word {
        "dead" => Ok(Waiting::Dead),
        "discard" => Ok(Waiting::Discard),
        _ => Err("write `dead` to make dead letters of them, or `discard` to drop them".to_owned()),
    }
}
