//! The arguments, as clap reads them.
//!
//! Names, help texts and examples; nothing is decided here. Options of commands with several are in `args/`.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::output::{Format, Output};
use crate::duration;

mod bench;
mod dead;
mod destinations;
mod keys;
mod messages;
mod migrate;
mod secret;
mod status;
mod trying;

pub(super) use bench::Bench;
pub use bench::BenchDrain;
pub(super) use dead::{Dead, DeadFilter, DeadSelection};
pub(super) use destinations::{Destinations, Remove};
pub(super) use keys::{KeyFilter, Keys};
pub(super) use messages::{MessageFilter, Messages, OneMessage};
pub use migrate::BackendName;
pub(super) use migrate::Migrate;
pub(super) use secret::{Secret, Sign, Verify};
pub(super) use status::Status;
pub(super) use trying::{Listen, Send};

/// Delivers the messages of a transactional outbox to handlers and HTTP destinations.
#[derive(Debug, Parser)]
#[command(
    name = "relay",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  relay migrate up --database-url sqlite:shop.db    create the tables
  relay check                                       is relay.toml right?
  relay run                                         deliver, until SIGTERM
  relay status                                      what waits, what is dead, who is running
  relay explain MESSAGE_ID                          why is this message not moving?
  relay dead list --destination billing --since 2h  what was given up lately

Exit codes: 0 done, 1 failed, 2 found something, 64 usage, 69 database, 75 partly done, 78 configuration."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The configuration; without it `relay.toml` in this folder, if there is one
    #[arg(short = 'c', long, global = true, value_name = "FILE", env = "RELAY_CONFIG", hide_env_values = true)]
    pub(super) config: Option<PathBuf>,
    /// The database: postgres://…, mysql://… or sqlite:PATH
    #[arg(long, global = true, value_name = "URL")]
    pub(super) database_url: Option<String>,
    /// How results are written
    #[arg(short = 'o', long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    /// The most rows to show or to change
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: Option<u32>,
    /// Do it without asking
    #[arg(long, global = true)]
    pub(super) yes: bool,
    /// Say what would be done, and do nothing; refused by commands that change no outbox, and by run
    #[arg(long, global = true)]
    pub(super) dry_run: bool,
    /// Why, for the audit
    #[arg(long, global = true, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Who, for the audit [default: user@host]
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) actor: Option<String>,
}

impl Global {
    /// Where results go.
    pub(super) fn output(&self) -> Output {
        Output::new(self.output)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Deliver messages until told to stop
    ///
    /// SIGTERM or SIGINT stops feeding, finishes what is under way within the grace, settles, gives the partitions up
    /// and exits 0; a second one exits at once.
    ///
    /// SIGHUP reads the configuration anew. A wrong one is logged with its place and changes nothing; a right one takes
    /// over without losing or repeating anything. What needs a restart is named in the log.
    #[command(
        after_help = "Examples:\n  relay run -c /etc/relay.toml\n  relay run --drain    deliver what is due, then end"
    )]
    Run(Run),
    /// Create and update the tables
    Migrate {
        #[command(subcommand)]
        command: Migrate,
    },
    /// Say everything that is wrong with the configuration
    ///
    /// Exits 0 when nothing is, 2 when something is. A warning is about what works and is hardly meant; it changes nothing.
    #[command(after_help = "Examples:\n  relay check\n  relay check --connect -o json")]
    Check(Check),
    /// Show what is pending, waiting and dead, and who is delivering
    ///
    /// With --exit-code it ends with 2 when something needs a person: dead letters (more than --dead-max), a delivery due
    /// for longer than --due-max, a message pending for longer than --pending-max, a partition without an owner, a
    /// destination that somebody paused, deliveries for a destination no running relay serves, or messages no destination
    /// wants. What it found stands under ATTENTION.
    ///
    /// A relay's row proves little: a dead one leaves it behind. So this waits until each beat has moved, which takes a
    /// third of the lease, and a lease when one stands still. --wait 0s answers at once and believes every row.
    #[command(after_help = "\
