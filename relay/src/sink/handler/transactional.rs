//! Handlers whose effects happen exactly once.
//!
//! One attempt is one transaction: it deletes the delivery's own row, then the function writes, then it commits. Both
//! become true together or not at all, so neither a crash nor a repeat can do the work twice or lose it. An attempt whose
//! commit was cut off is judged "try again": should it have committed after all, its row is gone and what the relay writes
//! about it is refused.
//!
//! Absent: which deliveries come here (those that have a row of their own), and what becomes of a key's next message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use diesel::result::Error as DieselError;
use diesel_async::AsyncConnection;
use outbox::OutboxBackend;
use serde::de::DeserializeOwned;

use super::connections::{Connect, Connections, Place};
use super::context::Context;
use super::result::{HandlerError, Reply};
use super::{Ended, Function, decode};
use crate::sink::{Judgement, Row, Unit, text};
use crate::store::claim::{self, Claim};
use crate::verdict::Verdict;

/// A function that takes a message, a connection in a transaction and a [`Context`], and whose future can be sent to
/// another thread: `async fn(M, &mut C, Context)`, or an async closure. Implemented for all of them.
#[diagnostic::on_unimplemented(
    message = "this function cannot be a transactional handler",
    note = "write `async fn post(message: M, conn: &mut AsyncPgConnection, context: Context) -> Result<(), E>`, or an \
            async closure: `async move |message: M, conn: &mut AsyncPgConnection, context: Context| {{ … }}`",
    note = "its future must be `Send`"
)]
pub trait TransactionalFn<M, C, R>:
    AsyncFnOnce(M, C, Context) -> R + FnOnce(M, C, Context) -> <Self as TransactionalFn<M, C, R>>::Fut
{
    /// What it returns.
    type Fut: Future<Output = R>;
}

impl<F, M, C, Fut, R> TransactionalFn<M, C, R> for F
where
    F: AsyncFnOnce(M, C, Context) -> R + FnOnce(M, C, Context) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}

/// Makes the function of a transactional handler, once it is known where the relay works.
pub(super) type Maker = Arc<dyn Fn(&Place) -> Result<Function, String> + Send + Sync>;

pub(super) fn maker<M, C, F, R, E>(connect: Option<Connect<C>>, function: F) -> Maker
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
    Arc::new(move |place| {
        let connections = Arc::new(Connections::<C>::new(place, connect.clone())?);
        let function = function.clone();
        Ok(Arc::new(move |context, unit| {
            Box::pin(attempt::<M, C, F, R, E>(connections.clone(), function.clone(), context, unit))
        }))
    })
}

async fn attempt<M, C, F, R, E>(connections: Arc<Connections<C>>, function: F, context: Context, unit: Unit) -> Ended
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
    let database = connections.database();
    let Some(claim) = Claim::new(database, unit) else { return not_claimed() };
    let prelude = claim::prelude(database, connections.timeout(), unit);
    loop {
        // Read before anything is opened: what cannot be read needs no transaction.
        let message: M = match decode::typed(context.message()) {
            Ok(message) => message,
            Err(error) => return Ended::Failed(error.judgement()),
        };
        let mut lease = match connections.take().await {
            Ok(lease) => lease,
            Err(error) => return no_connection(&*error),
        };
        let stage = Stage::default();
        let (reached, function, context) = (stage.clone(), function.clone(), context.clone());
        let (claim, prelude) = (claim.clone(), prelude.clone());
        let ended: Result<Reply, Stop> = outbox::aio::transaction(lease.conn(), async move |conn: &mut C| {
            reached.is(Stage::BEGUN);
            if let Some(prelude) = prelude {
                conn.batch_execute(&prelude).await?;
            }
            if diesel_async::RunQueryDsl::execute(claim, conn).await? != 1 {
                return Err(Stop::NotClaimed);
            }
            reached.is(Stage::CALLED);
            let reply = function(message, &mut *conn, context).await.map_err(|error| Stop::Handler(error.into()))?;
            reached.is(Stage::RETURNED);
            Ok(reply.into())
        })
        .await;
        let stage = stage.reached();
        // Whether a commit that failed has happened is not known here, and the connection proves nothing any more.
        let in_order = !matches!(ended, Err(Stop::Database(_)));
        let was_idle = lease.was_idle;
        if in_order {
            lease.give_back();
        } else {
            drop(lease);
        }
        return match ended {
            Ok(reply) => Ended::Done { reply, row: Row::Deleted },
            Err(Stop::Handler(error)) => Ended::Failed(error.judgement()),
            Err(Stop::NotClaimed) => not_claimed(),
            // The server may have closed it while nobody used it; nothing has happened yet.
            Err(Stop::Database(_)) if was_idle && stage < Stage::CALLED => continue,
            Err(Stop::Database(error)) => Ended::Failed(failure(stage, error)),
        };
    }
}

