//! Cluster addresses of Services, one or two, and the families that they are of.
//! Source: `pkg/registry/core/service/storage/alloc.go` (`initIPFamilyFields`), `pkg/registry/core/service/ipallocator`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde_json::json;

use super::{exchange, invalid, is_taken, tried};
use crate::{
    api::{admission::Context, forms::header},
    base::clock,
    meta::{FieldError, Meta, Path, Result, Value},
    store::{Change, Draft, Expect, Header, Key, Snapshot, Write},
};

pub const ADDRESSES: &str = "networking.k8s.io/ipaddresses";
const NONE: &str = "None";
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";
/// Of a range in IPv6, which has more addresses than anybody needs, the first are used (`1 << 62` in upstream's allocator).
const SIZE_MOST: u128 = 1 << 62;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range(IpNet);

impl Range {
    /// Of four addresses at least.
    fn parse(cidr: &str) -> Option<Self> {
        let net = cidr.parse::<IpNet>().ok()?.trunc();
        (2..net.max_prefix_len()).contains(&(net.max_prefix_len() - net.prefix_len())).then_some(Self(net))
    }

    fn size(self) -> u128 {
        (1 << (self.0.max_prefix_len() - self.0.prefix_len())).min(SIZE_MOST)
    }

    /// Behind the last: IPv4 ends with a broadcast address.
    fn end(self) -> u128 {
        self.size() - u128::from(self.0.addr().is_ipv4())
    }

    /// Not the network's own address.
    fn holds(self, ip: IpAddr) -> bool {
        self.0.contains(&ip) && (1..self.end()).contains(&(number(ip) - number(self.0.addr())))
    }

    /// The lower part is left to addresses that are asked for by name (KEP-3070).
    fn dynamic(self) -> std::ops::Range<u128> {
        let offset = (self.size() / 16).clamp(16, 256).min(self.size() / 2);
        offset..self.end()
    }

    fn at(self, offset: u128) -> IpAddr {
        let number = number(self.0.addr()) + offset;
        if self.0.addr().is_ipv6() { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(number as u32).into() }
    }

    fn family(self) -> &'static str {
        FAMILIES[usize::from(self.0.addr().is_ipv6())]
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn family_of(ip: &str) -> &'static str {
    FAMILIES[usize::from(ip.contains(':'))]
}

/// The ranges there are, those of the cluster's first ServiceCIDR before others.
fn ranges(snapshot: &Snapshot) -> Vec<(String, Range)> {
    let mut objects: Vec<Value> = snapshot.list("networking.k8s.io/servicecidrs", None, None).map(|it| it.value()).filter(|it| it.deletion_timestamp().is_none()).collect();
    objects.sort_by_key(|it| it.name() != "kubernetes");
    let cidrs = objects.iter().flat_map(|it| it.items_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str));
    cidrs.filter_map(|it| Some((it.to_owned(), Range::parse(it)?))).collect()
}

fn texts(service: &Value, field: &str) -> Vec<String> {
    service.texts_at(&["spec", field]).map(str::to_owned).collect()
}

pub fn held(service: &Value) -> BTreeSet<String> {
    texts(service, "clusterIPs").into_iter().filter(|it| !it.is_empty() && it != NONE).collect()
}

/// Gives a Service its addresses.
pub fn allocate(context: &Context<'_>, service: &mut Value) -> Result<Vec<Write>> {
    let before = context.old.map(held).unwrap_or_default();
    if service.text_at(&["spec", "type"]) == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            service.remove_at(&["spec", field]);
        }
    } else {
        normalize(service, context.old);
        let ranges = ranges(context.snapshot);
        if !is_unchanged(service, context.old) {
            set_families(context, service, &ranges)?;
        }
        set_addresses(context, service, &ranges, &before)?;
    }
    exchange(context.snapshot, ADDRESSES, &before, &held(service), |ip| Ok(claim(ip, service)))
}

/// What clients mean that know one of `clusterIP` and `clusterIPs` (`normalizeClusterIPs`), and what they leave as it was (`patchAllocatedValues`).
fn normalize(service: &mut Value, old: Option<&Value>) {
    let one = |it: &Value| it.text_at(&["spec", "clusterIP"]).to_owned();
    let (mut first, mut all) = (one(service), texts(service, "clusterIPs"));
    let (old_first, old_all) = old.map(|it| (one(it), texts(it, "clusterIPs"))).unwrap_or_default();
    if first != old_first && all == old_all {
        all = if first.is_empty() { Vec::new() } else { vec![first.clone()] };
    }
    if old.is_some_and(|it| it.text_at(&["spec", "type"]) != "ExternalName") {
        first = if first.is_empty() { old_first } else { first };
        all = if all.is_empty() { old_all } else { all };
    }
    service.set_at(&["spec", "clusterIP"], first);
    service.set_at(&["spec", "clusterIPs"], json!(all));
}

