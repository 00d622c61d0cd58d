//! A Postgres of a test's own: made in a temporary folder, reached by a socket in it, gone with the test, even if that is killed.

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

#[path = "kept.rs"]
pub mod kept;

use kept::Kept;

/// How long a server gets to start, on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);

pub struct Server {
    folder: tempfile::TempDir,
    programs: PathBuf,
    user: Option<nix::unistd::User>,
    settings: Vec<String>,
    process: Mutex<Option<Kept>>,
}

impl Server {
    /// The server that the tests of this process share; `None`, and a word about it, where there is no Postgres.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().expect("the shared server");
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start(&[])?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// A new server with these settings (`name=value`).
    pub fn start(settings: &[&str]) -> Option<Self> {
        let server = Self::prepare(settings)?;
        server.run(server.command("initdb").args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"]).arg(server.data()));
        server.resume();
        Some(server)
    }

    /// A server without data, which [`Server::follow`] brings.
    pub fn prepare(settings: &[&str]) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("SKIPPED: no Postgres on this machine (initdb is neither on the PATH nor in /usr/lib/postgresql)");
            return None;
        };
        // Postgres refuses to run as root.
        let user = nix::unistd::geteuid().is_root().then(|| nix::unistd::User::from_name("postgres").expect("users").expect("the user postgres"));
        let folder = tempfile::Builder::new().prefix("howdah-pg-").tempdir_in("/tmp").expect("a folder");
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("the folder's owner");
        }
        let settings = settings.iter().map(|it| (*it).to_owned()).collect();
        Some(Self { folder, programs, user, settings, process: Mutex::default() })
    }

    /// Makes a file that only the server may read.
    pub fn keep(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its rights");
        if let Some(user) = &self.user {
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("its owner");
        }
        path
    }

    fn run(&self, command: &mut Command) {
        let done = command.output().expect("the program runs");
        assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Starts this server, which does not run, as a standby of `primary`, on a new copy of its data.
    pub fn follow(&self, primary: &Self) {
        let _ = std::fs::remove_dir_all(self.data());
        self.run(self.command("pg_basebackup").args(["-U", "postgres", "-R", "-c", "fast", "-h"]).arg(primary.folder()).arg("-D").arg(self.data()));
        self.resume();
    }

    /// Lets a standby take writes.
    pub fn promote(&self) {
        assert_eq!(self.psql("SELECT pg_promote()").as_deref(), Some("t"), "the standby is promoted");
    }

    /// Ends the server, and starts it on what a base backup and the archive in `archive` say was there at the restore point `point`.
    pub fn recover(&self, backup: &Path, archive: &Path, point: &str) {
        self.crash();
        std::fs::remove_dir_all(self.data()).expect("the data goes");
        std::fs::rename(backup, self.data()).expect("the backup takes its place");
        self.keep("data/recovery.signal", "");
        let settings = format!("restore_command = 'cp {}/%f %p'\nrecovery_target_name = '{point}'\nrecovery_target_action = promote\n", archive.display());
        self.keep("data/postgresql.auto.conf", &settings);
        self.resume();
        let began = Instant::now();
        while self.psql("SELECT pg_is_in_recovery()").as_deref() != Some("f") {
            assert!(began.elapsed() < START_WITHIN, "the recovery does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where the server keeps its tables.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process above all of the server's, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().expect("the process").as_ref().and_then(Kept::pid)
    }

    /// A program of Postgres, run as its user.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        self.as_user(&mut command);
        command
    }

    fn as_user(&self, command: &mut Command) {
        command.current_dir(self.folder.path());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }

    /// Starts the server where it does not run, and waits until it answers.
    pub fn resume(&self) {
        let mut process = self.process.lock().expect("the process");
        assert!(process.is_none(), "the server runs already");
        let mut command = Kept::command("QUIT", self.programs.join("postgres"));
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        command.args(["-c", "listen_addresses=", "-c", "max_connections=200"]);
        self.settings.iter().for_each(|it| _ = command.args(["-c", it]));
        self.as_user(&mut command);
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        command.stdout(Stdio::null()).stderr(log);
        *process = Some(Kept::start(command));
        let began = Instant::now();
        while !self.psql("SELECT 1").is_some_and(|it| it == "1") {
            assert!(
                began.elapsed() < START_WITHIN,
                "postgres does not start: {}",
                std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the server as a crash would: nothing is written any more, and the next start recovers.
    pub fn crash(&self) {
        self.end("QUIT");
    }

    fn end(&self, signal: &str) {
        if let Some(mut process) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            process.end(signal);
        }
    }

    /// The answer to a statement, as text.
    pub fn psql(&self, sql: &str) -> Option<String> {
        let output = self
            .command("psql")
            .args(["-X", "-A", "-t", "-q", "-U", "postgres", "-h"])
            .arg(self.folder.path())
            .args(["-c", sql, "postgres"])
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The address for `--store`.
    pub fn url(&self, schema: &str) -> String {
        format!("postgres:///postgres?host={}&user=postgres&schema={schema}", self.folder.path().display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end("QUIT");
    }
}

/// Its programs: where `HOWDAH_POSTGRES` says, or else the newest that is installed.
fn programs() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("HOWDAH_POSTGRES") {
        return Some(given.into());
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|it| it.path().join("bin"));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = installed
        .chain(std::env::split_paths(&on_path))
        .filter(|it| ["initdb", "postgres", "psql"].iter().all(|name| it.join(name).exists()))
        .collect();
    all.sort();
    all.pop()
}
