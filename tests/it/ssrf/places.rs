//! Where somebody who may name an address might try to send us, and what is at each place.

use relay::sink::http::Network;

use super::dns::Said;

/// Addresses of the public internet.
pub(super) const PUBLIC_V4: &str = "93.184.215.14";
const PUBLIC_V6: &str = "2606:2800:21f:cb07::1";

/// A url and how far it may be followed.
pub(super) struct Place {
    pub(super) url: String,
    pub(super) reach: Reach,
    /// It has to be looked up.
    pub(super) is_name: bool,
}

/// What is at a place.
#[derive(Clone, Copy)]
pub(super) enum Reach {
    /// One of these addresses of the public internet.
    Outside(&'static [&'static str]),
    /// One of these, inside a network of one's own.
    Inside(&'static [&'static str]),
    /// What answers nobody.
    Nowhere,
    /// What is never to be reached.
    Never,
}

impl Reach {
    /// Whether this policy lets through what is there.
    pub(super) fn is_allowed(&self, network: Network) -> bool {
        match self {
            Reach::Outside(_) => true,
            Reach::Inside(_) | Reach::Nowhere => network == Network::Any,
            Reach::Never => false,
        }
    }
}

/// Urls with addresses of the public internet.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("http://93.184.215.14/", &["93.184.215.14"]),
    ("http://93.184.215.14./", &["93.184.215.14"]),
    ("http://93.184.215.14:8080/", &["93.184.215.14"]),
    ("https://93.184.215.14/", &["93.184.215.14"]),
    ("http://1572394766/", &["93.184.215.14"]),
    ("http://0x5d.0xb8.0xd7.0xe/", &["93.184.215.14"]),
    ("http://8.8.8.8/", &["8.8.8.8"]),
    ("http://1.0.0.0/", &["1.0.0.0"]),
    ("http://9.255.255.255/", &["9.255.255.255"]),
    ("http://11.0.0.1/", &["11.0.0.1"]),
    ("http://100.63.255.255/", &["100.63.255.255"]),
    ("http://100.128.0.1/", &["100.128.0.1"]),
    ("http://126.255.255.254/", &["126.255.255.254"]),
    ("http://128.0.0.1/", &["128.0.0.1"]),
    ("http://168.63.129.17/", &["168.63.129.17"]),
    ("http://169.253.255.255/", &["169.253.255.255"]),
    ("http://172.15.255.255/", &["172.15.255.255"]),
    ("http://172.32.0.1/", &["172.32.0.1"]),
    ("http://192.0.1.1/", &["192.0.1.1"]),
    ("http://192.167.0.1/", &["192.167.0.1"]),
    ("http://198.20.0.1/", &["198.20.0.1"]),
    ("http://223.255.255.254/", &["223.255.255.254"]),
    ("http://[2606:2800:21f:cb07::1]/", &["2606:2800:21f:cb07::1"]),
    ("http://[2001:200::1]/", &["2001:200::1"]),
    ("http://[2001:470::5efe:8.8.8.8]/", &["2001:470::5efe:808:808"]),
    ("http://[2001:4860:4860::8888]/", &["2001:4860:4860::8888"]),
    ("http://[2a00:1450:4001:812::200e]/", &["2a00:1450:4001:812::200e"]),
    ("http://[3fff:1000::1]/", &["3fff:1000::1"]),
];

