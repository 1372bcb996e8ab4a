//! What becomes of each way a handler can end.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::*;
use crate::message;

#[derive(Debug, Serialize, Deserialize)]
struct OrderPlaced {
    order_id: i64,
}

impl outbox::Message for OrderPlaced {
    const TOPIC: &'static str = "order.placed";
    const VERSION: u16 = 2;
}

fn message(payload: &str) -> Message {
    Message {
        id: uuid::Uuid::from_u128(42),
        topic: "order.placed".into(),
        ordering_key: Some(b"customer-1".as_slice().into()),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        headers: Headers::Decoded(BTreeMap::from([("X-Tenant".into(), "eu".into())])),
        version: 2,
        ..message::example(7)
    }
}

async fn attempt(handler: Handler) -> Judgement {
    attempt_at(handler, r#"{"order_id":5}"#).await
}

async fn attempt_at(handler: Handler, payload: &str) -> Judgement {
    let attempt =
        Attempt { destination: "invoices".into(), number: 4, timeout: Duration::from_secs(15), unit: Unit::Shared };
    handler.sink().attempt(&message(payload), &attempt).await
}

#[derive(Debug, thiserror::Error)]
#[error("the order cannot be invoiced")]
struct Failure(#[source] std::num::ParseIntError);

async fn fails_with_a_cause(_: OrderPlaced, _: Context) -> Result<(), Failure> {
    "x".parse::<i32>().map(drop).map_err(Failure)
}

#[tokio::test]
async fn a_handler_gets_the_message_and_its_circumstances() {
    let seen = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&seen);
    let handler = Handler::new("invoices", move |order: OrderPlaced, context: Context| {
        let kept = Arc::clone(&kept);
        async move {
            *kept.lock().unwrap() = Some((order.order_id, context));
            HandlerResult::Ok(())
        }
    });
    assert_eq!(handler.settings().topics, ["order.placed"]);
    assert_eq!(attempt(handler).await, Judgement::delivered("ok"));
    let (order_id, context) = seen.lock().unwrap().take().unwrap();
    assert_eq!(order_id, 5);
    assert_eq!(context.message_id().as_u128(), 42);
    assert_eq!((context.attempt(), context.version()), (4, 2));
    assert_eq!((context.topic(), context.destination()), ("order.placed", "invoices"));
    assert_eq!(context.ordering_key().as_deref(), Some("customer-1"));
    assert_eq!((context.header("x-tenant"), context.header("none")), (Some("eu"), None));
    assert_eq!(context.headers().len(), 1);
    assert_eq!(context.created_at(), chrono::DateTime::UNIX_EPOCH);
    let left = context.deadline().saturating_duration_since(tokio::time::Instant::now());
    assert!(left > Duration::from_secs(5) && left <= Duration::from_secs(15), "{left:?}");
    assert!(context.is_cancelled(), "the attempt is over");
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderCancelled {
    why: String,
}

impl outbox::Message for OrderCancelled {
    const TOPIC: &'static str = "order.cancelled";
}

/// A handler of several types that tells which function was called.
fn several(told: &Arc<Mutex<Vec<String>>>) -> Handler {
    let placed = Arc::clone(told);
    let cancelled = Arc::clone(told);
    Handler::with_state("stock", placed, |told: Arc<Mutex<Vec<String>>>, order: OrderPlaced, _| async move {
        told.lock().unwrap().push(format!("placed {}", order.order_id));
        HandlerResult::Ok(())
    })
    .on(move |order: OrderCancelled, _: Context| {
        let told = Arc::clone(&cancelled);
        async move {
            told.lock().unwrap().push(format!("cancelled {}", order.why));
            HandlerResult::Ok(())
        }
    })
}

async fn attempt_of(handler: &Handler, topic: &str, payload: &str) -> Judgement {
    let attempt =
        Attempt { destination: "stock".into(), number: 1, timeout: Duration::from_secs(15), unit: Unit::Shared };
    let message = Message { topic: topic.into(), version: 1, ..message(payload) };
    handler.sink().attempt(&message, &attempt).await
}

#[tokio::test]
async fn each_message_goes_to_the_function_of_its_type() {
    let told = Arc::default();
    let handler = several(&told);
    assert_eq!(handler.settings().topics, ["order.placed", "order.cancelled"]);
    assert_eq!(attempt_of(&handler, "order.cancelled", r#"{"why":"late"}"#).await, Judgement::delivered("ok"));
    assert_eq!(attempt_of(&handler, "order.placed", r#"{"order_id":1}"#).await, Judgement::delivered("ok"));
    assert_eq!(*told.lock().unwrap(), ["cancelled late", "placed 1"]);
    let wrong = attempt_of(&handler, "order.cancelled", r#"{"order_id":1}"#).await;
    assert_eq!((wrong.verdict, wrong.code.as_str()), (Verdict::Undecodable, "undecodable"));
}

#[tokio::test]
async fn a_topic_none_of_several_functions_takes_is_not_delivered() {
    let told = Arc::default();
    let handler = several(&told).topics(["order.*"]);
    let judgement = attempt_of(&handler, "order.refunded", r#"{"order_id":1,"why":""}"#).await;
    assert_eq!((judgement.verdict, judgement.code.as_str()), (RETRY, "unknown_topic"));
    let text = "the handler has no function for topic `order.refunded`; it knows `order.placed`, `order.cancelled`";
    assert_eq!(judgement.text, text);
    assert!(told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_raw_function_takes_what_the_typed_ones_leave() {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let rest = Arc::clone(&told);
    let handler = Handler::raw("audit", move |message: Message, _: Context| {
        rest.lock().unwrap().push(format!("raw {}", message.topic));
        std::future::ready(HandlerResult::Ok(()))
    })
    .on(fails_with_a_cause);
    assert_eq!(handler.settings().topics, ["**"]);
    assert_eq!(attempt_of(&handler, "order.placed", r#"{"order_id":1}"#).await.code, "error");
    assert_eq!(attempt_of(&handler, "a.b", "no json").await.code, "ok");
    assert_eq!(*told.lock().unwrap(), ["raw a.b"]);
}

#[tokio::test]
async fn a_newer_version_than_the_handler_knows_is_not_delivered() {
    let newer = Message { version: 3, ..message(r#"{"order_id":5}"#) };
    let attempt =
        Attempt { destination: "invoices".into(), number: 1, timeout: Duration::from_secs(15), unit: Unit::Shared };
    let sink = Handler::new("invoices", fails_with_a_cause).sink();
    let judgement = sink.attempt(&newer, &attempt).await;
    assert_eq!((judgement.verdict, judgement.code.as_str()), (RETRY, "unknown_version"));
    assert!(judgement.text.starts_with("the message is version 3 of `order.placed` and the handler knows up to 2"));
    let older = Message { version: 1, ..newer };
    assert_eq!(sink.attempt(&older, &attempt).await.code, "error", "an older one is for the function to judge");
}

#[test]
fn two_functions_for_one_topic_are_refused() {
    let place = Place { url: None, database: None, timeout: Duration::from_secs(1) };
    let handler = Handler::new("invoices", fails_with_a_cause).on(fails_with_a_cause);
    let problem = handler.sink_at(&place).err().unwrap();
    assert!(problem.starts_with("two of its functions take topic `order.placed`"), "{problem}");
}

#[tokio::test]
async fn a_raw_handler_gets_the_bytes_as_they_are() {
    let handler = Handler::raw("audit", |message: Message, _: Context| async move {
        assert_eq!(&message.payload[..], b"\0 no json");
        HandlerResult::Ok(Reply::json("noted"))
    });
    assert_eq!(handler.settings().topics, ["**"]);
    assert_eq!(attempt_at(handler, "\0 no json").await, Judgement::delivered("ok"));
}

#[tokio::test]
async fn any_error_is_tried_again_and_told_with_its_causes() {
    let judgement = attempt(Handler::new("invoices", fails_with_a_cause)).await;
    let told = "the order cannot be invoiced: invalid digit found in string";
    assert_eq!(judgement, Judgement::failed(RETRY, "error", told));
}

#[tokio::test]
async fn a_handler_can_say_what_is_to_happen_next() {
    let minute = Duration::from_secs(60);
    type Make = fn() -> HandlerError;
    let cases: [(Make, Verdict); 6] = [
        (|| HandlerError::reject("no"), Verdict::Reject { gone: false }),
        (|| HandlerError::retry("no"), RETRY),
        (|| HandlerError::retry_after(Duration::from_secs(60), "no"), Verdict::Retry { after: Some(minute) }),
        (|| HandlerError::hold(Duration::from_secs(60), "no"), Verdict::Hold { pause: Some(minute) }),
        (|| HandlerError::misconfigured("no"), Verdict::Misconfigured),
        (|| std::io::Error::other("no").into(), RETRY),
    ];
    for (make, verdict) in cases {
        let handler =
            Handler::new("invoices", move |_: OrderPlaced, _: Context| async move { HandlerResult::<()>::Err(make()) });
        assert_eq!(attempt(handler).await, Judgement::failed(verdict, "error", "no"));
    }
}

#[tokio::test]
async fn a_panic_is_tried_again_wherever_it_happens() {
    async fn late(_: OrderPlaced, _: Context) -> HandlerResult {
        tokio::task::yield_now().await;
        panic!("the {} broke", "printer");
    }
    #[allow(unreachable_code)]
    fn early(_: OrderPlaced, _: Context) -> std::future::Ready<HandlerResult> {
        panic!("no future was made");
    }
    let late = attempt(Handler::new("invoices", late)).await;
    let early = attempt(Handler::new("invoices", early)).await;
    for (judgement, said) in [(late, "the printer broke"), (early, "no future was made")] {
        assert_eq!(judgement, Judgement { maybe: true, ..Judgement::failed(RETRY, "panic", said) });
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_returns_is_dropped_when_its_time_is_up() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let (tell, told) = tokio::sync::oneshot::channel();
    let (flag, tell) = (Arc::clone(&dropped), Arc::new(Mutex::new(Some(tell))));
    let handler = Handler::new("invoices", move |_: OrderPlaced, context: Context| {
        let flag = Flag(Arc::clone(&flag));
        let tell = tell.lock().unwrap().take().unwrap();
        async move {
            let _flag = flag;
            tokio::spawn(async move {
                context.cancelled().await;
                tell.send(()).unwrap();
            });
            std::future::pending::<HandlerResult>().await
        }
    });
    let begun = tokio::time::Instant::now();
    let judgement = attempt(handler).await;
    assert_eq!(begun.elapsed().as_secs(), 15);
    assert_eq!(judgement, Judgement { maybe: true, ..Judgement::failed(RETRY, "timeout", "no answer within 15s") });
    assert!(dropped.load(Ordering::SeqCst));
    told.await.expect("the task the handler started was told that the attempt is over");
}

#[tokio::test]
async fn a_payload_that_does_not_fit_is_given_up_unread() {
    async fn unreachable(_: OrderPlaced, _: Context) -> HandlerResult {
        panic!("the handler was called");
    }
    for (payload, told) in [
        (
            r#"{"order_id":"secret"}"#,
            "the payload does not fit the handler's type: invalid type, expected i64 at line 1 column 20",
        ),
        ("secret", "the payload is not JSON: expected value at line 1 column 1"),
        ("", "the payload is not JSON: EOF while parsing a value at line 1 column 0"),
    ] {
        let judgement = attempt_at(Handler::new("invoices", unreachable), payload).await;
        assert_eq!(judgement, Judgement::failed(Verdict::Undecodable, "undecodable", told));
    }
}

#[tokio::test]
async fn nesting_without_end_is_given_up_and_not_followed() {
    #[derive(Serialize, Deserialize)]
    struct Any(serde_json::Value);
    impl outbox::Message for Any {
        const TOPIC: &'static str = "any";
        const VERSION: u16 = 2;
    }
    async fn take(_: Any, _: Context) -> HandlerResult {
        Ok(())
    }
    let judgement = attempt_at(Handler::new("invoices", take), &"[".repeat(60_000)).await;
    assert_eq!(judgement.verdict, Verdict::Undecodable);
}
