use serde_json::json;

use super::{super::structural::from_crd, check};
use crate::{
    meta::{Path, Value},
    schema::validate,
};

fn with_rules(properties: Value, rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties, "x-kubernetes-validations": rules}}})
}

fn rule(text: &str) -> Value {
    json!([{"rule": text}])
}

/// Errors and warnings of an object under a schema.
fn outcome(schema: &Value, new: Value, old: Option<Value>) -> (Vec<String>, Vec<String>) {
    let schema = from_crd(Some(schema.clone()));
    let (errors, warnings) = validate::custom(&new, old.as_ref(), &schema);
    (errors.iter().map(ToString::to_string).collect(), warnings)
}

#[test]
fn rules_are_run_where_they_stand() {
    let properties = || json!({"a": {"type": "integer"}, "b": {"type": "string"}, "ios": {"x-kubernetes-int-or-string": true}, "list": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}}});
    let cases = [
        (rule("self.a > 1"), json!({"a": 2}), vec![]),
        (rule("self.a > 1"), json!({"a": 1}), vec!["spec: Invalid value: failed rule: self.a > 1"]),
        (json!([{"rule": "self.a > 1", "message": " too small "}]), json!({"a": 1}), vec!["spec: Invalid value: too small"]),
        (json!([{"rule": "self.a > 1", "messageExpression": "'got ' + string(self.a)"}]), json!({"a": 1}), vec!["spec: Invalid value: got 1"]),
        (json!([{"rule": "self.a > 1", "message": "m", "messageExpression": "self.b"}]), json!({"a": 1}), vec!["spec: Invalid value: m"]),
        (json!([{"rule": "self.a > 1", "reason": "FieldValueForbidden", "fieldPath": ".a"}]), json!({"a": 1}), vec!["spec.a: Forbidden: failed rule: self.a > 1"]),
        (json!([{"rule": "self.a > 1", "reason": "FieldValueDuplicate"}]), json!({"a": 1}), vec!["spec: Duplicate value"]),
        (rule("self.a > 1"), json!({"b": "x"}), vec!["spec: Invalid value: \"object\": no such key: a evaluating rule: self.a > 1"]),
        (rule("self.ios > 1"), json!({"ios": "x"}), vec!["spec: Invalid value: \"object\": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self.ios > 1"]),
        (rule("true"), json!({"list": [1, 0]}), vec!["spec.list[1]: Invalid value: 0: failed rule: self > 0"]),
        (rule("self.a > 1"), json!({"a": "x"}), vec![
            "spec.a: Invalid value: \"string\": spec.a in body must be of type integer: \"string\"",
            "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
        ]),
    ];
    for (rules, spec, expected) in cases {
        let (errors, _) = outcome(&with_rules(properties(), rules.clone()), json!({"spec": spec}), None);
        assert_eq!(errors, expected, "{rules} {spec}");
    }
}

#[test]
fn transition_rules_see_what_was() {
    let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "required": ["name"],
        "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.n >= oldSelf.n"}]}});
    let schema = with_rules(json!({"a": {"type": "integer"}, "list": list}), json!([{"rule": "self.a == oldSelf.a"}, {"rule": "oldSelf.hasValue() || self.a < 10", "optionalOldSelf": true}]));
    let object = |a: i64, list: Value| json!({"spec": {"a": a, "list": list}});
    let cases = [
        (object(1, json!([])), None, vec![]),
        (object(10, json!([])), None, vec!["spec: Invalid value: failed rule: oldSelf.hasValue() || self.a < 10"]),
        (object(1, json!([])), Some(object(1, json!([]))), vec![]),
        (object(2, json!([])), Some(object(1, json!([]))), vec!["spec: Invalid value: failed rule: self.a == oldSelf.a"]),
        (object(1, json!([{"name": "y", "n": 1}, {"name": "x", "n": 1}])), Some(object(1, json!([{"name": "x", "n": 2}]))), vec!["spec.list[1]: Invalid value: failed rule: self.n >= oldSelf.n"]),
    ];
    for (new, old, expected) in cases {
        assert_eq!(outcome(&schema, new.clone(), old).0, expected, "{new}");
    }
}

