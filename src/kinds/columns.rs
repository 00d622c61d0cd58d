//! The cells of `kubectl get`, as upstream's printers fill them (`pkg/printers/internalversion/printers.go`); most are lines of `table.txt`.

use std::collections::HashSet;

use jiff::Timestamp;

use super::{Cell, Column};
use crate::meta::{LabelSelector, Meta, Value};

pub type CellFn = fn(&Value, Timestamp) -> Value;

/// Those that `table.txt` calls by name.
pub const CALLS: &[(&str, CellFn)] = &[
    ("pod_ready", pod_ready), ("pod_status", pod_status), ("pod_restarts", pod_restarts), ("job_duration", job_duration), ("request_duration", request_duration),
];

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

impl Column {
    /// The value of this column for `object`.
    pub fn value(&self, object: &Value, now: Timestamp) -> Value {
        let found = self.found(object, now).filter(|it| *it != "");
        found.unwrap_or_else(|| match self.data_type.as_ref() {
            _ if !self.or.is_empty() => self.or.as_ref().into(),
            "integer" if matches!(self.cell, Cell::Path(_)) => 0.into(),
            "boolean" if matches!(self.cell, Cell::Path(_)) => false.into(),
            _ if matches!(self.cell, Cell::Age(_)) => UNKNOWN.into(),
            _ => "".into(),
        })
    }

    fn found(&self, object: &Value, now: Timestamp) -> Option<Value> {
        Some(match &self.cell {
            Cell::Name => object.name().into(),
            Cell::Path(paths) => paths.iter().find_map(|it| it.of(object).filter(|it| **it != ""))?.clone(),
            Cell::Age(paths) => age(paths.iter().find_map(|it| it.of(object)?.as_str().filter(|it| !it.is_empty()))?, now).into(),
            Cell::Count(path) => path.of(object).and_then(Value::as_array).map_or(0, Vec::len).into(),
            Cell::Selector(path) => selector_text(path.of(object)),
            Cell::Expr(expr) => expr.of(object)?,
            Cell::Some(expr) => shortened(expr.of(object)?.as_array()?)?,
            Cell::Fn(read) => read(object, now),
            Cell::JsonPath(path) => return Some(super::jsonpath::cell(object, path, &self.data_type, now)),
        })
    }
}

