//! Sources of projected volumes that bring certificates. Source: `pkg/apis/core/validation/validation.go` (`validateProjectionSources`).

use crate::{
    kinds::{check, rules::words::{int, push_if}},
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

type Take<'a> = &'a mut dyn FnMut(&str, &mut FieldErrors);

/// Key types that a pod may ask a certificate for.
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const SECONDS_LEAST: i64 = 3600;
/// 91 days, and a day for Kubernetes' own signers.
const SECONDS_MOST: i64 = 7_862_400;
const SECONDS_MOST_OWN: i64 = 86_400;

/// Checks the two sources; `take` notes their files.
pub fn sources(source: &Value, path: &Path, take: Take<'_>, errors: &mut FieldErrors) {
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
            signer_name(signer, &path.child("signerName"), errors);
        }
    }
    file(bundle, "path", path, true, take, errors);
}

fn pod_certificate(certificate: &Value, path: &Path, take: Take<'_>, errors: &mut FieldErrors) {
    let (signer, kind) = (certificate.text("signerName"), certificate.text("keyType"));
    signer_name(signer, &path.child("signerName"), errors);
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

/// `ValidateSignerName`: `domain/path`.
pub fn signer_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    let Some((domain, rest)) = name.split_once('/').filter(|it| !it.1.contains('/')) else {
        return errors.push(if name.is_empty() {
            FieldError::required(path, "")
        } else {
            FieldError::invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
        });
    };
    push_if(domain.len() > names::SUBDOMAIN_MAX, FieldError::too_long(path, names::SUBDOMAIN_MAX), errors);
    labelled(domain, names::dns1123_label, path, errors);
    push_if(!domain.contains('.'), FieldError::invalid(path, domain, "should be a domain with at least two segments separated by dots"), errors);
    labelled(rest, names::dns1123_subdomain, path, errors);
    const REST_MAX: usize = names::SUBDOMAIN_MAX + names::LABEL_MAX + 1;
    push_if(rest.len() > REST_MAX, FieldError::too_long(path, REST_MAX), errors);
}

/// What is wrong with the first wrong part between dots.
fn labelled(text: &str, check: fn(&str) -> names::Problems, path: &Path, errors: &mut FieldErrors) {
    let wrong = text.split('.').map(|label| (label, check(label))).find(|it| !it.1.is_empty());
    if let Some((label, problems)) = wrong {
        let problems = problems.into_iter().map(|it| format!("validating label {label:?}: {it}").into()).collect();
        check::all(problems, text, path, errors);
    }
}
