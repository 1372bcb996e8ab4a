//! What can go wrong, in words that say what to do.
//!
//! Everything refused here is refused before anything is written; what the database itself refuses arrives as
//! `Database`, unchanged. The text of an error names what was wrong, never a payload or the value of a header.

use std::fmt;

use diesel::result::Error as DieselError;

/// Why an outbox call failed.
///
/// Converts into [`diesel::result::Error`] and back without loss, so that `?` works in a transaction closure that
/// returns either of the two.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Happens when a function that must be part of a transaction is called outside one, or when the server has ended the
    /// transaction behind diesel's back (on MariaDB and MySQL a deadlock or a DDL statement does). Nothing was written.
    NotInTransaction {
        /// The function, for example `enqueue`.
        call: &'static str,
    },
    /// Happens on a [strict](crate::testing::strict) connection when the only transaction is that of the test. Nothing was
    /// written.
    OnlyInTestTransaction {
        /// The function, for example `enqueue`.
        call: &'static str,
    },
    /// Happens in [`transaction`](crate::transaction) when the database had ended the transaction before it was to be
    /// committed; carries the database's answer. What came before the end did not commit (after a DDL statement on MariaDB
    /// and MySQL it did), so the whole cannot be relied on.
    NotCommitted(DieselError),
    /// Happens when a message breaks a rule that every database and every receiver relies on. Nothing was written.
    Refused(Refusal),
    /// Happens when a message does not turn into JSON. Nothing was written.
    Serialize(serde_json::Error),
    /// Happens in [`cancel`](crate::cancel) when the message was not found where it should be, and there are more pending
    /// messages than are looked at. Nothing was changed.
    NotLookedAtAll {
        /// How many of the oldest were looked at.
        looked_at: u32,
    },
    /// Happens in [`destinations::remove`](crate::destinations::remove) when another transaction holds rows it needs, and did
    /// for a second. It does not wait longer, because relays wait for what it holds itself. Its transaction was rolled
    /// back; try again, or find out who holds them.
    Locked {
        /// What is held, for example `the deliveries that wait for it`.
        what: &'static str,
        /// The database's answer.
        answer: DieselError,
    },
    /// Happens when the migrations cannot be applied; the text says why and what to do.
    Migration(String),
    /// Happens when the database, or the connection to it, fails.
    Database(DieselError),
}

/// Which rule a message broke, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub(crate) problem: String,
    pub(crate) help: String,
}

impl Refusal {
    pub(crate) fn new(problem: impl Into<String>, help: impl Into<String>) -> Refusal {
        Refusal { problem: problem.into(), help: help.into() }
    }
}

impl Error {
    /// True when the call failed because no transaction was open, or none but that of a test.
    pub fn is_not_in_transaction(&self) -> bool {
        matches!(self, Error::NotInTransaction { .. } | Error::OnlyInTestTransaction { .. })
    }

    /// True when a transaction ran to its end and did not commit.
    pub fn is_not_committed(&self) -> bool {
        matches!(self, Error::NotCommitted(_))
    }

    /// True when another transaction held what is needed, so that trying again helps.
    pub fn is_locked(&self) -> bool {
        matches!(self, Error::Locked { .. })
    }

