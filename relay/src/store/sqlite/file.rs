//! The database file: where it is, whether it is still the one that was opened, and how a connection to it is set up.
//!
//! Invariants
//! - Opening never creates a file: an outbox that appears because of a typing mistake would be served for ever.
//! - Every connection works in WAL mode with `synchronous = FULL`: what was committed survives a power cut.
//!
//! A known limit: `synchronous` belongs to a connection, not to the file. An application that sets it to NORMAL in WAL
//! mode, as many examples do, loses its last acknowledged commits in a power cut, and the relay cannot see it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::sql_types::{BigInt, Text};
use diesel::{Connection, SqliteConnection};

use super::statement::{load_one, statement};
use crate::store::StoreError;

/// How long a statement waits for the application's transaction to end before it is given up with `TryAgain`.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Between two tries where SQLite does not wait by itself.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

statement!(JournalMode, "PRAGMA journal_mode", Text);
statement!(SetJournalMode, "PRAGMA journal_mode = WAL", Text);
statement!(Synchronous, "PRAGMA synchronous", BigInt);
statement!(Encoding, "PRAGMA encoding", Text);
statement!(HasSchema, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'outbox_meta'", BigInt);
statement!(SchemaVersion, "SELECT schema_version FROM outbox_meta LIMIT 1", BigInt);

/// The file an URL names.
#[derive(Clone, Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
}

/// Tells a file from another one that was put in its place. As long as we hold the old file open, its number is not
/// given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

impl DatabaseFile {
    /// Reads `sqlite:path`, `sqlite:/absolute/path`, `sqlite://path` or `sqlite:///absolute/path`.
    ///
    /// The path is taken as it stands: nothing in it is decoded, and there are no parameters behind a question mark.
    pub(super) fn from_url(url: &str) -> Result<DatabaseFile, StoreError> {
        let path = url.strip_prefix("sqlite:").ok_or_else(|| StoreError::Unsuitable {
            problem: format!("`{url}` is not the URL of a SQLite database"),
            help: "write `sqlite:path/to/file.db`".into(),
        })?;
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(StoreError::Unsuitable {
                problem: "the database URL `sqlite:` names no file".into(),
                help: "write `sqlite:path/to/file.db`".into(),
            });
        }
        if path.starts_with(":memory:") || path.starts_with("file:") || path.contains("mode=memory") {
            return Err(StoreError::Unsuitable {
                problem: format!("`{url}` is no file that the relay and the application could share"),
                help: "a database in memory belongs to the one connection that made it; name a file, for example \
                       `sqlite:outbox.db`"
                    .into(),
            });
        }
        Ok(DatabaseFile { path: PathBuf::from(path) })
    }

    /// Which file is there now.
    pub(super) fn identity(&self) -> Result<Identity, StoreError> {
        let metadata = std::fs::metadata(&self.path).map_err(|error| self.unreachable(error))?;
        Ok(Identity::of(&metadata))
    }

    /// Opens the file for reading and writing.
    pub(super) fn open(&self) -> Result<SqliteConnection, StoreError> {
        let mut conn =
            SqliteConnection::establish(&existing_file_uri(&self.path)).map_err(|error| self.unreachable(error))?;
        self.set_up(&mut conn).map_err(|error| match super::classify("open", error) {
            StoreError::Refused { source, .. } => StoreError::Unreachable { target: self.target(), source },
            other => other,
        })?;
        Ok(conn)
    }

    fn set_up(&self, conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
        conn.batch_execute(&format!("PRAGMA busy_timeout = {}", BUSY_WAIT.as_millis()))?;
        if load_one::<JournalMode, String>(conn, &[])? != "wal" {
            set_wal(conn)?;
        }
        conn.batch_execute("PRAGMA synchronous = FULL")?;
        conn.batch_execute("PRAGMA foreign_keys = ON")
    }

    /// Refuses a file the relay cannot keep its promises on. `conn` is what [`DatabaseFile::open`] returned.
    pub(super) fn examine(&self, conn: &mut SqliteConnection) -> diesel::QueryResult<Result<(), StoreError>> {
        let journal_mode: String = load_one::<JournalMode, _>(conn, &[])?;
        if journal_mode != "wal" {
            return Ok(Err(self.unsuitable(
                format!("has the journal mode `{journal_mode}`"),
                "the relay needs `wal`: put the file on a local file system and let the relay write to its directory",
            )));
        }
        let synchronous: i64 = load_one::<Synchronous, _>(conn, &[])?;
        if synchronous < 2 {
            return Ok(Err(self.unsuitable(
                format!("is written with `synchronous = {synchronous}`"),
                "the SQLite library in use does not flush commits to disk; use the one built into the relay",
            )));
        }
        let encoding: String = load_one::<Encoding, _>(conn, &[])?;
        if encoding != "UTF-8" {
            return Ok(Err(self.unsuitable(
                format!("stores its text as {encoding}"),
                "payloads would change their bytes; create the database with `PRAGMA encoding = 'UTF-8'`",
            )));
        }
        if load_one::<HasSchema, i64>(conn, &[])? == 0 {
            return Ok(Err(
                self.unsuitable("is no outbox yet: its tables are missing".into(), "run `relay migrate up`")
            ));
        }
        let found: i64 = load_one::<SchemaVersion, _>(conn, &[])?;
        if found != SCHEMA_VERSION {
            let help = if found < SCHEMA_VERSION {
                "run `relay migrate up`; applications may keep enqueueing"
            } else {
                "a newer relay has migrated this database; run that one; applications may keep enqueueing"
            };
            return Ok(Err(
                self.unsuitable(format!("has schema version {found}, this relay needs {SCHEMA_VERSION}"), help)
            ));
        }
        // A read-only file shows only when something is written.
        conn.batch_execute("BEGIN IMMEDIATE")?;
        conn.batch_execute("ROLLBACK")?;
        Ok(Ok(()))
    }

    /// What a failure to open or to write means to a person, where that is known.
    pub(super) fn explain(&self, error: StoreError) -> StoreError {
        let text = match &error {
            StoreError::Unreachable { source, .. } | StoreError::Refused { source, .. } => source.to_string(),
            _ => return error,
        };
        if !self.path.exists() {
            return self.unsuitable("does not exist".into(), "`relay migrate up` creates it, or correct the path");
        }
        if self.path.is_dir() {
            return self.unsuitable("is a directory".into(), "name the database file inside it");
        }
        if text.contains("not a database") {
            return self.unsuitable("is not a SQLite database".into(), "correct the path");
        }
        if text.contains("readonly") || text.contains("unable to open") {
            return self.unsuitable(
                "cannot be written".into(),
                "let the relay's user write to the file and to its directory, where SQLite keeps `-wal` and `-shm`",
            );
        }
        error
    }

    fn unsuitable(&self, found: String, help: &str) -> StoreError {
        StoreError::Unsuitable { problem: format!("the database file `{}` {found}", self.target()), help: help.into() }
    }

    pub(super) fn unreachable(&self, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
        StoreError::Unreachable { target: self.target(), source: Box::new(error) }
    }

    fn target(&self) -> String {
        self.path.display().to_string()
    }
}

