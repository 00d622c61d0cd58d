//! StatefulSets: pods with names and storage of their own, made and unmade in order. Follows pkg/controller/statefulset.

pub mod plan;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy},
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::json;

use self::plan::{Action, POD_INDEX, POD_NAME, Plan, Revision, Revisions, claim_name, ordinal, plan};
use super::{
    Controller,
    claims::{self, controller_ref},
    history::{self, History, REVISION_HASH, Subject},
};
use crate::{
    base::clock,
    client::{Change, EventType, ObjectKey, Result, writes},
    meta::LabelSelector,
};

/// Changes of pods within so short a time become one update of the status.
const COALESCE: Duration = Duration::from_millis(20);
/// The label of a revision that holds its hash (`ControllerRevisionHashLabel`).
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

pub struct StatefulSetController;
type Shell = super::Shell<StatefulSetController>;

impl Controller for StatefulSetController {
    type Key = ObjectKey;
    const NAME: &'static str = "statefulset-controller";

    async fn listen(shell: &Arc<Shell>) {
        shell.queue_each(&shell.informers.stateful_sets);
        shell.on(&shell.informers.pods, Shell::pod_changed);
    }

    async fn reconcile(shell: &Arc<Shell>, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(set) = shell.informers.stateful_sets.get(key) else { return Ok(None) };
        let Some(spec) = &set.spec else { return Ok(None) };
        let selector = selector(&set)?;
        let is_named = |it: &Pod| ordinal(&set, it).is_some();
        let pods = claims::claim(&shell.client, set.as_ref(), &selector, &shell.informers.pods, is_named, &[]).await?;
        let collisions = set.status.as_ref().and_then(|it| it.collision_count).unwrap_or(0);
        let subject = Subject { owner: set.as_ref(), selector: &selector, template: &spec.template, hash_label: HASH_LABEL, collisions };
        let history = history::settle(&shell.client, &shell.informers.controller_revisions, &subject).await?;
        let current = present(&set, &history);
        let template = history::template_of(current)?;
        let (current_name, update_name) = (current.name_any(), history.update.name_any());
        let revisions = Revisions {
            current: Revision { name: &current_name, template: &template },
            update: Revision { name: &update_name, template: &spec.template },
        };
        let mut plan = plan(&set, &revisions, &pods, clock::now());
        plan.status.collision_count = Some(history.collisions);
        let done = shell.act(&set, &plan).await;
        writes::status(&shell.client, set.as_ref(), &StatefulSet { status: Some(plan.status), ..StatefulSet::clone(&set) }).await?;
        done?;
        let live = |it: &ControllerRevision| {
            let name = it.name_any();
            name == current_name || pods.iter().any(|pod| pod.labels().get(REVISION_HASH) == Some(&name))
        };
        history::truncate(&shell.client, &history, spec.revision_history_limit.unwrap_or(10), live).await?;
        let min_ready = spec.min_ready_seconds.filter(|it| *it > 0 && !pods.is_empty());
        Ok(min_ready.map(|it| Duration::from_secs(it.unsigned_abs().into())))
    }
}

impl Shell {
    fn pod_changed(&self, change: &Change<Pod>) {
        for owned in change.old().into_iter().chain([change.object()]) {
            if let Some(key) = claims::owner_key::<StatefulSet>(&owned.metadata) {
                self.queue.add_after(key, COALESCE);
            }
        }
        self.queue.add_all(claims::adopters(&self.informers.stateful_sets, change, selector));
    }

    async fn act(&self, set: &StatefulSet, plan: &Plan) -> Result<()> {
        for action in &plan.actions {
            match action {
                Action::Create(pod) => {
                    self.ensure_claims(set, pod, false).await?;
                    self.create(set, pod).await?;
                }
                Action::Delete(pod) => self.delete(set, pod).await?,
                Action::Claims(pod) => self.ensure_claims(set, pod, false).await?,
                Action::Identify(pod) => self.identify(set, pod).await?,
            }
        }
        for pod in plan.condemned.iter().filter(|_| retention(set).is_some()) {
            self.ensure_claims(set, pod, true).await?;
        }
        Ok(())
    }

    async fn create(&self, set: &StatefulSet, pod: &Pod) -> Result<()> {
        match writes::create(&self.client, pod).await {
            // A cache that lags behind asks for what is there already.
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => return Err(error),
            created => self.tell(set, "create", pod, created.map(drop)),
        }
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let deleted = writes::delete(&self.client, pod, DeleteParams::default()).await;
        self.tell(set, "delete", pod, deleted.map(drop))
    }

