//! Sources of volumes, and claims. Source: `pkg/apis/core/validation/validation.go`.

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test, is_zero,
            words::{int, push_if, quantities, quantity, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Quantity, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("sizelimit", |site, _, errors| {
        let is_negative = quantity(site.value).is_some_and(Quantity::is_negative);
        push_if(is_negative, FieldError::forbidden(site.path(), "SizeLimit field must be a valid resource quantity"), errors);
    }),
    ("iqn", iqn),
    ("iscsiname", |site, _, errors| {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        let (name, portal) = (site.value.text("name"), site.value.text_at(&["iscsi", "targetPortal"]));
        push_if(name.len() + 1 + portal.len() > 64, FieldError::invalid(&site.path().child("name"), name, detail), errors);
    }),
    ("quobyte", quobyte),
    ("resource", |site, test, errors| errors.push(FieldError::invalid(site.path(), "resource", test.message))),
    ("flexoptions", |site, _, errors| {
        for (key, _) in site.value.as_object().into_iter().flatten() {
            let domain = format!(".{}", key.split_once('/').map_or(key.as_str(), |it| it.0).to_lowercase());
            let is_reserved = domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io");
            push_if(is_reserved, FieldError::invalid(&site.path().key(key), key.as_str(), "kubernetes.io and k8s.io namespaces are reserved"), errors);
        }
    }),
    ("diskuri", |site, _, errors| {
        let (kind, uri, path) = (site.value.text("kind"), site.value.text("diskURI"), site.path().child("diskURI"));
        let managed = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        let blob = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        let has_kind = site.value.get("kind").is_some();
        push_if(kind == "Managed" && !uri.starts_with("/subscriptions/"), FieldError::not_supported(&path, uri, &[managed]), errors);
        push_if(has_kind && kind != "Managed" && !uri.starts_with("https://"), FieldError::not_supported(&path, uri, &[blob]), errors);
    }),
    ("secretref", |site, _, errors| {
        for (field, check) in [("name", names::dns1123_subdomain as fn(&str) -> names::Problems), ("namespace", names::dns1123_label)] {
            let (text, path) = (site.value.text(field), site.path().child(field));
            if text.is_empty() { errors.push(FieldError::required(&path, "")) } else { check::all(check(text), text, &path, errors) }
        }
    }),
    ("downward", |site, _, errors| site.value.as_array().into_iter().flatten().for_each(|file| downward_file(file, &site.path().parent(), errors))),
    ("projected", projected),
    ("notoken", no_token),
    ("padded", |site, _, errors| {
        let profile = text(site.value);
        push_if(profile.trim() != profile, FieldError::invalid(site.path(), profile, "must not be padded with whitespace"), errors);
    }),
    ("sysadmin", |site, _, errors| {
        let is_admin = site.value.as_array().is_some_and(|it| it.iter().any(|it| it == "CAP_SYS_ADMIN"));
        let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        push_if(is_admin, FieldError::invalid(site.base, site.object.clone(), detail), errors);
    }),
    ("ports", |site, _, errors| port_names(site, names::port_name, errors)),
    ("namedports", named_ports),
    ("prefixname", |site, _, errors| {
        // A name that ends in a dash passes here: upstream takes it for a prefix.
        let name = text(site.value);
        let masked = name.strip_suffix('-').filter(|it| !it.is_empty()).map_or_else(|| name.to_owned(), |it| format!("{it}a"));
        if !name.is_empty() {
            check::all(names::dns1123_subdomain(&masked), name, site.path(), errors);
        }
    }),
    ("accessmodes", access_modes),
    ("capacity", capacity),
    ("recycle", |site, _, errors| {
        let is_root = site.value.at(&["hostPath"]).is_some() && site.value.text_at(&["hostPath", "path"]).trim_matches('/').is_empty() && site.value.text_at(&["hostPath", "path"]).starts_with('/');
        let path = site.path().child("persistentVolumeReclaimPolicy");
        push_if(is_root && site.value.text("persistentVolumeReclaimPolicy") == "Recycle", FieldError::forbidden(&path, "may not be 'recycle' for a hostPath mount of '/'"), errors);
    }),
    ("claimsize", |site, _, errors| {
        let path = site.path().parent().key("storage");
        match site.value.get("storage") {
            None => errors.push(FieldError::required(&path, "")),
            Some(value) => {
                let is_positive = quantity(value).is_some_and(|it| !it.is_negative() && !it.is_zero());
                push_if(!is_positive, FieldError::invalid(&path, value.clone(), "must be greater than zero"), errors);
            }
        }
    }),
    ("kept", |site, test, errors| {
        let is_changed = site.old.is_some_and(|it| !it.is_null() && it != site.value);
        push_if(is_changed, FieldError::invalid(site.path(), site.value.clone(), test.message), errors);
    }),
    ("keptset", |site, test, errors| {
        push_if(site.value.is_null() && site.old.is_some_and(|it| !it.is_null()), FieldError::forbidden(site.path(), test.message), errors);
    }),
    ("shrunk", |site, _, errors| {
        let millis = |value: Option<&Value>| value.and_then(quantity).map_or(0, Quantity::millis);
        let (new, old) = (millis(Some(site.value)), millis(site.old));
        let held = millis(site.old_object.and_then(|it| it.at(&["status", "capacity", "storage"])));
        push_if(new < old && new <= held, FieldError::forbidden(site.path(), "field can not be less than status.capacity"), errors);
    }),
    ("resizes", |site, _, errors| {
        for (key, state) in site.value.as_object().into_iter().flatten() {
            claim_resource(key, site.path(), errors);
            let is_known = RESIZES.contains(&text(state));
            push_if(!is_known, FieldError::not_supported(site.path(), key.as_str(), &RESIZES), errors);
        }
    }),
    ("allocated", |site, _, errors| {
        for (key, amount) in site.value.as_object().into_iter().flatten() {
            if claim_resource(key, site.path(), errors) {
                negative(amount, &site.path().key(key), errors);
            }
        }
    }),
    ("amount", |site, _, errors| negative(site.value, site.path(), errors)),
    ("datasource", data_source),
    ("datasources", data_sources),
];

