//! A pod with scheduling gates does not enter the queue (PreEnqueue).

use k8s_openapi::api::core::v1::Pod;

pub fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|it| it.scheduling_gates.as_ref()).is_some_and(|it| !it.is_empty())
}