/// Urls with addresses of other kinds, and where they lead.
const INSIDE: &[(&str, &[&str])] = &[
    ("http://127.0.0.1/", &["127.0.0.1"]),
    ("http://127.0.0.1:8080/", &["127.0.0.1"]),
    ("https://127.0.0.1/", &["127.0.0.1"]),
    ("http://127.1/", &["127.0.0.1"]),
    ("http://127.0.0.1./", &["127.0.0.1"]),
    ("http://127.255.255.254/", &["127.255.255.254"]),
    ("http://2130706433/", &["127.0.0.1"]),
    ("http://0x7f000001/", &["127.0.0.1"]),
    ("http://0X7F.1/", &["127.0.0.1"]),
    ("http://017700000001/", &["127.0.0.1"]),
    ("http://0177.0.0.1/", &["127.0.0.1"]),
    ("http://0x7f.0.0.0x1/", &["127.0.0.1"]),
    ("http://%31%32%37.0.0.1/", &["127.0.0.1"]),
    ("http://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1/", &["127.0.0.1"]),
    ("http://①②⑦.⓪.⓪.①/", &["127.0.0.1"]),
    ("http://127。0。0。1/", &["127.0.0.1"]),
    ("http://\u{ad}127.0.0.1/", &["127.0.0.1"]),
    ("http:127.0.0.1/", &["127.0.0.1"]),
    ("http:\\\\127.0.0.1\\", &["127.0.0.1"]),
    ("ht\ntp://127.0.\t0.1/", &["127.0.0.1"]),
    ("http://127.0.0.1#@93.184.215.14/", &["127.0.0.1"]),
    ("http://127.0.0.1\\@93.184.215.14/", &["127.0.0.1"]),
    ("http://0/", &["127.0.0.1"]),
    ("http://0.0.0.0/", &["127.0.0.1"]),
    ("http://0.1.2.3/", &["0.1.2.3"]),
    ("http://10.0.0.5/", &["10.0.0.5"]),
    ("https://10.0.0.5/", &["10.0.0.5"]),
    ("http://10.255.255.255/", &["10.255.255.255"]),
    ("http://167772165/", &["10.0.0.5"]),
    ("http://012.0.0.5/", &["10.0.0.5"]),
    ("http://100.64.0.1/", &["100.64.0.1"]),
    ("http://100.127.255.255/", &["100.127.255.255"]),
    ("http://172.16.0.1/", &["172.16.0.1"]),
    ("http://172.31.255.255/", &["172.31.255.255"]),
    ("http://192.0.0.1/", &["192.0.0.1"]),
    ("http://192.0.2.1/", &["192.0.2.1"]),
    ("http://192.88.99.1/", &["192.88.99.1"]),
    ("http://192.168.0.1/", &["192.168.0.1"]),
    ("http://192.168.257/", &["192.168.1.1"]),
    ("http://198.18.0.1/", &["198.18.0.1"]),
    ("http://198.19.255.255/", &["198.19.255.255"]),
    ("http://198.51.100.1/", &["198.51.100.1"]),
    ("http://203.0.113.1/", &["203.0.113.1"]),
    ("http://240.0.0.1/", &["240.0.0.1"]),
    ("http://[::]/", &["::1"]),
    ("http://[::1]/", &["::1"]),
    ("http://[0:0:0:0:0:0:0:1]/", &["::1"]),
    ("http://[::0001]:8080/", &["::1"]),
    ("http://[::ffff:127.0.0.1]/", &["127.0.0.1"]),
    ("http://[::ffff:7f00:1]/", &["127.0.0.1"]),
    ("http://[::ffff:10.0.0.5]/", &["10.0.0.5"]),
    ("http://[::ffff:8.8.8.8]/", &["8.8.8.8"]),
    ("http://[::127.0.0.1]/", &["::127.0.0.1"]),
    ("http://[::10.0.0.5]/", &["::10.0.0.5"]),
    ("http://[::ffff:0:10.0.0.5]/", &["::ffff:0:10.0.0.5"]),
    ("http://[64:ff9b::10.0.0.5]/", &["64:ff9b::a00:5"]),
    ("http://[64:ff9b::8.8.8.8]/", &["64:ff9b::808:808"]),
    ("http://[64:ff9b:1::10.0.0.5]/", &["64:ff9b:1::a00:5"]),
    ("http://[64:ff9b:1:0:a:0:500:0]/", &["64:ff9b:1:0:a:0:500:0"]),
    ("http://[100::1]/", &["100::1"]),
    ("http://[2001::1]/", &["2001::1"]),
    ("http://[2001:0:a00:5::1]/", &["2001:0:a00:5::1"]),
    ("http://[2001:20::1]/", &["2001:20::1"]),
    ("https://[2001:470::5efe:10.0.0.5]/", &["2001:470::5efe:a00:5"]),
    ("http://[2001:470::200:5efe:127.0.0.1]/", &["2001:470::200:5efe:7f00:1"]),
    ("http://[2001:db8::1]/", &["2001:db8::1"]),
    ("http://[2002:a00:5::1]/", &["2002:a00:5::1"]),
    ("http://[2002:808:808::1]/", &["2002:808:808::1"]),
    ("http://[3fff::1]/", &["3fff::1"]),
    ("http://[4000::1]/", &["4000::1"]),
    ("http://[5f00::1]/", &["5f00::1"]),
    ("http://[fc00::1]/", &["fc00::1"]),
    ("http://[fd12:3456:789a::1]/", &["fd12:3456:789a::1"]),
    ("http://[fec0::1]/", &["fec0::1"]),
];

