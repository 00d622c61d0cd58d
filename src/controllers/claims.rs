//! Who owns what: controller references, adoption of matching orphans, release of what no longer matches.
//! Follows pkg/controller/controller_ref_manager.go.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as metav1, OwnerReference};
use kube::{
    Api, Resource, ResourceExt,
    api::{ObjectMeta, Patch},
};
use serde_json::json;

use crate::{
    client::{
        Error, ObjectKey, Result,
        informer::Cached,
        writes::{self, CONTROLLER_MANAGER},
    },
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

/// Carries out `claims` and returns all that is owned afterwards. Before adopting, the server is asked whether the owner still lives.
pub async fn settle<O, K>(client: &kube::Client, owner: &O, claims: Claims<K>, finalizers: &[&str]) -> Result<Vec<Arc<K>>>
where
    O: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    let namespace = owner.namespace().unwrap_or_default();
    let objects: Api<K> = Api::namespaced(client.clone(), &namespace);
    let Claims { mut owned, adopt, release } = claims;
    for object in release {
        let mut metadata = json!({"ownerReferences": [{"$patch": "delete", "uid": owner.uid()}], "uid": object.uid()});
        if !finalizers.is_empty() {
            metadata["$deleteFromPrimitiveList/finalizers"] = json!(finalizers);
        }
        patch(&objects, &object, metadata).await?;
    }
    if !adopt.is_empty() {
        ensure_alive(client, owner).await?;
    }
    for object in adopt {
        let mut metadata = json!({"ownerReferences": [controller_ref(owner)], "uid": object.uid()});
        if !finalizers.is_empty() {
            metadata["finalizers"] = json!(finalizers);
        }
        if patch(&objects, &object, metadata).await? {
            owned.push(object);
        }
    }
    Ok(owned)
}

async fn ensure_alive<O: Cached + Resource<Scope = k8s_openapi::NamespaceResourceScope>>(client: &kube::Client, owner: &O) -> Result<()> {
    let owners: Api<O> = Api::namespaced(client.clone(), &owner.namespace().unwrap_or_default());
    let fresh = owners.get(&owner.name_any()).await?;
    if fresh.uid() != owner.uid() || fresh.meta().deletion_timestamp.is_some() {
        return Err(Error::Invalid(format!("{} has just been deleted", owner.name_any())));
    }
    Ok(())
}

/// Whether the object was still there.
async fn patch<K: Cached>(objects: &Api<K>, object: &K, metadata: serde_json::Value) -> Result<bool> {
    let patch = Patch::Strategic(json!({"metadata": metadata}));
    let patched = objects.patch(&object.name_any(), &writes::patching(CONTROLLER_MANAGER), &patch).await;
    Ok(writes::unless_not_found(patched)?.is_some())
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
