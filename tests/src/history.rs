//! What happened, as those saw it who stand outside the product: producers, receivers, and whoever breaks things.
//!
//! A history is a file of JSON lines, one [`Record`] each, with times of one monotonic clock in microseconds since the
//! recording began. `checker` reads nothing else. The file stays behind after the run, so that a violation can be
//! looked into with a pager.
//!
//! What a producer writes down, in this order:
//! `tx.invoke`, for each message `enqueue` when it has returned, `tx.commit` just before the commit is asked for, then
//! `tx.ok`, `tx.fail`, or `tx.info` when the answer was lost, followed by `tx.resolved` once it was found out.
//!
//! Producers and receivers live in the process of the test: the clock is not shared beyond it.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::receiver::Request;

/// Microseconds since the recording began.
pub type Micros = u64;

/// The number a producer gave to one of its transactions.
pub type Tx = u64;

/// A message id as receivers see it.
pub type Id = String;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was written.
    pub t: Micros,
    /// What happened.
    #[serde(flatten)]
    pub fact: Fact,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what")]
pub enum Fact {
    /// The first line: what is being run.
    #[serde(rename = "run")]
    Run(Run),
    /// A transaction is about to begin.
    #[serde(rename = "tx.invoke")]
    TxInvoke {
        /// Which.
        tx: Tx,
    },
    /// A message was enqueued in an open transaction.
    #[serde(rename = "enqueue")]
    Enqueue(Enqueued),
    /// Messages were taken back by rolling back to a savepoint; the transaction goes on.
    #[serde(rename = "undo")]
    Undo {
        /// In which transaction.
        tx: Tx,
        /// Which messages.
        ids: Vec<Id>,
    },
    /// The commit is about to be asked for. Nothing may be received before this.
    #[serde(rename = "tx.commit")]
    TxCommit {
        /// Which.
        tx: Tx,
    },
    /// The commit was acknowledged.
    #[serde(rename = "tx.ok")]
    TxOk {
        /// Which.
        tx: Tx,
    },
    /// The transaction certainly rolled back.
    #[serde(rename = "tx.fail")]
    TxFail {
        /// Which.
        tx: Tx,
    },
    /// Nobody knows yet whether it committed.
    #[serde(rename = "tx.info")]
    TxInfo {
        /// Which.
        tx: Tx,
    },
    /// It was found out.
    #[serde(rename = "tx.resolved")]
    TxResolved {
        /// Which.
        tx: Tx,
        /// Whether its messages exist.
        committed: bool,
    },
    /// A receiver was asked and has answered.
    #[serde(rename = "recv")]
    Recv(Received),
    /// Something was broken on purpose.
    #[serde(rename = "fault")]
    Fault {
        /// In one word, such as `kill`.
        kind: String,
        /// How many units may be delivered twice because of it: those in flight, and those delivered and not settled.
        in_flight: u64,
    },
    /// An operator sent a dead letter again.
    #[serde(rename = "redrive")]
    Redrive {
        /// The message.
        id: Id,
        /// The destination.
        destination: String,
    },
    /// An operator dropped a dead letter.
    #[serde(rename = "discard")]
    Discard {
        /// The message.
        id: Id,
        /// The destination.
        destination: String,
    },
    /// The tables when everything had come to rest. The last one counts.
    #[serde(rename = "snapshot")]
    Snapshot(Snapshot),
}

/// What is being run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where all randomness came from.
    pub seed: u64,
    /// The database and whatever else tells runs apart, for people.
    pub about: String,
    /// How many units may be delivered twice without any fault.
    #[serde(default)]
    pub duplicates: u64,
    /// Destinations without an order.
    #[serde(default)]
    pub unordered: Vec<String>,
}

/// A message as its producer knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Enqueued {
    /// In which transaction.
    pub tx: Tx,
    /// When the call began.
    pub began: Micros,
    /// The message id.
    pub id: Id,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// Where it has to arrive.
    pub destinations: Vec<String>,
    /// True when it has a later delivery time: it neither waits for its key nor blocks it.
    #[serde(default)]
    pub scheduled: bool,
    /// What the body is.
    pub body: Body,
}

/// An attempt as its receiver knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// Which receiver.
    pub destination: String,
    /// The message id it was told.
    pub id: Id,
    /// The ordering key it was told.
    pub key: Option<String>,
    /// The number of the attempt it was told.
    pub attempt: u32,
    /// What the body was.
    pub body: Body,
    /// When the request had arrived.
    pub t0: Micros,
    /// When the answer was sent.
    pub t1: Micros,
    /// The status; 0 when the connection was cut instead.
    pub answer: u16,
}

impl Received {
    /// True when the receiver said that it has the message.
    pub fn accepted(&self) -> bool {
        (200..300).contains(&self.answer)
    }
}

/// Enough of a body to notice that it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Body {
    /// Bytes.
    pub len: u64,
    /// FNV-1a over them: accidents are looked for here, not forgers.
    pub digest: u64,
}

impl Body {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Body {
        let digest = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Body { len: bytes.len() as u64, digest }
    }
}

/// The tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Committed and not settled.
    pub pending: Vec<Id>,
    /// Waiting rows.
    pub waiting: Vec<Waiting>,
    /// Dead letters.
    pub dead: Vec<Dead>,
}

