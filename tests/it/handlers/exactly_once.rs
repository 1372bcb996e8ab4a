//! The effects of a transactional handler happen once, however its attempts end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel_async::AsyncConnection;
use outbox::{Envelope, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::store::StoreOptions;
use relay::{Context, Handler, HandlerResult, Http, Relay};

use super::stage::{End, Posted, SHORT, Script, create_effects, effects, posted, shared, sorted_effects, with_driver};
use crate::delivery::stage::{
    Log, Running, dead_letters, enqueue, quick, relay_on, until, until_dead, until_nothing_is_left,
};

async fn an_effect_happens_once_however_its_attempts_end(database: TestDatabase) {
    with_driver!(database.kind(), Conn => however_its_attempts_end::<Conn>(&database).await);
}
for_each_database!(an_effect_happens_once_however_its_attempts_end);

async fn however_its_attempts_end<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let ends = [
        ("error", End::Error),
        ("hang", End::Hang),
        ("panic", End::Panic),
        ("sever", End::Sever),
        ("swallow", End::Swallow),
        ("well", End::Well),
    ];
    let script = Script::new(database, move |body, attempt| {
        // Twice: the second attempt is one of a waiting row.
        if attempt > 2 { End::Well } else { ends.iter().find(|(name, _)| *name == body).unwrap().1 }
    });
    enqueue(database, ends.map(|(name, _)| posted(name)));
    let relay = Running::start(relay_on(database).destination(script.ledger::<C>().timeout(SHORT))).await;
    until_nothing_is_left(database).await;
    relay.stop().await;
    assert_eq!(sorted_effects(database), ends.map(|(name, _)| name));
    for (name, end) in ends {
        let wanted: &[u32] = if end == End::Well { &[1] } else { &[1, 2, 3] };
        assert_eq!(script.attempts(name), wanted, "{name}");
    }
}

/// An attempt that was given up must not keep its row locked, or nothing else would be settled meanwhile.
async fn a_statement_that_outlives_its_attempt_is_stopped(database: TestDatabase) {
    with_driver!(database.kind(), Conn => outlives_its_attempt::<Conn>(&database).await);
}
for_each_database!(a_statement_that_outlives_its_attempt_is_stopped);

async fn outlives_its_attempt<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let script = Script::new(database, |_, attempt| if attempt == 1 { End::SlowStatement } else { End::Well });
    enqueue(database, [posted("slow")]);
    let relay = Running::start(relay_on(database).destination(script.ledger::<C>().timeout(SHORT))).await;
    let began = Instant::now();
    until_nothing_is_left(database).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    relay.stop().await;
    assert_eq!(effects(database), ["slow"]);
}

async fn a_key_stays_in_order_through_failures(database: TestDatabase) {
    with_driver!(database.kind(), Conn => in_order::<Conn>(&database, &["posted"]).await);
}
for_each_database!(a_key_stays_in_order_through_failures);

async fn a_key_stays_in_order_when_others_get_its_messages_too(database: TestDatabase) {
    with_driver!(database.kind(), Conn => in_order::<Conn>(&database, &["posted", "shared"]).await);
}
for_each_database!(a_key_stays_in_order_when_others_get_its_messages_too);

