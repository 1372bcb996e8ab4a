//! `relay secret`: keys that are made, shown where they belong, and never on a command line.

use std::process::Stdio;

use outbox::signature::{Secret, VerifyingKey};
use outbox_tests::process::{Ended, Process, relay};
use tempfile::TempDir;

use crate::cli::{assert_ended, json, run};

/// The vector of Standard Webhooks, for both kinds of keys.
const SHARED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const SECS: &str = "1614265330";
const BODY: &str = "{\"test\": 2432232314}";
const BY_SHARED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
const BY_PRIVATE: &str = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";

/// A folder with the secrets in files, as editors leave them.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("shared", SHARED), ("private", PRIVATE), ("public", PUBLIC), ("body", BODY)] {
        let end = if name == "body" { "" } else { "\n" };
        std::fs::write(folder.path().join(name), format!("{text}{end}")).unwrap();
    }
    folder
}

/// Runs the command in the folder, with the secrets also in variables.
fn within(folder: &TempDir, arguments: &[&str]) -> Ended {
    let mut command = relay([&["secret"], arguments].concat());
    command.current_dir(folder.path()).env("SHARED", SHARED).env("PRIVATE", PRIVATE).stdin(Stdio::null());
    Process::run(command, std::time::Duration::from_secs(60))
}

#[test]
fn every_secret_is_another_one() {
    let secrets: Vec<String> = (0..2).map(|_| run(&["secret", "new"]).stdout).collect();
    assert_ne!(secrets[0], secrets[1]);
    let shown = json(&run(&["secret", "new", "-o", "json"]));
    assert!(Secret::parse(shown["secret"].as_str().unwrap()).is_ok());
}

#[test]
fn a_private_key_goes_to_stdout_alone_and_its_public_one_can_be_had_again() {
    let made = run(&["secret", "new", "--asymmetric"]);
    assert_ended(&made, 0);
    let secret = Secret::parse(&made.stdout).unwrap();
    let public = secret.verifying_key().expose();
    assert_eq!(made.stdout, format!("{}\n", secret.expose()), "what goes into the file is the key and nothing else");
    assert!(made.stderr.contains(&public) && !made.stderr.contains("whsk_"), "{}", made.stderr);

    let folder = folder();
    std::fs::write(folder.path().join("made"), &made.stdout).unwrap();
    let shown = within(&folder, &["public", "@made"]);
    assert_ended(&shown, 0);
    assert_eq!(shown.stdout, format!("{public}\n"));
    assert_eq!(json(&within(&folder, &["public", "env:PRIVATE", "-o", "json"]))["public_key"], PUBLIC);

    let shown = json(&run(&["secret", "new", "--asymmetric", "-o", "json"]));
    let made = Secret::parse(shown["secret"].as_str().unwrap()).unwrap();
    assert_eq!(VerifyingKey::parse(shown["public_key"].as_str().unwrap()), Ok(made.verifying_key()));

    let ended = within(&folder, &["public", "@shared"]);
    assert_ended(&ended, 64);
    assert!(ended.stderr.contains("`@shared` is a shared secret"), "{}", ended.stderr);
}

#[test]
fn what_is_signed_meets_the_published_vectors() {
    let folder = folder();
    let sign = ["sign", "--secret", "@private", "--secret", "env:SHARED", "--id", ID, "--timestamp", SECS];
    let ended = within(&folder, &[&sign[..], &["@body"]].concat());
    assert_ended(&ended, 0);
    let both = format!("{BY_PRIVATE} {BY_SHARED}");
    assert_eq!(ended.stdout, format!("webhook-id: {ID}\nwebhook-timestamp: {SECS}\nwebhook-signature: {both}\n"));
    let shown = json(&within(&folder, &[&sign[..], &[BODY, "-o", "json"]].concat()));
    assert_eq!(shown, serde_json::json!({ "id": ID, "timestamp": 1_614_265_330, "signature": both }));

    // From stdin, and at this second.
    let mut command = relay(["secret", "sign", "--secret", "@shared", "--id", ID, "-o", "json"]);
    command.current_dir(folder.path()).stdin(std::fs::File::open(folder.path().join("body")).unwrap());
    let output = command.output().unwrap();
    let signed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (timestamp, signature) = (signed["timestamp"].to_string(), signed["signature"].as_str().unwrap());
    let verify =
        ["verify", "--secret", "@shared", "--id", ID, "--timestamp", &timestamp, "--signature", signature, BODY];
    let ended = within(&folder, &verify);
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, "right\n");
}

