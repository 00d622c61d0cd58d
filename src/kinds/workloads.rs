//! Workloads: kinds that make pods from a template.
//! Source: `pkg/apis/{apps,batch,core}/v1/defaults.go`, `pkg/apis/{apps,batch}/validation`, `pkg/registry/batch/job/strategy.go`.

use serde_json::json;

use super::{
    Change, Strategy,
    check::{each, fill, fill_at, immutable, int_or_percent, non_negative, one_of, selector_of_template},
    pod,
};
use crate::meta::{FieldError, FieldErrors, Meta, Path, Value, cron::Schedule};

pub const DEPLOYMENT: Strategy =
    Strategy { default: default_deployment, validate: validate_deployment, has_generation: true, resets_status: true, ..Strategy::PLAIN };
pub const DAEMON_SET: Strategy =
    Strategy { default: default_daemon_set, validate: validate_daemon_set, has_generation: true, resets_status: true, ..Strategy::PLAIN };
pub const STATEFUL_SET: Strategy =
    Strategy { default: default_stateful_set, validate: validate_stateful_set, has_generation: true, resets_status: true, ..Strategy::PLAIN };
pub const CRON_JOB: Strategy = Strategy {
    default: default_cron_job,
    validate: validate_cron_job,
    name: cron_job_name,
    has_generation: true,
    resets_status: true,
    orphans_by_default: true,
    ..Strategy::PLAIN
};
pub const REPLICA_SET: Strategy =
    Strategy { default: default_replica_set, validate: validate_replica_set, has_generation: true, resets_status: true, ..Strategy::PLAIN };
pub const REPLICATION_CONTROLLER: Strategy = Strategy {
    default: default_replication_controller,
    validate: validate_replication_controller,
    has_generation: true,
    resets_status: true,
    orphans_by_default: true,
    ..Strategy::PLAIN
};
pub const POD_TEMPLATE: Strategy =
    Strategy { default: |object| pod::default_spec(&mut object["template"]["spec"]), has_generation: true, ..Strategy::PLAIN };
pub const JOB: Strategy = Strategy {
    default: default_job,
    prepare: prepare_job,
    validate: validate_job,
    has_generation: true,
    resets_status: true,
    orphans_by_default: true,
    ..Strategy::PLAIN
};

fn default_template(object: &mut Value) {
    pod::default_spec(&mut object["spec"]["template"]["spec"]);
}