/// Messages of three keys, of these topics in turn; now and then an attempt fails.
async fn in_order<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase, topics: &[&str]) {
    create_effects(database);
    let script = Script::new(
        database,
        |body, attempt| {
            if attempt == 1 && body.ends_with(['2', '5']) { End::Error } else { End::Well }
        },
    );
    let log = Log::default();
    let bodies: Vec<String> = (0..8).flat_map(|n| ["a", "b", "c"].map(|key| format!("{key}{n}"))).collect();
    let messages = |part: &[String]| {
        let of = |(at, body): (usize, &String)| {
            let body_json = format!("{{\"body\":\"{body}\"}}");
            Envelope::raw(topics[at / 3 % topics.len()].to_owned(), body_json).key(&body[..1])
        };
        part.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    enqueue(database, messages(&bodies[..12]));
    let builder = relay_on(database)
        .destination(script.ledger::<C>().topics(["posted", "shared"]))
        .destination(log.accepting("audit").topics(["shared"]));
    let relay = Running::start(builder).await;
    enqueue(database, messages(&bodies[12..]));
    until_nothing_is_left(database).await;
    relay.stop().await;
    for key in ["a", "b", "c"] {
        let of_key = |bodies: Vec<String>| bodies.into_iter().filter(|b| b.starts_with(key)).collect::<Vec<_>>();
        assert_eq!(of_key(effects(database)), of_key(bodies.clone()), "{key}");
    }
}

async fn a_slow_neighbour_delays_no_effect(database: TestDatabase) {
    with_driver!(database.kind(), Conn => beside_a_slow_neighbour::<Conn>(&database).await);
}
for_each_database!(a_slow_neighbour_delays_no_effect);

async fn beside_a_slow_neighbour<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let answers = Arc::new(AtomicBool::new(false));
    let answering = answers.clone();
    let receiver =
        Receiver::start(move |_| if answering.load(Ordering::SeqCst) { Answer::status(200) } else { Answer::Never })
            .await;
    let script = Script::new(database, |_, attempt| if attempt == 1 { End::Error } else { End::Well });
    let start = || {
        // Far longer than this test waits for the effects.
        let billing = Http::new("billing", receiver.url("/")).topics(["shared"]).timeout(Duration::from_secs(120));
        let builder = relay_on(database).destination(script.ledger::<C>().topics(["shared"])).destination(billing);
        Running::start(builder.shutdown_grace(SHORT))
    };
    let relay = start().await;
    let bodies = ["s1", "s2", "s3", "s4"];
    enqueue(database, bodies.map(|body| shared(body).key("k")));
    until(database, "all effects", || effects(database) == bodies).await;
    until(database, "a neighbour that does not answer", || !receiver.requests().is_empty()).await;
    relay.stop().await;
    answers.store(true, Ordering::SeqCst);
    let relay = start().await;
    until_nothing_is_left(database).await;
    relay.stop().await;
    assert_eq!(effects(database), bodies, "nothing happened again");
    for body in bodies {
        assert_eq!(script.attempts(body), [1, 2]);
    }
}

/// A handler that passes over the failure of its transaction is not believed, and whoever looks is told.
async fn ok_over_a_lost_transaction_ends_in_the_dead_letters(database: TestDatabase) {
    with_driver!(database.kind(), Conn => ok_over_a_lost_transaction::<Conn>(&database).await);
}
for_each_database!(ok_over_a_lost_transaction_ends_in_the_dead_letters);

async fn ok_over_a_lost_transaction<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let script = Script::new(database, |_, _| End::Swallow);
    enqueue(database, [posted("lost")]);
    let relay = Running::start(relay_on(database).destination(script.ledger::<C>().retry(quick(1)))).await;
    until_dead(database, &["ledger exhausted"]).await;
    relay.stop().await;
    assert_eq!(script.attempts("lost"), [1, 2]);
    assert!(effects(database).is_empty());
    let told = dead_letters(database).remove(0).letter.last_error.unwrap();
    let wanted = "not_committed: the handler returned Ok, but outbox: the transaction did not commit: ";
    assert!(told.starts_with(wanted) && told.contains("help: return the error of a failed statement"), "{told}");
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Credited {
    body: String,
}

