//! No request reaches an address that is refused, and none that is allowed is refused.
//!
//! The suite runs in a network of its own in which every address there is answers, the metadata services of clouds
//! included, with a name server that says what it is told and another thing the next time. Only root on Linux can make
//! such a network; elsewhere the same places are judged without being connected to, and that test says that it was skipped.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay::message::Message;
use relay::sink::http::{Http, HttpError, HttpSink, Network};
use relay::sink::{Attempt, Judgement, Sink, Unit};
use relay::verdict::Verdict;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use self::places::{Place, Reach};

mod dns;
mod places;

/// Nothing here takes long, but for the name server that does not answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where a connection arrived.
type Arrival = (IpAddr, u16);

/// Both policies, as they are for an address that somebody else has named and for one of one's own.
fn destination(url: &str, network: Network) -> Http {
    Http::new("theirs", url).network(network).allow_http().timeout(TIMEOUT)
}

/// What would arrive where it may not counts as a hit here: what a url is judged by is what is connected to.
#[test]
fn urls_are_judged_as_they_are_read() {
    let (mut hits, mut refused) = (Vec::new(), Vec::new());
    let places: Vec<Place> = places::all().into_iter().filter(|place| !place.is_name).collect();
    for Place { url, reach, .. } in &places {
        for network in [Network::Public, Network::Any] {
            let sink = destination(url, network).sink("/shop");
            match (reach.is_allowed(network), sink) {
                (true, Ok(_)) | (false, Err(HttpError::Url { .. })) => {}
                (false, Ok(_)) => hits.push(format!("{network:?} lets {url} through")),
                (true, Err(error)) => refused.push(format!("{network:?} refuses {url}: {error}")),
                (false, Err(error)) => panic!("{network:?} refuses {url} for another reason: {error}"),
            }
        }
    }
    println!(
        "{} urls, judged by the table alone: canary hits {}, wrongly refused {}",
        places.len(),
        hits.len(),
        refused.len()
    );
    assert!(hits.is_empty() && refused.is_empty(), "hits {hits:#?}\nwrongly refused {refused:#?}");
}

#[tokio::test]
async fn no_request_reaches_an_address_that_is_refused() {
    let mut probe = Command::new("unshare");
    let made = probe.args(["--net", "--mount", "ip", "link", "set", "lo", "up"]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no network of its own can be made here (it takes root on Linux, `unshare` and `ip`)");
        return;
    }
    let mut child = tokio::process::Command::new("unshare");
    child.args(["--net", "--mount", "--"]).arg(std::env::current_exe().unwrap());
    child.args(["--exact", "ssrf::in_a_network_where_every_address_answers", "--ignored", "--nocapture"]);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(name, "http://10.9.9.9:80");
    }
    child.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("REQUEST_METHOD").kill_on_drop(true);
    let output = child.stdin(Stdio::null()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| line.contains("canary hits")) {
        println!("{line}");
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("canary hits 0, wrongly refused 0"), "{said}");
}

#[tokio::test]
#[ignore = "runs as the child of `no_request_reaches_an_address_that_is_refused`, in a network of its own"]
async fn in_a_network_where_every_address_answers() {
    let folder = tempfile::tempdir().unwrap();
    let resolver = folder.path().join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
    let resolver = resolver.to_str().unwrap();
    run(&["mount", "--bind", resolver, "/etc/resolv.conf"]);
    run(&["ip", "link", "set", "lo", "up"]);
    // From here on every address is one of this machine's.
    run(&["ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo"]);
    run(&["ip", "-6", "route", "add", "local", "::/0", "dev", "lo"]);

    let names = dns::Server::start(places::zone);
    let mut suite = Suite { web: Web::start().await, attempts: 0, hits: Vec::new(), refused: Vec::new() };
    let places = places::all();
    for place in &places {
        for network in [Network::Public, Network::Any] {
            suite.try_place(place, network).await;
        }
    }
    suite.follow_redirects().await;
    suite.meet_a_name_that_changes(&names).await;
    suite.ask_for_ports().await;
    suite.ask_in_vain().await;

    let Suite { attempts, hits, refused, .. } = &suite;
    println!(
        "{} urls, {attempts} attempts: canary hits {}, wrongly refused {}",
        places.len() + places::REDIRECTED.len() * 5,
        hits.len(),
        refused.len()
    );
    assert!(hits.is_empty() && refused.is_empty(), "hits {hits:#?}\nwrongly refused {refused:#?}");
}

