//! An outbox under test: rows put in and looked at by plain SQL, and short words for what settles write.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use outbox_tests::database::{Kind, TestDatabase};
use relay::message::{Message, PartitionSet, RelayId, Seq, WaitingDelivery};
use relay::store::{
    Dies, DueIn, LaneDemand, MessageMove, Page, Reason, RelayRow, Remains, Row, Settled, Settlement, State, Store,
    UnitMove, WaitingChange, WaitingOutcome, Waits, Wanted,
};
use relay::store::{StoreOptions, open::open};

/// The hour most questions are asked at.
pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2031, 5, 17, 12, 0, 0).unwrap()
}

/// So many seconds after noon.
pub(crate) fn after_noon(seconds: i64) -> DateTime<Utc> {
    noon() + TimeDelta::seconds(seconds)
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A private outbox, a store on it, and a relay that owns every partition.
pub(crate) struct Outbox {
    pub(crate) database: TestDatabase,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) relay: RelayId,
    pub(crate) epochs: Vec<(u8, i64)>,
}

impl Outbox {
    pub(crate) async fn new(database: TestDatabase) -> Outbox {
        let store = store_on(database.url()).await;
        let relay = register(&*store, "first").await;
        let epochs = acquire(&*store, relay, PartitionSet::ALL).await;
        assert_eq!(epochs.len(), 32);
        Outbox { database, store, relay, epochs }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.database.kind()
    }

    /// Commits a message and returns its number.
    pub(crate) fn insert(&self, draft: &Draft) -> Seq {
        self.database.exec(&draft.sql(self.kind()));
        self.database.query_i64("SELECT max(seq) FROM outbox_messages")
    }

    /// Commits a message with this key, and reads it.
    pub(crate) async fn keyed(&self, key: &str) -> Message {
        let seq = self.insert(&Draft::default().key(key));
        self.message(seq).await
    }

    /// Everything that is pending, at noon.
    pub(crate) async fn read_all(&self) -> Page {
        let wanted = Wanted { cursor: 0, holes: Vec::new(), tail: true };
        self.store.message_read(&wanted, PartitionSet::ALL, 10_000, Some(noon())).await.unwrap()
    }

    pub(crate) async fn message(&self, seq: Seq) -> Message {
        mine(self.read_all().await.from_tail).into_iter().find(|message| message.seq == seq).unwrap()
    }

    /// Settles at noon what the relay of this outbox has to say.
    pub(crate) async fn settle(&self, moves: Vec<MessageMove>, waiting: Vec<WaitingOutcome>) -> Settled {
        let batch = Settlement { epochs: self.epochs.clone(), moves, waiting, ..Settlement::default() };
        self.store.settle(self.relay, &batch, Some(noon())).await.unwrap()
    }

    /// Settles and expects that nothing was refused.
    pub(crate) async fn settle_all(&self, moves: Vec<MessageMove>, waiting: Vec<WaitingOutcome>) -> Settled {
        let settled = self.settle(moves, waiting).await;
        assert_eq!(settled.refused_messages, [0; 0]);
        assert_eq!(settled.refused_waiting, [0; 0]);
        settled
    }

    /// Makes a message with this key wait for `destination`, and returns its number.
    pub(crate) async fn park(&self, key: &str, destination: &str) -> Seq {
        let message = self.keyed(key).await;
        self.settle_all(vec![moved(&message, vec![unit(destination, waits(State::Retry))])], vec![]).await;
        message.seq
    }

    /// What is due for `destination` at `now`.
    pub(crate) async fn due_at(&self, destination: &str, now: DateTime<Utc>) -> Vec<WaitingDelivery> {
        let lanes = [LaneDemand { destination: destination.into(), limit: 1000, without: Vec::new() }];
        self.store.delivery_due(&lanes, PartitionSet::ALL, Some(now)).await.unwrap().rows
    }

    /// What is due for `destination` within ten years.
    pub(crate) async fn due(&self, destination: &str) -> Vec<WaitingDelivery> {
        self.due_at(destination, noon() + TimeDelta::days(3650)).await
    }