    /// True when the message itself can never be enqueued, so that trying again is pointless.
    pub fn is_refused(&self) -> bool {
        matches!(self, Error::Refused(_) | Error::Serialize(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbox: {}.\n  help: {}.", self.problem, self.help)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotInTransaction { call } => {
                let (why, instead) = reasons(call);
                write!(
                    f,
                    "outbox: {call} was called outside a transaction.\n  {why}\n  \
                     help: call it inside `conn.transaction(|conn| …)`{instead}. On MariaDB and MySQL a deadlock or a DDL \
                     statement ends the transaction: return its error instead of going on.",
                )
            }
            Error::OnlyInTestTransaction { call } => {
                let (why, _) = reasons(call);
                write!(
                    f,
                    "outbox: {call} was called in no transaction but that of the test, and the connection is strict.\n  \
                     Without the test: {why}\n  \
                     help: let the code under test open a transaction, `conn.transaction(|conn| …)`.",
                )
            }
            Error::NotCommitted(answer) => write!(
                f,
                "outbox: the transaction did not commit: {answer}.\n  \
                 The database had ended it before; a plain COMMIT would have been answered with success.\n  \
                 help: return the error of a failed statement from the closure instead of going on, or put that \
                 statement into a `conn.transaction(|conn| …)` of its own, which is a savepoint. On MariaDB and MySQL \
                 keep DDL statements out of transactions.",
            ),
            Error::Refused(refusal) => refusal.fmt(f),
            Error::Serialize(source) => write!(
                f,
                "outbox: the message cannot be written as JSON: {source}.\n  \
                 help: change its `Serialize`, or enqueue bytes with `Envelope::raw`.",
            ),
            Error::NotLookedAtAll { looked_at } => write!(
                f,
                "outbox: the message is not among the {looked_at} oldest pending ones, nor where its id places it in time, \
                 and there are more.\n  \
                 help: name its number as well, as in `cancel(conn, (message_id, seq))`; it is in the outcome of \
                 `outbox::messages::find` and in the column `seq`.",
            ),
            Error::Locked { what, answer } => write!(
                f,
                "outbox: another transaction holds {what}: {answer}.\n  \
                 Relays wait for what a removal holds, so it does not wait long; what it had begun was undone.\n  \
                 help: try again when that transaction has ended. On PostgreSQL `pg_locks` and `pg_stat_activity` show \
                 whose it is, on MariaDB and MySQL `information_schema.innodb_trx`.",
            ),
            Error::Migration(text) => write!(f, "outbox: {text}"),
            Error::Database(source) => source.fmt(f),
        }
    }
}

/// Why a function must be part of a transaction, and what else to call.
fn reasons(call: &str) -> (&'static str, &'static str) {
    match call {
        "cancel" => ("The message would be gone even if the reason for it is rolled back.", ""),
        "inbox::once" => ("The message would count as seen even if its effect is rolled back.", ""),
        "enqueue" => (
            "The message would be committed on its own, which is the bug an outbox prevents.",
            ", or use `enqueue_unchecked` if you manage the transaction yourself",
        ),
        _ => ("The message would be committed on its own, which is the bug an outbox prevents.", ""),
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Serialize(source) => Some(source),
            // These show their source's own text, so the chain goes on behind it.
            Error::Database(source) | Error::NotCommitted(source) | Error::Locked { answer: source, .. } => {
                source.source()
            }
            Error::NotInTransaction { .. }
            | Error::OnlyInTestTransaction { .. }
            | Error::NotLookedAtAll { .. }
            | Error::Refused(_)
            | Error::Migration(_) => None,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused(refusal)
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Error {
        match error {
            DieselError::QueryBuilderError(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => Error::Database(DieselError::QueryBuilderError(inner)),
            },
            error => Error::Database(error),
        }
    }
}

impl From<Error> for DieselError {
    fn from(error: Error) -> DieselError {
        match error {
            Error::Database(error) => error,
            // The only variant of diesel's that carries a foreign error; it prints ours.
            error => DieselError::QueryBuilderError(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_travel_through_diesels_and_back() {
        let refusal = || Refusal::new("a", "b");
        let there_and_back = |error: Error| Error::from(DieselError::from(error));
        assert!(there_and_back(Error::NotInTransaction { call: "enqueue" }).is_not_in_transaction());
        assert!(matches!(there_and_back(refusal().into()), Error::Refused(back) if back == refusal()));
        assert!(matches!(there_and_back(Error::Migration("m".into())), Error::Migration(text) if text == "m"));
        assert!(matches!(DieselError::from(Error::Database(DieselError::NotFound)), DieselError::NotFound));
        let foreign = DieselError::QueryBuilderError("x".into());
        assert!(matches!(Error::from(foreign), Error::Database(DieselError::QueryBuilderError(_))));
    }

    #[test]
    fn text_of_an_error_survives_the_way_through_diesel() {
        let text = DieselError::from(Error::NotInTransaction { call: "enqueue" }).to_string();
        assert!(text.starts_with("outbox: enqueue was called outside a transaction.\n"), "{text}");
        assert!(text.contains("\n  help: call it inside `conn.transaction(|conn| …)`, or use `enqueue_un"), "{text}");
    }

    #[test]
    fn what_was_called_is_named() {
        for call in ["enqueue", "enqueue_all", "enqueue_unchecked", "cancel", "inbox::once"] {
            for error in [Error::NotInTransaction { call }, Error::OnlyInTestTransaction { call }] {
                let text = error.to_string();
                assert!(text.starts_with(&format!("outbox: {call} was called ")), "{text}");
                assert_eq!(text.contains("enqueue_unchecked`"), call == "enqueue" && !text.contains("test"), "{text}");
            }
        }
    }
}
