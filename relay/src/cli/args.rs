//! The arguments, as clap reads them.
//!
//! Names, help texts and examples; nothing is decided here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::output::{Format, Output};

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
    /// Say what would be done, and do nothing
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
    /// Exits 0 when nothing is, 2 when something is.
    #[command(after_help = "Examples:\n  relay check\n  relay check --connect -o json")]
    Check(Check),
    /// Show what is pending, waiting and dead, and who is delivering
    #[command(after_help = "Examples:\n  relay status\n  relay status -o json | jq .pending")]
    Status,
    /// Look for messages that are not delivered yet
    Messages {
        #[command(subcommand)]
        command: Messages,
    },
    /// Look at destinations, pause and resume them
    Destinations {
        #[command(subcommand)]
        command: Destinations,
    },
    /// Look at deliveries that were given up, send them again, or drop them
    Dead {
        #[command(subcommand)]
        command: Dead,
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
pub(super) enum Migrate {
    /// Apply what is missing; safe when several do it at once
    #[command(after_help = "Example:\n  relay migrate up --database-url sqlite:shop.db")]
    Up,
    /// Show which migrations are applied; exits 2 when one is missing
    Status,
    /// Print the whole schema as SQL for other tools; needs no connection
    #[command(after_help = "Example:\n  relay migrate print --backend postgres | psql shop")]
    Print {
        /// Which database; without it the one the configuration names
        #[arg(long, value_enum)]
        backend: Option<BackendName>,
    },
}

/// The databases, as they are named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// PostgreSQL
    Postgres,
    /// MySQL and MariaDB
    #[value(alias = "mariadb")]
    Mysql,
    /// SQLite
    Sqlite,
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
    /// Also connect to the database and look at its schema
    #[arg(long)]
    pub(super) connect: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Messages {
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
        /// The message's id
        #[arg(value_name = "MESSAGE_ID")]
        id: uuid::Uuid,
        /// The number it drew when it was inserted: `seq` in outbox_messages
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..), conflicts_with = "scan")]
        seq: Option<i64>,
        /// Also show its payload and its headers
        #[arg(long)]
        payload: bool,
        #[command(flatten)]
        scan: Scan,
    },
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct MessageFilter {
    /// Only for this destination
    #[arg(long, value_name = "NAME")]
    pub(super) destination: Option<String>,
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    pub(super) topic: Option<String>,
    /// Only with this ordering key
    #[arg(long, value_name = "KEY")]
    pub(super) key: Option<String>,
    /// Only `pending`, or waiting in this state: retry, blocked, scheduled, unrouted, unserved, overflow, suspect
    #[arg(long, value_name = "STATE")]
    pub(super) state: Option<String>,
    #[command(flatten)]
    pub(super) scan: Scan,
}

/// How far to look.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Scan {
    /// The most rows of a table to look at, the oldest first
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) scan: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum Destinations {
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

#[derive(Debug, Subcommand)]
pub(super) enum Dead {
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
pub(super) struct DeadSelection {
    /// Ids of dead letters
    #[arg(value_name = "ID", conflicts_with_all = ["DeadFilter", "all"])]
    pub(super) ids: Vec<i64>,
    #[command(flatten)]
    pub(super) filter: DeadFilter,
    /// All of them
    #[arg(long, conflicts_with = "DeadFilter")]
    pub(super) all: bool,
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct DeadFilter {
    /// Only of this destination
    #[arg(long, value_name = "NAME")]
    pub(super) destination: Option<String>,
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    pub(super) topic: Option<String>,
    /// Only with this ordering key
    #[arg(long, value_name = "KEY")]
    pub(super) key: Option<String>,
    /// Only whose reason is this, or whose last error contains it
    #[arg(long, value_name = "TEXT")]
    pub(super) error: Option<String>,
    /// Only those that died of the same thing
    #[arg(long, value_name = "FINGERPRINT")]
    pub(super) group: Option<String>,
    /// Only given up since then: `2h` ago, or a time such as `2026-11-22T10:00:00Z`
    #[arg(long, value_name = "WHEN")]
    pub(super) since: Option<String>,
    /// Only given up before then
    #[arg(long, value_name = "WHEN")]
    pub(super) until: Option<String>,
    /// Only whose payload contains this
    #[arg(long, value_name = "TEXT")]
    pub(super) contains: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Bench {
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
    #[arg(long, default_value_t = 200_000, value_name = "N")]
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
