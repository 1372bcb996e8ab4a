//! The producers in other languages, and what a relay makes of what they wrote.

use std::path::Path;
use std::process::Command;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::process::{Process, relay_path};
use outbox_tests::receiver::{Answer, Receiver, Request};
use serde_json::{Value, json};

use super::{LIMIT, daemon, file, folder, python};

/// Runs one of the scripts through the client its first line names.
fn run_sql(database: &TestDatabase) {
    let command = match database.kind() {
        Kind::Postgres => {
            let mut psql = Command::new("psql");
            psql.arg(database.url()).arg("-X").arg("-f").arg(folder("producers/postgres.sql"));
            psql
        }
        Kind::Mariadb => {
            let rest = database.url().strip_prefix("mysql://").unwrap();
            let (login, place) = rest.rsplit_once('@').unwrap();
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let (host, port) = place.split('/').next().unwrap().split_once(':').unwrap();
            let mut shell = Command::new("sh");
            shell.args(["-c", "script=$1; shift; exec mariadb \"$@\" < \"$script\"", "sh"]);
            shell.arg(folder("producers/mariadb.sql")).args(["--no-defaults", "--protocol=tcp", "-h", host]);
            shell.args(["-P", port, "-u", user, database.name()]).env("MYSQL_PWD", password);
            shell
        }
        Kind::Sqlite => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "exec sqlite3 -bail \"$1\" < \"$2\"", "sh"]);
            shell.arg(database.path()).arg(folder("producers/sqlite.sql"));
            shell
        }
    };
    let ended = Process::run(command, LIMIT);
    assert!(ended.status.success(), "{ended:?}");
}

/// Lets the daemon deliver what is due, with the configuration that lies beside the producers.
async fn delivered(database: &TestDatabase) -> Vec<Request> {
    let receiver = Receiver::always(Answer::status(204)).await;
    let configuration = file("producers/relay.toml");
    assert!(configuration.contains("127.0.0.1:4000"));
    let place = tempfile::tempdir().unwrap();
    let configuration = configuration.replace("127.0.0.1:4000", &receiver.address().to_string());
    std::fs::write(place.path().join("relay.toml"), configuration).unwrap();
    let command = daemon(place.path(), &["run", "--drain"], &[("DATABASE_URL", database.url())]);
    let ended = tokio::task::spawn_blocking(|| Process::run(command, LIMIT)).await.unwrap();
    assert!(matches!(ended.status.code(), Some(0 | 2)), "{ended:?}");
    receiver.requests()
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

async fn plain_sql(database: TestDatabase) {
    run_sql(&database);
    let requests = delivered(&database).await;
    let [first, rest @ ..] = requests.as_slice() else { panic!("nothing was delivered") };
    assert_eq!((first.header("ce-type"), first.header("ce-partitionkey")), (Some("order.placed"), Some("ada")));
    assert_eq!(body(first), json!({"order_id": 1, "customer": "ada", "total_cents": 4200}));
    if database.kind() == Kind::Postgres {
        let [paid] = rest else { panic!("{rest:?}") };
        assert_eq!((paid.header("ce-type"), paid.header("ce-partitionkey")), (Some("order.paid"), Some("ada")));
        assert_eq!(body(paid), json!({"customer": "ada", "total_cents": 1500}));
        assert_eq!(database.query_i64("SELECT count(*) FROM outbox_deliveries"), 0);
        assert_eq!(database.query_i64("SELECT count(*) FROM orders"), 2);
    } else {
        assert_eq!(rest.len(), 0, "{rest:?}");
        // Not before an hour has passed, and not much later: the clocks agree about the zone.
        let due = match database.kind() {
            Kind::Mariadb => "SELECT timestampdiff(MINUTE, utc_timestamp(6), deliver_at) FROM outbox_deliveries",
            _ => "SELECT (deliver_at - strftime('%s', 'now') * 1000) / 60000 FROM outbox_deliveries",
        };
        let minutes = database.query_i64(due);
        assert!((55..=60).contains(&minutes), "{minutes}");
        assert_eq!(
            database.query_text("SELECT headers FROM outbox_deliveries"),
            [Some("{\"x-tenant\": \"shop\"}".to_owned())]
        );
        assert_eq!(database.query_i64("SELECT count(*) FROM orders"), 1);
    }
    // It can be run again, as a producer is.
    run_sql(&database);
}
for_each_database!(plain_sql_commits_both_or_neither, plain_sql);

async fn python_script(database: TestDatabase) {
    let module = if database.kind() == Kind::Postgres { "psycopg2" } else { "sqlite3" };
    let place_order = |cents: &str| {
        let mut script = python(module);
        script.arg(folder("producers/place_order.py")).args([database.url(), "grace", cents]);
        Process::run(script, LIMIT)
    };
    for order in 1..=2 {
        let ended = place_order("4200");
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(ended.stdout, format!("order {order} is placed\n"));
    }
    // The table refuses an order of nothing; then there is no message either.
    let refused = place_order("0");
    assert!(!refused.status.success(), "{refused:?}");
    // And an order without a message there is not: here the message is refused.
    database.exec("ALTER TABLE outbox_messages RENAME TO elsewhere");
    assert!(!place_order("4200").status.success());
    database.exec("ALTER TABLE elsewhere RENAME TO outbox_messages");
    assert_eq!(database.query_i64("SELECT count(*) FROM orders"), 2);

    let requests = delivered(&database).await;
    let bodies: Vec<Value> = requests.iter().map(body).collect();
    let order = |id: i64| json!({"order_id": id, "customer": "grace", "total_cents": 4200});
    assert_eq!(bodies, [order(1), order(2)]);
    assert_eq!(requests[0].header("ce-partitionkey"), Some("grace"));
    assert_eq!(requests[0].header("content-type"), Some("application/json"));
}
for_each_database!(python_commits_both_or_neither, python_script, [postgres, sqlite]);

#[test]
fn its_page_is_true() {
    let place = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder("producers")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, place.path().join(path.file_name().unwrap())).unwrap();
    }
    let readme = file("producers/README.md");
    let block = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(block.contains("relay migrate up") && block.contains("python3 place_order.py"), "{block}");
    let mut shell = Command::new("bash");
    let path = format!("{}:{}", relay_path().parent().unwrap().display(), std::env::var("PATH").unwrap());
    shell.args(["-euc", block]).current_dir(place.path()).env("PATH", path).env("NO_COLOR", "1");
    let ended = Process::run(shell, LIMIT);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout.matches("order.placed").count(), 2, "{}", ended.stdout);
    assert_eq!(ended.stdout.matches("order.reminder").count(), 1, "{}", ended.stdout);
    for entry in std::fs::read_dir(folder("producers")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(matches!(name.as_str(), "README.md" | "relay.toml") || readme.contains(&format!("`{name}`")), "{name}");
    }
    assert!(Path::new(&place.path().join("shop.db")).is_file());
}
