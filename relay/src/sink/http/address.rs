//! Which addresses requests may go to.
//!
//! Pure: an address or a url in, nothing or the reason for refusing it out. [`resolver`] asks it about every address a
//! name leads to, [`Http::sink`](super::Http::sink) and the configuration about addresses that stand in a url.
//!
//! Invariants
//! - Where clouds keep the credentials of their machines is refused whatever anybody sets, however it is written: the
//!   IPv4 address inside an IPv6 one counts, too.
//! - `public` lets through what is listed as global unicast today and nothing else, so that an address this file does not
//!   know is refused and not reached.
//! - A url is judged as it was parsed, never by its text: `http://2130706433/` is `127.0.0.1` by then.
//!
//! Absent: NAT64 prefixes of a network's own. They look like any other prefix, and nothing tells us of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::Url;

pub(super) mod resolver;

/// Which addresses a destination may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Network {
    /// Any, also inside your own network; never the metadata services of clouds.
    #[default]
    Any,
    /// Only addresses of the public internet.
    Public,
}

/// What a destination may be reached by.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Policy {
    /// Which addresses.
    pub network: Network,
    /// Whether without TLS.
    pub allows_http: bool,
    /// In the public internet: which ports beside those that need no saying.
    pub ports: Vec<u16>,
}

/// Why an address may not be used, and what would allow it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {help}")]
pub(crate) struct Refusal {
    /// Which address, and what it is.
    pub problem: String,
    /// What to do.
    pub help: String,
}

impl Refusal {
    /// The same for the name that led to the address.
    fn of_name(mut self, name: &str) -> Refusal {
        self.problem = format!("`{name}` leads to {}", self.problem);
        self
    }
}

/// Up to which port `public` wants to be told, and which of them it knows.
const PORTS_RESERVED: u16 = 1024;
const PORTS_HTTP: [u16; 2] = [80, 443];

impl Policy {
    /// Judges all of a url that can be judged before its name is looked up.
    pub(crate) fn url(&self, url: &Url) -> Result<(), Refusal> {
        let host = url.host_str().unwrap_or_default();
        let literal = literal(host);
        if let Some(address) = literal {
            self.address(address)?;
        }
        let is_loopback = literal.map_or(["localhost", "localhost."].contains(&host), |address| address.is_loopback());
        let is_here = self.network == Network::Any && is_loopback;
        if url.scheme() == "http" && !self.allows_http && !is_here {
            return Err(Refusal {
                problem: "everybody on the way can read and change what is sent to an `http://` address".to_owned(),
                help: "write `https://`, or allow it with `allow_http = true`".to_owned(),
            });
        }
        match url.port_or_known_default() {
            Some(port) if self.network == Network::Public && !self.is_port_allowed(port) => Err(Refusal {
                problem: format!("port {port} belongs to another service than HTTP"),
                help: format!("allow it with `ports = [{port}]`"),
            }),
            _ => Ok(()),
        }
    }

