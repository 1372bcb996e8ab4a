//! What a receiver repeats of our secrets, masked.
//!
//! Pure: the address and the headers of a destination in once, texts in and out. Pages for developers show the whole
//! request, and what a receiver says is kept for people who are not meant to have its credentials.
//!
//! Invariants
//! - What is masked is masked whole: where secrets overlap, nothing of either is left over.
//! - Texts are masked before they are cut, and where the answer itself was cut off, the beginning of a secret at its end is
//!   masked, too.
//!
//! Absent: secrets in a form that has to be computed, such as the password inside a `Basic` credential. Short words of a
//! path that stand alone are left, too, for most of them are words such as `hooks`.

use hyper::header::HeaderMap;
use percent_encoding::percent_decode_str;
use url::{Url, form_urlencoded};

use crate::sink::text;

/// What stands in place of a secret.
const MASK: &str = "(masked)";

/// From this length on a value is masked. Shorter ones are no secrets, and would take words apart.
const VALUE_BYTES_MIN: usize = 6;

/// From this length on a segment of the path is masked by itself: random letters that are worth guessing are longer, most
/// words are shorter.
const SEGMENT_BYTES_MIN: usize = 16;

/// The secrets of one destination, in every form that is looked for.
#[derive(Clone)]
pub(super) struct Mask {
    secrets: Vec<String>,
}

impl Mask {
    /// Of requests to this address with these headers.
    pub(super) fn new(url: &Url, headers: &HeaderMap) -> Mask {
        let mut mask = Mask { secrets: Vec::new() };
        for value in headers.values() {
            let value = String::from_utf8_lossy(value.as_bytes());
            mask.add(&value, VALUE_BYTES_MIN);
            // The credential behind its scheme.
            mask.add(value.rsplit(' ').next().unwrap_or_default(), VALUE_BYTES_MIN);
        }
        let path = url.path().trim_end_matches('/');
        mask.add_encoded(path, "/".len() + VALUE_BYTES_MIN);
        for segment in path.split('/') {
            mask.add_encoded(segment, SEGMENT_BYTES_MIN);
        }
        if let Some(query) = url.query() {
            mask.add_encoded(&format!("{}?{query}", url.path()), VALUE_BYTES_MIN);
            mask.add_encoded(query, VALUE_BYTES_MIN);
            for pair in query.split('&') {
                mask.add_encoded(pair.split_once('=').map_or(pair, |(_, value)| value), VALUE_BYTES_MIN);
            }
            for (name, value) in form_urlencoded::parse(query.as_bytes()) {
                mask.add(if value.is_empty() { &name } else { &value }, VALUE_BYTES_MIN);
            }
        }
        mask
    }

    /// The text without them, fit to be shown.
    pub(super) fn whole(&self, said: &str) -> String {
        self.masked(said, false)
    }

    /// The same of a text whose end is missing.
    pub(super) fn beginning(&self, said: &str) -> String {
        self.masked(said, true)
    }

    fn masked(&self, said: &str, is_cut: bool) -> String {
        // What is cleaned away must not have hidden a secret, and what is cut off not have been the rest of one.
        let said = text::readable(said);
        let mut found: Vec<(usize, usize)> = Vec::new();
        for secret in &self.secrets {
            let mut from = 0;
            while let Some(at) = said[from..].find(secret.as_str()) {
                let at = from + at;
                found.push((at, at + secret.len()));
                from = at + said[at..].chars().next().map_or(1, char::len_utf8);
            }
            if is_cut && let Some(at) = end_begins(&said, secret) {
                found.push((at, said.len()));
            }
        }
        found.sort_unstable();
        let (mut masked, mut shown) = (String::with_capacity(said.len()), 0);
        for (first, end) in found {
            if first >= shown {
                masked.push_str(&said[shown..first]);
                masked.push_str(MASK);
            }
            shown = shown.max(end);
        }
        masked.push_str(&said[shown..]);
        text::cleaned(&masked)
    }

    /// As it stands in a url, and decoded.
    fn add_encoded(&mut self, secret: &str, bytes_min: usize) {
        self.add(secret, bytes_min);
        self.add(&percent_decode_str(secret).decode_utf8_lossy(), bytes_min);
    }

    fn add(&mut self, secret: &str, bytes_min: usize) {
        // It is compared with cleaned texts.
        let secret = text::readable(secret);
        if secret.len() < bytes_min {
            return;
        }
        // Some write every slash so in JSON.
        let escaped = secret.replace('/', "\\/");
        for form in [secret, escaped] {
            if !self.secrets.contains(&form) {
                self.secrets.push(form);
            }
        }
    }
}

/// Where the end of a text begins that is the beginning of a secret, as long as there is one.
fn end_begins(said: &str, secret: &str) -> Option<usize> {
    let mut lengths = secret.char_indices().map(|(at, _)| at).rev();
    lengths.find(|length| *length > 0 && said.ends_with(&secret[..*length])).map(|length| said.len() - length)
}

#[cfg(test)]
mod tests {
    use super::super::request::fixed;
    use super::*;
    use crate::sink::text::TEXT_BYTES_MAX;