/// Urls with addresses nobody has.
const NOWHERE: &[&str] = &[
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://255.255.255.255/",
    "http://[ff02::1]/",
    "http://[ff0e::1]/",
];

/// Urls of what gives away a machine's credentials.
const NEVER: &[&str] = &[
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/",
    "http://169.254.169.254:8080/",
    "http://169.254.169.254./",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0xA9.0xFE.0xA9.0xFE/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://169.16689662/",
    "http://%31%36%39.254.169.254/",
    "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/",
    "http://169。254。169。254/",
    "http://169.254.170.2/v2/credentials",
    "http://169.254.170.23/v1/credentials",
    "http://169.254.42.42/",
    "http://169.254.0.23/",
    "http://169.254.1.1/",
    "http://168.63.129.16/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/latest/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd00:ec2::23]/",
    "http://[fd20:ce::254]/computeMetadata/v1/",
    "http://[fd00:c1::a9fe:a9fe]/opc/v2/",
    "http://[fd00:42::42]/",
    "http://[fd00:a9fe:a9fe::1]/v1/token",
    "http://[fd00:100::100:200]/",
    "http://[fe80::a9fe:a9fe]/openstack",
    "http://[fe80::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
    "http://[::169.254.169.254]/",
    "http://[::ffff:0:169.254.169.254]/",
    "http://[64:ff9b::169.254.169.254]/",
    "http://[64:ff9b:1::169.254.169.254]/",
    "https://[64:ff9b:1:a9fe:a9:fe00::]/",
    "https://[64:ff9b:1:a9:fe:a9fe::]/",
    "https://[64:ff9b:1:a9:fe:a900:fe00:0]/",
    "https://[64:ff9b:1:0:a9:fea9:fe00:0]/",
    "http://[64:ff9b:1:a8:3f:8110::]/",
    "http://[64:ff9b:1:0:a8:3f81:1000:0]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:a9fe:a9fe::1]/",
    "http://[2001:470::5efe:169.254.169.254]/",
    "http://[2002:808:808::5efe:169.254.169.254]/",
    "http://[::ffff:100.100.100.200]/",
    "http://[::ffff:168.63.129.16]/",
];

/// Names: which url asks for them, what the name server says, and what is there.
type Named = (&'static str, &'static str, &'static [&'static str], Reach);

