//! What the parts of a pod say about each other. Source: `pkg/apis/core/validation/validation.go` (`ValidatePodSpec`).

use super::quantities::{container_name, requirements};
use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test, is_zero,
            words::{int, push_if},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("containers", containers),
    ("hostprocess", host_process),
    ("windows", windows),
    ("templatemeta", |site, _, errors| template_meta(site, errors)),
    ("spread", |site, _, errors| spread(site, errors)),
    ("rcselector", |site, _, errors| {
        let labels = site.value.at(&["spec", "template", "metadata", "labels"]);
        let selector = site.value.map_at(&["spec", "selector"]).into_iter().flatten();
        let is_match = selector.clone().count() == 0 || selector.into_iter().all(|(key, value)| labels.and_then(|it| it.get(key)) == Some(value));
        let path = ["spec", "template", "metadata", "labels"].iter().fold(Path::root(), |path, field| path.child(field));
        let shown = labels.cloned().unwrap_or_default();
        push_if(!is_match && site.value.at(&["spec", "template"]).is_some(), FieldError::invalid(&path, shown, "`selector` does not match template `labels`"), errors);
    }),
    ("claimname", |site, _, errors| ephemeral_claims(site, errors)),
    ("selectslabels", |site, test, errors| check::selector_of_template(site.value, test.message, errors)),
];

/// Lists of containers, with their paths (`VisitContainersWithPath`).
fn all_containers<'a>(spec: &'a Value, path: &Path) -> Vec<(Path, &'a Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let list = |list: &'static str| spec.items_at(&[list]).iter().enumerate().map(move |(at, container)| (path.child(list).index(at), container));
    lists.into_iter().flat_map(list).collect()
}

fn is_true(object: &Value, path: &[&str]) -> bool {
    object.at(path) == Some(&Value::Bool(true))
}

fn has(object: &Value, path: &[&str]) -> bool {
    object.at(path).is_some_and(|it| !it.is_null())
}

/// What containers need of their pod: volumes, claims, names of their own, ports. `site` is the PodSpec.
fn containers(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (spec, path) = (site.value, site.path());
    let volumes = volumes(spec, path, errors);
    let claims: Vec<&str> = spec.items_at(&["resourceClaims"]).iter().map(|it| it.text("name")).filter(|it| !it.is_empty()).collect();
    push_if(spec.items_at(&["containers"]).is_empty(), FieldError::required(&path.child("containers"), ""), errors);
    let (mut names, mut ports): (Vec<(&str, &str)>, Vec<String>) = (Vec::new(), Vec::new());
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (at, container) in spec.items_at(&[list]).iter().enumerate() {
            let (own, name) = (path.child(list).index(at), container.text("name"));
            if list != "containers" {
                ports.clear();
            }
            push_if(names.iter().any(|it| it.1 == name) && (!name.is_empty() || list == "containers"), FieldError::duplicate(&own.child("name"), name), errors);
            host_ports(container, list, at, path, &mut ports, errors);
            common(spec, container, &own, &volumes, &claims, errors);
            if list == "ephemeralContainers" {
                let (path, target) = (own.child("targetContainerName"), container.text("targetContainerName"));
                let is_there = names.iter().any(|it| it.0 != list && it.1 == target);
                push_if(!target.is_empty() && !is_there, FieldError::not_found(&path, target), errors);
            } else if list == "containers" || container.text("restartPolicy") == "Always" {
                started(spec, container, &own, errors);
            }
            names.push((list, name));
        }
    }
    of_host_users(spec, path, errors);
    if site.root.text("kind") == "Pod" {
        for (path, container) in all_containers(spec, path) {
            let image = container.text("image");
            push_if(image.trim() != image, FieldError::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"), errors);
        }
    }
    of_host_network(site, spec, path, errors);
}