impl outbox::Message for Credited {
    const TOPIC: &'static str = "credited";
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Noted {
    body: String,
}

impl outbox::Message for Noted {
    const TOPIC: &'static str = "noted";
}

async fn functions_with_and_without_a_transaction_share_a_name_and_the_order(database: TestDatabase) {
    with_driver!(database.kind(), Conn => under_one_name::<Conn>(Arc::new(database)).await);
}
for_each_database!(functions_with_and_without_a_transaction_share_a_name_and_the_order);

async fn under_one_name<C: AsyncConnection<Backend: OutboxBackend> + 'static>(tables: Arc<TestDatabase>) {
    let database = &*tables;
    create_effects(database);
    let script = Script::new(database, |_, attempt| if attempt == 1 { End::Error } else { End::Well });
    let (crediting, seen) = (script.clone(), Arc::new(Mutex::new(Vec::new())));
    let (noting, looking) = (seen.clone(), tables.clone());
    let ledger = script
        .ledger::<C>()
        .on_transactional(async move |credited: Credited, conn: &mut C, context: Context| {
            crediting.act(&credited.body, conn, &context).await
        })
        .on(move |noted: Noted, _: Context| {
            // What is in the ledger when a note arrives is what was enqueued before it.
            noting.lock().unwrap().push(format!("{} {}", noted.body, effects(&looking).join(",")));
            std::future::ready(HandlerResult::Ok(()))
        });
    assert_eq!(ledger.settings().topics, ["posted", "credited", "noted"]);
    let credited = |body: &str| outbox::envelope(&Credited { body: body.to_owned() });
    let noted = |body: &str| outbox::envelope(&Noted { body: body.to_owned() });
    let messages = [posted("p"), noted("n1"), credited("c"), noted("n2")];
    enqueue(database, messages.map(|message| message.key("k")));
    let relay = Running::start(relay_on(database).destination(ledger)).await;
    until_nothing_is_left(database).await;
    relay.stop().await;
    assert_eq!(*seen.lock().unwrap(), ["n1 p", "n2 p,c"]);
    assert_eq!(effects(database), ["p", "c"]);
}

async fn messages_enqueued_by_a_handler_are_enqueued_once(database: TestDatabase) {
    with_driver!(database.kind(), Conn => enqueued_by_a_handler::<Conn>(&database).await);
}
for_each_database!(messages_enqueued_by_a_handler_are_enqueued_once);

async fn enqueued_by_a_handler<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    async fn pass_on<C>(message: Posted, conn: &mut C, context: Context) -> HandlerResult
    where
        C: AsyncConnection<Backend: OutboxBackend>,
    {
        outbox::aio::enqueue(conn, Envelope::raw("mail", message.body)).await?;
        if context.attempt() == 1 { Err("not now".into()) } else { Ok(()) }
    }
    let log = Log::default();
    enqueue(database, [posted("one"), posted("two")]);
    let builder = relay_on(database)
        .transactional_handler("ledger", pass_on::<C>)
        .destination(log.accepting("mailer").topics(["mail"]));
    let relay = Running::start(builder).await;
    until_nothing_is_left(database).await;
    relay.stop().await;
    let mut mailed = log.accepted("mailer");
    mailed.sort();
    assert_eq!(mailed, ["one", "two"]);
}

/// The pauses of a hold are seconds, so the connection is refused only twice.
async fn a_handler_without_a_connection_holds_its_destination_and_counts_no_attempt(database: TestDatabase) {
    with_driver!(database.kind(), Conn => without_a_connection::<Conn>(&database).await);
}
for_each_database!(a_handler_without_a_connection_holds_its_destination_and_counts_no_attempt);

async fn without_a_connection<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let (script, refusals) = (Script::well(database), Arc::new(AtomicUsize::new(2)));
    let (acting, left, url) = (script.clone(), refusals.clone(), driver_url(database));
    let connect = move || {
        let refuse = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let url = url.clone();
        async move {
            if refuse {
                return Err(diesel::ConnectionError::BadConnection("the door is shut".to_owned()));
            }
            C::establish(&url).await
        }
    };
    let ledger =
        Handler::transactional_with("ledger", connect, async move |posted: Posted, conn: &mut C, context: Context| {
            acting.act(&posted.body, conn, &context).await
        });
    enqueue(database, [posted("one")]);
    let relay = Running::start(relay_on(database).destination(ledger.retry(quick(0)))).await;
    until(database, "the effect", || effects(database) == ["one"]).await;
    until_nothing_is_left(database).await;
    relay.stop().await;
    assert_eq!((refusals.load(Ordering::SeqCst), script.attempts("one")), (0, vec![1]));
}

pub(crate) fn driver_url(database: &TestDatabase) -> String {
    match database.kind() {
        Kind::Postgres => database.url().to_owned(),
        Kind::Mariadb => format!("{}?prefer_socket=false", database.url()),
        Kind::Sqlite => database.path().display().to_string(),
    }
}