#[test]
fn what_has_not_changed_need_not_become_valid() {
    let part = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}, "s": {"type": "string", "enum": ["x"]}}, "x-kubernetes-validations": [{"rule": "self.n < 3"}]});
    let schema = with_rules(json!({"part": part, "other": {"type": "string", "pattern": "^a"}}), json!([]));
    let object = |n: i64, other: &str| json!({"spec": {"part": {"n": n}, "other": other}});
    let broken = "spec.part: Invalid value: failed rule: self.n < 3";
    let cases = [
        (object(4, "a"), object(4, "ab"), vec![], vec![broken]),
        (object(9, "a"), object(9, "ab"), vec![], vec![broken]),
        (object(9, "b"), object(9, "b"), vec![], vec![broken]),
        (object(1, "b"), object(2, "b"), vec![], vec![]),
        (object(1, "a"), object(9, "a"), vec!["spec.part.n: Invalid value: 9: spec.part.n in body should be less than or equal to 5", broken], vec![]),
        (object(1, "a"), object(1, "b"), vec!["spec.other: Invalid value: \"b\": spec.other in body should match '^a'"], vec![]),
    ];
    for (old, new, errors, warnings) in cases {
        let found = outcome(&schema, new.clone(), Some(old.clone()));
        assert_eq!((found.0, found.1), (errors.into_iter().map(str::to_owned).collect(), warnings.into_iter().map(str::to_owned).collect()), "{old} {new}");
    }
}

#[test]
fn rules_of_a_crd_are_checked() {
    let properties = || json!({"a": {"type": "integer"}, "s": {"type": "string"}, "list": {"type": "array", "items": {"type": "string"}}, "few": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 10}}});
    let at = "s.properties[spec].x-kubernetes-validations[0]";
    let json_rule = |text: &str| format!("{{\"FieldPath\":\"\",\"Message\":\"\",\"MessageExpression\":\"\",\"OptionalOldSelf\":null,\"Reason\":null,\"Rule\":{text:?}}}");
    let hint = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
    let cases = [
        (rule("self.a > 1"), vec![]),
        (rule(""), vec![format!("{at}.rule: Required value: rule is not specified")]),
        (json!([{"rule": "true", "message": " "}]), vec![format!("{at}.message: Invalid value: \" \": must be non-empty if specified")]),
        (json!([{"rule": "true", "message": "a\nb"}]), vec![format!("{at}.message: Invalid value: \"a\\nb\": must not contain line breaks")]),
        (json!([{"rule": "true", "reason": "No"}]), vec![format!("{at}.reason: Unsupported value: \"No\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"")]),
        (json!([{"rule": "true", "fieldPath": ".nope"}]), vec![format!("{at}.fieldPath: Invalid value: \".nope\": must be a valid path")]),
        (rule("self.x > 1"), vec![format!("{at}.rule: Invalid value: {}: compilation failed: ERROR: <input>:1:5: undefined field 'x'\n | self.x > 1\n | ....^", json_rule("self.x > 1"))]),
        (rule("self.a"), vec![format!("{at}.rule: Invalid value: {}: cel expression must evaluate to a bool", json_rule("self.a"))]),
        (json!([{"rule": "true", "optionalOldSelf": true}]), vec![format!("{at}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule")]),
        (rule("self.few.all(x, self.few.all(y, x == y))"), vec![]),
        (rule("self.list.all(x, self.list.all(y, x == y))"), vec![
            format!("{at}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {hint}"),
            format!("{at}.rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"),
            format!("s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {hint}"),
        ]),
    ];
    for (rules, expected) in cases {
        let errors: Vec<String> = check::check(&with_rules(properties(), rules.clone()), &Path::new("s"), false).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{rules}");
    }
}
