//! Networks, RBAC, storage, flow control: tests that look at more than one field.
//! Source: `pkg/apis/{networking,rbac,storage,discovery,flowcontrol,autoscaling,scheduling}/validation/validation.go`.

use core::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::quantities::{container_name, requirements};
use crate::{
    kinds::{
        check, metadata,
        rules::{
            Run, Site, Test, is_zero, texts,
            words::{endpoint_ip, int, ip_problem, push_if, quantity, text},
        },
    },
    meta::{FieldError, FieldErrors, LabelSelector, Meta, Path, Quantity, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("replicas", |site, _, errors| {
        let (least, most) = (site.value.int_at(&["minReplicas"]), int(&site.value["maxReplicas"]));
        let detail = "must be greater than or equal to `minReplicas`";
        push_if(least.is_some_and(|it| most < it), FieldError::invalid(&site.path().child("maxReplicas"), most, detail), errors);
    }),
    ("metric", metric),
    ("ispositive", |site, _, errors| {
        let is_positive = quantity(site.value).is_none_or(|it| !it.is_zero() && !Quantity::is_negative(it));
        push_if(!is_positive, FieldError::invalid(site.path(), site.value.clone(), "must be positive"), errors);
    }),
    ("containerresource", |site, _, errors| {
        if !text(site.value).is_empty() {
            container_name(text(site.value), site.path(), errors);
        }
    }),
    ("conditionreason", |site, _, errors| {
        let reason = text(site.value);
        push_if(reason.is_empty(), FieldError::required(site.path(), ""), errors);
        push_if(reason.len() > 1024, FieldError::too_long(site.path(), 1024), errors);
    }),
    ("nothost", |site, _, errors| {
        let is_address = text(site.value).parse::<IpAddr>().is_ok();
        push_if(is_address, FieldError::invalid(site.path(), text(site.value), "must be a DNS name, not an IP address"), errors);
    }),
    ("ingresspath", |site, _, errors| {
        let path = text(site.value);
        for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|it| path.contains(it)) {
            errors.push(FieldError::invalid(site.path(), path, format!("must not contain '{part}'")));
        }
        for end in ["/..", "/."].into_iter().filter(|it| path.ends_with(it)) {
            errors.push(FieldError::invalid(site.path(), path, format!("cannot end with '{end}'")));
        }
    }),
    ("backend", backend),
    ("policytypes", |site, _, errors| {
        let types = texts(Some(site.value), &[]);
        if types.len() > 2 {
            return errors.push(FieldError::invalid(site.path(), site.value.clone(), "may not specify more than two policyTypes"));
        }
        for (at, name) in types.iter().enumerate().filter(|it| !["Ingress", "Egress"].contains(it.1)) {
            errors.push(FieldError::not_supported(&site.path().index(at), *name, &["Ingress", "Egress"]));
        }
    }),
    ("endport", |site, _, errors| {
        let (Some(end), port) = (site.value.int_at(&["endPort"]), site.value.get("port").filter(|it| !it.is_null())) else { return };
        let path = site.path().child("endPort");
        match port {
            None => errors.push(FieldError::invalid(&path, end, "may not be specified when `port` is not specified")),
            Some(Value::String(_)) => errors.push(FieldError::invalid(&path, end, "may not be specified when `port` is non-numeric")),
            Some(port) => {
                push_if(end < int(port), FieldError::invalid(&path, int(port), "must be greater than or equal to `port`"), errors);
                check::all_of(names::port_number(end), end.into(), &path, errors);
            }
        }
    }),
    ("except", except),
    ("cidrs", cidrs),
    ("bothrules", |site, _, errors| {
        let is_mixed = ["apiGroups", "resources", "resourceNames"].iter().any(|it| site.value.get(it).is_some_and(|it| !is_zero(it)));
        let detail = "rules cannot apply to both regular resources and non-resource URLs";
        push_if(is_mixed, FieldError::invalid(&site.path().child("nonResourceURLs"), site.value["nonResourceURLs"].clone(), detail), errors);
    }),
    ("roleref", |site, _, errors| push_if(site.old != Some(site.value), FieldError::invalid(site.path(), site.value.clone(), "cannot change roleRef"), errors)),
    ("clustersubject", |site, _, errors| {
        let is_homeless = site.value.text("kind") == "ServiceAccount" && site.value.text("namespace").is_empty();
        push_if(is_homeless, FieldError::required(&site.path().child("namespace"), ""), errors);
    }),
    ("provisioner", |site, _, errors| {
        let name = text(site.value).to_lowercase();
        if !name.is_empty() {
            check::all(names::qualified_name(&name), &name, site.path(), errors);
        }
    }),
    ("parameters", |site, _, errors| {
        let has_empty = site.value.as_object().is_some_and(|it| it.contains_key(""));
        push_if(has_empty, FieldError::invalid(site.path(), "", "field can not be empty."), errors);
    }),
    ("inlinevolume", |site, _, errors| {
        if !site.value.is_null() {
            let has_csi = site.value.get("csi").is_some();
            push_if(!has_csi, FieldError::required(&site.path().child("csi"), "has to be specified in the context of inline volumes"), errors);
        }
    }),
    ("csidrivers", |site, _, errors| {
        let bare = |driver: &Value| ["name", "nodeID", "topologyKeys"].map(|it| driver.get(it).cloned());
        for old in site.old.and_then(Value::as_array).into_iter().flatten() {
            for new in site.value.as_array().into_iter().flatten().filter(|it| it.text("name") == old.text("name") && bare(it) != bare(old)) {
                errors.push(FieldError::invalid(site.path(), new.clone(), metadata::IMMUTABLE));
            }
        }
    }),
    ("topologykeys", |site, _, errors| {
        let keys = texts(Some(site.value), &["topologyKeys"]);
        for (at, key) in keys.iter().enumerate() {
            push_if(key.is_empty(), FieldError::required(site.path(), ""), errors);
            push_if(keys[..at].contains(key), FieldError::duplicate(site.path(), *key), errors);
            check::all(names::qualified_name(key), key, site.path(), errors);
        }
    }),
    ("podfixed", |site, _, errors| {
        let limits = serde_json::json!({"limits": site.value});
        requirements(&limits, &site.path().parent(), &[], container_name, errors);
    }),
    ("priority", priority),
    ("sliceaddresses", slice_addresses),
    ("distinguisher", |site, _, errors| {
        const METHODS: [&str; 2] = ["ByNamespace", "ByUser"];
        push_if(!METHODS.contains(&text(site.value)), FieldError::not_supported(site.path(), site.object.clone(), &METHODS), errors);
    }),
    ("star", |site, test, errors| {
        let list = texts(Some(site.value), &[]);
        push_if(list.len() > 1 && list.contains(&"*"), FieldError::invalid(site.path(), site.value.clone(), test.message), errors);
    }),
    ("flowverbs", flow_verbs),
    ("flownamespaces", |site, _, errors| {
        let list = texts(Some(site.value), &[]);
        if list.contains(&"*") {
            let detail = "if '*' is present, must not specify other namespaces";
            return push_if(list.len() > 1, FieldError::invalid(site.path(), site.value.clone(), detail), errors);
        }
        for (at, name) in list.iter().enumerate() {
            let problems = names::dns1123_label(name).into_iter().map(|it| format!("each member of this list must be '*' or a DNS-1123 label; {it}").into()).collect();
            check::all(problems, name, &site.path().index(at), errors);
        }
    }),
    ("nonresource", non_resource),
    ("exempt", |site, _, errors| {
        let is_exempt = site.root.name() == "exempt";
        push_if(is_exempt != (text(site.value) == "Exempt"), FieldError::invalid(site.path(), text(site.value), "must be 'Exempt' if and only if `name` is 'exempt'"), errors);
    }),
    ("handsize", hand_size),
    ("grouped", |site, _, errors| {
        let (group, version) = crate::meta::object::split_api_version(text(site.value));
        let detail = if version.contains('/') { format!("unexpected GroupVersion string: {}", text(site.value)) } else { "apiVersion must specify API group".to_owned() };
        push_if(group.is_empty() || version.contains('/'), FieldError::invalid(site.path(), text(site.value), detail), errors);
    }),
    ("selector", |site, test, errors| {
        let is_wrong = LabelSelector::from_value(Some(site.value)).is_err();
        push_if(is_wrong, FieldError::invalid(site.path(), Value::Null, test.message), errors);
    }),
    ("usages", |site, _, errors| {
        let usages = texts(Some(site.value), &[]);
        for (at, usage) in usages.iter().enumerate() {
            push_if(!USAGES.contains(usage), FieldError::not_supported(&site.path().index(at), *usage, &USAGES), errors);
            push_if(usages[..at].contains(usage), FieldError::duplicate(&site.path().index(at), *usage), errors);
        }
    }),
    ("request", |site, _, errors| {
        let is_request = rustls::pki_types::pem::PemObject::from_pem_slice(&BASE64.decode(text(site.value)).unwrap_or_default()).is_ok_and(|it: rustls::pki_types::CertificateSigningRequestDer<'_>| !it.is_empty());
        push_if(!is_request, FieldError::invalid(site.path(), site.value.clone(), "PEM block type must be CERTIFICATE REQUEST"), errors);
    }),
    ("finalizer", |site, _, errors| errors.extend(metadata::bare_finalizer(text(site.value), site.path()))),
    ("eventtype", |site, _, errors| {
        let kind = text(site.value);
        push_if(!matches!(kind, "Normal" | "Warning"), FieldError::invalid(site.path(), "", format!("has invalid value: {kind}")), errors);
    }),
    ("series", |site, _, errors| {
        if site.value.is_null() || site.old == Some(site.value) {
            return;
        }
        push_if(int(&site.value["count"]) < 2, FieldError::invalid(&site.path().child("count"), "", "should be at least 2"), errors);
        push_if(site.value.text("lastObservedTime").is_empty(), FieldError::required(&site.path().child("lastObservedTime"), ""), errors);
    }),
    // An Event is in the namespace of what it is about, or in one of the system's.
    ("samenamespace", |site, _, errors| {
        let (about, own) = (text(site.value), site.root.namespace());
        let is_fine = match (site.root.text("eventTime"), about) {
            ("", "") => matches!(own, "" | "default"),
            ("", about) => about == own,
            (_, about) => !about.is_empty() || matches!(own, "default" | "kube-system"),
        };
        push_if(!is_fine, FieldError::invalid(site.path(), about, "does not match event.namespace"), errors);
    }),
    ("signer", |site, _, errors| super::trust::signer_name(text(site.value), site.path(), errors)),
];

/// `allValidUsages`, in order.
const USAGES: [&str; 23] = [
    "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only", "digital signature", "email protection", "encipher only", "ipsec end system",
    "ipsec tunnel", "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping",
];

/// `validateMetricSpec`: the source that the type names, and no other.
fn metric(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    const SOURCES: [&str; 5] = ["containerResource", "external", "object", "pods", "resource"];
    let (kind, path) = (site.value.text("type"), site.path());
    push_if(kind.is_empty(), FieldError::required(&path.child("type"), "must specify a metric source type"), errors);
    let present: Vec<&str> = SOURCES.into_iter().filter(|it| site.value.get(it).is_some_and(|it| !it.is_null())).collect();
    let expected = TYPES.iter().position(|it| *it == kind).map(|at| SOURCES[at]);
    match expected {
        None => errors.push(FieldError::not_supported(&path.child("type"), kind, &TYPES)),
        Some(name) => push_if(!present.contains(&name), FieldError::required(&path.child(name), "must populate information for the given metric source"), errors),
    }
    for name in present.iter().filter(|it| present.len() != 1 && Some(**it) != expected) {
        errors.push(FieldError::forbidden(&path.child(name), "must populate the given metric source only"));
    }
}

/// `validateIngressBackend`.
fn backend(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let path = site.path();
    let of = |field: &str| site.value.get(field).filter(|it| !it.is_null());
    match (of("service"), of("resource")) {
        _ if site.value.is_null() => (),
        (Some(_), Some(_)) => errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends")),
        (None, None) => errors.push(FieldError::invalid(path, "", "resource or service backend is required")),
        (None, Some(resource)) => reference(resource, &path.child("resource"), errors),
        (Some(service), None) => {
            let (name, own) = (service.text("name"), path.child("service"));
            if name.is_empty() { errors.push(FieldError::required(&own.child("name"), "")) } else { check::all(names::dns1123_label(name), name, &own.child("name"), errors) }
            let (port_name, number) = (service.text_at(&["port", "name"]), service.int_at(&["port", "number"]).unwrap_or(0));
            match (port_name, number) {
                ("", 0) => errors.push(FieldError::required(path, "port name or number is required")),
                ("", number) => check::all_of(names::port_number(number), number.into(), &own.child("port").child("number"), errors),
                (name, 0) => check::all(names::port_name(name), name, &own.child("port").child("name"), errors),
                _ => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
            }
        }
    }
}

/// `validateIngressTypedLocalObjectReference`.
fn reference(value: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(group) = value.get("apiGroup").and_then(Value::as_str) {
        check::all(names::dns1123_subdomain(group), group, &path.child("apiGroup"), errors);
    }
    for field in ["kind", "name"] {
        let (name, path) = (value.text(field), path.child(field));
        if name.is_empty() { errors.push(FieldError::required(&path, "")) } else { check::all(names::path_segment(name), name, &path, errors) }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(it) => u128::from(u32::from(it)) << 96,
        IpAddr::V6(it) => u128::from(it),
    }
}

/// Whether a network has an address.
fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    let mask = if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length)) };
    network.is_ipv4() == address.is_ipv4() && bits(network) & mask == bits(address) & mask
}

