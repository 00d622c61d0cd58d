//! More cells of `kubectl get`: those of storage, networking, policies and administration
//! (`pkg/printers/internalversion/printers.go`).

use jiff::Timestamp;

use super::columns::{human_duration, join};
use crate::meta::{Meta, Value};

const UNSET: &str = "<unset>";
const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

fn texts<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a str> {
    object.texts_at(path)
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// `RWO,ROX`, each once and in upstream's order.
pub fn access_modes(object: &Value, part: &str) -> String {
    const SHORT: [(&str, &str); 4] = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    join(SHORT.iter().filter(|(mode, _)| texts(object, &[part, "accessModes"]).any(|it| it == *mode)).map(|(_, short)| *short))
}

pub fn phase(object: &Value, _: Timestamp) -> Value {
    if object.deletion_timestamp().is_some() { "Terminating".into() } else { object.text_at(&["status", "phase"]).into() }
}

pub fn volume_claim(object: &Value, _: Timestamp) -> Value {
    match object.at(&["spec", "claimRef"]) {
        Some(claim) => format!("{}/{}", claim.text("namespace"), claim.text("name")).into(),
        None => "".into(),
    }
}

pub fn storage_class(object: &Value, _: Timestamp) -> Value {
    let annotation = object.annotations().find(|(key, _)| *key == "volume.beta.kubernetes.io/storage-class").map(|it| it.1);
    annotation.unwrap_or(object.text_at(&["spec", "storageClassName"])).into()
}

/// Of a bound claim.
pub fn claim_capacity(object: &Value, _: Timestamp) -> Value {
    if object.text_at(&["spec", "volumeName"]).is_empty() { "".into() } else { object.text_at(&["status", "capacity", "storage"]).into() }
}

pub fn claim_modes(object: &Value, _: Timestamp) -> Value {
    if object.text_at(&["spec", "volumeName"]).is_empty() { "".into() } else { access_modes(object, "status").into() }
}

pub fn class_name(object: &Value, _: Timestamp) -> Value {
    let is_default = object.annotations().any(|(key, value)| key.ends_with("storageclass.kubernetes.io/is-default-class") && value == "true");
    format!("{}{}", object.name(), if is_default { " (default)" } else { "" }).into()
}

pub fn ingress_hosts(object: &Value, _: Timestamp) -> Value {
    const MOST: usize = 3;
    let rules = object.items_at(&["spec", "rules"]);
    let hosts = join(rules.iter().take(MOST).map(|it| it.text("host")).filter(|it| !it.is_empty()));
    match (hosts.is_empty(), rules.len() > MOST) {
        (true, _) => "*".into(),
        (false, true) => format!("{hosts} + {} more...", rules.len() - MOST).into(),
        (false, false) => hosts.into(),
    }
}

pub fn ingress_address(object: &Value, _: Timestamp) -> Value {
    let mut all: Vec<&str> = object.items_at(&["status", "loadBalancer", "ingress"]).iter().map(|it| or(it.text("ip"), it.text("hostname"))).collect();
    all.sort_unstable();
    join(all).into()
}

pub fn ingress_ports(object: &Value, _: Timestamp) -> Value {
    if object.items_at(&["spec", "tls"]).is_empty() { "80".into() } else { "80, 443".into() }
}

pub fn class_parameters(object: &Value, _: Timestamp) -> Value {
    let Some(parameters) = object.at(&["spec", "parameters"]) else { return NONE.into() };
    let group = parameters.text("apiGroup");
    let kind = if group.is_empty() { parameters.text("kind").to_owned() } else { format!("{}.{group}", parameters.text("kind")) };
    format!("{kind}/{}", parameters.text("name")).into()
}

pub fn suspended(object: &Value, _: Timestamp) -> Value {
    match object.at(&["spec", "suspend"]) {
        Some(Value::Bool(value)) => if *value { "True" } else { "False" }.into(),
        _ => UNSET.into(),
    }
}

pub fn last_schedule(object: &Value, now: Timestamp) -> Value {
    match object.text_at(&["status", "lastScheduleTime"]) {
        "" => NONE.into(),
        time => super::columns::age(time, now).into(),
    }
}

/// A number, a text, or a word for what is absent.
pub fn int_or_text(value: Option<&Value>, default: &str) -> Value {
    match value {
        Some(Value::String(text)) => text.as_str().into(),
        Some(number) => number.to_string().into(),
        None => default.into(),
    }
}

pub fn quota(object: &Value, is_limit: bool) -> Value {
    let mut names: Vec<&String> = object.map_at(&["status", "hard"]).into_iter().flat_map(|it| it.keys()).filter(|it| it.starts_with("limits.") == is_limit).collect();
    names.sort();
    let one = |name: &&String| format!("{name}: {}/{}", or(object.text_at(&["status", "used", name]), "0"), object.text_at(&["status", "hard", name]));
    names.iter().map(one).collect::<Vec<_>>().join(", ").into()
}

pub fn scale_target(object: &Value, _: Timestamp) -> Value {
    format!("{}/{}", object.text_at(&["spec", "scaleTargetRef", "kind"]), object.text_at(&["spec", "scaleTargetRef", "name"])).into()
}

/// What a metric is and is to be: `cpu: 10%/80%`.
fn metric(spec: &Value, status: Option<&Value>) -> String {
    let field = match spec.text("type") {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        _ => "resource",
    };
    let current = |name: &str| status.and_then(|it| it.at(&[field, "current", name])).cloned();
    let text = |value: Option<Value>| value.map_or_else(|| UNKNOWN.to_owned(), |it| it.as_str().map_or_else(|| it.to_string(), str::to_owned));
    let target = |name: &str| spec.text_at(&[field, "target", name]).to_owned();
    let has_average = spec.at(&[field, "target", "averageValue"]).is_some();
    match (field, has_average) {
        ("resource" | "containerResource", true) => format!("{}: {}/{}", spec.text_at(&[field, "name"]), text(current("averageValue")), target("averageValue")),
        ("resource" | "containerResource", false) => {
            let used = current("averageUtilization").map_or_else(|| UNKNOWN.to_owned(), |it| format!("{it}%"));
            let wanted = spec.int_at(&[field, "target", "averageUtilization"]).map_or_else(|| "<auto>".to_owned(), |it| format!("{it}%"));
            format!("{}: {used}/{wanted}", spec.text_at(&[field, "name"]))
        }
        ("pods", _) => format!("{}/{}", text(current("averageValue")), target("averageValue")),
        (_, true) => format!("{}/{} (avg)", text(current("averageValue")), target("averageValue")),
        (_, false) => format!("{}/{}", text(current("value")), target("value")),
    }
}

pub fn scale_metrics(object: &Value, _: Timestamp) -> Value {
    const MOST: usize = 2;
    let (specs, statuses) = (object.items_at(&["spec", "metrics"]), object.items_at(&["status", "currentMetrics"]));
    if specs.is_empty() {
        return NONE.into();
    }
    let all: Vec<String> = specs.iter().enumerate().map(|(at, it)| metric(it, statuses.get(at))).collect();
    let shown = all.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > MOST { format!("{shown} + {} more...", all.len() - MOST).into() } else { shown.into() }
}

pub fn request_duration(object: &Value, _: Timestamp) -> Value {
    object.int_at(&["spec", "expirationSeconds"]).map_or_else(|| NONE.to_owned(), human_duration).into()
}

pub fn request_condition(object: &Value, _: Timestamp) -> Value {
    let has = |kind: &str| object.condition(kind).is_some();
    let mut text = if has("Denied") { "Denied" } else if has("Approved") { "Approved" } else { "Pending" }.to_owned();
    if has("Failed") {
        text += ",Failed";
    }
    if !object.text_at(&["status", "certificate"]).is_empty() {
        text += ",Issued";
    }
    text.into()
}

pub fn param_kind(object: &Value, _: Timestamp) -> Value {
    match object.at(&["spec", "paramKind"]) {
        Some(kind) => format!("{}/{}", kind.text("apiVersion"), kind.text("kind")).into(),
        None => UNSET.into(),
    }
}

pub fn param_ref(object: &Value, _: Timestamp) -> Value {
    match object.at(&["spec", "paramRef"]) {
        Some(reference) if reference.text("namespace").is_empty() => or(reference.text("name"), "*").into(),
        Some(reference) => format!("{}/{}", reference.text("namespace"), or(reference.text("name"), "*")).into(),
        None => UNSET.into(),
    }
}

pub fn missing_level(object: &Value, _: Timestamp) -> Value {
    let dangling = object.condition("Dangling");
    dangling.map_or("?", |it| it.text("status")).into()
}

pub fn api_service(object: &Value, _: Timestamp) -> Value {
    match object.at(&["spec", "service"]) {
        Some(service) => format!("{}/{}", service.text("namespace"), service.text("name")).into(),
        None => "Local".into(),
    }
}

pub fn api_available(object: &Value, _: Timestamp) -> Value {
    let available = object.condition("Available");
    match available {
        Some(it) if it.text("status") == "True" => "True".into(),
        Some(it) => format!("{} ({})", it.text("status"), it.text("reason")).into(),
        None => "Unknown".into(),
    }
}

pub fn claim_state(object: &Value, _: Timestamp) -> Value {
    let status = object.get("status");
    let mut states = Vec::new();
    if object.deletion_timestamp().is_some() {
        states.push("deleted");
    }
    match status {
        Some(status) if status.get("allocation").is_some() => {
            states.push("allocated");
            states.extend(Some("reserved").filter(|_| !status.items_at(&["reservedFor"]).is_empty()));
        }
        _ => states.push("pending"),
    }
    join(states).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_read_as_upstreams() {
        let now = Timestamp::UNIX_EPOCH;
        let autoscaler = json!({"spec": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]},
            "status": {"currentMetrics": [{"type": "Resource", "resource": {"current": {"averageUtilization": 12}}}]}});
        let ingress = json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}});
        let quota = json!({"status": {"hard": {"pods": "5", "limits.cpu": "2"}, "used": {"pods": "1"}}});
        let cases = [
            (scale_metrics(&autoscaler, now), "cpu: 12%/80%"),
            (ingress_hosts(&ingress, now), "a,b,c + 1 more..."),
            (super::quota(&quota, false), "pods: 1/5"),
            (super::quota(&quota, true), "limits.cpu: 0/2"),
            (access_modes(&json!({"spec": {"accessModes": ["ReadOnlyMany", "ReadWriteOnce"]}}), "spec").into(), "RWO,ROX"),
            (request_condition(&json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}), now), "Approved,Issued"),
        ];
        for (cell, expected) in cases {
            assert_eq!(cell, expected);
        }
    }
}
