//! The order service: its page, repeated requests, copies of messages, and how it ends.

use std::path::Path;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::Signal;

use super::{LIMIT, Service, dependencies, file, http, lines, wait_until};

const JSON: (&str, &str) = ("content-type", "application/json");

fn start(database: &TestDatabase) -> Service {
    Service::start("orders", Path::new("."), &[("DATABASE_URL", database.url())])
}

/// Waits until the order has this status.
fn becomes(service: &Service, location: &str, status: &str) {
    wait_until(status, || service.get(location).body, |body| body.contains(&format!("\"status\":\"{status}\"")));
}

fn order(service: &Service, key: &str, body: &str) -> http::Answer {
    service.post("/orders", &[("idempotency-key", key), JSON], body.as_bytes())
}

#[test]
fn its_page_is_true() {
    let database = TestDatabase::create(Kind::Postgres);
    let service = start(&database);
    let commands = lines(&file("orders/README.md"), "curl");
    let [place, ask] = commands.try_into().unwrap();

    let placed = service.curl(&place);
    assert_eq!(placed.status, 202, "{placed:?}");
    let location = placed.header("location").unwrap().to_owned();
    let id = placed.json()["id"].as_str().unwrap().to_owned();
    becomes(&service, &location, "reserved");
    let asked = service.curl(&ask.replace("ID", &id));
    assert_eq!((asked.status, asked.json()["status"].as_str()), (200, Some("reserved")), "{asked:?}");

    let again = service.curl(&place);
    assert_eq!((again.status, again.json()["id"].as_str()), (202, Some(id.as_str())), "{again:?}");
    let other = service.curl(&place.replace("\"quantity\": 2", "\"quantity\": 3"));
    assert_eq!(other.status, 422, "{other:?}");
    assert!(other.body.contains("used for another order"), "{other:?}");
    let without = service.curl(&place.replace("-H 'idempotency-key: 1' ", ""));
    assert_eq!(without.status, 422, "{without:?}");
    assert!(without.body.contains("Idempotency-Key"), "{without:?}");

    let sold_out = order(&service, "2", r#"{"customer": "ada", "item": "samovar", "quantity": 2}"#);
    becomes(&service, sold_out.header("location").unwrap(), "sold out");
    service.process.wait_for_line(&format!("confirmation sent order.id={id}"), LIMIT);
    wait_until("delivered", || database.query_i64("SELECT count(*) FROM outbox_messages"), |left| *left == 0);
    assert_eq!(database.query_i64("SELECT count(*) FROM orders"), 2);
    assert_eq!(database.query_i64("SELECT available FROM stock WHERE item = 'teapot'"), 98);
    service.stop();
}

#[test]
fn what_cannot_be_an_order_leaves_nothing_behind() {
    let database = TestDatabase::create(Kind::Postgres);
    let service = start(&database);
    for (key, body, status) in [
        ("1", r#"{"customer": "ada", "item": "teapot", "quantity": 0}"#, 422),
        ("1", r#"{"customer": "ada", "item": "teapot"}"#, 422),
        ("1", "{", 400),
        ("", r#"{"customer": "ada", "item": "teapot", "quantity": 1}"#, 422),
        (&"k".repeat(300), r#"{"customer": "ada", "item": "teapot", "quantity": 1}"#, 422),
    ] {
        let answer = order(&service, key, body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
    assert_eq!(service.get("/orders/00000000-0000-0000-0000-000000000000").status, 404);
    assert_eq!(service.get("/orders/x").status, 400);
    let count = |table: &str| database.query_i64(&format!("SELECT count(*) FROM {table}"));
    assert_eq!((count("orders"), count("outbox_messages"), count("outbox_dedup_keys")), (0, 0, 0));
    service.stop();
}

#[test]
fn requests_repeated_at_the_same_time_make_one_order_and_customers_do_not_share_keys() {
    let database = TestDatabase::create(Kind::Postgres);
    let service = start(&database);
    let body = r#"{"customer": "ada", "item": "teapot", "quantity": 1}"#;
    let mut ids: Vec<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| order(&service, "7", body))).collect();
        asking.into_iter().map(|answer| answer.join().unwrap().json()["id"].to_string()).collect()
    });
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(order(&service, "7", &body.replace("ada", "grace")).status, 202);
    // Nor can a customer's name be chosen so that another's key is hit.
    assert_eq!(order(&service, "7/x", body).status, 202);
    assert_eq!(order(&service, "x", &body.replace("ada", "ada/7")).status, 202);
    assert_eq!(database.query_i64("SELECT count(*) FROM orders"), 4);
    service.stop();
}

#[test]
fn copy_of_a_message_takes_nothing_out_of_stock() {
    let database = TestDatabase::create(Kind::Postgres);
    let service = start(&database);
    let placed = order(&service, "1", r#"{"customer": "ada", "item": "teapot", "quantity": 5}"#);
    becomes(&service, placed.header("location").unwrap(), "reserved");
    // As after a crash between the effect and its being written down: the message comes again, under its id.
    database.exec(
        "INSERT INTO outbox_messages (id, topic, ordering_key, payload)
         SELECT message_id, 'order.placed', customer, json_build_object('order_id', id, 'customer', customer,
             'item', item, 'quantity', quantity) FROM orders",
    );
    service.process.wait_for_line("already done", LIMIT);
    assert_eq!(database.query_i64("SELECT available FROM stock WHERE item = 'teapot'"), 95);
    service.stop();
}

#[test]
fn it_ends_with_its_requests_first_and_the_relay_after_them() {
    let database = TestDatabase::create(Kind::Postgres);
    let service = start(&database);
    let body = r#"{"customer": "ada", "item": "teapot", "quantity": 1}"#;
    let headers = [("idempotency-key", "1"), JSON];
    let begun = http::begin(&service.address, "POST", "/orders", &headers, body.len());
    service.process.signal(Signal::Term);
    service.process.wait_for_line("no new requests are taken", LIMIT);

    // The relay still delivers while a request is under way, here what another producer enqueued.
    let unknown = "00000000-0000-0000-0000-000000000000";
    let payload = format!(r#"{{"order_id": "{unknown}", "customer": "x", "item": "y", "quantity": 1}}"#);
    database.exec(&format!("INSERT INTO outbox_messages (topic, payload) VALUES ('order.placed', '{payload}')"));
    service.process.wait_for_line(&format!("confirmation sent order.id={unknown}"), LIMIT);

    assert_eq!(http::end(begun, body.as_bytes()).status, 202);
    let ended = service.process.wait(LIMIT);
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.contains("ended in order"), "{ended:?}");
    assert_eq!(database.query_i64("SELECT count(*) FROM outbox_partitions WHERE owner IS NOT NULL"), 0);

    // What it did not get to waits for the next start.
    let service = start(&database);
    wait_until(
        "reserved",
        || database.query_text("SELECT status FROM orders"),
        |all| *all == [Some("reserved".to_owned())],
    );
    service.stop();
}

#[test]
fn it_is_built_without_a_client_library_of_a_server() {
    let tree = dependencies(&["-p", "orders"]);
    assert!(tree.contains("tokio-postgres v"), "{tree}");
    for library in ["pq-sys v", "mysqlclient-sys v", "openssl-sys v"] {
        assert!(!tree.contains(library), "{library} in {tree}");
    }
}