/// Why a transaction did not commit.
enum Stop {
    Handler(HandlerError),
    NotClaimed,
    Database(DieselError),
}

impl From<DieselError> for Stop {
    fn from(error: DieselError) -> Stop {
        Stop::Database(error)
    }
}

/// How far a transaction has come.
#[derive(Clone, Default)]
struct Stage(Arc<AtomicU8>);

impl Stage {
    const BEGUN: u8 = 1;
    const CALLED: u8 = 2;
    const RETURNED: u8 = 3;

    fn is(&self, stage: u8) {
        self.0.store(stage, Ordering::Relaxed);
    }

    fn reached(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

const RETRY: Verdict = Verdict::Retry { after: None };

fn not_claimed() -> Ended {
    let judgement = Judgement::failed(RETRY, "not_claimed", NOT_CLAIMED);
    Ended::Failed(Judgement { row: Row::NotFound, ..judgement })
}

/// Kept with a waiting row only where it is still there, so the second half of it is then what has happened.
const NOT_CLAIMED: &str = "the delivery's row was not found: it was settled or changed meanwhile, or the handler's \
                           connection leads to another database than the relay's";

/// Nothing can be done for any message: the destination waits a moment, and no attempt is counted.
fn no_connection(error: &(dyn std::error::Error + 'static)) -> Ended {
    let said = format!("no connection for the handler's transaction: {}", text::chain(error));
    Ended::Failed(Judgement::failed(Verdict::Hold { pause: Some(NO_CONNECTION_PAUSE) }, "connect", said))
}

/// What the database's own failure means at this stage.
fn failure(stage: u8, error: DieselError) -> Judgement {
    let error = outbox::Error::from(error);
    let (code, what) = match stage {
        Stage::RETURNED if error.is_not_committed() => ("not_committed", "the handler returned Ok, but"),
        Stage::RETURNED => ("commit", "whether the transaction committed is not known:"),
        Stage::CALLED => ("database", "the transaction broke under the handler:"),
        _ => ("database", "the transaction could not begin:"),
    };
    let judgement = Judgement::failed(RETRY, code, format!("{what} {}", text::chain(&error)));
    Judgement { maybe: code == "commit", ..judgement }
}

/// How long a destination waits when its handler's database cannot be reached.
const NO_CONNECTION_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_commit_that_was_cut_off_may_have_happened() {
        let gone = || DieselError::BrokenTransactionManager;
        let not_committed = || DieselError::from(outbox::Error::NotCommitted(DieselError::NotInTransaction));
        for (stage, error, code, maybe) in [
            (0, gone(), "database", false),
            (Stage::BEGUN, gone(), "database", false),
            (Stage::CALLED, gone(), "database", false),
            (Stage::RETURNED, gone(), "commit", true),
            (Stage::RETURNED, not_committed(), "not_committed", false),
        ] {
            let judgement = failure(stage, error);
            assert_eq!((judgement.verdict, judgement.code.as_str(), judgement.maybe), (RETRY, code, maybe));
            assert_eq!(judgement.row, Row::Untouched, "the relay writes it down");
        }
    }
}
