//! Servers that take no writes: a relay that starts is refused, one that runs says so, delivers nothing, and goes on when
//! the server is promoted or the address leads to the primary again.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::network::Stretch;
use outbox_tests::process::{Process, relay_path};
use outbox_tests::receiver::{Answer, Receiver};
use outbox_tests::server::Server;

use super::{LIMIT, bodies, configuration, enqueue, named, start, until_arrived};

/// Long enough for a relay that would deliver to have done so.
const A_WHILE: Duration = Duration::from_secs(2);

/// Starting there is refused, by `run` and by `check --connect`, in these words.
fn is_refused(configuration: &str, url: &str, words: &[&str]) {
    let ended = start(configuration, url).wait(LIMIT);
    assert_eq!(ended.status.code(), Some(69), "{}", ended.stderr);
    let check = Process::start_relay(configuration, &["--database-url", url, "check", "--connect"]).wait(LIMIT);
    assert_eq!(check.status.code(), Some(2), "{}{}", check.stdout, check.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "`{word}` in:\n{}", ended.stderr);
        assert!(check.stdout.contains(word), "`{word}` in:\n{}", check.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_waits_out_a_standby_and_goes_on_when_it_is_promoted() {
    let mut primary = Server::start(Kind::Postgres);
    let database = TestDatabase::on(&primary);
    let receiver = Receiver::always(Answer::status(200)).await;
    let configuration = configuration(&receiver, "2s");
    let standby = primary.standby();
    let there = database.at(&database.url().replace(&primary.address().to_string(), &standby.address().to_string()));
    is_refused(&configuration, there.url(), &["takes no writes", "standby", "primary"]);

    let stretch = Stretch::to(primary.address());
    let relay = start(&configuration, &stretch.url(database.url()));
    relay.wait_for_line("relay started", LIMIT);
    enqueue(&database, named("before", 0..20));
    until_arrived(&receiver, &named("before", 0..20)).await;

    // The address leads to the standby, whose rows are as real as the primary's.
    stretch.lead_to(standby.address());
    relay.wait_for_line("takes no writes", LIMIT);
    enqueue(&database, named("meanwhile", 0..20));
    let copied = "SELECT count(*) FROM outbox_messages WHERE payload LIKE 'meanwhile%'";
    let deadline = std::time::Instant::now() + LIMIT;
    while there.query_i64(copied) < 20 {
        assert!(std::time::Instant::now() < deadline, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(receiver.requests().len(), 20, "nothing is delivered from a standby");

    stretch.lead_to(primary.address());
    until_arrived(&receiver, &named("meanwhile", 0..20)).await;
    enqueue(&database, named("again", 0..20));
    until_arrived(&receiver, &named("again", 0..20)).await;

    // What is committed now reaches the standby before the primary is gone.
    enqueue(&database, named("last", 0..20));
    until_arrived(&receiver, &named("last", 0..20)).await;
    primary.stop();
    stretch.lead_to(standby.address());
    tokio::time::sleep(Duration::from_millis(500)).await;
    standby.promote();
    let deadline = std::time::Instant::now() + LIMIT;
    while there.query_i64("SELECT pg_is_in_recovery()::int") == 1 {
        assert!(std::time::Instant::now() < deadline, "the standby is not promoted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    enqueue(&there, named("promoted", 0..20));
    until_arrived(&receiver, &named("promoted", 0..20)).await;
    let ended = relay.terminate(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(there.query_i64("SELECT count(*) FROM outbox_messages"), 0);
    let arrived = bodies(&receiver.requests());
    assert!(arrived.len() <= 120, "{} arrived, which is more than what a failover repeats", arrived.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_waits_out_a_server_that_was_made_read_only() {
    let server = Server::start(Kind::Mariadb);
    let database = TestDatabase::on(&server);
    let receiver = Receiver::always(Answer::status(200)).await;
    let configuration = configuration(&receiver, "2s");
    let relay = start(&configuration, database.url());
    relay.wait_for_line("relay started", LIMIT);
    enqueue(&database, named("before", 0..20));
    until_arrived(&receiver, &named("before", 0..20)).await;

    // The user of these tests may write all the same, so the messages are there to be delivered.
    database.exec("SET GLOBAL read_only = 1");
    relay.wait_for_line("takes no writes", LIMIT);
    enqueue(&database, named("meanwhile", 0..20));
    is_refused(&configuration, database.url(), &["takes no writes", "read-only", "primary"]);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(receiver.requests().len(), 20, "nothing is delivered that could not be settled");

    database.exec("SET GLOBAL read_only = 0");
    until_arrived(&receiver, &named("meanwhile", 0..20)).await;
    let ended = relay.terminate(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(bodies(&receiver.requests()).len(), 40, "nothing came twice");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_messages"), 0);
}

/// Root may write to any file, so where this runs as root the relay runs as somebody else, who has to reach the program.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_is_refused() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let receiver = Receiver::always(Answer::status(200)).await;
    let folder = database.path().parent().unwrap().to_path_buf();
    let (file, program) = (folder.join("relay.toml"), folder.join("relay"));
    std::fs::write(&file, configuration(&receiver, "2s")).unwrap();
    std::fs::copy(relay_path(), &program).unwrap();
    let allow = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(&file, 0o444);
    allow(database.path(), 0o444);
    allow(&folder, 0o555);
    for (command, status) in [(&["run"][..], 69), (&["check", "--connect"], 2)] {
        let mut relay = Command::new(&program);
        relay.arg("-c").arg(&file).args(["--database-url", database.url()]).args(command).current_dir("/");
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            relay.uid(65534).gid(65534);
        }
        let ended = Process::run(relay, LIMIT);
        let said = ended.stdout + &ended.stderr;
        assert!(said.contains("cannot be written") && said.contains("help: let the relay's user write"), "{said}");
        assert_eq!(ended.status.code(), Some(status), "{said}");
    }
    allow(&folder, 0o755);
}
