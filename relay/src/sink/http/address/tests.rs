//! Every block at its edges, every way to write an address, and what a url may say.

use super::*;

const PUBLIC: Policy = Policy { network: Network::Public, allows_http: true, ports: Vec::new() };
const ANY: Policy = Policy { network: Network::Any, allows_http: true, ports: Vec::new() };

fn url(policy: &Policy, text: &str) -> Result<(), String> {
    let url = Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    policy.url(&url).map_err(|refusal| refusal.to_string())
}

/// The addresses just outside and just inside of each block: (before, first, last, after).
const EDGES: &[(&str, &str, &str, &str)] = &[
    ("-", "0.0.0.0", "0.255.255.255", "1.0.0.0"),
    ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
    ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
    ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
    ("168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"),
    ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
    ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
    ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
    ("192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"),
    ("192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"),
    ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
    ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
    ("198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"),
    ("203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"),
    ("223.255.255.255", "224.0.0.0", "255.255.255.255", "-"),
    ("-", "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"),
    ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
    ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
    ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"),
    ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
    ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"),
];

#[test]
fn only_what_is_global_unicast_is_public() {
    let judged = |address: &str| PUBLIC.address(address.parse().unwrap());
    for (before, first, last, after) in EDGES {
        for outside in [before, after] {
            assert!(*outside == "-" || judged(outside).is_ok(), "{outside}: {:?}", judged(outside));
        }
        for inside in [first, last] {
            assert!(judged(inside).is_err(), "{inside}");
        }
    }
}

#[test]
fn metadata_services_are_refused_whatever_is_set_and_however_they_are_written() {
    for address in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.42.42",
        "169.254.0.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fe80::a9fe:a9fe",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:a9fe:a9fe::1",
        "fd00:42::42",
        "fd00:100::100:200",
        "::169.254.169.254",
        "::ffff:169.254.169.254",
        "::ffff:0:169.254.169.254",
        "::ffff:168.63.129.16",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "64:ff9b:1:2:3:4:169.254.169.254",
        "64:ff9b:1:a9fe:00a9:fe00::",
        "64:ff9b:1:a9:fe:a9fe::",
        "64:ff9b:1:a9:fe:a900:fe00:0",
        "64:ff9b:1:0:a9:fea9:fe00:0",
        // 168.63.129.16 counts as a whole only: with 48, 56, 64 and 96 bits before it, and others around it.
        "64:ff9b:1:a83f:81:1000::",
        "64:ff9b:1:a83f:ff81:10ff:ffff:ffff",
        "64:ff9b:1:a8:3f:8110::",
        "64:ff9b:1:ffa8:ff3f:8110:ffff:ffff",
        "64:ff9b:1:0:a8:3f81:1000:0",
        "64:ff9b:1:ffff:ffa8:3f81:10ff:ffff",
        "64:ff9b:1::a83f:8110",
        "64:ff9b:1:ffff:ffff:ffff:a83f:8110",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "2001:0:808:808:0:0:5601:5601",
        "2001:db9::5efe:169.254.169.254",
        "fd00::200:5efe:169.254.169.254",
        "2002:808:808::5efe:169.254.169.254",
        "2001:0:808:808::5efe:169.254.169.254",
    ] {
        for policy in [ANY, PUBLIC] {
            let refusal = policy.address(address.parse().unwrap()).expect_err(address);
            assert_eq!(refusal.help, "no setting allows it", "{address}");
        }
    }
}

#[test]
fn inside_your_own_network_everything_else_is_reached() {
    for address in [
        "127.0.0.1",
        "10.0.0.5",
        "192.168.1.1",
        "100.64.0.1",
        "::1",
        "fd00::5",
        "::ffff:10.0.0.5",
        "8.8.8.8",
        "64:ff9b::10.0.0.5",
        "64:ff9b:1:a00:0:500::",
        "64:ff9b:1:a:0:5::",
        "64:ff9b:1:0:a:0:500:0",
        "64:ff9b:1::10.0.0.5",
        "2001:470::5efe:10.0.0.5",
    ] {
        assert_eq!(ANY.address(address.parse().unwrap()), Ok(()), "{address}");
    }
}

#[test]
fn an_address_of_the_public_internet_hides_no_other() {
    for address in [
        "2001:470::5efe:10.0.0.5",
        "2001:470::200:5efe:10.0.0.5",
        "2a00::5efe:127.0.0.1",
        "2a00:1:2:3:0:5efe:192.168.1.1",
        "2606:2800::5efe:0.0.0.0",
    ] {
        let refusal = PUBLIC.address(address.parse().unwrap()).expect_err(address);
        let told = "an IPv4 address that is not public, in another form (ISATAP)";
        assert!(refusal.problem.ends_with(told), "{refusal}");
    }
    for address in
        ["2001:470::5efe:8.8.8.8", "2001:470::200:5efe:8.8.8.8", "2001:470::5eff:10.0.0.5", "2001:470::a00:5"]
    {
        assert_eq!(PUBLIC.address(address.parse().unwrap()), Ok(()), "{address}");
    }
}

