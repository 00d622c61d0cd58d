//! What is asked of pods everywhere. Follows pkg/api/v1/pod/util.go.

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec};
use serde_json::{Value, json};

use super::volumes;
use crate::base::clock;

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|it| it.type_ == kind)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
}

/// The node that it is bound to, or nothing.
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|it| it.node_name.as_deref()).unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|it| it.status == "True")
}

/// Whether it has come to its end for good.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The condition that tells why a pod had to go.
pub fn disruption_target(reason: &str, message: &str) -> Value {
    json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": clock::now_rfc3339()})
}

/// Drops of a cached pod's containers what only its node reads. A pod is never written back whole, only patched.
pub fn trim(spec: &mut PodSpec) {
    volumes::keep_claims(spec);
    spec.ephemeral_containers = None;
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.env = None;
        container.env_from = None;
        container.volume_mounts = None;
        container.command = None;
        container.args = None;
        container.liveness_probe = None;
        container.readiness_probe = None;
        container.startup_probe = None;
        container.lifecycle = None;
        container.security_context = None;
    }
}
