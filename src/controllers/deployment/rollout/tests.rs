use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn deployment(replicas: i32, surge: Value, unavailable: Value, image: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 2, "annotations": {"a": "b"}},
        "spec": {
            "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    }))
    .unwrap()
}

/// (image, size, available); sets are a minute apart in age and a revision apart in order.
fn sets(deployment: &Deployment, of: &[(&str, i32, i32)]) -> Vec<Arc<ReplicaSet>> {
    let make = |(at, (image, size, available)): (usize, &(&str, i32, i32))| {
        let mut of_image = deployment.clone();
        of_image.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some((*image).to_owned());
        let mut set = template::replica_set(&of_image);
        annotate(&of_image, &mut set, at as i64 + 1);
        annotate_replicas(deployment, &mut set);
        set.metadata.name = Some((*image).to_owned());
        set.metadata.creation_timestamp = Some(Time(format!("2026-01-01T00:{at:02}:00Z").parse().unwrap()));
        set.spec.as_mut().unwrap().replicas = Some(*size);
        let some = |it: i32| Some(it).filter(|it| *it != 0);
        set.status =
            Some(ReplicaSetStatus { replicas: *size, ready_replicas: some(*available), available_replicas: some(*available), ..Default::default() });
        Arc::new(set)
    };
    of.iter().enumerate().map(make).collect()
}

fn told(plan: &Plan) -> Vec<String> {
    let tell = |action: &Action| match action {
        Action::Create(set) => format!("create at {}", size(set)),
        Action::Update(set) => format!("update {}", set.name_any()),
        Action::Scale { set, from, to } => format!("{} {from}->{to}", set.name_any()),
        Action::Delete(set) => format!("delete {}", set.name_any()),
    };
    plan.actions.iter().map(tell).collect()
}

#[test]
fn a_rollout_moves_within_surge_and_unavailability() {
    // (replicas, surge, unavailable, sets) -> actions; the deployment's image is "new"
    let cases: [(i32, Value, Value, &[(&str, i32, i32)], &[&str]); 12] = [
        (3, json!("25%"), json!("25%"), &[], &["create at 3"]),
        (10, json!(3), json!(2), &[("old", 10, 10)], &["create at 3", "old 10->8"]),
        (10, json!(3), json!(2), &[("old", 10, 10), ("new", 3, 0)], &["old 10->8"]),
        (10, json!(3), json!(2), &[("old", 8, 8), ("new", 3, 0)], &["new 3->5"]),
        (10, json!(3), json!(2), &[("old", 8, 8), ("new", 5, 0)], &[]),
        (10, json!(3), json!(2), &[("old", 8, 7), ("new", 5, 5)], &["old 8->7", "old 7->3"]),
        (10, json!(0), json!("20%"), &[("old", 10, 10)], &["create at 0", "old 10->8"]),
        (10, json!(0), json!("20%"), &[("old", 10, 10), ("new", 0, 0)], &["old 10->8"]),
        (10, json!(0), json!(0), &[("old", 10, 10), ("new", 0, 0)], &["old 10->9"]),
        (4, json!(1), json!(0), &[("older", 2, 0), ("old", 2, 2), ("new", 1, 1)], &["older 2->1"]),
        (3, json!(1), json!(1), &[("old", 0, 0), ("new", 3, 3)], &[]),
        (3, json!(1), json!(1), &[("new", 3, 3), ("old", 0, 0)], &["update new"]),
    ];
    for (replicas, surge, unavailable, of, expected) in cases {
        let it = deployment(replicas, surge, unavailable, "new");
        let plan = plan(&it, &sets(&it, of), |_| false, now()).unwrap();
        assert_eq!(told(&plan), expected, "{replicas} {of:?}");
    }
}