/// The first few of a list, and how many more there are.
fn shortened(all: &[Value]) -> Option<Value> {
    const SHOWN: usize = 3;
    let shown = join(all.iter().take(SHOWN).filter_map(Value::as_str));
    match all.len() {
        0 => None,
        count if count > SHOWN => Some(format!("{shown} + {} more...", count - SHOWN).into()),
        _ => Some(shown.into()),
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
fn human_duration(seconds: i64) -> String {
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

fn join<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().collect::<Vec<_>>().join(",")
}

/// Init containers that keep running beside the others (KEP-753).
fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

fn pod_ready(pod: &Value, _: Timestamp) -> Value {
    let sidecars: HashSet<&str> = pod.items_at(&["spec", "initContainers"]).iter().filter(|it| is_sidecar(it)).map(|it| it.text("name")).collect();
    let total = pod.items_at(&["spec", "containers"]).len() + sidecars.len();
    let is_ready = |it: &&Value| it.get("ready") == Some(&Value::Bool(true)) && it.at(&["state", "running"]).is_some();
    let main = pod.items_at(&["status", "containerStatuses"]).iter().filter(is_ready).count();
    let init = pod
        .items_at(&["status", "initContainerStatuses"])
        .iter()
        .filter(|it| sidecars.contains(it.text("name")))
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
    let sidecars: HashSet<&str> = containers.iter().filter(|it| is_sidecar(it)).map(|it| it.text("name")).collect();
    for (at, status) in pod.items_at(&["status", "initContainerStatuses"]).iter().enumerate() {
        if status.int_at(&["state", "terminated", "exitCode"]) == Some(0) {
            continue;
        }
        if sidecars.contains(status.text("name")) && status.get("started") == Some(&Value::Bool(true)) {
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

fn pod_status(pod: &Value, _: Timestamp) -> Value {
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

fn pod_restarts(pod: &Value, now: Timestamp) -> Value {
    let statuses = if init_reason(pod).is_some() { "initContainerStatuses" } else { "containerStatuses" };
    let statuses = pod.items_at(&["status", statuses]);
    let restarts: i64 = statuses.iter().filter_map(|it| it.int_at(&["restartCount"])).sum();
    let last = statuses.iter().map(|it| it.text_at(&["lastState", "terminated", "finishedAt"])).max().unwrap_or_default();
    if restarts == 0 || last.is_empty() { restarts.to_string().into() } else { format!("{restarts} ({} ago)", age(last, now)).into() }
}

/// `FormatLabelSelector`.
fn selector_text(selector: Option<&Value>) -> Value {
    match LabelSelector::from_value(selector) {
        Ok(selector) if selector.is_everything() => NONE.into(),
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<error>".into(),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> Value {
    let end = job.text_at(&["status", "completionTime"]).parse().unwrap_or(now);
    match job.text_at(&["status", "startTime"]) {
        "" => "".into(),
        start => age(start, end).into(),
    }
}

fn request_duration(object: &Value, _: Timestamp) -> Value {
    object.int_at(&["spec", "expirationSeconds"]).map_or_else(|| NONE.to_owned(), human_duration).into()
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

    #[test]
    fn cells_read_as_upstreams() {
        let now = Timestamp::UNIX_EPOCH;
        let autoscaler = json!({"spec": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]},
            "status": {"currentMetrics": [{"type": "Resource", "resource": {"current": {"averageUtilization": 12}}}]}});
        let ingress = json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}});
        let quota = json!({"status": {"hard": {"pods": "5", "limits.cpu": "2"}, "used": {"pods": "1"}}});
        let registry = crate::kinds::table::registry();
        let cases = [
            ("HorizontalPodAutoscaler", "Targets", autoscaler, "cpu: 12%/80%"),
            ("HorizontalPodAutoscaler", "Targets", json!({"spec": {"metrics": []}}), "<none>"),
            ("HorizontalPodAutoscaler", "Targets", json!({"spec": {"metrics": [{"type": "Pods", "pods": {"target": {"averageValue": "5"}}}, {"type": "External", "external": {"target": {"averageValue": "1k"}}}, {"type": "Object", "object": {"target": {"value": "2"}}}]},
                "status": {"currentMetrics": [{"pods": {"current": {"averageValue": "3"}}}]}}), "3/5, <unknown>/1k (avg) + 1 more..."),
            ("HorizontalPodAutoscaler", "Targets", json!({"spec": {"metrics": [{"type": "Object", "object": {"target": {"value": "2"}}}, {"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"averageValue": "2"}}}]},
                "status": {"currentMetrics": [{"object": {"current": {"value": "1"}}}]}}), "1/2, cpu: <unknown>/2"),
            ("Ingress", "Hosts", ingress, "a,b,c + 1 more..."),
            ("Ingress", "Hosts", json!({"spec": {"rules": [{}]}}), "*"),
            ("Pod", "Readiness Gates", json!({"spec": {"readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]}, "status": {"conditions": [{"type": "a", "status": "True"}]}}), "1/2"),
            ("Pod", "Readiness Gates", json!({"spec": {}}), "<none>"),
            ("Service", "External-IP", json!({"spec": {"type": "LoadBalancer", "externalIPs": ["3.3.3.3"]}, "status": {"loadBalancer": {"ingress": [{"ip": "1.1.1.1"}, {"hostname": "h"}]}}}), "1.1.1.1,h,3.3.3.3"),
            ("Service", "External-IP", json!({"spec": {"type": "LoadBalancer"}}), "<pending>"),
            ("Service", "External-IP", json!({"spec": {"type": "ExternalName", "externalName": "e"}}), "e"),
            ("Service", "External-IP", json!({"spec": {"type": "ClusterIP"}}), "<none>"),
            ("Event", "Source", json!({"source": {"component": "c", "host": "h"}}), "c, h"),
            ("Event", "Source", json!({"reportingComponent": "", "reportingController": "k", "deprecatedSource": {}}), "k"),
            ("ResourceQuota", "Request", quota.clone(), "pods: 1/5"),
            ("ResourceQuota", "Limit", quota, "limits.cpu: 0/2"),
            ("PersistentVolume", "Access Modes", json!({"spec": {"accessModes": ["ReadOnlyMany", "ReadWriteOnce"]}}), "RWO,ROX"),
            ("CertificateSigningRequest", "Condition", json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}), "Approved,Issued"),
            ("Service", "Port(s)", json!({"spec": {"ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}), "80:30080/TCP,53/UDP"),
            ("Service", "Selector", json!({"spec": {}}), "<none>"),
            ("Endpoints", "Endpoints", json!({"subsets": [{"addresses": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.5"}], "ports": [{"port": 80}, {"port": 81}]}]}), "1.2.3.4:80,1.2.3.4:81,1.2.3.5:80 + 1 more..."),
            ("EndpointSlice", "Ports", json!({"ports": [{}, {"port": 9}]}), "*,9"),
            ("EndpointSlice", "Endpoints", json!({}), "<unset>"),
            ("Node", "Status", json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}), "Ready,SchedulingDisabled"),
            ("Node", "Roles", json!({"metadata": {"labels": {"node-role.kubernetes.io/b": "", "node-role.kubernetes.io/a": "", "x": "y"}}}), "a,b"),
            ("Node", "External-IP", json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}), "<none>"),
            ("Deployment", "Ready", json!({"spec": {"replicas": 3}}), "0/3"),
            ("Deployment", "Images", json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b"}]}}}}), "i,"),
            ("Job", "Completions", json!({"spec": {"parallelism": 3}, "status": {"succeeded": 1}}), "1/1 of 3"),
            ("Job", "Status", json!({"metadata": {}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}), "Failed"),
            ("CronJob", "Suspend", json!({"spec": {"suspend": false}}), "False"),
            ("CronJob", "Last Schedule", json!({}), "<none>"),
            ("PodDisruptionBudget", "Min Available", json!({"spec": {"minAvailable": 2}}), "2"),
            ("PodDisruptionBudget", "Max Unavailable", json!({"spec": {}}), "N/A"),
            ("StorageClass", "Name", json!({"metadata": {"name": "s", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}), "s (default)"),
            ("ControllerRevision", "Controller", json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}}), "daemonset.apps/d"),
            ("IPAddress", "ParentRef", json!({"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}}), "services/n/s"),
            ("ResourceClaim", "State", json!({"metadata": {"deletionTimestamp": "x"}, "status": {"allocation": {}, "reservedFor": [{}]}}), "deleted,allocated,reserved"),
            ("RoleBinding", "ServiceAccounts", json!({"subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}), "n/s"),
            ("ValidatingAdmissionPolicyBinding", "ParamRef", json!({"spec": {"paramRef": {"namespace": "n"}}}), "n/*"),
            ("APIService", "Service", json!({"spec": {}}), "Local"),
            ("APIService", "Available", json!({"status": {"conditions": [{"type": "Available", "status": "False", "reason": "R"}]}}), "False (R)"),
            ("Event", "Last Seen", json!({}), "<unknown>"),
            ("Event", "Object", json!({"involvedObject": {"kind": "Pod", "name": "p"}}), "pod/p"),
            ("Event", "Count", json!({"series": {"count": 4}}), "4"),
        ];
        for (kind, column, object, expected) in cases {
            let row = registry.iter().find(|it| it.kind == kind).expect("a row");
            let column = row.versions[0].columns.iter().find(|it| it.name == column).expect("a column");
            assert_eq!(column.value(&object, now), expected, "{kind} {}", column.name);
        }
    }

    #[test]
    fn all_expressions_compile() {
        for kind in crate::kinds::table::registry().iter() {
            kind.versions[0].columns.iter().for_each(|it| _ = it.value(&Value::Null, Timestamp::UNIX_EPOCH));
        }
    }
}
