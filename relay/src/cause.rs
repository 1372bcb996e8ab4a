//! An error and what caused it, as one line for people.

use std::error::Error;

/// The error and everything that caused it, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    // An error whose source is itself would never end.
    for _ in 0..16 {
        let Some(error) = cause else { break };
        let next = error.to_string();
        // Drivers like to repeat their cause in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
