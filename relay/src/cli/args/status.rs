//! `relay status`.

use std::time::Duration;

use clap::Args;

use super::{Look, span};

#[derive(Debug, Args)]
pub(in crate::cli) struct Status {
    /// Exit 2 when something needs a person, and say what
    #[arg(long)]
    pub(in crate::cli) exit_code: bool,
    /// With --exit-code: dead letters that are nobody's concern yet
    #[arg(long, value_name = "N", default_value_t = 0, requires = "exit_code")]
    pub(in crate::cli) dead_max: u64,
    /// With --exit-code: how long a delivery may be due
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = span, requires = "exit_code")]
    pub(in crate::cli) due_max: Duration,
    /// With --exit-code: how long a message may be pending
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = span, requires = "exit_code")]
    pub(in crate::cli) pending_max: Duration,
    #[command(flatten)]
    pub(in crate::cli) look: Look,
}
