//! In-process handlers: asynchronous functions of the user as a place messages go to.
//!
//! Handlers are generic where they are registered and erased at once; behind [`HandlerSink`] there is no type parameter.
//!
//! Invariants
//! - A handler cannot fail its caller: errors, panics and time-outs are verdicts. What aborts the process is beyond this
//!   room.
//! - The handler's future is dropped when its time is up; work it has handed to other tasks is told through
//!   [`Context::cancelled`].
//! - A message goes to the function of its topic. What no function knows is never called delivered.
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
use diesel_async::AsyncConnection;
use outbox::OutboxBackend;
use serde::de::DeserializeOwned;

use self::connections::Connect;
pub(crate) use self::connections::Place;
pub use self::context::Context;
pub use self::result::{HandlerError, HandlerResult, Reply};
use self::transactional::Maker;
pub use self::transactional::TransactionalFn;
use crate::duration;
use crate::message::{Headers, Message};
use crate::rate::RateLimit;
use crate::retry::RetryPolicy;
use crate::sink::AfterDeadLetter;
use crate::sink::{Attempt, Judgement, Ordering, Row, Settings, Sink, Unit, text};
use crate::verdict::Verdict;

mod connections;
mod context;
mod decode;
mod result;
#[cfg(test)]
mod tests;
mod transactional;

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
///
/// # Several kinds of messages
///
/// One handler may take messages of several types; [`on`](Handler::on) adds one. They share the destination, so messages
/// of one key arrive in order across the types:
///
/// ```
/// # use relay::{Context, Handler, HandlerResult};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order_id: i64 }
/// # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct OrderCancelled { order_id: i64 }
/// # impl outbox::Message for OrderCancelled { const TOPIC: &'static str = "order.cancelled"; }
/// async fn placed(order: OrderPlaced, _: Context) -> HandlerResult { Ok(()) }
/// async fn cancelled(order: OrderCancelled, _: Context) -> HandlerResult { Ok(()) }
///
/// let handler = Handler::new("stock", placed).on(cancelled);
/// assert_eq!(handler.settings().topics, ["order.placed", "order.cancelled"]);
/// ```
///
/// # State
///
/// [`with_state`](Handler::with_state) gives the function a clone of a value with each message; an `Arc` or a pool is
/// cheap to clone. A closure that clones what it needs does the same.
///
/// # What a function never sees
///
/// A payload that does not fit its type becomes a dead letter, `undecodable`. A message of a newer
/// [`VERSION`](outbox::Message::VERSION) than its type's is tried again, and so is a topic that none of several functions
/// takes: a relay that knows it may be about to start.
#[derive(Clone)]
pub struct Handler {
    settings: Settings,
    functions: Vec<(Takes, Call)>,
}

/// What messages a function takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// Those of this topic; all of them when it is the only function.
    Topic(&'static str),
    /// Whatever no other function takes.
    Rest,
}

#[derive(Clone)]
enum Call {
    Plain(Function),
    Transactional(Maker),
}

