//! An etcd for comparisons.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// An etcd of this run's own.
pub struct Etcd {
    pub process: Child,
    pub port: u16,
}

impl Etcd {
    /// Starts the program that `ETCD` names, or the one on the PATH; `None`, and a word about it, where there is none.
    pub async fn start(folder: &Path) -> Option<Self> {
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        let named = std::env::var_os("ETCD").map(PathBuf::from);
        let Some(program) = named.into_iter().chain(std::env::split_paths(&on_path).map(|it| it.join("etcd"))).find(|it| it.is_file()) else {
            println!("SKIPPED: etcd is neither on the PATH nor named by ETCD");
            return None;
        };
        let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
        let (port, peers) = (free(), free());
        let (own, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(folder.join("etcd")).args(["--quota-backend-bytes", "8589934592", "--log-level", "error"]);
        command.args(["--listen-client-urls", &own, "--advertise-client-urls", &own, "--listen-peer-urls", &peer]);
        command.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts");
        let began = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "etcd does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        Some(Self { process, port })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