/// The volumes that are right, and errors for names that stand twice.
fn volumes<'a>(spec: &'a Value, path: &Path, errors: &mut FieldErrors) -> Vec<&'a Value> {
    let mut fine: Vec<&Value> = Vec::new();
    for (at, volume) in spec.items_at(&["volumes"]).iter().enumerate() {
        let name = volume.text("name");
        if fine.iter().any(|it| it.text("name") == name) {
            errors.push(FieldError::duplicate(&path.child("volumes").index(at).child("name"), name));
        } else if super::super::is_valid(volume, "io.k8s.api.core.v1.Volume") {
            fine.push(volume);
        }
    }
    fine
}

fn host_ports(container: &Value, list: &str, at: usize, path: &Path, seen: &mut Vec<String>, errors: &mut FieldErrors) {
    if list == "ephemeralContainers" {
        return;
    }
    // Upstream checks init containers one by one, as if each were the first.
    let own = path.child(list).index(if list == "initContainers" { 0 } else { at }).child("ports");
    for (at, port) in container.items_at(&["ports"]).iter().enumerate() {
        let number = int(&port["hostPort"]);
        let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
        if number != 0 && seen.contains(&key) {
            errors.push(FieldError::duplicate(&own.index(at).child("hostPort"), key));
        } else if number != 0 {
            seen.push(key);
        }
    }
}

