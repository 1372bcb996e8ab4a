//! Global options where they mean nothing, and what counts as not given.
//!
//! Every command parses every global option, because people write them anywhere. What an option cannot do for a command
//! is refused before anything happens: whoever wrote `--dry-run` must never see the real thing.

use super::args::{
    Arguments, Bench, Command, ConfigCommand, Dead, Destinations, Global, Keys, Messages, Migrate, Secret,
};
use super::{Exit, Failure};

/// Refuses `--dry-run` and `--limit` where they would be ignored.
pub(super) fn check(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { global, command } = arguments;
    if global.dry_run && !has_dry_run(command) {
        let help = match command {
            Command::Run(_) => "it delivers; `relay status` and `relay messages list` show what waits",
            Command::Bench { command: Bench::Drain(_) } | Command::Listen(_) => "leave --dry-run out to do it",
            _ => "it changes no outbox: leave --dry-run out",
        };
        return Err(refused("--dry-run", command, help));
    }
    if global.limit.is_some() && !has_limit(command) {
        return Err(refused("--limit", command, "leave it out: it bounds what is listed, exported or changed"));
    }
    Ok(())
}

/// Empty text names nobody and gives no reason.
pub(super) fn settle(global: &mut Global) {
    for given in [&mut global.actor, &mut global.reason] {
        if given.as_deref().is_some_and(|text| text.trim().is_empty()) {
            *given = None;
        }
    }
}

fn refused(option: &str, command: &Command, help: &str) -> Failure {
    let name = name(command);
    Failure::new(Exit::Usage, format!("relay: `relay {name}` has no {option}: nothing was done\n  help: {help}"))
}

/// True for what changes an outbox and can say so beforehand.
fn has_dry_run(command: &Command) -> bool {
    match command {
        Command::Send(_) => true,
        Command::Migrate { command } => matches!(command, Migrate::Up),
        Command::Messages { command } => matches!(command, Messages::Cancel { .. }),
        Command::Destinations { command } => {
            matches!(command, Destinations::Pause { .. } | Destinations::Resume { .. } | Destinations::Remove(_))
        }
        Command::Dead { command } => matches!(command, Dead::Redrive(_) | Dead::Discard(_)),
        Command::Keys { command } => matches!(command, Keys::Release { .. }),
        _ => false,
    }
}

/// True for what shows or changes a number of things.
fn has_limit(command: &Command) -> bool {
    match command {
        Command::Listen(_) => true,
        Command::Messages { command } => matches!(command, Messages::List(_)),
        Command::Destinations { command } => matches!(command, Destinations::List { .. }),
        Command::Dead { command } => !matches!(command, Dead::Show { .. }),
        Command::Keys { command } => matches!(command, Keys::List(_)),
        _ => false,
    }
}

fn name(command: &Command) -> &'static str {
    match command {
        Command::Run(_) => "run",
        Command::Migrate { command: Migrate::Up } => "migrate up",
        Command::Migrate { command: Migrate::Status } => "migrate status",
        Command::Migrate { command: Migrate::Print { .. } } => "migrate print",
        Command::Check(_) => "check",
        Command::Status(_) => "status",
        Command::Explain { .. } => "explain",
        Command::Messages { command: Messages::List(_) } => "messages list",
        Command::Messages { command: Messages::Show { .. } } => "messages show",
        Command::Messages { command: Messages::Cancel { .. } } => "messages cancel",
        Command::Destinations { command: Destinations::List { .. } } => "destinations list",
        Command::Destinations { command: Destinations::Show { .. } } => "destinations show",
        Command::Destinations { command: Destinations::Ping { .. } } => "destinations ping",
        Command::Destinations { command: Destinations::Pause { .. } } => "destinations pause",
        Command::Destinations { command: Destinations::Resume { .. } } => "destinations resume",
        Command::Destinations { command: Destinations::Remove(_) } => "destinations remove",
        Command::Dead { command: Dead::List(_) } => "dead list",
        Command::Dead { command: Dead::Groups(_) } => "dead groups",
        Command::Dead { command: Dead::Export(_) } => "dead export",
        Command::Dead { command: Dead::Show { .. } } => "dead show",
        Command::Dead { command: Dead::Redrive(_) } => "dead redrive",
        Command::Dead { command: Dead::Discard(_) } => "dead discard",
        Command::Keys { command: Keys::List(_) } => "keys list",
        Command::Keys { command: Keys::Release { .. } } => "keys release",
        Command::Send(_) => "send",
        Command::Listen(_) => "listen",
        Command::Secret { command: Secret::New { .. } } => "secret new",
        Command::Secret { command: Secret::Public { .. } } => "secret public",
        Command::Secret { command: Secret::Sign(_) } => "secret sign",
        Command::Secret { command: Secret::Verify(_) } => "secret verify",
        Command::Config { command: ConfigCommand::Example } => "config example",
        Command::Config { command: ConfigCommand::Schema } => "config schema",
        Command::Config { command: ConfigCommand::Show } => "config show",
        Command::Completions { .. } => "completions",
        Command::Bench { .. } => "bench drain",
    }
}
