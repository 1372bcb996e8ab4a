//! The connection breaks while a transaction commits: it has committed, and nobody was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use diesel_async::AsyncConnection;
use outbox::{Envelope, OutboxBackend};
use outbox_tests::database::TestDatabase;
use outbox_tests::for_each_database;
use relay::{Context, Handler};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::stage::{Posted, Script, create_effects, effects, with_driver};
use crate::delivery::stage::{Log, Running, enqueue, relay_on, until_nothing_is_left};

/// Stands between a client and a server, and cuts the connection instead of passing on the answer to COMMIT.
struct Cutter {
    url: String,
    left: Arc<AtomicUsize>,
}

impl Cutter {
    async fn start(database: &TestDatabase, cuts: usize) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (front, rest) = database.url().rsplit_once('@').unwrap();
        let (server, name) = rest.split_once('/').unwrap();
        let option = if front.starts_with("mysql") { "?prefer_socket=false" } else { "" };
        let url = format!("{front}@{}/{name}{option}", listener.local_addr().unwrap());
        let (server, left) = (server.to_owned(), Arc::new(AtomicUsize::new(cuts)));
        let cuts = left.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(carry(client, server, cuts.clone()));
            }
        });
        Cutter { url, left }
    }
}

async fn carry(client: TcpStream, server: TcpStream, cuts: Arc<AtomicUsize>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = cut.clone();
    let down = tokio::spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            // The server has answered, so it has committed.
            if is_cut.load(Ordering::SeqCst) || to_client.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    });
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
        let said = &bytes[..count];
        let commits = said.windows(6).any(|part| part == b"COMMIT");
        if commits && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            cut.store(true, Ordering::SeqCst);
        }
        if to_server.write_all(said).await.is_err() {
            break;
        }
    }
    drop(to_server);
    let _ = down.await;
}

async fn a_commit_whose_answer_was_lost_is_not_repeated(database: TestDatabase) {
    with_driver!(database.kind(), Conn => lost::<Conn>(&database).await);
}
for_each_database!(
    a_commit_whose_answer_was_lost_is_not_repeated,
    a_commit_whose_answer_was_lost_is_not_repeated,
    [postgres, mariadb]
);

async fn lost<C: AsyncConnection<Backend: OutboxBackend> + 'static>(database: &TestDatabase) {
    create_effects(database);
    let cutter = Cutter::start(database, 6).await;
    let (script, log, url) = (Script::well(database), Log::default(), cutter.url.clone());
    let acting = script.clone();
    let connect = move || {
        let url = url.clone();
        async move { C::establish(&url).await }
    };
    let ledger =
        Handler::transactional_with("ledger", connect, async move |posted: Posted, conn: &mut C, context: Context| {
            acting.act(&posted.body, conn, &context).await
        });
    let bodies: Vec<String> = (0..5).flat_map(|n| ["fresh", "shared"].map(|topic| format!("{topic}{n}"))).collect();
    let messages = bodies.iter().map(|body| {
        let (topic, key) = if body.starts_with("fresh") { ("posted", "f") } else { ("shared", "s") };
        Envelope::raw(topic, format!("{{\"body\":\"{body}\"}}")).key(key)
    });
    enqueue(database, messages);
    let builder = relay_on(database)
        .destination(ledger.topics(["posted", "shared"]))
        .destination(log.accepting("audit").topics(["shared"]));
    let relay = Running::start(builder).await;
    until_nothing_is_left(database).await;
    relay.stop().await;
    assert_eq!(cutter.left.load(Ordering::SeqCst), 0, "all cuts were made");
    for topic in ["fresh", "shared"] {
        let of = |bodies: Vec<String>| bodies.into_iter().filter(|b| b.starts_with(topic)).collect::<Vec<_>>();
        assert_eq!(of(effects(database)), of(bodies.clone()));
    }
    for body in &bodies {
        assert_eq!(script.attempts(body), [1], "{body} was called again");
    }
}