/// What holds for all containers alike.
fn common(spec: &Value, container: &Value, path: &Path, volumes: &[&Value], claims: &[&str], errors: &mut FieldErrors) {
    let find = |name: &str| volumes.iter().find(|it| it.text("name") == name);
    for (at, mount) in container.items_at(&["volumeMounts"]).iter().enumerate() {
        let name = mount.text("name");
        push_if(find(name).is_none(), FieldError::not_found(&path.child("volumeMounts").index(at).child("name"), name), errors);
    }
    for (at, device) in container.items_at(&["volumeDevices"]).iter().enumerate() {
        let (path, name) = (path.child("volumeDevices").index(at).child("name"), device.text("name"));
        match find(name) {
            None => errors.push(FieldError::not_found(&path, name)),
            Some(volume) if !has(volume, &["persistentVolumeClaim"]) && !has(volume, &["ephemeral"]) => {
                errors.push(FieldError::invalid(&path, name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"));
            }
            Some(_) => (),
        }
    }
    requirements(&container["resources"], &path.child("resources"), claims, container_name, errors);
    for policy in container.items_at(&["resizePolicy"]) {
        let restart = policy.text("restartPolicy");
        let is_wrong = spec.text("restartPolicy") == "Never" && restart != "NotRequired";
        push_if(is_wrong, FieldError::invalid(&path.child("resizePolicy"), restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"), errors);
    }
    let is_unmasked = container.text_at(&["securityContext", "procMount"]) == "Unmasked" && spec.get("hostUsers") != Some(&Value::Bool(false));
    push_if(is_unmasked, FieldError::invalid(&path.child("securityContext").child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`"), errors);
    for (at, env) in container.items_at(&["env"]).iter().enumerate() {
        let Some(reference) = env.at(&["valueFrom", "fileKeyRef"]) else { continue };
        let (name, path) = (reference.text("volumeName"), path.child("env").index(at).child("valueFrom").child("fileKeyRef").child("volumeName"));
        match spec.items_at(&["volumes"]).iter().find(|it| it.text("name") == name) {
            None => errors.push(FieldError::not_found(&path, name)),
            Some(volume) => push_if(!has(volume, &["emptyDir"]), FieldError::invalid(&path, name, "referenced volume must be of type emptyDir"), errors),
        }
    }
}

/// Hooks and probes of what runs along with the pod.
fn started(spec: &Value, container: &Value, path: &Path, errors: &mut FieldErrors) {
    let grace = spec.int_at(&["terminationGracePeriodSeconds"]);
    for hook in ["postStart", "preStop"] {
        let Some(handler) = container.at(&["lifecycle", hook]) else { continue };
        let is_first = !["exec", "httpGet", "tcpSocket"].iter().any(|it| has(handler, &[it]));
        let Some(sleep) = handler.get("sleep").filter(|_| is_first) else { continue };
        let seconds = int(&sleep["seconds"]);
        if let Some(grace) = grace.filter(|it| seconds < 0 || seconds > *it) {
            let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            errors.push(FieldError::invalid(&path.child("lifecycle").child(hook).child("sleep"), seconds, detail));
        }
    }
}

/// `validateHostUsers`.
fn of_host_users(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    if spec.get("hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        push_if(is_true(spec, &[field]), FieldError::forbidden(&path.child(shown), "when `hostUsers` is false"), errors);
    }
    for (path, container) in all_containers(spec, path) {
        let is_wrong = !container.items_at(&["volumeDevices"]).is_empty();
        push_if(is_wrong, FieldError::forbidden(&path.child("volumeDevices"), "when `hostUsers` is false"), errors);
    }
}

/// `validatePodHostNetworkDeps`, and sysctls of namespaces that are the host's.
fn of_host_network(site: &Site<'_>, spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let is_pod = site.root.text("kind") == "Pod";
    let is_host_network = is_true(spec, &["hostNetwork"]);
    for (at, container) in spec.items_at(&["containers"]).iter().enumerate().filter(|_| is_host_network) {
        for (port_at, port) in container.items_at(&["ports"]).iter().enumerate() {
            let (host, own) = (int(&port["hostPort"]), int(&port["containerPort"]));
            let path = path.child("containers").index(at).child("ports").index(port_at).child("hostPort");
            push_if((is_pod || host != 0) && host != own, FieldError::invalid(&path, host, "must match `containerPort` when `hostNetwork` is true"), errors);
        }
    }
    let path = path.child("securityContext");
    for (at, sysctl) in spec.items_at(&["securityContext", "sysctls"]).iter().enumerate() {
        let (name, dotted) = (sysctl.text("name"), sysctl.text("name").replace('/', "."));
        let path = path.child("sysctls").index(at).child("name");
        let is_ipc = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|it| dotted.starts_with(it));
        if is_host_network && dotted.starts_with("net.") {
            errors.push(FieldError::invalid(&path, name, "may not be specified when 'hostNetwork' is true"));
        } else if is_true(spec, &["hostIPC"]) && is_ipc {
            errors.push(FieldError::invalid(&path, name, "may not be specified when 'hostIPC' is true"));
        }
    }
    let shares = is_true(spec, &["shareProcessNamespace"]) && is_true(spec, &["hostPID"]);
    push_if(shares, FieldError::invalid(&path.child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"), errors);
}

/// `validateWindowsHostProcessPod`: all containers are host processes, or none.
fn host_process(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (spec, path) = (site.value, site.path());
    let flag = |object: &Value| object.at(&["securityContext", "windowsOptions", "hostProcess"]).and_then(Value::as_bool);
    let (pod, containers) = (flag(spec), all_containers(spec, path));
    let mut count = 0;
    for (path, container) in &containers {
        let own = flag(container);
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let path = path.child("securityContext").child("windowsOptions").child("hostProcess");
            errors.push(FieldError::invalid(&path, own, format!("pod hostProcess value must be identical if both are specified, was {pod}")));
        }
        count += usize::from(own.or(pod) == Some(true));
    }
    if count > 0 {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        push_if(count != containers.len(), FieldError::invalid(path, "", detail), errors);
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        push_if(!is_true(spec, &["hostNetwork"]), FieldError::invalid(&path.child("hostNetwork"), false, detail), errors);
    }
}

/// What pods of one operating system may not have (`validateLinux`, `validateWindows`).
fn windows(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    const POD: [&str; 11] =
        ["appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls", "runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"];
    const OWN: [&str; 10] =
        ["appArmorProfile", "seLinuxOptions", "seccompProfile", "capabilities", "readOnlyRootFilesystem", "privileged", "allowPrivilegeEscalation", "procMount", "runAsUser", "runAsGroup"];
    let (spec, path) = (site.value, site.path());
    let mut refuse = |object: &Value, fields: &[&str], path: &Path, detail: &'static str| {
        let context = &object["securityContext"];
        for field in fields.iter().filter(|it| context.get(**it).is_some_and(|it| !it.is_null())) {
            errors.push(FieldError::forbidden(&path.child("securityContext").child(field), detail));
        }
    };
    let is_windows = spec.text_at(&["os", "name"]) == "windows";
    let (pod, own, detail): (&[&str], &[&str], _) =
        if is_windows { (&POD, &OWN, "cannot be set for a windows pod") } else { (&["windowsOptions"], &["windowsOptions"], "windows options cannot be set for a linux pod") };
    refuse(spec, pod, path, detail);
    all_containers(spec, path).iter().for_each(|(path, container)| refuse(container, own, path, detail));
    for field in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"].into_iter().filter(|_| is_windows) {
        let is_set = spec.get(field).is_some_and(|it| if matches!(field, "hostPID" | "hostIPC") { !is_zero(it) } else { !it.is_null() });
        push_if(is_set, FieldError::forbidden(&path.child(field), detail), errors);
    }
}

/// `ValidateTemplateObjectMeta`: labels and annotations, and nothing else.
fn template_meta(site: &Site<'_>, errors: &mut FieldErrors) {
    for (field, value) in site.value.as_object().into_iter().flatten() {
        let is_allowed = matches!(field.as_str(), "labels" | "annotations") || is_zero(value);
        push_if(!is_allowed, FieldError::forbidden(&site.path().child(if field == "uid" { "uID" } else { field }), "cannot be set"), errors);
    }
}

/// `ValidateSpreadConstraintNotRepeat`. `site` is the list.
fn spread(site: &Site<'_>, errors: &mut FieldErrors) {
    let key = |it: &Value| format!("{{{}, {}}}", it.text("topologyKey"), it.text("whenUnsatisfiable"));
    let all: Vec<String> = site.value.as_array().into_iter().flatten().map(key).collect();
    for (at, key) in all.iter().enumerate().filter(|(at, key)| all[at + 1..].contains(key)) {
        errors.push(FieldError::duplicate(&site.path().index(at).child("{topologyKey, whenUnsatisfiable}"), key.as_str()));
    }
}

/// The names of the claims that ephemeral volumes make. `site` is the Pod.
fn ephemeral_claims(site: &Site<'_>, errors: &mut FieldErrors) {
    let (volumes, path) = (site.value.items_at(&["spec", "volumes"]), Path::new("spec").child("volumes"));
    let claim = |volume: &Value| format!("{}-{}", site.value.name(), volume.text("name"));
    // Of several sources only the first counts.
    let has = |volume: &Value| volume.get("ephemeral").is_some_and(|it| !it.is_null()) && volume.as_object().is_some_and(|it| it.len() == 2);
    let made: Vec<String> = volumes.iter().filter(|it| has(it)).map(claim).collect();
    for (at, volume) in volumes.iter().enumerate() {
        if has(volume) && !volume.text("name").is_empty() && !site.value.name().is_empty() {
            let problems = names::dns1123_subdomain(&claim(volume)).into_iter().map(|it| format!("PVC name {:?}: {it}", claim(volume)).into()).collect();
            check::all(problems, volume.text("name"), &path.index(at).child("name"), errors);
        }
        let used = volume.text_at(&["persistentVolumeClaim", "claimName"]);
        let place = path.index(at).child("persistentVolumeClaim").child("claimName");
        push_if(made.iter().any(|it| it == used), FieldError::invalid(&place, used, "must not reference a PVC that gets created for an ephemeral volume"), errors);
    }
}
