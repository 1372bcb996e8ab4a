//! `relay completions`: what a shell has to know to complete a command line.

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::{Arguments, Global};
use super::{Exit, Failure};

/// Prints the script for `shell`.
pub(super) fn run(global: &Global, shell: Shell) -> Result<Exit, Failure> {
    // Into memory first: the generator panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "relay", &mut script);
    global.output().lines(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
