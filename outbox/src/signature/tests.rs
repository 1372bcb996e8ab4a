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
    assert_eq!(with(&format!("nothing v2 {SIGNED}")), Ok(()));
    // Without a key for its version a signature is as good as none.
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
fn a_receiver_without_keys_believes_nothing() {
    let none: [&Secret; 0] = [];
    assert_eq!(verify_at(none, &HEADERS, BODY, at(SECS)), Err(VerifyError::NoKey));
}

#[test]
fn missing_headers_are_named() {
    for missing in [super::ID, TIMESTAMP, SIGNATURE] {
        let found = Headers::find(|name| (name != missing).then_some("x"));
        assert_eq!(found, Err(VerifyError::MissingHeader { name: missing }));
    }
}

#[test]
fn no_more_signatures_are_looked_at_than_a_relay_may_send() {
    let with = |signature: &str| check(Headers { signature, ..HEADERS }, BODY);
    let wrong = "v1,AAAA ".repeat(SIGNATURES_MAX - 1);
    assert_eq!(with(&format!("{wrong}{SIGNED}")), Ok(()));
    assert_eq!(with(&format!("{wrong}v1,AAAA {SIGNED}")), Err(VerifyError::Mismatch));
    assert_eq!(with(&format!("{wrong}{}{SIGNED}", "v2,AAAA ".repeat(100))), Ok(()), "other versions do not count");
}

fn of_bytes(prefix: &str, bytes: &[u8]) -> String {
    format!("{prefix}{}", STANDARD.encode(bytes))
}

/// No message repeats what it is about.
fn refused<T: std::fmt::Debug + PartialEq>(parsed: Result<T, KeyError>, expected: KeyError, text: &str) {
    let told = expected.to_string();
    assert_eq!(parsed, Err(expected), "{text}");
    assert!(text.len() < 20 || !told.contains(&text[6..20]), "{told}");
}

#[test]
fn what_is_no_secret_is_refused_without_showing_it() {
    let bytes = |n: usize| of_bytes("whsec_", &vec![0xa5; n]);
    let length = |bytes| KeyError::Length { prefix: "whsec_", bytes };
    let base64 = KeyError::Base64 { prefix: "whsec_" };
    for (text, error) in [
        (String::new(), KeyError::Secret),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), KeyError::Secret),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), KeyError::Secret),
        ("whpk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), KeyError::Public),
        ("whsec_MfKQ9r8GKYqrTwjUPD8I LPZIo2LaLaSw".into(), base64),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_".into(), base64),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_".into(), KeyError::Base64 { prefix: "whsk_" }),
        ("whsec_".into(), length(0)),
        (bytes(23), length(23)),
        (bytes(65), length(65)),
    ] {
        refused(Secret::parse(&text), error, &text);
    }
    assert_eq!(length(23).to_string(), "what follows `whsec_` stands for 24 to 64 bytes, here for 23");
    for n in [24, 25, 26, 64] {
        assert_eq!(Secret::parse(&bytes(n)).unwrap().expose(), bytes(n));
        // Without padding, and as a file ends.
        assert_eq!(Secret::parse(&format!("{}\n", bytes(n).trim_end_matches('='))).unwrap().expose(), bytes(n));
        assert_eq!(VerifyingKey::parse(&bytes(n)).unwrap().expose(), bytes(n));
    }
}

#[test]
fn what_verifies_nothing_is_refused_without_showing_it() {
    for (text, error) in [
        (String::new(), KeyError::Verifying),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), KeyError::Verifying),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), KeyError::Private),
        ("whpk_MfKQ9r8GKYqrTwjUPD8I LPZIo2LaLaSw".into(), KeyError::Base64 { prefix: "whpk_" }),
        (of_bytes("whsec_", &[0xa5; 65]), KeyError::Length { prefix: "whsec_", bytes: 65 }),
    ] {
        refused(VerifyingKey::parse(&text), error, &text);
    }
}

#[test]
fn new_secrets_differ_and_are_not_shown() {
    let (one, other) = (Secret::generate(), Secret::generate());
    assert_ne!(one, other);
    assert_eq!(format!("{one:?}"), "Secret(…)");
    assert_eq!(format!("{:?}", one.verifying_key()), "VerifyingKey(…)");
    assert!(!one.verifying_key().is_public());
}

#[cfg(not(feature = "ed25519"))]
#[test]
fn keys_of_a_pair_are_refused_with_the_feature_they_need() {
    for refused in [
        Secret::parse(&of_bytes("whsk_", &[7; 64])).map(|_| ()),
        VerifyingKey::parse(&of_bytes("whpk_", &[7; 32])).map(|_| ()),
    ] {
        assert_eq!(refused, Err(KeyError::Ed25519));
    }
    assert!(KeyError::Ed25519.to_string().ends_with("built without its feature `ed25519`"));
}

#[cfg(feature = "ed25519")]
mod asymmetric {
    use super::*;

    const PRIVATE: &str =
        "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
    const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
    const SIGNED_BY_PAIR: &str =
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";