/// `resizeStatusSet`.
const RESIZES: [&str; 5] = ["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"];

/// `validatePersistentVolumeClaimResourceKey`.
fn claim_resource(key: &str, path: &Path, errors: &mut FieldErrors) -> bool {
    let problems = names::qualified_name(key);
    let is_fine = problems.is_empty() && (key == "storage" || (key.contains('/') && !key.contains("kubernetes.io/")));
    push_if(!is_fine && problems.is_empty(), FieldError::not_supported(path, key, &["storage"]), errors);
    check::all(problems, key, path, errors);
    is_fine
}

/// `validateBasicResource`.
fn negative(amount: &Value, path: &Path, errors: &mut FieldErrors) {
    let is_negative = quantity(amount).is_some_and(Quantity::is_negative);
    push_if(is_negative, FieldError::invalid(path, quantity(amount).map_or(0, Quantity::units), "must be a valid resource quantity"), errors);
}

fn iqn(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let is_persistent = site.base.as_str().starts_with("spec.iscsi");
    let prefix_detail = if is_persistent { "must be valid format" } else { "must be valid format starting with iqn, eui, or naa" };
    for (field, shown, is_needed) in [("iqn", "iqn", true), ("initiatorName", "initiatorname", false)] {
        let (name, path) = (site.value.text(field), site.path().child(shown));
        let pattern = match name.get(..3) {
            _ if name.is_empty() && is_needed => {
                errors.push(FieldError::required(&path, ""));
                continue;
            }
            _ if site.value.get(field).is_none() => continue,
            Some("iqn") => r"iqn\.\d{4}-\d{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\s]+)$",
            Some("eui") => r"^eui.[[:alnum:]]{16}$",
            Some("naa") => r"^naa.[[:alnum:]]{32}$",
            _ => {
                errors.push(FieldError::invalid(&path, name, prefix_detail));
                continue;
            }
        };
        let is_match = regex::Regex::new(pattern).is_ok_and(|it| it.is_match(name));
        push_if(!is_match, FieldError::invalid(&path, name, "must be valid format"), errors);
    }
}

