//! A process: one role or several composed, with their certificates and first objects.

pub mod apiserver;
pub mod bootstrap;
mod flowcontrol;
pub mod hello;
pub mod join;
pub mod keys;
pub mod kubeconfig;
pub mod network;
pub mod node;
pub mod roles;
pub mod slot;
pub mod store;
pub mod up;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// How long the parts of a process get to end.
pub const STOP_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a process cannot start, for the person who started it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

impl Error {
    pub fn new(what: &str, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// The address from which this machine reaches others; `None` where it reaches none. Nothing is sent.
pub fn machine_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address of documentation (RFC 5737) stands for "anywhere".
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|it| !it.is_unspecified() && !it.is_loopback())
}

/// The host's name as a node's: in lower case.
pub fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().map_err(|why| Error::new("the host's name", why))?;
    Ok(name.to_string_lossy().to_ascii_lowercase())
}
