use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::scheduler::{
    cluster::{Cluster, PodInfo},
    framework::{self, Diagnosis},
    nominations::Nominations,
};

fn node(name: &str, extra: Value) -> Arc<k8s_openapi::api::core::v1::Node> {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    json_patch::merge(&mut value, &extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": name.split('-').next()}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    json_patch::merge(&mut value["spec"], &spec);
    Arc::new(PodInfo::new(serde_json::from_value(value).unwrap()))
}

fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}]})
}

fn cluster(nodes: &[(&str, Value)], pods: &[(&str, Arc<PodInfo>)]) -> Cluster {
    let mut cluster = Cluster::default();
    nodes.iter().for_each(|(name, extra)| cluster.set_node(node(name, extra.clone())));
    pods.iter().for_each(|(node, pod)| cluster.add_pod(pod.clone(), node));
    cluster
}

fn decide(pod: &PodInfo, cluster: &Cluster) -> Result<String, Diagnosis> {
    framework::decide(pod, cluster, 0)
}

#[test]
fn a_filter_says_why_not() {
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let near = |kind: &str, app: &str| {
        let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}});
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    };
    let spread = |key: &str| {
        json!({"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let wants = |operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]}}}})
    };
    let plain = || json!({});
    // (node n1, the pods on it, the pod's spec) -> the reason
    let cases: Vec<(Value, Vec<Arc<PodInfo>>, Value, Option<&str>)> = vec![
        (plain(), vec![], asking("4"), None),
        (plain(), vec![], asking("4001m"), Some("Insufficient cpu")),
        (plain(), vec![pod("a", asking("3"))], asking("1500m"), Some("Insufficient cpu")),
        (json!({"status": {"allocatable": {"pods": "1"}}}), vec![pod("a", plain())], plain(), Some("Too many pods")),
        (plain(), vec![], json!({"containers": [{"name": "c", "resources": {"requests": {"x.com/gpu": "1"}}}]}), Some("Insufficient x.com/gpu")),
        (json!({"spec": {"unschedulable": true}}), vec![], plain(), Some("node(s) were unschedulable")),
        (json!({"spec": {"unschedulable": true}}), vec![], json!({"tolerations": [{"operator": "Exists"}]}), None),
        (taint("NoSchedule"), vec![], plain(), Some("node(s) had untolerated taint(s)")),
        (taint("PreferNoSchedule"), vec![], plain(), None),
        (taint("NoExecute"), vec![], json!({"tolerations": [{"key": "k", "value": "v"}]}), None),
        (taint("NoExecute"), vec![], json!({"tolerations": [{"key": "k", "value": "w"}]}), Some("node(s) had untolerated taint(s)")),
        (plain(), vec![], json!({"nodeSelector": {"disk": "ssd"}}), Some("node(s) didn't match Pod's node affinity/selector")),
        (json!({"metadata": {"labels": {"disk": "ssd"}}}), vec![], json!({"nodeSelector": {"disk": "ssd"}}), None),
        (json!({"metadata": {"labels": {"size": "5"}}}), vec![], wants("Gt", json!(["4"])), None),
        (
            json!({"metadata": {"labels": {"size": "5"}}}),
            vec![],
            wants("In", json!(["4"])),
            Some("node(s) didn't match Pod's node affinity/selector"),
        ),
        (plain(), vec![], wants("NotIn", json!(["4"])), None),
        (plain(), vec![pod("a", port.clone())], port.clone(), Some("node(s) didn't have free ports for the requested pod ports")),
        (plain(), vec![pod("db", plain())], near("podAffinity", "db"), None),
        (plain(), vec![], near("podAffinity", "db"), Some("node(s) didn't match pod affinity rules")),
        (plain(), vec![], near("podAffinity", "web"), None),
        (plain(), vec![pod("db", plain())], near("podAntiAffinity", "db"), Some("node(s) didn't match pod anti-affinity rules")),
        (plain(), vec![pod("db", near("podAntiAffinity", "web"))], plain(), Some("node(s) didn't satisfy existing pods anti-affinity rules")),
        (plain(), vec![], spread("zone"), Some("node(s) didn't match pod topology spread constraints (missing required label)")),
        (plain(), vec![pod("web-2", plain())], spread("kubernetes.io/hostname"), None),
    ];
    for (extra, present, spec, expected) in cases {
        let present: Vec<_> = present.into_iter().map(|it| ("n1", it)).collect();
        let decided = decide(&pod("web-1", spec.clone()), &cluster(&[("n1", extra.clone())], &present));
        let reason = decided.err().map(|it| it.rejections["n1"].reasons.join(", "));
        assert_eq!(reason.as_deref(), expected, "{extra} {spec}");
    }
}

#[test]
fn the_score_prefers_room_spread_and_images() {
    let plain = || json!({});
    let owned = |name: &str| {
        let mut info = PodInfo::clone(&pod(name, json!({})));
        info.owner = Some("rs".to_owned());
        Arc::new(info)
    };
    let image = json!({"status": {"images": [{"names": ["i:latest"], "sizeBytes": 900_000_000}]}});
    let dislike = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let zone = |it: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": it}}});
    // (n1, n2, what runs on n1, the pod) -> the better node
    let cases: Vec<(Value, Value, Arc<PodInfo>, Arc<PodInfo>, &str)> = vec![
        (plain(), plain(), pod("a", asking("2")), pod("web", asking("100m")), "n2"),
        (plain(), plain(), owned("a"), owned("web"), "n2"),
        (zone("x"), zone("y"), owned("a"), owned("web"), "n2"),
        (image, plain(), pod("a", plain()), pod("web", plain()), "n1"),
        (plain(), dislike, pod("a", plain()), pod("web", plain()), "n1"),
    ];
    for (first, second, present, wanted, expected) in cases {
        let cluster = cluster(&[("n1", first.clone()), ("n2", second.clone())], &[("n1", present)]);
        assert_eq!(decide(&wanted, &cluster).as_deref(), Ok(expected), "{first} {second}");
    }
}

#[test]
fn the_message_counts_reasons_as_upstream() {
    let nodes = [("a", json!({"spec": {"unschedulable": true}})), ("b", json!({})), ("c", json!({}))];
    let mut cluster = cluster(&nodes, &[]);
    let web = pod("web", asking("8"));
    let diagnosis = decide(&web, &cluster).unwrap_err();
    assert_eq!(diagnosis.message(), "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.");
    let why = default_preemption::preempt(&web, None, &mut cluster, &diagnosis).unwrap_err().why;
    assert_eq!(why, "0/3 nodes are available: 3 Preemption is not helpful for scheduling.");
    assert_eq!(Diagnosis::default().message(), "no nodes available to schedule pods");
}

#[test]
fn preemption_evicts_as_little_as_possible() {
    let with = |cpu: &str, priority: i32| {
        let mut spec = asking(cpu);
        spec["priority"] = json!(priority);
        spec
    };
    let nodes = [("n1", json!({})), ("n2", json!({}))];
    let present = [("n1", pod("a", with("2", 5))), ("n1", pod("b", with("2", 1))), ("n2", pod("c", with("2", 1))), ("n2", pod("d", with("2", 0)))];
    // (cpu, priority) -> the node and the victims, or why not
    let cases = [
        ("2", 10, Ok(("n2", vec!["d"]))),
        ("4", 10, Ok(("n2", vec!["c", "d"]))),
        ("4", 1, Err("0/2 nodes are available: 2 No preemption victims found for incoming pod.")),
        ("1", 0, Err("0/2 nodes are available: 2 No preemption victims found for incoming pod.")),
    ];
    for (cpu, priority, expected) in cases {
        let mut cluster = cluster(&nodes, &present);
        let wanted = pod("web", with(cpu, priority));
        let diagnosis = decide(&wanted, &cluster).unwrap_err();
        let found = default_preemption::preempt(&wanted, None, &mut cluster, &diagnosis).map_err(|it| it.why);
        let found = found.map(|it| (it.node, it.victims.iter().map(|it| it.uid.clone()).collect::<Vec<_>>()));
        let expected = expected.map(|(node, victims)| (node.to_owned(), victims.into_iter().map(str::to_owned).collect())).map_err(str::to_owned);
        assert_eq!(found, expected, "{cpu} {priority}");
        assert_eq!(cluster.nodes.values().map(|it| it.pods.len()).sum::<usize>(), 4, "the picture is as before");
    }
}

#[test]
fn room_that_was_made_for_a_pod_is_kept_from_lesser_ones() {
    let with = |name: &str, cpu: &str, priority: i32| {
        let mut spec = asking(cpu);
        spec["priority"] = json!(priority);
        pod(name, spec)
    };
    let mut cluster = cluster(&[("n1", json!({}))], &[]);
    let mut nominations = Nominations::default();
    nominations.add(with("promised", "3", 10), "n1");
    // (name, cpu, priority) and whether it finds room
    let cases = [("lesser", "2", 1, false), ("small", "1", 1, true), ("equal", "2", 10, false), ("greater", "2", 20, true), ("promised", "3", 10, true)];
    for (name, cpu, priority, expected) in cases {
        let wanted = with(name, cpu, priority);
        let found = nominations.counted(&wanted, &mut cluster, |cluster| framework::decide(&wanted, cluster, 0).is_ok());
        assert_eq!(found, expected, "{name}");
        assert!(cluster.nodes["n1"].pods.is_empty(), "the picture is as before");
    }
    nominations.add(with("greater", "2", 20), "n1");
    assert_eq!((nominations.node_of("promised"), nominations.node_of("greater")), (None, Some("n1")));
}

#[test]
fn a_thousand_pods_spread_evenly_over_a_hundred_nodes() {
    let names: Vec<String> = (0..100).map(|it| format!("node-{it}")).collect();
    let nodes: Vec<(&str, Value)> = names.iter().map(|it| (it.as_str(), json!({}))).collect();
    let mut cluster = cluster(&nodes, &[]);
    let start = std::time::Instant::now();
    for turn in 0..1000 {
        let mut info = PodInfo::clone(&pod(&format!("web-{turn}"), asking("10m")));
        info.owner = Some("rs".to_owned());
        let node = framework::decide(&info, &cluster, turn).unwrap();
        cluster.add_pod(Arc::new(info), &node);
    }
    println!("{:.0} pods/s", 1000.0 / start.elapsed().as_secs_f64());
    assert!(cluster.nodes.values().all(|it| it.pods.len() == 10));
}
