//! Where pods may run, and how they find names. Source: `pkg/apis/core/validation/validation.go`.

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test,
            words::{push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("oncreate", |site, _, errors| {
        let is_set = site.old_object.is_none() && site.value.as_array().is_some_and(|it| !it.is_empty());
        push_if(is_set, FieldError::forbidden(site.path(), "cannot be set on create"), errors);
    }),
    ("gates", |site, _, errors| {
        let names: Vec<&str> = site.value.as_array().into_iter().flatten().map(|it| it.text("name")).collect();
        for (at, name) in names.iter().enumerate() {
            check::all(names::qualified_name(name), name, &site.path().index(at), errors);
            push_if(names[..at].contains(name), FieldError::duplicate(&site.path().index(at), *name), errors);
        }
    }),
    ("nameservers", |site, _, errors| many(site, 3, "nameservers", errors)),
    ("searches", searches),
    ("dnsoption", |site, _, errors| push_if(site.value.text("name").is_empty(), FieldError::required(site.path(), "must not be empty"), errors)),
    ("matchexpression", |site, _, errors| match_expression(site, true, errors)),
    ("matchexpressionloose", |site, _, errors| match_expression(site, false, errors)),
    ("matchfield", match_field),
    ("mindomains", |site, _, errors| {
        let action = site.value.text("whenUnsatisfiable");
        let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
        errors.push(FieldError::invalid(&site.path().child("minDomains"), site.value["minDomains"].clone(), detail));
    }),
    ("taints", |site, _, errors| {
        let all: Vec<&Value> = site.value.as_array().into_iter().flatten().collect();
        for (at, taint) in all.iter().enumerate() {
            errors.extend(super::super::errors_of(taint, "io.k8s.api.core.v1.Taint", &site.path().index(at)));
            if all[..at].iter().any(|it| it.text("key") == taint.text("key") && it.text("effect") == taint.text("effect")) {
                let mut error = FieldError::duplicate(&site.path().index(at), (*taint).clone());
                error.detail = "taints must be unique by key and effect pair".into();
                errors.push(error);
            }
        }
    }),
];

fn many(site: &Site<'_>, most: usize, what: &str, errors: &mut FieldErrors) {
    let count = site.value.as_array().map_or(0, Vec::len);
    push_if(count > most, FieldError::invalid(site.path(), site.value.clone(), format!("must not have more than {most} {what}")), errors);
}

/// Search domains of `dnsConfig`: `.`, or a name that may begin with an underscore.
fn searches(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const LENGTH_MAX: usize = 2048;
    many(site, 32, "search paths", errors);
    let all: Vec<&str> = site.value.as_array().into_iter().flatten().map(text).collect();
    let detail = format!("must not have more than {LENGTH_MAX} characters (including spaces) in the search list");
    push_if(all.join(" ").len() > LENGTH_MAX, FieldError::invalid(site.path(), site.value.clone(), detail), errors);
    for (at, search) in all.iter().enumerate().filter(|it| *it.1 != ".") {
        let name = search.strip_suffix('.').unwrap_or(search);
        check::all(names::underscored_subdomain(name), name, &site.path().index(at), errors);
    }
}

/// `ValidateNodeSelectorRequirement`.
fn match_expression(site: &Site<'_>, checks_values: bool, errors: &mut FieldErrors) {
    let (path, values) = (site.path(), site.value.items_at(&["values"]));
    let place = path.child("values");
    match site.value.text("operator") {
        "In" | "NotIn" => push_if(values.is_empty(), FieldError::required(&place, "must be specified when `operator` is 'In' or 'NotIn'"), errors),
        "Exists" | "DoesNotExist" => push_if(!values.is_empty(), FieldError::forbidden(&place, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"), errors),
        "Gt" | "Lt" => push_if(values.len() != 1, FieldError::required(&place, "must be specified single value when `operator` is 'Lt' or 'Gt'"), errors),
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    check::all(names::qualified_name(site.value.text("key")), site.value.text("key"), &path.child("key"), errors);
    for (at, value) in values.iter().map(text).enumerate().filter(|_| checks_values) {
        check::all(names::label_value(value), value, &place.index(at), errors);
    }
}

/// `ValidateNodeFieldSelectorRequirement`: one name of a node.
fn match_field(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (path, values, key) = (site.path(), site.value.items_at(&["values"]), site.value.text("key"));
    match site.value.text("operator") {
        "In" | "NotIn" => {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            push_if(values.len() != 1, FieldError::required(&path.child("values"), detail), errors);
        }
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    if key != "metadata.name" {
        return errors.push(FieldError::invalid(&path.child("key"), key, "not a valid field selector key"));
    }
    for (at, value) in values.iter().map(text).enumerate() {
        check::all(names::dns1123_subdomain(value), value, &path.child("values").index(at), errors);
    }
}
