//! Pods that want to be near other pods, or far from them.

use std::{collections::HashMap, rc::Rc};

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo, Term},
    framework::{Judge, MOST, Rejection},
};

pub fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Judge<'a>> {
    if pod.affinities.is_empty() && cluster.pods_with_affinity == 0 {
        return None;
    }
    let all = Rc::new(Neighbours::count(pod, cluster));
    let judge = all.clone();
    Some(Judge::filter(move |node| all.rejection(node)).and_scores(move |nodes| judge.scores(nodes)))
}

type Domain<'a> = (&'a str, &'a str);

/// The pods that matter, counted by topology domain.
struct Neighbours<'a> {
    pod: &'a PodInfo,
    /// Pods that match every required term, by the domains of each.
    wanted: HashMap<Domain<'a>, i64>,
    /// Pods that a required anti-affinity term of ours selects.
    shunned: HashMap<Domain<'a>, i64>,
    /// Pods whose required anti-affinity selects us.
    shunning: HashMap<Domain<'a>, i64>,
    weights: HashMap<Domain<'a>, i64>,
    is_first_of_its_kind: bool,
}

/// `HardPodAffinityWeight`: what the required affinity of others adds to a score.
const REQUIRED_BY_OTHERS: i64 = 1;

impl<'a> Neighbours<'a> {
    fn count(pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        let (wanted, shunned, shunning, weights) = Default::default();
        let mut all = Self { pod, wanted, shunned, shunning, weights, is_first_of_its_kind: false };
        for node in cluster.present() {
            node.pods.values().for_each(|other| all.meet(other, node, cluster));
        }
        let matches_itself = pod.affinities.required.iter().all(|it| it.selects(pod, cluster));
        all.is_first_of_its_kind = all.wanted.is_empty() && matches_itself;
        all
    }

    fn meet(&mut self, other: &'a PodInfo, node: &'a NodeInfo, cluster: &Cluster) {
        let (own, theirs) = (&self.pod.affinities, &other.affinities);
        if !own.required.is_empty() && own.required.iter().all(|it| it.selects(other, cluster)) {
            own.required.iter().for_each(|it| tally(&mut self.wanted, it, node, 1));
        }
        own.required_anti.iter().filter(|it| it.selects(other, cluster)).for_each(|it| tally(&mut self.shunned, it, node, 1));
        own.preferred.iter().filter(|it| it.1.selects(other, cluster)).for_each(|it| tally(&mut self.weights, &it.1, node, it.0));
        theirs.required_anti.iter().filter(|it| it.selects(self.pod, cluster)).for_each(|it| tally(&mut self.shunning, it, node, 1));
        theirs.preferred.iter().filter(|it| it.1.selects(self.pod, cluster)).for_each(|it| tally(&mut self.weights, &it.1, node, it.0));
        let required = theirs.required.iter().filter(|it| it.selects(self.pod, cluster));
        required.for_each(|it| tally(&mut self.weights, it, node, REQUIRED_BY_OTHERS));
    }

    fn is_wanted_on(&self, node: &NodeInfo) -> bool {
        let required = &self.pod.affinities.required;
        let has_all_keys = required.iter().all(|it| node.labels().contains_key(&it.topology_key));
        let are_near = required.iter().all(|it| in_domain(&self.wanted, it, node) > 0);
        required.is_empty() || (has_all_keys && (are_near || self.is_first_of_its_kind))
    }

    fn is_shunned_on(&self, node: &NodeInfo) -> bool {
        node.labels().iter().any(|(key, value)| self.shunning.get(&(key.as_str(), value.as_str())).is_some_and(|it| *it > 0))
    }
}

fn tally<'a>(counts: &mut HashMap<Domain<'a>, i64>, term: &'a Term, node: &'a NodeInfo, weight: i64) {
    if let Some(value) = node.labels().get(&term.topology_key) {
        *counts.entry((&term.topology_key, value)).or_default() += weight;
    }
}

fn in_domain(counts: &HashMap<Domain<'_>, i64>, term: &Term, node: &NodeInfo) -> i64 {
    let value = node.labels().get(&term.topology_key);
    value.and_then(|it| counts.get(&(term.topology_key.as_str(), it.as_str()))).copied().unwrap_or(0)
}

impl Neighbours<'_> {
    fn rejection(&self, node: &NodeInfo) -> Option<Rejection> {
        let shuns = || self.pod.affinities.required_anti.iter().any(|it| in_domain(&self.shunned, it, node) > 0);
        match () {
            () if !self.is_wanted_on(node) => Some(Rejection::unresolvable("node(s) didn't match pod affinity rules")),
            () if shuns() => Some(Rejection::resolvable("node(s) didn't match pod anti-affinity rules")),
            () if self.is_shunned_on(node) => Some(Rejection::resolvable("node(s) didn't satisfy existing pods anti-affinity rules")),
            () => None,
        }
    }

    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.weights.is_empty() {
            return None;
        }
        let of = |node: &&NodeInfo| node.labels().iter().filter_map(|(key, value)| self.weights.get(&(key.as_str(), value.as_str()))).sum::<i64>();
        let sums: Vec<i64> = nodes.iter().map(of).collect();
        let (least, most) = (sums.iter().copied().min()?, sums.iter().copied().max()?);
        let spread = (most - least).max(1);
        Some(sums.into_iter().map(|it| if most > least { MOST * (it - least) / spread } else { 0 }).collect())
    }
}
