//! Webhook configurations: defaults and validation, and what they share with the conversion webhooks of custom resource definitions.
//! Source: kubernetes `pkg/apis/admissionregistration/{v1/defaults.go,validation/validation.go}`, apiserver `pkg/util/webhook/validation.go`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill, fill_at, one_of, required},
    expressions, metadata,
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, names};

pub const CONFIGURATION: Strategy = Strategy { default, validate, has_generation: true, ..Strategy::PLAIN };

const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];
const TIMEOUT_SECONDS: std::ops::RangeInclusive<i64> = 1..=30;

fn default(object: &mut Value) {
    let is_mutating = object.text("kind") == "MutatingWebhookConfiguration";
    for webhook in each(object, &["webhooks"]) {
        fill(webhook, "failurePolicy", "Fail");
        fill(webhook, "matchPolicy", "Equivalent");
        fill(webhook, "timeoutSeconds", 10);
        for selector in ["namespaceSelector", "objectSelector"] {
            fill(webhook, selector, json!({}));
        }
        if is_mutating {
            fill(webhook, "reinvocationPolicy", "Never");
        }
        default_client(webhook, &["clientConfig"]);
        each(webhook, &["rules"]).for_each(|rule| fill(rule, "scope", "*"));
    }
}

/// The port of the service in a `WebhookClientConfig` at a path.
pub fn default_client(object: &mut Value, path: &[&str]) {
    let service = [path, &["service"]].concat();
    if object.at(&service).is_some_and(Value::is_object) {
        fill_at(object, &[service.as_slice(), &["port"]].concat(), 443);
    }
}

fn validate(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, mut seen) = (FieldErrors::new(), Vec::new());
    let stored: &[Value] = change.old().map_or(&[], |it| it.items_at(&["webhooks"]));
    let is_loose = |is_bad: &dyn Fn(&Value) -> bool| stored.iter().any(is_bad);
    // What an older server has let in stays acceptable.
    let needs_known = !is_loose(&|it| !knows(it.items_at(&["admissionReviewVersions"])));
    let needs_harmless = !is_loose(&|it| !matches!(it.text("sideEffects"), "None" | "NoneOnDryRun"));
    let is_same = |webhook: &Value| stored.iter().any(|it| it["name"] == webhook["name"] && it["matchConditions"] == webhook["matchConditions"]);
    for (at, webhook) in object.items_at(&["webhooks"]).iter().enumerate() {
        let (path, name) = (Path::new("webhooks").index(at), webhook.text("name"));
        validate_webhook(webhook, needs_harmless, &path, &mut errors);
        if !is_same(webhook) {
            expressions::validate_conditions(webhook.items_at(&["matchConditions"]), false, &path.child("matchConditions"), &mut errors);
        }
        let versions = webhook.items_at(&["admissionReviewVersions"]);
        review_versions(versions, needs_known, "must specify one of v1, v1beta1", &path.child("admissionReviewVersions"), &mut errors);
        if !name.is_empty() && seen.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        seen.push(name);
    }
    errors
}

