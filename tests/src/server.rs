//! Private database servers, for tests that stop, copy, replace or mislead them, and a pooler before one.
//!
//! Each runs in a folder of its own, under the user the shared servers run under (they refuse root), and ends when it is
//! dropped. It is not durable: nothing here survives a power cut, and nothing has to.

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::certificates::Certificate;
use crate::database::Kind;
use crate::process::{Process, Signal, free_address};

/// How long a server may take to start or to stop: far more than it takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A server of one's own.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    folder: tempfile::TempDir,
    address: SocketAddr,
    variables: Vec<(String, String)>,
    settings: Vec<String>,
    process: Option<Process>,
}

/// How a server speaks TLS.
#[derive(Debug)]
pub struct Tls<'a> {
    /// What it shows.
    pub certificate: &'a Certificate,
    /// The authority of the clients' certificates, as PEM.
    pub clients: &'a str,
    /// Nothing newer than TLS 1.1.
    pub is_old: bool,
}

impl Server {
    /// Makes an empty server of this kind and starts it.
    pub fn start(kind: Kind) -> Server {
        let mut server = Server::create(kind);
        server.resume();
        server
    }

    /// The same with a clock that [`Clock`] sets.
    pub fn start_with_clock(kind: Kind, clock: &Clock) -> Server {
        let mut server = Server::create(kind);
        server.variables = clock.variables();
        server.resume();
        server
    }

    /// From the next start on it speaks TLS like this, or not at all.
    pub fn set_tls(&mut self, tls: Option<&Tls<'_>>) {
        self.settings.clear();
        let Some(Tls { certificate, clients, is_old }) = tls else { return };
        let (shown, key) = certificate.write(self.folder.path(), "server");
        let authority = self.folder.path().join("clients.crt");
        fs::write(&authority, clients).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        give_away(&key);
        self.settings = match self.kind {
            Kind::Postgres => vec![
                "-cssl=on".to_owned(),
                format!("-cssl_cert_file={}", shown.display()),
                format!("-cssl_key_file={}", key.display()),
                format!("-cssl_ca_file={}", authority.display()),
            ],
            _ => vec![option("--ssl-cert", &shown), option("--ssl-key", &key), option("--ssl-ca", &authority)],
        };
        if *is_old {
            // OpenSSL speaks them at its lowest level only.
            self.settings.extend(match self.kind {
                Kind::Postgres => ["-cssl_min_protocol_version=TLSv1", "-cssl_max_protocol_version=TLSv1.1"]
                    .map(str::to_owned)
                    .to_vec(),
                _ => ["--tls-version=TLSv1.1", "--ssl-cipher=DEFAULT@SECLEVEL=0"].map(str::to_owned).to_vec(),
            });
        }
    }

    /// From the next start on PostgreSQL lets in whom these lines of `pg_hba.conf` do.
    pub fn set_access(&self, lines: &str) {
        assert_eq!(self.kind, Kind::Postgres);
        fs::write(self.data().join("pg_hba.conf"), lines).unwrap();
    }

    fn create(kind: Kind) -> Server {
        let folder = private_folder();
        let server = Server {
            kind,
            folder,
            address: free_address(),
            variables: Vec::new(),
            settings: Vec::new(),
            process: None,
        };
        let data = server.data();
        let made = match kind {
            Kind::Postgres => {
                let mut command = as_user(postgres_program("initdb"));
                command.arg("--pgdata").arg(&data).args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
                command.args(["--locale=C", "--no-sync"]);
                Process::run(command, LIMIT)
            }
            Kind::Mariadb => {
                let mut command = as_user(program(&["mariadb-install-db"]));
                // Two at a time would share the names of their temporary tables.
                command.env("TMPDIR", server.folder.path());
                command.arg("--no-defaults").arg(option("--datadir", &data));
                command.args(["--skip-test-db", "--auth-root-authentication-method=normal", "--skip-name-resolve"]);
                Process::run(command, LIMIT)
            }
            Kind::Sqlite => panic!("SQLite has no server"),
        };
        assert!(made.status.success(), "no {kind} could be made: {}{}", made.stdout, made.stderr);
        server
    }

    /// A standby of this one, which follows it.
    pub fn standby(&self) -> Server {
        self.standby_by(self.address)
    }

