//! Limits on what users do: disruption budgets, quotas, autoscalers, admission configuration, flow control.
//! Source: `pkg/apis/{policy,autoscaling,admissionregistration,flowcontrol,core}/{v1/defaults.go,validation}`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill, fill_at},
};
use crate::meta::{Meta, Value};

pub const AUTOSCALER: Strategy = Strategy { default: default_autoscaler, ..Strategy::PLAIN };
pub const PRIORITY_LEVEL: Strategy = Strategy { default: default_priority_level, ..Strategy::PLAIN };
pub const SIGNING_REQUEST: Strategy =
    Strategy { prepare: prepare_signing_request, ..Strategy::PLAIN };
pub const RESOURCE_CLAIM: Strategy = Strategy { default: |object| default_claim(&mut object["spec"]), ..Strategy::PLAIN };
pub const RESOURCE_CLAIM_TEMPLATE: Strategy = Strategy { default: |object| default_claim(&mut object["spec"]["spec"]), ..Strategy::PLAIN };

fn default_autoscaler(object: &mut Value) {
    let is_first = object.text("apiVersion") == "autoscaling/v1";
    let spec = &mut object["spec"];
    if is_first {
        // What v2 has for metrics may stand in an annotation.
        if object.at(&["metadata", "annotations", METRICS]).is_none() {
            fill(&mut object["spec"], "targetCPUUtilizationPercentage", 80);
        }
        return;
    }
    if spec.items_at(&["metrics"]).is_empty() {
        spec["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    }
    let rules = |percent: i64, pods: Option<i64>, window: Option<i64>| {
        let mut policies = vec![json!({"type": "Percent", "value": percent, "periodSeconds": 15})];
        if let Some(pods) = pods {
            policies.insert(0, json!({"type": "Pods", "value": pods, "periodSeconds": 15}));
        }
        let mut rules = json!({"selectPolicy": "Max", "policies": policies});
        if let Some(window) = window {
            rules["stabilizationWindowSeconds"] = window.into();
        }
        rules
    };
    let Some(behavior) = spec.get_mut("behavior") else { return };
    for (direction, defaults) in [("scaleUp", rules(100, Some(4), Some(0))), ("scaleDown", rules(100, None, None))] {
        for field in ["selectPolicy", "policies", "stabilizationWindowSeconds"] {
            if let Some(value) = defaults.get(field) {
                fill_at(behavior, &[direction, field], value.clone());
            }
        }
    }
}

/// Utilization of cpu in v1, one metric among others in v2 (`pkg/apis/autoscaling/v1/conversion.go`).
pub const AUTOSCALER_TO_V1: fn(&mut Value) = |object| {
    let metrics = object["spec"].remove_at(&["metrics"]).unwrap_or_default();
    let is_cpu = |it: &&Value| it.text_at(&["resource", "name"]) == "cpu" && it.at(&["resource", "target", "averageUtilization"]).is_some();
    let all = metrics.as_array().cloned().unwrap_or_default();
    if let Some(cpu) = all.iter().find(is_cpu) {
        object["spec"]["targetCPUUtilizationPercentage"] = cpu["resource"]["target"]["averageUtilization"].clone();
    }
    let others: Vec<Value> = all.iter().filter(|it| !is_cpu(it)).cloned().collect();
    if !others.is_empty() {
        object.set_at(&["metadata", "annotations", METRICS], Value::Array(others).to_string());
    }
    if let Some(behavior) = object["spec"].remove_at(&["behavior"]) {
        object.set_at(&["metadata", "annotations", BEHAVIOR], behavior.to_string());
    }
    let current = object.remove_at(&["status", "currentMetrics"]).unwrap_or_default();
    let percent = current.as_array().into_iter().flatten().find_map(|it| it.at(&["resource", "current", "averageUtilization"]).cloned());
    if let Some(percent) = percent {
        object["status"]["currentCPUUtilizationPercentage"] = percent;
    }
    if let Some(conditions) = object.remove_at(&["status", "conditions"]) {
        object.set_at(&["metadata", "annotations", CONDITIONS], conditions.to_string());
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
    if let Some(behavior) = taken(object, BEHAVIOR) {
        object["spec"]["behavior"] = behavior;
    }
    if let Some(conditions) = taken(object, CONDITIONS) {
        object.set_at(&["status", "conditions"], conditions);
    }
    if let Some(percent) = object.remove_at(&["status", "currentCPUUtilizationPercentage"]) {
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]);
        object.set_at(&["status", "currentMetrics"], metric);
    }
};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn default_priority_level(object: &mut Value) {
    let spec = &mut object["spec"];
    match spec.text("type") {
        "Exempt" => {
            fill_at(spec, &["exempt", "nominalConcurrencyShares"], 0);
            fill_at(spec, &["exempt", "lendablePercent"], 0);
        }
        _ => (),
    }
}

/// Conditions are written through `approval` and `status`, the certificate only through `status`.
fn prepare_signing_request(object: &mut Value, change: Change<'_>) {
    match change {
        Change::Create => (),
        Change::Update(old) => object["spec"] = old["spec"].clone(),
        Change::Part(part, old) => {
            object["spec"] = old["spec"].clone();
            let kept = if part == "approval" { "certificate" } else { "" };
            if let (false, Some(value)) = (kept.is_empty(), old.at(&["status", kept])) {
                object.set_at(&["status", kept], value.clone());
            }
        }
    }
}

fn default_claim(spec: &mut Value) {
    for request in each(spec, &["devices", "requests"]) {
        if let Some(exactly) = request.get_mut("exactly") {
            default_device_request(exactly);
        }
        each(request, &["firstAvailable"]).for_each(default_device_request);
    }
}

pub const RESOURCE_SLICE: Strategy = Strategy { default: default_slice, ..Strategy::PLAIN };

/// A taint of a device came when the object last changed.
fn default_slice(object: &mut Value) {
    let times = object.items_at(&["metadata", "managedFields"]).iter().map(|it| it.text("time"));
    let Some(now) = times.chain([object.metadata("creationTimestamp")]).max().filter(|it| !it.is_empty()).map(str::to_owned) else { return };
    for device in each(object, &["spec", "devices"]) {
        each(device, &["taints"]).for_each(|it| fill(it, "timeAdded", now.as_str()));
    }
}

fn default_device_request(request: &mut Value) {
    if request.text("allocationMode") == "ExactCount" {
        fill(request, "count", 1);
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
    fn limit_ranges_default_from_what_they_limit() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        default_limit_range(&mut range);
        assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
        assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    }
}