    fn mask(url: &str, headers: &[(&str, &str)]) -> Mask {
        let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Mask::new(&Url::parse(url).unwrap(), &fixed(&headers).unwrap())
    }

    const TOKEN: &str = "T0123456789abcdef";

    #[test]
    fn what_a_receiver_repeats_of_our_secrets_is_masked() {
        let headers = [("authorization", "Bearer s3cr3ts3cr3t"), ("x-tenant", "eu"), ("x-name", "Gr\u{fc}\u{df}dich")];
        let mask = mask("http://h/in?token=hunter2hunter2&a=1", &headers);
        for (said, shown) in [
            ("POST /in?token=hunter2hunter2&a=1 HTTP/1.1", "POST (masked) HTTP/1.1"),
            ("no token=hunter2hunter2 in it", "no token=(masked) in it"),
            ("authorization: Bearer s3cr3ts3cr3t, s3cr3ts3cr3t from eu", "authorization: (masked), (masked) from eu"),
            ("who is Gr\u{fc}\u{df}dich?", "who is (masked)?"),
            ("hun\u{1b}[0mter2hun\0ter2", "(masked)"),
            ("a = 1 in /in", "a = 1 in /in"),
            ("", ""),
        ] {
            assert_eq!(mask.whole(said), shown);
        }
    }

    #[test]
    fn a_token_in_the_path_is_masked_and_plain_words_are_not() {
        let long = mask(&format!("https://h/services/{TOKEN}/%C3%BC%2B{TOKEN}/"), &[]);
        for (said, shown) in [
            (format!("Cannot POST /services/{TOKEN}/%C3%BC%2B{TOKEN}/"), "Cannot POST (masked)/"),
            (format!("Cannot POST /services/{TOKEN}/\u{fc}+{TOKEN}"), "Cannot POST (masked)"),
            (format!("{{\"path\":\"\\/services\\/{TOKEN}\\/%C3%BC%2B{TOKEN}\"}}"), "{\"path\":\"(masked)\"}"),
            (format!("{TOKEN} is unknown to services"), "(masked) is unknown to services"),
            (format!("https://h/v2/services/{TOKEN}"), "https://h/v2/services/(masked)"),
            (format!("no \u{fc}+{TOKEN} here"), "no (masked) here"),
        ] {
            assert_eq!(long.whole(&said), shown);
        }
        let short = mask("https://h/in/s3cr3t", &[]);
        assert_eq!(short.whole("Cannot POST /in/s3cr3t"), "Cannot POST (masked)");
        for url in ["https://h/hooks", "https://h/", "https://h/in"] {
            let said = "the hooks of /hooks are in /in";
            assert_eq!(mask(url, &[]).whole(said), said, "{url}");
        }
        let said = "no outbox in hooks";
        assert_eq!(mask("https://h/hooks/outbox", &[]).whole(said), said);
    }

    #[test]
    fn the_value_of_a_query_is_found_in_every_form() {
        let mask = mask("https://h/?key=a%2Bb+c%20d&t%C3%B6ken%21", &[]);
        for said in ["a%2Bb+c%20d", "a+b c d", "a+b+c d", "t%C3%B6ken%21", "t\u{f6}ken!"] {
            assert_eq!(mask.whole(&format!("<{said}>")), "<(masked)>");
        }
    }

    #[test]
    fn nothing_is_left_of_secrets_that_overlap() {
        let headers = [("x-a", "abcdef"), ("x-b", "abcdefghij"), ("x-c", "ijklmnop"), ("x-d", "zzzzzz")];
        let mask = mask("https://h/", &headers);
        assert_eq!(mask.whole("<abcdefghij>"), "<(masked)>");
        assert_eq!(mask.whole("<abcdefghijklmnop>"), "<(masked)>");
        assert_eq!(mask.whole("<zzzzzzzzzz>"), "<(masked)>");
        assert_eq!(mask.whole("<abcdef>"), "<(masked)>");
    }

    #[test]
    fn no_cut_leaves_the_beginning_of_a_secret() {
        let secret = "s3cr3t".repeat(10);
        let mask = mask("https://h/", &[("x-a", &secret), ("x-b", "\u{e4}\u{f6}\u{fc}\u{e4}\u{f6}\u{fc}")]);
        for fits in 0..=secret.len() {
            let said = format!("{}{secret}", "x".repeat(TEXT_BYTES_MAX - fits));
            for shown in [mask.whole(&said), mask.beginning(&said)] {
                assert!(shown.len() <= TEXT_BYTES_MAX && !shown.contains("s3"), "{fits}");
            }
            let said = format!("x {}", &secret[..fits]);
            let shown = mask.beginning(&said);
            assert_eq!(shown, if fits == 0 { "x" } else { "x (masked)" }, "{fits}");
        }
        assert_eq!(mask.beginning("said \u{e4}\u{f6}"), "said (masked)");
        assert_eq!(mask.whole("it fails"), "it fails");
        // Masked texts may be longer than what was said.
        let longer = mask.whole(&format!("{secret} ").repeat(TEXT_BYTES_MAX / 8));
        assert!(longer.len() <= TEXT_BYTES_MAX && longer.len() > TEXT_BYTES_MAX - 10, "{}", longer.len());
    }
}
