//! The table: every built-in kind, a row of `table.txt` each.
//!
//! The format: `# group/version` and how clients prefer the group and the version (`priority`); below it a row: the resource's plural, the kind, and words. `namespaced` or `cluster`; `short=`, `category=`, `singular=`; `status`, `scale=PATH` (of the selector)
//! and `sub=NAME,ACTION,BODY,VERB…` are subresources; `fields=` has what a field selector may name: `name`, or `name=path=path`, and `|` before what stands where nothing is;
//! `status=kept` when a create may bring it. `counted`, `upserts`, `conditional`, `orphans` and `names=path` or `names=label` are facts of [`Strategy`].
//! `returned`: a deletion answers with the object; `create-only`: a question; `read-only`: found out when asked for; `stored=` another kind's key; `also=` another version; `like=` with the columns of
//! the row in that version. Indented lines are columns, `+` those of `-o wide`: `Name: path`, `Name: path|path or word`, `age path`, `count path`, `selector path`, `{expression}` (over `self`),
//! `some {list}` (its first few), `call function`; before it the type when it is not a string.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use super::{
    ALL_VERBS, Action, Body, CREATE_ONLY, Cell, Column, Convert, FieldPath, Kind, READ_ONLY, Registry, Scope, Selectable, Strategy, Subresource, Verb, Version,
    columns, crd, event,
    expr::{Expr, braced, lines},
    namespace, networking, node, pod, policy, secret, service, storage, workloads,
};
use crate::{
    meta::{names, object::split_api_version},
    schema,
};

static LINES: LazyLock<Vec<&'static str>> = LazyLock::new(|| lines(include_str!("table.txt")));

const NO_COLLECTION: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
/// Kinds that do more than [`Strategy::PLAIN`].
#[rustfmt::skip]
const STRATEGIES: &[(&str, Strategy)] = &[
    ("Secret", secret::SECRET), ("ServiceAccount", secret::SERVICE_ACCOUNT), ("Pod", pod::POD), ("Service", service::SERVICE), ("LimitRange", policy::LIMIT_RANGE),
    ("PersistentVolume", storage::VOLUME), ("PersistentVolumeClaim", storage::CLAIM), ("Namespace", namespace::NAMESPACE), ("Node", node::NODE),
    ("DaemonSet", workloads::DAEMON_SET), ("CronJob", workloads::CRON_JOB), ("Job", workloads::JOB), ("IPAddress", networking::IP_ADDRESS),
    ("CSIDriver", storage::CSI_DRIVER), ("ResourceSlice", policy::RESOURCE_SLICE), ("CertificateSigningRequest", policy::SIGNING_REQUEST),
    ("CustomResourceDefinition", crd::CRD),
];

/// The kinds of Kubernetes v1.36 that this server serves.
pub fn registry() -> Registry {
    let (mut rows, mut group, mut version) = (Vec::new(), "", "");
    for line in LINES.iter() {
        if let Some((name, _)) = header(line) {
            (group, version) = name;
        } else if let Some(line) = line.strip_prefix(' ') {
            rows.last_mut().into_iter().for_each(|it: &mut Kind| it.versions[0].columns.push(column(line)));
        } else {
            let row = row(line, group, version, &rows);
            rows.push(row);
        }
    }
    rows.into_iter().map(in_all_versions).fold(Registry::default(), |registry, row| registry.with(row))
}

/// The group and version that a line begins, and their priorities.
fn header(line: &'static str) -> Option<((&'static str, &'static str), &'static str)> {
    let (name, priorities) = line.strip_prefix("# ")?.split_once(' ')?;
    Some((split_api_version(name), priorities))
}

/// How much clients prefer a built-in group, and its best version (`pkg/controlplane/apiserver/aggregator.go`).
pub static PRIORITIES: LazyLock<HashMap<&str, (i64, &str, i64)>> = LazyLock::new(|| {
    let number = |text: &str| text.parse().expect("table.txt: a priority");
    let read = |((group, version), numbers): ((&'static str, &'static str), &str)| {
        let (of_group, of_version) = numbers.split_once(' ').expect("table.txt: two priorities");
        (group, (number(of_group), version, number(of_version)))
    };
    LINES.iter().filter_map(|it| header(it)).map(read).collect()
});

