//! Empties a namespace that is being deleted, whatever kinds it holds, and then lets it go. Follows pkg/controller/namespace/deletion.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams},
    discovery::{ApiCapabilities, Discovery, Scope, verbs},
};

use super::Controller;
use crate::{
    base::clock,
    client::{Error, ObjectKey, Result, writes},
};

const FINALIZER: &str = "kubernetes";
/// What remains is looked at again after a quarter of the time it has taken so far, within these bounds.
const AGAIN_LEAST: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);

pub struct NamespaceController;
type Shell = super::Shell<NamespaceController>;

impl Controller for NamespaceController {
    type Key = String;
    const NAME: &'static str = "namespace-controller";
    const WORKERS: usize = 10;

    async fn listen(shell: &Arc<Shell>) {
        shell.on(&shell.informers.namespaces, |it, change| {
            if !change.is_deleted() && change.object().metadata.deletion_timestamp.is_some() {
                it.queue.add(change.object().name_any());
            }
        });
    }

    async fn reconcile(shell: &Arc<Shell>, name: &String) -> Result<Option<Duration>> {
        let Some(cached) = shell.informers.namespaces.get(&ObjectKey::new("", name)) else { return Ok(None) };
        let has_finalizer = |it: &Namespace| it.spec.iter().flat_map(|it| it.finalizers.iter().flatten()).any(|it| it == FINALIZER);
        if cached.metadata.deletion_timestamp.is_none() || !has_finalizer(&cached) {
            return Ok(None);
        }
        let remains = empty(&shell.client, name).await;
        writes::retry_on_conflict(|| write_status(&shell.client, name, &remains)).await?;
        if remains.is_empty() {
            return writes::retry_on_conflict(|| finalize(&shell.client, name)).await.map(|()| None);
        }
        let since = cached.metadata.deletion_timestamp.as_ref().map_or_else(clock::now, |it| it.0);
        Ok(Some((clock::now().duration_since(since).unsigned_abs() / 4).clamp(AGAIN_LEAST, AGAIN_MOST)))
    }
}

/// What a round of deletion left over.
#[derive(Debug, Default, PartialEq)]
struct Remains {
    /// `resource.group` -> objects
    resources: BTreeMap<String, usize>,
    /// finalizer -> objects
    finalizers: BTreeMap<String, usize>,
    discovery_failure: Option<String>,
    failures: Vec<String>,
}

impl Remains {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.failures.is_empty() && self.discovery_failure.is_none()
    }

    /// Empties some resources, and counts what is left of them.
    async fn add(&mut self, client: &kube::Client, namespace: &str, resources: &[(ApiResource, ApiCapabilities)]) {
        let works = resources.iter().map(|(resource, capabilities)| empty_of(client, namespace, resource, capabilities));
        for ((resource, _), result) in resources.iter().zip(futures::future::join_all(works).await) {
            match result {
                Ok(left) => self.count(resource, &left),
                Err(error) if error.is_not_found() => (),
                Err(error) => self.failures.push(error.message()),
            }
        }
    }

    fn count(&mut self, resource: &ApiResource, left: &[Vec<String>]) {
        if !left.is_empty() {
            self.resources.insert(format!("{}.{}", resource.plural, resource.group), left.len());
        }
        for finalizer in left.iter().flatten() {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

/// Deletes everything of every namespaced resource, and says what is left.
async fn empty(client: &kube::Client, namespace: &str) -> Remains {
    let mut remains = Remains::default();
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(error) => {
            remains.discovery_failure = Some(Error::from(error).message());
            return remains;
        }
    };
    let resources: Vec<_> = discovery.groups().flat_map(|it| it.recommended_resources()).filter(|(_, it)| is_emptied(it)).collect();
    // Pods go first, while what they use is still there (KEP-5080).
    let (pods, others): (Vec<_>, Vec<_>) = resources.into_iter().partition(|(it, _)| it.group.is_empty() && it.plural == "pods");
    remains.add(client, namespace, &pods).await;
    if remains.is_empty() {
        remains.add(client, namespace, &others).await;
    }
    remains
}

fn is_emptied(capabilities: &ApiCapabilities) -> bool {
    capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST) && capabilities.supports_operation(verbs::DELETE)
}

