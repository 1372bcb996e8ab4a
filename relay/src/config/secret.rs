//! Values that must not be seen.
//!
//! A secret is written in the configuration only as a reference, `{ env = "NAME" }` or `{ file = "path" }`. It never
//! appears in `Debug`, and there is no `Display`: whoever needs the text says [`Secret::expose`], which can be searched for.

use std::fmt;

/// A value that must not be printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_the_text() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some((secret))");
    }
}
