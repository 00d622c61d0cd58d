//! Services and Nodes. Source: `pkg/apis/core/validation/validation.go` (`ValidateService`, `ValidateServiceUpdate`, `ValidateNodeUpdate`).

use core::net::IpAddr;

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test, texts,
            words::{endpoint_ip, int, ip_problem, push_if},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("service", service),
    ("affinity", |site, _, errors| {
        let (path, detail) = (site.path().child("sessionAffinityConfig"), "when session affinity type is ClientIP");
        let config = |path: &[&str]| site.value.at(path).filter(|it| !it.is_null());
        if config(&["sessionAffinityConfig"]).is_none() {
            return errors.push(FieldError::required(&path, detail));
        }
        let path = path.child("clientIP");
        if config(&["sessionAffinityConfig", "clientIP"]).is_none() {
            return errors.push(FieldError::required(&path, detail));
        }
        let (path, seconds) = (path.child("timeoutSeconds"), site.value.int_at(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]));
        match seconds {
            None => errors.push(FieldError::required(&path, detail)),
            Some(it) => push_if(!(1..=86_400).contains(&it), FieldError::invalid(&path, it, "must be greater than 0 and less than 86400"), errors),
        }
    }),
    ("serviceports", ports),
    ("externalips", |site, _, errors| {
        let had = texts(site.old, &[]);
        for (at, ip) in texts(Some(site.value), &[]).into_iter().enumerate() {
            let path = site.path().index(at);
            match ip_problem(ip).filter(|_| !had.contains(&ip)) {
                Some(why) => errors.push(FieldError::invalid(&path, ip, why)),
                None => endpoint_ip(ip, &path, errors),
            }
        }
    }),
    ("ranges", |site, _, errors| {
        let had: Vec<&str> = texts(site.old, &[]).into_iter().map(str::trim).collect();
        for (at, range) in texts(Some(site.value), &[]).into_iter().map(str::trim).enumerate().filter(|it| !had.contains(&it.1)) {
            let path = site.base.child("LoadBalancerSourceRanges").index(at);
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            push_if(names::cidr(range).is_none(), FieldError::invalid(&path, range, detail), errors);
        }
    }),
    ("providerid", |site, _, errors| {
        let old = site.old.map_or("", |it| it.as_str().unwrap_or_default());
        let detail = "node updates may not change providerID except from \"\" to valid";
        push_if(!old.is_empty() && site.value != old, FieldError::forbidden(site.path(), detail), errors);
    }),
    ("cidrpair", |site, _, errors| {
        let all: Vec<_> = texts(Some(site.value), &[]).into_iter().map(|it| crate::meta::names::cidr(it).map(|it| it.0.is_ipv4())).collect();
        let is_pair = all.len() < 2 || (all.len() == 2 && all[0] != all[1]);
        push_if(!is_pair && all.iter().all(Option::is_some), FieldError::invalid(site.path(), site.value.clone(), "may specify no more than one CIDR for each IP family"), errors);
    }),
    ("podcidrs", |site, _, errors| {
        let (old, new) = (texts(site.old, &[]), texts(Some(site.value), &[]));
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        push_if(!old.is_empty() && old != new, FieldError::forbidden(site.path(), detail), errors);
    }),
];

fn is_headless(spec: &Value) -> bool {
    texts(Some(spec), &["clusterIPs"]) == ["None"]
}

fn service(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (spec, path) = (&site.value["spec"], Path::new("spec"));
    let (kind, old) = (spec.text("type"), site.old_object.map(|it| &it["spec"]));
    if kind == "ExternalName" {
        let name = spec.text("externalName");
        let name = name.strip_suffix('.').unwrap_or(name);
        let path = path.child("externalName");
        if name.is_empty() { errors.push(FieldError::required(&path, "")) } else { check::all(names::dns1123_subdomain(name), name, &path, errors) }
    } else {
        let is_bare = spec.items_at(&["ports"]).is_empty() && !is_headless(spec);
        push_if(is_bare, FieldError::required(&path.child("ports"), ""), errors);
        addresses(spec, old, &path, errors);
    }
    if is_headless(spec) && matches!(kind, "LoadBalancer" | "NodePort") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", detail));
    }
    traffic(spec, old, &path, errors);
    if let Some(old) = old.filter(|it| kind != "ExternalName" && it.text("type") != "ExternalName") {
        stay(spec, old, &path, errors);
    }
}