    /// The waiting rows, by number, destination and id.
    pub(crate) fn waiting(&self) -> Vec<WaitingRow> {
        let select = format!(
            "SELECT concat_ws('|', id, seq, partition_no, destination, state, CASE WHEN blocked THEN 1 ELSE 0 END, \
             CASE WHEN in_order THEN 1 ELSE 0 END, life, attempts, {}, coalesce({}, '-'), coalesce(last_verdict, '-'), \
             coalesce(last_error, '-'), CASE WHEN suspect THEN 1 ELSE 0 END, \
             CASE WHEN attempted_by IS NULL THEN 0 ELSE 1 END, deaths) FROM outbox_deliveries",
            self.millis("due_at"),
            self.millis("first_attempt_at"),
        );
        let mut rows: Vec<WaitingRow> =
            self.database.query_text(&select).iter().map(|line| WaitingRow::parse(line.as_ref().unwrap())).collect();
        rows.sort_by(|a, b| (a.seq, &a.destination, a.id).cmp(&(b.seq, &b.destination, b.id)));
        rows
    }

    /// (number, destination) of the waiting rows that are not blocked.
    pub(crate) fn free(&self) -> Vec<(Seq, String)> {
        self.waiting().into_iter().filter(|row| !row.blocked).map(|row| (row.seq, row.destination)).collect()
    }

    /// The dead letters as `seq|destination|reason|attempts|blocks|life|verdict|error`, sorted.
    pub(crate) fn dead(&self) -> Vec<String> {
        let select = "SELECT concat_ws('|', seq, destination, reason, attempts, \
                      CASE WHEN blocks_key THEN 'blocks' ELSE 'passes' END, life, coalesce(last_verdict, '-'), \
                      coalesce(last_error, '-')) FROM outbox_dead_letters";
        let mut rows: Vec<String> = self.database.query_text(select).into_iter().map(Option::unwrap).collect();
        rows.sort();
        rows
    }

    /// Every row of every table that a settle may touch, as text: equal before and after means nothing changed.
    pub(crate) fn everything(&self) -> Vec<String> {
        let mut all = self.dead();
        all.extend(self.waiting().iter().map(|row| format!("{row:?}")));
        let history = "SELECT history FROM outbox_deliveries UNION ALL SELECT history FROM outbox_dead_letters";
        all.extend(self.database.query_text(history).into_iter().map(Option::unwrap));
        all.push(format!("{:?}", self.pending()));
        all.sort();
        all
    }

    /// The numbers in `outbox_messages`.
    pub(crate) fn pending(&self) -> Vec<Seq> {
        let text = self.cast_text("seq");
        let rows = self.database.query_text(&format!("SELECT {text} FROM outbox_messages"));
        let mut seqs: Vec<Seq> = rows.into_iter().map(|seq| seq.unwrap().parse().unwrap()).collect();
        seqs.sort_unstable();
        seqs
    }

    fn cast_text(&self, expression: &str) -> String {
        match self.kind() {
            Kind::Mariadb => format!("CAST({expression} AS CHAR)"),
            _ => format!("CAST({expression} AS text)"),
        }
    }

    /// A time column as milliseconds since 1970.
    fn millis(&self, column: &str) -> String {
        match self.kind() {
            Kind::Postgres => format!("CAST(CAST(round(extract(epoch FROM {column}) * 1000) AS bigint) AS text)"),
            Kind::Mariadb => {
                format!("CAST(timestampdiff(MICROSECOND, '1970-01-01 00:00:00', {column}) DIV 1000 AS CHAR)")
            }
            Kind::Sqlite => format!("CAST({column} AS text)"),
        }
    }

    /// Ends every connection to this database from outside, as an operator or a failover would.
    pub(crate) fn sever(&self) {
        match self.kind() {
            Kind::Postgres => self.database.exec(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            ),
            Kind::Mariadb => {
                let ids = self.database.query_text(&format!(
                    "SELECT CAST(id AS CHAR) FROM information_schema.processlist WHERE db = '{}'",
                    self.database.name()
                ));
                for id in ids.into_iter().flatten() {
                    // The connection that asked is among them, and has ended by itself.
                    let _ = self.database.try_exec(&format!("KILL CONNECTION {id}"));
                }
            }
            Kind::Sqlite => panic!("a file has no connections that can be ended from outside"),
        }
    }
}

pub(crate) async fn store_on(url: &str) -> Arc<dyn Store> {
    open(url, &StoreOptions::default()).await.unwrap()
}

/// Registers a relay under a new identity.
pub(crate) async fn register(store: &dyn Store, name: &str) -> RelayId {
    let id = uuid::Uuid::from_bytes(rand::random());
    let (version, lease) = ("0.0.0".into(), Duration::from_secs(5));
    let row = RelayRow { id, name: name.into(), version, lease, serves: vec!["mail".into()] };
    store.relay_register(&row).await.unwrap();
    id
}