fn default_deployment(object: &mut Value) {
    default_template(object);
    let spec = &mut object["spec"];
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
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

fn validate_template(object: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec").child("template");
    super::metadata::labels(object.map_at(&["spec", "template", "metadata", "labels"]), &path.child("labels"), errors);
    pod::validate_spec(&object["spec"]["template"]["spec"], &path.child("spec"), errors);
}

/// Templates of what always runs restart their pods.
fn validate_restarts(object: &Value, errors: &mut FieldErrors) {
    let policy = object.text_at(&["spec", "template", "spec", "restartPolicy"]);
    if policy != "Always" {
        let path = Path::new("spec").child("template").child("spec").child("restartPolicy");
        errors.push(FieldError::not_supported(&path, policy, &["Always"]));
    }
}

fn validate_deployment(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        non_negative(spec, field, &path, &mut errors);
    }
    selector_of_template(object, "deployment", &mut errors);
    validate_template(object, &mut errors);
    validate_restarts(object, &mut errors);
    let strategy = &spec["strategy"];
    one_of(strategy, "type", &["Recreate", "RollingUpdate"], &path.child("strategy"), &mut errors);
    if strategy.text("type") == "Recreate" && strategy.get("rollingUpdate").is_some_and(|it| !it.is_null()) {
        errors.push(FieldError::forbidden(&path.child("strategy").child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'"));
    }
    let is_zero = |field: &str| strategy.at(&["rollingUpdate", field]).is_some_and(|it| *it == 0 || *it == "0%");
    if is_zero("maxSurge") && is_zero("maxUnavailable") {
        let path = path.child("strategy").child("rollingUpdate").child("maxUnavailable");
        errors.push(FieldError::invalid(&path, strategy["rollingUpdate"]["maxUnavailable"].clone(), "may not be 0 when `maxSurge` is 0"));
    }
    let deadline = spec.int_at(&["progressDeadlineSeconds"]);
    if deadline.is_some_and(|it| it <= spec.int_at(&["minReadySeconds"]).unwrap_or(0)) {
        errors.push(FieldError::invalid(&path.child("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds"));
    }
    if let Some(old) = change.old() {
        immutable(object, old, &["spec", "selector"], &mut errors);
    }
    errors
}

fn default_replica_set(object: &mut Value) {
    default_template(object);
    fill(&mut object["spec"], "replicas", 1);
}

fn validate_replica_set(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    non_negative(&object["spec"], "replicas", &path, &mut errors);
    non_negative(&object["spec"], "minReadySeconds", &path, &mut errors);
    selector_of_template(object, "ReplicaSet", &mut errors);
    validate_template(object, &mut errors);
    validate_restarts(object, &mut errors);
    if let Some(old) = change.old() {
        immutable(object, old, &["spec", "selector"], &mut errors);
    }
    errors
}

fn default_replication_controller(object: &mut Value) {
    default_template(object);
    fill(&mut object["spec"], "replicas", 1);
    let labels = object.at(&["spec", "template", "metadata", "labels"]).cloned();
    if let Some(labels) = labels {
        if object.map_at(&["spec", "selector"]).is_none_or(serde_json::Map::is_empty) {
            object.set_at(&["spec", "selector"], labels.clone());
        }
        if object.map_at(&["metadata", "labels"]).is_none_or(serde_json::Map::is_empty) {
            object.set_at(&["metadata", "labels"], labels);
        }
    }
}

fn validate_replication_controller(object: &Value, change: Change<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if let Change::Part(..) = change {
        return errors;
    }
    non_negative(&object["spec"], "replicas", &Path::new("spec"), &mut errors);
    if object.map_at(&["spec", "selector"]).is_none_or(serde_json::Map::is_empty) {
        errors.push(FieldError::required(&Path::new("spec").child("selector"), ""));
    }
    validate_template(object, &mut errors);
    validate_restarts(object, &mut errors);
    errors
}

fn default_daemon_set(object: &mut Value) {
    default_template(object);
    fill_at(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
    if object.text_at(&["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"], 1);
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "maxSurge"], 0);
    }
    fill(&mut object["spec"], "revisionHistoryLimit", 10);
}

fn validate_daemon_set(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    selector_of_template(object, "daemonset", &mut errors);
    validate_template(object, &mut errors);
    validate_restarts(object, &mut errors);
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        non_negative(spec, field, &path, &mut errors);
    }
    let strategy = path.child("updateStrategy");
    one_of(&spec["updateStrategy"], "type", &["OnDelete", "RollingUpdate"], &strategy, &mut errors);
    let rolling = strategy.child("rollingUpdate");
    let update = spec.at(&["updateStrategy", "rollingUpdate"]).cloned().unwrap_or_default();
    int_or_percent(&update, "maxUnavailable", &rolling, &mut errors);
    int_or_percent(&update, "maxSurge", &rolling, &mut errors);
    let is_zero = |field: &str| update.get(field).is_none_or(|it| *it == 0 || *it == "0%");
    match (is_zero("maxUnavailable"), is_zero("maxSurge")) {
        _ if spec.text_at(&["updateStrategy", "type"]) != "RollingUpdate" => (),
        (true, true) => errors.push(FieldError::required(&rolling.child("maxUnavailable"), "cannot be 0 when maxSurge is 0")),
        (false, false) => errors.push(FieldError::invalid(&rolling.child("maxSurge"), update["maxSurge"].clone(), "may not be set when maxUnavailable is non-zero")),
        _ => (),
    }
    if let Some(old) = change.old() {
        immutable(object, old, &["spec", "selector"], &mut errors);
    }
    errors
}

