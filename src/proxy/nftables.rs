//! A table of nftables over netlink: the constant chains, and transactions on the maps.
//! Numbers: linux `include/uapi/linux/netfilter/nf_tables.h`; the ruleset itself is explained in `rules.rs`.

use std::{io, net::IpAddr};

use super::rules::{Data, Difference, Draw, Family, Map, octets};
use crate::base::netlink::{APPEND, Attributes, CREATE, NETFILTER, Socket, message};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const BEFORE_ROUTING: i32 = -100;
const AFTER_ROUTING: i32 = 100;

/// The first 32-bit register; the others follow.
const R: u32 = 8;
const VERDICT_REGISTER: u32 = 0;
const VERDICT_TYPE: u32 = 0xffff_ff00;
const JUMP: i32 = -3;
const GOTO: i32 = -4;

// Types of set keys, as `nft` numbers them; six bits each in a concatenation. Only `nft list` needs them right.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_MARK: u32 = 19;

const SET_IS_MAP: u32 = 0x8;
const SET_HAS_TIMEOUT: u32 = 0x10;
const SET_IS_DYNAMIC: u32 = 0x20;

const META_MARK: u32 = 3;
const META_PROTOCOL: u32 = 16;
/// The name of the link by which a packet leaves.
const META_LINK_OUT: u32 = 7;
/// How the names of the links to this node's pods begin (`node/links.rs`).
const POD_LINKS: &[u8] = b"hd";
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const RTN_LOCAL: u32 = 2;
const CONNTRACK_STATUS: u32 = 2;
const STATUS_DNAT: u32 = 0x20;

/// Elements in one message: 40 bytes each in an attribute of at most 64 KiB.
const ELEMENTS_AT_ONCE: usize = 1000;

/// One table in the kernel, of one family.
pub struct Table {
    socket: Socket,
    name: String,
    family: Family,
    batch: Vec<u8>,
    sequence: u32,
}

impl Table {
    pub fn open(name: &str, family: Family) -> io::Result<Self> {
        Ok(Self { socket: Socket::open(NETFILTER)?, name: name.to_owned(), family, batch: Vec::new(), sequence: 1 })
    }

    /// Makes the table anew with empty maps. Pods live in `pods` (network, prefix length); what leaves it is masqueraded.
    pub fn create(&mut self, pods: Option<(IpAddr, u8)>) -> io::Result<()> {
        self.push(NEW_TABLE, CREATE, Attributes::new().text(1, &self.name));
        self.push(DELETE_TABLE, 0, Attributes::new().text(1, &self.name));
        self.push(NEW_TABLE, CREATE, Attributes::new().text(1, &self.name));
        self.chains();
        self.sets();
        self.service_rules();
        self.masquerade_rules(pods);
        self.commit()
    }

    pub fn delete(&mut self) -> io::Result<()> {
        self.push(DELETE_TABLE, 0, Attributes::new().text(1, &self.name));
        self.commit()
    }

    /// Applies a difference, all or nothing. `known` tells the chains that exist already.
    pub fn apply(&mut self, difference: &Difference, known: &std::collections::BTreeSet<Draw>) -> io::Result<()> {
        for draw in difference.draws.difference(known) {
            self.draw_chain(*draw);
        }
        for elements in by_map(&difference.remove, |(map, _)| *map) {
            let list = elements.iter().map(|(_, key)| element(key, None));
            self.elements(DELETE_ELEMENT, elements[0].0, list);
        }
        for elements in by_map(&difference.add, |(map, ..)| *map) {
            let list = elements.iter().map(|(_, key, data)| element(key, encode(data)));
            self.elements(NEW_ELEMENT, elements[0].0, list);
        }
        self.commit()
    }

    fn chains(&mut self) {
        let nat = |hook, priority| Some((hook, priority, "nat"));
        self.chain("prerouting", nat(PREROUTING, BEFORE_ROUTING));
        self.chain("output", nat(OUTPUT, BEFORE_ROUTING));
        self.chain("postrouting", nat(POSTROUTING, AFTER_ROUTING));
        for (name, hook) in [("refuse-input", INPUT), ("refuse-forward", FORWARD), ("refuse-output", OUTPUT)] {
            self.chain(name, Some((hook, 0, "filter")));
        }
        self.chain("services", None);
    }