#[test]
fn a_change_of_replicas_during_a_rollout_is_shared_out() {
    // (before, after, sets) -> sizes, after upstream's TestScale
    let cases: [(i32, i32, &[(&str, i32, i32)], &[&str]); 6] = [
        (10, 12, &[("new", 10, 10)], &["new 10->12"]),
        (10, 5, &[("new", 10, 10)], &["new 10->5"]),
        (10, 20, &[("old", 5, 5), ("new", 5, 5)], &["new 5->10", "old 5->10"]),
        (10, 5, &[("old", 8, 8), ("new", 2, 2)], &["old 8->4", "new 2->1"]),
        (5, 0, &[("old", 3, 3), ("new", 2, 2)], &["old 3->0", "new 2->0"]),
        (10, 15, &[("old", 0, 0), ("new", 10, 10)], &["new 10->15"]),
    ];
    for (before, after, of, expected) in cases {
        let mut it = deployment(before, json!(0), json!(1), "new");
        let present = sets(&it, of);
        it.spec.as_mut().unwrap().replicas = Some(after);
        let plan = plan(&it, &present, |_| false, now()).unwrap();
        assert_eq!(told(&plan), expected, "{before}->{after} {of:?}");
    }
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let cases: [(&[(&str, i32, i32)], bool, &[&str]); 4] = [
        (&[("old", 3, 3)], true, &["old 3->0"]),
        (&[("old", 0, 0)], true, &[]),
        (&[("old", 0, 0)], false, &["create at 3"]),
        (&[("old", 0, 0), ("new", 0, 0)], false, &["new 0->3"]),
    ];
    for (of, runs, expected) in cases {
        let mut it = deployment(3, json!(0), json!(0), "new");
        it.spec.as_mut().unwrap().strategy = serde_json::from_value(json!({"type": "Recreate"})).unwrap();
        let plan = plan(&it, &sets(&it, of), |set| runs && set.name_any() == "old", now()).unwrap();
        assert_eq!(told(&plan), expected, "{of:?} {runs}");
    }
}

#[test]
fn the_history_keeps_its_limit_once_a_rollout_is_complete() {
    let mut it = deployment(1, json!(1), json!(0), "new");
    let present = sets(&it, &[("a", 0, 0), ("b", 0, 0), ("c", 0, 0), ("new", 1, 1)]);
    let first = plan(&it, &present, |_| false, now()).unwrap();
    assert_eq!(told(&first), Vec::<String>::new());
    it.status = first.deployment.status;
    assert_eq!(told(&plan(&it, &present, |_| false, now()).unwrap()), ["delete a", "delete b"]);
}

#[test]
fn progress_is_told_in_conditions() {
    let base = deployment(2, json!(1), json!(0), "new");
    let progress = |it: &Deployment, of: &[(&str, i32, i32)], at: Timestamp| {
        let plan = plan(it, &sets(it, of), |_| false, at).unwrap();
        let status = plan.deployment.status.clone().unwrap();
        let reason = |kind| find(&status.conditions, kind).map(|it| format!("{} {}", it.status, it.reason.as_deref().unwrap())).unwrap_or_default();
        (reason("Progressing"), reason("Available"), plan)
    };
    let (progressing, available, plan) = progress(&base, &[], now());
    assert_eq!((progressing.as_str(), available.as_str()), ("True NewReplicaSetCreated", "False MinimumReplicasUnavailable"));
    assert_eq!(plan.deployment.annotations().get(REVISION).map(String::as_str), Some("1"));
    assert_eq!(plan.again, Some(Duration::from_secs(601)));

    let (progressing, _, next) = progress(&plan.deployment, &[("new", 2, 1)], now());
    assert_eq!(progressing, "True ReplicaSetUpdated");
    let (progressing, available, done) = progress(&next.deployment, &[("new", 2, 2)], now());
    assert_eq!((progressing.as_str(), available.as_str(), done.again), ("True NewReplicaSetAvailable", "True MinimumReplicasAvailable", None));
    let message = find(&done.deployment.status.as_ref().unwrap().conditions, "Progressing").unwrap().message.clone();
    assert_eq!(message.as_deref(), Some("ReplicaSet \"new\" has successfully progressed."));

    let late = now().checked_add(SignedDuration::from_secs(700)).unwrap();
    assert_eq!(progress(&next.deployment, &[("new", 2, 1)], late).0, "False ProgressDeadlineExceeded");
}

#[test]
fn a_pause_is_a_condition_and_stops_the_rollout() {
    let mut it = deployment(2, json!(1), json!(0), "new");
    it.spec.as_mut().unwrap().paused = Some(true);
    let plan = plan(&it, &sets(&it, &[("old", 2, 2)]), |_| false, now()).unwrap();
    assert_eq!(told(&plan), Vec::<String>::new());
    let status = plan.deployment.status.unwrap();
    assert_eq!(find(&status.conditions, "Progressing").unwrap().reason.as_deref(), Some("DeploymentPaused"));
}

#[test]
fn a_rollback_takes_the_next_revision_and_remembers_the_last() {
    let it = deployment(1, json!(1), json!(0), "a");
    let plan = plan(&it, &sets(&it, &[("a", 0, 0), ("b", 1, 1)]), |_| false, now()).unwrap();
    let Action::Update(set) = &plan.actions[0] else { panic!("{:?}", told(&plan)) };
    assert_eq!((set.annotations()[REVISION].as_str(), set.annotations()[REVISION_HISTORY].as_str()), ("3", "1"));
    assert_eq!(plan.deployment.annotations()[REVISION], "3");
}
