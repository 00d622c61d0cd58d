//! Pods, and the pod templates of workloads: defaults and checks.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/core/validation/validation.go`, `pkg/registry/core/pod/strategy.go`.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill_at},
    rules::words::requested,
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Quantity, Value};

pub const POD: Strategy = Strategy {
    default: default_pod,
    prepare,
    validate,
    grace: Some(grace),
    ..Strategy::PLAIN
};

/// `SetDefaults_Pod`: what holds for pods and not for templates.
fn default_pod(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let is_host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in each(spec, &[list]) {
            request_what_is_limited(container);
            for port in each(container, &["ports"]).filter(|_| is_host_network) {
                let number = port.int_at(&["containerPort"]).unwrap_or(0);
                if port.int_at(&["hostPort"]).unwrap_or(0) == 0 && number != 0 {
                    port["hostPort"] = number.into();
                }
            }
        }
    }
    request_of_pod(pod);
}

/// `defaultPodRequests`: what a pod as a whole does not ask for is what its containers ask for, or its limit.
fn request_of_pod(pod: &mut Value) {
    let Some(limits) = pod.map_at(&["spec", "resources", "limits"]).filter(|it| !it.is_empty()).cloned() else { return };
    let sums = requested(pod.items_at(&["spec", "containers"])).into_iter();
    let sums: HashMap<String, String> = sums.map(|(name, sum)| (name.to_owned(), sum.to_string())).collect();
    for name in limits.keys().filter(|it| matches!(it.as_str(), "cpu" | "memory") || it.starts_with("hugepages-")) {
        let path = ["spec", "resources", "requests", name];
        if pod.at(&path).is_none() {
            let own = sums.get(name).filter(|_| !name.starts_with("hugepages-"));
            pod.set_at(&path, own.map_or_else(|| limits[name].clone(), |it| it.as_str().into()));
        }
    }
}

fn request_what_is_limited(container: &mut Value) {
    let Some(limits) = container.map_at(&["resources", "limits"]).cloned() else { return };
    for (name, limit) in limits {
        if container.at(&["resources", "requests", &name]).is_none() {
            container.set_at(&["resources", "requests", &name], limit);
        }
    }
}

fn prepare(pod: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        let class = qos_class(&pod["spec"]);
        pod["status"] = json!({"phase": "Pending", "qosClass": class});
        if !pod.items_at(&["spec", "schedulingGates"]).is_empty() {
            pod["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "lastTransitionTime": pod.metadata("creationTimestamp"), "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
        }
    }
    if let Change::Part("status", old) = change {
        // The node speaks of status only; what it runs is not its to say, nor who owns it.
        pod["spec"] = old["spec"].clone();
        match old.at(&["metadata", "ownerReferences"]) {
            Some(owners) => pod.set_metadata("ownerReferences", owners.clone()),
            None => pod.remove_metadata("ownerReferences"),
        }
        if let Some(class) = old.at(&["status", "qosClass"]) {
            fill_at(pod, &["status", "qosClass"], class.clone());
        }
    }
}

/// `GetPodQOS`: Guaranteed, Burstable or BestEffort.
pub fn qos_class(spec: &Value) -> &'static str {
    let of_pod = spec.get("resources").filter(|it| it.is_object()).map(|_| std::slice::from_ref(spec));
    let lists = of_pod.map_or([spec.items_at(&["containers"]), spec.items_at(&["initContainers"])], |it| [it, &[]]);
    let containers = || lists[0].iter().chain(lists[1]);
    let amount =
        |container: &Value, kind: &str, name: &str| container.text_at(&["resources", kind, name]).parse::<Quantity>().ok().filter(|it| !it.is_zero());
    let any =
        containers().any(|it| ["cpu", "memory"].iter().any(|name| amount(it, "requests", name).is_some() || amount(it, "limits", name).is_some()));
    let is_exact = |container: &Value, name: &str| {
        let limit = amount(container, "limits", name);
        limit.is_some() && limit == amount(container, "requests", name)
    };
    match any {
        false => "BestEffort",
        true if containers().all(|it| is_exact(it, "cpu") && is_exact(it, "memory")) => "Guaranteed",
        true => "Burstable",
    }
}

/// `podStrategy.CheckGracefulDelete`: a pod that no node runs goes at once.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let is_over = matches!(pod.text_at(&["status", "phase"]), "Succeeded" | "Failed");
    if pod.text_at(&["spec", "nodeName"]).is_empty() || is_over {
        return 0;
    }
    asked.or_else(|| pod.int_at(&["spec", "terminationGracePeriodSeconds"])).unwrap_or(0).max(0)
}

fn validate(pod: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if let Change::Update(old) = change {
        validate_update(pod, old, &mut errors);
    }
    errors
}