    fn sets(&mut self) {
        let (ip, ip_len) = (self.ip_type(), self.ip_len());
        let service = (concat(&[ip, TYPE_PROTOCOL, TYPE_PORT]), ip_len + 8);
        self.set(set_name(Map::Services), 0, service, Some((TYPE_MARK, 4)));
        self.set(set_name(Map::Refused), 0, service, None);
        self.set(set_name(Map::Addresses), 0, (ip, ip_len), None);
        self.set(set_name(Map::NodePorts), 0, (concat(&[TYPE_PROTOCOL, TYPE_PORT]), 8), Some((TYPE_MARK, 4)));
        self.set(set_name(Map::Balances), 0, (TYPE_MARK, 4), Some((VERDICT_TYPE, 0)));
        let backend = (concat(&[ip, TYPE_PORT]), ip_len + 4);
        self.set(set_name(Map::Backends), 0, (concat(&[TYPE_MARK, TYPE_MARK]), 8), Some(backend));
        self.set("affinity", SET_HAS_TIMEOUT | SET_IS_DYNAMIC, (concat(&[TYPE_MARK, ip]), 4 + ip_len), Some(backend));
        self.set(set_name(Map::Hairpins), 0, (concat(&[ip, ip]), 2 * ip_len), None);
    }

    fn service_rules(&mut self) {
        let words = self.ip_len() / 4;
        self.rule("prerouting", vec![verdict_to("services", JUMP)]);
        self.rule("output", vec![verdict_to("services", JUMP)]);
        let balance = |from: u32| vec![set_meta(META_MARK, from), get_meta(META_MARK, R), lookup(set_name(Map::Balances), R, Some(VERDICT_REGISTER))];
        let mut to_service = self.destination_key();
        to_service.push(lookup(set_name(Map::Services), R, Some(R + words + 2)));
        to_service.extend(balance(R + words + 2));
        self.rule("services", to_service);
        let mut to_node = vec![local_type(R), compare(R, 0, &RTN_LOCAL.to_ne_bytes()), get_meta(META_PROTOCOL, R), payload(TRANSPORT_HEADER, 2, 2, R + 1)];
        to_node.push(lookup(set_name(Map::NodePorts), R, Some(R + 2)));
        to_node.extend(balance(R + 2));
        self.rule("services", to_node);
        for chain in ["refuse-input", "refuse-forward", "refuse-output"] {
            let mut refuse = self.destination_key();
            refuse.push(lookup(set_name(Map::Refused), R, None));
            refuse.push(self.reject());
            self.rule(chain, refuse);
            let address = payload(NETWORK_HEADER, self.destination_at(), self.ip_len(), R);
            self.rule(chain, vec![address, lookup(set_name(Map::Addresses), R, None), self.reject()]);
        }
    }

    /// Loads (destination address, protocol, destination port) into the registers from `R` on.
    fn destination_key(&self) -> Vec<Attributes> {
        let (length, words) = (self.ip_len(), self.ip_len() / 4);
        vec![
            payload(NETWORK_HEADER, self.destination_at(), length, R),
            get_meta(META_PROTOCOL, R + words),
            payload(TRANSPORT_HEADER, 2, 2, R + words + 1),
        ]
    }

    fn masquerade_rules(&mut self, pods: Option<(IpAddr, u8)>) {
        let (length, words) = (self.ip_len(), self.ip_len() / 4);
        let address = |at, register| payload(NETWORK_HEADER, at, length, register);
        let both = vec![address(self.source_at(), R), address(self.destination_at(), R + words), lookup(set_name(Map::Hairpins), R, None)];
        self.rule("postrouting", [both, was_translated(), masquerade()].concat());
        let Some((network, prefix)) = pods else { return };
        let (network, bits) = (octets(network), prefix_mask(prefix, length as usize));
        let is_pod = |at, operator| vec![address(at, R), mask(R, &bits), compare(R, operator, &network)];
        self.rule("postrouting", [is_pod(self.source_at(), 0), is_pod(self.destination_at(), 1), masquerade()].concat());
        // What others send to a Service and what then goes to a pod of another node must come back through this one.
        let leaves = vec![get_meta(META_LINK_OUT, R), compare(R, 1, POD_LINKS)];
        self.rule("postrouting", [is_pod(self.source_at(), 1), is_pod(self.destination_at(), 0), leaves, was_translated(), masquerade()].concat());
    }