fn row(line: &'static str, group: &'static str, version: &'static str, before: &[Kind]) -> Kind {
    let (line, deprecation) = line.split_once(" deprecated: ").map_or((line, None), |it| (it.0, Some(it.1.into())));
    let mut words = line.split(' ');
    let (plural, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let version = Version { deprecation, ..plain_version(group, version, name) };
    let mut kind = Kind {
        group: group.into(),
        kind: name.into(),
        list_kind: format!("{name}List").into(),
        plural: plural.into(),
        singular: name.to_ascii_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope: Scope::Namespaced,
        verbs: ALL_VERBS,
        versions: vec![version],
        stored: 0,
        subresources: Vec::new(),
        strategy: strategy(name),
        returns_deleted: false,
        storage: None,
        custom: None,
    };
    words.for_each(|word| say(&mut kind, name, word, before));
    kind
}

/// What a word of a row says of its kind.
fn say(kind: &mut Kind, name: &'static str, word: &'static str, before: &[Kind]) {
    let (word, value) = word.split_once('=').unwrap_or((word, ""));
    match word {
        "namespaced" => (),
        "cluster" => kind.scope = Scope::Cluster,
        "returned" => kind.returns_deleted = true,
        "create-only" => kind.verbs = CREATE_ONLY,
        "read-only" => kind.verbs = READ_ONLY,
        "no" => kind.verbs = NO_COLLECTION,
        "short" => kind.short_names.push(value.into()),
        "category" => kind.categories.push(value.into()),
        "singular" => kind.singular = value.into(),
        "counted" => kind.strategy.has_generation = true,
        "upserts" => kind.strategy.creates_on_update = true,
        "conditional" => kind.strategy.updates_unconditionally = false,
        "orphans" => kind.strategy.orphans_by_default = true,
        "names" => kind.strategy.name = if value == "path" { names::path_segment } else { names::dns1123_label },
        "status" => {
            kind.strategy.resets_status = value != "kept";
            kind.subresources.push(subresource("status", Action::Status, name, PART));
        }
        "scale" => {
            let path = |path: &str| path.split('.').map(|it| it.to_owned().into()).collect();
            let action = Action::Scale { spec: path("spec.replicas"), status: path("status.replicas"), selector: path(value) };
            kind.subresources.push(subresource("scale", action, "autoscaling/v1/Scale", PART));
        }
        "sub" => {
            let parts: Vec<&'static str> = value.splitn(4, ',').collect();
            kind.subresources.push(subresource(parts[0], action(parts[1]), parts[2], parts[3]));
        }
        "fields" => kind.versions[0].selectable = value.split(',').map(selectable).collect(),
        "stored" => {
            kind.storage = Some(value);
            kind.versions[0].convert = conversion(name);
        }
        "also" => kind.versions.push(Version { convert: conversion(name), ..plain_version("autoscaling", value, name) }),
        "like" => {
            let other = before.iter().find(|it| it.plural == kind.plural && it.versions[0].name == value);
            kind.versions[0].columns = other.map(|it| it.versions[0].columns.clone()).unwrap_or_default();
        }
        other => unreachable!("table.txt: {other}"),
    }
}

const PART: &str = "get,patch,update";

fn strategy(name: &str) -> Strategy {
    STRATEGIES.iter().find(|it| it.0 == name).map_or(Strategy::PLAIN, |it| it.1)
}

fn conversion(kind: &str) -> Convert {
    match kind {
        "Event" => Convert::Fn { from_stored: event::FROM_CORE, to_stored: event::TO_CORE },
        _ => Convert::Fn { from_stored: policy::AUTOSCALER_TO_V1, to_stored: policy::AUTOSCALER_FROM_V1 },
    }
}

fn plain_version(group: &'static str, version: &'static str, kind: &str) -> Version {
    Version {
        name: version.into(),
        schema: schema::builtin(&type_name(group, version, kind)).unwrap_or_default(),
        is_served: true,
        columns: Vec::new(),
        selectable: Vec::new(),
        convert: Convert::Same,
        deprecation: None,
        generation: 0,
    }
}

/// The other versions have the columns of the first.
fn in_all_versions(mut kind: Kind) -> Kind {
    let (columns, selectable) = (kind.versions[0].columns.clone(), kind.versions[0].selectable.clone());
    for other in kind.versions.iter_mut().skip(1) {
        (other.columns, other.selectable) = (columns.clone(), selectable.clone());
    }
    kind
}

/// The OpenAPI name of a built-in type.
fn type_name(group: &str, version: &str, kind: &str) -> String {
    match group.split('.').next().unwrap_or_default() {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions" => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}"),
        "apiregistration" => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}"),
        package => format!("io.k8s.api.{package}.{version}.{kind}"),
    }
}

