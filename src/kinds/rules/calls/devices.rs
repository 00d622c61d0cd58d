//! Devices: claims and slices. Source: `pkg/apis/resource/validation/validation.go`.

use super::quantities::is_extended;
use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test, texts,
            words::{push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("requestrefs", request_refs),
    ("fullname", |site, _, errors| {
        let name = text(site.value);
        if site.value.is_null() {
            return;
        }
        push_if(!name.is_empty() && !name.contains('/'), FieldError::invalid(site.path(), name, "a fully qualified name must be a domain and a name separated by a slash"), errors);
        qualified(name, site.path(), errors);
    }),
    ("extended", |site, _, errors| {
        let is_wrong = !site.value.is_null() && !is_extended(text(site.value));
        push_if(is_wrong, FieldError::invalid(site.path(), text(site.value), "must be a valid extended resource name"), errors);
    }),
    ("slicenodes", |site, _, errors| {
        let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
        let set: Vec<String> = places.iter().filter(|it| site.value.get(**it).is_some_and(|it| !matches!(it, Value::Null | Value::Bool(false)) && *it != "")).map(|it| format!("`{it}`")).collect();
        let words = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
        push_if(set.is_empty(), FieldError::required(site.path(), words), errors);
        push_if(set.len() > 1, FieldError::invalid(site.path(), format!("{{{}}}", set.join(", ")), format!("{words}, but multiple fields are set")), errors);
    }),
    ("countersordevices", |site, _, errors| errors.push(FieldError::invalid(site.path(), "", "only one of `sharedCounters` or `devices` is allowed"))),
    ("devicenodes", |site, _, errors| {
        if site.value.get("perDeviceNodeSelection") == Some(&Value::Bool(true)) {
            return;
        }
        let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        for (at, device) in site.value.items_at(&["devices"]).iter().enumerate() {
            let has = ["nodeName", "nodeSelector", "allNodes"].iter().any(|it| device.get(*it).is_some_and(|it| !it.is_null()));
            push_if(has, FieldError::invalid(&site.path().child("devices").index(at), Value::Null, detail), errors);
        }
    }),
    ("poolname", |site, _, errors| {
        let name = text(site.value);
        push_if(name.len() > names::SUBDOMAIN_MAX, FieldError::too_long(site.path(), names::SUBDOMAIN_MAX), errors);
        for part in name.split('/').filter(|_| !name.is_empty()) {
            check::all(names::dns1123_subdomain(part), part, site.path(), errors);
        }
    }),
    ("attributes", attributes),
    ("qualifiedkey", |site, _, errors| qualified(text(site.value), site.path(), errors)),
];

/// `validateQualifiedName`: `[domain/]identifier`.
fn qualified(name: &str, path: &Path, errors: &mut FieldErrors) {
    if name.is_empty() {
        return errors.push(FieldError::required(path, "name required"));
    }
    let (domain, id) = name.split_once('/').map_or((None, name), |it| (Some(it.0), it.1));
    if let Some(domain) = domain {
        match domain {
            "" => errors.push(FieldError::required(path, "the domain must not be empty")),
            _ => check::all(names::dns1123_subdomain(domain), domain, path, errors),
        }
    }
    match id {
        "" => errors.push(FieldError::required(path, "the name must not be empty")),
        _ => {
            push_if(id.len() > 32, FieldError::too_long(path, 32), errors);
            check::all(names::c_identifier(id), id, path, errors);
        }
    }
}

/// Constraints and configurations speak of requests that the claim has.
fn request_refs(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let requests = site.value.items_at(&["requests"]);
    let is_known = |name: &str| {
        let (request, sub) = name.split_once('/').map_or((name, None), |it| (it.0, Some(it.1)));
        requests.iter().filter(|it| it.text("name") == request).any(|it| sub.is_none_or(|sub| it.items_at(&["firstAvailable"]).iter().any(|it| it.text("name") == sub)))
    };
    for list in ["constraints", "config"] {
        for (at, one) in site.value.items_at(&[list]).iter().enumerate() {
            let (path, named) = (site.path().child(list).index(at).child("requests"), texts(Some(one), &["requests"]));
            push_if(named.len() > 32, FieldError::too_many(&path, named.len(), 32), errors);
            for (at, name) in named.iter().enumerate() {
                let path = path.index(at);
                push_if(named[..at].contains(name), FieldError::duplicate(&path, *name), errors);
                let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
                if name.matches('/').count() < 2 {
                    name.split('/').for_each(|it| check::all(names::dns1123_label(it), it, &path, errors));
                }
                push_if(!is_known(name), FieldError::invalid(&path, *name, detail), errors);
            }
        }
    }
}

/// `validateDeviceAttribute`: one value each.
fn attributes(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const KINDS: [&str; 8] = ["bool", "int", "string", "version", "bools", "ints", "strings", "versions"];
    const LENGTH_MAX: usize = 64;
    for (name, attribute) in site.value.as_object().into_iter().flatten() {
        let path = site.path().key(name);
        qualified(name, &path, errors);
        let count = KINDS.iter().filter(|it| attribute.get(**it).is_some_and(|it| !it.is_null())).count();
        let shown = if count == 0 { "".into() } else { attribute.clone() };
        push_if(count != 1, FieldError::invalid(&path, shown, "exactly one value must be specified"), errors);
        for field in ["string", "version"] {
            let (value, path) = (attribute.text(field), path.child(field));
            let is_version = field == "version" && attribute.get(field).is_some();
            push_if(is_version && !is_semver(value), FieldError::invalid(&path, value, "must be a string compatible with semver.org spec 2.0.0"), errors);
            push_if(value.len() > LENGTH_MAX, FieldError::too_long(&path, LENGTH_MAX), errors);
        }
    }
}

fn is_semver(text: &str) -> bool {
    const PATTERN: &str = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$";
    regex::Regex::new(PATTERN).is_ok_and(|it| it.is_match(text))
}