/// A waiting row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The message.
    pub id: Id,
    /// The destination; empty when it is not routed yet.
    pub destination: String,
    /// The label for people.
    pub state: String,
    /// True when it waits for another one of its key.
    pub blocked: bool,
    /// False when it neither waits for its key nor blocks it.
    pub in_order: bool,
    /// True when its time has come.
    pub due: bool,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dead {
    /// The message.
    pub id: Id,
    /// The destination.
    pub destination: String,
    /// Why.
    pub reason: String,
    /// True when its key waits for an operator.
    pub blocks_key: bool,
}

/// A whole recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// In the order they were written.
    pub records: Vec<Record>,
}

impl History {
    /// Reads a file of JSON lines.
    ///
    /// # Panics
    ///
    /// When it cannot be read, or a line is not a record.
    pub fn read(path: &Path) -> History {
        let file = File::open(path).unwrap_or_else(|error| panic!("cannot read `{}`: {error}", path.display()));
        let records = BufReader::new(file)
            .lines()
            .enumerate()
            .map(|(at, line)| {
                serde_json::from_str(&line.unwrap())
                    .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), at + 1))
            })
            .collect();
        History { records }
    }
}

/// Writes a history; cheap to clone, shared by everybody who has something to tell.
#[derive(Clone, Debug)]
pub struct Recorder {
    began: Instant,
    path: PathBuf,
    file: Arc<Mutex<BufWriter<File>>>,
    transactions: Arc<AtomicU64>,
}

impl Recorder {
    /// Begins a recording in `histories/<name>.jsonl` beside the test's executable.
    pub fn create(name: &str, run: Run) -> Recorder {
        let folder = std::env::current_exe().unwrap().parent().unwrap().join("histories");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.jsonl"));
        let file = Arc::new(Mutex::new(BufWriter::new(File::create(&path).unwrap())));
        let recorder = Recorder { began: Instant::now(), path, file, transactions: Arc::default() };
        recorder.write(Fact::Run(run));
        recorder
    }

    /// The present moment.
    pub fn now(&self) -> Micros {
        self.began.elapsed().as_micros() as Micros
    }

    /// Writes down that something has happened by now.
    pub fn write(&self, fact: Fact) {
        let mut file = self.file.lock().unwrap();
        // The clock is read under the lock: lines are in the order of their times.
        let record = Record { t: self.now(), fact };
        serde_json::to_writer(&mut *file, &record).unwrap();
        file.write_all(b"\n").unwrap();
    }

    /// Writes down that a receiver is about to answer a request; the status is 0 when it cuts the connection instead.
    ///
    /// Written before the sender can know, so that no attempt that follows from the answer seems to come before it.
    pub fn received(&self, destination: &str, request: &Request, answer: u16) {
        let waited = request.at.elapsed().as_micros() as Micros;
        let t1 = self.now();
        self.write(Fact::Recv(Received {
            destination: destination.to_owned(),
            id: request.id().to_owned(),
            key: request.header("ce-partitionkey").map(str::to_owned),
            attempt: request.header("outbox-attempt").and_then(|number| number.parse().ok()).unwrap_or_default(),
            body: Body::of(&request.body),
            t0: t1.saturating_sub(waited),
            t1,
            answer,
        }));
    }

    /// Writes down that a transaction is about to begin, and returns who writes the rest of it.
    pub fn transaction(&self) -> TxRecorder {
        let tx = self.transactions.fetch_add(1, Ordering::Relaxed);
        self.write(Fact::TxInvoke { tx });
        TxRecorder { recorder: self.clone(), tx }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything written so far.
    pub fn history(&self) -> History {
        self.file.lock().unwrap().flush().unwrap();
        History::read(&self.path)
    }
}

/// Writes the part of one transaction.
///
/// One that is never told an end counts as rolled back, or, when its commit had been asked for, as unknown.
#[derive(Debug)]
pub struct TxRecorder {
    recorder: Recorder,
    tx: Tx,
}

impl TxRecorder {
    /// A message was enqueued by a call that began at `began` and has returned.
    pub fn enqueued(&self, began: Micros, id: &str, topic: &str, key: Option<&str>, to: &[&str], body: &[u8]) {
        self.recorder.write(Fact::Enqueue(Enqueued {
            tx: self.tx,
            began,
            id: id.to_owned(),
            topic: topic.to_owned(),
            key: key.map(str::to_owned),
            destinations: to.iter().map(|destination| (*destination).to_owned()).collect(),
            scheduled: false,
            body: Body::of(body),
        }));
    }

    /// These messages were taken back with a savepoint.
    pub fn undone(&self, ids: Vec<Id>) {
        self.recorder.write(Fact::Undo { tx: self.tx, ids });
    }

    /// The commit is about to be asked for: the last thing inside the transaction.
    pub fn commit_asked(&self) {
        self.recorder.write(Fact::TxCommit { tx: self.tx });
    }

    /// It committed.
    pub fn committed(self) {
        self.recorder.write(Fact::TxOk { tx: self.tx });
    }

    /// It certainly rolled back.
    pub fn rolled_back(self) {
        self.recorder.write(Fact::TxFail { tx: self.tx });
    }

    /// The answer to the commit was lost. Ends with [`resolved`](TxRecorder::resolved) when it is found out.
    pub fn unknown(&self) {
        self.recorder.write(Fact::TxInfo { tx: self.tx });
    }

    /// It was found out what became of it.
    pub fn resolved(self, committed: bool) {
        self.recorder.write(Fact::TxResolved { tx: self.tx, committed });
    }
}
