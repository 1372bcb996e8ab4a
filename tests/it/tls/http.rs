//! TLS to HTTP destinations.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use outbox_tests::certificates::{Authority, Certificate, Validity};
use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{Process, Signal};
use relay::sink::http::Http;
use relay::sink::{Attempt, Judgement, Sink, Unit};
use relay::verdict::Verdict;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{LIMIT, NAMES, file, good};

/// Where a server answers with this much.
const LARGE: &str = "/large";
const LARGE_BYTES: usize = 300 * 1024;

/// What a server was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    protocol: String,
    body: Bytes,
    shown: bool,
}

/// A server that answers every request with 200.
struct Endpoint {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// How a server speaks TLS.
fn spoken(
    certificate: &Certificate,
    clients: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&str],
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

impl Endpoint {
    async fn start(config: ServerConfig) -> Endpoint {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (acceptor, listed) = (TlsAcceptor::from(Arc::new(config)), seen.clone());
        Endpoint::accepting(seen, move |stream| {
            let (acceptor, seen) = (acceptor.clone(), listed.clone());
            async move {
                match acceptor.accept(stream).into_fallible().await {
                    Ok(stream) => answer(stream, seen).await,
                    // What it sent meanwhile is read, or closing would take back what was said to it.
                    Err((_error, mut stream)) => {
                        let _ = stream.shutdown().await;
                        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                    }
                }
            }
        })
        .await
    }

    /// Says these bytes to whoever comes, once it has said something.
    async fn saying(bytes: Vec<u8>) -> Endpoint {
        Endpoint::accepting(Arc::default(), move |mut stream: TcpStream| {
            let bytes = bytes.clone();
            async move {
                let _ = stream.read(&mut [0; 2048]).await;
                let _ = stream.write_all(&bytes).await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        })
        .await
    }

    async fn accepting<F>(seen: Arc<Mutex<Vec<Seen>>>, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Endpoint
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(serve(stream));
            }
        });
        Endpoint { address, seen, accepting }
    }

    fn url(&self) -> String {
        // No name: a test must not wait for whoever resolves names here.
        format!("https://{}/hook", self.address)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(stream: TlsStream<TcpStream>, seen: Arc<Mutex<Vec<Seen>>>) {
    let (_, session) = stream.get_ref();
    let protocol = String::from_utf8(session.alpn_protocol().unwrap_or_default().to_vec()).unwrap();
    let (is_http_2, shown) = (protocol == "h2", session.peer_certificates().is_some());
    let saw = {
        let seen = seen.clone();
        move |body: Bytes| seen.lock().unwrap().push(Seen { protocol: protocol.clone(), body, shown })
    };
    if is_http_2 {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((mut request, mut respond))) = connection.accept().await {
            let saw = saw.clone();
            // A body arrives only while the connection is asked for the next request.
            tokio::spawn(async move {
                saw(request.body_mut().data().await.unwrap().unwrap());
                let is_large = request.uri().path() == LARGE;
                let mut body = respond.send_response(axum::http::Response::new(()), !is_large).unwrap();
                if is_large {
                    body.send_data(Bytes::from(vec![b'x'; LARGE_BYTES]), true).unwrap();
                }
            });
        }
        return;
    }
    let mut stream = stream;
    let mut read = Vec::new();
    let end = loop {
        if let Some(head) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
            let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
            if read.len() == head + 4 + length.parse::<usize>().unwrap() {
                break head + 4;
            }
        }
        if stream.read_buf(&mut read).await.unwrap_or_default() == 0 {
            return;
        }
    };
    saw(Bytes::copy_from_slice(&read[end..]));
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    let _ = stream.shutdown().await;
}

