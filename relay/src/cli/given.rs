//! Bytes on a command line: as they stand, in a file, or on stdin.

use std::io::Read;

use super::{Exit, Failure};

/// What was written, what stdin holds (`-`), or what stands in a file (`@FILE`). `what` names it when it cannot be read.
pub(super) fn bytes(what: &str, written: &str) -> Result<Vec<u8>, Failure> {
    let unreadable = |place: &str, error| {
        Failure::new(Exit::Usage, format!("relay: the {what} cannot be read from {place}: {error}"))
    };
    if written == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(|error| unreadable("stdin", error))?;
        return Ok(bytes);
    }
    match written.strip_prefix('@') {
        Some(file) => std::fs::read(file).map_err(|error| unreadable(&format!("`{file}`"), error)),
        None => Ok(written.as_bytes().to_vec()),
    }
}
