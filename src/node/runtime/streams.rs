//! What flows between a container, its log and those who attach to it. One thread, one `poll`; a slow or silent client never holds up the
//! container, and output that nobody attaches to costs nothing but its log.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::Winsize,
};

use super::{
    log::{Lines, Log},
    terminal,
};

/// The socket in a container's folder to which the agent connects for attach.
pub const SOCKET: &str = "attach.sock";
/// Frames are `kind, length (4 bytes, big endian), data`, towards the container:
pub const STDIN: u8 = 0;
pub const STDIN_CLOSED: u8 = 1;
/// Rows and columns, two bytes each.
pub const RESIZE: u8 = 2;
/// and from it:
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
const HEADER: usize = 5;
/// Input that the container has not read yet; beyond, clients wait.
const INPUT_MAX: usize = 64 << 10;
/// A client that takes no output for this long is dropped.
const CLIENT_WITHIN: Duration = Duration::from_secs(2);

pub fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    [&[kind][..], &length.to_be_bytes(), data].concat()
}

/// Takes a whole frame from the front of `buffer`.
pub fn take_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let length = u32::from_be_bytes(buffer.get(1..HEADER)?.try_into().ok()?) as usize;
    let data = buffer.get(HEADER..HEADER + length)?.to_vec();
    let kind = buffer[0];
    buffer.drain(..HEADER + length);
    Some((kind, data))
}

/// The container's side of its streams.
pub struct Streams {
    pub stdout: Option<Lines>,
    pub stderr: Option<Lines>,
    /// Where input goes: a pipe, or the terminal.
    pub stdin: Option<File>,
    pub terminal: Option<File>,
    /// Input ends with the first client that gives some.
    pub is_stdin_once: bool,
    pub listener: UnixListener,
}

struct Client {
    stream: UnixStream,
    pending: Vec<u8>,
    has_input: bool,
}

/// Places of a poll set.
#[derive(Clone, Copy)]
enum Place {
    Stdout,
    Stderr,
    Stdin,
    Listener,
    Client(usize),
}

impl Streams {
    /// Carries until both outputs have ended.
    pub fn carry(mut self, log: &mut Log) {
        self.stdin.iter().for_each(not_blocking);
        let (mut clients, mut input) = (Vec::new(), VecDeque::new());
        while self.stdout.is_some() || self.stderr.is_some() {
            for place in self.ready(&clients, &input) {
                match place {
                    Place::Stdout => read(&mut self.stdout, STDOUT, log, &mut clients),
                    Place::Stderr => read(&mut self.stderr, STDERR, log, &mut clients),
                    Place::Stdin => self.write_input(&mut input),
                    Place::Listener => clients.extend(self.listener.accept().ok().and_then(|(stream, _)| Client::new(stream))),
                    Place::Client(at) => self.serve(&mut clients[at], &mut input),
                }
            }
            clients.retain(|it: &Client| !it.is_gone());
        }
    }

