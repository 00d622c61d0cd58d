use serde_json::{Value, json};

use super::*;

fn cron(spec: Value, status: Value) -> CronJob {
    let mut base = json!({"schedule": "*/10 * * * *", "jobTemplate": {"spec": {"template": {}}}, "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1});
    json_patch::merge(&mut base, &spec);
    let metadata = json!({"name": "c", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:05:00Z"});
    serde_json::from_value(json!({"metadata": metadata, "spec": base, "status": status})).unwrap()
}

fn job(name: &str, condition: Option<&str>, started: &str) -> Arc<Job> {
    let conditions: Vec<_> = condition.iter().map(|it| json!({"type": it, "status": "True", "lastTransitionTime": started})).collect();
    let completed = (condition == Some("Complete")).then_some(started);
    let status = json!({"conditions": conditions, "startTime": started, "completionTime": completed});
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": status})).unwrap())
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_job_starts_when_its_time_has_come() {
    let running = json!({"active": [{"name": "old", "uid": "old"}], "lastScheduleTime": "2026-01-01T00:10:00Z"});
    let cases = [
        // Spec, status, now -> the time that gets a Job, whether the old one goes.
        (json!({}), json!({}), "2026-01-01T00:09:59Z", None, false),
        (json!({}), json!({}), "2026-01-01T00:10:01Z", Some("2026-01-01T00:10:00Z"), false),
        (json!({}), json!({}), "2026-01-01T03:15:00Z", Some("2026-01-01T03:10:00Z"), false),
        (json!({"suspend": true}), json!({}), "2026-01-01T00:10:01Z", None, false),
        (json!({"startingDeadlineSeconds": 60}), json!({}), "2026-01-01T00:12:00Z", None, false),
        (json!({}), running.clone(), "2026-01-01T00:15:00Z", None, false),
        (json!({}), running.clone(), "2026-01-01T00:20:00Z", Some("2026-01-01T00:20:00Z"), false),
        (json!({"concurrencyPolicy": "Forbid"}), running.clone(), "2026-01-01T00:20:00Z", None, false),
        (json!({"concurrencyPolicy": "Replace"}), running, "2026-01-01T00:20:00Z", Some("2026-01-01T00:20:00Z"), true),
    ];
    for (spec, status, now, expected, is_replaced) in cases {
        let old = job("old", None, "2026-01-01T00:10:00Z");
        let plan = plan(&cron(spec.clone(), status.clone()), &[old], at(now));
        assert_eq!(plan.create.as_ref().map(|it| it.1), expected.map(at), "{spec} {status} {now}");
        assert_eq!(!plan.delete.is_empty(), is_replaced, "{spec} {now}");
        if let Some((job, time)) = plan.create {
            assert_eq!(job.name_any(), format!("c-{}", time.as_second() / 60));
        }
    }
}

#[test]
fn finished_jobs_leave_the_list_and_the_history_keeps_the_newest() {
    let status = json!({"active": [{"name": "a", "uid": "a"}, {"name": "gone", "uid": "gone"}], "lastScheduleTime": "2026-01-01T00:10:00Z"});
    let jobs = [job("a", Some("Complete"), "2026-01-01T00:10:00Z"), job("b", Some("Complete"), "2026-01-01T00:11:00Z"), job("c", Some("Failed"), "2026-01-01T00:01:00Z")];
    let plan = plan(&cron(json!({}), status), &jobs, at("2026-01-01T00:12:00Z"));
    assert_eq!(plan.status.active, None);
    assert_eq!(plan.status.last_successful_time.unwrap().0, at("2026-01-01T00:11:00Z"));
    assert_eq!(plan.delete.iter().map(|it| it.name_any()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(plan.events.iter().map(|it| it.1).collect::<Vec<_>>(), ["SawCompletedJob", "MissingJob"]);
    assert_eq!(plan.again, Some(Duration::from_secs(8 * 60) + DELTA));
}
