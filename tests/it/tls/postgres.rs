//! TLS to PostgreSQL.

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use outbox::Message;
use outbox_tests::certificates::{Authority, Certificate, Validity};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::server::Server;
use relay::{Context, Handler, Relay};
use serde::{Deserialize, Serialize};

use super::{COMMANDS, LIMIT, Stage, command_on, commands_work, delivers, good, is_refused};
use crate::cli;
use crate::delivery::stage::{Running, millis, until, until_waiting};

/// Roles that come by TLS only: one by its certificate, one by its password.
const ACCESS: &str = "host all postgres 127.0.0.1/32 trust\n\
                      hostssl all certified 127.0.0.1/32 cert\n\
                      hostssl all sworn 127.0.0.1/32 scram-sha-256\n";

const ROLES: &str = "CREATE ROLE certified LOGIN SUPERUSER; \
                     SET password_encryption = 'scram-sha-256'; CREATE ROLE sworn LOGIN SUPERUSER PASSWORD 's3cret'";

/// A server that proves who it is and asks the same of one of its roles.
fn stage() -> Stage {
    let (authority, server) = (Authority::new("Shop"), Server::start(Kind::Postgres));
    let client = authority.client("certified");
    let stage = Stage::new(authority, server, "postgres", "", &client);
    stage.database.exec(ROLES);
    stage.server.set_access(ACCESS);
    stage.encrypted()
}

const FULL: &str = "sslmode=verify-full&sslrootcert={}/ca.crt";
const CERTIFIED: &str = "sslmode=verify-full&sslrootcert={}/ca.crt&sslcert={}/client.crt&sslkey={}/client.key";

