//! Autoscalers in their two versions, what may be written of a signing request, and defaults that are more than a line of `rules.txt`.
//! Source: `pkg/apis/{autoscaling/v1/conversion.go,core/v1/defaults.go,resource/v1/defaults.go}`, `pkg/registry/certificates/certificates/strategy.go`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill_at},
};
use crate::meta::{Meta, Value};

pub const SIGNING_REQUEST: Strategy = Strategy { prepare: prepare_signing_request, ..Strategy::PLAIN };

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
/// What v1 has no fields for, and the annotations in which it stands there.
const ANNOTATED: [([&str; 2], &str); 2] =
    [(["spec", "behavior"], "autoscaling.alpha.kubernetes.io/behavior"), (["status", "conditions"], "autoscaling.alpha.kubernetes.io/conditions")];

/// Utilization of cpu in v1, one metric among others in v2 (`pkg/apis/autoscaling/v1/conversion.go`).
pub const AUTOSCALER_TO_V1: fn(&mut Value) = |object| {
    let is_cpu = |it: &Value| it.text_at(&["resource", "name"]) == "cpu" && it.at(&["resource", "target", "averageUtilization"]).is_some();
    let (cpu, others): (Vec<Value>, Vec<Value>) = object.items_at(&["spec", "metrics"]).iter().cloned().partition(is_cpu);
    object.remove_at(&["spec", "metrics"]);
    if let Some(cpu) = cpu.first() {
        object["spec"]["targetCPUUtilizationPercentage"] = cpu["resource"]["target"]["averageUtilization"].clone();
    }
    if !others.is_empty() {
        object.set_at(&["metadata", "annotations", METRICS], Value::Array(others).to_string());
    }
    let current = object.remove_at(&["status", "currentMetrics"]).unwrap_or_default();
    if let Some(percent) = current.items_at(&[]).iter().find_map(|it| it.at(&["resource", "current", "averageUtilization"])) {
        object["status"]["currentCPUUtilizationPercentage"] = percent.clone();
    }
    for (path, annotation) in &ANNOTATED {
        if let Some(value) = object.remove_at(path) {
            object.set_at(&["metadata", "annotations", annotation], value.to_string());
        }
    }
};

pub const AUTOSCALER_FROM_V1: fn(&mut Value) = |object| {
    let taken = |object: &mut Value, name: &str| -> Option<Value> {
        let text = object.remove_at(&["metadata", "annotations", name])?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let mut metrics = taken(object, METRICS).and_then(|it| it.as_array().cloned()).unwrap_or_default();
    if let Some(percent) = object["spec"].remove_at(&["targetCPUUtilizationPercentage"]) {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}));
    }
    if !metrics.is_empty() {
        object["spec"]["metrics"] = metrics.into();
    }
    for (path, annotation) in &ANNOTATED {
        if let Some(value) = taken(object, annotation) {
            object.set_at(path, value);
        }
    }
    if let Some(percent) = object.remove_at(&["status", "currentCPUUtilizationPercentage"]) {
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]);
        object.set_at(&["status", "currentMetrics"], metric);
    }
};

/// Conditions are written through `approval` and `status`, the certificate only through `status`.
fn prepare_signing_request(object: &mut Value, change: Change<'_>) {
    let Some(old) = change.old() else { return };
    object["spec"] = old["spec"].clone();
    if let ("approval", Some(certificate)) = (change.subresource(), old.at(&["status", "certificate"])) {
        object.set_at(&["status", "certificate"], certificate.clone());
    }
}

pub const RESOURCE_SLICE: Strategy = Strategy { default: default_slice, ..Strategy::PLAIN };

/// A taint of a device came when the object last changed.
fn default_slice(object: &mut Value) {
    let times = object.items_at(&["metadata", "managedFields"]).iter().map(|it| it.text("time"));
    let Some(now) = times.chain([object.metadata("creationTimestamp")]).max().filter(|it| !it.is_empty()).map(str::to_owned) else { return };
    for device in each(object, &["spec", "devices"]) {
        each(device, &["taints"]).for_each(|it| fill_at(it, &["timeAdded"], now.as_str()));
    }
}

/// `spec.limits` of a LimitRange: what has a most has it for a default (`SetDefaults_LimitRangeItem`).
pub const LIMIT_RANGE: Strategy = Strategy { default: default_limit_range, ..Strategy::PLAIN };

fn default_limit_range(object: &mut Value) {
    for limit in each(object, &["spec", "limits"]).filter(|it| it.text("type") == "Container") {
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            for (name, value) in limit.map_at(&[from]).cloned().into_iter().flatten() {
                if limit.at(&[to, &name]).is_none() {
                    limit.set_at(&[to, &name], value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_turn_from_one_version_into_the_other() {
        let v2 = json!({"spec": {"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
        let mut v1 = v2.clone();
        AUTOSCALER_TO_V1(&mut v1);
        assert_eq!(v1, json!({"spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}));
        AUTOSCALER_FROM_V1(&mut v1);
        assert_eq!(v1, v2);
    }

    #[test]
    fn defaults_depend_on_other_fields() {
        let cases = [
            ("HorizontalPodAutoscaler", json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}}), json!({"spec": {
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
                "minReplicas": 1,
                "behavior": {
                    "scaleUp": {"selectPolicy": "Max", "stabilizationWindowSeconds": 0, "policies": [
                        {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15},
                    ]},
                    "scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
                },
            }})),
            ("ClusterRoleBinding", json!({"subjects": [{"kind": "Group"}, {"kind": "ServiceAccount"}]}), json!({"subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount"}]})),
            ("PriorityLevelConfiguration", json!({"spec": {"type": "Exempt"}}), json!({"spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}})),
            ("ResourceClaim", json!({"spec": {"devices": {"requests": [{"exactly": {}}, {"firstAvailable": [{"allocationMode": "All"}]}]}}}),
                json!({"spec": {"devices": {"requests": [{"exactly": {"allocationMode": "ExactCount", "count": 1}}, {"firstAvailable": [{"allocationMode": "All"}]}]}}})),
        ];
        for (kind, object, expected) in cases {
            assert_eq!(crate::kinds::rules::filled(kind, object), expected, "{kind}");
        }
    }

    #[test]
    fn limit_ranges_default_from_what_they_limit() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        default_limit_range(&mut range);
        assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
        assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    }
}
