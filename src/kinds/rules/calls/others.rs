//! Tests of single values that are too long for a word.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::quantities::is_extended;
use crate::{
    kinds::{
        check, expressions, metadata,
        rules::{
            Run, Site, Test,
            words::{int, push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, LabelSelector, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("extended", |site, _, errors| {
        let is_wrong = !site.value.is_null() && !is_extended(text(site.value));
        push_if(is_wrong, FieldError::invalid(site.path(), text(site.value), "must be a valid extended resource name"), errors);
    }),
    ("poolname", |site, _, errors| {
        let name = text(site.value);
        push_if(name.len() > names::SUBDOMAIN_MAX, FieldError::too_long(site.path(), names::SUBDOMAIN_MAX), errors);
        for part in name.split('/').filter(|_| !name.is_empty()) {
            check::all(names::dns1123_subdomain(part), part, site.path(), errors);
        }
    }),
    ("selector", |site, test, errors| {
        let is_wrong = LabelSelector::from_value(Some(site.value)).is_err();
        push_if(is_wrong, FieldError::invalid(site.path(), Value::Null, site.say(test)), errors);
    }),
    ("request", |site, _, errors| {
        let is_request = rustls::pki_types::pem::PemObject::from_pem_slice(&BASE64.decode(text(site.value)).unwrap_or_default()).is_ok_and(|it: rustls::pki_types::CertificateSigningRequestDer<'_>| !it.is_empty());
        push_if(!is_request, FieldError::invalid(site.path(), site.value.clone(), "PEM block type must be CERTIFICATE REQUEST"), errors);
    }),
    ("finalizer", |site, _, errors| errors.extend(metadata::bare_finalizer(text(site.value), site.path()))),
    ("labels", |site, _, errors| labelled(text(site.value), names::dns1123_label, site.path(), errors)),
    ("subdomains", |site, _, errors| labelled(text(site.value), names::dns1123_subdomain, site.path(), errors)),
    ("objectsize", |site, _, errors| {
        /// `MaxSecretSize`, for ConfigMaps too.
        const SIZE_MAX: usize = 1 << 20;
        let size = |field: &str| site.value.map_at(&[field]).into_iter().flatten().filter_map(|(_, value)| value.as_str()).map(str::len).sum::<usize>();
        let (texts, bytes) = if site.value.text("type").is_empty() { (size("data"), size("binaryData")) } else { (0, size("data")) };
        push_if(texts + bytes * 3 / 4 > SIZE_MAX, FieldError::too_long(site.path(), SIZE_MAX), errors);
    }),
    ("handsize", hand_size),
    ("webhookurl", |site, _, errors| site.value.as_str().into_iter().for_each(|it| webhook_url(it, site.path(), errors))),
    ("servicepath", |site, _, errors| service_path(text(site.value), site.path(), errors)),
    ("identifier", |site, _, errors| {
        let is_wrong = !expressions::is_identifier(text(site.value));
        push_if(is_wrong, FieldError::invalid(site.path(), text(site.value), "must be a valid CEL identifier"), errors);
    }),
    ("quobyte", quobyte),
];

/// What is wrong with the first wrong part between dots.
fn labelled(text: &str, check: fn(&str) -> names::Problems, path: &Path, errors: &mut FieldErrors) {
    let wrong = text.split('.').map(|label| (label, check(label))).find(|it| !it.1.is_empty());
    if let Some((label, problems)) = wrong {
        let problems = problems.into_iter().map(|it| format!("validating label {label:?}: {it}").into()).collect();
        check::all(problems, text, path, errors);
    }
}

/// A hand is dealt from the deck of queues by a hash of 60 bits.
fn hand_size(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const HASH_BITS: i64 = 60;
    let (queues, hand, path) = (int(&site.value["queues"]), int(&site.value["handSize"]), site.path().child("handSize"));
    if hand <= 0 {
        return;
    }
    // Each card but the last has a bit at least: so many tell whether there are too many.
    let cards = (0..hand.min(queues)).take(HASH_BITS as usize + 2);
    let entropy = cards.map(|it| ((queues - it) as f64).log2()).sum::<f64>().ceil() as i64;
    if hand > queues {
        errors.push(FieldError::invalid(&path, hand, format!("should not be greater than queues ({queues})")));
    } else if entropy > HASH_BITS {
        let detail = format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}");
        errors.push(FieldError::invalid(&path, hand, detail));
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

/// `ValidateWebhookURL`.
fn webhook_url(url: &str, path: &Path, errors: &mut FieldErrors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let Ok(uri) = rest.parse::<http::Uri>() else {
        return errors.push(FieldError::required(path, format!("url must be a valid URL: parse {url:?}: invalid URI for request{FORM}")));
    };
    let scheme = uri.scheme_str().unwrap_or_default();
    if scheme != "https" {
        errors.push(FieldError::invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    let authority = uri.authority().map(|it| it.as_str()).unwrap_or_default();
    if uri.scheme().is_none() || uri.host().unwrap_or_default().is_empty() {
        errors.push(FieldError::invalid(path, "", format!("host must be specified{FORM}")));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        errors.push(FieldError::invalid(path, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(FieldError::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    if let Some(query) = uri.query().filter(|it| !it.is_empty()) {
        errors.push(FieldError::invalid(path, query, "query parameters are not permitted in the URL"));
    }
}

/// The path of a `ServiceReference` (`ValidateWebhookService`).
fn service_path(text: &str, path: &Path, errors: &mut FieldErrors) {
    match text {
        "" | "/" => return,
        "//" => return errors.push(FieldError::invalid(path, text, "segment[0] may not be empty")),
        _ if !text.starts_with('/') => errors.push(FieldError::invalid(path, text, "must start with a '/'")),
        _ => (),
    }
    let rest = text.get(1..).unwrap_or_default();
    for (at, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        match step {
            "" => errors.push(FieldError::invalid(path, text, format!("segment[{at}] may not be empty"))),
            step => errors.extend(names::dns1123_subdomain(step).into_iter().map(|it| FieldError::invalid(path, text, format!("segment[{at}]: {it}")))),
        }
    }
}
