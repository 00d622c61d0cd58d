//! Discovery: which groups, versions and resources are served; legacy documents and the aggregated one (KEP-3352).

use std::{cmp::Reverse, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderMap;
use ring::digest;
use serde_json::json;

use super::{
    Response,
    aggregation::{Delegates, registration::group_priority},
    body,
};
use crate::{
    kinds::{Kind, Registry, Verb},
    meta::{Meta, Value, object::api_version},
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers `/api`, `/apis` and what lies below them; `None` for other paths.
pub fn serve(registry: &Registry, delegates: &Delegates, path: &str, headers: &HeaderMap, server_address: &str) -> Option<Response> {
    let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    let is_aggregated = headers.get(http::header::ACCEPT).and_then(|it| it.to_str().ok()).is_some_and(|it| it.split(',').any(is_aggregated_clause));
    let value = match parts.as_slice() {
        ["api"] if is_aggregated => return Some(aggregated(registry, delegates, headers, |group| group.is_empty())),
        ["apis"] if is_aggregated => return Some(aggregated(registry, delegates, headers, |group| !group.is_empty())),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]}),
        ["apis"] => {
            let groups: Vec<Value> = groups(registry, delegates).iter().filter(|(name, _)| !name.is_empty()).map(|(name, versions)| group(name, versions)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", version] => resources(registry, "", version)?,
        ["apis", name] => {
            let found = groups(registry, delegates).into_iter().find(|(it, _)| it == name)?;
            let mut group = group(&found.0, &found.1);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }
        ["apis", group, version] => resources(registry, group, version)?,
        _ => return None,
    };
    Some(body::json(200, &value))
}

fn is_aggregated_clause(clause: &str) -> bool {
    let has = |word: &str| clause.split(';').any(|it| it.trim() == word);
    has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
}

/// Groups with their served versions, in the order in which clients prefer them.
fn groups(registry: &Registry, delegates: &Delegates) -> Vec<(String, Vec<String>)> {
    let mut groups: BTreeMap<String, (i64, Vec<String>)> = BTreeMap::new();
    let mut add = |group: &str, version: &str, priority: i64| {
        let (highest, versions) = groups.entry(group.to_owned()).or_insert((priority, Vec::new()));
        *highest = priority.max(*highest);
        if !versions.iter().any(|it| it == version) {
            versions.push(version.to_owned());
        }
    };
    for kind in registry.iter() {
        kind.versions.iter().filter(|it| it.is_served).for_each(|it| add(&kind.group, &it.name, group_priority(&kind.group)));
    }
    let told = delegates.values().filter(|it| it.is_available || !it.told().resources.is_null());
    told.for_each(|it| add(&it.group, &it.version, it.group_priority));
    let mut list: Vec<_> = groups.into_iter().collect();
    list.sort_by_key(|(_, (priority, _))| Reverse(*priority));
    list.iter_mut().for_each(|(_, (_, versions))| versions.sort_by_key(|it| Reverse(version_rank(it))));
    list.into_iter().map(|(name, (_, versions))| (name, versions)).collect()
}

/// `v2` before `v1` before `v1beta2` before `v1alpha1` before anything else (`version.CompareKubeAwareVersionStrings`).
fn version_rank(version: &str) -> (u8, u32, u32) {
    let rest = version.strip_prefix('v').unwrap_or_default();
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let major = digits(rest);
    let tail = &rest[major.len()..];
    let (stage, minor) = match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
        _ if tail.is_empty() && !major.is_empty() => (3, ""),
        (Some(minor), _) => (2, minor),
        (_, Some(minor)) => (1, minor),
        _ => (0, ""),
    };
    (stage, major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions.iter().map(|it| json!({"groupVersion": api_version(name, it), "version": it})).collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

/// `APIResourceList`.
fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in registry.iter().filter(|it| it.group == group && it.version(version).is_some_and(|it| it.is_served)) {
        let verbs: Vec<&str> = kind.verbs.iter().copied().map(Verb::as_str).collect();
        let mut resource = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.is_namespaced(), "kind": kind.kind, "verbs": verbs});
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        if kind.accepts(Verb::Watch) {
            resource["storageVersionHash"] = storage_version_hash(kind).into();
        }
        list.push(resource);
        for part in &kind.subresources {
            let body_kind = if part.body.kind.is_empty() { kind.kind.as_ref() } else { part.body.kind };
            let mut resource = json!({"name": format!("{}/{}", kind.plural, part.name), "singularName": "", "namespaced": kind.is_namespaced(), "kind": body_kind, "verbs": part.verbs});
            if !part.body.version.is_empty() {
                resource["group"] = part.body.group.into();
                resource["version"] = part.body.version.into();
            }
            list.push(resource);
        }
    }
    (!list.is_empty()).then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list}))
}

