use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn set(spec: Value) -> StatefulSet {
    let mut base = json!({"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": {"metadata": {"labels": {"app": "db"}}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}});
    json_patch::merge(&mut base, &spec);
    serde_json::from_value(json!({"metadata": {"name": "db", "uid": "u", "generation": 1}, "spec": base})).unwrap()
}

/// `NAME REVISION STATE`, where the state is ready, running, pending, failed or going.
fn pod(text: &str) -> Arc<Pod> {
    let parts: Vec<&str> = text.split(' ').collect();
    let phase = match parts[2] {
        "ready" | "running" | "going" => "Running",
        "pending" => "Pending",
        _ => "Failed",
    };
    let ready = if parts[2] == "ready" { "True" } else { "False" };
    let deleted = (parts[2] == "going").then_some("2026-01-01T00:00:30Z");
    let metadata = json!({"name": parts[0], "uid": parts[0], "deletionTimestamp": deleted,
        "labels": {"app": "db", REVISION_HASH: parts[1], POD_NAME: parts[0]}});
    let status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap())
}

fn said(set: &StatefulSet, pods: &[&str]) -> String {
    let template = PodTemplateSpec::default();
    let revisions = Revisions { current: Revision { name: "old", template: &template }, update: Revision { name: "new", template: &template } };
    let pods: Vec<_> = pods.iter().map(|it| pod(it)).collect();
    let word = |action: &Action| match action {
        Action::Create(pod) => format!("create {} {}", pod.name_any(), revision_of(pod)),
        Action::Delete(pod) => format!("delete {}", pod.name_any()),
        Action::Claims(pod) => format!("claims {}", pod.name_any()),
        Action::Identify(pod) => format!("identify {}", pod.name_any()),
    };
    plan(set, &revisions, &pods, now()).actions.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[test]
fn pods_come_and_go_in_order() {
    let parallel = json!({"podManagementPolicy": "Parallel"});
    let cases: &[(Value, &[&str], &str)] = &[
        (json!({}), &[], "create db-0 new"),
        (json!({}), &["db-0 new running"], ""),
        (json!({}), &["db-0 new ready"], "create db-1 new"),
        (json!({}), &["db-0 new pending"], "claims db-0"),
        (json!({}), &["db-0 new failed"], "delete db-0"),
        (json!({}), &["db-0 new going"], ""),
        (json!({"ordinals": {"start": 5}, "replicas": 1}), &["db-0 new ready"], "create db-5 new"),
        (parallel.clone(), &[], "create db-0 new, create db-1 new, create db-2 new"),
        (json!({"replicas": 1}), &["db-0 new ready", "db-1 new ready", "db-2 new ready"], "delete db-2"),
        (json!({"replicas": 1}), &["db-0 new ready", "db-1 new ready", "db-2 new going"], ""),
        (json!({"replicas": 1}), &["db-0 new ready", "db-1 new running", "db-2 new ready"], "delete db-2"),
        (json!({"replicas": 1}), &["db-0 new running", "db-1 new ready", "db-2 new ready"], ""),
        (json!({"replicas": 0, "podManagementPolicy": "Parallel"}), &["db-0 new ready", "db-1 new running"], "delete db-1, delete db-0"),
    ];
    for (spec, pods, expected) in cases {
        assert_eq!(said(&set(spec.clone()), pods), *expected, "{spec} {pods:?}");
    }
}

#[test]
fn updates_go_from_the_top_down_to_the_partition() {
    let partition = |at: i32| json!({"updateStrategy": {"rollingUpdate": {"partition": at}}});
    let cases: &[(Value, &[&str], &str)] = &[
        (json!({}), &["db-0 old ready", "db-1 old ready", "db-2 old ready"], "delete db-2"),
        (json!({}), &["db-0 old ready", "db-1 old ready", "db-2 new ready"], "delete db-1"),
        (partition(2), &["db-0 old ready", "db-1 old ready", "db-2 new ready"], ""),
        (partition(2), &["db-0 old ready"], "create db-1 old"),
        (partition(2), &["db-0 old ready", "db-1 old ready"], "create db-2 new"),
        (json!({"updateStrategy": {"type": "OnDelete"}}), &["db-0 old ready", "db-1 old ready", "db-2 old ready"], ""),
        (
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}),
            &["db-0 old ready", "db-1 old ready", "db-2 old ready"],
            "delete db-2, delete db-1",
        ),
    ];
    for (spec, pods, expected) in cases {
        assert_eq!(said(&set(spec.clone()), pods), *expected, "{spec} {pods:?}");
    }
}

#[test]
fn a_pod_carries_its_identity_and_claims() {
    let set = set(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
    let template: PodTemplateSpec = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [{"name": "data"}, {"name": "tmp"}]}})).unwrap();
    let revisions = Revisions { current: Revision { name: "r", template: &template }, update: Revision { name: "r", template: &template } };
    let plan = plan(&set, &revisions, &[], now());
    let [Action::Create(pod)] = plan.actions.as_slice() else { panic!("{:?}", plan.actions) };
    let pod = serde_json::to_value(pod).unwrap();
    assert_eq!(pod["metadata"]["name"], "db-0");
    assert_eq!(pod["metadata"]["labels"], json!({POD_NAME: "db-0", POD_INDEX: "0", REVISION_HASH: "r"}));
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("db-0"), &json!("db")));
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}, {"name": "tmp"}]));
}
