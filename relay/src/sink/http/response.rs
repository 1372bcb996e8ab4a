//! How an answer is judged.
//!
//! Pure: status, headers and the hour go in, a verdict comes out. The table below is the contract with receivers.

use std::time::{Duration, SystemTime};

use hyper::header::{CONTENT_ENCODING, HeaderMap, LOCATION, RETRY_AFTER};

use super::classes::Classes;
use super::mask::Mask;
use crate::retry::ASKED_MAX;
use crate::sink::{Judgement, text};
use crate::verdict::Verdict;

/// How much of an answer's body is read.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// The header by which a receiver decides for itself whether a message is to be sent again: `yes` or `no`.
const OUTBOX_RETRY: &str = "outbox-retry";

/// Judges the head of an answer.
pub(super) fn judge(status: u16, headers: &HeaderMap, classes: &Classes, mask: &Mask, now: SystemTime) -> Judgement {
    let asked = retry_after(headers, now);
    let verdict = match (receiver_retries(headers), classes.of(status)) {
        (None, Some(class)) => class.verdict(asked),
        (retries, _) => classify(status, retries, asked),
    };
    if verdict == Verdict::Delivered {
        return Judgement::delivered(status.to_string());
    }
    let text = match headers.get(LOCATION) {
        Some(location) if (300..400).contains(&status) => {
            let location = mask.whole(&without_secrets(&text::readable(&String::from_utf8_lossy(location.as_bytes()))));
            text::cleaned(&format!("redirected to `{location}`; redirects are not followed"))
        }
        _ => String::new(),
    };
    Judgement::failed(verdict, status.to_string(), text)
}

/// What an answer means.
///
/// A status that says "you sent something wrong" rejects the message; one that says "you are not set up right" slows
/// the destination down; the rest is tried again.
fn classify(status: u16, retries: Option<bool>, asked: Option<Duration>) -> Verdict {
    if (200..300).contains(&status) {
        return Verdict::Delivered;
    }
    match (status, retries, asked) {
        (_, Some(true), after) => Verdict::Retry { after },
        (_, Some(false), _) => Verdict::Reject { gone: false },
        (429, _, pause) | (413 | 503, _, pause @ Some(_)) => Verdict::Hold { pause },
        (410, ..) => Verdict::Reject { gone: true },
        (400 | 405 | 406 | 411..=417 | 422 | 428 | 431 | 451, ..) => Verdict::Reject { gone: false },
        (300..=399 | 401..=404 | 407 | 426 | 501 | 505 | 511, ..) => Verdict::Misconfigured,
        (_, _, after) => Verdict::Retry { after },
    }
}

/// Receivers redirect with the query they were asked with, and that may hold a token of ours.
fn without_secrets(location: &str) -> String {
    let (place, query) = location.split_at(location.find(['?', '#']).unwrap_or(location.len()));
    let (scheme, rest) = place.split_at(place.find("//").map_or(0, |at| at + 2));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let authority = if scheme.is_empty() { authority } else { host };
    format!("{scheme}{authority}{path}{}", if query.is_empty() { "" } else { "?…" })
}

/// What the receiver decides for itself; nothing where it contradicts itself.
fn receiver_retries(headers: &HeaderMap) -> Option<bool> {
    let mut words = headers.get_all(OUTBOX_RETRY).iter().map(|value| match value.to_str().unwrap_or_default().trim() {
        word if word.eq_ignore_ascii_case("yes") => Some(true),
        word if word.eq_ignore_ascii_case("no") => Some(false),
        _ => None,
    });
    let first = words.next()?;
    words.all(|word| word == first).then_some(first).flatten()
}

/// How long the receiver asks to be left alone: seconds or a date, at most [`ASKED_MAX`].
///
/// Nonsense is ignored. Of several values the longest holds, for a receiver may slow us down.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let values = headers.get_all(RETRY_AFTER).iter().filter_map(|value| value.to_str().ok());
    values.filter_map(|value| pause(value.trim(), now)).max().map(|asked| asked.min(ASKED_MAX))
}

fn pause(value: &str, now: SystemTime) -> Option<Duration> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit mean "very long". Never a float: `1e3` and `NaN` are nonsense here.
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    // A date that has passed asks for nothing, and still says that the receiver knows what it does.
    httpdate::parse_http_date(value).ok().map(|date| date.duration_since(now).unwrap_or_default())
}

/// The beginning of an answer's body, for people.
pub(super) struct Excerpt {
    bytes: Vec<u8>,
    is_encoded: bool,
    /// The body had nothing more.
    is_whole: bool,
}

