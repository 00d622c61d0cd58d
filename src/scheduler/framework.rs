//! The scheduling framework: plugins judge nodes for a pod, the best node wins. Follows pkg/scheduler/framework.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    cluster::{Cluster, NodeInfo, PodInfo},
    plugins,
};

/// `MaxNodeScore`.
pub const MOST: i64 = 100;

/// One concern of scheduling.
pub struct Plugin {
    /// Upstream's name of it.
    pub name: &'static str,
    /// How much its scores count.
    pub weight: i64,
    /// What it has to say about a pod in this state of the cluster (PreFilter and PreScore): nothing, or a judge of nodes.
    pub prepare: for<'a> fn(&'a PodInfo, &'a Cluster) -> Option<Judge<'a>>,
    /// Whether such a change may make room for a pod that this plugin rejected (QueueingHint).
    pub is_helped_by: fn(ClusterEvent) -> bool,
}

type Filter<'a> = dyn Fn(&NodeInfo) -> Option<Rejection> + 'a;
type Scores<'a> = dyn Fn(&[&NodeInfo]) -> Option<Vec<i64>> + 'a;

/// A plugin at work on one pod: why it rejects a node, and its score of 0 to 100 for each of those that passed every filter.
pub struct Judge<'a> {
    /// Why the pod can run nowhere now, whatever the node (PreFilter).
    refusal: Option<String>,
    filter: Box<Filter<'a>>,
    scores: Box<Scores<'a>>,
}

impl<'a> Judge<'a> {
    pub fn filter(filter: impl Fn(&NodeInfo) -> Option<Rejection> + 'a) -> Self {
        Self { refusal: None, filter: Box::new(filter), scores: Box::new(|_| None) }
    }

    pub fn refusal(why: String) -> Self {
        Self { refusal: Some(why.clone()), ..Self::filter(move |_| Some(Rejection::unresolvable(&why))) }
    }

    pub fn scores(scores: impl Fn(&[&NodeInfo]) -> Option<Vec<i64>> + 'a) -> Self {
        Self::filter(|_| None).and_scores(scores)
    }

    pub fn and_scores(self, scores: impl Fn(&[&NodeInfo]) -> Option<Vec<i64>> + 'a) -> Self {
        Self { scores: Box::new(scores), ..self }
    }
}

/// Why a pod cannot run on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    pub reasons: Vec<String>,
    /// Whether removing other pods could help.
    pub is_resolvable: bool,
}

impl Rejection {
    /// `Unschedulable`.
    pub fn resolvable(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], is_resolvable: true }
    }

    /// `UnschedulableAndUnresolvable`.
    pub fn unresolvable(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], is_resolvable: false }
    }
}

/// What happened in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    NodeAdded,
    NodeChanged,
    /// A pod was bound, or a bound one got other labels.
    PodAssigned,
    /// A bound pod ended or is gone.
    PodGone,
    /// A volume, a claim or a storage class is new or another.
    StorageChanged,
}

/// Why no node took a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diagnosis {
    pub nodes: usize,
    pub rejections: BTreeMap<String, Rejection>,
    pub plugins: BTreeSet<&'static str>,
    /// What was said before any node was looked at.
    pub refusal: Option<String>,
}

impl Diagnosis {
    /// `FitError`: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        if let Some(why) = &self.refusal {
            return format!("0/{} nodes are available: {why}.", self.nodes);
        }
        histogram(self.nodes, self.rejections.values().flat_map(|it| it.reasons.iter().map(String::as_str)))
    }
}

/// Counts reasons and sorts them as text.
pub fn histogram<'a>(nodes: usize, reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    reasons.for_each(|it| *counts.entry(it).or_default() += 1);
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    let detail = if parts.is_empty() { String::new() } else { format!(" {}.", parts.join(", ")) };
    format!("0/{nodes} nodes are available:{detail}")
}

type Judges<'a> = Vec<(&'static Plugin, Judge<'a>)>;

fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Judges<'a> {
    plugins::ALL.iter().filter_map(|it| Some((it, (it.prepare)(pod, cluster)?))).collect()
}

fn rejection(judges: &Judges<'_>, node: &NodeInfo) -> Option<(&'static str, Rejection)> {
    judges.iter().find_map(|(plugin, judge)| Some((plugin.name, (judge.filter)(node)?)))
}

/// The best node for `pod`. `turn` decides between equals, so that they take turns.
pub fn decide(pod: &PodInfo, cluster: &Cluster, turn: usize) -> Result<String, Diagnosis> {
    let judges = prepare(pod, cluster);
    let mut diagnosis = Diagnosis::default();
    if let Some((plugin, why)) = judges.iter().find_map(|(plugin, judge)| Some((plugin.name, judge.refusal.clone()?))) {
        let rejections: BTreeMap<_, _> = cluster.present().map(|it| (it.name.clone(), Rejection::unresolvable(&why))).collect();
        return Err(Diagnosis { nodes: rejections.len(), rejections, plugins: [plugin].into(), refusal: Some(why) });
    }
    let mut feasible = Vec::new();
    for node in cluster.present() {
        diagnosis.nodes += 1;
        match rejection(&judges, node) {
            None => feasible.push(node),
            Some((plugin, rejection)) => {
                diagnosis.plugins.insert(plugin);
                diagnosis.rejections.insert(node.name.clone(), rejection);
            }
        }
    }
    match feasible.as_slice() {
        [] => Err(diagnosis),
        [only] => Ok(only.name.clone()),
        many => Ok(best(&judges, many, turn).name.clone()),
    }
}

/// Whether `pod` passes every filter on the node `name`.
pub fn fits(pod: &PodInfo, cluster: &Cluster, name: &str) -> bool {
    let judges = prepare(pod, cluster);
    cluster.nodes.get(name).is_some_and(|node| rejection(&judges, node).is_none())
}

fn best<'a>(judges: &Judges<'_>, nodes: &[&'a NodeInfo], turn: usize) -> &'a NodeInfo {
    let mut totals = vec![0; nodes.len()];
    for (plugin, judge) in judges {
        for (total, score) in totals.iter_mut().zip((judge.scores)(nodes).into_iter().flatten()) {
            *total += plugin.weight * score;
        }
    }
    let most = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<usize> = totals.iter().enumerate().filter(|(_, it)| **it == most).map(|(at, _)| at).collect();
    nodes[winners[turn % winners.len()]]
}

/// `DefaultNormalizeScore`: the highest becomes 100; `reverse` makes few many.
pub fn normalize(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        let share = if most == 0 { 0 } else { MOST * *score / most };
        *score = if reverse { MOST - share } else { share };
    }
    scores
}