fn validate_webhook(webhook: &Value, needs_harmless: bool, path: &Path, errors: &mut FieldErrors) {
    qualified(webhook.text("name"), &path.child("name"), errors);
    for (at, rule) in webhook.items_at(&["rules"]).iter().enumerate() {
        validate_rule(rule, &path.child("rules").index(at), errors);
    }
    one_of(webhook, "failurePolicy", &["Fail", "Ignore"], path, errors);
    one_of(webhook, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    match webhook.text("sideEffects") {
        "" => errors.push(FieldError::required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun")),
        _ if needs_harmless => one_of(webhook, "sideEffects", &["None", "NoneOnDryRun"], path, errors),
        _ => one_of(webhook, "sideEffects", &["None", "NoneOnDryRun", "Some", "Unknown"], path, errors),
    }
    if let Some(seconds) = webhook.int_at(&["timeoutSeconds"]).filter(|it| !TIMEOUT_SECONDS.contains(it)) {
        errors.push(FieldError::invalid(&path.child("timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds"));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(&webhook[field], &path.child(field), errors);
    }
    one_of(webhook, "reinvocationPolicy", &["IfNeeded", "Never"], path, errors);
    client_config(&webhook["clientConfig"], &path.child("clientConfig"), errors);
}

/// `IsFullyQualifiedName`.
fn qualified(name: &str, path: &Path, errors: &mut FieldErrors) {
    let problems = names::dns1123_subdomain(name);
    errors.extend(match name {
        "" => Some(FieldError::required(path, "")),
        _ if !problems.is_empty() => Some(FieldError::invalid(path, name, problems.join(","))),
        _ if name.split('.').count() < 3 => Some(FieldError::invalid(path, name, "should be a domain with at least three segments separated by dots")),
        _ => None,
    });
}

fn knows(versions: &[Value]) -> bool {
    versions.iter().filter_map(Value::as_str).any(|it| REVIEW_VERSIONS.contains(&it))
}

/// The versions of reviews that a webhook understands (`validateAdmissionReviewVersions`, `validateConversionReviewVersions`).
pub fn review_versions(versions: &[Value], needs_known: bool, hint: &'static str, path: &Path, errors: &mut FieldErrors) {
    if versions.is_empty() {
        return errors.push(FieldError::required(path, hint));
    }
    for (at, version) in versions.iter().enumerate() {
        let text = version.as_str().unwrap_or_default();
        match versions[..at].contains(version) {
            true => errors.push(FieldError::invalid(&path.index(at), text, "duplicate version")),
            false => errors.extend(names::dns1035_label(text).into_iter().map(|it| FieldError::invalid(&path.index(at), text, it))),
        }
    }
    if needs_known && !knows(versions) {
        errors.push(FieldError::invalid(path, versions.to_vec(), "must include at least one of v1, v1beta1"));
    }
}

/// One rule of a webhook or a policy.
pub fn validate_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    words(rule, "operations", "operations", path, errors);
    for (at, operation) in rule.items_at(&["operations"]).iter().enumerate() {
        if !operation.as_str().is_some_and(|it| OPERATIONS.contains(&it)) {
            errors.push(FieldError::not_supported(&path.child("operations").index(at), operation.clone(), OPERATIONS));
        }
    }
    words(rule, "apiGroups", "API groups", path, errors);
    words(rule, "apiVersions", "API versions", path, errors);
    empty_words(rule, "apiVersions", path, errors);
    if rule.items_at(&["resources"]).is_empty() {
        errors.push(FieldError::required(&path.child("resources"), ""));
    }
    empty_words(rule, "resources", path, errors);
    validate_resources(rule.items_at(&["resources"]), &path.child("resources"), errors);
    one_of(rule, "scope", &["*", "Cluster", "Namespaced"], path, errors);
}

/// A list that must hold something, and nothing beside a `*`.
fn words(rule: &Value, field: &str, what: &str, path: &Path, errors: &mut FieldErrors) {
    match rule.items_at(&[field]) {
        [] => errors.push(FieldError::required(&path.child(field), "")),
        list @ [_, _, ..] if list.iter().any(|it| it == "*") => {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.push(FieldError::invalid(&path.child(field), list.to_vec(), detail));
        }
        _ => (),
    }
}

fn empty_words(rule: &Value, field: &str, path: &Path, errors: &mut FieldErrors) {
    let empty = rule.items_at(&[field]).iter().enumerate().filter(|(_, it)| *it == "");
    errors.extend(empty.map(|(at, _)| FieldError::required(&path.child(field).index(at), "")));
}

/// What a wildcard covers must not be named beside it (`validateResources`).
fn validate_resources(resources: &[Value], path: &Path, errors: &mut FieldErrors) {
    let names: Vec<&str> = resources.iter().filter_map(Value::as_str).collect();
    for (at, name) in names.iter().enumerate() {
        let Some((resource, subresource)) = name.split_once('/') else { continue };
        for covering in [format!("{resource}/*"), format!("*/{subresource}")] {
            if names[..at].contains(&covering.as_str()) {
                errors.push(FieldError::invalid(&path.index(at), *name, format!("if '{covering}' is present, must not specify {name}")));
            }
        }
    }
    if names.len() > 1 && names.contains(&"*/*") {
        errors.push(FieldError::invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources"));
    }
    // As upstream, it is the last name without a subresource that counts.
    let last = names.iter().rev().find(|it| !it.contains('/') && !it.is_empty());
    if names.contains(&"*") && last.is_some_and(|it| *it != "*") {
        errors.push(FieldError::invalid(path, resources.to_vec(), "if '*' is present, must not specify other resources without subresources"));
    }
}

/// `ValidateLabelSelector`.
pub fn label_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    metadata::labels(selector.map_at(&["matchLabels"]), &path.child("matchLabels"), errors);
    for (at, expression) in selector.items_at(&["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(at);
        let values = expression.items_at(&["values"]);
        match expression.text("operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.push(FieldError::forbidden(&path.child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => (),
            other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        let key = expression.text("key");
        errors.extend(names::qualified_name(key).into_iter().map(|it| FieldError::invalid(&path.child("key"), key, it)));
        for (at, value) in values.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(names::label_value(value).into_iter().map(|it| FieldError::invalid(&path.child("values").index(at), value, it)));
        }
    }
}

/// A `WebhookClientConfig`: a service or a URL.
pub fn client_config(client: &Value, path: &Path, errors: &mut FieldErrors) {
    match (client.get("url").filter(|it| !it.is_null()), client.get("service").filter(|it| it.is_object())) {
        (Some(url), None) => validate_url(url.as_str().unwrap_or_default(), &path.child("url"), errors),
        (None, Some(service)) => validate_service(service, &path.child("service"), errors),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

/// `ValidateWebhookURL`.
fn validate_url(url: &str, path: &Path, errors: &mut FieldErrors) {
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

/// `ValidateWebhookService`.
fn validate_service(service: &Value, path: &Path, errors: &mut FieldErrors) {
    for field in ["name", "namespace"] {
        required(service, field, path, errors);
    }
    let port = service.int_at(&["port"]).unwrap_or(0);
    if !(1..=65_535).contains(&port) {
        errors.push(FieldError::invalid(&path.child("port"), port, "port is not valid: must be between 1 and 65535, inclusive"));
    }
    let (text, path) = (service.text("path"), path.child("path"));
    match text {
        "" | "/" => return,
        "//" => return errors.push(FieldError::invalid(&path, text, "segment[0] may not be empty")),
        _ if !text.starts_with('/') => errors.push(FieldError::invalid(&path, text, "must start with a '/'")),
        _ => (),
    }
    let rest = text.get(1..).unwrap_or_default();
    for (at, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        match step {
            "" => errors.push(FieldError::invalid(&path, text, format!("segment[{at}] may not be empty"))),
            step => errors.extend(names::dns1123_subdomain(step).into_iter().map(|it| FieldError::invalid(&path, text, format!("segment[{at}]: {it}")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(change: impl Fn(&mut Value)) -> Value {
        let mut object = json!({"kind": "MutatingWebhookConfiguration", "webhooks": [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "n", "name": "s"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]});
        change(&mut object["webhooks"][0]);
        default(&mut object);
        object
    }

    #[test]
    fn configurations_get_defaults() {
        let object = configuration(|_| ());
        let webhook = &object["webhooks"][0];
        let found = ["failurePolicy", "matchPolicy", "timeoutSeconds", "reinvocationPolicy", "objectSelector"].map(|it| webhook[it].clone());
        assert_eq!(found, [json!("Fail"), json!("Equivalent"), json!(10), json!("Never"), json!({})]);
        assert_eq!(webhook["clientConfig"]["service"]["port"], 443);
        assert_eq!(webhook["rules"][0]["scope"], "*");
    }

    #[test]
    fn wrong_configurations_get_upstreams_errors() {
        let set = |path: &'static [&'static str], value: Value| move |webhook: &mut Value| webhook.set_at(path, value.clone());
        let rule = |field: &'static str, value: Value| move |webhook: &mut Value| webhook["rules"][0][field] = value.clone();
        let check = |object: Value, expected: &[&str]| {
            let errors: Vec<String> = validate(&object, Change::Create).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{object}");
        };
        check(configuration(|_| ()), &[]);
        check(configuration(set(&["name"], json!("a"))), &["webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots"]);
        check(configuration(set(&["sideEffects"], json!("Some"))), &["webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\""]);
        check(configuration(set(&["timeoutSeconds"], json!(31))), &["webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"]);
        check(configuration(set(&["admissionReviewVersions"], json!([]))), &["webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"]);
        check(
            configuration(set(&["admissionReviewVersions"], json!(["v2", "v2"]))),
            &[
                "webhooks[0].admissionReviewVersions[1]: Invalid value: \"v2\": duplicate version",
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\",\"v2\"]: must include at least one of v1, v1beta1",
            ],
        );
        check(configuration(set(&["clientConfig"], json!({}))), &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"]);
        check(
            configuration(set(&["clientConfig"], json!({"url": "http://u@h/p?q#f"}))),
            &[
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                "webhooks[0].clientConfig.url: Invalid value: \"u\": user information is not permitted in the URL",
                "webhooks[0].clientConfig.url: Invalid value: \"f\": fragments are not permitted in the URL",
                "webhooks[0].clientConfig.url: Invalid value: \"q\": query parameters are not permitted in the URL",
            ],
        );
        check(
            configuration(set(&["clientConfig", "service", "path"], json!("a//b"))),
            &[
                "webhooks[0].clientConfig.service.path: Invalid value: \"a//b\": must start with a '/'",
                "webhooks[0].clientConfig.service.path: Invalid value: \"a//b\": segment[0] may not be empty",
                "webhooks[0].clientConfig.service.path: Invalid value: \"a//b\": segment[1] may not be empty",
            ],
        );
        check(configuration(rule("operations", json!(["*", "CREATE"]))), &["webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations"]);
        check(configuration(rule("operations", json!(["GET"]))), &["webhooks[0].rules[0].operations[0]: Unsupported value: \"GET\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\""]);
        check(configuration(rule("resources", json!(["pods/*", "pods/exec"]))), &["webhooks[0].rules[0].resources[1]: Invalid value: \"pods/exec\": if 'pods/*' is present, must not specify pods/exec"]);
        check(configuration(rule("resources", json!(["*", "pods"]))), &["webhooks[0].rules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources"]);
        check(
            configuration(set(&["namespaceSelector"], json!({"matchExpressions": [{"key": "a", "operator": "In"}]}))),
            &["webhooks[0].namespaceSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"],
        );
    }
}
