//! What messages can be routed to, and what is held or paused.

use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::store::{DestinationSeen, DestinationSpec, Store};

use super::fixture::{after_noon, noon, secs, store_on};

fn spec(name: &str, patterns: &[&str], ordering: &str) -> DestinationSpec {
    DestinationSpec {
        name: name.into(),
        patterns: patterns.iter().map(|pattern| (*pattern).into()).collect(),
        ordering: ordering.into(),
    }
}

async fn version(store: &dyn Store) -> i64 {
    store.destination_read(None).await.unwrap().version
}

async fn seen(store: &dyn Store, name: &str, seconds: i64) -> DestinationSeen {
    let routing = store.destination_read(Some(after_noon(seconds))).await.unwrap();
    routing.destinations.into_iter().find(|seen| seen.spec.name == name).unwrap()
}

async fn the_routes_version_rises_only_with_a_change(database: TestDatabase) {
    let store = store_on(database.url()).await;
    assert_eq!(version(&*store).await, 0);
    let both = [spec("mail", &["order.*", "a\"b"], "key"), spec("billing", &["**"], "none")];
    store.destination_register(&both).await.unwrap();
    assert_eq!(version(&*store).await, 1);
    store.destination_register(&both).await.unwrap();
    store.destination_register(&both[1..]).await.unwrap();
    store.destination_register(&[]).await.unwrap();
    assert_eq!(version(&*store).await, 1, "nothing changed");
    let routing = store.destination_read(None).await.unwrap();
    let specs: Vec<_> = routing.destinations.iter().map(|seen| seen.spec.clone()).collect();
    assert_eq!(specs, [both[1].clone(), both[0].clone()], "by name");
    assert!(routing.destinations.iter().all(|seen| !seen.paused && seen.held_for.is_none()));

    for (change, expected) in [
        (spec("mail", &["order.*"], "key"), 2),
        (spec("mail", &["order.*"], "none"), 3),
        (spec("sms", &["order.*"], "key"), 4),
        (spec("Sms", &["order.*"], "key"), 5),
    ] {
        store.destination_register(&[change]).await.unwrap();
        assert_eq!(version(&*store).await, expected);
    }
    assert_eq!(store.destination_read(None).await.unwrap().destinations.len(), 4);
}
for_each_database!(the_routes_version_rises_only_with_a_change);

async fn relays_that_register_at_once_lose_no_change(database: TestDatabase) {
    let mut tasks = Vec::new();
    for n in 0..6 {
        let store = store_on(database.url()).await;
        tasks.push(tokio::spawn(async move {
            let mine = [spec("all", &["**"], "key"), spec(&format!("d{n}"), &["**"], "key")];
            loop {
                match store.destination_register(&mine).await {
                    Ok(()) => break,
                    Err(relay::store::StoreError::TryAgain { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let store = store_on(database.url()).await;
    let routing = store.destination_read(None).await.unwrap();
    assert_eq!((routing.version, routing.destinations.len()), (6, 7));
}
for_each_database!(relays_that_register_at_once_lose_no_change);

async fn a_hold_is_never_shortened(database: TestDatabase) {
    let store = store_on(database.url()).await;
    store.destination_register(&[spec("mail", &[], "key"), spec("sms", &[], "key")]).await.unwrap();
    let hold = async |seconds| store.destination_hold("mail", secs(seconds), Some(noon())).await.unwrap();
    hold(60).await;
    assert_eq!(seen(&*store, "mail", 0).await.held_for, Some(secs(60)));
    hold(10).await;
    assert_eq!(seen(&*store, "mail", 0).await.held_for, Some(secs(60)));
    hold(90).await;
    assert_eq!(seen(&*store, "mail", 30).await.held_for, Some(secs(60)));
    assert_eq!(seen(&*store, "mail", 90).await.held_for, None, "it is over by itself");
    assert_eq!(seen(&*store, "sms", 0).await.held_for, None);
    store.destination_hold("unknown", secs(1), None).await.unwrap();
    store.destination_hold("sms", std::time::Duration::MAX, None).await.unwrap();
    assert!(seen(&*store, "sms", 0).await.held_for.is_some());
    store.destination_register(&[spec("mail", &["x"], "key")]).await.unwrap();
    assert_eq!(seen(&*store, "mail", 30).await.held_for, Some(secs(60)), "registering changes no hold");
}
for_each_database!(a_hold_is_never_shortened);

async fn a_pause_lasts_and_names_who_paused_first(database: TestDatabase) {
    let store = store_on(database.url()).await;
    store.destination_register(&[spec("mail", &[], "key"), spec("sms", &[], "key")]).await.unwrap();
    let before = version(&*store).await;
    store.destination_pause("mail", "relay shop-1", "410 'Gone'", Some(noon())).await.unwrap();
    store.destination_pause("mail", "somebody else", "later", Some(after_noon(5))).await.unwrap();
    assert!(seen(&*store, "mail", 999_999).await.paused);
    assert!(!seen(&*store, "sms", 0).await.paused);
    let said = database.query_text(
        "SELECT concat_ws('|', name, paused_by, pause_reason) FROM outbox_destinations \
                                    WHERE paused_at IS NOT NULL",
    );
    assert_eq!(said, [Some("mail|relay shop-1|410 'Gone'".to_owned())]);
    store.destination_register(&[spec("mail", &[], "key")]).await.unwrap();
    assert!(seen(&*store, "mail", 0).await.paused, "registering resumes nothing");
    assert_eq!(version(&*store).await, before);
}
for_each_database!(a_pause_lasts_and_names_who_paused_first);