    /// The chain that draws one of n backends, remembering the client where there is affinity.
    fn draw_chain(&mut self, draw: Draw) {
        let name = chain_name(draw);
        let words = self.ip_len() / 4;
        self.chain(&name, None);
        let number = || expression("numgen", Attributes::new().be32(1, R + 1).be32(2, draw.backends).be32(3, 1));
        let backends = set_name(Map::Backends);
        let Some(seconds) = draw.affinity else {
            let rule = vec![get_meta(META_MARK, R), number(), lookup(backends, R, Some(R + 2)), self.translate(R + 2, R + 2 + words)];
            return self.rule(&name, rule);
        };
        let at = R + 1 + words;
        let client = payload(NETWORK_HEADER, self.source_at(), self.ip_len(), R + 1);
        let remember = remember(R, at, u64::from(seconds) * 1000);
        let known = vec![get_meta(META_MARK, R), client.clone(), lookup("affinity", R, Some(at)), remember.clone(), self.translate(at, at + words)];
        self.rule(&name, known);
        let new = vec![get_meta(META_MARK, R), number(), lookup(backends, R, Some(at)), client, remember, self.translate(at, at + words)];
        self.rule(&name, new);
    }

    fn translate(&self, address: u32, port: u32) -> Attributes {
        expression("nat", Attributes::new().be32(1, 1).be32(2, self.number()).be32(3, address).be32(5, port))
    }

    /// ICMP "port unreachable".
    fn reject(&self) -> Attributes {
        let code = if self.family == Family::V4 { 3u8 } else { 4 };
        expression("reject", Attributes::new().be32(1, 0).bytes(2, &[code]))
    }

    fn number(&self) -> u32 {
        if self.family == Family::V4 { 2 } else { 10 }
    }

    fn ip_type(&self) -> u32 {
        if self.family == Family::V4 { TYPE_IPV4 } else { TYPE_IPV6 }
    }

    fn ip_len(&self) -> u32 {
        if self.family == Family::V4 { 4 } else { 16 }
    }

    fn source_at(&self) -> u32 {
        if self.family == Family::V4 { 12 } else { 8 }
    }

    fn destination_at(&self) -> u32 {
        if self.family == Family::V4 { 16 } else { 24 }
    }

    fn chain(&mut self, name: &str, hook: Option<(u32, i32, &str)>) {
        let mut chain = Attributes::new().text(1, &self.name).text(3, name);
        if let Some((hook, priority, kind)) = hook {
            chain = chain.nested(4, Attributes::new().be32(1, hook).be32(2, priority as u32)).text(7, kind);
        }
        self.push(NEW_CHAIN, CREATE, chain);
    }

    fn rule(&mut self, chain: &str, expressions: Vec<Attributes>) {
        let list = expressions.into_iter().fold(Attributes::new(), |list, it| list.nested(1, it));
        let rule = Attributes::new().text(1, &self.name).text(2, chain).nested(4, list);
        self.push(NEW_RULE, CREATE | APPEND, rule);
    }

    fn set(&mut self, name: &str, flags: u32, key: (u32, u32), data: Option<(u32, u32)>) {
        let flags = flags | if data.is_some() { SET_IS_MAP } else { 0 };
        let mut set = Attributes::new().text(1, &self.name).text(2, name).be32(3, flags).be32(4, key.0).be32(5, key.1);
        if let Some((kind, length)) = data {
            set = set.be32(6, kind);
            if kind != VERDICT_TYPE {
                set = set.be32(7, length);
            }
        }
        set = set.be32(10, self.sequence);
        if flags & SET_HAS_TIMEOUT != 0 {
            set = set.bytes(11, &3_600_000u64.to_be_bytes());
        }
        self.push(NEW_SET, CREATE, set);
    }

