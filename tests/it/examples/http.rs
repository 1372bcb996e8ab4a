//! HTTP as small as it gets: one request, one connection, one answer.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::LIMIT;

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A request whose body is still to come.
pub(super) fn begin(address: &str, method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(socket, "{head}content-length: {length}\r\n\r\n").unwrap();
    socket
}

/// Sends the body and reads the answer.
pub(super) fn end(mut socket: TcpStream, body: &[u8]) -> Answer {
    // Who refuses a body by its length alone may have closed already.
    let _ = socket.write_all(body);
    let mut bytes = Vec::new();
    let read = socket.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer ({read:?}): `{text}`"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Answer { status: status.unwrap(), head: head.to_owned(), body: body.to_owned() }
}

pub(super) fn call(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    end(begin(address, method, path, headers, body.len()), body)
}

/// Does what a line that begins with `curl` says, at this address. It knows what the pages use.
pub(super) fn curl(line: &str, address: &str) -> Answer {
    let words = words(line);
    let (mut url, mut method, mut body, mut headers) = (None, None, None, Vec::new());
    let mut rest = words.iter().map(String::as_str).skip(1);
    while let Some(word) = rest.next() {
        match word {
            "-i" => {}
            "-d" => body = rest.next(),
            "-X" => method = rest.next(),
            "-H" => headers.push(rest.next().and_then(|header| header.split_once(": ")).expect("-H takes a header")),
            word if word.starts_with("http://") => url = Some(word),
            other => panic!("`{other}` in `{line}` is not known here"),
        }
    }
    let after_scheme = url.expect("there is a url").trim_start_matches("http://");
    let path = &after_scheme[after_scheme.find('/').expect("there is a path")..];
    if body.is_some() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        headers.push(("content-type", "application/x-www-form-urlencoded"));
    }
    let method = method.unwrap_or(if body.is_some() { "POST" } else { "GET" });
    call(address, method, path, &headers, body.unwrap_or_default().as_bytes())
}

/// Splits as a shell does: at blanks that are not between single quotes.
fn words(line: &str) -> Vec<String> {
    assert!(!line.contains('"') || line.contains('\''), "only single quotes are known here: {line}");
    let mut words = vec![String::new()];
    for (n, part) in line.split('\'').enumerate() {
        if n % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        for c in part.chars() {
            if c != ' ' {
                words.last_mut().unwrap().push(c);
            } else if !words.last().unwrap().is_empty() {
                words.push(String::new());
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
