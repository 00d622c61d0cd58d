//! Admission policies and their bindings: defaults, validation, and what is compiled of them.
//! Source: kubernetes `pkg/apis/admissionregistration/{v1/defaults.go,validation/validation.go}`, `pkg/registry/admissionregistration`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill, one_of, required},
    expressions::Scope,
};
use crate::{
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
    schema::cel::{Object, Program, Type},
};

pub const VALIDATING_POLICY: Strategy = Strategy { default: default_policy, prepare, validate: validate_validating, ..Strategy::PLAIN };
pub const MUTATING_POLICY: Strategy = Strategy { default: default_policy, validate: validate_mutating, ..Strategy::PLAIN };
pub const VALIDATING_BINDING: Strategy = Strategy { default: default_binding, ..Strategy::PLAIN };
pub const MUTATING_BINDING: Strategy = Strategy { default: default_binding, ..Strategy::PLAIN };

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_EXPRESSION_MAX: usize = 5 * 1024;
/// Operations that have an object which can be changed.
const MUTABLE: [&str; 2] = ["CREATE", "UPDATE"];

fn default_match(constraints: &mut Value) {
    fill(constraints, "matchPolicy", "Equivalent");
    for selector in ["namespaceSelector", "objectSelector"] {
        fill(constraints, selector, json!({}));
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        each(constraints, &[list]).for_each(|rule| fill(rule, "scope", "*"));
    }
}

fn default_policy(object: &mut Value) {
    fill(&mut object["spec"], "failurePolicy", "Fail");
    if let Some(constraints) = object["spec"].get_mut("matchConstraints") {
        default_match(constraints);
    }
}

fn default_binding(object: &mut Value) {
    if let Some(resources) = object["spec"].get_mut("matchResources") {
        default_match(resources);
    }
}

fn prepare(object: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        object.remove_at(&["status"]);
    }
}

/// The scope of a policy's expressions, its variables compiled one after the other; those that do not compile with their complaint.
pub fn scope(spec: &Value) -> (Scope, Vec<(String, Result<Program, String>)>) {
    let mut scope = Scope { has_params: spec["paramKind"].is_object(), has_authorizer: true, ..Scope::default() };
    let mut variables = Vec::new();
    for variable in spec.items_at(&["variables"]) {
        let (name, program) = (variable.text("name").to_owned(), scope.compile(variable.text("expression"), &[]));
        if let Ok(program) = &program {
            scope.variables.push((name.clone(), program.output().clone()));
        }
        variables.push((name, program));
    }
    (scope, variables)
}

/// What `applyConfiguration` and `jsonPatch` evaluate to.
pub fn mutation_type(patch: &str) -> Type {
    let object = |name: &str| Type::Object(Object { name: name.to_owned(), ..Object::default() }.into());
    match patch {
        "JSONPatch" => Type::list(object("JSONPatch")),
        _ => object("Object"),
    }
}

fn validate_validating(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path, spec) = (FieldErrors::new(), Path::new("spec"), &object["spec"]);
    if let Change::Part(..) = change {
        return errors;
    }
    let scope = validate_variables(spec, &path, &mut errors);
    let (validations, annotations) = (spec.items_at(&["validations"]), spec.items_at(&["auditAnnotations"]));
    if validations.is_empty() && annotations.is_empty() {
        for field in ["validations", "auditAnnotations"] {
            errors.push(FieldError::required(&path.child(field), "validations or auditAnnotations must contain at least one item"));
        }
    }
    for (at, validation) in validations.iter().enumerate() {
        validate_validation(validation, &scope, &path.child("validations").index(at), &mut errors);
    }
    let path = path.child("auditAnnotations");
    if annotations.len() > ANNOTATIONS_MAX {
        errors.push(FieldError::invalid(&path, annotations.to_vec(), format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations")));
    }
    for (at, annotation) in annotations.iter().enumerate() {
        let (path, key) = (path.index(at), annotation.text("key"));
        validate_annotation(annotation, object.name(), &scope, &path, &mut errors);
        if annotations[..at].iter().any(|it| it.text("key") == key) {
            errors.push(FieldError::duplicate(&path.child("key"), key));
        }
    }
    errors
}

/// Checks the variables; returns the scope of what follows.
fn validate_variables(spec: &Value, path: &Path, errors: &mut FieldErrors) -> Scope {
    let (scope, compiled) = scope(spec);
    for (at, variable) in spec.items_at(&["variables"]).iter().enumerate() {
        let (path, name, text) = (path.child("variables").index(at), variable.text("name"), variable.text("expression"));
        if name.trim().is_empty() {
            errors.push(FieldError::required(&path.child("name"), "name is not specified"));
        } else if !is_identifier(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, "must be a valid CEL identifier"));
        }
        match &compiled[at].1 {
            _ if text.trim().is_empty() => errors.push(FieldError::required(&path.child("expression"), "expression is not specified")),
            Err(why) => errors.push(FieldError::invalid(&path.child("expression"), text, why.clone())),
            Ok(_) => (),
        }
    }
    scope
}

fn is_identifier(name: &str) -> bool {
    let is_spelled = names::c_identifier(name).is_empty();
    is_spelled && crate::schema::cel::decl::escape(name).is_some_and(|it| it == name || name.contains("__"))
}

/// An expression that may not be missing.
fn validate_expression(owner: &Value, field: &str, wanted: &[Type], scope: &Scope, path: &Path, errors: &mut FieldErrors) {
    let text = owner.text(field);
    errors.extend(scope.compile(text, wanted).err().map(|why| FieldError::invalid(&path.child(field), text, why)));
}

