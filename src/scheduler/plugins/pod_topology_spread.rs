//! Spreads alike pods over zones and hosts: as the pod demands, or by default as the score prefers.
//! Alike by default are the pods of the same controller; a Service's selector plays no part in it.

use std::{collections::HashMap, rc::Rc};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use super::filters;
use crate::{
    meta::LabelSelector,
    scheduler::{
        cluster::{Cluster, NodeInfo, PodInfo, selector_of},
        framework::{Judge, MOST, Rejection},
    },
};

const HOSTNAME: &str = "kubernetes.io/hostname";
/// `systemDefaultConstraints`: (key, maxSkew), preferences only.
const DEFAULTS: [(&str, i32); 2] = [(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)];

pub fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Judge<'a>> {
    let asked = pod.pod.spec.iter().flat_map(|it| it.topology_spread_constraints.iter().flatten());
    let mut all: Vec<Constraint> = asked.map(|it| Constraint::of(it, pod)).collect();
    let is_default = all.is_empty();
    if is_default {
        let owner = pod.owner.as_deref()?;
        all.extend(DEFAULTS.iter().map(|(key, skew)| Constraint::by_default(key, *skew, owner)));
    }
    let (hard, soft): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.is_hard);
    let keys: Vec<String> = hard.iter().map(|it| it.key.clone()).collect();
    let hard = hard.into_iter().map(|it| it.counted(pod, cluster, &keys)).collect();
    let spread = Rc::new(Spread { pod, cluster, hard, soft, is_default });
    let judge = spread.clone();
    Some(Judge::filter(move |node| spread.rejection(node)).and_scores(move |nodes| judge.scores(nodes)))
}

enum Alike<'a> {
    Selected { selector: LabelSelector, namespace: &'a str },
    OwnedBy(&'a str),
}

struct Constraint<'a> {
    key: String,
    max_skew: i64,
    min_domains: i64,
    is_hard: bool,
    honours_affinity: bool,
    honours_taints: bool,
    alike: Alike<'a>,
    matches_itself: bool,
}

/// A constraint with the alike pods of each domain.
struct Counted<'a> {
    constraint: Constraint<'a>,
    domains: HashMap<String, i64>,
}

struct Spread<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    hard: Vec<Counted<'a>>,
    soft: Vec<Constraint<'a>>,
    is_default: bool,
}

impl<'a> Constraint<'a> {
    fn of(constraint: &TopologySpreadConstraint, pod: &'a PodInfo) -> Self {
        let mut wanted = constraint.label_selector.clone().unwrap_or_default();
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = pod.pod.metadata.labels.as_ref().and_then(|it| it.get(key)) {
                wanted.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
            }
        }
        let selector = if constraint.label_selector.is_some() { selector_of(&wanted) } else { LabelSelector::nothing() };
        Self {
            key: constraint.topology_key.clone(),
            max_skew: constraint.max_skew.into(),
            min_domains: constraint.min_domains.unwrap_or(1).into(),
            is_hard: constraint.when_unsatisfiable != "ScheduleAnyway",
            honours_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honours_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            matches_itself: pod.pod.metadata.labels.as_ref().is_some_and(|it| selector.matches(it)),
            alike: Alike::Selected { selector, namespace: &pod.key.namespace },
        }
    }

    fn by_default(key: &str, max_skew: i32, owner: &'a str) -> Self {
        Self {
            key: key.to_owned(),
            max_skew: max_skew.into(),
            min_domains: 1,
            is_hard: false,
            honours_affinity: true,
            honours_taints: false,
            matches_itself: true,
            alike: Alike::OwnedBy(owner),
        }
    }

    fn counted(self, pod: &PodInfo, cluster: &Cluster, keys: &[String]) -> Counted<'a> {
        let mut domains = HashMap::new();
        for node in cluster.present().filter(|it| self.includes(pod, it) && keys.iter().all(|key| it.labels().contains_key(key))) {
            if let Some(value) = node.labels().get(&self.key) {
                *domains.entry(value.clone()).or_default() += self.count_on(node);
            }
        }
        Counted { constraint: self, domains }
    }

    /// `matchNodeInclusionPolicies`.
    fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let repels = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        (!self.honours_affinity || filters::does_match(pod, node))
            && (!self.honours_taints || node.taints().filter(|it| repels(&it.effect)).all(|it| filters::is_tolerated(it, pod)))
    }

    fn count_on(&self, node: &NodeInfo) -> i64 {
        match &self.alike {
            Alike::OwnedBy(owner) => node.pods_by_owner.get(*owner).copied().unwrap_or(0),
            Alike::Selected { selector, namespace } => {
                let is_alike = |it: &PodInfo| {
                    let is_going = it.pod.metadata.deletion_timestamp.is_some();
                    !is_going && it.key.namespace == *namespace && it.pod.metadata.labels.as_ref().is_some_and(|it| selector.matches(it))
                };
                node.pods.values().filter(|it| is_alike(it)).count() as i64
            }
        }
    }
}

