//! The figures, and the databases a relay refuses to work on.

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use relay::store::{DestinationSpec, DueIn, Reason, State, StoreError, Waits};
use relay::store::{StoreOptions, open::open};

use super::fixture::{Draft, Outbox, after_noon, dies, moved, noon, secs, store_on, unit, waits};

async fn an_empty_outbox_has_nothing_to_report(database: TestDatabase) {
    let store = store_on(database.url()).await;
    let status = store.status(None).await.unwrap();
    assert_eq!((status.pending, status.oldest_pending, status.schema_version), (0, None, 1));
    assert!(status.waiting.is_empty() && status.dead.is_empty() && status.oldest_due.is_empty());
    assert!(status.membership.relays.is_empty() && status.routing.destinations.is_empty());
    assert_eq!(status.membership.partitions.len(), 32);
}
for_each_database!(an_empty_outbox_has_nothing_to_report);

async fn the_figures_are_counted(database: TestDatabase) {
    let outbox = Outbox::new(database).await;
    let spec = DestinationSpec { name: "mail".into(), patterns: vec!["**".into()], ordering: "key".into() };
    outbox.store.destination_register(&[spec]).await.unwrap();
    for (key, destination) in [("a", "mail"), ("a", "mail"), ("b", "mail"), ("b", "sms")] {
        let message = outbox.keyed(key).await;
        let later = Waits { due: DueIn::Pause(secs(60)), ..waits(State::Retry) };
        outbox.settle_all(vec![moved(&message, vec![unit(destination, later)])], vec![]).await;
    }
    let message = outbox.keyed("c").await;
    let units = vec![
        unit("mail", dies(Reason::Rejected)),
        unit("sms", dies(Reason::Gone)),
        unit("", Waits { due: DueIn::Pause(secs(600)), ..waits(State::Unrouted) }),
    ];
    outbox.settle_all(vec![moved(&message, units)], vec![]).await;
    let message = outbox.keyed("d").await;
    outbox.settle_all(vec![moved(&message, vec![unit("mail", dies(Reason::Rejected))])], vec![]).await;
    for age in [5, 30, 10] {
        outbox.insert(&Draft { created_at: Some(after_noon(-age)), ..Draft::default() });
    }

    let status = outbox.store.status(Some(noon())).await.unwrap();
    assert_eq!((status.pending, status.oldest_pending), (3, Some(secs(30))));
    let text = |rows: &[(String, String, i64)]| {
        rows.iter().map(|(place, label, count)| format!("{place} {label} {count}")).collect::<Vec<_>>()
    };
    assert_eq!(text(&status.waiting), [" unrouted 1", "mail retry 3", "sms retry 1"]);
    assert_eq!(text(&status.dead), ["mail rejected 2", "sms gone 1"]);
    assert_eq!(status.oldest_due, [], "nothing is due at noon");
    assert_eq!(status.membership.relays.len(), 1);
    assert!(status.membership.partitions.iter().all(|(_, owner, _)| *owner == Some(outbox.relay)));
    assert_eq!(status.routing.destinations.len(), 1);

    let status = outbox.store.status(Some(after_noon(90))).await.unwrap();
    assert_eq!(status.oldest_due, [("mail".to_owned(), secs(30)), ("sms".to_owned(), secs(30))]);
}
for_each_database!(the_figures_are_counted);

/// What a person would read.
fn refusal(result: Result<(), StoreError>) -> String {
    match result.expect_err("the database was accepted") {
        error @ StoreError::Unsuitable { .. } => error.to_string(),
        error => panic!("another refusal: {error:?}"),
    }
}

async fn a_database_without_or_with_another_schema_is_refused(database: TestDatabase) {
    let store = store_on(database.url()).await;
    store.verify().await.unwrap();
    database.exec("UPDATE outbox_meta SET schema_version = 99");
    let said = refusal(store.verify().await);
    assert!(said.contains("99") && said.contains("newer relay"), "{said}");
    database.exec("UPDATE outbox_meta SET schema_version = 0");
    let said = refusal(store.verify().await);
    assert!(said.contains("schema version 0") && said.contains("`relay migrate up`"), "{said}");

    let empty = TestDatabase::create(database.kind());
    if empty.kind() == Kind::Sqlite {
        empty.exec("CREATE TABLE something_else (n int)");
    }
    let store = store_on(empty.url()).await;
    let said = refusal(store.verify().await);
    assert!(said.contains("outbox") && said.contains("`relay migrate up`"), "{said}");
    empty.apply_schema();
    store.verify().await.unwrap();
}
for_each_database!(a_database_without_or_with_another_schema_is_refused);

async fn a_server_that_does_not_answer_is_unreachable(database: TestDatabase) {
    let url = match database.kind() {
        Kind::Postgres => "postgres://me:hunter2@127.0.0.1:1/shop",
        _ => "mysql://me:hunter2@127.0.0.1:1/shop",
    };
    let error = store_on(url).await.verify().await.expect_err("nobody listens there");
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    let said = format!("{error} {error:?}");
    assert!(error.to_string().contains("127.0.0.1:1/shop"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
for_each_database!(
    a_server_that_does_not_answer_is_unreachable_and_its_password_is_not_shown,
    a_server_that_does_not_answer_is_unreachable,
    [postgres, mariadb]
);

#[tokio::test]
async fn an_address_of_an_unknown_kind_is_refused() {
    for url in ["", "oracle://hunter2@x", "/tmp/outbox.db", "postgres://me:hunter2@[::1"] {
        let Err(error) = open(url, &StoreOptions::default()).await else { panic!("`{url}` was accepted") };
        let said = error.to_string();
        assert!(matches!(error, StoreError::Unsuitable { .. }) && said.contains("help: "), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
