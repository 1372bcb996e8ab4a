//! Real processes: started, listened to, signalled and never left behind.
//!
//! [`Process`] works with any program; [`relay()`] is the command of this project's daemon. Everything is synchronous,
//! reads both outputs on threads of their own, and waits with a limit: when that is reached the test fails with all
//! that was said so far. Dropping a process kills it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The relay's executable, which cargo puts beside the tests'.
///
/// # Panics
///
/// When it was not built: cargo builds the programs of another package only when asked to.
pub fn relay_path() -> PathBuf {
    program_path("relay")
}

/// The executable of another package of the workspace.
///
/// # Panics
///
/// When it was not built.
pub fn program_path(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // A test lies in `deps`, a documentation test deeper or elsewhere.
    let path = own.ancestors().skip(1).map(|folder| folder.join(name)).find(|path| path.is_file());
    path.unwrap_or_else(|| {
        panic!("no `{name}` beside `{}`.\n  help: cargo build -p {name} --bins; `tests/run` does it", own.display())
    })
}

/// The relay with these arguments, and nothing of the tester's own configuration.
pub fn relay<I>(arguments: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(relay_path());
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("RELAY__") || name_text == "DATABASE_URL" || name_text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command.env("NO_COLOR", "1").args(arguments);
    command
}

/// An address on this machine that nobody listens on at the moment.
///
/// Below the ports a system gives to outgoing connections, so that no neighbour's connection takes it before the caller
/// comes to listen. Found by calling rather than by listening: a process started meanwhile by another test holds every
/// open listener until it has become its program, and the port would be busy for that long.
pub fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_000..16_000)));
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            return address;
        }
    }
}

/// A signal a process can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ends it in order.
    Term,
    /// As Ctrl-C does.
    Int,
    /// Reads its configuration anew.
    Hup,
    /// Ends it at once, with a word to its children.
    Quit,
    /// Freezes it.
    Stop,
    /// Thaws it.
    Cont,
    /// Ends it at once; it does not notice.
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Term => "TERM",
            Signal::Int => "INT",
            Signal::Hup => "HUP",
            Signal::Quit => "QUIT",
            Signal::Stop => "STOP",
            Signal::Cont => "CONT",
            Signal::Kill => "KILL",
        }
    }
}

/// A child of the test.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    said: Arc<Said>,
    listeners: Vec<JoinHandle<()>>,
    _files: Option<tempfile::TempDir>,
}

#[derive(Debug, Default)]
struct Said {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    /// Both outputs, as they came; true: standard output.
    lines: Vec<(bool, String)>,
    /// Outputs that have not ended.
    open: usize,
}

/// What a process had to say, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts a command and listens to it.
    pub fn start(mut command: Command) -> Process {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start `{name}`: {error}"));
        let said = Arc::new(Said::default());
        said.lines.lock().unwrap().open = 2;
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        let listeners = vec![listen(stdout, true, said.clone()), listen(stderr, false, said.clone())];
        Process { name, child, said, listeners, _files: None }
    }

    /// Starts `relay -c FILE` with these arguments and this configuration, whose file lives as long as the process.
    pub fn start_relay(configuration: &str, arguments: &[&str]) -> Process {
        Process::start_relay_with(configuration, arguments, &[])
    }

    /// The same with these in its environment.
    pub fn start_relay_with(configuration: &str, arguments: &[&str], variables: &[(String, String)]) -> Process {
        let folder = tempfile::Builder::new().prefix("outbox-relay-").tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        std::fs::write(&file, configuration).unwrap();
        let mut command = relay(["-c"]);
        command.arg(&file).args(arguments).current_dir(folder.path());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start(command);
        process._files = Some(folder);
        process
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    ///
    /// When it takes longer than `limit`.
    pub fn run(command: Command, limit: Duration) -> Ended {
        Process::start(command).wait(limit)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that was said so far, both outputs as they came.
    pub fn output(&self) -> String {
        let lines = self.said.lines.lock().unwrap();
        lines.lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// Waits for a line that holds `text`, and returns it.
    ///
    /// # Panics
    ///
    /// When none came within `limit`, or the process closed its outputs before.
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut lines = self.said.lines.lock().unwrap();
        let mut looked_at = 0;
        loop {
            if let Some((_, line)) = lines.lines[looked_at..].iter().find(|(_, line)| line.contains(text)) {
                return line.clone();
            }
            looked_at = lines.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.open == 0 {
                let why = if lines.open == 0 { "ended" } else { "ran out of time" };
                drop(lines);
                panic!("`{}` {why} without saying `{text}`; it said:\n{}", self.name, self.output());
            }
            lines = self.said.more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits until `GET path` at `address` answers 200.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`, or the process ended.
    pub fn wait_for_200(&mut self, address: SocketAddr, path: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let answer = get(address, path);
            if matches!(answer, Ok(200)) {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            if Instant::now() >= deadline || ended.is_some() {
                let name = &self.name;
                panic!("`{name}` ({ended:?}) answers {path} with {answer:?}; it said:\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal. The process is our child and not waited for yet, so the number is still its own.
    pub fn signal(&self, signal: Signal) {
        // The shell's own `kill`: as a program it is missing on small systems.
        let sent = Command::new("sh").args(["-c", &format!("kill -{} {}", signal.name(), self.id())]).status();
        let sent = sent.expect("every system we test on has a shell");
        assert!(sent.success(), "`{}` could not be sent {signal:?}; it said:\n{}", self.name, self.output());
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not end within `limit`.
    pub fn wait(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= deadline {
                panic!("`{}` did not end within {limit:?}; it said:\n{}", self.name, self.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.heard_out(deadline.max(Instant::now() + Duration::from_secs(1)));
        let lines = self.said.lines.lock().unwrap();
        let of = |wanted: bool| -> String {
            let lines = lines.lines.iter().filter(|(stdout, _)| *stdout == wanted);
            lines.map(|(_, line)| format!("{line}\n")).collect()
        };
        Ended { status, stdout: of(true), stderr: of(false) }
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Panics
    ///
    /// When it does not end within `limit`.
    pub fn terminate(self, limit: Duration) -> Ended {
        self.signal(Signal::Term);
        self.wait(limit)
    }

    /// Kills it, as a crash would, and waits until it is gone.
    pub fn kill(self) -> Ended {
        self.signal(Signal::Kill);
        self.wait(Duration::from_secs(10))
    }

    /// Waits until both outputs have ended. A grandchild may hold them open for ever, hence the limit.
    fn heard_out(&mut self, deadline: Instant) {
        while self.said.lines.lock().unwrap().open > 0 && Instant::now() < deadline {
            let lines = self.said.lines.lock().unwrap();
            drop(self.said.more.wait_timeout(lines, Duration::from_millis(20)).unwrap());
        }
        if self.said.lines.lock().unwrap().open == 0 {
            for listener in self.listeners.drain(..) {
                listener.join().expect("a listener does not panic");
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads an output line by line. Bytes that are no text are shown as such.
fn listen(output: impl Read + Send + 'static, stdout: bool, said: Arc<Said>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            said.lines.lock().unwrap().lines.push((stdout, text));
            said.more.notify_all();
            line.clear();
        }
        said.lines.lock().unwrap().open -= 1;
        said.more.notify_all();
    })
}

/// The status of a GET.
fn get(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let second = Some(Duration::from_secs(1));
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    socket.set_read_timeout(second)?;
    socket.set_write_timeout(second)?;
    write!(socket, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut status_line = String::new();
    BufReader::new(socket).read_line(&mut status_line)?;
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("`{status_line}` is no status line")))
}