    fn pair() -> Secret {
        Secret::parse(PRIVATE).unwrap()
    }

    fn check(signature: &str, body: &[u8]) -> Result<(), VerifyError> {
        let headers = Headers { signature, ..HEADERS };
        verify_at([&VerifyingKey::parse(PUBLIC).unwrap()], &headers, body, at(SECS))
    }

    #[test]
    fn the_published_vector_is_met_both_ways() {
        assert_eq!(sign([&pair()], ID, SECS, BODY), SIGNED_BY_PAIR);
        assert_eq!(pair().verifying_key().expose(), PUBLIC);
        assert_eq!(pair().expose(), PRIVATE);
        assert_eq!(check(SIGNED_BY_PAIR, BODY), Ok(()));
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let mut body = BODY.to_vec();
        for n in 0..body.len() {
            body[n] ^= 1;
            assert_eq!(check(SIGNED_BY_PAIR, &body), Err(VerifyError::Mismatch));
            body[n] ^= 1;
        }
        let signature = STANDARD.decode(&SIGNED_BY_PAIR[4..]).unwrap();
        for n in 0..signature.len() {
            let mut changed = signature.clone();
            changed[n] ^= 1;
            assert_eq!(check(&of_bytes("v1a,", &changed), BODY), Err(VerifyError::Mismatch), "byte {n}");
        }
        for other in ["v1a,", "v1a,AAAA", &format!("{SIGNED_BY_PAIR}AAAA"), &of_bytes("v1a,", &[0; 64])] {
            assert_eq!(check(other, BODY), Err(VerifyError::Mismatch), "{other}");
        }
        // A signature of one version is none of the other.
        assert_eq!(check(&SIGNED_BY_PAIR.replacen("v1a", "v1", 1), BODY), Err(VerifyError::NoSignature));
        let other = Secret::generate_asymmetric().verifying_key();
        let headers = Headers { signature: SIGNED_BY_PAIR, ..HEADERS };
        assert_eq!(verify_at([&other], &headers, BODY, at(SECS)), Err(VerifyError::Mismatch));
    }

    #[test]
    fn while_one_kind_replaces_the_other_either_side_may_be_first() {
        let secrets = [&pair(), &secret()];
        let both = sign(secrets, ID, SECS, BODY);
        assert_eq!(both, format!("{SIGNED_BY_PAIR} {SIGNED}"));
        let [new, old] = secrets.map(Secret::verifying_key);
        for known in [vec![&new], vec![&old], vec![&new, &old], vec![&old, &new]] {
            let headers = Headers { signature: &both, ..HEADERS };
            assert_eq!(verify_at(known, &headers, BODY, at(SECS)), Ok(()));
        }
        for signature in [SIGNED, SIGNED_BY_PAIR] {
            let headers = Headers { signature, ..HEADERS };
            assert_eq!(verify_at([&old, &new], &headers, BODY, at(SECS)), Ok(()));
        }
        let (other_pair, other) = (Secret::generate_asymmetric(), Secret::generate());
        let headers = Headers { signature: &both, ..HEADERS };
        assert_eq!(verify_at([&other_pair, &other], &headers, BODY, at(SECS)), Err(VerifyError::Mismatch));
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        let mut halves = STANDARD.decode(&PRIVATE[5..]).unwrap();
        // Some libraries keep the private half alone; it says everything.
        assert_eq!(Secret::parse(&of_bytes("whsk_", &halves[..32])), Ok(pair()));
        halves[40] ^= 1;
        refused(Secret::parse(&of_bytes("whsk_", &halves)), KeyError::Pair, PRIVATE);
        for n in [0, 31, 33, 63, 65] {
            let text = of_bytes("whsk_", &vec![7; n]);
            refused(Secret::parse(&text), KeyError::Length { prefix: "whsk_", bytes: n }, &text);
            let text = of_bytes("whpk_", &vec![7; n]);
            refused(VerifyingKey::parse(&text), KeyError::Length { prefix: "whpk_", bytes: n }, &text);
        }
        refused(Secret::parse(PUBLIC), KeyError::Public, PUBLIC);
        refused(VerifyingKey::parse(PRIVATE), KeyError::Private, PRIVATE);
        // The neutral point: with it as the key, anybody's zeros are a signature.
        let mut weak = [0; 32];
        weak[0] = 1;
        refused(VerifyingKey::parse(&of_bytes("whpk_", &weak)), KeyError::NoKey, "");
        refused(VerifyingKey::parse(&of_bytes("whpk_", &[2; 32])), KeyError::NoKey, "");
    }

    #[test]
    fn new_keys_differ_and_are_not_shown() {
        let (one, other) = (Secret::generate_asymmetric(), Secret::generate_asymmetric());
        assert_ne!(one, other);
        assert_eq!(Secret::parse(&one.expose()), Ok(one.clone()));
        assert_eq!(format!("{one:?} {:?}", one.verifying_key()), "Secret(…) VerifyingKey(…)");
        assert!(one.verifying_key().is_public());
    }
}
