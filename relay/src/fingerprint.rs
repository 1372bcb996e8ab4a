//! What died of the same thing, as a short id.
//!
//! Pure. Letters with one fingerprint went to the same destination, were given up for the same reason, with the same
//! code, and with an error that differs in particulars alone: numbers, ids, what stands in quotes. Whoever decides about
//! one of them may decide about all.
//!
//! Invariants
//! - It is the same in every relay and every build: what it is made of is written into the tables, and compared with what
//!   later relays write. A change of the rules below separates old letters from new ones of the same kind.
//! - It tells nothing of the error's particulars.
//!
//! Absent: fingerprints of older relays. They are text in the same column, and stay what they are.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// So much of an error tells what kind it is; what follows is mostly somebody's page or data.
const CHARS_MAX: usize = 200;

/// The fingerprint: eight hexadecimal digits.
pub(crate) fn fingerprint(destination: &str, reason: &str, code: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    for part in [destination, reason, code, &kind(text)] {
        hash.update(part.as_bytes());
        // Stands in none of the parts, so that no two lists of parts are the same bytes.
        hash.update([0xff]);
    }
    hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The error without its particulars.
fn kind(text: &str) -> String {
    let mut kind = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = if let Some(length) = quoted(rest, kind.chars().next_back()) {
            kind.push('"');
            length
        } else if first.is_alphanumeric() {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
            word(&rest[..length], &mut kind);
            length
        } else if first.is_whitespace() {
            if !kind.ends_with(' ') {
                kind.push(' ');
            }
            first.len_utf8()
        } else {
            kind.push(first);
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    kind.trim().chars().take(CHARS_MAX).collect()
}

/// The length of the quoted value that begins here. After a letter or a digit a quote is an apostrophe.
fn quoted(rest: &str, before: Option<char>) -> Option<usize> {
    let opening = rest.chars().next()?;
    let closing = match opening {
        '"' | '\'' | '`' => opening,
        '“' => '”',
        '‘' => '’',
        _ => return None,
    };
    if opening == '\'' && before.is_some_and(|before| before.is_alphanumeric() || before == '#') {
        return None;
    }
    let inside = &rest[opening.len_utf8()..];
    Some(opening.len_utf8() + inside.find(closing)? + closing.len_utf8())
}

/// A word without its numbers; an id is a number.
fn word(word: &str, into: &mut String) {
    let has_digit = word.contains(|c: char| c.is_ascii_digit());
    let is_hex = word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_id = has_digit && (is_hex || Uuid::parse_str(word).is_ok());
    for c in if is_id { "0" } else { word }.chars() {
        match c.is_ascii_digit() {
            false => into.push(c),
            true => {
                // `1,234.50` and `10:00:05` are one number each.
                if into.ends_with(['.', ',', ':']) && into[..into.len() - 1].ends_with('#') {
                    into.pop();
                }
                if !into.ends_with('#') {
                    into.push('#');
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_loses_its_particulars_and_keeps_its_words() {
        for (text, expected) in [
            ("", ""),
            ("total must be a number", "total must be a number"),
            ("order 4711 is unknown", "order # is unknown"),
            ("total 1,234.50 is more than 99", "total # is more than #"),
            ("no order 0199c0de-0000-7000-8000-000000000001, sorry", "no order #, sorry"),
            ("trace 4bf92f3577b34da6a3ce929d0e0e4736", "trace #"),
            ("connect to 10.0.0.7:5432: refused", "connect to #: refused"),
            ("field \"name\" of 'order 7' is `null`", "field \" of \" is \""),
            ("“Ada” isn't a customer's name", "\" isn't a customer's name"),
            ("it's \"open", "it's \"open"),
            ("down\n  for\tmaintenance ", "down for maintenance"),
            ("at 2026-11-22T10:00:05.250Z", "at #-#-#T#Z"),
            ("decade and facade", "decade and facade"),
            ("user_17 of plan-9", "user_# of plan-#"),
            ("größer als 3 €", "größer als # €"),
        ] {
            assert_eq!(kind(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_differs_in_particulars_alone_has_one_fingerprint() {
        let of = |text: &str| fingerprint("billing", "rejected", "422", text);
        for (one, other) in [
            ("order 1 is unknown", "order 4711 is unknown"),
            ("no such item 'teapot'", "no such item 'the \"big\" samovar'"),
            ("no 936da01f-9abd-4d9d-80c7-02af85c822a8", "no 0199c0de-0000-7000-8000-000000000001"),
        ] {
            assert_eq!(of(one), of(other));
        }
        let long = "x".repeat(CHARS_MAX);
        assert_eq!(of(&long), of(&format!("{long} and what follows")));
    }

    #[test]
    fn another_destination_reason_code_or_cause_has_another() {
        let all = [
            fingerprint("billing", "rejected", "422", "no such order"),
            fingerprint("audit", "rejected", "422", "no such order"),
            fingerprint("billing", "exhausted", "422", "no such order"),
            fingerprint("billing", "rejected", "400", "no such order"),
            fingerprint("billing", "rejected", "422", "no such customer"),
            fingerprint("billing", "rejected", "", "422no such order"),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|other| other != one), "{all:?}");
        }
    }

    #[test]
    fn fingerprints_are_what_they_were_in_every_build() {
        assert_eq!(fingerprint("billing", "rejected", "422", "total must be a number"), "0e107dff");
        let refused = "tcp connect error: Connection refused (os error 111)";
        assert_eq!(fingerprint("warehouse", "exhausted", "connect", refused), "fbf02257");
    }
}
