//! Workloads: roll-outs, Jobs, CronJobs. Source: `pkg/apis/{apps,batch}/validation/validation.go`.

use crate::{
    kinds::{
        check, metadata,
        rules::{
            Run, Site, Test,
            words::{int, push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, cron::Schedule, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("strategytype", |site, test, errors| {
        let words: Vec<&str> = test.message.split(',').collect();
        push_if(!words.contains(&site.value.text("type")), FieldError::not_supported(site.path(), site.value.clone(), &words), errors);
    }),
    ("surge", |site, _, errors| {
        // Unlike unavailable pods, surplus ones may be more than 100%.
        let is_percent = site.value.as_str().is_some_and(|it| it.strip_suffix('%').is_some_and(|it| it.parse::<u32>().is_ok()));
        if !is_percent {
            check::percent(site.value, site.path(), errors);
        }
    }),
    ("bothzero", |site, _, errors| {
        let shown = site.value.get("maxUnavailable").cloned().unwrap_or_default();
        let is_zero = share(&site.value["maxUnavailable"]) == 0 && share(&site.value["maxSurge"]) == 0;
        push_if(is_zero && !site.value.is_null(), FieldError::invalid(&site.path().child("maxUnavailable"), shown, "may not be 0 when `maxSurge` is 0"), errors);
    }),
    ("onezero", |site, _, errors| match (share(&site.value["maxUnavailable"]) != 0, share(&site.value["maxSurge"]) != 0) {
        _ if site.value.is_null() => (),
        (true, true) => errors.push(FieldError::invalid(&site.path().child("maxSurge"), site.value["maxSurge"].clone(), "may not be set when maxUnavailable is non-zero")),
        (false, false) => errors.push(FieldError::required(&site.path().child("maxUnavailable"), "cannot be 0 when maxSurge is 0")),
        _ => (),
    }),
    ("nonzero", |site, _, errors| push_if(!site.value.is_null() && share(site.value) == 0, FieldError::invalid(site.path(), site.value.clone(), "cannot be 0"), errors)),
    ("notless", |site, _, errors| {
        let old = site.old.filter(|it| !it.is_null()).map(int);
        let is_less = old.is_some_and(|it| site.value.is_null() || int(site.value) < it);
        push_if(is_less, FieldError::invalid(site.path(), int(site.value), "cannot be decremented"), errors);
    }),
    ("claimtemplates", |site, _, errors| {
        for (at, claim) in site.value.as_array().into_iter().flatten().enumerate().filter(|_| site.old_object.is_none()) {
            errors.extend(super::super::errors_of(&claim["spec"], "io.k8s.api.core.v1.PersistentVolumeClaimSpec", &site.path().index(at).child("spec")));
        }
    }),
    // Claims become volumes of their names, which stand before the template's.
    ("claimvolumes", |site, _, errors| {
        let path = site.path().child("template").child("spec").child("volumes");
        for (at, claim) in site.value.items_at(&["volumeClaimTemplates"]).iter().enumerate() {
            let (path, name) = (path.index(at), claim.text_at(&["metadata", "name"]));
            let problems = if name.is_empty() { Vec::new() } else { names::dns1123_label(name) };
            check::all(problems, name, &path.child("name"), errors);
            for place in [path.child("name"), path.child("persistentVolumeClaim").child("claimName")].iter().filter(|_| name.is_empty()) {
                errors.push(FieldError::required(place, ""));
            }
        }
    }),
    ("revision", |site, _, errors| match site.value {
        Value::Object(_) => (),
        Value::Null => errors.push(FieldError::required(site.path(), "data is mandatory")),
        _ => errors.push(FieldError::required(site.path(), "data must be a valid JSON object")),
    }),
    ("domainpath", |site, _, errors| {
        let value = text(site.value);
        match value.split_once('/').filter(|it| !it.0.is_empty() && !it.1.is_empty()) {
            _ if site.value.is_null() => (),
            None if value.is_empty() => errors.push(FieldError::required(site.path(), "")),
            None => errors.push(FieldError::invalid(site.path(), value, "must be a domain-prefixed path (such as \"acme.io/foo\")")),
            Some((host, _)) => check::all(names::dns1123_subdomain(host), host, site.path(), errors),
        }
    }),
    ("manycompletions", many_completions),
    ("successpolicy", success_policy),
    ("failurepolicy", failure_policy),
    ("jobrestarts", |site, _, errors| errors.push(FieldError::required(site.path(), "valid values: \"OnFailure\", \"Never\""))),
    ("jobname", |site, _, errors| {
        let (spec, name) = (&site.value["spec"], site.value.name());
        let last = spec.int_at(&["completions"]).unwrap_or(0) - 1;
        let host = format!("{name}-{last}");
        let is_wrong = site.old_object.is_none() && spec.text("completionMode") == "Indexed" && last >= 0 && !names::dns1123_label(&host).is_empty();
        let path = Path::new("metadata").child("name");
        push_if(is_wrong, FieldError::invalid(&path, name, format!("will not able to create pod with invalid DNS label: {host}")), errors);
    }),
    ("generated", generated),
    ("jobselector", |site, _, errors| check::labels_of_template(site.value, site.path(), errors)),
    ("jobupdate", job_update),
    ("jobstatus", super::jobs::status),
    ("schedule", |site, _, errors| {
        let schedule = text(site.value);
        if schedule.is_empty() {
            return;
        }
        errors.extend(Schedule::parse(schedule, None).err().map(|why| FieldError::invalid(site.path(), schedule, why)));
        let (had, has_zone) = (site.old.is_some_and(|it| text(it).contains("TZ")), site.object.get("timeZone").is_some());
        if schedule.contains("TZ") && (!had || has_zone) {
            let detail = if had { "cannot use both timeZone field and TZ or CRON_TZ in schedule" } else { "cannot use TZ or CRON_TZ in schedule, use timeZone field instead" };
            errors.push(FieldError::invalid(site.path(), schedule, detail));
        }
    }),
    ("zone", zone),
    ("manual", |site, _, errors| errors.push(FieldError::not_supported(site.path(), true, &["nil", "false"]))),
];

/// A number, or that of a percentage (`getIntOrPercentValue`).
fn share(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
        other => int(other),
    }
}

fn many_completions(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const MANY: i64 = 100_000;
    const MOST: i64 = 10_000;
    let (spec, path) = (site.value, site.path());
    if int(&spec["completions"]) <= MANY || spec.get("backoffLimitPerIndex").is_none() {
        return;
    }
    if spec.get("maxFailedIndexes").is_none() {
        errors.push(FieldError::required(&path.child("maxFailedIndexes"), format!("must be specified when completions is above {MANY}")));
    }
    for field in ["parallelism", "maxFailedIndexes"].into_iter().filter(|it| int(&spec[*it]) > MOST) {
        let detail = format!("must be less than or equal to {MOST} when completions are above {MANY} and used with backoff limit per index");
        errors.push(FieldError::invalid(&path.child(field), int(&spec[field]), detail));
    }
}

/// `validateSuccessPolicy`. The site's object is the JobSpec.
fn success_policy(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    if site.value.is_null() {
        return;
    }
    let (rules, path, completions) = (site.value.items_at(&["rules"]), site.path().child("rules"), int(&site.object["completions"]));
    push_if(rules.is_empty(), FieldError::required(&path, "at least one rules must be specified when the successPolicy is specified"), errors);
    push_if(rules.len() > 20, FieldError::too_many(&path, rules.len(), 20), errors);
    for (at, rule) in rules.iter().enumerate() {
        let (path, indexes, count) = (path.index(at), rule.get("succeededIndexes").map(text), rule.int_at(&["succeededCount"]));
        push_if(indexes.is_none() && count.is_none(), FieldError::required(&path, "at least one of succeededCount or succeededIndexes must be specified"), errors);
        let total = indexes.map(|it| parse_indexes(it, completions));
        if let Some(Err(why)) = &total {
            errors.push(FieldError::invalid(&path.child("succeededIndexes"), indexes.unwrap_or_default(), format!("error parsing succeededIndexes: {why}")));
        }
        let Some(count) = count else { continue };
        let place = path.child("succeededCount");
        push_if(count < 0, FieldError::invalid(&place, count, "must be greater than or equal to 0"), errors);
        let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
        push_if(count > completions, FieldError::invalid(&place, count, detail), errors);
        if let Some(total) = total.map(|it| it.unwrap_or(0)).filter(|it| count > *it) {
            let detail = format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)");
            errors.push(FieldError::invalid(&place, count, detail));
        }
    }
}

/// How many indexes a list like `1,3-5` has (`validateIndexesFormat`).
pub fn parse_indexes(list: &str, completions: i64) -> Result<i64, String> {
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

/// `validatePodFailurePolicy`. The site's object is the JobSpec.
fn failure_policy(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let (rules, path, spec) = (site.value.items_at(&["rules"]), site.path().child("rules"), site.object);
    push_if(rules.len() > 20, FieldError::too_many(&path, rules.len(), 20), errors);
    for (at, rule) in rules.iter().enumerate() {
        let (path, action) = (path.index(at), rule.text("action"));
        let place = path.child("action");
        match action {
            "" => errors.push(FieldError::required(&place, format!("valid values: [{}]", quoted(&ACTIONS)))),
            "FailIndex" => push_if(spec.get("backoffLimitPerIndex").is_none(), FieldError::invalid(&place, action, "requires the backoffLimitPerIndex to be set"), errors),
            _ => push_if(!ACTIONS.contains(&action), FieldError::not_supported(&place, action, &ACTIONS), errors),
        }
        let (codes, conditions) = (rule.get("onExitCodes").filter(|it| !it.is_null()), rule.items_at(&["onPodConditions"]));
        codes.into_iter().for_each(|it| exit_codes(it, spec, &path.child("onExitCodes"), errors));
        pod_conditions(conditions, &path.child("onPodConditions"), errors);
        let detail = match (codes.is_some(), !conditions.is_empty()) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.push(FieldError { value: None, ..FieldError::invalid(&path, "", detail) });
    }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|it| format!("{it:?}")).collect::<Vec<_>>().join(" ")
}

fn exit_codes(codes: &Value, spec: &Value, path: &Path, errors: &mut FieldErrors) {
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let (operator, values, place) = (codes.text("operator"), codes.items_at(&["values"]), path.child("values"));
    match operator {
        "" => errors.push(FieldError::required(&path.child("operator"), format!("valid values: [{}]", quoted(&OPERATORS)))),
        _ => push_if(!OPERATORS.contains(&operator), FieldError::not_supported(&path.child("operator"), operator, &OPERATORS), errors),
    }
    let is_known = |name: &str| ["containers", "initContainers"].iter().any(|it| spec.items_at(&["template", "spec", it]).iter().any(|it| it.text("name") == name));
    if let Some(name) = codes.get("containerName").and_then(Value::as_str).filter(|it| !is_known(it)) {
        errors.push(FieldError::invalid(&path.child("containerName"), name, "must be one of the container or initContainer names in the pod template"));
    }
    let shown = codes.get("values").cloned().unwrap_or_default();
    push_if(values.is_empty(), FieldError::invalid(&place, shown.clone(), "at least one value is required"), errors);
    push_if(values.len() > 255, FieldError::too_many(&place, values.len(), 255), errors);
    for (at, value) in values.iter().enumerate() {
        push_if(operator == "In" && *value == 0, FieldError::invalid(&place.index(at), 0, "must not be 0 for the In operator"), errors);
        push_if(values[..at].contains(value), FieldError::duplicate(&place.index(at), value.clone()), errors);
    }
    push_if(values.windows(2).any(|it| int(&it[0]) > int(&it[1])), FieldError::invalid(&place, shown, "must be ordered"), errors);
}

fn pod_conditions(patterns: &[Value], path: &Path, errors: &mut FieldErrors) {
    const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
    push_if(patterns.len() > 20, FieldError::too_many(path, patterns.len(), 20), errors);
    for (at, pattern) in patterns.iter().enumerate() {
        let (path, status, kind) = (path.index(at), pattern.text("status"), pattern.text("type"));
        check::all(names::qualified_name(kind), kind, &path.child("type"), errors);
        match status {
            "" => errors.push(FieldError::required(&path.child("status"), format!("valid values: [{}]", quoted(&STATUSES)))),
            _ => push_if(!STATUSES.contains(&status), FieldError::not_supported(&path.child("status"), status, &STATUSES), errors),
        }
    }
}

/// `validateGeneratedSelector`: the labels that the server gave to the template are there.
fn generated(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (job, spec) = (site.value, &site.value["spec"]);
    let is_manual = spec.get("manualSelector") == Some(&Value::Bool(true));
    if site.old_object.is_some() || is_manual || spec.get("selector").is_none_or(Value::is_null) {
        return;
    }
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    let labels = spec.at(&["template", "metadata", "labels"]);
    for (label, expected) in [("controller-uid", job.uid()), ("job-name", job.name()), ("batch.kubernetes.io/controller-uid", job.uid()), ("batch.kubernetes.io/job-name", job.name())] {
        match labels.and_then(|it| it.get(label)).map(text) {
            None => errors.push(FieldError::required(&path.key(label), format!("must be '{expected}'"))),
            Some(found) => push_if(found != expected, FieldError::invalid(&path.key(label), labels.cloned().unwrap_or_default(), format!("must be '{expected}'")), errors),
        }
    }
}

/// `ValidateJobSpecUpdate`.
fn job_update(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let Some(old) = site.old else { return };
    let (spec, path) = (site.value, site.path());
    let (now, before) = (spec.get("completions"), old.get("completions"));
    if now != before {
        let place = path.child("completions");
        if spec.text("completionMode") != "Indexed" {
            errors.push(FieldError::invalid(&place, now.cloned().unwrap_or_default(), metadata::IMMUTABLE));
        } else if let Some(now) = now.filter(|it| Some(*it) != spec.get("parallelism")) {
            errors.push(FieldError::invalid(&place, now.clone(), "can only be modified in tandem with spec.parallelism"));
        }
    }
    for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        let (now, before) = (spec.get(field), old.get(field));
        push_if(now != before, FieldError::invalid(&path.child(field), now.cloned().unwrap_or_default(), metadata::IMMUTABLE), errors);
    }
    let is_suspended = old.get("suspend") == Some(&Value::Bool(true));
    let (template, before) = (mutable_masked(spec, is_suspended), mutable_masked(old, is_suspended));
    push_if(template != before, FieldError::invalid(&path.child("template"), spec["template"].clone(), metadata::IMMUTABLE), errors);
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