/// `ValidatePodUpdate`: what may change of a running pod are images, deadlines, tolerations that are added and gates that go.
fn validate_update(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    const CONTAINERS: [&str; 2] = ["containers", "initContainers"];
    let (path, spec, before) = (Path::new("spec"), &pod["spec"], &old["spec"]);
    if let Some(list) = CONTAINERS.into_iter().find(|it| spec.items_at(&[it]).len() != before.items_at(&[it]).len()) {
        return errors.push(FieldError::forbidden(&path.child(list), "pod updates may not add or remove containers"));
    }
    if !deadline(spec.int_at(&["activeDeadlineSeconds"]), before.int_at(&["activeDeadlineSeconds"]), &path.child("activeDeadlineSeconds"), errors) {
        return;
    }
    let timeless = |it: &Value| {
        let mut it = it.clone();
        it.remove_at(&["tolerationSeconds"]);
        it.to_string()
    };
    let kept: HashSet<String> = spec.items_at(&["tolerations"]).iter().map(timeless).collect();
    if before.items_at(&["tolerations"]).iter().any(|it| !kept.contains(&timeless(it))) {
        errors.push(FieldError::forbidden(&path.child("tolerations"), "existing toleration can not be modified except its tolerationSeconds"));
    }
    let gates = before.items_at(&["schedulingGates"]);
    let known: HashSet<&str> = gates.iter().map(|it| it.text("name")).collect();
    for (at, gate) in spec.items_at(&["schedulingGates"]).iter().enumerate().filter(|it| !known.contains(it.1.text("name"))) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.text("name"));
        errors.push(FieldError::forbidden(&path.child("schedulingGates").index(at).child("name"), detail));
    }
    let mut allowed = spec.clone();
    let mut excuse = |field: &[&str]| match before.at(field) {
        Some(value) => allowed.set_at(field, value.clone()),
        None => _ = allowed.remove_at(field),
    };
    ["activeDeadlineSeconds", "tolerations", "schedulingGates"].iter().for_each(|it| excuse(&[it]));
    if !gates.is_empty() {
        let (now, was) = (spec.map_at(&["nodeSelector"]), before.map_at(&["nodeSelector"]));
        if was.into_iter().flatten().any(|(key, value)| now.and_then(|it| it.get(key)) != Some(value)) {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(&path.child("nodeSelector"), spec["nodeSelector"].clone(), detail));
        }
        excuse(&["nodeSelector"]);
    }
    for list in CONTAINERS {
        for (container, before) in each(&mut allowed, &[list]).zip(before.items_at(&[list])) {
            container["image"] = before["image"].clone();
        }
    }
    if without_nothing(&allowed) != without_nothing(before) {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.push(FieldError::forbidden(&path, detail));
    }
}

/// A deadline may come, and come nearer.
fn deadline(now: Option<i64>, before: Option<i64>, path: &Path, errors: &mut FieldErrors) -> bool {
    let detail = match (now, before) {
        (Some(now), _) if !(0..=i64::from(i32::MAX)).contains(&now) => "must be between 0 and 2147483647, inclusive",
        (Some(now), Some(before)) if before < now => "must be less than or equal to previous value",
        (None, Some(_)) => "must not update from a positive integer to nil value",
        _ => return true,
    };
    errors.push(FieldError::invalid(path, now.map_or(Value::Null, Value::from), detail));
    now.is_none()
}

/// A value without what says nothing: `null`, and lists that are empty.
fn without_nothing(value: &Value) -> Value {
    let says = |value: &&Value| !value.is_null() && value.as_array().is_none_or(|it| !it.is_empty());
    match value {
        Value::Object(map) => map.iter().filter(|it| says(&it.1)).map(|(key, value)| (key.clone(), without_nothing(value))).collect(),
        Value::Array(list) => list.iter().map(without_nothing).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec})
    }

    #[test]
    fn pods_get_upstreams_defaults() {
        let mut pod = pod(json!({"containers": [{"name": "c", "image": "web", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}));
        pod = crate::kinds::rules::filled("Pod", pod);
        (POD.prepare)(&mut pod, Change::Create);
        let expected = json!({"containers": [{"name": "c", "image": "web", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File", "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}, "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "enableServiceLinks": true});
        assert_eq!(pod["spec"], expected);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
    }

    #[test]
    fn a_running_pod_may_change_its_image_and_little_else() {
        let old = pod(json!({"containers": [{"name": "c", "image": "a"}]}));
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "b".into();
        assert_eq!(validate(&new, Change::Update(&old)), []);
        new["spec"]["containers"][0]["name"] = "d".into();
        assert_eq!(validate(&new, Change::Update(&old)).len(), 1);
    }
}
