//! What the demo image runs: a server that answers every request with the name of its host.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::TcpListener,
};

const PORT: u16 = 8080;

/// Serves until the process is ended. One request at a time is enough for a demonstration.
pub fn serve() -> io::Result<()> {
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    println!("{name} listens on port {PORT}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while lines.next().is_some_and(|it| it.is_ok_and(|it| !it.is_empty())) {}
        let body = format!("{name}\n");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        // A client that has left is no reason to stop.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    }
    Ok(())
}
