use serde_json::json;

use super::*;
use crate::kinds::{Change, rules::told, table};

/// With the defaults of its kind.
fn filled(kind: &str, mut object: Value) -> Value {
    let registry = table::registry();
    let kind = registry.iter().find(|it| it.kind == kind).expect("a kind");
    kind.fill(&kind.versions[0], &mut object);
    object
}

fn check(found: Vec<String>, expected: &[&str]) {
    assert_eq!(found, expected);
}

fn rules() -> Value {
    json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]})
}

fn policy(change: impl Fn(&mut Value)) -> Value {
    let mut object = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": rules(), "validations": [{"expression": "object.spec.replicas <= 5"}]}});
    change(&mut object["spec"]);
    filled("ValidatingAdmissionPolicy", object)
}

#[test]
fn validating_policies_get_upstreams_errors() {
    let set = |field: &'static str, value: Value| move |spec: &mut Value| spec[field] = value.clone();
    let validate = |object: Value| told("ValidatingAdmissionPolicy", &object, Change::Create);
    check(validate(policy(|_| ())), &[]);
    check(validate(policy(set("matchConstraints", json!({})))), &["spec.matchConstraints.resourceRules: Required value"]);
    check(validate(policy(set("validations", json!([])))), &[
        "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
        "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
    ]);
    check(validate(policy(set("validations", json!([{"expression": "object.x +"}])))), &[
        "spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:1:11: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | object.x +\n | ..........^",
    ]);
    check(validate(policy(set("validations", json!([{"expression": "1"}])))), &["spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int"]);
    check(validate(policy(set("validations", json!([{"expression": "params.x == 1"}])))), &[
        "spec.validations[0].expression: Invalid value: \"params.x == 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x == 1\n | ^",
    ]);
    check(validate(policy(set("validations", json!([{"expression": "true", "messageExpression": "1", "reason": "No"}])))), &[
        "spec.validations[0].messageExpression: Invalid value: \"1\": must evaluate to string but got int",
        "spec.validations[0].reason: Unsupported value: \"No\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"",
    ]);
    check(validate(policy(set("auditAnnotations", json!([{"key": "a", "valueExpression": "1"}])))), &["spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int"]);
    check(validate(policy(set("variables", json!([{"name": "for", "expression": "1"}, {"name": "b", "expression": "variables.c"}])))), &[
        "spec.variables[0].name: Invalid value: \"for\": must be a valid CEL identifier",
        "spec.variables[1].expression: Invalid value: \"variables.c\": compilation failed: ERROR: <input>:1:10: undefined field 'c'\n | variables.c\n | .........^",
    ]);
    check(validate(policy(set("matchConditions", json!([{"name": "a", "expression": "request.x == 1"}])))), &[
        "spec.matchConditions[0].expression: Invalid value: \"request.x == 1\": compilation failed: ERROR: <input>:1:8: undefined field 'x'\n | request.x == 1\n | .......^",
    ]);
    check(validate(policy(set("paramKind", json!({"apiVersion": "a/b/c", "kind": ""})))), &["spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c", "spec.paramKind.kind: Required value"]);
}

#[test]
fn what_a_policy_lacks_is_told() {
    let set = |field: &'static str, value: Value| move |spec: &mut Value| spec[field] = value.clone();
    let validate = |object: Value| told("ValidatingAdmissionPolicy", &object, Change::Create);
    let validations = json!([{"expression": " ", "messageExpression": " ", "message": "a\nb"}]);
    check(validate(policy(set("validations", validations))), &[
        "spec.validations[0].expression: Required value: expression is not specified",
        "spec.validations[0].messageExpression: Invalid value: \" \": must be non-empty if specified",
        "spec.validations[0].message: Invalid value: \"a\\nb\": must not contain line breaks",
    ]);
    check(validate(policy(set("variables", json!([{}])))), &[
        "spec.variables[0].name: Required value: name is not specified",
        "spec.variables[0].expression: Required value: expression is not specified",
    ]);
    let annotations = json!([{"key": "a", "valueExpression": "''"}, {"key": "a b", "valueExpression": ""}, {"key": "a", "valueExpression": format!("'{}'", "x".repeat(5 * 1024))}]);
    check(validate(policy(set("auditAnnotations", annotations))), &[
        "spec.auditAnnotations[1].key: Invalid value: \"p/a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        "spec.auditAnnotations[1].valueExpression: Required value: valueExpression is not specified",
        "spec.auditAnnotations[2].valueExpression: Required value: must not exceed 5120 bytes in length",
        "spec.auditAnnotations[2].key: Duplicate value: \"a\"",
    ]);
    let mut nameless = policy(set("auditAnnotations", json!([{"key": "a", "valueExpression": "''"}])));
    nameless["metadata"] = json!({"generateName": "p-"});
    check(validate(nameless), &["spec.auditAnnotations[0].key: Invalid value: \"a\": requires metadata.name be non-empty"]);
}