const NAMED: &[Named] = &[
    ("http://outside.test/", "outside.test", &[PUBLIC_V4], Reach::Outside(&[PUBLIC_V4])),
    ("http://OUTSIDE.test./", "outside.test", &[PUBLIC_V4], Reach::Outside(&[PUBLIC_V4])),
    ("https://outside.test/", "outside.test", &[PUBLIC_V4], Reach::Outside(&[PUBLIC_V4])),
    ("http://outside6.test/", "outside6.test", &[PUBLIC_V6], Reach::Outside(&[PUBLIC_V6])),
    ("http://two.test/", "two.test", &[PUBLIC_V4, PUBLIC_V6], Reach::Outside(&[PUBLIC_V4, PUBLIC_V6])),
    ("http://localhost/", "localhost", &["127.0.0.1"], Reach::Inside(&["127.0.0.1", "::1"])),
    ("http://localhost./", "localhost", &["127.0.0.1"], Reach::Inside(&["127.0.0.1", "::1"])),
    ("http://LOCALHOST:8080/", "localhost", &["127.0.0.1"], Reach::Inside(&["127.0.0.1", "::1"])),
    ("http://loops.test/", "loops.test", &["127.0.0.1"], Reach::Inside(&["127.0.0.1"])),
    ("http://127.0.0.1.loops.test/", "127.0.0.1.loops.test", &["127.0.0.1"], Reach::Inside(&["127.0.0.1"])),
    ("http://zero.test/", "zero.test", &["0.0.0.0"], Reach::Inside(&["127.0.0.1"])),
    ("http://loops6.test/", "loops6.test", &["::1"], Reach::Inside(&["::1"])),
    ("http://inside.test/", "inside.test", &["10.0.0.5"], Reach::Inside(&["10.0.0.5"])),
    ("http://inside.test.:8080/", "inside.test", &["10.0.0.5"], Reach::Inside(&["10.0.0.5"])),
    ("https://inside.test/", "inside.test", &["10.0.0.5"], Reach::Inside(&["10.0.0.5"])),
    ("http://inside6.test/", "inside6.test", &["fd00::5"], Reach::Inside(&["fd00::5"])),
    ("http://mixed.test/", "mixed.test", &[PUBLIC_V4, "10.0.0.5"], Reach::Inside(&[PUBLIC_V4, "10.0.0.5"])),
    ("http://mixed6.test/", "mixed6.test", &[PUBLIC_V4, "::1"], Reach::Inside(&[PUBLIC_V4, "::1"])),
    ("http://mapped.test/", "mapped.test", &["::ffff:10.0.0.5"], Reach::Inside(&["10.0.0.5"])),
    ("http://nat64.test/", "nat64.test", &["64:ff9b::a00:5"], Reach::Inside(&["64:ff9b::a00:5"])),
    ("http://isatap.test/", "isatap.test", &["2001:470::5efe:a00:5"], Reach::Inside(&["2001:470::5efe:a00:5"])),
    ("http://alias.test/", "alias.test", &["10.0.0.5"], Reach::Inside(&["10.0.0.5"])),
    ("http://metadata.test/", "metadata.test", &["169.254.169.254"], Reach::Never),
    ("http://metadata.google.internal/", "metadata.google.internal", &["169.254.169.254"], Reach::Never),
    ("http://169.254.169.254.nip.test/", "169.254.169.254.nip.test", &["169.254.169.254"], Reach::Never),
    ("http://metadata6.test/", "metadata6.test", &["fd00:ec2::254"], Reach::Never),
    ("http://metadata-mapped.test/", "metadata-mapped.test", &["::ffff:169.254.169.254"], Reach::Never),
    ("http://metadata-nat64.test/", "metadata-nat64.test", &["64:ff9b::a9fe:a9fe"], Reach::Never),
    ("http://metadata-local.test/", "metadata-local.test", &["64:ff9b:1:0:a9:fea9:fe00:0"], Reach::Never),
    ("http://metadata-too.test/", "metadata-too.test", &[PUBLIC_V4, "169.254.169.254"], Reach::Never),
    ("http://metadata-too6.test/", "metadata-too6.test", &[PUBLIC_V4, PUBLIC_V6, "fd20:ce::254"], Reach::Never),
    ("http://azure.test/", "azure.test", &["168.63.129.16"], Reach::Never),
    ("http://metadata-alias.test/", "metadata-alias.test", &["169.254.169.254"], Reach::Never),
];

/// Where a receiver of the public internet sends us.
pub(super) const REDIRECTED: &[&str] =
    &["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1/", "http://[fd00:ec2::254]/", "//10.0.0.5/", "/"];

/// All places.
pub(super) fn all() -> Vec<Place> {
    let literal = |url: &str, reach| Place { url: url.to_owned(), reach, is_name: false };
    let mut all: Vec<Place> = OUTSIDE.iter().map(|(url, at)| literal(url, Reach::Outside(at))).collect();
    all.extend(INSIDE.iter().map(|(url, at)| literal(url, Reach::Inside(at))));
    all.extend(NOWHERE.iter().map(|url| literal(url, Reach::Nowhere)));
    all.extend(NEVER.iter().map(|url| literal(url, Reach::Never)));
    all.extend(NAMED.iter().map(|(url, _, _, reach)| Place { url: (*url).to_owned(), reach: *reach, is_name: true }));
    all
}

/// What the name server says when a name is looked up for the `nth` time.
pub(super) fn zone(name: &str, nth: usize) -> Said {
    let parsed = |addresses: &[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect();
    let is_first = nth % 2 == 1;
    match name {
        "flips-inside.test" => Said::Addresses(parsed(if is_first { &[PUBLIC_V4] } else { &["10.0.0.5"] })),
        "flips-to-metadata.test" => Said::Addresses(parsed(if is_first { &[PUBLIC_V4] } else { &["169.254.169.254"] })),
        "alias.test" => Said::Alias("inside.test", parsed(&["10.0.0.5"])),
        "metadata-alias.test" => Said::Alias("metadata.test", parsed(&["169.254.169.254"])),
        "broken.test" => Said::Broken,
        "silent.test" => Said::Silence,
        "empty.test" => Said::Addresses(Vec::new()),
        name => match NAMED.iter().find(|(_, known, ..)| *known == name) {
            Some((_, _, addresses, _)) => Said::Addresses(parsed(addresses)),
            None => Said::Absent,
        },
    }
}
