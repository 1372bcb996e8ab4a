//! `relay migrate`.

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Migrate {
    /// Apply what is missing; safe when several do it at once
    #[command(after_help = "Example:\n  relay migrate up --database-url sqlite:shop.db")]
    Up,
    /// Show which migrations are applied; exits 2 when one is missing
    #[command(after_help = "Example:\n  relay migrate status -o json")]
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
