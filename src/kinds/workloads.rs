//! Workloads: kinds that make pods from a template.
//! Source: `pkg/apis/{apps,batch,core}/v1/defaults.go`, `pkg/apis/{apps,batch}/validation`, `pkg/registry/batch/job/strategy.go`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill, fill_absent, fill_at},
    pod,
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value};

pub const DEPLOYMENT: Strategy = Strategy { default: default_deployment, ..Strategy::PLAIN };
pub const DAEMON_SET: Strategy = Strategy { default: default_daemon_set, prepare: prepare_daemon_set, ..Strategy::PLAIN };
pub const STATEFUL_SET: Strategy = Strategy { default: default_stateful_set, validate: validate_stateful_set, ..Strategy::PLAIN };
pub const CRON_JOB: Strategy = Strategy { default: default_cron_job, name: cron_job_name, ..Strategy::PLAIN };
pub const REPLICA_SET: Strategy = Strategy { default: default_template, ..Strategy::PLAIN };
pub const REPLICATION_CONTROLLER: Strategy = Strategy { default: default_replication_controller, ..Strategy::PLAIN };
pub const POD_TEMPLATE: Strategy = Strategy { default: |object| pod::default_spec(&mut object["template"]["spec"]), ..Strategy::PLAIN };
pub const JOB: Strategy = Strategy { default: default_job, prepare: prepare_job, ..Strategy::PLAIN };

fn default_template(object: &mut Value) {
    pod::default_spec(&mut object["spec"]["template"]["spec"]);
}

fn default_deployment(object: &mut Value) {
    default_template(object);
    let spec = &mut object["spec"];
    if spec.get("strategy").is_none() {
        spec["strategy"] = json!({});
    }
    let strategy = &mut spec["strategy"];
    fill(strategy, "type", "RollingUpdate");
    if strategy.text("type") == "RollingUpdate" {
        for field in ["maxSurge", "maxUnavailable"] {
            if strategy.at(&["rollingUpdate", field]).is_none() {
                strategy.set_at(&["rollingUpdate", field], "25%");
            }
        }
    }
}

fn default_replication_controller(object: &mut Value) {
    if object.at(&["spec", "template"]).is_some() {
        default_template(object);
    }
    if let Some(labels) = object.at(&["spec", "template", "metadata", "labels"]).cloned()
        && object.map_at(&["spec", "selector"]).is_none_or(serde_json::Map::is_empty)
    {
        object.set_at(&["spec", "selector"], labels);
    }
    take_labels(object);
}

/// What has no labels has its template's.
fn take_labels(object: &mut Value) {
    if let Some(labels) = object.at(&["spec", "template", "metadata", "labels"]).cloned()
        && object.map_at(&["metadata", "labels"]).is_none_or(serde_json::Map::is_empty)
    {
        object.set_at(&["metadata", "labels"], labels);
    }
}

fn default_daemon_set(object: &mut Value) {
    default_template(object);
    fill_at(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
    if object.text_at(&["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"], 1);
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "maxSurge"], 0);
    }
    fill_at(object, &TEMPLATE_GENERATION, "0");
}

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

fn default_stateful_set(object: &mut Value) {
    default_template(object);
    if object.text_at(&["spec", "updateStrategy", "type"]).is_empty() {
        fill_at(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate"], json!({}));
    }
    if object.text_at(&["spec", "updateStrategy", "type"]) == "RollingUpdate" && object.at(&["spec", "updateStrategy", "rollingUpdate"]).is_some() {
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "partition"], 0);
    }
    for when in ["whenDeleted", "whenScaled"] {
        fill_at(object, &["spec", "persistentVolumeClaimRetentionPolicy", when], "Retain");
    }
    for claim in each(object, &["spec", "volumeClaimTemplates"]) {
        fill_at(claim, &["apiVersion"], "v1");
        fill_at(claim, &["kind"], "PersistentVolumeClaim");
        super::storage::default_claim(claim);
    }
}

/// What of a StatefulSet may change.
fn validate_stateful_set(object: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if let Change::Update(old) = change {
        let mut rest = object.clone();
        for field in ["replicas", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds", "ordinals", "revisionHistoryLimit"] {
            rest["spec"][field] = old["spec"][field].clone();
        }
        let mut before = old.clone();
        [&mut rest, &mut before].into_iter().for_each(forget_nulls);
        if rest["spec"] != before["spec"] {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.push(FieldError::forbidden(&Path::new("spec"), detail));
        }
    }
    errors
}

fn forget_nulls(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|_, value| !value.is_null());
    }
}

/// Jobs are named after their CronJob and a time of 11 characters.
fn cron_job_name(name: &str) -> crate::meta::names::Problems {
    const MOST: usize = 52;
    match name.len() > MOST {
        true => vec!["must be no more than 52 characters".into()],
        false => crate::meta::names::dns1123_subdomain(name),
    }
}

fn default_cron_job(object: &mut Value) {
    pod::default_spec(&mut object["spec"]["jobTemplate"]["spec"]["template"]["spec"]);
}

/// The labels by which a Job knows its pods, in the new form and the old.
const JOB_LABELS: [(&str, bool); 4] =
    [("batch.kubernetes.io/controller-uid", true), ("batch.kubernetes.io/job-name", false), ("controller-uid", true), ("job-name", false)];

fn default_job(object: &mut Value) {
    default_template(object);
    let spec = &mut object["spec"];
    fill_absent(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "backoffLimit", if spec.get("backoffLimitPerIndex").is_some() { i64::from(i32::MAX) } else { 6 });
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        spec["completions"] = 1.into();
    }
    fill(spec, "parallelism", 1);
    fill(spec, "manualSelector", false);
    let has_policy = spec.get("podFailurePolicy").is_some();
    fill_absent(spec, "podReplacementPolicy", if has_policy { "Failed" } else { "TerminatingOrFailed" });
    take_labels(object);
}

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
    use super::*;

    fn template() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
    }

    #[test]
    fn deployments_get_defaults() {
        let mut object =
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(), "strategy": {}}});
        default_deployment(&mut object);
        assert_eq!(object["spec"]["strategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}));
    }

    #[test]
    fn jobs_select_their_pods_by_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": template()}});
        default_job(&mut job);
        prepare_job(&mut job, Change::Create);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    }
}
