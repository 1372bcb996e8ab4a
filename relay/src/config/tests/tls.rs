//! Certificates in a configuration: what arrives, and what is answered.

use super::*;

/// A destination at this url.
fn file(url: &str, tls: &str) -> String {
    format!("[destinations.billing]\nurl = \"{url}\"\ntopics = [\"a\"]\ntls = {tls}\n")
}

const ENVIRONMENT: [(&str, &str); 3] = [("CERT", CERTIFICATE), ("KEY", KEY), ("PASSWORD", "s3cret")];

#[test]
fn certificates_come_from_files_and_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.crt");
    std::fs::write(&path, CERTIFICATE).unwrap();
    let tls = format!(
        "{{ ca = {{ file = \"{}\" }}, client_cert = {{ env = \"CERT\" }}, client_key = {{ env = \"KEY\" }} }}",
        path.display()
    );
    let mut environment = ENVIRONMENT.to_vec();
    environment.push(("DATABASE_URL", "sqlite:test.db"));
    let file = file("https://b/", &tls);
    let load = |file: &str| Config::load(&sources(file, &environment), Scope::Everything).unwrap();
    let config = load(&file);
    let tls = &config.destinations["billing"].tls;
    assert_eq!(tls.ca.as_ref().map(Secret::expose), Some(CERTIFICATE.trim_end()));
    assert_eq!(tls.client, Some((Secret::new(CERTIFICATE), Secret::new(KEY))));
    // A file that was renewed is another configuration, so that a reload takes it over.
    std::fs::write(&path, CERTIFICATE.repeat(2)).unwrap();
    assert_eq!(config.reloaded(load(&file)).changed, ["billing"]);
}

#[test]
fn certificates_that_cannot_be_used_are_answered_with_the_place_and_never_shown() {
    let (ca, cert, key) = (
        "`ca` in [destinations.billing.tls]",
        "`client_cert` in [destinations.billing.tls]",
        "`client_key` in [destinations.billing.tls]",
    );
    let together = "\n  help: a client certificate is shown together with its private key";
    for (tls, expected) in [
        ("{ ca = { env = \"PASSWORD\" } }", format!("4:9: {ca}: no certificate in it (`-----BEGIN CERTIFICATE-----`)")),
        ("{ client_cert = { env = \"CERT\" } }", format!("4:9: {cert} needs `client_key`{together}")),
        ("{ client_key = { env = \"KEY\" } }", format!("4:9: {key} needs `client_cert`{together}")),
        (
            "{ client_cert = { env = \"CERT\" }, client_key = \"s3cret\" }",
            format!(
                "4:41: {key} is a secret and must not stand in the file\n  help: write {{ env = \"NAME\" }} or {{ file = \
                 \"path\" }}"
            ),
        ),
        (
            "{ client_cert = { env = \"CERT\" }, client_key = { env = \"PASSWORD\" } }",
            format!("4:41: {key}: no private key in it (`-----BEGIN PRIVATE KEY-----`)"),
        ),
        (
            "{ client_cert = { env = \"KEY\" }, client_key = { env = \"KEY\" } }",
            format!("4:9: {cert}: no certificate in it (`-----BEGIN CERTIFICATE-----`)"),
        ),
        ("{ cert = { env = \"CERT\" } }", "4:9: unknown key `cert` in [destinations.billing.tls]".to_owned()),
    ] {
        assert_eq!(problems(&file("https://b/", tls), &ENVIRONMENT), format!("relay.toml:{expected}"), "{tls}");
    }
    assert_eq!(
        problems(&file("http://127.0.0.1/", "{ ca = { env = \"CERT\" } }"), &ENVIRONMENT),
        "relay.toml:4:1: [destinations.billing.tls] is for `https://` only, and the url is `http://`"
    );
}
