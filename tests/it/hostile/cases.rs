//! What endpoints may do, and what must come of it.

use std::time::Duration;

use bytes::Bytes;

use super::TIMEOUT;
use super::server::{Act, Script, Speaks};

/// One endpoint and what is expected of the relay.
pub(super) struct Case {
    /// The destination's name.
    pub(super) name: String,
    pub(super) script: Script,
    /// How many messages are sent to it, one after another.
    pub(super) messages: usize,
    /// What comes of each attempt, in order; the last one of all that follow.
    pub(super) expected: Vec<Expected>,
    /// What may come of any of them as well, when it is open who is faster. Then an attempt may also end before it is on
    /// the wire.
    pub(super) or: Option<Expected>,
    /// What the stored text must contain.
    pub(super) told: &'static str,
}

/// Verdict and code of an attempt, and whether the receiver may have acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) verdict: &'static str,
    pub(super) code: &'static str,
    pub(super) maybe: bool,
}

const fn expected(verdict: &'static str, code: &'static str, maybe: bool) -> Expected {
    Expected { verdict, code, maybe }
}

const OK: Expected = expected("delivered", "200", false);
const RESET: Expected = expected("retry", "reset", true);
const TIMED_OUT: Expected = expected("retry", "timeout", true);
const NOT_CONNECTED: Expected = expected("retry", "connect", false);
const ERROR: Expected = expected("retry", "500", false);

/// How many messages each case gets unless it says otherwise: enough to see a connection used again, too few to open the
/// circuit breaker.
const MESSAGES: usize = 2;

impl Case {
    fn new(name: &str, speaks: Speaks, answer: impl Into<Vec<Act>>, expected: Expected) -> Case {
        Case {
            name: name.to_owned(),
            script: Script { speaks, greeting: Vec::new(), answers: vec![answer.into()] },
            messages: MESSAGES,
            expected: vec![expected],
            or: None,
            told: "",
        }
    }

    /// An answer of HTTP/1.1.
    fn http(name: &str, answer: impl Into<Vec<Act>>, expected: Expected) -> Case {
        Case::new(name, Speaks::Http, answer, expected)
    }

    /// One of HTTP/2, after an empty SETTINGS.
    fn http2(name: &str, answer: impl Into<Vec<Act>>, expected: Expected) -> Case {
        Case::new(name, Speaks::Http2, answer, expected).greeted([Act::Frames(|_| frame(SETTINGS, 0, 0, &[]))])
    }

    fn greeted(mut self, greeting: impl Into<Vec<Act>>) -> Case {
        self.script.greeting = greeting.into();
        self
    }

    fn telling(mut self, told: &'static str) -> Case {
        self.told = told;
        self
    }

    fn once(mut self) -> Case {
        self.messages = 1;
        self
    }

    fn or(mut self, expected: Expected) -> Case {
        self.or = Some(expected);
        self
    }

    /// How many attempts there are to be.
    pub(super) fn attempts(&self) -> usize {
        self.messages.max(self.expected.len())
    }

    /// True when what may come of the attempt of this number, from 0, is right.
    pub(super) fn allows(&self, number: usize, is_right: impl Fn(&Expected) -> bool) -> bool {
        let expected = self.expected.get(number).or(self.expected.last());
        expected.into_iter().chain(&self.or).any(is_right)
    }

    /// Another answer to what follows, and what comes of it.
    fn then(mut self, answer: impl Into<Vec<Act>>, expected: Expected) -> Case {
        self.script.answers.push(answer.into());
        self.expected.push(expected);
        self.once()
    }
}

fn send(bytes: impl Into<Bytes>) -> Act {
    Act::Send(bytes.into())
}

fn flood(bytes: &'static [u8]) -> Act {
    Act::Flood(Bytes::from_static(bytes))
}

/// A status and headers, each with its line end, and nothing else.
fn status(status: &str, headers: &str) -> Act {
    send(format!("HTTP/1.1 {status} Scripted\r\n{headers}content-length: 0\r\n\r\n"))
}

fn body(status: u16, headers: &str, body: &[u8]) -> Act {
    let head = format!("HTTP/1.1 {status} Scripted\r\n{headers}content-length: {}\r\n\r\n", body.len());
    send([head.as_bytes(), body].concat())
}

/// A head whose body comes in chunks, or as something else than the head says.
fn chunked(status: u16) -> Act {
    send(format!("HTTP/1.1 {status} Scripted\r\ntransfer-encoding: chunked\r\n\r\n"))
}

/// Every case.
pub(super) fn all() -> Vec<Case> {
    [connections(), heads(), bodies(), statuses(), pauses(), times(), http2()].into_iter().flatten().collect()
}

