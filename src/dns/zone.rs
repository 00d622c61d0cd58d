//! The records of the cluster's domain, as a pure function of Services and EndpointSlices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT},
    },
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

/// Seconds that a resolver may keep an answer (CoreDNS' default for `kubernetes`).
const TTL: u32 = 5;
const SCHEMA_VERSION: &str = "1.1.0";

/// All Services of the cluster. A value: cloning it is cheap and a change makes a new one.
#[derive(Clone)]
pub struct Zone {
    /// `cluster.local`, absolute.
    domain: Name,
    /// (namespace, service) → its addresses.
    services: rpds::HashTrieMapSync<(String, String), Arc<Entry>>,
    /// Address → the name that PTR answers.
    reverse: rpds::HashTrieMapSync<IpAddr, Name>,
    namespaces: BTreeSet<String>,
}

/// What DNS knows of one Service.
#[derive(Debug, Default, PartialEq)]
struct Entry {
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Port>,
    /// Set for a headless Service: host label → addresses.
    hosts: BTreeMap<String, Vec<IpAddr>>,
    /// The ports of each host, of headless Services.
    host_ports: Vec<(String, Port)>,
    external_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Port {
    name: String,
    protocol: String,
    number: u16,
}

/// What becomes of a query.
pub enum Outcome {
    Answer(Message),
    /// Not the cluster's: ask the host's resolvers.
    Forward,
}

/// What a name in the cluster's domain stands for.
enum Found {
    Records(Vec<Record>),
    /// The name exists; there are no records of this type.
    NoData,
    NoName,
}

impl Zone {
    pub fn new(domain: &str) -> Result<Self, hickory_proto::ProtoError> {
        let mut domain = Name::from_ascii(domain)?;
        domain.set_fqdn(true);
        Ok(Self { domain, services: Default::default(), reverse: Default::default(), namespaces: BTreeSet::new() })
    }

    /// The zone with `service` as it is now, its endpoints in `slices`.
    pub fn with(&self, service: &Service, slices: &[Arc<EndpointSlice>]) -> Self {
        let key = (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default());
        let entry = Entry::new(service, slices);
        let mut zone = self.without(&key.0, &key.1);
        for (address, name) in zone.reverse_names(&key, &entry) {
            zone.reverse.insert_mut(address, name);
        }
        zone.namespaces.insert(key.0.clone());
        zone.services.insert_mut(key, Arc::new(entry));
        zone
    }

    pub fn without(&self, namespace: &str, service: &str) -> Self {
        let key = (namespace.to_owned(), service.to_owned());
        let mut zone = self.clone();
        let Some(old) = self.services.get(&key) else { return zone };
        for (address, _) in self.reverse_names(&key, old) {
            zone.reverse.remove_mut(&address);
        }
        zone.services.remove_mut(&key);
        if !zone.services.keys().any(|(it, _)| it == namespace) {
            zone.namespaces.remove(namespace);
        }
        zone
    }

    fn reverse_names(&self, (namespace, service): &(String, String), entry: &Entry) -> Vec<(IpAddr, Name)> {
        let own = entry.cluster_ips.iter().map(|it| (*it, None));
        let hosts = entry.hosts.iter().flat_map(|(host, addresses)| addresses.iter().map(move |it| (*it, Some(host))));
        let named = own.chain(hosts).filter_map(|(address, host)| {
            let host = host.map(|it| format!("{it}.")).unwrap_or_default();
            Some((address, self.name(&format!("{host}{service}.{namespace}.svc"))?))
        });
        named.collect()
    }

    fn name(&self, relative: &str) -> Option<Name> {
        Name::from_ascii(relative).ok()?.append_domain(&self.domain).ok()
    }

