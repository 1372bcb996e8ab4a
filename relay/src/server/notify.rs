//! Tells systemd how the relay is: ready, reloading, stopping, alive.
//!
//! The protocol of `sd_notify`: one datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names. Without
//! that variable nobody listens and nothing is sent; a datagram that cannot be sent is no reason to stop delivering.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::debug;

/// Whoever started this process and wants to know how it is.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<String>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment of this process says.
    pub fn from_environment() -> Notifier {
        Notifier::new(&std::env::vars().collect(), std::process::id())
    }

    /// As this environment says to the process `own_id`.
    pub fn new(environment: &BTreeMap<String, String>, own_id: u32) -> Notifier {
        let named = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        // The variables are inherited: the watchdog of a parent is not ours.
        let is_ours = named("WATCHDOG_PID").is_none_or(|id| id.parse() == Ok(own_id));
        let watchdog = named("WATCHDOG_USEC").and_then(|micros| micros.parse().ok()).filter(|micros| *micros > 0);
        Notifier {
            socket: named("NOTIFY_SOCKET").cloned(),
            watchdog: watchdog.filter(|_| is_ours).map(Duration::from_micros),
        }
    }

    /// How often to say that all is well, half the time after which silence is taken for death.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2).filter(|_| self.socket.is_some())
    }

    /// It delivers.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// It reads its configuration; [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()));
    }

    /// It finishes what is under way.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// All is well.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, text) {
            debug!(%error, socket, "the service manager could not be told");
        }
    }
}

#[cfg(unix)]
fn send(socket: &str, text: &str) -> std::io::Result<()> {
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let address = match socket.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // A manager that does not read must not stop us.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(not(unix))]
fn send(_socket: &str, _text: &str) -> std::io::Result<()> {
    Ok(())
}

/// The hour of the machine's monotonic clock, rounded up.
///
/// systemd takes a reload for begun when this is not before it asked for one. Uptime counts sleep where the monotonic
/// clock does not, so it is never too early, and it can be had without unsafe code.
fn monotonic_micros() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default();
    // It is written in hundredths, rounded down.
    (seconds * 1e6) as u64 + 10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifier(environment: &[(&str, &str)]) -> Notifier {
        Notifier::new(&environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), 7)
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let period = |environment: &[(&str, &str)]| notifier(environment).watchdog_period();
        let socket = ("NOTIFY_SOCKET", "/nowhere");
        let second = Some(Duration::from_secs(1));
        assert_eq!(period(&[socket, ("WATCHDOG_USEC", "2000000")]), second);
        assert_eq!(period(&[socket, ("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "7")]), second);
        assert_eq!(period(&[socket, ("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")]), None);
        assert_eq!(period(&[("WATCHDOG_USEC", "2000000")]), None, "nobody listens");
        assert_eq!(period(&[socket, ("WATCHDOG_USEC", "0")]), None);
        assert_eq!(period(&[socket]), None);
    }

    #[test]
    fn nobody_who_listens_is_no_error() {
        notifier(&[]).ready();
        notifier(&[("NOTIFY_SOCKET", "/nowhere/at/all")]).ready();
    }

    #[cfg(unix)]
    #[test]
    fn what_is_said_arrives_at_a_socket_with_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
        let mut bytes = [0; 100];
        let mut heard = || {
            let length = socket.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        notifier.ready();
        assert_eq!(heard(), "READY=1");
        notifier.alive();
        assert_eq!(heard(), "WATCHDOG=1");
        notifier.reloading();
        let said = heard();
        let micros = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|micros| micros.parse::<u64>().ok());
        assert!(micros.is_some_and(|micros| micros > 10_000), "{said}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_said_arrives_at_an_abstract_socket() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let name = format!("outbox-notify-{}", uuid::Uuid::new_v4());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))]).stopping();
        let mut bytes = [0; 100];
        let length = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"STOPPING=1");
    }
}