#[test]
fn what_is_not_to_be_believed_exits_1_with_the_reason() {
    let folder = folder();
    let verify = |secret: &str, signature: &str, rest: &[&str]| {
        let given = ["verify", "--secret", secret, "--id", ID, "--timestamp", SECS, "--signature", signature];
        within(&folder, &[&given[..], rest].concat())
    };
    for (secret, signature) in [
        ("@shared", BY_SHARED),
        ("env:SHARED", BY_SHARED),
        ("@public", BY_PRIVATE),
        (PUBLIC, BY_PRIVATE),
        ("@private", BY_PRIVATE),
    ] {
        let ended = verify(secret, signature, &["--any-age", "@body"]);
        assert_ended(&ended, 0);
        assert_eq!(ended.stdout, "right\n", "{secret}");
    }
    for (secret, signature, rest, told) in [
        ("@shared", BY_SHARED, &["@body"][..], "the request was signed "),
        ("@shared", BY_SHARED, &["--any-age", "{}"], "no signature was made with one of the keys"),
        ("@public", BY_SHARED, &["--any-age", "@body"], "no signature of a version there is a key for"),
        ("@shared", "nonsense", &["--any-age", "@body"], "no signature of a version there is a key for"),
    ] {
        let ended = verify(secret, signature, rest);
        assert_ended(&ended, 1);
        assert!(ended.stdout.starts_with("wrong: ") && ended.stdout.contains(told), "{ended:?}");
        let shown = verify(secret, signature, &[rest, &["-o", "json"]].concat());
        assert_ended(&shown, 1);
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["valid"], false);
        assert!(shown["reason"].as_str().unwrap().contains(told), "{shown}");
    }
    let given = ["verify", "--secret", "@shared", "--id", "a.b", "--timestamp", "soon", "--signature", BY_SHARED, "{}"];
    let ended = within(&folder, &given);
    assert_ended(&ended, 1);
    assert!(ended.stdout.starts_with("wrong: the header `webhook-id`"), "{ended:?}");
    let given = ["verify", "--secret", "@shared", "--id", "a", "--timestamp", "soon", "--signature", BY_SHARED, "{}"];
    let ended = within(&folder, &[&given[..], &["--any-age"]].concat());
    assert_ended(&ended, 1);
    assert!(ended.stdout.starts_with("wrong: the header `webhook-timestamp`"), "{ended:?}");
}

#[test]
fn a_secret_on_the_command_line_is_refused_and_not_repeated() {
    let folder = folder();
    for arguments in [
        &["sign", "--id", "a", "{}", "--secret", SHARED][..],
        &["sign", "--id", "a", "{}", "--secret", "@shared", "--secret", PRIVATE],
        &["verify", "--id", "a", "--timestamp", "1", "--signature", "v1,", "{}", "--secret", PRIVATE],
        &["public", PRIVATE],
    ] {
        let ended = within(&folder, arguments);
        assert_ended(&ended, 64);
        assert!(ended.stderr.contains("a secret must not stand on the command line"), "{ended:?}");
        assert!(!ended.stderr.contains("MfKQ") && !ended.stderr.contains("6Xb"), "{ended:?}");
    }
    for (arguments, told) in [
        (
            &["sign", "--id", "a", "{}", "--secret", "@public"][..],
            "`@public`: this is a public key, which signs nothing",
        ),
        (&["sign", "--id", "a", "{}", "--secret", "@absent"], "`absent` cannot be read"),
        (&["sign", "--id", "a", "{}", "--secret", "env:ABSENT"], "the environment variable ABSENT is not set"),
        (&["sign", "--id", "a", "{}", "--secret", "@body"], "`@body`: a signing secret begins with"),
        (&["sign", "--id", "a.b", "{}", "--secret", "@shared"], "`a.b` cannot be signed as an id"),
        (&["sign", "--id", "a", "@absent", "--secret", "@shared"], "the body cannot be read from `absent`"),
        (&["public", "whpk_AAAA"], "a secret must not stand on the command line"),
    ] {
        let ended = within(&folder, arguments);
        assert_ended(&ended, 64);
        assert!(ended.stderr.contains(told), "{told}: {ended:?}");
    }
    let listen = run(&["listen", "--secret", SHARED]);
    assert_ended(&listen, 64);
    assert!(listen.stderr.contains("a secret must not stand") && !listen.stderr.contains("MfKQ"), "{listen:?}");
}