    /// Answers one query message.
    pub fn answer(&self, request: &Message) -> Outcome {
        let [query] = request.queries.as_slice() else {
            return Outcome::Answer(reply(request, ResponseCode::FormErr));
        };
        if request.metadata.op_code != OpCode::Query {
            return Outcome::Answer(reply(request, ResponseCode::NotImp));
        }
        if let Some(found) = self.reverse_answer(query) {
            return Outcome::Answer(self.message(request, found));
        }
        if !self.domain.zone_of(&query.name) {
            return Outcome::Forward;
        }
        Outcome::Answer(self.message(request, self.find(query)))
    }

    fn message(&self, request: &Message, found: Found) -> Message {
        let code = if matches!(found, Found::NoName) { ResponseCode::NXDomain } else { ResponseCode::NoError };
        let mut message = reply(request, code);
        message.metadata.authoritative = true;
        match found {
            Found::Records(records) => _ = message.add_answers(records),
            Found::NoData | Found::NoName => _ = message.add_authority(self.authority()),
        }
        message
    }

    fn authority(&self) -> Record {
        let host = self.name("ns.dns").unwrap_or_else(Name::root);
        let mailbox = self.name("hostmaster").unwrap_or_else(Name::root);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(SOA::new(host, mailbox, 1, 7200, 1800, 86400, TTL)))
    }

    /// PTR of an address that is the cluster's; `None` for everything else.
    fn reverse_answer(&self, query: &Query) -> Option<Found> {
        if query.query_type != RecordType::PTR {
            return None;
        }
        let name = self.reverse.get(&query.name.parse_arpa_name().ok()?.addr())?;
        Some(Found::Records(vec![Record::from_rdata(query.name.clone(), TTL, RData::PTR(PTR(name.clone())))]))
    }

    fn find(&self, query: &Query) -> Found {
        let name = query.name.to_lowercase();
        let depth = usize::from(name.num_labels() - self.domain.num_labels());
        let labels: Vec<String> = name.iter().take(depth).map(|it| String::from_utf8_lossy(it).into_owned()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] if query.query_type == RecordType::SOA => Found::Records(vec![self.authority()]),
            [] | ["svc"] | ["pod"] => Found::NoData,
            ["dns-version"] => only(query, RecordType::TXT, || vec![RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]))]),
            [namespace, "svc" | "pod"] if self.namespaces.contains(*namespace) => Found::NoData,
            [address, namespace, "pod"] => self.pod(query, address, namespace),
            [rest @ .., service, namespace, "svc"] => match self.services.get(&(namespace.to_string(), service.to_string())) {
                Some(entry) => self.service(query, entry, rest, &format!("{service}.{namespace}.svc")),
                None => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    /// `10-244-0-7.default.pod`: the address itself, whether or not such a pod exists (CoreDNS' `pods insecure`).
    fn pod(&self, query: &Query, address: &str, namespace: &str) -> Found {
        match dashed(address) {
            Some(ip) if self.namespaces.contains(namespace) => addresses(query, [ip]),
            _ => Found::NoName,
        }
    }

    fn service(&self, query: &Query, entry: &Entry, rest: &[&str], own: &str) -> Found {
        if let (Some(target), []) = (&entry.external_name, rest) {
            let target = Name::from_ascii(target).map(|mut name| {
                name.set_fqdn(true);
                RData::CNAME(CNAME(name))
            });
            return target.map_or(Found::NoName, |it| records(query, [it]));
        }
        match rest {
            [] if query.query_type == RecordType::SRV => self.srv(query, entry, own, |_| true),
            [] if entry.hosts.is_empty() && entry.cluster_ips.is_empty() => Found::NoName,
            [] => addresses(query, entry.cluster_ips.iter().chain(entry.hosts.values().flatten()).copied()),
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                let is_it = |it: &Port| format!("_{}", it.name) == *port && format!("_{}", it.protocol) == *protocol;
                self.srv(query, entry, own, is_it)
            }
            [host] => match entry.hosts.get(*host) {
                Some(ips) => addresses(query, ips.iter().copied()),
                None => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    fn srv(&self, query: &Query, entry: &Entry, own: &str, is_it: impl Fn(&Port) -> bool) -> Found {
        let own_ports = entry.ports.iter().filter(|_| !entry.cluster_ips.is_empty()).map(|port| (own.to_owned(), port));
        let hosts = entry.host_ports.iter().map(|(host, port)| (format!("{host}.{own}"), port));
        let targets: Vec<RData> = own_ports
            .chain(hosts)
            .filter(|(_, port)| is_it(port))
            .filter_map(|(target, port)| Some(RData::SRV(SRV::new(0, 100, port.number, self.name(&target)?))))
            .collect();
        match (targets.is_empty(), query.query_type) {
            (true, _) => Found::NoName,
            (false, RecordType::SRV | RecordType::ANY) => records(query, targets),
            (false, _) => Found::NoData,
        }
    }
}

/// A reply to `request` with nothing in it.
pub fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(super::server::UDP_PAYLOAD);
        message.set_edns(edns);
    }
    message
}

