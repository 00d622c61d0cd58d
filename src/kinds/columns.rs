//! The cells of `kubectl get`, as upstream's printers fill them (`pkg/printers/internalversion/printers.go`).

use jiff::Timestamp;

use super::{Cell, Column};
use crate::meta::{LabelSelector, Meta, Value};

pub type CellFn = fn(&Value, Timestamp) -> Value;

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

impl Column {
    /// The value of this column for `object`.
    pub fn value(&self, object: &Value, now: Timestamp) -> Value {
        match &self.cell {
            Cell::Name => object.name().into(),
            Cell::Age(path) => age(object.text_at(path), now).into(),
            Cell::Path(path) => match object.at(path) {
                Some(value) => value.clone(),
                None if self.data_type == "integer" => 0.into(),
                None if self.data_type == "boolean" => false.into(),
                None => "".into(),
            },
            Cell::PathOr(path, default) => match object.at(path) {
                Some(Value::String(text)) if text.is_empty() => (*default).into(),
                Some(value) => value.clone(),
                None => (*default).into(),
            },
            Cell::Count(path) => object.items_at(path).len().into(),
            Cell::Fn(read) => read(object, now),
            Cell::JsonPath(path) => super::jsonpath::cell(object, path, &self.data_type, now),
        }
    }
}

/// `duration.HumanDuration` since a timestamp; `<unknown>` without one.
pub fn age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(since) => human_duration(now.as_second() - since.as_second()),
        Err(_) => UNKNOWN.to_owned(),
    }
}

/// Seconds as `5s`, `3m20s`, `4h`, `2d3h`, `400d`, `2y30d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let with = |first: String, rest: i64, unit: &str| if rest == 0 { first } else { format!("{first}{rest}{unit}") };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        ..0 => "0s".to_owned(),
        ..120 => format!("{seconds}s"),
        _ if minutes < 10 => with(format!("{minutes}m"), seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => with(format!("{hours}h"), minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => with(format!("{days}d"), hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => with(format!("{years}y"), days % 365, "d"),
        _ => format!("{years}y"),
    }
}

pub fn or_none(text: &str) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

pub fn join<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().collect::<Vec<_>>().join(",")
}

pub fn data_count(object: &Value, _: Timestamp) -> Value {
    ["data", "binaryData"].iter().filter_map(|it| object.map_at(&[it])).map(serde_json::Map::len).sum::<usize>().into()
}

/// Init containers that keep running beside the others (KEP-753).
fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

pub fn pod_ready(pod: &Value, _: Timestamp) -> Value {
    let sidecars: Vec<&str> = pod.items_at(&["spec", "initContainers"]).iter().filter(|it| is_sidecar(it)).map(|it| it.text("name")).collect();
    let total = pod.items_at(&["spec", "containers"]).len() + sidecars.len();
    let is_ready = |it: &&Value| it.get("ready") == Some(&Value::Bool(true)) && it.at(&["state", "running"]).is_some();
    let main = pod.items_at(&["status", "containerStatuses"]).iter().filter(is_ready).count();
    let init = pod
        .items_at(&["status", "initContainerStatuses"])
        .iter()
        .filter(|it| sidecars.contains(&it.text("name")))
        .filter(|it| it.get("started") == Some(&Value::Bool(true)) && is_ready(it))
        .count();
    format!("{}/{total}", main + init).into()
}

/// The reason of a container's state that tells most: waiting or terminated.
fn container_reason(status: &Value) -> Option<String> {
    if let Some(waiting) = status.at(&["state", "waiting"]).map(|it| it.text("reason")).filter(|it| !it.is_empty()) {
        return Some(waiting.to_owned());
    }
    let terminated = status.at(&["state", "terminated"])?;
    Some(match (terminated.text("reason"), terminated.int_at(&["signal"]).unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.int_at(&["exitCode"]).unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    })
}

/// `Init:1/2`, `Init:Error` while the init containers run; `None` when they are done.
fn init_reason(pod: &Value) -> Option<String> {
    let containers = pod.items_at(&["spec", "initContainers"]);
    for (at, status) in pod.items_at(&["status", "initContainerStatuses"]).iter().enumerate() {
        let spec = containers.iter().find(|it| it.text("name") == status.text("name"));
        if status.int_at(&["state", "terminated", "exitCode"]) == Some(0) {
            continue;
        }
        if spec.is_some_and(is_sidecar) && status.get("started") == Some(&Value::Bool(true)) {
            continue;
        }
        let waiting = status.text_at(&["state", "waiting", "reason"]);
        return Some(match container_reason(status) {
            Some(reason) if status.at(&["state", "terminated"]).is_some() => format!("Init:{reason}"),
            Some(_) if waiting != "PodInitializing" => format!("Init:{waiting}"),
            _ => format!("Init:{at}/{}", containers.len()),
        });
    }
    None
}