/// `body` is a kind, before which a group and a version may stand.
fn subresource(name: &'static str, action: Action, body: &'static str, verbs: &'static str) -> Subresource {
    let mut parts = body.rsplit('/');
    let (kind, version, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Subresource { name, action, body: Body { group, version, kind }, verbs: verbs.split(',').collect() }
}

fn action(word: &str) -> Action {
    match word {
        "Binding" => Action::Binding,
        "Eviction" => Action::Eviction,
        "Token" => Action::Token,
        "Log" => Action::Log,
        "Exec" => Action::Exec,
        "Attach" => Action::Attach,
        "PortForward" => Action::PortForward,
        "Proxy" => Action::Proxy,
        _ => Action::Part,
    }
}

fn selectable(word: &'static str) -> Selectable {
    let (word, or) = word.split_once('|').unwrap_or((word, ""));
    let (name, paths) = word.split_once('=').unwrap_or((word, word));
    Selectable { name: name.into(), paths: paths.split('=').map(FieldPath::new).collect(), or: or.into() }
}

fn column(line: &'static str) -> Column {
    let (line, priority) = line.strip_prefix('+').map_or((line, 0), |it| (it, 1));
    let (name, cell) = line.split_once(": ").unwrap_or((line, if line == "Age" { "age metadata.creationTimestamp" } else { "" }));
    let (data_type, cell) = match cell.split_once(' ') {
        Some(("int", cell)) => ("integer", cell),
        Some((data_type @ ("boolean" | "date"), cell)) => (data_type, cell),
        _ if cell.starts_with("count ") => ("integer", cell),
        _ => ("string", cell),
    };
    let at = cell.rfind('}').unwrap_or(0);
    let (cell, or) = cell[at..].split_once(" or ").map_or((cell, ""), |it| (&cell[..at + it.0.len()], it.1));
    let is_name = cell.is_empty() && priority == 0;
    let (format, description) = if is_name { ("name", NAME_DESCRIPTION) } else { ("", "") };
    Column { name: name.into(), data_type: data_type.into(), format: format.into(), description: description.into(), priority, cell: self::cell(cell), or: or.into() }
}

const NAME_DESCRIPTION: &str = "The name, unique within its namespace and resource.";

fn cell(text: &'static str) -> Cell {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let paths = |text: &str| text.split('|').map(FieldPath::new).collect();
    let expr = |text: &'static str| Arc::new(Expr::new(braced(text).unwrap_or_default(), &["self"]));
    match word {
        "" => Cell::Name,
        "age" => Cell::Age(paths(rest)),
        "count" => Cell::Count(FieldPath::new(rest)),
        "selector" => Cell::Selector(FieldPath::new(rest)),
        "some" => Cell::Some(expr(rest)),
        "call" => columns::CALLS.iter().find(|it| it.0 == rest).map_or(Cell::Name, |it| Cell::Fn(it.1)),
        _ if text.starts_with('{') => Cell::Expr(expr(text)),
        _ => Cell::Path(paths(text)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn rows_are_whole_and_their_names_do_not_clash() {
        let registry = registry();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for kind in registry.iter() {
            assert_eq!(kind.plural, kind.plural.to_lowercase());
            for version in &kind.versions {
                assert!(!version.schema.name.is_empty(), "{} has no schema", kind.kind);
                assert!(version.schema.field("metadata").is_some(), "{} has no metadata", kind.kind);
            }
            for name in kind.short_names.iter().chain([&kind.singular]) {
                let owner = format!("{}.{}", kind.plural, kind.group);
                if let Some(other) = taken.insert(format!("{}/{name}", kind.group), owner.clone()) {
                    assert_eq!(owner, other, "both are {name}");
                }
            }
        }
        assert!(registry.resource("apps", "v1", "deployments").is_some());
    }
}