    /// Waits until something is to be done, and says where.
    fn ready(&self, clients: &[Client], input: &VecDeque<u8>) -> Vec<Place> {
        let mut wanted: Vec<(Place, BorrowedFd<'_>, PollFlags)> = vec![(Place::Listener, self.listener.as_fd(), PollFlags::POLLIN)];
        wanted.extend(self.stdout.iter().map(|it| (Place::Stdout, it.fd(), PollFlags::POLLIN)));
        wanted.extend(self.stderr.iter().map(|it| (Place::Stderr, it.fd(), PollFlags::POLLIN)));
        wanted.extend(self.stdin.iter().filter(|_| !input.is_empty()).map(|it| (Place::Stdin, it.as_fd(), PollFlags::POLLOUT)));
        if input.len() < INPUT_MAX {
            wanted.extend(clients.iter().enumerate().map(|(at, it)| (Place::Client(at), it.stream.as_fd(), PollFlags::POLLIN)));
        }
        let mut fds: Vec<PollFd<'_>> = wanted.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return Vec::new();
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|it| !it.is_empty());
        wanted.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|((place, ..), _)| *place).collect()
    }

    fn write_input(&mut self, input: &mut VecDeque<u8>) {
        let Some(stdin) = &mut self.stdin else { return input.clear() };
        match stdin.write(input.make_contiguous()) {
            Ok(count) => drop(input.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(_) => {
                self.stdin = None;
                input.clear();
            }
        }
    }

    fn serve(&mut self, client: &mut Client, input: &mut VecDeque<u8>) {
        let mut buffer = [0u8; 16 << 10];
        match client.stream.read(&mut buffer) {
            Ok(0) | Err(_) => {
                self.input_ended(std::mem::take(&mut client.has_input), input);
                return client.leave();
            }
            Ok(count) => client.pending.extend_from_slice(&buffer[..count]),
        }
        while let Some((kind, data)) = take_frame(&mut client.pending) {
            match kind {
                STDIN => {
                    client.has_input = true;
                    input.extend(data);
                }
                STDIN_CLOSED => {
                    self.input_ended(std::mem::take(&mut client.has_input), input);
                    // Who cannot end the container's input has no more to do here, as containerd sees it (`Attach`).
                    if !self.is_stdin_once || self.terminal.is_some() {
                        return client.leave();
                    }
                }
                RESIZE => self.resize(&data),
                _ => (),
            }
        }
    }

    fn input_ended(&mut self, had_input: bool, input: &mut VecDeque<u8>) {
        if !self.is_stdin_once || !had_input {
            return;
        }
        // What was sent before the end is still written, and waited for a moment.
        for _ in 0..100 {
            if input.is_empty() {
                break;
            }
            self.write_input(input);
            std::thread::sleep(Duration::from_millis(if input.is_empty() { 0 } else { 10 }));
        }
        if self.terminal.is_none() {
            self.stdin = None;
        }
    }

    fn resize(&self, data: &[u8]) {
        let (Some(terminal), [a, b, c, d]) = (&self.terminal, data) else { return };
        let size = Winsize { ws_row: u16::from_be_bytes([*a, *b]), ws_col: u16::from_be_bytes([*c, *d]), ws_xpixel: 0, ws_ypixel: 0 };
        terminal::resize(terminal, &size);
    }
}

/// What stands alone in `pending` of a client that has left; no frame begins so.
const GONE: u8 = u8::MAX;

impl Client {
    fn new(stream: UnixStream) -> Option<Self> {
        stream.set_write_timeout(Some(CLIENT_WITHIN)).ok()?;
        Some(Self { stream, pending: Vec::new(), has_input: false })
    }

    fn leave(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.pending = vec![GONE];
    }

    fn is_gone(&self) -> bool {
        self.pending == [GONE]
    }

    fn send(&mut self, kind: u8, data: &[u8]) {
        if self.stream.write_all(&frame(kind, data)).is_err() {
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn read(lines: &mut Option<Lines>, kind: u8, log: &mut Log, clients: &mut [Client]) {
    match lines.as_mut().and_then(|it| it.read(log)) {
        None => *lines = None,
        Some(data) if data.is_empty() => (),
        Some(data) => clients.iter_mut().for_each(|it| it.send(kind, &data)),
    }
}

fn not_blocking(file: &File) {
    if let Ok(flags) = fcntl(file, FcntlArg::F_GETFL) {
        let _ = fcntl(file, FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_and_only_whole() {
        let mut buffer = frame(STDIN, b"ab");
        buffer.extend(&frame(RESIZE, &[0, 1, 0, 2])[..6]);
        assert_eq!(take_frame(&mut buffer), Some((STDIN, b"ab".to_vec())));
        assert_eq!(take_frame(&mut buffer), None);
        buffer.extend([1, 0, 2]);
        assert_eq!(take_frame(&mut buffer), Some((RESIZE, vec![0, 1, 0, 2])));
    }
}
