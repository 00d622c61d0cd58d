//! The status of Jobs. Source: `pkg/apis/batch/validation/validation.go` (`ValidateJobStatusUpdate`).

use super::workloads::parse_indexes;
use crate::{
    kinds::rules::{
        Site, Test, is_zero,
        words::{int, push_if, text},
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value},
};

fn is_true(status: &Value, kind: &str) -> bool {
    status.items_at(&["conditions"]).iter().any(|it| it.text("type") == kind && it.text("status") == "True")
}

/// What is said of no value: upstream omits it.
fn bare(path: &Path, detail: impl Into<std::borrow::Cow<'static, str>>) -> FieldError {
    FieldError { value: None, ..FieldError::invalid(path, "", detail) }
}

pub fn status(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (status, path, spec) = (site.value, site.path(), &site.root["spec"]);
    let old = site.old.cloned().unwrap_or_default();
    counts(status, &old, path, errors);
    conditions(status, &old, spec, &path.child("conditions"), errors);
    times(status, &old, spec, path, errors);
    indexes(status, spec, path, errors);
}

fn counts(status: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        push_if(int(&status[field]) < 0, FieldError::invalid(&path.child(field), int(&status[field]), "must be greater than or equal to 0"), errors);
    }
    let (mut seen, place) = (Vec::new(), path.child("uncountedTerminatedPods"));
    for list in ["succeeded", "failed"] {
        for (at, uid) in status.items_at(&["uncountedTerminatedPods", list]).iter().map(text).enumerate() {
            let path = place.child(list).index(at);
            push_if(uid.is_empty(), FieldError::invalid(&path, uid, "must not be empty"), errors);
            push_if(!uid.is_empty() && seen.contains(&uid), FieldError::duplicate(&path, uid), errors);
            seen.push(uid);
        }
    }
    for field in ["failed", "succeeded"].into_iter().filter(|it| int(&status[*it]) < int(&old[*it])) {
        errors.push(FieldError::invalid(&path.child(field), int(&status[field]), format!("cannot decrease the {field} counter")));
    }
    let is_finished = is_true(status, "Complete") || is_true(status, "Failed");
    push_if(is_finished && int(&status["active"]) > 0, FieldError::invalid(&path.child("active"), int(&status["active"]), "active>0 is invalid for finished job"), errors);
    push_if(is_finished && int(&status["terminating"]) > 0, FieldError::invalid(&path.child("terminating"), int(&status["terminating"]), "terminating>0 is invalid for finished job"), errors);
    let waits = status.get("uncountedTerminatedPods").is_some_and(|it| !is_zero(&it["succeeded"]) || !is_zero(&it["failed"]));
    push_if(is_finished && waits, FieldError::invalid(&place, status["uncountedTerminatedPods"].clone(), "must be empty for finished job"), errors);
    push_if(int(&status["ready"]) > int(&status["active"]), FieldError::invalid(&path.child("ready"), int(&status["ready"]), "cannot set more ready pods than active"), errors);
}

