//! Answers that mean something else to one destination than to the others.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::verdict::Verdict;

/// An HTTP status, or all that begin with one digit. No success: that is one everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Status(Written);

/// The more exact one comes first, and is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Written {
    One(u16),
    All(u16),
}

impl Status {
    /// Reads `404` or `5xx`; nothing below 300 but the rest of the three digits.
    pub fn parse(text: &str) -> Option<Status> {
        let digits = text.strip_suffix("xx").unwrap_or(text);
        let number: u16 = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
        match (digits.len(), text.len()) {
            (1, 3) if (3..=9).contains(&number) => Some(Status(Written::All(number))),
            (3, 3) if (300..=999).contains(&number) => Some(Status(Written::One(number))),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Written::One(number) => write!(f, "{number}"),
            Written::All(digit) => write!(f, "{digit}xx"),
        }
    }
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The receiver has it.
    Delivered,
    /// It is tried again.
    Retry,
    /// The whole destination waits; no attempt is counted.
    Hold,
    /// The destination is set up wrongly: it is tried again slowly.
    Misconfigured,
    /// The receiver will never take it: dead letter now.
    Reject,
}

impl Class {
    /// Every class with its word in configurations.
    pub const ALL: [(&'static str, Class); 5] = [
        ("delivered", Class::Delivered),
        ("retry", Class::Retry),
        ("hold", Class::Hold),
        ("misconfigured", Class::Misconfigured),
        ("reject", Class::Reject),
    ];

    /// The word.
    pub fn word(self) -> &'static str {
        self.verdict(None).name()
    }

    pub(super) fn verdict(self, asked: Option<Duration>) -> Verdict {
        match self {
            Class::Delivered => Verdict::Delivered,
            Class::Retry => Verdict::Retry { after: asked },
            Class::Hold => Verdict::Hold { pause: asked },
            Class::Misconfigured => Verdict::Misconfigured,
            Class::Reject => Verdict::Reject { gone: false },
        }
    }
}

/// What one destination says otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes(BTreeMap<Status, Class>);

impl Classes {
    pub(super) fn set(&mut self, status: Status, class: Class) {
        self.0.insert(status, class);
    }

    pub(super) fn of(&self, status: u16) -> Option<Class> {
        let one = self.0.get(&Status(Written::One(status)));
        one.or_else(|| self.0.get(&Status(Written::All(status / 100)))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_and_written_back() {
        for text in ["404", "300", "999", "5xx", "3xx"] {
            assert_eq!(Status::parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "2xx", "200", "299", "1xx", "100", "099", "40", "4040", "4x", "xx", "4XX", "+04", "40x", "55xx"]
        {
            assert_eq!(Status::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_more_exact_one_counts() {
        let mut classes = Classes::default();
        classes.set(Status::parse("4xx").unwrap(), Class::Reject);
        classes.set(Status::parse("409").unwrap(), Class::Delivered);
        assert_eq!(classes.of(404), Some(Class::Reject));
        assert_eq!(classes.of(409), Some(Class::Delivered));
        assert_eq!(classes.of(500), None);
    }
}