pub fn pod_status(pod: &Value, _: Timestamp) -> Value {
    let own = pod.text_at(&["status", "reason"]);
    let mut reason = if own.is_empty() { pod.text_at(&["status", "phase"]) } else { own }.to_owned();
    if pod.condition("PodScheduled").is_some_and(|it| it.text("reason") == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }
    let init = init_reason(pod);
    let is_initialized = init.is_none() || pod.has_condition("Initialized");
    if let (Some(init), false) = (&init, is_initialized) {
        reason = init.clone();
    }
    if is_initialized {
        let statuses = pod.items_at(&["status", "containerStatuses"]);
        let is_running = statuses.iter().any(|it| it.get("ready") == Some(&Value::Bool(true)) && it.at(&["state", "running"]).is_some());
        if let Some(found) = statuses.iter().find_map(container_reason) {
            reason = found;
        }
        if reason == "Completed" && is_running {
            let is_ready = pod.has_condition("Ready");
            reason = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    match (pod.deletion_timestamp(), own) {
        (Some(_), "NodeLost") => "Unknown".into(),
        (Some(_), _) if !matches!(pod.text_at(&["status", "phase"]), "Succeeded" | "Failed") => "Terminating".into(),
        _ => reason.into(),
    }
}

pub fn pod_restarts(pod: &Value, now: Timestamp) -> Value {
    let statuses = if init_reason(pod).is_some() { "initContainerStatuses" } else { "containerStatuses" };
    let statuses = pod.items_at(&["status", statuses]);
    let restarts: i64 = statuses.iter().filter_map(|it| it.int_at(&["restartCount"])).sum();
    let last = statuses.iter().map(|it| it.text_at(&["lastState", "terminated", "finishedAt"])).max().unwrap_or_default();
    if restarts == 0 || last.is_empty() { restarts.to_string().into() } else { format!("{restarts} ({} ago)", age(last, now)).into() }
}

pub fn pod_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = pod.items_at(&["spec", "readinessGates"]);
    if gates.is_empty() {
        return NONE.into();
    }
    let is_true = |gate: &&Value| pod.has_condition(gate.text("conditionType"));
    format!("{}/{}", gates.iter().filter(is_true).count(), gates.len()).into()
}

pub fn service_external(service: &Value, _: Timestamp) -> Value {
    let external = service.texts_at(&["spec", "externalIPs"]);
    match service.text_at(&["spec", "type"]) {
        "ExternalName" => service.text_at(&["spec", "externalName"]).into(),
        "LoadBalancer" => {
            let ingress = service.items_at(&["status", "loadBalancer", "ingress"]).iter();
            let balancers = ingress.map(|it| if it.text("ip").is_empty() { it.text("hostname") } else { it.text("ip") });
            let all = join(balancers.chain(external));
            if all.is_empty() { "<pending>".into() } else { all.into() }
        }
        _ => or_none(&join(external)),
    }
}

pub fn service_ports(service: &Value, _: Timestamp) -> Value {
    let ports = service.items_at(&["spec", "ports"]).iter().map(|port| {
        let (number, protocol) = (port.int_at(&["port"]).unwrap_or(0), port.text("protocol"));
        match port.int_at(&["nodePort"]).filter(|it| *it > 0) {
            Some(node_port) => format!("{number}:{node_port}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    });
    or_none(&ports.collect::<Vec<_>>().join(","))
}

pub fn pairs(map: Option<&serde_json::Map<String, Value>>) -> String {
    let pairs = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    pairs.collect::<Vec<_>>().join(",")
}

/// `FormatLabelSelector`.
pub fn selector_text(selector: Option<&Value>) -> Value {
    match LabelSelector::from_value(selector) {
        Ok(selector) if selector.is_everything() => NONE.into(),
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<error>".into(),
    }
}

pub fn endpoints(object: &Value, _: Timestamp) -> Value {
    const SHOWN: usize = 3;
    let mut all = Vec::new();
    for subset in object.items_at(&["subsets"]) {
        for address in subset.items_at(&["addresses"]) {
            let ports = subset.items_at(&["ports"]);
            all.extend(ports.iter().map(|port| format!("{}:{}", address.text("ip"), port.int_at(&["port"]).unwrap_or(0))));
            if ports.is_empty() {
                all.push(address.text("ip").to_owned());
            }
        }
    }
    shortened(&all, SHOWN)
}

/// The first few of a list, and how many more there are.
fn shortened(all: &[String], shown: usize) -> Value {
    match all.len() {
        0 => NONE.into(),
        count if count > shown => format!("{} + {} more...", all[..shown].join(","), count - shown).into(),
        _ => all.join(",").into(),
    }
}

pub fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    let ports = slice.items_at(&["ports"]).iter().map(|it| it.int_at(&["port"]).map_or_else(|| "*".to_owned(), |it| it.to_string()));
    let ports: Vec<String> = ports.collect();
    if ports.is_empty() { "<unset>".into() } else { shortened(&ports, 3) }
}

pub fn slice_endpoints(slice: &Value, _: Timestamp) -> Value {
    let addresses = slice.items_at(&["endpoints"]).iter().flat_map(|it| it.items_at(&["addresses"])).filter_map(Value::as_str);
    let addresses: Vec<String> = addresses.map(str::to_owned).collect();
    if addresses.is_empty() { "<unset>".into() } else { shortened(&addresses, 3) }
}

pub fn event_last_seen(event: &Value, now: Timestamp) -> Value {
    let series = event.text_at(&["series", "lastObservedTime"]);
    let times = [series, event.text("lastTimestamp"), event.text("deprecatedLastTimestamp"), event.text("eventTime")];
    age(times.into_iter().find(|it| !it.is_empty()).unwrap_or_default(), now).into()
}

pub fn event_first_seen(event: &Value, now: Timestamp) -> Value {
    let times = [event.text("firstTimestamp"), event.text("deprecatedFirstTimestamp"), event.text("eventTime")];
    age(times.into_iter().find(|it| !it.is_empty()).unwrap_or_default(), now).into()
}

pub fn event_target(event: &Value) -> &Value {
    event.get("involvedObject").or_else(|| event.get("regarding")).unwrap_or(&Value::Null)
}

pub fn event_object(event: &Value, _: Timestamp) -> Value {
    let target = event_target(event);
    let kind = target.text("kind").to_ascii_lowercase();
    if target.text("name").is_empty() { kind.into() } else { format!("{kind}/{}", target.text("name")).into() }
}

pub fn event_source(event: &Value, _: Timestamp) -> Value {
    let source = event.get("source").or_else(|| event.get("deprecatedSource")).unwrap_or(&Value::Null);
    let component = [source.text("component"), event.text("reportingComponent"), event.text("reportingController")]
        .into_iter()
        .find(|it| !it.is_empty())
        .unwrap_or_default();
    let host = [source.text("host"), event.text("reportingInstance")].into_iter().find(|it| !it.is_empty()).unwrap_or_default();
    if host.is_empty() { component.into() } else { format!("{component}, {host}").into() }
}

pub fn event_message(event: &Value, _: Timestamp) -> Value {
    let text = if event.text("message").is_empty() { event.text("note") } else { event.text("message") };
    text.trim().into()
}

pub fn event_count(event: &Value, _: Timestamp) -> Value {
    let count = event.int_at(&["series", "count"]).or_else(|| event.int_at(&["count"])).or_else(|| event.int_at(&["deprecatedCount"]));
    count.filter(|it| *it > 0).unwrap_or(1).to_string().into()
}

pub fn node_status(node: &Value, _: Timestamp) -> Value {
    let mut status = match node.condition("Ready").map(|it| it.text("status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node.at(&["spec", "unschedulable"]) == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status.into()
}

pub fn node_roles(node: &Value, _: Timestamp) -> Value {
    let role = |(key, value): (&'_ str, &'_ str)| match (key.strip_prefix("node-role.kubernetes.io/"), key) {
        (Some(role), _) if !role.is_empty() => Some(role.to_owned()),
        (_, "kubernetes.io/role") if !value.is_empty() => Some(value.to_owned()),
        _ => None,
    };
    let mut roles: Vec<String> = node.labels().filter_map(role).collect();
    roles.sort();
    or_none(&roles.join(","))
}

pub fn node_address(node: &Value, kind: &str) -> Value {
    let addresses = node.items_at(&["status", "addresses"]);
    or_none(addresses.iter().find(|it| it.text("type") == kind).map_or("", |it| it.text("address")))
}

pub fn ready_replicas(object: &Value, _: Timestamp) -> Value {
    let desired = object.int_at(&["spec", "replicas"]).unwrap_or(0);
    format!("{}/{desired}", object.int_at(&["status", "readyReplicas"]).unwrap_or(0)).into()
}

/// A field of each container of a template.
pub fn containers(object: &Value, template: &[&str], field: &str) -> Value {
    join(object.items_at(template).iter().map(|it| it.text(field))).into()
}

pub fn controller(object: &Value, _: Timestamp) -> Value {
    let owner = object.owner_references().iter().find(|it| it.get("controller") == Some(&Value::Bool(true)));
    let Some(owner) = owner else { return NONE.into() };
    let (group, _) = crate::meta::object::split_api_version(owner.text("apiVersion"));
    let kind = owner.text("kind").to_ascii_lowercase();
    if group.is_empty() { format!("{kind}/{}", owner.text("name")).into() } else { format!("{kind}.{group}/{}", owner.text("name")).into() }
}

pub fn job_status(job: &Value, _: Timestamp) -> Value {
    let is_true = |kind: &str| job.has_condition(kind);
    let states = [("Complete", "Complete"), ("Failed", "Failed")];
    let done = states.into_iter().find(|(kind, _)| is_true(kind)).map(|(_, text)| text);
    done.unwrap_or_else(|| match () {
        () if job.deletion_timestamp().is_some() => "Terminating",
        () if is_true("Suspended") => "Suspended",
        () if is_true("FailureTarget") => "FailureTarget",
        () if is_true("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    })
    .into()
}

pub fn job_completions(job: &Value, _: Timestamp) -> Value {
    let succeeded = job.int_at(&["status", "succeeded"]).unwrap_or(0);
    match (job.int_at(&["spec", "completions"]), job.int_at(&["spec", "parallelism"]).unwrap_or(0)) {
        (Some(completions), _) => format!("{succeeded}/{completions}").into(),
        (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}").into(),
        _ => format!("{succeeded}/1").into(),
    }
}

pub fn job_duration(job: &Value, now: Timestamp) -> Value {
    let end = job.text_at(&["status", "completionTime"]).parse().unwrap_or(now);
    match job.text_at(&["status", "startTime"]) {
        "" => "".into(),
        start => age(start, end).into(),
    }
}

pub fn global_default(object: &Value, _: Timestamp) -> Value {
    object.get("globalDefault").cloned().unwrap_or(Value::Bool(false))
}

pub fn parent_ref(object: &Value, _: Timestamp) -> Value {
    let Some(parent) = object.at(&["spec", "parentRef"]) else { return "".into() };
    let parts = [parent.text("resource"), parent.text("group")].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(".");
    join_slash([parts.as_str(), parent.text("namespace"), parent.text("name")])
}

fn join_slash<'a>(parts: impl IntoIterator<Item = &'a str>) -> Value {
    parts.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join("/").into()
}

pub fn cidrs(object: &Value, _: Timestamp) -> Value {
    join(object.texts_at(&["spec", "cidrs"])).into()
}

pub fn binding_role(binding: &Value, _: Timestamp) -> Value {
    join_slash([binding.text_at(&["roleRef", "kind"]), binding.text_at(&["roleRef", "name"])])
}

pub fn subjects(binding: &Value, kind: &str) -> Value {
    let subjects = binding.items_at(&["subjects"]).iter().filter(|it| it.text("kind") == kind);
    let names = subjects
        .map(|it| if kind == "ServiceAccount" { format!("{}/{}", it.text("namespace"), it.text("name")) } else { it.text("name").to_owned() });
    names.collect::<Vec<_>>().join(", ").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_read_as_upstreams() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_700, "178m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (63_072_000, "2y"),
            (64_000_000, "2y10d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn pods_print_their_state() {
        let now: Timestamp = "2024-01-01T00:10:00Z".parse().expect("a time");
        let container = |state: Value, ready: bool| {
            json!({"name": "c", "ready": ready, "restartCount": 2, "state": state,
            "lastState": {"terminated": {"finishedAt": "2024-01-01T00:09:00Z"}}})
        };
        let pod =
            |phase: &str, status: Value| json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": phase, "containerStatuses": [status]}});
        let cases = [
            (pod("Running", container(json!({"running": {}}), true)), "1/1", "Running", "2 (60s ago)"),
            (pod("Running", container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false)), "0/1", "CrashLoopBackOff", "2 (60s ago)"),
            (pod("Failed", container(json!({"terminated": {"exitCode": 3}}), false)), "0/1", "ExitCode:3", "2 (60s ago)"),
            (json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"}}), "0/1", "Pending", "0"),
            (
                json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}, "spec": {"containers": [{}]}, "status": {"phase": "Running"}}),
                "0/1",
                "Terminating",
                "0",
            ),
            (
                json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}]}, "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}}),
                "0/1",
                "Init:0/1",
                "0",
            ),
        ];
        for (pod, ready, status, restarts) in cases {
            let cells = [pod_ready(&pod, now), pod_status(&pod, now), pod_restarts(&pod, now)];
            assert_eq!(cells, [Value::from(ready), status.into(), restarts.into()], "{pod}");
        }
    }
}
