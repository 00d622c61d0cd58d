//! Pod networking: each pod has a network namespace, joined to the host by a pair of virtual Ethernet devices and routed addresses of
//! its own; no bridge and no plugin. The pod's gateway is a link-local address that every pod has, with a fixed neighbour entry.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use super::runtime::launcher::POD_NAMESPACES;
use crate::{
    base::netlink::{ACK, Attributes, CREATE, EXCL, REPLACE, ROUTE, Socket, message},
    meta::Cidr,
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The host's end of every pair; locally administered.
const GATEWAY_MAC: [u8; 6] = [2, 0x68, 0x64, 0, 0, 1];
pub const NEW_LINK: u16 = 16;
pub const DELETE_LINK: u16 = 17;
pub const NEW_ADDRESS: u16 = 20;
pub const NEW_ROUTE: u16 = 24;
pub const DELETE_ROUTE: u16 = 25;
pub const NEW_NEIGHBOUR: u16 = 28;
/// For what must not be there yet.
pub const ACK_NEW: u16 = ACK | CREATE | EXCL;
const LOOPBACK: u32 = 1;
pub const INET: u8 = 2;
pub const PERMANENT: u16 = 0x80;
/// `RTPROT` of the routes here, so that they can be told from others.
const PROTOCOL: u8 = 254;

/// The host's name of a pod's link: at most 15 characters, of the pod's uid.
pub fn link_name(uid: &str) -> String {
    let letters: String = uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("hd{letters}")
}

/// Makes the namespaces of a pod, kept as files in `folder`, with their kernel parameters, and with an address its link. What is there
/// already stays; what an earlier process or boot left half done is made anew.
pub fn create(folder: &Path, uid: &str, hostname: &str, address: Option<Ipv4Addr>, sysctls: &[(String, String)]) -> io::Result<()> {
    if folder.join("ready").exists() && is_namespace(&folder.join("ipc")) {
        return Ok(());
    }
    super::runtime::release_namespaces(folder);
    remove(uid);
    let (place, hostname, sysctls) = (folder.to_owned(), hostname.to_owned(), sysctls.to_vec());
    on_thread(move || make_namespaces(&place, &hostname, address.is_some(), &sysctls))?;
    if let Some(address) = address {
        connect(&folder.join("net"), &link_name(uid), address)?;
    }
    fs::write(folder.join("ready"), "")
}

/// Whether a namespace is mounted there; after a boot only the file is left.
fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|it| it.filesystem_type() == NSFS_MAGIC)
}

/// Removes a pod's link; its namespaces go with their files.
pub fn remove(uid: &str) {
    if let (Ok(socket), Ok(index)) = (Socket::open(ROUTE), if_nametoindex(link_name(uid).as_str())) {
        let _ = socket.send(&message(DELETE_LINK, ACK, 1, &link_header(index, false)));
    }
}

/// Namespaces belong to threads: what changes them runs on one of its own, which ends.
fn on_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    crate::base::tasks::on_own_thread(work)?
}

fn make_namespaces(folder: &Path, hostname: &str, has_network: bool, sysctls: &[(String, String)]) -> io::Result<()> {
    let mut flags = CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if has_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags)?;
    if has_network {
        nix::unistd::sethostname(hostname)?;
    }
    for kind in POD_NAMESPACES.iter().filter(|it| has_network || **it == "ipc") {
        let place = folder.join(kind);
        fs::write(&place, "")?;
        mount(Some(format!("/proc/thread-self/ns/{kind}").as_str()), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))
}

/// Sets a kernel parameter for the thread's namespaces; those that belong to no namespace are refused by the API already.
fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&path, value).map_err(|why| io::Error::other(format!("{path}: {why}")))
}

/// `struct ifinfomsg`.
pub fn link_header(index: u32, is_up: bool) -> Attributes {
    let flag = u32::from(is_up);
    Attributes::new().raw(&[[0; 4], index.to_ne_bytes(), flag.to_ne_bytes(), flag.to_ne_bytes()].concat())
}

