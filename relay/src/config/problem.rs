//! What is wrong with a configuration, and where.
//!
//! All problems are collected before any is shown: a file with three mistakes should take one round to repair.

use std::fmt;

/// Everything that is wrong with a configuration; never empty when it is returned as an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems, in the order of the file.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The section it concerns, such as `destinations.billing`; empty when it concerns the file as a whole.
    pub section: String,
    /// `relay.toml:41:1`, an environment variable, or empty when nothing was written that could be pointed at.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it, when the message does not say it already.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "relay: {}", self.message)?;
        } else {
            write!(f, "{}: {}", self.place, self.message)?;
        }
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The known name that somebody probably meant by `written`.
pub(crate) fn suggestion<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    known
        .into_iter()
        .map(|name| (distance(&written, &name.to_lowercase()), name))
        // A third of the letters may differ, three at most: more than that is another word, not a slip.
        .filter(|(distance, name)| *distance <= (name.len().max(written.len()) / 3).clamp(1, 3))
        .min()
        .map(|(_, name)| name)
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["concurrency", "topics", "timeout", "url", "ordering"];
        for (written, meant) in [
            ("concurency", Some("concurrency")),
            ("topic", Some("topics")),
            ("timout", Some("timeout")),
            ("Timeout", Some("timeout")),
            ("ulr", Some("url")),
            ("signing", None),
            ("x", None),
        ] {
            assert_eq!(suggestion(written, known), meant, "{written}");
        }
    }
}
