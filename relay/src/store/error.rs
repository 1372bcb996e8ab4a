//! Why a database did not do what it was asked, sorted by what is right to do next.
//!
//! Absent: what each driver's errors mean; that is each store's own affair.

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection could be made, or it broke. Trying again later is right.
    #[error("the database at `{target}` cannot be reached")]
    Unreachable {
        /// Host and database, without credentials.
        target: String,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database answered with an error while `operation` ran.
    #[error("the database refused `{operation}`")]
    Refused {
        /// The statement's name.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server lost a race inside itself (deadlock, serialization, lock timeout). Trying again at once is right.
    #[error("the database asked to try `{operation}` again")]
    TryAgain {
        /// The statement's name.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A server answered that takes no writes: a standby, or a replica. It may be promoted, or the address may lead to
    /// the primary again, so a relay that has been at work waits; one that starts is refused.
    #[error("the database at `{target}` takes no writes: {found}\n  help: {help}")]
    ReadOnly {
        /// Host and database, without credentials.
        target: String,
        /// What was found.
        found: String,
        /// What to do.
        help: String,
    },
    /// The database is not one the relay may work on. A person must act.
    #[error("{problem}\n  help: {help}")]
    Unsuitable {
        /// What was found.
        problem: String,
        /// What to do.
        help: String,
    },
}

impl StoreError {
    /// True when it may be gone at the next try: the database could not be reached, asked to try again, or was a
    /// standby.
    pub fn is_passing(&self) -> bool {
        matches!(self, StoreError::Unreachable { .. } | StoreError::TryAgain { .. } | StoreError::ReadOnly { .. })
    }

    /// True when a person has to act first.
    pub fn is_unsuitable(&self) -> bool {
        matches!(self, StoreError::Unsuitable { .. })
    }
}
