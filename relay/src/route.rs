//! Which destinations a message goes to.
//!
//! Pure: patterns and topics in, places in a list out. All relays route by the registered destinations, so that they
//! agree; this room does not know which of them this process serves, nor what happens to a message nobody wants.
//!
//! Topics come in far fewer kinds than messages, so each topic is matched once and looked up afterwards.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::store::Routing;

/// The longest pattern that is accepted, in bytes: that of a topic.
const PATTERN_BYTES_MAX: usize = 128;

/// How many topics are remembered. A producer that puts ids into its topics must not fill the memory; beyond this the
/// memory is emptied and starts anew, which costs a match per topic and nothing else.
const TOPICS_REMEMBERED_MAX: usize = 4096;

/// What topics a destination wants.
///
/// A pattern consists of segments between dots, like a topic. `*` stands for exactly one segment, `**` for any number of
/// them, also none: `order.**` matches `order`, `order.placed` and `order.placed.eu`, and `**` matches everything.
/// Anything else stands for itself, upper and lower case being different.
///
/// ```
/// use relay::route::Pattern;
/// let pattern = Pattern::parse("order.*")?;
/// assert!(pattern.matches("order.placed"));
/// assert!(!pattern.matches("order.placed.eu"));
/// # Ok::<(), relay::route::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Exactly(String),
    One,
    Any,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it could never match a topic, or means something else than its writer may believe (`order*`).
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let error = |problem: String| PatternError { pattern: text.chars().take(PATTERN_BYTES_MAX).collect(), problem };
        if text.is_empty() {
            return Err(error("it is empty; `**` matches every topic".into()));
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err(error(format!("it is longer than {PATTERN_BYTES_MAX} bytes, and so than any topic")));
        }
        let mut segments = Vec::new();
        for segment in text.split('.') {
            match segment {
                "" => {
                    return Err(error("a segment is empty; dots stand between segments only".into()));
                }
                "*" => segments.push(Segment::One),
                // Two neighbours mean the same as one.
                "**" if segments.last() == Some(&Segment::Any) => {}
                "**" => segments.push(Segment::Any),
                _ => segments.push(Segment::Exactly(literal(segment).map_err(error)?)),
            }
        }
        Ok(Pattern { segments })
    }

    /// True when the destination wants messages of this topic.
    pub fn matches(&self, topic: &str) -> bool {
        let topic: Vec<&str> = topic.split('.').collect();
        let (mut p, mut t) = (0, 0);
        // Where to go on when what follows the latest `**` did not fit: it swallows one segment more. Only the latest
        // one matters, so the work is bounded by the product of the lengths, whatever the pattern.
        let mut retry: Option<(usize, usize)> = None;
        while t < topic.len() {
            match self.segments.get(p) {
                Some(Segment::Any) => {
                    retry = Some((p, t));
                    p += 1;
                    continue;
                }
                Some(Segment::One) => {
                    (p, t) = (p + 1, t + 1);
                    continue;
                }
                Some(Segment::Exactly(text)) if text == topic[t] => {
                    (p, t) = (p + 1, t + 1);
                    continue;
                }
                _ => {}
            }
            let Some((any, from)) = retry else {
                return false;
            };
            retry = Some((any, from + 1));
            (p, t) = (any + 1, from + 1);
        }
        self.segments[p..].iter().all(|segment| *segment == Segment::Any)
    }
}

fn literal(segment: &str) -> Result<String, String> {
    if segment.contains('*') {
        return Err(format!(
            "`*` stands for one whole segment and `**` for any number, neither for a part of one as in `{segment}`"
        ));
    }
    match segment.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))) {
        Some(c) => {
            Err(format!("topics consist of ASCII letters, digits, `_`, `-` and dots; `{}` is none", c.escape_debug()))
        }
        None => Ok(segment.to_owned()),
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        Pattern::parse(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, segment) in self.segments.iter().enumerate() {
            let dot = if n == 0 { "" } else { "." };
            let text = match segment {
                Segment::Exactly(text) => text,
                Segment::One => "*",
                Segment::Any => "**",
            };
            write!(f, "{dot}{text}")?;
        }
        Ok(())
    }
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the topic pattern `{pattern}` is not usable: {problem}")]
pub struct PatternError {
    pattern: String,
    problem: String,
}

/// Every registered destination's patterns, and what they said about topics so far.
#[derive(Debug)]
pub struct Routes {
    version: i64,
    names: HashMap<String, usize>,
    patterns: Vec<(usize, Pattern)>,
    unusable: Vec<(String, PatternError)>,
    remembered: Mutex<HashMap<Box<str>, Arc<[usize]>>>,
}

impl Routes {
    /// Routes by these destinations. The indexes [`route`](Routes::route) returns are those of `routing.destinations`.
    ///
    /// A pattern this version cannot read (a newer relay may have registered it) matches nothing here and is told by
    /// [`unusable`](Routes::unusable).
    pub fn new(routing: &Routing) -> Routes {
        let mut names = HashMap::new();
        let mut patterns = Vec::new();
        let mut unusable = Vec::new();
        for (index, destination) in routing.destinations.iter().enumerate() {
            names.insert(destination.spec.name.clone(), index);
            for text in &destination.spec.patterns {
                match Pattern::parse(text) {
                    Ok(pattern) => patterns.push((index, pattern)),
                    Err(error) => unusable.push((destination.spec.name.clone(), error)),
                }
            }
        }
        Routes { version: routing.version, names, patterns, unusable, remembered: Mutex::default() }
    }

    /// The version of the routing this was made from.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Patterns nobody could read: the destination's name and what is wrong.
    pub fn unusable(&self) -> &[(String, PatternError)] {
        &self.unusable
    }

