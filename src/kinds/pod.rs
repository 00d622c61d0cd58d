//! Pods, and the pod templates of workloads: defaults and checks.
//! Source: `pkg/apis/core/v1/defaults.go`, `pkg/apis/core/validation/validation.go`, `pkg/registry/core/pod/strategy.go`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{all, each, fill, non_negative, one_of, required},
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Quantity, Value, names};

pub const POD: Strategy = Strategy {
    default: |pod| default_spec(&mut pod["spec"]),
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
    if spec.get("enableServiceLinks").is_none() {
        fill(spec, "enableServiceLinks", true);
    }
    let account = [spec.text("serviceAccountName"), spec.text("serviceAccount")].into_iter().find(|it| !it.is_empty()).map(str::to_owned);
    if let Some(account) = account {
        spec["serviceAccountName"] = account.clone().into();
        spec["serviceAccount"] = account.into();
    }
    let is_host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in CONTAINER_LISTS {
        each(spec, &[list]).for_each(|container| default_container(container, is_host_network));
    }
    each(spec, &["volumes"]).for_each(default_volume);
}

fn default_container(container: &mut Value, is_host_network: bool) {
    let image = container.text("image");
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    for port in each(container, &["ports"]) {
        fill(port, "protocol", "TCP");
        if is_host_network {
            let number = port.get("containerPort").cloned().unwrap_or_default();
            fill(port, "hostPort", number);
        }
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
    request_what_is_limited(container);
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
    let containers = || spec.items_at(&["containers"]).iter().chain(spec.items_at(&["initContainers"]));
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
        Change::Create => validate_spec(&pod["spec"], &Path::new("spec"), &mut errors),
        Change::Update(old) => validate_update(pod, old, &mut errors),
        Change::Part(..) => (),
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

/// `ValidatePodSpec`, for pods and templates.
pub fn validate_spec(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let volumes = validate_volumes(spec.items_at(&["volumes"]), &path.child("volumes"), errors);
    let containers = spec.items_at(&["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(&path.child("containers"), ""));
    }
    let mut seen = Vec::new();
    for list in ["containers", "initContainers"] {
        for (at, container) in spec.items_at(&[list]).iter().enumerate() {
            let path = path.child(list).index(at);
            validate_container(container, &volumes, &path, errors);
            let name = container.text("name");
            if seen.contains(&name) && !name.is_empty() {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        }
    }
    one_of(spec, "restartPolicy", &["Always", "Never", "OnFailure"], path, errors);
    one_of(spec, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], path, errors);
    non_negative(spec, "terminationGracePeriodSeconds", path, errors);
    for (key, value) in spec.map_at(&["nodeSelector"]).into_iter().flatten() {
        let path = path.child("nodeSelector");
        all(names::qualified_name(key), key, &path, errors);
        all(names::label_value(value.as_str().unwrap_or_default()), value.as_str().unwrap_or_default(), &path, errors);
    }
    for field in ["nodeName", "serviceAccountName"] {
        let text = spec.text(field);
        if !text.is_empty() {
            all(names::dns1123_subdomain(text), text, &path.child(field), errors);
        }
    }
    for field in ["hostname", "subdomain"] {
        let text = spec.text(field);
        if !text.is_empty() {
            all(names::dns1123_label(text), text, &path.child(field), errors);
        }
    }
    for (at, sysctl) in spec.items_at(&["securityContext", "sysctls"]).iter().enumerate() {
        let (path, name) = (path.child("securityContext").child("sysctls").index(at).child("name"), sysctl.text("name"));
        match name {
            "" => errors.push(FieldError::required(&path, "")),
            _ if is_sysctl(name) => (),
            _ => errors.push(FieldError::invalid(&path, name, SYSCTL_RULE)),
        }
    }
    if let Some(seconds) = spec.int_at(&["activeDeadlineSeconds"]).filter(|it| !(1..=i64::from(i32::MAX)).contains(it)) {
        errors.push(FieldError::invalid(&path.child("activeDeadlineSeconds"), seconds, "must be between 1 and 2147483647, inclusive"));
    }
}

const SYSCTL_RULE: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// `IsValidSysctlName`: words of small letters, digits, dashes and underscores, between dots or slashes.
fn is_sysctl(name: &str) -> bool {
    let is_edge = |it: Option<char>| it.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    let is_word = |word: &str| {
        let inner = word.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, '-' | '_'));
        inner && is_edge(word.chars().next()) && is_edge(word.chars().last())
    };
    name.len() <= 253 && name.split(['.', '/']).all(is_word)
}

fn validate_volumes<'a>(volumes: &'a [Value], path: &Path, errors: &mut FieldErrors) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (at, volume) in volumes.iter().enumerate() {
        let (path, name) = (path.index(at), volume.text("name"));
        match name {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            _ => all(names::dns1123_label(name), name, &path.child("name"), errors),
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        match volume.as_object().map_or(0, |it| it.keys().filter(|key| *key != "name").count()) {
            0 => errors.push(FieldError::required(&path, "must specify a volume type")),
            1 => (),
            _ => errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type")),
        }
        seen.push(name);
    }
    seen
}

