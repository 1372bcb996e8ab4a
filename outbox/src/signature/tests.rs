//! The published vector, rotation, and everything a stranger may send.

use std::time::UNIX_EPOCH;

use super::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const SECS: u64 = 1_614_265_330;
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const SIGNED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

const HEADERS: Headers<'static> = Headers { id: ID, timestamp: "1614265330", signature: SIGNED };

fn secret() -> Secret {
    Secret::parse(SECRET).unwrap()
}

fn at(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(secs)
}

fn check(headers: Headers<'_>, body: &[u8]) -> Result<(), VerifyError> {
    verify_at([&secret()], &headers, body, at(SECS))
}

#[test]
fn the_published_vector_is_met_both_ways() {
    assert_eq!(sign([&secret()], ID, SECS, BODY), SIGNED);
    assert_eq!(check(HEADERS, BODY), Ok(()));
}

#[test]
fn while_a_secret_is_replaced_either_side_may_be_first() {
    let (old, new) = (secret(), Secret::generate());
    let both = sign([&new, &old], ID, SECS, BODY);
    let headers = Headers { signature: &both, ..HEADERS };
    for known in [vec![&old], vec![&new], vec![&old, &new], vec![&new, &old]] {
        assert_eq!(verify_at(known.clone(), &headers, BODY, at(SECS)), Ok(()));
        let one = sign([known[0]], ID, SECS, BODY);
        let headers = Headers { signature: &one, ..HEADERS };
        assert_eq!(verify_at([&new, &old], &headers, BODY, at(SECS)), Ok(()));
    }
    assert_eq!(verify_at([&Secret::generate()], &headers, BODY, at(SECS)), Err(VerifyError::Mismatch));
}

#[test]
fn whatever_is_changed_is_noticed() {
    let mut body = BODY.to_vec();
    for n in 0..body.len() {
        body[n] ^= 1;
        assert_eq!(check(HEADERS, &body), Err(VerifyError::Mismatch));
        body[n] ^= 1;
    }
    assert_eq!(check(Headers { id: "msg_other", ..HEADERS }, BODY), Err(VerifyError::Mismatch));
    assert_eq!(check(Headers { timestamp: "1614265331", ..HEADERS }, BODY), Err(VerifyError::Mismatch));
    // The same number in another text is another signature.
    assert_eq!(check(Headers { timestamp: "01614265330", ..HEADERS }, BODY), Err(VerifyError::Mismatch));
    // What was signed cannot be cut in another way.
    let moved = Headers { id: "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330", ..HEADERS };
    assert_eq!(check(moved, b"1"), Err(VerifyError::InvalidId));
    assert_eq!(check(Headers { id: "", ..HEADERS }, BODY), Err(VerifyError::InvalidId));
}

#[test]
fn signatures_of_other_versions_are_passed_over() {
    let with = |signature: &str| check(Headers { signature, ..HEADERS }, BODY);
    assert_eq!(with(&format!("v1a,AAAA v2,{} {SIGNED} v1,AAAA", &SIGNED[3..])), Ok(()));
    assert_eq!(with(&format!("v1,AAAA  {SIGNED}\t")), Ok(()));
    for none in ["", " ", "v1", "v1a,AAAA", "V1,AAAA", &format!("v2,{}", &SIGNED[3..]), &SIGNED[3..]] {
        assert_eq!(with(none), Err(VerifyError::NoSignature), "{none}");
    }
    for other in ["v1,", "v1,\u{e9}", "v1,AAAA", &SIGNED[..SIGNED.len() - 1], &format!("{SIGNED}="), "v1,v1,"] {
        assert_eq!(with(other), Err(VerifyError::Mismatch), "{other}");
    }
}

#[test]
fn a_request_is_believed_for_five_minutes_either_way() {
    let at = |secs| verify_at([&secret()], &HEADERS, BODY, at(secs));
    assert_eq!(at(SECS - 300), Ok(()));
    assert_eq!(at(SECS + 300), Ok(()));
    assert_eq!(at(SECS + 301), Err(VerifyError::TooOld { by: Duration::from_secs(301) }));
    assert_eq!(at(SECS - 301), Err(VerifyError::TooNew { by: Duration::from_secs(301) }));
    for timestamp in ["", "soon", "-1", "+1614265330", "1614265330.0", " 1614265330", "99999999999999999999", "\u{663}"]
    {
        assert_eq!(check(Headers { timestamp, ..HEADERS }, BODY), Err(VerifyError::InvalidTimestamp), "{timestamp}");
    }
    let last = u64::MAX.to_string();
    assert!(matches!(check(Headers { timestamp: &last, ..HEADERS }, BODY), Err(VerifyError::TooNew { .. })));
}

#[test]
fn a_receiver_without_secrets_believes_nothing() {
    assert_eq!(verify_at([], &HEADERS, BODY, at(SECS)), Err(VerifyError::NoSecret));
}

#[test]
fn missing_headers_are_named() {
    for missing in [super::ID, TIMESTAMP, SIGNATURE] {
        let found = Headers::find(|name| (name != missing).then_some("x"));
        assert_eq!(found, Err(VerifyError::MissingHeader { name: missing }));
    }
}

#[test]
fn what_is_no_secret_is_refused_without_showing_it() {
    let bytes = |n: usize| format!("whsec_{}", STANDARD.encode(vec![0xa5; n]));
    for (text, error) in [
        (String::new(), SecretError::Prefix),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), SecretError::Prefix),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), SecretError::Prefix),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), SecretError::Ed25519),
        ("whpk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), SecretError::Ed25519),
        ("whsec_MfKQ9r8GKYqrTwjUPD8I LPZIo2LaLaSw".into(), SecretError::Base64),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_".into(), SecretError::Base64),
        ("whsec_".into(), SecretError::Length { bytes: 0 }),
        (bytes(23), SecretError::Length { bytes: 23 }),
        (bytes(65), SecretError::Length { bytes: 65 }),
    ] {
        assert_eq!(Secret::parse(&text), Err(error), "{text}");
        assert!(text.len() < 20 || !error.to_string().contains(&text[6..20]), "{error}");
    }
    for n in [24, 25, 26, 64] {
        assert_eq!(Secret::parse(&bytes(n)).unwrap().expose(), bytes(n));
        // Without padding, and as a file ends.
        assert_eq!(Secret::parse(&format!("{}\n", bytes(n).trim_end_matches('='))).unwrap().expose(), bytes(n));
    }
}

#[test]
fn new_secrets_differ_and_are_not_shown() {
    let (one, other) = (Secret::generate(), Secret::generate());
    assert_ne!(one, other);
    assert_eq!(format!("{one:?}"), "Secret(…)");
}
