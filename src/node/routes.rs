//! The way to the pods of other nodes: a route through the node's address where that is on a link of this machine, VXLAN where it is not.
//! What flannel's host-gw and vxlan back-ends do, without its daemon: the tunnel's hardware addresses follow from the nodes' ranges.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use nix::net::if_::if_nametoindex;
use tokio::sync::Notify;

use super::links::{ACK_NEW, DELETE_LINK, DELETE_ROUTE, INET, NEW_ADDRESS, NEW_LINK, NEW_NEIGHBOUR, NEW_ROUTE, PERMANENT, Route, link_header};
use crate::{
    base::{
        Tasks,
        netlink::{ACK, Attributes, CREATE, REPLACE, ROUTE, Socket, message},
    },
    client::{Informer, Watch},
    meta::Cidr,
};

/// flannel's port, so that firewalls which let that pass let this pass.
const PORT: u16 = 8472;
/// Of an Ethernet frame less the tunnel's headers.
const MTU: u32 = 1450;
/// `AF_BRIDGE`, for the forwarding table of a VXLAN link.
const BRIDGE: u8 = 7;
/// `NTF_SELF`.
const SELF: u8 = 2;
/// Routes are looked at again, for a link may have come or gone.
const RESYNC: Duration = Duration::from_secs(60);

/// Another node: where its pods are, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Peer {
    pods: Cidr,
    address: Ipv4Addr,
}

/// What is in the kernel for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Tunnel,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub node: String,
    pub address: Ipv4Addr,
    /// The cluster's pods: the tunnel's identifier follows from it.
    pub pods: Cidr,
    /// Names the tunnel's link.
    pub cluster: String,
}

/// Keeps the routes to the pods of all other nodes until `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks, options: Options) {
    let wake = std::sync::Arc::new(Notify::new());
    let nodes: Informer<Node> = Informer::start("node-routes", Api::all(client.clone()), Watch::default(), tasks);
    nodes.wakes(&wake);
    let group = tasks.clone();
    tasks.spawn_finishing("node-routes", async move {
        let mut routes = Routes { options, own: None, known: BTreeMap::new() };
        loop {
            tokio::select! {
                () = nodes.synced() => (),
                () = group.stopping() => return,
            }
            routes.keep(&nodes.list());
            tokio::select! {
                () = wake.notified() => (),
                () = tokio::time::sleep(RESYNC) => (),
                () = group.stopping() => return routes.remove(),
            }
        }
    });
}

/// The name of the tunnel's link; it must not begin as those of pods do.
fn tunnel_name(cluster: &str) -> String {
    format!("vx{cluster}").chars().take(15).collect()
}

/// A locally administered hardware address that every node can work out for itself.
fn hardware_address(pods: Cidr) -> [u8; 6] {
    let [a, b, c, d] = pods.at(0).octets();
    [2, 0x76, a, b, c, d]
}

fn range_of(node: &Node) -> Option<Cidr> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

fn peer(node: &Node) -> Option<Peer> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let address = addresses.iter().find(|it| it.type_ == "InternalIP")?.address.parse().ok()?;
    Some(Peer { pods: range_of(node)?, address })
}

struct Routes {
    options: Options,
    own: Option<Cidr>,
    known: BTreeMap<Peer, Way>,
}

impl Routes {
    fn keep(&mut self, nodes: &[std::sync::Arc<Node>]) {
        self.own = nodes.iter().find(|it| it.name_any() == self.options.node).and_then(|it| range_of(it));
        let wanted: Vec<Peer> = nodes.iter().filter(|it| it.name_any() != self.options.node).filter_map(|it| peer(it)).filter(|it| it.address != self.options.address).collect();
        let gone: Vec<Peer> = self.known.keys().filter(|it| !wanted.contains(it)).copied().collect();
        for peer in gone {
            self.forget(peer);
        }
        for peer in wanted {
            match self.lead(peer) {
                Ok(way) => _ = self.known.insert(peer, way),
                Err(error) => tracing::warn!(pods = %peer.pods, node = %peer.address, %error, "no route to a node's pods"),
            }
        }
    }

