//! The command line: `relay run`, `migrate`, `check`, `status`, `messages`, `dead` and what else `relay help` lists.
//!
//! Results go to stdout, talk to stderr, so that `relay … -o json | jq` always works. A command answers with an
//! [`Exit`]; whatever stops it is a [`Failure`], printed once, here. Nothing in here delivers anything: the commands
//! ask the store and the library, and show what they say.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

mod args;
mod ask;
mod beats;
mod bench;
mod check;
mod completions;
mod config;
mod database;
mod dead;
mod destinations;
mod explain;
mod given;
mod keys;
mod listen;
mod messages;
mod migrate;
mod output;
mod refused;
mod run;
mod secret;
mod send;
mod settings;
mod status;
mod stored;

pub use args::{BackendName, BenchDrain};
pub use output::Output;

use crate::cause::chain;

use args::{Arguments, Bench, Command};

/// How a command ends; the numbers are part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed in a way that has no number of its own.
    Failed = 1,
    /// `check` found something, or a drain left something behind.
    Found = 2,
    /// The command line makes no sense.
    Usage = 64,
    /// The database is unreachable, refuses, or is not one the relay works on.
    Database = 69,
    /// Some of it is done.
    Partly = 75,
    /// The configuration is wrong.
    Config = 78,
}

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: Option<String>,
}

impl Failure {
    /// A failure told in `message`: what happened, to what, and what to do next.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: Some(message.into()) }
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// A failure with the causes of `error` behind what it says itself.
    fn from_error(exit: Exit, error: &dyn std::error::Error) -> Failure {
        Failure::new(exit, format!("relay: {}", chain(error)))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever read our output has seen enough, as in `relay dead list | head`.
            return Failure { exit: Exit::Ok, message: None };
        }
        Failure::new(Exit::Failed, format!("relay: the output cannot be written: {error}"))
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Failure {
        Failure::from_error(Exit::Database, &error)
    }
}

impl From<outbox::Error> for Failure {
    fn from(error: outbox::Error) -> Failure {
        Failure::from_error(Exit::Database, &error)
    }
}

impl From<crate::admin::AdminError> for Failure {
    fn from(error: crate::admin::AdminError) -> Failure {
        Failure::from_error(Exit::Database, &error)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        Failure::new(Exit::Config, error.to_string())
    }
}

/// Runs the command the arguments of this process ask for.
pub fn main() -> ExitCode {
    let exit = match Arguments::try_parse() {
        Ok(arguments) => dispatch(arguments).unwrap_or_else(|failure| {
            if let Some(message) = &failure.message {
                output::say(message);
            }
            failure.exit
        }),
        Err(error) => {
            // clap prints help and version to stdout, mistakes to stderr; a closed pipe is nobody's mistake.
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
                _ => Exit::Usage,
            }
        }
    };
    ExitCode::from(exit as u8)
}

/// The whole command line, for those who make manual pages from it, or tests.
pub fn command() -> clap::Command {
    Arguments::command()
}

fn dispatch(arguments: Arguments) -> Result<Exit, Failure> {
    refused::check(&arguments)?;
    let Arguments { mut global, command } = arguments;
    refused::settle(&mut global);
    match command {
        Command::Run(run) => run::run(&global, &run),
        Command::Migrate { command } => migrate::run(&global, &command),
        Command::Check(check) => check::run(&global, &check),
        Command::Status(status) => status::run(&global, &status),
        Command::Explain { message } => explain::run(&global, &message),
        Command::Send(send) => send::run(&global, &send),
        Command::Listen(listen) => listen::run(&global, &listen),
        Command::Secret { command } => secret::run(&global, &command),
        Command::Messages { command } => messages::run(&global, command),
        Command::Destinations { command } => destinations::run(&global, &command),
        Command::Dead { command } => dead::dispatch(&global, command),
        Command::Keys { command } => keys::run(&global, command),
        Command::Config { command } => config::run(&global, &command),
        Command::Completions { shell } => completions::run(&global, shell),
        Command::Bench { command: Bench::Drain(drain) } => bench::drain(&global.output(), &drain),
    }
}

/// Runs a future to its end, for commands that ask one question.
fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("relay: the runtime cannot start: {error}")))?;
    Ok(runtime.block_on(future))
}
