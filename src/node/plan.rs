//! What a pod needs next, and what is to be said of it: pure functions of the pod and its containers.
//! Source: kubelet `pkg/kubelet/kuberuntime/kuberuntime_manager.go` (`computePodActions`), `pkg/kubelet/kubelet_pods.go` (`generateAPIPodStatus`).

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, ContainerRestartRule, EphemeralContainer, Pod, PodSpec};
use serde_json::{Value, json};

use super::runtime::{Container, Ended};
use crate::base::clock;

/// `MaxContainerBackOff` and its first step.
const BACKOFF_FIRST: i64 = 10;
const BACKOFF_MOST: i64 = 300;
/// A container that ran this long starts over with the first step.
const BACKOFF_FORGET: i64 = 600;

/// The reason of a pod that the node has evicted.
pub const EVICTED: &str = "Evicted";

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Start { name: String, attempt: u32 },
    /// Nothing before this many seconds have passed.
    Wait(i64),
}

/// Facts about the containers that the runtime does not know.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Running containers whose startup probe has not passed.
    pub not_started: Vec<String>,
    /// Running containers whose readiness probe has not.
    pub not_ready: Vec<String>,
    /// The pod is deleted: it does not go on.
    pub is_leaving: bool,
    /// Why the whole pod has failed: (reason, message).
    pub failed: Option<(String, String)>,
    /// Why a container could not be started: (reason, message).
    pub waiting: HashMap<String, (String, String)>,
}

/// The newest container of a name.
fn newest<'a>(all: &'a [Container], name: &str) -> Option<&'a Container> {
    all.iter().filter(|it| it.spec.name == name).max_by_key(|it| it.spec.attempt)
}

fn ended(container: &Container) -> Option<Ended> {
    container.ended.clone()
}

/// An ephemeral container in the shape of the others.
pub fn as_container(container: &EphemeralContainer) -> ContainerSpec {
    let value = serde_json::to_value(container).unwrap_or_default();
    ContainerSpec { restart_policy: None, ..serde_json::from_value(value).unwrap_or_default() }
}

pub fn is_sidecar(container: &ContainerSpec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Seconds until a container that ended may start again.
fn backoff(container: &Container, now: Timestamp) -> i64 {
    let Some(ended) = ended(container) else { return 0 };
    let (Ok(at), attempt) = (ended.at.parse::<Timestamp>(), container.spec.attempt) else { return 0 };
    let ran = container.started.as_ref().and_then(|it| it.at.parse::<Timestamp>().ok()).map_or(0, |it| at.duration_since(it).as_secs());
    if attempt == 0 || ran >= BACKOFF_FORGET {
        return 0;
    }
    let delay = BACKOFF_FIRST.saturating_mul(1 << (attempt - 1).min(10)).min(BACKOFF_MOST);
    (at + SignedDuration::from_secs(delay)).duration_since(now).as_secs().max(0)
}

/// By the container's own rules (KEP-5307), or its policy, or the pod's.
fn restarts(spec: &PodSpec, container: &ContainerSpec, is_init: bool, code: i32) -> bool {
    let is_met = |it: &ContainerRestartRule| {
        let listed = it.exit_codes.as_ref().map(|it| (it.operator == "In", it.values.iter().flatten().any(|it| *it == code)));
        it.action == "Restart" && listed.is_some_and(|(wants_in, is_in)| wants_in == is_in)
    };
    if container.restart_policy_rules.iter().flatten().any(is_met) {
        return true;
    }
    match container.restart_policy.as_deref().or(spec.restart_policy.as_deref()) {
        _ if is_init && is_sidecar(container) => true,
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => !(is_init && code == 0),
    }
}

/// The steps for a pod that is to run.
pub fn steps(pod: &Pod, containers: &[Container], notes: &Notes, now: Timestamp) -> Vec<Step> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut steps = Vec::new();
    // Once the main containers have begun, init containers are history; only sidecars are looked after.
    let has_begun = spec.containers.iter().any(|it| newest(containers, &it.name).is_some());
    for container in spec.init_containers.iter().flatten().filter(|it| !has_begun || is_sidecar(it)) {
        let current = newest(containers, &container.name);
        steps.extend(step(spec, container, true, current, now));
        let is_done = match current {
            Some(it) if is_sidecar(container) => it.is_running() && !notes.not_started.contains(&container.name),
            Some(it) => ended(it).is_some_and(|it| it.code == 0),
            None => false,
        };
        if !is_done && !has_begun {
            return steps;
        }
    }
    steps.extend(spec.containers.iter().filter_map(|it| step(spec, it, false, newest(containers, &it.name), now)));
    // Ephemeral containers start once, and never again.
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter(|it| newest(containers, &it.name).is_none());
    steps.extend(ephemeral.map(|it| Step::Start { name: it.name.clone(), attempt: 0 }));
    steps
}

