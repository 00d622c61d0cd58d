//! LimitRanger: what containers get where they ask for nothing, and how much they may ask for.
//! Source: kubernetes `plugin/pkg/admission/limitranger/admission.go`.

use super::admission::Context;
use crate::{
    kinds::{
        check::each,
        quota::{self, amounts},
        rules::words::quantity,
    },
    meta::{Meta, Quantity, Result, Value, status::aggregate},
};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
const LISTS: [&str; 2] = ["initContainers", "containers"];

fn ranges(context: &Context<'_>) -> Vec<Value> {
    context.snapshot.list("limitranges", Some(&context.target.namespace), None).map(|it| it.value()).collect()
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range.items_at(&["spec", "limits"]).iter().filter(move |it| it.text("type") == kind)
}

/// Fills in requests and limits, and says so in an annotation.
pub fn default(context: &Context<'_>, pod: &mut Value) -> Result<()> {
    let mut notes = Vec::new();
    for range in ranges(context) {
        for item in items(&range, "Container") {
            for list in LISTS {
                each(pod, &["spec", list]).for_each(|it| fill(it, item, &mut notes));
            }
        }
    }
    if !notes.is_empty() {
        pod.set_at(&["metadata", "annotations", ANNOTATION], format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
    Ok(())
}

fn fill(container: &mut Value, item: &Value, notes: &mut Vec<String>) {
    let name = container.text("name").to_owned();
    for (kind, from, word) in [("requests", "defaultRequest", "request"), ("limits", "default", "limit")] {
        let mut set = Vec::new();
        for (resource, value) in item.map_at(&[from]).into_iter().flatten() {
            if container.at(&["resources", kind, resource]).is_none() {
                container.set_at(&["resources", kind, resource], value.clone());
                set.push(resource.as_str());
            }
        }
        if !set.is_empty() {
            notes.push(format!("{} {word} for container {name}", set.join(", ")));
        }
    }
}

/// 403 for what is outside the limits of its namespace.
pub fn check(context: &Context<'_>, object: &Value) -> Result<()> {
    let is_claim = context.is("", "persistentvolumeclaims");
    let is_pod = context.is("", "pods") && context.is_create() || context.target.kind.plural == "pods" && context.target.subresource_name() == "resize";
    if !is_claim && !is_pod {
        return Ok(());
    }
    let mut errors = Vec::new();
    for range in ranges(context) {
        if is_claim {
            items(&range, "PersistentVolumeClaim").for_each(|it| judge(it, "PersistentVolumeClaim", &|kind, name| object.at(&["spec", "resources", kind, name]).and_then(quantity), &mut errors));
            continue;
        }
        for container in LISTS.iter().flat_map(|it| object.items_at(&["spec", it])) {
            items(&range, "Container").for_each(|it| judge(it, "Container", &|kind, name| container.at(&["resources", kind, name]).and_then(quantity), &mut errors));
        }
        let usage = quota::usage("", "pods", object);
        items(&range, "Pod").for_each(|it| judge(it, "Pod", &|kind, name| usage.get(&format!("{kind}.{name}")).copied(), &mut errors));
    }
    aggregate(&errors).map_or(Ok(()), |why| Err(context.forbid(object, why)))
}

/// Judges what is asked for by one item of a LimitRange. `of` gives the amount of `requests` or `limits` by resource.
fn judge(item: &Value, kind: &str, of: &dyn Fn(&str, &str) -> Option<Quantity>, errors: &mut Vec<String>) {
    for (name, least) in amounts(item, &["min"]) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match (of("requests", &name), of("limits", &name)) {
            (None, _) => errors.push(format!("{head}.  No request is specified")),
            (Some(request), _) if request < least => errors.push(format!("{head}, but request is {request}")),
            (_, Some(limit)) if limit < least => errors.push(format!("{head}, but limit is {limit}")),
            _ => (),
        }
    }
    for (name, most) in amounts(item, &["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        // Claims have requests only.
        let limit = if kind == "PersistentVolumeClaim" { of("requests", &name) } else { of("limits", &name) };
        match (limit, of("requests", &name)) {
            (None, _) => errors.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if limit > most && kind == "PersistentVolumeClaim" => errors.push(format!("{head}, but request is {limit}")),
            (Some(limit), _) if limit > most => errors.push(format!("{head}, but limit is {limit}")),
            (_, Some(request)) if request > most => errors.push(format!("{head}, but request is {request}")),
            _ => (),
        }
    }
    for (name, most) in amounts(item, &["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        match (of("requests", &name).filter(|it| !it.is_zero()), of("limits", &name)) {
            (None, _) => errors.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{head}, but no limit is specified")),
            (Some(request), Some(limit)) => {
                let ratio = limit.millis() as f64 / request.millis().max(1) as f64;
                if ratio > most.millis() as f64 / 1000.0 {
                    errors.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_are_judged_in_upstreams_words() {
        let item = json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "2"}});
        let of = |request: &'static str, limit: &'static str| move |kind: &str, _: &str| if kind == "requests" { request } else { limit }.parse().ok();
        let judged = |request, limit| {
            let mut errors = Vec::new();
            judge(&item, "Container", &of(request, limit), &mut errors);
            errors
        };
        assert_eq!(judged("100m", "200m"), Vec::<String>::new());
        assert_eq!(judged("10m", "10m"), ["minimum cpu usage per Container is 50m, but request is 10m"]);
        assert_eq!(judged("400m", "600m"), ["maximum cpu usage per Container is 500m, but limit is 600m"]);
        assert_eq!(judged("100m", "300m"), ["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"]);
    }

    #[test]
    fn containers_get_defaults() {
        let item = json!({"default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"}});
        let (mut container, mut notes) = (json!({"name": "c"}), Vec::new());
        fill(&mut container, &item, &mut notes);
        assert_eq!(container["resources"], json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}));
        assert_eq!(notes, ["cpu request for container c", "cpu limit for container c"]);
    }
}
