//! The one place that writes to the terminal.
//!
//! Results to stdout as a table for people or as JSON for programs, talk to stderr. Control characters in what other
//! people stored are made visible, so that a dead letter cannot steer the terminal of whoever looks at it.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One JSON document per line
    Jsonl,
}

/// Where results go.
#[derive(Clone, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Writes in this format.
    pub fn new(format: Format) -> Output {
        Output { format }
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Writes one result: `text` for people, `value` for programs.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn one(&self, text: &str, value: &impl Serialize) -> io::Result<()> {
        match self.format {
            Format::Table => self.lines(text),
            Format::Json => self.lines(&serde_json::to_string_pretty(value)?),
            Format::Jsonl => self.lines(&serde_json::to_string(value)?),
        }
    }

    /// Writes many results: a row of cells for people, a value for programs.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn many<T: Serialize>(
        &self,
        titles: &[&str],
        values: &[T],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> io::Result<()> {
        match self.format {
            Format::Table => self.lines(&table(titles, &values.iter().map(cells).collect::<Vec<_>>())),
            Format::Json => self.lines(&serde_json::to_string_pretty(values)?),
            Format::Jsonl => values.iter().try_for_each(|value| self.lines(&serde_json::to_string(value)?)),
        }
    }

    /// Writes text as it is, with a line break at its end.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn lines(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }
}

/// Says something to whoever is watching.
pub(super) fn say(text: &str) {
    // With stderr closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// True when a person can be asked.
pub(super) fn has_person() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Columns under their titles, two blanks apart; nothing but the titles when there are no rows.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| visible(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let mut line = padded.collect::<Vec<_>>().join("  ").trim_end().to_owned();
        line.push('\n');
        line
    };
    let mut text = line(&mut titles.iter().copied());
    for row in &rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// The text on one line, with whatever could move a cursor written as an escape.
pub(super) fn visible(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_hidden(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// The text cut to `max` characters.
pub(super) fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["1".to_owned(), "näh".to_owned()], vec!["234".to_owned(), String::new()]];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID   NAME\n1    näh\n234\n");
    }

    #[test]
    fn stored_text_cannot_steer_the_terminal() {
        assert_eq!(visible("a\x1b[31m\r\nb\u{202e}"), "a\\u{1b}[31m\\r\\nb\\u{202e}");
    }

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(shortened("äbcd", 4), "äbcd");
        assert_eq!(shortened("äbcde", 4), "äbc…");
    }
}
