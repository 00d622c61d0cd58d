//! Checks a value against the schema of a custom resource, with the errors of upstream's OpenAPI validator.
//! Source: kube-openapi `pkg/validation/validate`, apiextensions-apiserver `pkg/apiserver/validation`.

use std::{cmp::Ordering, collections::HashSet};

use super::{
    ListTopology, Schema, Shape,
    correlation::{Correlation, identity},
    formats,
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, field::FieldReason, pattern};

/// All checks of a custom resource, in upstream's order; `old` is what it was before an update. Besides errors there are warnings:
/// rules that do not hold, and did not hold before (`customResourceStrategy.Validate`, `ValidateUpdate`).
pub fn custom(new: &Value, old: Option<&Value>, schema: &Schema) -> (FieldErrors, Vec<String>) {
    let mut errors = FieldErrors::new();
    let Some(rules) = &schema.rules else { return (errors, Vec::new()) };
    visit(Correlation::new(new, old, &rules.source), &Path::root(), &mut errors);
    if old.is_none_or(|it| lists(it, schema).is_empty()) {
        errors.extend(lists(new, schema));
    }
    let Some(validations) = rules.validations() else { return (errors, Vec::new()) };
    if errors.iter().any(is_blocking) {
        const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        errors.push(FieldError::invalid(&Path::root(), Value::Null, UNCHECKED));
        return (errors, Vec::new());
    }
    let (broken, warnings) = validations.validate(new, old, &rules.source);
    errors.extend(broken);
    (errors, warnings)
}

/// Rules make no sense of an object whose form is wrong.
fn is_blocking(error: &FieldError) -> bool {
    matches!(error.reason, FieldReason::NotSupported | FieldReason::Required | FieldReason::TooLong | FieldReason::TooMany | FieldReason::TypeInvalid)
}

fn visit(place: Correlation<'_>, path: &Path, errors: &mut FieldErrors) {
    // What has not changed need not become valid (KEP-4008).
    let is_unchanged = place.old.is_some() && place.is_unchanged();
    if is_unchanged || (place.value.is_null() && place.schema["nullable"] == true) || !check(place.value, place.schema, path, errors) {
        return;
    }
    for name in place.value.as_object().into_iter().flatten().map(|it| it.0).filter(|it| !place.is_of_object(it)) {
        if let Some(below) = place.key(name) {
            visit(below, &path.child(name), errors);
        }
    }
    place.items().enumerate().for_each(|(at, place)| visit(place, &path.index(at), errors));
}

/// What sets and list maps hold twice, anywhere in the object.
fn lists(value: &Value, schema: &Schema) -> FieldErrors {
    let mut errors = FieldErrors::new();
    visit_lists(value, schema, &Path::root(), &mut errors);
    errors
}

fn visit_lists(value: &Value, schema: &Schema, path: &Path, errors: &mut FieldErrors) {
    if schema.is_builtin() {
        return;
    }
    match (&schema.shape, value) {
        (shape, Value::Object(map)) => {
            let step = if matches!(shape, Shape::Map { .. }) { Path::key } else { Path::child };
            map.iter().filter_map(|(name, value)| Some((step(path, name), value, schema.below(name)?))).for_each(|(path, value, below)| visit_lists(value, below, &path, errors));
        }
        (Shape::List { items, topology }, Value::Array(list)) => {
            list.iter().enumerate().for_each(|(at, value)| visit_lists(value, items, &path.index(at), errors));
            unique(list, topology, path, errors);
        }
        _ => (),
    }
}

/// Duplicates in sets and list maps.
fn unique(list: &[Value], topology: &ListTopology, path: &Path, errors: &mut FieldErrors) {
    let keys = match topology {
        ListTopology::Atomic => return,
        ListTopology::Set => None,
        ListTopology::Map(keys) => Some(keys),
    };
    let of_keys = |value: &Value, keys: &[String]| Value::Object(keys.iter().filter_map(|key| Some((key.clone(), value.get(key)?.clone()))).collect());
    let mut seen = HashSet::new();
    for (at, value) in list.iter().enumerate() {
        if !seen.insert(keys.map_or_else(|| vec![Some(value)], |it| identity(value, it))) {
            errors.push(FieldError::duplicate(&path.index(at), keys.map_or_else(|| value.clone(), |it| of_keys(value, it))));
        }
    }
}

