//! A message is found in the trace of whoever enqueued it.

use std::time::Duration;

use diesel::connection::{Connection, LoadConnection};
use diesel_async::{AsyncConnection, AsyncPgConnection};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use outbox::{Envelope, Error, OutboxBackend};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::for_each_database;
use outbox_tests::receiver::{Answer, Receiver};
use relay::{Http, Relay};
use tracing::{Instrument, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;

use crate::producers::stored::stored;

/// A context the caller brings along.
const OWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Lets spans of this thread be OpenTelemetry's, as an application does for all of them.
fn traced() -> tracing::subscriber::DefaultGuard {
    let tracer = SdkTracerProvider::builder().build().tracer("shop");
    tracing::subscriber::set_default(
        tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer)),
    )
}

/// What `traceparent` says of this span.
fn parent(span: &tracing::Span) -> String {
    let context = span.context();
    let context = context.span().span_context().clone();
    assert!(context.is_valid());
    format!("00-{}-{}-01", context.trace_id(), context.span_id())
}

fn message() -> Envelope {
    Envelope::raw("order.placed", "{}")
}

fn in_span<C>(conn: &mut C) -> String
where
    C: LoadConnection<Backend: OutboxBackend>,
{
    let span = info_span!("place order");
    span.in_scope(|| {
        outbox::transaction(conn, |conn| {
            outbox::enqueue(conn, message())?;
            outbox::enqueue_unchecked(conn, message())?;
            outbox::enqueue_all(conn, [message(), message()])?;
            outbox::enqueue(conn, message().dedup_key("1"))?;
            outbox::enqueue(conn, message().header("traceparent", OWN))
        })
    })
    .unwrap();
    outbox::transaction(conn, |conn| outbox::enqueue(conn, message())).unwrap();
    parent(&span)
}

async fn spans_are_stored(database: TestDatabase) {
    let _traced = traced();
    let parent = match database.kind() {
        Kind::Postgres => in_span(&mut database.postgres()),
        Kind::Mariadb => in_span(&mut database.mariadb()),
        Kind::Sqlite => in_span(&mut database.sqlite()),
    };
    let headers: Vec<String> = stored(&database).into_iter().map(|row| row.headers).collect();
    let traced = format!(r#"{{"traceparent":"{parent}"}}"#);
    let own = format!(r#"{{"traceparent":"{OWN}"}}"#);
    let [a, b, c, d, e] = std::array::from_fn(|_| traced.clone());
    assert_eq!(headers, [a, b, c, d, e, own, "{}".to_owned()]);
}
for_each_database!(the_span_that_enqueues_is_stored_with_the_message, spans_are_stored);

#[test]
fn without_a_span_of_opentelemetry_nothing_is_stored() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let mut conn = database.sqlite();
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry());
    info_span!("place order").in_scope(|| conn.transaction(|conn| outbox::enqueue(conn, message()))).unwrap();
    assert_eq!(stored(&database)[0].headers, "{}");
}

#[test]
fn a_context_of_another_service_keeps_its_state() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let mut conn = database.sqlite();
    let state = TraceState::from_key_value([("shop", "7"), ("other", "x")]).unwrap();
    let remote = SpanContext::new(TraceId::from(0xabcd), SpanId::from(0x1234), TraceFlags::default(), true, state);
    let _attached = opentelemetry::Context::new().with_remote_span_context(remote).attach();
    conn.transaction(|conn| outbox::enqueue(conn, message())).unwrap();
    assert_eq!(
        stored(&database)[0].headers,
        r#"{"traceparent":"00-0000000000000000000000000000abcd-0000000000001234-00","tracestate":"shop=7,other=x"}"#
    );
}

#[tokio::test]
async fn an_async_enqueue_belongs_to_the_span_it_is_polled_in_or_else_to_the_one_it_was_called_in() {
    let _traced = traced();
    let database = TestDatabase::with_schema(Kind::Postgres);
    let mut conn = AsyncPgConnection::establish(database.url()).await.unwrap();
    let (outer, inner) = (info_span!("request"), info_span!("enqueue"));
    conn.transaction(async |conn| {
        async {
            outbox::aio::enqueue(conn, message()).await?;
            outbox::aio::enqueue(conn, message()).instrument(inner.clone()).await?;
            outbox::aio::enqueue_all(conn, [message()]).instrument(inner.clone()).await?;
            outbox::aio::enqueue_unchecked(conn, message()).instrument(inner.clone()).await
        }
        .instrument(outer.clone())
        .await?;
        // Called in the span, polled outside.
        let one = outer.in_scope(|| outbox::aio::enqueue(conn, message()));
        one.await?;
        let all = outer.in_scope(|| outbox::aio::enqueue_all(conn, [message()]));
        all.await?;
        outbox::aio::enqueue(conn, message()).await?;
        Ok::<(), Error>(())
    })
    .await
    .unwrap();

    let headers: Vec<String> = stored(&database).into_iter().map(|row| row.headers).collect();
    let [outer, inner] = [&outer, &inner].map(|span| format!(r#"{{"traceparent":"{}"}}"#, parent(span)));
    let (outer, inner, none) = (outer.as_str(), inner.as_str(), "{}");
    assert_eq!(headers, [outer, inner, inner, inner, outer, outer, none]);
}

#[tokio::test]
async fn the_trace_arrives_with_the_request() {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let span = {
        let _traced = traced();
        let span = info_span!("place order");
        let mut conn = database.sqlite();
        span.in_scope(|| conn.transaction(|conn| outbox::enqueue(conn, message()))).unwrap();
        parent(&span)
    };
    let receiver = Receiver::always(Answer::status(204)).await;
    let relay =
        Relay::builder(database.url()).destination(Http::new("billing", receiver.url("/"))).build().await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(relay.run_until(async {
        let _ = stopped.await;
    }));
    receiver.wait_until(Duration::from_secs(20), "the message arrives", |requests| !requests.is_empty()).await;
    let request = receiver.requests().remove(0);
    for name in ["traceparent", "ce-traceparent"] {
        assert_eq!(request.header(name), Some(span.as_str()), "{name}");
    }
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}
