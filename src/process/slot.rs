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

/// A cluster's ranges of addresses, held on this machine as its slot is: they are routed here, and two clusters cannot have the same.
pub struct Ranges {
    _sockets: Vec<UnixListener>,
}

impl Ranges {
    /// Fails where another cluster has some of the addresses. `cluster` tells clusters apart; all nodes of one may be on one machine.
    pub fn claim(network: &Network, cluster: &str) -> Result<Self> {
        let mut sockets = Vec::new();
        for (flag, own) in [("service-cidr", network.services), ("pod-cidr", network.pods)] {
            sockets.extend(hold(&format!("{RANGE}{cluster}/{own}")).ok());
            if let Some(other) = others(cluster).into_iter().find(|it| it.overlaps(own)) {
                return Err(Error(format!("the addresses {own} are in use on this machine by another cluster, which has {other}; give a new cluster another --{flag}")));
            }
        }
        Ok(Self { _sockets: sockets })
    }
}

const RANGE: &str = "howdah/range/";

/// The ranges that other clusters hold on this machine, or in this network namespace.
fn others(cluster: &str) -> Vec<Cidr> {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let held = sockets.lines().filter_map(|it| it.split_once(&format!("@{RANGE}"))?.1.split_once('/'));
    held.filter(|(its, _)| *its != cluster).filter_map(|(_, range)| range.parse().ok()).collect()
}

/// The ranges of a new cluster whose nodes may be anywhere: the first that none on this machine has.
pub fn free_network() -> Network {
    let held = others("");
    let is_free = |it: &Network| !held.iter().any(|held| held.overlaps(it.services) || held.overlaps(it.pods));
    (0..SLOTS).map(ranges).find(is_free).unwrap_or_else(|| ranges(0))
}

fn ranges(slot: u8) -> Network {
    let range = |second| Cidr::new(Ipv4Addr::new(10, second, 0, 0), 16);
    Network { services: range(FIRST_SERVICES + slot), pods: range(FIRST_PODS - slot) }
}

fn lock(number: u8) -> std::io::Result<UnixListener> {
    hold(&format!("howdah/slot/{number}"))
}

fn hold(name: &str) -> std::io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_two_clusters_do_not_overlap() {
        let network = |services: &str, pods: &str| Network { services: services.parse().unwrap(), pods: pods.parse().unwrap() };
        let claim = |services: &str, pods: &str, cluster: &str| Ranges::claim(&network(services, pods), cluster);
        let first = claim("198.18.0.0/24", "198.18.1.0/24", "a").unwrap();
        let _same = claim("198.18.0.0/24", "198.18.1.0/24", "a").unwrap();
        let _other = claim("198.18.2.0/24", "198.18.3.0/24", "b").unwrap();
        for (services, pods, flag) in [("198.18.0.128/25", "198.18.4.0/24", "--service-cidr"), ("198.18.5.0/24", "198.18.0.0/16", "--pod-cidr")] {
            let why = claim(services, pods, "c").err().unwrap().to_string();
            assert!(why.contains("in use on this machine by another cluster") && why.ends_with(flag), "{why}");
        }
        drop((first, _same));
        assert!(claim("198.18.0.128/25", "198.18.4.0/24", "c").is_ok());
    }
}