#[test]
fn mutating_policies_get_upstreams_errors() {
    let with = |mutations: Value| {
        let mut object = policy(|spec| spec["mutations"] = mutations.clone());
        object["spec"]["reinvocationPolicy"] = "Never".into();
        told("MutatingAdmissionPolicy", &object, Change::Create)
    };
    check(with(json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: 1}}"}}])), &[]);
    check(with(json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: 1}]"}}])), &[]);
    check(with(json!([])), &["spec.mutations: Required value: mutations must contain at least one item"]);
    check(with(json!([{"patchType": "JSONPatch", "applyConfiguration": {"expression": "x"}}])), &[
        "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
        "spec.mutations[0].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified when patchType is JSONPatch",
    ]);
    check(with(json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object.spec{a: 1}"}}])), &[
        "spec.mutations[0].applyConfiguration.expression: Invalid value: \"Object.spec{a: 1}\": must evaluate to Object but got Object.spec",
    ]);
    check(with(json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "JSONPatch{op: 'add', path: '/a', value: 1}"}}])), &[
        "spec.mutations[0].jsonPatch.expression: Invalid value: \"JSONPatch{op: 'add', path: '/a', value: 1}\": must evaluate to list(JSONPatch) but got JSONPatch",
    ]);
}

#[test]
fn bindings_get_upstreams_errors() {
    let validate = |spec: Value| {
        let object = json!({"spec": spec});
        told("ValidatingAdmissionPolicyBinding", &filled("ValidatingAdmissionPolicyBinding", object), Change::Create)
    };
    check(validate(json!({"policyName": "p", "validationActions": ["Deny"]})), &[]);
    check(validate(json!({"validationActions": []})), &["spec.policyName: Required value", "spec.validationActions: Required value: at least one validation action is required"]);
    check(validate(json!({"policyName": "p", "validationActions": ["Deny", "Warn"]})), &["spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"]);
    check(validate(json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {}})), &["spec.paramRef: Required value: one of name or selector must be specified", "spec.paramRef.parameterNotFoundAction: Required value"]);
}

fn configuration(change: impl Fn(&mut Value)) -> Value {
    let mut object = json!({"kind": "MutatingWebhookConfiguration", "webhooks": [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "n", "name": "s"}},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]});
    change(&mut object["webhooks"][0]);
    filled("MutatingWebhookConfiguration", object)
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
        assert_eq!(told("MutatingWebhookConfiguration", &object, Change::Create), expected, "{object}");
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

#[test]
fn conditions_are_checked_against_what_they_see() {
    let check = |name: &str, expression: &str, expected: &[&str]| {
        let conditions = json!([{"name": name, "expression": expression}]);
        let errors = told("MutatingWebhookConfiguration", &configuration(|it| it["matchConditions"] = conditions.clone()), Change::Create);
        assert_eq!(errors.len(), expected.len(), "{expression}: {errors:?}");
        errors.iter().zip(expected).for_each(|(error, start)| assert!(error.starts_with(start), "{error}"));
    };
    check("a", "object.metadata.name != 'skip-me' && request.userInfo.username != 'x'", &[]);
    check("a", "authorizer.requestResource.check('update').allowed() || has(request.subResource)", &[]);
    check("a", "namespaceObject.metadata.labels['x'] == 'y' && oldObject == null", &[]);
    check("a", "... [] bad expression", &["webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed: ERROR: <input>:1:"]);
    check("a", "request.nothing == 1", &["webhooks[0].matchConditions[0].expression: Invalid value: \"request.nothing == 1\": compilation failed: ERROR: <input>:1:8: undefined field 'nothing'"]);
    check("a", "object.metadata.name", &["webhooks[0].matchConditions[0].expression: Invalid value: \"object.metadata.name\": must evaluate to bool but got dyn"]);
    check("", " ", &["webhooks[0].matchConditions[0].expression: Required value", "webhooks[0].matchConditions[0].name: Required value"]);
}