fn quobyte(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (registry, path) = (site.value.text("registry"), site.path());
    if site.value.text("tenant").len() >= 65 {
        return errors.push(FieldError::required(&path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters"));
    }
    for _ in registry.split(',').filter(|it| it.rsplit_once(':').is_none_or(|(host, _)| host.contains(':') && !host.ends_with(']'))) {
        errors.push(FieldError::invalid(&path.child("registry"), registry, "must be a host:port pair or multiple pairs separated by commas"));
    }
}

fn mode(value: &Value, path: &Path, errors: &mut FieldErrors) {
    let is_fine = value.is_null() || (0..=0o777).contains(&int(value));
    push_if(!is_fine, FieldError::invalid(path, value.clone(), "must be a number between 0 and 0777 (octal), both inclusive"), errors);
}

/// `ValidateLocalNonReservedPath`.
fn inside(file: &str, path: &Path, errors: &mut FieldErrors) {
    push_if(file.starts_with('/'), FieldError::invalid(path, file, "must be a relative path"), errors);
    push_if(file.split('/').any(|it| it == ".."), FieldError::invalid(path, file, "must not contain '..'"), errors);
    push_if(file.starts_with("..") && !file.starts_with("../") && file != "..", FieldError::invalid(path, file, "must not start with '..'"), errors);
}

/// `validateDownwardAPIVolumeFile`, which reports at the volume, not at the file.
fn downward_file(file: &Value, path: &Path, errors: &mut FieldErrors) {
    push_if(file.text("path").is_empty(), FieldError::required(&path.child("path"), ""), errors);
    inside(file.text("path"), &path.child("path"), errors);
    let has = |field: &str| file.get(field).is_some_and(|it| !it.is_null());
    match (has("fieldRef"), has("resourceFieldRef")) {
        (true, both) => {
            super::containers::field_ref(&file["fieldRef"], &path.child("fieldRef"), errors);
            push_if(both, FieldError::invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"), errors);
        }
        (false, true) => super::containers::resource_ref(&file["resourceFieldRef"], &path.child("resourceFieldRef"), true, errors),
        _ => errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required")),
    }
    mode(&file["mode"], &path.child("mode"), errors);
}

/// `validateProjectionSources`. `site` is the projected volume.
fn projected(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (volume, mut taken) = (site.path(), Vec::new());
    for (at, source) in site.value.items_at(&["sources"]).iter().enumerate() {
        let path = volume.child("sources").index(at);
        for field in ["secret", "configMap"] {
            let Some(keys) = source.get(field).filter(|it| !it.is_null()) else { continue };
            keyed(keys, &path.child(field), volume, &mut taken, errors);
        }
        if let Some(files) = source.get("downwardAPI").filter(|it| !it.is_null()) {
            for file in files.items_at(&["items"]) {
                downward_file(file, &path.child("downwardAPI"), errors);
                take(file.text("path"), file.text("path"), volume, &mut taken, errors);
            }
        }
        if let Some(token) = source.get("serviceAccountToken").filter(|it| !it.is_null()) {
            token_source(token, &path.child("serviceAccountToken"), volume, errors);
        }
        let count = source.as_object().map_or(0, |it| it.values().filter(|it| !it.is_null()).count());
        push_if(count > 1, FieldError::forbidden(&path, "may not specify more than 1 volume type per source"), errors);
        super::trust::sources(source, &path, &mut |file, errors| take(file, file, volume, &mut taken, errors), errors);
    }
}

/// Files of a Secret or a ConfigMap.
fn keyed(source: &Value, path: &Path, volume: &Path, taken: &mut Vec<String>, errors: &mut FieldErrors) {
    push_if(source.text("name").is_empty(), FieldError::required(&path.child("name"), ""), errors);
    for (at, item) in source.items_at(&["items"]).iter().enumerate() {
        let path = path.child("items").index(at);
        for field in ["key", "path"] {
            push_if(item.text(field).is_empty(), FieldError::required(&path.child(field), ""), errors);
        }
        inside(item.text("path"), &path.child("path"), errors);
        mode(&item["mode"], &path.child("mode"), errors);
        take(item.text("path"), source.text("name"), volume, taken, errors);
    }
}

/// Notes a file; `shown` is the value of the error when it is there already.
fn take(file: &str, shown: &str, volume: &Path, taken: &mut Vec<String>, errors: &mut FieldErrors) {
    if file.is_empty() {
        return;
    }
    if taken.iter().any(|it| it == file) {
        errors.push(FieldError::invalid(volume, shown, "conflicting duplicate paths"));
    }
    taken.push(file.to_owned());
}

fn token_source(token: &Value, path: &Path, volume: &Path, errors: &mut FieldErrors) {
    let (seconds, file, place) = (int(&token["expirationSeconds"]), token.text("path"), path.child("expirationSeconds"));
    push_if(seconds < 600, FieldError::invalid(&place, seconds, "may not specify a duration less than 10 minutes"), errors);
    push_if(seconds > 1 << 32, FieldError::invalid(&place, seconds, "may not specify a duration larger than 2^32 seconds"), errors);
    if file.is_empty() { errors.push(FieldError::required(&volume.child("path"), "")) } else { inside(file, &volume.child("path"), errors) }
}

/// Tokens are of an account. `site` is the volumes of a Pod that names none.
fn no_token(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    for (at, volume) in site.value.as_array().into_iter().flatten().enumerate() {
        for (source_at, source) in volume.items_at(&["projected", "sources"]).iter().enumerate() {
            let path = site.path().index(at).child("projected").child("sources").index(source_at).child("serviceAccountToken");
            let has = source.get("serviceAccountToken").is_some_and(|it| !it.is_null());
            push_if(has, FieldError::forbidden(&path, "must not be specified when serviceAccountName is not set"), errors);
        }
    }
}

/// Names of ports: right ones stand once.
fn port_names(site: &Site<'_>, check: fn(&str) -> names::Problems, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for (at, port) in site.value.as_array().into_iter().flatten().enumerate().filter(|it| !it.1.text("name").is_empty()) {
        let (name, path) = (port.text("name"), site.path().index(at).child("name"));
        let problems = check(name);
        if !problems.is_empty() {
            check::all(problems, name, &path, errors);
        } else if seen.contains(&name) {
            errors.push(FieldError::duplicate(&path, name));
        } else {
            seen.push(name);
        }
    }
}

/// Of several ports, each has a name.
fn named_ports(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let ports: Vec<&Value> = site.value.as_array().into_iter().flatten().collect();
    for (at, _) in ports.iter().enumerate().filter(|it| ports.len() > 1 && it.1.text("name").is_empty()) {
        errors.push(FieldError::required(&site.path().index(at).child("name"), ""));
    }
}

fn access_modes(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let modes: Vec<&str> = site.value.as_array().into_iter().flatten().map(text).collect();
    for mode in modes.iter().filter(|it| !MODES.contains(it)) {
        errors.push(FieldError::not_supported(site.path(), *mode, &MODES));
    }
    let is_mixed = modes.contains(&"ReadWriteOncePod") && modes.iter().any(|it| *it != "ReadWriteOncePod" && MODES.contains(it));
    push_if(is_mixed, FieldError::forbidden(site.path(), "may not use ReadWriteOncePod with other access modes"), errors);
}

fn capacity(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let count = site.value.as_object().map_or(0, serde_json::Map::len);
    push_if(count != 1 || site.value.get("storage").is_none(), FieldError::not_supported(site.path(), if site.value.is_null() { Value::Null } else { site.value.clone() }, &["storage"]), errors);
    for (name, amount, value) in quantities(site.value, &[]) {
        let path = site.path().key(name);
        push_if(amount.is_negative(), FieldError::invalid(&path, amount.units(), "must be a valid resource quantity"), errors);
        push_if(amount.is_negative() || amount.is_zero(), FieldError::invalid(&path, value.clone(), "must be greater than zero"), errors);
    }
}

fn data_source(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (source, path) = (site.value, site.path());
    if source.is_null() {
        return;
    }
    for field in ["name", "kind"] {
        push_if(source.text(field).is_empty(), FieldError::required(&path.child(field), ""), errors);
    }
    let (group, kind) = (source.text("apiGroup"), source.text("kind"));
    let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
    push_if(group.is_empty() && kind != "PersistentVolumeClaim", FieldError::invalid(path, kind, detail), errors);
    if !group.is_empty() && site.old.is_none_or(|it| it.get("apiGroup").is_none()) {
        check::all(names::dns1123_subdomain(group), group, &path.child("apiGroup"), errors);
    }
    let namespace = source.text("namespace");
    if !namespace.is_empty() {
        check::all(names::dns1123_label(namespace), namespace, &path.child("namespace"), errors);
    }
}

/// The two ways to name a source say the same.
fn data_sources(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (source, reference) = (&site.value["dataSource"], &site.value["dataSourceRef"]);
    if is_zero(source) || is_zero(reference) {
        return;
    }
    let has_namespace = !reference.text("namespace").is_empty();
    let is_same = ["apiGroup", "kind", "name"].iter().all(|it| source.get(it) == reference.get(it));
    let detail = if has_namespace { "may not be specified when dataSourceRef.namespace is specified" } else { "must match dataSourceRef" };
    push_if(has_namespace || !is_same, FieldError::invalid(site.path(), site.path().child("dataSource").as_str(), detail), errors);
}