    fn elements(&mut self, kind: u16, map: Map, list: impl Iterator<Item = Attributes>) {
        let list = list.fold(Attributes::new(), |list, it| list.nested(1, it));
        let flags = if kind == NEW_ELEMENT { CREATE } else { 0 };
        let elements = Attributes::new().text(1, &self.name).text(2, set_name(map)).nested(3, list);
        self.push(kind, flags, elements);
    }

    fn push(&mut self, kind: u16, flags: u16, payload: Attributes) {
        if self.batch.is_empty() {
            self.batch = message(BATCH_BEGIN, 0, 0, &family_header(0, SUBSYSTEM));
        }
        self.sequence += 1;
        let payload = family_header(self.number() as u8, 0).raw(payload.as_bytes());
        self.batch.extend(message(SUBSYSTEM << 8 | kind, flags, self.sequence, &payload));
    }

    fn commit(&mut self) -> io::Result<()> {
        self.batch.extend(message(BATCH_END, 0, self.sequence + 1, &family_header(0, SUBSYSTEM)));
        let batch = std::mem::take(&mut self.batch);
        self.socket.send(&batch).map(|_| ())
    }
}

fn by_map<T>(elements: &[T], map: impl Fn(&T) -> Map) -> impl Iterator<Item = &[T]> {
    elements.chunk_by(move |left, right| map(left) == map(right)).flat_map(|it| it.chunks(ELEMENTS_AT_ONCE))
}

fn set_name(map: Map) -> &'static str {
    match map {
        Map::Services => "services",
        Map::NodePorts => "nodeports",
        Map::Addresses => "addresses",
        Map::Refused => "refused",
        Map::Balances => "balances",
        Map::Backends => "backends",
        Map::Hairpins => "hairpins",
    }
}

fn chain_name(draw: Draw) -> String {
    match draw.affinity {
        None => format!("draw-{}", draw.backends),
        Some(seconds) => format!("draw-{}-affinity-{seconds}", draw.backends),
    }
}

/// `struct nfgenmsg`.
fn family_header(family: u8, resource: u16) -> Attributes {
    let [high, low] = resource.to_be_bytes();
    Attributes::new().raw(&[family, 0, high, low])
}

fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, it| all << 6 | it)
}

fn prefix_mask(prefix: u8, length: usize) -> Vec<u8> {
    let bits = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    bits.to_be_bytes()[..length].to_vec()
}

fn element(key: &[u8], data: Option<Attributes>) -> Attributes {
    let element = Attributes::new().nested(1, Attributes::new().bytes(1, key));
    match data {
        Some(data) => element.nested(2, data),
        None => element,
    }
}

fn encode(data: &Data) -> Option<Attributes> {
    match data {
        Data::None => None,
        Data::Bytes(bytes) => Some(Attributes::new().bytes(1, bytes)),
        Data::Goto(draw) => Some(verdict(GOTO, &chain_name(*draw))),
    }
}

fn verdict(code: i32, chain: &str) -> Attributes {
    Attributes::new().nested(2, Attributes::new().be32(1, code as u32).text(2, chain))
}

fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::new().text(1, name).nested(2, data)
}