/// Exceptions of an `ipBlock` lie in its network.
fn except(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let Some(block) = names::cidr(site.object.text("cidr")) else { return };
    for (at, one) in texts(Some(site.value), &[]).into_iter().enumerate() {
        let path = site.path().index(at);
        match names::cidr(one) {
            None => errors.push(FieldError::invalid(&path, one, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")),
            Some(inner) => push_if(!contains(block, inner.0) || block.1 >= inner.1, FieldError::invalid(&path, one, "must be a strict subset of `cidr`"), errors),
        }
    }
}

/// `validateServiceCIDRSpec`, and what of it may change.
fn cidrs(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (path, list) = (site.path().child("cidrs"), texts(Some(site.value), &["cidrs"]));
    if let Some(old) = site.old.map(|it| texts(Some(it), &["cidrs"])) {
        let may_grow = old.len() == 1 && list.len() == 2;
        if old.len() != list.len() && !may_grow {
            return errors.push(FieldError::invalid(&path, site.value["cidrs"].clone(), metadata::IMMUTABLE));
        }
        for (at, _) in old.iter().enumerate().filter(|(at, old)| list[*at] != **old) {
            errors.push(FieldError::invalid(&path.index(at), list[at], metadata::IMMUTABLE));
        }
        if !may_grow {
            return;
        }
    }
    match list.len() {
        0 => return errors.push(FieldError::required(&path, "at least one CIDR required")),
        3.. => return errors.push(FieldError::invalid(&path, site.value.clone(), "may only hold up to 2 values")),
        _ => (),
    }
    let parsed: Vec<Option<(IpAddr, u8)>> = list.iter().map(|it| names::cidr(it)).collect();
    for (at, cidr) in list.iter().enumerate() {
        let wrong = |detail: String| FieldError::invalid(&path.index(at), *cidr, detail);
        match parsed[at] {
            None => errors.push(wrong("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned())),
            Some((address, length)) => {
                let mask = if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length)) };
                push_if(bits(address) & !mask != 0, wrong("must not have bits set beyond the prefix length".to_owned()), errors);
            }
        }
    }
    if let [Some(one), Some(other)] = parsed.as_slice()
        && one.0.is_ipv4() == other.0.is_ipv4()
    {
        errors.push(FieldError::invalid(&path, site.value["cidrs"].clone(), "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"));
    }
}

/// Names that begin with `system-` and values above a billion are the system's.
fn priority(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const KNOWN: [(&str, i64); 2] = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    const MOST: i64 = 1_000_000_000;
    let (name, value) = (site.value.name(), int(&site.value["value"]));
    if !name.starts_with("system-") {
        let detail = format!("maximum allowed value of a user defined priority is {MOST}");
        return push_if(value > MOST, FieldError::forbidden(&Path::new("value"), detail), errors);
    }
    let why = match KNOWN.iter().find(|it| it.0 == name) {
        None => format!("{name} is not a known system priority class"),
        Some((_, known)) if *known != value => format!("value of {name} PriorityClass must be {known}"),
        Some(_) if site.value.get("globalDefault") == Some(&Value::Bool(true)) => format!("globalDefault of {name} PriorityClass must be false"),
        Some(_) => return,
    };
    let detail = format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}");
    errors.push(FieldError::forbidden(&Path::new("metadata").child("name"), detail));
}

