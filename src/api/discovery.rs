//! Discovery: which groups, versions and resources are served; legacy documents and the aggregated one (KEP-3352).

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderMap;
use ring::digest;
use serde_json::json;

use super::{
    Response,
    aggregation::{Delegates, availability::discovered, registration::group_priority},
    body,
};
use crate::{
    kinds::{Kind, Registry, Verb, Version},
    meta::{Value, object::api_version},
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
    let mut list: Vec<(i64, String, Vec<String>)> = groups.into_iter().map(|(name, (priority, versions))| (priority, name, versions)).collect();
    list.sort_by(|left, right| (right.0, &left.1).cmp(&(left.0, &right.1)));
    let by_maturity = |mut versions: Vec<String>| {
        versions.sort_by(|left, right| version_rank(right).cmp(&version_rank(left)));
        versions
    };
    list.into_iter().map(|(_, name, versions)| (name, by_maturity(versions))).collect()
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

fn served<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = (&'a Kind, &'a Version)> {
    let kinds = registry.iter().filter(move |it| it.group == group);
    kinds.filter_map(move |kind| Some((kind.as_ref(), kind.version(version).filter(|it| it.is_served)?)))
}

/// `APIResourceList`.
fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for (kind, _) in served(registry, group, version) {
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
            if let Some(delegate) = delegates.get(&(name.clone(), version.clone())) {
                return discovered(delegate);
            }
            let resources: Vec<Value> = served(registry, name, version).map(|(kind, _)| discovery(kind, name, version)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
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

fn discovery(kind: &Kind, group: &str, version: &str) -> Value {
    let scope = if kind.is_namespaced() { "Namespaced" } else { "Cluster" };
    let verbs: Vec<&str> = kind.verbs.iter().copied().map(Verb::as_str).collect();
    let mut resource = json!({"resource": kind.plural, "responseKind": {"group": group, "version": version, "kind": kind.kind}, "scope": scope, "singularResource": kind.singular, "verbs": verbs});
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let parts: Vec<Value> = kind.subresources.iter().map(|part| {
        let own = part.body.version.is_empty();
        let (group, version) = if own { (group, version) } else { (part.body.group, part.body.version) };
        let body_kind = if part.body.kind.is_empty() { kind.kind.as_ref() } else { part.body.kind };
        json!({"subresource": part.name, "responseKind": {"group": group, "version": version, "kind": body_kind}, "verbs": part.verbs})
    }).collect();
    if !parts.is_empty() {
        resource["subresources"] = parts.into();
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_in_order_of_maturity() {
        let mut versions = ["v1alpha1", "v1", "foo", "v2beta1", "v2", "v1beta2"];
        versions.sort_by_key(|it| std::cmp::Reverse(version_rank(it)));
        assert_eq!(versions, ["v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }
}