    /// The indexes of the destinations that want this topic, ascending, each once.
    pub fn route(&self, topic: &str) -> Arc<[usize]> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = remembered.get(topic) {
            return Arc::clone(known);
        }
        let mut wanted: Vec<usize> =
            self.patterns.iter().filter(|(_, pattern)| pattern.matches(topic)).map(|(index, _)| *index).collect();
        wanted.dedup();
        let wanted: Arc<[usize]> = wanted.into();
        if remembered.len() >= TOPICS_REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(topic.into(), Arc::clone(&wanted));
        wanted
    }

    /// The index of the destination of this name, for messages that name their only one.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DestinationSeen, DestinationSpec};

    fn routing(destinations: &[(&str, &[&str])]) -> Routing {
        let seen = |(name, patterns): &(&str, &[&str])| DestinationSeen {
            spec: DestinationSpec {
                name: (*name).into(),
                patterns: patterns.iter().map(|text| (*text).into()).collect(),
                ordering: "key".into(),
            },
            paused: false,
            held_for: None,
            held_until: None,
        };
        Routing { version: 7, destinations: destinations.iter().map(seen).collect(), hour: None }
    }

    #[test]
    fn patterns_match_by_segments() {
        for (pattern, topic, expected) in [
            ("order.placed", "order.placed", true),
            ("order.placed", "order.Placed", false),
            ("order.placed", "order.placed.eu", false),
            ("order.placed", "order", false),
            ("order.*", "order.placed", true),
            ("order.*", "order", false),
            ("order.*", "order.placed.eu", false),
            ("order.*", "orders.placed", false),
            ("*", "order", true),
            ("*", "order.placed", false),
            ("*.placed", "order.placed", true),
            ("*.*", "order.placed", true),
            ("**", "order", true),
            ("**", "a.b.c.d.e", true),
            ("order.**", "order", true),
            ("order.**", "order.placed", true),
            ("order.**", "order.placed.eu", true),
            ("order.**", "orders", false),
            ("order.**.**", "order", true),
            ("**.eu", "eu", true),
            ("**.eu", "order.placed.eu", true),
            ("**.eu", "order.eu.placed", false),
            ("a.**.z", "a.z", true),
            ("a.**.z", "a.b.z.c.z", true),
            ("a.**.z", "a.b.z.c", false),
            ("a.**.m.**.z", "a.m.b.m.z", true),
            ("**.*", "a", true),
            ("*.**.*", "a", false),
            ("*.**.*", "a.b", true),
            ("**.a.b.**.c", "a.a.b.a.b.c", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(topic), expected, "`{pattern}` and `{topic}`");
        }
    }

    #[test]
    fn matching_stays_cheap_for_the_worst_pattern() {
        let pattern = Pattern::parse(&["**.a"; 25].join(".")).unwrap();
        let topic = ["a"; 63].join(".") + ".b";
        assert!(!pattern.matches(&topic));
    }

    #[test]
    fn patterns_are_written_as_they_were_read() {
        for text in ["order.placed", "order.*", "**", "a.**.z", "A-b_1.*.**"] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn misleading_patterns_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "`**` matches every topic"),
            (".", "a segment is empty"),
            ("order.", "a segment is empty"),
            ("order..placed", "a segment is empty"),
            ("order*", "one whole segment"),
            ("order.***", "one whole segment"),
            ("order.pla ced", "letters, digits"),
            ("order.plac\u{e9}d", "letters, digits"),
            ("order/placed", "letters, digits"),
            ("order.placed\n", "`\\n` is none"),
        ] {
            let error = Pattern::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert!(Pattern::parse(&"a".repeat(128)).is_ok());
        assert!(Pattern::parse(&"a".repeat(129)).is_err());
    }

    #[test]
    fn a_destination_that_matches_twice_is_named_once() {
        let routes = Routes::new(&routing(&[
            ("billing", &["order.*", "order.placed", "**"]),
            ("mail", &["order.placed"]),
            ("stock", &["stock.*"]),
        ]));
        assert_eq!(*routes.route("order.placed"), [0, 1]);
        assert_eq!(*routes.route("order.placed"), [0, 1], "the second answer is the remembered one");
        assert_eq!(*routes.route("stock.low"), [0, 2]);
        assert_eq!(routes.named("stock"), Some(2));
        assert_eq!(routes.named("nobody"), None);
        assert_eq!(routes.version(), 7);
    }

    #[test]
    fn a_topic_nobody_wants_has_no_destination() {
        let routes = Routes::new(&routing(&[("billing", &["order.*"]), ("quiet", &[])]));
        assert!(routes.route("refund.issued").is_empty());
    }

    #[test]
    fn an_unreadable_pattern_does_not_disturb_the_others() {
        let routes = Routes::new(&routing(&[("billing", &["order.{a,b}", "refund.*"]), ("mail", &["**"])]));
        assert_eq!(*routes.route("refund.issued"), [0, 1]);
        assert_eq!(*routes.route("order.a"), [1]);
        let [(name, _)] = routes.unusable() else { panic!("{:?}", routes.unusable()) };
        assert_eq!(name, "billing");
    }

    #[test]
    fn the_memory_of_topics_is_bounded() {
        let routes = Routes::new(&routing(&[("all", &["order.*"])]));
        for n in 0..3 * TOPICS_REMEMBERED_MAX {
            assert_eq!(*routes.route(&format!("order.{n}")), [0]);
        }
        assert!(routes.remembered.lock().unwrap().len() <= TOPICS_REMEMBERED_MAX);
    }
}
