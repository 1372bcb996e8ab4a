//! What receivers and handlers say, made fit to be kept and shown.
//!
//! Their words end up in the database, in logs, in terminals and on a web page, and they are not ours: they may be long,
//! binary, coloured, or try to move the reader's cursor.

use std::error::Error;

/// How many bytes of a receiver's words are kept.
pub(crate) const TEXT_BYTES_MAX: usize = 4 * 1024;

/// The text without control characters, terminal sequences and marks that turn the direction of writing, on one line and
/// cut to [`TEXT_BYTES_MAX`].
pub(crate) fn cleaned(text: &str) -> String {
    cleaned_within(text, TEXT_BYTES_MAX)
}

/// The same, not cut: for a text that is known to be short, and changed before it is cut.
pub(crate) fn readable(text: &str) -> String {
    cleaned_within(text, usize::MAX)
}

fn cleaned_within(text: &str, bytes_max: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(bytes_max));
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '\u{1b}' => {
                skip_sequence(&mut chars);
                continue;
            }
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            // A body that is not UTF-8 arrives as replacement characters; a line of them tells nobody anything.
            c if c.is_control() || is_unseen(c) || c == char::REPLACEMENT_CHARACTER => continue,
            c => c,
        };
        if c == ' ' && (clean.is_empty() || clean.ends_with(' ')) {
            continue;
        }
        if clean.len() + c.len_utf8() > bytes_max {
            break;
        }
        clean.push(c);
    }
    clean.truncate(clean.trim_end().len());
    clean
}

/// An error and its causes on one line, cleaned.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    cleaned(&crate::cause::chain(error))
}

/// Skips the rest of a terminal sequence whose escape character was read.
fn skip_sequence(chars: &mut std::str::Chars<'_>) {
    let mut ahead = chars.clone();
    match ahead.next() {
        Some('[') => {
            *chars = ahead;
            // Parameters end at the first letter or `@`, `~` and their neighbours. An unfinished sequence must not
            // swallow the text behind it, so anything else ends it as well.
            let mut ahead = chars.clone();
            while let Some(c) = ahead.next() {
                match c {
                    ' '..='?' => *chars = ahead.clone(),
                    '@'..='~' => {
                        *chars = ahead;
                        return;
                    }
                    _ => return,
                }
            }
        }
        // Titles, links and device strings run to a bell or a string terminator.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = ahead.next() {
                if c == '\u{7}' || c == '\u{9c}' || (c == '\u{1b}' && ahead.clone().next() == Some('\\')) {
                    if c == '\u{1b}' {
                        ahead.next();
                    }
                    break;
                }
            }
            *chars = ahead;
        }
        Some(' '..='~') => *chars = ahead,
        _ => {}
    }
}

/// Marks that turn the direction of writing, and characters that show nothing and may say something all the same.
fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readable_text_remains() {
        for (raw, expected) in [
            ("plain", "plain"),
            ("  two\r\n\tlines \n", "two lines"),
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("\u{1b}", ""),
            ("a\u{1b}[", "a"),
            ("a\u{1b}[12\u{e9}b", "a\u{e9}b"),
            ("nul\0bell\u{7}c1\u{9b}31m", "nulbellc131m"),
            ("\u{202e}evil", "evil"),
            ("\u{feff}no\u{200b}thing\u{e0041}\u{e007f} hid\u{2060}den", "nothing hidden"),
            ("one\u{2028}two\u{2029}three", "one two three"),
            ("caf\u{e9} \u{1f980}", "caf\u{e9} \u{1f980}"),
            ("\u{fffd}\u{fffd}PNG\u{fffd}", "PNG"),
        ] {
            assert_eq!(cleaned(raw), expected, "{raw:?}");
            assert_eq!(cleaned(&readable(raw)), expected, "{raw:?}");
        }
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let text = cleaned(&format!("a{}", "\u{20ac}".repeat(TEXT_BYTES_MAX)));
        assert!(text.len() <= TEXT_BYTES_MAX && text.len() > TEXT_BYTES_MAX - 3, "{}", text.len());
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the mail was not sent")]
        struct Outer(#[source] Middle);
        #[derive(Debug, thiserror::Error)]
        #[error("talking to the server: {0}")]
        struct Middle(#[source] std::io::Error);
        let error = Outer(Middle(std::io::Error::other("no route")));
        assert_eq!(chain(&error), "the mail was not sent: talking to the server: no route");
    }
}
