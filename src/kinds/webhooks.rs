//! Webhook configurations: defaults, and what they share with the conversion webhooks of custom resource definitions.
//! Source: kubernetes `pkg/apis/admissionregistration/{v1/defaults.go,validation/validation.go}`, apiserver `pkg/util/webhook/validation.go`.

use serde_json::json;

use super::{
    Strategy,
    check::{each, fill, fill_at},
};
use crate::meta::{Meta, Value};

pub const CONFIGURATION: Strategy = Strategy { default, ..Strategy::PLAIN };

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Change;

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
            assert_eq!(crate::kinds::rules::told("MutatingWebhookConfiguration", &object, Change::Create), expected, "{object}");
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
