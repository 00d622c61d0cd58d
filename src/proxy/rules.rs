//! The ruleset: constant chains, and maps that hold all that changes.
//!
//! A packet's (address, protocol, port) is looked up in `services`, or (protocol, port) in `nodeports` when it goes to an address of
//! this node. That gives the number of a group, kept in the packet's mark register; `balances` leads from the number to a chain
//! that draws one of n backends, and `backends` from (number, draw) to an address and port. Changing a Service touches only map
//! elements, in one transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::plan::{Front, Group, Name, Protocol};

/// IPv4 or IPv6: each has a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    Services,
    NodePorts,
    /// Addresses of Services alone: what is not balanced there is refused.
    Addresses,
    /// Ports of other addresses that answer "connection refused", for want of a backend.
    Refused,
    Balances,
    Backends,
    /// (backend, same backend): a pod that reaches itself through a Service must be masqueraded.
    Hairpins,
}

/// The chain that draws one of `backends`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Draw {
    pub backends: u32,
    pub affinity: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    None,
    Bytes(Vec<u8>),
    Goto(Draw),
}

/// All map elements of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements(pub BTreeMap<(Map, Vec<u8>), Data>);

/// What turns one set of elements into another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub remove: Vec<(Map, Vec<u8>)>,
    pub add: Vec<(Map, Vec<u8>, Data)>,
    /// Chains that the added elements need.
    pub draws: BTreeSet<Draw>,
}

/// Gives each group a number that stays the same while the group exists.
#[derive(Debug, Default)]
pub struct Numbers {
    next: u32,
    by_name: BTreeMap<Name, u32>,
}

impl Numbers {
    fn of(&mut self, name: &Name) -> u32 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        self.next = self.next.wrapping_add(1);
        self.by_name.insert(name.clone(), self.next);
        self.next
    }
}

impl Elements {
    /// The elements for `groups` in `family`.
    pub fn render<'a>(groups: impl IntoIterator<Item = &'a Group>, family: Family, numbers: &mut Numbers) -> Self {
        let mut elements = Self::default();
        for group in groups {
            elements.add(group, family, numbers.of(&group.name));
        }
        elements
    }

    fn add(&mut self, group: &Group, family: Family, number: u32) {
        let backends: Vec<(IpAddr, u16)> = group.balance.backends.iter().copied().filter(|(ip, _)| Family::of(*ip) == family).collect();
        let id = number.to_ne_bytes();
        for front in &group.fronts {
            self.add_front(*front, family, &id, backends.is_empty());
        }
        let Ok(count @ 1..) = u32::try_from(backends.len()) else { return };
        let draw = Draw { backends: count, affinity: group.balance.affinity };
        self.0.insert((Map::Balances, id.to_vec()), Data::Goto(draw));
        for (at, (ip, port)) in (0u32..).zip(backends) {
            let key = [id, at.to_ne_bytes()].concat();
            let data = [octets(ip), port_cell(port)].concat();
            self.0.insert((Map::Backends, key), Data::Bytes(data));
            self.0.insert((Map::Hairpins, [octets(ip), octets(ip)].concat()), Data::None);
        }
    }

    fn add_front(&mut self, front: Front, family: Family, id: &[u8], is_empty: bool) {
        let data = Data::Bytes(id.to_vec());
        match front {
            Front::Cluster(ip, protocol, port) if Family::of(ip) == family => {
                self.0.insert((Map::Addresses, octets(ip)), Data::None);
                if !is_empty {
                    self.0.insert((Map::Services, socket(ip, protocol, port)), data);
                }
            }
            Front::Address(ip, protocol, port) if Family::of(ip) == family => {
                match is_empty {
                    true => self.0.insert((Map::Refused, socket(ip, protocol, port)), Data::None),
                    false => self.0.insert((Map::Services, socket(ip, protocol, port)), data),
                };
            }
            Front::Node(protocol, port) if !is_empty => {
                let key = [vec![protocol as u8, 0, 0, 0], port_cell(port)].concat();
                self.0.entry((Map::NodePorts, key)).or_insert(data);
            }
            _ => (),
        }
    }

    /// How `self` becomes `other`.
    pub fn difference(&self, other: &Self) -> Difference {
        let mut difference = Difference::default();
        for ((map, key), data) in &self.0 {
            if other.0.get(&(*map, key.clone())) != Some(data) {
                difference.remove.push((*map, key.clone()));
            }
        }
        for ((map, key), data) in &other.0 {
            if self.0.get(&(*map, key.clone())) == Some(data) {
                continue;
            }
            if let Data::Goto(draw) = data {
                difference.draws.insert(*draw);
            }
            difference.add.push((*map, key.clone(), data.clone()));
        }
        difference
    }
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The key of an address, a protocol and a port.
fn socket(ip: IpAddr, protocol: Protocol, port: u16) -> Vec<u8> {
    [octets(ip), vec![protocol as u8, 0, 0, 0], port_cell(port)].concat()
}

/// A port in a concatenated key: two bytes, padded to a register's four.
fn port_cell(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::plan::Balance;

    fn group(name: &str, front: Front, backends: &[&str]) -> Group {
        let backends = backends.iter().map(|it| (it.parse().expect("an address"), 80)).collect();
        Group { name: name.to_owned(), fronts: vec![front], balance: Balance { backends, affinity: None } }
    }

    #[test]
    fn a_change_of_one_service_touches_only_its_elements() {
        let front = |last: u8| Front::Address(IpAddr::from([10, 96, 0, last]), Protocol::Tcp, 80);
        let (web, db) = (group("web", front(1), &["10.0.0.1"]), group("db", front(2), &["10.0.0.2"]));
        let mut numbers = Numbers::default();
        let before = Elements::render([&web, &db], Family::V4, &mut numbers);
        let grown = group("web", front(1), &["10.0.0.1", "10.0.0.3"]);
        let after = Elements::render([&grown, &db], Family::V4, &mut numbers);
        let difference = before.difference(&after);
        assert_eq!(difference.remove, [(Map::Balances, 1u32.to_ne_bytes().to_vec())]);
        let touched: Vec<Map> = difference.add.iter().map(|(map, ..)| *map).collect();
        assert_eq!(touched, [Map::Balances, Map::Backends, Map::Hairpins]);
        assert_eq!(difference.draws, BTreeSet::from([Draw { backends: 2, affinity: None }]));
        assert!(after.difference(&after).is_empty());
    }

    #[test]
    fn a_service_without_backends_refuses() {
        let ip = IpAddr::from([10, 96, 0, 1]);
        for (front, map) in [(Front::Address(ip, Protocol::Udp, 53), Map::Refused), (Front::Cluster(ip, Protocol::Udp, 53), Map::Addresses)] {
            let elements = Elements::render([&group("dns", front, &[])], Family::V4, &mut Numbers::default());
            assert_eq!(elements.0.keys().map(|(map, _)| *map).collect::<Vec<_>>(), [map]);
        }
        let front = Front::Cluster(ip, Protocol::Udp, 53);
        assert!(Elements::render([&group("dns", front, &[])], Family::V6, &mut Numbers::default()).0.is_empty());
    }
}
