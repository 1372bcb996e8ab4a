//! A name server that says what it is told.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex};

/// What is said about a name.
pub(super) enum Said {
    /// It has these addresses, possibly none.
    Addresses(Vec<IpAddr>),
    /// It is another name for this one, which has these addresses.
    Alias(&'static str, Vec<IpAddr>),
    /// There is no such name.
    Absent,
    /// The server is broken.
    Broken,
    /// Nothing.
    Silence,
}

/// Answers on 127.0.0.1:53, for ever.
pub(super) struct Server {
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

impl Server {
    /// `zone` is told the name and which look-up this is, from 1. A look-up is a question for A and one for AAAA.
    pub(super) fn start(zone: fn(&str, usize) -> Said) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        let asked = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
        let server = Server { asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((count, from)) = socket.recv_from(&mut query) {
                let Some((name, kind, end)) = question(&query[..count]) else { continue };
                let name = name.to_ascii_lowercase();
                // The system asks for both kinds at once, A first.
                let nth = {
                    let mut asked = asked.lock().unwrap();
                    let nth = asked.entry(name.clone()).or_default();
                    *nth += usize::from(kind == A);
                    *nth
                };
                if let Some(answer) = answer(&query[..end], kind, zone(&name, nth)) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        server
    }

    /// How often a name was looked up.
    pub(super) fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

/// The name, the kind of record, and where the question ends.
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

fn answer(query: &[u8], kind: u16, said: Said) -> Option<Vec<u8>> {
    let (code, alias, addresses) = match said {
        Said::Addresses(addresses) => (0, None, addresses),
        Said::Alias(name, addresses) => (0, Some(name), addresses),
        Said::Broken => (2, None, Vec::new()),
        Said::Absent => (3, None, Vec::new()),
        Said::Silence => return None,
    };
    let mut records = Vec::new();
    // The name of the question stands at byte 12.
    let mut owner = vec![0xc0, 12];
    if let Some(alias) = alias {
        let written: Vec<u8> =
            alias.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect();
        records.push(record(&owner, CNAME, &written));
        owner = written;
    }
    for address in addresses {
        match address {
            IpAddr::V4(address) if kind == A => records.push(record(&owner, A, &address.octets())),
            IpAddr::V6(address) if kind == AAAA => records.push(record(&owner, AAAA, &address.octets())),
            _ => {}
        }
    }
    let count = (records.len() as u16).to_be_bytes();
    let head = [query[0], query[1], 0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0];
    Some([&head[..], &query[12..], &records.concat()].concat())
}

/// One that nobody may keep.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 0], &length, data].concat()
}