impl Spread<'_> {
    fn rejection(&self, node: &NodeInfo) -> Option<Rejection> {
        self.hard.iter().find_map(|Counted { constraint, domains }| {
            let Some(value) = node.labels().get(&constraint.key) else {
                return Some(Rejection::unresolvable("node(s) didn't match pod topology spread constraints (missing required label)"));
            };
            let are_enough = domains.len() as i64 >= constraint.min_domains;
            let least = if are_enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
            let here = domains.get(value).copied().unwrap_or(0) + i64::from(constraint.matches_itself);
            (here - least > constraint.max_skew).then(|| Rejection::resolvable("node(s) didn't match pod topology spread constraints"))
        })
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let has_keys = |node: &NodeInfo| self.soft.iter().all(|it| node.labels().contains_key(&it.key));
        let is_rated: Vec<bool> = nodes.iter().map(|node| self.is_default || has_keys(node)).collect();
        let mut sums = vec![0.0; nodes.len()];
        for constraint in &self.soft {
            self.add_costs(constraint, nodes, &is_rated, &mut sums);
        }
        Some(fewest_first(&sums, &is_rated))
    }

    /// `scoreForCount`, weighed by the number of domains.
    fn add_costs(&self, constraint: &Constraint<'_>, nodes: &[&NodeInfo], is_rated: &[bool], sums: &mut [f64]) {
        let rated = || nodes.iter().zip(is_rated).filter(|it| *it.1).map(|it| it.0);
        let is_by_host = constraint.key == HOSTNAME;
        let mut domains: HashMap<&str, i64> = HashMap::new();
        if !is_by_host {
            domains.extend(rated().filter_map(|it| it.labels().get(&constraint.key)).map(|it| (it.as_str(), 0)));
            for node in self.cluster.present().filter(|it| constraint.includes(self.pod, it)) {
                if let Some(count) = node.labels().get(&constraint.key).and_then(|it| domains.get_mut(it.as_str())) {
                    *count += constraint.count_on(node);
                }
            }
        }
        let size = if is_by_host { rated().count() } else { domains.len() };
        let weight = ((size + 2) as f64).ln();
        for (node, sum) in nodes.iter().zip(sums) {
            let Some(value) = node.labels().get(&constraint.key) else { continue };
            let count = if is_by_host { constraint.count_on(node) } else { domains.get(value.as_str()).copied().unwrap_or(0) };
            *sum += count as f64 * weight + (constraint.max_skew - 1) as f64;
        }
    }
}

fn fewest_first(sums: &[f64], is_rated: &[bool]) -> Vec<i64> {
    let rounded: Vec<i64> = sums.iter().map(|it| it.round() as i64).collect();
    let rated = || rounded.iter().zip(is_rated).filter(|it| *it.1).map(|it| *it.0);
    let (least, most) = (rated().min().unwrap_or(0), rated().max().unwrap_or(0));
    let score = |sum: i64| if most == 0 { MOST } else { MOST * (most + least - sum) / most };
    rounded.iter().zip(is_rated).map(|(sum, is_rated)| if *is_rated { score(*sum) } else { 0 }).collect()
}