async fn an_idle_connection_the_server_has_closed_costs_no_attempt(database: TestDatabase) {
    with_driver!(database.kind(), Conn => closed_while_idle::<Conn>(&database).await);
}
for_each_database!(
    an_idle_connection_the_server_has_closed_costs_no_attempt,
    an_idle_connection_the_server_has_closed_costs_no_attempt,
    [postgres, mariadb]
);

async fn closed_while_idle<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let (own_id, kill) = match database.kind() {
        Kind::Postgres => ("pg_backend_pid()", "SELECT pg_terminate_backend"),
        _ => ("connection_id()", "KILL "),
    };
    let note = move |attempt: u32| format!("INSERT INTO effects (body) SELECT concat({own_id}, ' ', {attempt})");
    let ledger = Handler::transactional("ledger", async move |_: Posted, conn: &mut C, context: Context| {
        conn.batch_execute(&note(context.attempt())).await
    });
    enqueue(database, [posted("one")]);
    let relay = Running::start(relay_on(database).destination(ledger.concurrency(1))).await;
    until_nothing_is_left(database).await;
    let first = effects(database).remove(0);
    let id = first.strip_suffix(" 1").unwrap();
    database.exec(&if database.kind() == Kind::Postgres { format!("{kill}({id})") } else { format!("{kill}{id}") });
    enqueue(database, [posted("two"), posted("three")]);
    until_nothing_is_left(database).await;
    relay.stop().await;
    let ids: Vec<String> = effects(database).iter().map(|line| line.strip_suffix(" 1").unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids[1] != ids[0], "a new connection was opened");
    assert_eq!(ids[1], ids[2], "and kept");
}

async fn a_drain_runs_transactional_handlers_too(database: TestDatabase) {
    with_driver!(database.kind(), Conn => drained::<Conn>(&database).await);
}
for_each_database!(a_drain_runs_transactional_handlers_too);

async fn drained<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let (script, log) = (Script::well(database), Log::default());
    enqueue(database, [posted("p1").key("k"), shared("s1").key("k"), posted("p2").key("k"), shared("s2")]);
    let builder = relay_on(database)
        .destination(script.ledger::<C>().topics(["posted", "shared"]))
        .destination(log.accepting("audit").topics(["shared"]));
    let drained = builder.build().await.unwrap().drain().await.unwrap();
    assert!(drained.is_clean(), "{drained:?}");
    assert_eq!(sorted_effects(database), ["p1", "p2", "s1", "s2"]);
    assert_eq!(log.arrivals().len(), 2);
}

async fn a_handler_for_another_database_is_refused_when_the_relay_is_built(database: TestDatabase) {
    async fn post<C>(_: Posted, _: &mut C, _: Context) -> HandlerResult {
        Ok(())
    }
    let builder = relay_on(&database);
    let builder = match database.kind() {
        Kind::Postgres => builder.transactional_handler("ledger", post::<diesel_async::AsyncMysqlConnection>),
        _ => builder.transactional_handler("ledger", post::<diesel_async::AsyncPgConnection>),
    };
    let error = builder.build().await.err().unwrap().to_string();
    assert!(error.starts_with("destination `ledger`: its function takes a connection to "), "{error}");
    assert!(error.contains("\n  help: let it take `&mut "), "{error}");

    let store = relay::store::open::open(database.url(), &StoreOptions::default()).await.unwrap();
    let fitting = with_driver!(database.kind(), Conn => Handler::transactional("ledger", post::<Conn>));
    let error = Relay::builder_from_store(store.clone()).destination(fitting).build().await.err().unwrap().to_string();
    assert!(error.contains("help: use `Handler::transactional_with` and say how to connect"), "{error}");
    let unfit = Relay::builder_from_store(store);
    let unfit = match database.kind() {
        Kind::Sqlite => unfit.transactional_handler("ledger", post::<diesel_async::AsyncMysqlConnection>),
        _ => with_driver!(Kind::Sqlite, Conn => unfit.transactional_handler("ledger", post::<Conn>)),
    };
    let error = unfit.build().await.err().unwrap().to_string();
    assert!(error.contains("its function takes a connection to "), "{error}");
}
for_each_database!(a_handler_for_another_database_is_refused_when_the_relay_is_built);
