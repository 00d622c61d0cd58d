//! ControllerRevisions: the templates that a StatefulSet or DaemonSet has had, for updates and rollback.
//! Follows pkg/controller/history.

use std::sync::Arc;

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::runtime::RawExtension,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    claims::{self, controller_ref},
    deployment::template,
};
use crate::{
    client::{Cached, Error, Informer, Result, writes},
    meta::LabelSelector,
};

/// `ControllerRevisionName` leaves room for the hash.
const NAME_MAX: usize = 223;

/// The label by which DaemonSets mark their revisions, and DaemonSets and StatefulSets their pods.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// What an owner's history is made of.
pub struct Subject<'a, O> {
    pub owner: &'a O,
    pub selector: &'a LabelSelector,
    pub template: &'a PodTemplateSpec,
    /// The label of a revision that holds its hash.
    pub hash_label: &'a str,
    pub collisions: i32,
}

/// The revisions of an owner.
pub struct History {
    /// By number, the oldest first; among them `update`.
    pub all: Vec<Arc<ControllerRevision>>,
    /// That of the present template.
    pub update: Arc<ControllerRevision>,
    pub collisions: i32,
}

/// The template of a revision, as a strategic merge patch to its owner; what `kubectl rollout undo` applies.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision stands for.
pub fn template_of(revision: &ControllerRevision) -> Result<PodTemplateSpec> {
    let mut template = revision.data.as_ref().map(|it| it.0["spec"]["template"].clone()).unwrap_or_default();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    serde_json::from_value(template).map_err(|error| Error::Invalid(format!("revision {}: {error}", revision.name_any())))
}

/// Adopts the owner's revisions and finds that of the present template: made, or, after a rollback, given the highest number.
pub async fn settle<O: Cached>(client: &kube::Client, cache: &Informer<ControllerRevision>, subject: &Subject<'_, O>) -> Result<History> {
    let mut all = claims::claim(client, subject.owner, subject.selector, cache, |_| true, &[]).await?;
    all.sort_by_key(|it| (it.revision, it.metadata.creation_timestamp.clone(), it.name_any()));
    let next = all.last().map_or(0, |it| it.revision) + 1;
    let wanted = data(subject.template);
    let equal = all.iter().rposition(|it| it.data.as_ref().is_some_and(|it| it.0 == wanted));
    let (update, collisions) = match equal {
        Some(at) if at + 1 == all.len() => (all[at].clone(), subject.collisions),
        Some(at) => (renumber(client, &all.remove(at), next).await?, subject.collisions),
        None => create(client, subject, wanted, next).await?,
    };
    all.retain(|it| it.metadata.uid != update.metadata.uid);
    all.push(update.clone());
    Ok(History { all, update, collisions })
}

async fn renumber(client: &kube::Client, revision: &ControllerRevision, number: i64) -> Result<Arc<ControllerRevision>> {
    let api = writes::api(client, &revision.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"revision": number, "metadata": {"uid": revision.uid()}}));
    Ok(Arc::new(api.patch(&revision.name_any(), &PatchParams::default(), &patch).await?))
}

/// A name that is taken by another template counts as a collision, and another name is tried.
async fn create<O: Cached>(client: &kube::Client, subject: &Subject<'_, O>, data: Value, number: i64) -> Result<(Arc<ControllerRevision>, i32)> {
    let mut collisions = subject.collisions;
    loop {
        let revision = revision(subject, &data, number, collisions);
        match writes::create(client, &revision).await {
            Ok(made) => return Ok((Arc::new(made), collisions)),
            Err(error) if error.is_already_exists() => (),
            Err(error) => return Err(error),
        }
        let present = writes::fresh(client, &revision).await?;
        if present.data.as_ref().is_some_and(|it| it.0 == data) {
            return Ok((Arc::new(present), collisions));
        }
        collisions += 1;
    }
}

fn revision<O: Cached>(subject: &Subject<'_, O>, data: &Value, number: i64, collisions: i32) -> ControllerRevision {
    let hash = template::hash(subject.template, Some(collisions));
    let name = subject.owner.name_any();
    let mut labels = subject.template.metadata.as_ref().and_then(|it| it.labels.clone()).unwrap_or_default();
    labels.insert(subject.hash_label.to_owned(), hash.clone());
    let metadata = ObjectMeta {
        name: Some(format!("{}-{hash}", &name[..name.len().min(NAME_MAX)])),
        namespace: subject.owner.namespace(),
        labels: Some(labels),
        annotations: subject.owner.meta().annotations.clone(),
        owner_references: Some(vec![controller_ref(subject.owner)]),
        ..ObjectMeta::default()
    };
    ControllerRevision { metadata, data: Some(RawExtension(data.clone())), revision: number }
}

/// Deletes the oldest revisions that are not `live`, beyond `limit` of them.
pub async fn truncate(client: &kube::Client, history: &History, limit: i32, live: impl Fn(&ControllerRevision) -> bool) -> Result<()> {
    let past: Vec<_> = history.all.iter().filter(|it| it.metadata.uid != history.update.metadata.uid && !live(it)).collect();
    let surplus = past.len().saturating_sub(limit.max(0) as usize);
    for revision in &past[..surplus] {
        writes::delete(client, revision.as_ref(), DeleteParams::default()).await?;
    }
    Ok(())
}