fn step(spec: &PodSpec, container: &ContainerSpec, is_init: bool, current: Option<&Container>, now: Timestamp) -> Option<Step> {
    let start = |attempt| Some(Step::Start { name: container.name.clone(), attempt });
    let Some(current) = current else { return start(0) };
    let ended = ended(current)?;
    if !restarts(spec, container, is_init, ended.code) {
        return None;
    }
    match backoff(current, now) {
        0 => start(current.spec.attempt + 1),
        seconds => Some(Step::Wait(seconds)),
    }
}

/// Whether the main containers have ended for good, so that sidecars are no longer needed.
pub fn is_over(spec: &PodSpec, containers: &[Container]) -> bool {
    spec.containers.iter().all(|it| newest(containers, &it.name).and_then(ended).is_some_and(|end| !restarts(spec, it, false, end.code)))
}

/// The status of a pod, as a strategic merge patch.
pub fn status(pod: &Pod, containers: &[Container], notes: &Notes, addresses: (Option<&str>, &str), now: Timestamp) -> Value {
    let Some(spec) = &pod.spec else { return json!({}) };
    let report = |list: &[ContainerSpec], is_init: bool| -> Vec<Value> {
        list.iter().map(|it| container_status(spec, it, is_init, containers, notes, now)).collect()
    };
    let init = report(spec.init_containers.as_deref().unwrap_or_default(), true);
    let main = report(&spec.containers, false);
    let ephemeral: Vec<ContainerSpec> = spec.ephemeral_containers.iter().flatten().map(as_container).collect();
    let once = PodSpec { restart_policy: Some("Never".to_owned()), ..spec.clone() };
    let ephemeral: Vec<Value> = ephemeral.iter().map(|it| container_status(&once, it, false, containers, notes, now)).collect();
    let phase = if notes.failed.is_some() { "Failed" } else { phase(spec, containers, notes.is_leaving) };
    let mut conditions = conditions(pod, spec, (phase, &main, &init), addresses.0.is_some(), now);
    if let Some((EVICTED, why)) = notes.failed.as_ref().map(|it| (it.0.as_str(), &it.1)) {
        conditions.push(json!({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": why, "lastTransitionTime": clock::rfc3339(now)}));
    }
    let started = pod.status.as_ref().and_then(|it| it.start_time.as_ref()).map_or_else(|| clock::rfc3339(now), |it| clock::rfc3339(it.0));
    let mut status = json!({"phase": phase, "reason": notes.failed.as_ref().map(|it| it.0.as_str()), "message": notes.failed.as_ref().map(|it| it.1.as_str()), "conditions": conditions, "containerStatuses": main, "hostIP": addresses.1, "hostIPs": [{"ip": addresses.1}], "startTime": started,
        "observedGeneration": pod.metadata.generation});
    if !ephemeral.is_empty() {
        status["ephemeralContainerStatuses"] = ephemeral.into();
    }
    if !init.is_empty() {
        status["initContainerStatuses"] = init.into();
    }
    if let Some(ip) = addresses.0 {
        status["podIP"] = ip.into();
        status["podIPs"] = json!([{"ip": ip}]);
    }
    status
}

/// What clients wait for (`pkg/kubelet/status/generate.go`).
fn conditions(pod: &Pod, spec: &PodSpec, (phase, main, init): (&str, &[Value], &[Value]), has_sandbox: bool, now: Timestamp) -> Vec<Value> {
    let names = |list: &[&Value], is_good: &dyn Fn(&Value) -> bool| list.iter().filter(|it| !is_good(it)).filter_map(|it| it["name"].as_str()).collect::<Vec<_>>().join(" ");
    let is_sidecar_of = |it: &Value| spec.init_containers.iter().flatten().any(|own| own.name == it["name"] && is_sidecar(own));
    let incomplete = names(&init.iter().collect::<Vec<_>>(), &|it| if is_sidecar_of(it) { it["started"] == true } else { it["ready"] == true });
    let lasting: Vec<&Value> = init.iter().filter(|it| is_sidecar_of(it)).chain(main).collect();
    let unready = names(&lasting, &|it| it["ready"] == true);
    let because = |reason: &str, list: &str, what: &str| (!list.is_empty()).then(|| (reason.to_owned(), format!("containers with {what} status: [{list}]")));
    let initialized = because("ContainersNotInitialized", &incomplete, "incomplete");
    let containers_ready = match phase {
        "Succeeded" => Some(("PodCompleted".to_owned(), String::new())),
        "Failed" => Some(("PodFailed".to_owned(), String::new())),
        _ => because("ContainersNotReady", &unready, "unready"),
    };
    let ready = containers_ready.clone().or_else(|| gates(pod, spec));
    let condition = |kind: &str, why: Option<(String, String)>| condition(pod, kind, why, now);
    vec![
        condition("PodReadyToStartContainers", (!has_sandbox).then(Default::default)),
        condition("Initialized", initialized),
        condition("Ready", ready),
        condition("ContainersReady", containers_ready),
        condition("PodScheduled", None),
    ]
}

/// Why the pod's own readiness gates keep it from being ready.
fn gates(pod: &Pod, spec: &PodSpec) -> Option<(String, String)> {
    let conditions: Vec<_> = pod.status.iter().flat_map(|it| it.conditions.iter().flatten()).collect();
    let messages: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| match conditions.iter().find(|it| it.type_ == gate.condition_type) {
            None => Some(format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type)),
            Some(found) if found.status != "True" => Some(format!("the status of pod readiness gate {:?} is not \"True\", but {}", gate.condition_type, found.status)),
            Some(_) => None,
        })
        .collect();
    (!messages.is_empty()).then(|| ("ReadinessGatesNotReady".to_owned(), messages.join(", ")))
}

/// A condition, true without a reason; its time is kept while its status is.
fn condition(pod: &Pod, kind: &str, why: Option<(String, String)>, now: Timestamp) -> Value {
    let status = if why.is_none() { "True" } else { "False" };
    let old = pod.status.as_ref().and_then(|it| it.conditions.iter().flatten().find(|it| it.type_ == kind && it.status == status));
    let since = old.and_then(|it| it.last_transition_time.as_ref()).map_or_else(|| clock::rfc3339(now), |it| clock::rfc3339(it.0));
    let text = |it: &str| if it.is_empty() { Value::Null } else { it.into() };
    let (reason, message) = why.unwrap_or_default();
    json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since, "reason": text(&reason), "message": text(&message),
        "observedGeneration": pod.metadata.generation})
}

