//! Containers, one at a time. Source: `pkg/apis/core/validation/validation.go` (`validateContainerCommon` and what it calls).

use regex::Regex;

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test,
            words::{push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("devices", devices),
    ("mounts", mounts),
    ("valuefrom", value_from),
    ("envfrom", |site, _, errors| {
        let count = ["configMapRef", "secretRef"].iter().filter(|it| site.value.get(it).is_some_and(|it| !it.is_null())).count();
        let detail = if count == 0 { "must specify one of: `configMapRef` or `secretRef`" } else { "may not have more than one field specified at a time" };
        push_if(count != 1, FieldError::invalid(site.path(), "", detail), errors);
    }),
    ("fieldpath", |site, _, errors| field_selector(site.value, site.path(), &ENV_FIELDS, errors)),
    ("resourcefield", |site, _, errors| resource_ref(site.value, site.path(), false, errors)),
    ("windowsuser", windows_user),
    ("matchkeys", match_keys),
    ("decimal", decimal),
    ("resizepolicy", resize_policy),
];

/// `ValidateVolumeMounts`, but for the volumes (`pods.rs` knows them). `site` is the container.
fn mounts(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (container, list) = (site.value, site.path().child("volumeMounts"));
    let devices = container.items_at(&["volumeDevices"]);
    let is_privileged = container.at(&["securityContext", "privileged"]) == Some(&Value::Bool(true));
    let mut seen: Vec<&str> = Vec::new();
    for (at, mount) in container.items_at(&["volumeMounts"]).iter().enumerate() {
        let (path, name, place) = (list.index(at), mount.text("name"), mount.text("mountPath"));
        push_if(seen.contains(&place), FieldError::invalid(&path.child("mountPath"), place, "must be unique"), errors);
        seen.push(place);
        push_if(devices.iter().any(|it| it.text("name") == name), FieldError::invalid(&path.child("name"), name, "must not already exist in volumeDevices"), errors);
        push_if(devices.iter().any(|it| it.text("devicePath") == place), FieldError::invalid(&path.child("mountPath"), place, "must not already exist as a path in volumeDevices"), errors);
        // Upstream reports what follows at the list.
        for field in ["subPath", "subPathExpr"] {
            descending(mount.text(field), &list.child(field), errors);
        }
        let both = !mount.text("subPath").is_empty() && !mount.text("subPathExpr").is_empty();
        push_if(both, FieldError::invalid(&path.child("subPathExpr"), mount.text("subPathExpr"), "subPathExpr and subPath are mutually exclusive"), errors);
        let (propagation, shown) = (mount.text("mountPropagation"), list.child("mountPropagation"));
        if mount.get("mountPropagation").is_some_and(|it| !it.is_null()) {
            const MODES: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
            push_if(!MODES.contains(&propagation), FieldError::not_supported(&shown, propagation, &MODES), errors);
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            push_if(propagation == "Bidirectional" && !is_privileged, FieldError::forbidden(&shown, detail), errors);
        }
        recursive_read_only(mount, propagation, &list.child("recursiveReadOnly"), errors);
    }
}

fn descending(text: &str, path: &Path, errors: &mut FieldErrors) {
    push_if(text.starts_with('/'), FieldError::invalid(path, text, "must be a relative path"), errors);
    push_if(text.split('/').any(|it| it == ".."), FieldError::invalid(path, text, "must not contain '..'"), errors);
}

fn recursive_read_only(mount: &Value, propagation: &str, path: &Path, errors: &mut FieldErrors) {
    let Some(mode) = mount.get("recursiveReadOnly").filter(|it| !it.is_null()).map(text) else { return };
    match mode {
        "Disabled" => (),
        "Enabled" | "IfPossible" => {
            let is_read_only = mount.get("readOnly") == Some(&Value::Bool(true));
            push_if(!is_read_only, FieldError::forbidden(path, "may only be specified when readOnly is true"), errors);
            let detail = "may only be specified when mountPropagation is None or not specified";
            push_if(!matches!(propagation, "" | "None"), FieldError::forbidden(path, detail), errors);
        }
        _ => errors.push(FieldError::not_supported(path, mode, &["Disabled", "Enabled", "IfPossible"])),
    }
}