impl Excerpt {
    /// Of an answer with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Excerpt {
        // Nothing is unpacked here, a few bytes can become gigabytes.
        let is_encoded = headers
            .get(CONTENT_ENCODING)
            .is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
        Excerpt { bytes: Vec::new(), is_encoded, is_whole: false }
    }

    /// True while more of the body is worth reading.
    pub(super) fn wants_more(&self) -> bool {
        self.bytes.len() < BODY_BYTES_MAX
    }

    /// Takes what arrived, as much of it as fits.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let room = BODY_BYTES_MAX - self.bytes.len();
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }

    /// The body ends where the last piece did.
    pub(super) fn end(&mut self) {
        self.is_whole = true;
    }

    /// What it says, fit to be shown.
    pub(super) fn text(&self, mask: &Mask) -> String {
        if self.is_encoded || self.bytes.contains(&0) {
            return if self.bytes.is_empty() { String::new() } else { "(the answer's body is not text)".to_owned() };
        }
        let said = String::from_utf8_lossy(&self.bytes);
        if self.is_whole { mask.whole(&said) } else { mask.beginning(&said) }
    }
}

impl Judgement {
    /// Adds what the receiver said, unless it was delivered: then nobody asks.
    pub(super) fn with_words(mut self, excerpt: &Excerpt, mask: &Mask) -> Judgement {
        if self.verdict != Verdict::Delivered && self.text.is_empty() {
            self.text = excerpt.text(mask);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REJECT: Verdict = Verdict::Reject { gone: false };
    const RETRY: Verdict = Verdict::Retry { after: None };

    /// Every status there can be, as ranges; what the contract says about each of them.
    const TABLE: &[(u16, u16, Verdict)] = &[
        (100, 199, RETRY),
        (200, 299, Verdict::Delivered),
        (300, 399, Verdict::Misconfigured),
        (400, 400, REJECT),
        (401, 404, Verdict::Misconfigured),
        (405, 406, REJECT),
        (407, 407, Verdict::Misconfigured),
        (408, 409, RETRY),
        (410, 410, Verdict::Reject { gone: true }),
        (411, 417, REJECT),
        (418, 421, RETRY),
        (422, 422, REJECT),
        (423, 425, RETRY),
        (426, 426, Verdict::Misconfigured),
        (427, 427, RETRY),
        (428, 428, REJECT),
        (429, 429, Verdict::Hold { pause: None }),
        (430, 430, RETRY),
        (431, 431, REJECT),
        (432, 450, RETRY),
        (451, 451, REJECT),
        (452, 500, RETRY),
        (501, 501, Verdict::Misconfigured),
        (502, 504, RETRY),
        (505, 505, Verdict::Misconfigured),
        (506, 510, RETRY),
        (511, 511, Verdict::Misconfigured),
        (512, 999, RETRY),
    ];

    #[test]
    fn every_status_has_its_verdict() {
        let mut next = 100;
        for &(first, last, verdict) in TABLE {
            assert_eq!(first, next, "the table has no gaps");
            next = last + 1;
            for status in first..=last {
                assert_eq!(classify(status, None, None), verdict, "{status}");
            }
        }
        assert_eq!(next, 1000);
    }

    #[test]
    fn a_receiver_that_names_a_pause_gets_it() {
        let asked = Some(Duration::from_secs(7));
        for (status, verdict) in [
            (429, Verdict::Hold { pause: asked }),
            (503, Verdict::Hold { pause: asked }),
            (413, Verdict::Hold { pause: asked }),
            (500, Verdict::Retry { after: asked }),
            (408, Verdict::Retry { after: asked }),
            (404, Verdict::Misconfigured),
            (400, REJECT),
            (410, Verdict::Reject { gone: true }),
            (202, Verdict::Delivered),
        ] {
            assert_eq!(classify(status, None, asked), verdict, "{status}");
        }
    }

    #[test]
    fn a_receiver_can_decide_for_itself() {
        let asked = Some(Duration::from_secs(7));
        for status in [301, 400, 404, 410, 429, 500, 503] {
            assert_eq!(classify(status, Some(false), asked), REJECT, "{status}");
            assert_eq!(classify(status, Some(true), asked), Verdict::Retry { after: asked }, "{status}");
        }
        assert_eq!(receiver_retries(&headers(&[("outbox-retry", "yes"), ("outbox-retry", "no")])), None);
        assert_eq!(classify(204, Some(true), None), Verdict::Delivered);
        for (value, expected) in [("no", Some(false)), ("YES", Some(true)), ("maybe", None), ("", None)] {
            assert_eq!(receiver_retries(&headers(&[("outbox-retry", value)])), expected, "{value}");
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, hyper::header::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_pause_is_seconds_or_a_date_and_nonsense_is_ignored() {
        // Sunday, 6 November 1994, 08:49:37.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (values, secs) in [
            (&["0"][..], Some(0)),
            (&["120"], Some(120)),
            (&[" 120 "], Some(120)),
            (&["3601"], Some(3600)),
            (&["1000000000000"], Some(3600)),
            (&["9999999999999999999999999999999999999999"], Some(3600)),
            (&["Sun, 06 Nov 1994 08:50:37 GMT"], Some(60)),
            (&["Sunday, 06-Nov-94 08:50:37 GMT"], Some(60)),
            (&["Sun Nov  6 08:50:37 1994"], Some(60)),
            (&["Sun, 06 Nov 1994 08:00:00 GMT"], Some(0)),
            (&["Fri, 31 Dec 9999 23:59:59 GMT"], Some(3600)),
            (&["-1"], None),
            (&["+1"], None),
            (&["1.5"], None),
            (&["1e3"], None),
            (&["NaN"], None),
            (&["0x10"], None),
            (&["\u{0663}"], None),
            (&[""], None),
            (&["soon"], None),
            (&["120, 240"], None),
            (&["Sun, 99 Nov 1994 08:49:37 GMT"], None),
            (&["5", "60"], Some(60)),
            (&["60", "soon"], Some(60)),
            (&[], None),
        ] {
            let lines: Vec<_> = values.iter().map(|value| ("retry-after", *value)).collect();
            assert_eq!(retry_after(&headers(&lines), now), secs.map(Duration::from_secs), "{values:?}");
        }
    }

    fn mask() -> Mask {
        let url = url::Url::parse("https://hooks.example/services/hunter2hunter2hunter2").unwrap();
        Mask::new(&url, &HeaderMap::new())
    }

    fn words(status: u16, lines: &[(&'static str, &str)], body: &[u8]) -> String {
        let (headers, mask) = (headers(lines), mask());
        let mut excerpt = Excerpt::of(&headers);
        excerpt.push(body);
        excerpt.end();
        judge(status, &headers, &Classes::default(), &mask, SystemTime::UNIX_EPOCH).with_words(&excerpt, &mask).text
    }

    #[test]
    fn what_the_receiver_said_is_kept_as_text() {
        assert_eq!(words(500, &[], b"{\"error\":\n \"\x1b[31mno\x1b[0m\"}"), "{\"error\": \"no\"}");
        assert_eq!(words(200, &[], b"fine"), "", "nobody asks what was said about a delivery");
        assert_eq!(words(500, &[], b"PK\x03\0\0"), "(the answer's body is not text)");
        assert_eq!(words(500, &[("content-encoding", "gzip")], b"\x1f\x8b"), "(the answer's body is not text)");
        assert_eq!(words(500, &[("content-encoding", "gzip")], b""), "");
        assert_eq!(
            words(302, &[("location", "http://169.254.169.254/")], b"moved"),
            "redirected to `http://169.254.169.254/`; redirects are not followed"
        );
    }

    #[test]
    fn a_redirect_is_told_without_what_may_be_a_token_of_ours() {
        for (location, told) in [
            ("https://hooks.example/in/?token=hunter2", "https://hooks.example/in/?…"),
            ("https://me:hunter2@hooks.example/in", "https://hooks.example/in"),
            ("//me@hooks.example", "//hooks.example"),
            ("/in#hunter2", "/in?…"),
            ("elsewhere/a@b", "elsewhere/a@b"),
            ("?x", "?…"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(location), told);
        }
    }

    #[test]
    fn a_token_in_the_path_is_told_by_neither_the_place_nor_the_page() {
        let moved = "/services/hunter2hunter2hunter2/";
        assert_eq!(words(308, &[("location", moved)], b""), "redirected to `(masked)/`; redirects are not followed");
        let moved = "https://eu.hooks.example/v2/hunter2hunter2hunter2?x=hunter2";
        let told = "redirected to `https://eu.hooks.example/v2/(masked)?…`; redirects are not followed";
        assert_eq!(words(301, &[("location", moved)], b""), told);
        assert_eq!(words(404, &[], b"Cannot POST /services/hunter2hunter2hunter2"), "Cannot POST (masked)");
    }

    #[test]
    fn what_is_told_of_a_place_is_cut_behind_its_secrets() {
        for length in 4000..4200 {
            let moved = format!("/{}/services/hunter2hunter2hunter2", "x".repeat(length));
            let told = words(302, &[("location", &moved)], b"");
            assert!(told.len() <= 4 * 1024 && !told.contains("hunter"), "{length}: {told}");
        }
    }

    #[test]
    fn a_body_that_was_cut_off_does_not_end_with_the_beginning_of_a_secret() {
        // Nothing remains of most of it, so that its end is near enough to be kept.
        let mut excerpt = Excerpt::of(&HeaderMap::new());
        excerpt.push(&[b' '; BODY_BYTES_MAX - 9]);
        excerpt.push(b"hunter2hunter2hunter2");
        assert_eq!(excerpt.text(&mask()), "(masked)");
        let mut ended = Excerpt::of(&HeaderMap::new());
        ended.push(b"a hunt");
        ended.end();
        assert_eq!(ended.text(&mask()), "a hunt");
    }

    #[test]
    fn only_the_beginning_of_a_body_is_held() {
        let mut excerpt = Excerpt::of(&HeaderMap::new());
        while excerpt.wants_more() {
            excerpt.push(&[b'x'; 5_000]);
        }
        assert_eq!(excerpt.bytes.len(), BODY_BYTES_MAX);
        assert_eq!(excerpt.text(&mask()).len(), 4 * 1024);
    }
}
