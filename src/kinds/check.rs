//! Small checks from which validations are made.

use crate::meta::{FieldError, FieldErrors, LabelSelector, Meta, Path, Value, names::Problems};

/// What is wrong with a name.
pub fn all(problems: Problems, value: &str, path: &Path, errors: &mut FieldErrors) {
    errors.extend(problems.into_iter().map(|it| FieldError::invalid(path, value, it)));
}

/// The same for a value that is no text.
pub fn all_of(problems: Problems, value: Value, path: &Path, errors: &mut FieldErrors) {
    errors.extend(problems.into_iter().map(|it| FieldError::invalid(path, value.clone(), it)));
}

/// A number of pods or a share of them, from 0 up to 100% (`ValidatePositiveIntOrPercent`, `IsNotMoreThan100Percent`).
pub fn percent(value: &Value, path: &Path, errors: &mut FieldErrors) {
    let wrong = |detail: &'static str| FieldError::invalid(path, value.clone(), detail);
    match value {
        Value::String(text) => match text.strip_suffix('%').filter(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit())) {
            None => errors.push(wrong("a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')")),
            Some(number) if number.parse::<u32>().is_ok_and(|it| it > 100) => errors.push(wrong("must not be greater than 100%")),
            Some(_) => (),
        },
        Value::Number(number) if number.as_i64().is_some_and(|it| it < 0) => errors.push(wrong("must be greater than or equal to 0")),
        _ => (),
    }
}

/// The selector in the spec of a workload: present, not empty, and matching the labels of the template.
pub fn selector_of_template(spec: &Value, kind: &str, errors: &mut FieldErrors) {
    let path = Path::new("spec").child("selector");
    match spec.get("selector").filter(|it| !it.is_null()) {
        None => {
            errors.extend((kind != "daemonset").then(|| FieldError::required(&path, "")));
            labels_of_template(spec, &Path::new("spec"), errors);
        }
        Some(selector) if LabelSelector::from_value(Some(selector)).is_ok_and(|it| it.is_everything()) => {
            errors.push(FieldError::invalid(&path, selector.clone(), format!("empty selector is invalid for {kind}")));
        }
        Some(selector) if LabelSelector::from_value(Some(selector)).is_err() => {
            let detail = if kind == "statefulset" { "" } else { "invalid label selector" };
            if kind != "daemonset" {
                errors.push(FieldError::invalid(&path, selector.clone(), detail));
            }
        }
        Some(_) => labels_of_template(spec, &Path::new("spec"), errors),
    }
}

/// The labels of a template match the selector beside it.
pub fn labels_of_template(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let labels = spec.at(&["template", "metadata", "labels"]);
    let get = |key: &str| labels?.get(key)?.as_str();
    // No selector matches nothing.
    let selector = spec.get("selector").filter(|it| !it.is_null());
    if selector.is_none_or(|it| LabelSelector::from_value(Some(it)).is_ok_and(|it| !it.matches_with(get))) {
        let path = path.child("template").child("metadata").child("labels");
        errors.push(FieldError::invalid(&path, labels.cloned().unwrap_or_default(), "`selector` does not match template `labels`"));
    }
}

/// Sets a default at a path where nothing stands; what leads there is made.
pub fn fill_at(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    let is_missing = match object.at(path) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if is_missing {
        object.set_at(path, value);
    }
}

/// The elements of a list at a path, to change them.
pub fn each<'a>(object: &'a mut Value, path: &[&str]) -> impl Iterator<Item = &'a mut Value> {
    let list = path.iter().try_fold(object, |value, field| value.get_mut(*field)).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}
