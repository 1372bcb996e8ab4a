//! A thread that owns a connection.
//!
//! diesel's SQLite connection blocks. What is asked of it runs here to its end, whether the asking future still waits
//! for the answer or was dropped. The connection is opened at the first question, opened anew when another file stands
//! in its place, and closed after every failure that is not a wait for a lock. The thread ends when the worker is
//! dropped and all that was asked is done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use diesel::{QueryResult, SqliteConnection};
use tokio::sync::oneshot;

use super::file::{DatabaseFile, Identity};
use crate::message::Seq;
use crate::store::StoreError;

type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// The handle of the thread.
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

/// An open connection and what is remembered of it.
pub(super) struct Open {
    /// The connection.
    pub(super) conn: SqliteConnection,
    /// Changes when nothing that was seen before proves anything any more.
    pub(super) incarnation: u64,
    /// The highest number the database said it had handed out.
    pub(super) highest: Seq,
    identity: Identity,
}

/// What lives on the thread.
struct Session {
    file: DatabaseFile,
    open: Option<Open>,
    incarnation: u64,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(name: &str, file: DatabaseFile) -> Result<Worker, StoreError> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let mut session = Session { file: file.clone(), open: None, incarnation: 0 };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                for job in receiver {
                    // A panic drops the job's answer channel, which tells the one who asked.
                    if catch_unwind(AssertUnwindSafe(|| job(&mut session))).is_err() {
                        session.open = None;
                    }
                }
            })
            .map_err(|error| file.unreachable(error))?;
        Ok(Worker { jobs })
    }

    /// Runs `work` on the connection and waits for its answer.
    pub(super) async fn run<T, F>(&self, operation: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Open) -> QueryResult<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |session| {
            // Nobody may be waiting any more; the work is done all the same.
            let _ = answer.send(session.run(operation, work));
        });
        let gone = || StoreError::Refused { operation, source: "the thread of the database file panicked".into() };
        self.jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Session {
    fn run<T>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&mut Open) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let result = work(self.ready()?).map_err(|error| super::classify(operation, error));
        if matches!(&result, Err(error) if !matches!(error, StoreError::TryAgain { .. })) {
            self.open = None;
        }
        result
    }

    /// The connection to the file that is there now.
    fn ready(&mut self) -> Result<&mut Open, StoreError> {
        let identity = self.file.identity().inspect_err(|_| self.open = None)?;
        // Asked before opening: a file replaced in between is noticed at the next question.
        if self.open.as_ref().is_none_or(|open| open.identity != identity) {
            self.open = None;
            let conn = self.file.open()?;
            self.incarnation += 1;
            // The lower half is left for what the connection itself notices.
            self.open = Some(Open { conn, incarnation: self.incarnation << 32, highest: 0, identity });
        }
        Ok(self.open.as_mut().expect("it was opened above"))
    }
}