/// The checks of one node; `false` when the type is wrong and nothing below makes sense.
fn check(value: &Value, rules: &Value, path: &Path, errors: &mut FieldErrors) -> bool {
    if !is_of_type(value, rules) {
        let wanted = if rules["x-kubernetes-int-or-string"] == true { "integer,string" } else { rules.text("type") };
        let detail = format!("{} in body must be of type {wanted}: {:?}", path.as_str(), type_name(value));
        errors.push(FieldError::type_invalid(path, type_name(value), detail));
        return false;
    }
    combinations(value, rules, path, errors);
    let mut problems = Vec::new();
    errors.extend(sizes(value, rules, path, &mut problems));
    match value {
        Value::String(text) => strings(text, rules, &mut problems),
        Value::Number(number) => numbers(number.as_f64().unwrap_or_default(), rules, &mut problems),
        _ => (),
    }
    errors.extend(problems.into_iter().map(|it| FieldError::invalid(path, value.clone(), format!("{} in body {it}", path.as_str()))));
    let format = rules.text("format");
    if let Some(text) = value.as_str().filter(|it| !formats::is_of(it, format)) {
        errors.push(FieldError::type_invalid(path, text, format!("{} in body must be of type {format}: {text:?}", path.as_str())));
    }
    let allowed = rules.items_at(&["enum"]);
    if !allowed.is_empty() && !allowed.contains(value) {
        let texts: Vec<String> = allowed.iter().map(|it| it.as_str().map_or_else(|| it.to_string(), str::to_owned)).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &texts));
    }
    // A resource within another says what it is (`ValidateEmbeddedResource`).
    let embedded: &[&str] = if rules["x-kubernetes-embedded-resource"] == true { &["apiVersion", "kind"] } else { &[] };
    let required = embedded.iter().copied().chain(rules.texts_at(&["required"]));
    errors.extend(required.filter(|it| value.is_object() && value.get(it).is_none()).map(|it| FieldError::required(&path.child(it), "")));
    true
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_of_type(value: &Value, rules: &Value) -> bool {
    if rules["x-kubernetes-int-or-string"] == true {
        return value.is_i64() || value.is_string();
    }
    match rules.text("type") {
        "" => true,
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|it| it.fract() == 0.0),
        wanted => type_name(value) == wanted,
    }
}

fn strings(text: &str, rules: &Value, problems: &mut Vec<String>) {
    let pattern = rules.text("pattern");
    if !pattern.is_empty() && pattern::compiled(pattern).is_ok_and(|it| !it.is_match(text)) {
        problems.push(format!("should match '{pattern}'"));
    }
}

fn numbers(number: f64, rules: &Value, problems: &mut Vec<String>) {
    let bound = |name: &str| rules.get(name).and_then(Value::as_f64);
    for (name, exclusive, word, beyond) in [("maximum", "exclusiveMaximum", "less", Ordering::Greater), ("minimum", "exclusiveMinimum", "greater", Ordering::Less)] {
        let is_exclusive = rules[exclusive] == true;
        if let Some(bound) = bound(name).filter(|it| number.partial_cmp(it) == Some(beyond) || (is_exclusive && number == *it)) {
            problems.push(format!("should be {word} than {}{bound}", if is_exclusive { "" } else { "or equal to " }));
        }
    }
    if let Some(factor) = bound("multipleOf").filter(|it| *it > 0.0 && (number / it).fract() != 0.0) {
        problems.push(format!("should be a multiple of {factor}"));
    }
}

/// The fewest and the most of what a value holds; more than the most has a reason of its own.
fn sizes(value: &Value, rules: &Value, path: &Path, problems: &mut Vec<String>) -> Option<FieldError> {
    let (count, [least, most], noun) = match value {
        Value::String(text) => (text.chars().count(), ["minLength", "maxLength"], "chars"),
        Value::Array(list) => (list.len(), ["minItems", "maxItems"], "items"),
        Value::Object(map) => (map.len(), ["minProperties", "maxProperties"], "properties"),
        _ => return None,
    };
    let bound = |name: &str| rules.int_at(&[name]).and_then(|it| usize::try_from(it).ok());
    if let Some(least) = bound(least).filter(|it| count < *it) {
        problems.push(if value.is_string() { format!("should be at least {least} {noun} long") } else { format!("should have at least {least} {noun}") });
    }
    let most = bound(most).filter(|it| count > *it)?;
    Some(if value.is_string() { FieldError::too_long(path, most) } else { FieldError::too_many(path, count, most) })
}

