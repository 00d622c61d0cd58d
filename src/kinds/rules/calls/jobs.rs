//! Jobs: lists of indexes, and what else compares parts of them. Source: `pkg/apis/batch/validation/validation.go`.

use crate::{
    kinds::{
        check, metadata,
        rules::{
            Run, Site, Test,
            words::{int, push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Value, cron::Schedule},
};

pub const CALLS: &[(&str, Run)] = &[
    // The words say how many completions there are; where there are none, nothing is wrong.
    ("indexes", |site, test, errors| {
        let completions = site.say(test).parse().map(|it| parse_indexes(text(site.value), it));
        let wrong = |why: String| FieldError::invalid(site.path(), text(site.value), format!("error parsing {}: {why}", site.suffix));
        errors.extend(completions.ok().and_then(Result::err).map(wrong));
    }),
    ("indexcount", |site, _, errors| {
        let total = parse_indexes(site.object.text("succeededIndexes"), int(&site.owner.parent()["completions"])).unwrap_or(0);
        let detail = format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)");
        push_if(int(site.value) > total, FieldError::invalid(site.path(), site.value.clone(), detail), errors);
    }),
    ("overlap", |site, _, errors| {
        let wrong = |at: i64| FieldError::invalid(site.path(), text(site.value), format!("failedIndexes and completedIndexes overlap at index: {at}"));
        errors.extend(overlap(site.object.text("completedIndexes"), text(site.value)).map(wrong));
    }),
    ("jobselector", |site, _, errors| check::labels_of_template(site.value, site.path(), errors)),
    ("jobtemplate", |site, _, errors| {
        let Some(old) = site.old else { return };
        let is_suspended = old.get("suspend") == Some(&Value::Bool(true));
        let is_changed = mutable_masked(site.value, is_suspended) != mutable_masked(old, is_suspended);
        push_if(is_changed, FieldError::invalid(&site.path().child("template"), site.value["template"].clone(), metadata::IMMUTABLE), errors);
    }),
    ("schedule", |site, _, errors| errors.extend(Schedule::parse(text(site.value), None).err().map(|why| FieldError::invalid(site.path(), text(site.value), why)))),
    ("zone", zone),
];

/// How many indexes a list like `1,3-5` has (`validateIndexesFormat`).
fn parse_indexes(list: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut total) = (None, 0);
    for interval in list.split(',').filter(|_| !list.is_empty()) {
        let number = |text: &str| text.parse::<i64>().map_err(|_| format!("cannot convert string to integer for index: {text:?}"));
        let bounded = |text: &str| number(text).and_then(|it| if it >= completions { Err(format!("too large index: {text:?}")) } else { Ok(it) });
        let parts: Vec<&str> = interval.split('-').collect();
        let (from, to) = match parts.as_slice() {
            [one] => (bounded(one)?, bounded(one)?),
            [from, to] => (bounded(from)?, bounded(to)?),
            _ => return Err(format!("the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'")),
        };
        if parts.len() == 2 && from >= to {
            return Err(format!("non-increasing order, previous: {from}, current: {to}"));
        }
        if let Some(last) = last.filter(|it| *it >= from) {
            return Err(format!("non-increasing order, previous: {last}, current: {from}"));
        }
        total += to - from + 1;
        last = Some(to);
    }
    Ok(total)
}

/// The first index that two lists share.
fn overlap(one: &str, other: &str) -> Option<i64> {
    let intervals = |list: &str| -> Vec<(i64, i64)> {
        let parse = |it: &str| it.split_once('-').map_or_else(|| Some((it.parse().ok()?, it.parse().ok()?)), |(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        list.split(',').filter_map(parse).collect()
    };
    let others = intervals(other);
    let mut others = others.iter().peekable();
    intervals(one).iter().find_map(|(from, to)| {
        while others.next_if(|it| it.1 < *from).is_some() {}
        others.peek().filter(|it| it.0 <= *to).map(|it| *from.max(&it.0))
    })
}

/// The template without what may change while a Job is suspended: where its pods run, and their resources.
fn mutable_masked(spec: &Value, is_suspended: bool) -> Value {
    let mut template = spec["template"].clone();
    if is_suspended {
        for path in [&["metadata", "labels"][..], &["metadata", "annotations"], &["spec", "nodeSelector"], &["spec", "tolerations"], &["spec", "schedulingGates"], &["spec", "affinity", "nodeAffinity"]] {
            template.remove_at(path);
        }
        for list in ["containers", "initContainers"] {
            check::each(&mut template, &["spec", list]).for_each(|it| _ = it.remove_at(&["resources"]));
        }
    }
    template
}

fn zone(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let name = text(site.value);
    if site.value.is_null() || site.old == Some(site.value) {
        return;
    }
    let mut wrong = |detail: String| errors.push(FieldError::invalid(site.path(), name, detail));
    let is_part = |part: &str| !matches!(part, "." | "..") && !part.starts_with('-') && (1..=14).contains(&part.len()) && part.bytes().all(|it| it.is_ascii_alphanumeric() || b".-_+".contains(&it));
    if name.is_empty() {
        return wrong("timeZone must be nil or non-empty string".to_owned());
    }
    if !name.split('/').all(is_part) {
        return wrong(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("local") {
        wrong("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned());
    } else if jiff::tz::db().get(name).is_err() {
        wrong(format!("unknown time zone {name}"));
    }
}
