//! What the parts of a pod say about each other, beyond rules of a line. Source: `pkg/apis/core/validation/validation.go` (`ValidatePodSpec`).

use super::quantities::{container_name, requirements};
use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test,
            words::{int, push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("volumenames", |site, _, errors| _ = volumes(site.value, site.path(), errors)),
    ("hostports", host_ports),
    ("mounted", mounted),
    ("containerresources", |site, _, errors| {
        let claims: Vec<&str> = site.owner.parent().items_at(&["resourceClaims"]).iter().map(|it| it.text("name")).filter(|it| !it.is_empty()).collect();
        requirements(site.value, site.path(), &claims, container_name, errors);
    }),
    ("taken", taken),
    ("claimname", |site, _, errors| ephemeral_claims(site, errors)),
    ("selectslabels", |site, test, errors| check::selector_of_template(site.value, &site.say(test), errors)),
    ("fieldpath", |site, _, errors| field_selector(site.value, site.path(), &ENV_FIELDS, errors)),
    ("volumefield", |site, _, errors| field_selector(site.value, site.path(), &VOLUME_FIELDS, errors)),
    ("resourcefield", |site, _, errors| resource_ref(site.value, site.path(), false, errors)),
    ("volumeresource", |site, _, errors| resource_ref(site.value, site.path(), true, errors)),
    ("prefixname", |site, _, errors| {
        // A name that ends in a dash passes here: upstream takes it for a prefix.
        let name = text(site.value);
        let masked = name.strip_suffix('-').filter(|it| !it.is_empty()).map_or_else(|| name.to_owned(), |it| format!("{it}a"));
        if !name.is_empty() {
            check::all(names::dns1123_subdomain(&masked), name, site.path(), errors);
        }
    }),
];

fn has(object: &Value, field: &str) -> bool {
    object.get(field).is_some_and(|it| !it.is_null())
}

/// The volumes that are right, and errors for names that stand twice.
fn volumes<'a>(spec: &'a Value, path: &Path, errors: &mut FieldErrors) -> Vec<&'a Value> {
    let mut fine: Vec<&Value> = Vec::new();
    for (at, volume) in spec.items_at(&["volumes"]).iter().enumerate() {
        let name = volume.text("name");
        if fine.iter().any(|it| it.text("name") == name) {
            errors.push(FieldError::duplicate(&path.child("volumes").index(at).child("name"), name));
        } else if super::super::is_valid(volume, "io.k8s.api.core.v1.Volume") {
            fine.push(volume);
        }
    }
    fine
}

/// Ports of the host are taken once. `site` is the container; its index shows where it is.
fn host_ports(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (container, spec, path) = (site.value, site.owner.parent(), site.path());
    let key = |port: &Value| format!("{}/{}/{}", port.text("protocol"), port.text("hostIP"), int(&port["hostPort"]));
    let is_init = path.up().as_str().ends_with("initContainers");
    // Upstream checks init containers one by one, as if each were the first.
    let before = if is_init { &[] } else { &spec.items_at(&["containers"])[..site.item.at] };
    let own = if is_init { path.up().index(0) } else { path.clone() }.child("ports");
    let mut seen: Vec<String> = before.iter().flat_map(|it| it.items_at(&["ports"])).map(key).collect();
    for (at, port) in container.items_at(&["ports"]).iter().enumerate().filter(|it| int(&it.1["hostPort"]) != 0) {
        let key = key(port);
        push_if(seen.contains(&key), FieldError::duplicate(&own.index(at).child("hostPort"), key.as_str()), errors);
        seen.push(key);
    }
}

/// What a container mounts are volumes of its pod. `site` is the container.
fn mounted(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (container, path) = (site.value, site.path());
    let volumes = volumes(site.owner.parent(), path, &mut FieldErrors::new());
    let find = |name: &str| volumes.iter().find(|it| it.text("name") == name);
    // The claims of a StatefulSet are volumes of its pods too (`volumesToAddForTemplates`).
    let is_claimed = |name: &str| site.root.items_at(&["spec", "volumeClaimTemplates"]).iter().any(|it| it.name() == name);
    for (at, mount) in container.items_at(&["volumeMounts"]).iter().enumerate() {
        let name = mount.text("name");
        push_if(find(name).is_none() && !is_claimed(name), FieldError::not_found(&path.child("volumeMounts").index(at).child("name"), name), errors);
    }
    for (at, device) in container.items_at(&["volumeDevices"]).iter().enumerate() {
        let (path, name) = (path.child("volumeDevices").index(at).child("name"), device.text("name"));
        match find(name) {
            _ if is_claimed(name) => (),
            None => errors.push(FieldError::not_found(&path, name)),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                errors.push(FieldError::invalid(&path, name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"));
            }
            Some(_) => (),
        }
    }
}

/// The files of a projected volume, in the order in which upstream takes their names.
fn files(volume: &Value) -> Vec<&Value> {
    let mut files = Vec::new();
    for source in volume.items_at(&["sources"]) {
        for items in ["secret", "configMap", "downwardAPI"] {
            files.extend(source.items_at(&[items, "items"]).iter().filter_map(|it| it.get("path")));
        }
        let certificates = [["clusterTrustBundle", "path"], ["podCertificate", "credentialBundlePath"], ["podCertificate", "keyPath"], ["podCertificate", "certificateChainPath"]];
        files.extend(certificates.iter().filter_map(|it| source.at(it)));
    }
    files
}

/// A file's name is there once in its projected volume, which reports it with the words of the rule.
fn taken(site: &Site<'_>, test: &Test, errors: &mut FieldErrors) {
    let Some(volume) = std::iter::successors(Some(&site.owner), |it| it.above).find(|it| it.value.get("sources").is_some()) else { return };
    let is_taken = files(volume.value).into_iter().take_while(|it| !std::ptr::eq(*it, site.value)).any(|it| it == site.value);
    push_if(is_taken && !text(site.value).is_empty(), FieldError::invalid(volume.path, site.say(test).as_ref(), "conflicting duplicate paths"), errors);
}

/// The names of the claims that ephemeral volumes make. `site` is the Pod.
fn ephemeral_claims(site: &Site<'_>, errors: &mut FieldErrors) {
    let (volumes, path) = (site.value.items_at(&["spec", "volumes"]), Path::new("spec").child("volumes"));
    let claim = |volume: &Value| format!("{}-{}", site.value.name(), volume.text("name"));
    // Of several sources only the first counts.
    let has = |volume: &Value| volume.get("ephemeral").is_some_and(|it| !it.is_null()) && volume.as_object().is_some_and(|it| it.len() == 2);
    let made: Vec<String> = volumes.iter().filter(|it| has(it)).map(claim).collect();
    for (at, volume) in volumes.iter().enumerate() {
        if has(volume) && !volume.text("name").is_empty() && !site.value.name().is_empty() {
            let problems = names::dns1123_subdomain(&claim(volume)).into_iter().map(|it| format!("PVC name {:?}: {it}", claim(volume)).into()).collect();
            check::all(problems, volume.text("name"), &path.index(at).child("name"), errors);
        }
        let used = volume.text_at(&["persistentVolumeClaim", "claimName"]);
        let place = path.index(at).child("persistentVolumeClaim").child("claimName");
        push_if(made.iter().any(|it| it == used), FieldError::invalid(&place, used, "must not reference a PVC that gets created for an ephemeral volume"), errors);
    }
}

const ENV_FIELDS: [&str; 9] =
    ["metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"];
const VOLUME_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

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
fn resource_ref(selector: &Value, path: &Path, is_volume: bool, errors: &mut FieldErrors) {
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
