//! `relay bench`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Bench {
    /// Fill a private throw-away outbox and drain it through a handler that does nothing
    #[command(
        after_help = "Example:\n  relay bench drain --database-url postgres://localhost/postgres --messages 200000"
    )]
    Drain(BenchDrain),
}

/// What `relay bench drain` measures.
#[derive(Clone, Debug, Args)]
pub struct BenchDrain {
    /// How many messages
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: u64,
    /// The size of each, in bytes
    #[arg(long, default_value_t = 300, value_name = "BYTES")]
    pub payload: usize,
    /// How many messages share an ordering key on average; 0 means no keys
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub per_key: u64,
    /// Keep a transaction open meanwhile, so that nothing can be vacuumed or purged
    #[arg(long)]
    pub pinned: bool,
    /// A server on which the outbox is made and dropped again; without it a SQLite file in the temporary folder
    #[arg(from_global)]
    pub database_url: Option<String>,
}