    /// The kernel takes a route through a gateway only if that is on a link; otherwise the tunnel is what remains.
    fn lead(&self, peer: Peer) -> io::Result<Way> {
        let socket = Socket::open(ROUTE)?;
        // There is a tunnel in any case: the other side may see no common link and use it.
        let link = self.tunnel(&socket);
        let direct = Route { to: Some(peer.pods), through: Some(peer.address), link: None, is_on_link: false };
        if socket.send(&message(NEW_ROUTE, ACK | CREATE | REPLACE, 1, &direct.attributes())).is_ok() {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            return Ok(Way::Direct);
        }
        let link = link?;
        let (gateway, hardware) = (peer.pods.at(0), hardware_address(peer.pods));
        socket.send(&message(NEW_NEIGHBOUR, ACK | CREATE | REPLACE, 1, &neighbour(INET, link, 0, gateway, hardware)))?;
        socket.send(&message(NEW_NEIGHBOUR, ACK | CREATE | REPLACE, 1, &neighbour(BRIDGE, link, SELF, peer.address, hardware)))?;
        let route = Route { to: Some(peer.pods), through: Some(gateway), link: Some(link), is_on_link: true };
        socket.send(&message(NEW_ROUTE, ACK | CREATE | REPLACE, 1, &route.attributes()))?;
        Ok(Way::Tunnel)
    }

    /// The index of the tunnel's link, which is made when it is first needed.
    fn tunnel(&self, socket: &Socket) -> io::Result<u32> {
        let name = tunnel_name(&self.options.cluster);
        let own = self.own.ok_or_else(|| io::Error::other("this node has no range of pods yet"))?;
        if let Ok(index) = if_nametoindex(name.as_str()) {
            return Ok(index);
        }
        let vxlan = Attributes::new().ne32(1, u32::from(self.options.pods.at(0)) >> 8).bytes(4, &self.options.address.octets()).bytes(7, &[0]).bytes(15, &PORT.to_be_bytes());
        let info = Attributes::new().text(1, "vxlan").nested(2, vxlan);
        let link = link_header(0, true).text(3, &name).bytes(1, &hardware_address(own)).ne32(4, MTU).nested(18, info);
        socket.send(&message(NEW_LINK, ACK_NEW, 1, &link))?;
        let index = if_nametoindex(name.as_str())?;
        let header = [&[INET, 32, 0, 0][..], &index.to_ne_bytes()].concat();
        let address = Attributes::new().raw(&header).bytes(1, &own.at(0).octets()).bytes(2, &own.at(0).octets());
        socket.send(&message(NEW_ADDRESS, ACK_NEW, 1, &address))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2");
        Ok(index)
    }

    fn forget(&mut self, peer: Peer) {
        self.known.remove(&peer);
        let route = Route { to: Some(peer.pods), through: None, link: None, is_on_link: false };
        if let Ok(socket) = Socket::open(ROUTE) {
            let _ = socket.send(&message(DELETE_ROUTE, ACK, 1, &route.attributes()));
        }
    }

    /// Takes all that is here out of the kernel.
    fn remove(&mut self) {
        let all: Vec<Peer> = self.known.keys().copied().collect();
        all.into_iter().for_each(|peer| self.forget(peer));
        if let (Ok(socket), Ok(index)) = (Socket::open(ROUTE), if_nametoindex(tunnel_name(&self.options.cluster).as_str())) {
            let _ = socket.send(&message(DELETE_LINK, ACK, 1, &link_header(index, false)));
        }
    }
}

/// `struct ndmsg`: `hardware` stands for `address`, for good.
fn neighbour(family: u8, link: u32, flags: u8, address: Ipv4Addr, hardware: [u8; 6]) -> Attributes {
    let header = [&[family, 0, 0, 0][..], &link.to_ne_bytes(), &PERMANENT.to_ne_bytes(), &[flags, 0]].concat();
    Attributes::new().raw(&header).bytes(1, &address.octets()).bytes(2, &hardware)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_a_peer_when_all_is_known_of_it() {
        let node = |spec, addresses| serde_json::from_value::<Node>(json!({"metadata": {"name": "b"}, "spec": spec, "status": {"addresses": addresses}})).unwrap();
        let internal = json!([{"type": "Hostname", "address": "b"}, {"type": "InternalIP", "address": "10.0.0.2"}]);
        let found = peer(&node(json!({"podCIDR": "10.244.1.0/24"}), internal.clone())).unwrap();
        assert_eq!((found.pods.to_string().as_str(), found.address), ("10.244.1.0/24", Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(peer(&node(json!({}), internal)), None);
        assert_eq!(peer(&node(json!({"podCIDR": "10.244.1.0/24"}), json!([]))), None);
    }

    #[test]
    fn hardware_addresses_tell_nodes_apart() {
        let of = |text: &str| hardware_address(text.parse().unwrap());
        assert_eq!(of("10.244.1.0/24"), [2, 0x76, 10, 244, 1, 0]);
        assert_ne!(of("10.244.1.0/24"), of("10.244.2.0/24"));
        assert_eq!(tunnel_name("howdah-10"), "vxhowdah-10");
    }
}