/// Changes the journal mode. Where it cannot be changed SQLite answers with the old one; `verify` has the words for that.
///
/// Against an application that is writing SQLite gives up at once, whatever `busy_timeout` says: it has begun to read by
/// then, and fears a deadlock.
fn set_wal(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    let deadline = Instant::now() + BUSY_WAIT;
    loop {
        match load_one::<SetJournalMode, String>(conn, &[]) {
            Err(error) if super::is_locked(&error) && Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
            changed => return changed.map(|_| ()),
        }
    }
}

/// The schema this build reads and writes.
const SCHEMA_VERSION: i64 = 1;

impl Identity {
    #[cfg(unix)]
    fn of(metadata: &std::fs::Metadata) -> Identity {
        use std::os::unix::fs::MetadataExt;
        Identity(metadata.dev(), metadata.ino())
    }

    #[cfg(not(unix))]
    fn of(metadata: &std::fs::Metadata) -> Identity {
        let created = metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        Identity(0, created.map_or(0, |at| at.as_nanos() as u64))
    }
}

/// The path as a URI that opens only what exists; SQLite has no other way to say so through diesel.
pub(crate) fn existing_file_uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => uri.push(byte as char),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?mode=rw");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_url_names_its_path() {
        for (url, path) in [
            ("sqlite:outbox.db", "outbox.db"),
            ("sqlite:./a b?.db", "./a b?.db"),
            ("sqlite:/var/lib/outbox.db", "/var/lib/outbox.db"),
            ("sqlite://outbox.db", "outbox.db"),
            ("sqlite:///var/lib/outbox.db", "/var/lib/outbox.db"),
        ] {
            assert_eq!(DatabaseFile::from_url(url).unwrap().path, Path::new(path), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_shared_is_refused_with_help() {
        for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:file:x?mode=memory", "sqlite:", "postgres://h/d"] {
            let error = DatabaseFile::from_url(url).unwrap_err();
            assert!(matches!(error, StoreError::Unsuitable { .. }), "{url}: {error}");
            assert!(error.to_string().contains("help: "), "{url}: {error}");
        }
    }

    #[test]
    fn opening_creates_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = DatabaseFile { path: folder.path().join("no such #file?.db") };
        assert!(matches!(file.open(), Err(StoreError::Unreachable { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::write(&file.path, b"").unwrap();
        file.open().unwrap();
    }
}