/// The finalizers of each object that is left.
async fn empty_of(client: &kube::Client, namespace: &str, resource: &ApiResource, capabilities: &ApiCapabilities) -> Result<Vec<Vec<String>>> {
    let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let everything = ListParams::default();
    let present = objects.list_metadata(&everything).await?;
    if present.items.is_empty() {
        return Ok(Vec::new());
    }
    if capabilities.supports_operation(verbs::DELETE_COLLECTION) {
        objects.delete_collection(&DeleteParams::background(), &everything).await?;
    } else {
        for object in &present.items {
            writes::unless_not_found(objects.delete(&object.name_any(), &DeleteParams::background()).await)?;
        }
    }
    let left = objects.list_metadata(&everything).await?;
    Ok(left.items.into_iter().map(|it| it.metadata.finalizers.unwrap_or_default()).collect())
}

async fn write_status(client: &kube::Client, name: &str, remains: &Remains) -> Result<()> {
    let Some(present) = writes::api::<Namespace>(client, "").get_opt(name).await? else { return Ok(()) };
    let mut next = present.clone();
    let status = next.status.get_or_insert_default();
    status.phase = Some("Terminating".to_owned());
    status.conditions = Some(conditions(status.conditions.take().unwrap_or_default(), remains, clock::now()));
    unless_gone(writes::status(client, &present, &next).await)
}

async fn finalize(client: &kube::Client, name: &str) -> Result<()> {
    let Some(mut namespace) = writes::api::<Namespace>(client, "").get_opt(name).await? else { return Ok(()) };
    let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
    finalizers.retain(|it| it != FINALIZER);
    unless_gone(writes::replace_part(client, "finalize", &namespace).await)
}

fn unless_gone(result: Result<()>) -> Result<()> {
    result.or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
}

/// The five conditions of a namespace in deletion; one keeps its time while it stays the same.
fn conditions(present: Vec<NamespaceCondition>, remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let listed = |of: &BTreeMap<String, usize>, text: &str| {
        of.iter().map(|(name, count)| format!("{name} {text}").replace("{}", &count.to_string())).collect::<Vec<_>>().join(", ")
    };
    let of = |kind: &str, bad: Option<(&str, String)>, reason: &str, message: &str| {
        let (status, reason, message) = bad.map_or(("False", reason, message.to_owned()), |(reason, message)| ("True", reason, message));
        let kept = present
            .iter()
            .find(|it| it.type_ == kind && it.status == status && it.reason.as_deref() == Some(reason) && it.message.as_deref() == Some(&message));
        kept.cloned().unwrap_or_else(|| NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        })
    };
    let failures = (!remains.failures.is_empty()).then(|| {
        (
            "ContentDeletionFailed",
            format!("Failed to delete all resource types, {} remaining: {}", remains.failures.len(), remains.failures.join(", ")),
        )
    });
    let resources = (!remains.resources.is_empty())
        .then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {}", listed(&remains.resources, "has {} resource instances"))));
    let finalizers = (!remains.finalizers.is_empty()).then(|| {
        (
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {}", listed(&remains.finalizers, "in {} resource instances")),
        )
    });
    let discovery = remains.discovery_failure.clone().map(|it| ("DiscoveryFailed", it));
    let mut all = vec![
        of("NamespaceDeletionDiscoveryFailure", discovery, "ResourcesDiscovered", "All resources successfully discovered"),
        of("NamespaceDeletionGroupVersionParsingFailure", None, "ParsedGroupVersions", "All legacy kube types successfully parsed"),
        of("NamespaceDeletionContentFailure", failures, "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        of("NamespaceContentRemaining", resources, "ContentRemoved", "All content successfully removed"),
        of("NamespaceFinalizersRemaining", finalizers, "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    ];
    all.extend(present.iter().filter(|it| !all.iter().any(|own| own.type_ == it.type_)).cloned().collect::<Vec<_>>());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_say_what_is_left() {
        let mut remains = Remains::default();
        let pods = ApiResource { group: String::new(), version: "v1".into(), api_version: "v1".into(), kind: "Pod".into(), plural: "pods".into() };
        remains.count(&pods, &[vec!["x.io/f".into()], vec![]]);
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let said = conditions(Vec::new(), &remains, first);
        let find = |kind: &str| said.iter().find(|it| it.type_ == kind).map(|it| (it.status.clone(), it.message.clone().unwrap())).unwrap();
        assert_eq!(find("NamespaceContentRemaining"), ("True".into(), "Some resources are remaining: pods. has 2 resource instances".into()));
        let finalizers = "Some content in the namespace has finalizers remaining: x.io/f in 1 resource instances";
        assert_eq!(find("NamespaceFinalizersRemaining"), ("True".into(), finalizers.into()));
        assert_eq!(find("NamespaceDeletionDiscoveryFailure").0, "False");
        let later = conditions(said.clone(), &remains, "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(said, later);
    }
}
