//! TLS to MariaDB.

use diesel_async::{AsyncMysqlConnection, RunQueryDsl};
use outbox::Message;
use outbox_tests::certificates::{Authority, Certificate, Validity};
use outbox_tests::database::Kind;
use outbox_tests::server::Server;
use relay::{Context, Handler, Relay};
use serde::{Deserialize, Serialize};

use super::{COMMANDS, LIMIT, Stage, command_on, commands_work, delivers, good, is_refused};
use crate::cli;

/// A server that proves who it is and asks the same of one of its users.
fn stage() -> Stage {
    let (authority, server) = (Authority::new("Shop"), Server::start(Kind::Mariadb));
    let client = authority.client_with_rsa("certified");
    let stage = Stage::new(authority, server, "mysql", ":s3cret", &client);
    for (user, demands) in [("certified", "X509"), ("encrypted", "SSL"), ("anybody", "NONE")] {
        stage.database.exec(&format!("CREATE USER '{user}'@'%' IDENTIFIED BY 's3cret' REQUIRE {demands}"));
        stage.database.exec(&format!("GRANT ALL ON *.* TO '{user}'@'%'"));
    }
    stage.encrypted()
}

const IDENTITY: &str = "ssl-mode=VERIFY_IDENTITY&ssl-ca={}/ca.crt";
const CERTIFIED: &str = "ssl-mode=VERIFY_IDENTITY&ssl-ca={}/ca.crt&ssl-cert={}/client.crt&ssl-key={}/client.key";

#[derive(Serialize, Deserialize)]
struct Placed {
    id: i64,
}

impl Message for Placed {
    const TOPIC: &'static str = "t";
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_a_handler_and_commands_work_over_tls_and_show_their_certificate() {
    let stage = stage();
    // The server lets this user in with a certificate only, so whatever works is encrypted.
    let url = stage.url("certified", CERTIFIED);
    delivers(&stage.database, &url, |_database| {}).await;
    commands_work(&url);
    cli::assert_ended(&cli::run(&["bench", "drain", "--messages", "50", "--database-url", &url]), 0);

    stage.database.exec("CREATE TABLE handled (id bigint)");
    let handler = Handler::transactional(
        "handled",
        async |placed: Placed, conn: &mut AsyncMysqlConnection, _context: Context| {
            let insert = diesel::sql_query("INSERT INTO handled VALUES (?)");
            insert.bind::<diesel::sql_types::BigInt, _>(placed.id).execute(conn).await.map(drop)
        },
    );
    stage.database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('t', '{\"id\": 7}')");
    let relay = Relay::builder(url).destination(handler).build().await.unwrap();
    let drained = tokio::time::timeout(LIMIT, relay.drain()).await.unwrap().unwrap();
    assert_eq!(drained.delivered, 1);
    assert_eq!(stage.database.query_i64("SELECT count(*) FROM handled WHERE id = 7"), 1);
}

#[test]
fn a_server_that_does_not_prove_who_it_is_is_refused_with_the_reason() {
    let mut stage = stage();
    let identity = stage.url("encrypted", IDENTITY);
    commands_work(&identity);
    commands_work(&stage.url("encrypted", "ssl-mode=REQUIRED"));
    commands_work(&stage.url("encrypted", "ssl-mode=PREFERRED"));
    is_refused(&stage.url("encrypted", "ssl-mode=DISABLED"), "Access denied", "check user and password");
    is_refused(&stage.url("certified", IDENTITY), "Access denied", "check user and password");

    let issuer = "name the file of the authority that issued it as `ssl-ca`";
    let unknown = "the server's certificate is self-signed, or was issued by an authority that is not trusted";
    is_refused(&stage.url("encrypted", "ssl-mode=VERIFY_IDENTITY"), unknown, issuer);
    for (certificate, said, help) in [
        (
            stage.authority.server(&super::NAMES, Validity::Past),
            "the server's certificate expired at 2020-02-01T00:00:00Z",
            "renew the server's certificate",
        ),
        (
            stage.authority.server(&["db.example"], Validity::Now),
            "the server's certificate is not for `127.0.0.1`, but for `db.example`",
            "write the host as the certificate names it",
        ),
        (good(&Authority::new("Stranger")), unknown, issuer),
        (Certificate::self_signed(&super::NAMES), unknown, issuer),
    ] {
        stage.restart(Some(&certificate), false);
        is_refused(&identity, said, help);
    }
    let good = good(&stage.authority);
    stage.restart(Some(&good), true);
    is_refused(
        &identity,
        "the server speaks TLS 1.1 or older only; at least TLS 1.2 is asked for",
        "let the server speak TLS 1.2",
    );
    stage.restart(None, false);
    is_refused(&identity, "does not encrypt, and `ssl-mode` demands it", "give the server a certificate");
    commands_work(&stage.url("anybody", "ssl-mode=PREFERRED"));
}

#[test]
fn a_url_that_would_prove_less_than_it_seems_to_is_78() {
    for (parameters, said) in [
        ("ssl-mode=VERIFY_IDENTITY&ssl-ca=/none.crt", "cannot be read: No such file"),
        ("ssl-mode=VERIFY_CA&ssl-ca=/none.crt", "`ssl-mode=VERIFY_CA` cannot be had"),
        ("ssl-mode=REQUIRED&ssl-ca=ca.crt", "is not looked at without a stricter `ssl-mode`"),
        ("require_ssl=true", "`require_ssl` in the database url"),
    ] {
        for command in COMMANDS {
            let ended = command_on(&format!("mysql://u:s3cret@127.0.0.1:1/x?{parameters}"), command);
            cli::assert_ended(&ended, 78);
            assert!(ended.stderr.contains(said) && ended.stderr.contains("help: "), "{}", ended.stderr);
            assert!(!ended.stderr.contains("s3cret"), "{}", ended.stderr);
        }
    }
}