fn connections() -> Vec<Case> {
    // A record of TLS 1.2 with the beginning of a message of 16 MiB, and records with what follows.
    let huge = [&[22, 3, 3, 0x40, 0, 2, 0xff, 0xff, 0xff][..], &[0; 0x3ffc]].concat();
    let more = [&[22, 3, 3, 0x40, 0][..], &[0; 0x4000]].concat();
    vec![
        Case::new("refused", Speaks::Refused, [], NOT_CONNECTED),
        Case::new("never_accepted", Speaks::NotAccepted, [], TIMED_OUT),
        Case::new("accepted_never_read", Speaks::NotRead, [], TIMED_OUT).greeted([Act::Hold]),
        Case::http("read_never_answered", [Act::Hold], TIMED_OUT),
        Case::http("closed", [Act::Close], RESET),
        Case::http("reset", [Act::Reset], RESET),
        Case::new("tls_stalled", Speaks::NoTls, [Act::Hold], NOT_CONNECTED),
        Case::new("tls_closed", Speaks::NoTls, [Act::Close], NOT_CONNECTED),
        Case::new("tls_spoken_plainly", Speaks::NoTls, [status("400", ""), Act::Close], NOT_CONNECTED),
        Case::new("tls_huge_message", Speaks::NoTls, [send(huge), Act::Flood(more.into())], NOT_CONNECTED),
        Case::new("tls_drips", Speaks::NoTls, [Act::Drip(Bytes::from_static(b"\x16"), QUICK)], NOT_CONNECTED),
    ]
}

const QUICK: Duration = Duration::from_millis(50);

fn heads() -> Vec<Case> {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    vec![
        Case::http("no_status_line", [send("no HTTP at all\r\n\r\n"), Act::Close], RESET),
        Case::http("http_0_9", [send("<html>hello</html>"), Act::Close], RESET),
        Case::http("half_a_head", [send("HTTP/1.1 200 O"), Act::Close], RESET),
        Case::http("byte_by_byte", [Act::Drip("HTTP/1.1 200 OK\r\nx: ".into(), QUICK)], TIMED_OUT),
        Case::http("header_1mb", [send(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)))], RESET),
        Case::http("headers_10000", [send(format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(10_000)))], RESET),
        Case::http("headers_endless", [send("HTTP/1.1 200 OK\r\n"), flood(b"x: y\r\n")], RESET),
        Case::http("header_name_with_nul", [send("HTTP/1.1 200 OK\r\nx\0y: z\r\n\r\n")], RESET),
        Case::http("header_value_with_nul", [send("HTTP/1.1 200 OK\r\nx: \0\r\n\r\n")], RESET),
        Case::http("continue_for_ever", [Act::Flood("HTTP/1.1 100 Continue\r\n\r\n".into())], TIMED_OUT),
        Case::http("hints_for_ever", [Act::Flood(hints.into())], TIMED_OUT),
        Case::http("hints_then_ok", [send(hints.repeat(3)), status("200", "")], OK),
        Case::http(
            "switching",
            [send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"), Act::Hold],
            expected("retry", "101", false),
        ),
        Case::http("status_000", [status("000", "")], RESET),
        Case::http("status_099", [status("099", "")], RESET),
        Case::http("status_20", [status("20", "")], RESET),
        Case::http("status_2000", [status("2000", "")], RESET),
        Case::http("status_299", [status("299", "")], expected("delivered", "299", false)),
        Case::http("status_600", [status("600", "")], expected("retry", "600", false)),
        Case::http("status_999", [status("999", "")], expected("retry", "999", false)),
    ]
}

