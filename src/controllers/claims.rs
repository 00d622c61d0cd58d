//! Who owns what: controller references, adoption of matching orphans, release of what no longer matches.
//! Follows pkg/controller/controller_ref_manager.go.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as metav1, OwnerReference};
use kube::{
    Resource, ResourceExt,
    api::{ObjectMeta, Patch},
};
use serde_json::json;

use crate::{
    client::{BY_NAMESPACE, BY_OWNER, Cached, Change, Error, Informer, ObjectKey, Result, informer::orphan_of, writes},
    meta::LabelSelector,
};

/// The objects that an owner has, should take and should let go.
pub struct Claims<K> {
    pub owned: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

pub fn selector_of(selector: &metav1::LabelSelector) -> Result<LabelSelector> {
    let value = serde_json::to_value(selector).map_err(|error| Error::Invalid(error.to_string()))?;
    LabelSelector::from_value(Some(&value)).map_err(Error::Invalid)
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|it| it.controller == Some(true))
}

/// The key of the controller of an object, if it is of kind `O` (in any version of its group).
pub fn owner_key<O: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<ObjectKey> {
    let group = O::group(&());
    let is_of_group = |version: &str| version.rsplit_once('/').map_or("", |it| it.0) == group;
    let owner = controller_of(meta).filter(|it| it.kind == O::kind(&()) && is_of_group(&it.api_version))?;
    Some(ObjectKey::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

/// A reference by which `owner` controls an object and is not removed before it in a foreground deletion.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Sorts `objects` (the owner's and its namespace's orphans) by what is to become of them.
pub fn claims<K: Resource>(owner: &ObjectMeta, selector: &LabelSelector, objects: impl IntoIterator<Item = Arc<K>>) -> Claims<K> {
    let mut claims = Claims { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let is_deleting = owner.deletion_timestamp.is_some();
    for object in objects {
        let does_match = selector.matches(object.labels());
        match controller_of(object.meta()) {
            Some(by) if Some(&by.uid) != owner.uid.as_ref() => (),
            Some(_) if does_match => claims.owned.push(object),
            Some(_) if !is_deleting => claims.release.push(object),
            None if does_match && !is_deleting && object.meta().deletion_timestamp.is_none() => claims.adopt.push(object),
            _ => (),
        }
    }
    claims
}

/// Which of the owners in `cache` may adopt what has changed, where nobody controls it.
pub fn adopters<O: Cached, K: Cached>(cache: &Informer<O>, change: &Change<K>, selector: impl Fn(&O) -> Result<LabelSelector>) -> Vec<ObjectKey> {
    let (object, meta) = (change.object(), change.object().meta());
    if change.is_deleted() || controller_of(meta).is_some() {
        return Vec::new();
    }
    let near = cache.by(BY_NAMESPACE, meta.namespace.as_deref().unwrap_or_default());
    near.iter().filter(|it| selector(it).is_ok_and(|it| it.matches(object.labels()))).map(|it| ObjectKey::of(it.as_ref())).collect()
}

/// What `owner` has of the objects in `cache` that `may_be` its own, after adoption and release.
pub async fn claim<O, K>(client: &kube::Client, owner: &O, selector: &LabelSelector, cache: &Informer<K>, may_be: impl Fn(&K) -> bool, finalizers: &[&str]) -> Result<Vec<Arc<K>>>
where
    O: Cached,
    K: Cached,
{
    let mut candidates = cache.by(BY_OWNER, &owner.uid().unwrap_or_default());
    candidates.extend(cache.by(BY_OWNER, &orphan_of(&owner.namespace().unwrap_or_default())));
    candidates.retain(|it| may_be(it));
    settle(client, owner, claims(owner.meta(), selector, candidates), finalizers).await
}

/// Carries out `claims` and returns all that is owned afterwards. Before adopting, the server is asked whether the owner still lives.
async fn settle<O: Cached, K: Cached>(client: &kube::Client, owner: &O, claims: Claims<K>, finalizers: &[&str]) -> Result<Vec<Arc<K>>> {
    let Claims { mut owned, adopt, release } = claims;
    for object in release {
        let mut metadata = json!({"ownerReferences": [{"$patch": "delete", "uid": owner.uid()}], "uid": object.uid()});
        if !finalizers.is_empty() {
            metadata["$deleteFromPrimitiveList/finalizers"] = json!(finalizers);
        }
        writes::patch(client, object.as_ref(), &Patch::Strategic(json!({"metadata": metadata}))).await?;
    }
    if !adopt.is_empty() {
        ensure_alive(client, owner).await?;
    }
    for object in adopt {
        let mut metadata = json!({"ownerReferences": [controller_ref(owner)], "uid": object.uid()});
        if !finalizers.is_empty() {
            metadata["finalizers"] = json!(finalizers);
        }
        if writes::patch(client, object.as_ref(), &Patch::Strategic(json!({"metadata": metadata}))).await? {
            owned.push(object);
        }
    }
    Ok(owned)
}

async fn ensure_alive<O: Cached>(client: &kube::Client, owner: &O) -> Result<()> {
    let fresh = writes::fresh(client, owner).await?;
    if fresh.uid() != owner.uid() || fresh.meta().deletion_timestamp.is_some() {
        return Err(Error::Invalid(format!("{} has just been deleted", owner.name_any())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn orphans_that_match_are_adopted_and_strays_released() {
        let pod = |app: &str, owner: Option<&str>, is_deleting: bool| -> Arc<Pod> {
            let owners: Vec<_> = owner
                .iter()
                .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": uid, "controller": true}))
                .collect();
            let deleted = is_deleting.then_some("2026-01-01T00:00:00Z");
            let meta = json!({"name": "p", "labels": {"app": app}, "ownerReferences": owners, "deletionTimestamp": deleted});
            Arc::new(serde_json::from_value(json!({"metadata": meta})).unwrap())
        };
        let selector = LabelSelector::from_map([("app", "web")]);
        // (pod, owner is being deleted) -> (owned, adopted, released)
        let cases = [
            (pod("web", Some("me"), false), false, (1, 0, 0)),
            (pod("web", Some("me"), true), true, (1, 0, 0)),
            (pod("db", Some("me"), false), false, (0, 0, 1)),
            (pod("db", Some("me"), false), true, (0, 0, 0)),
            (pod("web", Some("other"), false), false, (0, 0, 0)),
            (pod("web", None, false), false, (0, 1, 0)),
            (pod("web", None, true), false, (0, 0, 0)),
            (pod("web", None, false), true, (0, 0, 0)),
            (pod("db", None, false), false, (0, 0, 0)),
        ];
        for (pod, is_deleting, expected) in cases {
            let deleted = is_deleting.then(|| metav1::Time(crate::base::clock::now()));
            let owner = ObjectMeta { uid: Some("me".into()), deletion_timestamp: deleted, ..ObjectMeta::default() };
            let claims = claims(&owner, &selector, [pod.clone()]);
            assert_eq!((claims.owned.len(), claims.adopt.len(), claims.release.len()), expected, "{pod:?}");
        }
    }
}