/// Every session of the role is encrypted, and there is one.
fn is_encrypted(database: &TestDatabase, role: &str) {
    let sessions = |condition: &str| {
        database.query_i64(&format!(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = '{role}' AND {condition}"
        ))
    };
    assert_eq!(sessions("NOT ssl"), 0);
    assert!(sessions("ssl") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_and_commands_work_over_tls_and_show_their_certificate() {
    let stage = stage();
    let url = stage.url("certified", CERTIFIED);
    delivers(&stage.database, &url, |database| is_encrypted(database, "certified")).await;
    commands_work(&url);
    let bench = ["bench", "drain", "--messages", "50", "--database-url", &url];
    cli::assert_ended(&cli::run(&bench), 0);
    // A password that is proven to this server only, whoever is in between.
    let url = stage.url("sworn:s3cret", &format!("{FULL}&channel_binding=require"));
    delivers(&stage.database, &url, |database| is_encrypted(database, "sworn")).await;
}

#[derive(Serialize, Deserialize)]
struct Placed {
    id: i64,
}

impl Message for Placed {
    const TOPIC: &'static str = "t";
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_handler_of_a_program_works_over_tls() {
    let stage = stage();
    stage.database.exec("CREATE TABLE handled (id bigint, encrypted bool)");
    let handler =
        Handler::transactional("handled", async |placed: Placed, conn: &mut AsyncPgConnection, _context: Context| {
            let sql = "INSERT INTO handled SELECT $1, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            diesel::sql_query(sql).bind::<diesel::sql_types::BigInt, _>(placed.id).execute(conn).await.map(drop)
        });
    stage.database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('t', '{\"id\": 7}')");
    let relay = Relay::builder(stage.url("certified", CERTIFIED)).destination(handler).build().await.unwrap();
    let drained = tokio::time::timeout(LIMIT, relay.drain()).await.unwrap().unwrap();
    assert_eq!(drained.delivered, 1);
    assert_eq!(stage.database.query_i64("SELECT count(*) FROM handled WHERE id = 7 AND encrypted"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_time_is_up_is_stopped_over_tls() {
    let stage = stage();
    let handler = Handler::transactional("slow", async |_: Placed, conn: &mut AsyncPgConnection, _context: Context| {
        // Without the limit that stops it as well, where nobody could be asked.
        diesel::sql_query("SET LOCAL statement_timeout = 0").execute(conn).await?;
        diesel::sql_query("SELECT pg_sleep(600)").execute(conn).await.map(drop)
    });
    stage.database.exec("INSERT INTO outbox_messages (topic, payload) VALUES ('t', '{\"id\": 7}')");
    let relay = Relay::builder(stage.url("certified", CERTIFIED)).destination(handler.timeout(millis(700)));
    let relay = Running::start(relay).await;
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'certified' AND query LIKE 'SELECT pg_sleep%' \
                  AND state = 'active'";
    until(&stage.database, "it sleeps", || stage.database.query_i64(asleep) == 1).await;
    until_waiting(&stage.database, &["slow retry"]).await;
    until(&stage.database, "it was woken", || stage.database.query_i64(asleep) == 0).await;
    relay.stop().await;
}

#[test]
fn weaker_modes_accept_what_they_say_and_no_more() {
    let mut stage = stage();
    let other = stage.authority.server(&["other.example"], Validity::Now);
    stage.restart(Some(&other), false);
    commands_work(&stage.url("sworn:s3cret", "sslmode=verify-ca&sslrootcert={}/ca.crt"));
    commands_work(&stage.url("sworn:s3cret", "sslmode=require&sslrootcert={}/ca.crt"));
    stage.restart(Some(&Certificate::self_signed(&["other.example"])), false);
    for mode in ["require", "prefer", "allow"] {
        commands_work(&stage.url("sworn:s3cret", &format!("sslmode={mode}")));
    }
    commands_work(&stage.url("sworn:s3cret", ""));
    let said = "the server's certificate is self-signed, and not trusted";
    for mode in ["verify-ca", "require", "verify-full"] {
        let url = stage.url("sworn:s3cret", &format!("sslmode={mode}&sslrootcert={{}}/ca.crt"));
        is_refused(&url, said, "name the file of the authority that issued it as `sslrootcert`");
    }
    // The role comes by TLS only, and so finds the door shut.
    is_refused(&stage.url("sworn:s3cret", "sslmode=disable"), "the server refuses `", "check role and password");
}

#[test]
fn a_server_that_does_not_prove_who_it_is_is_refused_with_the_reason() {
    let mut stage = stage();
    let full = stage.url("sworn:s3cret", FULL);
    commands_work(&full);

    // Of us.
    let ours = "name a client certificate and its key that the server accepts: `sslcert=FILE&sslkey=FILE`";
    is_refused(&stage.url("certified", FULL), "certificate", ours);
    Authority::new("Stranger").client("certified").write(stage.folder(), "client");
    is_refused(&stage.url("certified", CERTIFIED), "certificate", ours);
    stage.authority.client("somebody").write(stage.folder(), "client");
    is_refused(&stage.url("certified", CERTIFIED), "certificate authentication failed", ours);

    // Of the system, which has never heard of this authority.
    let system = stage.url("sworn:s3cret", "sslmode=verify-full");
    let issuer = "name the file of the authority that issued it as `sslrootcert`";
    is_refused(&system, "the server's certificate was issued by an authority that is not trusted", issuer);

    for (certificate, said, help) in [
        (
            stage.authority.server(&super::NAMES, Validity::Past),
            "the server's certificate expired at 2020-02-01T00:00:00Z",
            "renew the server's certificate",
        ),
        (
            stage.authority.server(&super::NAMES, Validity::Future),
            "the server's certificate is not valid before 2099-01-01T00:00:00Z",
            "renew the server's certificate",
        ),
        (
            stage.authority.server(&["db.example", "10.0.0.1"], Validity::Now),
            "the server's certificate is not for `127.0.0.1`, but for `db.example`, `10.0.0.1`",
            "write the host as the certificate names it",
        ),
        (
            good(&Authority::new("Stranger")),
            "the server's certificate was issued by an authority that is not trusted",
            issuer,
        ),
    ] {
        stage.restart(Some(&certificate), false);
        is_refused(&full, said, help);
    }
    let good = good(&stage.authority);
    stage.restart(Some(&good), true);
    is_refused(
        &full,
        "the server speaks TLS 1.1 or older only; at least TLS 1.2 is asked for",
        "let the server speak TLS 1.2",
    );
    stage.restart(None, false);
    is_refused(&full, "does not encrypt, and `sslmode` demands it", "switch `ssl` on at the server");
    commands_work(&stage.url("postgres", "sslmode=prefer"));
}

#[test]
fn a_url_that_would_prove_less_than_it_seems_to_is_78() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.crt");
    for (parameters, said) in [
        (format!("sslmode=verify-full&sslrootcert={}", none.display()), "cannot be read: No such file"),
        ("sslmode=verify-ca".to_owned(), "needs `sslrootcert`"),
        ("sslrootcert=ca.crt".to_owned(), "is not looked at without a stricter `sslmode`"),
        ("sslmode=on".to_owned(), "has an `sslmode` that is not known"),
    ] {
        for command in COMMANDS {
            let ended = command_on(&format!("postgres://u:s3cret@127.0.0.1:1/x?{parameters}"), command);
            cli::assert_ended(&ended, 78);
            assert!(ended.stderr.contains(said) && ended.stderr.contains("help: "), "{}", ended.stderr);
            assert!(!ended.stderr.contains("s3cret"), "{}", ended.stderr);
        }
    }
}