/// A Service that prefers two families is changed neither way because the cluster has others now (`isMatchingPreferDualStackClusterIPFields`).
fn is_unchanged(service: &Value, old: Option<&Value>) -> bool {
    let prefers = |it: &Value| it.text_at(&["spec", "ipFamilyPolicy"]) == PREFER;
    old.is_some_and(|old| {
        let is_same = |field: &str| service.at(&["spec", field]) == old.at(&["spec", field]);
        prefers(service) && prefers(old) && ["type", "clusterIPs", "ipFamilies"].iter().all(|it| is_same(it))
    })
}

fn set_families(context: &Context<'_>, service: &mut Value, ranges: &[(String, Range)]) -> Result<()> {
    let configured: Vec<&str> = FAMILIES.into_iter().filter(|family| ranges.iter().any(|(_, it)| it.family() == *family)).collect();
    let default = ranges.first().map_or("IPv4", |(_, it)| it.family());
    let is_open = service.text_at(&["spec", "clusterIP"]) == NONE && service.at(&["spec", "selector"]).and_then(Value::as_object).is_none_or(|it| it.is_empty());
    if service.text_at(&["spec", "ipFamilyPolicy"]).is_empty() {
        let before = context.old.map(|it| it.text_at(&["spec", "ipFamilyPolicy"])).filter(|it| !it.is_empty());
        service.set_at(&["spec", "ipFamilyPolicy"], before.unwrap_or(if is_open { REQUIRE } else { SINGLE }));
    }
    let policy = service.text_at(&["spec", "ipFamilyPolicy"]).to_owned();
    let (mut ips, mut families) = (texts(service, "clusterIPs"), texts(service, "ipFamilies"));
    if let Some(old) = context.old.filter(|_| policy == SINGLE) {
        // Of what is as it was, the second goes.
        ips.truncate(if ips == texts(old, "clusterIPs") { 1 } else { 2 });
        families.truncate(if families == texts(old, "ipFamilies") { 1 } else { 2 });
    }
    let mut errors = policy_errors(&policy, &ips, &families, context.old);
    let spec = Path::new("spec");
    for (at, ip) in ips.iter().enumerate().skip(families.len()).take_while(|it| it.1 != NONE) {
        let family = family_of(ip);
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            errors.push(FieldError::invalid(&spec.child("clusterIPs").index(at), json!(ips), format!("{family} is not configured on this cluster")));
        }
    }
    fail(context, service, errors)?;
    let asked = families.clone();
    if families.is_empty() {
        families.push(default.to_owned());
    }
    let other = FAMILIES.into_iter().find(|it| *it != families[0]).unwrap_or_default();
    if families.len() == 1 && policy != SINGLE && (is_open || configured.len() == 2) {
        families.push(other.to_owned());
    }
    if !is_open {
        let mut errors = Vec::new();
        if policy == REQUIRE && configured.len() < 2 {
            errors.push(FieldError::invalid(&spec.child("ipFamilyPolicy"), policy.as_str(), "this cluster is not configured for dual-stack services"));
        }
        let missing = asked.iter().enumerate().filter(|it| !configured.contains(&it.1.as_str()));
        errors.extend(missing.map(|(at, family)| FieldError::invalid(&spec.child("ipFamilies").index(at), family.as_str(), "not configured on this cluster")));
        fail(context, service, errors)?;
    }
    service.set_at(&["spec", "clusterIPs"], json!(ips));
    service.set_at(&["spec", "ipFamilies"], json!(families));
    Ok(())
}

