//! Families and addresses of Services, on a cluster with one family and with two.

use crate::cluster::{Cluster, has_kubectl};

const ONE_FAMILY: &[(&str, &str)] = &[
    ("{}", "SingleStack|IPv4|10."),
    ("{ipFamilyPolicy: PreferDualStack}", "PreferDualStack|IPv4|10."),
    ("{ipFamilyPolicy: RequireDualStack}", "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"),
    ("{ipFamilies: [IPv6]}", "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
    ("{clusterIP: 'fd00:96::9'}", "spec.clusterIPs[0]: Invalid value: [\"fd00:96::9\"]: IPv6 is not configured on this cluster"),
    ("{clusterIP: None}", "SingleStack|IPv4|None"),
    ("{clusterIP: None, selector: null}", "RequireDualStack|IPv4 IPv6|None"),
    ("{clusterIP: None, selector: null, ipFamilyPolicy: SingleStack}", "SingleStack|IPv4|None"),
    ("{ipFamilies: [IPv4, IPv6]}", "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"),
    ("{clusterIPs: [10.96.0.99]}", "must be empty when `clusterIP` is not specified"),
];

const TWO_FAMILIES: &[(&str, &str)] = &[
    ("{}", "SingleStack|IPv4|10."),
    ("{ipFamilyPolicy: PreferDualStack}", "PreferDualStack|IPv4 IPv6|10."),
    ("{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]}", "RequireDualStack|IPv6 IPv4|fd00:96::"),
    ("{ipFamilies: [IPv6]}", "SingleStack|IPv6|fd00:96::"),
    ("{clusterIP: 'fd00:96::9'}", "SingleStack|IPv6|fd00:96::9"),
    ("{clusterIP: 'fd00:97::9'}", "failed to allocate IP fd00:97::9: the provided network does not match the current range"),
];

const CIDR: &str = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: ['fd00:96::/112']}\n";
const SHOWN: &str = "-o=jsonpath={.spec.ipFamilyPolicy}|{.spec.ipFamilies[*]}|{.spec.clusterIPs[*]}";

/// Creates a Service with these fields in its spec; what it has then, or the error.
fn made(cluster: &Cluster, spec: &str) -> String {
    let mut service: serde_json::Value = serde_saphyr::from_str("{apiVersion: v1, kind: Service, metadata: {generateName: s-}, spec: {selector: {a: b}, ports: [{port: 80}]}}").expect("YAML");
    let fields: serde_json::Map<String, serde_json::Value> = serde_saphyr::from_str(spec).expect("YAML");
    service["spec"].as_object_mut().expect("a spec").extend(fields);
    cluster.kubectl_with(&format!("create -f - {SHOWN}"), &service.to_string()).1
}

fn check(cluster: &Cluster, cases: &[(&str, &str)]) {
    for (spec, expected) in cases {
        let found = made(cluster, spec);
        assert!(found.contains(expected), "{spec}\n  wanted: {expected}\n  got:    {found}");
    }
}

#[test]
fn services_have_addresses_of_the_families_that_they_ask_for() {
    if !has_kubectl() {
        return;
    }
    let cluster = Cluster::start(&["--node", "none", "--store", "memory"]);
    check(&cluster, ONE_FAMILY);
    let (made, output) = cluster.kubectl_with("create -f -", CIDR);
    assert!(made, "{output}");
    check(&cluster, TWO_FAMILIES);
    cluster.kubectl("create service clusterip s --tcp=80");
    // (patch of the spec, what the Service has then)
    let steps = [
        ("{\"ipFamilyPolicy\":\"PreferDualStack\"}", "PreferDualStack|IPv4 IPv6|10."),
        ("{\"ipFamilies\":[\"IPv4\"]}", "must be 'SingleStack' to release the secondary IP family"),
        ("{\"ipFamilyPolicy\":\"SingleStack\"}", "SingleStack|IPv4|10."),
        ("{\"type\":\"ExternalName\",\"externalName\":\"x.example.com\",\"clusterIP\":\"\",\"clusterIPs\":null}", ""),
    ];
    for (patch, expected) in steps {
        let found = cluster.kubectl(&format!("patch service s -p {{\"spec\":{patch}}} {SHOWN}")).1;
        assert!(found.contains(expected), "{patch}\n  wanted: {expected}\n  got:    {found}");
        let held = cluster.kubectl("get ipaddresses -o=jsonpath={.items[?(@.spec.parentRef.name==\"s\")].metadata.name}").1;
        let count = if found.contains("IPv4 IPv6") || found.contains("must be") { 2 } else { usize::from(found.contains("IPv4")) };
        assert_eq!(held.split_whitespace().count(), count, "{patch}: {held}");
    }
}
