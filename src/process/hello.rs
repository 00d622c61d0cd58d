//! What the demo image runs: a server that answers every request with the name of its host, and ends when it is asked to.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::base::Tasks;

const PORT: u16 = 8080;
/// A client that has said nothing for this long is left.
const SAYS_WITHIN: Duration = Duration::from_secs(10);

/// Serves until the process is asked to end.
pub fn serve() -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve_until_signal())
}

async fn serve_until_signal() -> io::Result<()> {
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    // The first process of a container ignores what it does not ask for.
    let mut terminate = signal(SignalKind::terminate())?;
    let (listener, tasks) = (TcpListener::bind(("0.0.0.0", PORT)).await?, Tasks::new());
    println!("{name} listens on port {PORT}");
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            accepted = listener.accept() => {
                let (stream, name) = (accepted?.0, name.clone());
                tasks.spawn("hello", async move {
                    // A client that has left is no reason to stop.
                    let _ = timeout(SAYS_WITHIN, answer(stream, &name)).await;
                });
            }
        }
    }
}

async fn answer(stream: TcpStream, name: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let body = format!("{name}\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await
}