    /// The same, following by way of another address.
    pub fn standby_by(&self, way: SocketAddr) -> Server {
        let mut standby = Server {
            kind: self.kind,
            folder: private_folder(),
            address: free_address(),
            variables: self.variables.clone(),
            settings: self.settings.clone(),
            process: None,
        };
        self.base_backup(way, &standby.data(), true);
        standby.resume();
        standby
    }

    /// Copies a running PostgreSQL.
    fn base_backup(&self, way: SocketAddr, to: &Path, follows: bool) {
        assert_eq!(self.kind, Kind::Postgres);
        let mut command = as_user(postgres_program("pg_basebackup"));
        command.arg("--pgdata").arg(to).arg("--host=127.0.0.1").arg(format!("--port={}", way.port()));
        command.args(["--username=postgres", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]);
        if follows {
            command.arg("--write-recovery-conf");
        }
        let copied = Process::run(command, LIMIT);
        assert!(copied.status.success(), "no copy: {}", copied.stderr);
    }

    /// Copies the server's files, to be put back by [`Server::restore`].
    pub fn back_up(&mut self) {
        let copy = self.folder.path().join("copy");
        match self.kind {
            Kind::Postgres => self.base_backup(self.address, &copy, false),
            _ => {
                self.stop();
                copy_folder(&self.data(), &copy);
                self.resume();
            }
        }
    }

    /// Stops the server at once, puts the copy in the place of its files and starts it again.
    pub fn restore(&mut self) {
        self.crash();
        fs::remove_dir_all(self.data()).unwrap();
        fs::rename(self.folder.path().join("copy"), self.data()).unwrap();
        self.resume();
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        let mut command = as_user(postgres_program("pg_ctl"));
        let promoted = Process::run(
            {
                command.args(["promote", "--pgdata"]).arg(self.data());
                command
            },
            LIMIT,
        );
        assert!(promoted.status.success(), "not promoted: {}{}", promoted.stdout, promoted.stderr);
    }

    /// Starts it again where it was.
    pub fn resume(&mut self) {
        let port = self.address.port();
        let mut command = match self.kind {
            Kind::Postgres => {
                let mut command = as_user(postgres_program("postgres"));
                command.arg("-D").arg(self.data()).arg("-p").arg(port.to_string());
                for setting in [
                    "listen_addresses=127.0.0.1",
                    "unix_socket_directories=",
                    "max_connections=100",
                    "shared_buffers=16MB",
                    "jit=off",
                    "fsync=off",
                    "hot_standby=on",
                    "wal_retrieve_retry_interval=100",
                    "logging_collector=off",
                ] {
                    command.args(["-c", setting]);
                }
                command
            }
            _ => {
                let mut command = as_user(program(&["mariadbd"]));
                command.env("TMPDIR", self.folder.path());
                command.arg("--no-defaults").arg(option("--datadir", &self.data()));
                command.arg(format!("--port={port}")).args(["--bind-address=127.0.0.1", "--skip-name-resolve"]);
                command.arg(option("--socket", &self.folder.path().join("socket")));
                command.arg(option("--pid-file", &self.folder.path().join("pid")));
                command.args(["--max-connections=200", "--innodb-flush-log-at-trx-commit=2"]);
                command.args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--skip-log-bin"]);
                command
            }
        };
        command.args(&self.settings);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start(command);
        let deadline = Instant::now() + LIMIT;
        while !self.is_ready() {
            let running = process.is_running();
            assert!(running && Instant::now() < deadline, "{} does not start:\n{}", self.kind, process.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process = Some(process);
    }

    fn is_ready(&self) -> bool {
        if TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err() {
            return false;
        }
        match self.kind {
            // It listens before it lets anybody in.
            Kind::Postgres => fs::read_to_string(self.data().join("postmaster.pid"))
                .is_ok_and(|lines| lines.lines().nth(7).is_some_and(|line| line.trim() == "ready")),
            _ => true,
        }
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            // PostgreSQL waits for its clients when it is asked otherwise.
            process.signal(if self.kind == Kind::Postgres { Signal::Int } else { Signal::Term });
            process.wait(LIMIT);
        }
    }

    /// Ends it as a crash would, and waits until all of it is gone.
    pub fn crash(&mut self) {
        let Some(process) = self.process.take() else { return };
        match self.kind {
            // Killed, it would leave its children behind for a moment; asked like this, they go at once as well.
            Kind::Postgres => {
                process.signal(Signal::Quit);
                process.wait(LIMIT);
            }
            _ => drop(process.kill()),
        }
    }

    /// Which database it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, with its maintenance database.
    pub fn url(&self) -> String {
        match self.kind {
            Kind::Postgres => format!("postgres://postgres@{}/postgres", self.address),
            _ => format!("mysql://root@{}/mysql", self.address),
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.crash();
    }
}

/// pgbouncer, before the PostgreSQL server of an URL.
#[derive(Debug)]
pub struct Pooler {
    address: SocketAddr,
    _folder: tempfile::TempDir,
    process: Process,
}

impl Pooler {
    /// Starts it in this `pool_mode`.
    pub fn start(server_url: &str, pool_mode: &str) -> Pooler {
        let (folder, address) = (private_folder(), free_address());
        let url = url::Url::parse(server_url).unwrap();
        let mut target = format!("host={} port={}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        target.push_str(&format!(" user={}", url.username()));
        if let Some(password) = url.password() {
            target.push_str(&format!(" password={password}"));
        }
        // `any`: the user is the one named here, whoever asks.
        let text = format!(
            "[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 20\nmax_client_conn = 200\n",
            address.port()
        );
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, text).unwrap();
        give_away(&file);
        let mut command = as_user(program(&["pgbouncer"]));
        command.arg(&file);
        let mut process = Process::start(command);
        let deadline = Instant::now() + LIMIT;
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            let running = process.is_running();
            assert!(running && Instant::now() < deadline, "pgbouncer does not start:\n{}", process.output());
            std::thread::sleep(Duration::from_millis(10));
        }
        Pooler { address, _folder: folder, process }
    }

    /// `url` with the pooler in the place of its server.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.to_string()
    }