/// `ValidateVolumeDevices`, but for the volumes. `site` is the container.
fn devices(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (container, list) = (site.value, site.path().child("volumeDevices"));
    let mounts = container.items_at(&["volumeMounts"]);
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (at, device) in container.items_at(&["volumeDevices"]).iter().enumerate() {
        let (path, name, place) = (list.index(at), device.text("name"), device.text("devicePath"));
        push_if(names.contains(&name), FieldError::invalid(&path.child("name"), name, "must be unique"), errors);
        push_if(paths.contains(&place), FieldError::invalid(&path.child("devicePath"), place, "must be unique"), errors);
        if place.split('/').any(|it| it == "..") {
            errors.push(FieldError::invalid(&path.child("devicePath"), place, "can not contain backsteps ('..')"));
        } else {
            paths.push(place);
        }
        push_if(mounts.iter().any(|it| it.text("name") == name), FieldError::invalid(&path.child("name"), name, "must not already exist in volumeMounts"), errors);
        push_if(mounts.iter().any(|it| it.text("mountPath") == place), FieldError::invalid(&path.child("devicePath"), place, "must not already exist as a path in volumeMounts"), errors);
        if !name.is_empty() {
            names.push(name);
        }
    }
}

/// `validateEnvVarValueFrom`: the number of sources. `site` is the variable.
fn value_from(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let Some(from) = site.value.get("valueFrom").filter(|it| !it.is_null()) else { return };
    let detail = match SOURCES.iter().filter(|it| from.get(it).is_some_and(|it| !it.is_null())).count() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !site.value.text("value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(&site.path().child("valueFrom"), "", detail));
}

const ENV_FIELDS: [&str; 9] =
    ["metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"];
const VOLUME_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// A field of the pod as a file.
pub fn field_ref(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    field_selector(selector, path, &VOLUME_FIELDS, errors);
}

/// `validateObjectFieldSelector`.
fn field_selector(selector: &Value, path: &Path, fields: &[&str], errors: &mut FieldErrors) {
    if selector.is_null() {
        return;
    }
    let (field, version) = (selector.text("fieldPath"), selector.text("apiVersion"));
    if version.is_empty() {
        return errors.push(FieldError::required(&path.child("apiVersion"), ""));
    }
    if field.is_empty() {
        return errors.push(FieldError::required(&path.child("fieldPath"), ""));
    }
    let wrong = |detail: String| FieldError::invalid(&path.child("fieldPath"), field, format!("error converting fieldPath: {detail}"));
    if version != "v1" {
        return errors.push(wrong(format!("unsupported pod version: {version}")));
    }
    if let Some((name, key)) = field.strip_suffix("']").and_then(|it| it.split_once("['")) {
        return match name {
            "metadata.annotations" => check::all(names::qualified_name(&key.to_lowercase()), &key.to_lowercase(), path, errors),
            "metadata.labels" => check::all(names::qualified_name(key), key, path, errors),
            _ => errors.push(wrong(format!("field label does not support subscript: {field}"))),
        };
    }
    const KNOWN: [&str; 6] = ["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase", "spec.host"];
    if !fields.contains(&field) {
        let is_known = KNOWN.contains(&field) || ENV_FIELDS.contains(&field) || VOLUME_FIELDS.contains(&field);
        errors.push(if is_known { FieldError::not_supported(&path.child("fieldPath"), field, fields) } else { wrong(format!("field label not supported: {field}")) });
    }
}

const RESOURCE_FIELDS: [&str; 6] = ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];
const DIVISORS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// `validateContainerResourceFieldSelector`; in a volume the container must be named.
pub fn resource_ref(selector: &Value, path: &Path, is_volume: bool, errors: &mut FieldErrors) {
    if selector.is_null() {
        return;
    }
    let (resource, divisor) = (selector.text("resource"), selector.text("divisor"));
    let is_huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if is_volume && selector.text("containerName").is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&resource) && !is_huge {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, &RESOURCE_FIELDS));
    }
    if matches!(divisor, "" | "0") {
        return;
    }
    let words = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the";
    let (is_fine, detail) = match resource.split_once('.').map_or("", |it| it.1) {
        "cpu" => (matches!(divisor, "1" | "1m"), "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()),
        "memory" => (DIVISORS.contains(&divisor), format!("{words} memory resource")),
        "ephemeral-storage" => (DIVISORS.contains(&divisor), format!("{words} local ephemeral storage resource")),
        _ if is_huge => (DIVISORS.contains(&divisor), format!("{words} hugepages resource")),
        _ => return,
    };
    push_if(!is_fine, FieldError::invalid(&path.child("divisor"), resource, detail), errors);
}