fn only(query: &Query, record_type: RecordType, make: impl Fn() -> Vec<RData>) -> Found {
    if query.query_type == record_type { records(query, make()) } else { Found::NoData }
}

fn records(query: &Query, data: impl IntoIterator<Item = RData>) -> Found {
    Found::Records(data.into_iter().map(|it| Record::from_rdata(query.name.clone(), TTL, it)).collect())
}

fn addresses(query: &Query, ips: impl IntoIterator<Item = IpAddr>) -> Found {
    let data: Vec<RData> = ips
        .into_iter()
        .filter_map(|ip| match (ip, query.query_type) {
            (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(ip))),
            (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(ip))),
            _ => None,
        })
        .collect();
    if data.is_empty() { Found::NoData } else { records(query, data) }
}

/// `10-244-0-7` or `fd00--7` as an address.
fn dashed(text: &str) -> Option<IpAddr> {
    let v4: Option<Ipv4Addr> = text.replace('-', ".").parse().ok();
    v4.map(IpAddr::V4).or_else(|| text.replace('-', ":").parse().ok().map(IpAddr::V6))
}

impl Entry {
    fn new(service: &Service, slices: &[Arc<EndpointSlice>]) -> Self {
        let Some(spec) = &service.spec else { return Self::default() };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Self { external_name: spec.external_name.clone(), ..Self::default() };
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            return Self::headless(slices);
        }
        let ips = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
        let mut cluster_ips: Vec<IpAddr> = ips.filter_map(|it| it.parse().ok()).collect();
        cluster_ips.sort();
        cluster_ips.dedup();
        let ports = spec.ports.iter().flatten().map(|it| Port::new(it.name.as_deref(), it.protocol.as_deref(), it.port));
        Self { cluster_ips, ports: ports.collect(), ..Self::default() }
    }

    fn headless(slices: &[Arc<EndpointSlice>]) -> Self {
        let mut entry = Self::default();
        for slice in slices {
            let ports: Vec<Port> =
                slice.ports.iter().flatten().filter_map(|it| Some(Port::new(it.name.as_deref(), it.protocol.as_deref(), it.port?))).collect();
            for endpoint in slice.endpoints.iter().flatten() {
                if endpoint.conditions.as_ref().and_then(|it| it.ready) == Some(false) {
                    continue;
                }
                for ip in endpoint.addresses.iter().filter_map(|it| it.parse::<IpAddr>().ok()) {
                    let host = endpoint.hostname.clone().unwrap_or_else(|| ip.to_string().replace(['.', ':'], "-"));
                    entry.host_ports.extend(ports.iter().map(|port| (host.clone(), port.clone())));
                    entry.hosts.entry(host).or_default().push(ip);
                }
            }
        }
        entry
    }
}