fn verdict_to(chain: &str, code: i32) -> Attributes {
    expression("immediate", Attributes::new().be32(1, VERDICT_REGISTER).nested(2, verdict(code, chain)))
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> Attributes {
    expression("payload", Attributes::new().be32(1, register).be32(2, base).be32(3, offset).be32(4, length))
}

fn get_meta(key: u32, register: u32) -> Attributes {
    expression("meta", Attributes::new().be32(1, register).be32(2, key))
}

fn set_meta(key: u32, register: u32) -> Attributes {
    expression("meta", Attributes::new().be32(2, key).be32(3, register))
}

/// `operator` 0 is equal, 1 not equal.
fn compare(register: u32, operator: u32, value: &[u8]) -> Attributes {
    expression("cmp", Attributes::new().be32(1, register).be32(2, operator).nested(3, Attributes::new().bytes(1, value)))
}

fn lookup(set: &str, register: u32, into: Option<u32>) -> Attributes {
    let lookup = Attributes::new().text(1, set).be32(2, register);
    expression("lookup", into.map_or(lookup.clone(), |it| lookup.be32(3, it)))
}

fn mask(register: u32, bits: &[u8]) -> Attributes {
    let zero = vec![0; bits.len()];
    let data = Attributes::new().be32(1, register).be32(2, register).be32(3, bits.len() as u32);
    expression("bitwise", data.nested(4, Attributes::new().bytes(1, bits)).nested(5, Attributes::new().bytes(1, &zero)))
}

/// The type of the destination address, as the routing table has it.
fn local_type(register: u32) -> Attributes {
    expression("fib", Attributes::new().be32(1, register).be32(2, 3).be32(3, 2))
}

/// Whether the packet's connection goes elsewhere than it was sent.
fn was_translated() -> Vec<Attributes> {
    let status = expression("ct", Attributes::new().be32(1, R).be32(2, CONNTRACK_STATUS));
    vec![status, mask(R, &STATUS_DNAT.to_ne_bytes()), compare(R, 1, &0u32.to_ne_bytes())]
}

fn masquerade() -> Vec<Attributes> {
    vec![expression("masq", Attributes::new())]
}

/// Puts (key at `key` → data at `data`) into the affinity map for `milliseconds`, anew with each connection.
fn remember(key: u32, data: u32, milliseconds: u64) -> Attributes {
    const UPDATE: u32 = 1;
    let set = Attributes::new().text(1, "affinity").be32(3, UPDATE).be32(4, key).be32(5, data);
    expression("dynset", set.bytes(6, &milliseconds.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::proxy::{
        plan::{Balance, Front, Group, Protocol},
        rules::{Elements, Numbers},
    };

    fn group(ip: &str, backends: &[&str], affinity: Option<u32>) -> Group {
        let front = Front::Address(ip.parse().expect("an address"), Protocol::Tcp, 80);
        let backends = backends.iter().map(|it| (it.parse().expect("an address"), 8080)).collect();
        Group { name: ip.to_owned(), fronts: vec![front, Front::Node(Protocol::Tcp, 30080)], balance: Balance { backends, affinity } }
    }

    /// Loads, changes and removes services in the kernel, in a network namespace of this thread's own.
    fn exercise(family: Family, pods: (IpAddr, u8), fronts: [&str; 2], backends: &[&str]) {
        let mut table = Table::open("howdah-test", family).expect("a socket");
        table.create(Some(pods)).expect("create");
        table.create(Some(pods)).expect("create over what is there");
        let mut numbers = Numbers::default();
        let first = Elements::render([&group(fronts[0], backends, None)], family, &mut numbers);
        let second = Elements::render([&group(fronts[0], &backends[..1], Some(10)), &group(fronts[1], &[], None)], family, &mut numbers);
        let mut known = BTreeSet::new();
        for (from, to) in [(&Elements::default(), &first), (&first, &second), (&second, &first), (&first, &Elements::default())] {
            let difference = from.difference(to);
            table.apply(&difference, &known).expect("apply");
            known.extend(difference.draws);
        }
        let wrong = Difference { remove: vec![(Map::Balances, vec![9, 9, 9, 9])], ..Difference::default() };
        assert!(table.apply(&wrong, &known).is_err(), "removing what is not there fails");
        table.delete().expect("delete");
        assert!(table.delete().is_err(), "nothing is left");
    }

    #[test]
    fn the_kernel_takes_every_transaction() {
        let thread = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                return eprintln!("SKIPPED: no network namespace of one's own: {error}");
            }
            let v4 = ["10.96.0.1", "10.96.0.2"];
            exercise(Family::V4, (IpAddr::from([10, 244, 0, 0]), 16), v4, &["10.244.0.1", "10.244.0.2"]);
            let v6 = ["fd00:96::1", "fd00:96::2"];
            exercise(Family::V6, ("fd00:244::".parse().expect("an address"), 64), v6, &["fd00:244::1", "fd00:244::2"]);
        });
        thread.join().expect("no panic");
    }
}