fn validate_validation(validation: &Value, scope: &Scope, path: &Path, errors: &mut FieldErrors) {
    const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
    match validation.text("expression").trim() {
        "" => errors.push(FieldError::required(&path.child("expression"), "expression is not specified")),
        _ => validate_expression(validation, "expression", &[Type::BOOL], scope, path, errors),
    }
    let (expression, message) = (validation.text("messageExpression"), validation.text("message"));
    if !expression.is_empty() && expression.trim().is_empty() {
        errors.push(FieldError::invalid(&path.child("messageExpression"), expression, "must be non-empty if specified"));
    } else if !expression.is_empty() {
        let scope = Scope { has_authorizer: false, ..scope.clone() };
        validate_expression(validation, "messageExpression", &[Type::STRING], &scope, path, errors);
    }
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(FieldError::invalid(&path.child("message"), message, "must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(FieldError::invalid(&path.child("message"), message, "must not contain line breaks"));
    }
    if let Some(reason) = validation.get("reason").and_then(Value::as_str).filter(|it| !REASONS.contains(it)) {
        errors.push(FieldError::not_supported(&path.child("reason"), reason, &REASONS));
    }
}

fn validate_annotation(annotation: &Value, name: &str, scope: &Scope, path: &Path, errors: &mut FieldErrors) {
    let key = annotation.text("key");
    let whole = format!("{name}/{key}");
    match name {
        "" => errors.push(FieldError::invalid(&path.child("key"), key, "requires metadata.name be non-empty")),
        _ => errors.extend(names::qualified_name(&whole).into_iter().map(|why| FieldError::invalid(&path.child("key"), whole.as_str(), why))),
    }
    match annotation.text("valueExpression").trim() {
        "" => errors.push(FieldError::required(&path.child("valueExpression"), "valueExpression is not specified")),
        text if text.len() > ANNOTATION_EXPRESSION_MAX => {
            errors.push(FieldError::required(&path.child("valueExpression"), format!("must not exceed {ANNOTATION_EXPRESSION_MAX} bytes in length")));
        }
        _ => validate_expression(annotation, "valueExpression", &[Type::STRING, Type::NULL], scope, path, errors),
    }
}

/// Only what is created or updated can be changed.
fn validate_mutable(constraints: &Value, path: &Path, errors: &mut FieldErrors) {
    let rules = constraints.items_at(&["resourceRules"]).iter();
    for operation in rules.flat_map(|it| it.items_at(&["operations"])).filter(|it| !it.as_str().is_some_and(|it| MUTABLE.contains(&it))) {
        errors.push(FieldError::not_supported(&path.child("resourceRules").child("operations"), operation.clone(), &MUTABLE));
    }
}

fn validate_mutating(object: &Value, _: Change<'_>) -> FieldErrors {
    let (mut errors, path, spec) = (FieldErrors::new(), Path::new("spec"), &object["spec"]);
    let scope = Scope { makes_objects: true, ..validate_variables(spec, &path, &mut errors) };
    validate_mutable(&spec["matchConstraints"], &path.child("matchConstraints"), &mut errors);
    let mutations = spec.items_at(&["mutations"]);
    if mutations.is_empty() {
        errors.push(FieldError::required(&path.child("mutations"), "mutations must contain at least one item"));
    }
    for (at, mutation) in mutations.iter().enumerate() {
        validate_mutation(mutation, &scope, &path.child("mutations").index(at), &mut errors);
    }
    required(spec, "reinvocationPolicy", &path, &mut errors);
    one_of(spec, "reinvocationPolicy", &["IfNeeded", "Never"], &path, &mut errors);
    errors
}

fn validate_mutation(mutation: &Value, scope: &Scope, path: &Path, errors: &mut FieldErrors) {
    let patch = mutation.text("patchType");
    let (own, other) = match patch {
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
        "JSONPatch" => ("jsonPatch", "applyConfiguration"),
        "" => return required(mutation, "patchType", path, errors),
        _ => return one_of(mutation, "patchType", &["ApplyConfiguration", "JSONPatch"], path, errors),
    };
    match mutation.get(own).filter(|it| it.is_object()) {
        None => errors.push(FieldError::required(&path.child(own), format!("must be specified when patchType is {patch}"))),
        Some(it) if it.text("expression").trim().is_empty() => errors.push(FieldError::required(&path.child(own).child("expression"), "")),
        Some(it) => validate_expression(it, "expression", &[mutation_type(patch)], scope, &path.child(own), errors),
    }
    if mutation.get(other).is_some_and(Value::is_object) {
        errors.push(FieldError::invalid(&path.child(other), format!("{{{other}}}"), format!("must not be specified when patchType is {patch}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::kinds::rules::told;

    fn check(found: Vec<String>, expected: &[&str]) {
        assert_eq!(found, expected);
    }

    fn rules() -> Value {
        json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]})
    }

    fn policy(change: impl Fn(&mut Value)) -> Value {
        let mut object = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": rules(), "validations": [{"expression": "object.spec.replicas <= 5"}]}});
        change(&mut object["spec"]);
        default_policy(&mut object);
        object
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
            let mut object = json!({"spec": spec});
            default_binding(&mut object);
            told("ValidatingAdmissionPolicyBinding", &object, Change::Create)
        };
        check(validate(json!({"policyName": "p", "validationActions": ["Deny"]})), &[]);
        check(validate(json!({"validationActions": []})), &["spec.policyName: Required value", "spec.validationActions: Required value: at least one validation action is required"]);
        check(validate(json!({"policyName": "p", "validationActions": ["Deny", "Warn"]})), &["spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"]);
        check(validate(json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {}})), &["spec.paramRef: Required value: one of name or selector must be specified", "spec.paramRef.parameterNotFoundAction: Required value"]);
    }
}