fn validate_container(container: &Value, volumes: &[&str], path: &Path, errors: &mut FieldErrors) {
    let name = container.text("name");
    match name {
        "" => errors.push(FieldError::required(&path.child("name"), "")),
        _ => all(names::dns1123_label(name), name, &path.child("name"), errors),
    }
    let image = container.text("image");
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"));
    }
    validate_ports(container.items_at(&["ports"]), &path.child("ports"), errors);
    for (at, env) in container.items_at(&["env"]).iter().enumerate() {
        let (path, name) = (path.child("env").index(at), env.text("name"));
        match name {
            "" => errors.push(FieldError::required(&path.child("name"), "")),
            _ => all(names::env_var_name(name), name, &path.child("name"), errors),
        }
        if !env.text("value").is_empty() && env.get("valueFrom").is_some() {
            errors.push(FieldError::invalid(&path.child("valueFrom"), "", "may not be specified when `value` is not empty"));
        }
    }
    validate_mounts(container.items_at(&["volumeMounts"]), volumes, &path.child("volumeMounts"), errors);
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    one_of(container, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"], path, errors);
    validate_resources(container, &path.child("resources"), errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get(probe) {
            validate_probe(value, probe, &path.child(probe), errors);
        }
    }
}

fn validate_ports(ports: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let (path, name) = (path.index(at), port.text("name"));
        if !name.is_empty() {
            all(names::port_name(name), name, &path.child("name"), errors);
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        }
        match port.int_at(&["containerPort"]).unwrap_or(0) {
            0 => errors.push(FieldError::required(&path.child("containerPort"), "")),
            number => errors.extend(names::port_number(number).into_iter().map(|it| FieldError::invalid(&path.child("containerPort"), number, it))),
        }
        if let Some(number) = port.int_at(&["hostPort"]).filter(|it| *it != 0) {
            errors.extend(names::port_number(number).into_iter().map(|it| FieldError::invalid(&path.child("hostPort"), number, it)));
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
    }
}

fn validate_mounts(mounts: &[Value], volumes: &[&str], path: &Path, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for (at, mount) in mounts.iter().enumerate() {
        let path = path.index(at);
        required(mount, "name", &path, errors);
        required(mount, "mountPath", &path, errors);
        if !volumes.contains(&mount.text("name")) {
            errors.push(FieldError::not_found(&path.child("name"), mount.text("name")));
        }
        if seen.contains(&mount.text("mountPath")) {
            errors.push(FieldError::invalid(&path.child("mountPath"), mount.text("mountPath"), "must be unique"));
        }
        seen.push(mount.text("mountPath"));
    }
}

fn validate_resources(container: &Value, path: &Path, errors: &mut FieldErrors) {
    let amount = |kind: &str, name: &str| container.text_at(&["resources", kind, name]).parse::<Quantity>().ok();
    for kind in ["limits", "requests"] {
        for (name, value) in container.map_at(&["resources", kind]).into_iter().flatten() {
            let path = path.child(kind).key(name);
            if amount(kind, name).is_some_and(Quantity::is_negative) {
                errors.push(FieldError::invalid(&path, value.clone(), "must be greater than or equal to 0"));
            }
        }
    }
    for (name, value) in container.map_at(&["resources", "requests"]).into_iter().flatten() {
        if let (Some(request), Some(limit)) = (amount("requests", name), amount("limits", name))
            && request > limit
        {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(&path.child("requests"), value.clone(), detail));
        }
    }
}

fn validate_probe(probe: &Value, kind: &str, path: &Path, errors: &mut FieldErrors) {
    let actions = ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|it| probe.get(it).is_some()).count();
    match actions {
        0 => errors.push(FieldError::required(path, "must specify a handler type")),
        1 => (),
        _ => errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type")),
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        non_negative(probe, field, path, errors);
    }
    if kind != "readinessProbe" && probe.int_at(&["successThreshold"]).is_some_and(|it| it != 1) {
        errors.push(FieldError::invalid(&path.child("successThreshold"), probe["successThreshold"].clone(), "must be 1"));
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
    fn invalid_pods_get_upstreams_errors() {
        let cases = [
            (json!({}), vec!["spec.containers: Required value"]),
            (json!({"containers": [{"name": "c"}]}), vec!["spec.containers[0].image: Required value"]),
            (
                json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i", "ports": [{"containerPort": 70000}]}]}),
                vec![
                    "spec.containers[1].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "spec.containers[1].name: Duplicate value: \"c\"",
                ],
            ),
            (
                json!({"restartPolicy": "Sometimes", "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
                vec![
                    "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
                    "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
                ],
            ),
            (
                json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]}),
                vec!["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
            ),
        ];
        for (spec, expected) in cases {
            let errors: Vec<String> = validate(&pod(spec), Change::Create).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected);
        }
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
