//! Endpoints that refuse, stall, lie, flood and drip, all at once, at one relay with a healthy neighbour.
//!
//! Of each endpoint is asked: was every attempt judged as the contract says, did it end in its time, and were there as many
//! on the wire as in the history? Of all together: what did they cost the process, and what the neighbour?
//!
//! The suite runs in a process of its own, so that what it costs is its own, and because the certificate that endpoints of
//! HTTP/2 need is one that only this process trusts.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outbox::Envelope;
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::receiver::{Answer, Receiver};
use relay::event::Event;
use relay::message::HistoryEntry;
use relay::retry::RetryPolicy;
use relay::{Http, Relay};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use self::cases::{Case, Expected};
use self::server::{Endpoint, Script};
use crate::delivery::stage::Running;

mod cases;
mod server;

/// What each attempt may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How much later one may have ended on a machine that has other things to do as well.
const MARGIN: Duration = Duration::from_secs(5);
/// After this long something that should have happened has not.
const LIMIT: Duration = Duration::from_secs(90);
/// Far more than it takes, and far less than any of the floods has to give.
const MEMORY_MAX: u64 = 128;
/// The same of time: a relay that stands still for seconds, or a flood that is read as fast as it comes, takes more.
const PROCESSOR_SECS_MAX: f64 = 6.0;
const P50_MAX: Duration = Duration::from_millis(100);
const P99_MAX: Duration = Duration::from_secs(2);
/// Less says nothing about the neighbour.
const BESIDE_MIN: usize = 100;
const NEIGHBOUR: &str = "neighbour";
/// How often the neighbour is sent something.
const PACE: Duration = Duration::from_millis(20);
/// For how long at least it is looked at alone.
const ALONE: usize = 150;
/// Where the certificates are.
const FOLDER: &str = "HOSTILE_CERTIFICATES";

#[tokio::test]
async fn hostile_endpoints_are_contained() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "hostile::in_a_process_of_its_own", "--ignored", "--nocapture"]);
    child
        .env(FOLDER, folder.path())
        .env("SSL_CERT_FILE", folder.path().join("authority.pem"))
        .env_remove("SSL_CERT_DIR");
    let output = child.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| line.starts_with("hostile: ")) {
        println!("{line}");
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, and a certificate of its for this machine.
fn make_certificates(folder: &Path) {
    let openssl = |words: &str| {
        let made = Command::new("openssl").args(words.split(' ')).current_dir(folder).output();
        let made = made.unwrap_or_else(|error| panic!("certificates are made with `openssl`: {error}"));
        assert!(made.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&made.stderr));
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {new} -days 2 -subj /CN=authority -keyout authority-key.pem -out authority.pem"));
    openssl(&format!("req {new} -subj /CN=endpoint -keyout key.pem -out request.pem"));
    std::fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        "x509 -req -in request.pem -CA authority.pem -CAkey authority-key.pem -CAcreateserial -days 2 -extfile extensions \
         -out certificate.pem",
    );
}