/// `validateServiceExternalTrafficPolicy`, and the class of a load balancer, which stays.
fn traffic(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut FieldErrors) {
    let needs_check = |spec: &Value| spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local";
    let (kind, policy, place) = (spec.text("type"), spec.text("externalTrafficPolicy"), path.child("externalTrafficPolicy"));
    let is_external = matches!(kind, "LoadBalancer" | "NodePort") || (kind == "ClusterIP" && !spec.items_at(&["externalIPs"]).is_empty());
    match (is_external, policy) {
        (false, "") | (true, "Cluster" | "Local") => (),
        (false, _) => errors.push(FieldError::invalid(&place, policy, "may only be set for externally-accessible services")),
        (true, "") => errors.push(FieldError::required(&place, "")),
        (true, _) => errors.push(FieldError::not_supported(&place, policy, &["Cluster", "Local"])),
    }
    let (port, place) = (int(&spec["healthCheckNodePort"]), path.child("healthCheckNodePort"));
    match (needs_check(spec), port) {
        (false, 0) => (),
        (false, _) => errors.push(FieldError::invalid(&place, port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")),
        (true, 0) => errors.push(FieldError::required(&place, "")),
        (true, _) => check::all_of(names::port_number(port), port.into(), &place, errors),
    }
    let Some(old) = old else { return };
    let is_moved = needs_check(old) && needs_check(spec) && int(&old["healthCheckNodePort"]) != port;
    push_if(is_moved, FieldError::forbidden(&place, "field is immutable"), errors);
    let is_other = kind == "LoadBalancer" && old.text("type") == kind && old.get("loadBalancerClass") != spec.get("loadBalancerClass");
    let shown = spec.get("loadBalancerClass").cloned().unwrap_or_default();
    push_if(is_other, FieldError::invalid(&path.child("loadBalancerClass"), shown, "may not change once set"), errors);
}

fn ports(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let all: Vec<&Value> = site.value.as_array().into_iter().flatten().collect();
    let mut seen: Vec<&str> = Vec::new();
    for (at, port) in all.iter().enumerate() {
        let (path, name) = (site.path().index(at), port.text("name"));
        if name.is_empty() {
            push_if(all.len() > 1, FieldError::required(&path.child("name"), ""), errors);
        } else {
            check::all(names::dns1123_label(name), name, &path.child("name"), errors);
            push_if(seen.contains(&name), FieldError::duplicate(&path.child("name"), name), errors);
            seen.push(name);
        }
        let (protocol, node, own) = (port.text("protocol"), int(&port["nodePort"]), int(&port["port"]));
        let before = |field: &str, number: i64| all[..at].iter().any(|it| it.text("protocol") == protocol && int(&it[field]) == number);
        push_if(node != 0 && before("nodePort", node), FieldError::duplicate(&path.child("nodePort"), node), errors);
        let key = serde_json::json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": own, "TargetPort": 0, "NodePort": 0});
        push_if(before("port", own), FieldError::duplicate(&path, key), errors);
    }
}

/// `ValidateServiceClusterIPsRelatedFields`.
fn addresses(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut FieldErrors) {
    let (one, all, families) = (spec.text("clusterIP"), texts(Some(spec), &["clusterIPs"]), texts(Some(spec), &["ipFamilies"]));
    let (place, shown) = (path.child("clusterIPs"), spec.get("clusterIPs").cloned().unwrap_or_default());
    let wrong = |detail: &'static str| FieldError::invalid(&place, shown.clone(), detail);
    match (one, all.first()) {
        ("", Some(_)) => errors.push(wrong("must be empty when `clusterIP` is not specified")),
        ("", None) => (),
        (_, None) => errors.push(FieldError::required(&place, "")),
        (one, Some(first)) => push_if(one != *first, wrong("first value must match `clusterIP`"), errors),
    }
    for (at, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(at);
        push_if(!["IPv4", "IPv6"].contains(family), FieldError::not_supported(&path, *family, &["IPv4", "IPv6"]), errors);
        push_if(families[..at].contains(family), FieldError::duplicate(&path, *family), errors);
    }
    const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = spec.get("ipFamilyPolicy").and_then(Value::as_str);
    for policy in policy.into_iter().filter(|it| !POLICIES.contains(it)) {
        errors.push(FieldError::not_supported(&path.child("ipFamilyPolicy"), policy, &POLICIES));
    }
    let (had, mut is_bad) = (texts(old, &["clusterIPs"]), false);
    for (at, ip) in all.iter().enumerate() {
        if at == 0 && *ip == "None" {
            is_bad |= all.len() > 1;
            push_if(all.len() > 1, wrong("'None' must be the first and only value"), errors);
        } else if let Some(why) = ip_problem(ip).filter(|_| !had.contains(ip)) {
            is_bad = true;
            errors.push(FieldError::invalid(&place.index(at), *ip, why));
        }
    }
    push_if(all.len() > 2, wrong("may only hold up to 2 values"), errors);
    if is_bad {
        return;
    }
    let is_v6 = |ip: &str| ip.parse::<IpAddr>().is_ok_and(|it| it.is_ipv6());
    let is_dual = all.iter().any(|it| is_v6(it)) && all.iter().any(|it| !is_v6(it));
    push_if(all.len() > 1 && !is_dual, wrong("may specify no more than one IP for each IP family"), errors);
    for (at, (ip, family)) in all.iter().zip(&families).enumerate().filter(|_| !is_headless(spec)) {
        let is_other = matches!(*family, "IPv4" | "IPv6") && is_v6(ip) != (*family == "IPv6");
        let detail = format!("expected an {family} value as indicated by `ipFamilies[{at}]`");
        push_if(is_other, FieldError::invalid(&place.index(at), *ip, detail), errors);
    }
}

/// `validateUpgradeDowngradeClusterIPs` and `…IPFamilies`: the first address and family stay, the second comes and goes.
fn stay(spec: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let (was, is) = (is_headless(old), is_headless(spec));
    let is_single = spec.text("ipFamilyPolicy") == "SingleStack";
    let shown = |field: &str| spec.get(field).cloned().unwrap_or_default();
    let policy = |what: &str| FieldError::invalid(&path.child("ipFamilyPolicy"), shown("ipFamilyPolicy"), format!("must be set to 'SingleStack' when releasing the secondary {what}"));
    let (before, now) = (texts(Some(old), &["clusterIPs"]), texts(Some(spec), &["clusterIPs"]));
    if !(was && is) {
        let changed = |at: usize| FieldError::invalid(&path.child("clusterIPs").index(at), shown("clusterIPs"), "may not change once set");
        if before.len() == now.len() {
            errors.extend((0..before.len()).filter(|at| before[*at] != now[*at]).map(changed));
        } else {
            push_if(now.is_empty(), FieldError::invalid(&path.child("clusterIPs").index(0), shown("clusterIPs"), "primary clusterIP can not be unset"), errors);
            push_if(!before.is_empty() && !now.is_empty() && before[0] != now[0], changed(0), errors);
            push_if(before.len() > now.len() && now.len() == 1 && !is_single, policy("clusterIP"), errors);
        }
    }
    let (families, own) = (texts(Some(old), &["ipFamilies"]), texts(Some(spec), &["ipFamilies"]));
    if was || is {
        return;
    }
    let place = path.child("ipFamilies").index(0);
    if families.len() == own.len() {
        let count = families.iter().zip(&own).filter(|(was, is)| was != is).count();
        errors.extend((0..count).map(|_| FieldError::invalid(&place, shown("ipFamilies"), "may not change once set")));
        return;
    }
    let is_released = families.len() > own.len();
    push_if(is_released && now.is_empty(), FieldError::invalid(&place, shown("ipFamilies"), "primary ipFamily can not be unset"), errors);
    let is_other = !families.is_empty() && !own.is_empty() && families[0] != own[0];
    push_if(is_other, FieldError::invalid(&place, shown("clusterIPs"), "may not change once set"), errors);
    push_if(is_released && own.len() == 1 && !is_single, policy("ipFamily"), errors);
}
