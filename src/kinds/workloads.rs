//! Workloads: kinds that make pods from a template.
//! Source: `pkg/registry/{apps/daemonset,batch/job}/strategy.go`, `pkg/apis/batch/validation`.

use super::{Change, Strategy};
use crate::meta::{Meta, Value};

pub const DAEMON_SET: Strategy = Strategy { prepare: prepare_daemon_set, ..Strategy::PLAIN };
pub const CRON_JOB: Strategy = Strategy { name: cron_job_name, ..Strategy::PLAIN };
pub const JOB: Strategy = Strategy { prepare: prepare_job, ..Strategy::PLAIN };

/// The count of templates, which lives in an annotation since `apps/v1`.
const TEMPLATE_GENERATION: [&str; 3] = ["metadata", "annotations", "deprecated.daemonset.template.generation"];

/// `daemonSetStrategy`: the count grows with each change of the template, whatever a client says.
fn prepare_daemon_set(object: &mut Value, change: Change<'_>) {
    let count = |object: &Value| object.text_at(&TEMPLATE_GENERATION).parse::<i64>().unwrap_or(0);
    let next = match change {
        Change::Create => 1,
        Change::Update(old) => count(old) + i64::from(old["spec"]["template"] != object["spec"]["template"]),
        Change::Part(_, old) => count(old),
    };
    object.set_at(&TEMPLATE_GENERATION, next.to_string());
}

/// Jobs are named after their CronJob and a time of 11 characters.
fn cron_job_name(name: &str) -> crate::meta::names::Problems {
    const MOST: usize = 52;
    match name.len() > MOST {
        true => vec!["must be no more than 52 characters".into()],
        false => crate::meta::names::dns1123_subdomain(name),
    }
}

/// The labels by which a Job knows its pods, in the new form and the old.
const JOB_LABELS: [(&str, bool); 4] =
    [("batch.kubernetes.io/controller-uid", true), ("batch.kubernetes.io/job-name", false), ("controller-uid", true), ("job-name", false)];

/// `generateSelector`: a Job selects its pods by its own uid, unless told otherwise.
fn prepare_job(object: &mut Value, change: Change<'_>) {
    let is_manual = object.at(&["spec", "manualSelector"]) == Some(&Value::Bool(true));
    if !matches!(change, Change::Create) || is_manual {
        return;
    }
    let (uid, name) = (object.uid().to_owned(), object.name().to_owned());
    for (label, is_uid) in JOB_LABELS {
        let value = if is_uid { uid.clone() } else { name.clone() };
        object.set_at(&["spec", "template", "metadata", "labels", label], value);
    }
    object.set_at(&["spec", "selector", "matchLabels", JOB_LABELS[0].0], uid);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::rules::filled;

    fn template() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
    }

    #[test]
    fn deployments_get_defaults() {
        let object =
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(), "strategy": {}}});
        assert_eq!(filled("Deployment", object)["spec"]["strategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}));
    }

    #[test]
    fn jobs_select_their_pods_by_uid() {
        let mut job = filled("Job", json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": template()}}));
        prepare_job(&mut job, Change::Create);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    }
}
