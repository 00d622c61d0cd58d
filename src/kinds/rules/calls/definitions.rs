//! Custom resource definitions: tests that look at more than one field.
//! Source: apiextensions-apiserver `pkg/apis/apiextensions/validation/validation.go`.

use crate::{
    kinds::rules::{
        Run, Site, Test, texts,
        words::{push_if, text},
    },
    meta::{FieldError, FieldErrors, Meta, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("crdgroup", |site, _, errors| {
        let (group, problems) = (text(site.value), names::dns1123_subdomain(text(site.value)));
        let detail = if problems.is_empty() { "should be a domain with at least one dot".to_owned() } else { problems.join(",") };
        push_if(!problems.is_empty() || !group.contains('.'), FieldError::invalid(site.path(), group, detail), errors);
    }),
    ("crdversions", |site, _, errors| {
        let (path, list) = (site.path().child("versions"), site.value.items_at(&["versions"]));
        let mut wrong = |detail: &'static str| errors.push(FieldError::invalid(&path, site.value["versions"].clone(), detail));
        if list.iter().enumerate().any(|(at, it)| list[..at].iter().any(|other| other.text("name") == it.text("name"))) {
            wrong("must contain unique version names");
        }
        if list.iter().filter(|it| it["storage"] == true).count() != 1 {
            wrong("must have exactly one version marked as storage version");
        }
    }),
    ("listkind", |site, _, errors| {
        let kind = site.value.text("listKind");
        push_if(site.value.text("kind") == kind, FieldError::invalid(&site.path().child("listKind"), kind, "kind and listKind may not be the same"), errors);
    }),
    ("jsonpath", |site, test, errors| {
        let path = text(site.value);
        let is_below = test.message.split(' ').filter_map(|it| path.strip_prefix(it)).any(|it| it.starts_with('.'));
        let detail = if path.starts_with('.') { format!("should be a json path under {}", test.message) } else { "must be a simple json path starting with .".to_owned() };
        push_if(!path.is_empty() && !is_below, FieldError::invalid(site.path(), path, detail), errors);
    }),
    ("mapkeys", map_keys),
];

/// The keys of a map list: properties of its items, which have them or a default for them.
fn map_keys(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const KEYS: &str = "x-kubernetes-list-map-keys";
    let (schema, path, keys) = (site.value, site.path(), texts(Some(site.value), &[KEYS]));
    let (items, required) = (&schema["items"], texts(Some(site.value), &["items", "required"]));
    for (at, key) in keys.iter().enumerate() {
        let mut wrong = |detail: &'static str| errors.push(FieldError::invalid(&path.child(KEYS), schema[KEYS].clone(), detail));
        if keys[..at].contains(key) {
            wrong("must not contain duplicate entries");
        }
        let Some(property) = items.at(&["properties", key]) else {
            wrong("entries must all be names of item properties");
            continue;
        };
        let path = path.child("items").child("properties").key(key);
        let is_scalar = !matches!(property.text("type"), "array" | "object");
        push_if(!is_scalar, FieldError::invalid(&path.child("type"), items.text("type"), "must be a scalar type if parent array's x-kubernetes-list-type is map"), errors);
        let is_there = required.contains(key) || property.get("default").is_some();
        let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
        push_if(!is_there, FieldError::required(&path.child("default"), detail), errors);
        let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        push_if(property["nullable"] == true, FieldError::forbidden(&path.child("nullable"), detail), errors);
    }
}