fn policy_errors(policy: &str, ips: &[String], families: &[String], old: Option<&Value>) -> Vec<FieldError> {
    let invalid = |detail: &'static str| FieldError::invalid(&Path::new("spec").child("ipFamilyPolicy"), policy, detail);
    let is_less = |now: &[String], field: &str| !now.is_empty() && old.is_some_and(|old| now.len() < texts(old, field).len());
    let is_single = policy == SINGLE;
    let cases = [
        (!is_single && is_less(ips, "clusterIPs"), "must be 'SingleStack' to release the secondary cluster IP"),
        (!is_single && is_less(families, "ipFamilies"), "must be 'SingleStack' to release the secondary IP family"),
        (is_single && ips.len() == 2, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"),
        (is_single && families.len() == 2, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"),
    ];
    cases.into_iter().filter(|it| it.0).map(|it| invalid(it.1)).collect()
}

fn fail(context: &Context<'_>, service: &Value, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(context.target.kind.invalid(service.name(), errors)) }
}

/// An address of each family, unless the Service wants none.
fn set_addresses(context: &Context<'_>, service: &mut Value, ranges: &[(String, Range)], before: &BTreeSet<String>) -> Result<()> {
    let mut ips = texts(service, "clusterIPs");
    if ips.first().is_some_and(|it| it == NONE) {
        return Ok(());
    }
    let had_any = !ips.is_empty();
    // An error, which validation tells.
    if had_any && service.text_at(&["spec", "clusterIP"]).is_empty() {
        return Ok(());
    }
    for (at, family) in texts(service, "ipFamilies").iter().enumerate() {
        match ips.get(at).filter(|it| !it.is_empty()) {
            Some(ip) if before.contains(ip) => (),
            Some(ip) => check(context, service, ip, ranges)?,
            None => {
                let ip = free(context, service, family, ranges)?;
                ips.truncate(at);
                ips.push(ip);
            }
        }
    }
    if !had_any {
        service.set_at(&["spec", "clusterIP"], ips.first().cloned().unwrap_or_default());
    }
    service.set_at(&["spec", "clusterIPs"], json!(ips));
    Ok(())
}

/// A random free address of the first range of the family that has one.
fn free(context: &Context<'_>, service: &Value, family: &str, ranges: &[(String, Range)]) -> Result<String> {
    let is_free = |ip: &IpAddr| !is_taken(context.snapshot, ADDRESSES, &ip.to_string());
    let of_family = ranges.iter().map(|(_, it)| it).filter(|it| it.family() == family);
    let all = of_family.flat_map(|range| tried(range.dynamic()).chain(1..range.dynamic().start).map(|it| range.at(it)));
    if let Some(ip) = all.into_iter().find(is_free) {
        return Ok(ip.to_string());
    }
    let detail = "failed to allocate a serviceIP: range is full".to_owned();
    Err(invalid(context, service, "clusterIPs", json!([]), detail))
}

fn check(context: &Context<'_>, service: &Value, ip: &str, ranges: &[(String, Range)]) -> Result<()> {
    let fail = |why: String| Err(invalid(context, service, "clusterIPs", json!([ip]), format!("failed to allocate IP {ip}: {why}")));
    let Ok(address) = ip.parse::<IpAddr>() else {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned();
        return Err(invalid(context, service, "clusterIPs", json!([ip]), detail));
    };
    if !ranges.iter().any(|(_, range)| range.holds(address)) {
        return fail("the provided network does not match the current range".to_owned());
    }
    if is_taken(context.snapshot, ADDRESSES, ip) {
        return fail("provided IP is already allocated".to_owned());
    }
    Ok(())
}

fn claim(ip: &str, service: &Value) -> Write {
    let labels = json!({"ipaddress.kubernetes.io/ip-family": family_of(ip), "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    let parent = json!({"group": "", "resource": "services", "namespace": service.namespace(), "name": service.name()});
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "spec": {"parentRef": parent},
        "metadata": {"name": ip, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": clock::now_rfc3339(), "labels": labels}});
    let header = Header { fields: vec![("spec.parentRef".into(), "".into())], ..header(&object, &[], 0) };
    Write { key: Key::new(ADDRESSES, "", ip), expect: Expect::Absent, change: Change::Put(Draft::new(&object, header)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_leave_their_lower_part_to_static_addresses() {
        let range = Range::parse("10.96.0.0/16").expect("a range");
        let holds = |range: Range, ip: &str| range.holds(ip.parse().expect("an address"));
        assert_eq!(range.dynamic(), 256..65_535);
        assert!(holds(range, "10.96.0.1") && !holds(range, "10.96.0.0") && !holds(range, "10.97.0.1") && !holds(range, "10.96.255.255") && !holds(range, "fd00::1"));
        assert_eq!(Range::parse("10.96.0.0/40"), None);
        let range = Range::parse("fd00:96::/112").expect("a range");
        assert_eq!((range.dynamic(), range.at(1).to_string().as_str()), (256..65_536, "fd00:96::1"));
        assert!(holds(range, "fd00:96::ffff") && !holds(range, "fd00:96::") && !holds(range, "10.96.0.1"));
        assert_eq!(Range::parse("fd00::/8").expect("a range").size(), SIZE_MOST);
    }
}
