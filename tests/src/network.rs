//! A stretch of network between a relay and its database that does what the test says.
//!
//! It carries bytes and understands none of them, but for one thing: a [`Trap`] goes silent at the moment a client asks
//! to commit, when every statement of its transaction has been carried out and every lock is held.
//!
//! Runs on threads of its own, so that it goes on when a test blocks its runtime. Ends when it is dropped.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Carries everything.
    Whole,
    /// Carries nothing, and says nothing about it.
    Silent,
    /// Closes every connection, and each new one at once.
    Cut,
}

/// When the network is to go silent by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// It waits for a client that has sent this before on the same connection, in the same transaction.
    pub after: &'static str,
}

/// A stretch of network in front of a server.
#[derive(Debug)]
pub struct Stretch {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    network: Network,
    target: SocketAddr,
    trap: Option<Trap>,
    sprung: bool,
    ended: bool,
    connections: Vec<TcpStream>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Stretch {
    /// A stretch that leads to `target`.
    pub fn to(target: SocketAddr) -> Stretch {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            State { network: Network::Whole, target, trap: None, sprung: false, ended: false, connections: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&listener, &accepting));
        Stretch { address, shared }
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with this stretch in the place of its server.
    pub fn url(&self, url: &str) -> String {
        url.replacen(&authority(url).to_string(), &self.address.to_string(), 1)
    }

    /// Changes what it does.
    pub fn set(&self, network: Network) {
        let mut state = self.shared.state();
        state.network = network;
        if network == Network::Cut {
            cut(&mut state);
        }
        if network == Network::Whole {
            (state.trap, state.sprung) = (None, false);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Leads to another server from now on; what was connected is cut.
    pub fn lead_to(&self, target: SocketAddr) {
        let mut state = self.shared.state();
        state.target = target;
        cut(&mut state);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Goes silent when a client asks to commit what the trap waits for.
    pub fn set_trap(&self, after: &'static str) {
        let mut state = self.shared.state();
        (state.trap, state.sprung) = (Some(Trap { after }), false);
    }

    /// Waits until the trap has closed.
    pub fn wait_until_sprung(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.state();
        while !state.sprung {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nobody asked to commit {:?} within {limit:?}", state.trap);
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended = true;
        cut(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        // The thread that accepts is waiting for somebody.
        let _ = TcpStream::connect(self.address);
    }
}

/// The address of the server in an URL.
pub fn authority(url: &str) -> SocketAddr {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['/', '?']).next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    host.parse().unwrap_or_else(|_| panic!("`{url}` names no address and port"))
}

fn cut(state: &mut State) {
    for connection in state.connections.drain(..) {
        let _ = connection.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for near in listener.incoming().map_while(Result::ok) {
        let mut state = shared.state();
        if state.ended {
            return;
        }
        if state.network == Network::Cut {
            continue;
        }
        let Ok(far) = TcpStream::connect(state.target) else { continue };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (Ok(near_read), Ok(far_read)) = (near.try_clone(), far.try_clone()) else { continue };
        state.connections.extend([near_read.try_clone(), far_read.try_clone()].into_iter().flatten());
        drop(state);
        let (there, back) = (shared.clone(), shared.clone());
        std::thread::spawn(move || carry(near_read, far, &there, true));
        std::thread::spawn(move || carry(far_read, near, &back, false));
    }
}

/// Carries one direction until an end closes.
fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared, from_client: bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut said = Vec::new();
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut piece = &buffer[..count];
        if from_client && let Some(until) = springs(shared, &mut said, piece) {
            if to.write_all(&piece[..until]).is_err() {
                break;
            }
            piece = &piece[until..];
            let mut state = shared.state();
            (state.network, state.sprung) = (Network::Silent, true);
            shared.changed.notify_all();
        }
        let mut state = shared.state();
        while state.network == Network::Silent && !state.ended {
            state = shared.changed.wait(state).unwrap();
        }
        drop(state);
        if to.write_all(piece).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Where the commit begins that the trap waits for, when it is in this piece. `said` is what the client has sent in the
/// transaction so far.
fn springs(shared: &Shared, said: &mut Vec<u8>, piece: &[u8]) -> Option<usize> {
    let state = shared.state();
    let trap = state.trap.as_ref().filter(|_| !state.sprung)?;
    let commit = commit(piece);
    said.extend_from_slice(&piece[..commit.unwrap_or(piece.len())]);
    let waited_for = trap.after.is_empty() || position(said, trap.after.as_bytes()).is_some();
    let commit = commit?;
    said.clear();
    // Both protocols put five bytes before the text: a letter and a length, or a length, a number and a letter.
    waited_for.then_some(commit.saturating_sub(5))
}

/// Where the word stands by itself: every session of MariaDB's begins by asking for READ COMMITTED.
fn commit(piece: &[u8]) -> Option<usize> {
    const WORD: &[u8] = b"COMMIT";
    let mut from = 0;
    while let Some(at) = position(&piece[from..], WORD) {
        if !piece[from + at + WORD.len()..].starts_with(b"TED") {
            return Some(from + at);
        }
        from += at + WORD.len();
    }
    None
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_told_from_an_isolation_level() {
        assert_eq!(commit(b"SET ... READ COMMITTED"), None);
        assert_eq!(commit(b"READ COMMITTED; COMMIT"), Some(16));
    }

    #[test]
    fn the_server_is_found_in_an_url() {
        assert_eq!(authority("postgres://me:p@127.0.0.1:5432/x").port(), 5432);
        assert_eq!(authority("mysql://127.0.0.1:3306?a=b").port(), 3306);
    }
}