/// `getPhase`. What has ended of a pod that is deleted has ended for good (KEP-3329).
fn phase(spec: &PodSpec, containers: &[Container], is_leaving: bool) -> &'static str {
    let failed_init = spec.init_containers.iter().flatten().any(|it| {
        newest(containers, &it.name).and_then(ended).is_some_and(|end| end.code != 0 && !restarts(spec, it, true, end.code))
    });
    if failed_init {
        return "Failed";
    }
    let current: Vec<Option<&Container>> = spec.containers.iter().map(|it| newest(containers, &it.name)).collect();
    let ends: Vec<(&ContainerSpec, i32)> = spec.containers.iter().zip(&current).filter_map(|(it, now)| Some((it, now.and_then(ended)?.code))).collect();
    let has_sidecars = spec.init_containers.iter().flatten().filter(|it| is_sidecar(it)).any(|it| newest(containers, &it.name).is_some_and(Container::is_running));
    let is_over = ends.len() == spec.containers.len() && !has_sidecars && (is_leaving || ends.iter().all(|(it, code)| !restarts(spec, it, false, *code)));
    match () {
        () if current.iter().all(Option::is_none) => "Pending",
        () if is_over => if ends.iter().all(|it| it.1 == 0) { "Succeeded" } else { "Failed" },
        () if current.iter().any(Option::is_none) && ends.is_empty() && !current.iter().flatten().any(|it| it.is_running()) => "Pending",
        () => "Running",
    }
}

