//! What the command line says when it cannot work on the database: a url nobody can read, a server that refuses, a role
//! that may not do what a relay does.

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;

use crate::cli::{DESTINATION, assert_ended, json, with};

#[test]
fn a_database_url_that_no_driver_can_read_is_78() {
    for (url, said) in [
        ("postgres://shop:s3cret@127.0.0.1:port/shop", "cannot be understood"),
        ("mysql://shop:s3cret@127.0.0.1:99999/shop", "cannot be read"),
        ("mysql://shop:s3cret@127.0.0.1:3306", "names no database"),
        ("sqlite::memory:", "no file that the relay and the application could share"),
        ("redis://shop:s3cret@127.0.0.1/shop", "names no database this relay knows"),
    ] {
        for command in [vec!["status"], vec!["dead", "list"], vec!["migrate", "up"], vec!["run"], vec!["send", "a"]] {
            let mut arguments = vec!["--database-url", url];
            arguments.extend(&command);
            let ended = with(DESTINATION, &arguments);
            assert_ended(&ended, 78);
            assert_eq!(ended.stdout, "");
            assert!(ended.stderr.contains(said) && ended.stderr.contains("help: "), "{command:?}: {}", ended.stderr);
            assert!(!ended.stderr.contains("s3cret"), "{command:?}: {}", ended.stderr);
        }
        let ended = with(DESTINATION, &["--database-url", url, "check"]);
        assert_ended(&ended, 2);
        assert!(ended.stdout.contains(said) && !ended.stdout.contains("s3cret"), "{}", ended.stdout);
    }
}

/// A server that answers, and does not let this role into this database.
fn is_turned_away(url: &str, said: &str, help: &str) {
    for command in [vec!["status"], vec!["migrate", "status"], vec!["run"]] {
        let mut arguments = vec!["--database-url", url];
        arguments.extend(&command);
        let ended = with(DESTINATION, &arguments);
        assert_ended(&ended, 69);
        assert!(ended.stderr.contains("relay: the server refuses `"), "{command:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said) && ended.stderr.contains(help), "{command:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("cannot be reached") && !ended.stderr.contains("s3cret"), "{}", ended.stderr);
    }
}

/// The server's url with another name in it.
fn elsewhere(kind: Kind, user: &str, database: &str) -> String {
    let mut url = url::Url::parse(&kind.server_url()).unwrap();
    if !user.is_empty() {
        url.set_username(user).unwrap();
        url.set_password(Some("s3cret")).unwrap();
    }
    url.set_path(database);
    url.to_string()
}

#[test]
fn a_server_that_has_no_such_database_or_role_is_not_called_unreachable() {
    let postgres = |user: &str, database: &str| elsewhere(Kind::Postgres, user, database);
    is_turned_away(&postgres("", "no_such_shop"), "database \"no_such_shop\" does not exist", "create the database");
    // The rest of the sentence depends on whether the server asks for passwords.
    is_turned_away(&postgres("nobody_here", "postgres"), "\"nobody_here\"", "check role and password");
    let mariadb = |user: &str, database: &str| elsewhere(Kind::Mariadb, user, database);
    is_turned_away(&mariadb("", "no_such_shop"), "Unknown database 'no_such_shop'", "create the database");
    is_turned_away(&mariadb("nobody_here", "mysql"), "Access denied for user 'nobody_here'", "check user and password");
}

/// Everything in the tables that a probe could have touched.
fn rows(database: &TestDatabase) -> Vec<i64> {
    ["messages", "deliveries", "dead_letters", "partitions", "relays", "destinations", "audit", "meta"]
        .map(|table| database.query_i64(&format!("SELECT count(*) FROM outbox_{table}")))
        .to_vec()
}

async fn check_says_which_right_is_missing_and_leaves_nothing_behind(database: TestDatabase) {
    let name = format!("reader_{:08x}", rand::random::<u32>());
    let before = rows(&database);
    let url = match database.kind() {
        Kind::Postgres => {
            database.exec(&format!("CREATE ROLE {name} LOGIN PASSWORD 's3cret'"));
            database.exec(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}"));
            database.exec(&format!(
                "REVOKE INSERT ON outbox_audit FROM {name}; REVOKE UPDATE, DELETE ON outbox_deliveries FROM {name}"
            ));
            let mut url = url::Url::parse(database.url()).unwrap();
            url.set_username(&name).unwrap();
            url.set_password(Some("s3cret")).unwrap();
            url.to_string()
        }
        _ => {
            database.exec(&format!("CREATE USER '{name}'@'%' IDENTIFIED BY 's3cret'"));
            database.exec(&format!("CREATE USER '{name}'@'localhost' IDENTIFIED BY 's3cret'"));
            for (table, rights) in [
                ("messages", "SELECT, DELETE"),
                ("deliveries", "SELECT, INSERT"),
                ("dead_letters", "SELECT, INSERT, UPDATE, DELETE"),
                ("partitions", "SELECT, UPDATE"),
                ("relays", "SELECT, INSERT, UPDATE, DELETE"),
                ("destinations", "SELECT, INSERT, UPDATE"),
                ("audit", "SELECT"),
                ("meta", "SELECT, UPDATE"),
            ] {
                database.exec(&format!("GRANT {rights} ON outbox_{table} TO '{name}'@'%', '{name}'@'localhost'"));
            }
            let mut url = url::Url::parse(database.url()).unwrap();
            url.set_username(&name).unwrap();
            url.set_password(Some("s3cret")).unwrap();
            url.to_string()
        }
    };
    let ended = with(DESTINATION, &["--database-url", &url, "check", "--connect", "-o", "json"]);
    let right = with(DESTINATION, &["--database-url", database.url(), "check", "--connect"]);
    let after = rows(&database);
    database.exec(&match database.kind() {
        Kind::Postgres => format!("DROP OWNED BY {name}; DROP ROLE {name}"),
        _ => format!("DROP USER '{name}'@'%', '{name}'@'localhost'"),
    });
    assert_ended(&ended, 2);
    let problems = json(&ended)["problems"].clone();
    let start = |n: usize| problems[n]["message"].as_str().unwrap().split(':').next().unwrap().to_owned();
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");
    assert_eq!(start(0), "the role may not INSERT on `outbox_audit`");
    assert_eq!(start(1), "the role may not UPDATE, DELETE on `outbox_deliveries`");
    assert_eq!(problems[0]["help"], "as the owner of the tables: GRANT INSERT ON outbox_audit TO the role");
    assert!(!ended.stdout.contains("s3cret"), "{}", ended.stdout);
    assert_ended(&right, 0);
    assert_eq!(before, after);
}
for_each_database!(
    check_says_which_right_is_missing_and_leaves_nothing_behind,
    check_says_which_right_is_missing_and_leaves_nothing_behind,
    [postgres, mariadb]
);
