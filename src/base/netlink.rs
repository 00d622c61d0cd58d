//! Raw netlink: attributes, messages and a synchronous socket. Routes, links and nftables are built on it, so that a whole
//! transaction is one `send` (RFC 3549; linux `include/uapi/linux/netlink.h`).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `NETLINK_ROUTE`: links, addresses, routes, neighbours.
pub const ROUTE: i32 = 0;
/// `NETLINK_NETFILTER`: nftables, conntrack.
pub const NETFILTER: i32 = 12;

pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const HEADER_LEN: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Room for a transaction of some ten thousand services, 150 bytes each; more is refused by the kernel with an error.
const SOCKET_BUFFER: i32 = 16 << 20;

/// The payload of a message: fixed header fields, then attributes, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw bytes: the family header in front of the attributes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("an attribute under 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.raw(value)
    }

    /// A text with its closing zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Big-endian, as netfilter wants.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Host order, as the routing family wants.
    pub fn ne32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One message with its header, ready to be sent alone or behind others.
pub fn message(kind: u16, flags: u16, sequence: u32, payload: &Attributes) -> Vec<u8> {
    let length = u32::try_from(payload.0.len() + HEADER_LEN).expect("a message under 4 GiB");
    let mut bytes = Vec::with_capacity(payload.0.len() + HEADER_LEN);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload.as_bytes());
    bytes
}

/// An answer of the kernel: message type and payload.
pub type Answer = (u16, Vec<u8>);

/// A socket to the kernel in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    pub fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Self(OwnedFd::from_raw_fd(fd))
        };
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            socket.set_buffer(option);
        }
        Ok(socket)
    }

    /// Without the right to force it the default size stays, and only very large transactions fail.
    fn set_buffer(&self, option: i32) {
        let size = SOCKET_BUFFER;
        // SAFETY: the pointer is to a live i32 and the length is its size.
        unsafe {
            libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const size).cast(), size_of::<i32>() as u32);
        }
    }

    /// Sends one or several messages and collects what the kernel answers. Netlink is synchronous: all answers are queued
    /// when the send returns. The first error that the kernel reports is returned.
    pub fn send(&self, messages: &[u8]) -> io::Result<Vec<Answer>> {
        // SAFETY: a zeroed sockaddr_nl is the kernel's address; the buffer lives over the call.
        let sent = unsafe {
            let mut kernel: libc::sockaddr_nl = std::mem::zeroed();
            kernel.nl_family = libc::AF_NETLINK as u16;
            let address = (&raw const kernel).cast();
            libc::sendto(self.0.as_raw_fd(), messages.as_ptr().cast(), messages.len(), 0, address, size_of_val(&kernel) as u32)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        self.receive()
    }

    fn receive(&self) -> io::Result<Vec<Answer>> {
        let (mut answers, mut error) = (Vec::new(), None);
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            // SAFETY: the buffer is live and of the length given.
            let length = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
            let Some(received) = usize::try_from(length).ok().filter(|it| *it > 0).and_then(|it| buffer.get(..it)) else { break };
            for (kind, payload) in split(received) {
                match kind {
                    ERROR => error = error.or_else(|| errno(payload)),
                    DONE => (),
                    _ => answers.push((kind, payload.to_vec())),
                }
            }
        }
        error.map_or(Ok(answers), Err)
    }
}

fn split(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let payload = rest.get(HEADER_LEN..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The error in an acknowledgement; zero is success.
fn errno(payload: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attributes in `bytes` as (kind without flags, value).
    fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = bytes;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    #[test]
    fn attributes_are_padded_and_read_back() {
        let payload = Attributes::new().text(3, "eth0").be32(1, 7).nested(2, Attributes::new().ne32(1, 9));
        let read: Vec<_> = attributes(payload.as_bytes()).collect();
        assert_eq!(read[0], (3, b"eth0\0".as_slice()));
        assert_eq!(read[1], (1, [0, 0, 0, 7].as_slice()));
        assert_eq!(attributes(read[2].1).next(), Some((1, 9u32.to_ne_bytes().as_slice())));
        assert_eq!(payload.0.len() % 4, 0);
    }

    #[test]
    fn truncated_answers_end_the_reading() {
        for length in 0..20 {
            let bytes = message(2, 0, 1, &Attributes::new().ne32(1, 0));
            assert!(split(&bytes[..length]).count() <= 1);
        }
    }
}