/// `allOf`, `anyOf`, `oneOf` and `not`: checks of the value alone, as structural schemas allow them. Where none of several holds, what is
/// wrong with the first is told too.
fn combinations(value: &Value, rules: &Value, path: &Path, errors: &mut FieldErrors) {
    let failures = |rules: &Value| {
        let mut errors = FieldErrors::new();
        visit(Correlation::part(value, rules), path, &mut errors);
        errors
    };
    let fail = |detail: String| FieldError::invalid(&Path::root(), "", format!("\"{}\" must {detail}", path.as_str()));
    let each = |word: &str| rules.items_at(&[word]).iter().map(failures).collect::<Vec<_>>();
    let valid = |all: &[FieldErrors]| all.iter().filter(|it| it.is_empty()).count();
    let any = rules.items_at(&["anyOf"]);
    if !any.is_empty() && any.iter().all(|it| !failures(it).is_empty()) {
        errors.push(fail("validate at least one schema (anyOf)".to_owned()));
        errors.extend(any.first().map(failures).unwrap_or_default());
    }
    let one = each("oneOf");
    match valid(&one) {
        _ if one.is_empty() => (),
        0 => {
            errors.push(fail("validate one and only one schema (oneOf). Found none valid".to_owned()));
            errors.extend(one.into_iter().next().unwrap_or_default());
        }
        1 => (),
        count => errors.push(fail(format!("validate one and only one schema (oneOf). Found {count} valid alternatives"))),
    }
    let all = each("allOf");
    if valid(&all) < all.len() {
        let none = if valid(&all) == 0 { ". None validated" } else { "" };
        errors.extend(all.into_iter().flatten());
        errors.push(fail(format!("validate all the schemas (allOf){none}")));
    }
    if rules.get("not").is_some_and(|it| failures(it).is_empty()) {
        errors.push(fail("not validate the schema (not)".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::structural::from_crd;
    use serde_json::json;

    #[test]
    fn invalid_values_get_upstreams_errors() {
        let schema = from_crd(Some(json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "minimum": 1, "maximum": 5}, "s": {"type": "string", "maxLength": 2, "pattern": "^x"}, "e": {"type": "string", "enum": ["p", "q"]},
            "l": {"type": "array", "maxItems": 1, "x-kubernetes-list-type": "set", "items": {"type": "string"}}, "i": {"x-kubernetes-int-or-string": true}}}}})));
        let cases = [
            (json!({"spec": {"a": 1, "i": "25%"}}), vec![]),
            (json!({"spec": {}}), vec!["spec.a: Required value"]),
            (json!({"spec": {"a": "x"}}), vec!["spec.a: Invalid value: \"string\": spec.a in body must be of type integer: \"string\""]),
            (json!({"spec": {"a": 0}}), vec!["spec.a: Invalid value: 0: spec.a in body should be greater than or equal to 1"]),
            (json!({"spec": {"a": 9}}), vec!["spec.a: Invalid value: 9: spec.a in body should be less than or equal to 5"]),
            (json!({"spec": {"a": 1, "s": "yyy"}}), vec!["spec.s: Too long: may not be more than 2 bytes", "spec.s: Invalid value: \"yyy\": spec.s in body should match '^x'"]),
            (json!({"spec": {"a": 1, "e": "z"}}), vec!["spec.e: Unsupported value: \"z\": supported values: \"p\", \"q\""]),
            (json!({"spec": {"a": 1, "l": ["x", "x"]}}), vec!["spec.l: Too many: 2: must have at most 1 items", "spec.l[1]: Duplicate value: \"x\""]),
        ];
        for (value, expected) in cases {
            let errors: Vec<String> = custom(&value, None, &schema).0.iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{value}");
        }
    }
}