fn container_status(spec: &PodSpec, container: &ContainerSpec, is_init: bool, all: &[Container], notes: &Notes, now: Timestamp) -> Value {
    let current = newest(all, &container.name);
    let attempt = current.map_or(0, |it| it.spec.attempt);
    let previous = all.iter().filter(|it| it.spec.name == container.name && it.spec.attempt + 1 == attempt).find_map(|it| Some(terminated(it, &ended(it)?)));
    let is_running = current.is_some_and(Container::is_running);
    let is_started = is_running && !notes.not_started.contains(&container.name);
    let is_done = is_init && !is_sidecar(container) && current.and_then(ended).is_some_and(|it| it.code == 0);
    let state = state(spec, container, is_init, current, notes, now);
    let mut last = previous.map_or_else(|| json!({}), |it| json!({"terminated": it}));
    if let (Some(current), true) = (current, state.get("waiting").is_some())
        && let Some(end) = ended(current)
    {
        last = json!({"terminated": terminated(current, &end)});
    }
    let resources = container.resources.clone().unwrap_or_default();
    json!({"name": container.name, "image": container.image, "allocatedResources": resources.requests, "resources": if is_running { json!({"limits": resources.limits, "requests": resources.requests}) } else { Value::Null }, "imageID": current.map_or("", |it| it.spec.image.as_str()),
        "containerID": current.map_or_else(String::new, |it| format!("howdah://{}", it.id)), "restartCount": attempt,
        "ready": if is_init && !is_sidecar(container) { is_done } else { is_started && !notes.not_ready.contains(&container.name) }, "started": is_started, "state": state, "lastState": last})
}

fn state(spec: &PodSpec, container: &ContainerSpec, is_init: bool, current: Option<&Container>, notes: &Notes, now: Timestamp) -> Value {
    let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
    if let Some((reason, message)) = notes.waiting.get(&container.name) {
        return waiting(reason, message);
    }
    let Some(current) = current else {
        let has_init = spec.init_containers.as_ref().is_some_and(|it| !it.is_empty());
        return json!({"waiting": {"reason": if has_init { "PodInitializing" } else { "ContainerCreating" }}});
    };
    match ended(current) {
        None => json!({"running": {"startedAt": current.started.as_ref().map_or_else(|| clock::rfc3339(now), |it| it.at.clone())}}),
        Some(end) if restarts(spec, container, is_init, end.code) && backoff(current, now) > 0 => {
            let most = BACKOFF_FIRST.saturating_mul(1 << current.spec.attempt.saturating_sub(1).min(10)).min(BACKOFF_MOST);
            waiting("CrashLoopBackOff", &format!("back-off {most}s restarting failed container={}", container.name))
        }
        Some(end) => json!({"terminated": terminated(current, &end)}),
    }
}

fn terminated(container: &Container, end: &Ended) -> Value {
    let reason = match (end.is_oom_killed, end.error.is_empty(), end.code) {
        (true, ..) => "OOMKilled",
        (_, false, _) => "StartError",
        (_, _, 0) => "Completed",
        _ => "Error",
    };
    let started = container.started.as_ref().map_or(end.at.as_str(), |it| it.at.as_str());
    let mut state = json!({"exitCode": end.code, "reason": reason, "startedAt": started, "finishedAt": end.at, "containerID": format!("howdah://{}", container.id)});
    let message = if end.error.is_empty() { &end.message } else { &end.error };
    if !message.is_empty() {
        state["message"] = message.as_str().into();
    }
    state
}