fn default_stateful_set(object: &mut Value) {
    default_template(object);
    fill(&mut object["spec"], "podManagementPolicy", "OrderedReady");
    fill_at(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
    if object.text_at(&["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "partition"], 0);
        fill_at(object, &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"], 1);
    }
    for when in ["whenDeleted", "whenScaled"] {
        fill_at(object, &["spec", "persistentVolumeClaimRetentionPolicy", when], "Retain");
    }
    fill(&mut object["spec"], "replicas", 1);
    fill(&mut object["spec"], "revisionHistoryLimit", 10);
    for claim in each(object, &["spec", "volumeClaimTemplates"]) {
        fill_at(claim, &["apiVersion"], "v1");
        fill_at(claim, &["kind"], "PersistentVolumeClaim");
        super::storage::default_claim(claim);
    }
}

fn validate_stateful_set(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    one_of(spec, "podManagementPolicy", &["OrderedReady", "Parallel"], &path, &mut errors);
    one_of(&spec["updateStrategy"], "type", &["OnDelete", "RollingUpdate"], &path.child("updateStrategy"), &mut errors);
    let update = spec.at(&["updateStrategy", "rollingUpdate"]).cloned().unwrap_or_default();
    let rolling = path.child("updateStrategy").child("rollingUpdate");
    non_negative(&update, "partition", &rolling, &mut errors);
    int_or_percent(&update, "maxUnavailable", &rolling, &mut errors);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        non_negative(spec, field, &path, &mut errors);
    }
    if let Some(ordinals) = spec.get("ordinals") {
        non_negative(ordinals, "start", &path.child("ordinals"), &mut errors);
    }
    selector_of_template(object, "statefulset", &mut errors);
    validate_template(object, &mut errors);
    validate_restarts(object, &mut errors);
    if let Some(old) = change.old() {
        let mut rest = object.clone();
        for field in ["replicas", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds", "ordinals", "revisionHistoryLimit"] {
            rest["spec"][field] = old["spec"][field].clone();
        }
        let mut before = old.clone();
        [&mut rest, &mut before].into_iter().for_each(forget_nulls);
        if rest["spec"] != before["spec"] {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.push(FieldError::forbidden(&path, detail));
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
    let spec = &mut object["spec"];
    fill(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    pod::default_spec(&mut spec["jobTemplate"]["spec"]["template"]["spec"]);
}

fn validate_cron_job(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    let schedule = spec.text("schedule");
    match schedule {
        "" => errors.push(FieldError::required(&path.child("schedule"), "")),
        it if it.contains("TZ") => {
            errors.push(FieldError::invalid(&path.child("schedule"), it, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
        }
        it => errors.extend(Schedule::parse(it, None).err().map(|error| FieldError::invalid(&path.child("schedule"), it, error))),
    }
    one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, &mut errors);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(spec, field, &path, &mut errors);
    }
    let zone = spec.text("timeZone");
    if !zone.is_empty() && jiff::tz::db().get(zone).is_err() {
        errors.push(FieldError::invalid(&path.child("timeZone"), zone, format!("unknown time zone {zone}")));
    }
    let template = path.child("jobTemplate").child("spec").child("template").child("spec");
    pod::validate_spec(&spec["jobTemplate"]["spec"]["template"]["spec"], &template, &mut errors);
    let policy = spec.text_at(&["jobTemplate", "spec", "template", "spec", "restartPolicy"]);
    if !matches!(policy, "OnFailure" | "Never") {
        errors.push(FieldError::required(&template.child("restartPolicy"), "valid values: \"OnFailure\", \"Never\""));
    }
    errors
}

/// The labels by which a Job knows its pods, in the new form and the old.
const JOB_LABELS: [(&str, bool); 4] =
    [("batch.kubernetes.io/controller-uid", true), ("batch.kubernetes.io/job-name", false), ("controller-uid", true), ("job-name", false)];

fn default_job(object: &mut Value) {
    default_template(object);
    let spec = &mut object["spec"];
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "backoffLimit", if spec.get("backoffLimitPerIndex").is_some() { i64::from(i32::MAX) } else { 6 });
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        spec["completions"] = 1.into();
    }
    fill(spec, "parallelism", 1);
    fill(spec, "manualSelector", false);
    let has_policy = spec.get("podFailurePolicy").is_some();
    fill(spec, "podReplacementPolicy", if has_policy { "Failed" } else { "TerminatingOrFailed" });
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

fn validate_job(object: &Value, change: Change<'_>) -> FieldErrors {
    let (mut errors, path) = (FieldErrors::new(), Path::new("spec"));
    if let Change::Part(..) = change {
        return errors;
    }
    let spec = &object["spec"];
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "maxFailedIndexes"] {
        non_negative(spec, field, &path, &mut errors);
    }
    one_of(spec, "completionMode", &["Indexed", "NonIndexed"], &path, &mut errors);
    if spec.text("completionMode") == "Indexed" && spec.get("completions").is_none() {
        errors.push(FieldError::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    selector_of_template(object, "Job", &mut errors);
    validate_template(object, &mut errors);
    let policy = spec.text_at(&["template", "spec", "restartPolicy"]);
    if !matches!(policy, "OnFailure" | "Never") {
        let path = path.child("template").child("spec").child("restartPolicy");
        errors.push(FieldError::required(&path, "valid values: \"OnFailure\", \"Never\""));
    }
    if let Some(old) = change.old() {
        for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "successPolicy", "managedBy"] {
            immutable(object, old, &["spec", field], &mut errors);
        }
        if spec.text("completionMode") != "Indexed" {
            immutable(object, old, &["spec", "completions"], &mut errors);
        }
        let is_suspended = old.at(&["spec", "suspend"]) == Some(&Value::Bool(true)) && old.at(&["status", "startTime"]).is_none();
        if !is_suspended {
            immutable(object, old, &["spec", "template"], &mut errors);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
    }

    #[test]
    fn deployments_get_defaults_and_errors() {
        let mut object =
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(), "strategy": {}}});
        default_deployment(&mut object);
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(object["spec"]["strategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}));
        assert_eq!(validate_deployment(&object, Change::Create), []);
        let mut other = object.clone();
        other["spec"]["selector"] = json!({"matchLabels": {"app": "db"}});
        let errors: Vec<String> = validate_deployment(&other, Change::Update(&object)).iter().map(ToString::to_string).collect();
        let expected = [
            "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"db\"}}: field is immutable",
        ];
        assert_eq!(errors, expected);
    }

    #[test]
    fn jobs_select_their_pods_by_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": template()}});
        default_job(&mut job);
        prepare_job(&mut job, Change::Create);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        let errors: Vec<String> = validate_job(&job, Change::Create).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]);
    }
}
