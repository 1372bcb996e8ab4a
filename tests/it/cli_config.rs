//! What the command line says about itself and about its configuration.

use std::io::Write;
use std::process::{Command, Stdio};

use outbox_tests::process::{Process, relay};
use serde_json::json;

use crate::cli::{LIMIT, assert_ended, json, run, with};

#[test]
fn the_example_is_a_configuration_that_is_right() {
    let example = run(&["config", "example"]);
    assert_ended(&example, 0);
    assert_eq!(example.stderr, "");
    let ended = with(&example.stdout, &["--database-url", "sqlite:shop.db", "check"]);
    assert_ended(&ended, 0);
}

#[test]
fn a_signature_that_covers_too_little_is_a_warning_and_not_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let check = |mode: &str, format: &str| {
        let configuration = format!(
            "[database]\nurl = \"sqlite:file.db\"\n[destinations.shop]\nurl = \"https://hooks.example.com/in?sig=s3cret\"\n\
             topics = [\"**\"]\nmode = \"{mode}\"\nsigning = {{ keys = [{{ env = \"KEY\" }}] }}\n"
        );
        std::fs::write(folder.path().join("relay.toml"), configuration).unwrap();
        let mut command = relay(["check", "-o", format]);
        command.current_dir(folder.path()).env("KEY", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        Process::run(command, LIMIT)
    };
    let ended = check("binary", "table");
    assert_ended(&ended, 0);
    assert!(ended.stdout.starts_with("warning: [destinations.shop]: requests are signed"), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("relay.toml: nothing wrong\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("s3cret") && !ended.stdout.contains("MfKQ"), "{}", ended.stdout);
    let shown = json(&check("binary", "json"));
    assert_eq!((&shown["problems"], &shown["warnings"][0]["section"]), (&json!([]), &json!("destinations.shop")));
    let ended = check("structured", "table");
    assert_ended(&ended, 0);
    assert_eq!(ended.stdout, "relay.toml: nothing wrong\n");
}

#[test]
fn the_schema_is_json_that_knows_the_sections() {
    let ended = run(&["config", "schema"]);
    assert_ended(&ended, 0);
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let lease = &schema["properties"]["relay"]["properties"]["lease"];
    assert_eq!(lease["default"], "5s");
    let said = "After how long without a sign of life a relay is declared dead and others take its work. It is a duration \
                from `1s` to `5m`.";
    assert_eq!(lease["description"], said);
}

#[test]
fn show_tells_what_flags_environment_file_and_defaults_come_to() {
    let folder = tempfile::tempdir().unwrap();
    let configuration = "[database]\nurl = \"sqlite:file.db\"\n[relay]\nname = \"from-file\"\nlease = \"7s\"\n\
                         [destinations.billing]\nurl = \"https://billing.internal/in?sig=s3cret\"\ntopics = [\"**\"]\n\
                         headers = { authorization = { env = \"BILLING_TOKEN\" } }\n";
    std::fs::write(folder.path().join("relay.toml"), configuration).unwrap();
    let show = |format: &str| {
        let mut command = relay(["config", "show", "--database-url", "postgres://a:s3cret@db/shop", "-o", format]);
        command.current_dir(folder.path()).env("RELAY__RELAY__LEASE", "9s").env("BILLING_TOKEN", "Bearer s3cret");
        Process::run(command, LIMIT)
    };
    let ended = show("json");
    assert_ended(&ended, 0);
    let shown = json(&ended);
    assert_eq!(shown["database"]["url"], "postgres://(masked)@db/shop", "the flag wins over the file");
    assert_eq!(shown["relay"]["lease"], "9s", "the environment wins over the file");
    assert_eq!(shown["relay"]["name"], "from-file", "the file wins over the default");
    assert_eq!(shown["relay"]["poll_idle"], "60ms", "the default is shown");
    assert_eq!(shown["destinations"]["billing"]["headers"], json!({ "authorization": "(masked)" }));

    let text = show("table");
    assert_ended(&text, 0);
    assert!(text.stdout.contains("\n[relay]\nname = \"from-file\"\nlease = \"9s\"\n"), "{}", text.stdout);
    assert!(!format!("{}{}", ended.stdout, text.stdout).contains("s3cret"), "{}", text.stdout);
}

#[test]
fn show_of_a_wrong_configuration_is_78() {
    let ended = with("[relay]\nlese = \"5s\"\n", &["--database-url", "sqlite:shop.db", "config", "show"]);
    assert_ended(&ended, 78);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("did you mean `lease`?"), "{}", ended.stderr);
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ended = run(&["completions", shell]);
        assert_ended(&ended, 0);
        for word in ["redrive", "database-url", "completions"] {
            assert!(ended.stdout.contains(word), "{shell} does not know `{word}`");
        }
        assert_eq!(ended.stderr, "");
    }
    assert_ended(&run(&["completions", "tcsh"]), 64);
}

#[test]
fn bash_completes_a_command_with_the_script() {
    let script = run(&["completions", "bash"]).stdout;
    let ask = "COMP_WORDS=(relay dead red); COMP_CWORD=2; _relay relay red dead; echo \"${COMPREPLY[@]}\"\n";
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin.take().unwrap().write_all(format!("{script}\n{ask}").as_bytes()).unwrap();
    let output = bash.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "redrive\n", "{said}");
}