/// Takes partitions and returns (number, epoch) of each.
pub(crate) async fn acquire(store: &dyn Store, relay: RelayId, wanted: PartitionSet) -> Vec<(u8, i64)> {
    let taken = store.partition_acquire(relay, wanted).await.unwrap();
    taken.into_iter().map(|taken| (taken.partition_no, taken.epoch)).collect()
}

/// A row of `outbox_deliveries`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WaitingRow {
    pub(crate) id: i64,
    pub(crate) seq: Seq,
    pub(crate) partition_no: u8,
    pub(crate) destination: String,
    pub(crate) state: String,
    pub(crate) blocked: bool,
    pub(crate) in_order: bool,
    pub(crate) life: u32,
    pub(crate) attempts: u32,
    pub(crate) due_at: DateTime<Utc>,
    pub(crate) first_attempt_at: Option<DateTime<Utc>>,
    pub(crate) last_verdict: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) suspect: bool,
    pub(crate) marked: bool,
    pub(crate) deaths: u32,
}

impl WaitingRow {
    fn parse(line: &str) -> WaitingRow {
        let part: Vec<&str> = line.split('|').collect();
        let time = |text: &str| Utc.timestamp_millis_opt(text.parse().unwrap()).unwrap();
        let given = |text: &str| (text != "-").then(|| text.to_owned());
        WaitingRow {
            id: part[0].parse().unwrap(),
            seq: part[1].parse().unwrap(),
            partition_no: part[2].parse().unwrap(),
            destination: part[3].into(),
            state: part[4].into(),
            blocked: part[5] == "1",
            in_order: part[6] == "1",
            life: part[7].parse().unwrap(),
            attempts: part[8].parse().unwrap(),
            due_at: time(part[9]),
            first_attempt_at: given(part[10]).map(|text| time(&text)),
            last_verdict: given(part[11]),
            last_error: given(part[12]),
            suspect: part[13] == "1",
            marked: part[14] == "1",
            deaths: part[15].parse().unwrap(),
        }
    }
}

/// A message as a producer writes it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) topic: String,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
    pub(crate) headers: String,
    pub(crate) destination: Option<String>,
    pub(crate) deliver_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) tracked: bool,
    pub(crate) created_at: Option<DateTime<Utc>>,
}

impl Default for Draft {
    fn default() -> Self {
        Draft {
            topic: "order.placed".into(),
            key: None,
            payload: b"{}".to_vec(),
            headers: "{}".into(),
            destination: None,
            deliver_at: None,
            expires_at: None,
            tracked: false,
            created_at: None,
        }
    }
}