/// A function as the sink calls it.
type Function = Arc<dyn Fn(Context, Unit) -> Attempting + Send + Sync>;
type Attempting = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// How a function ended.
enum Ended {
    Done { reply: Reply, row: Row },
    Failed(Judgement),
}

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
        Handler::empty(name).on(function)
    }

    /// A handler of one type of message that is given a clone of `state` each time: an `async fn(S, M, Context)`.
    ///
    /// ```
    /// # use relay::{Context, Handler};
    /// use std::sync::Arc;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order_id: i64 }
    /// # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
    /// # struct Mailer;
    /// # impl Mailer { async fn send(&self, _: i64) -> std::io::Result<()> { Ok(()) } }
    ///
    /// async fn send_invoice(mailer: Arc<Mailer>, order: OrderPlaced, _: Context) -> std::io::Result<()> {
    ///     mailer.send(order.order_id).await
    /// }
    ///
    /// let handler = Handler::with_state("invoices", Arc::new(Mailer), send_invoice);
    /// ```
    pub fn with_state<S, M, F, Fut, R, E>(name: impl Into<String>, state: S, function: F) -> Handler
    where
        S: Clone + Send + Sync + 'static,
        M: outbox::Message + DeserializeOwned + Send + 'static,
        F: Fn(S, M, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Reply>,
        E: Into<HandlerError>,
    {
        Handler::new(name, move |message, context| function(state.clone(), message, context))
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
        let erased: Function = Arc::new(move |context: Context, _| erase(function(context.message().clone(), context)));
        let mut handler = Handler::empty(name);
        handler.functions.push((Takes::Rest, Call::Plain(erased)));
        handler.settings.topics.push("**".to_owned());
        handler
    }

    /// A handler whose effects happen exactly once: its function writes in the transaction that ends the delivery.
    ///
    /// `function` is an `async fn(M, &mut C, Context)` or an async closure, where `C` is diesel-async's connection to the
    /// relay's own database: `AsyncPgConnection`, `AsyncMysqlConnection`, or `SyncConnectionWrapper<SqliteConnection>`.
    ///
    /// ```
    /// use diesel_async::{AsyncPgConnection, RunQueryDsl};
    /// # use relay::{Context, Handler};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order_id: i64 }
    /// # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
    ///
    /// async fn post(order: OrderPlaced, conn: &mut AsyncPgConnection, _: Context) -> diesel::QueryResult<()> {
    ///     diesel::sql_query("INSERT INTO ledger (order_id) VALUES ($1)")
    ///         .bind::<diesel::sql_types::BigInt, _>(order.order_id)
    ///         .execute(conn)
    ///         .await?;
    ///     Ok(())
    /// }
    ///
    /// let handler = Handler::transactional("ledger", post);
    /// ```
    ///
    /// # What happens exactly once
    ///
    /// - What is written through `conn` becomes true exactly when the message is gone: however often the relay dies, the
    ///   database restarts, or an attempt is repeated. That includes messages enqueued with `outbox::aio::enqueue`.
    /// - Nothing else: a mail sent by the function is sent again when the attempt fails after it. Enqueue a message for it
    ///   instead.
    /// - An error, a panic or a time-out rolls everything back. So does a statement that failed and was passed over, where
    ///   the database gives the transaction up for it (PostgreSQL always does, MariaDB and MySQL after a deadlock): `Ok` is
    ///   then not believed. SQLite gives it up when the disk is full or fails; do not go on writing after such an error.
    /// - DDL statements do not belong here: on MariaDB and MySQL they commit what was written so far.
    ///
    /// # What it costs
    ///
    /// - Each attempt under way has a connection of its own; they are opened from the relay's database address and kept.
    ///   [`transactional_with`](Handler::transactional_with) opens them in another way.
    /// - No statement may take longer than the attempt ([`timeout`](Handler::timeout)).
    /// - A message that has other destinations too takes the way over a waiting row for each of them: one write more.
    /// - On SQLite the transaction is the database's only writer, and everybody else waits for it, the relay's own
    ///   membership included. Attempts run one at a time there; keep them well below the lease.
    pub fn transactional<M, C, F, R, E>(name: impl Into<String>, function: F) -> Handler
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        C: AsyncConnection<Backend: OutboxBackend> + 'static,
        for<'r> F: AsyncFnOnce(M, &'r mut C, Context) -> Result<R, E>
            + TransactionalFn<M, &'r mut C, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        R: Into<Reply> + Send + 'static,
        E: Into<HandlerError> + Send + 'static,
    {
        Handler::empty(name).on_transactional(function)
    }

    /// The same over connections that `connect` opens. They must lead to the relay's own database.
    ///
    /// What the relay does to a connection it opens itself is done to these too: time limits on MariaDB and MySQL, and on
    /// SQLite `busy_timeout`, `foreign_keys` and `synchronous = FULL`.
    pub fn transactional_with<M, C, O, Opening, X, F, R, E>(name: impl Into<String>, connect: O, function: F) -> Handler
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        C: AsyncConnection<Backend: OutboxBackend> + 'static,
        O: Fn() -> Opening + Send + Sync + 'static,
        Opening: Future<Output = Result<C, X>> + Send + 'static,
        X: Into<Box<dyn std::error::Error + Send + Sync>>,
        for<'r> F: AsyncFnOnce(M, &'r mut C, Context) -> Result<R, E>
            + TransactionalFn<M, &'r mut C, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        R: Into<Reply> + Send + 'static,
        E: Into<HandlerError> + Send + 'static,
    {
        let connect: Connect<C> = Arc::new(move || {
            let opening = connect();
            Box::pin(async move { opening.await.map_err(Into::into) })
        });
        Handler::empty(name).with(M::TOPIC, Call::Transactional(transactional::maker(Some(connect), function)))
    }

    /// Takes another type of message too, and its topic. `function` is as for [`new`](Handler::new).
    #[must_use]
    pub fn on<M, F, Fut, R, E>(self, function: F) -> Handler
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        F: Fn(M, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Reply>,
        E: Into<HandlerError>,
    {
        let erased = move |context: Context, _| -> Attempting {
            match decode::typed::<M>(context.message()) {
                Ok(message) => erase(function(message, context)),
                Err(error) => Box::pin(std::future::ready(Ended::Failed(error.judgement()))),
            }
        };
        self.with(M::TOPIC, Call::Plain(Arc::new(erased)))
    }

    /// Takes another type of message too, in a transaction. `function` is as for
    /// [`transactional`](Handler::transactional).
    #[must_use]
    pub fn on_transactional<M, C, F, R, E>(self, function: F) -> Handler
    where
        M: outbox::Message + DeserializeOwned + Send + 'static,
        C: AsyncConnection<Backend: OutboxBackend> + 'static,
        for<'r> F: AsyncFnOnce(M, &'r mut C, Context) -> Result<R, E>
            + TransactionalFn<M, &'r mut C, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        R: Into<Reply> + Send + 'static,
        E: Into<HandlerError> + Send + 'static,
    {
        self.with(M::TOPIC, Call::Transactional(transactional::maker(None, function)))
    }

    fn empty(name: impl Into<String>) -> Handler {
        Handler { settings: Settings::new(name, [""; 0]), functions: Vec::new() }
    }

    fn with(mut self, topic: &'static str, call: Call) -> Handler {
        self.functions.push((Takes::Topic(topic), call));
        // One that takes all topics gets this one already.
        if !self.settings.topics.iter().any(|pattern| pattern == topic || pattern == "**") {
            self.settings.topics.push(topic.to_owned());
        }
        self
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

    /// How often it is called, by all relays together; each keeps to the share of the partitions it owns.
    #[must_use]
    pub fn rate_limit(mut self, limit: RateLimit) -> Handler {
        self.settings.rate_limit = Some(limit);
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

    /// The sink that calls the function. A transactional one works only in a relay, which knows the database.
    ///
    /// # Panics
    ///
    /// When the handler is transactional, or two of its functions take the same topic.
    pub fn sink(&self) -> HandlerSink {
        let place = Place { url: None, database: None, timeout: Duration::MAX };
        self.sink_at(&place).unwrap_or_else(|problem| panic!("handler `{}`: {problem}", self.settings.name))
    }

    /// True when a function of it is transactional.
    pub(crate) fn is_transactional(&self) -> bool {
        self.functions.iter().any(|(_, call)| matches!(call, Call::Transactional(_)))
    }

    /// The sink in a relay that works at this place, or what is wrong with it.
    pub(crate) fn sink_at(&self, place: &Place) -> Result<HandlerSink, String> {
        let mut functions: Vec<(Takes, Function)> = Vec::new();
        for (takes, call) in &self.functions {
            if functions.iter().any(|(taken, _)| taken == takes)
                && let Takes::Topic(topic) = takes
            {
                return Err(format!(
                    "two of its functions take topic `{topic}`; give one of them a destination of its own"
                ));
            }
            let function = match call {
                Call::Plain(function) => function.clone(),
                Call::Transactional(make) => make(place)?,
            };
            functions.push((*takes, function));
        }
        Ok(HandlerSink { functions: functions.into(), deletes_rows: self.is_transactional() })
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn erase<Fut, R, E>(future: Fut) -> Attempting
where
    Fut: Future<Output = Result<R, E>> + Send + 'static,
    R: Into<Reply>,
    E: Into<HandlerError>,
{
    Box::pin(async move {
        match future.await {
            Ok(reply) => Ended::Done { reply: reply.into(), row: Row::Untouched },
            Err(error) => Ended::Failed(error.into().judgement()),
        }
    })
}

/// Calls a handler's function.
#[derive(Clone)]
pub struct HandlerSink {
    functions: Arc<[(Takes, Function)]>,
    deletes_rows: bool,
}

impl HandlerSink {
    /// The function for a topic. One that stands alone takes what is routed to it.
    fn function(&self, topic: &str) -> Option<&Function> {
        let exact = self.functions.iter().find(|(takes, _)| matches!(takes, Takes::Topic(taken) if *taken == topic));
        let rest = || self.functions.iter().find(|(takes, _)| *takes == Takes::Rest);
        let only = || self.functions.first().filter(|_| self.functions.len() == 1);
        exact.or_else(rest).or_else(only).map(|(_, function)| function)
    }

    fn topics(&self) -> String {
        let topics = self.functions.iter().filter_map(|(takes, _)| match takes {
            Takes::Topic(topic) => Some(format!("`{topic}`")),
            Takes::Rest => None,
        });
        topics.collect::<Vec<_>>().join(", ")
    }
}

#[async_trait]
impl Sink for HandlerSink {
    async fn attempt(&self, message: &Message, attempt: &Attempt) -> Judgement {
        if let Headers::Undecodable(problem) = &message.headers {
            return Judgement::failed(Verdict::Undecodable, "undecodable", text::cleaned(problem));
        }
        let Some(function) = self.function(&message.topic) else {
            return HandlerError::unknown_topic(&message.topic, &self.topics()).judgement();
        };
        // The guard outlives the call on every way out, also when the caller drops this future: then everything the
        // handler started is told that the attempt is over.
        let (context, _guard) = Context::begin(message, attempt);
        let deadline = context.deadline();
        let call = async {
            // A function that is no `async fn` can panic before it has made its future.
            let future = caught(|| function(context, attempt.unit))?;
            Caught(future).await
        };
        match tokio::time::timeout_at(deadline, call).await {
            // Nobody waits for results yet, so the reply ends here.
            Ok(Ok(Ended::Done { reply: _reply, row })) => Judgement { row, ..Judgement::delivered("ok") },
            Ok(Ok(Ended::Failed(judgement))) => judgement,
            Ok(Err(Panicked(said))) => {
                Judgement { maybe: true, ..Judgement::failed(RETRY, "panic", text::cleaned(&said)) }
            }
            Err(_elapsed) => {
                let said = format!("no answer within {}", duration::format(attempt.timeout));
                Judgement { maybe: true, ..Judgement::failed(RETRY, "timeout", said) }
            }
        }
    }

    fn deletes_rows(&self) -> bool {
        self.deletes_rows
    }
}

const RETRY: Verdict = Verdict::Retry { after: None };

/// What a panic said.
struct Panicked(String);

/// A future whose panics are an answer.
struct Caught(Attempting);

impl Future for Caught {
    type Output = Result<Ended, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        match caught(|| self.0.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(ended)) => Poll::Ready(Ok(ended)),
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
