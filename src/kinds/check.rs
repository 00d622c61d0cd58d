//! Small checks from which validations are made.

use crate::meta::{FieldError, FieldErrors, LabelSelector, Meta, Path, Value, names::Problems};

use super::metadata::IMMUTABLE;

/// A text that must be there.
pub fn required(object: &Value, field: &str, path: &Path, errors: &mut FieldErrors) {
    if object.text(field).is_empty() {
        errors.push(FieldError::required(&path.child(field), ""));
    }
}

/// One of some words, when it is there; they are named in the order given.
pub fn one_of(object: &Value, field: &str, words: &[&str], path: &Path, errors: &mut FieldErrors) {
    let text = object.text(field);
    if !text.is_empty() && !words.contains(&text) {
        errors.push(FieldError::not_supported(&path.child(field), text, words));
    }
}

/// `ValidateNonnegativeField`.
pub fn non_negative(object: &Value, field: &str, path: &Path, errors: &mut FieldErrors) {
    if let Some(number) = object.int_at(&[field]).filter(|it| *it < 0) {
        errors.push(FieldError::invalid(&path.child(field), number, "must be greater than or equal to 0"));
    }
}

pub fn all(problems: Problems, value: &str, path: &Path, errors: &mut FieldErrors) {
    errors.extend(problems.into_iter().map(|it| FieldError::invalid(path, value, it)));
}

/// A number of pods or a share of them, from 0 up to 100% (`ValidatePositiveIntOrPercent`, `IsNotMoreThan100Percent`).
pub fn int_or_percent(object: &Value, field: &str, path: &Path, errors: &mut FieldErrors) {
    let path = path.child(field);
    match object.get(field) {
        Some(Value::String(text)) => match text.strip_suffix('%').filter(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit())) {
            None => errors.push(FieldError::invalid(&path, text.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')")),
            Some(number) if number.parse::<u32>().is_ok_and(|it| it > 100) => errors.push(FieldError::invalid(&path, text.as_str(), "must not be greater than 100%")),
            Some(_) => (),
        },
        Some(Value::Number(number)) if number.as_i64().is_some_and(|it| it < 0) => {
            errors.push(FieldError::invalid(&path, number.as_i64(), "must be greater than or equal to 0"));
        }
        _ => (),
    }
}

/// A field that may not change once the object exists (`ValidateImmutableField`).
pub fn immutable(new: &Value, old: &Value, at: &[&str], errors: &mut FieldErrors) {
    if new.at(at) != old.at(at) {
        let path = at.iter().fold(Path::root(), |path, field| path.child(field));
        errors.push(FieldError::invalid(&path, new.at(at).cloned().unwrap_or_default(), IMMUTABLE));
    }
}

/// `spec.selector` of a workload: present, not empty, and matching the labels of the template.
pub fn selector_of_template(object: &Value, kind: &str, errors: &mut FieldErrors) {
    let path = Path::new("spec").child("selector");
    let selector = object.at(&["spec", "selector"]);
    match LabelSelector::from_value(selector) {
        _ if selector.is_none_or(Value::is_null) => errors.push(FieldError::required(&path, "")),
        Err(why) => errors.push(FieldError::invalid(&path, selector.cloned().unwrap_or_default(), why)),
        Ok(parsed) if parsed.is_everything() => {
            errors.push(FieldError::invalid(&path, selector.cloned().unwrap_or_default(), format!("empty selector is invalid for {kind}")));
        }
        Ok(parsed) => {
            let labels = object.at(&["spec", "template", "metadata", "labels"]);
            let get = |key: &str| labels?.get(key)?.as_str();
            if !parsed.matches_with(get) {
                let path = Path::new("spec").child("template").child("metadata").child("labels");
                errors.push(FieldError::invalid(&path, labels.cloned().unwrap_or_default(), "`selector` does not match template `labels`"));
            }
        }
    }
}

/// Sets a default where nothing stands.
pub fn fill(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        match map.get(field) {
            None | Some(Value::Null) => _ = map.insert(field.to_owned(), value.into()),
            Some(Value::String(text)) if text.is_empty() => _ = map.insert(field.to_owned(), value.into()),
            Some(_) => (),
        }
    }
}

/// Sets a default at a path; what leads there is made.
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