fn run(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
}

/// What answers on every address, and what was seen of it.
struct Suite {
    web: Web,
    attempts: usize,
    /// Connections that arrived where none may.
    hits: Vec<String>,
    /// Requests that did not arrive where they may.
    refused: Vec<String>,
}

impl Suite {
    /// One attempt; what came of it, and where it arrived.
    async fn attempt(&mut self, sink: &HttpSink) -> (Judgement, Vec<Arrival>) {
        self.attempts += 1;
        let attempt = Attempt { destination: "theirs".into(), number: 1, timeout: TIMEOUT, unit: Unit::Shared };
        let judgement = sink.attempt(&message(), &attempt).await;
        (judgement, self.web.take_arrivals().await)
    }

    async fn try_place(&mut self, place: &Place, network: Network) {
        let Place { url, reach, .. } = place;
        let (judgement, arrivals) = match destination(url, network).sink("/shop") {
            Ok(sink) => self.attempt(&sink).await,
            Err(HttpError::Url { problem }) => (Judgement::failed(Verdict::Misconfigured, "address", problem), vec![]),
            Err(error) => panic!("{url}: {error}"),
        };
        let seen = format!("{url} with {network:?}: {} {} at {arrivals:?}", judgement.code, judgement.text);
        match reach {
            _ if !reach.is_allowed(network) => {
                if !arrivals.is_empty() {
                    self.hits.push(seen);
                } else {
                    assert_eq!((judgement.verdict, &*judgement.code), (Verdict::Misconfigured, "address"), "{seen}");
                    assert!(!judgement.maybe, "{seen}");
                }
            }
            Reach::Nowhere => assert!(arrivals.is_empty(), "{seen}"),
            Reach::Outside(at) | Reach::Inside(at) => {
                let arrived: Vec<IpAddr> = arrivals.iter().map(|(address, _)| *address).collect();
                if !arrived.iter().all(|address| at.iter().any(|at| at.parse() == Ok(*address))) {
                    self.hits.push(seen);
                } else if arrived.len() != 1 || (judgement.code != "200" && url.starts_with("http:")) {
                    self.refused.push(seen);
                }
            }
            Reach::Never => unreachable!("no policy allows it"),
        }
    }

    /// The address is one of the public internet; where it sends us is not.
    async fn follow_redirects(&mut self) {
        for target in places::REDIRECTED {
            for status in [301, 302, 303, 307, 308] {
                let url = format!("http://{}/redirect/{status}/{target}", places::PUBLIC_V4);
                let sink = destination(&url, Network::Any).sink("/shop").unwrap();
                let (judgement, arrivals) = self.attempt(&sink).await;
                assert_eq!(judgement.code, status.to_string(), "{judgement:?}");
                if arrivals != [(places::PUBLIC_V4.parse().unwrap(), 80)] {
                    self.hits.push(format!("{status} to {target}: {arrivals:?}"));
                }
            }
        }
    }

    /// Outside when it is looked up for the first time, inside the next time, and so on.
    async fn meet_a_name_that_changes(&mut self, names: &dns::Server) {
        let outside: IpAddr = places::PUBLIC_V4.parse().unwrap();
        for (name, network) in [("flips-inside.test", Network::Public), ("flips-to-metadata.test", Network::Any)] {
            let sink = destination(&format!("http://{name}/"), network).sink("/shop").unwrap();
            let mut codes = Vec::new();
            for _ in 0..10 {
                let asked = names.asked(name);
                let (judgement, arrivals) = self.attempt(&sink).await;
                assert_eq!(names.asked(name), asked + 1, "what was judged is what is connected to");
                if arrivals.iter().any(|(address, _)| *address != outside) {
                    self.hits.push(format!("{name}: {arrivals:?}"));
                }
                codes.push(judgement.code);
            }
            let turns: Vec<&str> = ["200", "address"].into_iter().cycle().take(10).collect();
            if codes != turns {
                self.refused.push(format!("{name}: {codes:?}"));
            }
        }
    }