/// `ValidateMatchLabelKeysAndMismatchLabelKeys`. `site` is the term that has them.
fn match_keys(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (term, path) = (site.value, site.path());
    let selector = term.get("labelSelector").filter(|it| !it.is_null());
    let keys = |field: &str| super::super::texts(Some(term), &[field]);
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let path = path.child(field);
        match (selector, keys(field)) {
            (_, keys) if keys.is_empty() => (),
            (None, _) => errors.push(FieldError::forbidden(&path, "must not be specified when labelSelector is not set")),
            (_, keys) => keys.iter().enumerate().for_each(|(at, key)| check::all(names::qualified_name(key), key, &path.index(at), errors)),
        }
    }
    let (matching, mismatching) = (keys("matchLabelKeys"), keys("mismatchLabelKeys"));
    let mut seen: Vec<&str> = selector.and_then(|it| it.map_at(&["matchLabels"])).into_iter().flat_map(|it| it.keys()).map(String::as_str).collect();
    for expression in selector.map_or(&[][..], |it| it.items_at(&["matchExpressions"])) {
        let key = expression.text("key");
        if let Some(at) = matching.iter().rposition(|it| *it == key).filter(|_| seen.contains(&key)) {
            errors.push(FieldError::invalid(&path.index(at), key, "exists in both matchLabelKeys and labelSelector"));
        }
        seen.push(key);
    }
    for (at, key) in matching.iter().enumerate().filter(|(_, key)| mismatching.contains(key)) {
        errors.push(FieldError::invalid(&path.child("matchLabelKeys").index(at), *key, "exists in both matchLabelKeys and mismatchLabelKeys"));
    }
}

/// A whole number of 64 bits, as text (`IsDecimalInteger`).
fn decimal(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let value = text(site.value);
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_decimal = value == "0" || (!digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|it| it.is_ascii_digit()));
    let detail = "must be a valid decimal integer in canonical form";
    push_if(!is_decimal, FieldError::invalid(site.path(), value, detail), errors);
    if value.parse::<i64>().is_err() {
        let why = if is_decimal { "value out of range" } else { "invalid syntax" };
        errors.push(FieldError::invalid(site.path(), value, format!("strconv.ParseInt: parsing {value:?}: {why}")));
    }
}

/// `validateResizePolicy`, but for the pod's restart policy.
fn resize_policy(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (path, mut seen) = (site.path(), Vec::new());
    for (at, policy) in site.value.as_array().into_iter().flatten().enumerate() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        push_if(seen.contains(&resource), FieldError::duplicate(&path.index(at), resource), errors);
        seen.push(resource);
        for (value, words) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])] {
            match value {
                "" => errors.push(FieldError::required(path, "")),
                _ => push_if(!words.contains(&value), FieldError::not_supported(path, value, &words), errors),
            }
        }
    }
}

/// `validateWindowsSecurityContextOptions`: the user, as `DOMAIN\USER`.
fn windows_user(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let name = text(site.value);
    let mut wrong = |detail: &'static str| errors.push(FieldError::invalid(site.path(), name, detail));
    if site.value.is_null() {
        return;
    }
    let is_match = |pattern: &str, text: &str| Regex::new(pattern).is_ok_and(|it| it.is_match(text));
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        _ if name.is_empty() => return wrong("runAsUserName cannot be an empty string"),
        _ if name.chars().any(char::is_control) => return wrong("runAsUserName cannot contain control characters"),
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return wrong("runAsUserName cannot contain more than one backslash"),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            wrong("runAsUserName's Domain length must be under 256 characters");
        }
        let label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
        if !is_match(r#"^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$"#, domain) && !is_match(&format!(r"^{label}(?:\.{label})*$"), domain) {
            wrong("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    match user.len() {
        0 => wrong("runAsUserName's User cannot be empty"),
        105.. => wrong("runAsUserName's User length must not be longer than 104 characters"),
        _ => (),
    }
    if is_match(r"^[\. ]+$", user) {
        wrong("runAsUserName's User cannot contain only periods or spaces");
    }
    if is_match(r#"["/\\:;|=,\+\*\?<>@\[\]]"#, user) {
        wrong(r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#);
    }
}