fn connect(namespace: &Path, link: &str, address: Ipv4Addr) -> io::Result<()> {
    let (host, file) = (Socket::open(ROUTE)?, File::open(namespace)?);
    let peer = link_header(0, false).text(3, "eth0").ne32(28, file.as_raw_fd() as u32);
    let info = Attributes::new().text(1, "veth").nested(2, Attributes::new().nested(1, peer));
    let pair = link_header(0, true).text(3, link).bytes(1, &GATEWAY_MAC).nested(18, info);
    host.send(&message(NEW_LINK, ACK_NEW, 1, &pair))?;
    let index = if_nametoindex(link)?;
    on_thread(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        configure(address)
    })?;
    host.send(&message(NEW_ROUTE, ACK | CREATE | REPLACE, 1, &route(Some(address), None, index)))?;
    // Packets of pods are passed on, and answered for the gateway.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "0");
    Ok(())
}

/// Inside the pod: loopback and eth0 up, the address, the gateway.
fn configure(address: Ipv4Addr) -> io::Result<()> {
    let pod = Socket::open(ROUTE)?;
    let index = if_nametoindex("eth0")?;
    for link in [LOOPBACK, index] {
        pod.send(&message(NEW_LINK, ACK, 1, &link_header(link, true)))?;
    }
    let header = [&[INET, 32, 0, 0][..], &index.to_ne_bytes()].concat();
    let own = Attributes::new().raw(&header).bytes(1, &address.octets()).bytes(2, &address.octets());
    pod.send(&message(NEW_ADDRESS, ACK_NEW, 1, &own))?;
    let header = [&[INET, 0, 0, 0][..], &index.to_ne_bytes(), &PERMANENT.to_ne_bytes(), &[0, 1]].concat();
    let neighbour = Attributes::new().raw(&header).bytes(1, &GATEWAY.octets()).bytes(2, &GATEWAY_MAC);
    pod.send(&message(NEW_NEIGHBOUR, ACK | CREATE, 1, &neighbour))?;
    pod.send(&message(NEW_ROUTE, ACK | CREATE, 1, &route(Some(GATEWAY), None, index)))?;
    pod.send(&message(NEW_ROUTE, ACK | CREATE, 1, &route(None, Some(GATEWAY), index)))?;
    Ok(())
}

/// A route of IPv4.
pub struct Route {
    /// `None` is everything.
    pub to: Option<Cidr>,
    pub through: Option<Ipv4Addr>,
    pub link: Option<u32>,
    /// The gateway is on the link, though no address of the link says so.
    pub is_on_link: bool,
}

impl Route {
    /// `struct rtmsg` with its attributes.
    pub fn attributes(&self) -> Attributes {
        const MAIN_TABLE: u8 = 254;
        const SCOPE_LINK: u8 = 253;
        const UNICAST: u8 = 1;
        const ON_LINK: u32 = 4;
        let scope = if self.through.is_some() { 0 } else { SCOPE_LINK };
        let length = self.to.map_or(0, Cidr::prefix);
        let flags = if self.is_on_link { ON_LINK } else { 0 };
        let header = [&[INET, length, 0, 0, MAIN_TABLE, PROTOCOL, scope, UNICAST][..], &flags.to_ne_bytes()].concat();
        let to = self.to.map(|it| (1, it.at(0).octets()));
        let addresses = to.into_iter().chain(self.through.map(|it| (5, it.octets())));
        let route = addresses.fold(Attributes::new().raw(&header), |route, (kind, octets)| route.bytes(kind, &octets));
        self.link.map_or(route.clone(), |link| route.ne32(4, link))
    }
}

fn route(to: Option<Ipv4Addr>, through: Option<Ipv4Addr>, link: u32) -> Attributes {
    Route { to: to.map(|it| Cidr::new(it, 32)), through, link: Some(link), is_on_link: false }.attributes()
}