#[test]
fn an_address_is_found_behind_every_way_to_write_it() {
    for (text, told) in [
        ("http://127.0.0.1/", "`127.0.0.1`"),
        ("http://127.1/", "`127.0.0.1`"),
        ("http://127.0.0.1./", "`127.0.0.1`"),
        ("http://2130706433/", "`127.0.0.1`"),
        ("http://0x7f000001/", "`127.0.0.1`"),
        ("http://0x7f.1/", "`127.0.0.1`"),
        ("http://017700000001/", "`127.0.0.1`"),
        ("http://0177.0.0.01/", "`127.0.0.1`"),
        ("http://%31%32%37.0.0.1/", "`127.0.0.1`"),
        ("http://①②⑦.⓪.⓪.①/", "`127.0.0.1`"),
        ("http://127。0。0。1/", "`127.0.0.1`"),
        ("http://1２7.0.0.1/", "`127.0.0.1`"),
        ("http://user@127.0.0.1/", "`127.0.0.1`"),
        ("http://0/", "`0.0.0.0`"),
        ("http://[::1]/", "`::1`"),
        ("http://[0:0:0:0:0:0:0:1]/", "`::1`"),
        ("http://[::]/", "`::`"),
        ("http://[::ffff:127.0.0.1]/", "`::ffff:127.0.0.1`"),
        ("http://[::ffff:7f00:1]/", "`::ffff:127.0.0.1`"),
        ("http://2852039166/", "`169.254.169.254`"),
        ("http://0xa9.0xfe.0xa9.0xfe/", "`169.254.169.254`"),
        ("http:\\\\169.254.169.254\\", "`169.254.169.254`"),
    ] {
        let refusal = url(&PUBLIC, text).expect_err(text);
        assert!(refusal.starts_with(told), "{text}: {refusal}");
    }
}

#[test]
fn what_is_no_address_is_looked_up() {
    for text in ["http://localhost./", "http://127.0.0.1.nip.io/", "http://billing.example/", "http://1.2.3.4.example/"]
    {
        assert_eq!(url(&PUBLIC, text), Ok(()), "{text}");
    }
}

#[test]
fn plain_http_is_allowed_here_or_by_word() {
    let any = Policy::default();
    for text in ["https://billing.internal/", "http://127.0.0.1:8080/", "http://127.9.9.9/", "http://[::1]:8080/"] {
        assert_eq!(url(&any, text), Ok(()), "{text}");
    }
    for text in ["http://localhost:8080/", "http://LOCALHOST/", "http://localhost./"] {
        assert_eq!(url(&any, text), Ok(()), "{text}");
    }
    for text in ["http://billing.internal/", "http://10.0.0.5/", "http://localhost.example/", "http://0.0.0.0/"] {
        let told = "everybody on the way can read and change what is sent to an `http://` address; write `https://`, or \
                    allow it with `allow_http = true`";
        assert_eq!(url(&any, text), Err(told.to_owned()), "{text}");
        assert_eq!(url(&ANY, text), Ok(()), "{text}");
    }
    let public = Policy { network: Network::Public, ..Policy::default() };
    assert!(url(&public, "http://billing.example/").is_err());
    assert!(url(&public, "http://localhost/").is_err(), "here is not the public internet");
    assert_eq!(url(&PUBLIC, "http://billing.example/"), Ok(()));
}

#[test]
fn ports_of_other_services_are_refused_in_the_public_internet() {
    for port in [80, 443, 1024, 8080, 8443, 65535] {
        assert_eq!(url(&PUBLIC, &format!("https://a.example:{port}/")), Ok(()), "{port}");
    }
    for port in [0, 1, 22, 25, 53, 444, 1023] {
        let told = format!("port {port} belongs to another service than HTTP; allow it with `ports = [{port}]`");
        assert_eq!(url(&PUBLIC, &format!("https://a.example:{port}/")), Err(told));
        let told_so = Policy { ports: vec![port], ..PUBLIC };
        assert_eq!(url(&told_so, &format!("https://a.example:{port}/")), Ok(()), "{port}");
        assert_eq!(url(&ANY, &format!("https://a.example:{port}/")), Ok(()), "{port}");
    }
}