impl Port {
    fn new(name: Option<&str>, protocol: Option<&str>, number: i32) -> Self {
        let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
        Self { name: name.unwrap_or_default().to_owned(), protocol, number: u16::try_from(number).unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone() -> Zone {
        let web = json!({"metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.96.0.50", "clusterIPs": ["10.96.0.50"], "ports": [{"name": "http", "port": 80}]}});
        let db = json!({"metadata": {"namespace": "data", "name": "db"}, "spec": {"clusterIP": "None"}});
        let slice = json!({"addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}], "endpoints": [
            {"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.8"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.9"], "conditions": {"ready": false}}]});
        let out = json!({"metadata": {"namespace": "default", "name": "out"}, "spec": {"type": "ExternalName", "externalName": "example.com"}});
        let service = |it| serde_json::from_value::<Service>(it).expect("a Service");
        let slices = [Arc::new(serde_json::from_value(slice).expect("a slice"))];
        let zone = Zone::new("cluster.local").expect("a name");
        zone.with(&service(web), &[]).with(&service(db), &slices).with(&service(out), &[])
    }

    fn ask(zone: &Zone, name: &str, record_type: RecordType) -> String {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).expect("a name"), record_type));
        match zone.answer(&request) {
            Outcome::Forward => "forward".to_owned(),
            Outcome::Answer(message) => {
                let mut data: Vec<String> = message.answers.iter().map(|it| it.data.to_string()).collect();
                data.sort();
                if data.is_empty() { message.metadata.response_code.to_string() } else { data.join(" ") }
            }
        }
    }

    #[test]
    fn names_resolve_as_the_specification_says() {
        let cases = [
            ("web.default.svc.cluster.local.", RecordType::A, "10.96.0.50"),
            ("WEB.default.svc.cluster.local.", RecordType::A, "10.96.0.50"),
            ("web.default.svc.cluster.local.", RecordType::AAAA, "No Error"),
            ("web.default.svc.cluster.local.", RecordType::SRV, "0 100 80 web.default.svc.cluster.local."),
            ("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV, "0 100 80 web.default.svc.cluster.local."),
            ("_x._tcp.web.default.svc.cluster.local.", RecordType::SRV, "Non-Existent Domain"),
            ("db.data.svc.cluster.local.", RecordType::A, "10.244.0.7 10.244.0.8"),
            ("db-0.db.data.svc.cluster.local.", RecordType::A, "10.244.0.7"),
            ("10-244-0-8.db.data.svc.cluster.local.", RecordType::A, "10.244.0.8"),
            ("_sql._tcp.db.data.svc.cluster.local.", RecordType::SRV, "0 100 5432 10-244-0-8.db.data.svc.cluster.local. 0 100 5432 db-0.db.data.svc.cluster.local."),
            ("out.default.svc.cluster.local.", RecordType::A, "example.com."),
            ("50.0.96.10.in-addr.arpa.", RecordType::PTR, "web.default.svc.cluster.local."),
            ("7.0.244.10.in-addr.arpa.", RecordType::PTR, "db-0.db.data.svc.cluster.local."),
            ("10-244-0-8.default.pod.cluster.local.", RecordType::A, "10.244.0.8"),
            ("dns-version.cluster.local.", RecordType::TXT, "1.1.0"),
            ("default.svc.cluster.local.", RecordType::A, "No Error"),
            ("nope.default.svc.cluster.local.", RecordType::A, "Non-Existent Domain"),
            ("web.nowhere.svc.cluster.local.", RecordType::A, "Non-Existent Domain"),
            ("example.com.", RecordType::A, "forward"),
            ("1.0.0.127.in-addr.arpa.", RecordType::PTR, "forward"),
        ];
        let zone = zone();
        for (name, record_type, answer) in cases {
            assert_eq!(ask(&zone, name, record_type), answer, "{name} {record_type}");
        }
    }

    #[test]
    fn a_service_that_is_gone_leaves_nothing() {
        let zone = zone().without("default", "web").without("default", "out");
        assert_eq!(ask(&zone, "web.default.svc.cluster.local.", RecordType::A), "Non-Existent Domain");
        assert_eq!(ask(&zone, "default.svc.cluster.local.", RecordType::A), "Non-Existent Domain");
        assert_eq!(ask(&zone, "50.0.96.10.in-addr.arpa.", RecordType::PTR), "forward");
    }
}
