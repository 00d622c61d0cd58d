//! `pods/eviction`: a deletion that a disruption budget may hold up. What it takes of the budget is written in the same transaction.
//! Source: kubernetes `pkg/registry/core/pod/storage/eviction.go`.

use serde_json::json;

use super::{Request, Response, delete::{self, Deletion}, subresources::{SUCCESS, set_condition}, verbs::Call};
use crate::{
    base::clock,
    meta::{LabelSelector, Meta, Result, Status, Value, object::GroupResource, options::DeleteOptions},
    store::{Change, Draft, Expect, Snapshot, Write},
};

const BUDGETS: &str = "policy/poddisruptionbudgets";
/// `MaxDisruptedPodSize`.
const DISRUPTED_MAX: usize = 2000;
const REFUSAL: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// The cause that clients look for (`DisruptionBudgetCause`).
const CAUSE: &str = "DisruptionBudget";

pub async fn evict(call: &Call, request: Request) -> Result<Response> {
    let mut eviction = call.read(request).await?.0;
    if eviction.name() != call.target.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let body = eviction.get("deleteOptions").cloned().unwrap_or_default();
    let options: DeleteOptions = delete::options(&body, &call.query)?;
    call.admit(&mut eviction, options.is_dry_run).await?;
    let main = call.target.with_subresource(None);
    // The eviction was admitted; its deletion is not asked about again.
    Deletion { server: &call.server, target: &main, options: &options, requester: None }.run_with(&prepare).await?;
    call.answer_value(201, &SUCCESS)
}

/// Marks the pod as disrupted, and takes one disruption from its budget, or refuses.
fn prepare(snapshot: &Snapshot, pod: &mut Value) -> Result<Vec<Write>> {
    let charge = if is_free(pod) { Vec::new() } else { charge(snapshot, pod)? };
    set_condition(pod, json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}));
    Ok(charge)
}

/// `canIgnorePDB`: the pod serves nobody.
fn is_free(pod: &Value) -> bool {
    matches!(pod.text_at(&["status", "phase"]), "Succeeded" | "Failed" | "Pending") || pod.deletion_timestamp().is_some()
}

fn charge(snapshot: &Snapshot, pod: &Value) -> Result<Vec<Write>> {
    let label = |key: &str| pod.at(&["metadata", "labels", key]).and_then(Value::as_str);
    let is_for_pod = |budget: &Value| LabelSelector::from_value(budget.at(&["spec", "selector"])).is_ok_and(|it| it.matches_with(label));
    let all = snapshot.list(BUDGETS, Some(pod.namespace()), None).map(|it| (it, it.value()));
    let mut budgets: Vec<_> = all.filter(|(_, budget)| is_for_pod(budget)).collect();
    let Some((stored, budget)) = budgets.pop() else { return Ok(Vec::new()) };
    if !budgets.is_empty() {
        return Err(Status::internal("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."));
    }
    if !is_ready(pod) && may_evict_unhealthy(&budget) {
        return Ok(Vec::new());
    }
    let draft = Draft::new(&decremented(budget, pod.name())?, stored.header.clone());
    Ok(vec![Write { key: stored.key.clone(), expect: Expect::At(stored.revision), change: Change::Put(draft) }])
}

fn is_ready(pod: &Value) -> bool {
    pod.has_condition("Ready")
}

fn number(budget: &Value, field: &str) -> i64 {
    budget.int_at(&["status", field]).unwrap_or(0)
}

fn may_evict_unhealthy(budget: &Value) -> bool {
    let (current, desired) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
    budget.text_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow" || current >= desired && desired > 0
}

/// `checkAndDecrement`.
fn decremented(mut budget: Value, pod: &str) -> Result<Value> {
    let allowed = number(&budget, "disruptionsAllowed");
    let forbid = |why: &str| Err(Status::forbidden(&GroupResource::new("policy", "poddisruptionbudgets"), budget.name(), why));
    if number(&budget, "observedGeneration") < budget.generation() {
        let why = format!("The disruption budget {} is still being processed by the server.", budget.name());
        return Err(Status::too_many_requests(REFUSAL, 10).with_cause(CAUSE, why, ""));
    }
    if allowed < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    if budget.map_at(&["status", "disruptedPods"]).is_some_and(|it| it.len() > DISRUPTED_MAX) {
        return forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        return Err(Status::too_many_requests(REFUSAL, 0).with_cause(CAUSE, why_not(&budget), ""));
    }
    budget.set_at(&["status", "disruptionsAllowed"], allowed - 1);
    budget.set_at(&["status", "disruptedPods", pod], clock::now_rfc3339());
    Ok(budget)
}

fn why_not(budget: &Value) -> String {
    let name = budget.name();
    let (current, desired) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
    let refusal = format!("The disruption budget {name} does not allow evicting pods currently");
    let condition = budget.condition("DisruptionAllowed");
    match condition.filter(|it| it.text("status") == "False" && !it.text("message").is_empty()) {
        Some(it) if it.text("reason") == "SyncFailed" => format!("{refusal} because it failed sync: {}", it.text("message")),
        _ if current <= desired => format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently"),
        Some(it) => format!("{refusal} ({}): {}", it.text("reason"), it.text("message")),
        None => refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_what_it_has_and_says_why_not() {
        let budget = |allowed: i64, current: i64, observed: i64| {
            json!({"metadata": {"name": "b", "generation": 2}, "status": {"disruptionsAllowed": allowed, "currentHealthy": current, "desiredHealthy": 2, "observedGeneration": observed}})
        };
        let given = decremented(budget(2, 4, 2), "p").expect("allowed");
        assert_eq!(given["status"]["disruptionsAllowed"], 1);
        assert!(given["status"]["disruptedPods"]["p"].is_string());
        let cases = [
            (budget(0, 2, 2), 429, "The disruption budget b needs 2 healthy pods and has 2 currently"),
            (budget(1, 4, 1), 429, "The disruption budget b is still being processed by the server."),
            (budget(-1, 4, 2), 403, "pdb disruptions allowed is negative"),
        ];
        for (budget, code, part) in cases {
            let status = decremented(budget, "p").expect_err("refused").to_value();
            assert_eq!(status["code"], code);
            assert!(status.to_string().contains(part), "{status}");
        }
    }
}