fn bodies() -> Vec<Case> {
    let bombs = [("gzip", gzip_bomb()), ("br", vec![0xff; 16 * 1024]), ("zstd", zstd_bomb())];
    let bombs = bombs.map(|(name, bomb)| {
        let head = format!("HTTP/1.1 500 Scripted\r\ncontent-encoding: {name}\r\nconnection: close\r\n\r\n");
        let case = Case::http(&format!("bomb_{name}"), [send(head), send(bomb), Act::Close], ERROR);
        case.telling("(the answer's body is not text)")
    });
    let lengths = |lengths: &str| send(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n\r\nbody"));
    let mut cases = vec![
        Case::http("body_endless", [chunked(200), Act::Flood(chunk(0x2000))], OK),
        Case::http("body_endless_of_an_error", [chunked(500), Act::Flood(chunk(0x2000))], ERROR).telling("xxx"),
        Case::http("body_drips", [chunked(200), Act::Drip("1\r\nx\r\n".into(), QUICK)], OK),
        Case::http("body_drips_of_an_error", [chunked(500), Act::Drip("1\r\nx\r\n".into(), QUICK)], ERROR),
        Case::http("body_never_comes", [send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"), Act::Hold], OK),
        Case::http("length_too_long", [lengths("content-length: 100"), Act::Close], OK),
        Case::http("length_too_short", [lengths("content-length: 2")], OK),
        Case::http("length_negative", [lengths("content-length: -1")], RESET),
        Case::http("length_of_40_digits", [lengths(&format!("content-length: {}", "9".repeat(40)))], RESET),
        Case::http("length_twice", [lengths("content-length: 2\r\ncontent-length: 4")], RESET),
        Case::http("length_with_sign", [lengths("content-length: +4")], RESET),
        Case::http("chunks_are_none", [chunked(200), send("zz\r\nnothing\r\n")], OK),
        Case::http("chunks_are_none_of_an_error", [chunked(500), send("zz\r\nnothing\r\n")], ERROR),
        Case::http("chunk_too_large", [chunked(500), send("ffffffffffffffffff\r\nx")], ERROR),
        Case::http("trailers_endless", [chunked(200), send("0\r\n"), flood(b"x: y\r\n")], OK),
        Case::http("head_then_reset", [lengths("content-length: 100"), Act::Wait(2 * QUICK), Act::Reset], OK),
        Case::http("no_content_with_body", [body(204, "", b"there is one")], expected("delivered", "204", false)),
    ];
    for (name, bytes, told) in [
        ("excerpt_binary", &b"\x00\x01\xff\xfe\x00PNG"[..], "(the answer's body is not text)"),
        ("excerpt_colours", b"\x1b[31mred\x1b[0m \x1b]0;title\x07after", "red after"),
        ("excerpt_turned", "\u{202e}live \u{2066}then".as_bytes(), "live then"),
        ("excerpt_html", b"<script>alert(1)</script>", "<script>alert(1)</script>"),
    ] {
        cases.push(Case::http(name, [body(422, "", bytes)], expected("reject", "422", false)).telling(told));
    }
    cases.extend(bombs);
    cases
}

/// One chunk of so many bytes.
fn chunk(length: usize) -> Bytes {
    [format!("{length:x}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat().into()
}

/// Sixteen KiB that become sixteen MiB: the beginning of a long row of zeros, whose every further 258 are one bit or two.
fn gzip_bomb() -> Vec<u8> {
    let head =
        [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0xec, 0xc1, 0x01, 0x01, 0, 0, 0, 0x80, 0x90, 0xfe, 0xaf, 0xee, 0x08, 0x0a];
    [&head[..], &[0; 16 * 1024]].concat()
}

/// Blocks of four bytes, each of which says "128 KiB of this byte".
fn zstd_bomb() -> Vec<u8> {
    let head = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x58];
    [&head[..], &[0x02, 0, 0x10, b'x'].repeat(4 * 1024)].concat()
}

fn statuses() -> Vec<Case> {
    let elsewhere = "location: http://169.254.169.254/latest/meta-data/\r\n";
    let mut cases: Vec<Case> = ["300", "301", "302", "303", "304", "307", "308"]
        .map(|code| {
            let case = Case::http(&format!("redirect_{code}"), [status(code, elsewhere)], misconfigured(code));
            case.telling("redirected to `http://169.254.169.254/latest/meta-data/`; redirects are not followed")
        })
        .into();
    cases.push(Case::http("redirect_to_itself", [status("302", "location: /hooks\r\n")], misconfigured("302")));
    cases.push(Case::http("gone", [status("410", "")], expected("reject", "410", false)).once());
    cases.push(Case::http("too_many", [status("429", "")], expected("hold", "429", false)).once());
    for code in ["400", "413"] {
        cases.push(Case::http(&format!("status_{code}"), [status(code, "")], expected("reject", code, false)));
    }
    for code in ["401", "403", "404", "501"] {
        cases.push(Case::http(&format!("status_{code}"), [status(code, "")], misconfigured(code)));
    }
    for code in ["408", "421", "425", "500", "502", "503", "504", "507"] {
        cases.push(Case::http(&format!("status_{code}"), [status(code, "")], expected("retry", code, false)));
    }
    cases
}

fn misconfigured(code: &'static str) -> Expected {
    expected("misconfigured", code, false)
}

/// 503 asks for a pause if it says for how long in words that can be understood.
fn pauses() -> Vec<Case> {
    let hold = expected("hold", "503", false);
    let retry = expected("retry", "503", false);
    let answer = |value: &str| [status("503", &format!("retry-after: {value}\r\n"))];
    let mut cases = Vec::new();
    for (name, value) in [
        ("long", "1000000000000".to_owned()),
        ("of_40_digits", "9".repeat(40)),
        ("year_9999", "Fri, 31 Dec 9999 23:59:59 GMT".to_owned()),
        ("obsolete_date", "Friday, 31-Dec-49 23:59:59 GMT".to_owned()),
        ("c_date", "Fri Dec 31 23:59:59 2049".to_owned()),
        ("two_of_them", "1\r\nretry-after: 100000".to_owned()),
    ] {
        cases.push(Case::http(&format!("pause_{name}"), answer(&value), hold).once());
    }
    for (name, value) in [("none", "0"), ("past", "Sun, 06 Nov 1994 08:49:37 GMT")] {
        // It is asked again at once, as far as a second is at once.
        cases.push(Case::http(&format!("pause_{name}"), answer(value), hold).then([status("200", "")], OK));
    }
    for (name, value) in [("negative", "-1"), ("float", "1e3"), ("nan", "NaN"), ("garbage", "soon"), ("empty", "")] {
        cases.push(Case::http(&format!("pause_{name}"), answer(value), retry));
    }
    cases
}

fn times() -> Vec<Case> {
    vec![
        Case::http("too_late", [Act::Wait(TIMEOUT + Duration::from_millis(500)), status("200", "")], TIMED_OUT),
        // It promises to stay, and is gone. Whoever writes into it has made an attempt; see what is asserted of the wire.
        Case::http("closes_what_it_kept", [status("200", ""), Act::Close], OK).or(RESET),
    ]
}

// ---- HTTP/2 ----

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:status: 200` and the end.
fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88])
}

/// `:status: 200` and a body.
fn ok_with_body(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[0x88])
}

/// No stream above this one was looked at, and nothing is wrong.
fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

/// A header by its letters, not to be remembered.
fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value].concat()
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn http2() -> Vec<Case> {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    // An endpoint that is still writing about one request does not answer another one on the same connection. Whether that
    // is what the second message meets is open: the connection may have been given up meanwhile.
    vec![
        Case::http2("h2_well_behaved", [Act::Frames(ok)], OK),
        Case::http2("h2_goaway_instead", [Act::Frames(|_| goaway(0)), Act::Close], RESET),
        Case::http2("h2_goaway_after", [Act::Frames(|id| [ok(id), goaway(id)].concat())], OK),
        Case::http2("h2_goaway_before_the_answer", [Act::Frames(|id| [goaway(id), ok(id)].concat())], OK),
        Case::http2("h2_refused_stream", [Act::Frames(|id| frame(RST_STREAM, 0, id, &[0, 0, 0, 7]))], RESET),
        Case::http2("h2_reset_stream", [Act::Frames(|id| frame(RST_STREAM, 0, id, &[0, 0, 0, 2]))], RESET),
        Case::http2("h2_reset_storm", [Act::FloodFrames(|id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8]))], RESET)
            .or(TIMED_OUT),
        Case::http2("h2_settings_flood", [Act::FloodFrames(|_| frame(SETTINGS, 0, 0, &[]))], TIMED_OUT),
        Case::http2("h2_ping_flood", [Act::FloodFrames(|_| frame(PING, 0, 0, &[0; 8]))], TIMED_OUT),
        Case::http2(
            "h2_empty_data_flood",
            [Act::Frames(ok_with_body), Act::FloodFrames(|id| frame(DATA, 0, id, &[]))],
            OK,
        )
        .or(TIMED_OUT),
        Case::http2(
            "h2_hints_for_ever",
            [Act::FloodFrames(|id| frame(HEADERS, END_HEADERS, id, b"\x08\x03103"))],
            TIMED_OUT,
        ),
        Case::http2("h2_zero_window", [], TIMED_OUT).greeted([Act::Frames(|_| setting(INITIAL_WINDOW_SIZE, 0))]),
        Case::http2(
            "h2_continuation_flood",
            [
                Act::Frames(|id| frame(HEADERS, 0, id, &[0x88])),
                Act::FloodFrames(|id| frame(CONTINUATION, 0, id, &literal("x", b"y"))),
            ],
            RESET,
        ),
        Case::http2("h2_headers_of_1mb", [Act::Frames(headers_of_1mb)], RESET),
        Case::http2(
            "h2_body_endless",
            [Act::Frames(ok_with_body), Act::FloodFrames(|id| frame(DATA, 0, id, &[0; 1024]))],
            OK,
        )
        .or(TIMED_OUT),
        Case::http2("h2_no_frames", [send("HTTP/1.1 400 Bad Request\r\n\r\n"), Act::Close], RESET),
        // Whether the first request is sent before it is known that none may be is open.
        Case::http2("h2_no_streams", [], TIMED_OUT)
            .greeted([Act::Frames(|_| setting(MAX_CONCURRENT_STREAMS, 0))])
            .or(TIMED_OUT),
    ]
}

fn headers_of_1mb(stream: u32) -> Vec<u8> {
    let field = literal("x", &[b'y'; 100]);
    let piece = field.repeat(16 * 1024 / field.len());
    let mut frames = frame(HEADERS, 0, stream, &[0x88]);
    for _ in 0..64 {
        frames.extend(frame(CONTINUATION, 0, stream, &piece));
    }
    frames.extend(frame(CONTINUATION, END_HEADERS, stream, &[]));
    frames
}