/// Tells clients whether resources share one storage (`StorageVersionHash`).
fn storage_version_hash(kind: &Kind) -> String {
    let group = kind.storage.map_or(kind.group.as_ref(), |it| it.rsplit_once('/').map_or("", |it| it.0));
    let digest = digest::digest(&digest::SHA256, format!("{group}/{}/{}", kind.stored_version().name, kind.kind).as_bytes());
    STANDARD.encode(&digest.as_ref()[..8])
}

/// `APIGroupDiscoveryList`, with an ETag, so that clients ask for it once.
fn aggregated(registry: &Registry, delegates: &Delegates, headers: &HeaderMap, is_wanted: impl Fn(&str) -> bool) -> Response {
    let items: Vec<Value> = groups(registry, delegates).iter().filter(|(name, _)| is_wanted(name)).map(|(name, versions)| {
        let versions: Vec<Value> = versions.iter().map(|version| {
            match delegates.get(&(name.clone(), version.clone())) {
                Some(it) => aggregated_version(name, version, &it.told().resources, if it.is_available { "Current" } else { "Stale" }),
                None => aggregated_version(name, version, &resources(registry, name, version).unwrap_or_default(), "Current"),
            }
        }).collect();
        let metadata = if name.is_empty() { json!({"creationTimestamp": null}) } else { json!({"name": name, "creationTimestamp": null}) };
        json!({"metadata": metadata, "versions": versions})
    }).collect();
    let text = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}).to_string();
    body::tagged(text.into(), AGGREGATED, headers)
}

/// SHA-512 in upper-case hex, as upstream's.
pub fn hash(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA512, bytes).as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// An `APIResourceList` as aggregated discovery tells it: each resource with its subresources (`ConvertGroupVersionIntoToDiscovery`).
fn aggregated_version(group: &str, version: &str, list: &Value, freshness: &str) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    for it in list.items_at(&["resources"]) {
        let or = |field: &str, own: &str| if it.text(field).is_empty() { own.to_owned() } else { it.text(field).to_owned() };
        let kind = json!({"group": or("group", group), "version": or("version", version), "kind": it["kind"]});
        if let Some((whole, part)) = it.text("name").split_once('/') {
            let whole = resources.iter_mut().rev().find(|it| it.text("resource") == whole).and_then(Value::as_object_mut);
            let parts = whole.and_then(|it| it.entry("subresources").or_insert_with(|| json!([])).as_array_mut());
            parts.into_iter().for_each(|parts| parts.push(json!({"subresource": part, "responseKind": kind, "verbs": it["verbs"]})));
            continue;
        }
        let scope = if it["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut resource = json!({"resource": it["name"], "responseKind": kind, "scope": scope, "singularResource": it["singularName"], "verbs": it["verbs"]});
        for field in ["shortNames", "categories"] {
            it.get(field).into_iter().for_each(|it| resource[field] = it.clone());
        }
        resources.push(resource);
    }
    json!({"version": version, "resources": resources, "freshness": freshness})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_in_order_of_maturity() {
        let mut versions = ["v1alpha1", "v1", "foo", "v2beta1", "v2", "v1beta2"];
        versions.sort_by_key(|it| Reverse(version_rank(it)));
        assert_eq!(versions, ["v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }
}
