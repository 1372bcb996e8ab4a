//! In-process handlers: asynchronous functions of the user as a place messages go to.
//!
//! Handlers are generic where they are registered and erased at once; behind [`HandlerSink`] there is no type parameter.
//!
//! Invariants
//! - A handler cannot fail its caller: errors, panics and time-outs are verdicts. What aborts the process is beyond this
//!   room.
//! - The handler's future is dropped when its time is up; work it has handed to other tasks is told through
//!   [`Context::cancelled`].
//! - Nothing of the payload gets into what is told about a payload that could not be read.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

pub use self::context::Context;
pub use self::result::{HandlerError, HandlerResult, Reply};
use crate::duration;
use crate::message::{Headers, Message};
use crate::retry::RetryPolicy;
use crate::sink::AfterDeadLetter;
use crate::sink::{Attempt, Judgement, Ordering, Settings, Sink, text};
use crate::verdict::Verdict;

mod context;
mod decode;
mod result;
#[cfg(test)]
mod tests;

/// A handler under the name of the destination it serves.
///
/// ```
/// use relay::sink::handler::{Context, Handler, HandlerError, HandlerResult};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct OrderPlaced { order_id: i64 }
///
/// impl outbox::Message for OrderPlaced {
///     const TOPIC: &'static str = "order.placed";
/// }
///
/// async fn send_invoice(order: OrderPlaced, context: Context) -> HandlerResult {
///     if order.order_id < 0 {
///         return Err(HandlerError::reject("orders are numbered from 0"));
///     }
///     std::fs::write(std::env::temp_dir().join(context.message_id().to_string()), "dear customer")?;
///     Ok(())
/// }
///
/// let handler = Handler::new("invoices", send_invoice);
/// assert_eq!(handler.settings().topics, ["order.placed"]);
/// ```
#[derive(Clone)]
pub struct Handler {
    settings: Settings,
    function: Function,
}

type Function = Arc<dyn Fn(Context) -> HandlerFuture + Send + Sync>;
type HandlerFuture = Pin<Box<dyn Future<Output = Result<Reply, HandlerError>> + Send>>;

impl Handler {
    /// A handler of one type of message. It gets the topic of that type unless [`topics`](Handler::topics) says
    /// otherwise.
    ///
    /// `function` is an `async fn(M, Context)`, or a closure that returns a future. It returns `Ok(())` or a [`Reply`];
    /// an error is anything that converts into a boxed one and means "try again", or a [`HandlerError`] that says more.
    pub fn new<M, F, Fut, R, E>(name: impl Into<String>, function: F) -> Handler
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        F: Fn(M, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Reply>,
        E: Into<HandlerError>,
    {
        let erased = move |context: Context| -> HandlerFuture {
            match decode::json::<M>(context.message()) {
                Ok(message) => erase(function(message, context)),
                Err(text) => Box::pin(std::future::ready(Err(HandlerError::undecodable(text)))),
            }
        };
        Handler { settings: Settings::new(name, [M::TOPIC]), function: Arc::new(erased) }
    }

    /// A handler of messages as they were stored, of whatever type. It gets every topic unless
    /// [`topics`](Handler::topics) says otherwise.
    pub fn raw<F, Fut, R, E>(name: impl Into<String>, function: F) -> Handler
    where
        F: Fn(Message, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Reply>,
        E: Into<HandlerError>,
    {
        let erased = move |context: Context| erase(function(context.message().clone(), context));
        Handler { settings: Settings::new(name, ["**"]), function: Arc::new(erased) }
    }

    /// The topic patterns it gets, instead of those it has.
    #[must_use]
    pub fn topics<I>(mut self, patterns: I) -> Handler
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.settings.topics = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// How long an attempt may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Handler {
        self.settings.timeout = Some(timeout);
        self
    }

    /// How many attempts may be under way at once, in this process.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Handler {
        self.settings.concurrency = Some(concurrency);
        self
    }

    /// When failed attempts are repeated.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Handler {
        self.settings.retry = Some(policy);
        self
    }

    /// Whether messages of one key arrive in order; they do unless this says otherwise.
    #[must_use]
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.settings.ordering = ordering;
        self
    }

    /// What happens to a key after one of its messages was given up; the next one goes unless this says otherwise.
    #[must_use]
    pub fn after_dead_letter(mut self, choice: AfterDeadLetter) -> Self {
        self.settings.after_dead_letter = choice;
        self
    }

    /// What is said about the destination beside the function.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The sink that calls the function.
    pub fn sink(&self) -> HandlerSink {
        HandlerSink { function: Arc::clone(&self.function) }
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn erase<Fut, R, E>(future: Fut) -> HandlerFuture
where
    Fut: Future<Output = Result<R, E>> + Send + 'static,
    R: Into<Reply>,
    E: Into<HandlerError>,
{
    Box::pin(async move { future.await.map(Into::into).map_err(Into::into) })
}

/// Calls a handler's function.
#[derive(Clone)]
pub struct HandlerSink {
    function: Function,
}

#[async_trait]
impl Sink for HandlerSink {
    async fn attempt(&self, message: &Message, attempt: &Attempt) -> Judgement {
        if let Headers::Undecodable(problem) = &message.headers {
            return Judgement::failed(Verdict::Reject { gone: false }, "undecodable", text::cleaned(problem));
        }
        // The guard outlives the call on every way out, also when the caller drops this future: then everything the
        // handler started is told that the attempt is over.
        let (context, _guard) = Context::begin(message, attempt);
        let deadline = context.deadline();
        let call = async {
            // A function that is no `async fn` can panic before it has made its future.
            let future = caught(|| (self.function)(context))?;
            Caught(future).await
        };
        match tokio::time::timeout_at(deadline, call).await {
            // Nobody waits for results yet, so the reply ends here.
            Ok(Ok(Ok(_reply))) => Judgement::delivered("ok"),
            Ok(Ok(Err(error))) => error.judgement(),
            Ok(Err(Panicked(said))) => {
                Judgement { maybe: true, ..Judgement::failed(RETRY, "panic", text::cleaned(&said)) }
            }
            Err(_elapsed) => {
                let said = format!("no answer within {}", duration::format(attempt.timeout));
                Judgement { maybe: true, ..Judgement::failed(RETRY, "timeout", said) }
            }
        }
    }
}

const RETRY: Verdict = Verdict::Retry { after: None };

/// What a panic said.
struct Panicked(String);

/// A future whose panics are an answer.
struct Caught(HandlerFuture);

impl Future for Caught {
    type Output = Result<Result<Reply, HandlerError>, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        match caught(|| self.0.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
    // What the handler shares with others is protected by its own means; what belonged to this call is dropped unused.
    std::panic::catch_unwind(AssertUnwindSafe(run)).map_err(|panic| Panicked(said(&*panic)))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the handler panicked".to_owned())
}
