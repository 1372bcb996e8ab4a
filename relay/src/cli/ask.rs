//! Asking before something is lost.

use std::io::{self, BufRead};

use super::args::Global;
use super::output::{has_person, say};
use super::{Exit, Failure};

/// Makes sure that somebody wants `what`: `--yes`, or a person at the terminal who says so.
///
/// # Errors
/// Without either. A script must fail there, not wait for an answer that never comes.
pub(super) fn confirm(global: &Global, what: &str) -> Result<(), Failure> {
    if global.yes {
        return Ok(());
    }
    if !has_person() {
        let help = "there is no terminal to ask at; pass --yes to do it, or --dry-run to see what would be done";
        return Err(Failure::new(Exit::Usage, format!("relay: not done: {what}\n  help: {help}")));
    }
    say(&format!("{what} Type `yes` to go on:"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    heard(&answer)
}

/// Anything but `yes` is a no, and ends as if nobody could be asked.
fn heard(answer: &str) -> Result<(), Failure> {
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::new(Exit::Usage, "relay: not done: nobody said `yes`")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_say_yes_ends_as_without_a_terminal() {
        assert!(heard("yes\n").is_ok());
        for answer in ["n\n", "", "y\n", "YES\n"] {
            assert_eq!(heard(answer).unwrap_err().exit(), Exit::Usage, "{answer:?}");
        }
    }
}