#[tokio::test]
async fn large_answers_over_http_2_do_not_slow_a_destination_down() {
    const ATTEMPTS: usize = 256;
    let authority = Authority::new("Shop");
    let server = Endpoint::start(spoken(&good(&authority), None, &MODERN, &["h2"])).await;
    let http = Http::new("billing", format!("https://{}{LARGE}", server.address)).ca(authority.pem());
    let sink = http.sink("/shop").unwrap();
    let began = std::time::Instant::now();
    let mut attempts = tokio::task::JoinSet::new();
    for n in 0..ATTEMPTS {
        if n >= 16 {
            attempts.join_next().await.unwrap().unwrap();
        }
        let sink = sink.clone();
        attempts.spawn(async move {
            let (message, timeout) = (crate::http::message("{}"), Duration::from_secs(20));
            let attempt = Attempt { destination: "billing".into(), number: 1, timeout, unit: Unit::Shared };
            let judgement = sink.attempt(&message, &attempt).await;
            assert_eq!(judgement.verdict, Verdict::Delivered, "{judgement:?}");
        });
    }
    attempts.join_all().await;
    assert_eq!(server.seen().len(), ATTEMPTS);
    // Nobody reads them to their end. Were they read at the pace of what nobody has asked for, it would take minutes.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

async fn attempt(http: &Http) -> Judgement {
    let message = crate::http::message("{}");
    let timeout = Duration::from_secs(20);
    let attempt = Attempt { destination: "billing".into(), number: 1, timeout, unit: Unit::Shared };
    // Who answered is another test's affair.
    Judgement { remote: None, ..http.sink("/shop").unwrap().attempt(&message, &attempt).await }
}

fn delivered() -> Judgement {
    Judgement::delivered("200")
}

fn refused(text: &str) -> Judgement {
    Judgement::failed(Verdict::Misconfigured, "certificate", text)
}

const MODERN: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

#[tokio::test]
async fn http_2_is_spoken_where_the_server_has_it_and_http_1_where_not() {
    let authority = Authority::new("Shop");
    for (offered, spoken_is) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"][..], "http/1.1"), (&[][..], "")] {
        for version in MODERN {
            let server = Endpoint::start(spoken(&good(&authority), None, &[version], offered)).await;
            let http = Http::new("billing", server.url()).ca(authority.pem());
            assert_eq!(attempt(&http).await, delivered(), "{offered:?} {version:?}");
            let seen = Seen { protocol: spoken_is.to_owned(), body: Bytes::from_static(b"{}"), shown: false };
            assert_eq!(server.seen(), [seen]);
        }
    }
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused_and_the_reason_is_told() {
    let authority = Authority::new("Shop");
    let its = "the server's certificate";
    for (certificate, said) in [
        (authority.server(&NAMES, Validity::Past), format!("{its} expired at 2020-02-01T00:00:00Z")),
        (authority.server(&NAMES, Validity::Future), format!("{its} is not valid before 2099-01-01T00:00:00Z")),
        (
            authority.server(&["other.example"], Validity::Now),
            format!("{its} is not for `127.0.0.1`, but for `other.example`"),
        ),
        (
            authority.server(&[], Validity::Now),
            format!("{its} is not for `127.0.0.1`, nor for any other: it has no subject alternative name"),
        ),
        (Certificate::self_signed(&NAMES), format!("{its} is self-signed, and not trusted")),
        (good(&Authority::new("Stranger")), format!("{its} was issued by an authority that is not trusted")),
    ] {
        for version in MODERN {
            let server = Endpoint::start(spoken(&certificate, None, &[version], &["h2"])).await;
            let http = Http::new("billing", server.url()).ca(authority.pem());
            assert_eq!(attempt(&http).await, refused(&said), "{version:?}");
            assert_eq!(server.seen(), []);
        }
    }
    // The system's authorities know nothing of ours.
    let server = Endpoint::start(spoken(&good(&authority), None, &MODERN, &[])).await;
    let said = format!("{its} was issued by an authority that is not trusted");
    assert_eq!(attempt(&Http::new("billing", server.url())).await, refused(&said));
}

#[tokio::test]
async fn an_old_protocol_is_refused_and_named() {
    // The fatal alert `protocol_version`, as servers send it that understand what they were offered.
    let alert = vec![0x15, 0x03, 0x02, 0x00, 0x02, 0x02, 0x46];
    // A ServerHello of TLS 1.1, as servers send it that have never heard of anything newer.
    let mut hello = vec![0x02, 0x00, 0x00, 0x26, 0x03, 0x02];
    hello.extend([7; 32]);
    hello.extend([0x00, 0xc0, 0x13, 0x00]);
    let mut record = vec![0x16, 0x03, 0x02, 0x00, u8::try_from(hello.len()).unwrap()];
    record.extend(hello);
    for bytes in [alert, record] {
        let server = Endpoint::saying(bytes).await;
        let said = "the server speaks TLS 1.1 or older only; at least TLS 1.2 is asked for";
        assert_eq!(attempt(&Http::new("billing", server.url())).await, refused(said));
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_demands_one() {
    let (authority, stranger) = (Authority::new("Shop"), Authority::new("Stranger"));
    let client = authority.client("billing");
    let foreign = stranger.client("billing");
    for version in MODERN {
        for protocol in ["h2", "http/1.1"] {
            let server = Endpoint::start(spoken(&good(&authority), Some(&authority), &[version], &[protocol])).await;
            let http = Http::new("billing", server.url()).ca(authority.pem());
            let with = |shown: &Certificate| http.clone().client_certificate(&shown.pem, &shown.key);
            assert_eq!(attempt(&with(&client)).await, delivered(), "{version:?} {protocol}");
            assert!(server.seen().len() == 1 && server.seen()[0].shown, "{:?}", server.seen());

            // With TLS 1.3 the server judges after the handshake has ended here, and the request may be on its way.
            let maybe = version.version == rustls::ProtocolVersion::TLSv1_3;
            let none = attempt(&http).await;
            assert_eq!((none.verdict, &*none.code), (Verdict::Misconfigured, "certificate"), "{none:?}");
            assert!(none.text.contains("demands a client certificate") && none.maybe == maybe, "{none:?}");
            let said =
                "the server refuses the client certificate: it was issued by an authority the server does not trust";
            let expected = Judgement { maybe, ..refused(said) };
            assert_eq!(attempt(&with(&foreign)).await, expected, "{version:?} {protocol}");
            assert_eq!(server.seen().len(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_read_anew_at_sighup() {
    let (old, new) = (Authority::new("Old"), Authority::new("New"));
    let server = Endpoint::start(spoken(&good(&new), Some(&new), &MODERN, &["h2"])).await;
    let folder = tempfile::tempdir().unwrap();
    file(folder.path(), "ca.crt", &old.pem());
    old.client("billing").write(folder.path(), "client");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let configuration = format!(
        "[health]\nlisten = \"off\"\n[destinations.billing]\nurl = \"{}\"\ntopics = [\"t\"]\nretry = [\"100ms\"]\n\
         [destinations.billing.tls]\nca = {{ file = \"{}\" }}\nclient_cert = {{ file = \"{}\" }}\n\
         client_key = {{ file = \"{}\" }}\n",
        server.url(),
        path("ca.crt"),
        path("client.crt"),
        path("client.key"),
    );
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let insert = "INSERT INTO outbox_messages (topic, payload) VALUES ('t', '{}')";
    let relay = Process::start_relay(&configuration, &["--database-url", database.url(), "run"]);
    database.exec(insert);
    let waits = "SELECT count(*) FROM outbox_deliveries";
    let until = tokio::time::Instant::now() + LIMIT;
    while database.query_i64(waits) == 0 {
        assert!(tokio::time::Instant::now() < until, "the first attempt did not fail: {}", relay.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shown = database.query_text("SELECT CAST(last_error AS text) FROM outbox_deliveries");
    assert!(shown[0].as_deref().unwrap().contains("an authority that is not trusted"), "{shown:?}");
    assert_eq!(server.seen(), []);

    file(folder.path(), "ca.crt", &new.pem());
    new.client("billing").write(folder.path(), "client");
    relay.signal(Signal::Hup);
    // Until then the old one may still take a message, and would not look at it again for a minute.
    relay.wait_for_line("the relay of the previous configuration has finished", LIMIT);
    database.exec(insert);
    while server.seen().is_empty() {
        assert!(tokio::time::Instant::now() < until, "nothing was delivered: {}", relay.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(relay.terminate(LIMIT).status.success());
}