    /// `recordPodEvent`.
    fn tell(&self, set: &StatefulSet, verb: &str, pod: &Pod, result: Result<()>) -> Result<()> {
        let (pod, name) = (pod.name_any(), set.name_any());
        let title = if verb == "create" { "Create" } else { "Delete" };
        let (kind, reason, message) = match &result {
            Ok(()) => (EventType::Normal, format!("Successful{title}"), format!("{verb} Pod {pod} in StatefulSet {name} successful")),
            Err(error) => (EventType::Warning, format!("Failed{title}"), format!("{verb} Pod {pod} in StatefulSet {name} failed error: {}", error.message())),
        };
        self.events.event(set, kind, &reason, message);
        result
    }

    async fn identify(&self, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let labels = json!({POD_NAME: pod.name_any(), POD_INDEX: ordinal(set, pod).unwrap_or(0).to_string()});
        writes::patch(&self.client, pod, &Patch::Merge(json!({"metadata": {"uid": pod.uid(), "labels": labels}}))).await.map(drop)
    }

    /// Makes the claims of a pod that are missing, and lets them go with whom the retention policy says.
    async fn ensure_claims(&self, set: &StatefulSet, pod: &Pod, is_condemned: bool) -> Result<()> {
        let templates = set.spec.as_ref().and_then(|it| it.volume_claim_templates.as_deref()).unwrap_or_default();
        let api = writes::api::<PersistentVolumeClaim>(&self.client, &set.namespace().unwrap_or_default());
        for template in templates {
            let name = claim_name(set, &template.name_any(), ordinal(set, pod).unwrap_or(0));
            match api.get_opt(&name).await? {
                Some(claim) => self.own(set, pod, claim, is_condemned).await?,
                None if is_condemned => (),
                None => _ = writes::create(&self.client, &claim_of(set, pod, template, name)).await?,
            }
        }
        Ok(())
    }

    async fn own(&self, set: &StatefulSet, pod: &Pod, mut claim: PersistentVolumeClaim, is_condemned: bool) -> Result<()> {
        let present = claim.metadata.owner_references.take().unwrap_or_default();
        let wanted = claim_owners(set, pod, present.clone(), is_condemned);
        if wanted != present {
            claim.metadata.owner_references = Some(wanted);
            writes::replace(&self.client, &claim).await?;
        }
        Ok(())
    }
}

/// The revision that the status names; at first the present one.
fn present<'a>(set: &StatefulSet, history: &'a History) -> &'a ControllerRevision {
    let named = set.status.as_ref().and_then(|it| it.current_revision.as_deref());
    history.all.iter().find(|it| it.metadata.name.as_deref() == named).unwrap_or(&history.update)
}

fn selector(set: &StatefulSet) -> Result<LabelSelector> {
    claims::selector_of(&set.spec.as_ref().map(|it| it.selector.clone()).unwrap_or_default())
}

fn retention(set: &StatefulSet) -> Option<&StatefulSetPersistentVolumeClaimRetentionPolicy> {
    set.spec.as_ref()?.persistent_volume_claim_retention_policy.as_ref()
}

fn claim_of(set: &StatefulSet, pod: &Pod, template: &PersistentVolumeClaim, name: String) -> PersistentVolumeClaim {
    let mut claim = PersistentVolumeClaim { status: None, ..template.clone() };
    claim.metadata.name = Some(name);
    claim.metadata.namespace = set.namespace();
    let labels = set.spec.as_ref().and_then(|it| it.selector.match_labels.clone()).unwrap_or_default();
    claim.metadata.labels.get_or_insert_default().extend(labels);
    claim.metadata.owner_references = Some(claim_owners(set, pod, Vec::new(), false)).filter(|it| !it.is_empty());
    claim
}

/// `updateClaimOwnerRefForSetAndPod`: with policy Delete a claim goes with its set, or with its condemned pod; others' references stay.
fn claim_owners(set: &StatefulSet, pod: &Pod, mut owners: Vec<OwnerReference>, is_condemned: bool) -> Vec<OwnerReference> {
    let is_delete = |policy: Option<&String>| policy.is_some_and(|it| it == "Delete");
    let policy = retention(set);
    let with_pod = is_condemned && is_delete(policy.and_then(|it| it.when_scaled.as_ref()));
    let with_set = !with_pod && is_delete(policy.and_then(|it| it.when_deleted.as_ref()));
    let names = [("StatefulSet", set.name_any()), ("Pod", pod.name_any())];
    owners.retain(|it| names.iter().all(|(kind, name)| it.kind != *kind || it.name != *name));
    owners.extend(with_set.then(|| controller_ref(set)));
    owners.extend(with_pod.then(|| OwnerReference { controller: Some(true), block_owner_deletion: Some(true), ..controller_ref(pod) }));
    owners
}