#[cfg(test)]
mod tests {
    use super::super::runtime::Spec;
    use super::*;

    fn pod(policy: &str, init: bool) -> Pod {
        let init = if init { json!([{"name": "i", "image": "x"}]) } else { json!([]) };
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"restartPolicy": policy, "initContainers": init, "containers": [{"name": "c", "image": "x"}]}})).expect("a Pod")
    }

    /// A pod whose container has a policy of its own.
    fn ruled(policy: &str, own: Value) -> Pod {
        let mut container = json!({"name": "c", "image": "x"});
        json_patch::merge(&mut container, &own);
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"restartPolicy": policy, "containers": [container]}})).expect("a Pod")
    }

    fn dead(name: &str, attempt: u32, code: i32) -> Container {
        let at = "2024-01-01T00:00:00Z".to_owned();
        Container { id: format!("{name}{attempt}"), spec: Spec { name: name.to_owned(), attempt, ..Spec::default() }, started: None, ended: Some(Ended { code, is_oom_killed: false, error: String::new(), message: String::new(), at }) }
    }

    #[test]
    fn containers_start_in_order_and_restart_with_a_back_off() {
        let start = |name: &str, attempt| Step::Start { name: name.to_owned(), attempt };
        let rule = |operator: &str| json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": operator, "values": [42]}}]});
        let now: Timestamp = "2024-01-01T00:00:05Z".parse().expect("a time");
        let cases = [
            (pod("Always", false), vec![], vec![start("c", 0)]),
            (pod("Always", true), vec![], vec![start("i", 0)]),
            (pod("Always", true), vec![dead("i", 0, 0)], vec![start("c", 0)]),
            (pod("Never", true), vec![dead("i", 0, 1)], vec![]),
            (pod("Always", false), vec![dead("c", 0, 1)], vec![start("c", 1)]),
            (pod("Always", false), vec![dead("c", 0, 1), dead("c", 1, 1)], vec![Step::Wait(5)]),
            (pod("OnFailure", false), vec![dead("c", 0, 0)], vec![]),
            (pod("Never", false), vec![dead("c", 0, 1)], vec![]),
            (ruled("Never", json!({"restartPolicy": "OnFailure"})), vec![dead("c", 0, 1)], vec![start("c", 1)]),
            (ruled("Always", json!({"restartPolicy": "Never"})), vec![dead("c", 0, 1)], vec![]),
            (ruled("Never", rule("In")), vec![dead("c", 0, 42)], vec![start("c", 1)]),
            (ruled("Never", rule("In")), vec![dead("c", 0, 1)], vec![]),
            (ruled("Never", rule("NotIn")), vec![dead("c", 0, 1)], vec![start("c", 1)]),
        ];
        for (pod, containers, expected) in cases {
            assert_eq!(steps(&pod, &containers, &Notes::default(), now), expected);
        }
    }

    #[test]
    fn pods_end_as_their_containers_do() {
        let spec = |policy| pod(policy, false).spec.expect("a spec");
        assert_eq!(phase(&spec("Never"), &[dead("c", 0, 0)], false), "Succeeded");
        assert_eq!(phase(&spec("Never"), &[dead("c", 0, 1)], false), "Failed");
        assert_eq!(phase(&spec("Always"), &[dead("c", 0, 1)], false), "Running");
        assert_eq!(phase(&spec("OnFailure"), &[dead("c", 0, 1)], false), "Running");
        assert_eq!(phase(&spec("Always"), &[], false), "Pending");
        assert_eq!(phase(&spec("Always"), &[dead("c", 0, 0)], true), "Succeeded");
        assert_eq!(phase(&spec("Always"), &[dead("c", 0, 137)], true), "Failed");
    }
}