Examples:
  relay status
  relay status -o json | jq .pending
  relay status --exit-code --dead-max 10 --due-max 15m")]
    Status(Status),
    /// Say why a message is not moving, and what to do about it
    ///
    /// Looks at where the message is, at its destinations, at what is ahead of it, and at who should deliver it. Watches
    /// for a lease at most whether that relay is alive. On PostgreSQL it also names transactions that may hold the message
    /// back.
    ///
    /// Exits 1 when the message is nowhere: it was delivered, was cancelled or discarded, or never was.
    #[command(after_help = "\
Examples:
  relay explain 0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10
  relay explain 0199c0de-7a3b-7c55-8b1e-3f1f1f2a9d10 --seq 4711 -o json | jq .next")]
    Explain {
        #[command(flatten)]
        message: OneMessage,
    },
    /// Look for messages that are not delivered yet
    Messages {
        #[command(subcommand)]
        command: Messages,
    },
    /// Look at destinations, try, pause, resume and remove them
    Destinations {
        #[command(subcommand)]
        command: Destinations,
    },
    /// Look at deliveries that were given up, send them again, or drop them
    Dead {
        #[command(subcommand)]
        command: Dead,
    },
    /// Look at ordering keys that stand still, and let one go on
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Enqueue one message by hand, in a transaction of its own
    ///
    /// Prints its id and the number it drew. With --dry-run it is checked and nothing is enqueued.
    #[command(after_help = "\
Examples:
  relay send order.placed '{\"order_id\": 1}' --key order-1
  relay send order.placed @order.json --to billing --header 'x-tenant: 7'
  relay send cart.forgotten --delay 10m --dedup-key cart-7
  echo '{}' | relay send order.placed - --dry-run")]
    Send(Send),
    /// Receive what is delivered here, show it, and answer: a destination to try things out with
    ///
    /// Ends with Ctrl-C, or after --limit requests.
    #[command(after_help = "\
Examples:
  relay listen
  relay listen --port 9000 --fail-first 2
  relay listen --status 503 --delay 2s
  relay listen --secret @/run/secrets/billing-whsec
  relay listen -o jsonl | jq .topic")]
    Listen(Listen),
    /// Make secrets, sign and verify with them
    Secret {
        #[command(subcommand)]
        command: Secret,
    },
    /// Show what can be configured, and what is
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a script that completes command lines in a shell
    #[command(after_help = "\
Examples:
  relay completions bash > /etc/bash_completion.d/relay
  relay completions zsh > ~/.zfunc/_relay
  relay completions fish > ~/.config/fish/completions/relay.fish")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        command: Bench,
    },
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// End when nothing is due any more; exits 2 when something is left behind
    #[arg(long)]
    pub(super) drain: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print a configuration file with every key and its default
    #[command(after_help = "Example:\n  relay config example > relay.toml")]
    Example,
    /// Print a JSON Schema of the configuration, for editors and checks
    ///
    /// Draft 2020-12. `relay check` knows more than a schema can say.
    #[command(after_help = "Example:\n  relay config schema > relay.schema.json")]
    Schema,
    /// Show the values the relay would run with, after flags, environment, file and defaults
    ///
    /// Written as a configuration file, or as JSON. Credentials, header values and the queries of urls are masked.
    #[command(
        after_help = "Examples:\n  relay config show\n  relay config show -c /etc/relay.toml -o json | jq .relay"
    )]
    Show,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Also connect to the database, look at its schema, and try what its role may do; leaves nothing behind
    #[arg(long)]
    pub(super) connect: bool,
}

/// How long beats are looked at.
#[derive(Debug, Args)]
pub(super) struct Look {
    /// How long to wait for each relay's beat to move; 0s does not look [default: its lease]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(super) wait: Option<Duration>,
}

/// A span of time such as `5m`.
fn span(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

/// A time such as `2026-11-22T10:00:00Z`.
fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    time.map_err(|_| "write it as `2026-11-22T10:00:00Z`".to_owned())
}
