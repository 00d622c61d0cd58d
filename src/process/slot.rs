//! A cluster's place among those of this machine: it names what the cluster has in the kernel, and decides the addresses of a cluster that
//! was given none. Held by an abstract socket, which the kernel lets go with the process.

use std::{net::Ipv4Addr, os::unix::net::UnixListener, path::Path};

use super::{Error, Result, network::Network};
use crate::meta::Cidr;

/// Clusters on one machine, each with ranges of its own: 10.96/16 to 10.111/16 for Services, 10.244/16 down to 10.229/16 for pods.
const SLOTS: u8 = 16;
const FIRST_SERVICES: u8 = 96;
const FIRST_PODS: u8 = 244;

pub struct Slot {
    number: u8,
    _socket: UnixListener,
}

impl Slot {
    /// The slot of this data directory, or the first free one, which it keeps.
    pub fn claim(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("slot");
        let kept: Option<u8> = std::fs::read_to_string(&path).ok().and_then(|it| it.trim().parse().ok());
        if let Some(number) = kept {
            let taken = |_| Error(format!("slot {number} of {} is in use: is the cluster running already, or another one with a copy of its data?", data_dir.display()));
            return Ok(Self { number, _socket: lock(number).map_err(taken)? });
        }
        let free = (0..SLOTS).find_map(|number| Some(Self { number, _socket: lock(number).ok()? }));
        let slot = free.ok_or_else(|| Error(format!("{SLOTS} clusters run on this machine already")))?;
        std::fs::write(&path, slot.number.to_string()).map_err(|why| Error::new(&path.display().to_string(), why))?;
        Ok(slot)
    }

    /// The name of the cluster's table of rules.
    pub fn name(&self) -> String {
        format!("howdah-{}", self.number)
    }

    /// The ranges of a new cluster.
    pub fn network(&self) -> Network {
        ranges(self.number)
    }
}

/// The ranges of a cluster that shares no machine with others.
pub fn first_network() -> Network {
    ranges(0)
}

fn ranges(slot: u8) -> Network {
    let range = |second| Cidr::new(Ipv4Addr::new(10, second, 0, 0), 16);
    Network { services: range(FIRST_SERVICES + slot), pods: range(FIRST_PODS - slot) }
}

fn lock(number: u8) -> std::io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(format!("howdah/slot/{number}"))?;
    UnixListener::bind_addr(&address)
}
