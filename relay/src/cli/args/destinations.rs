//! `relay destinations`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Destinations {
    /// List what relays have registered, and what waits for each and is dead
    #[command(after_help = "Examples:\n  relay destinations list\n  relay destinations list -o jsonl | jq .paused")]
    List,
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
}
