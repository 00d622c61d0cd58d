//! Volumes that bring several things together. Source: `pkg/apis/core/validation/validation.go` (`validateProjectionSources`).

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test,
            words::{int, push_if},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[("projected", projected)];

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
            super::pods::field_selector(&file["fieldRef"], &path.child("fieldRef"), &super::pods::VOLUME_FIELDS, errors);
            push_if(both, FieldError::invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"), errors);
        }
        (false, true) => super::pods::resource_ref(&file["resourceFieldRef"], &path.child("resourceFieldRef"), true, errors),
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
        sources(source, &path, &mut |file, errors| take(file, file, volume, &mut taken, errors), errors);
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

type Take<'a> = &'a mut dyn FnMut(&str, &mut FieldErrors);

/// Key types that a pod may ask a certificate for.
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const SECONDS_LEAST: i64 = 3600;
/// 91 days, and a day for Kubernetes' own signers.
const SECONDS_MOST: i64 = 7_862_400;
const SECONDS_MOST_OWN: i64 = 86_400;

/// Checks the two sources; `take` notes their files.
fn sources(source: &Value, path: &Path, take: Take<'_>, errors: &mut FieldErrors) {
    if let Some(bundle) = source.get("clusterTrustBundle").filter(|it| !it.is_null()) {
        trust_bundle(bundle, &path.child("clusterTrustBundle"), take, errors);
    }
    if let Some(certificate) = source.get("podCertificate").filter(|it| !it.is_null()) {
        pod_certificate(certificate, &path.child("podCertificate"), take, errors);
    }
}

fn trust_bundle(bundle: &Value, path: &Path, take: Take<'_>, errors: &mut FieldErrors) {
    let text = |field: &str| bundle.get(field).and_then(Value::as_str);
    match (text("name"), text("signerName")) {
        (Some(_), Some(_)) => errors.push(FieldError::invalid(path, bundle.clone(), "only one of name and signerName may be used")),
        (None, None) => errors.push(FieldError::required(path, "either name or signerName must be specified")),
        (Some(name), None) => {
            push_if(name.is_empty(), FieldError::required(&path.child("name"), "must be a valid object name"), errors);
            let problems = names::dns1123_subdomain(name).into_iter().map(|it| format!("not a valid clustertrustbundlename: {it}").into()).collect();
            if !name.contains(':') {
                check::all(problems, name, &path.child("name"), errors);
            }
            let selector = bundle.get("labelSelector").filter(|it| !it.is_null());
            errors.extend(selector.map(|it| FieldError::invalid(&path.child("labelSelector"), it.clone(), "labelSelector must be unset if name is specified")));
        }
        (None, Some(signer)) => {
            push_if(signer.is_empty(), FieldError::required(&path.child("signerName"), "must be a valid signer name"), errors);
            super::others::signer_name(signer, &path.child("signerName"), errors);
        }
    }
    file(bundle, "path", path, true, take, errors);
}

fn pod_certificate(certificate: &Value, path: &Path, take: Take<'_>, errors: &mut FieldErrors) {
    let (signer, kind) = (certificate.text("signerName"), certificate.text("keyType"));
    super::others::signer_name(signer, &path.child("signerName"), errors);
    push_if(!KEY_TYPES.contains(&kind), FieldError::not_supported(&path.child("keyType"), kind, &KEY_TYPES), errors);
    if let Some(seconds) = certificate.get("maxExpirationSeconds").filter(|it| !it.is_null()).map(int) {
        let (place, most) = (path.child("maxExpirationSeconds"), if signer.starts_with("kubernetes.io/") { SECONDS_MOST_OWN } else { SECONDS_MOST });
        push_if(seconds < SECONDS_LEAST, FieldError::invalid(&place, seconds, "if provided, maxExpirationSeconds must be >= 3600"), errors);
        push_if(seconds > most, FieldError::invalid(&place, seconds, format!("if provided, maxExpirationSeconds must be <= {most}")), errors);
    }
    const FILES: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    FILES.iter().for_each(|it| file(certificate, it, path, false, take, errors));
    let has_none = FILES.iter().all(|it| certificate.text(it).is_empty());
    push_if(has_none, FieldError::required(path, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"), errors);
}

fn file(object: &Value, field: &str, path: &Path, is_needed: bool, take: Take<'_>, errors: &mut FieldErrors) {
    let (name, path) = (object.text(field), path.child(field));
    push_if(name.is_empty() && is_needed, FieldError::required(&path, ""), errors);
    push_if(name.starts_with('/'), FieldError::invalid(&path, name, "must be a relative path"), errors);
    push_if(name.split('/').any(|it| it == ".."), FieldError::invalid(&path, name, "must not contain '..'"), errors);
    take(name, errors);
}