/// TLS that offers HTTP/2 alone.
fn acceptor(folder: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(folder.join("certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config).into()
}

/// An attempt, as the relay tells it.
#[derive(Clone, Debug)]
struct Attempted {
    message: Uuid,
    destination: String,
    verdict: &'static str,
    code: String,
    took: Duration,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs as the child of `hostile_endpoints_are_contained`"]
async fn in_a_process_of_its_own() {
    let tls = acceptor(Path::new(&std::env::var(FOLDER).expect("the parent says where the certificates are")));
    let mut cases = cases::all();
    if let Ok(some) = std::env::var("OUTBOX_TEST_HOSTILE") {
        cases.retain(|case| case.name.contains(&some));
    }
    // The others have threads of their own: what they do to the relay they do through the network.
    let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let scripts: Vec<Script> = cases.iter().map(|case| case.script.clone()).collect();
    let starting = elsewhere.spawn(async move {
        let mut endpoints = Vec::new();
        for script in scripts {
            endpoints.push(Endpoint::start(&script, &tls).await);
        }
        (endpoints, Receiver::always(Answer::status(200)).await)
    });
    let (endpoints, neighbour) = starting.await.unwrap();
    let database = Arc::new(TestDatabase::with_schema(Kind::Sqlite));
    let attempted = Arc::new(Mutex::new(Vec::<Attempted>::new()));
    let relay = Running::start(relay(&database, &neighbour, cases.iter().zip(&endpoints), &attempted)).await;

    let load = Load::start(&database);
    neighbour.wait_until(LIMIT, "the neighbour is served", |requests| requests.len() >= ALONE).await;
    let before = Usage::now();
    let begun = Instant::now();
    let sent = enqueue(&database, &cases);
    wait_for(&attempted, |count| {
        let missing = cases.iter().filter(|case| count(&case.name) < case.attempts());
        missing.map(|case| case.name.as_str()).collect()
    })
    .await;
    let ended = Instant::now();
    let after = Usage::now();
    let steady = load.stop();
    wait_for(&attempted, |count| if count(NEIGHBOUR) < steady.len() { vec![NEIGHBOUR] } else { vec![] }).await;
    relay.stop().await;

    let attempted = attempted.lock().unwrap().clone();
    let histories = histories(&database);
    let harmed: Vec<_> =
        attempted.iter().filter(|each| each.destination == NEIGHBOUR && each.verdict != "delivered").collect();
    assert!(harmed.is_empty(), "the neighbour: {harmed:?}");
    let mut offences = Vec::new();
    let (mut on_the_wire, mut recorded, mut not_counted) = (0, 0, 0);
    for (case, endpoint) in cases.iter().zip(&endpoints) {
        let of_case: Vec<&Attempted> = attempted.iter().filter(|each| each.destination == case.name).collect();
        match endpoint.attempts() {
            Some(seen) => (on_the_wire, recorded) = (on_the_wire + seen, recorded + of_case.len()),
            None => not_counted += of_case.len(),
        }
        if let Err(offence) = judge(case, &of_case, endpoint, &sent[&case.name], &histories) {
            offences.push(format!("{}: {offence}", case.name));
        }
    }
    let slowest = attempted.iter().filter(|each| each.destination != NEIGHBOUR).max_by_key(|each| each.took).unwrap();
    let (alone, together): (Vec<_>, Vec<_>) = latencies(&steady, &neighbour)
        .into_iter()
        .filter(|(sent, _)| *sent < ended)
        .partition(|(sent, _)| *sent < begun);
    let memory = after.peak_mib.saturating_sub(before.resident_mib);
    let processor_secs = after.processor_secs - before.processor_secs;
    println!(
        "hostile: contained {}/{} in {:.1?}: {on_the_wire} attempts on the wire of {recorded} recorded, {not_counted} where \
         nobody could count; slowest release {} after {:.1?} of {TIMEOUT:.1?}",
        cases.len() - offences.len(),
        cases.len(),
        ended - begun,
        slowest.destination,
        slowest.took,
    );
    println!(
        "hostile: extra memory {memory} MiB, {:.1} s of processor time, the endpoints' included; neighbour p50 {:.1?}, p99 \
         {:.1?} alone and p50 {:.1?}, p99 {:.1?} beside them ({} and {} messages)",
        processor_secs,
        percentile(50, &alone),
        percentile(99, &alone),
        percentile(50, &together),
        percentile(99, &together),
        alone.len(),
        together.len(),
    );
    elsewhere.shutdown_background();
    assert!(offences.is_empty(), "not contained:\n{}", offences.join("\n"));
    assert!(slowest.took < TIMEOUT + MARGIN, "{slowest:?}");
    assert!(memory < MEMORY_MAX, "{memory} MiB");
    assert!(processor_secs < PROCESSOR_SECS_MAX, "{processor_secs} s of processor time");
    // A run that is asked for one case alone may be over before the neighbour got enough.
    assert!(together.len() >= BESIDE_MIN || cases.len() < cases::all().len(), "{} messages", together.len());
    for (percent, max) in [(50, P50_MAX), (99, P99_MAX)] {
        let latency = percentile(percent, &together);
        assert!(latency < max, "the neighbour's p{percent} was {latency:?} beside the others");
    }
    assert_eq!(neighbour.requests().len(), steady.len(), "the neighbour got each message once");
}

/// All cases at once, and the neighbour. What fails is not tried again here.
fn relay<'c>(
    database: &TestDatabase,
    neighbour: &Receiver,
    cases: impl Iterator<Item = (&'c Case, &'c Endpoint)>,
    attempted: &Arc<Mutex<Vec<Attempted>>>,
) -> relay::RelayBuilder {
    let never = RetryPolicy::pauses(vec![Duration::from_secs(365 * 24 * 3600)]);
    let attempted = Arc::clone(attempted);
    let builder = Relay::builder(database.url())
        .name("hostile")
        .poll(Duration::from_millis(1), Duration::from_millis(20))
        .retry(never)
        .destination(Http::new(NEIGHBOUR, neighbour.url("/hooks")).topics([NEIGHBOUR]))
        .on_event(move |event| {
            if let Event::Attempted { delivery, verdict, code, took, .. } = event {
                attempted.lock().unwrap().push(Attempted {
                    message: delivery.message_id,
                    destination: delivery.destination.clone(),
                    verdict: verdict.name(),
                    code: code.clone(),
                    took: *took,
                });
            }
        });
    cases.fold(builder, |builder, (case, endpoint)| {
        // One after another, so that connections that are kept are used again.
        let http = Http::new(&case.name, endpoint.url()).topics([&case.name]).timeout(TIMEOUT).concurrency(1);
        builder.destination(http)
    })
}

/// The messages of all cases, by their names.
fn enqueue(database: &TestDatabase, cases: &[Case]) -> HashMap<String, Vec<Uuid>> {
    let mut sent = HashMap::<String, Vec<Uuid>>::new();
    let mut conn = database.sqlite();
    conn.immediate_transaction(|conn| {
        for case in cases {
            for _ in 0..case.messages {
                let receipt = outbox::enqueue(conn, Envelope::raw(case.name.clone(), "{\"of\":\"a case\"}"))?;
                sent.entry(case.name.clone()).or_default().push(receipt.message_id);
            }
        }
        Ok::<_, outbox::Error>(())
    })
    .unwrap();
    sent
}

/// Waits until enough was attempted; `missing` names the destinations of which more is expected.
async fn wait_for<'n>(attempted: &Mutex<Vec<Attempted>>, missing: impl Fn(&dyn Fn(&str) -> usize) -> Vec<&'n str>) {
    let end = Instant::now() + LIMIT;
    loop {
        let mut counts = HashMap::<String, usize>::new();
        for each in attempted.lock().unwrap().iter() {
            *counts.entry(each.destination.clone()).or_default() += 1;
        }
        let missing = missing(&|name| counts.get(name).copied().unwrap_or_default());
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: every message is attempted; missing {missing:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What is written down about each message that is not delivered.
fn histories(database: &TestDatabase) -> HashMap<Uuid, Vec<HistoryEntry>> {
    let select = "SELECT lower(hex(message_id)) || history FROM outbox_deliveries \
                  UNION ALL SELECT lower(hex(message_id)) || history FROM outbox_dead_letters";
    let lines = database.query_text(select).into_iter().map(Option::unwrap);
    lines.map(|line| (line[..32].parse().unwrap(), serde_json::from_str(&line[32..]).unwrap())).collect()
}

/// Whether the case went as it must; otherwise what did not.
fn judge(
    case: &Case,
    attempted: &[&Attempted],
    endpoint: &Endpoint,
    sent: &[Uuid],
    histories: &HashMap<Uuid, Vec<HistoryEntry>>,
) -> Result<(), String> {
    let said = |problem: &str| Err(format!("{problem}; {attempted:?}"));
    if attempted.len() != case.attempts() {
        return said("not as many attempts as there should be");
    }
    for (number, each) in attempted.iter().enumerate() {
        if !case.allows(number, |expected| (expected.verdict, expected.code) == (each.verdict, &each.code)) {
            return said("another verdict");
        }
    }
    if let Some(on_the_wire) = endpoint.attempts() {
        let delivered = attempted.iter().filter(|each| each.verdict == "delivered").count();
        let is_right = match case.or {
            None => on_the_wire == attempted.len(),
            // Some attempts end before anything is on the wire, and are told as what may have arrived. None is on the wire
            // that is not told.
            Some(_) => (delivered..=attempted.len()).contains(&on_the_wire),
        };
        if !is_right {
            return said(&format!("{on_the_wire} attempts were on the wire"));
        }
    }
    for message in sent {
        let of_message: Vec<_> = attempted.iter().filter(|each| each.message == *message).collect();
        let Some(history) = histories.get(message) else {
            if of_message.last().is_some_and(|last| last.verdict == "delivered") {
                continue;
            }
            return said("a message is gone that was not delivered");
        };
        if history.len() != of_message.len() {
            return Err(format!("the history does not tell what happened: {history:?}; {of_message:?}"));
        }
        for (written, happened) in history.iter().zip(of_message) {
            if (written.verdict.as_str(), &written.code) != (happened.verdict, &happened.code) {
                return Err(format!("the history does not tell what happened: {written:?}; {happened:?}"));
            }
            if written.remote != Some(endpoint.address().to_string()) {
                return Err(format!("the history says another address than {}: {written:?}", endpoint.address()));
            }
            let is_right = |expected: &Expected| (expected.code, expected.maybe) == (&*written.code, written.maybe);
            if !case.allows(0, is_right) || !written.text.contains(case.told) || written.text.len() > 4096 {
                return Err(format!("the history says {written:?}"));
            }
        }
    }
    Ok(())
}

/// What the process has used.
struct Usage {
    resident_mib: u64,
    /// Since the last time this was asked.
    peak_mib: u64,
    processor_secs: f64,
}

impl Usage {
    fn now() -> Usage {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
        };
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // The kernel counts in hundredths for programs, whatever it counts in itself.
        let ticks: u64 = fields[11..=12].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        let usage = Usage {
            resident_mib: mib("VmRSS"),
            peak_mib: mib("VmHWM"),
            processor_secs: Duration::from_millis(ticks * 10).as_secs_f64(),
        };
        // Begins the peak anew; where that is not allowed, more is counted than was used.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        usage
    }
}

/// Messages for the neighbour, at a steady pace.
struct Load {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<(Uuid, Instant)>>,
}

impl Load {
    fn start(database: &Arc<TestDatabase>) -> Load {
        let ended = Arc::new(AtomicBool::new(false));
        let (has_ended, database) = (Arc::clone(&ended), Arc::clone(database));
        let thread = std::thread::spawn(move || {
            let mut conn = database.sqlite();
            let mut sent = Vec::new();
            while !has_ended.load(Ordering::SeqCst) {
                let message = Envelope::raw(NEIGHBOUR, "{}");
                let receipt = conn.immediate_transaction(|conn| outbox::enqueue(conn, message)).unwrap();
                sent.push((receipt.message_id, Instant::now()));
                std::thread::sleep(PACE);
            }
            sent
        });
        Load { ended, thread }
    }

    /// What was sent, and when it was committed.
    fn stop(self) -> Vec<(Uuid, Instant)> {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// When each message was committed, and how much later it arrived.
fn latencies(sent: &[(Uuid, Instant)], neighbour: &Receiver) -> Vec<(Instant, Duration)> {
    let arrived: HashMap<String, Instant> =
        neighbour.requests().iter().map(|request| (request.id().to_owned(), request.at)).collect();
    sent.iter().map(|(id, at)| (*at, arrived[&id.to_string()].saturating_duration_since(*at))).collect()
}

fn percentile(percent: usize, latencies: &[(Instant, Duration)]) -> Duration {
    let mut sorted: Vec<Duration> = latencies.iter().map(|(_, latency)| *latency).collect();
    sorted.sort();
    sorted[(sorted.len() - 1) * percent / 100]
}
