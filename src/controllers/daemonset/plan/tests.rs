use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn set(spec: Value) -> DaemonSet {
    let mut base = json!({"selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": []}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}});
    json_patch::merge(&mut base, &spec);
    serde_json::from_value(json!({"metadata": {"name": "d", "uid": "u", "generation": 2}, "spec": base})).unwrap()
}

/// `NAME [LABEL] [EFFECT]`: a node, labelled `role=LABEL`, with a taint `t` of that effect.
fn node(text: &str) -> Arc<Node> {
    let mut parts = text.split(' ');
    let (name, label, effect) = (parts.next(), parts.next().filter(|it| *it != "-"), parts.next());
    let taints: Vec<_> = effect.iter().map(|it| json!({"key": "t", "effect": it})).collect();
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"role": label.unwrap_or("-")}}, "spec": {"taints": taints}})).unwrap())
}

/// `NODE NAME HASH STATE`.
fn daemon(text: &str) -> Arc<Pod> {
    let parts: Vec<&str> = text.split(' ').collect();
    let phase = if parts[3] == "failed" { "Failed" } else { "Running" };
    let ready = if parts[3] == "ready" { "True" } else { "False" };
    let status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let meta = json!({"name": parts[1], "uid": parts[1], "labels": {REVISION_HASH: parts[2]}, "creationTimestamp": "2026-01-01T00:00:00Z"});
    Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"nodeName": parts[0], "containers": []}, "status": status})).unwrap())
}

fn said(plan: Plan) -> String {
    let deleted = plan.delete.iter().map(|it| format!("-{}", it.name_any()));
    plan.create.iter().map(|it| format!("+{it}")).chain(deleted).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_fitting_node_has_one_pod() {
    let cases: &[(Value, &[&str], &[&str], &str)] = &[
        (json!({}), &["a", "b"], &[], "+a +b"),
        (json!({}), &["a", "b"], &["a p h ready"], "+b"),
        (json!({}), &["a", "b"], &["a p h ready", "a q h ready", "b r h failed"], "-q -r"),
        (json!({}), &["a - NoSchedule", "b - NoSchedule"], &["b p h ready"], ""),
        (json!({}), &["a - NoExecute", "b - NoExecute"], &["b p h ready"], "-p"),
        (json!({"template": {"spec": {"nodeSelector": {"role": "x"}}}}), &["a x", "b y"], &["b p h ready"], "+a -p"),
        (json!({"template": {"spec": {"tolerations": [{"operator": "Exists"}]}}}), &["a - NoExecute"], &[], "+a"),
    ];
    for (spec, nodes, pods, expected) in cases {
        let (set, nodes) = (set(spec.clone()), nodes.iter().map(|it| node(it)).collect::<Vec<_>>());
        let view = View { set: &set, hash: "h", nodes: &nodes, now: now() };
        assert_eq!(said(view.manage(&by_node(pods.iter().map(|it| daemon(it)).collect()))), *expected, "{spec} {pods:?}");
    }
}

#[test]
fn updates_keep_within_their_bounds() {
    let surge = json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}});
    let cases: &[(Value, &[&str], &str)] = &[
        (json!({}), &["a p old ready", "b q old ready"], "-p"),
        (json!({}), &["a p old running", "b q old ready"], "-p"),
        (json!({}), &["a p h running", "b q old ready"], ""),
        (json!({}), &["a p h ready", "b q old ready"], "-q"),
        (surge.clone(), &["a p old ready", "b q old ready"], "+a"),
        (surge.clone(), &["a p old ready", "a n h running", "b q old ready"], ""),
        (surge, &["a p old ready", "a n h ready", "b q old ready"], "+b -p"),
    ];
    for (spec, pods, expected) in cases {
        let (set, nodes) = (set(spec.clone()), [node("a"), node("b")]);
        let view = View { set: &set, hash: "h", nodes: &nodes, now: now() };
        assert_eq!(said(view.update(&by_node(pods.iter().map(|it| daemon(it)).collect()))), *expected, "{spec} {pods:?}");
    }
}

#[test]
fn the_status_counts_nodes() {
    let set = set(json!({"template": {"spec": {"nodeSelector": {"role": "x"}}}}));
    let nodes = [node("a x"), node("b x"), node("c y")];
    let pods = ["a p h ready", "b q old running", "c r h ready"].map(daemon);
    let status = View { set: &set, hash: "h", nodes: &nodes, now: now() }.status(&by_node(pods.to_vec()));
    let scheduled = (status.desired_number_scheduled, status.current_number_scheduled, status.number_misscheduled, status.number_ready);
    assert_eq!(scheduled, (2, 2, 1, 1));
    assert_eq!((status.updated_number_scheduled, status.number_available, status.number_unavailable), (Some(1), Some(1), Some(1)));
}

#[test]
fn a_pod_is_pinned_to_its_node_and_tolerates_its_troubles() {
    let pod = pod(&set(json!({})), "a", "h");
    assert_eq!(target(&pod), Some("a"));
    let spec = pod.spec.unwrap();
    assert_eq!(spec.tolerations.unwrap().len(), 6);
}