    /// What it has said.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

/// A clock for processes, which the test sets while they run. It moves on like any other.
#[derive(Debug)]
pub struct Clock {
    folder: tempfile::TempDir,
}

impl Clock {
    /// A clock that shows the present.
    pub fn new() -> Clock {
        let clock = Clock { folder: private_folder() };
        clock.step(0);
        clock
    }

    /// From now on it shows the present and so many seconds.
    pub fn step(&self, seconds: i64) {
        let (file, new) = (self.file(), self.folder.path().join("new"));
        // Renamed, because nobody may read half of it.
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(new, file).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// What a process needs in its environment to go by this clock.
    ///
    /// # Panics
    ///
    /// When libfaketime is not here.
    pub fn variables(&self) -> Vec<(String, String)> {
        let library = fs::read_dir("/usr/lib")
            .unwrap()
            .map_while(Result::ok)
            .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.is_file())
            .expect("libfaketime is installed; `tests/run --install` does it");
        [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // Clocks that nobody sets are not stepped either.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// The user servers run as: not root.
fn server_user() -> Option<(u32, u32)> {
    let own = fs::metadata("/proc/self").ok()?.uid();
    if own != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("there is a user beside root to run a server as"))
}

fn as_user(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

/// A folder that belongs to the servers' user, and that everybody may look into.
fn private_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("outbox-server-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    give_away(folder.path());
    folder
}

fn give_away(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    let copied = Process::run(
        {
            command.arg("-a").arg(from).arg(to);
            command
        },
        LIMIT,
    );
    assert!(copied.status.success(), "not copied: {}", copied.stderr);
}

/// A program of the newest PostgreSQL server here; Debian keeps it out of PATH.
fn postgres_program(name: &str) -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for root in ["/", "/var/cache/outbox-tests/postgresql"] {
        let versions = fs::read_dir(Path::new(root).join("usr/lib/postgresql"));
        for folder in versions.into_iter().flatten().map_while(Result::ok) {
            let version = folder.file_name().to_string_lossy().parse().unwrap_or(0);
            let program = folder.path().join("bin").join(name);
            if program.is_file() {
                found.push((version, program));
            }
        }
    }
    found.sort();
    found.pop().map_or_else(|| program(&[name]), |(_, program)| program)
}

/// A program of one of these names.
fn program(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/var/cache/outbox-tests/pgbouncer/usr/sbin"];
    let folders = std::env::split_paths(&path).chain(more.map(PathBuf::from));
    let candidates = folders.flat_map(|folder| names.iter().map(move |name| folder.join(OsStr::new(name))));
    let mut found = candidates.filter(|program| program.is_file());
    found.next().unwrap_or_else(|| panic!("no {names:?} here; `tests/run --install` installs what the tests need"))
}
