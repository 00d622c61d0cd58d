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
    pub prepare: for<'a> fn(&'a PodInfo, &'a Cluster) -> Option<Box<dyn Judge + 'a>>,
    /// Whether such a change may make room for a pod that this plugin rejected (QueueingHint).
    pub is_helped_by: fn(ClusterEvent) -> bool,
}

/// A plugin at work on one pod.
pub trait Judge {
    /// Why the pod can run nowhere now, whatever the node (PreFilter).
    fn refusal(&self) -> Option<String> {
        None
    }

    fn filter(&self, _node: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }

    /// A score of 0 to 100 for each of the nodes that passed every filter.
    fn scores(&self, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
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

type Judges<'a> = Vec<(&'static Plugin, Box<dyn Judge + 'a>)>;

fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Judges<'a> {
    plugins::ALL.iter().filter_map(|it| Some((it, (it.prepare)(pod, cluster)?))).collect()
}

fn filter<'a>(judges: &Judges<'a>, node: &NodeInfo) -> Result<(), (&'static str, Rejection)> {
    judges.iter().try_for_each(|(plugin, judge)| judge.filter(node).map_err(|it| (plugin.name, it)))
}

/// The best node for `pod`. `turn` decides between equals, so that they take turns.
pub fn decide(pod: &PodInfo, cluster: &Cluster, turn: usize) -> Result<String, Diagnosis> {
    let judges = prepare(pod, cluster);
    let mut diagnosis = Diagnosis::default();
    if let Some((plugin, why)) = judges.iter().find_map(|(plugin, judge)| Some((plugin.name, judge.refusal()?))) {
        let rejections: BTreeMap<_, _> = cluster.present().map(|it| (it.name.clone(), Rejection::unresolvable(&why))).collect();
        return Err(Diagnosis { nodes: rejections.len(), rejections, plugins: [plugin].into(), refusal: Some(why) });
    }
    let mut feasible = Vec::new();
    for node in cluster.present() {
        diagnosis.nodes += 1;
        match filter(&judges, node) {
            Ok(()) => feasible.push(node),
            Err((plugin, rejection)) => {
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
    judges.iter().all(|it| it.1.refusal().is_none()) && cluster.nodes.get(name).is_some_and(|node| filter(&judges, node).is_ok())
}

fn best<'a>(judges: &Judges<'_>, nodes: &[&'a NodeInfo], turn: usize) -> &'a NodeInfo {
    let mut totals = vec![0; nodes.len()];
    for (plugin, judge) in judges {
        for (total, score) in totals.iter_mut().zip(judge.scores(nodes).into_iter().flatten()) {
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