/// Addresses of endpoints are of the slice's type.
fn slice_addresses(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let kind = site.value.text("addressType");
    for (at, endpoint) in site.value.items_at(&["endpoints"]).iter().enumerate() {
        let list = Path::new("endpoints").index(at).child("addresses");
        for (at, address) in texts(Some(endpoint), &["addresses"]).into_iter().enumerate() {
            let path = list.index(at);
            match (kind, ip_problem(address)) {
                ("IPv4" | "IPv6", Some(why)) => errors.push(FieldError::invalid(&path, address, why)),
                ("IPv4" | "IPv6", None) => {
                    let is_of = address.parse::<IpAddr>().is_ok_and(|it| it.is_ipv4() == (kind == "IPv4"));
                    let article = format!("must be an {kind} address");
                    push_if(!is_of, FieldError::invalid(&list, address, article), errors);
                    endpoint_ip(address, &path, errors);
                }
                ("FQDN", _) => fqdn(address, &path, errors),
                _ => (),
            }
        }
    }
}

/// `IsFullyQualifiedDomainName`.
fn fqdn(name: &str, path: &Path, errors: &mut FieldErrors) {
    if name.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let problems = names::dns1123_subdomain(name);
    if !problems.is_empty() {
        return check::all(problems, name, path, errors);
    }
    push_if(!name.contains('.'), FieldError::invalid(path, name, "should be a domain with at least two segments separated by dots"), errors);
    for label in name.split('.') {
        check::all(names::dns1123_label(label), label, path, errors);
    }
}