fn conditions(status: &Value, old: &Value, spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (is, was) = (|kind: &str| is_true(status, kind), |kind: &str| is_true(old, kind));
    const EXCLUSIVE: [(&str, &str, &str); 4] = [
        ("Complete", "Failed", "cannot set Complete=True and Failed=true conditions"),
        ("Complete", "FailureTarget", "cannot set Complete=True and FailureTarget=true conditions"),
        ("SuccessCriteriaMet", "Failed", "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
        ("SuccessCriteriaMet", "FailureTarget", "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
    ];
    for (one, other, detail) in EXCLUSIVE {
        push_if(is(one) && is(other), bare(path, detail), errors);
    }
    push_if(is("Failed") && !was("Failed") && !is("FailureTarget"), bare(path, "cannot set Failed=True condition without the FailureTarget=true condition"), errors);
    push_if(is("Complete") && !was("Complete") && !is("SuccessCriteriaMet"), bare(path, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition"), errors);
    let has_policy = spec.get("successPolicy").is_some_and(|it| !it.is_null());
    let detail = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
    push_if(has_policy && is("Complete") && !is("SuccessCriteriaMet"), bare(path, detail), errors);
    for kind in ["Failed", "Complete", "FailureTarget"].into_iter().filter(|it| was(it) && !is(it)) {
        errors.push(bare(path, format!("cannot disable the terminal {kind}=True condition")));
    }
    push_if(was("SuccessCriteriaMet") && !is("SuccessCriteriaMet"), bare(path, "cannot disable the SuccessCriteriaMet=True condition"), errors);
    let detail = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
    push_if(was("Complete") && !was("SuccessCriteriaMet") && is("SuccessCriteriaMet"), bare(path, detail), errors);
}

fn times(status: &Value, old: &Value, spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (start, end) = (status.text("startTime"), status.text("completionTime"));
    let is_complete = is_true(status, "Complete");
    let place = path.child("completionTime");
    push_if(!end.is_empty() && !is_complete, FieldError::invalid(&place, end, "cannot set completionTime when there is no Complete=True condition"), errors);
    push_if(end.is_empty() && is_complete, FieldError::required(&place, "completionTime is required for Complete jobs"), errors);
    push_if(!start.is_empty() && !end.is_empty() && end < start, FieldError::invalid(&place, end, "must be equal to or after `startTime`"), errors);
    let before = old.text("completionTime");
    push_if(!end.is_empty() && !before.is_empty() && end != before, FieldError::invalid(&place, end, "field is immutable"), errors);
    let is_finished = is_complete || is_true(status, "Failed");
    push_if(start.is_empty() && is_finished, FieldError::required(&path.child("startTime"), "startTime is required for finished job"), errors);
    let is_changed = !old.text("startTime").is_empty() && old.text("startTime") != start && spec.get("suspend") != Some(&Value::Bool(true));
    let shown = status.get("startTime").cloned().unwrap_or_default();
    push_if(is_changed, FieldError::invalid(&path.child("startTime"), shown, "field is immutable for unsuspended job once set"), errors);
}

fn indexes(status: &Value, spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let completions = spec.int_at(&["completions"]);
    let (done, failed) = (status.text("completedIndexes"), status.get("failedIndexes").and_then(Value::as_str));
    let has_limit = spec.get("backoffLimitPerIndex").is_some();
    let mut parse = |field: &str, list: &str| {
        if let Some(Err(why)) = completions.map(|it| parse_indexes(list, it)) {
            errors.push(FieldError::invalid(&path.child(field), list, format!("error parsing {field}: {why}")));
        }
    };
    parse("completedIndexes", done);
    failed.filter(|_| has_limit).into_iter().for_each(|it| parse("failedIndexes", it));
    let is_indexed = spec.text("completionMode") == "Indexed";
    let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
    push_if(!done.is_empty() && !is_indexed, FieldError::invalid(&path.child("completedIndexes"), done, detail), errors);
    if let Some(failed) = failed {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        push_if(!has_limit, FieldError::invalid(&path.child("failedIndexes"), failed, detail), errors);
        if let Some(at) = overlap(done, failed).filter(|_| completions.is_some()) {
            let detail = format!("failedIndexes and completedIndexes overlap at index: {at}");
            errors.push(FieldError::invalid(&path.child("failedIndexes"), failed, detail));
        }
    }
}

/// The first index that two lists share.
fn overlap(one: &str, other: &str) -> Option<i64> {
    let intervals = |list: &str| -> Vec<(i64, i64)> {
        let parse = |it: &str| it.split_once('-').map_or_else(|| Some((it.parse().ok()?, it.parse().ok()?)), |(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        list.split(',').filter_map(parse).collect()
    };
    let others = intervals(other);
    intervals(one).iter().find_map(|(from, to)| others.iter().find(|it| *from <= it.1 && it.0 <= *to).map(|it| *from.max(&it.0)))
}