impl Draft {
    pub(crate) fn key(mut self, key: &str) -> Draft {
        self.key = Some(key.into());
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Draft {
        self.payload = payload.into();
        self
    }

    pub(crate) fn headers(mut self, headers: &str) -> Draft {
        self.headers = headers.into();
        self
    }

    pub(crate) fn deliver_at(mut self, at: DateTime<Utc>) -> Draft {
        self.deliver_at = Some(at);
        self
    }

    /// The INSERT, in the words of `kind`.
    pub(crate) fn sql(&self, kind: Kind) -> String {
        let payload = match kind {
            Kind::Postgres => "payload_bytes",
            _ => "payload",
        };
        let mut columns = format!("topic, {payload}, headers, version");
        let mut values = format!(
            "{}, {}, {}, 7",
            text(kind, self.topic.as_bytes()),
            bytes(kind, &self.payload),
            text(kind, self.headers.as_bytes())
        );
        let mut set = |column: &str, value: String| {
            write!(columns, ", {column}").unwrap();
            write!(values, ", {value}").unwrap();
        };
        if let Some(key) = &self.key {
            set("ordering_key", text(kind, key));
        }
        if let Some(destination) = &self.destination {
            set("destination", text(kind, destination.as_bytes()));
        }
        if let Some(at) = self.deliver_at {
            set("deliver_at", time(kind, at));
        }
        if let Some(at) = self.expires_at {
            set("expires_at", time(kind, at));
        }
        if let Some(at) = self.created_at {
            set("created_at", time(kind, at));
        }
        if self.tracked {
            set("operation_id", uuid(kind, RelayId::from_u128(5)));
        }
        format!("INSERT INTO outbox_messages ({columns}) VALUES ({values})")
    }
}

/// A literal of a text column, byte for byte.
pub(crate) fn text(kind: Kind, value: &[u8]) -> String {
    match kind {
        Kind::Postgres => format!("convert_from('\\x{}', 'UTF8')", hex(value)),
        Kind::Mariadb if value.is_empty() => "''".into(),
        Kind::Mariadb => format!("_utf8mb4 x'{}'", hex(value)),
        Kind::Sqlite => format!("CAST(x'{}' AS TEXT)", hex(value)),
    }
}

/// A literal of bytes.
pub(crate) fn bytes(kind: Kind, value: &[u8]) -> String {
    match kind {
        Kind::Postgres => format!("'\\x{}'::bytea", hex(value)),
        Kind::Mariadb | Kind::Sqlite => format!("x'{}'", hex(value)),
    }
}

/// A literal of an instant.
pub(crate) fn time(kind: Kind, at: DateTime<Utc>) -> String {
    match kind {
        Kind::Postgres => format!("'{}+00'::timestamptz", at.format("%Y-%m-%d %H:%M:%S%.6f")),
        Kind::Mariadb => format!("'{}'", at.format("%Y-%m-%d %H:%M:%S%.6f")),
        Kind::Sqlite => at.timestamp_millis().to_string(),
    }
}

/// A literal of an id.
pub(crate) fn uuid(kind: Kind, id: RelayId) -> String {
    match kind {
        Kind::Postgres => format!("'{id}'::uuid"),
        Kind::Mariadb | Kind::Sqlite => format!("x'{}'", id.simple()),
    }
}

fn hex(value: &[u8]) -> String {
    value.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The messages among the rows; fails when one belongs to somebody else.
pub(crate) fn mine(rows: Vec<Row>) -> Vec<Message> {
    let own = |row| match row {
        Row::Mine(message) => *message,
        Row::Foreign { seq, .. } => panic!("{seq} came back as somebody else's"),
    };
    rows.into_iter().map(own).collect()
}

pub(crate) fn seqs(rows: &[Row]) -> Vec<Seq> {
    rows.iter().map(Row::seq).collect()
}

/// The message leaves with these units.
pub(crate) fn moved(message: &Message, units: Vec<UnitMove>) -> MessageMove {
    MessageMove {
        seq: message.seq,
        id: message.id,
        partition_no: message.partition_no,
        ordering_key: message.ordering_key.clone(),
        units,
    }
}

pub(crate) fn unit(destination: &str, remains: impl Into<RemainsOf>) -> UnitMove {
    UnitMove { destination: destination.into(), remains: remains.into().0 }
}

/// What remains, from either of its two forms.
pub(crate) struct RemainsOf(pub(crate) Remains);

impl From<Waits> for RemainsOf {
    fn from(waits: Waits) -> Self {
        RemainsOf(Remains::Waits(waits))
    }
}

impl From<Dies> for RemainsOf {
    fn from(dies: Dies) -> Self {
        RemainsOf(Remains::Dies(dies))
    }
}

/// Waits after a first attempt that failed, due a minute past noon.
pub(crate) fn waits(state: State) -> Waits {
    Waits {
        state,
        attempts: 1,
        due: DueIn::Pause(secs(60)),
        in_order: true,
        first_attempt_age: Some(secs(2)),
        last_verdict: Some("retry"),
        last_error: Some("503".into()),
        history: vec![entry(1)],
    }
}

/// Dies after a first attempt, letting its key go on.
pub(crate) fn dies(reason: Reason) -> Dies {
    Dies {
        reason,
        attempts: 1,
        blocks_key: false,
        fingerprint: "f".into(),
        first_attempt_age: Some(secs(2)),
        last_verdict: Some("reject"),
        last_error: Some("400".into()),
        history: vec![entry(1)],
    }
}

pub(crate) fn entry(n: u32) -> relay::message::HistoryEntry {
    relay::message::HistoryEntry {
        n,
        at: noon(),
        ms: 12,
        verdict: "retry".into(),
        code: "503".into(),
        relay: "first".into(),
        maybe: true,
        remote: Some("[2001:db8::1]:443".into()),
        text: "zu viel\n\u{0}".into(),
    }
}

/// The outcome of a row that was read.
pub(crate) fn outcome(row: &WaitingDelivery, change: WaitingChange) -> WaitingOutcome {
    WaitingOutcome {
        message_id: row.message.id,
        id: row.id,
        partition_no: row.message.partition_no,
        destination: row.destination.clone(),
        ordering_key: row.message.ordering_key.clone(),
        attempts_read: row.attempts,
        change,
    }
}