fn flow_verbs(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    let verbs = texts(Some(site.value), &[]);
    if verbs.is_empty() {
        errors.push(FieldError::required(site.path(), "verbs must contain at least one value"));
    } else if verbs.contains(&"*") {
        push_if(verbs.len() > 1, FieldError::invalid(site.path(), site.value.clone(), "if '*' is present, must not specify other verbs"), errors);
    } else {
        push_if(verbs.iter().any(|it| !VERBS.contains(it)), FieldError::not_supported(site.path(), site.value.clone(), &VERBS), errors);
    }
}

fn non_resource(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let urls = texts(Some(site.value), &[]);
    if urls.contains(&"*") {
        let detail = "if '*' is present, must not specify other non-resource URLs";
        return push_if(urls.len() > 1, FieldError::invalid(site.path(), site.value.clone(), detail), errors);
    }
    for (at, url) in urls.iter().enumerate().filter(|it| *it.1 != "/") {
        let stars = url.matches('*').count();
        let detail = match *url {
            "" => "must not be empty",
            it if !it.starts_with('/') => "must start with slash",
            it if it.contains(' ') => "must not contain white-space",
            it if it.contains("//") => "must not contain double slash",
            it if stars > 1 || (stars == 1 && !it.ends_with("/*")) => "wildcard can only do suffix matching",
            _ => continue,
        };
        errors.push(FieldError::invalid(&site.path().index(at), *url, detail));
    }
}

/// A hand is dealt from the deck of queues by a hash of 60 bits.
fn hand_size(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const HASH_BITS: i64 = 60;
    let (queues, hand, path) = (int(&site.value["queues"]), int(&site.value["handSize"]), site.path().child("handSize"));
    if hand <= 0 {
        return;
    }
    let entropy = (0..hand).map(|it| ((queues - it) as f64).log2()).sum::<f64>().ceil() as i64;
    if hand > queues {
        errors.push(FieldError::invalid(&path, hand, format!("should not be greater than queues ({queues})")));
    } else if entropy > HASH_BITS {
        let detail = format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}");
        errors.push(FieldError::invalid(&path, hand, detail));
    }
}
