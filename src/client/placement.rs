//! What a pod says of the nodes it can run on, as both the scheduler and the controllers read it.
//! Follows component-helpers `scheduling/corev1`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// A node, as far as selectors see it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

/// Whether the node has what the pod requires (`GetRequiredNodeAffinity`).
pub fn is_fit(spec: &PodSpec, place: Place<'_>) -> bool {
    let has_labels = spec.node_selector.iter().flatten().all(|(key, value)| place.labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    has_labels && required.is_none_or(|it| it.node_selector_terms.iter().any(|term| term_matches(term, place)))
}

/// An empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, place: Place<'_>) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    let is_empty = labels.is_empty() && fields.is_empty();
    !is_empty
        && labels.iter().all(|it| is_met(it, place.labels.get(&it.key).map(String::as_str)))
        && fields.iter().all(|it| is_met(it, (it.key == "metadata.name").then_some(place.name)))
}

fn is_met(requirement: &NodeSelectorRequirement, present: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = present.is_some_and(|it| values.iter().any(|value| value == it));
    let numbers = || Some((present?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => present.is_some(),
        "DoesNotExist" => present.is_none(),
        "Gt" => numbers().is_some_and(|(present, bound)| present > bound),
        "Lt" => numbers().is_some_and(|(present, bound)| present < bound),
        _ => false,
    }
}

pub fn is_tolerated(taint: &Taint, spec: &PodSpec) -> bool {
    spec.tolerations.iter().flatten().any(|it| tolerates(it, taint))
}

/// `ToleratesTaint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is_empty = |it: &Option<String>| it.as_deref().unwrap_or_default().is_empty();
    let does_fit = |wanted: &Option<String>, present: &str| is_empty(wanted) || wanted.as_deref() == Some(present);
    if !does_fit(&toleration.effect, &taint.effect) || !does_fit(&toleration.key, &taint.key) {
        return false;
    }
    let (wanted, present) = (toleration.value.as_deref().unwrap_or_default(), taint.value.as_deref().unwrap_or_default());
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => wanted == present && !is_empty(&toleration.key),
        "Exists" => true,
        _ => false,
    }
}