    async fn ask_for_ports(&mut self) {
        let url = format!("http://{}:22/", places::PUBLIC_V4);
        let refused = destination(&url, Network::Public).sink("/shop").map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("port 22"), "{refused}");
        for allowed in [destination(&url, Network::Any), destination(&url, Network::Public).ports([22])] {
            let (judgement, arrivals) = self.attempt(&allowed.sink("/shop").unwrap()).await;
            if judgement.code != "200" || arrivals != [(places::PUBLIC_V4.parse().unwrap(), 22)] {
                self.refused.push(format!("{url}: {judgement:?} {arrivals:?}"));
            }
        }
    }

    /// Names that lead nowhere: what cannot be judged is not connected to.
    async fn ask_in_vain(&mut self) {
        for name in ["absent.test", "broken.test", "silent.test", "empty.test"] {
            let sink = destination(&format!("http://{name}/"), Network::Public).sink("/shop").unwrap();
            let (judgement, arrivals) = self.attempt(&sink).await;
            assert!(["dns", "connect"].contains(&&*judgement.code), "{name}: {judgement:?}");
            assert!(!judgement.maybe, "{name}: {judgement:?}");
            if !arrivals.is_empty() {
                self.hits.push(format!("{name}: {arrivals:?}"));
            }
        }
    }
}

/// Answers on every address.
struct Web {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl Web {
    async fn start() -> Web {
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        for port in [22, 80, 443, 8080] {
            let listener = TcpListener::bind(("::", port)).await.unwrap();
            let arrivals = Arc::clone(&arrivals);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let at = stream.local_addr().unwrap();
                    arrivals.lock().unwrap().push((at.ip().to_canonical(), at.port()));
                    tokio::spawn(answer(stream));
                }
            });
        }
        Web { arrivals }
    }

    /// What has arrived since this was last asked.
    async fn take_arrivals(&self) -> Vec<Arrival> {
        // Connections to this machine are made when `connect` returns, and accepted in their order: when one more has
        // arrived, so have those before it.
        for port in [22, 80, 443, 8080] {
            TcpStream::connect(("127.0.0.77", port)).await.unwrap();
        }
        for _ in 0..1000 {
            if let Some(arrivals) = self.taken() {
                return arrivals;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the listeners do not accept any more");
    }

    /// All but the four that were made last, once these have arrived.
    fn taken(&self) -> Option<Vec<Arrival>> {
        let probe: IpAddr = "127.0.0.77".parse().unwrap();
        let mut arrivals = self.arrivals.lock().unwrap();
        if arrivals.iter().filter(|(address, _)| *address == probe).count() < 4 {
            return None;
        }
        let mut taken = std::mem::take(&mut *arrivals);
        taken.retain(|(address, _)| *address != probe);
        Some(taken)
    }
}

/// 200, or the redirect that stands in the path. The connection ends, so that each attempt makes its own.
async fn answer(mut stream: TcpStream) {
    let mut read = vec![0; 16 * 1024];
    let count = stream.read(&mut read).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&read[..count]).into_owned();
    let Some(path) = text.strip_prefix("POST /") else { return };
    let path = path.split(' ').next().unwrap_or_default();
    let head = match path.strip_prefix("redirect/").and_then(|rest| rest.split_once('/')) {
        Some((status, target)) => format!("HTTP/1.1 {status} Elsewhere\r\nlocation: {target}\r\n"),
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    let _ = stream.write_all(format!("{head}content-length: 0\r\nconnection: close\r\n\r\n").as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn message() -> Message {
    Message { id: Uuid::now_v7(), ..crate::http::message("{}") }
}