    /// Judges an address.
    pub(crate) fn address(&self, address: IpAddr) -> Result<(), Refusal> {
        if let Some(kind) = metadata(address) {
            let problem = format!("`{address}`, {kind}");
            return Err(Refusal { problem, help: "no setting allows it".to_owned() });
        }
        match not_public(address) {
            Some(kind) if self.network == Network::Public => Err(Refusal {
                problem: format!("`{address}`, {kind}"),
                help: "`network = \"public\"` refuses it, `network = \"any\"` would allow it".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn is_port_allowed(&self, port: u16) -> bool {
        port >= PORTS_RESERVED || PORTS_HTTP.contains(&port) || self.ports.contains(&port)
    }
}

/// The address that stands in place of a name. Parsing has brought it into its usual form, and brackets around IPv6.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// An IPv4 block: its first address, the length of its prefix, and what it is.
type V4 = (Ipv4Addr, u32, &'static str);
/// An IPv6 block.
type V6 = (Ipv6Addr, u32, &'static str);

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const fn v6(head: [u16; 4], tail: [u16; 4]) -> Ipv6Addr {
    let ([a, b, c, d], [e, f, g, h]) = (head, tail);
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

/// Where the services listen that hand out a machine's credentials or run it. `docs/SECURITY.md` names the sources.
const METADATA_V4: &[V4] = &[
    // As a whole: of most clouds at .169.254, of containers at .170.2 and .170.23, and of others elsewhere in it.
    (v4(169, 254, 0, 0), 16, "a link-local address, where clouds keep the credentials of their machines"),
    (v4(168, 63, 129, 16), 32, "the address by which Azure runs its machines"),
    (v4(100, 100, 100, 200), 32, "the metadata service of Alibaba Cloud"),
    (v4(192, 0, 0, 192), 32, "the metadata service of Oracle Cloud"),
];

/// The same for IPv6.
const METADATA_V6: &[V6] = &[
    (v6([0xfe80, 0, 0, 0], [0; 4]), 10, "a link-local address, where clouds keep the credentials of their machines"),
    (v6([0xfd00, 0xec2, 0, 0], [0; 4]), 32, "where Amazon's clouds keep the credentials of their machines"),
    (v6([0xfd20, 0xce, 0, 0], [0, 0, 0, 0x254]), 128, "the metadata service of Google Cloud"),
    (v6([0xfd00, 0xc1, 0, 0], [0, 0, 0xa9fe, 0xa9fe]), 128, "the metadata service of Oracle Cloud"),
    (v6([0xfd00, 0xa9fe, 0xa9fe, 0], [0, 0, 0, 1]), 128, "the metadata service of Akamai's cloud"),
    (v6([0xfd00, 0x42, 0, 0], [0, 0, 0, 0x42]), 128, "the metadata service of Scaleway"),
    (v6([0xfd00, 0x100, 0, 0], [0, 0, 0x100, 0x200]), 128, "the metadata service of Alibaba Cloud"),
];

/// What of IPv4 is not for everybody, by IANA's registry of special-purpose addresses.
const NOT_PUBLIC_V4: &[V4] = &[
    (v4(0, 0, 0, 0), 8, "this machine itself"),
    (v4(10, 0, 0, 0), 8, "a private address"),
    (v4(100, 64, 0, 0), 10, "an address shared behind a provider"),
    (v4(127, 0, 0, 0), 8, "this machine itself"),
    (v4(172, 16, 0, 0), 12, "a private address"),
    (v4(192, 0, 0, 0), 24, "an address reserved for protocols"),
    (v4(192, 0, 2, 0), 24, "an address for documentation"),
    (v4(192, 88, 99, 0), 24, "a relay between IPv4 and IPv6"),
    (v4(192, 168, 0, 0), 16, "a private address"),
    (v4(198, 18, 0, 0), 15, "an address for measurements"),
    (v4(198, 51, 100, 0), 24, "an address for documentation"),
    (v4(203, 0, 113, 0), 24, "an address for documentation"),
    (v4(224, 0, 0, 0), 4, "a multicast address"),
    (v4(240, 0, 0, 0), 4, "a reserved address"),
];

/// All of IPv6 that is handed out to be reached from everywhere.
const GLOBAL_V6: (Ipv6Addr, u32) = (v6([0x2000, 0, 0, 0], [0; 4]), 3);

/// What of it is not.
const NOT_PUBLIC_V6: &[V6] = &[
    (v6([0x2001, 0, 0, 0], [0; 4]), 23, "an address reserved for protocols such as Teredo"),
    (v6([0x2001, 0xdb8, 0, 0], [0; 4]), 32, "an address for documentation"),
    (v6([0x2002, 0, 0, 0], [0; 4]), 16, "an IPv4 address in another form (6to4)"),
    (v6([0x3fff, 0, 0, 0], [0; 4]), 20, "an address for documentation"),
];

fn is_in_v4(address: Ipv4Addr, first: Ipv4Addr, bits: u32) -> bool {
    (address.to_bits() ^ first.to_bits()).leading_zeros() >= bits
}

fn is_in_v6(address: Ipv6Addr, first: Ipv6Addr, bits: u32) -> bool {
    (address.to_bits() ^ first.to_bits()).leading_zeros() >= bits
}

/// What kind of metadata service this is, or leads to.
fn metadata(address: IpAddr) -> Option<&'static str> {
    let of_v4 =
        |address| METADATA_V4.iter().find(|(first, bits, _)| is_in_v4(address, *first, *bits)).map(|found| found.2);
    match address {
        IpAddr::V4(address) => of_v4(address),
        IpAddr::V6(address) => {
            let found = METADATA_V6.iter().find(|(first, bits, _)| is_in_v6(address, *first, *bits));
            found.map(|found| found.2).or_else(|| embedded(address).into_iter().find_map(of_v4))
        }
    }
}

/// Why an address is not one of the public internet.
fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => {
            NOT_PUBLIC_V4.iter().find(|(first, bits, _)| is_in_v4(address, *first, *bits)).map(|found| found.2)
        }
        IpAddr::V6(address) if !is_in_v6(address, GLOBAL_V6.0, GLOBAL_V6.1) => Some(match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => "this machine itself",
            [0xfc00..=0xfdff, ..] => "a private address",
            [0xff00..=0xffff, ..] => "a multicast address",
            _ if !embedded(address).is_empty() => "an IPv4 address in another form",
            _ => "not an address of the public internet",
        }),
        IpAddr::V6(address) => {
            let found = NOT_PUBLIC_V6.iter().find(|(first, bits, _)| is_in_v6(address, *first, *bits));
            let is_other = |address| not_public(IpAddr::V4(address)).is_some();
            found.map(|found| found.2).or_else(|| {
                let is_found = embedded(address).into_iter().any(is_other);
                is_found.then_some("an IPv4 address that is not public, in another form (ISATAP)")
            })
        }
    }
}

/// Where an IPv4 address ends an IPv6 one.
const LAST: [usize; 4] = [12, 13, 14, 15];
/// Which bytes hold it behind a NAT64 prefix of 48, 56, 64 and 96 bits: those that follow, without byte 8 (RFC 6052).
/// The shorter prefixes allowed there are wider than the two blocks known here.
const NAT64: [[usize; 4]; 4] = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], LAST];

/// The IPv4 addresses that an IPv6 address may stand for. Which of the ways is in use here only the network knows.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let (segments, bytes) = (address.segments(), address.octets());
    let at = |places: [usize; 4]| Ipv4Addr::from(places.map(|n| bytes[n]));
    let mut found = match segments {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        // Compatible `::a.b.c.d`, mapped `::ffff:a.b.c.d`, translated `::ffff:0:a.b.c.d`.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => vec![at(LAST)],
        // NAT64: everybody's prefix and that of local networks.
        [0x64, 0xff9b, 0 | 1, ..] => NAT64.map(at).to_vec(),
        // 6to4.
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // Teredo: the server, and the client behind it with every bit turned over.
        [0x2001, 0, ..] => vec![at([4, 5, 6, 7]), Ipv4Addr::from_bits(!at(LAST).to_bits())],
        _ => Vec::new(),
    };
    // ISATAP, under any prefix, those above included.
    if let [.., 0 | 0x200, 0x5efe, _, _] = segments {
        found.push(at(LAST));
    }
    found
}

#[cfg(test)]
mod tests;
