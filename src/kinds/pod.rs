//! Pods, and the pod templates of workloads: defaults and checks.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/core/validation/validation.go`, `pkg/registry/core/pod/strategy.go`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Quantity, Value};

pub const POD: Strategy = Strategy {
    default: default_pod,
    prepare,
    validate,
    has_generation: true,
    resets_status: true,
    grace: Some(grace),
    ..Strategy::PLAIN
};

/// Seconds that a pod gets to end when nobody says otherwise.
const GRACE_PERIOD: i64 = 30;
const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub fn host_network(pod: &Value) -> String {
    (pod.at(&["spec", "hostNetwork"]) == Some(&Value::Bool(true))).to_string()
}

/// `SetDefaults_PodSpec` and what hangs below it.
pub fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill(spec, "securityContext", json!({}));
    fill(spec, "terminationGracePeriodSeconds", GRACE_PERIOD);
    fill(spec, "schedulerName", "default-scheduler");
    let account = [spec.text("serviceAccountName"), spec.text("serviceAccount")].into_iter().find(|it| !it.is_empty()).map(str::to_owned);
    if let Some(account) = account {
        spec["serviceAccountName"] = account.clone().into();
        spec["serviceAccount"] = account.into();
    }
    for list in CONTAINER_LISTS {
        each(spec, &[list]).for_each(default_container);
    }
    each(spec, &["volumes"]).for_each(default_volume);
}

/// `SetDefaults_Pod`: what holds for pods and not for templates.
fn default_pod(pod: &mut Value) {
    let spec = &mut pod["spec"];
    default_spec(spec);
    if spec.is_object() && spec.get("enableServiceLinks").is_none() {
        spec["enableServiceLinks"] = true.into();
    }
    let is_host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in each(spec, &[list]) {
            request_what_is_limited(container);
            for port in each(container, &["ports"]).filter(|_| is_host_network) {
                let number = port.get("containerPort").cloned().unwrap_or_default();
                fill_zero(port, "hostPort", number);
            }
        }
    }
}

/// Sets a number where none stands, or 0.
fn fill_zero(object: &mut Value, field: &str, value: Value) {
    if object.int_at(&[field]).unwrap_or(0) == 0 {
        object[field] = value;
    }
}

fn default_container(container: &mut Value) {
    let image = container.text("image");
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    for port in each(container, &["ports"]) {
        fill(port, "protocol", "TCP");
    }
    for env in each(container, &["env"]) {
        if let Some(reference) = env.get_mut("valueFrom").and_then(|it| it.get_mut("fieldRef")) {
            fill(reference, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        container.get_mut(probe).into_iter().for_each(default_probe);
    }
    for hook in ["postStart", "preStop"] {
        container.get_mut("lifecycle").and_then(|it| it.get_mut(hook)).into_iter().for_each(default_action);
    }
}

/// Whether an image's tag is `latest`, written or not.
fn is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or_default();
    !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn request_what_is_limited(container: &mut Value) {
    let Some(limits) = container.map_at(&["resources", "limits"]).cloned() else { return };
    for (name, limit) in limits {
        if container.at(&["resources", "requests", &name]).is_none() {
            container.set_at(&["resources", "requests", &name], limit);
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        fill(probe, field, value);
    }
    default_action(probe);
    if let Some(grpc) = probe.get_mut("grpc") {
        fill_empty(grpc, "service");
    }
}

fn fill_empty(object: &mut Value, field: &str) {
    if object.get(field).is_none() {
        object[field] = "".into();
    }
}

fn default_action(action: &mut Value) {
    if let Some(get) = action.get_mut("httpGet") {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
}

fn default_volume(volume: &mut Value) {
    const MODE: i64 = 0o644;
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            fill(source, "defaultMode", MODE);
            each(source, &["items"]).for_each(default_field_ref);
        }
    }
    for source in each(volume, &["projected", "sources"]) {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            fill(token, "expirationSeconds", 3600);
        }
        each(source, &["downwardAPI", "items"]).for_each(default_field_ref);
    }
    if let Some(host_path) = volume.get_mut("hostPath") {
        fill_empty(host_path, "type");
    }
    if let Some(claim) = volume.get_mut("ephemeral").and_then(|it| it.get_mut("volumeClaimTemplate")) {
        fill(&mut claim["spec"], "volumeMode", "Filesystem");
    }
    let has_source = volume.as_object().is_some_and(|it| it.len() > 1);
    if !has_source {
        volume["emptyDir"] = json!({});
    }
}

fn default_field_ref(item: &mut Value) {
    if let Some(reference) = item.get_mut("fieldRef") {
        fill(reference, "apiVersion", "v1");
    }
}

fn prepare(pod: &mut Value, change: Change<'_>) {
    if let Change::Create = change {
        let class = qos_class(&pod["spec"]);
        pod["status"] = json!({"phase": "Pending", "qosClass": class});
    }
    if let Change::Part("status", old) = change {
        // The node speaks of status only; what it runs is not its to say.
        pod["spec"] = old["spec"].clone();
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
    match change {
        Change::Update(old) => validate_update(pod, old, &mut errors),
        Change::Create | Change::Part(..) => (),
    }
    errors
}

/// What may change of a running pod: images, the deadline, the grace period of a pod that ends, and more tolerations.
fn validate_update(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    let mut allowed = pod["spec"].clone();
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates", "nodeSelector"] {
        match old.at(&["spec", field]) {
            Some(value) => allowed[field] = value.clone(),
            None => _ = allowed.remove_at(&[field]),
        }
    }
    for list in ["containers", "initContainers"] {
        let before = old.items_at(&["spec", list]);
        for (container, before) in each(&mut allowed, &[list]).zip(before) {
            container["image"] = before["image"].clone();
        }
    }
    if allowed != old["spec"] {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.push(FieldError::forbidden(&Path::new("spec"), detail));
    }
    let kept = |it: &Value| ["key", "operator", "value", "effect"].map(|field| it.text(field).to_owned());
    let now: Vec<_> = pod.items_at(&["spec", "tolerations"]).iter().map(kept).collect();
    if old.items_at(&["spec", "tolerations"]).iter().any(|it| !now.contains(&kept(it))) {
        errors.push(FieldError::forbidden(
            &Path::new("spec").child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
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
        (POD.default)(&mut pod);
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
